"""The tables row by row: commands, resuming, and what is written."""

import json
import os
import re
import resource
import runpy
import shlex
import signal
import subprocess
import sys
import time

import forks
import pytest
from robust import kills
from support import ROOT, assert_one_line_error

from resnest_d2 import UserError, model_zoo
from resnest_d2.engine import reproduce
from resnest_d2.engine.reproduce import Reproduction, markdown, released, select
from resnest_d2.published import CLASSIFIERS, DETECTORS, SEGMENTORS


def reproduction(tmp_path, num_gpus=8, **options):
    return Reproduction("tools/train_net.py", tmp_path, num_gpus, **options)


def test_rows_are_chosen_by_table_by_name_or_all():
    assert select("5", None, False) == [n for n, row in DETECTORS.items() if row.table == "5"]
    assert len(select("6", None, False)) == 8
    assert select("7", None, False) == [n for n, row in SEGMENTORS.items() if row.table == "7"]
    assert select(None, "mask_resnest50, faster_resnet50", False) == ["mask_resnest50", "faster_resnet50"]
    assert select("3", None, False) == [n for n, row in CLASSIFIERS.items() if row.table == "3"]
    assert len(select(None, None, True)) == 49


@pytest.mark.parametrize(
    "choice, said",
    [
        (("1", None, False), "--table 1: there are only tables 2, 3, 4, 5, 6, 7"),
        ((None, "mask_resnest51", False), "no row 'mask_resnest51'; did you mean mask_resnest50"),
        ((None, " , ", False), "--rows: no row ' , '; there are faster_resnet50"),
        ((None, None, False), "select rows with one of --table, --rows and --all"),
        (("5", "mask_resnest50", False), "select rows with one of"),
        (("5", None, True), "select rows with one of"),
    ],
)
def test_rows_that_are_not_there_are_named(choice, said):
    with pytest.raises(UserError, match=re.escape(said)):
        select(*choice)


def test_a_row_that_is_named_twice_is_run_once():
    assert select(None, "mask_resnest50,,mask_resnest50 ", False) == ["mask_resnest50"]


@pytest.mark.parametrize(
    "options, said",
    [
        ({"num_gpus": 0}, "--num-gpus must be >= 1"),
        ({"num_gpus": -1}, "--num-gpus must be >= 1"),
        ({"num_machines": 0}, "--num-machines must be >= 1"),
        ({"num_machines": -1}, "--num-machines must be >= 1"),
        (
            {"overrides": ("SEED", "1", "OUTPUT_DIR", "x")},
            "OUTPUT_DIR: every row has a folder of its own; --output",
        ),
    ],
)
def test_options_that_cannot_work_are_named(tmp_path, options, said):
    with pytest.raises(UserError, match=re.escape(said)):
        reproduction(tmp_path, **options)


@pytest.mark.parametrize("opts", [("SOLVER.BASE_LR",), ("SOLVER.BASE_LT", "1"), ("SOLVER.BASE_LR", "x")])
def test_settings_that_do_not_fit_are_said_before_the_first_row_runs(tmp_path, opts):
    with pytest.raises(UserError, match=r"KEY VALUE|SOLVER.BASE_L"):
        reproduction(tmp_path, overrides=opts).check(["mask_resnest50", "mask_resnet50"])
    assert list(tmp_path.iterdir()) == []


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
    assert "times 2/8, iterations times 8/2" in rows.scaling(["mask_resnest50"])
    assert "as in the recipes" in reproduction(tmp_path).scaling(["mask_resnest50"])


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
    """And the first word that differs is named."""
    row, rows = tmp_path / "mask_resnest50", reproduction(tmp_path)
    row.mkdir()
    there = rows.command("mask_resnest50")
    for words, said in (
        (["python", "other.py"], f"it has 'python' where this one has {sys.executable!r}"),
        ([*there[:3], "4", *there[4:]], "it has '4' where this one has '8'"),
        ([*there, "SEED", "7"], "it has 'SEED' where this one has nothing more"),
        (there[:-1], f"it has nothing more where this one has '{there[-1]}'"),
    ):
        (row / "command.txt").write_text(shlex.join(words) + "\n")
        for refusing in (rows.run, lambda name: rows.check([name])):
            with pytest.raises(UserError, match=re.escape(f"is of another command: {said}; choose another")):
                refusing("mask_resnest50")
    assert [p.name for p in row.iterdir()] == ["command.txt"]


