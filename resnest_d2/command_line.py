"""Shared by all command lines: errors in one line, standard streams that may be closed or full."""

from __future__ import annotations

import codecs
import errno
import io
import locale
import logging
import os
import re
import sys
import time
import warnings
from argparse import ArgumentParser, RawDescriptionHelpFormatter
from contextlib import contextmanager, suppress
from typing import Any, Iterator, NoReturn, Optional

import torch.distributed as dist
from detectron2.utils import comm
from torch.distributed.distributed_c10d import _get_default_store

from .errors import UserError, one_line
from .processes import Interrupted

#: Longest error message, in characters. Of a longer one, both ends are printed.
_LONGEST = 2000
#: Seconds for which a failing main process waits for others that fail alike.
_PATIENCE = 3


class Parser(ArgumentParser):
    """ArgumentParser for all tools, which reports errors in one line, without the usage.

    Args:
        description: what the tool does, with examples; ``%(prog)s`` stands for its name.
        options: further arguments of ArgumentParser.
    """

    def __init__(self, description: Optional[str], **options: Any) -> None:
        super().__init__(description=description, formatter_class=RawDescriptionHelpFormatter, **options)

    def error(self, message: str) -> NoReturn:
        with one_line_errors():
            raise UserError(f"{message}; --help lists the arguments")


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
            print(f"error: {_one_line(str(e))}", file=sys.stderr, flush=True)
        _outlive_those_who_ask()
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


def _outlive_those_who_ask() -> None:
    """Let a failing main process, which holds the store that :func:`_speaks` asks, wait for the others."""
    if not dist.is_initialized() or not comm.is_main_process():
        return
    store, end = _get_default_store(), time.monotonic() + _PATIENCE
    while store.add("failures", 0) < comm.get_world_size() and time.monotonic() < end:
        time.sleep(0.05)


def _one_line(message: str) -> str:
    """The message in one line; if it contains the traceback of a loader worker, only what follows that."""
    if message.startswith("Caught "):
        message = re.split(r"^[\w.]*UserError: ", message, maxsplit=1, flags=re.M)[-1]
    line = one_line(message)
    return line if len(line) <= _LONGEST else f"{line[: _LONGEST // 2]} ... {line[-_LONGEST // 2 :]}"
