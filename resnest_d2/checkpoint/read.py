"""Read weight files without running any code in them."""

from __future__ import annotations

import io
import os
import stat
import struct
import sys
import zipfile
from contextlib import suppress
from pathlib import Path
from typing import Any, Dict, Mapping, Optional, Sequence, Tuple

import torch
from safetensors import safe_open

from ..errors import UserError, one_line
from ..files import PathLike, check_readable
from .formats import what_it_is
from .unpickle import TORCH_TYPES, RefusedError, Storage, Unpickler, loads

#: Pickled number at the start of files that torch.save wrote before version 1.6.
_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
#: Limit on tensors in a file: many times those of the largest detectors with their optimizer state.
_MAX_RECORDS = 50_000


class WeightsError(UserError):
    """The content of a file is of no use: damaged, hostile, or weights of something else.

    Args:
        file: its path.
        reason: what is wrong, as a predicate of the path: ``is empty``.
        remedy: what the user can do.
    """

    def __init__(self, file: PathLike, reason: str, remedy: str = "") -> None:
        super().__init__(f"{file} {reason}{f'; {remedy}' if remedy else ''}")
        self.reason = reason


def read_weights(path: PathLike) -> Dict[str, Any]:
    """The content of a file of torch.save, of safetensors, or of a pickle of numpy arrays.

    The content decides the format, not the name. The memory taken is a small multiple of the file's size.

    Raises:
        UserError: as :func:`read_content`.
        WeightsError: as :func:`read_content`, or it holds no dict.
    """
    content = read_content(path)
    if not isinstance(content, dict):
        raise WeightsError(path, f"holds a {type(content).__name__}, not a dict of weights")
    return content


def read_content(path: PathLike) -> Any:
    """Read the content of a file in one of these formats, of any type.

    Raises:
        UserError: the file is missing, not a regular file, or larger than memory.
        WeightsError: the file is empty, damaged, of another format, or a pickle that would run code.
    """
    path = check_readable(path)
    if path.stat().st_size == 0:
        raise WeightsError(path, "is empty", "fetch it again, or name another")
    try:
        return _read(path)
    except WeightsError:
        raise
    except RefusedError as e:
        reason = f"is refused: its pickle would run code ({e}), which weights do not need"
        raise WeightsError(path, reason) from None
    except MemoryError:
        raise UserError(f"not enough memory to read {path}") from None
    except Exception as e:  # damaged bytes make the readers raise anything
        unknown = f"is damaged or no weight file ({one_line(e, 200) or type(e).__name__})", "fetch it again"
        raise WeightsError(path, *(_known(path) or unknown)) from None


def damage(path: Path) -> Optional[str]:
    """What is wrong with a file of torch.save; None where all of it can be read."""
    try:
        read_checkpoint(path)
    except UserError as e:
        return e.reason if isinstance(e, WeightsError) else str(e)
    return None


def read_checkpoint(path: Path) -> Mapping[str, Any]:
    """What a checkpoint holds; an empty dict where that is no dict.

    Raises:
        UserError: memory does not suffice.
        WeightsError: the file is unreadable, damaged, or would run code.
    """
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):  # opening a FIFO would wait for its writer
            raise WeightsError(path, "is no regular file")
        with open(path, "rb"):
            pass
    except OSError as e:
        raise WeightsError(path, f"is unreadable ({e.strerror})") from None
    content = read_content(path)
    return content if isinstance(content, Mapping) else {}


def _known(path: Path) -> Optional[Tuple[str, str]]:
    with suppress(Exception):  # the bytes may be damaged
        return what_it_is(path)
    return None


