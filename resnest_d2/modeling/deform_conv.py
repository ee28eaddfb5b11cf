"""Deformable convolution (v1: arXiv 1703.06211, v2: arXiv 1811.11168) without compiled code of our own.

The kernels are torchvision's, which run on CPU and CUDA. Parameter names, the order of the offset
channels and the split into offset prediction and convolution follow detectron2.

Both modules compute in float32 when autocast or the input is in half precision: torchvision has no kernels
for bfloat16, and float16 positions are 1/8 pixel apart from 128 pixels on.
"""

from __future__ import annotations

from typing import Optional

import fvcore.nn.weight_init as weight_init
import torch
import torch.nn.functional as F
from detectron2.layers import Conv2d
from torch import Tensor, nn
from torchvision.ops import deform_conv2d

from .precision import without_autocast


class DeformConv2d(nn.Module):
    """Convolution that takes its sampling positions, and with ``modulated`` also their weights, as inputs.

    Args:
        deform_groups: number of channel groups that each share one set of offsets.
        modulated: v2, with a mask in addition to the offsets.
        norm: normalisation applied to the output, or None.
        activation: function applied last, or None.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int = 3,
        stride: int = 1,
        padding: int = 1,
        dilation: int = 1,
        groups: int = 1,
        *,
        deform_groups: int = 1,
        modulated: bool = False,
        norm: Optional[nn.Module] = None,
        activation=None,
    ) -> None:
        super().__init__()
        self.stride, self.padding, self.dilation = stride, padding, dilation
        self.modulated = modulated
        self.weight = nn.Parameter(torch.empty(out_channels, in_channels // groups, kernel_size, kernel_size))
        self.bias = None
        weight_init.c2_msra_fill(self)
        self.norm = norm
        self.activation = activation

    def forward(self, x: Tensor, offset: Tensor) -> Tensor:
        """
        Args:
            x: (N, in_channels, H, W)
            offset: (N, G*2*k*k, H', W') with G the deform groups and k the kernel size: pairs of
                (dy, dx) in pixels of ``x`` per group and tap. With ``modulated`` (N, G*3*k*k, H', W'):
                the last third holds the mask before its sigmoid.

        Returns:
            (N, out_channels, H', W'), of the same type as a convolution of ``x``.
        """
        with without_autocast(x.device.type):
            out = self._sample(_single(x), _single(offset))
        x = out.to(_surrounding_type(x))
        if self.norm is not None:
            x = self.norm(x)
        if self.activation is not None:
            x = self.activation(x)
        return x

    def _sample(self, x: Tensor, offset: Tensor) -> Tensor:
        weight, bias = _single(self.weight), None if self.bias is None else _single(self.bias)
        mask = None
        if self.modulated:
            dy_dx = offset.shape[1] // 3 * 2
            offset, mask = offset[:, :dy_dx], offset[:, dy_dx:].sigmoid()
        return deform_conv2d(x, offset, weight, bias, self.stride, self.padding, self.dilation, mask)


class OffsetConv2d(Conv2d):
    """Predicts offsets for :class:`DeformConv2d`, in float32 or better whatever the type of its input."""

    def forward(self, x: Tensor) -> Tensor:
        """x: (N, in_channels, H, W). Returns (N, G*2*k*k, H', W'), or (N, G*3*k*k, H', W') if modulated."""
        with without_autocast(x.device.type):
            return F.conv2d(
                _single(x),
                _single(self.weight),
                _single(self.bias),
                self.stride,
                self.padding,
                self.dilation,
                self.groups,
            )


def _single(x: Tensor) -> Tensor:
    """Convert half precision to float32."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


def _surrounding_type(x: Tensor) -> torch.dtype:
    """Type that a convolution of ``x`` would return here. Autocast leaves float64 alone."""
    device = x.device.type
    if torch.is_autocast_enabled(device) and x.dtype != torch.float64:
        return torch.get_autocast_dtype(device)
    return x.dtype


def offset_conv2d(
    in_channels: int, *, stride: int, dilation: int, deform_groups: int, modulated: bool
) -> OffsetConv2d:
    """Make the 3x3 convolution that predicts the offsets (and masks) of a 3x3 :class:`DeformConv2d`.

    Its weights start at zero: regular sampling positions, and masks of one half.
    """
    conv = OffsetConv2d(
        in_channels,
        deform_groups * (27 if modulated else 18),
        kernel_size=3,
        stride=stride,
        padding=dilation,
        dilation=dilation,
        groups=deform_groups,
    )
    nn.init.zeros_(conv.weight)
    nn.init.zeros_(conv.bias)
    return conv
