"""The Triton kernels beside the reference that they must equal: on CUDA, or in Triton's interpreter.

test_kernels.py runs this file, that marked slow when its slow tests run; without a GPU with TRITON_INTERPRET=1,
which must be set before Triton is imported.
"""

import itertools
import math
import os

import pytest
import torch
from split_attention_graphs import FORMATS, SUBSETS, build, gradients

from resnest_d2 import optimize_for_inference
from resnest_d2.modeling.split_attention import SplitAttentionConv2d
from resnest_d2.ops import relu_pool, relu_weighted_sum, triton_kernels

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
assert DEVICE == "cuda" or os.environ["TRITON_INTERPRET"] == "1"

# Relative to the largest value; sums of both are in float32 at least.
TOLERANCE = {torch.float32: 2e-6, torch.float16: 2e-3, torch.bfloat16: 1.6e-2}
# Batch, channels of a split, height, width: one element; odd sizes; rows that begin anywhere, of several tiles
# and parts; channels beyond a tile, which has more than one in channels-last alone. No larger than that takes,
# since the interpreter runs one program after the other.
MAPS = [
    *itertools.product([(1, 1, 1, 1), (2, 5, 7, 9)], FORMATS),
    ((1, 5, 33, 35), torch.contiguous_format),
    ((1, 16, 17, 19), torch.channels_last),
    ((1, 70, 4, 5), torch.channels_last),
]


def error(expected, got):
    expected, got = expected.double(), got.double()
    return (expected - got).abs().max() / expected.abs().max().clamp(min=1e-3)


def slow(*values):
    return pytest.param(*values, marks=pytest.mark.slow)


# The interpreter computes in the same types whatever a kernel is compiled to, so that pairs suffice there.
TYPES = [
    (dtype, radix) if dtype != torch.bfloat16 and radix != 4 else slow(dtype, radix)
    for dtype, radix in itertools.product(TOLERANCE, (1, 2, 4))
    if DEVICE == "cuda" or dtype == torch.float32 or radix == 2
]


@pytest.mark.parametrize("shape, layout", MAPS)
@pytest.mark.parametrize("dtype, radix", TYPES)
def test_kernels_equal_the_reference_output_and_every_gradient(shape, radix, dtype, layout):
    options = {"layout": layout, "device": DEVICE}
    # Maps are the same in both: rounded to their type before they become float64.
    expected = build(
        shape, radix, torch.float64, passes=False, values=lambda x: x.copy_(x.to(dtype)), **options
    )
    got = build(shape, radix, dtype, passes=True, **options)
    assert triton_kernels.is_supported(got.x, radix)
    assert got.out.dtype == dtype and got.out.is_contiguous(memory_format=layout)
    assert error(expected.pooled, got.pooled) < 2e-6  # float32 all through
    assert error(expected.out, got.out) < TOLERANCE[dtype]
    for subset in SUBSETS[4:5]:
        for a, b in zip(gradients(expected, *subset), gradients(got, *subset)):
            assert error(a, b) < 8 * TOLERANCE[dtype]
            assert b.dim() < 4 or b.is_contiguous(memory_format=layout) or b.shape[2:] == (1, 1)


@pytest.mark.parametrize("layout", FORMATS)
def test_a_folded_norms_bias_is_added_on_reading(layout):
    torch.manual_seed(0)
    layer = SplitAttentionConv2d(16, 16).to(DEVICE).eval()
    for tensor in (layer.bn0.running_mean, layer.bn0.bias.data):
        tensor.uniform_(-1, 1)
    x = torch.randn(2, 16, 7, 9, device=DEVICE).contiguous(memory_format=layout)
    with torch.no_grad():
        expected = layer(x)
        optimize_for_inference(layer)
        assert layer.conv.bias is None and layer.bias is not None
        torch.testing.assert_close(layer(x), expected, rtol=1e-4, atol=1e-5)
        layer.fused_kernels = False
        torch.testing.assert_close(layer(x), expected, rtol=1e-4, atol=1e-5)
    with_gradients = []
    for kernels in (True, False):  # for saliency, say
        layer.fused_kernels = kernels
        layer.fc2.weight.grad = None
        leaf = x.clone().requires_grad_()
        layer.fc2.weight.requires_grad_()
        out = layer(leaf)
        torch.testing.assert_close(out, expected, rtol=1e-4, atol=1e-5)
        layer(x).square().sum().backward()  # the vectors alone record gradients
        out.square().sum().backward()
        with_gradients.append((leaf.grad, layer.fc2.weight.grad))
    for a, b in zip(*with_gradients):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


def test_a_sum_in_several_parts_and_rounds_of_them(monkeypatch):
    monkeypatch.setattr(triton_kernels, "_PROGRAMS", 10**6)
    for layout in FORMATS:
        shape = (1, 3, 70, 71)  # 5 parts, and 78 in three rounds
        expected = build(shape, 2, passes=False, layout=layout, device=DEVICE)
        got = build(shape, 2, torch.float32, passes=True, layout=layout, device=DEVICE)
        assert error(expected.pooled, got.pooled) < 2e-6
        (a,), (b,) = (gradients(graph, ("out",), ("attention",)) for graph in (expected, got))
        assert error(a, b) < 2e-6


