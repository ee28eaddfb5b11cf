"""Files: read where they are what they should be, written complete or not at all.

Whatever a file that a user names can do wrong - be a folder, a FIFO or a device, be missing, cut, too large,
too deep, in another encoding - is said here, in one line that names it.
"""

from __future__ import annotations

import argparse
import errno
import itertools
import json
import os
import re
import reprlib
import secrets
import stat
from collections import Counter
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO, Callable, Dict, Iterator, List, Set, Tuple, Union

import numpy as np

from .errors import UserError, one_line

#: Bytes of a text, by default: more than any but annotations and detections have.
MAX_TEXT = 256 << 20
#: Nesting of a JSON or YAML document; theirs that mean something have less than ten.
MAX_DEPTH = 100
_NO_MARKS = bytes(set(range(256)) - set(b'"[]{}'))

#: What no room makes good.
_CLOSED = (
    errno.EACCES,
    errno.EPERM,
    errno.EROFS,
    errno.ENOTDIR,
    errno.EISDIR,
    errno.ENOENT,
    errno.ENAMETOOLONG,
)

PathLike = Union[str, "os.PathLike[str]"]


def expanded(path: str) -> str:
    """A name of a file or folder with ``~`` and ``~user`` as a shell would have it."""
    try:
        return os.path.expanduser(path)
    except ValueError:  # a null byte, which is said of the whole name later
        return path


def user_path(path: str) -> Path:
    """The same as a path: the type of arguments of a command line.

    Raises:
        ArgumentTypeError: it is empty, which would stand for the current folder.
    """
    if not path:
        raise argparse.ArgumentTypeError("must not be empty")
    return Path(expanded(path))


def check_readable(path: PathLike, what: str = "", limit: float = float("inf")) -> Path:
    """The path, if a regular file is there that can be read.

    Args:
        what: the flag or key that names the file, for the message, e.g. ``--train-json``.
        limit: of its size, in bytes.

    Raises:
        UserError: there is none, it is a folder, FIFO or device, too large, or closed to this user.
    """
    path, name = Path(path), f"{what} {str(path) or repr('')}".strip()
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


def read_text(path: PathLike, what: str = "", limit: float = MAX_TEXT) -> str:
    """A text in UTF-8, whatever the locale.

    Raises:
        UserError: as :func:`check_readable`, or it is no such text.
    """
    path = check_readable(path, what, limit)
    try:
        return path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError:
        raise UserError(f"{what} {path} is no text in UTF-8".strip()) from None
    except OSError as e:
        raise UserError(f"cannot read {what} {path} ({e.strerror})") from None
    except MemoryError:
        raise UserError(f"{what} {path} does not fit into memory".strip()) from None


def read_json(path: PathLike, what: str = "", limit: float = MAX_TEXT) -> Any:
    """A JSON document.

    Raises:
        UserError: as :func:`read_text` and :func:`parse_json`.
    """
    return parse_json(read_text(path, what, limit), f"{what} {path}".strip())


def parse_json(text: str, name: str) -> Any:
    """JSON in a text.

    Args:
        name: where it is from, for the message.

    Raises:
        UserError: it is no JSON, nested deeper than MAX_DEPTH, or has a key twice in one object, of which
            programs take one or the other.
    """

    def unique(pairs: List[Tuple[str, Any]]) -> Dict[str, Any]:
        result = dict(pairs)
        if len(result) < len(pairs):
            keys = Counter(key for key, _ in pairs)
            raise UserError(
                f"{name} has {keys.most_common(1)[0][0]!r:.60} twice in one object, "
                f"{one_line(reprlib.repr(result), 100)}; leave one"
            )
        return result

    try:
        check_depth(text, name)
        return json.loads(text, object_pairs_hook=unique)
    except UserError:
        raise
    except MemoryError:
        raise UserError(f"{name} does not fit into memory") from None
    except ValueError as e:
        raise UserError(f"{name} is no valid JSON ({one_line(e, 120)})") from None


def check_depth(text: str, name: str) -> None:
    """Raise UserError where brackets are nested deeper than MAX_DEPTH, outside of double quotes.

    Parsers need memory, and the stack, by the depth.
    """
    if text.count("[") + text.count("{") <= MAX_DEPTH:
        return
    plain = text.encode("utf-8", "replace")
    if b"\\" in plain:
        plain = re.sub(rb"\\.", b"", plain, flags=re.DOTALL)
    brackets = re.sub(rb'"[^"]*"', b"", plain.translate(None, _NO_MARKS))
    steps = np.where(np.isin(np.frombuffer(brackets, np.uint8), [*b"[{"]), np.int8(1), np.int8(-1))
    if steps.cumsum(dtype=np.int32).max(initial=0) > MAX_DEPTH:
        raise UserError(f"{name} is nested more than {MAX_DEPTH} deep")


