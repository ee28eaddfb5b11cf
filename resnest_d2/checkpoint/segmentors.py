"""Names of the semantic heads in weight files of other segmentation code."""

from __future__ import annotations

from typing import Dict, NamedTuple, Optional

import torch
from torch import Tensor

_PREFIX = "sem_seg_head."


_MMSEGMENTATION = (
    "weights of mmsegmentation need MODEL.RESNETS.AVD_DILATED False and, of MODEL.SEM_SEG_HEAD, "
    "ALIGN_CORNERS False, HEAD_CONV False and PROJECT_SIZE 3"
)


class SemanticHead(NamedTuple):
    """A semantic head in a file.

    Attributes:
        source: the code that the file is from.
        state: its tensors, by the names of a SemanticSegmentor with ResNeStDeepLabV3Head.
        keys: their names in the file.
        advice: settings that the network needs; empty if those of the recipes fit.
    """

    source: str
    state: Dict[str, Tensor]
    keys: frozenset
    advice: str


def _encoding() -> Dict[str, str]:
    """Names of modules in the authors' code, PyTorch-Encoding, and ours."""
    names = {"head.aspp.project.0": "aspp.project", "head.aspp.project.1": "aspp.project.norm"}
    for branch in range(5):
        theirs, first = (f"head.aspp.b{branch}", 0) if branch < 4 else ("head.aspp.b4.gap", 1)
        names[f"{theirs}.{first}"] = f"aspp.convs.{branch}"
        names[f"{theirs}.{first + 1}"] = f"aspp.convs.{branch}.norm"
    for theirs, ours in (("head.block", "head"), ("auxlayer.conv5", "aux_head")):
        parts = {"0": "conv", "1": "conv.norm", "4": "predictor"}
        names.update({f"{theirs}.{part}": f"{ours}.{name}" for part, name in parts.items()})
    return names


def _mmsegmentation() -> Dict[str, str]:
    names = {}
    for theirs, ours in (
        *((f"decode_head.aspp_modules.{i}", f"aspp.convs.{i}") for i in range(4)),
        ("decode_head.image_pool.1", "aspp.convs.4"),
        ("decode_head.bottleneck", "aspp.project"),
        ("auxiliary_head.convs.0", "aux_head.conv"),
    ):
        names.update({f"{theirs}.conv": ours, f"{theirs}.bn": f"{ours}.norm"})
    predictors = {"decode_head.conv_seg": "head.predictor", "auxiliary_head.conv_seg": "aux_head.predictor"}
    return {**names, **predictors}


def semantic_head(state: Dict[str, Tensor]) -> Optional[SemanticHead]:
    """Find a DeepLabV3 head among the tensors of a file, or return None."""
    if "head.aspp.b0.0.weight" in state:
        source, names = "the authors' segmentation network", _encoding()
    elif {"decode_head.aspp_modules.1.conv.weight", "decode_head.image_pool.1.conv.weight"} <= state.keys():
        # In DeepLabV3+, that convolution has two parts.
        source, names = "mmsegmentation's DeepLabV3", _mmsegmentation()
    else:
        return None
    ours = {}
    for key in state:
        module, _, tensor = key.rpartition(".")
        if module in names:
            ours[key] = f"{_PREFIX}{names[module]}.{tensor}"
    renamed = {name: state[key] for key, name in ours.items()}
    project = f"{_PREFIX}aspp.project.weight"
    if source.startswith("mmseg") and project in renamed and renamed[project].dim() == 4:
        # There the pooled image comes before the convolutions, here after them.
        first, *others = renamed[project].chunk(5, 1)
        renamed[project] = torch.cat([*others, first], 1)
    advice = _MMSEGMENTATION if source.startswith("mmseg") else ""
    return SemanticHead(source, renamed, frozenset(ours), advice)
