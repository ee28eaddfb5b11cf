"""One training at a time in a folder, and each apart from the runs before it."""

import json
import multiprocessing
import os
import signal
import socket
import tempfile
import time
from argparse import Namespace
from pathlib import Path

import pytest
import torch
from robust import kills

from resnest_d2 import UserError, model_zoo
from resnest_d2.checkpoint import Checkpointer
from resnest_d2.engine import cli, folder
from resnest_d2.engine.folder import leave_branch, own_folder, restarted

OLD = {
    *("model_0000003.pth", "model_final.pth", "last_checkpoint", "metrics.json", "results.json"),
    *("events.out.tfevents.1.host.2.0", "not_finite_0000001_0.pth", "inference", "inference_TTA"),
}


def config(output, weights=""):
    cfg = model_zoo.get_config("quickstart")
    cfg.merge_from_list(["OUTPUT_DIR", str(output), "MODEL.WEIGHTS", str(weights)])
    cfg.freeze()
    return cfg


def arguments(resume=False, eval_only=False):
    return Namespace(resume=resume, eval_only=eval_only)


def old_run(output):
    """A folder with all that a run writes; each file holds its name."""
    for name in (*OLD, "config.yaml", "seed", "log.txt", "mine.txt"):
        (output / name).parent.mkdir(exist_ok=True, parents=True)
        if name.startswith("inference"):
            (output / name).mkdir()
        else:
            (output / name).write_text(name)
    return output


def names(path):
    return {entry.name for entry in path.iterdir()}


def status_of(function, *arguments):
    """Exit status of a process that calls it."""
    process = multiprocessing.get_context("fork").Process(target=function, args=arguments)
    process.start()
    process.join(30)
    return process.exitcode


def test_a_new_run_keeps_an_old_one_apart_and_says_so(tmp_path):
    output = old_run(tmp_path / "out")
    with own_folder(config(output), arguments()) as own:
        assert names(output) == {*("config.yaml", "seed", "log.txt", "mine.txt", ".lock", "previous_1")}
        assert names(output / "previous_1") == {*OLD, "config.yaml", "seed"}
        assert (output / "previous_1/model_final.pth").read_text() == "model_final.pth"
        assert own.notes == [
            f"{output} held an earlier run, now {output}/previous_1; with that as OUTPUT_DIR, --resume "
            "continues it"
        ]
    (output / "model_0000000.pth").write_text("")
    assert (output / "model_0000000.pth").write_text("second")
    with own_folder(config(output), arguments()):
        assert (output / "previous_2/model_0000000.pth").read_text() == "second"
        assert names(output / "previous_1") == {*OLD, "config.yaml", "seed"}


def test_an_old_run_that_cannot_be_moved_is_left_where_it_is():
    with tempfile.TemporaryDirectory() as name:  # which another user may enter
        os.chmod(name, 0o777)
        assert status_of(meet_read_only_predictions, Path(name)) == 0


def meet_read_only_predictions(folder):
    if os.geteuid() == 0:  # who may write everywhere
        os.setuid(65534)
    output = old_run(folder / "out")
    (output / "inference").chmod(0o555)
    before = {*names(output), ".lock"}
    with pytest.raises(
        UserError, match=r"out/inference of an earlier run is read-only .*Nothing has been moved"
    ):
        with own_folder(config(output), arguments()):
            pass
    assert names(output) == before
    with own_folder(config(output), arguments(resume=True)):
        assert names(output) == before
    (output / "inference").chmod(0o755)
    with own_folder(config(output), arguments()):
        assert names(output / "previous_1") == {*OLD, "config.yaml", "seed"}


@pytest.mark.parametrize("options", [{"resume": True}, {"eval_only": True}])
def test_resuming_and_evaluation_move_nothing(options, tmp_path):
    output = old_run(tmp_path / "out")
    before = names(output)
    with own_folder(config(output), arguments(**options)) as own:
        assert names(output) - {".lock"} == before and own.notes == []


