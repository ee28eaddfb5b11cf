"""The Triton kernels beside the reference that they must equal, in Triton's interpreter on the CPU.

test_fused.py runs this file with TRITON_INTERPRET=1, which must be set before Triton is imported.
"""

import itertools
import os

import pytest
import torch
import torch.nn.functional as F

from resnest_d2.modeling.split_attention import SplitAttentionConv2d
from resnest_d2.ops import fused, radix_weighted_sum, relu_pool, relu_weighted_sum, split_pool

assert os.environ["TRITON_INTERPRET"] == "1"

# Relative to the largest value; sums of both are in float32 at least.
TOLERANCE = {torch.float32: 2e-6, torch.float16: 2e-3, torch.bfloat16: 1.6e-2}
# Batch, channels of a split, height, width: one element, odd sizes, more than one tile and part.
SHAPES = [(1, 1, 1, 1), (2, 5, 7, 9), (1, 20, 33, 35), (3, 70, 4, 5)]
FORMATS = [torch.contiguous_format, torch.channels_last]


def both(shape, radix, dtype, layout):
    """Pooled vector, sum and both gradients: of the reference in float64, and of the kernels."""
    generator = torch.Generator().manual_seed(0)
    n, c, h, w = shape
    x, a, of_sum, of_pool = (
        torch.randn(s, generator=generator).to(dtype)
        for s in ((n, radix * c, h, w), (n, radix * c, 1, 1), (n, c, h, w), (n, c, 1, 1))
    )
    results = []
    for kernels in (False, True):
        kind = dtype if kernels else torch.float64
        map_ = x.to(kind).contiguous(memory_format=layout).requires_grad_()
        attention = a.to(kind).requires_grad_()
        if kernels:
            assert fused.is_supported(map_, radix)
            pooled, activated = relu_pool(map_, radix)
            # The attention hangs on the pooled vector, as in the network.
            out = relu_weighted_sum(activated, attention * (1 + pooled.repeat(1, radix, 1, 1)))
        else:
            y = F.relu(map_)
            pooled = split_pool(y, radix)
            out = radix_weighted_sum(y, attention * (1 + pooled.repeat(1, radix, 1, 1)), radix)
        torch.autograd.backward([out, pooled], [of_sum.to(kind), of_pool.to(kind)])
        results.append((pooled, out, map_.grad, attention.grad))
    return results


@pytest.mark.parametrize(
    "shape, radix, dtype, layout", itertools.product(SHAPES, (1, 2, 4), TOLERANCE, FORMATS)
)
def test_kernels_equal_the_reference_output_and_every_gradient(shape, radix, dtype, layout):
    expected, got = both(shape, radix, dtype, layout)
    for name, a, b in zip(("pooled", "sum", "gradient of the map", "of the attention"), expected, got):
        assert b.dtype == dtype and b.shape == a.shape
        error = (a - b.double()).abs().max() / a.abs().max().clamp(min=1e-3)
        assert error < TOLERANCE[dtype] * (8 if "gradient" in name or "attention" in name else 1), name
    assert got[1].is_contiguous(memory_format=layout) and got[2].is_contiguous(memory_format=layout)


@pytest.mark.parametrize("radix", [1, 2, 4])
@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("norm", ["BN", "GN", ""])
def test_the_layer_is_the_same_with_and_without_kernels(radix, groups, norm):
    torch.manual_seed(1)  # no activation so near zero that rounding decides on its gradient
    layer = SplitAttentionConv2d(64, 64, groups=groups, radix=radix, norm=norm)
    plain = SplitAttentionConv2d(64, 64, groups=groups, radix=radix, norm=norm, fused_kernels=False)
    plain.load_state_dict(layer.state_dict())
    x = torch.randn(6, 64, 6, 5)  # enough for batch statistics not to magnify rounding
    outputs = []
    for module in (layer, plain):
        y = x.clone().requires_grad_()
        out = module(y)
        out.square().sum().backward()
        outputs.append([out, y.grad, *(p.grad for p in module.parameters())])
    # A bias before a norm has no gradient but rounding: as large as that of the others, not as its own.
    largest = max(b.abs().max().item() for b in outputs[1][1:])
    for a, b in zip(*outputs):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5 * largest)


def test_results_do_not_change_from_run_to_run():
    runs = [both((2, 20, 33, 35), 2, torch.float32, torch.contiguous_format)[1] for _ in range(2)]
    assert all(torch.equal(a, b) for a, b in zip(*runs))


def test_parts_of_the_graph_may_need_no_gradient():
    x, a = torch.randn(1, 4, 3, 3), torch.rand(1, 4, 1, 1)
    pooled, activated = relu_pool(x.requires_grad_(), 2)
    relu_weighted_sum(activated, a).sum().backward()  # nothing comes through the pooled vector
    expected = (x > 0) * a
    torch.testing.assert_close(x.grad, expected)
    x.grad = None
    relu_pool(x, 2)[0].sum().backward()  # nor through the sum
    torch.testing.assert_close(x.grad, (x > 0) / 9.0)
    with torch.no_grad():
        pooled, activated = relu_pool(x, 2)
        assert not relu_weighted_sum(activated, a).requires_grad and not pooled.requires_grad


def test_the_map_is_not_changed_and_not_held():
    x = torch.randn(1, 4, 3, 3)
    before = x.clone()
    _, activated = relu_pool(x, 2)
    relu_weighted_sum(activated, torch.rand(1, 4, 1, 1))
    assert torch.equal(x, before) and activated.map is None


def test_what_is_not_supported_is_said():
    x = torch.randn(1, 6, 4, 4)
    assert fused.is_supported(x, 2)
    for other, radix in ((x, 3), (x.double(), 2), (x[:, :, ::2], 2), (x[:0], 2)):
        assert not fused.is_supported(other, radix)
