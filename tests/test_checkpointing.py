"""Activation checkpointing: the same training with less kept."""

import pytest
import torch
from torch import nn

from resnest_d2 import OptionError, ResNeSt, optimize_for_inference

STAGES = ["res2", "res3", "res4", "res5"]
NARROW = {"width_per_group": 32, "res2_out_channels": 64}  # of half the channels


def networks(keeps="inputs", **options):
    torch.manual_seed(0)
    options = {"out_features": ["res2", "res5"], **NARROW, **options}
    plain = ResNeSt(26, **options)
    kept = ResNeSt(26, checkpoint_stages=STAGES, checkpoint_keeps=keeps, **options)
    kept.load_state_dict(plain.state_dict())
    return plain.train(), kept.train()


@pytest.mark.parametrize("keeps", ["inputs", "convolutions"])
@pytest.mark.parametrize(
    "options",
    [
        *({}, {"radix": 1}, {"radix": 4}, {"radix": 0}, {"norm": "GN"}, {"freeze_at": 2}),
        {"deform_on_per_stage": [True] * 4, "deform_modulated": True},
    ],
    ids=str,
)
def test_losses_gradients_and_running_statistics_are_the_same(options, keeps):
    sides = networks(keeps, **options)
    x = torch.rand(2, 3, 48, 64)
    for _ in range(2):
        for model in sides:
            model.zero_grad()
            sum(feature.square().mean() for feature in model(x).values()).backward()
    plain, kept = sides
    for (name, a), b in zip(plain.state_dict().items(), kept.state_dict().values()):
        assert torch.equal(a, b), name  # running means and variances, and the number of batches
    for (name, a), b in zip(plain.named_parameters(), kept.parameters()):
        assert (a.grad is None) == (b.grad is None), name
        assert a.grad is None or torch.equal(a.grad, b.grad), name


def kept_bytes(model, x):
    """Bytes that the graph of a forward pass holds."""
    sizes = {}

    def pack(tensor):
        sizes[tensor.data_ptr()] = tensor.numel() * tensor.element_size()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        outputs = model(x)
    del outputs
    return sum(sizes.values())


def test_much_less_is_kept():
    plain, kept = networks()
    x = torch.rand(1, 3, 128, 128).repeat(2, 1, 1, 1)
    assert kept_bytes(kept, x) < 0.35 * kept_bytes(plain, x)


def test_convolutions_run_once_where_their_outputs_are_kept():
    plain, kept = networks("convolutions")
    x = torch.rand(2, 3, 64, 64)
    assert count_convolutions(kept, x) == count_convolutions(plain, x)


def count_convolutions(model, x):
    """Convolutions that a training iteration runs forward."""
    with torch.profiler.profile() as profile:
        sum(feature.mean() for feature in model(x).values()).backward()
    return sum(event.count for event in profile.key_averages() if event.key == "aten::_convolution")


def test_what_cannot_be_kept_is_named():
    with pytest.raises(
        OptionError, match="checkpoint_keeps must be one of inputs, convolutions, got 'norms'"
    ):
        ResNeSt(14, checkpoint_keeps="norms")
    with pytest.raises(OptionError, match="checkpoint_keeps needs a norm"):
        ResNeSt(14, norm="", checkpoint_stages=["res2"], checkpoint_keeps="convolutions")


def test_a_stage_that_is_none_is_named():
    with pytest.raises(OptionError, match="checkpoint_stages must be some of res2, res3, res4, res5"):
        ResNeSt(14, checkpoint_stages=["res6"])


def test_norms_without_running_statistics_and_compiled_models():
    norm = lambda channels: nn.BatchNorm2d(channels, track_running_stats=False)  # noqa: E731
    torch.manual_seed(0)
    model = ResNeSt(14, out_features=["res2"], norm=norm, checkpoint_stages=["res2"]).train()
    x = torch.randn(2, 3, 32, 32)
    model(x)["res2"].sum().backward()
    compiled = torch.compile(model, backend="eager")
    torch.testing.assert_close(compiled(x)["res2"], model(x)["res2"])
    optimize_for_inference(model)  # which has nothing to fold
