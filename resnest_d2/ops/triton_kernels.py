"""Split-Attention's passes over the feature maps as Triton kernels, and the host side that launches them.

Between the norm and the weighted sum, the reference (:mod:`.split_attention`, after a ReLU) reads and
writes maps of R*C channels several times. Here the ReLU is recomputed from the norm's output wherever it
is needed, so that the forward pass reads that output twice and writes the result, and the backward pass
reads it twice and writes its gradient. The activated map is never written.

In all kernels: x is the map, (N, R*C, H, W), radix-major, in either memory format, in float32, float16 or
bfloat16; the map of one split has C channels; HW is the number of positions, CHW = C*HW the elements of one
split. Arithmetic is in float32. NaN and infinity propagate as in the reference. Sums have a fixed order, so
results do not change from run to run. "Reads" and "writes" count maps of one split.
"""

from __future__ import annotations

import atexit
import functools
import logging
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any, Optional, Tuple

import torch
from torch import Tensor

try:
    import triton
    import triton.language as tl
except ImportError:  # plain PyTorch is used instead
    triton = None

logger = logging.getLogger(__name__)

_DTYPES = (torch.float32, torch.float16, torch.bfloat16)
_RADIXES = (1, 2, 4)
#: Elements of a program with a single tile: 128 threads load 16 bytes of half precision each.
_BLOCK = 1024
#: Channels and positions of a tile of the sums, and warps that share it. Channels-last: 64 channels fill a
#: line of 128 bytes in half precision, and 64 positions give each thread two independent loads per split.
#: Otherwise a tile has one channel, whose positions are adjacent in memory.
_CHANNELS_LAST_TILE, _CHANNELS_FIRST_TILE = (64, 64, 8), (1, 1024, 4)
#: Programs of a sum per multiprocessor: while some wait for memory, another computes.
_PROGRAMS = 8
#: Largest number of parts that a sum over the map is divided into, so that a few channels still occupy a GPU.
#: The last program adds up one value per part.
_MAX_PARTS = 128
#: Elements of one image: offsets have 32 bits, and the last tiles reach beyond the image.
_MOST_ELEMENTS = 2**31 - 2**18
#: CUDA's limit for the second and third dimension of a grid.
_MOST_IMAGES = 65535
#: Grid size used in Triton's interpreter, which runs programs one after the other.
_INTERPRETED_MULTIPROCESSORS = 1


def _jit(function: Any) -> Any:
    """``triton.jit``, without compiling a variant for each number of parts."""
    return triton.jit(do_not_specialize=["parts"])(function) if triton else function


@_jit
def _relu(value):
    return tl.maximum(value, 0.0, propagate_nan=tl.PropagateNan.ALL)


