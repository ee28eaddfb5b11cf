"""ReLU, pooling and weighted sum of Split-Attention, with a backward pass of their own.

Autograd would run the backward of each step over whole maps: that of the sum, that of the pooling, the sum
of both, and that of the ReLU. Here the gradient of the map is written once, whatever computes it: plain
PyTorch, on any device, or the kernels of :mod:`.fused`.
"""

from __future__ import annotations

from typing import Any, Optional, Tuple, Type

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from .fused import Kernels, is_recorded, is_supported
from .split_attention import radix_weighted_sum, split_pool


class Plain:
    """The passes in plain PyTorch. The map is activated in place."""

    @staticmethod
    def activate(x: Tensor) -> Tensor:
        return F.relu_(x)

    pool = staticmethod(split_pool)

    @staticmethod
    def weighted_sum(y: Tensor, attention: Tensor, radix: int) -> Tensor:
        if radix == 2:  # a0 = 1 - a1: one pass instead of two
            (first, second), weight = y.chunk(2, 1), attention.chunk(2, 1)[1]
            return torch.lerp(first, second, weight)
        return radix_weighted_sum(y, attention, radix)

    @staticmethod
    def attention_gradient(y: Tensor, gradient: Tensor, radix: int) -> Tensor:
        sums = [(split * gradient).sum((2, 3), keepdim=True) for split in y.chunk(radix, 1)]
        return torch.cat(sums, 1)

    @staticmethod
    def map_gradient(y: Tensor, gradient: Tensor, attention: Tensor, of_pool: Tensor, radix: int) -> Tensor:
        out = torch.empty_like(y)
        of_pool = of_pool / (y.shape[2] * y.shape[3])
        for part, weight in zip(out.chunk(radix, 1), attention.chunk(radix, 1)):
            torch.addcmul(of_pool.expand_as(part), gradient, weight, out=part)
        return torch.ops.aten.threshold_backward.grad_input(out, y, 0, grad_input=out)


class Activated:
    """A map between :func:`relu_pool` and :func:`relu_weighted_sum`.

    It carries the gradient of the sum to the backward pass of the pooling, which follows it and writes
    both gradients at once.
    """

    def __init__(self, radix: int, backend: Type) -> None:
        self.radix, self.backend = radix, backend
        self.map: Optional[Tensor] = None
        self.sum_gradient: Optional[Tensor] = None
        self.attention: Optional[Tensor] = None


def relu_pool(x: Tensor, radix: int, kernels: bool = True) -> Tuple[Tensor, Activated]:
    """``split_pool(relu(x), radix)``, and what :func:`relu_weighted_sum` takes.

    Args:
        x: (N, R*C, H, W), radix-major. It may be changed in place.
        kernels: use the Triton kernels where they are supported.

    Returns:
        (N, C, 1, 1), and the map to be summed.
    """
    activated = Activated(radix, Kernels if kernels and is_supported(x, radix) else Plain)
    if _records_gradients(x):
        pooled, activated.map = _ReluPool.apply(x, activated)
    else:
        activated.map = activated.backend.activate(x)
        pooled = activated.backend.pool(activated.map, radix)
    return pooled, activated


def relu_weighted_sum(activated: Activated, attention: Tensor) -> Tensor:
    """``radix_weighted_sum(relu(x), attention, radix)`` of the x that was pooled.

    Args:
        attention: (N, R*C, 1, 1), radix-major, of the map's type; of :func:`radix_softmax`, whose values
            add up to one over the splits.

    Returns:
        (N, C, H, W), in the memory format of x.
    """
    # Nothing but the graph may hold the map, or activation checkpointing would free nothing.
    x, activated.map = activated.map, None
    if _records_gradients(x) or _records_gradients(attention):
        return _ReluWeightedSum.apply(x, attention, activated)
    return activated.backend.weighted_sum(x, attention, activated.radix)


def _records_gradients(x: Tensor) -> bool:
    """Whether the backward passes below are wanted."""
    return x.requires_grad and torch.is_grad_enabled() and not is_recorded()


class _ReluPool(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, activated: Activated) -> Tuple[Tensor, Tensor]:
        y = activated.backend.activate(x)
        if y is x:
            ctx.mark_dirty(x)
        ctx.save_for_backward(y)
        ctx.activated = activated
        ctx.set_materialize_grads(False)
        return activated.backend.pool(y, activated.radix), y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, of_pool: Optional[Tensor], _: Any) -> Tuple[Optional[Tensor], None]:
        (y,) = ctx.saved_tensors
        link, radix = ctx.activated, ctx.activated.radix
        gradient, attention = link.sum_gradient, link.attention
        link.sum_gradient = link.attention = None
        if gradient is None and of_pool is None:
            return None, None
        shape = (y.shape[0], y.shape[1] // radix, *y.shape[2:])
        if gradient is None:
            gradient, attention = y.new_zeros(shape), y.new_zeros((*y.shape[:2], 1, 1))
        if of_pool is None:
            of_pool = y.new_zeros((*shape[:2], 1, 1))
        return link.backend.map_gradient(y, gradient, attention, of_pool, radix), None


class _ReluWeightedSum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, y: Tensor, attention: Tensor, activated: Activated) -> Tensor:
        ctx.save_for_backward(y, attention)
        ctx.activated = activated
        return activated.backend.weighted_sum(y, attention, activated.radix)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Tuple[None, Optional[Tensor], None]:
        y, attention = ctx.saved_tensors
        link = ctx.activated
        if ctx.needs_input_grad[0]:
            # The map's gradient is written in the backward pass of the pooling, which comes next.
            link.sum_gradient, link.attention = gradient, attention
        if not ctx.needs_input_grad[1]:
            return None, None, None
        return None, link.backend.attention_gradient(y, gradient, link.radix), None
