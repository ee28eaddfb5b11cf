"""Files: read where they are what they should be, written complete or not at all.

Whatever a file that a user names can do wrong - be a folder, a FIFO or a device, be missing, cut, too large,
too deep, in another encoding - is said here, in one line that names it.
"""

from __future__ import annotations

import json
import os
import re
import secrets
import stat
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO, Callable, Iterator, Union

import numpy as np

from .errors import UserError

#: Bytes of a text that is read as a whole. COCO's annotations, which are larger, are streamed.
MAX_TEXT = 256 << 20
#: Nesting of a JSON or YAML document; theirs that mean something have less than ten.
MAX_DEPTH = 100

PathLike = Union[str, "os.PathLike[str]"]


def check_readable(path: PathLike, what: str = "", limit: float = float("inf")) -> Path:
    """The path, if a regular file is there that can be read.

    Args:
        what: the flag or key that names the file, for the message, e.g. ``--train-json``.
        limit: of its size, in bytes.

    Raises:
        UserError: there is none, it is a folder, FIFO or device, too large, or closed to this user.
    """
    path, name = Path(path), f"{what} {path}".strip()
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            kind = "a folder" if stat.S_ISDIR(status.st_mode) else "a FIFO, socket or device"
            raise UserError(f"{name} is {kind}; name a file")
        if status.st_size > limit:
            raise UserError(f"{name} has {status.st_size} bytes, more than the {limit:.0f} that are read")
        with path.open("rb"):
            pass
    except UserError:
        raise
    except OSError as e:
        raise UserError(f"cannot read {name} ({e.strerror}); name a file") from None
    except ValueError as e:  # a null byte
        raise UserError(f"{what} {str(path)!r} is no name of a file ({e})".strip()) from None
    return path


def read_text(path: PathLike, what: str = "") -> str:
    """A text in UTF-8, whatever the locale.

    Raises:
        UserError: as :func:`check_readable`, or it is no such text.
    """
    path = check_readable(path, what, MAX_TEXT)
    try:
        return path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError:
        raise UserError(f"{what} {path} is no text in UTF-8".strip()) from None
    except OSError as e:
        raise UserError(f"cannot read {what} {path} ({e.strerror})") from None


def read_json(path: PathLike, what: str = "") -> Any:
    """A JSON document.

    Raises:
        UserError: as :func:`read_text`, or it is no JSON, or nested deeper than MAX_DEPTH.
    """
    return parse_json(read_text(path, what), f"{what} {path}".strip())


def parse_json(text: str, name: str) -> Any:
    """JSON in a text.

    Args:
        name: where it is from, for the message.

    Raises:
        UserError: it is no JSON, or nested deeper than MAX_DEPTH.
    """
    check_depth(text, name)
    try:
        return json.loads(text)
    except ValueError as e:
        raise UserError(f"{name} is no valid JSON ({' '.join(str(e).split())[:120]})") from None


def check_depth(text: str, name: str) -> None:
    """Raise UserError where brackets are nested deeper than MAX_DEPTH, outside of double quotes.

    Parsers need memory, and the stack, by the depth.
    """
    plain = re.sub(r'"(?:[^"\\]|\\.)*"', "", text).encode("utf-8", "replace")
    brackets = plain.translate(None, bytes(set(range(256)) - set(b"[]{}")))
    steps = np.where(np.isin(np.frombuffer(brackets, np.uint8), [*b"[{"]), 1, -1)
    if steps.cumsum().max(initial=0) > MAX_DEPTH:
        raise UserError(f"{name} is nested more than {MAX_DEPTH} deep")


@contextmanager
def writing(target: PathLike, remedy: str = "make room, or name another place") -> Iterator[None]:
    """A block that writes to ``target``, a file or folder. What the system refuses is said in one line.

    Args:
        remedy: what the user can do, for the message.

    Raises:
        UserError: an OSError came; torch's writer reports one as a RuntimeError.
    """
    try:
        yield
    except OSError as e:
        reason = e.strerror or " ".join(str(e).split())
        raise UserError(f"cannot write {e.filename or target} ({reason}); {remedy}") from None
    except RuntimeError as e:
        if "PytorchStreamWriter" not in str(e) and "inline_container" not in str(e):
            raise
        raise UserError(f"cannot write {target} ({str(e).splitlines()[0]}); {remedy}") from None


@contextmanager
def atomic_writer(
    target: PathLike,
    before: Callable[[], Any] = lambda: None,
    remedy: str = "make room, or name another place",
) -> Iterator[BinaryIO]:
    """A temporary file, which gets the name at the end of the block: a reader sees all of it or nothing.

    Left by an exception, whatever stood under the name still does, and the temporary file is gone.

    Args:
        before: called when the file is safely on the disk, before it gets its name.
        remedy: of :func:`writing`.

    Raises:
        UserError: the target is a folder, FIFO or device, or the file cannot be written.
    """
    with writing(target, remedy):
        target = Path(os.path.realpath(target))  # a link stays one
        if target.exists() and not target.is_file():
            kind = "a folder" if target.is_dir() else "a FIFO, socket or device"
            raise UserError(f"cannot write {target}: it is {kind}; name a file")
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = target.with_name(f".{target.name[:200]}-{secrets.token_hex(4)}")
        handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)  # less the user's umask
        try:
            with os.fdopen(handle, "wb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            before()
            os.replace(temporary, target)
            _flush_folder(target.parent)
        except BaseException:
            with suppress(FileNotFoundError):
                os.unlink(temporary)
            raise


def atomic_write_text(target: PathLike, text: str) -> None:
    """A text in UTF-8, by :func:`atomic_writer`. What UTF-8 cannot hold, a lone surrogate, is escaped."""
    with atomic_writer(target) as file:
        file.write(text.encode("utf-8", "backslashreplace"))


def _flush_folder(folder: Path) -> None:
    """Let a new name in it survive a power failure; not every file system can."""
    with suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
