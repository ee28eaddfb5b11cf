"""Check names and numbers in a configuration that detectron2 would reject late, or not at all."""

from __future__ import annotations

import functools
import math
from typing import Any, Dict, Iterator, Mapping, Tuple, Union

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

from ..config import CLASSIFIER, SEGMENTOR, default_config, flatten
from ..errors import OptionError, UserError, check_number, nearest
from ..modeling.norms import NORMS
from .trackers import NONE, SERVICES

#: Keys that name a part of the model, and the registry of each.
COMPONENTS = {
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
    "SOLVER.LR_SCHEDULER_NAME": (
        "WarmupMultiStepLR",
        "WarmupCosineLR",
        "WarmupStepWithFixedGammaLR",
        "WarmupPolyLR",
    ),
    "DATALOADER.SAMPLER_TRAIN": (
        "TrainingSampler",
        "RepeatFactorTrainingSampler",
        "RandomSubsetTrainingSampler",
        "WeightedTrainingSampler",
        "WeightedCategoryTrainingSampler",
    ),
    "INPUT.FORMAT": ("BGR", "RGB", "L"),  # detectron2 converts YUV to float64, which no model accepts
    "INPUT.MASK_FORMAT": ("polygon", "bitmask"),
    "INPUT.RANDOM_FLIP": ("horizontal", "vertical", "none"),
    "INPUT.MIN_SIZE_TRAIN_SAMPLING": ("choice", "range"),
    "SOLVER.WARMUP_METHOD": ("linear", "constant"),
    "SOLVER.CLIP_GRADIENTS.CLIP_TYPE": ("value", "norm"),
    "MODEL.FPN.FUSE_TYPE": ("sum", "avg"),
    **dict.fromkeys(
        (f"MODEL.{head}.BBOX_REG_LOSS_TYPE" for head in ("RPN", "ROI_BOX_HEAD", "RETINANET")),
        ("smooth_l1", "giou", "diou", "ciou"),
    ),
    "INPUT.CROP.TYPE": ("relative", "relative_range", "absolute", "absolute_range"),
    "MODEL.MEMORY_FORMAT": ("auto", "contiguous", "channels_last"),
    "TRACKER.SERVICE": (NONE, *SERVICES),
    "MODEL.SEM_SEG_HEAD.LOSS_TYPE": ("cross_entropy", "hard_pixel_mining"),
    "MODEL.SEM_SEG_HEAD.PROJECT_SIZE": (1, 3),
    "INPUT.CLASSIFICATION.TRAIN_INTERPOLATION": ("bilinear", "bicubic"),
    **dict.fromkeys(
        (f"MODEL.ROI_{head}_HEAD.POOLER_TYPE" for head in ("BOX", "MASK", "KEYPOINT")),
        ("ROIPool", "ROIAlign", "ROIAlignV2", "ROIAlignRotated"),
    ),
}
#: detectron2's parts for rotated boxes, which neither the data nor the evaluation support here.
_ROTATED = ("RRPN", "RROIHeads", "RotatedAnchorGenerator", "ROIAlignRotated")
#: Samplers and the keys that they read, which not every version of detectron2 has.
_READ = {
    "RandomSubsetTrainingSampler": "DATALOADER.RANDOM_SUBSET_RATIO",
    "WeightedTrainingSampler": "DATASETS.TRAIN_REPEAT_FACTOR",
    "WeightedCategoryTrainingSampler": "DATASETS.TRAIN_REPEAT_FACTOR",
}

