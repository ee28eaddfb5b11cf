"""Activation checkpointing that updates the norms' statistics only once."""

from __future__ import annotations

from contextlib import ExitStack, nullcontext
from typing import Any, Callable, ContextManager, Optional, Sequence, Tuple

import torch
import torchvision  # noqa: F401  registers its operators
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint, create_selective_checkpoint_contexts

#: What a checkpointed block can keep.
KEEPS = ("inputs", "convolutions")

_CONVOLUTIONS = [torch.ops.aten.convolution.default, torch.ops.torchvision.deform_conv2d.default]


@torch.compiler.disable  # it does not support our contexts
def checkpoint_block(
    block: nn.Module, forward: Callable[[Tensor], Tensor], x: Tensor, keeps: str = "inputs"
) -> Tensor:
    """Return ``forward(x)``, which keeps few activations and runs again in the backward pass.

    Args:
        block: the module with the norms, whose running statistics are updated in the first run only.
        keeps: one of :data:`KEEPS`. With ``convolutions`` their outputs are kept as well, so that only cheap
            operations run again: norms, activations, pools and weighted sums.
    """

    def contexts() -> Tuple[ContextManager, ContextManager]:
        if keeps == "inputs":
            return nullcontext(), _PreserveRunningStats(block)
        first, again = create_selective_checkpoint_contexts(_CONVOLUTIONS)
        return first, _PreserveRunningStats(block, again)

    # Nothing inside is random, so the generators' states need not be preserved.
    return checkpoint(forward, x, use_reentrant=False, preserve_rng_state=False, context_fn=contexts)


class _PreserveRunningStats:
    """Context for every run but the first that keeps the running statistics unchanged.

    Args:
        once: a context for the first of these runs only. The convolutions' outputs that the forward pass
            kept can be used once; if the graph is retained, later runs compute them again.
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
