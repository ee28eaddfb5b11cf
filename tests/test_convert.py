"""Weights of every format, made by the peers' own code, recognised by content and converted."""

import collections
import os
import pickle

import numpy as np
import pytest
import safetensors.torch
import timm
import torch
from conftest import assert_one_line_error
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.config import get_cfg
from detectron2.modeling import build_model
from parity.measure import detector_cfg, run_both
from parity.worker import randomise

from resnest_d2 import ResNeSt, UserError, add_resnest_config, model_zoo
from resnest_d2.checkpoint import Checkpointer, convert, read_weights, write_weights

AUTHORS = "the authors' or timm's classification network (their names agree)"


def randomised(model):
    torch.manual_seed(0)
    randomise(model)
    return model.state_dict()


def as_mmdetection(authors):
    """MMDetection names the stem's layers `stem`, its last norm with them, and wraps the weights."""
    renamed = {
        k.replace("conv1.", "stem.", 1)
        if k.startswith("conv1.")
        else k.replace("bn1.", "stem.7.", 1)
        if k.startswith("bn1.")
        else k: v
        for k, v in authors.items()
        if not k.startswith("fc.")
    }
    return {"meta": {}, "state_dict": renamed}


@pytest.fixture(scope="module")
def authors():
    import resnest.torch

    return randomised(resnest.torch.resnest50())


@pytest.fixture(scope="module")
def timm14():
    return randomised(timm.create_model("resnest14d"))


@pytest.fixture(scope="module")
def released():
    """A whole Mask R-CNN as the released plugin builds it."""
    return run_both("state", detector_cfg("50"))["resnest.d2"]["state"]


@pytest.fixture(scope="module")
def expected(authors):
    """The authors' weights under our names; parity/ shows that they then compute the same."""
    return convert(authors).state


def check_equal(state, expected):
    """Every tensor of the backbone is there and has the right value."""
    assert {k for k in expected if not k.startswith("linear.")} <= set(state)
    assert all(torch.equal(value, state[key]) for key, value in expected.items() if key in state)


def test_authors_files(authors):
    conversion = convert(authors)
    assert conversion.source == AUTHORS
    assert (conversion.mapped, conversion.unplaced, conversion.missing) == (len(authors), [], [])
    assert conversion.options["depth"] == 50 and conversion.options["num_classes"] == 1000


@pytest.mark.parametrize("features_only", (False, True))
def test_timm_files(features_only, tmp_path):
    state = randomised(timm.create_model("resnest14d", features_only=features_only))
    safetensors.torch.save_file(state, tmp_path / "model.safetensors")
    torch.save(state, tmp_path / "model.pth")
    for name in ("model.safetensors", "model.pth"):
        conversion = convert(read_weights(tmp_path / name))
        assert (conversion.mapped, conversion.unplaced, conversion.missing) == (len(state), [], [])
        assert ("num_classes" in conversion.options) != features_only
        assert torch.equal(conversion.state["stem.conv1_3.norm.weight"], state["bn1.weight"])


@pytest.mark.parametrize("variant", ["resnest50d_4s2x40d", "resnest50d_1s4x24d"])
def test_radix_cardinality_and_width_are_read_off_the_shapes(variant):
    with torch.device("meta"):
        state = timm.create_model(variant).state_dict()
    options = convert(state).options
    named = (options["radix"], options["cardinality"], options["bottleneck_width"])
    assert named == ((4, 2, 40) if variant.endswith("4s2x40d") else (1, 4, 24))


def test_mmdetection_files(authors, expected):
    conversion = convert(as_mmdetection(authors))
    assert conversion.source == "MMDetection's ResNeSt"
    assert (conversion.unplaced, conversion.missing) == ([], [])
    check_equal(conversion.state, expected)


def test_backbone_inside_a_whole_mmdetection_detector(authors, expected):
    state = {f"backbone.{k}": v for k, v in as_mmdetection(authors)["state_dict"].items()}
    conversion = convert({**state, "rpn_head.rpn_conv.weight": torch.zeros(1)})
    assert conversion.unplaced == ["rpn_head.rpn_conv.weight"]
    check_equal(conversion.state, expected)