#: Largest whole number, except for SEED.
_LARGEST = 2**31 - 1
#: Bounds, as arguments of :func:`check_number`, and the keys they apply to: a number, or each one in a list.
#: Limits of 65536 and less keep allocations and processes from overwhelming the machine.
_RANGES: Tuple[Tuple[Dict[str, float], str], ...] = (
    (
        {"at_least": 1},
        """
        DATASETS.PRECOMPUTED_PROPOSAL_TOPK_TRAIN DATASETS.PRECOMPUTED_PROPOSAL_TOPK_TEST
        INPUT.MAX_SIZE_TEST MODEL.RETINANET.TOPK_CANDIDATES_TEST MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE
        MODEL.RPN.BATCH_SIZE_PER_IMAGE MODEL.RPN.PRE_NMS_TOPK_TRAIN MODEL.RPN.PRE_NMS_TOPK_TEST
        MODEL.RPN.POST_NMS_TOPK_TRAIN MODEL.RPN.POST_NMS_TOPK_TEST SOLVER.CHECKPOINT_PERIOD SOLVER.MAX_ITER
        SOLVER.STEPS TEST.AUG.MAX_SIZE TEST.PRECISE_BN.NUM_ITER
        """,
    ),
    (
        {"at_least": 1, "at_most": 65536},
        """
        INPUT.MIN_SIZE_TRAIN MODEL.FPN.OUT_CHANNELS MODEL.RETINANET.NUM_CLASSES
        MODEL.ROI_BOX_HEAD.CONV_DIM MODEL.ROI_BOX_HEAD.FC_DIM MODEL.ROI_BOX_HEAD.FED_LOSS_NUM_CLASSES
        MODEL.ROI_HEADS.NUM_CLASSES MODEL.ROI_KEYPOINT_HEAD.CONV_DIMS MODEL.ROI_KEYPOINT_HEAD.NUM_KEYPOINTS
        MODEL.ROI_MASK_HEAD.CONV_DIM MODEL.SEM_SEG_HEAD.CONVS_DIM MODEL.SEM_SEG_HEAD.NUM_CLASSES
        MODEL.SEM_SEG_HEAD.ASPP_CHANNELS MODEL.SEM_SEG_HEAD.ASPP_DILATIONS
        MODEL.SEM_SEG_HEAD.PROJECT_CHANNELS SOLVER.IMS_PER_BATCH TEST.AUG.LONG_SIZE TEST.AUG.MIN_SIZES
        MODEL.CLASSIFIER.NUM_CLASSES TEST.IMS_PER_BATCH
        """,
    ),
    (
        {"at_least": 1, "at_most": 256},
        """
        MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION MODEL.ROI_KEYPOINT_HEAD.POOLER_RESOLUTION
        MODEL.ROI_MASK_HEAD.POOLER_RESOLUTION MODEL.SEM_SEG_HEAD.COMMON_STRIDE
        """,
    ),
    (
        {"at_least": 0},
        """
        DATALOADER.REPEAT_THRESHOLD MODEL.PANOPTIC_FPN.COMBINE.STUFF_AREA_LIMIT
        MODEL.PANOPTIC_FPN.INSTANCE_LOSS_WEIGHT MODEL.PROPOSAL_GENERATOR.MIN_SIZE
        MODEL.RETINANET.FOCAL_LOSS_GAMMA MODEL.RETINANET.SMOOTH_L1_LOSS_BETA
        MODEL.ROI_BOX_HEAD.BBOX_REG_LOSS_WEIGHT MODEL.ROI_BOX_HEAD.FED_LOSS_FREQ_WEIGHT_POWER
        MODEL.ROI_BOX_HEAD.SMOOTH_L1_BETA MODEL.ROI_KEYPOINT_HEAD.LOSS_WEIGHT
        MODEL.ROI_KEYPOINT_HEAD.MIN_KEYPOINTS_PER_IMAGE MODEL.RPN.BBOX_REG_LOSS_WEIGHT MODEL.RPN.LOSS_WEIGHT
        MODEL.RPN.SMOOTH_L1_BETA MODEL.SEM_SEG_HEAD.AUX_LOSS_WEIGHT MODEL.SEM_SEG_HEAD.LOSS_WEIGHT
        SOLVER.BASE_LR_END SOLVER.BIAS_LR_FACTOR
        SOLVER.CHECKPOINTS_TO_KEEP SOLVER.NUM_DECAYS SOLVER.REFERENCE_WORLD_SIZE SOLVER.SKIP_NOT_FINITE
        SOLVER.WARMUP_ITERS SOLVER.WEIGHT_DECAY SOLVER.WEIGHT_DECAY_BIAS SOLVER.WEIGHT_DECAY_NORM
        TEST.EVAL_PERIOD VIS_PERIOD DATALOADER.MAX_BAD_FILES INPUT.CLASSIFICATION.LIGHTING
        MODEL.CLASSIFIER.MIXUP_ALPHA
        """,
    ),
    ({"at_least": 16, "at_most": 8192}, "INPUT.CLASSIFICATION.TRAIN_CROP INPUT.CLASSIFICATION.TEST_CROP"),
    ({"above": 0, "at_most": 1}, "INPUT.CLASSIFICATION.TRAIN_AREA"),
    (
        {"at_least": 0, "at_most": 0.99},
        """
        MODEL.CLASSIFIER.LABEL_SMOOTHING MODEL.CLASSIFIER.DROPOUT MODEL.CLASSIFIER.DROP_BLOCK.PROB
        INPUT.CLASSIFICATION.COLOR_JITTER
        """,
    ),
    ({"at_least": 1, "at_most": 100}, "MODEL.CLASSIFIER.DROP_BLOCK.SIZE"),
    ({"at_least": 16, "at_most": 8192}, "INPUT.SCALE_CROP.CROP_SIZE TEST.AUG.WINDOW"),
    ({"at_least": 1, "at_most": 65536}, "INPUT.SCALE_CROP.LONG_SIZE"),
    ({"at_least": 0, "at_most": 0.99}, "MODEL.SEM_SEG_HEAD.ASPP_DROPOUT MODEL.SEM_SEG_HEAD.DROPOUT"),
    ({"above": 0, "at_most": 16}, "TEST.AUG.SCALES"),
    ({"at_least": 2}, "INPUT.MAX_SIZE_TRAIN"),  # detectron2 cannot flip an image of one pixel
    ({"at_least": -1e6, "at_most": 1e6}, "MODEL.PIXEL_MEAN"),
    ({"at_least": 1e-6, "at_most": 1e6}, "MODEL.PIXEL_STD"),
    ({"at_least": 0, "at_most": 65536}, "INPUT.MIN_SIZE_TEST"),  # 0: keep the image's size
    (
        {"at_least": 0, "at_most": 100},
        """
        DATALOADER.NUM_WORKERS MODEL.RETINANET.NUM_CONVS MODEL.ROI_BOX_HEAD.NUM_CONV
        MODEL.ROI_BOX_HEAD.NUM_FC MODEL.ROI_BOX_HEAD.POOLER_SAMPLING_RATIO
        MODEL.ROI_KEYPOINT_HEAD.POOLER_SAMPLING_RATIO MODEL.ROI_MASK_HEAD.NUM_CONV
        MODEL.ROI_MASK_HEAD.POOLER_SAMPLING_RATIO
        """,
    ),
    (
        {"at_least": 0, "at_most": 1},
        """
        MODEL.ANCHOR_GENERATOR.OFFSET MODEL.PANOPTIC_FPN.COMBINE.INSTANCES_CONFIDENCE_THRESH
        MODEL.PANOPTIC_FPN.COMBINE.OVERLAP_THRESH MODEL.RETINANET.IOU_THRESHOLDS
        MODEL.RETINANET.NMS_THRESH_TEST MODEL.RETINANET.SCORE_THRESH_TEST MODEL.ROI_BOX_CASCADE_HEAD.IOUS
        MODEL.ROI_HEADS.IOU_THRESHOLDS MODEL.ROI_HEADS.NMS_THRESH_TEST MODEL.ROI_HEADS.POSITIVE_FRACTION
        INPUT.SCALE_CROP.BLUR_PROB
        MODEL.ROI_HEADS.SCORE_THRESH_TEST MODEL.RPN.IOU_THRESHOLDS MODEL.RPN.NMS_THRESH
        MODEL.RPN.POSITIVE_FRACTION SOLVER.MOMENTUM SOLVER.POLY_LR_CONSTANT_ENDING SOLVER.WARMUP_FACTOR
        """,
    ),
    (
        {"above": 0},
        """
        INPUT.CROP.SIZE INPUT.CROP.SINGLE_CATEGORY_MAX_AREA
        MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS MODEL.ANCHOR_GENERATOR.SIZES
        MODEL.RETINANET.BBOX_REG_WEIGHTS MODEL.ROI_BOX_CASCADE_HEAD.BBOX_REG_WEIGHTS
        MODEL.ROI_BOX_HEAD.BBOX_REG_WEIGHTS MODEL.RPN.BBOX_REG_WEIGHTS SOLVER.BASE_LR
        SOLVER.CLIP_GRADIENTS.CLIP_VALUE SOLVER.CLIP_GRADIENTS.NORM_TYPE SOLVER.GAMMA SOLVER.HEAD_LR_FACTOR
        SOLVER.POLY_LR_POWER
        TEST.KEYPOINT_OKS_SIGMAS
        """,
    ),
    ({"above": 0, "at_most": 0.999}, "MODEL.RETINANET.PRIOR_PROB"),
    ({"at_least": -1, "at_most": 1}, "MODEL.RETINANET.FOCAL_LOSS_ALPHA"),  # -1: none
    ({"at_most": 4e9}, "SEED"),  # numpy's seeds are below 2 ** 32, and the rank is added
)
_BOUNDS = {key: bounds for bounds, keys in _RANGES for key in keys.split()}
#: Lists of whole numbers.
_COUNTS = (
    "INPUT.MIN_SIZE_TRAIN",
    "INPUT.SCALE_CROP.LONG_SIZE",
    "MODEL.SEM_SEG_HEAD.ASPP_DILATIONS",
    "MODEL.SEM_SEG_HEAD.PROJECT_CHANNELS",
    "TEST.AUG.MIN_SIZES",
    "SOLVER.STEPS",
    "MODEL.ROI_KEYPOINT_HEAD.CONV_DIMS",
    "MODEL.RPN.CONV_DIMS",
)
#: Keys that may hold no value at all, or an infinite one.
_EMPTY = ("SOLVER.STEPS", "MODEL.ROI_KEYPOINT_HEAD.CONV_DIMS")
_INFINITE = ("SOLVER.CLIP_GRADIENTS.NORM_TYPE",)
#: Required lengths of lists.
_LENGTHS = {
    "INPUT.CROP.SIZE": 2,
    "MODEL.RPN.BBOX_REG_WEIGHTS": 4,
    "MODEL.ROI_BOX_HEAD.BBOX_REG_WEIGHTS": 4,
    "MODEL.RETINANET.BBOX_REG_WEIGHTS": 4,
    "MODEL.ROI_BOX_CASCADE_HEAD.BBOX_REG_WEIGHTS": 4,
}
#: Example content of lists whose default is empty and so does not show the type.
_HELD = {
    "INPUT.SCALE_CROP.LONG_SIZE": [512],
    "TEST.KEYPOINT_OKS_SIGMAS": [0.1],
    "MODEL.FPN.IN_FEATURES": ["res4"],
    "MODEL.RESNETS.CHECKPOINT_STAGES": ["res4"],
    **{
        f"DATASETS.{key}": ["name"]
        for key in ("TRAIN", "TEST", "PROPOSAL_FILES_TRAIN", "PROPOSAL_FILES_TEST")
    },
}