@pytest.mark.parametrize("content, said", [(b"\xff\xfe", "UTF-8"), (b'python "', "holds no command")])
def test_a_damaged_command_is_refused(tmp_path, content, said):
    (tmp_path / "mask_resnest50").mkdir()
    (tmp_path / "mask_resnest50/command.txt").write_bytes(content)
    with pytest.raises(UserError, match=rf"command\.txt.*{said}"):
        reproduction(tmp_path).check(["mask_resnest50"])


# Stands in for train_net.py: it evaluates at once.
EVALUATION = """
import json, pathlib, sys
folder = pathlib.Path(sys.argv[sys.argv.index("OUTPUT_DIR") + 1])
(folder / "results.json").write_text(json.dumps({"results": {"bbox": {"AP": 42.0}}}))
"""


def script(tmp_path, text):
    (tmp_path / "train.py").write_text(text)
    return Reproduction(tmp_path / "train.py", tmp_path / "out", 1)


def test_a_row_runs_once_and_notes_its_command(tmp_path):
    """Also in a folder whose command.txt was emptied by a kill."""
    rows, folder = script(tmp_path, EVALUATION), tmp_path / "out/mask_resnest50"
    folder.mkdir(parents=True)
    (folder / "command.txt").touch()
    first = rows.run("mask_resnest50")
    assert first["row"] == "mask_resnest50" and first["results"] == {"bbox": {"AP": 42.0}}
    assert shlex.split((folder / "command.txt").read_text()) == rows.command("mask_resnest50")
    written = (folder / "results.json").stat().st_mtime_ns
    assert rows.run("mask_resnest50") == first == rows.finished("mask_resnest50")
    assert (folder / "results.json").stat().st_mtime_ns == written


def test_a_row_whose_evaluation_failed_runs_again(tmp_path):
    rows = script(tmp_path, EVALUATION)
    (tmp_path / "out/mask_resnest50").mkdir(parents=True)
    (tmp_path / "out/mask_resnest50/results.json").write_text('{"results": {}, "error": "no more memory"}')
    assert rows.finished("mask_resnest50") is None
    assert rows.run("mask_resnest50")["results"] == {"bbox": {"AP": 42.0}}


@pytest.mark.parametrize("content", [b"", b"{", b"\xff", b"[]", b"{}", b'{"results": 3}', b"[" * 1000])
def test_damaged_results_of_a_row_are_refused_by_name_and_left_alone(tmp_path, content):
    rows, file = script(tmp_path, EVALUATION), tmp_path / "out/mask_resnest50/results.json"
    file.parent.mkdir(parents=True)
    file.write_bytes(content)
    for refusing in (rows.run, lambda name: rows.check([name])):
        with pytest.raises(
            UserError, match=r"results\.json.*; remove it to resume the row from its last check"
        ):
            refusing("mask_resnest50")
    assert file.read_bytes() == content


@pytest.mark.parametrize(
    "says, error",
    [
        ("print('one'); sys.exit('the last\\tword')", "the last word"),
        ("sys.stdout.buffer.write(bytes(range(128, 256)) * 9999)", "\ufffd"),
        ("pass", "it wrote no message"),
    ],
)
def test_a_row_that_fails_is_told_with_its_last_words(tmp_path, says, error):
    result = script(tmp_path, f"import sys; {says}").run("mask_resnest50")
    assert (
        result["row"] == "mask_resnest50"
        and result["error"].startswith(error)
        and len(result["error"]) <= 500
    )
    assert result["status"] == (1 if "exit" in says else 0)