@pytest.mark.parametrize("prefix", ["", "bottom_up.", "backbone.bottom_up."])
def test_backbones_keyed_as_detectron2_keys_them(expected, prefix):
    conversion = convert({"model": {f"{prefix}{k}": v.numpy() for k, v in expected.items()}})
    assert conversion.source == "a detectron2-keyed backbone" and conversion.missing == []
    check_equal(conversion.state, expected)


def test_whole_released_detectors(released):
    conversion = convert({"model": released})
    assert conversion.source == "a whole detector" and conversion.is_detector
    assert conversion.state.keys() == released.keys()


@pytest.mark.parametrize("options", [
    {"radix": 0}, {"deep_stem": False}, {"norm": "GN"}, {"norm": ""}, {"out_features": ["res3"]},
    {"deform_on_per_stage": (False, True, True, True), "deform_modulated": True, "deform_num_groups": 2},
    {"in_channels": 5}, {"num_classes": 7}, {"cardinality": 2, "bottleneck_width": 40, "radix": 4},
], ids=str)  # fmt: skip
def test_checkpoints_of_this_package(options):
    state = ResNeSt(14, **options).state_dict()
    conversion = convert({"model": state, "iteration": 3})
    assert (conversion.mapped, conversion.unplaced, conversion.missing) == (len(state), [], [])
    assert {k: v.shape for k, v in conversion.state.items()} == {k: v.shape for k, v in state.items()}


@pytest.mark.parametrize("wrap", [
    lambda s: s,
    lambda s: {"state_dict": s},
    lambda s: {"model": s, "epoch": 3},
    lambda s: {"model": {"state_dict": s}},
    lambda s: {f"module.{k}": v for k, v in s.items()},
    lambda s: {"state_dict": {f"module.{k}": v for k, v in s.items()}},
], ids=["bare", "state_dict", "model", "both", "module", "state_dict+module"])  # fmt: skip
def test_any_wrapping(wrap, timm14, tmp_path):
    torch.save(wrap(timm14), tmp_path / "x.pth")
    conversion = convert(read_weights(tmp_path / "x.pth"))
    assert (conversion.unplaced, conversion.missing) == ([], [])


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_written_file_loads_into_a_detector_with_both_checkpointers(suffix, timm14, tmp_path):
    path = str(tmp_path / f"converted{suffix}")
    write_weights(convert(timm14), path)
    cfg = model_zoo.get_config("quickstart")
    cfg.MODEL.DEVICE = "cpu"
    for checkpointer in [Checkpointer] + [DetectionCheckpointer] * (suffix == ".pth"):
        model = build_model(cfg)
        checkpointer(model).load(path)
        check_equal(model.backbone.bottom_up.state_dict(), convert(timm14).state)


def test_foreign_file_loads_directly_into_a_detector(timm14, tmp_path):
    torch.save(timm14, tmp_path / "foreign.pth")
    cfg = model_zoo.get_config("quickstart")
    cfg.MODEL.DEVICE = "cpu"
    model = build_model(cfg)
    Checkpointer(model).load(str(tmp_path / "foreign.pth"))
    check_equal(model.backbone.bottom_up.state_dict(), convert(timm14).state)


def test_released_detector_loads_completely(released, tmp_path):
    torch.save({"model": released}, tmp_path / "released.pth")
    cfg = get_cfg()
    add_resnest_config(cfg)
    cfg.merge_from_list(detector_cfg("50"))
    model = build_model(cfg)
    checkpointer = Checkpointer(model)
    checkpointer.load(str(tmp_path / "released.pth"))
    assert checkpointer.missing == []
    assert all(torch.equal(value, released[key]) for key, value in model.state_dict().items())


# --------------------------------------------------------------------------- the command line


def test_command_says_what_it_found_and_writes_it(timm14, run_python, tmp_path):
    torch.save({**timm14, "extra.weight": torch.zeros(1)}, tmp_path / "in.pth")
    result = run_python("tools/convert_weights.py", tmp_path / "in.pth", tmp_path / "out.safetensors")
    assert result.returncode == 0, result.stderr
    assert f"{AUTHORS}, {len(timm14)} tensors mapped" in result.stdout
    assert "no place for extra.weight" in result.stdout
    assert f"wrote {tmp_path}/out.safetensors" in result.stdout
    assert len(read_weights(tmp_path / "out.safetensors")) == len(timm14)