def check_values(cfg: CfgNode) -> None:
    """Raise UserError for a name, a type or a number that cannot work."""
    _check_types(cfg)
    _check_names(cfg)
    values = dict(flatten(cfg))
    for key, value in values.items():
        bounds = _BOUNDS.get(key, {})
        for number in _numbers(value):
            if key in _INFINITE and number == math.inf:
                continue
            if isinstance(number, int) and abs(number) > _LARGEST and key != "SEED":
                raise OptionError(key, value, f"must be whole numbers of at most {_LARGEST}")
            check_number(key, number, **bounds)
    sizes = cfg.INPUT.MIN_SIZE_TRAIN
    if cfg.INPUT.MIN_SIZE_TRAIN_SAMPLING == "range" and len(sizes) > 2:
        rule = "must be two sizes, from and to, unless INPUT.MIN_SIZE_TRAIN_SAMPLING is choice"
        raise OptionError("INPUT.MIN_SIZE_TRAIN", sizes, rule)
    version = get_cfg().VERSION
    if cfg.VERSION != version:
        raise OptionError("VERSION", cfg.VERSION, f"must be {version}, the version of these keys")
    detections = cfg.TEST.DETECTIONS_PER_IMAGE
    if detections < 1 and detections != -1:
        raise OptionError("TEST.DETECTIONS_PER_IMAGE", detections, "must be >= 1, or -1 for all")
    widths = cfg.MODEL.RPN.CONV_DIMS
    if any(width != -1 and not 1 <= width <= 65536 for width in widths):
        raise OptionError("MODEL.RPN.CONV_DIMS", widths, "must be >= 1 and <= 65536, or -1 for its input's")
    if list(cfg.SOLVER.STEPS) != sorted(set(cfg.SOLVER.STEPS)):
        raise OptionError("SOLVER.STEPS", cfg.SOLVER.STEPS, "must increase from each to the next")
    if cfg.INPUT.CROP.TYPE.startswith("relative") and max(cfg.INPUT.CROP.SIZE) > 1:
        raise OptionError("INPUT.CROP.SIZE", cfg.INPUT.CROP.SIZE, "must be <= 1, a fraction of the image")
    if len(cfg.MODEL.PIXEL_STD) != len(cfg.MODEL.PIXEL_MEAN):
        raise OptionError("MODEL.PIXEL_STD", cfg.MODEL.PIXEL_STD, "must be as long as MODEL.PIXEL_MEAN")
    for key, length in _LENGTHS.items():
        rows = values[key] if isinstance(values[key][0], (list, tuple)) else [values[key]]
        if any(len(row) != length for row in rows):
            raise OptionError(key, values[key], f"must be {length} numbers")
    for head in ("RPN", "ROI_HEADS", "RETINANET"):
        key = f"MODEL.{head}.IOU_THRESHOLDS"
        if len(values[key]) + 1 != len(values[f"MODEL.{head}.IOU_LABELS"]):
            raise OptionError(key, values[key], f"must be one shorter than MODEL.{head}.IOU_LABELS")
    head = "RETINANET" if cfg.MODEL.META_ARCHITECTURE == "RetinaNet" else "RPN"
    for key in ("MODEL.ANCHOR_GENERATOR.SIZES", "MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS"):
        if len(values[key]) not in (1, len(values[f"MODEL.{head}.IN_FEATURES"])):
            raise OptionError(key, values[key], f"must be one list, or as many as MODEL.{head}.IN_FEATURES")
    _check_parts(cfg.MODEL, values)
    _check_semantic(cfg)
    _check_classifier(cfg)
    for entry in cfg.TEST.EXPECTED_RESULTS:  # these are read last, after training
        kinds = [type(part) for part in entry] if isinstance(entry, (list, tuple)) else []
        if kinds[:2] != [str, str] or len(kinds) != 4 or not set(kinds[2:]) <= {int, float}:
            raise OptionError("TEST.EXPECTED_RESULTS", entry, "must be [task, metric, value, tolerance]")


