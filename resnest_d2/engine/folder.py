"""The folder of a run: one training at a time, kept apart from earlier runs."""

from __future__ import annotations

import datetime
import errno
import fcntl
import json
import os
import re
import shutil
import socket
import stat
import time
from argparse import Namespace
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any, Dict, Iterator, List, NamedTuple, Optional, Tuple

import torch.distributed as dist
from detectron2.config import CfgNode
from torch import nn

from ..checkpoint import Checkpointer
from ..errors import UserError
from ..files import read_json, writing
from ..processes import found_by_main

#: File that is locked while a training runs; identifies the process.
LOCK = ".lock"
#: Folder in OUTPUT_DIR for evaluations while a training runs there.
BESIDE = "evaluation"
# Files that a run writes and another run must not mistake for its own. log.txt is appended to.
_OWN = re.compile(
    r"model_.*\.pth|last_checkpoint|metrics\.json|results\.json|events\.out\.tfevents\..*|inference(_TTA)?"
    r"|not_finite_.*\.pth|backbone\.yaml|tracker\.json"
)
# Files needed to resume an earlier run. The new run rewrites them, and config.yaml may be its --config-file.
_ALSO_NEEDED = ("config.yaml", "seed")
# Seconds that a resumed run waits for its predecessor to end, which may be writing a last checkpoint.
_PATIENCE = 10
_PREVIOUS = re.compile(r"previous_(\d+)(\.unfinished)?")


class Own(NamedTuple):
    """Facts that a run learns when it takes its folder, the same in all processes.

    Attributes:
        output_dir: folder that the run writes to.
        weights: MODEL.WEIGHTS, or the file's new place if it was moved.
        resume: resume from the newest checkpoint in ``output_dir``.
        notes: notes for the user, one per line.
    """

    output_dir: str
    weights: str
    resume: bool
    notes: List[str]


@contextmanager
def own_folder(cfg: CfgNode, args: Namespace) -> Iterator[Own]:
    """Reserve OUTPUT_DIR for this training. An evaluation uses it too, unless a training runs there.

    A training that does not resume moves what an earlier run has left to ``previous_N`` in the folder, and
    MODEL.WEIGHTS follows if it named one of the moved files. All processes wait until that is done.

    Raises:
        UserError: another training uses the folder, or it cannot be written to.
    """
    folder, resume = Path(cfg.OUTPUT_DIR), args.resume
    if args.eval_only:
        yield found_by_main(lambda: _beside_training(cfg, resume, folder))
        return
    with ExitStack() as held:

        def take() -> Own:
            lock = held.enter_context(_locked(folder, _PATIENCE if resume else 0))
            with writing(folder):
                notes = _put_aside(folder, resume and _has_checkpoint(folder))
            if resume and not _has_checkpoint(folder):
                before = [path for path in _previous(folder) if _has_checkpoint(path)]
                where = f"; the previous run is in {before[0]}" if before else ""
                notes += [f"--resume: no checkpoint in {folder}, training starts from scratch{where}"]
            weights, moved = follow_weights(cfg)
            with writing(folder / LOCK):
                os.ftruncate(lock, 0)
                os.pwrite(lock, json.dumps(_holder()).encode(), 0)
            return Own(cfg.OUTPUT_DIR, weights, resume, notes + moved)

        yield found_by_main(take)


def _beside_training(cfg: CfgNode, resume: bool, folder: Path) -> Own:
    """Give an evaluation its own folder if a training runs in this one, whose files it would replace."""
    holder, weights = _who_trains(folder), cfg.MODEL.WEIGHTS
    if not holder:
        return Own(cfg.OUTPUT_DIR, weights, resume, [])
    checkpoints = Checkpointer(nn.Identity(), str(folder))
    if resume and checkpoints.has_checkpoint():
        weights, resume = checkpoints.get_checkpoint_file(), False  # the other folder has no checkpoints
    target = folder / BESIDE
    with writing(target):
        target.mkdir(exist_ok=True)
    note = f"a training runs in {folder} ({holder}): this evaluation writes to {target}"
    return Own(str(target), weights, resume, [note])


