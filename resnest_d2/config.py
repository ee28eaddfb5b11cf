"""Configuration keys that ResNeSt adds to detectron2's."""

from __future__ import annotations

import functools
from typing import Any, Iterator, Tuple

from detectron2.config import CfgNode

# Keys of the released plugin keep their names, so that its YAML files load unchanged.
_RESNETS = {
    # Three 3x3 convolutions instead of one 7x7 in the stem (ResNet-D).
    "DEEP_STEM": True,
    # Downsample by a 3x3 average pool beside the block's 3x3 convolution instead of a strided one.
    # The stride then lives in the pool, and STRIDE_IN_1X1 is not consulted.
    "AVD": True,
    # Put that pool before the 3x3 convolution: the "fast" variants.
    "AVD_FIRST": False,
    # Dilated stages keep that pool, at stride 1. mmsegmentation's have none.
    "AVD_DILATED": True,
    # Downsample the shortcut by a 2x2 average pool and an unstrided 1x1 convolution (ResNet-D).
    "AVG_DOWN": True,
    # Splits per cardinal group. 0: plain convolution, 1: squeeze-and-attend, >= 2: Split-Attention.
    # The cardinality is detectron2's NUM_GROUPS.
    "RADIX": 2,
    # Width of one cardinal group where the stage's planes are 64.
    "BOTTLENECK_WIDTH": 64,
    # Dilation of res4; 2 goes with RES5_DILATION 4 and keeps the output stride at 8.
    "RES4_DILATION": 1,
    # The first block of a dilated stage has half its dilation (mmsegmentation's contract_dilation).
    "CONTRACT_DILATION": False,
    # Split-Attention by Triton kernels where they are supported (CUDA); else by plain PyTorch.
    "FUSED_KERNELS": True,
    # Stages (res2 to res5) that keep little in training and compute the rest again: less memory, more time.
    "CHECKPOINT_STAGES": [],
    # What these keep: the "inputs" of their blocks, or also the outputs of "convolutions".
    "CHECKPOINT_KEEPS": "inputs",
}

_MODEL = {
    # Memory format of weights and feature maps: contiguous, channels_last, or auto, which is channels_last
    # on the CPU.
    "MEMORY_FORMAT": "auto",
}

_SOLVER = {
    # SGD, as in all recipes, or AdamW, which trains from scratch in far fewer iterations.
    "OPTIMIZER": "SGD",
    # How many iterations whose loss or gradient is not finite may be skipped; at the next, training stops.
    "SKIP_NOT_FINITE": 0,
    # How many numbered checkpoints stay; 0: all. The final one always does.
    "CHECKPOINTS_TO_KEEP": 0,
}

_TEST = {
    # Report AR beside AP, over all and per category.
    "AVERAGE_RECALL": False,
}

#: What is added where.
ADDED = {"MODEL.RESNETS": _RESNETS, "MODEL": _MODEL, "SOLVER": _SOLVER, "TEST": _TEST}


def add_resnest_config(cfg: CfgNode) -> None:
    """Add the keys of :data:`ADDED`: ResNeSt's to ``cfg.MODEL.RESNETS``, and the package's own.

    A key that is there already keeps its value, so the call may be repeated, and may come before or
    after other projects' (detectron2's ``add_deeplab_config`` also defines ``RES4_DILATION``).
    """
    for section, keys in ADDED.items():
        node = functools.reduce(getattr, section.split("."), cfg)
        for key, default in keys.items():
            if key not in node:
                node[key] = default


def flatten(node: CfgNode, prefix: str = "") -> Iterator[Tuple[str, Any]]:
    """Dotted key and value of every setting."""
    for key, value in node.items():
        if isinstance(value, CfgNode):
            yield from flatten(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value
