"""Weights of every format, made by the peers' own code, recognised by content and converted."""

import bz2
import collections
import gzip
import lzma
import os
import pickle
import re
import runpy
import zipfile
from argparse import Namespace
from functools import partial

import numpy as np
import pytest
import safetensors.torch
import timm
import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.checkpoint.c2_model_loading import align_and_update_state_dicts
from detectron2.config import get_cfg
from detectron2.layers import ShapeSpec
from detectron2.modeling import build_model, build_resnet_backbone
from parity.measure import detector_cfg, released_state
from parity.worker import randomise
from robust.corpus import run_case
from robust.corpus.weights import WEIGHTS
from robust.fuzz import fuzz
from support import ROOT, assert_one_line_error

from resnest_d2 import ResNeSt, UserError, add_resnest_config, model_zoo
from resnest_d2.checkpoint import Checkpointer, Coverage, check_target, convert, read_weights, write_weights
from resnest_d2.checkpoint.convert import as_checkpoint
from resnest_d2.checkpoint.unpickle import _Steps
from resnest_d2.engine.resuming import check_same
from resnest_d2.engine.trainer import _check_start

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
    return released_state(detector_cfg("50"))


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
    assert (len(conversion.state), conversion.unexpected_keys, conversion.missing_keys) == (
        len(authors),
        [],
        [],
    )
    assert conversion.options["depth"] == 50 and conversion.options["num_classes"] == 1000


@pytest.mark.parametrize("features_only", (False, True))
def test_timm_files(features_only, tmp_path):
    state = randomised(timm.create_model("resnest14d", features_only=features_only))
    safetensors.torch.save_file(state, tmp_path / "model.safetensors")
    torch.save(state, tmp_path / "model.pth")
    for name in ("model.safetensors", "model.pth"):
        conversion = convert(read_weights(tmp_path / name))
        assert (len(conversion.state), conversion.unexpected_keys, conversion.missing_keys) == (
            len(state),
            [],
            [],
        )
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
    assert (conversion.unexpected_keys, conversion.missing_keys) == ([], [])
    check_equal(conversion.state, expected)


def test_backbone_inside_a_whole_mmdetection_detector(authors, expected):
    state = {f"backbone.{k}": v for k, v in as_mmdetection(authors)["state_dict"].items()}
    conversion = convert({**state, "rpn_head.rpn_conv.weight": torch.zeros(1)})
    assert conversion.unexpected_keys == ["rpn_head.rpn_conv.weight"]
    check_equal(conversion.state, expected)


@pytest.mark.parametrize("prefix", ["", "bottom_up.", "backbone.bottom_up."])
def test_backbones_keyed_as_detectron2_keys_them(expected, prefix):
    conversion = convert({"model": {f"{prefix}{k}": v.numpy() for k, v in expected.items()}})
    assert conversion.source == "a detectron2-keyed backbone" and conversion.missing_keys == []
    check_equal(conversion.state, expected)


@pytest.mark.slow
def test_whole_released_detectors(released):
    conversion = convert({"model": released})
    assert conversion.source == "a whole detector" and conversion.is_detector
    assert conversion.state.keys() == released.keys()


@pytest.mark.parametrize("options", [
    {"radix": 0}, {"deep_stem": False}, {"norm": "LN"}, {"norm": ""}, {"out_features": ["res3"]},
    {"deform_on_per_stage": (False, True, True, True), "deform_modulated": True, "deform_num_groups": 2},
    {"in_channels": 5}, {"num_classes": 7}, {"cardinality": 2, "bottleneck_width": 40, "radix": 4},
], ids=str)  # fmt: skip
def test_checkpoints_of_this_package(options):
    state = ResNeSt(14, **options).state_dict()
    conversion = convert({"model": state, "iteration": 3})
    assert (len(conversion.state), conversion.unexpected_keys, conversion.missing_keys) == (
        len(state),
        [],
        [],
    )
    assert {k: v.shape for k, v in conversion.state.items()} == {k: v.shape for k, v in state.items()}


@pytest.mark.parametrize("wrap", [
    lambda s: s,
    lambda s: {"state_dict": s},
    lambda s: {"model": s, "epoch": 3},
    lambda s: {"model": {"state_dict": s}},
    lambda s: {f"module.{k}": v for k, v in s.items()},
    lambda s: {"state_dict": {f"module.{k}": v for k, v in s.items()}},
    lambda s: {"state_dict": {f"model.{k}": v for k, v in s.items()}},
    lambda s: {f"_orig_mod.module.{k}": v for k, v in s.items()},
    lambda s: {"model": {"name": "resnest14d"}, "state_dict": s},
    lambda s: {"model": s, "state_dict": s},
], ids=[
    *("bare", "state_dict", "model", "both", "module", "state_dict+module", "Lightning", "compiled"),
    *("beside its options", "twice"),
])  # fmt: skip
def test_any_wrapping(wrap, timm14, tmp_path):
    torch.save(wrap(timm14), tmp_path / "x.pth")
    conversion = convert(read_weights(tmp_path / "x.pth"))
    assert (conversion.unexpected_keys, conversion.missing_keys) == ([], [])


