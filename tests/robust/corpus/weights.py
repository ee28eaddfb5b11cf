"""Weight files that are damaged, of another kind, or hostile."""

from __future__ import annotations

import collections
import io
import json
import os
import pickle
import struct
import zipfile
from functools import partial
from pathlib import Path
from typing import Callable, Dict, Optional

import numpy as np
import torch
from safetensors.torch import save as to_safetensors

from resnest_d2 import ResNeSt

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


# Pickles that would make memory, or the reader, do what they say.

_DTYPE = b"cnumpy\ndtype\n(X\x02\x00\x00\x00%s\x89\x88tR"
_STATE = b"(K\x03X\x01\x00\x00\x00|%s%s%sJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x3ftb"
_ARRAY = b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(K\x00tU\x01btR"


def _pickled(*steps: bytes) -> bytes:
    return b"\x80\x02}X\x01\x00\x00\x00a" + b"".join(steps) + b"s."


def _array(shape: tuple, data: object, dtype: bytes = _DTYPE % b"f4") -> bytes:
    """An array whose content is not what its shape and type say."""
    inner = [pickle.dumps(x, 2)[2:-1] for x in (shape, data)]
    return _pickled(_ARRAY, b"(K\x01", inner[0], dtype, b"\x89", inner[1], b"tb")


_LONG = b"\xff" * 7 + b"\x7f"
_BAD_PICKLES: Dict[str, bytes] = {
    "a type of objects": _pickled(_DTYPE % b"O8"),
    "a type whose state is a class's": _pickled(_DTYPE % b"f4", _STATE % (b"cnumpy\nndarray\n", b"N", b"N")),
    "a type whose state has a structure": _pickled(_DTYPE % b"V8", _STATE % (b"N", b"(tt", b"}")),
    "a type whose state has an address": _pickled(
        _DTYPE % b"f4", b"(K\x03X\x01\x00\x00\x00<J\x41\x41\x41\x41NNK\x08K\x08K\x3ftb"
    ),
    "a type whose state is a number": _pickled(_DTYPE % b"f4", b"K\x07b"),
    "the state of a class of numpy": _pickled(b"cnumpy\nndarray\n", b"(K\x01tb"),
    "an array of objects": pickle.dumps({"a": np.array([1, "x"], object)}),
    "an array of objects, protocol 2": pickle.dumps({"a": np.array([1, "x"], object)}, 2),
    "an array of addresses": _array((2,), b"\x41" * 16, _DTYPE % b"O8"),
    "an array of records": pickle.dumps({"a": np.zeros(3, [("x", "f4"), ("y", "O")])}),
    "an array of texts": pickle.dumps({"a": np.array(["x", "yy"])}),
    "an array of times": pickle.dumps({"a": np.zeros(3, "M8[s]")}),
    "an array without a type": _array((2,), b"\x00" * 8, b"N"),
    "an array without content": _pickled(_ARRAY),
    "an array larger than its content": _array((1 << 40,), b"\x00" * 8),
    "an array smaller than its content": _array((1,), b"\x00" * 8),
    "an array of a negative size": _array((-2,), b"\x00" * 8),
    "an array of no size, and a huge one": _array((0, 1 << 62), b""),
    "an array whose content is a list": _array((1,), [1.0]),
    "an array of a thousand dimensions": _array((1,) * 1000, b"\x00" * 4),
    "a scalar of another size": _pickled(b"cnumpy.core.multiarray\nscalar\n(", _DTYPE % b"f8", b"U\x01atR"),
    "a place far away": _pickled(b"Nr\xff\xff\xff\x7f"),
    "bytes longer than the file": _pickled(b"\x8e" + _LONG),
    "a byte array longer than the file": _pickled(b"\x96" + _LONG),
    "a text longer than the file": _pickled(b"\x8d" + _LONG),
    "a number longer than the file": _pickled(b"\x8b\xff\xff\xff\x7f"),
    "a byte array of a length": _pickled(b"cbuiltins\nbytearray\n(J\xff\xff\xff\x7ftR"),
    "a deep key": _pickled(b"}N" + b"\x85" * 150_000 + b"Ns"),
    "a deep element of a set": _pickled(b"\x8f(N" + b"\x85" * 150_000 + b"\x90"),
    "a deep list": _pickled(b"]" * 150_000 + b"a" * 149_999),
    "itself": b"\x80\x02}q\x00X\x05\x00\x00\x00modelh\x00s.",
    "itself as a state_dict, in between": b"\x80\x02}q\x00X\x05\x00\x00\x00model}X\x0a\x00\x00\x00state_dicth\x00ss.",
    "a registered class": _pickled(b"\x82\x01"),
    "an object of a class": _pickled(b"ccollections\nOrderedDict\n)\x81"),
    "an object outside": _pickled(b"U\x01xQ"),
    "code in another encoding": _pickled(b"c_codecs\nencode\n(X\x01\x00\x00\x00aX\x05\x00\x00\x00rot13tR"),
    "a call of a text": _pickled(b"U\x01x)R"),
    "eval": _pickled(b"c__builtin__\neval\n(U\x031+1tR"),
    "getattr": _pickled(b"cbuiltins\ngetattr\n(U\x01aU\x01btR"),
    "torch's own loader": _pickled(b"ctorch\nload\n(U\x01atR"),
    "numpy's own loader": _pickled(b"cnumpy\nload\n(U\x01atR"),
    "numbers as names": pickle.dumps({1: np.zeros(3), 2: np.zeros(3)}),
    "bytes as names": pickle.dumps({b"a": np.zeros(3)}),
}


def _torch_archive(change: Callable[[Dict[str, bytes]], None], **options: object) -> bytes:
    """A file of torch.save whose records are changed, with right checksums."""
    with zipfile.ZipFile(io.BytesIO(_saved(_state()))) as source:
        records = {info.filename: source.read(info) for info in source.infolist()}
    change(records)
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", **options) as archive:
        for name, content in records.items():
            archive.writestr(name, content)
    return file.getvalue()


def _in_pickle(old: bytes, new: bytes) -> Callable[[Dict[str, bytes]], None]:
    def change(records: Dict[str, bytes]) -> None:
        name = next(n for n in records if n.endswith("/data.pkl"))
        assert old in records[name]
        records[name] = records[name].replace(old, new)

    return change


def _record(name: str, content: bytes) -> Callable[[Dict[str, bytes]], None]:
    def change(records: Dict[str, bytes]) -> None:
        records[f"{next(iter(records)).split('/')[0]}/{name}"] = content

    return change


_HUGE = b"\x8a\x08" + b"\x00" * 5 + b"\x01\x00\x00"  # 2**40
_SHAPE = b"(K\x04K\x03K\x03K\x03t"
_BAD_ARCHIVES: Dict[str, Callable[[], bytes]] = {
    "compressed": lambda: _torch_archive(lambda r: None, compression=zipfile.ZIP_DEFLATED),
    "a bomb": lambda: _torch_archive(_record("data/0", bytes(1 << 27)), compression=zipfile.ZIP_DEFLATED),
    "a storage shorter than its tensor": lambda: _torch_archive(_record("data/0", b"")),
    "a storage that is missing": lambda: _torch_archive(
        lambda r: r.pop(next(n for n in r if n.endswith("data/0")))
    ),
    "a storage shorter than it says": lambda: _torch_archive(_in_pickle(b"Kltq", b"M\x00\x10tq")),
    "a tensor larger than its storage": lambda: _torch_archive(
        _in_pickle(_SHAPE, b"(K\x04K\x03K\x03" + _HUGE + b"t")
    ),
    "a tensor of a negative size": lambda: _torch_archive(
        _in_pickle(_SHAPE, b"(K\x04K\x03K\x03J\xff\xff\xff\xfft")
    ),
    "a tensor that repeats its elements": lambda: _torch_archive(
        _in_pickle(b"K\x00" + _SHAPE, b"K\x00(K\x04K\x03K\x03" + _HUGE + b"t")
    ),
    "a tensor behind its storage": lambda: _torch_archive(
        _in_pickle(b"K\x00" + _SHAPE, b"M\x00\x10" + _SHAPE)
    ),
    "a tensor without a storage": lambda: _torch_archive(_in_pickle(b"Q", b"0N")),
    "the state of a tensor": lambda: _torch_archive(_in_pickle(b"R", b"R(K\x01tb")),
    "another byte order": lambda: _torch_archive(_record("byteorder", b"big")),
    "a byte order of its own": lambda: _torch_archive(_record("byteorder", b"\xff\xfe")),
    "a program": lambda: _torch_archive(_record("constants.pkl", b"\x80\x02).")),
    "without a pickle": lambda: _torch_archive(lambda r: r.pop(next(n for n in r if n.endswith("data.pkl")))),
    "with two pickles": lambda: _torch_archive(lambda r: r.update({"other/data.pkl": b"\x80\x02}."})),
    "of arrays": lambda: _arrays(),
}


def _arrays() -> bytes:
    file = io.BytesIO()
    np.savez(file, a=np.zeros(3))
    return file.getvalue()


def _tensors(header: object, content: bytes = b"\x00" * 16) -> bytes:
    """A file of safetensors."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + content


def _tensor(dtype: str = "F32", shape: tuple = (4,), offsets: tuple = (0, 16)) -> Dict[str, object]:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


_BAD_TENSORS: Dict[str, bytes] = {
    "of a huge shape": _tensors({"a": _tensor(shape=(2**40,))}),
    "of no size, and a huge one": _tensors({"a": _tensor(shape=(0, 2**62), offsets=(0, 0))}, b""),
    "of a negative shape": _tensors({"a": _tensor(shape=(-4,))}),
    "that overlap": _tensors({"a": _tensor(), "b": _tensor()}),
    "behind the end": _tensors({"a": _tensor(offsets=(2**40, 2**40 + 16))}),
    "of an unknown type": _tensors({"a": _tensor("F128")}),
    "of a type of half a byte": _tensors({"a": _tensor("F4", (32,))}),
    "of complex numbers": _tensors({"a": _tensor("C64", (2,))}),
    "in a list": _tensors([1, 2]),
    "nested": _tensors(b'{"a":' * 100_000 + b"1" + b"}" * 100_000),
    "not in UTF-8": _tensors(b'{"\xff": 1}'),
}

for title, content in _BAD_PICKLES.items():
    WEIGHTS[f"pickle of {title}"] = partial(_case, lambda rng, c=content: c, "weights.pth", "convert")
for title, make in _BAD_ARCHIVES.items():
    WEIGHTS[f"archive: {title}"] = partial(_case, lambda rng, m=make: m(), "weights.pth", "convert")
for title, content in _BAD_TENSORS.items():
    WEIGHTS[f"tensors {title}"] = partial(_case, lambda rng, c=content: c, "weights.safetensors", "convert")
for suffix in ("pyth", "pkl", "pth", "bin", "caffe2"):
    hostile = partial(
        _case, lambda rng: pickle.dumps({"model_state": _Hostile()}), f"weights.{suffix}", "train"
    )
    WEIGHTS[f"hostile .{suffix}"] = hostile
    saved = partial(_case, lambda rng: _saved({"model_state": _Hostile()}), f"weights.{suffix}", "evaluate")
    WEIGHTS[f"hostile .{suffix} of torch"] = saved


# Weights of another network, or of no numbers.

_TINY = {"res2_out_channels": 32, "bottleneck_width": 8}


def _network(depth: int = 14, **options: object) -> Dict[str, torch.Tensor]:
    """What the tiny configuration wants, but for the options."""
    return ResNeSt(depth, **{**_TINY, **options}).state_dict()


def _plain(depth: int) -> Dict[str, torch.Tensor]:
    return _network(depth, radix=0, deep_stem=False, avd=False, avg_down=False)


def _spoilt(number: float, name: str = "res4.0.conv1.weight") -> Dict[str, torch.Tensor]:
    state = _network()
    state[name].view(-1)[-1] = number
    return state


def _without(*names: str) -> Dict[str, torch.Tensor]:
    return {key: value for key, value in _network().items() if key not in names}


_OTHERS: Dict[str, tuple] = {
    "deeper": (lambda: _network(26), "depth 26"),
    "much deeper": (lambda: _network(50), "depth 50"),
    "of radix 1": (lambda: _network(radix=1), "radix 1"),
    "of radix 0": (lambda: _network(radix=0), "radix 0"),
    "of two groups": (lambda: _network(cardinality=2), "cardinality 2"),
    "wider": (lambda: _network(bottleneck_width=16), "bottleneck_width 16"),
    "of a plain stem": (lambda: _network(deep_stem=False), "depth 14"),
    "for grey images": (lambda: _network(in_channels=1), "depth 14"),
    "without norms": (lambda: _network(norm=""), "no norms"),
    "with layer norms": (lambda: _network(norm="LN"), "no running statistics"),
    "of a ResNet": (lambda: _plain(50), "ResNet of depth 50"),
    "of deformable convolutions": (
        lambda: _network(deform_on_per_stage=(False, True, True, True)),
        "deformable",
    ),
    "that end at res3": (lambda: _network(out_features=["res3"]), "res4"),
    "without a convolution": (lambda: _without("res3.0.conv1.weight"), "res3.0.conv1.weight"),
    "without a norm's bias": (lambda: _without("stem.conv1_1.norm.bias"), "stem.conv1_1.norm.bias"),
    "of something else": (lambda: torch.nn.Linear(3, 3).state_dict(), "another network"),
    "with NaN": (lambda: _spoilt(float("nan")), "res4.0.conv1.weight"),
    "with an infinity": (lambda: _spoilt(float("inf")), "res4.0.conv1.weight"),
    "with 1e30": (lambda: _spoilt(1e30), "res4.0.conv1.weight"),
    "with a negative variance": (lambda: _spoilt(-1, "res2.0.conv1.norm.running_var"), "negative variance"),
    "of whole numbers": (lambda: {k: v.int() for k, v in _network().items()}, "as int32"),
    "with NaN in a norm": (lambda: _spoilt(float("nan"), "res2.0.conv1.norm.running_var"), "running_var"),
}


def _wrapped(make: Callable[[], Dict[str, torch.Tensor]], detector: bool) -> bytes:
    state = make()
    if detector:
        state = {f"backbone.bottom_up.{key}": value for key, value in state.items()}
        state["roi_heads.box_predictor.cls_score.bias"] = torch.zeros(2)
    return _saved({"model": state})


def _others(
    make: Callable, said: str, detector: bool, tool: str, folder: Path, rng: np.random.Generator
) -> Case:
    case = _case(lambda rng: _wrapped(make, detector), "weights.pth", tool, folder, rng)
    return case._replace(refused=(*_NAMED, *((said,) if tool == "train" else ())))


def _by_name(depth: int, folder: Path, rng: np.random.Generator) -> Case:
    """A name whose file in the user's folder is of another network."""
    (folder / "resnest14.pth").write_bytes(
        _saved(_network(depth, res2_out_channels=256, bottleneck_width=64))
    )
    words = tiny.command(plain_dataset(folder), folder / "output", 1, "MODEL.WEIGHTS", "resnest://resnest14")
    places = {"RESNEST_D2_WEIGHTS": str(folder), "FVCORE_CACHE": str(folder / "cache")}
    return Case(["train_net.py", *words[1:]], refused=("resnest14",), environment=places)


for title, (make, said) in _OTHERS.items():
    also = ("deeper", "of radix 1", "with layer norms", "without a convolution", "with NaN")
    for detector in (False, True) if title in also else (False,):
        kind = "a detector's weights" if detector else "weights"
        tool = "evaluate" if title in ("deeper", "with NaN", "with layer norms") else "train"
        WEIGHTS[f"{kind} {title}"] = partial(_others, make, said, detector, "train")
        if tool == "evaluate":
            WEIGHTS[f"{kind} {title}, evaluated"] = partial(_others, make, said, detector, tool)
for depth in (14, 26):  # the former is what the name says, and not what the tiny configuration wants
    WEIGHTS[f"a name's file of depth {depth}"] = partial(_by_name, depth)


# Names of nothing, and of what is no file.


def _named(weights: str, texts: tuple, folder: Path, rng: np.random.Generator) -> Case:
    words = tiny.command(plain_dataset(folder), folder / "output", 1, "MODEL.WEIGHTS", weights)
    environment = {"FVCORE_CACHE": str(folder / "cache"), "RESNEST_D2_WEIGHTS": str(folder)}
    return Case(["train_net.py", *words[1:]], refused=("MODEL.WEIGHTS", *texts), environment=environment)


def _fifo(tool: str, folder: Path, rng: np.random.Generator) -> Case:
    os.mkfifo(folder / "weights.pth")
    if tool == "convert":
        return Case(["convert_weights.py", folder / "weights.pth"], refused=(*_NAMED, "FIFO"))
    return _named(str(folder / "weights.pth"), (*_NAMED, "FIFO"), folder, rng)


def _fifo_by_name(folder: Path, rng: np.random.Generator) -> Case:
    os.mkfifo(folder / "resnest14.pth")
    case = _named("resnest://resnest14", (), folder, rng)
    return case._replace(refused=("resnest14.pth", "FIFO"))


_NAMES: Dict[str, tuple] = {
    "catalog://x": ("catalog://x",),
    "catalog://ImageNetPretrained/x": ("catalog://ImageNetPretrained/x",),
    "catalog://Caffe2Detectron/COCO/x": ("catalog://",),
    "nothing://at/all.pth": ("nothing:",),
    "http://[bad/x.pth": ("http://[bad",),
    "http://127.0.0.1:1/x.pth": ("http://127.0.0.1:1/x.pth",),
    "http://": (),
    "https://127.0.0.1:99999/x.pth": ("99999",),
    "resnest://": ("resnest://",),
    "resnest://../weights": ("resnest://../weights",),
    "hf://../weights": ("hf://../weights",),
    "hf://user/name/model.safetensors": ("USER/NAME",),
    "/dev/zero": ("/dev/zero",),
    "/": (),
    "?": (),
    "x" * 5000: (),
    '"a\\0b"': (),
    '"a\\nb.pth"': (),
    "none.pth?matching_heuristics=True": ("none.pth",),
}
for text, texts in _NAMES.items():
    WEIGHTS[f"MODEL.WEIGHTS {text[:40]}"] = partial(_named, text, texts)
WEIGHTS["a FIFO, converted"] = partial(_fifo, "convert")
WEIGHTS["a FIFO, trained from"] = partial(_fifo, "train")
WEIGHTS["a FIFO in the user's folder"] = _fifo_by_name


# What looks odd, and is harmless.


def _works(content: Callable[[], bytes], name: str, folder: Path, rng: np.random.Generator) -> Case:
    (folder / name).write_bytes(content())
    words = ["convert_weights.py", folder / name, folder / "out.safetensors"]
    return Case(words, refused=None, works=True, check=partial(_missing, folder / "out.safetensors"))


def _missing(path: Path) -> Optional[str]:
    return None if path.exists() else f"{path.name} was not written"


def _as_arrays() -> Dict[str, np.ndarray]:
    return {key: value.numpy() for key, value in _network().items()}


_HARMLESS: Dict[str, tuple] = {
    "numpy scalars": (
        lambda: pickle.dumps({"model": _as_arrays(), "rate": np.float64(1), "on": np.bool_(True)}),
        "x.pkl",
    ),
    "numpy scalars in torch's format": (
        lambda: _saved({"model": _network(), "best": np.float32(3)}),
        "x.pth",
    ),
    "arrays in torch's format": (lambda: _saved({"model": _as_arrays()}), "x.pth"),
    "arrays in torch's format as numpy 1 wrote them": (
        lambda: _torch_with(lambda c: c.replace(b"numpy._core", b"numpy.core")),
        "x.pth",
    ),
    "torch's format in a .pkl": (lambda: _saved({"model": _network()}), "x.pkl"),
    "torch's old format": (
        lambda: _saved({"model": _network()}, _use_new_zipfile_serialization=False),
        "x.pth.tar",
    ),
    "a model of pycls": (lambda: _saved({"model_state": _network(), "epoch": 3}), "x.pyth"),
    "parameters": (lambda: _saved(dict(ResNeSt(14, **_TINY).named_parameters()) | _network()), "x.pth"),
    "views of one storage": (lambda: _saved(_views()), "x.pth"),
    "columns first, in another byte order": (
        lambda: pickle.dumps(
            {k: np.asfortranarray(v.astype(v.dtype.newbyteorder(">"))) for k, v in _as_arrays().items()}
        ),
        "x.pkl",
    ),
    "half precision": (lambda: _saved({k: v.half() for k, v in _network().items()}), "x.pth"),
}
for protocol in range(6):
    _HARMLESS[f"a pickle of protocol {protocol}"] = (
        lambda p=protocol: pickle.dumps(collections.OrderedDict(_as_arrays()), p),
        "x.pkl",
    )


def _torch_with(change: Callable[[bytes], bytes]) -> bytes:
    target = io.BytesIO()
    content = io.BytesIO(_saved({"model": _as_arrays()}))
    with zipfile.ZipFile(content) as source, zipfile.ZipFile(target, "w") as archive:
        for info in source.infolist():
            record = source.read(info)
            archive.writestr(info.filename, change(record) if info.filename.endswith("data.pkl") else record)
    return target.getvalue()


def _views() -> Dict[str, torch.Tensor]:
    state = _network()
    state = {key: value.float() for key, value in state.items()}
    flat, start, views = torch.cat([value.flatten() for value in state.values()]), 0, {}
    for key, value in state.items():
        views[key] = flat[start : start + value.numel()].view(value.shape)
        start += value.numel()
    return views


for title, (make, name) in _HARMLESS.items():
    WEIGHTS[f"harmless: {title}"] = partial(_works, make, name)
