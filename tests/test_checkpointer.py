"""Checkpoints that appear complete or not at all, and the choice among damaged ones."""

import math
import os
import re
import subprocess
import sys
import zipfile
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from support import ROOT
from torch import nn

from resnest_d2 import UserError
from resnest_d2.checkpoint import Checkpointer
from resnest_d2.checkpoint.read import damage
from resnest_d2.engine.hooks import PeriodicCheckpointer


def model(value):
    net = nn.Linear(50, 50)
    nn.init.constant_(net.weight, value)
    return net


def saved(folder, *iterations, **options):
    """Checkpoints whose weights are their iterations."""
    for i in iterations:
        Checkpointer(model(float(i)), str(folder), **options).save(f"model_{i:07d}", iteration=i)
    return Checkpointer(model(-1.0), str(folder))


def resumed(checkpointer):
    checkpointer.resume_or_load("", resume=True)
    return checkpointer.model.weight[0, 0].item()


def test_the_newest_is_resumed_from(tmp_path):
    assert resumed(saved(tmp_path, 4, 9, 14)) == 14
    # Whatever the number says: of one that was written last, or that the user has noted.
    assert resumed(saved(tmp_path, 2)) == 2
    (tmp_path / "last_checkpoint").write_text("model_0000009.pth\n")
    assert resumed(Checkpointer(model(-1.0), str(tmp_path))) == 9
    (tmp_path / "last_checkpoint").write_text(f"{tmp_path}/model_0000004.pth")
    assert resumed(Checkpointer(model(-1.0), str(tmp_path))) == 4


def test_the_newest_is_that_of_the_highest_iteration_whatever_the_clock_said(tmp_path):
    checkpointer = saved(tmp_path, 4, 9, 14)
    (tmp_path / "last_checkpoint").unlink()
    for age, iteration in enumerate((9, 4, 14)):
        os.utime(tmp_path / f"model_{iteration:07d}.pth", (10**9 - age, 10**9 - age))
    assert resumed(checkpointer) == 14
    Checkpointer(model(12.0), str(tmp_path)).save("model_final", iteration=12)  # of a shorter schedule
    (tmp_path / "last_checkpoint").unlink()
    assert resumed(checkpointer) == 14 and not checkpointer.is_newest("model_final")
    Checkpointer(model(14.5), str(tmp_path)).save("model_final", iteration=14)
    (tmp_path / "last_checkpoint").unlink()
    assert resumed(checkpointer) == 14.5 and checkpointer.is_newest("model_final")


def test_old_ones_are_pruned_by_iteration_whatever_the_clock_says(tmp_path):
    for iteration in (1, 2, 3, 4):
        saved(tmp_path, iteration, keep=2)
        os.utime(tmp_path / f"model_{iteration:07d}.pth", (10**9 - iteration, 10**9 - iteration))
    assert {p.name for p in tmp_path.glob("*.pth")} == {"model_0000003.pth", "model_0000004.pth"}


def test_going_back_prunes_neither_what_is_written_nor_what_lies_ahead(tmp_path):
    saved(tmp_path, 1, 2, 8, 9)
    saved(tmp_path, 3, keep=1)
    assert {p.name for p in tmp_path.glob("*.pth")} == {f"model_000000{i}.pth" for i in (3, 8, 9)}
    assert resumed(Checkpointer(model(-1.0), str(tmp_path))) == 3


def test_going_back_leaves_the_users_own_files_where_they_are(tmp_path):
    saved(tmp_path, 1, 2)
    torch.save({"model": model(1.0).state_dict()}, tmp_path / "model_best.pth")
    (tmp_path / "model_final.pth").write_bytes(b"cut")
    later = Checkpointer(model(-1.0), str(tmp_path)).later_than(1)
    assert {path.name for path in later} == {"model_0000002.pth", "model_final.pth"}