@pytest.mark.parametrize("wrapped", [True, False])
@pytest.mark.parametrize(
    "own, given", [("", "model"), ("", "_orig_mod"), ("model", "model"), ("_orig_mod", "_orig_mod")]
)
@pytest.mark.parametrize("resnest", [True, False])
def test_prefixes_of_wrappers_go_where_a_model_has_none_itself(resnest, own, given, wrapped, tmp_path):
    net = ResNeSt(14, res2_out_channels=32, bottleneck_width=8) if resnest else torch.nn.Linear(2, 2)
    backbone = torch.nn.ModuleDict({"bottom_up": net})
    detector = torch.nn.ModuleDict({"backbone": backbone, "head": torch.nn.Linear(2, 2)})
    state = {f"{given}.{key}": value.clone() for key, value in detector.state_dict().items()}
    torch.save({"model": state} if wrapped else state, tmp_path / "x.pth")
    torch.nn.init.zeros_(detector["head"].weight)
    checkpointer = Checkpointer(torch.nn.ModuleDict({own: detector}) if own else detector)
    checkpointer.load(str(tmp_path / "x.pth"))
    assert checkpointer.missing_keys == checkpointer.unexpected_keys == []
    assert torch.equal(detector["head"].weight, state[f"{given}.head.weight"])


def test_two_networks_in_a_file_are_not_chosen_from(timm14):
    other = {k: v + 1 for k, v in timm14.items()}
    for content in (
        {"model": timm14, "state_dict": other},
        {"state_dict": {"model": timm14, "model_state": other}},
    ):
        for read in (convert, partial(as_checkpoint, name="x")):
            with pytest.raises(
                UserError, match=r"has different weights under '\w+' and '\w+'; save what is meant"
            ):
                read(content)


@pytest.mark.parametrize(
    "change, said",
    [
        (
            lambda key, v: v.flatten() if v.dim() == 4 else v,
            r"conv1_1 of shape \(\d+,\), res2.0.conv1 of shape",
        ),
        (lambda key, v: v.transpose(0, 1) if v.dim() == 4 else v, "res2.0.conv1 of shape"),
        (lambda key, v: v[:0] if v.dim() else v, r"res2.0.conv1 of shape \(0, "),
        (lambda key, v: None if key == "res2.0.conv3.weight" else v, "nothing for res2.0.conv3.weight"),
    ],
)
def test_shapes_of_no_network_are_said_with_their_names(change, said):
    state = {key: change(key, value) for key, value in ResNeSt(14).state_dict().items()}
    with pytest.raises(UserError, match=rf"holds no complete ResNeSt \(.*({said})") as e:
        convert({key: value for key, value in state.items() if value is not None})
    assert "unpack" not in str(e.value) and "division" not in str(e.value)


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


@pytest.mark.slow
def test_released_detector_loads_completely(released, tmp_path):
    torch.save({"model": released}, tmp_path / "released.pth")
    cfg = get_cfg()
    add_resnest_config(cfg)
    cfg.merge_from_list(detector_cfg("50"))
    model = build_model(cfg)
    checkpointer = Checkpointer(model)
    checkpointer.load(str(tmp_path / "released.pth"))
    assert checkpointer.missing_keys == []
    assert all(torch.equal(value, released[key]) for key, value in model.state_dict().items())


def test_command_says_what_it_found_and_writes_it(timm14, run_python, tmp_path):
    torch.save({**timm14, "extra.weight": torch.zeros(1)}, tmp_path / "in.pth")
    result = run_python("tools/convert_weights.py", tmp_path / "in.pth", tmp_path / "out.safetensors")
    assert result.returncode == 0, result.stderr
    assert f"{AUTHORS}, {len(timm14)} tensors mapped" in result.stdout
    assert "no place for extra.weight" in result.stdout
    assert f"wrote {tmp_path}/out.safetensors" in result.stdout
    assert len(read_weights(tmp_path / "out.safetensors")) == len(timm14)


def test_keys_that_are_printed_are_short_and_write_nothing_on_a_terminal(tmp_path, capsys):
    state = ResNeSt(14, res2_out_channels=32, bottleneck_width=8).state_dict()
    for key in ("\x1b[31m", "\ud800", "k" * 100_000):
        state[key] = torch.zeros(1)
    torch.save(state, tmp_path / "x.pth")
    main = runpy.run_path(str(ROOT / "tools/convert_weights.py"))["main"]
    main(Namespace(source=str(tmp_path / "x.pth"), target=None, ema=False))
    said = capsys.readouterr().out
    assert said.count("no place for") == 3 and len(said) < 1000 and "\x1b" not in said


def test_command_refuses_an_incomplete_backbone_and_writes_nothing(timm14, run_python, tmp_path):
    torch.save({k: v for k, v in timm14.items() if k != "layer2.0.conv2.fc1.weight"}, tmp_path / "in.pth")
    result = run_python("tools/convert_weights.py", tmp_path / "in.pth", tmp_path / "out.pth")
    assert "nothing for res3.0.conv2.fc1.weight" in result.stdout
    assert_one_line_error(result, "does not cover the backbone: nothing for 1 tensors")
    assert [p.name for p in tmp_path.iterdir()] == ["in.pth"]


