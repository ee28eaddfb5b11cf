"""Configuration keys that this package adds to detectron2's."""

from __future__ import annotations

import functools
from typing import Any, Iterator, Tuple

from detectron2.config import CfgNode, get_cfg
from detectron2.projects.deeplab import add_deeplab_config

#: detectron2's meta-architecture of semantic segmentation, which learns label maps and nothing else.
SEGMENTOR = "SemanticSegmentor"
#: This package's meta-architecture of image classification.
CLASSIFIER = "ImageClassifier"

# Keys of the released plugin keep their names, so that its YAML files load unchanged.
_RESNETS = {
    # Three 3x3 convolutions instead of one 7x7 in the stem (ResNet-D).
    "DEEP_STEM": True,
    # Downsample with a 3x3 average pool next to the block's 3x3 convolution instead of a strided convolution.
    # The pool then carries the stride, and STRIDE_IN_1X1 is ignored.
    "AVD": True,
    # Put that pool before the 3x3 convolution, as in the "fast" variants.
    "AVD_FIRST": False,
    # Keep that pool in dilated stages, at stride 1. mmsegmentation drops it.
    "AVD_DILATED": True,
    # Downsample the shortcut with a 2x2 average pool and an unstrided 1x1 convolution (ResNet-D).
    "AVG_DOWN": True,
    # Splits per cardinal group. 0: plain convolution, 1: squeeze-and-attend, >= 2: Split-Attention.
    # The cardinality is detectron2's NUM_GROUPS.
    "RADIX": 2,
    # Width of one cardinal group in a stage with 64 planes.
    "BOTTLENECK_WIDTH": 64,
    # Width of the deep stem's first two convolutions; 0: that of the published network of the same depth.
    "STEM_WIDTH": 0,
    # Dilation of res4; 2 requires RES5_DILATION 4 and keeps the output stride at 8.
    "RES4_DILATION": 1,
    # Halve the dilation in the first block of a dilated stage (mmsegmentation's contract_dilation).
    "CONTRACT_DILATION": False,
    # Use Triton kernels for Split-Attention where they are supported (CUDA); otherwise plain PyTorch.
    "FUSED_KERNELS": True,
    # Stages (res2 to res5) that use activation checkpointing in training: less memory, more time.
    "CHECKPOINT_STAGES": [],
    # What these stages keep: the "inputs" of their blocks, or also the outputs of "convolutions".
    "CHECKPOINT_KEEPS": "inputs",
}

_MODEL = {
    # Memory format of weights and feature maps: contiguous, channels_last, or auto, which is channels_last
    # on the CPU.
    "MEMORY_FORMAT": "auto",
}

_SEM_SEG_HEAD = {
    # Of ResNeStDeepLabV3Head, beside detectron2's ASPP_CHANNELS, ASPP_DILATIONS and ASPP_DROPOUT: the feature
    # of the auxiliary head, the weight of its loss (0: no such head), the dropout before the predictors, the
    # kernel size of ASPP's last convolution, whether a 3x3 convolution follows, and how scores are resized.
    "AUX_FEATURE": "res4",
    "AUX_LOSS_WEIGHT": 0.5,
    "DROPOUT": 0.1,
    "PROJECT_SIZE": 1,
    "HEAD_CONV": True,
    "ALIGN_CORNERS": True,
}

_CLASSIFIER = {
    # Of ImageClassifier: number of classes, the probability spread over all of them, the parameter of mixup's
    # Beta distribution (0: no mixup), the dropout before the linear layer, and whether residual branches
    # start at 0.
    "NUM_CLASSES": 1000,
    "LABEL_SMOOTHING": 0.0,
    "MIXUP_ALPHA": 0.0,
    "DROPOUT": 0.0,
    "ZERO_INIT_LAST_NORM": False,
}

_DROP_BLOCK = {
    # Probability of DropBlock at the end of training, to which it grows linearly, the height and width in
    # pixels of what is dropped together, and the stages in which it is.
    "PROB": 0.0,
    "SIZE": 3,
    "STAGES": ["res4", "res5"],
}