def _check_parts(model: CfgNode, values: Mapping[str, Any]) -> None:
    """Raise OptionError for parts that do not fit each other.

    Args:
        values: the values of all keys.
    """
    sampler = values["DATALOADER.SAMPLER_TRAIN"]
    for key, value in values.items():
        if value in _ROTATED and (key in COMPONENTS or key in _CHOICES):
            raise OptionError(key, value, "must be for boxes that are not rotated")
    if _READ.get(sampler, "SEED") not in values:
        rule = f"must be one that needs no {_READ[sampler]}, which this detectron2 lacks"
        raise OptionError("DATALOADER.SAMPLER_TRAIN", sampler, rule)
    if model.META_ARCHITECTURE not in ("GeneralizedRCNN", "PanopticFPN"):
        return
    if model.PROPOSAL_GENERATOR.NAME == "PrecomputedProposals" and not model.LOAD_PROPOSALS:
        rule = "must be True with MODEL.PROPOSAL_GENERATOR.NAME PrecomputedProposals"
        raise OptionError("MODEL.LOAD_PROPOSALS", model.LOAD_PROPOSALS, rule)
    if model.ROI_HEADS.NAME == "CascadeROIHeads":
        _check_cascade(model)


def _check_semantic(cfg: CfgNode) -> None:
    """Raise OptionError for settings of semantic segmentation that do not fit each other."""
    lengths, crop = cfg.INPUT.SCALE_CROP.LONG_SIZE, cfg.INPUT.SCALE_CROP.CROP_SIZE
    if lengths and (len(lengths) != 2 or lengths[0] > lengths[1]):
        raise OptionError("INPUT.SCALE_CROP.LONG_SIZE", lengths, "must be two lengths, from and to, or empty")
    if cfg.MODEL.META_ARCHITECTURE != SEGMENTOR:
        if lengths:
            rule = f"must be empty with MODEL.META_ARCHITECTURE {cfg.MODEL.META_ARCHITECTURE}"
            raise OptionError("INPUT.SCALE_CROP.LONG_SIZE", lengths, rule)
        if cfg.SOLVER.HEAD_LR_FACTOR != 1 and cfg.MODEL.META_ARCHITECTURE != "PanopticFPN":
            rule = f"must be 1, as MODEL.META_ARCHITECTURE {cfg.MODEL.META_ARCHITECTURE} has no semantic head"
            raise OptionError("SOLVER.HEAD_LR_FACTOR", cfg.SOLVER.HEAD_LR_FACTOR, rule)
        return
    resnets, head = cfg.MODEL.RESNETS, cfg.MODEL.SEM_SEG_HEAD
    # Label maps have 8 bits.
    check_number("MODEL.SEM_SEG_HEAD.IGNORE_VALUE", head.IGNORE_VALUE, at_least=0, at_most=255)
    check_number("MODEL.SEM_SEG_HEAD.NUM_CLASSES", head.NUM_CLASSES, at_most=256)
    if cfg.SOLVER.HEAD_LR_FACTOR != 1 and cfg.SOLVER.BIAS_LR_FACTOR != 1:
        rule = "must be 1 with SOLVER.HEAD_LR_FACTOR, which it would undo for biases"
        raise OptionError("SOLVER.BIAS_LR_FACTOR", cfg.SOLVER.BIAS_LR_FACTOR, rule)
    stride = 8 if resnets.RES4_DILATION > 1 else 16 if resnets.RES5_DILATION > 1 else 32
    for key, size in (("INPUT.SCALE_CROP.CROP_SIZE", crop), ("TEST.AUG.WINDOW", cfg.TEST.AUG.WINDOW)):
        if size % stride:
            raise OptionError(key, size, f"must be a multiple of the backbone's stride, {stride}")
    if lengths and cfg.INPUT.CROP.ENABLED:
        rule = "must be False with INPUT.SCALE_CROP.LONG_SIZE, which crops too"
        raise OptionError("INPUT.CROP.ENABLED", True, rule)


