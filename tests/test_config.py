"""What a command line and a configuration file name, and what they are held to."""

import re
from pathlib import Path

import pytest
from support import ROOT, assert_one_line_error

from resnest_d2 import UserError, model_zoo
from resnest_d2.engine import argument_parser, load_config
from resnest_d2.engine.preflight import preflight
from resnest_d2.engine.values import check_proposals
from resnest_d2.files import expanded


def test_a_tilde_is_the_users_home_wherever_a_file_is_named(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "base.yaml").write_text(f"_BASE_: {model_zoo.get_config_file('quickstart')}")
    (tmp_path / "a.yaml").write_text("_BASE_: ~/base.yaml\nOUTPUT_DIR: ~/run\nMODEL: {WEIGHTS: ~/a.pth}")
    cfg = load_config("~/a.yaml", ["DATASETS.PROPOSAL_FILES_TEST", "('~/a.pkl', 'b.pkl')"])
    assert cfg.OUTPUT_DIR == f"{tmp_path}/run" and cfg.MODEL.WEIGHTS == f"{tmp_path}/a.pth"
    assert cfg.DATASETS.PROPOSAL_FILES_TEST == (f"{tmp_path}/a.pkl", "b.pkl")
    words = ["--train-json=~/a.json", "--val-images=~/images"]
    args = argument_parser("").parse_args(words)
    assert (args.train_json, args.val_images) == ([f"{tmp_path}/a.json"], [f"{tmp_path}/images"])


@pytest.mark.parametrize(
    "key, value",
    [
        ("INPUT.MAX_SIZE_TRAIN", 1),
        ("INPUT.FORMAT", "YUV-BT.601"),
        ("DATALOADER.SAMPLER_TRAIN", "RandomSubsetTrainingSampler"),
        ("DATALOADER.SAMPLER_TRAIN", "WeightedTrainingSampler"),
        ("MODEL.PIXEL_MEAN", "[1e39, 0.0, 0.0]"),
        ("MODEL.PIXEL_MEAN", "[0.0, 0.0, -1e39]"),
        ("MODEL.PIXEL_STD", "[1e-39, 1.0, 1.0]"),
        ("MODEL.PROPOSAL_GENERATOR.NAME", "RRPN"),
        ("MODEL.ROI_HEADS.NAME", "RROIHeads"),
        ("MODEL.ANCHOR_GENERATOR.NAME", "RotatedAnchorGenerator"),
        ("MODEL.ROI_BOX_HEAD.POOLER_TYPE", "ROIAlignRotated"),
    ],
)
def test_what_no_training_can_do_is_refused_by_its_key(key, value):
    with pytest.raises(UserError, match=rf"^{re.escape(key)}\b"):
        load_config(model_zoo.get_config_file("quickstart"), [key, value])


@pytest.mark.parametrize(
    "key, value, named",
    [
        ("PROPOSAL_GENERATOR.NAME", "PrecomputedProposals", "LOAD_PROPOSALS must be True"),
        ("ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG", False, "ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG must be True"),
        ("ROI_HEADS.IOU_THRESHOLDS", "[0.4]", r"ROI_BOX_CASCADE_HEAD.IOUS must begin with 0\.4"),
        ("ROI_BOX_CASCADE_HEAD.IOUS", "(0.5, 0.6)", "ROI_BOX_CASCADE_HEAD.BBOX_REG_WEIGHTS must be 2"),
    ],
)
def test_parts_that_do_not_fit_each_other_are_named_with_the_remedy(key, value, named):
    file = model_zoo.get_config_file("cascade_resnest50")
    load_config(file)
    with pytest.raises(UserError, match=f"^MODEL.{named}"):
        load_config(file, [f"MODEL.{key}", str(value)])


@pytest.mark.parametrize("train", [True, False])
def test_proposals_are_in_a_file_for_each_dataset(train):
    split = "TRAIN" if train else "TEST"
    cfg = load_config(model_zoo.get_config_file("quickstart"), ["MODEL.LOAD_PROPOSALS", "True"])
    with pytest.raises(UserError, match=rf"^DATASETS.PROPOSAL_FILES_{split} must be 1, .* got \(\)"):
        check_proposals(cfg, train)
    cfg = cfg.clone()
    cfg.defrost()
    cfg.DATASETS[f"PROPOSAL_FILES_{split}"] = ("a.pkl",)
    if train:
        cfg.DATASETS.PROPOSAL_FILES_TEST = ("b.pkl",)
    check_proposals(cfg, train)


def test_names_that_begin_with_no_home_stay():
    names = ["a~", "./~/a", "resnest://resnest50", "", "~\0", "1"]
    assert [*map(expanded, names)] == names


@pytest.mark.parametrize("name", ["a?b.pth", "a:b/c.pth?", "A:b.pth", "a.pth#"])
def test_weights_whose_name_detectron2_would_change_are_refused_by_it(name, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    Path(name).parent.mkdir(exist_ok=True)
    Path(name).touch()
    words = ["--config-file", model_zoo.get_config_file("quickstart"), "--eval-only", "MODEL.WEIGHTS", name]
    with pytest.raises(UserError, match=r"^MODEL.WEIGHTS .*; rename it"):
        preflight(argument_parser("").parse_args([*words, "OUTPUT_DIR", "out"]))


@pytest.mark.parametrize("tool", sorted((ROOT / "tools").glob("*.py")), ids=lambda tool: tool.name)
def test_a_flag_that_no_tool_has_is_named_in_one_line(tool, run_python):
    assert_one_line_error(run_python(tool, "--frobnicate", "x", "y", "z"), "--frobnicate")


@pytest.mark.parametrize("words", [(), ("--config-file", "b"), ("--config-file=b",)])
def test_a_second_configuration_is_no_slip_that_passes(words, capsys):
    words = ["--config-file", "a", *words]
    if len(words) == 2:
        assert argument_parser("").parse_args(words).config_file == "a"
        return
    with pytest.raises(SystemExit, match="2"):
        argument_parser("").parse_args(words)
    assert "--config-file is given twice, a and b" in capsys.readouterr().err
