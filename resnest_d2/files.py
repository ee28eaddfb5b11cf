"""Read files after checking them, and write them completely or not at all.

All that can be wrong with a file that a user names - it is a folder, a FIFO or a device, is missing, cut
off, too large, nested too deep, or in another encoding - is reported here in one line that names it.
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

#: Default limit for text in bytes, which only annotations and detections exceed.
MAX_TEXT = 256 << 20
#: Limit for the nesting of a JSON or YAML document; sensible ones have fewer than ten levels.
MAX_DEPTH = 100
_NO_MARKS = bytes(set(range(256)) - set(b'"[]{}'))

#: Errors that more space does not fix.
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
    """Expand ``~`` and ``~user`` in the name of a file or folder as a shell would."""
    try:
        return os.path.expanduser(path)
    except ValueError:  # a null byte, which is reported later with the whole name
        return path


def user_path(path: str) -> Path:
    """Expand a name to a path; the type of command line arguments.

    Raises:
        ArgumentTypeError: the name is empty, which would mean the current folder.
    """
    if not path:
        raise argparse.ArgumentTypeError("must not be empty")
    return Path(expanded(path))


def check_readable(path: PathLike, what: str = "", limit: float = float("inf")) -> Path:
    """Return the path if it is a readable regular file.

    Args:
        what: the flag or key that names the file, for error messages, e.g. ``--train-json``.
        limit: largest allowed size in bytes.

    Raises:
        UserError: the file is missing, too large, not readable by this user, or a folder, FIFO or device.
    """
    path, name = Path(path), f"{what} {str(path) or repr('')}".strip()
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            kind = "a folder" if stat.S_ISDIR(status.st_mode) else "a FIFO, socket or device"
            raise UserError(f"{name} is {kind}; name a file")
        if status.st_size > limit:
            raise UserError(f"{name} has {status.st_size} bytes, more than the {limit:.0f} allowed")
        with path.open("rb"):
            pass
    except UserError:
        raise
    except OSError as e:
        raise UserError(f"cannot read {name} ({e.strerror}); name a file") from None
    except ValueError as e:  # a null byte
        raise UserError(f"{what} {str(path)!r} is not a file name ({e})".strip()) from None
    return path


def read_text(path: PathLike, what: str = "", limit: float = MAX_TEXT) -> str:
    """Read a text file as UTF-8, whatever the locale.

    Raises:
        UserError: as in :func:`check_readable`, or the file is not UTF-8 text.
    """
    path = check_readable(path, what, limit)
    try:
        return path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError:
        raise UserError(f"{what} {path} is not UTF-8 text".strip()) from None
    except OSError as e:
        raise UserError(f"cannot read {what} {path} ({e.strerror})") from None
    except MemoryError:
        raise UserError(f"{what} {path} does not fit in memory".strip()) from None


def read_json(path: PathLike, what: str = "", limit: float = MAX_TEXT) -> Any:
    """Read a JSON file.

    Raises:
        UserError: as in :func:`read_text` and :func:`parse_json`.
    """
    return parse_json(read_text(path, what, limit), f"{what} {path}".strip())


def parse_json(text: str, name: str) -> Any:
    """Parse JSON text.

    Args:
        name: its source, for error messages.

    Raises:
        UserError: the text is not JSON, is nested deeper than MAX_DEPTH, or has a key twice in one object,
            of which programs differ in the one they use.
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
        raise UserError(f"{name} does not fit in memory") from None
    except ValueError as e:
        raise UserError(f"{name} is not valid JSON ({one_line(e, 120)})") from None