def _check_classifier(cfg: CfgNode) -> None:
    """Raise OptionError for settings of image classification that do not fit each other."""
    if cfg.MODEL.META_ARCHITECTURE != CLASSIFIER:
        return
    if cfg.TEST.AUG.ENABLED:
        raise OptionError(
            "TEST.AUG.ENABLED", True, f"must be False with MODEL.META_ARCHITECTURE {CLASSIFIER}"
        )
    if cfg.MODEL.BACKBONE.NAME != "build_resnest_backbone":
        rule = f"must be build_resnest_backbone with MODEL.META_ARCHITECTURE {CLASSIFIER}"
        raise OptionError("MODEL.BACKBONE.NAME", cfg.MODEL.BACKBONE.NAME, rule)
    block = cfg.MODEL.CLASSIFIER.DROP_BLOCK
    shared = {*block.STAGES} & {*cfg.MODEL.RESNETS.CHECKPOINT_STAGES}
    if block.PROB and shared:
        rule = f"must not hold {min(shared)}, whose recomputation would draw other pixels in DropBlock"
        raise OptionError("MODEL.RESNETS.CHECKPOINT_STAGES", cfg.MODEL.RESNETS.CHECKPOINT_STAGES, rule)


def _check_cascade(model: CfgNode) -> None:
    agnostic, cascade = model.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG, model.ROI_BOX_CASCADE_HEAD
    ious, weights, first = cascade.IOUS, cascade.BBOX_REG_WEIGHTS, model.ROI_HEADS.IOU_THRESHOLDS[0]
    with_it = "with MODEL.ROI_HEADS.NAME CascadeROIHeads"
    if not agnostic:
        raise OptionError("MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG", agnostic, f"must be True {with_it}")
    if ious[0] != first:
        rule = f"must begin with {first}, that of MODEL.ROI_HEADS.IOU_THRESHOLDS, {with_it}"
        raise OptionError("MODEL.ROI_BOX_CASCADE_HEAD.IOUS", ious, rule)
    if len(weights) != len(ious):
        rule = f"must be {len(ious)}, one for each of MODEL.ROI_BOX_CASCADE_HEAD.IOUS, {with_it}"
        raise OptionError("MODEL.ROI_BOX_CASCADE_HEAD.BBOX_REG_WEIGHTS", weights, rule)