@pytest.mark.parametrize(
    "name", ["command.txt", "stdout.txt", "results.json", "../results.json", "../table.md"]
)
@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir])
def test_what_stands_in_the_way_is_named_before_a_row_runs(tmp_path, name, make):
    rows, folder = script(tmp_path, EVALUATION), tmp_path / "out/mask_resnest50"
    folder.mkdir(parents=True)
    make(folder / name)
    with pytest.raises(UserError, match=rf"{name.strip('./')}.* is a (FIFO|folder)"):
        rows.check(["mask_resnest50"])


def test_an_output_that_is_a_file_or_closed_is_named(tmp_path):
    (tmp_path / "file").touch()
    for output in (tmp_path / "file", tmp_path / "file/out", "/proc/none"):
        with pytest.raises(UserError, match=rf"cannot write {output}"), reproduction(output).locked():
            pass


def test_one_process_at_a_time_reproduces_into_a_folder(tmp_path, monkeypatch):
    monkeypatch.setattr(reproduce, "_PATIENCE", 0.2)
    first, second = reproduction(tmp_path), reproduction(tmp_path)
    with first.locked():
        with pytest.raises(UserError, match="another process still reproduces into"), second.locked():
            pass
    with second.locked():
        pass
    assert list(tmp_path.iterdir()) == []


def test_results_that_do_not_fit_leave_those_of_before(tmp_path):
    rows = reproduction(tmp_path)
    row = {"row": "mask_resnest50", "results": {}, "gpu": None}
    rows.write([row])
    before = {file: file.read_bytes() for file in tmp_path.iterdir()}
    assert sorted(file.name for file in before) == ["results.json", "table.md"]
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (30_000, limits[1]))
    try:
        with pytest.raises(UserError, match=r"cannot write .*results\.json \(File too large\)"):
            rows.write([{**row, "command": "x" * 40_000}])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert {file: file.read_bytes() for file in tmp_path.iterdir()} == before


def test_what_breaks_a_table_does_not(tmp_path):
    result = {"row": "mask_resnest50", "results": {"bbox": {"AP": None}}, "gpu": "a|b\nc"}
    assert markdown([result]).splitlines()[-1].rstrip(" |").endswith("a/b c")


@pytest.mark.parametrize("flags", [("--dry-run",), ("--slurm",)])
def test_printing_runs_nothing(flags, run_python, tmp_path):
    result = run_python("tools/reproduce.py", "--all", *flags, "--output", tmp_path / "out")
    assert result.returncode == 0, result.stderr
    assert all(f"{name}.yaml" in result.stdout for name in DETECTORS)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("flags", [("--dry-run",), ("--slurm",), ("--num-gpus", 1)])
def test_a_wrong_key_is_refused_whatever_is_asked_for(flags, run_python, tmp_path):
    words = ("--rows", "mask_resnest50", *flags, "--output", tmp_path / "out", "SOLVER.BASE_LT", 1)
    assert_one_line_error(run_python("tools/reproduce.py", *words), "unknown key SOLVER.BASE_LT")


def test_a_script_may_be_for_a_machine_with_other_devices(tmp_path):
    reproduction(tmp_path, overrides=("MODEL.DEVICE", "cuda", "SEED", "1")).check_overrides(
        ["mask_resnest50"]
    )


@pytest.mark.parametrize("statuses, ends", [((2, 2), 2), ((2, 1), 1), ((2, 0), 1), ((0, 0), 0)])
def test_the_status_is_that_of_refusal_only_where_all_rows_are_refused(statuses, ends, tmp_path):
    names = ["mask_resnest50", "mask_resnet50"]
    status = f"next(s for n, s in {list(zip(names, statuses))} if n in ' '.join(sys.argv))"
    rows = script(tmp_path, f"import sys\nstatus = {status}\nif status: sys.exit(status)\n{EVALUATION}")
    assert runpy.run_path(str(ROOT / "tools/reproduce.py"))["run"](rows, names) == ends