def test_command_refuses_an_unknown_suffix_before_it_reads(run_python, tmp_path):
    result = run_python("tools/convert_weights.py", tmp_path / "none.pth", tmp_path / "out.onnx")
    assert_one_line_error(result, "the suffix must be .pth or .safetensors")


@pytest.mark.parametrize(
    "target, said",
    [
        *(
            (name, "the suffix must be")
            for name in ("", "out", "out.PTH", ".pth", "-", "folder", "/dev/null")
        ),
        ("folder.pth", "it is a folder"),
        ("in.pth/out.pth", r"\(Not a directory\); make it writable"),
        ("x" * 300 + ".pth", r"\(File name too long\)"),
        *((name, "is the input file") for name in ("in.pth", "./in.pth", "folder.pth/../in.pth", "link.pth")),
    ],
)
def test_weights_are_written_to_a_file_of_their_own(target, said, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder.pth").mkdir()
    (tmp_path / "in.pth").write_bytes(b"weights")
    (tmp_path / "link.pth").symlink_to("in.pth")
    for source in ("in.pth", "link.pth"):
        with pytest.raises(UserError, match=said):
            check_target(target, source)
    check_target("none/out.safetensors", "in.pth")


def test_tensor_of_another_shape_is_missing_and_unplaced():
    state = dict(ResNeSt(14).state_dict())
    state["res4.0.conv1.weight"] = torch.zeros(3, 3, 1, 1)
    conversion = convert(state)
    assert conversion.missing_keys == conversion.unexpected_keys == ["res4.0.conv1.weight"]


NARROW = {"stem_width": 4, "res2_out_channels": 8, "bottleneck_width": 4}


def narrow(depth=14, **options):
    return ResNeSt(depth, **{**NARROW, **options}).state_dict()


def backbone_only(net, name="bottom_up"):
    model = torch.nn.Module()
    model.backbone = torch.nn.Module()
    model.backbone.add_module(name, net)
    model.head = torch.nn.Linear(2, 2)
    return model


def start(model, content, path, check=Coverage.check_backbone):
    """Load a file as training does."""
    path.write_bytes(content) if isinstance(content, bytes) else torch.save(content, path)
    checkpointer = Checkpointer(model)
    checkpointer.check = check
    checkpointer.load(str(path))
    return checkpointer


def as_detector(state, **heads):
    return {"model": {**{f"backbone.bottom_up.{k}": v for k, v in state.items()}, **heads}}


@pytest.mark.parametrize("detector", (False, True))
@pytest.mark.parametrize("depth, options, said", [
    (26, {}, r"no place for \d+ of its own \(.*res2.1.*seems to be ResNeSt of depth 26.*wants ResNeSt of depth 14"),
    (14, {"radix": 1}, "nothing for .*seems to be ResNeSt of depth 14, radix 1,.*wants .*radix 2"),
    (14, {"radix": 0}, "nothing for .*seems to be ResNeSt of depth 14, radix 0"),
    (14, {"cardinality": 2}, "nothing for .*seems to be .*cardinality 2"),
    (14, {"norm": "LN"}, "norms of another kind.*no running statistics, the configuration .* running statistics"),
    (14, {"norm": ""}, "nothing for .*no norms, the configuration"),
    (14, {"deep_stem": False}, r"nothing for .*\(backbone.bottom_up.stem.conv1_1.weight"),
    (14, {"in_channels": 4}, r"nothing for 1 of the model's tensors \(backbone.bottom_up.stem.conv1_1.weight\)"),
    (14, {"deform_on_per_stage": (True,) * 4}, r"no place for .*conv2_offset.*deformable"),
])  # fmt: skip
def test_weights_of_another_backbone_are_refused(depth, options, said, detector, tmp_path):
    state, model = narrow(depth, **options), backbone_only(ResNeSt(14, **NARROW))
    content = as_detector(state, extra=torch.zeros(1)) if detector else state
    with pytest.raises(UserError, match=f"^MODEL.WEIGHTS: {tmp_path}/x.pth does not fit the model: .*{said}"):
        start(model, content, tmp_path / "x.pth")
    with pytest.raises(UserError, match=r"^MODEL.WEIGHTS: "):
        start(model, content, tmp_path / "x.pth", Coverage.check_all)
    start(model, content, tmp_path / "x.pth", None)


@pytest.mark.parametrize("heads", [{}, {"head.weight": torch.zeros(5, 2)}, {"head.weight": torch.ones(2, 2)}])
@pytest.mark.parametrize(
    "options", [{}, {"out_features": ["res2", "res4"]}, {"norm": "LN"}, {"norm": "FrozenBN"}]
)
def test_weights_of_the_backbone_start_training_whatever_the_heads_are(heads, options, tmp_path):
    same = {"norm": "LN"} if options.get("norm") == "LN" else {}
    content = as_detector(narrow(**same), **heads) if heads else narrow(**same)
    checkpointer = start(backbone_only(ResNeSt(14, **NARROW, **options)), content, tmp_path / "x.pth")
    assert ("head.weight" in checkpointer.missing_keys) == (
        heads.get("head.weight", torch.zeros(0)).sum() == 0
    )


def test_replaced_heads_are_one_line_of_the_log(tmp_path, caplog):
    model = backbone_only(ResNeSt(14, **NARROW))
    content = as_detector(narrow(), **{"head.weight": torch.zeros(5, 2)})
    with caplog.at_level("INFO", logger="resnest_d2"):
        start(model, content, tmp_path / "x.pth", partial(_check_start, allow_random=False))
    said = [record.message for record in caplog.records if record.name == "resnest_d2.engine.trainer"]
    assert said == ["MODEL.WEIGHTS has nothing for head.bias, head.weight: they start at random"]


def test_the_flag_lets_another_backbones_weights_start_training(tmp_path):
    model = backbone_only(ResNeSt(14, **NARROW))
    start(model, narrow(26), tmp_path / "x.pth", partial(_check_start, allow_random=True))


@pytest.mark.parametrize("detector", (False, True))
def test_norms_without_statistics_may_learn_from_those_that_have_them_but_not_be_evaluated(
    detector, tmp_path, caplog
):
    state = narrow()
    content = as_detector(state, extra=torch.zeros(1)) if detector else state
    model = backbone_only(ResNeSt(14, **NARROW, norm="LN"))
    with pytest.raises(UserError, match=r"does not fit the model: norms of another kind"):
        del model.head
        start(model, content, tmp_path / "x.pth", Coverage.check_all)
    start(model, content, tmp_path / "x.pth")
    count = sum(key.endswith("running_var") for key in state)
    assert (
        f"the norms of {tmp_path}/x.pth have statistics; {count} of the model start with only" in caplog.text
    )
    with pytest.raises(UserError, match=r"no place for 2 of its own \(\S*res2.9.conv1.norm.running_mean"):
        more = {f"res2.9.conv1.norm.{kind}": torch.ones(3) for kind in ("running_mean", "running_var")}
        start(model, as_detector({**state, **more}), tmp_path / "x.pth")


def test_offsets_and_counters_may_be_missing_when_training_starts(tmp_path):
    deformable = ResNeSt(14, **NARROW, deform_on_per_stage=(False, True, True, True))
    state = {k: v for k, v in narrow().items() if not k.endswith("num_batches_tracked")}
    start(backbone_only(deformable), state, tmp_path / "x.pth")
    with pytest.raises(UserError, match=r"holds no weights for backbone.bottom_up, which would stay zero"):
        model = backbone_only(deformable)
        del model.head
        start(model, state, tmp_path / "x.pth", Coverage.check_all)


def test_a_checkpoint_of_another_configuration_is_not_resumed(tmp_path):
    model = backbone_only(ResNeSt(14, **NARROW))
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    for parameter in model.parameters():
        optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
    state, content = {"_trainer": {"optimizer": optimizer.state_dict()}}, {"model": model.state_dict()}

    def resume(content):
        check_same(state, model_zoo.get_config("quickstart"), optimizer, start(model, content, path, None))

    path = tmp_path / "x.pth"
    resume(content)
    for name, tensor in (("more", torch.zeros(1)), ("head.bias", torch.zeros(3))):
        said = rf"^--resume: {path} is of another model or optimizer \(they differ in {name}\)"
        with pytest.raises(UserError, match=said):
            resume({"model": {**content["model"], name: tensor}})
    state["_trainer"]["optimizer"]["state"][0]["momentum_buffer"] = torch.zeros(7)
    with pytest.raises(UserError, match=r"they differ in the groups of the optimizer"):
        resume(content)


def test_numbers_that_are_not_finite_are_refused_by_name(tmp_path):
    state = narrow()
    state["res4.0.conv1.weight"][0, 0] = torch.nan
    state["res5.0.conv1.weight"][0, 0] = torch.inf
    for content in (
        state,
        as_detector(state, extra=torch.zeros(1)),
        {"model": {**state, "linear": torch.zeros(1)}},
    ):
        with pytest.raises(
            UserError, match=r"x.pth is damaged: \S*res4.0.conv1.weight holds numbers that are not"
        ):
            start(backbone_only(ResNeSt(14, **NARROW)), content, tmp_path / "x.pth", None)


VAR, CONV = "res2.0.conv1.norm.running_var", "res4.0.conv1.weight"


@pytest.mark.parametrize("detector", (False, True))
@pytest.mark.parametrize(
    "change, said",
    [
        (lambda state: {VAR: -state[VAR]}, f"{VAR} holds the negative variance -1"),
        (lambda state: {k: v * 1e30 for k, v in state.items() if v.is_floating_point()}, "which no trained"),
        (lambda state: {CONV: (state[CONV] * 100).to(torch.int8)}, f"{CONV} as int8; save the weights"),
        (lambda state: {CONV: state[CONV] > 0}, f"{CONV} as bool; save the weights"),
    ],
)
def test_weights_that_no_network_has_are_refused_by_name(change, said, detector, tmp_path):
    state = narrow()
    state.update(change(state))
    content = as_detector(state, extra=torch.ones(1)) if detector else state
    with pytest.raises(UserError, match=rf"x.pth (is damaged: |holds ).*{said}"):
        start(backbone_only(ResNeSt(14, **NARROW)), content, tmp_path / "x.pth", None)


@pytest.mark.parametrize(
    "change, said",
    [
        (lambda value: value, None),
        (lambda value: value.half(), None),
        (lambda value: value * 1e3, None),
        (lambda value: value.to(torch.float8_e4m3fn), "8 bits are few for weights"),
        (torch.zeros_like, "nothing but zeros for the weights of 26 layers"),
    ],
)
def test_weights_that_are_only_odd_are_loaded_with_a_warning(change, said, tmp_path, caplog):
    state = {k: change(v) if v.is_floating_point() else v for k, v in narrow().items()}
    for _ in range(2):
        start(backbone_only(ResNeSt(14, **NARROW)), state, tmp_path / "x.pth", None)
    warned = [r.message for r in caplog.records if r.name == "resnest_d2.checkpoint.numbers"]
    assert len(warned) == (said is not None) and all(said in message for message in warned)


def resnet(depth, norm="FrozenBN"):
    cfg = get_cfg()
    cfg.merge_from_list(["MODEL.RESNETS.DEPTH", depth, "MODEL.RESNETS.RES2_OUT_CHANNELS", 32])
    cfg.merge_from_list(["MODEL.RESNETS.WIDTH_PER_GROUP", 8, "MODEL.RESNETS.STEM_OUT_CHANNELS", 8])
    cfg.merge_from_list(["MODEL.RESNETS.NORM", norm])
    return backbone_only(build_resnet_backbone(cfg, ShapeSpec(channels=3)))


def caffe2(depth):
    """Weights as MSRA's are: norms merged, a classifier, and a bias that nobody uses."""
    renamed = {
        **{r"^stem\.conv1\.norm": "res_conv1_bn", r"^stem\.": "", r"\.shortcut": "_branch1"},
        **{rf"(^res\d\.\d+)\.conv{i + 1}": rf"\1_branch2{letter}" for i, letter in enumerate("abc")},
        **{r"\.norm": "_bn", r"_bn\.weight": "_bn_s", r"\.weight": "_w", r"\.bias": "_b", r"\.": "_"},
    }
    weights = {"fc1000_w": np.ones((3, 3)), "fc1000_b": np.ones(3), "conv1_b": np.ones(8)}
    for key, value in resnet(depth).backbone.bottom_up.state_dict().items():
        if "running" not in key:
            for pattern, new in renamed.items():
                key = re.sub(pattern, new, key)
            weights[key] = np.ones(value.shape, np.float32)
    assert {"conv1_w", "res_conv1_bn_s", "res2_0_branch2a_w", "res2_0_branch1_bn_b"} <= set(weights)
    return pickle.dumps(weights, 2)


@pytest.mark.parametrize("norm", ["FrozenBN", "BN", "LN"])
def test_msra_weights_start_training(norm, tmp_path):
    model = resnet(50, norm)
    start(model, caffe2(50), tmp_path / "R-50.pkl")
    state = model.backbone.bottom_up.state_dict()
    learned = [key for key in state if not re.search("running|num_batches", key)]
    assert len(learned) > 100 and all(state[key].eq(1).all() for key in learned)


def test_msra_weights_of_another_network_are_refused(tmp_path):
    said = r"no place for \d+ .*res4.10.*seems to be ResNet of depth 101.*wants ResNet of depth 50"
    with pytest.raises(UserError, match=said):
        start(resnet(50, "BN"), caffe2(101), tmp_path / "R-101.pkl")


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


ARRAYS = {
    "whole": np.arange(6, dtype=np.float32).reshape(2, 3),
    "columns first": np.asfortranarray(np.arange(6.0).reshape(2, 3)),
    "other byte order": np.arange(3, dtype=">i4"),
    "half": np.ones(2, np.float16),
    "empty": np.zeros((0, 3), np.float32),
    "number": np.array(3.5),
    "scalar": np.float32(0.5),
    "truth": np.bool_(True),
}


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize("module", ["numpy._core", "numpy.core"])
def test_pickle_of_arrays_is_read(protocol, module, tmp_path):
    content = pickle.dumps(collections.OrderedDict(ARRAYS), protocol)
    if protocol < 4:  # whose texts have no length before them
        content = content.replace(b"numpy._core", module.encode())
    (tmp_path / "x.pkl").write_bytes(content)
    for key, value in read_weights(tmp_path / "x.pkl").items():
        assert np.array_equal(value, ARRAYS[key]) and value.dtype == ARRAYS[key].dtype.newbyteorder("=")


@pytest.mark.parametrize("zipped", (True, False))
def test_torch_file_is_read_as_torch_reads_it(zipped, tmp_path):
    """A whole training checkpoint, and whatever else of torch a file may hold."""
    net = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4))
    optimizer = torch.optim.AdamW(net.parameters())
    net(torch.randn(5, 3)).sum().backward()
    optimizer.step()
    weight = torch.randn(6, 4)
    content = {
        "model": net.state_dict(),
        "optimizer": optimizer.state_dict(),
        "types": [
            torch.ones(2).to(dtype) for dtype in (torch.bfloat16, torch.int8, torch.bool, torch.complex64)
        ],
        "views": [weight, weight.t(), weight[2:, 1], weight[:0], torch.tensor(3)],
        "parameter": torch.nn.Parameter(weight),
        "plain": [1, 2.5, None, True, "x", b"y", (1, {2: {3}}), 2**70, 1j],
        "torch": [torch.Size([2, 3]), torch.float16],
        "counter": collections.Counter("aab"),
    }
    torch.save(content, tmp_path / "x.pth", _use_new_zipfile_serialization=zipped)
    found, expected = read_weights(tmp_path / "x.pth"), torch.load(tmp_path / "x.pth", weights_only=True)
    flat, structure = torch.utils._pytree.tree_flatten(found)
    other, same = torch.utils._pytree.tree_flatten(expected)
    assert structure == same
    for a, b in zip(flat, other):
        assert torch.equal(a, b) and a.dtype == b.dtype if isinstance(b, torch.Tensor) else a == b
    assert found["model"]._metadata == expected["model"]._metadata
    found["views"][0].zero_()
    assert found["views"][1].eq(0).all()  # still one memory