def check_proposals(cfg: CfgNode, train: bool) -> None:
    """Raise OptionError unless each dataset has a file of proposals, if proposals are loaded."""
    for split in ("TRAIN", "TEST") if train else ("TEST",):
        key, names = f"PROPOSAL_FILES_{split}", cfg.DATASETS[split]
        if cfg.MODEL.LOAD_PROPOSALS and len(cfg.DATASETS[key]) != len(names):
            rule = f"must be {len(names)}, one for each of DATASETS.{split}, with MODEL.LOAD_PROPOSALS True"
            raise OptionError(f"DATASETS.{key}", cfg.DATASETS[key], rule)


def check_sigmas(cfg: CfgNode) -> None:
    """Raise OptionError unless each keypoint has a constant; COCO's default has 17."""
    sigmas, count = cfg.TEST.KEYPOINT_OKS_SIGMAS, cfg.MODEL.ROI_KEYPOINT_HEAD.NUM_KEYPOINTS
    if cfg.MODEL.KEYPOINT_ON and (len(sigmas) or 17) != count:
        raise OptionError(
            "TEST.KEYPOINT_OKS_SIGMAS", sigmas,
            f"must be {count} numbers, as MODEL.ROI_KEYPOINT_HEAD.NUM_KEYPOINTS is",
        )  # fmt: skip