def foreign(**content):
    """Weights beside a checkpoint of the run."""

    def write(path):
        torch.save({"model": model(1.0).state_dict(), **content}, path)

    return write


@pytest.mark.parametrize(
    "write, why",
    [
        (foreign(), "it holds no 'iteration'; is it a file of weights"),
        (foreign(iteration=9), "it is of iteration 9"),
        (foreign(iteration="50"), "its iteration is '50'"),
        (lambda path: torch.save([1], path), "it holds no 'model'"),
        (foreign(iteration=10**30), "its iteration is none of a training"),
        (foreign(iteration=-(10**5000)), "its iteration is none of a training"),
        (foreign(iteration=50, trainer={"iteration": 10**30}), "its iteration is none of a training"),
        (foreign(iteration=50.0), "its iteration is a float"),
    ],
)
def test_an_intact_file_that_no_training_wrote_is_not_taken_for_the_newest(write, why, tmp_path):
    checkpointer = saved(tmp_path, 4)
    (tmp_path / "last_checkpoint").unlink()
    write(tmp_path / "model_0000050.pth")
    with pytest.raises(UserError, match=rf"model_0000050.pth is no checkpoint .*({why}).*; move it away"):
        resumed(checkpointer)
    assert checkpointer.model.weight[0, 0] == -1
    (tmp_path / "last_checkpoint").write_text("model_0000004.pth")
    assert resumed(checkpointer) == 4


def test_a_checkpoint_without_the_state_that_is_resumed_is_not_taken(tmp_path):
    saved(tmp_path, 4)
    checkpointer = Checkpointer(model(-1.0), str(tmp_path), trainer=model(0.0))
    with pytest.raises(UserError, match=r"model_0000004.pth is no checkpoint .*it holds no 'trainer'"):
        resumed(checkpointer)


def test_the_checkpoint_of_another_run_is_not_gone_on_with(tmp_path):
    saved(tmp_path, 3)  # of a version that named no run
    saved(tmp_path, 4, 5, run="a")
    checkpointer = Checkpointer(model(-1.0), str(tmp_path), run="b")
    assert resumed(checkpointer) == 5
    checkpointer.save("model_0000006", iteration=6)  # the run goes on, whatever the process is called
    assert resumed(Checkpointer(model(-1.0), str(tmp_path), run="c")) == 5
    saved(tmp_path, 9, run="d")
    with pytest.raises(UserError, match=r"model_0000009.pth .*it is of another run than model_0000006.pth\)"):
        resumed(checkpointer)
    (tmp_path / "last_checkpoint").write_text("model_0000003.pth")
    assert resumed(checkpointer) == 3


def truncate(path):
    path.write_bytes(path.read_bytes()[:-700])


def flip(path):
    """One bit of a tensor."""
    with zipfile.ZipFile(path) as archive:
        entry = next(info for info in archive.infolist() if "data/0" in info.filename)
    content = bytearray(path.read_bytes())
    content[entry.header_offset + 3000] ^= 1
    path.write_bytes(bytes(content))


def empty(path):
    path.write_bytes(b"")


def misname(path):
    """One bit of a part's name."""
    content = bytearray(path.read_bytes())
    content[content.find(b"data.pkl")] ^= 0x80
    path.write_bytes(bytes(content))


def misname_in_the_directory(path):
    content = bytearray(path.read_bytes())
    content[content.rfind(b"data.pkl")] ^= 0x80
    path.write_bytes(bytes(content))


def instead(make):
    def spoil(path):
        path.unlink()
        make(path)

    return spoil


def resaved(trainer=None, **tensors):
    """With other tensors, and a state of the training."""

    def change(path):
        content = torch.load(path, weights_only=True)
        content["model"].update(tensors)
        torch.save({**content, "trainer": trainer}, path)

    return change


LATER = r"is damaged: trainer\.\S*\."


