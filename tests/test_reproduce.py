"""The tables row by row: commands, resuming, and what is written."""

import json
import os
import shlex
import signal
import subprocess
import sys
import time

import pytest
from conftest import ROOT, assert_one_line_error

from resnest_d2 import UserError, model_zoo
from resnest_d2.engine.reproduce import Reproduction, markdown, select
from resnest_d2.model_zoo.records import DETECTORS


def reproduction(tmp_path, num_gpus=8, **options):
    return Reproduction("tools/train_net.py", tmp_path, num_gpus, **options)


def test_rows_are_chosen_by_table_by_name_or_all():
    assert select("5", None, False) == [n for n, row in DETECTORS.items() if row.table == "5"]
    assert len(select("6", None, False)) == 8
    assert select(None, "mask_resnest50, faster_resnet50", False) == ["mask_resnest50", "faster_resnet50"]
    assert len(select(None, None, True)) == 21


@pytest.mark.parametrize("choice", [("7", None), (None, "mask_resnest51"), (None, None)])
def test_rows_that_are_not_there_are_named(choice):
    with pytest.raises(UserError, match=r"there are 5 and 6|no row 'mask_resnest51'|name rows with --table"):
        select(*choice, False)


def test_command_is_the_one_a_user_would_type(tmp_path):
    words = reproduction(tmp_path).command("cascade_resnest101")
    assert words[1:6] == [
        *("tools/train_net.py", "--config-file", model_zoo.get_config_file("cascade_resnest101")),
        *("--num-gpus", "8"),
    ]
    assert "--resume" in words and "SOLVER.REFERENCE_WORLD_SIZE" not in words


def test_fewer_processes_scale_by_the_linear_rule_and_say_so(tmp_path):
    rows = reproduction(tmp_path, num_gpus=2)
    assert shlex.join(rows.command("mask_resnest50")).endswith("SOLVER.REFERENCE_WORLD_SIZE 8")
    assert "times 2/8, iterations times 8/2" in rows.scaling()
    assert "as in the recipes" in reproduction(tmp_path).scaling()


def test_evaluation_takes_the_released_detector(tmp_path):
    words = reproduction(tmp_path, eval_only=True).command("mask_resnest50")
    assert words[-2:] == ["MODEL.WEIGHTS", "resnest://mask_resnest50"] and "--eval-only" in words


def test_slurm_script_is_valid_and_has_a_job_per_row(tmp_path):
    script = reproduction(tmp_path).slurm(["mask_resnest50", "faster_resnet50"])
    assert "#SBATCH --array=0-1" in script
    assert subprocess.run(["bash", "-n"], input=script, text=True).returncode == 0
    assert "  1) exec " in script and "faster_resnet50.yaml" in script.split("  1) exec ")[1]


def test_table_has_ours_beside_the_papers_and_dashes_where_nothing_was_measured():
    measured = {
        "row": "mask_resnest50", "ap": {"bbox/AP": 42.5}, "published": {"bbox/AP": 42.81, "segm/AP": 38.14},
        "seconds_per_iteration": None, "gpu": None,
    }  # fmt: skip
    cells = [c.strip() for c in markdown([measured]).splitlines()[-1].strip("|").split("|")]
    assert cells == ["mask_resnest50", "42.50", "42.81", "-0.31", "–", "38.14", "–", "–", "CPU"]


@pytest.mark.parametrize("flags", [("--dry-run",), ("--slurm",)])
def test_printing_runs_nothing(flags, run_python, tmp_path):
    result = run_python("tools/reproduce.py", "--all", *flags, "--output", tmp_path / "out")
    assert result.returncode == 0, result.stderr
    assert all(f"{name}.yaml" in result.stdout for name in DETECTORS)
    assert not (tmp_path / "out").exists()


def test_command_names_a_wrong_row(run_python):
    assert_one_line_error(
        run_python("tools/reproduce.py", "--rows", "x"), "no row 'x'; rows are faster_resnet50"
    )


@pytest.mark.slow
def test_smoke_run_is_resumed_after_a_kill_and_finished_rows_are_not_run_again(coco_root, tmp_path):
    args = [sys.executable, "tools/reproduce.py", "--rows", "mask_resnest50,faster_resnet50", "--smoke"]
    args += ["--num-gpus", "1", "--output", str(tmp_path)]
    env = {**os.environ, "DETECTRON2_DATASETS": str(coco_root)}
    first = subprocess.Popen(args, cwd=ROOT, env=env, stdout=subprocess.PIPE, start_new_session=True)
    finished = tmp_path / "mask_resnest50" / "result.json"
    second = tmp_path / "faster_resnet50" / "stdout.txt"
    while not second.exists() or not second.stat().st_size:
        assert first.poll() is None
        time.sleep(0.2)
    os.killpg(first.pid, signal.SIGKILL)
    first.wait()
    written = finished.stat().st_mtime_ns
    done = subprocess.run(args, cwd=ROOT, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    assert finished.stat().st_mtime_ns == written
    results = json.loads((tmp_path / "results.json").read_text())
    assert [r["row"] for r in results] == ["mask_resnest50", "faster_resnet50"]
    for result in results:
        assert result["error"] is None and result["ap"]["bbox/AP"] >= 0
        assert result["versions"]["torch"] and result["commit"] and result["wall_seconds"] > 0
    assert set(results[0]["ap"]) >= {"bbox/AP", "segm/AP", "bbox/AP50"}
    assert (tmp_path / "table.md").read_text().count("\n") == 4
