"""What all command lines share: arguments and failures in one line, streams that may be closed or full."""

from __future__ import annotations

import codecs
import errno
import io
import locale
import logging
import os
import re
import sys
import warnings
from argparse import ArgumentParser, RawDescriptionHelpFormatter
from contextlib import contextmanager, suppress
from typing import Any, Iterator, NoReturn, Optional

import torch.distributed as dist
from detectron2.utils import comm
from torch.distributed.distributed_c10d import _get_default_store

from .errors import UserError, one_line
from .processes import Interrupted

#: Characters of a line that says what is wrong. Of a longer one, both ends are printed.
_LONGEST = 2000


class Parser(ArgumentParser):
    """argparse's, for all tools: it says what is wrong in one line, without the usage.

    Args:
        description: what the tool does, with examples; ``%(prog)s`` stands for its name.
        options: of argparse's.
    """

    def __init__(self, description: Optional[str], **options: Any) -> None:
        super().__init__(description=description, formatter_class=RawDescriptionHelpFormatter, **options)

    def error(self, message: str) -> NoReturn:
        with one_line_errors():
            raise UserError(f"{message}; --help lists the arguments")


class _Stream(io.FileIO):
    """Standard output or error that outlives its reader and a full disk: what it cannot take is dropped.

    Attributes:
        lost: why that was, or None.
        replaced: the stream that it stands for.
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
    without Unicode, with warnings as errors, which those of other packages are not meant to be.
    """
    if codecs.lookup(locale.getpreferredencoding(False)).name != "utf-8":
        with suppress(locale.Error):  # text files are opened by it
            locale.setlocale(locale.LC_CTYPE, "C.UTF-8")
    if any(action == "error" and kind is Warning for action, _, kind, _, _ in warnings.filters):
        warnings.simplefilter("default")
    logging.raiseExceptions = False  # a log that cannot be written, on a full disk, is no failure
    for number, name in ((1, "stdout"), (2, "stderr")):
        stream = getattr(sys, name)
        if stream is None:  # closed; the next file that is opened would take its place
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))
        elif type(_raw(stream)) is io.FileIO:
            if stream.fileno() == number:  # not what a test runner or a notebook put there
                with suppress(OSError):
                    stream.flush()
                raw = _Stream(number, "w", closefd=False)
                raw.replaced = stream  # may close the file when it goes
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
    """The file of a standard stream; python -u has no buffer before it."""
    buffer = getattr(stream, "buffer", None)
    return getattr(buffer, "raw", buffer)


def _say_what_was_lost() -> None:
    raw = _raw(sys.stdout)
    if isinstance(raw, _Stream):
        sys.stdout.flush()
        if raw.lost and raw.lost.errno != errno.EPIPE:  # its reader wanted no more
            print(f"stdout: not all could be written ({raw.lost.strerror})", file=sys.stderr)
        raw.lost = None


@contextmanager
def one_line_errors() -> Iterator[None]:
    """Print a :class:`UserError` as one line and end the process with status 2.

    Stopped by a signal, the process ends with 128 and the signal's number.
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
    """Whether this process says what is wrong. Of several, which mostly meet the same, the first does."""
    if not dist.is_initialized():  # they all check the same before they meet
        rank, world = os.getenv("RANK", "0"), os.getenv("WORLD_SIZE", "1")
        others = rank.isdecimal() and world.isdecimal() and 0 < int(rank) < int(world)
        return not dist.is_torchelastic_launched() or not others
    try:
        return _get_default_store().add("failures", 1) == 1
    except RuntimeError:  # the process that holds the store has ended
        return True


def _one_line(message: str) -> str:
    """All of a message; of one that comes with the traceback of a loader's worker, what stands behind it."""
    if message.startswith("Caught "):
        message = re.split(r"^[\w.]*UserError: ", message, maxsplit=1, flags=re.M)[-1]
    line = one_line(message)
    return line if len(line) <= _LONGEST else f"{line[: _LONGEST // 2]} ... {line[-_LONGEST // 2 :]}"
