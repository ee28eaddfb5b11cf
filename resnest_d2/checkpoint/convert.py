"""Recognise formats of ResNeSt weights by their content, and map their keys to this package's names."""

from __future__ import annotations

import functools
import logging
import os
import re
from pathlib import Path
from typing import Any, Container, Dict, Iterable, List, NamedTuple, Optional, Tuple

import numpy as np
import safetensors.torch
import torch
from detectron2.utils.logger import log_first_n
from torch import Tensor

from ..errors import OptionError, UserError, one_line
from ..files import atomic_writer, check_writable
from ..modeling import ResNeSt
from ..modeling.resnest import STAGE_BLOCKS
from .numbers import check_numbers, check_types
from .read import WeightsError
from .segmentors import semantic_head

State = Dict[str, Tensor]

#: Keys under which training code wraps the weights.
_WRAPPERS = ("state_dict", "model", "model_state", "model_state_dict")
#: Keys of timm and torchvision for averaged weights.
_AVERAGES = ("state_dict_ema", "model_ema")
_MAX_WRAPPERS = 10  # a malformed file may contain itself
_ALONE = "save what is meant on its own with torch.save"
#: Prefixes that DistributedDataParallel, torch.compile and Lightning add to all names.
_OUTER = ("module.", "_orig_mod.", "model.")
#: Layers whose shapes identify the network.
_TELLING = ("stem.conv1_1", "stem.conv1", "res2.0.conv1", "res2.0.conv2.conv", "res2.0.conv2", "res2.0.conv3")
#: Prefixes of the backbone in detectron2 models.
_PREFIXES = ("backbone.bottom_up.", "backbone.", "bottom_up.", "")

#: Convolutions and norms of the stem by their index in an nn.Sequential; ReLUs have no tensors.
_SEQUENTIAL = {"0": "conv1_1", "1": "conv1_1.norm", "3": "conv1_2", "4": "conv1_2.norm", "6": "conv1_3"}
#: By a tensor that identifies the format: the format's description, and its modules outside the stages.
_FORMATS: Dict[str, Tuple[str, Dict[str, str]]] = {
    "stem.0.weight": (
        "MMDetection's ResNeSt",
        {**{f"stem.{i}": f"stem.{ours}" for i, ours in _SEQUENTIAL.items()}, "stem.7": "stem.conv1_3.norm"},
    ),
    "conv1.0.weight": (
        "the authors' or timm's classification network (their names agree)",
        {**{f"conv1.{i}": f"stem.{ours}" for i, ours in _SEQUENTIAL.items()}, "bn1": "stem.conv1_3.norm"},
    ),
    "conv1.weight": (
        "a classification network with a plain stem",
        {"conv1": "stem.conv1", "bn1": "stem.conv1.norm"},
    ),
}
_BLOCK = {
    **{"conv1": "conv1", "bn1": "conv1.norm", "conv2": "conv2", "bn2": "conv2.norm"},
    **{"conv3": "conv3", "bn3": "conv3.norm"},
    **{f"conv2.{part}": f"conv2.{part}" for part in ("conv", "bn0", "fc1", "bn1", "fc2")},
}
_LAYER = re.compile(r"layer(\d)\.(\d+)\.(.+)\.(\w+)")


class UnknownFormatError(WeightsError):
    """The file has no ResNeSt in a known format."""


class Conversion(NamedTuple):
    """Weights under this package's names.

    Attributes:
        source: description of the recognised format.
        state: tensors by name. Backbones have no prefix; whole detectors keep their names.
        unexpected_keys: names in the file that have no place in the network.
        missing_keys: names in the backbone that the file has nothing for.
        options: arguments of :class:`ResNeSt` for the recognised backbone.
        is_detector: whether the file has more weights than the backbone's.
        is_renamed: whether these are a whole model's under other names than in the file.
    """

    source: str
    state: State
    unexpected_keys: List[str]
    missing_keys: List[str]
    options: Dict[str, Any]
    is_detector: bool
    is_renamed: bool = False

    def checkpoint(self) -> Dict[str, Any]:
        """Return the content of a ``.pth`` file for detectron2's stock checkpointer.

        Backbone names have no prefix, so that they fit any model that contains the backbone: detectron2's
        heuristics match names by their suffixes.
        """
        author = f"resnest_d2, from {self.source}"
        return {"model": self.state, "__author__": author, "matching_heuristics": not self.is_detector}

    def check_complete(self, name: str) -> None:
        """Raise WeightsError, naming the file ``name``, unless it has valid tensors for the backbone."""
        if self.missing_keys:
            raise WeightsError(
                name,
                f"({self.source}) does not cover the backbone: nothing for {len(self.missing_keys)} "
                f"tensors ({some(self.missing_keys)})",
                "it is incomplete or of another architecture",
            )
        check_types(self.state, name)
        check_numbers(self.state, name)