def check_depth(text: str, name: str) -> None:
    """Raise UserError if brackets outside double quotes are nested deeper than MAX_DEPTH.

    Parsers use memory, and stack space, in proportion to the depth.
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
    """Raise UserError for a link whose file would be stored outside iopath's cache.

    Args:
        option: flag or key, for error messages.
        name: a link, or a file name, which may point anywhere.
    """
    if "://" in name and ".." in name.split("/"):
        raise UserError(f"{option} {name!r}: a link must not contain '..', which leads out of the cache")


def inside(folder: PathLike, name: str, source: PathLike, links: bool = False) -> Path:
    """Return the path of a file in a folder, whose name is taken from another file.

    Args:
        source: the file with the name, for error messages.
        links: allow links in the folder to point outside, as its owner has put them there.

    Raises:
        UserError: the name leads out of the folder, as an absolute path, through ``..`` or through a link.
    """
    resolve = os.path.abspath if links else os.path.realpath
    root = resolve(folder)
    try:
        path = root if b"\0" in os.fsencode(name) else resolve(os.path.join(root, name))
    except ValueError:  # a lone surrogate
        path = root
    if not path.startswith(os.path.join(root, "")):
        raise UserError(f"{source}: the file name {name!r} does not stay inside {folder}; correct it")
    return Path(path)


def lies_in(path: PathLike, folder: PathLike) -> bool:
    """Whether a path, which need not exist, is a folder or lies below it, with links resolved."""
    real = os.path.realpath(folder)
    return os.path.commonpath([os.path.realpath(path), real]) == real


def unused_name(stem: str, suffix: str, used: Set[str]) -> str:
    """Return an unused file name: the stem, or the stem with a number from 2.

    Args:
        suffix: file name extension with its dot.
        used: names used so far, in lower case; the new one is added.
    """
    stem = stem.encode("utf-8", "replace")[:200].decode("utf-8", "ignore")  # file systems allow 255 bytes
    numbers = itertools.count(2)
    name = f"{stem}{suffix}"
    while name.casefold() in used:
        name = f"{stem}-{next(numbers)}{suffix}"
    used.add(name.casefold())
    return name


@contextmanager
def writing(target: PathLike, remedy: str = "make room, or name another place") -> Iterator[None]:
    """Context for writing to ``target``, a file or folder, which reports system errors in one line.

    Args:
        remedy: what the user can do, for error messages.

    Raises:
        UserError: for an OSError, which torch's writer reports as a RuntimeError.
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
        cause = e.__context__  # the system error that torch's writer failed with
        reason = cause.strerror if isinstance(cause, OSError) else str(e).splitlines()[0]
        raise UserError(f"cannot write {target} ({reason}); {remedy}") from None


def check_writable(
    target: PathLike, remedy: str = "make room, or name another place", in_place: bool = False
) -> Path:
    """Resolve links and return the file, if it could be written. To be called before a long run.

    Args:
        remedy: see :func:`writing`.
        in_place: an existing file will be written to rather than replaced.

    Raises:
        UserError: it is a folder, FIFO or device, or its folder is not writable or cannot be created.
    """
    name = target
    with writing(target, remedy):
        try:
            target = Path(os.path.realpath(target))  # so that a link is kept
        except ValueError as e:  # a null byte
            raise UserError(f"{str(target)!r} is not a file name ({e})") from None
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
    ending: str = "",
) -> Iterator[BinaryIO]:
    """Open a temporary file that gets its name at the end of the block, so that readers see all or nothing.

    The file's own ``name`` is its temporary path.

    After an exception, an existing file is unchanged, and the temporary file is removed.

    Args:
        before: called when the file is safely on disk, before it gets its name.
        remedy: see :func:`writing`.
        ending: of the temporary path, for programs that open it themselves and go by its extension.

    Raises:
        UserError: the target is a folder, FIFO or device, or the file cannot be written.
    """
    with writing(target, remedy):
        target = check_writable(target, remedy)
        target.parent.mkdir(parents=True, exist_ok=True)
        # So much of the name fits in 255 bytes.
        temporary = target.with_name(f".{target.name[:50]}-{secrets.token_hex(4)}{ending}")
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
    """Write text as UTF-8 with :func:`atomic_writer`. Lone surrogates, which UTF-8 lacks, are escaped."""
    with atomic_writer(target) as file:
        file.write(text.encode("utf-8", "backslashreplace"))


def _flush_folder(folder: Path) -> None:
    """Make a new name in a folder survive a power failure, if the file system can."""
    with suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
