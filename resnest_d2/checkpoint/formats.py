"""What a file that holds no weights is, by its first bytes."""

from __future__ import annotations

import re
import zipfile
from pathlib import Path
from typing import Optional, Tuple

_UNPACK = "unpack it, and name the file of weights in it"
_EXPORT = "save the state_dict() of the network that it is of with torch.save"
_DICT = "save a dict of names to arrays with torch.save or pickle"
_COMPRESSED = (b"\x1f\x8b", b"BZh", b"\xfd7zXZ", b"7z\xbc\xaf", b"\x28\xb5\x2f\xfd", b"Rar!")
#: Place of the bytes, the bytes, what it is, and what to do.
_MAGIC = (
    *((0, magic, "a compressed archive", _UNPACK) for magic in _COMPRESSED),
    (257, b"ustar", "a tar archive", _UNPACK),
    (0, b"\x93NUMPY", "an array of numpy", _DICT),
    (0, b"\x89HDF", "a file of HDF5", _EXPORT),
    (4, b"TFL3", "a TensorFlow Lite model", _EXPORT),
    *((0, magic, "an image", "name a file of weights") for magic in (b"\x89PNG", b"\xff\xd8\xff", b"GIF8")),
    (0, b"%PDF", "a PDF", "name a file of weights"),
    (0, b"version https://git-lfs", "a pointer of Git LFS", "fetch what it stands for with git lfs pull"),
)


def what_it_is(path: Path) -> Optional[Tuple[str, str]]:
    """What a file that cannot be read as weights is, as a predicate of its name, and the remedy.

    None where nothing is known about it.
    """
    with path.open("rb") as file:
        start = file.read(1000)
    if start[:2] == b"PK":
        return _of_archive(path)
    for place, magic, kind, remedy in _MAGIC:
        if start[place:].startswith(magic):
            return f"is {kind}, no file of weights", remedy
    if re.match(rb"\x08[\x01-\x20][\x12\x1a\x22\x2a\x32\x3a\x42]", start):  # a version, and the next field
        return "is an ONNX model, no file of weights", _EXPORT
    if re.match(rb"\s*<(!doctype|html|\?xml)", start, re.IGNORECASE):
        return "is a web page, no file of weights", "fetch it again, by the link to the file itself"
    if start[8:9] == b"{":
        return "is damaged: it ends before its header", "fetch it again"
    if re.fullmatch(rb"[\t\n\r\x20-\x7e\x80-\xff]+", start) and not re.match(
        rb"[(\]}]|c[\w.]+\n[\w.]+\n", start
    ):
        return "is a text, no file of weights", "name a file of weights"
    return None


def _of_archive(path: Path) -> Optional[Tuple[str, str]]:
    if not zipfile.is_zipfile(path):
        return "is damaged: it ends early", "fetch it again"
    with zipfile.ZipFile(path) as archive:
        names = archive.namelist()
    if any(name.endswith("/constants.pkl") for name in names):
        return "is a TorchScript program, no file of weights", "save its state_dict()"
    if any(name.endswith("data.pkl") for name in names):
        return None
    if any(name.endswith(".npy") for name in names):
        return "is an archive of numpy arrays, no file of weights", _DICT
    return "is an archive of something else, no file of weights", _UNPACK
