"""Activation checkpointing: the same training with less kept."""

import pytest
import torch

from resnest_d2 import OptionError, ResNeSt

STAGES = ["res2", "res3", "res4", "res5"]


def networks(**options):
    torch.manual_seed(0)
    plain = ResNeSt(26, out_features=["res2", "res5"], **options)
    kept = ResNeSt(26, out_features=["res2", "res5"], checkpoint_stages=STAGES, **options)
    kept.load_state_dict(plain.state_dict())
    return plain.train(), kept.train()


@pytest.mark.parametrize(
    "options", [{}, {"radix": 1}, {"radix": 4}, {"radix": 0}, {"norm": "GN"}, {"freeze_at": 2}], ids=str
)
def test_losses_gradients_and_running_statistics_are_the_same(options):
    sides = networks(**options)
    x = torch.rand(2, 3, 64, 96)
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


def test_a_stage_that_is_none_is_named():
    with pytest.raises(OptionError, match="checkpoint_stages must be some of res2, res3, res4, res5"):
        ResNeSt(14, checkpoint_stages=["res6"])