_CLASSIFICATION = {
    # Of ImageClassifier: height and width in pixels of random crops in training, the smallest fraction of
    # the image they cover, how they are resized (bilinear or bicubic), AutoAugment's ImageNet policies before
    # the crop, the strength of changes of brightness, contrast and saturation, and the standard deviation of
    # colours added along the principal components. RANDOM_FLIP applies, too.
    "TRAIN_CROP": 224,
    "TRAIN_AREA": 0.08,
    "TRAIN_INTERPOLATION": "bilinear",
    "AUTO_AUGMENT": False,
    "COLOR_JITTER": 0.0,
    "LIGHTING": 0.0,
    # Height and width in pixels of the central square in testing.
    "TEST_CROP": 224,
}

_DATALOADER = {
    # How many files of the training data may be unusable, for each loader worker; other images replace them.
    "MAX_BAD_FILES": 0,
}

_SCALE_CROP = {
    # Least and greatest length in pixels of the longer side, drawn for each image; empty: not used.
    "LONG_SIZE": [],
    # Height and width in pixels of the crop; smaller images are padded with pixels that do not count.
    "CROP_SIZE": 480,
    # Probability of a blur of up to 1 pixel.
    "BLUR_PROB": 0.0,
}

_SOLVER = {
    # Learning rate of the semantic head as a multiple of the backbone's.
    "HEAD_LR_FACTOR": 1.0,
    # SGD, as in all recipes, or AdamW, which needs far fewer iterations to train from scratch.
    "OPTIMIZER": "SGD",
    # How many iterations with a NaN or infinite loss or gradient may be skipped; the next one stops training.
    "SKIP_NOT_FINITE": 0,
    # How many numbered checkpoints to keep; 0: all. The final one is always kept.
    "CHECKPOINTS_TO_KEEP": 0,
}

_AUGMENTED_TEST = {
    # With TEST.AUG of a SemanticSegmentor: scales, the longer side in pixels at scale 1, and the height and
    # width of the sliding windows.
    "SCALES": [1.0],
    "LONG_SIZE": 520,
    "WINDOW": 480,
}

_TEST = {
    # Also measure Boundary IoU of semantic segmentation, which takes most of the time.
    "BOUNDARY_IOU": False,
    # Report AR beside AP, overall and per category.
    "AVERAGE_RECALL": False,
    # Images per batch in each process when a classifier is tested. Detectors take one, since padding would
    # change their results.
    "IMS_PER_BATCH": 1,
}

_TRACKER = {
    # Where a training sends its metrics, beside the files in OUTPUT_DIR: none, wandb or mlflow; the project
    # there (for MLflow, the experiment), and the name of the run, auto for that of OUTPUT_DIR.
    "SERVICE": "none",
    "PROJECT": "resnest_d2",
    "RUN": "auto",
}

#: The added keys and their defaults, by section.
ADDED = {
    "MODEL": _MODEL,
    "MODEL.RESNETS": _RESNETS,
    "MODEL.SEM_SEG_HEAD": _SEM_SEG_HEAD,
    "MODEL.CLASSIFIER": _CLASSIFIER,
    "MODEL.CLASSIFIER.DROP_BLOCK": _DROP_BLOCK,
    "INPUT.SCALE_CROP": _SCALE_CROP,
    "INPUT.CLASSIFICATION": _CLASSIFICATION,
    "DATALOADER": _DATALOADER,
    "SOLVER": _SOLVER,
    "TEST": _TEST,
    "TEST.AUG": _AUGMENTED_TEST,
    "TRACKER": _TRACKER,
}


def add_resnest_config(cfg: CfgNode) -> None:
    """Add the keys of :data:`ADDED` to ``cfg``: ResNeSt's options in ``cfg.MODEL.RESNETS``, and a few others.

    An existing key keeps its value, so the call may be repeated, and may come before or after those of
    other projects. The segmentation recipes also need detectron2's ``add_deeplab_config``.
    """
    for section, keys in ADDED.items():
        *parents, name = section.split(".")
        parent = functools.reduce(getattr, parents, cfg)
        if name not in parent:
            parent[name] = CfgNode()
        node = parent[name]
        for key, default in keys.items():
            if key not in node:
                node[key] = default


def default_config() -> CfgNode:
    """Return detectron2's defaults with the keys of its DeepLab project and of :func:`add_resnest_config`."""
    cfg = get_cfg()
    add_deeplab_config(cfg)
    add_resnest_config(cfg)
    return cfg


def flatten(node: CfgNode, prefix: str = "") -> Iterator[Tuple[str, Any]]:
    """Yield the dotted key and the value of every setting."""
    for key, value in node.items():
        if isinstance(value, CfgNode):
            yield from flatten(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value
