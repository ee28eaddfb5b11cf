"""The passes' own backward, in plain PyTorch, beside autograd's of the reference; test_kernels.py has theirs."""

import gc
import itertools
import math
import weakref

import pytest
import torch
from split_attention_graphs import FORMATS, SUBSETS, build, gradients
from torch import nn

from resnest_d2 import SplitAttentionConv2d
from resnest_d2.modeling.checkpointing import KEEPS, checkpoint_block
from resnest_d2.ops import autograd, relu_pool, relu_weighted_sum


@pytest.mark.parametrize("layout", FORMATS)
@pytest.mark.parametrize("shape", [(1, 1, 1, 1), (2, 5, 7, 9), (3, 6, 4, 5)], ids=str)
@pytest.mark.parametrize("cardinality", [1, 2, 4])
@pytest.mark.parametrize("radix", [1, 2, 3, 4])
def test_passes_equal_the_reference_output_and_every_gradient(radix, cardinality, shape, layout):
    shape = (shape[0], shape[1] * cardinality, *shape[2:])
    options = {"layout": layout, "cardinality": cardinality}
    expected, got = (build(shape, radix, passes=passes, **options) for passes in (False, True))
    for name in ("pooled", "attention", "out"):
        torch.testing.assert_close(getattr(got, name), getattr(expected, name), rtol=1e-12, atol=1e-12)
    for subset in SUBSETS:
        for a, b in zip(gradients(expected, *subset), gradients(got, *subset)):
            torch.testing.assert_close(b, a, rtol=1e-12, atol=1e-12)
    with torch.no_grad():
        again = relu_weighted_sum(relu_pool(got.x * 1, radix)[1], got.attention)
    torch.testing.assert_close(again, expected.out, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("first, second", itertools.product(SUBSETS, SUBSETS), ids=str)
def test_gradients_of_a_retained_graph_do_not_depend_on_those_asked_for_before(first, second):
    expected, got = (build((2, 3, 5, 4), 2, passes=passes) for passes in (False, True))
    for subset in (first, second, first):
        for a, b in zip(gradients(expected, *subset), gradients(got, *subset)):
            assert (a is None) == (b is None)
            torch.testing.assert_close(b, a, rtol=1e-12, atol=1e-12)


def test_the_maps_gradient_may_meet_others():
    """A second consumer, and a hook that looks: the product is multiplied out for them."""
    leaves, seen = [], []
    for passes in (False, True):
        x = torch.randn((2, 6, 4, 5), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        x.requires_grad_()
        attention = (
            torch.tensor([0.3, 0.7], dtype=torch.float64).repeat_interleave(3).expand(2, 6)[..., None, None]
        )
        if passes:
            pooled, activated = relu_pool(x * 1, 2)
            y, out = activated.map, relu_weighted_sum(activated, attention)
        else:
            y = torch.relu(x * 1)
            pooled, out = autograd.split_pool(y, 2), autograd.radix_weighted_sum(y, attention, 2)
        y.register_hook(lambda gradient: seen.append(gradient * 1) or None)
        (out.square().sum() + pooled.sum() + y.pow(3).sum()).backward()
        leaves.append(x.grad)
    torch.testing.assert_close(leaves[1], leaves[0])
    assert len(seen) == 2 and type(seen[1]) is torch.Tensor


def test_the_maps_gradient_is_not_changed_in_place_unnoticed():
    _, activated = relu_pool(torch.randn(1, 4, 3, 3, requires_grad=True) * 1, 2)
    activated.map.register_hook(lambda gradient: gradient.mul_(10))
    with pytest.raises(RuntimeError, match="cannot be changed in place"):
        relu_weighted_sum(activated, torch.full((1, 4, 1, 1), 0.5)).sum().backward()


@pytest.mark.parametrize("keeps", KEEPS)
def test_gradients_of_a_checkpointed_layer_twice_and_in_parts(keeps):
    torch.manual_seed(0)
    layer = SplitAttentionConv2d(8, 8).double()
    x = torch.randn(2, 8, 6, 5, dtype=torch.float64, requires_grad=True)
    leaves = [x, layer.conv.weight, layer.fc2.weight]
    plain, kept = layer(x), checkpoint_block(layer, layer.forward, x, keeps)
    for some in (leaves[2:], leaves[:1], leaves, leaves):
        expected, got = (
            torch.autograd.grad(out.square().sum(), some, retain_graph=True) for out in (plain, kept)
        )
        for a, b in zip(expected, got):
            torch.testing.assert_close(b, a, rtol=1e-12, atol=1e-12)


ODDITIES = (math.nan, math.inf, -math.inf)


@pytest.mark.parametrize("odd", ODDITIES, ids=str)
@pytest.mark.parametrize("everywhere", [False, True])
@pytest.mark.parametrize("radix", [1, 2, 4])
def test_nan_and_infinity_go_through_as_through_the_reference(radix, everywhere, odd):
    def values(x):
        x[(slice(None), slice(None)) if everywhere else (0, 0, 1, 1)] = odd

    expected, got = (build((2, 3, 4, 5), radix, passes=passes, values=values) for passes in (False, True))
    for name in ("pooled", "attention", "out"):
        torch.testing.assert_close(getattr(got, name), getattr(expected, name), equal_nan=True)
    for subset in SUBSETS:
        for a, b in zip(gradients(expected, *subset), gradients(got, *subset)):
            torch.testing.assert_close(b, a, equal_nan=True)


def test_a_sum_of_infinite_splits_is_infinite():
    for second in (math.inf, 1.0):
        x = torch.full((1, 2, 1, 1), math.inf)
        x[:, 1] = second
        for weight in (0.25, 0.75):
            attention = torch.tensor([1 - weight, weight]).view(1, 2, 1, 1)
            _, activated = relu_pool(x.clone(), 2)
            assert relu_weighted_sum(activated, attention).item() == math.inf


def test_gradients_that_leave_the_range_of_float16_stay_finite_in_the_attention():
    """The sum over a large map of a scaled loss' gradient: 5e5 here, where float16 ends at 65504."""
    x = torch.rand(1, 8, 96, 96).half().requires_grad_()
    attention = torch.full((1, 8, 1, 1), 0.5, requires_grad=True)
    out = relu_weighted_sum(relu_pool(x * 1, 2)[1], attention)
    out.backward(torch.full_like(out, 1e6 / (96 * 96)))
    assert out.dtype == torch.float16 and attention.grad.max() > 65504
    assert attention.grad.isfinite().all()


@pytest.mark.parametrize("norm", ["BN", "GN"])
def test_under_autocast_maps_are_half_and_the_vectors_are_float32(norm):
    torch.manual_seed(0)
    layer = SplitAttentionConv2d(32, 32, norm=norm)
    types = {}
    for name, module in layer.named_children():
        module.register_forward_hook(lambda _, __, out, name=name: types.__setitem__(name, out.dtype))
    x = torch.randn(2, 32, 8, 8)
    with torch.autocast("cpu", torch.bfloat16):
        out = layer(x)
    assert types["fc1"] == types["bn1"] == types["fc2"] == torch.float32
    assert types["conv"] == out.dtype == torch.bfloat16
    assert (
        out.grad_fn.name().startswith("_ReluWeightedSum") and out.grad_fn.saved_tensors[0].dtype == out.dtype
    )
    torch.testing.assert_close(out.float(), layer(x), rtol=0.05, atol=0.05)


def test_nothing_but_the_graph_holds_the_map():
    x = torch.randn(1, 4, 3, 3, requires_grad=True)
    pooled, activated = relu_pool(x * 1, 2)
    out = relu_weighted_sum(activated, pooled.repeat(1, 2, 1, 1))
    held = weakref.ref(activated.map.untyped_storage())
    del activated
    gc.collect()
    out.sum().backward()
    del out, pooled
    gc.collect()
    assert held() is None


def test_second_derivatives_are_refused_on_every_way():
    layer = SplitAttentionConv2d(32, 32).double().eval()
    x = torch.randn(2, 32, 4, 4, dtype=torch.float64, requires_grad=True)
    (gradient,) = torch.autograd.grad(layer(x).square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="cannot be differentiated twice"):
        gradient.sum().backward()
    with pytest.raises(RuntimeError, match="cannot be differentiated twice"):
        torch.autograd.functional.hvp(lambda z: layer(z).square().sum(), x.detach(), torch.ones_like(x))


def test_transforms_of_torch_func_take_the_operators():
    layer = SplitAttentionConv2d(32, 32).eval()
    x = torch.randn(3, 32, 5, 4)
    with torch.no_grad():
        torch.testing.assert_close(torch.vmap(lambda image: layer(image[None])[0])(x), layer(x))
    weights = dict(layer.named_parameters())
    loss = lambda w: torch.func.functional_call(layer, w, (x,)).square().sum()  # noqa: E731
    layer(x).square().sum().backward()
    for name, gradient in torch.func.grad(loss)(weights).items():
        torch.testing.assert_close(gradient, weights[name].grad, rtol=1e-4, atol=1e-4)


def test_norms_whose_output_is_a_view():
    layer = SplitAttentionConv2d(32, 32, norm=lambda channels: nn.BatchNorm2d(channels))
    layer.bn0 = nn.InstanceNorm2d(64)
    layer(torch.randn(2, 32, 4, 4, requires_grad=True)).sum().backward()
