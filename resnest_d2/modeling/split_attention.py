"""Split-Attention (arXiv 2004.08955, section 3)."""

from __future__ import annotations

from functools import partial
from typing import Callable

import fvcore.nn.weight_init as weight_init
import torch.nn.functional as F
from detectron2.layers import Conv2d
from torch import Tensor, nn

from ..errors import OptionError
from ..ops import radix_softmax, relu_pool, relu_weighted_sum
from .norms import Norm, get_norm, get_pooled_norm
from .precision import without_autocast

#: Fewest channels of the squeezed vector, as in the authors' code.
MIN_ATTENTION_CHANNELS = 32


class SplitAttentionConv2d(nn.Module):
    """A grouped convolution into ``radix`` splits, merged by attention over the splits.

    The output is a weighted sum of the splits after norm and ReLU, with weights between 0 and 1, so it
    needs no further activation.

    Args:
        in_channels: channels of the input.
        channels: channels of the output, over all cardinal groups.
        groups: the cardinality K.
        radix: number of splits R per cardinal group, >= 1. One split is squeeze-and-attend with a
            sigmoid.
        reduction_factor: the squeezed vector has max(in_channels * R / reduction_factor, 32) channels.
        norm: see :func:`detectron2.layers.get_norm`.
        fused_kernels: use the Triton kernels where they are supported; otherwise plain PyTorch.
        conv: makes the convolution; its module may take inputs in addition to the feature map (the
            offsets of a deformable one), which :meth:`forward` passes on.

    Raises:
        OptionError: radix < 1, or K does not divide the numbers of channels.
    """

    def __init__(
        self,
        in_channels: int,
        channels: int,
        kernel_size: int = 3,
        stride: int = 1,
        padding: int = 1,
        dilation: int = 1,
        groups: int = 1,
        *,
        radix: int = 2,
        reduction_factor: int = 4,
        norm: Norm = "BN",
        fused_kernels: bool = True,
        conv: Callable[..., nn.Module] = partial(Conv2d, bias=False),
    ) -> None:
        super().__init__()
        if radix < 1:
            raise OptionError("radix", radix, "must be >= 1 in Split-Attention")
        squeezed = max(in_channels * radix // reduction_factor, MIN_ATTENTION_CHANNELS)
        for size in (in_channels, channels, squeezed):
            if groups < 1 or size % groups:
                raise OptionError("cardinality", groups, f"must divide {size} channels of Split-Attention")
        self.fused_kernels = fused_kernels
        self.radix = radix
        self.cardinality = groups
        # One convolution with K*R groups makes all splits of all cardinal groups.
        self.conv = conv(
            in_channels,
            channels * radix,
            kernel_size=kernel_size,
            stride=stride,
            padding=padding,
            dilation=dilation,
            groups=groups * radix,
        )
        self.bn0 = get_norm(norm, channels * radix) or nn.Identity()
        # Bias of a folded bn0, if the kernels add it; set by :func:`optimize_for_inference`.
        self.register_parameter("bias", None)
        # Fully connected layers per cardinal group, as 1x1 convolutions on a 1x1 map.
        self.fc1 = Conv2d(channels, squeezed, kernel_size=1, groups=groups)
        self.bn1 = get_pooled_norm(norm, squeezed, groups)
        self.fc2 = Conv2d(squeezed, channels * radix, kernel_size=1, groups=groups)
        for layer in (self.conv, self.fc1, self.fc2):
            weight_init.c2_msra_fill(layer)

    def forward(self, x: Tensor, *conv_inputs: Tensor) -> Tensor:
        """
        Args:
            x: (N, in_channels, H, W)

        Returns:
            (N, channels, H', W')
        """
        splits = self.conv(x, *conv_inputs)
        # Autocast computes some norms in float32, which would make the passes over the map slower.
        splits = self.bn0(splits).to(splits.dtype)
        # Between the passes, tensors are small, and sums over a map can exceed float16's range: these vectors
        # and their gradients have the weights' type, float32 under autocast.
        with without_autocast(x.device.type):
            dtype = self.fc1.weight.dtype
            pooled, activated = relu_pool(splits, self.radix, self.fused_kernels, dtype, self.bias)
            squeezed = F.relu_(self.bn1(self.fc1(pooled)))
            attention = radix_softmax(self.fc2(squeezed), self.radix, self.cardinality)
            return relu_weighted_sum(activated, attention)
