"""Make a trained model faster, with the same outputs up to rounding."""

from __future__ import annotations

import logging
from typing import Optional

import torch
from detectron2.layers import Conv2d, FrozenBatchNorm2d
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_weights

from ..ops import triton_kernels
from .deform_conv import DeformConv2d
from .memory_format import to_channels_last
from .split_attention import SplitAttentionConv2d

logger = logging.getLogger(__name__)
#: x86 capabilities, as torch names them, on which convolutions in half precision are emulated.
_WITHOUT_HALF = ("NO AVX", "AVX2")


def optimize_for_inference(
    model: nn.Module, *, dtype: Optional[torch.dtype] = None, compile: bool = False
) -> nn.Module:
    """Fold norms into convolutions, and use the memory format that the convolutions prefer, in place.

    The model is in eval mode afterwards, and can no longer be trained or load a checkpoint. GroupNorm
    and LayerNorm depend on the input and are kept.

    Args:
        model: a detector, a backbone, or any module with detectron2's convolutions.
        dtype: type of the backbone's weights and maps, such as ``torch.bfloat16``; None keeps it. The
            outputs keep their type. Logs a warning if the processor only emulates this type.
        compile: compile the backbone with torch.compile, for images of any size. The first images then
            take a minute, and on the CPU a C++ compiler is required.

    Returns:
        The model.
    """
    model.eval()
    for module in model.modules():
        if isinstance(module, (Conv2d, DeformConv2d)) and _fold(module, module.norm):
            module.norm = None
        if isinstance(module, SplitAttentionConv2d):
            if _fold(module.conv, module.bn0):
                module.bn0 = nn.Identity()
                if module.fused_kernels and triton_kernels.unavailable(module.conv.weight.device) is None:
                    # cuDNN's convolutions add a bias in a separate pass over the map.
                    module.bias, module.conv.bias = module.conv.bias, None
            if _fold(module.fc1, module.bn1):
                module.bn1 = nn.Identity()
    to_channels_last(model)
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    backbone = getattr(model, "backbone", model)
    if dtype is not None:
        _compute_in(backbone, dtype)
    if compile:
        backbone.compile(dynamic=True)
    return model


def _fold(conv: nn.Module, norm: Optional[nn.Module]) -> bool:
    """Fold a norm with running statistics into the convolution before it. Returns whether it was possible."""
    if not isinstance(norm, (nn.modules.batchnorm._BatchNorm, FrozenBatchNorm2d)):
        return False
    if norm.running_mean is None:
        return False
    conv.weight, conv.bias = fuse_conv_bn_weights(
        conv.weight, conv.bias, norm.running_mean, norm.running_var, norm.eps, norm.weight, norm.bias
    )
    return True


def _compute_in(module: nn.Module, dtype: torch.dtype) -> None:
    """Run a module in another type: cast its inputs to it, and its outputs back to the original type."""
    casts = (getattr(hook, "__self__", None) for hook in module._forward_pre_hooks.values())
    cast = next((c for c in casts if isinstance(c, _Cast)), None)  # from an earlier call
    if cast is None:
        cast = _Cast(next(module.parameters()).dtype)
        module.register_forward_pre_hook(cast.enter)
        module.register_forward_hook(cast.leave)
    cast.inside = dtype
    module.to(dtype)
    capability = torch.backends.cpu.get_cpu_capability()
    if next(module.parameters()).device.type == "cpu" and dtype.itemsize < 4 and capability in _WITHOUT_HALF:
        logger.warning(
            "%s on a CPU with %s, which has no instructions for it: several times slower than float32",
            dtype,
            capability,
        )


class _Cast:
    """Hooks before and after a module; they are methods of a class so that the model can be pickled."""

    def __init__(self, outside: torch.dtype) -> None:
        self.outside = self.inside = outside

    def enter(self, _: nn.Module, arguments: tuple) -> tuple:
        return tuple(a.to(self.inside) if isinstance(a, torch.Tensor) else a for a in arguments)

    def leave(self, _: nn.Module, arguments: tuple, outputs: object) -> object:
        if isinstance(outputs, dict):
            return {name: value.to(self.outside) for name, value in outputs.items()}
        return outputs.to(self.outside)
