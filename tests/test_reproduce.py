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
from robust import kills

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
        *("tools/train_net.py", "--num-gpus", "8"),
        *("--config-file", model_zoo.get_config_file("cascade_resnest101")),
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


def test_slurm_script_starts_each_row_on_all_machines(tmp_path):
    """Run by bash, with the commands of the cluster replaced by ones that print their arguments."""
    script = reproduction(tmp_path, num_machines=2).slurm(["mask_resnest50", "faster_resnet50"])
    assert "#SBATCH --array=0-1" in script and "#SBATCH --nodes=2" in script
    assert "16 process(es) instead of 8: batch size and learning rate times 16/8" in script
    cluster = 'scontrol() { printf "node1\\nnode2\\n"; }; srun() { printf "%s\\n" "$@"; }\n'
    env = {"SLURM_ARRAY_TASK_ID": "1", "SLURM_JOB_ID": "7", "SLURM_NNODES": "2", "SLURM_JOB_NODELIST": "x"}
    done = subprocess.run(
        ["bash", "-eu"], input=cluster + script, text=True, capture_output=True, env={**os.environ, **env}
    )
    words = done.stdout.splitlines()
    assert done.returncode == 0, done.stderr
    assert words[:7] == [
        *(sys.executable, "-m", "torch.distributed.run", "--nnodes", "2", "--nproc-per-node", "8"),
    ]
    assert words[words.index("--rdzv-endpoint") + 1] == "node1:20007"
    assert words[-2:] == ["SOLVER.REFERENCE_WORLD_SIZE", "8"]
    assert model_zoo.get_config_file("faster_resnet50") in words


def test_table_has_ours_beside_the_published_and_dashes_where_nothing_was_measured():
    measured = {"row": "mask_resnest50", "results": {"bbox": {"AP": 42.5}}, "gpu": None, "wall_seconds": 900}
    failed = {"row": "panoptic_resnest200_3x", "status": 1, "error": "out of memory"}
    table = markdown([measured, failed]).splitlines()
    title, _, first, second = ([c.strip() for c in line.strip("|").split("|")] for line in table)
    assert first == [
        *("mask_resnest50", "42.50", "42.81", "-0.31", "–", "38.14", "–", "–", "–", "–"),
        *("–", "–", "0.25", "CPU"),
    ]
    assert second == [
        *("panoptic_resnest200_3x", "–", "51.00", "–", "–", "43.68", "–", "–", "47.90", "–"),
        *("–", "–", "–", "–"),
    ]
    assert title[7] == "PQ" and len(title) == len(first)


def test_another_command_does_not_take_over_a_folder(tmp_path):
    (tmp_path / "mask_resnest50").mkdir()
    (tmp_path / "mask_resnest50" / "command.txt").write_text("python train_net.py --something-else\n")
    with pytest.raises(UserError, match="is of another command than this; choose another --output"):
        reproduction(tmp_path).run("mask_resnest50")


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


# Stands in for train_net.py: what it writes when asked to stop takes it a while.
TRAINING = """
import os, pathlib, signal, sys, time
folder = pathlib.Path(sys.argv[sys.argv.index("OUTPUT_DIR") + 1])
def stop(number, frame):
    time.sleep(0.5)
    (folder / "checkpoint").write_text(str(number))
    sys.exit(128 + number)
signal.signal(signal.SIGTERM, stop)
signal.signal(signal.SIGINT, stop)
(folder / "pid").write_text(str(os.getpid()))
time.sleep(60)
"""
REPRODUCE = """
import sys
from resnest_d2.engine import one_line_errors
from resnest_d2.engine.reproduce import Reproduction
with one_line_errors():
    Reproduction(sys.argv[1], sys.argv[2], 1).run("mask_resnest50")
"""


@pytest.mark.parametrize(
    "number, everyone, status",
    [(signal.SIGTERM, False, 143), (signal.SIGINT, True, 130), (signal.SIGKILL, False, -signal.SIGKILL)],
)
def test_training_is_let_finish_its_checkpoint_when_reproduction_is_stopped(
    number, everyone, status, tmp_path
):
    (tmp_path / "train.py").write_text(TRAINING)
    words = [sys.executable, "-W", "ignore", "-c", REPRODUCE, tmp_path / "train.py", tmp_path]
    process = subprocess.Popen(words, cwd=ROOT, stderr=subprocess.PIPE, text=True, start_new_session=True)
    folder = tmp_path / "mask_resnest50"
    while not ((folder / "pid").exists() and (folder / "pid").read_text()):
        assert process.poll() is None
        time.sleep(0.02)
    training = int((folder / "pid").read_text())
    if everyone:
        os.killpg(process.pid, number)
    else:
        os.kill(process.pid, number)
    _, said = process.communicate(timeout=30)
    for _ in range(100):
        if not kills.alive(training):
            break
        time.sleep(0.05)
    assert process.returncode == status and not kills.alive(training)
    assert (folder / "checkpoint").read_text() == str(int(signal.SIGTERM if status < 0 else number))
    assert status < 0 or said.count("; the same command goes on where it was") == 1


@pytest.mark.slow
def test_smoke_run_is_resumed_after_a_kill_and_finished_rows_are_not_run_again(coco_root, tmp_path):
    args = [sys.executable, "tools/reproduce.py", "--rows", "mask_resnest50,faster_resnet50", "--smoke"]
    args += ["--num-gpus", "1", "--output", str(tmp_path)]
    env = {**os.environ, "DETECTRON2_DATASETS": str(coco_root)}
    first = subprocess.Popen(args, cwd=ROOT, env=env, stdout=subprocess.PIPE, start_new_session=True)
    finished = tmp_path / "mask_resnest50" / "results.json"
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
        assert result["results"]["bbox"]["AP"] >= 0 and result["seed"] == 1
        assert result["versions"]["torch"] and result["commit"] and result["wall_seconds"] > 0
    assert set(results[0]["results"]) == {"bbox", "segm"}
    assert (tmp_path / "table.md").read_text().count("\n") == 6