def _who_trains(folder: Path) -> str:
    """The process that trains in a folder; empty if there is none."""
    try:
        lock = os.open(folder / LOCK, os.O_RDONLY | os.O_NONBLOCK)
    except OSError:  # there has been no training, or this user may not read the file
        return ""
    try:
        return "" if _try_lock(lock, fcntl.LOCK_SH) else _name_of_holder(lock)
    finally:
        os.close(lock)


def leave_branch(checkpointer: Checkpointer, iteration: int) -> List[str]:
    """Move the checkpoints after the iteration that a run resumes from to ``previous_N``.

    If it is killed meanwhile, the run resumes from the same checkpoint and moves the rest to the next folder.

    Returns:
        Notes for the user, one per line.
    """
    later, folder = checkpointer.later_than(iteration), Path(checkpointer.save_dir)
    if not later:
        return []
    target = folder / f"previous_{_last_number(folder) + 1}"
    with writing(folder):
        target.mkdir()
        _copy_also_needed(folder, target)
        for path in later:
            _move(path, target / path.name)
    return [f"{folder}: the run resumes before {', '.join(path.name for path in later)}, now in {target}"]


def check_appendable(path: Path) -> None:
    """Check that a file can be opened for writing later on, creating it if it does not exist.

    Raises:
        UserError: it cannot be written to, or is a FIFO, which may make its writer wait forever.
    """
    with writing(path):
        handle = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NONBLOCK, 0o666)
        is_fifo = stat.S_ISFIFO(os.fstat(handle).st_mode)
        os.close(handle)
    if is_fifo:
        raise UserError(f"cannot write {path}: it is a FIFO; remove it, or name another OUTPUT_DIR")


def restarted(folder: str) -> bool:
    """Whether the run in this folder was started by the same torchrun, which has now restarted this process.

    If it was not, the files there are those of another run.
    """
    if os.getenv("TORCHELASTIC_RESTART_COUNT", "0") in ("", "0"):
        return False
    try:
        holder = read_json(Path(folder, LOCK))
    except UserError:
        return False
    return isinstance(holder, dict) and holder.get("torchrun") == _torchrun()


def follow_weights(cfg: CfgNode) -> Tuple[str, List[str]]:
    """Find MODEL.WEIGHTS, which may have been moved if it named a file in OUTPUT_DIR.

    Only while the folder holds no checkpoint: afterwards the names there are those of the new run.

    Returns:
        Its current place, and notes for the user, one per line.
    """
    weights = cfg.MODEL.WEIGHTS
    folder, path = Path(cfg.OUTPUT_DIR), Path(weights)
    if not weights or "\0" in weights:
        return weights, []
    inside = os.path.realpath(path.parent) == os.path.realpath(folder)
    if not inside or os.path.lexists(path) or not folder.is_dir() or _has_checkpoint(folder):
        return weights, []
    for previous in _previous(folder):
        if (previous / path.name).is_file():
            moved = str(previous / path.name)
            return moved, [f"MODEL.WEIGHTS: {path} is of an earlier run, now {moved}"]
    return weights, []


def _has_checkpoint(folder: Path) -> bool:
    return Checkpointer(nn.Identity(), str(folder)).holds_any()


def _put_aside(folder: Path, resume: bool) -> List[str]:
    """Move an earlier run to ``previous_N``. If it is killed meanwhile, the next training moves the rest.

    Args:
        resume: there is no earlier run to move, except one that is half moved.

    Returns:
        Notes for the user, one per line.
    """
    names = [name for name in os.listdir(folder) if _OWN.fullmatch(name)]
    unfinished = [path for path in _previous(folder) if path.suffix]
    if not unfinished and (resume or not any(_holds_something(folder / name) for name in names)):
        return []
    target = unfinished[0] if unfinished else folder / f"previous_{_last_number(folder) + 1}.unfinished"
    # If a name is in the target already, the one in the folder was written later, by an evaluation.
    moved = [name for name in names if not os.path.lexists(target / name)]
    for name in moved:  # moving a folder writes to it, since it holds a link to its parent
        path = folder / name
        if path.is_dir() and not path.is_symlink() and not os.access(path, os.W_OK):
            raise UserError(
                f"OUTPUT_DIR: {path} of an earlier run is read-only and cannot be moved to {target.stem}; "
                "chmod it, or name another OUTPUT_DIR. Nothing has been moved"
            )
    previous = target.with_suffix("")
    remedy = (
        f"the moved part of the earlier run is in {target}, nothing is lost, and the next training moves the "
        "rest; fix this, or name another OUTPUT_DIR"
    )
    with writing(folder, remedy):
        target.mkdir(exist_ok=True)
        _copy_also_needed(folder, target)
        for name in moved:
            _move(folder / name, target / name)
        os.rename(target, previous)
    remedy = "; with that as OUTPUT_DIR, --resume continues it" if _has_checkpoint(previous) else ""
    note = f"{folder} held an earlier run, now {previous}{remedy}"
    return [note, *_put_aside(folder, resume)]


