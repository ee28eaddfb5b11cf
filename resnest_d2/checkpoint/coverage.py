"""Find out which parts of a model a weight file leaves random, and which network it seems to be for."""

from __future__ import annotations

import logging
import re
from typing import Any, Dict, List, Mapping, NamedTuple, NoReturn, Sequence

from detectron2.checkpoint.c2_model_loading import convert_basic_c2_names
from detectron2.layers import CNNBlockBase
from detectron2.modeling.backbone import Backbone
from torch import Tensor, nn

from ..errors import UserError
from .convert import UnknownFormatError, convert, some

logger = logging.getLogger(__name__)

_REMEDY = "name weights of that, or give --allow-random-weights"


class Coverage(NamedTuple):
    """How the weights of a file fit a model.

    Attributes:
        file: its path.
        missing_keys: names in the model for which the file has no tensor of the same shape.
        backbone: those of them that belong to the backbone and must not stay random.
        misplaced: names in the file that show it is for another backbone.
        norms: whether only one of file and model has norms with running statistics.
        unplaced: names in the file of a semantic head's layers that the model's lacks.
        fresh: norms of the model that normalise each image on its own, if those of the file do not.
        found, wanted: the tensors of the file and of the model's backbone.
    """

    file: str
    missing_keys: List[str]
    backbone: List[str]
    misplaced: List[str]
    norms: bool
    unplaced: List[str]
    fresh: List[str]
    found: Mapping[str, Tensor]
    wanted: Mapping[str, Tensor]

    @property
    def parts(self) -> str:
        """Name the parts of the model in ``missing_keys``."""
        return ", ".join(sorted({".".join(key.split(".")[:2]) for key in self.missing_keys}))

    def check_backbone(self) -> None:
        """Raise UserError unless training may start from these backbone weights.

        Norms that normalise each image on its own, like GN, may start with the scale and bias of others.
        """
        if self.backbone or self.misplaced or (self.norms and not self.fresh):
            self._refuse()
        if self.fresh:
            logger.warning(
                "MODEL.WEIGHTS: the norms of %s have statistics; %d of the model start with only their scale "
                "and bias: %s",
                self.file,
                len(self.fresh),
                some(self.fresh),
            )

    def check_all(self) -> None:
        """Raise UserError unless there are weights for the whole model, and for no more of its semantic head.

        Evaluation does without the auxiliary head.
        """
        missing = [key for key in self.missing_keys if not key.startswith(_AUXILIARY)]
        if self.unplaced:
            raise UserError(
                f"MODEL.WEIGHTS: {self.file} has more layers than the model's head ({some(self.unplaced)}); "
                "set MODEL.SEM_SEG_HEAD as in its run, or give --allow-random-weights"
            )
        if missing:
            offsets = all(_is_offset(key) for key in missing)
            other = f"; {self._seems()}" if self.backbone or self.misplaced else ""
            raise UserError(
                f"MODEL.WEIGHTS: {self.file} holds no weights for {self.parts}, which would stay "
                f"{'zero' if offsets else 'random'}{other}; name a trained model, "
                "or give --allow-random-weights"
            )
        if self.backbone or self.misplaced or self.norms:
            self._refuse()

    def _refuse(self) -> NoReturn:
        raise UserError(f"MODEL.WEIGHTS: {self._mismatch()}; {_REMEDY}")

    def _mismatch(self) -> str:
        reasons = []
        if self.backbone:
            reasons.append(f"nothing for {len(self.backbone)} of the model's tensors ({some(self.backbone)})")
        if self.misplaced:
            reasons.append(f"no place for {len(self.misplaced)} of its own ({some(self.misplaced)})")
        if self.norms:
            reasons.append("norms of another kind")
        return f"{self.file} does not fit the model: {', '.join(reasons)}; {self._seems()}"

    def _seems(self) -> str:
        return f"it seems to be {_describe(self.found)}, the configuration wants {_describe(self.wanted)}"