@pytest.mark.parametrize(
    "first, second", [slow(*SUBSETS[:2]), slow(*SUBSETS[1:3]), SUBSETS[2::-2], SUBSETS[3:5]], ids=str
)
def test_gradients_of_a_retained_graph_do_not_depend_on_those_asked_for_before(first, second):
    expected = build((2, 3, 5, 4), 2, passes=False, device=DEVICE)
    got = build((2, 3, 5, 4), 2, torch.float32, passes=True, device=DEVICE)
    for subset in (first, second, first):
        for a, b in zip(gradients(expected, *subset), gradients(got, *subset)):
            assert error(a, b) < 1e-5


@pytest.mark.parametrize("layout", FORMATS)
@pytest.mark.parametrize("radix", [1, 2, 4])
def test_nan_and_infinity_go_through_as_through_the_reference(radix, layout):
    def values(x):
        x[0, 0, 1, 1], x[0, 3, 2], x[1, :, 0, 0], x[1, 5] = math.nan, -math.inf, math.inf, math.nan

    options = {"layout": layout, "values": values, "device": DEVICE}
    shape = (2, 6, 3, 5)  # a row's aligned stretch reads its neighbours
    expected = build(shape, radix, torch.float32, passes=False, **options)
    got = build(shape, radix, torch.float32, passes=True, **options)
    for name in ("pooled", "attention", "out"):
        torch.testing.assert_close(getattr(got, name), getattr(expected, name), equal_nan=True)
    for subset in SUBSETS[4:6]:
        for a, b in zip(gradients(expected, *subset), gradients(got, *subset)):
            torch.testing.assert_close(b, a, equal_nan=True, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("radix", [1, 2, slow(4)])
@pytest.mark.parametrize("groups, norm", [(1, "BN"), slow(2, "GN"), (2, "")])
def test_the_layer_is_the_same_with_and_without_kernels(radix, groups, norm):
    torch.manual_seed(1)  # no activation so near zero that rounding decides on its gradient
    channels = 32 // radix if norm == "GN" else 8  # of which GN has 32 groups
    layer = SplitAttentionConv2d(channels, channels, groups=groups, radix=radix, norm=norm)
    plain = SplitAttentionConv2d(
        channels, channels, groups=groups, radix=radix, norm=norm, fused_kernels=False
    )
    plain.load_state_dict(layer.state_dict())
    images = 6 if norm == "BN" else 2  # enough for batch statistics not to magnify rounding
    x = torch.randn(images, channels, 6, 5)
    outputs = []
    for module in (layer, plain):
        y = x.to(DEVICE).requires_grad_()
        out = module.to(DEVICE)(y)
        out.square().sum().backward()
        outputs.append([out, y.grad, *(p.grad for p in module.parameters())])
    # A bias before a norm has no gradient but rounding: as large as that of the others, not as its own.
    largest = max(b.abs().max().item() for b in outputs[1][1:])
    for a, b in zip(*outputs):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5 * largest)


@pytest.mark.parametrize("layout", FORMATS)
def test_results_do_not_change_from_run_to_run(layout, monkeypatch):
    monkeypatch.setattr(triton_kernels, "_PROGRAMS", 10**6)  # sums in several parts
    runs = [
        build((1, 3, 33, 35), 2, torch.float32, passes=True, layout=layout, device=DEVICE) for _ in range(2)
    ]
    for name in ("pooled", "out"):
        assert torch.equal(*(getattr(run, name) for run in runs))
    assert torch.equal(*(gradients(run, ("out",), ("attention",))[0] for run in runs))


def test_the_map_is_not_changed():
    x = torch.randn(1, 4, 3, 3, device=DEVICE)
    before = x.clone()
    _, activated = relu_pool(x, 2)
    relu_weighted_sum(activated, torch.rand(1, 4, 1, 1, device=DEVICE))
    assert torch.equal(x, before)


def test_gradients_that_leave_the_range_of_float16_stay_finite_in_the_attention():
    x = torch.rand(1, 2, 96, 96, device=DEVICE).half().requires_grad_()
    attention = torch.full((1, 2, 1, 1), 0.5, device=DEVICE, requires_grad=True)
    out = relu_weighted_sum(relu_pool(x, 2)[1], attention)
    out.backward(torch.full_like(out, 1e6 / (96 * 96)))
    assert out.dtype == torch.float16 and attention.grad.max() > 65504
    assert attention.grad.isfinite().all()


def test_gradients_in_another_format_or_expanded_are_taken():
    x = torch.randn(2, 8, 6, 6, device=DEVICE)
    half = torch.full((2, 8, 1, 1), 0.5, device=DEVICE)
    ones = torch.ones(2, 4, 6, 6, device=DEVICE)
    for gradient in (
        ones.contiguous(memory_format=torch.channels_last),
        ones[:1, :1, :1, :1].expand(2, 4, 6, 6),
    ):
        leaf = x.clone().requires_grad_()
        relu_weighted_sum(relu_pool(leaf, 2)[1], half).backward(gradient)
        torch.testing.assert_close(leaf.grad, (leaf > 0) * 0.5)