@pytest.mark.parametrize("content", ["{", "{}", '[{"mine": 1}]', "[3]"])
def test_results_of_something_else_are_left_alone(content, tmp_path):
    (tmp_path / "results.json").write_text(content)
    with pytest.raises(UserError, match=r"results\.json"):
        reproduction(tmp_path).check(["mask_resnest50"])
    (tmp_path / "results.json").write_text('[{"row": "mask_resnet50", "results": {}}]')
    reproduction(tmp_path).check(["mask_resnest50"])


def test_command_names_a_wrong_row(run_python):
    assert_one_line_error(
        run_python("tools/reproduce.py", "--rows", "x"), "no row 'x'; there are faster_resnet50"
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
from resnest_d2.command_line import one_line_errors
from resnest_d2.engine.reproduce import Reproduction
rows = Reproduction(sys.argv[1], sys.argv[2], 1)
with one_line_errors(), rows.locked():
    rows.run("mask_resnest50")
"""


@pytest.mark.parametrize(
    "number, everyone, status",
    [(signal.SIGTERM, False, 143), (signal.SIGINT, True, 130), (signal.SIGKILL, False, -signal.SIGKILL)],
)
def test_training_is_let_finish_its_checkpoint_when_reproduction_is_stopped(
    number, everyone, status, tmp_path
):
    (tmp_path / "train.py").write_text(TRAINING)
    words = ["-c", REPRODUCE, tmp_path / "train.py", tmp_path]
    process = forks.start(words, tmp_path / "out", tmp_path / "err", cwd=ROOT)
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
    with reproduction(tmp_path).locked():  # whoever comes next waits for the training, too
        assert (folder / "checkpoint").read_text() == str(int(signal.SIGTERM if status < 0 else number))
    for _ in range(100):
        if not kills.alive(training):
            break
        time.sleep(0.05)
    assert process.returncode == status and not kills.alive(training)
    assert (folder / "checkpoint").read_text() == str(int(signal.SIGTERM if status < 0 else number))
    assert status < 0 or said.count("; the same command continues where it left off") == 1


@pytest.mark.slow
def test_smoke_run_is_resumed_after_a_kill_and_finished_rows_are_not_run_again(few_coco, tmp_path):
    args = [sys.executable, "tools/reproduce.py", "--rows", "mask_resnest50,faster_resnet50", "--smoke"]
    args += ["--num-gpus", "1", "--output", str(tmp_path)]
    env = {**os.environ, "DETECTRON2_DATASETS": str(few_coco)}
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


def test_rows_without_a_released_model_are_left_out_of_an_evaluation_and_named(run_python, tmp_path):
    """Unless they are asked for by name."""
    words = ("tools/reproduce.py", "--eval-only", "--dry-run", "--output", tmp_path)
    result = run_python(*words, "--ablation")
    assert result.returncode == 0 and result.stdout.count("--eval-only") == 7, result.stderr
    assert "Left out, as no trained model was released: classification/resnet50d, " in result.stderr
    assert "MODEL.WEIGHTS resnest://resnest50_fast_4s2x40d" in result.stdout
    result = run_python(*words, "--rows", "classification/resnet50d")
    assert_one_line_error(result, "no trained model has been published for classification/resnet50d")
    with pytest.raises(UserError, match="no trained model was released for classification/resnet50d"):
        released(["classification/resnet50d"])


def test_recipes_of_classification_bring_their_own_number_of_processes(tmp_path):
    rows = reproduction(tmp_path, num_gpus=2)
    assert "SOLVER.REFERENCE_WORLD_SIZE" not in rows.command("classification/resnest50")
    assert "instead of 64" in rows.scaling(["classification/resnest50"])
    assert rows.scaling(["classification/resnest14", "mask_resnest50"]).count("instead of 8") == 1


def test_an_accuracy_that_is_no_number_is_refused_not_subtracted(tmp_path):
    rows = reproduction(tmp_path)
    folder = tmp_path / "classification/resnest50"
    folder.mkdir(parents=True)
    (folder / "results.json").write_text(json.dumps({"results": {"classification": {"top1": "81"}}}))
    with pytest.raises(UserError, match="top1"):
        rows.finished("classification/resnest50")
