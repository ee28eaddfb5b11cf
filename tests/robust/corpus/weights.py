"""Weight files that are damaged, of another kind, or hostile."""

from __future__ import annotations

import io
import pickle
import struct
import zipfile
from functools import partial
from pathlib import Path
from typing import Callable, Dict

import numpy as np
import torch
from safetensors.torch import save as to_safetensors

from .. import tiny
from .case import Case
from .images import plain_dataset

_NAMED = ("weights.",)
WEIGHTS: Dict[str, Callable[[Path, np.random.Generator], Case]] = {}


class _Hostile:
    def __reduce__(self) -> tuple:
        return (print, ("ran code",))


def _state() -> Dict[str, torch.Tensor]:
    return {"stem.conv1_1.weight": torch.zeros(4, 3, 3, 3), "fc.weight": torch.zeros(5, 5)}


def _saved(content: object, **options: object) -> bytes:
    file = io.BytesIO()
    torch.save(content, file, **options)
    return file.getvalue()


def _case(content: Callable, name: str, tool: str, folder: Path, rng: np.random.Generator) -> Case:
    made = content(rng)
    if made is not None:
        (folder / name).write_bytes(made)
    if tool == "convert":
        return Case(["convert_weights.py", folder / name, folder / "out.pth"], refused=_NAMED)
    flags = ("--eval-only",) if tool == "evaluate" else ()
    words = tiny.command(
        plain_dataset(folder), folder / "output", 1, "MODEL.WEIGHTS", folder / name, flags=flags
    )
    return Case(["train_net.py", *words[1:]], refused=_NAMED)


def _changed(change: Callable[[bytearray, np.random.Generator], None], rng: np.random.Generator) -> bytes:
    content = bytearray(_saved(_state()))
    change(content, rng)
    return bytes(content)


def _archive(rng: np.random.Generator) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("readme.txt", "no weights")
    return file.getvalue()


def _long_header(rng: np.random.Generator) -> bytes:
    return struct.pack("<Q", 2**40) + b"{}"


_CONTENTS: Dict[str, tuple] = {
    "empty": (lambda rng: b"", "pth"),
    "not there": (lambda rng: None, "pth"),
    "text": (lambda rng: b"hello", "pth"),
    "web page": (lambda rng: b"<!DOCTYPE html><html>Not found</html>", "pth"),
    "large-file pointer": (
        lambda rng: b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n",
        "pth",
    ),
    "random bytes": (lambda rng: rng.bytes(4000), "pth"),
    "archive without weights": (_archive, "pth"),
    "hostile pickle in torch's format": (lambda rng: _saved({"model": _Hostile()}), "pth"),
    "hostile pickle": (lambda rng: pickle.dumps(_Hostile()), "pkl"),
    "hostile old format": (
        lambda rng: _saved({"a": _Hostile()}, _use_new_zipfile_serialization=False),
        "pth",
    ),
    "a list": (lambda rng: _saved([torch.zeros(2)]), "pth"),
    "a tensor": (lambda rng: _saved(torch.zeros(2)), "pth"),
    "a number": (lambda rng: _saved(3), "pth"),
    "a pickled list": (lambda rng: pickle.dumps([1, 2]), "pkl"),
    "cut pickle": (lambda rng: pickle.dumps({"model": {"a": np.zeros(100)}})[:-20], "pkl"),
    "no tensors": (lambda rng: _saved({"model": {"a": 1, "b": "x"}}), "pth"),
    "empty dict": (lambda rng: _saved({}), "pth"),
    "empty model": (lambda rng: _saved({"model": {}}), "pth"),
    "another network's": (lambda rng: _saved({"encoder.0.weight": torch.zeros(3, 3)}), "pth"),
    "safetensors cut": (lambda rng: to_safetensors(_state())[:-50], "safetensors"),
    "safetensors with bad header": (lambda rng: struct.pack("<Q", 9) + b"{not json", "safetensors"),
    "safetensors with endless header": (_long_header, "safetensors"),
    "safetensors empty": (lambda rng: to_safetensors({}), "safetensors"),
    "wrong shapes": (
        lambda rng: _saved({"model": {"backbone.bottom_up.stem.conv1_1.weight": torch.zeros(1)}}),
        "pth",
    ),
}
for share in (0.01, 0.3, 0.6, 0.9, 0.99):
    _CONTENTS[f"cut at {share:.0%}"] = (
        lambda rng, s=share: _saved(_state())[: int(len(_saved(_state())) * s)],
        "pth",
    )
for title, (content, suffix) in _CONTENTS.items():
    WEIGHTS[f"{title}, converted"] = partial(_case, content, f"weights.{suffix}", "convert")
    WEIGHTS[f"{title}, evaluated"] = partial(_case, content, f"weights.{suffix}", "evaluate")


def _unknown_name(folder: Path, rng: np.random.Generator) -> Case:
    words = tiny.command([], folder / "output", 1, "MODEL.WEIGHTS", "resnest://resnest51")
    return Case(["train_net.py", *words[1:]], refused=("resnest51",))


def _folder(folder: Path, rng: np.random.Generator) -> Case:
    (folder / "weights.pth").mkdir()
    words = tiny.command([], folder / "output", 1, "MODEL.WEIGHTS", folder / "weights.pth")
    return Case(["train_net.py", *words[1:]], refused=("weights.pth",))


WEIGHTS["unknown resnest:// name"] = _unknown_name
WEIGHTS["a folder"] = _folder
