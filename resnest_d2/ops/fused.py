"""Split-Attention's passes over the feature maps as Triton kernels, which never write the activated map.

Between the norm and the weighted sum, the reference (:mod:`.split_attention`, after a ReLU) reads and
writes maps of R*C channels several times. Here the ReLU is recomputed from the norm's output wherever it
is needed, so that the forward pass reads it twice and writes the result, and the backward pass reads it
twice and writes its gradient.

Sums are in float32 and in a fixed order: results do not change from run to run.
"""

from __future__ import annotations

import functools
import importlib
import os
from types import ModuleType
from typing import Optional, Tuple

import torch
from torch import Tensor

_DTYPES = (torch.float32, torch.float16, torch.bfloat16)
_RADIXES = (1, 2, 4)
# Elements of one split that a program holds, and channels where these lie side by side in memory or not.
_TILE = 1024
_CHANNELS_LAST, _CHANNELS_FIRST = 64, 4
#: Parts into which the sums over a map are divided, so that few channels still occupy a GPU.
_MAX_PARTS = 64


def is_supported(x: Tensor, radix: int) -> bool:
    """Whether the kernels compute on this (N, R*C, H, W) map: on CUDA, or in Triton's interpreter."""
    interpreted = os.getenv("TRITON_INTERPRET") == "1" and x.device.type == "cpu"
    if not (x.is_cuda or interpreted) or x.dtype not in _DTYPES or radix not in _RADIXES or not x.numel():
        return False
    if is_recorded():
        return False
    if not x.is_contiguous() and not x.is_contiguous(memory_format=torch.channels_last):
        return False
    return _kernels() is not None


def is_recorded() -> bool:
    """Whether a compiler or a tracer is looking, which fuse, or record, the operators that they know."""
    return torch.compiler.is_compiling() or torch.jit.is_tracing()


@functools.cache
def _kernels() -> Optional[ModuleType]:
    """The kernels; None where Triton is not installed. Imported when first needed: it takes a while."""
    try:
        return importlib.import_module(".triton_kernels", __package__)
    except ImportError:
        return None


class Kernels:
    """The passes by Triton kernels. The map stays as the norm left it: its ReLU is computed on reading."""

    @staticmethod
    def activate(x: Tensor) -> Tensor:
        return x.view_as(x)

    @staticmethod
    def pool(x: Tensor, radix: int) -> Tensor:
        n, channels, parts = x.shape[0], x.shape[1] // radix, _parts(x)
        sums = x.new_empty((n, parts, channels), dtype=torch.float32)
        layout = _Layout(x, radix)
        _kernels().pool[layout.grid(parts)](x, sums, *layout.sizes, parts, **layout.constants)
        return sums.sum(1).div_(x.shape[2] * x.shape[3]).to(x.dtype)[:, :, None, None]

    @staticmethod
    def weighted_sum(x: Tensor, attention: Tensor, radix: int) -> Tensor:
        shape = (x.shape[0], x.shape[1] // radix, *x.shape[2:])
        out = torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=_format(x))
        layout = _Layout(x, radix)
        _kernels().weighted_sum[layout.grid()](
            x, attention.contiguous(), out, *layout.sizes, **layout.constants
        )
        return out

    @staticmethod
    def attention_gradient(x: Tensor, gradient: Tensor, radix: int) -> Tensor:
        gradient = gradient.contiguous(memory_format=_format(x))
        parts = _parts(x)
        sums = x.new_empty((x.shape[0], parts, x.shape[1]), dtype=torch.float32)
        layout = _Layout(x, radix)
        _kernels().attention_gradient[layout.grid(parts)](
            x, gradient, sums, *layout.sizes, parts, **layout.constants
        )
        return sums.sum(1).to(x.dtype)[:, :, None, None]

    @staticmethod
    def map_gradient(x: Tensor, gradient: Tensor, attention: Tensor, of_pool: Tensor, radix: int) -> Tensor:
        out, layout = torch.empty_like(x), _Layout(x, radix)
        of_pool = of_pool.float() / layout.size
        _kernels().input_gradient[layout.grid()](
            x, gradient.contiguous(memory_format=_format(x)), attention.contiguous(),
            of_pool.contiguous(), out, *layout.sizes, **layout.constants,
        )  # fmt: skip
        return out


def _format(x: Tensor) -> torch.memory_format:
    return torch.contiguous_format if x.is_contiguous() else torch.channels_last


def _parts(x: Tensor) -> int:
    """Parts of the sums over (H, W): as many as make the kernel worth its start."""
    return max(1, min(_MAX_PARTS, x.shape[2] * x.shape[3] // 512))


class _Layout:
    """Arguments that all kernels share: sizes, strides and the tile of a program.

    Channels and positions have a stride each, of which one is 1: both memory formats are the same code.
    """

    def __init__(self, x: Tensor, radix: int) -> None:
        self.n, total, self.size = x.shape[0], x.shape[1], x.shape[2] * x.shape[3]
        self.channels = total // radix
        first = x.is_contiguous()
        strides = (self.size, 1, self.size, 1) if first else (1, total, 1, self.channels)
        self.sizes = (self.channels, self.size, *strides)
        block = _CHANNELS_FIRST if first else _CHANNELS_LAST
        block = min(block, 1 << (self.channels - 1).bit_length())
        self.constants = {"RADIX": radix, "BLOCK_C": block, "BLOCK_P": _TILE // block}

    def grid(self, parts: Optional[int] = None) -> Tuple[int, int, int]:
        blocks = -(-self.channels // self.constants["BLOCK_C"])
        return (parts or -(-self.size // self.constants["BLOCK_P"]), blocks, self.n)
