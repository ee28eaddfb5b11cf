"""The stem and the residual block of ResNeSt."""

from __future__ import annotations

from functools import partial
from typing import Optional, Tuple

import fvcore.nn.weight_init as weight_init
import torch
import torch.nn.functional as F
from detectron2.layers import CNNBlockBase, Conv2d
from torch import Tensor, nn

from .checkpointing import checkpoint_block
from .deform_conv import DeformConv2d, offset_conv2d
from .norms import Norm, get_norm
from .split_attention import SplitAttentionConv2d


def conv_norm(in_channels: int, out_channels: int, kernel_size: int, norm: Norm, **kwargs) -> Conv2d:
    """Convolution without bias, then norm, with the authors' initialisation (He, fan out)."""
    conv = Conv2d(
        in_channels,
        out_channels,
        kernel_size=kernel_size,
        padding=kernel_size // 2,
        bias=False,
        norm=get_norm(norm, out_channels),
        **kwargs,
    )
    weight_init.c2_msra_fill(conv)
    return conv


class DeepStem(CNNBlockBase):
    """Three 3x3 convolutions, the first with stride 2, and a max pool: stride 4 in all.

    Args:
        width: channels of the first two convolutions; the third has twice as many.
    """

    def __init__(self, in_channels: int = 3, width: int = 32, norm: Norm = "BN") -> None:
        super().__init__(in_channels, 2 * width, 4)
        self.conv1_1 = conv_norm(in_channels, width, 3, norm, stride=2, activation=F.relu_)
        self.conv1_2 = conv_norm(width, width, 3, norm, activation=F.relu_)
        self.conv1_3 = conv_norm(width, 2 * width, 3, norm, activation=F.relu_)

    def forward(self, x: Tensor) -> Tensor:
        """x: (N, in_channels, H, W). Returns (N, 2*width, ceil(H/4), ceil(W/4))."""
        x = self.conv1_3(self.conv1_2(self.conv1_1(x)))
        return F.max_pool2d(x, kernel_size=3, stride=2, padding=1)


class ResNeStBottleneck(CNNBlockBase):
    """1x1, 3x3 and 1x1 convolutions with a shortcut; every variant of ResNeSt is made of this block.

    Args:
        conv2: the 3x3 convolution, (N, width, h, w) to (N, width, h', w'), including norm and
            activation: plain, Split-Attention or deformable. It carries the block's stride unless
            ``conv1_stride`` or ``pool_stride`` does.
        conv2_offset: predicts the second input of a deformable ``conv2`` from its first.
        width: channels between the convolutions.
        stride: stride of the whole block, and so of the shortcut.
        conv1_stride: stride of the first 1x1 convolution.
        pool_stride: stride of a 3x3 average pool next to ``conv2`` (AVD); None for no pool.
        pool_first: put the pool before ``conv2`` instead of after it (AVD_FIRST).
        avg_down: downsample the shortcut with an average pool, not with a strided convolution.

    Attributes:
        checkpoint: what training keeps of the block for its backward pass, see :func:`checkpoint_block`;
            None keeps everything.
    """

    checkpoint: Optional[str] = None

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        conv2: nn.Module,
        conv2_offset: Optional[nn.Module] = None,
        width: int,
        stride: int = 1,
        conv1_stride: int = 1,
        pool_stride: Optional[int] = None,
        pool_first: bool = False,
        avg_down: bool = True,
        norm: Norm = "BN",
    ) -> None:
        super().__init__(in_channels, out_channels, stride)
        self.conv1 = conv_norm(in_channels, width, 1, norm, stride=conv1_stride, activation=F.relu_)
        self.conv2_offset = conv2_offset
        self.conv2 = conv2
        self.conv3 = conv_norm(width, out_channels, 1, norm)
        self.avd_layer = None
        if pool_stride is not None:
            self.avd_layer = nn.AvgPool2d(3, pool_stride, padding=1)
        self.avd_first = pool_first
        self.shortcut_avgpool = self.shortcut = None
        if in_channels != out_channels or stride != 1:
            if avg_down and stride != 1:
                self.shortcut_avgpool = nn.AvgPool2d(stride, stride, ceil_mode=True, count_include_pad=False)
            self.shortcut = conv_norm(in_channels, out_channels, 1, norm, stride=1 if avg_down else stride)

    def forward(self, x: Tensor) -> Tensor:
        """x: (N, in_channels, H, W). Returns (N, out_channels, ceil(H/stride), ceil(W/stride))."""
        if self.checkpoint and self.training and torch.is_grad_enabled():
            return checkpoint_block(self, self._forward, x, self.checkpoint)
        return self._forward(x)

    def _forward(self, x: Tensor) -> Tensor:
        out = self.conv1(x)
        if self.avd_layer is not None and self.avd_first:
            out = self.avd_layer(out)
        if self.conv2_offset is None:
            out = self.conv2(out)
        else:
            out = self.conv2(out, self.conv2_offset(out))
        if self.avd_layer is not None and not self.avd_first:
            out = self.avd_layer(out)
        out = self.conv3(out)

        if self.shortcut_avgpool is not None:
            x = self.shortcut_avgpool(x)
        if self.shortcut is not None:
            x = self.shortcut(x)
        return F.relu_(out.add_(x))


def bottleneck_conv2(
    width: int,
    *,
    stride: int,
    dilation: int,
    cardinality: int,
    radix: int,
    deform_groups: int,
    deform_modulated: bool,
    norm: Norm,
) -> Tuple[nn.Module, Optional[nn.Module]]:
    """Make the 3x3 convolution of a bottleneck, and the module that predicts its offsets.

    Args:
        radix: number of splits of Split-Attention, or 0 for a plain convolution.
        deform_groups: 0 for a convolution that is not deformable.

    Returns:
        ``conv2`` and ``conv2_offset`` of :class:`ResNeStBottleneck`.
    """
    offset, conv = None, partial(Conv2d, bias=False)
    if deform_groups:
        deform = {"deform_groups": deform_groups, "modulated": deform_modulated}
        offset = offset_conv2d(width, stride=stride, dilation=dilation, **deform)
        conv = partial(DeformConv2d, **deform)
    shared = {"kernel_size": 3, "stride": stride, "padding": dilation, "dilation": dilation}
    if radix:
        conv2 = SplitAttentionConv2d(
            width, width, groups=cardinality, radix=radix, norm=norm, conv=conv, **shared
        )
    else:
        conv2 = conv(
            width, width, groups=cardinality, norm=get_norm(norm, width), activation=F.relu_, **shared
        )
        weight_init.c2_msra_fill(conv2)
    return conv2, offset