def test_torch_file_of_arrays_is_read_and_nothing_is_allowed_to_torch(tmp_path):
    torch.save({"a": np.ones(3, np.float32), "b": np.float32(2)}, tmp_path / "x.pth")
    found = read_weights(tmp_path / "x.pth")
    assert found["a"].sum() == 3 and found["b"] == 2
    assert not any("numpy" in str(allowed) for allowed in torch.serialization.get_safe_globals())


def test_a_flipped_bit_is_noticed(tmp_path):
    torch.save({"weight": torch.zeros(1000)}, tmp_path / "x.pth")
    content = bytearray((tmp_path / "x.pth").read_bytes())
    content[len(content) // 2] ^= 1
    (tmp_path / "x.pth").write_bytes(content)
    with pytest.raises(UserError, match=r"is damaged .*CRC"):
        read_weights(tmp_path / "x.pth")


@pytest.mark.parametrize(
    "name", [n for n in WEIGHTS if n.startswith(("pickle of a type", "archive: a tensor"))]
)
def test_memory_is_not_what_a_file_says(name, tmp_path):
    outcome = run_case("weights", name, tmp_path, 0)
    assert outcome.good, outcome


def test_a_byte_of_a_pickle_cannot_cost_memory_without_end(tmp_path, monkeypatch):
    monkeypatch.setattr(_Steps, "left", 1000)
    (tmp_path / "x.pkl").write_bytes(b"\x80\x04(" + b"\x8f" * 1000 + b"t.")
    with pytest.raises(UserError, match="more steps than a file of weights has"):
        read_weights(tmp_path / "x.pkl")


def test_more_records_than_weights_have_are_refused_before_they_are_read(tmp_path, monkeypatch):
    monkeypatch.setattr("resnest_d2.checkpoint.read._MAX_RECORDS", 50)
    with zipfile.ZipFile(tmp_path / "x.pth", "w") as archive:
        for name in ("data.pkl", *(f"data/{i}" for i in range(50))):
            archive.writestr(f"x/{name}", b"")
    safetensors.torch.save_file({str(i): torch.zeros(1) for i in range(51)}, tmp_path / "x.safetensors")
    for suffix in ("pth", "safetensors"):
        with pytest.raises(UserError, match="is no file of weights: it holds 51 tensors"):
            read_weights(tmp_path / f"x.{suffix}")


def test_damaged_files_by_the_hundred(tmp_path):
    result = fuzz(tmp_path, 400, seed=1)
    assert result.bad == [] and sum(result.outcomes.values()) == 400
    assert result.outcomes["refused"] > 100 and result.outcomes["converted"] > 5


@pytest.mark.parametrize("suffix", [".pth", ".pkl", ".pyth", ".bin"])
@pytest.mark.parametrize("kind", ["zip", "legacy", "pickle", "safetensors"])
def test_a_suffix_decides_nothing(suffix, kind, tmp_path):
    """detectron2 has .pkl unpickled and .pyth loaded by torch, which may run code."""
    model, path = torch.nn.Sequential(torch.nn.Linear(2, 2)), tmp_path / f"x{suffix}"
    state = {key: torch.ones_like(value) for key, value in model.state_dict().items()}
    if kind == "safetensors":
        safetensors.torch.save_file(state, path)
    elif kind == "pickle":
        path.write_bytes(pickle.dumps({"model": {k: v.numpy() for k, v in state.items()}, "__author__": "x"}))
    else:
        torch.save({"model": state, "__author__": "x"}, path, _use_new_zipfile_serialization=kind == "zip")
    if suffix != ".pkl" or kind != "safetensors":  # whose names would be Caffe2's
        Checkpointer(model).load(str(path))
        assert all(value.eq(1).all() for value in model.state_dict().values())
    hostile = {"model_state": Harmful(tmp_path / "ran")}
    path.write_bytes(pickle.dumps(hostile)) if kind == "pickle" else torch.save(hostile, path)
    with pytest.raises(UserError, match="would run code"):
        Checkpointer(model).load(str(path))
    assert not (tmp_path / "ran").exists()


def test_pycls_models_are_matched_by_the_ends_of_their_names(tmp_path):
    model = torch.nn.ModuleDict({"backbone": torch.nn.Linear(2, 2)})
    torch.save(
        {"model_state": {"weight": torch.ones(2, 2), "bias": torch.ones(2)}, "epoch": 3}, tmp_path / "x.pyth"
    )
    Checkpointer(model).load(str(tmp_path / "x.pyth"))
    assert model["backbone"].weight.eq(1).all()


@pytest.mark.parametrize("suffix", [".pth?matching_heuristics=True", ".pkl"], ids=["named", "caffe2"])
def test_names_that_fit_nowhere_are_not_compared_with_each_of_the_model(suffix, tmp_path, monkeypatch):
    def compare(own, given, **options):
        compared.extend(given)
        return align_and_update_state_dicts(own, given, **options)

    compared, extra = [], [f"x{i}.weight" for i in range(100)]
    monkeypatch.setattr("resnest_d2.checkpoint.checkpointer.align_and_update_state_dicts", compare)
    weights = {"weight": np.ones((2, 2), np.float32), **dict.fromkeys(extra, np.ones(1, np.float32))}
    (tmp_path / f"x{suffix[:4]}").write_bytes(pickle.dumps(weights))
    model = torch.nn.ModuleDict({"inner": torch.nn.Linear(2, 2, bias=False)})
    loaded = Checkpointer(model)
    loaded.load(f"{tmp_path}/x{suffix}")
    assert (model["inner"].weight == 1).all() and compared == ["weight"]
    assert loaded.missing_keys == [] and sorted(loaded.unexpected_keys) == sorted(extra)


def test_only_detectron2s_query_is_known(tmp_path):
    model = torch.nn.ModuleDict({"backbone": torch.nn.Linear(2, 2)})
    torch.save({"weight": torch.ones(2, 2)}, tmp_path / "x.pth")
    Checkpointer(model).load(f"{tmp_path}/x.pth?matching_heuristics=True")
    assert model["backbone"].weight.eq(1).all()
    with pytest.raises(UserError, match=r"x.pth\?other: the only query is matching_heuristics=True"):
        Checkpointer(model).load(f"{tmp_path}/x.pth?other=1")


@pytest.mark.parametrize(
    "content, message",
    [
        ({"weight": torch.ones(2, 2, dtype=torch.complex64)}, "weight holds complex numbers"),
        ({"weight": 3}, "weight is a int"),
        ({3: torch.ones(2)}, "3 is a Tensor"),
        ({"teacher": {"weight": torch.ones(2)}}, "teacher is a dict; save it on its own"),
        (
            {"model": {"weight": torch.ones(2, 2) / 0}},
            "x.pth is damaged: 0.weight holds numbers that are not",
        ),
        (
            {"model": {"weight": torch.ones(2, 2)}, "matching_heuristics": True},
            "does not fit the model .*multiple keys",
        ),
    ],
)
def test_what_cannot_be_loaded_is_said_in_one_line(content, message, tmp_path):
    model = torch.nn.ModuleList([torch.nn.Linear(2, 2)] * (2 if "matching_heuristics" in content else 1))
    if "inf" in str(content):
        content = {"model": {"0.weight": content["model"]["weight"]}}
    torch.save(content, tmp_path / "x.pth")
    with pytest.raises(UserError, match=message) as e:
        Checkpointer(model).load(str(tmp_path / "x.pth"))
    assert "\n" not in str(e.value)


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
        (b"<html>not found</html>", "is a web page, .*; fetch it again, with the link"),
        (b"\n<!DOCTYPE html>", "is a web page"),
        (gzip.compress(pickle.dumps({"a": 1}), mtime=0), "is a compressed archive, .*; unpack it"),
        (lzma.compress(b"a"), "is a compressed archive"),
        (bz2.compress(b"a"), "is a compressed archive"),
        (bytes(257) + b"ustar\x0000" + bytes(300), "is a tar archive"),
        (b"\x93NUMPY\x01\x00v\x00{'descr': '<f4'}", "is a numpy array, .*; save a dict"),
        (b"\x89HDF\r\n\x1a\n\x00", "is an HDF5 file"),
        (b"\x08\x08\x12\x07pytorch\x1a\x03" + b"2.4" * 90, "is an ONNX model, .*; save the state_dict"),
        (
            b"version https://git-lfs.github.com/spec/v1\noid",
            "is a Git LFS pointer.*; fetch .* git lfs pull",
        ),
        (b"MODEL:\n  WEIGHTS: x.pth\n", "is a text"),
        (b"\x00\x10\x00\x00\x00\x00\x00\x00{" + b'"a"' * 9, "is damaged: it ends before its header"),
        (b"\x80\x02}q\x00", "is damaged or no weight file"),
        (pickle.dumps({"a": 1.5}, 0)[:-9], "is damaged or no weight file"),
        (pickle.dumps([1, 2]), "holds a list, not a dict of weights"),
    ],
)
def test_what_is_no_weight_file_is_named(content, message, tmp_path):
    (tmp_path / "x.pth").write_bytes(content)
    with pytest.raises(UserError, match=message):
        read_weights(tmp_path / "x.pth")