def convert(content: Dict[str, Any], name: str = "the file", own: Container[str] = ()) -> Conversion:
    """Recognise the format of ``content`` and convert it.

    Args:
        content: as :func:`read_weights` returns it.
        name: name of the file, for error messages.
        own: see :func:`bare`.

    Raises:
        UnknownFormatError: it has no ResNeSt in a known format.
        WeightsError: it has several networks.
    """
    state = unwrap(content, name, own)
    if not state:
        inside = [key for key, value in content.items() if isinstance(value, dict) and _tensors(value)]
        if inside:
            raise UnknownFormatError(name, f"holds tensors only under {some(map(repr, inside))}", _ALONE)
        raise UnknownFormatError(name, "holds no tensors")
    for prefix in _PREFIXES:
        if f"{prefix}res2.0.conv1.weight" in state:
            ours = {key: key[len(prefix) :] for key in state if key.startswith(prefix)}
            conversion = _convert("a detectron2-keyed backbone", state, ours, name)
            if not prefix or len(ours) == len(state):
                return conversion
            return conversion._replace(
                source="a whole detector", state=state, unexpected_keys=[], is_detector=True
            )
    for prefix in ("backbone.", "pretrained.", ""):
        if f"{prefix}layer1.0.conv1.weight" not in state:
            continue
        for telling, (source, stem) in _FORMATS.items():
            if f"{prefix}{telling}" in state:
                theirs = [key for key in state if key.startswith(prefix)]
                ours = {key: _rename(key[len(prefix) :], state[key], stem) for key in theirs}
                return _with_head(_convert(source, state, ours, name), state)
    found = f"its {len(state)} tensors are {some(state)}"
    raise UnknownFormatError(name, "holds no ResNeSt in a known format", found)


def as_checkpoint(content: Dict[str, Any], name: str, own: Container[str] = ()) -> Dict[str, Any]:
    """Convert ``content`` to the form that detectron2's checkpointer expects.

    Backbones are converted, and refused if incomplete. Whole detectors, with ResNeSt or not, and files
    published by detectron2 or pycls keep their names, for detectron2's heuristics to match.

    Args:
        content: as :func:`read_weights` returns it.
        name: name of the file, for error messages. If it ends in ``.pkl``, unknown names are Caffe2's.
        own: see :func:`bare`.

    Raises:
        WeightsError: it is a ResNeSt backbone that lacks tensors or has invalid numbers.
    """
    in_layout, published = isinstance(content.get("model"), dict), str(name).endswith(".pkl")
    if published and in_layout and "__author__" in content:  # from detectron2's model zoo
        return content
    try:
        conversion = convert(content, name, own)
    except UnknownFormatError:
        if in_layout:
            return content
        if isinstance(content.get("model_state"), dict):
            return {"model": unwrap(content, name), "__author__": "pycls", "matching_heuristics": True}
        if published:
            weights = content["blobs"] if isinstance(content.get("blobs"), dict) else content
            weights = {k: v for k, v in weights.items() if not str(k).endswith("_momentum")}
            return {"model": weights, "__author__": "Caffe2", "matching_heuristics": True}
        return {"model": content}
    if conversion.is_detector:
        return content if in_layout and not conversion.is_renamed else {"model": conversion.state}
    conversion.check_complete(name)
    return {**(content if in_layout else {}), **conversion.checkpoint()}


def some(names: Iterable[str], shown: int = 3) -> str:
    """Return the first few names, for error messages."""
    names = list(names)
    return ", ".join(str(n)[:80] for n in names[:shown]) + (", ..." if len(names) > shown else "")


def check_target(path: str, source: str = "") -> None:
    """Raise UserError unless :func:`write_weights` can write ``path`` without replacing ``source``."""
    if Path(path).suffix not in (".pth", ".safetensors"):
        raise UserError(f"{path!r} cannot be written: the suffix must be .pth or .safetensors")
    if os.path.realpath(check_writable(path)) == os.path.realpath(source):
        raise UserError(f"{path} is the input file; name another to write")


def write_weights(conversion: Conversion, path: str) -> None:
    """Write ``.pth``, which detectron2's stock checkpointer loads, or ``.safetensors``.

    Raises:
        UserError: the suffix is another, or the file cannot be written; nothing is left behind.
    """
    check_target(path)
    with atomic_writer(path) as file:
        if Path(path).suffix == ".pth":
            torch.save(conversion.checkpoint(), file)
        else:
            file.write(as_safetensors(conversion.state, {"source": conversion.source}))