@pytest.mark.parametrize(
    "spoil, why",
    [
        *(
            (truncate, "is damaged: it ends early"),
            (flip, r"is damaged or no weight file \(Bad CRC-32 for file 'archive/data/0'\)"),
            (empty, "is empty"),
            (instead(Path.mkdir), "is no regular file"),
        ),
        *((misname, "is damaged"), (misname_in_the_directory, "is damaged")),
        (instead(os.mkfifo), "is no regular file"),
        (instead(lambda path: path.symlink_to("nowhere")), r"is unreadable \(No such file"),
        (
            lambda path: torch.save({"model": Checkpointer}, path),
            r"is refused: its pickle would run code \(resnest_d2.checkpoint",
        ),
        (resaved(bias=torch.full((50,), torch.nan)), "is damaged: bias holds numbers that are not finite"),
        (resaved(weight=torch.full((50, 50), -1e30)), "is damaged: weight holds -1e[+]30"),
        (
            resaved({"_trainer": {"optimizer": {"state": {0: {"m": torch.tensor([1, torch.inf])}}}}}),
            LATER + "m",
        ),
        (resaved({"_trainer": {"optimizer": {"param_groups": [{"lr": math.nan}]}}}), LATER + "lr"),
        (resaved({"hooks": {"LRScheduler": {"base_lrs": [math.inf]}}}), LATER + "base_lrs.0"),
    ],
)
def test_a_damaged_one_is_skipped_and_named(spoil, why, tmp_path, caplog):
    checkpointer = saved(tmp_path, 4, 9)
    spoil(tmp_path / "model_0000009.pth")
    with caplog.at_level("WARNING"):
        assert resumed(checkpointer) == 4
    assert re.search(f"Skipping {tmp_path}/model_0000009.pth: it ({why})", caplog.text)


@pytest.mark.parametrize(
    "make",
    [
        Path.mkdir,
        os.mkfifo,
        lambda path: path.symlink_to("nowhere"),
        lambda path: path.write_bytes(bytes(range(256))),
    ],
)
def test_a_note_that_cannot_be_read_is_passed_over(make, tmp_path):
    checkpointer = saved(tmp_path, 4, 9)
    instead(make)(tmp_path / "last_checkpoint")
    assert resumed(checkpointer) == 9


def test_what_cannot_be_removed_ends_no_training(tmp_path, caplog):
    for name in (".model_0000004.pth-abc", "model_0000001.pth"):
        (tmp_path / name).mkdir()
    saved(tmp_path, 2, 3, keep=1)
    assert "Cannot remove" in caplog.text and (tmp_path / "model_0000003.pth").is_file()


def test_a_flipped_bit_is_one_that_torch_does_not_notice(tmp_path):
    saved(tmp_path, 9)
    flip(tmp_path / "model_0000009.pth")
    assert (torch.load(tmp_path / "model_0000009.pth", weights_only=True)["model"]["weight"] != 9).any()
    assert damage(tmp_path / "model_0000009.pth").startswith("is damaged")


def test_training_never_starts_from_scratch_where_all_are_damaged(tmp_path):
    checkpointer = saved(tmp_path, 4, 9)
    truncate(tmp_path / "model_0000004.pth")
    empty(tmp_path / "model_0000009.pth")
    with pytest.raises(
        UserError,
        match=r"no checkpoint in .* can be read: model_0000009.pth is empty, model_0000004.pth is dam",
    ):
        resumed(checkpointer)


def test_a_note_of_one_that_was_never_written_is_no_obstacle(tmp_path):
    checkpointer = saved(tmp_path, 4, 9)
    (tmp_path / "last_checkpoint").write_text("model_0000014.pth")
    assert resumed(checkpointer) == 9
    (tmp_path / "last_checkpoint").unlink()
    assert resumed(checkpointer) == 9


