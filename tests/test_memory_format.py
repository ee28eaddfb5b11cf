"""MODEL.MEMORY_FORMAT: how weights and maps lie in memory, and nothing else."""

import pytest
import torch

from resnest_d2 import model_zoo
from resnest_d2.engine import Trainer
from resnest_d2.engine.fit import fit_to_machine


def build(memory_format, name="cascade_mask_resnest50"):
    cfg = model_zoo.get_config(name)
    cfg.MODEL.DEVICE, cfg.MODEL.WEIGHTS, cfg.MODEL.RESNETS.DEPTH = "cpu", "", 14
    cfg.MODEL.MEMORY_FORMAT = memory_format
    fit_to_machine(cfg, processes=1)
    torch.manual_seed(0)
    return Trainer.build_model(cfg)


def is_channels_last(tensor):
    return tensor.is_contiguous(memory_format=torch.channels_last) and not tensor.is_contiguous()


@pytest.mark.parametrize(
    "memory_format, expected", [("auto", True), ("channels_last", True), ("contiguous", False)]
)
def test_weights_and_features_have_the_format(memory_format, expected):
    model = build(memory_format)
    features = model.backbone(torch.rand(2, 3, 64, 96))
    weights = [
        m.weight for m in model.modules() if getattr(m, "kernel_size", None) == (3, 3) and m.groups == 1
    ]
    assert len(weights) > 20
    for tensor in (*weights, *(features[f"p{i}"] for i in range(2, 6))):
        assert is_channels_last(tensor) == expected


def test_the_state_is_the_same_in_both_and_goes_from_one_to_the_other():
    first, last = build("contiguous"), build("channels_last")
    with torch.no_grad():
        for parameter in last.parameters():
            parameter.add_(1)
    first.load_state_dict(last.state_dict())
    for (name, a), b in zip(first.state_dict().items(), last.state_dict().values()):
        assert torch.equal(a, b), name
    assert not is_channels_last(first.backbone.bottom_up.stem.conv1_2.weight)


def test_keypoint_heads_give_contiguous_maps_of_which_detectron2_takes_views():
    head = build("channels_last", "keypoint_resnest50").roi_heads.keypoint_head
    assert head.layers(torch.rand(2, 256, 14, 14)).is_contiguous()