@pytest.mark.parametrize(
    "names, message",
    [
        (("a.npy", "b.npy"), "is an archive of numpy arrays, .*; save a dict"),
        (("weights.pth",), "is an archive of something else, .*; unpack it"),
        (("x/data.pkl", "x/constants.pkl"), r"is a TorchScript program, .*; save its state_dict\(\)"),
        (("x/data.pkl", "y/data.pkl"), "is damaged or no weight file"),
    ],
)
def test_an_archive_of_something_else_is_named(names, message, tmp_path):
    with zipfile.ZipFile(tmp_path / "x.pth", "w") as archive:
        for name in names:
            archive.writestr(name, b"x")
    with pytest.raises(UserError, match=message):
        read_weights(tmp_path / "x.pth")


def test_missing_file_is_named(tmp_path):
    with pytest.raises(UserError, match=r"cannot read .*none.pth \(No such file"):
        read_weights(tmp_path / "none.pth")


def test_weights_of_something_else_are_named():
    with pytest.raises(UserError, match="holds no ResNeSt in a known format; its 2 tensors are weight, bias"):
        convert(torch.nn.Linear(1, 1).state_dict())
    ema = {"state_dict_ema": torch.nn.Linear(1, 1).state_dict()}
    with pytest.raises(
        UserError, match="holds tensors only under 'state_dict_ema'; save what is meant on its own"
    ):
        convert(ema)


