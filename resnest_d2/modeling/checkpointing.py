"""Activation checkpointing that leaves the norms' statistics as they would be without it."""

from __future__ import annotations

from contextlib import ExitStack, nullcontext
from typing import Any, Callable, ContextManager, Optional, Sequence, Tuple

import torch
import torchvision  # noqa: F401  registers its operators
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint, create_selective_checkpoint_contexts

#: What a checkpointed block keeps beside its input.
KEEPS = ("inputs", "convolutions")

_CONVOLUTIONS = [torch.ops.aten.convolution.default, torch.ops.torchvision.deform_conv2d.default]


@torch.compiler.disable  # which knows no context of ours
def checkpoint_block(
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
            return nullcontext(), _PreserveRunningStats(block)
        first, again = create_selective_checkpoint_contexts(_CONVOLUTIONS)
        return first, _PreserveRunningStats(block, again)

    # Nothing random happens inside, so no generator's state needs keeping.
    return checkpoint(forward, x, use_reentrant=False, preserve_rng_state=False, context_fn=contexts)


class _PreserveRunningStats:
    """Around each run but the first: running statistics stay.

    Args:
        once: a context for the first of these runs alone. What a forward pass has kept of its convolutions
            is given away once; over a graph that is retained, they run again.
    """

    def __init__(self, block: nn.Module, once: Optional[ContextManager] = None) -> None:
        norms = (m for m in block.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm))
        self._norms = [norm for norm in norms if norm.track_running_stats]
        self._once = once

    def __enter__(self) -> None:
        self._stack = ExitStack()
        before = [(norm, norm.momentum, norm.num_batches_tracked.clone()) for norm in self._norms]
        self._stack.callback(self._restore, before)
        for norm in self._norms:
            norm.momentum = 0.0
        if self._once is not None:
            self._stack.enter_context(self._once)
            self._once = None

    def __exit__(self, *exception: Any) -> None:
        self._stack.__exit__(*exception)

    @staticmethod
    @torch.no_grad()
    def _restore(before: Sequence[Tuple[nn.Module, float, Tensor]]) -> None:
        for norm, momentum, count in before:
            norm.momentum = momentum
            norm.num_batches_tracked.copy_(count)