@_jit
def _tile(
    first, block, C, HW, stride_p,
    CHANNELS_LAST: tl.constexpr, PEEL: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_P: tl.constexpr,
):  # fmt: skip
    """Offsets in a split for BLOCK_C channels and BLOCK_P positions from ``first`` on, and masks of those
    that may be loaded and of those that belong to the tile.

    If HW is odd, rows of a map may begin anywhere, but a GPU loads 16 bytes at once only from aligned
    addresses. With PEEL a row's tile begins at the aligned address before the row and may read up to the
    aligned address after it: these are values of neighbouring rows, which do not belong to the tile.
    """
    p = first + tl.arange(0, BLOCK_P)[None, :]
    if CHANNELS_LAST:
        c = block * BLOCK_C + tl.arange(0, BLOCK_C)[:, None]
        at, inside = p * stride_p + c, (c < C) & (p < HW)
        readable = inside
    elif PEEL:
        skipped = block * HW % 16
        at = tl.multiple_of(block * HW - skipped, 16) + p
        inside = (p >= skipped) & (p < skipped + HW)
        readable = p < tl.multiple_of((skipped + HW + 15) // 16 * 16, 16)
    else:
        at, inside = block * HW + p, p < HW
        readable = inside
    return at, readable, inside


@_jit
def _finish(
    sums, index, stored, size, scale, out_ptr, partial_ptr, counter_ptr, parts,
    SPLIT: tl.constexpr, LENGTH: tl.constexpr,
):  # fmt: skip
    """Write a program's sums, (LENGTH,). If the map is divided into parts, the last program to finish adds up
    the sums of all parts, always in the same order."""
    if SPLIT:
        tl.store(partial_ptr + tl.program_id(0) * size + index, sums, mask=stored)
        tl.debug_barrier()  # all threads must have stored before one of them increments the counter
        counter = tl.program_id(2) * tl.num_programs(1) + tl.program_id(1)
        if tl.atomic_add(counter_ptr + counter, 1, sem="acq_rel") == parts - 1:
            total = tl.zeros((LENGTH,), dtype=tl.float32)
            for first in range(0, parts, 32):
                part = first + tl.arange(0, 32)[:, None]
                # Bypass the first-level cache, which does not see the writes of other multiprocessors.
                some = tl.load(
                    partial_ptr + part * size + index[None, :], mask=(part < parts) & stored[None, :],
                    other=0.0, cache_modifier=".cg",
                )  # fmt: skip
                total += tl.sum(some, 0)
            tl.store(out_ptr + index, (total * scale).to(out_ptr.dtype.element_ty), mask=stored)
    else:
        tl.store(out_ptr + index, (sums * scale).to(out_ptr.dtype.element_ty), mask=stored)


@_jit
def pool(
    x_ptr, bias_ptr, out_ptr, partial_ptr, counter_ptr, C, HW, CHW, size, parts, scale,
    RADIX: tl.constexpr, CHANNELS_LAST: tl.constexpr, PEEL: tl.constexpr, SPLIT: tl.constexpr,
    BIAS: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_P: tl.constexpr,
):  # fmt: skip
    """Sum over positions and splits of relu(x + bias), times ``scale``.

    Reads R. Grid: parts of the map, blocks of channels, images; a program handles every ``parts``-th tile of
    its channels.

    Args:
        bias_ptr: (R*C,), of any floating type; unused without BIAS.
        out_ptr: (N, C), of any floating type.
        partial_ptr, counter_ptr: (parts, N, C), float32, and (N, blocks), int32, zero; unused without SPLIT.
        size: N*C.
    """
    part, block, n = tl.program_id(0), tl.program_id(1), tl.program_id(2).to(tl.int64)
    x_ptr += n * RADIX * CHW
    stride_p, stride_r = RADIX * C, C if CHANNELS_LAST else CHW
    c = block * BLOCK_C + tl.arange(0, BLOCK_C)
    total = tl.zeros((BLOCK_C, BLOCK_P), dtype=tl.float32)
    for first in range(part * BLOCK_P, HW + (15 if PEEL else 0), parts * BLOCK_P):
        at, readable, inside = _tile(first, block, C, HW, stride_p, CHANNELS_LAST, PEEL, BLOCK_C, BLOCK_P)
        for r in tl.static_range(RADIX):
            value = tl.load(x_ptr + r * stride_r + at, mask=readable, other=0.0).to(tl.float32)
            if BIAS:
                value += tl.load(bias_ptr + r * C + c, mask=c < C, other=0.0).to(tl.float32)[:, None]
            total += tl.where(inside, _relu(value), 0.0)
    _finish(
        tl.sum(total, 1), n * C + c, c < C, size, scale, out_ptr, partial_ptr, counter_ptr, parts,
        SPLIT, BLOCK_C,
    )  # fmt: skip


@_jit
def attention_gradient(
    x_ptr, grad_out_ptr, out_ptr, partial_ptr, counter_ptr, C, HW, CHW, size, parts, scale,
    RADIX: tl.constexpr, CHANNELS_LAST: tl.constexpr, PEEL: tl.constexpr, SPLIT: tl.constexpr,
    BLOCK_C: tl.constexpr, BLOCK_P: tl.constexpr,
):  # fmt: skip
    """Sum over positions of relu(x) * grad_out for each split, times ``scale``.

    Reads R + 1: all splits at once, so that the gradient is read once. Grid and arguments as in :func:`pool`,
    except that the sums are (N, R*C).
    """
    part, block, n = tl.program_id(0), tl.program_id(1), tl.program_id(2).to(tl.int64)
    x_ptr += n * RADIX * CHW
    grad_out_ptr += n * CHW
    stride_p, stride_r = RADIX * C, C if CHANNELS_LAST else CHW
    r = tl.arange(0, RADIX)
    total = tl.zeros((RADIX, BLOCK_C, BLOCK_P), dtype=tl.float32)
    for first in range(part * BLOCK_P, HW + (15 if PEEL else 0), parts * BLOCK_P):
        at, readable, inside = _tile(first, block, C, HW, C, CHANNELS_LAST, PEEL, BLOCK_C, BLOCK_P)
        gradient = tl.load(grad_out_ptr + at, mask=readable, other=0.0).to(tl.float32)
        at, readable, inside = _tile(first, block, C, HW, stride_p, CHANNELS_LAST, PEEL, BLOCK_C, BLOCK_P)
        splits = r[:, None, None] * stride_r + at[None, :, :]
        value = tl.load(x_ptr + splits, mask=readable[None, :, :], other=0.0).to(tl.float32)
        total += tl.where(inside[None, :, :], _relu(value) * gradient[None, :, :], 0.0)
    c = block * BLOCK_C + tl.arange(0, BLOCK_C)[None, :]
    index = n * RADIX * C + r[:, None] * C + c
    stored = (c < C) & (r[:, None] < RADIX)
    LENGTH: tl.constexpr = RADIX * BLOCK_C
    _finish(
        tl.reshape(tl.sum(total, 2), (LENGTH,)), tl.reshape(index, (LENGTH,)), tl.reshape(stored, (LENGTH,)),
        size, scale, out_ptr, partial_ptr, counter_ptr, parts, SPLIT, LENGTH,
    )  # fmt: skip


@_jit
def _elements(C, HW, CHW, RADIX: tl.constexpr, CHANNELS_LAST: tl.constexpr, BLOCK: tl.constexpr):
    """For a program's elements of one split, contiguous in memory: their offsets in a map of C channels, a
    mask of those that exist, their channels, and their offsets in the first split of x."""
    q = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    if CHANNELS_LAST:
        c, at = q % C, q + q // C * ((RADIX - 1) * C)
    else:
        c, at = q // HW, q
    return q, q < CHW, c, at


@_jit
def weighted_sum(
    x_ptr, bias_ptr, attention_ptr, out_ptr, C, HW, CHW,
    RADIX: tl.constexpr, CHANNELS_LAST: tl.constexpr, BIAS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Sum over the splits of relu(x + bias) times their attention.

    Reads R, writes 1. Grid: blocks of elements, images. Tiles are contiguous pieces of memory, regardless of
    rows, so that loads and stores are aligned.

    Args:
        bias_ptr: as in :func:`pool`.
        attention_ptr: (N, R*C), of any floating type.
        out_ptr: (N, C, H, W), in x's format and type.
    """
    n = tl.program_id(1).to(tl.int64)
    x_ptr += n * RADIX * CHW
    attention_ptr += n * RADIX * C
    q, inside, c, at = _elements(C, HW, CHW, RADIX, CHANNELS_LAST, BLOCK)
    stride_r = C if CHANNELS_LAST else CHW
    total = tl.zeros((BLOCK,), dtype=tl.float32)
    for r in tl.static_range(RADIX):
        value = tl.load(x_ptr + r * stride_r + at, mask=inside, other=0.0).to(tl.float32)
        if BIAS:
            value += tl.load(bias_ptr + r * C + c, mask=inside, other=0.0).to(tl.float32)
        weight = tl.load(attention_ptr + r * C + c, mask=inside, other=0.0).to(tl.float32)
        total += _relu(value) * weight
    tl.store(out_ptr + n * CHW + q, total.to(out_ptr.dtype.element_ty), mask=inside)


@_jit
def input_gradient(
    x_ptr, grad_out_ptr, attention_ptr, grad_pooled_ptr, out_ptr, C, HW, CHW, scale,
    RADIX: tl.constexpr, CHANNELS_LAST: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Gradient of x: 0 where x <= 0, else (grad_out * attention + grad_pooled * scale).

    Reads R + 1, writes R. Grid as in :func:`weighted_sum`.

    Args:
        grad_out_ptr: (N, C, H, W), in x's format.
        attention_ptr, grad_pooled_ptr: (N, R*C) and (N, C), of any floating type.
        out_ptr: like x.
    """
    n = tl.program_id(1).to(tl.int64)
    x_ptr += n * RADIX * CHW
    out_ptr += n * RADIX * CHW
    attention_ptr += n * RADIX * C
    q, inside, c, at = _elements(C, HW, CHW, RADIX, CHANNELS_LAST, BLOCK)
    stride_r = C if CHANNELS_LAST else CHW
    of_sum = tl.load(grad_out_ptr + n * CHW + q, mask=inside, other=0.0).to(tl.float32)
    of_pool = tl.load(grad_pooled_ptr + n * C + c, mask=inside, other=0.0).to(tl.float32) * scale
    for r in tl.static_range(RADIX):
        value = tl.load(x_ptr + r * stride_r + at, mask=inside, other=0.0).to(tl.float32)
        weight = tl.load(attention_ptr + r * C + c, mask=inside, other=0.0).to(tl.float32)
        # NaN is not <= 0: the gradient passes, as in PyTorch's ReLU.
        result = tl.where(value <= 0.0, 0.0, of_sum * weight + of_pool)
        tl.store(out_ptr + r * stride_r + at, result.to(out_ptr.dtype.element_ty), mask=inside)


class Kernels:
    """The passes with these kernels. The map stays as the norm wrote it: the ReLU is computed on reading."""

    @staticmethod
    def activate(x: Tensor) -> Tensor:
        return x.view_as(x)

    @staticmethod
    def pool(
        x: Tensor, radix: int, dtype: Optional[torch.dtype] = None, bias: Optional[Tensor] = None
    ) -> Tensor:
        """``split_pool(relu(x + bias), radix)``, (N, C, 1, 1), in ``dtype``, by default x's."""
        out = x.new_empty((x.shape[0], x.shape[1] // radix, 1, 1), dtype=dtype)
        scale, tensors = 1.0 / (x.shape[2] * x.shape[3]), (x, out if bias is None else bias)
        _sum_over_map(pool, x, tensors, out, radix, scale, BIAS=bias is not None)
        return out

    @staticmethod
    def weighted_sum(x: Tensor, attention: Tensor, radix: int, bias: Optional[Tensor] = None) -> Tensor:
        """``radix_weighted_sum(relu(x + bias), attention, radix)``, (N, C, H, W), in x's format and type."""
        shape = (x.shape[0], x.shape[1] // radix, *x.shape[2:])
        out = torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=_format(x))
        tensors = (x, out if bias is None else bias, attention.contiguous(), out)
        _for_each_element(weighted_sum, x, tensors, radix, BIAS=bias is not None)
        return out

    @staticmethod
    def attention_gradient(x: Tensor, grad_out: Tensor, radix: int) -> Tensor:
        """Gradient of the attention, (N, R*C, 1, 1), float32: sums over a map can exceed float16's range."""
        out = x.new_empty((*x.shape[:2], 1, 1), dtype=torch.float32)
        maps = (x, grad_out.contiguous(memory_format=_format(x)))
        _sum_over_map(attention_gradient, x, maps, out, radix, 1.0)
        return out

    @staticmethod
    def map_gradient(
        x: Tensor, grad_out: Tensor, attention: Tensor, grad_pooled: Tensor, radix: int
    ) -> Tensor:
        """Gradient of x, shaped like x, from the gradients of the sum and of the pooled vector."""
        out = torch.empty_like(x)
        tensors = (x, grad_out.contiguous(memory_format=_format(x)), attention.contiguous())
        scale = 1.0 / (x.shape[2] * x.shape[3])
        _for_each_element(input_gradient, x, (*tensors, grad_pooled.contiguous(), out), radix, scale)
        return out


def is_supported(x: Tensor, radix: int) -> bool:
    """Whether the kernels support this (N, R*C, H, W) map: on CUDA, or in Triton's interpreter.

    They do not support subclasses of Tensor, some of which have no data (fake tensors), images of 2^31
    elements, whose offsets exceed 32 bits, or more images than a grid may have.
    """
    if not (x.is_cuda or _is_interpreted()) or type(x) not in (Tensor, torch.nn.Parameter):
        return False
    if x.dtype not in _DTYPES or radix not in _RADIXES or not x.numel():
        return False
    if x[0].numel() >= _MOST_ELEMENTS or x.shape[0] > _MOST_IMAGES:
        return False
    if is_recorded():
        return False
    if not x.is_contiguous() and not x.is_contiguous(memory_format=torch.channels_last):
        return False
    return unavailable(x.device) is None


def is_recorded() -> bool:
    """Whether a compiler, a tracer or a transform of torch.func is active. They fuse, record or rewrite only
    operators that they know."""
    if torch.compiler.is_compiling() or torch.jit.is_tracing():
        return True
    return torch._C._functorch.peek_interpreter_stack() is not None


def unavailable(device: torch.device) -> Optional[str]:
    """Return why the kernels do not run on a device, or None if they do.

    Tested once per device, by running them: Triton needs a C compiler and Python's headers to launch. A
    failure on a GPU is logged, and plain PyTorch is used.
    """
    if triton is None:
        return "Triton is not installed"
    if device.type == "cpu":
        return None if _is_interpreted() else "the kernels are for CUDA devices"
    return _fails(device)


@functools.cache
def _fails(device: torch.device) -> Optional[str]:
    """Return why a trial on a GPU fails: all kernels, in half precision, with sums in several parts."""
    try:
        ones = torch.ones((1, 16, 72, 72), dtype=torch.bfloat16, device=device)
        ones = ones.contiguous(memory_format=torch.channels_last)
        vector = ones[:, :, :1, :1].float()
        results = (
            Kernels.pool(ones, 1),
            Kernels.weighted_sum(ones, vector, 1),
            Kernels.attention_gradient(ones, ones, 1) / 72**2,
            Kernels.map_gradient(ones, ones, vector, 0 * vector, 1),
        )
        if all(bool(result.eq(1).all()) for result in results):
            return None
        reason = "a trial gave wrong results"
    except torch.OutOfMemoryError:  # says nothing about Triton
        raise
    except Exception as e:  # Triton raises all kinds of exceptions; the message says what is missing
        lines = str(e).strip().splitlines() or [""]
        reason = f"{type(e).__name__}: {lines[0][:200]}"
    logger.warning("Split-Attention computes in plain PyTorch on %s, without kernels: %s", device, reason)
    return reason


def _is_interpreted() -> bool:
    return os.getenv("TRITON_INTERPRET") == "1"


@functools.cache
def _find_room_for_compiled_kernels() -> None:
    """Give Triton a temporary folder if its own cannot be written to, as with a read-only home."""
    try:
        folder = Path(
            os.getenv("TRITON_CACHE_DIR") or Path(os.getenv("TRITON_HOME") or Path.home(), ".triton")
        )
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return
    except (OSError, RuntimeError) as e:  # RuntimeError: the user has no home
        os.environ["TRITON_CACHE_DIR"] = tempfile.mkdtemp(prefix="triton-")
        atexit.register(shutil.rmtree, os.environ["TRITON_CACHE_DIR"], ignore_errors=True)
        logger.warning(
            "Triton has no place for compiled kernels (%s) and compiles again in each process; set "
            "TRITON_CACHE_DIR to a writable folder",
            e,
        )


def _format(x: Tensor) -> torch.memory_format:
    return torch.contiguous_format if x.is_contiguous() else torch.channels_last


def _sizes(x: Tensor, radix: int) -> Tuple[int, int, int]:
    """Return C, HW and CHW."""
    channels, positions = x.shape[1] // radix, x.shape[2] * x.shape[3]
    return channels, positions, channels * positions


def _launch(kernel: Any, grid: Tuple[int, ...], x: Tensor, *arguments: Any, **constants: Any) -> None:
    """Launch on x's device; Triton would launch on the current device, wherever its arguments are."""
    _find_room_for_compiled_kernels()
    with torch.cuda.device_of(x):
        kernel[grid](*arguments, **constants)


def _for_each_element(
    kernel: Any, x: Tensor, tensors: Tuple[Tensor, ...], radix: int, *numbers: float, **constants: bool
) -> None:
    sizes = _sizes(x, radix)
    grid = (-(-sizes[2] // _BLOCK), x.shape[0])
    constants.update(RADIX=radix, CHANNELS_LAST=not x.is_contiguous(), BLOCK=_BLOCK)
    _launch(kernel, grid, x, *tensors, *sizes, *numbers, **constants)


def _sum_over_map(
    kernel: Any,
    x: Tensor,
    tensors: Tuple[Tensor, ...],
    out: Tensor,
    radix: int,
    scale: float,
    **constants: bool,
) -> None:
    """Fill ``out``, (N, ...), with the kernel's sums."""
    channels, positions, elements = _sizes(x, radix)
    channels_last = not x.is_contiguous()
    block_c, block_p, warps = _CHANNELS_LAST_TILE if channels_last else _CHANNELS_FIRST_TILE
    block_c = min(block_c, 1 << (channels - 1).bit_length())
    blocks, images = -(-channels // block_c), x.shape[0]
    wanted = -(-_PROGRAMS * _multiprocessors(x.device) // (blocks * images))
    parts = min(wanted, -(-positions // block_p), _MAX_PARTS)
    scratch = (out, out)  # nothing is written there
    if parts > 1:
        scratch = (
            x.new_empty((parts, out.numel()), dtype=torch.float32),
            x.new_zeros(images * blocks, dtype=torch.int32),
        )
    _launch(
        kernel,
        (parts, blocks, images),
        x,
        *tensors,
        out,
        *scratch,
        channels,
        positions,
        elements,
        out.numel(),
        parts,
        scale,
        RADIX=radix,
        CHANNELS_LAST=channels_last,
        PEEL=not channels_last and elements % 16 == 0,
        SPLIT=parts > 1,
        BLOCK_C=block_c,
        BLOCK_P=block_p,
        num_warps=warps,
        **constants,
    )


def _multiprocessors(device: torch.device) -> int:
    if device.type != "cuda":
        return _INTERPRETED_MULTIPROCESSORS
    return torch.cuda.get_device_properties(device).multi_processor_count