def test_an_expanded_tensor_is_called_that(tmp_path):
    torch.save({"weight": torch.zeros(1).expand(4000)}, tmp_path / "x.pth")
    with pytest.raises(
        UserError, match=r"4000 elements on a storage of 1, as expand\(\) makes it: save its clone"
    ):
        read_weights(tmp_path / "x.pth")


@pytest.mark.parametrize("legacy", [False, True])
def test_checkpoints_of_training_scripts_are_read_with_their_arguments(legacy, timm14, tmp_path):
    """As timm (state_dict) and torchvision (model) write them, the latter with the prefix of DDP."""
    arguments = Namespace(lr=0.1, sizes=[1, 2], nested=Namespace(device=torch.device("cpu")))
    for name, content in (
        ("timm", {"epoch": 3, "arch": "resnest14d", "state_dict": timm14, "args": arguments}),
        ("torchvision", {"model": {f"module.{k}": v for k, v in timm14.items()}, "args": arguments}),
    ):
        file = tmp_path / f"{name}.pth"
        torch.save(content, file, _use_new_zipfile_serialization=not legacy)
        read = read_weights(file)
        assert read["args"] == {"lr": 0.1, "sizes": [1, 2], "nested": {"device": "cpu"}}
        conversion = convert(read)
        assert not conversion.missing_keys
        assert torch.equal(conversion.state["stem.conv1_1.weight"], timm14["conv1.0.weight"])