def test_command_refuses_an_incomplete_backbone_and_writes_nothing(timm14, run_python, tmp_path):
    torch.save({k: v for k, v in timm14.items() if k != "layer2.0.conv2.fc1.weight"}, tmp_path / "in.pth")
    result = run_python("tools/convert_weights.py", tmp_path / "in.pth", tmp_path / "out.pth")
    assert "nothing for res3.0.conv2.fc1.weight" in result.stdout
    assert_one_line_error(result, "does not cover the backbone: nothing for 1 tensors")
    assert [p.name for p in tmp_path.iterdir()] == ["in.pth"]


def test_command_refuses_an_unknown_suffix(run_python, tmp_path):
    torch.save(ResNeSt(14).state_dict(), tmp_path / "in.pth")
    result = run_python("tools/convert_weights.py", tmp_path / "in.pth", tmp_path / "out.onnx")
    assert_one_line_error(result, "the suffix must be .pth or .safetensors")


def test_tensor_of_another_shape_is_missing_and_unplaced():
    state = dict(ResNeSt(14).state_dict())
    state["res4.0.conv1.weight"] = torch.zeros(3, 3, 1, 1)
    conversion = convert(state)
    assert conversion.missing == conversion.unplaced == ["res4.0.conv1.weight"]


# --------------------------------------------------------------------------- reading


class Harmful:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("kind", ["zip", "legacy", "pickle"])
def test_pickle_that_would_run_code_is_refused_and_does_not_run(kind, tmp_path):
    content, path = {"model": Harmful(tmp_path / "ran")}, tmp_path / "x.pth"
    if kind == "pickle":
        path.write_bytes(pickle.dumps(content))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=kind == "zip")
    with pytest.raises(UserError, match=r"refused: its pickle would run code \(.*mkdir\)"):
        read_weights(path)
    assert not (tmp_path / "ran").exists()


def test_harmful_pkl_is_refused_as_model_weights(tmp_path):
    (tmp_path / "x.pkl").write_bytes(pickle.dumps({"model": Harmful(tmp_path / "ran")}))
    with pytest.raises(UserError, match="would run code"):
        Checkpointer(torch.nn.Linear(1, 1)).load(str(tmp_path / "x.pkl"))
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("protocol", (2, 4))
def test_pickle_of_arrays_is_read(protocol, tmp_path):
    content = collections.OrderedDict(a=np.arange(6, dtype=np.float32).reshape(2, 3))
    (tmp_path / "x.pkl").write_bytes(pickle.dumps(content, protocol=protocol))
    assert np.array_equal(read_weights(tmp_path / "x.pkl")["a"], content["a"])


def test_torch_file_of_arrays_is_read(tmp_path):
    torch.save({"a": np.ones(3, np.float32)}, tmp_path / "x.pth")
    assert read_weights(tmp_path / "x.pth")["a"].sum() == 3


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize("keep", [0, 5, 100, 0.5, 0.999])
def test_truncated_file_is_called_damaged(suffix, keep, tmp_path):
    path = tmp_path / f"x{suffix}"
    state = {"w": torch.randn(1000)}
    safetensors.torch.save_file(state, path) if suffix == ".safetensors" else torch.save(state, path)
    content = path.read_bytes()
    path.write_bytes(content[: keep if isinstance(keep, int) else int(len(content) * keep)])
    with pytest.raises(UserError, match=r"is damaged|is empty"):
        read_weights(path)


@pytest.mark.parametrize(
    "content, message",
    [
        (b"<html>not found</html>", "is damaged or no weight file"),
        (pickle.dumps([1, 2]), "holds a list, not a dict of weights"),
    ],
)
def test_what_is_no_weight_file_is_named(content, message, tmp_path):
    (tmp_path / "x.pth").write_bytes(content)
    with pytest.raises(UserError, match=message):
        read_weights(tmp_path / "x.pth")


def test_missing_file_is_named(tmp_path):
    with pytest.raises(UserError, match=r"cannot read .*none.pth \(No such file"):
        read_weights(tmp_path / "none.pth")


def test_weights_of_something_else_are_named():
    with pytest.raises(UserError, match="holds no ResNeSt in a known format; its 2 tensors are weight, bias"):
        convert(torch.nn.Linear(1, 1).state_dict())