def test_a_note_of_nothing_is_said_when_a_run_goes_on_and_not_before(tmp_path, caplog):
    """Before, there is no log yet."""
    checkpointer = saved(tmp_path, 4, 9)
    (tmp_path / "last_checkpoint").write_text("model_0000004")
    assert checkpointer.has_checkpoint() and checkpointer.later_than(4) and not caplog.records
    assert resumed(checkpointer) == 9
    assert (
        caplog.messages.count(
            f"--resume continues from model_0000009.pth: {tmp_path}/last_checkpoint names 'model_0000004', which is "
            "not there"
        )
        == 1
    )


@pytest.mark.parametrize("iteration", (5, 9))
def test_a_final_one_that_is_made_up_for_is_of_the_iteration_of_its_weights(iteration, tmp_path):
    saved(tmp_path, iteration)
    trainer = SimpleNamespace(start_iter=iteration + 1, max_iter=6, iter=6)
    trainer.state_dict = lambda: {"iteration": trainer.iter}
    hook = PeriodicCheckpointer(Checkpointer(model(1.0), str(tmp_path), trainer=trainer), 5)
    hook.trainer = trainer
    hook.before_train()
    hook.after_train()
    content = torch.load(tmp_path / "model_final.pth", weights_only=True)
    assert content["iteration"] == content["trainer"]["iteration"] == iteration
    assert trainer.iter == 6  # what the other hooks take for the end


def test_old_ones_are_pruned_but_not_the_final_one(tmp_path):
    saved(tmp_path, 1)
    Checkpointer(model(0), str(tmp_path)).save("model_final")
    saved(tmp_path, 2, 3, 4, 5, keep=2)
    assert {p.name for p in tmp_path.glob("*.pth")} == {
        "model_0000004.pth",
        "model_0000005.pth",
        "model_final.pth",
    }


def test_a_failed_write_leaves_what_was_there(tmp_path):
    checkpointer = saved(tmp_path, 4)

    class Unwritable:
        def state_dict(self):
            return {"file": open(__file__)}  # cannot be pickled

    checkpointer.add_checkpointable("x", Unwritable())
    before = (tmp_path / "model_0000004.pth").read_bytes()
    with pytest.raises(TypeError):
        checkpointer.save("model_0000004")
    assert (tmp_path / "model_0000004.pth").read_bytes() == before
    assert {p.name for p in tmp_path.iterdir()} == {"last_checkpoint", "model_0000004.pth"}


@pytest.mark.parametrize("value", [1.7e38, math.nan])
def test_weights_that_training_has_spoilt_are_not_written(value, tmp_path):
    checkpointer = saved(tmp_path, 4)
    checkpointer.resume_or_load("", resume=False)  # as training from scratch begins
    nn.init.constant_(checkpointer.model.weight, value)
    with pytest.raises(
        UserError, match=r"model_final.pth is not written: weight holds .*; lower SOLVER.BASE_LR"
    ):
        checkpointer.save("model_final", iteration=5)
    assert {p.name for p in tmp_path.iterdir()} == {"model_0000004.pth", "last_checkpoint"}
    assert (tmp_path / "last_checkpoint").read_text() == "model_0000004.pth"
    Checkpointer(checkpointer.model, str(tmp_path)).save("x")  # what a model has from the start is its own


def test_what_a_killed_process_left_is_cleared_away(tmp_path):
    (tmp_path / ".model_0000004.pth-abc").write_bytes(b"half")
    saved(tmp_path, 9)
    assert {p.name for p in tmp_path.iterdir()} == {"last_checkpoint", "model_0000009.pth"}


def test_the_stock_checkpointer_reads_them(tmp_path):
    saved(tmp_path, 4)
    code = (
        "import sys, torch; from torch import nn; from detectron2.checkpoint import DetectionCheckpointer\n"
        "net = nn.Linear(50, 50); DetectionCheckpointer(net, sys.argv[1]).resume_or_load('', resume=True)\n"
        "assert net.weight[0, 0] == 4"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, tmp_path], cwd=ROOT, env=os.environ, capture_output=True
    )
    assert done.returncode == 0, done.stderr
