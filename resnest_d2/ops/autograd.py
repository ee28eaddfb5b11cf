"""ReLU, pooling and weighted sum of Split-Attention, with their own backward pass.

Autograd would run each backward step over whole maps: the weighted sum's, the pooling's, the addition of
both, and the ReLU's. Here the gradient of the map is written only once, whether it is computed by plain
PyTorch, on any device, or by the kernels of :mod:`.triton_kernels`.
"""

from __future__ import annotations

import functools
from typing import Any, Callable, Mapping, NamedTuple, Optional, Sequence, Tuple, Type

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._pytree import tree_map_only

from .split_attention import radix_weighted_sum, split_pool
from .triton_kernels import Kernels, is_recorded, is_supported


class Plain:
    """The passes in plain PyTorch. The map is activated in place."""

    @staticmethod
    def activate(x: Tensor) -> Tensor:
        return F.relu(x) if x._is_view() else F.relu_(x)  # some norms' outputs are views

    pool = staticmethod(split_pool)

    @staticmethod
    def weighted_sum(y: Tensor, attention: Tensor, radix: int, finite: bool = False) -> Tensor:
        """
        Args:
            finite: whether y is known to be finite. The shortcut below is not defined for infinities.
        """
        attention = attention.to(y.dtype)
        if radix == 2 and finite:  # a0 = 1 - a1: one pass instead of two
            (first, second), weight = y.chunk(2, 1), attention.chunk(2, 1)[1]
            return torch.lerp(first, second, weight)
        return radix_weighted_sum(y, attention, radix)

    @staticmethod
    def attention_gradient(y: Tensor, grad_out: Tensor, radix: int) -> Tensor:
        dtype = _wide(y.dtype)
        sums = [(split * grad_out).sum((2, 3), keepdim=True, dtype=dtype) for split in y.chunk(radix, 1)]
        return torch.cat(sums, 1)

    @staticmethod
    def map_gradient(
        y: Tensor, grad_out: Tensor, attention: Tensor, grad_pooled: Tensor, radix: int
    ) -> Tensor:
        out, attention = torch.empty_like(y), attention.to(y.dtype)
        of_pool = (grad_pooled / (y.shape[2] * y.shape[3])).to(y.dtype)
        for part, weight in zip(out.chunk(radix, 1), attention.chunk(radix, 1)):
            torch.addcmul(of_pool.expand_as(part), grad_out, weight, out=part)
        return torch.ops.aten.threshold_backward.grad_input(out, y, 0, grad_input=out)


class Activated(NamedTuple):
    """A map between :func:`relu_pool` and :func:`relu_weighted_sum`.

    Attributes:
        map: (N, R*C, H, W), activated or to be activated on reading, depending on the backend.
        options: further arguments of the backend's weighted sum.
    """

    map: Tensor
    radix: int
    backend: Type
    options: Mapping[str, Any]


def relu_pool(
    x: Tensor,
    radix: int,
    kernels: bool = True,
    dtype: Optional[torch.dtype] = None,
    bias: Optional[Tensor] = None,
) -> Tuple[Tensor, Activated]:
    """Return ``split_pool(relu(x + bias), radix)`` and the input of :func:`relu_weighted_sum`.

    Args:
        x: (N, R*C, H, W), radix-major. It may be changed in place.
        kernels: use the Triton kernels where they are supported.
        dtype: type of the pooled vector, by default x's.
        bias: (R*C,); the kernels add it on reading if gradients are switched off.

    Returns:
        (N, C, 1, 1), and the map to be summed.
    """
    backend = Kernels if kernels and is_supported(x, radix) else Plain
    if bias is not None and (backend is Plain or torch.is_grad_enabled()):
        x, bias = x + bias[:, None, None], None
    options: Mapping[str, Any] = {} if bias is None else {"bias": bias}
    if _records_gradients(x):
        pooled, y = _ReluPool.apply(x, radix, backend, dtype)
    else:
        y = backend.activate(x)
        pooled = backend.pool(y, radix, dtype, **options)
    if backend is Plain and x.device.type == "cpu" and type(x) is Tensor and not is_recorded():
        # A sum of nonnegative values is finite only if they all are. On other devices this would synchronise.
        options = {"finite": bool(pooled.isfinite().all())}
    return pooled, Activated(y, radix, backend, options)


def relu_weighted_sum(activated: Activated, attention: Tensor) -> Tensor:
    """Return ``radix_weighted_sum(relu(x), attention, radix)`` for the x that was pooled.

    Args:
        attention: (N, R*C, 1, 1), radix-major, of any floating type, from :func:`radix_softmax`: its values
            add up to one over the splits. Its gradient may exceed float16's range, but not float32's.

    Returns:
        (N, C, H, W), in the memory format and type of x.
    """
    if _records_gradients(activated.map) or _records_gradients(attention):
        return _ReluWeightedSum.apply(activated.map, attention, activated)
    return activated.backend.weighted_sum(activated.map, attention, activated.radix, **activated.options)


def _wide(dtype: torch.dtype) -> torch.dtype:
    """Type for sums over a map, which can exceed float16's range."""
    return torch.promote_types(dtype, torch.float32)