def as_safetensors(state: State, metadata: Dict[str, str]) -> bytes:
    """Return the content of a ``.safetensors`` file, which takes no strided and no shared memory."""
    copies = {key: value.clone(memory_format=torch.contiguous_format) for key, value in state.items()}
    return safetensors.torch.save(copies, metadata)


def unwrap(content: Dict[str, Any], name: str, own: Container[str] = ()) -> State:
    """Extract the tensors from any wrapping in ``content``, without the prefixes of wrappers.

    Raises:
        WeightsError: the file, called ``name``, has several different wrapped networks.
    """
    for _ in range(_MAX_WRAPPERS):
        inner = [key for key in _WRAPPERS if isinstance(content.get(key), dict)]
        if not inner:
            break
        full = [key for key in inner if _tensors(content[key])] or inner[:1]
        for other in full[1:]:
            if not _equal(content[full[0]], content[other]):
                raise WeightsError(name, f"has different weights under {full[0]!r} and {other!r}", _ALONE)
        content = content[full[0]]
    return bare(_tensors(content), own)


def averaged(content: Dict[str, Any], name: str) -> Dict[str, Any]:
    """Return the exponential moving average of the weights in a checkpoint of timm or torchvision.

    Args:
        name: name of the file, for error messages.

    Raises:
        WeightsError: it has none.
    """
    key = next((key for key in _AVERAGES if isinstance(content.get(key), dict)), None)
    if key is None:
        raise WeightsError(name, f"holds no averaged weights ({' or '.join(_AVERAGES)})", "leave out --ema")
    return {k: value for k, value in content[key].items() if k != "n_averaged"}


def bare(state: State, own: Container[str] = ()) -> State:
    """Remove the prefixes that wrappers add to all names.

    Args:
        own: names in the model that the tensors are for, which are left unchanged.
    """
    while prefix := next((p for p in _OUTER if state and all(key.startswith(p) for key in state)), ""):
        if any(key in own for key in state):
            break
        state = {key[len(prefix) :]: value for key, value in state.items()}
    return state


def _tensors(content: Dict[str, Any]) -> State:
    return {
        key: torch.from_numpy(value) if isinstance(value, np.ndarray) else value
        for key, value in content.items()
        if isinstance(key, str) and isinstance(value, (Tensor, np.ndarray))
    }


def _equal(one: Dict[str, Any], other: Dict[str, Any]) -> bool:
    one, other = _tensors(one), _tensors(other)
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


def _convert(source: str, state: State, ours: Dict[str, Optional[str]], name: str) -> Conversion:
    """Convert the backbone in a file.

    Args:
        ours: maps names in the file to this package's, or to None.
        name: name of the file, for error messages.
    """
    backbone = {new: state[key] for key, new in ours.items() if new is not None}
    expected, options = _expected(backbone, name)
    missing = _missing(backbone, expected)
    placed = {key: value for key, value in backbone.items() if key in expected and key not in missing}
    unexpected = [key for key in state if ours.get(key) not in placed]
    return Conversion(source, placed, unexpected, missing, options, False)


def _with_head(conversion: Conversion, state: State) -> Conversion:
    """Add the file's semantic head, if it has one in a known format, for a SemanticSegmentor."""
    head = semantic_head(state)
    if head is None:
        return conversion
    unexpected = [key for key in conversion.unexpected_keys if key not in head.keys]
    if head.advice:
        log_first_n(logging.WARNING, head.advice, name=__name__, key="message")
    return conversion._replace(
        source=head.source,
        # With what has no place, for the checkpointer to tell of it.
        state={
            **{key: state[key] for key in unexpected},
            **{f"backbone.{key}": value for key, value in conversion.state.items()},
            **head.state,
        },
        unexpected_keys=unexpected,
        is_detector=True,
        is_renamed=True,
    )


def _rename(key: str, value: Tensor, stem: Dict[str, str]) -> Optional[str]:
    module, _, tensor = key.rpartition(".")
    if module in stem:
        return f"{stem[module]}.{tensor}"
    if module == "fc":
        return f"linear.{tensor}"
    match = _LAYER.fullmatch(key)
    if match is None:
        return None
    layer, block, module, tensor = match.groups()
    if module.startswith("downsample."):
        # The convolution has index 1 after an average pool, or else 0. Only it and its norm have tensors,
        # and the convolution's has four dimensions.
        new: Optional[str] = "shortcut" if value.dim() == 4 else "shortcut.norm"
    else:
        new = _BLOCK.get(module)
    return None if new is None else f"res{int(layer) + 1}.{block}.{new}.{tensor}"


