"""python -m resnest_d2.collect_env: what it says is so, and it says what does not work."""

import os
import re
import sys

import pytest
import torch
from support import ROOT, assert_one_line_error

from resnest_d2 import collect_env
from resnest_d2.engine import results
from resnest_d2.ops import triton_kernels


def test_one_screen_names_versions_and_what_works_here(capsys):
    collect_env.main([])
    text = capsys.readouterr().out
    lines = text.splitlines()
    assert len(lines) < 40 and max(map(len, lines)) < 120
    values = dict(re.split(r"\s{2,}", line.strip(), maxsplit=1) for line in lines if line.strip())
    assert values["torch"] == torch.__version__ and values["python"] == sys.version.split()[0]
    assert values["Split-Attention"] == f"plain PyTorch: {triton_kernels.unavailable(torch.device('cpu'))}"
    assert float(values["beside its reference"].removeprefix("error ")) < collect_env.TOLERANCE
    assert values["deformable convolution"].startswith("works")
    assert values["mixed precision, torch.bfloat16"] == "works"
    assert values["half-precision inference, torch.bfloat16"].startswith("works")
    assert "FAILS" not in text and sys.prefix not in text


def test_a_path_that_is_wrong_fails_its_self_check(monkeypatch):
    cpu = torch.device("cpu")
    error = float(collect_env.split_attention_error(cpu).split()[-1])
    assert 0 < error < collect_env.TOLERANCE
    right = collect_env.relu_weighted_sum
    monkeypatch.setattr(collect_env, "relu_weighted_sum", lambda *a: right(*a) * 1.001)
    with pytest.raises(ArithmeticError, match="error"):
        collect_env.split_attention_error(cpu)
    monkeypatch.setattr(collect_env, "relu_weighted_sum", lambda *a: right(*a) * float("nan"))
    with pytest.raises(ArithmeticError, match="error nan"):
        collect_env.split_attention_error(cpu)


def test_what_fails_is_named_in_one_line_and_the_rest_is_still_told(monkeypatch):
    def fail(*_):
        raise RuntimeError("no such operator\nat line 3")

    monkeypatch.setattr(collect_env, "deformable_convolution", fail)
    rows = dict(collect_env.collect())
    assert rows["deformable convolution"] == "FAILS: RuntimeError: no such operator"
    assert rows["mixed precision, torch.bfloat16"] == "works"


@pytest.mark.parametrize("word, status", [("--help", 0), ("all", 2)])
def test_help_is_no_report_and_words_are_refused(word, status, capsys):
    with pytest.raises(SystemExit) as ended:
        collect_env.main([word])
    out, err = capsys.readouterr()
    assert ended.value.code == status and torch.__version__ not in out
    assert "usage: python -m resnest_d2.collect_env" in (err if status else out)


def test_a_device_that_cannot_tell_its_name_is_said(monkeypatch):
    def fail(*_):
        raise RuntimeError("driver gone")

    monkeypatch.setattr(collect_env, "_name", fail)
    monkeypatch.setattr(triton_kernels, "unavailable", fail)
    rows = dict(collect_env.collect())
    assert rows["cpu"] == rows["Split-Attention"] == "FAILS: RuntimeError: driver gone"
    assert rows["mixed precision, torch.bfloat16"] == "works"


def test_a_broken_torchvision_is_named_and_the_rest_is_still_told(run_python, tmp_path):
    (tmp_path / "torchvision").mkdir()
    (tmp_path / "torchvision/__init__.py").write_text("raise OSError('libcudart.so: undefined symbol')")
    path = os.pathsep.join([str(tmp_path), str(ROOT)])
    result = run_python("-m", "resnest_d2.collect_env", env={"PYTHONPATH": path})
    assert result.returncode == 0 and "Traceback" not in result.stderr, result.stderr
    values = dict(
        re.split(r"\s{2,}", line.strip(), maxsplit=1) for line in result.stdout.splitlines() if line
    )
    assert values["torchvision"] == "FAILS: OSError: libcudart.so: undefined symbol"
    assert f"matches torch {torch.__version__} (Python 3." in values["resnest_d2"]
    assert values["torch"] == torch.__version__ and values["cpu"] and values["platform"]


@pytest.mark.parametrize("words", [("tools/convert_weights.py", "x"), ("-m", "resnest_d2.model_zoo")])
def test_what_cannot_be_imported_ends_a_command_line_in_one_line(words, run_python):
    assert_one_line_error(run_python("-OO", *words), "detectron2 needs docstrings, which python -OO drops")


def test_the_commit_is_this_checkouts_or_nobodys(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", "/nonexistent")  # no git
    assert results.environment(torch.device("cpu"))["commit"] is None
    monkeypatch.undo()
    monkeypatch.setattr(results, "__file__", str(ROOT / "tests" / "somebodys" / "site" / "results.py"))
    assert results.environment(torch.device("cpu"))["commit"] is None