def _numbers(value: Any) -> Iterator[Union[int, float]]:
    """Yield all numbers in a value, however deeply nested."""
    if isinstance(value, (list, tuple)):
        for entry in value:
            yield from _numbers(entry)
    elif isinstance(value, (int, float)):
        yield value


def _check_types(cfg: CfgNode) -> None:
    """Raise OptionError for types that detectron2's merge accepts: None, and anything in a list."""
    for key, default in flatten(default_config()):
        value = functools.reduce(getattr, key.split("."), cfg)
        if value is None and default is not None:
            raise OptionError(key, value, f"must be {_kind(default)}")
        if isinstance(default, (list, tuple)):
            held = _HELD.get(key, default)
            _check_list(key, value, value, held, may_be_empty=key in _EMPTY or not default)
        elif default is None and not isinstance(value, (int, float, type(None))):
            raise OptionError(key, value, "must be a number or None")


def _check_list(key: str, value: Any, part: Any, default: Any, may_be_empty: bool) -> None:
    """Raise OptionError unless a part of a key's value has the same structure as the default."""
    if isinstance(default, (list, tuple)):
        if not isinstance(part, (list, tuple)):
            raise OptionError(key, value, f"must be {_kind(default)} wherever it is {part!r}")
        if not part and not may_be_empty:
            raise OptionError(key, value, "must not be empty")
        for entry in part if default else ():
            _check_list(key, value, entry, default[0], False)
        return
    fitting = (int,) if key in _COUNTS else (int, float)
    if type(part) not in ((type(default),) if isinstance(default, (bool, str)) else fitting):
        kind = "whole numbers" if key in _COUNTS else _kind(default)
        raise OptionError(key, value, f"must hold {kind}, not {part!r}")


def _kind(default: Any) -> str:
    kinds = {bool: "True or False", int: "a number", float: "a number", str: "text"}
    return kinds.get(type(default), "a list")


def _check_names(cfg: CfgNode) -> None:
    """Raise UserError for an unknown name, suggesting the nearest known one."""
    values, defaults = dict(flatten(cfg)), dict(flatten(default_config()))
    known = {key: [name for name, _ in registry] for key, registry in COMPONENTS.items()}
    known["MODEL.PROPOSAL_GENERATOR.NAME"].append("PrecomputedProposals")
    known.update(_CHOICES)
    known.update({key: NORMS for key in values if key.endswith(".NORM")})
    for key, names in known.items():
        if values[key] != defaults.get(key) and values[key] not in names:
            raise UserError(f"{key}: there is no {values[key]!r}; {nearest(values[key], map(str, names))}")
