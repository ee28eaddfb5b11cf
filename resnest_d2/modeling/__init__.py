from .build import (
    build_resnest_backbone,
    build_resnest_fpn_backbone,
    build_retinanet_resnest_fpn_backbone,
)
from .classification import ImageClassifier
from .inference import optimize_for_inference
from .memory_format import to_channels_last
from .multi_scale import SemanticSegmentorWithTTA, with_test_time_augmentation
from .resnest import ResNeSt
from .segmentation import ResNeStDeepLabV3Head
from .split_attention import SplitAttentionConv2d

__all__ = [
    "ImageClassifier",
    "ResNeSt",
    "ResNeStDeepLabV3Head",
    "SemanticSegmentorWithTTA",
    "SplitAttentionConv2d",
    "build_resnest_backbone",
    "build_resnest_fpn_backbone",
    "build_retinanet_resnest_fpn_backbone",
    "optimize_for_inference",
    "to_channels_last",
    "with_test_time_augmentation",
]
