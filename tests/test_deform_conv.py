"""Deformable convolution: what it must equal where the answer is known without it."""

import pytest
import torch
import torch.nn.functional as F

from resnest_d2 import ResNeSt
from resnest_d2.modeling.deform_conv import DeformConv2d, offset_conv2d


def layer_and_input(**options):
    torch.manual_seed(0)
    options = {"kernel_size": 3, "padding": options.get("dilation", 1), **options}
    return DeformConv2d(8, 12, **options).double(), torch.randn(2, 8, 9, 11, dtype=torch.float64)


@pytest.mark.parametrize("stride, dilation, groups", [(1, 1, 1), (2, 1, 2), (1, 2, 4), (2, 2, 1)])
@pytest.mark.parametrize("deform_groups", (1, 2))
def test_zero_offsets_make_it_a_plain_convolution(stride, dilation, groups, deform_groups):
    conv, x = layer_and_input(stride=stride, dilation=dilation, groups=groups, deform_groups=deform_groups)
    plain = F.conv2d(x, conv.weight, None, stride, dilation, dilation, groups)
    offset = x.new_zeros(2, 18 * deform_groups, *plain.shape[2:])
    torch.testing.assert_close(conv(x, offset), plain)


def test_masks_pass_through_a_sigmoid_and_scale_the_taps():
    conv, x = layer_and_input(modulated=True)
    offset = x.new_zeros(2, 27, 9, 11)
    offset[:, 18:] = 0.3
    expected = F.conv2d(x, conv.weight, None, padding=1) * torch.tensor(0.3).double().sigmoid()
    torch.testing.assert_close(conv(x, offset), expected, rtol=1e-6, atol=1e-6)


def test_offsets_are_pairs_of_dy_and_dx_in_pixels():
    conv, x = layer_and_input()
    offset = x.new_zeros(2, 9, 2, 9, 11)
    offset[:, :, 0], offset[:, :, 1] = 1, 2
    moved = F.pad(x, (0, 2, 0, 1))[:, :, 1:, 2:]  # one pixel down, two to the right
    expected = F.conv2d(moved, conv.weight, None, padding=1)
    actual = conv(x, offset.flatten(1, 2))
    torch.testing.assert_close(actual[:, :, 1:-2, 1:-3], expected[:, :, 1:-2, 1:-3])


def test_each_deform_group_moves_its_own_channels():
    conv, x = layer_and_input(deform_groups=2)
    offset = x.new_zeros(2, 36, 9, 11)
    offset[:, 18::2] = 1  # dy of the second group
    moved = x.clone()
    moved[:, 4:] = F.pad(x, (0, 0, 0, 1))[:, 4:, 1:]
    expected = F.conv2d(moved, conv.weight, None, padding=1)
    torch.testing.assert_close(conv(x, offset)[:, :, 1:-2], expected[:, :, 1:-2])


@pytest.mark.parametrize("modulated", (False, True))
def test_gradients_reach_input_offsets_and_weight(modulated):
    conv, x = layer_and_input(modulated=modulated)
    x = x[:1, :, :4, :4].requires_grad_()
    offset = (torch.randn(1, 27 if modulated else 18, 4, 4) * 0.3).double().requires_grad_()
    assert torch.autograd.gradcheck(lambda *args: conv(*args), (x, offset))
    conv(x, offset).sum().backward()
    assert conv.weight.grad.abs().sum() > 0


@pytest.mark.parametrize("modulated, channels", [(False, 18), (True, 27)])
def test_predicted_offsets_start_at_zero(modulated, channels):
    conv = offset_conv2d(8, stride=2, dilation=1, deform_groups=2, modulated=modulated)
    offset = conv(torch.randn(1, 8, 9, 11))
    assert offset.shape == (1, 2 * channels, 5, 6) and offset.abs().max() == 0


@pytest.mark.parametrize("modulated, channels", [(False, 18), (True, 27)])
@pytest.mark.parametrize("radix", (0, 2))
def test_any_stage_can_be_deformable_and_has_the_released_names(modulated, channels, radix):
    net = ResNeSt(
        14,
        radix=radix,
        deform_on_per_stage=(True, False, True, False),
        deform_modulated=modulated,
        deform_num_groups=2,
        out_features=["res5"],
    )
    state = net.state_dict()
    offsets = {name for name in state if "conv2_offset" in name}
    assert offsets == {f"res{i}.0.conv2_offset.{p}" for i in (2, 4) for p in ("weight", "bias")}
    assert state["res2.0.conv2_offset.weight"].shape == (2 * channels, 32, 3, 3)
    assert ("res2.0.conv2.conv.weight" if radix else "res2.0.conv2.weight") in state
    net(torch.randn(2, 3, 65, 64))["res5"].sum().backward()
    assert net.res4[0].conv2_offset.bias.grad.abs().sum() > 0


@pytest.fixture(scope="module")
def half():
    """A function that gives a deformable convolution, what it computes in float32, and a half-precision input."""

    def make(dtype):
        torch.manual_seed(0)
        conv = DeformConv2d(8, 12, modulated=True)
        predict = offset_conv2d(8, stride=1, dilation=1, deform_groups=1, modulated=True)
        torch.nn.init.normal_(predict.weight)
        x = torch.randn(2, 8, 9, 301).to(dtype)
        return conv, predict, x, conv(x.float(), predict(x.float())).detach()

    return make


@pytest.mark.parametrize("dtype", (torch.float16, torch.bfloat16))
def test_under_autocast_it_computes_in_float32_and_returns_what_autocast_would(half, dtype):
    conv, predict, x, expected = half(dtype)
    x = x.float().requires_grad_()
    with torch.autocast("cpu", dtype):
        out = conv(x.to(dtype), predict(x.to(dtype)))
    assert out.dtype == dtype and torch.equal(out, expected.to(dtype))
    out.float().sum().backward()
    assert x.grad.isfinite().all() and predict.weight.grad.abs().sum() > 0


@pytest.mark.parametrize("dtype", (torch.float16, torch.bfloat16))
def test_with_half_precision_maps_it_computes_in_float32_and_returns_their_type(half, dtype):
    conv, predict, x, expected = half(dtype)
    out = conv(x, predict(x))
    assert out.dtype == dtype and torch.equal(out, expected.to(dtype))
    conv.to(dtype), predict.to(dtype)  # the weights are rounded, but not the positions
    assert predict(x).dtype == torch.float32
    out = conv(x, predict(x))
    assert torch.equal(out, conv.float()(x.float(), predict.float()(x.float())).to(dtype))


def test_float64_stays_under_autocast():
    conv, x = layer_and_input()
    with torch.autocast("cpu", torch.bfloat16):
        assert conv(x, x.new_zeros(2, 18, 9, 11)).dtype == torch.float64


def test_it_exports_without_a_trace_of_autocast():
    conv, x = layer_and_input()
    program = torch.export.export(conv, (x, torch.randn(2, 18, 9, 11, dtype=torch.float64)))
    assert not [node for node in program.graph.nodes if "autocast" in str(node.target)]
