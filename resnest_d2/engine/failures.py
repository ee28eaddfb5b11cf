"""Report failures with a cause outside the program in one line."""

from __future__ import annotations

import codecs
import errno
import io
import locale
import logging
import os
import re
import sys
import traceback
import warnings
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Iterator, Optional

import torch
import torch.distributed as dist
from detectron2.config import CfgNode
from detectron2.utils import comm
from torch.distributed.distributed_c10d import _get_default_store

from ..config import flatten
from ..errors import UserError, one_line
from ..files import atomic_write_text
from .signals import Interrupted
from .values import COMPONENTS

#: Longest error message, in characters. Of a longer one, both ends are printed.
_LONGEST = 2000


class _Stream(io.FileIO):
    """Standard output or error that survives a closed pipe and a full disk: it drops what cannot be written.

    Attributes:
        lost: the error by which something was dropped, or None.
        replaced: the stream that this one replaces.
    """

    lost: Optional[OSError] = None
    replaced: Any = None

    def write(self, data: Any) -> Optional[int]:
        try:
            return super().write(data)
        except OSError as e:
            self.lost = e
            return memoryview(data).nbytes


def prepare_process() -> None:
    """Let a command line work however it was started: with closed or full standard streams, in a locale
    without Unicode, or with warnings as errors, which would stop at other packages' warnings.
    """
    if codecs.lookup(locale.getpreferredencoding(False)).name != "utf-8":
        with suppress(locale.Error):  # text files are opened with its encoding
            locale.setlocale(locale.LC_CTYPE, "C.UTF-8")
    if any(action == "error" and kind is Warning for action, _, kind, _, _ in warnings.filters):
        warnings.simplefilter("default")
    logging.raiseExceptions = False  # a log that cannot be written, as on a full disk, is not a failure
    for number, name in ((1, "stdout"), (2, "stderr")):
        stream = getattr(sys, name)
        if stream is None:  # closed; the next opened file would take its descriptor
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))
        elif type(_raw(stream)) is io.FileIO:
            if stream.fileno() == number:  # not replaced by a test runner or a notebook
                with suppress(OSError):
                    stream.flush()
                raw = _Stream(number, "w", closefd=False)
                raw.replaced = stream  # keeps it alive, since deleting it may close the file
                kept = io.TextIOWrapper(
                    raw if stream.buffer is _raw(stream) else io.BufferedWriter(raw),
                    stream.encoding,
                    "backslashreplace",
                    None,
                    stream.line_buffering,
                    stream.write_through,
                )
                setattr(sys, name, kept)


def _raw(stream: Any) -> Any:
    """The raw file of a standard stream; with python -u there is no buffer."""
    buffer = getattr(stream, "buffer", None)
    return getattr(buffer, "raw", buffer)


def _say_what_was_lost() -> None:
    raw = _raw(sys.stdout)
    if isinstance(raw, _Stream):
        sys.stdout.flush()
        if raw.lost and raw.lost.errno != errno.EPIPE:  # EPIPE: the reader has closed the pipe
            print(f"stdout: not all could be written ({raw.lost.strerror})", file=sys.stderr)
        raw.lost = None


@contextmanager
def one_line_errors() -> Iterator[None]:
    """Print a :class:`UserError` as one line and end the process with status 2.

    If a signal stops the process, its status is 128 plus the signal's number.
    """
    prepare_process()
    try:
        yield
    except UserError as e:
        if _speaks():
            print(f"error: {_one_line(str(e))}", file=sys.stderr)
        sys.exit(2)
    except Interrupted as e:
        if comm.is_main_process():
            print(f"stopped by {e}{'; ' if e.remedy else ''}{e.remedy}", file=sys.stderr)
        sys.exit(e.status)
    except KeyboardInterrupt:
        print("stopped by SIGINT", file=sys.stderr)
        sys.exit(130)
    finally:
        _say_what_was_lost()


def _speaks() -> bool:
    """Whether this process prints its error. Several usually fail alike, and only the first one prints."""
    if not dist.is_initialized():  # before the processes meet, they all make the same checks
        rank, world = os.getenv("RANK", "0"), os.getenv("WORLD_SIZE", "1")
        others = rank.isdecimal() and world.isdecimal() and 0 < int(rank) < int(world)
        return not dist.is_torchelastic_launched() or not others
    try:
        return _get_default_store().add("failures", 1) == 1
    except RuntimeError:  # the process that holds the store has ended
        return True


def _one_line(message: str) -> str:
    """The message in one line; if it contains the traceback of a loader worker, only what follows that."""
    if message.startswith("Caught "):
        message = re.split(r"^[\w.]*UserError: ", message, maxsplit=1, flags=re.M)[-1]
    line = one_line(message)
    return line if len(line) <= _LONGEST else f"{line[: _LONGEST // 2]} ... {line[-_LONGEST // 2 :]}"