def test_averaged_weights_are_converted_on_request(timm14, run_python, tmp_path):
    average = {f"module.{k}": v + 1 if v.is_floating_point() else v for k, v in timm14.items()}
    content = {"model": timm14, "model_ema": {"n_averaged": torch.tensor(7), **average}}
    torch.save(content, tmp_path / "in.pth")
    for flag, offset in (((), 0), (("--ema",), 1)):
        result = run_python(
            "tools/convert_weights.py", *flag, tmp_path / "in.pth", tmp_path / f"{offset}.pth"
        )
        assert result.returncode == 0, result.stderr
        written = read_weights(tmp_path / f"{offset}.pth")["model"]
        assert torch.equal(written["stem.conv1_1.weight"], timm14["conv1.0.weight"] + offset)
    torch.save({"model": timm14}, tmp_path / "none.pth")
    result = run_python("tools/convert_weights.py", "--ema", tmp_path / "none.pth")
    assert_one_line_error(result, "none.pth holds no averaged weights", "leave out --ema")


class Opened:
    """An object that only looks like a Namespace: of a class that is named, with state."""

    def __reduce__(self):
        return Namespace, (), {"__class__": "x"}


def test_a_namespace_is_but_a_dict_whatever_its_pickle_sets(tmp_path):
    torch.save({"a": torch.zeros(1), "args": Opened()}, tmp_path / "x.pth")
    read = read_weights(tmp_path / "x.pth")
    assert read["args"] == {"__class__": "x"} and isinstance(read["args"], dict)
