"""The Triton kernels of :mod:`.fused`. Importing this needs Triton, and takes a while.

In all of them: C channels of a split, P positions of the map; xc, xp and oc, op are the strides of channels
and positions in maps of R*C and of C channels.
"""

import triton
import triton.language as tl


@triton.jit
def _tile(C, P, BLOCK_C: tl.constexpr, BLOCK_P: tl.constexpr):
    """Image, channels and positions of a program that has one tile, and which of them there are."""
    n = tl.program_id(2).to(tl.int64)
    c = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    p = tl.program_id(0) * BLOCK_P + tl.arange(0, BLOCK_P)
    return n, c, p, (c[:, None] < C) & (p[None, :] < P)


@triton.jit
def pool(
    x, sums, C, P, xc, xp, oc, op, parts,
    RADIX: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_P: tl.constexpr,
):  # fmt: skip
    part, n = tl.program_id(0), tl.program_id(2).to(tl.int64)
    c = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    total = tl.zeros((BLOCK_C, BLOCK_P), dtype=tl.float32)
    for start in range(part * BLOCK_P, P, parts * BLOCK_P):
        p = start + tl.arange(0, BLOCK_P)
        inside = (c[:, None] < C) & (p[None, :] < P)
        here = x + n * RADIX * C * P + c[:, None] * xc + p[None, :] * xp
        for r in tl.static_range(RADIX):
            value = tl.load(here + r * C * xc, mask=inside, other=0.0).to(tl.float32)
            total += tl.maximum(value, 0.0)
    tl.store(sums + (n * parts + part) * C + c, tl.sum(total, 1), mask=c < C)


@triton.jit
def weighted_sum(
    x, attention, out, C, P, xc, xp, oc, op,
    RADIX: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_P: tl.constexpr,
):  # fmt: skip
    n, c, p, inside = _tile(C, P, BLOCK_C, BLOCK_P)
    here = x + n * RADIX * C * P + c[:, None] * xc + p[None, :] * xp
    total = tl.zeros((BLOCK_C, BLOCK_P), dtype=tl.float32)
    for r in tl.static_range(RADIX):
        value = tl.load(here + r * C * xc, mask=inside, other=0.0).to(tl.float32)
        weight = tl.load(attention + (n * RADIX + r) * C + c, mask=c < C, other=0.0).to(tl.float32)
        total += tl.maximum(value, 0.0) * weight[:, None]
    there = out + n * C * P + c[:, None] * oc + p[None, :] * op
    tl.store(there, total.to(out.dtype.element_ty), mask=inside)


@triton.jit
def attention_gradient(
    x, gradient, sums, C, P, xc, xp, oc, op, parts,
    RADIX: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_P: tl.constexpr,
):  # fmt: skip
    part, n = tl.program_id(0), tl.program_id(2).to(tl.int64)
    c = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    # All splits at once, so that the gradient is read once.
    rc = tl.arange(0, RADIX)[:, None] * C + c[None, :]
    total = tl.zeros((RADIX, BLOCK_C, BLOCK_P), dtype=tl.float32)
    for start in range(part * BLOCK_P, P, parts * BLOCK_P):
        p = start + tl.arange(0, BLOCK_P)
        inside = (c[:, None] < C) & (p[None, :] < P)
        there = gradient + n * C * P + c[:, None] * oc + p[None, :] * op
        of_sum = tl.load(there, mask=inside, other=0.0).to(tl.float32)
        here = x + n * RADIX * C * P + rc[:, :, None] * xc + p[None, None, :] * xp
        value = tl.load(here, mask=inside[None, :, :], other=0.0).to(tl.float32)
        total += tl.maximum(value, 0.0) * of_sum[None, :, :]
    tl.store(sums + (n * parts + part) * RADIX * C + rc, tl.sum(total, 2), mask=c[None, :] < C)


@triton.jit
def input_gradient(
    x, gradient, attention, pooled_gradient, out, C, P, xc, xp, oc, op,
    RADIX: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_P: tl.constexpr,
):  # fmt: skip
    n, c, p, inside = _tile(C, P, BLOCK_C, BLOCK_P)
    there = gradient + n * C * P + c[:, None] * oc + p[None, :] * op
    of_sum = tl.load(there, mask=inside, other=0.0).to(tl.float32)
    of_pool = tl.load(pooled_gradient + n * C + c, mask=c < C, other=0.0).to(tl.float32)
    offset = n * RADIX * C * P + c[:, None] * xc + p[None, :] * xp
    for r in tl.static_range(RADIX):
        value = tl.load(x + offset + r * C * xc, mask=inside, other=0.0).to(tl.float32)
        weight = tl.load(attention + (n * RADIX + r) * C + c, mask=c < C, other=0.0).to(tl.float32)
        result = tl.where(value > 0, of_sum * weight[:, None] + of_pool[:, None], 0.0)
        tl.store(out + offset + r * C * xc, result.to(out.dtype.element_ty), mask=inside)
