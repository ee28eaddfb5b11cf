"""Recognise files that are not weights by their first bytes."""

from __future__ import annotations

import re
import zipfile
from pathlib import Path
from typing import Optional, Tuple

_UNPACK = "unpack it, and name the file of weights in it"
_EXPORT = "save the state_dict() of its network with torch.save"
_DICT = "save a dict of names to arrays with torch.save or pickle"
_COMPRESSED = (b"\x1f\x8b", b"BZh", b"\xfd7zXZ", b"7z\xbc\xaf", b"\x28\xb5\x2f\xfd", b"Rar!")
#: Offset of the bytes, the bytes, the kind of file, and the remedy.
_MAGIC = (
    *((0, magic, "a compressed archive", _UNPACK) for magic in _COMPRESSED),
    (257, b"ustar", "a tar archive", _UNPACK),
    (0, b"\x93NUMPY", "a numpy array", _DICT),
    (0, b"\x89HDF", "an HDF5 file", _EXPORT),
    (4, b"TFL3", "a TensorFlow Lite model", _EXPORT),
    *((0, magic, "an image", "name a file of weights") for magic in (b"\x89PNG", b"\xff\xd8\xff", b"GIF8")),
    (0, b"%PDF", "a PDF", "name a file of weights"),
    (0, b"version https://git-lfs", "a Git LFS pointer", "fetch its content with git lfs pull"),
)


def what_it_is(path: Path) -> Optional[Tuple[str, str]]:
    """Describe a file that could not be read as weights, in words to follow its name, with the remedy.

    None if the file is not recognised.
    """
    with path.open("rb") as file:
        start = file.read(1000)
    if start[:2] == b"PK":
        return _of_archive(path)
    for place, magic, kind, remedy in _MAGIC:
        if start[place:].startswith(magic):
            return f"is {kind}, not a weight file", remedy
    if re.match(rb"\x08[\x01-\x20][\x12\x1a\x22\x2a\x32\x3a\x42]", start):  # version and next field
        return "is an ONNX model, not a weight file", _EXPORT
    if re.match(rb"\s*<(!doctype|html|\?xml)", start, re.IGNORECASE):
        return "is a web page, not a weight file", "fetch it again, with the link to the file itself"
    if start[8:9] == b"{":
        return "is damaged: it ends before its header", "fetch it again"
    if re.fullmatch(rb"[\t\n\r\x20-\x7e\x80-\xff]+", start) and not re.match(
        rb"[(\]}]|c[\w.]+\n[\w.]+\n", start
    ):
        return "is a text file, not a weight file", "name a file of weights"
    return None


def _of_archive(path: Path) -> Optional[Tuple[str, str]]:
    if not zipfile.is_zipfile(path):
        return "is damaged: it ends early", "fetch it again"
    with zipfile.ZipFile(path) as archive:
        names = archive.namelist()
    if any(name.endswith("/constants.pkl") for name in names):
        return "is a TorchScript program, not a weight file", "save its state_dict()"
    if any(name.endswith("data.pkl") for name in names):
        return None
    if any(name.endswith(".npy") for name in names):
        return "is an archive of numpy arrays, not a weight file", _DICT
    return "is an archive of something else, not a weight file", _UNPACK