def cover(
    model: nn.Module,
    file: str,
    weights: Mapping[str, Tensor],
    missing: Sequence[str],
    unexpected: Sequence[str],
) -> Coverage:
    """Determine how weights fit a model.

    A classifier's weights do not cover a detector's heads, which is how training starts. Norms merged into
    scale and bias, as in detectron2's weights from MSRA, lack statistics, which then start at 0 and 1.
    Offsets of deformable convolutions start at zero.

    Args:
        file: source of the weights.
        weights: tensors by the file's own names.
        missing, unexpected: as reported by fvcore's checkpointer: names in the model for which the file has
            nothing, and names that the model has no place for.
    """
    state, prefixes = model.state_dict(), _backbones(model)
    missing = [key for key in missing if not key.endswith("num_batches_tracked")]
    own = [key for key in state if key.startswith(prefixes)]
    merged = any("_bn_" in key for key in weights)
    has_statistics = any(key.endswith("running_mean") for key in weights)
    normalized = merged or any(re.search(r"norm\.weight$|_gn_s$|bn\d?\.weight$", key) for key in weights)
    wants_statistics = any(key.endswith("running_mean") for key in own)
    wants_norms = any(key.endswith("norm.weight") for key in own)
    norms = normalized and wants_norms and (has_statistics or merged) != wants_statistics
    fresh = [key[: -len(".weight")] for key in own if norms and _NORM.search(key) and not wants_statistics]
    open_backbone = [
        key
        for key in missing
        if key.startswith(prefixes)
        and not _is_offset(key)
        and not key.split(".")[-2:-1] == ["linear"]  # a classifier's head
        and (has_statistics or norms or not re.search(r"running_(mean|var)$", key))
    ]
    if len(missing) == len([key for key in state if not key.endswith("num_batches_tracked")]):
        open_backbone = open_backbone or missing  # nothing fits, whatever the model calls its backbone
    places = {match[0] for match in map(_BLOCK.search, own) if match}
    stages = {place.split(".")[0] for place in places}
    another = r"conv2_offset|\.norm\." + ("(weight|bias)" if fresh else "(?!num_batches)")
    misplaced = [
        key
        for key in unexpected
        if (match := _BLOCK.search(key))
        and match["stage"] in stages
        and (match[0] not in places or re.search(another, key))
    ]
    prefix = next((p for p in prefixes if any(k.startswith(p) for k in own)), "")
    return Coverage(
        file,
        missing,
        open_backbone,
        misplaced,
        norms,
        [key for key in unexpected if key.startswith(_HEAD) and not key.startswith(_AUXILIARY)],
        fresh,
        weights,
        {key[len(prefix) :]: value for key, value in state.items() if key.startswith(prefix)},
    )


_HEAD = "sem_seg_head."
_AUXILIARY = f"{_HEAD}aux_head."
_NORM = re.compile(r"(norm|bn\d)\.weight$")
_BLOCK = re.compile(r"(?:(?<=\.)|^)(?P<stage>res[2-5])\.\d+(?=\.)")


def _backbones(model: nn.Module) -> tuple:
    """Return the prefixes of parts that classifiers pretrain: innermost backbones, and res5 in C4 heads."""
    backbones = {name: m for name, m in model.named_modules() if isinstance(m, Backbone)}
    inner = [
        name for name, m in backbones.items() if sum(isinstance(part, Backbone) for part in m.modules()) == 1
    ]
    prefixes = [f"{name}." if name else "" for name in inner]
    blocks = [f"{name}." for name, m in model.named_modules() if isinstance(m, CNNBlockBase)]
    return tuple(prefixes + [name for name in blocks if not name.startswith(tuple(prefixes) or ("\0",))])


def _is_offset(key: str) -> bool:
    return "conv2_offset." in key


def _describe(state: Mapping[str, Any]) -> str:
    """Describe the network that has tensors of these names and shapes."""
    if not any("." in key for key in state):  # Caffe2's names
        state = dict(zip(convert_basic_c2_names(list(state)), state.values()))
    try:
        options = convert(dict(state)).options
    except UnknownFormatError:
        return f"another network ({len(state)} tensors: {some(state)})"
    return _in_words(options)


def _in_words(options: Dict[str, Any]) -> str:
    name = "ResNeSt" if options["radix"] or options["deep_stem"] else "ResNet"
    numbers = {
        key: options[key]
        for key in ("depth", "radix", "cardinality", "bottleneck_width", "res2_out_channels")
    }
    words = [f"{key} {value}" for key, value in numbers.items()]
    if any(options.get("deform_on_per_stage", ())):
        words.append("deformable")
    words.append({"BN": "running statistics", "LN": "no running statistics"}.get(options["norm"], "no norms"))
    return f"{name} of {', '.join(words)}"
