"""What a trained network looks at: the attention of its Split-Attention blocks, and class activation maps."""

from .attention import Block, dead_channels, measure_attention, recorded_attention
from .cam import Explanation, explain_images, layer_cam

__all__ = [
    "Block",
    "Explanation",
    "dead_channels",
    "explain_images",
    "layer_cam",
    "measure_attention",
    "recorded_attention",
]