def _records_gradients(x: Tensor) -> bool:
    """Whether the backward passes below are needed."""
    return x.requires_grad and torch.is_grad_enabled() and not is_recorded()


class _Product(Tensor):
    """grad_out * attention, (N, R*C, H, W), kept as its two factors.

    The gradient that :class:`_ReluWeightedSum` returns for its map. :class:`_ReluPool` receives it and uses
    the factors, which saves writing and reading a map. To all other operators it is a tensor.
    """

    @staticmethod
    def __new__(cls, grad_out: Tensor, attention: Tensor, radix: int) -> _Product:
        n, channels, height, width = grad_out.shape
        shape = (n, radix * channels, height, width)
        return Tensor._make_wrapper_subclass(cls, shape, dtype=grad_out.dtype, device=grad_out.device)

    def __init__(self, grad_out: Tensor, attention: Tensor, radix: int) -> None:
        self.grad_out, self.attention, self.radix = grad_out, attention, radix

    def multiplied_out(self) -> Tensor:
        weights = self.attention.to(self.grad_out.dtype).chunk(self.radix, 1)
        return torch.cat([self.grad_out * weight for weight in weights], 1)

    __torch_function__ = torch._C._disabled_torch_function_impl

    @classmethod
    def __torch_dispatch__(
        cls, func: Any, types: Sequence, args: Sequence = (), kwargs: Optional[Mapping] = None
    ) -> Any:
        if func._schema.is_mutable:
            raise RuntimeError(f"{func}: the gradient of Split-Attention's map cannot be changed in place")
        args, kwargs = tree_map_only(cls, cls.multiplied_out, (args, kwargs or {}))
        return func(*args, **kwargs)


class _Once(torch.autograd.Function):
    """A gradient that raises an error when it is differentiated with respect to any of its origins."""

    @staticmethod
    def forward(ctx: Any, gradient: Tensor, *origins: Tensor) -> Tensor:
        return gradient.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> None:
        raise RuntimeError("Split-Attention cannot be differentiated twice: its backward pass has no graph")


def _first_order(backward: Callable[..., Tuple]) -> Callable[..., Tuple]:
    """Refuse second derivatives. PyTorch's once_differentiable does so for ``backward()`` only: with
    ``torch.autograd.grad`` its results depend on nothing, and their derivative is silently zero."""

    @functools.wraps(backward)
    def checked(ctx: Any, *gradients: Optional[Tensor]) -> Tuple:
        with torch.no_grad():
            results = backward(ctx, *gradients)
        if not torch.is_grad_enabled():
            return results
        origins = (*ctx.saved_tensors, *(g for g in gradients if g is not None))
        return tuple(r if r is None else _Once.apply(r, *origins) for r in results)

    return checked


class _ReluPool(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, radix: int, backend: Type, dtype: Optional[torch.dtype]
    ) -> Tuple[Tensor, Tensor]:
        y = backend.activate(x)
        if y is x:
            ctx.mark_dirty(x)
        ctx.save_for_backward(y)
        ctx.radix, ctx.backend = radix, backend
        ctx.set_materialize_grads(False)
        return backend.pool(y, radix, dtype), y

    @staticmethod
    @_first_order
    def backward(ctx: Any, grad_pooled: Optional[Tensor], grad_map: Optional[Tensor]) -> Tuple:
        (y,) = ctx.saved_tensors
        if isinstance(grad_map, _Product):
            if grad_pooled is None:
                grad_pooled = grad_map.attention.new_zeros((y.shape[0], y.shape[1] // ctx.radix, 1, 1))
            factors = (grad_map.grad_out, grad_map.attention)
            return ctx.backend.map_gradient(y, *factors, grad_pooled, ctx.radix), None, None, None
        gradient = grad_map  # None if there was no weighted sum
        if grad_pooled is not None:
            of_pool = (grad_pooled / (y.shape[2] * y.shape[3])).to(y.dtype).repeat(1, ctx.radix, 1, 1)
            gradient = of_pool.expand_as(y) if gradient is None else gradient + of_pool
        if gradient is not None:
            gradient = torch.ops.aten.threshold_backward(gradient, y, 0)
        return gradient, None, None, None


class _ReluWeightedSum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, y: Tensor, attention: Tensor, activated: Activated) -> Tensor:
        ctx.save_for_backward(y, attention)
        # Only the graph may hold the map, or activation checkpointing could not free it.
        ctx.radix, ctx.backend = activated.radix, activated.backend
        return activated.backend.weighted_sum(y, attention, activated.radix, **activated.options)

    @staticmethod
    @_first_order
    def backward(ctx: Any, grad_out: Tensor) -> Tuple[Optional[Tensor], Optional[Tensor], None]:
        y, attention = ctx.saved_tensors
        of_map = _Product(grad_out, attention, ctx.radix) if ctx.needs_input_grad[0] else None
        of_attention = None
        if ctx.needs_input_grad[1]:
            of_attention = ctx.backend.attention_gradient(y, grad_out, ctx.radix)
        return of_map, of_attention, None