@contextmanager
def named_failures(cfg: CfgNode) -> Iterator[None]:
    """Turn failures of the machine into a UserError that says what would help."""
    try:
        yield
    except torch.OutOfMemoryError:
        raise UserError(f"GPU: {_out_of_memory(cfg)}") from None
    except OSError as e:
        if e.errno is None:
            raise
        # A loader worker that ends while it hands over tensors raises these, without a file name.
        handing = isinstance(e, (ConnectionResetError, ConnectionRefusedError, FileNotFoundError))
        if handing and e.filename is None:
            raise UserError(_worker_ended(cfg, f"DataLoader worker has ended ({e.strerror}).")) from None
        raise UserError(
            f"cannot read or write {e.filename or cfg.OUTPUT_DIR} ({e.strerror}); make room, or choose "
            "another OUTPUT_DIR"
        ) from None
    except RuntimeError as e:
        reason = str(e).split("\n")[0][:200]
        if "DefaultCPUAllocator" in str(e):
            raise UserError(_out_of_memory(cfg)) from None
        if reason.startswith("DataLoader worker"):
            raise UserError(_worker_ended(cfg, reason)) from None
        if "ancdata" in reason or "ulimit" in reason:  # how the loader reports too many open files
            raise UserError(
                f"too many open files; raise ulimit -n, or lower DATALOADER.NUM_WORKERS "
                f"({cfg.DATALOADER.NUM_WORKERS})"
            ) from None
        if _lost_another(e):
            raise UserError(
                f"another process of this run has ended ({reason}); its own message "
                "says why; --resume continues from the newest checkpoint"
            ) from None
        raise


@contextmanager
def blames_configuration(cfg: CfgNode, doing: str) -> Iterator[None]:
    """Turn whatever a block raises into a UserError, and write the traceback to a file.

    For blocks that depend only on the configuration and the data: detectron2 raises all kinds of exceptions
    for a value that cannot work.

    Args:
        doing: what the block does, for the message.
    """
    try:
        yield
    except (UserError, OSError, torch.OutOfMemoryError):
        raise
    except Exception as e:
        if "DefaultCPUAllocator" in str(e) or str(e).startswith("DataLoader worker") or _lost_another(e):
            raise
        reason = one_line(e, 300)
        if isinstance(e, AssertionError) and not reason:
            reason = traceback.extract_tb(e.__traceback__)[-1].line or ""
        if isinstance(e, KeyError):  # usually the name of a feature map, from a key
            lists = ((key, value) for key, value in flatten(cfg) if isinstance(value, (list, tuple)))
            holding = [key for key, value in lists if e.args[0] in value]
            reason += "".join(f", in {key}" for key in holding)
        reason += _component(cfg, e)
        file = Path(cfg.OUTPUT_DIR, "traceback.txt")
        with suppress(UserError):
            atomic_write_text(file, traceback.format_exc())
        raise UserError(
            f"{doing} with this configuration failed ({type(e).__name__}: {reason}); traceback in {file}"
        ) from None


def _component(cfg: CfgNode, error: Exception) -> str:
    """The key and the name of the innermost part of the model that raised an error."""
    inner = set(COMPONENTS) - {"MODEL.META_ARCHITECTURE"}  # it contains all the others
    keys = {value: key for key, value in flatten(cfg) if key in inner}
    for frame, _ in reversed([*traceback.walk_tb(error.__traceback__)]):
        owner = frame.f_locals.get("self", frame.f_locals.get("cls"))
        for name in (frame.f_code.co_name, (owner if isinstance(owner, type) else type(owner)).__name__):
            if name in keys:
                return f", in {keys[name]} {name}"
    return ""


def _lost_another(error: Exception) -> bool:
    """Whether a process that this one communicates with has ended; gloo has no exception type for that."""
    return comm.get_world_size() > 1 and (
        isinstance(error, dist.DistNetworkError)
        or any(reason in str(error) for reason in ("Connection closed by peer", "Connection reset by peer"))
    )


def _worker_ended(cfg: CfgNode, reason: str) -> str:
    return (
        f"{reason} Was memory short? Fewer DATALOADER.NUM_WORKERS ({cfg.DATALOADER.NUM_WORKERS}) need "
        "less; 0 loads in the training process"
    )


def _out_of_memory(cfg: CfgNode) -> str:
    amp = "" if cfg.SOLVER.AMP.ENABLED or cfg.MODEL.DEVICE == "cpu" else " SOLVER.AMP.ENABLED True,"
    return (
        f"not enough memory; a smaller SOLVER.IMS_PER_BATCH ({cfg.SOLVER.IMS_PER_BATCH}),{amp} "
        f"INPUT.MIN_SIZE_TRAIN ({cfg.INPUT.MIN_SIZE_TRAIN}) or INPUT.MAX_SIZE_TRAIN "
        f"({cfg.INPUT.MAX_SIZE_TRAIN}) needs less"
    )
