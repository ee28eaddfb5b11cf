"""Activation checkpointing that leaves the norms' statistics as they would be without it."""

from __future__ import annotations

from contextlib import contextmanager, nullcontext
from typing import Callable, ContextManager, Iterator, Optional, Tuple

import torch
import torchvision  # noqa: F401  registers its operators
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint, create_selective_checkpoint_contexts

#: What a checkpointed block keeps beside its input.
KEEPS = ("inputs", "convolutions")

_CONVOLUTIONS = [torch.ops.aten.convolution.default, torch.ops.torchvision.deform_conv2d.default]


def recompute_later(
    block: nn.Module, forward: Callable[[Tensor], Tensor], x: Tensor, keeps: str = "inputs"
) -> Tensor:
    """``forward(x)``, which keeps little and runs again when its gradient is asked for.

    Args:
        block: holds the norms, whose running statistics move in the first run alone.
        keeps: of :data:`KEEPS`. With ``convolutions`` their outputs are kept too, so that only what costs
            little runs again: norms, activations, pools and weighted sums.
    """

    def contexts() -> Tuple[ContextManager, ContextManager]:
        if keeps == "inputs":
            return nullcontext(), _still_statistics(block)
        first, again = create_selective_checkpoint_contexts(_CONVOLUTIONS)
        return first, _still_statistics(block, again)

    # Nothing random happens inside, so no generator's state needs keeping.
    return checkpoint(forward, x, use_reentrant=False, preserve_rng_state=False, context_fn=contexts)


@contextmanager
def _still_statistics(block: nn.Module, inner: Optional[ContextManager] = None) -> Iterator[None]:
    norms = [m for m in block.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    before = [(norm.momentum, norm.num_batches_tracked.clone()) for norm in norms]
    for norm in norms:
        norm.momentum = 0.0
    try:
        with inner or nullcontext():
            yield
    finally:
        with torch.no_grad():
            for norm, (momentum, count) in zip(norms, before):
                norm.momentum = momentum
                norm.num_batches_tracked.copy_(count)