def test_what_a_run_leaves_that_failed_at_once_is_no_run(tmp_path):
    for name in ("metrics.json", "log.txt"):
        (tmp_path / name).write_text("")
    with own_folder(config(tmp_path), arguments()) as own:
        assert names(tmp_path) == {"metrics.json", "log.txt", ".lock"} and own.notes == []


def test_links_lead_where_they_led(tmp_path):
    output = old_run(tmp_path / "out")
    (tmp_path / "far.pth").write_text("far")
    (output / "model_0000009.pth").symlink_to("../far.pth")
    (output / "model_0000010.pth").symlink_to("model_0000003.pth")
    with own_folder(config(output), arguments()):
        assert (output / "previous_1/model_0000009.pth").read_text() == "far"
        assert (output / "previous_1/model_0000010.pth").read_text() == "model_0000003.pth"
    assert names(output) & {"model_0000009.pth", "model_0000010.pth"} == set()


def test_weights_in_the_folder_are_followed(tmp_path):
    output = old_run(tmp_path / "out")
    cfg = config(output, output / "model_final.pth")
    with own_folder(cfg, arguments()) as own:
        assert own.weights == str(output / "previous_1/model_final.pth")
        assert own.notes[1] == (
            f"MODEL.WEIGHTS: {output}/model_final.pth is of an earlier run, now {output}/previous_1/model_final.pth"
        )
    # The same command again, as torchrun or a user gives it before there is a checkpoint.
    cfg = config(output, output / "model_final.pth")
    (output / "metrics.json").write_text("{}\n")
    with own_folder(cfg, arguments()) as own:
        assert own.weights == str(output / "previous_1/model_final.pth")
    # With checkpoints of its own, the folder's names are theirs.
    (output / "model_0000001.pth").write_text("own")
    cfg = config(output, output / "model_final.pth")
    with own_folder(cfg, arguments(resume=True)) as own:
        assert own.weights == str(output / "model_final.pth")


def kill_at(output, count):
    """Be killed at the so-manieth of the changes that moving makes."""
    left = [count]

    def limited(function):
        def call(*arguments, **keywords):
            left[0] -= 1
            if left[0] < 0:
                os.kill(os.getpid(), signal.SIGKILL)
            return function(*arguments, **keywords)

        return call

    for name in ("rename", "mkdir"):
        setattr(os, name, limited(getattr(os, name)))
    with own_folder(config(output), arguments()):
        pass


@pytest.mark.parametrize("resume", [False, True])
def test_killed_at_any_moment_the_next_start_finishes_the_move(resume, tmp_path):
    """Neither takes the old checkpoints for its own, also not on --resume, which is of the new run."""
    deaths, count = 0, 2  # the folder, and that for the old run
    while True:
        output = old_run(tmp_path / f"out{count}")
        if status_of(kill_at, output, count) == 0:
            break
        deaths += 1
        assert (output / "previous_1.unfinished").exists()
        with own_folder(config(output), arguments(resume=resume)) as own:
            assert names(output) & OLD == set() and "held an earlier run" in own.notes[0]
            assert names(output / "previous_1") == {*OLD, "config.yaml", "seed"}
            assert "previous_2" not in names(output)
        count += 1
    assert deaths > len(OLD)


def test_an_evaluation_between_a_kill_and_the_next_start_is_kept_too(tmp_path):
    output = old_run(tmp_path / "out")
    assert status_of(kill_at, output, len(OLD)) == -signal.SIGKILL
    for name in OLD:
        if not (output / name).exists() and not name.startswith("inference"):
            (output / name).write_text("later")
    with own_folder(config(output), arguments()):
        assert {path.read_text() for path in (output / "previous_2").glob("*.pth")} == {"later"}
        assert (output / "previous_1/model_final.pth").read_text() == "model_final.pth"
        assert names(output) & OLD == set()


def test_resuming_where_only_an_earlier_run_has_checkpoints_says_where_they_are(tmp_path):
    output = old_run(tmp_path / "out")
    with own_folder(config(output), arguments()):
        pass
    with own_folder(config(output), arguments(resume=True)) as own:
        assert own.notes == [
            f"--resume: no checkpoint in {output}, training starts from scratch; the previous run is in "
            f"{output}/previous_1"
        ]


