"""Checkpoints that appear complete or not at all, and the choice among damaged ones."""

import os
import subprocess
import sys
import zipfile

import pytest
import torch
from conftest import ROOT
from torch import nn

from resnest_d2 import UserError
from resnest_d2.checkpoint import Checkpointer
from resnest_d2.checkpoint.checkpointer import damage


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
    # Whatever the number says: a new training in a folder of a longer one.
    assert resumed(saved(tmp_path, 2)) == 2


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


@pytest.mark.parametrize("spoil, why", [(truncate, "truncated"), (flip, "bad checksum of"), (empty, "empty")])
def test_a_damaged_one_is_skipped_and_named(spoil, why, tmp_path, caplog):
    checkpointer = saved(tmp_path, 4, 9)
    spoil(tmp_path / "model_0000009.pth")
    with caplog.at_level("WARNING"):
        assert resumed(checkpointer) == 4
    assert f"Skipping {tmp_path}/model_0000009.pth: {why}" in caplog.text


def test_a_flipped_bit_is_one_that_torch_does_not_notice(tmp_path):
    saved(tmp_path, 9)
    flip(tmp_path / "model_0000009.pth")
    assert (torch.load(tmp_path / "model_0000009.pth", weights_only=True)["model"]["weight"] != 9).any()
    assert damage(tmp_path / "model_0000009.pth").startswith("bad checksum of ")


def test_training_never_starts_from_scratch_where_all_are_damaged(tmp_path):
    checkpointer = saved(tmp_path, 4, 9)
    truncate(tmp_path / "model_0000004.pth")
    empty(tmp_path / "model_0000009.pth")
    with pytest.raises(
        UserError, match=r"no checkpoint in .* can be read: model_0000009.pth \(empty\), model_0000004"
    ):
        resumed(checkpointer)


def test_a_note_of_one_that_was_never_written_is_no_obstacle(tmp_path):
    checkpointer = saved(tmp_path, 4, 9)
    (tmp_path / "last_checkpoint").write_text("model_0000014.pth")
    assert resumed(checkpointer) == 9
    (tmp_path / "last_checkpoint").unlink()
    assert resumed(checkpointer) == 9


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
