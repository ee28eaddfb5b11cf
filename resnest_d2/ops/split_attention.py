"""The three steps of Split-Attention that combine splits, in plain PyTorch.

Feature maps are radix-major: of the R*C channels of ``x``, channel r*C + c is split r of channel c.
Equations 1 to 3 of arXiv 2004.08955.
"""

from __future__ import annotations

from typing import Optional

import torch
from torch import Tensor


def split_pool(x: Tensor, radix: int, dtype: Optional[torch.dtype] = None) -> Tensor:
    """Sum over the splits and average over the map (equation 1).

    Pooling is linear, so each split is pooled and the pooled vectors are added. This avoids building the
    summed map, which would cost a full write and read.

    Args:
        x: (N, R*C, H, W), radix-major.
        dtype: type of the result, by default x's.

    Returns:
        (N, C, 1, 1)
    """
    pooled = x.mean((2, 3), keepdim=True, dtype=dtype)
    return pooled if radix == 1 else pooled.unflatten(1, (radix, -1)).sum(1)


def radix_softmax(logits: Tensor, radix: int, cardinality: int) -> Tensor:
    """Attention over the splits (equation 3): softmax, or a sigmoid if there is only one split.

    Args:
        logits: (N, K*R*C/K, 1, 1), the output of a layer with K groups, hence cardinality-major.

    Returns:
        (N, R*C, 1, 1), radix-major; sums to one over the splits of each channel for R > 1.
    """
    if radix == 1:
        return logits.sigmoid()
    attention = logits.unflatten(1, (cardinality, radix, -1)).transpose(1, 2).softmax(1)
    return attention.flatten(1, 3)


def radix_weighted_sum(x: Tensor, attention: Tensor, radix: int) -> Tensor:
    """Sum of the splits, each weighted by its attention (equation 2).

    Args:
        x: (N, R*C, H, W), radix-major.
        attention: (N, R*C, 1, 1), radix-major.

    Returns:
        (N, C, H, W)
    """
    splits, weights = x.chunk(radix, 1), attention.chunk(radix, 1)
    out = splits[0] * weights[0]
    for split, weight in zip(splits[1:], weights[1:]):
        # Safe in place: the backward pass of a product needs its factors, not its result.
        out.addcmul_(split, weight)
    return out