def test_resuming_where_there_is_no_checkpoint_says_so_and_keeps_what_is_left_apart(tmp_path):
    """They were moved away, or OUTPUT_DIR is a slip."""
    output = old_run(tmp_path / "out")
    for checkpoint in output.glob("model_*.pth"):
        checkpoint.unlink()
    left = names(output) & OLD
    with own_folder(config(output), arguments(resume=True)) as own:
        assert own.notes == [
            f"{output} held an earlier run, now {output}/previous_1",
            f"--resume: no checkpoint in {output}, training starts from scratch",
        ]
        assert names(output / "previous_1") == {*left, "config.yaml", "seed"}
    with own_folder(config(tmp_path / "slip"), arguments(resume=True)) as own:
        assert own.notes == [f"--resume: no checkpoint in {tmp_path}/slip, training starts from scratch"]


def test_a_run_that_goes_back_leaves_the_later_checkpoints_apart(tmp_path):
    for iteration in (3, 7, 11):
        Checkpointer(torch.nn.Linear(1, 1), str(tmp_path)).save(f"model_{iteration:07d}", iteration=iteration)
    Checkpointer(torch.nn.Linear(1, 1), str(tmp_path)).save("model_final", iteration=11)
    checkpointer = Checkpointer(torch.nn.Linear(1, 1), str(tmp_path))
    assert leave_branch(checkpointer, 11) == []
    assert leave_branch(checkpointer, 7) == [
        f"{tmp_path}: the run resumes before model_final.pth, model_0000011.pth, now in {tmp_path}/previous_1"
    ]
    assert names(tmp_path) == {"model_0000003.pth", "model_0000007.pth", "last_checkpoint", "previous_1"}
    assert names(tmp_path / "previous_1") == {"model_0000011.pth", "model_final.pth"}


def enter(output, resume=False):
    try:
        with own_folder(config(output), arguments(resume)):
            os._exit(0)
    except UserError as e:
        Path(output, "said").write_text(str(e))
        os._exit(2)


def test_a_run_that_goes_on_waits_for_the_end_of_its_predecessor(tmp_path):
    with own_folder(config(tmp_path), arguments()):
        process = multiprocessing.get_context("fork").Process(target=enter, args=(tmp_path, True))
        process.start()
        time.sleep(0.5)
        assert process.is_alive()
    process.join(30)
    assert process.exitcode == 0


def hold_and_be_killed(output):
    with own_folder(config(output), arguments()):
        child = os.fork()
        if child == 0:  # as a loader's worker, it outlives the process for a while
            time.sleep(60)
            os._exit(0)
        (output / "child").write_text(str(child))
        os.kill(os.getpid(), signal.SIGKILL)


def test_a_killed_training_leaves_no_lock_not_even_in_its_children(tmp_path):
    process = os.fork()
    if process == 0:
        hold_and_be_killed(tmp_path)
    assert os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) == -signal.SIGKILL
    child = int((tmp_path / "child").read_text())
    try:
        assert (tmp_path / ".lock").exists() and kills.alive(child)
        assert status_of(enter, tmp_path) == 0
    finally:
        os.kill(child, signal.SIGKILL)


@pytest.mark.parametrize("resume", [False, True])
def test_an_evaluation_beside_a_training_writes_to_a_folder_of_its_own(resume, tmp_path):
    content = {"model": {}, "iteration": 4, "trainer": {}}
    torch.save(content, tmp_path / "model_0000004.pth")
    with own_folder(config(tmp_path), arguments(resume=True)):
        before = names(tmp_path)
        assert status_of(evaluate_beside, tmp_path, resume) == 0
        assert names(tmp_path) == {*before, "evaluation"}
    assert status_of(evaluate_alone, tmp_path) == 0


def evaluate_beside(folder, resume):
    cfg, args = config(folder, folder / "a.pth"), arguments(resume=resume, eval_only=True)
    with own_folder(cfg, args) as own:
        assert own.output_dir == str(folder / "evaluation") and not own.resume
        assert own.weights == str(folder / ("model_0000004.pth" if resume else "a.pth"))
        assert own.notes == [
            f"a training runs in {folder} (process {os.getppid()} on {socket.gethostname()} since "
            f"{json.loads((folder / '.lock').read_text())['since']}): this evaluation writes to "
            f"{folder}/evaluation"
        ]


