"""Build backbones from a cfg: the builders that detectron2 finds by name."""

from __future__ import annotations

from itertools import pairwise
from typing import Any, Dict

from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY, FPN, Backbone
from detectron2.modeling.backbone.fpn import LastLevelMaxPool, LastLevelP6P7
from torch import nn

from ..errors import OptionError
from .resnest import ResNeSt

#: For each argument of :class:`ResNeSt`, its key in cfg.MODEL.
_KEYS = {
    "depth": "RESNETS.DEPTH",
    "deep_stem": "RESNETS.DEEP_STEM",
    "stem_width": "RESNETS.STEM_WIDTH",
    "stem_out_channels": "RESNETS.STEM_OUT_CHANNELS",
    "radix": "RESNETS.RADIX",
    "cardinality": "RESNETS.NUM_GROUPS",
    "bottleneck_width": "RESNETS.BOTTLENECK_WIDTH",
    "width_per_group": "RESNETS.WIDTH_PER_GROUP",
    "res2_out_channels": "RESNETS.RES2_OUT_CHANNELS",
    "avd": "RESNETS.AVD",
    "avd_dilated": "RESNETS.AVD_DILATED",
    "avd_first": "RESNETS.AVD_FIRST",
    "avg_down": "RESNETS.AVG_DOWN",
    "stride_in_1x1": "RESNETS.STRIDE_IN_1X1",
    "res4_dilation": "RESNETS.RES4_DILATION",
    "res5_dilation": "RESNETS.RES5_DILATION",
    "contract_dilation": "RESNETS.CONTRACT_DILATION",
    "deform_on_per_stage": "RESNETS.DEFORM_ON_PER_STAGE",
    "deform_modulated": "RESNETS.DEFORM_MODULATED",
    "deform_num_groups": "RESNETS.DEFORM_NUM_GROUPS",
    "fused_kernels": "RESNETS.FUSED_KERNELS",
    "checkpoint_stages": "RESNETS.CHECKPOINT_STAGES",
    "checkpoint_keeps": "RESNETS.CHECKPOINT_KEEPS",
    "norm": "RESNETS.NORM",
    "freeze_at": "BACKBONE.FREEZE_AT",
    "out_features": "RESNETS.OUT_FEATURES",
}


def resnest_options(cfg: CfgNode) -> Dict[str, Any]:
    """Return the arguments of :class:`ResNeSt` from cfg, all but ``in_channels``.

    Raises:
        OptionError: cfg lacks ResNeSt's keys.
    """
    options = {}
    for name, path in _KEYS.items():
        section, key = path.split(".")
        if key not in cfg.MODEL[section]:
            raise OptionError(f"MODEL.{path}", None, "must be set; call add_resnest_config(cfg) first")
        options[name] = cfg.MODEL[section][key]
    if options["stem_width"] and not options["deep_stem"]:
        rule = "must be 0 with MODEL.RESNETS.DEEP_STEM False"
        raise OptionError("MODEL.RESNETS.STEM_WIDTH", options["stem_width"], rule)
    return {**options, "stem_width": options["stem_width"] or None}


@BACKBONE_REGISTRY.register()
def build_resnest_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> ResNeSt:
    """Build ResNeSt with the features of MODEL.RESNETS.OUT_FEATURES, such as ``linear`` for a classifier.

    Args:
        input_shape: shape of the images; its channels are the stem's input channels.

    Raises:
        OptionError: an option cannot work; the message names the key, its value and the remedy.
    """
    options = resnest_options(cfg)
    if "linear" in options["out_features"]:
        options["num_classes"] = cfg.MODEL.CLASSIFIER.NUM_CLASSES
    try:
        return ResNeSt(in_channels=input_shape.channels, **options)
    except OptionError as e:
        names = {**_KEYS, "num_classes": "CLASSIFIER.NUM_CLASSES"}
        raise e.renamed({name: f"MODEL.{key}" for name, key in names.items()}) from None


@BACKBONE_REGISTRY.register()
def build_resnest_fpn_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> FPN:
    """Build ResNeSt with FPN, whose p6 is pooled from p5. Raises OptionError as above."""
    return _build_fpn(cfg, build_resnest_backbone(cfg, input_shape), LastLevelMaxPool())


@BACKBONE_REGISTRY.register()
def build_retinanet_resnest_fpn_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> FPN:
    """Build ResNeSt with FPN, whose p6 and p7 are convolved from res5. Raises OptionError as above."""
    bottom_up = build_resnest_backbone(cfg, input_shape)
    shapes = bottom_up.output_shape()
    if "res5" not in shapes:
        raise OptionError(
            "MODEL.RESNETS.OUT_FEATURES", list(shapes), "must hold res5, from which RetinaNet makes p6"
        )
    top_block = LastLevelP6P7(shapes["res5"].channels, cfg.MODEL.FPN.OUT_CHANNELS)
    return _build_fpn(cfg, bottom_up, top_block)


def _build_fpn(cfg: CfgNode, bottom_up: Backbone, top_block: nn.Module) -> FPN:
    in_features, shapes = cfg.MODEL.FPN.IN_FEATURES, bottom_up.output_shape()
    if not in_features or not set(in_features) <= set(shapes):
        raise OptionError(
            "MODEL.FPN.IN_FEATURES",
            in_features,
            f"must be some of MODEL.RESNETS.OUT_FEATURES ({', '.join(shapes)})",
        )
    strides = [shapes[name].stride for name in in_features]
    if any(b != 2 * a for a, b in pairwise(strides)):
        raise OptionError(
            "MODEL.FPN.IN_FEATURES",
            in_features,
            f"must have strides that double from each to the next, not {strides}; FPN takes "
            "neighbouring stages, none of them dilated (RES4_DILATION and RES5_DILATION 1)",
        )
    return FPN(
        bottom_up=bottom_up,
        in_features=in_features,
        out_channels=cfg.MODEL.FPN.OUT_CHANNELS,
        norm=cfg.MODEL.FPN.NORM,
        top_block=top_block,
        fuse_type=cfg.MODEL.FPN.FUSE_TYPE,
    )