def _read(path: Path) -> Any:
    with path.open("rb") as file:
        start = file.read(9)
    if start[:2] == b"PK":
        return _read_zip(path)
    if start[8:9] == b"{" and int.from_bytes(start[:8], "little") < path.stat().st_size:
        with safe_open(path, framework="pt") as file:
            _check_count(path, file.keys())
            tensors = {name: file.get_tensor(name) for name in file.keys()}
        for name, tensor in tensors.items():
            if tensor.dtype not in TORCH_TYPES.values():
                raise ValueError(f"{name[:60]} has type {tensor.dtype}, which weights do not have")
        return tensors
    content = path.read_bytes()
    if _is_legacy_torch(content):
        return _read_legacy(content)
    return loads(content)


def _read_zip(path: Path) -> Any:
    """Read a file of torch.save: an archive of one pickle, and one record per storage.

    torch does not compress records. It writes checksums, which zipfile verifies, though torch's own reader
    does not.
    """
    with zipfile.ZipFile(path) as archive:
        _check_count(path, archive.namelist())
        pickles = [name for name in archive.namelist() if name.count("/") == 1 and name.endswith("/data.pkl")]
        if len(pickles) != 1:
            raise ValueError(f"an archive with {len(pickles)} data.pkl")
        root, left, storages = pickles[0].split("/")[0], path.stat().st_size, {}

        def read(name: str) -> bytes:
            nonlocal left
            record = archive.getinfo(f"{root}/{name}")
            left -= record.file_size
            if record.compress_type != zipfile.ZIP_STORED or left < 0:
                raise ValueError("records that are compressed, or overlap")
            return archive.read(record)

        def storage(dtype: Optional[torch.dtype], key: str, length: int) -> Storage:
            if key not in storages:
                storages[key] = Storage(dtype, bytearray(read(f"data/{key}")))
            return _checked(storages[key], dtype, length)

        if f"{root}/constants.pkl" in archive.namelist():
            raise ValueError("a TorchScript program")
        if f"{root}/byteorder" in archive.namelist():
            _check_byte_order(read("byteorder").decode())
        return Unpickler(io.BytesIO(read("data.pkl")), storage).load()


def _is_legacy_torch(content: bytes) -> bool:
    try:
        return loads(content[:100]) == _LEGACY_MAGIC
    except Exception:
        return False


def _read_legacy(content: bytes) -> Any:
    """Read a file of torch.save before version 1.6: pickles, the last but one with tensors, then storages."""
    file, storages, left = io.BytesIO(content), {}, len(content)

    def storage(dtype: Optional[torch.dtype], key: str, length: int) -> Storage:
        nonlocal left
        if key not in storages:
            size = length * (dtype.itemsize if dtype else 1)
            left -= size
            if left < 0:
                raise ValueError("storages larger than the file")
            storages[key] = Storage(dtype, bytearray(size))
        return _checked(storages[key], dtype, length)

    Unpickler(file).load()  # the magic number
    Unpickler(file).load()  # the protocol version, unchanged ever since
    system = Unpickler(file).load()
    _check_byte_order("little" if system["little_endian"] else "big")
    result = Unpickler(file, storage).load()
    keys = [str(key) for key in Unpickler(file).load()]
    if sorted(keys) != sorted(storages):
        raise ValueError("other storages than its tensors need")
    for key in keys:
        buffer = memoryview(storages[key].buffer)
        (length,) = struct.unpack("<q", file.read(8))
        _checked(storages[key], storages[key].dtype, length)
        if file.readinto(buffer) != len(buffer):
            raise EOFError("it ends in a storage")
    return result


def _check_count(path: Path, records: Sequence[str]) -> None:
    if len(records) > _MAX_RECORDS:
        raise WeightsError(path, f"is no file of weights: it holds {len(records)} tensors")


def _checked(storage: Storage, dtype: Optional[torch.dtype], length: int) -> Storage:
    if storage.dtype != dtype or length * (dtype.itemsize if dtype else 1) != len(storage.buffer):
        raise ValueError(f"a storage of {len(storage.buffer)} bytes where {length} elements should be")
    return storage


def _check_byte_order(order: str) -> None:
    if order != sys.byteorder:
        raise ValueError(f"written on a machine whose byte order is {order!r}; save it again on another")