def evaluate_alone(folder):
    cfg = config(folder)
    with own_folder(cfg, arguments(eval_only=True)) as own:
        assert own.notes == [] and own.output_dir == str(folder)


@pytest.fixture
def torchrun(monkeypatch):
    """Makes this process one that torchrun has started."""

    def start(run, restarts):
        monkeypatch.setenv("TORCHELASTIC_RUN_ID", run)
        monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", str(restarts))

    return start


def test_a_restart_by_torchrun_resumes_what_it_had_begun_and_nothing_else(torchrun, tmp_path):
    output = old_run(tmp_path / "out")
    torchrun("first", 0)
    assert not restarted(output)
    torchrun("first", 1)  # it died before it had come to the folder
    assert not restarted(output)
    torchrun("first", 0)
    with own_folder(config(output), arguments()):
        assert names(output) & OLD == set()
    torchrun("first", 1)
    assert restarted(output)
    torchrun("second", 1)
    assert not restarted(output)
    torchrun("first", 0)
    assert not restarted(output)


def test_runs_of_torchruns_without_a_name_are_told_apart_by_the_launcher(torchrun, tmp_path):
    torchrun("none", 0)
    with own_folder(config(tmp_path), arguments()):
        pass
    torchrun("none", 1)
    assert restarted(tmp_path)
    holder = json.loads((tmp_path / ".lock").read_text())
    (tmp_path / ".lock").write_text(json.dumps({**holder, "torchrun": holder["torchrun"] + "0"}))
    assert not restarted(tmp_path)


def test_an_evaluation_leaves_the_seed_of_a_training_alone(tmp_path):
    (tmp_path / "seed").write_text("5\n")
    cfg = config(tmp_path)
    cfg.defrost()
    cfg.SEED = -1
    assert cli._choose_seed(cfg, arguments(eval_only=True)) >= 0
    assert (tmp_path / "seed").read_text() == "5\n"
    assert cli._choose_seed(cfg, arguments(resume=True)) == 5


def test_a_file_system_that_cannot_lock_is_no_obstacle(tmp_path, monkeypatch):
    def refuse(*arguments):
        raise OSError(37, "No locks available")

    monkeypatch.setattr(folder.fcntl, "lockf", refuse)
    with own_folder(config(tmp_path), arguments()):
        assert (tmp_path / ".lock").exists()


def meet(rank, output, files):
    """One of two processes that go into a folder."""
    torch.distributed.init_process_group("gloo", f"file://{files}/meeting", rank=rank, world_size=2)
    cfg = config(output, Path(output, "model_final.pth"))
    try:
        with own_folder(cfg, arguments()) as own:
            seen = sorted(names(output))  # once the main process has moved everything
            Path(files, f"seen{rank}").write_text(json.dumps([seen, own.weights, own.notes]))
            torch.distributed.barrier()
    except UserError as e:
        Path(files, f"said{rank}").write_text(str(e))
        os._exit(2)


def two(output, files):
    """Exit statuses of two processes that go into a folder together."""
    files.mkdir()
    fork = multiprocessing.get_context("fork")
    processes = [fork.Process(target=meet, args=(rank, output, files)) for rank in (0, 1)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    return [process.exitcode for process in processes]


def test_the_processes_of_a_run_move_together_and_are_refused_together(tmp_path):
    output = old_run(tmp_path / "out")
    assert two(output, tmp_path / "first") == [0, 0]
    seen = [(tmp_path / f"first/seen{rank}").read_text() for rank in (0, 1)]
    assert seen[0] == seen[1] and "previous_1/model_final.pth" in seen[1] and "model_0000003" not in seen[1]
    with own_folder(config(output), arguments()):
        assert two(output, tmp_path / "second") == [2, 2]
    assert "in use by another training" in (tmp_path / "second/said0").read_text()
    assert not (tmp_path / "second/said1").exists()  # one line
