"""Activation checkpointing that leaves the norms' statistics as they would be without it."""

from __future__ import annotations

from contextlib import contextmanager, nullcontext
from typing import Callable, ContextManager, Iterator, Tuple

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint


def recompute_later(block: nn.Module, forward: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """``forward(x)``, which keeps ``x`` only and runs again when its gradient is asked for.

    Args:
        block: holds the norms, whose running statistics move in the first run alone.
    """

    def contexts() -> Tuple[ContextManager, ContextManager]:
        return nullcontext(), _still_statistics(block)

    # Nothing random happens inside, so no generator's state needs keeping.
    return checkpoint(forward, x, use_reentrant=False, preserve_rng_state=False, context_fn=contexts)


@contextmanager
def _still_statistics(block: nn.Module) -> Iterator[None]:
    norms = [m for m in block.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    before = [(norm.momentum, norm.num_batches_tracked.clone()) for norm in norms]
    for norm in norms:
        norm.momentum = 0.0
    try:
        yield
    finally:
        with torch.no_grad():
            for norm, (momentum, count) in zip(norms, before):
                norm.momentum = momentum
                norm.num_batches_tracked.copy_(count)