def _previous(folder: Path) -> List[Path]:
    """Folders of earlier runs, the newest first."""
    found = [(_PREVIOUS.fullmatch(name), name) for name in os.listdir(folder)]
    return [folder / name for _, name in sorted(((int(m[1]), name) for m, name in found if m), reverse=True)]


def _last_number(folder: Path) -> int:
    return max((int(_PREVIOUS.fullmatch(path.name)[1]) for path in _previous(folder)), default=0)


def _copy_also_needed(folder: Path, target: Path) -> None:
    for name in _ALSO_NEEDED:
        if (folder / name).is_file():
            shutil.copy2(folder / name, target)


def _holds_something(path: Path) -> bool:
    """Whether this is more than an empty file, which a run leaves if it fails before its first iteration."""
    status = os.lstat(path)
    return status.st_size > 0 or not stat.S_ISREG(status.st_mode)


def _move(source: Path, target: Path) -> None:
    """Move a file or folder; a relative link to another folder is kept valid."""
    link = os.readlink(source) if source.is_symlink() else ""
    if os.path.dirname(link) and not os.path.isabs(link):
        os.symlink(os.path.abspath(source.parent / link), target)
        os.unlink(source)
    else:
        os.rename(source, target)


@contextmanager
def _locked(folder: Path, patience: float) -> Iterator[int]:
    """Lock :data:`LOCK` and yield its handle. No other process can lock it until this one has ended.

    This is a POSIX lock, not ``flock``, which loader workers that outlive a killed process would inherit.

    Args:
        patience: seconds to wait for another process to end.
    """
    path = folder / LOCK
    with writing(path):
        folder.mkdir(parents=True, exist_ok=True)
        lock = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NONBLOCK, 0o666)
    try:
        end = time.monotonic() + patience
        while not _try_lock(lock):
            if time.monotonic() >= end:
                raise UserError(
                    f"OUTPUT_DIR {folder} is in use by another training ({_name_of_holder(lock)}); wait for "
                    "its end, or name another OUTPUT_DIR"
                )
            time.sleep(0.1)
        yield lock
    finally:
        os.close(lock)


def _try_lock(lock: int, kind: int = fcntl.LOCK_EX) -> bool:
    """Try to lock it; False if another process holds it. A file system that cannot lock counts as free."""
    try:
        fcntl.lockf(lock, kind | fcntl.LOCK_NB)
    except OSError as e:
        return e.errno not in (errno.EACCES, errno.EAGAIN)
    return True


def _holder() -> Dict[str, Any]:
    return {
        "pid": os.getpid(),
        "host": socket.gethostname(),
        "since": datetime.datetime.now().isoformat(timespec="seconds"),
        "torchrun": _torchrun(),
    }


def _name_of_holder(lock: int) -> str:
    with suppress(OSError, ValueError, KeyError, TypeError):
        holder = json.loads(os.pread(lock, 4096, 0))
        return f"process {holder['pid']} on {holder['host']} since {holder['since']}"
    return "unknown process"


def _torchrun() -> Optional[str]:
    """A name that stays the same when one torchrun restarts a process; None without torchrun."""
    if not dist.is_torchelastic_launched():
        return None
    name = os.environ["TORCHELASTIC_RUN_ID"]
    return name if name != "none" else f"{socket.gethostname()} {os.getppid()}"  # the default
