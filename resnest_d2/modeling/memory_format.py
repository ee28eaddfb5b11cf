"""Memory format of weights and feature maps."""

from __future__ import annotations

import torch
from detectron2.modeling.roi_heads import BaseKeypointRCNNHead
from torch import nn


def to_channels_last(model: nn.Module) -> nn.Module:
    """Convert weights to channels-last, in place; feature maps follow the weights they are convolved with.

    Keypoint heads are not converted: detectron2 takes views of their outputs that must be contiguous.
    """
    model.to(memory_format=torch.channels_last)
    for module in model.modules():
        if isinstance(module, BaseKeypointRCNNHead):
            module.to(memory_format=torch.contiguous_format)
    return model