def check_link(option: str, name: str) -> None:
    """Raise UserError for a link whose file would be kept outside of iopath's cache.

    Args:
        option: flag or key, for the message.
        name: a link, or the name of a file, which may lead anywhere.
    """
    if "://" in name and ".." in name.split("/"):
        raise UserError(f"{option} {name!r}: a link must not hold '..', which leads out of the cache")


def inside(folder: PathLike, name: str, source: PathLike, links: bool = False) -> Path:
    """The path of a file in a folder, by a name that another file gives.

    Args:
        source: the file that gives it, for the message.
        links: those that are in the folder may lead out, as whoever made the folder has put them there.

    Raises:
        UserError: the name leads out of the folder, as an absolute path, by ``..`` or by a link.
    """
    resolve = os.path.abspath if links else os.path.realpath
    root = resolve(folder)
    try:
        path = root if b"\0" in os.fsencode(name) else resolve(os.path.join(root, name))
    except ValueError:  # half of a surrogate pair
        path = root
    if not path.startswith(os.path.join(root, "")):
        raise UserError(f"{source}: the file name {name!r} does not stay inside {folder}; mend it")
    return Path(path)


def unused_name(stem: str, suffix: str, used: Set[str]) -> str:
    """A name for a file that no other has: the stem, or the stem with a number from 2.

    Args:
        suffix: with its dot.
        used: names so far, in lower case, to which this one is added.
    """
    stem = stem.encode("utf-8", "replace")[:200].decode("utf-8", "ignore")  # file systems take 255 bytes
    numbers = itertools.count(2)
    name = f"{stem}{suffix}"
    while name.casefold() in used:
        name = f"{stem}-{next(numbers)}{suffix}"
    used.add(name.casefold())
    return name


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
        reason = e.strerror or one_line(e)
        if e.errno in _CLOSED:
            remedy = remedy.replace("make room", "make it writable")
        raise UserError(f"cannot write {e.filename or target} ({reason}); {remedy}") from None
    except RuntimeError as e:
        if "PytorchStreamWriter" not in str(e) and "inline_container" not in str(e):
            raise
        cause = e.__context__  # what the system said, of which torch's writer then died
        reason = cause.strerror if isinstance(cause, OSError) else str(e).splitlines()[0]
        raise UserError(f"cannot write {target} ({reason}); {remedy}") from None


def check_writable(
    target: PathLike, remedy: str = "make room, or name another place", in_place: bool = False
) -> Path:
    """The file that a name stands for, links followed, if it could be written. For before a long run.

    Args:
        remedy: of :func:`writing`.
        in_place: what is there is going to be written to, rather than replaced.

    Raises:
        UserError: it is a folder, FIFO or device, or its folder is closed to this user or cannot be made.
    """
    name = target
    with writing(target, remedy):
        try:
            target = Path(os.path.realpath(target))  # a link stays one
        except ValueError as e:  # a null byte
            raise UserError(f"{str(target)!r} is no name of a file ({e})") from None
        if target.exists() and not target.is_file():
            kind = "a folder" if target.is_dir() else "a FIFO, socket or device"
            raise UserError(f"cannot write {name}: it is {kind}; name a file")
        folder = next(parent for parent in target.parents if parent.exists())
        if not folder.is_dir():
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(target))
        closed = in_place and target.exists() and not os.access(target, os.W_OK)
        if closed or not os.access(folder, os.W_OK | os.X_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(target))
    return target


@contextmanager
def atomic_writer(
    target: PathLike,
    before: Callable[[], Any] = lambda: None,
    remedy: str = "make room, or name another place",
) -> Iterator[BinaryIO]:
    """A temporary file, which gets the name at the end of the block: a reader sees all of it or nothing.

    The file's own ``name`` is its temporary path.

    Left by an exception, whatever stood under the name still does, and the temporary file is gone.

    Args:
        before: called when the file is safely on the disk, before it gets its name.
        remedy: of :func:`writing`.

    Raises:
        UserError: the target is a folder, FIFO or device, or the file cannot be written.
    """
    with writing(target, remedy):
        target = check_writable(target, remedy)
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = target.with_name(f".{target.name[:50]}-{secrets.token_hex(4)}")  # of 255 bytes
        file = open(temporary, "xb")
        try:
            with file:
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
