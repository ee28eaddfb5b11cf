"""Split-Attention: the three steps over the splits, and the module made of them."""

import itertools

import pytest
import torch
import torch.nn.functional as F

from resnest_d2 import OptionError, SplitAttentionConv2d
from resnest_d2.ops import radix_softmax, radix_weighted_sum, split_pool

RADIX = (1, 2, 4)
CARDINALITY = (1, 2, 4)
NORMS = ("", "BN", "SyncBN", "FrozenBN", "GN", "LN", "naiveSyncBN", "naiveSyncBN_N", "nnSyncBN")


def splits_of(radix, channels=8, size=(5, 7)):
    torch.manual_seed(0)
    return torch.randn(3, radix * channels, *size, dtype=torch.float64)


@pytest.mark.parametrize("radix", RADIX)
def test_split_pool_is_the_mean_of_the_summed_splits(radix):
    x = splits_of(radix)
    summed = sum(x[:, r * 8 : (r + 1) * 8] for r in range(radix))
    torch.testing.assert_close(split_pool(x, radix), F.adaptive_avg_pool2d(summed, 1))


@pytest.mark.parametrize("radix, cardinality", list(itertools.product((2, 4), CARDINALITY)))
def test_radix_softmax_sums_to_one_over_splits(radix, cardinality):
    attention = radix_softmax(splits_of(radix, size=(1, 1)), radix, cardinality)
    per_split = attention.view(3, radix, 8)
    torch.testing.assert_close(per_split.sum(1), torch.ones(3, 8, dtype=torch.float64))
    assert per_split.std() > 0.05  # and is not simply uniform


@pytest.mark.parametrize("cardinality", CARDINALITY)
def test_radix_softmax_of_one_split_is_a_sigmoid(cardinality):
    logits = splits_of(1, size=(1, 1))
    torch.testing.assert_close(radix_softmax(logits, 1, cardinality), logits.sigmoid())


@pytest.mark.parametrize("radix, cardinality", list(itertools.product((2, 4), CARDINALITY)))
def test_radix_softmax_turns_cardinality_major_into_radix_major(radix, cardinality):
    logits, width = splits_of(radix, size=(1, 1)), 8 // cardinality
    attention = radix_softmax(logits, radix, cardinality)
    for k, r in itertools.product(range(cardinality), range(radix)):
        group = logits[:, k * radix * width : (k + 1) * radix * width].view(3, radix, width)
        expected = group.softmax(1)[:, r]
        start = r * 8 + k * width
        torch.testing.assert_close(attention[:, start : start + width, 0, 0], expected)


@pytest.mark.parametrize("radix", RADIX)
def test_radix_weighted_sum_weights_each_split_by_its_own_attention(radix):
    x, a = splits_of(radix), splits_of(radix, size=(1, 1)).sigmoid()
    expected = sum((x * a)[:, r * 8 : (r + 1) * 8] for r in range(radix))
    torch.testing.assert_close(radix_weighted_sum(x, a, radix), expected)


@pytest.mark.parametrize("radix", RADIX)
def test_gradients_of_the_three_steps_are_those_of_finite_differences(radix):
    x = splits_of(radix, channels=4, size=(3, 2)).requires_grad_()
    logits = splits_of(radix, channels=4, size=(1, 1)).requires_grad_()

    def steps(x, logits):
        return split_pool(x, radix), radix_weighted_sum(x, radix_softmax(logits, radix, 2), radix)

    assert torch.autograd.gradcheck(steps, (x, logits))


@pytest.mark.parametrize("radix, groups", list(itertools.product(RADIX, CARDINALITY)))
def test_output_has_the_channels_asked_for_and_every_parameter_gets_a_gradient(radix, groups):
    layer = SplitAttentionConv2d(16, 32, radix=radix, groups=groups)
    y = layer(torch.randn(2, 16, 9, 7))
    assert y.shape == (2, 32, 9, 7)
    y.square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in layer.parameters())
    # A bias in front of a norm has no effect, hence no gradient; all else has.
    without = {name for name, p in layer.named_parameters() if p.grad.abs().max() < 1e-5}
    assert without <= {"fc1.bias"}


def test_parameter_names_are_the_released_ones():
    names = set(SplitAttentionConv2d(8, 8).state_dict())
    weights = {"conv.weight", "fc1.weight", "fc1.bias", "fc2.weight", "fc2.bias"}
    statistics = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
    assert names == weights | {f"{bn}.{s}" for bn in ("bn0", "bn1") for s in statistics}


@pytest.mark.parametrize(
    "in_channels, radix, squeezed", [(64, 2, 32), (256, 2, 128), (8, 1, 32), (256, 4, 256)]
)
def test_squeezed_channels_are_a_quarter_of_the_splits_but_at_least_32(in_channels, radix, squeezed):
    assert SplitAttentionConv2d(in_channels, 64, radix=radix).fc1.out_channels == squeezed


@pytest.mark.parametrize("norm", NORMS)
def test_every_detectron2_norm_trains(norm):
    layer = SplitAttentionConv2d(32, 32, norm=norm).train()
    y = layer(torch.randn(2, 32, 5, 5))
    y.sum().backward()
    assert y.isfinite().all() and layer.conv.weight.grad.abs().sum() > 0


@pytest.mark.parametrize("norm", ("", "FrozenBN", "GN", "LN"))
def test_norms_without_batch_statistics_train_with_batch_one(norm):
    layer = SplitAttentionConv2d(32, 32, norm=norm).train()
    x = torch.randn(2, 32, 5, 5)
    # Nothing depends on the other image of the batch, and the attention does depend on the image.
    torch.testing.assert_close(layer(x[:1]), layer(x)[:1])
    logits = [layer.fc2(F.relu(layer.bn1(layer.fc1(v)))) for v in torch.randn(2, 1, 32, 1, 1)]
    assert (logits[0] - logits[1]).abs().max() > 1e-3


def test_norm_may_be_a_function_of_the_channels():
    layer = SplitAttentionConv2d(32, 32, norm=lambda channels: torch.nn.GroupNorm(4, channels))
    assert layer.bn0.num_groups == 4 and layer.bn1.num_groups == 4


def test_under_autocast_the_output_keeps_the_dtype_of_the_maps():
    layer = SplitAttentionConv2d(32, 32)
    # On CUDA autocast computes the softmax in float32; on the CPU it does so only for such an input.
    layer.fc2.register_forward_hook(lambda _, __, out: out.float())
    with torch.autocast("cpu", torch.bfloat16):
        assert layer(torch.randn(2, 32, 5, 5)).dtype == torch.bfloat16


@pytest.mark.parametrize(
    "options, message",
    [
        ({"radix": 0}, "radix must be >= 1 in Split-Attention, got 0"),
        ({"groups": 3}, "cardinality must divide 64 channels of Split-Attention, got 3"),
        ({"groups": 0}, "cardinality must divide 64 channels of Split-Attention, got 0"),
        ({"norm": "BM"}, "norm must be one of"),
        ({"norm": "GN", "radix": 1, "channels": 40}, "norm does not fit 40 channels"),
    ],
)
def test_options_that_cannot_work_are_named(options, message):
    with pytest.raises(OptionError, match=message):
        SplitAttentionConv2d(**{"in_channels": 64, "channels": 64, **options})
