"""How weights and feature maps lie in memory."""

from __future__ import annotations

import torch
from detectron2.modeling.roi_heads import BaseKeypointRCNNHead
from torch import nn


def to_channels_last(model: nn.Module) -> nn.Module:
    """Lay out weights channels-last, in place; feature maps follow those that they are convolved with.

    Keypoint heads stay as they are: detectron2 takes views of their outputs that only contiguous ones have.
    """
    model.to(memory_format=torch.channels_last)
    for module in model.modules():
        if isinstance(module, BaseKeypointRCNNHead):
            module.to(memory_format=torch.contiguous_format)
    return model
