"""What a command line and a configuration file name, and what they are held to."""

from argparse import Namespace
from pathlib import Path

import pytest
from support import ROOT, assert_one_line_error

from resnest_d2 import UserError, model_zoo
from resnest_d2.engine import argument_parser, load_config
from resnest_d2.engine.setup import check_run
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


def test_names_that_begin_with_no_home_stay():
    names = ["a~", "./~/a", "resnest://resnest50", "", "~\0", "1"]
    assert [*map(expanded, names)] == names


@pytest.mark.parametrize("name", ["a?b.pth", "a:b/c.pth?", "A:b.pth", "a.pth#"])
def test_weights_whose_name_detectron2_would_change_are_refused_by_it(name, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    Path(name).parent.mkdir(exist_ok=True)
    Path(name).touch()
    args = Namespace(optimize=False, half=False, eval_only=True)
    cfg = load_config(model_zoo.get_config_file("quickstart"), ["MODEL.WEIGHTS", name, "OUTPUT_DIR", "out"])
    with pytest.raises(UserError, match=r"^MODEL.WEIGHTS .*; rename it"):
        check_run(cfg, args)


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