def _expected(backbone: State, name: str) -> Tuple[Dict[str, Tuple[int, ...]], Dict[str, Any]]:
    """Return the names and shapes of the ResNeSt that the tensors belong to, and its options."""
    try:
        options = infer_options(backbone)
        hashable = {k: tuple(v) if isinstance(v, list) else v for k, v in options.items()}
        return _shapes(tuple(hashable.items())), options
    except (KeyError, UserError) as e:
        reason = f"nothing for {e.args[0]}" if isinstance(e, KeyError) else one_line(e, 200)
    except (LookupError, ValueError, TypeError, ArithmeticError, RuntimeError):  # from wrong shapes
        shapes = {key: backbone.get(f"{key}.weight") for key in _TELLING}
        reason = ", ".join(f"{key} of shape {tuple(v.shape)}" for key, v in shapes.items() if v is not None)
    raise UnknownFormatError(name, f"holds no complete ResNeSt ({reason})")


@functools.lru_cache(maxsize=8)  # files are recognised repeatedly, and building takes up to a second
def _shapes(options: Tuple) -> Dict[str, Tuple[int, ...]]:
    with torch.device("meta"):
        net = ResNeSt(**dict(options))
    return {key: tuple(value.shape) for key, value in net.state_dict().items()}


def _missing(backbone: State, expected: Dict[str, Tuple[int, ...]]) -> List[str]:
    # PyTorch 0.4.1 added the batch counter, and frozen norms lack it: nothing depends on it.
    return [
        key
        for key, shape in expected.items()
        if not key.endswith("num_batches_tracked")
        and (key not in backbone or tuple(backbone[key].shape) != shape)
    ]


def infer_options(backbone: State) -> Dict[str, Any]:
    """Infer the arguments of :class:`ResNeSt` that build a network of these names and shapes.

    Pools have no weights, so ``avd``, ``avd_first`` and ``avg_down`` cannot be inferred.

    Args:
        backbone: tensors by this package's names.

    Raises:
        KeyError: a tensor that every ResNeSt has is missing.
        OptionError: no depth has this many blocks.
    """
    stages = [s for s in ("res2", "res3", "res4", "res5") if f"{s}.0.conv1.weight" in backbone]
    blocks = tuple(len({k.split(".")[1] for k in backbone if k.startswith(f"{s}.")}) for s in stages)
    depths = [depth for depth, all_blocks in STAGE_BLOCKS.items() if all_blocks[: len(blocks)] == blocks]
    if not depths:
        raise OptionError("blocks per stage", blocks, "must be those of an existing depth")
    width, first = backbone["res2.0.conv1.weight"].shape[:2]
    options: Dict[str, Any] = {
        "depth": depths[0],
        "deep_stem": "stem.conv1_1.weight" in backbone,
        "res2_out_channels": backbone["res2.0.conv3.weight"].shape[0],
        "out_features": [stages[-1]],
        "norm": "BN",
    }
    if not any(key.endswith("running_mean") for key in backbone):  # LN: any without statistics
        options["norm"] = "LN" if "res2.0.conv1.norm.weight" in backbone else ""
    if options["deep_stem"]:
        options["in_channels"] = backbone["stem.conv1_1.weight"].shape[1]
        options["stem_width"] = backbone["stem.conv1_1.weight"].shape[0]
    else:
        options["in_channels"] = backbone["stem.conv1.weight"].shape[1]
        options["stem_out_channels"] = first
    if "res2.0.conv2.conv.weight" in backbone:
        splits, per_group = backbone["res2.0.conv2.conv.weight"].shape[:2]
        options["radix"] = splits // width
        cardinality = width // (per_group * options["radix"])
    else:
        options["radix"] = 0
        cardinality = width // backbone["res2.0.conv2.weight"].shape[1]
    options["cardinality"] = cardinality
    options["bottleneck_width"] = width // cardinality
    offsets = [backbone.get(f"{s}.0.conv2_offset.weight") for s in stages]
    if any(offset is not None for offset in offsets):
        options["deform_on_per_stage"] = [o is not None for o in offsets] + [False] * (4 - len(stages))
        i, offset = next((i, o) for i, o in enumerate(offsets) if o is not None)
        groups = width * 2**i // offset.shape[1]
        options["deform_num_groups"] = groups
        options["deform_modulated"] = offset.shape[0] // groups == 27
    if "linear.weight" in backbone:
        options["num_classes"] = backbone["linear.weight"].shape[0]
        options["out_features"] = [stages[-1], "linear"]
    return options
