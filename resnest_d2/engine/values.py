"""Names and numbers in a configuration that detectron2 would trip over in the middle, or not at all."""

from __future__ import annotations

import difflib
import math
from typing import Any, Callable, Dict, Iterable, Tuple

from detectron2.config import CfgNode, get_cfg
from detectron2.modeling import (
    ANCHOR_GENERATOR_REGISTRY,
    BACKBONE_REGISTRY,
    META_ARCH_REGISTRY,
    PROPOSAL_GENERATOR_REGISTRY,
    ROI_BOX_HEAD_REGISTRY,
    ROI_HEADS_REGISTRY,
    ROI_KEYPOINT_HEAD_REGISTRY,
    ROI_MASK_HEAD_REGISTRY,
    SEM_SEG_HEADS_REGISTRY,
)
from detectron2.modeling.proposal_generator.rpn import RPN_HEAD_REGISTRY

from ..errors import OptionError, UserError
from ..modeling.norms import NORMS
from .expectations import flatten

_REGISTRIES = {
    "MODEL.META_ARCHITECTURE": META_ARCH_REGISTRY,
    "MODEL.BACKBONE.NAME": BACKBONE_REGISTRY,
    "MODEL.PROPOSAL_GENERATOR.NAME": PROPOSAL_GENERATOR_REGISTRY,
    "MODEL.ANCHOR_GENERATOR.NAME": ANCHOR_GENERATOR_REGISTRY,
    "MODEL.RPN.HEAD_NAME": RPN_HEAD_REGISTRY,
    "MODEL.ROI_HEADS.NAME": ROI_HEADS_REGISTRY,
    "MODEL.ROI_BOX_HEAD.NAME": ROI_BOX_HEAD_REGISTRY,
    "MODEL.ROI_MASK_HEAD.NAME": ROI_MASK_HEAD_REGISTRY,
    "MODEL.ROI_KEYPOINT_HEAD.NAME": ROI_KEYPOINT_HEAD_REGISTRY,
    "MODEL.SEM_SEG_HEAD.NAME": SEM_SEG_HEADS_REGISTRY,
}
_CHOICES = {
    "SOLVER.LR_SCHEDULER_NAME": ("WarmupMultiStepLR", "WarmupCosineLR", "WarmupStepWithFixedGammaLR"),
    "DATALOADER.SAMPLER_TRAIN": (
        *("TrainingSampler", "RepeatFactorTrainingSampler", "RandomSubsetTrainingSampler"),
        *("WeightedTrainingSampler", "WeightedCategoryTrainingSampler"),
    ),
    "INPUT.FORMAT": ("BGR", "RGB", "L", "YUV-BT.601"),
    "INPUT.MASK_FORMAT": ("polygon", "bitmask"),
    "INPUT.RANDOM_FLIP": ("horizontal", "vertical", "none"),
    "INPUT.MIN_SIZE_TRAIN_SAMPLING": ("choice", "range"),
    "INPUT.CROP.TYPE": ("relative", "relative_range", "absolute", "absolute_range"),
    "MODEL.MEMORY_FORMAT": ("auto", "contiguous", "channels_last"),
    "MODEL.ROI_BOX_HEAD.POOLER_TYPE": ("ROIPool", "ROIAlign", "ROIAlignV2", "ROIAlignRotated"),
    "MODEL.ROI_MASK_HEAD.POOLER_TYPE": ("ROIPool", "ROIAlign", "ROIAlignV2", "ROIAlignRotated"),
}


#: Key to what its value must be, or each of its values.
_NUMBERS: Dict[str, Tuple[str, Callable[[Any], bool]]] = {
    **dict.fromkeys(
        (
            *("SOLVER.IMS_PER_BATCH", "SOLVER.MAX_ITER", "SOLVER.CHECKPOINT_PERIOD", "INPUT.MAX_SIZE_TRAIN"),
            *("INPUT.MAX_SIZE_TEST", "MODEL.ROI_HEADS.NUM_CLASSES", "MODEL.RETINANET.NUM_CLASSES"),
        ),
        (">= 1", lambda value: value >= 1),
    ),
    "INPUT.MIN_SIZE_TRAIN": (">= 1", lambda value: value >= 1),
    "SOLVER.BASE_LR": ("> 0 and finite", lambda value: 0 < value < math.inf),
    "DATALOADER.NUM_WORKERS": (">= 0", lambda value: value >= 0),
    "TEST.EVAL_PERIOD": (">= 0", lambda value: value >= 0),
    "TEST.DETECTIONS_PER_IMAGE": (">= 1, or -1 for all", lambda value: value >= 1 or value == -1),
    "SOLVER.SKIP_NOT_FINITE": (">= 0", lambda value: value >= 0),
    "SOLVER.CHECKPOINTS_TO_KEEP": (">= 0", lambda value: value >= 0),
    "MODEL.PIXEL_STD": ("> 0", lambda value: value > 0),
}


def check_values(cfg: CfgNode) -> None:
    """Raise UserError for a name or a number that cannot work."""
    _check_names(cfg)
    values = dict(flatten(cfg))
    for key, (rule, holds) in _NUMBERS.items():
        several = values[key] if isinstance(values[key], (tuple, list)) else [values[key]]
        if not several or not all(holds(value) for value in several):
            raise OptionError(key, values[key], f"must be {rule}")
    if list(cfg.SOLVER.STEPS) != sorted(set(cfg.SOLVER.STEPS)):
        raise OptionError("SOLVER.STEPS", cfg.SOLVER.STEPS, "must rise from one to the next")


def _check_names(cfg: CfgNode) -> None:
    """Raise UserError for a name that is not known, with the nearest that is."""
    values, defaults = dict(flatten(cfg)), dict(flatten(get_cfg()))
    known = {key: [name for name, _ in registry] for key, registry in _REGISTRIES.items()}
    known.update(_CHOICES)
    known.update({key: NORMS for key in values if key.endswith(".NORM")})
    for key, names in known.items():
        if values[key] != defaults.get(key) and values[key] not in names:
            raise UserError(f"{key}: there is no {values[key]!r}; {_nearest(values[key], names)}")


def _nearest(name: str, names: Iterable[str]) -> str:
    near = difflib.get_close_matches(str(name), names, 1, cutoff=0.5)
    if near:
        return f"did you mean {near[0]}?"
    return f"there are {', '.join(repr(n) if not n else n for n in names)}"
