"""Folded norms, memory format, half precision: the same outputs but for rounding."""

import pickle

import pytest
import torch
from detectron2.modeling import build_model
from torch import nn

from resnest_d2 import ResNeSt, model_zoo, optimize_for_inference


def with_statistics(model):
    """Norms away from the identity; the last of each residual branch small, as trained ones are."""
    torch.manual_seed(0)
    for name, module in model.named_modules():
        if hasattr(module, "running_var"):
            small = name.endswith("conv3.norm")
            for tensor, low, high in (
                (module.running_mean, -0.1, 0.1),
                (module.running_var, 0.5, 1.5),
                (module.weight.data, *((0.1, 0.3) if small else (0.5, 1.5))),
                (module.bias.data, -0.1, 0.1),
            ):
                tensor.uniform_(low, high)
    return model.eval()


def relative(a, b):
    return ((a - b).abs().max() / a.abs().max()).item()


@pytest.mark.parametrize(
    "options",
    [{}, {"radix": 1}, {"radix": 4, "cardinality": 2}, {"radix": 0}, {"norm": "FrozenBN"}, {"avd_first": True},
     {"deform_on_per_stage": (False, True, True, True), "deform_modulated": True}],
    ids=str,
)  # fmt: skip
def test_backbone_features_stay_and_norms_go(options):
    model = with_statistics(ResNeSt(26, out_features=["res2", "res3", "res4", "res5"], **options))
    x = torch.rand(1, 3, 96, 64)
    with torch.no_grad():
        before = model(x)
        after = optimize_for_inference(model)(x)
    assert not [m for m in model.modules() if "BatchNorm" in type(m).__name__]
    for name in before:
        assert relative(before[name], after[name]) < 1e-4, name


def test_norms_that_depend_on_the_input_stay():
    model = ResNeSt(14, norm="GN", out_features=["res2", "res5"]).eval()
    x = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        before = model(x)
        after = optimize_for_inference(model)(x)
    assert [m for m in model.modules() if isinstance(m, nn.GroupNorm)]
    assert relative(before["res5"], after["res5"]) < 1e-4


def test_in_another_type_it_can_be_copied_pickled_and_changed_again():
    model = with_statistics(ResNeSt(14, out_features=["res3"]))
    x = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        before = model(x)["res3"]
        half = optimize_for_inference(model, dtype=torch.bfloat16)(x)["res3"]
        copy = pickle.loads(pickle.dumps(model))
        assert half.dtype == torch.float32 and torch.equal(copy(x)["res3"], half)
        again = optimize_for_inference(model, dtype=torch.float64)(x)["res3"]
    assert next(model.parameters()).dtype == torch.float64 and again.dtype == torch.float32
    assert relative(half, again) > 0 and relative(before, again) < 0.05


@pytest.mark.parametrize(
    "capability, dtype, warns",
    [("AVX2", torch.bfloat16, True), ("AVX2", torch.float64, False), ("AVX512", torch.bfloat16, False)],
)
def test_half_precision_that_the_processor_emulates_is_said(capability, dtype, warns, monkeypatch, caplog):
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    optimize_for_inference(ResNeSt(14, out_features=["res2"]), dtype=dtype)
    assert ("slower than float32" in caplog.text) is warns


@pytest.mark.parametrize("name", ["cascade_mask_resnest50", "keypoint_resnest50", "retinanet_resnest50"])
def test_no_norm_is_left_in_a_whole_detector_and_it_detects_the_same(name):
    cfg = model_zoo.get_config(name)
    cfg.MODEL.DEVICE, cfg.MODEL.WEIGHTS, cfg.MODEL.RESNETS.DEPTH = "cpu", "", 14
    cfg.MODEL.ROI_HEADS.SCORE_THRESH_TEST = cfg.MODEL.RETINANET.SCORE_THRESH_TEST = 0.0
    cfg.MODEL.RPN.POST_NMS_TOPK_TEST = cfg.TEST.DETECTIONS_PER_IMAGE = 20
    torch.manual_seed(0)
    model = with_statistics(build_model(cfg))
    records = [{"image": torch.randint(0, 255, (3, 96, 128)), "height": 96, "width": 128}]
    before = model(records)[0]["instances"]
    after = optimize_for_inference(model)(records)[0]["instances"]
    left = [name for name, m in model.named_modules() if "BatchNorm" in type(m).__name__]
    assert left == []
    # A box whose score is all but that of another may change places with it.
    assert relative(before.scores.sort().values, after.scores.sort().values) < 1e-4
    assert relative(before.pred_boxes.tensor.sum(0), after.pred_boxes.tensor.sum(0)) < 1e-3


@pytest.mark.parametrize("deformable", (False, True))
def test_half_precision_of_the_backbone_keeps_the_type_of_its_outputs(deformable):
    model = with_statistics(
        ResNeSt(26, out_features=["res3", "res5"], deform_on_per_stage=(False, *[deformable] * 3))
    )
    x = torch.rand(1, 3, 96, 96)
    with torch.no_grad():
        before = model(x)
        after = optimize_for_inference(model, dtype=torch.bfloat16)(x)
    for name in before:
        assert after[name].dtype == torch.float32
        assert 1e-4 < relative(before[name], after[name]) < 0.1
