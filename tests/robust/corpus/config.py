"""Configurations with wrong types, unknown keys and names, and values that cannot work."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Callable, Dict, Optional, Sequence

import numpy as np

from .. import tiny
from .case import Case
from .images import plain_dataset, train

CONFIG: Dict[str, Callable[[Path, np.random.Generator], Case]] = {}


def _case(settings: Sequence[object], expected: Dict, folder: Path, rng: np.random.Generator) -> Case:
    case = train(folder, plain_dataset(folder), **expected)
    return case._replace(words=[*case.words, *settings])


def _refused(
    key: str, value: object, *texts: str, also: Sequence[object] = (), mention: Optional[str] = None
) -> None:
    # The line must name the key, unless what is wrong is seen by detectron2 only.
    named = mention if mention is not None else key.split(".")[-1]
    CONFIG[f"{key} {value}"] = partial(_case, [*also, key, value], {"refused": (named, *texts)})


def _works(key: str, value: object, *also: object) -> None:
    CONFIG[f"{key} {value} works"] = partial(_case, [*also, key, value], {"refused": None, "works": True})


for key in (
    *("SOLVER.BASE_LR", "SOLVER.MAX_ITER", "SOLVER.IMS_PER_BATCH", "SOLVER.MOMENTUM", "MODEL.RESNETS.DEPTH"),
    *("MODEL.RESNETS.RADIX", "MODEL.RESNETS.AVD", "INPUT.MAX_SIZE_TRAIN", "DATALOADER.NUM_WORKERS"),
    *("MODEL.ROI_HEADS.NUM_CLASSES", "MODEL.BACKBONE.FREEZE_AT", "TEST.EVAL_PERIOD", "SEED"),
):
    for value in ("word", "[1, 2]", "{'a': 1}"):
        _refused(key, value)
for key, near in (
    ("SOLVER.BASE_LT", "SOLVER.BASE_LR"),
    ("MODEL.RESNETS.RADIUS", "MODEL.RESNETS.RADIX"),
    ("MODEL.RESNET.DEPTH", "MODEL.RESNETS.DEPTH"),
    ("INPUT.MIN_SIZE", "INPUT.MIN_SIZE"),
    ("TEST.EVAL_PERIODS", "TEST.EVAL_PERIOD"),
    ("output_dir", "OUTPUT_DIR"),
):
    _refused(key, 1, near, mention=key.split(".")[0])
for key, value, near in (
    ("MODEL.META_ARCHITECTURE", "GeneralisedRCNN", "GeneralizedRCNN"),
    ("MODEL.BACKBONE.NAME", "build_resnest_fpn", "build_resnest_fpn_backbone"),
    ("MODEL.PROPOSAL_GENERATOR.NAME", "RPM", "RPN"),
    ("MODEL.ANCHOR_GENERATOR.NAME", "DefaultAnchorGenerater", "DefaultAnchorGenerator"),
    ("MODEL.ROI_HEADS.NAME", "StandardROIHead", "StandardROIHeads"),
    ("MODEL.ROI_BOX_HEAD.NAME", "FastRCNNConvFC", "FastRCNNConvFCHead"),
    ("MODEL.RPN.HEAD_NAME", "StandardRPN", "StandardRPNHead"),
    ("MODEL.RESNETS.NORM", "SyncBatchNorm", "SyncBN"),
    ("MODEL.FPN.NORM", "GroupNorm", "GN"),
    ("MODEL.ROI_BOX_HEAD.NORM", "bn", "BN"),
    ("MODEL.ROI_BOX_HEAD.POOLER_TYPE", "ROIAling", "ROIAlign"),
    ("SOLVER.LR_SCHEDULER_NAME", "WarmupCosine", "WarmupCosineLR"),
    ("SOLVER.OPTIMIZER", "ADAM", "ADAMW"),
    ("DATALOADER.SAMPLER_TRAIN", "Training", "TrainingSampler"),
    ("INPUT.FORMAT", "RBG", "RGB"),
    ("INPUT.RANDOM_FLIP", "horizontally", "horizontal"),
    ("INPUT.MIN_SIZE_TRAIN_SAMPLING", "choise", "choice"),
):
    _refused(key, value, near)
for key, value in (
    ("MODEL.RESNETS.RADIX", -1),
    ("MODEL.RESNETS.NUM_GROUPS", 3),
    ("MODEL.RESNETS.NUM_GROUPS", 0),
    ("MODEL.RESNETS.DEPTH", 51),
    ("MODEL.RESNETS.BOTTLENECK_WIDTH", 0),
    ("MODEL.RESNETS.RES5_DILATION", 3),
    ("MODEL.RESNETS.OUT_FEATURES", "['res9']"),
    ("SOLVER.IMS_PER_BATCH", 0),
    ("SOLVER.IMS_PER_BATCH", -4),
    ("SOLVER.IMS_PER_BATCH", 1),
    ("SOLVER.MAX_ITER", 0),
    ("SOLVER.MAX_ITER", -3),
    ("SOLVER.BASE_LR", 0),
    ("SOLVER.BASE_LR", -0.1),
    ("SOLVER.BASE_LR", "float('nan')"),
    ("SOLVER.CHECKPOINT_PERIOD", 0),
    ("SOLVER.STEPS", "(5, 1)"),
    ("SOLVER.STEPS", "(2,)"),
    ("DATALOADER.NUM_WORKERS", -1),
    ("INPUT.MIN_SIZE_TRAIN", "()"),
    ("INPUT.MIN_SIZE_TRAIN", "(0,)"),
    ("INPUT.MAX_SIZE_TRAIN", 0),
    ("MODEL.PIXEL_MEAN", "[1.0, 2.0]"),
    ("MODEL.PIXEL_STD", "[0.0, 0.0, 0.0]"),
    ("MODEL.DEVICE", "gpu"),
    ("MODEL.DEVICE", "cuda"),
    ("MODEL.ROI_HEADS.IOU_THRESHOLDS", "[0.5, 0.6]"),
    ("MODEL.ANCHOR_GENERATOR.SIZES", "[[32], [64]]"),
    ("MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION", 0),
    ("MODEL.BACKBONE.FREEZE_AT", -1),
    ("TEST.DETECTIONS_PER_IMAGE", 0),
    ("SOLVER.REFERENCE_WORLD_SIZE", 3),
    ("OUTPUT_DIR", "/proc/nowhere"),
    ("OUTPUT_DIR", "/dev/null/x"),
    ("MODEL.RPN.IN_FEATURES", "['p9']"),
):
    _refused(key, value)
_refused("MODEL.MASK_ON", True)  # boxes only are annotated
_refused("MODEL.KEYPOINT_ON", True)
for key, value in (
    ("SOLVER.AMP.ENABLED", True),
    ("MODEL.RESNETS.RADIX", 1),
    ("MODEL.RESNETS.RADIX", 0),
    ("MODEL.RESNETS.NORM", "FrozenBN"),
    ("MODEL.RESNETS.NORM", "GN"),
    ("MODEL.RESNETS.NORM", "SyncBN"),
    ("INPUT.FORMAT", "RGB"),
    ("SOLVER.CLIP_GRADIENTS.ENABLED", True),
    ("SOLVER.OPTIMIZER", "SGD"),
    ("TEST.AVERAGE_RECALL", True),
    ("SEED", -1),
):
    # GroupNorm needs 32 channels to divide.
    _works(
        key,
        value,
        *(
            ("MODEL.RESNETS.RES2_OUT_CHANNELS", 256, "MODEL.RESNETS.BOTTLENECK_WIDTH", 64)
            if value == "GN"
            else ()
        ),
    )
CONFIG["FrozenBN with batch 1 works"] = partial(
    _case,
    ["MODEL.RESNETS.NORM", "FrozenBN", "MODEL.FPN.NORM", "", "SOLVER.IMS_PER_BATCH", 1],
    {"refused": None, "works": True},
)


def _file(content: Optional[bytes], expected: Sequence[str], folder: Path, rng: np.random.Generator) -> Case:
    if content is not None:
        (folder / "bad.yaml").write_bytes(content)
    return Case(["train_net.py", "--config-file", folder / "bad.yaml"], refused=expected)


for title, content in (
    ("empty key", b"MODEL:\n  RESNETS:\n    : 3\n"),
    ("unbalanced", b"MODEL: [1, 2\nX: 3"),
    ("tabs", b"MODEL:\n\tDEPTH: 3\n"),
    ("a list", b"- 1\n- 2\n"),
    ("a word", b"hello\n"),
    ("binary", bytes(range(256))),
    ("unknown section", b"MODLE:\n  DEPTH: 3\n"),
    ("wrong type", b"SOLVER:\n  BASE_LR: [fast]\n"),
    ("base that is not there", b"_BASE_: none.yaml\n"),
    ("base that is itself", b"_BASE_: bad.yaml\n"),
    ("python object", b"MODEL: !!python/object/apply:os.system ['true']\n"),
    ("section as a value", b"MODEL: 3\n"),
    ("not there", None),
):
    CONFIG[f"YAML: {title}"] = partial(
        _file, content, ("bad.yaml",) if title != "base that is not there" else ("none.yaml",)
    )


def _words(words: Sequence[object], expected: Sequence[str], folder: Path, rng: np.random.Generator) -> Case:
    return Case(["train_net.py", *words], refused=expected)


_CONFIG_FILE = ("--config-file", tiny.ROOT / "configs/quickstart.yaml")
for title, words, expected in (
    ("no config file", (), ("--config-file",)),
    ("no classes", (*_CONFIG_FILE, "MODEL.ROI_HEADS.NUM_CLASSES", 0), ("NUM_CLASSES must be >= 1",)),
    ("unknown data", (*_CONFIG_FILE, "DATASETS.TRAIN", "('shape_train',)"), ("did you mean shapes_train",)),
    ("no data", (*_CONFIG_FILE, "DATASETS.TRAIN", "()"), ("DATASETS.TRAIN",)),
    ("key without a value", (*_CONFIG_FILE, "SOLVER.BASE_LR"), ("KEY VALUE",)),
    ("epochs without data", (*_CONFIG_FILE, "--epochs", "3"), ("--epochs",)),
    ("json without images", (*_CONFIG_FILE, "--train-json", "a.json"), ("--train-json", "pairs")),
    ("evaluation without weights", (*_CONFIG_FILE, "--eval-only"), ("MODEL.WEIGHTS",)),
    ("more GPUs than there are", (*_CONFIG_FILE, "--num-gpus", "64"), ("--num-gpus 64",)),
    (
        "COCO that is not there",
        ("--config-file", tiny.ROOT / "configs/mask_resnest50.yaml"),
        ("coco_2017_train",),
    ),
):
    CONFIG[f"command: {title}"] = partial(_words, words, expected)
