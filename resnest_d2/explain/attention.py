"""The attention of Split-Attention blocks over their splits, and what it tells about them."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any, Dict, Iterator, List, Sequence, Tuple

import numpy as np
import torch
from detectron2.config import CfgNode
from torch import Tensor, nn

from ..errors import UserError
from ..modeling import SplitAttentionConv2d
from ..ops import radix_softmax
from .images import Sample, samples

#: A channel's attention is even if it never differs from that of equal splits by more than this.
EVEN = 0.05
#: It is saturated if it is never farther from 0 or 1 than this.
SATURATED = 0.01


@dataclass(frozen=True)
class Block:
    """What one Split-Attention block attends to.

    Attributes:
        name: of the block, such as ``res4.2``.
        attention: (N, R, C) between 0 and 1, of N images, R splits and C channels. With R > 1 the splits of a
            channel add up to 1.
        classes: (N,) class of each image, or -1 for none.
    """

    name: str
    attention: np.ndarray
    classes: np.ndarray

    @property
    def radix(self) -> int:
        return self.attention.shape[1]

    @cached_property
    def by_channel(self) -> np.ndarray:
        """(R, C), the mean over all images."""
        return self.attention.mean(0, dtype=np.float64)

    @cached_property
    def by_class(self) -> Dict[int, np.ndarray]:
        """(R, C), the mean over the images of a class, by class."""
        found = sorted({*self.classes.tolist()} - {-1})
        return {c: self.attention[self.classes == c].mean(0, dtype=np.float64) for c in found}

    @cached_property
    def entropy(self) -> np.ndarray:
        """(C,), the mean over all images: 0 if one split has all attention, 1 if all have the same.

        With one split, it is that of the attention and the rest to 1.
        """
        a = self.attention.astype(np.float64)
        if self.radix == 1:
            a = np.concatenate([a, 1 - a], 1)
        logarithm = np.log(a, out=np.zeros_like(a), where=a > 0)
        return -(a * logarithm).sum(1).mean(0) / np.log(a.shape[1])

    @cached_property
    def explained(self) -> float:
        """Eta squared: the part of the attention's variance over images that their class explains.

        It is summed over splits and channels. NaN if there is no variance, or none that a class could leave
        unexplained, as with one image of each class.
        """
        known = self.classes >= 0
        a, classes = self.attention[known].astype(np.float64), self.classes[known]
        if not 1 < len(self.by_class) < len(classes):
            return float("nan")
        total = ((a - a.mean(0)) ** 2).sum()
        within = sum(((a[classes == c] - mean) ** 2).sum() for c, mean in self.by_class.items())
        return float(1 - within / total) if total > 0 else float("nan")

    @cached_property
    def by_chance(self) -> float:
        """What :attr:`explained` is expected to be if the class made no difference."""
        images, classes = int((self.classes >= 0).sum()), len(self.by_class)
        return (classes - 1) / (images - 1) if 1 < classes < images else float("nan")

    @cached_property
    def even(self) -> np.ndarray:
        """(C,), whether the attention of a channel is always even, see :data:`EVEN`."""
        equal = 1 / max(self.radix, 2)
        return (np.abs(self.attention - equal) <= EVEN).all((0, 1))

    @cached_property
    def saturated(self) -> np.ndarray:
        """(C,), whether the attention of a channel is always saturated, see :data:`SATURATED`."""
        return (np.minimum(self.attention, 1 - self.attention) <= SATURATED).all((0, 1))


@contextmanager
def recorded_attention(model: nn.Module) -> Iterator[Dict[str, List[Tensor]]]:
    """Record the attention of every Split-Attention block in the forward passes of a model in eval mode.

    Yields:
        For each block by its name, a (N, R, C) float32 tensor on the CPU of each pass.

    Raises:
        UserError: the model has no such block.
    """
    blocks = {name: m for name, m in model.named_modules() if isinstance(m, SplitAttentionConv2d)}
    if not blocks:
        raise UserError(
            "the model has no Split-Attention (MODEL.RESNETS.RADIX 0, as in ResNet); use the configuration "
            "of a ResNeSt"
        )
    recorded: Dict[str, List[Tensor]] = {_short(name): [] for name in blocks}
    # The logits come from here on every path, also where kernels and folded norms compute the rest.
    handles = [
        block.fc2.register_forward_hook(partial(_record, block, passes))
        for block, passes in zip(blocks.values(), recorded.values())
    ]
    try:
        yield recorded
    finally:
        for handle in handles:
            handle.remove()


def _short(name: str) -> str:
    """Return ``res4.2`` of ``backbone.bottom_up.res4.2.conv2``."""
    return name.removeprefix("backbone.").removeprefix("bottom_up.").removesuffix(".conv2")


def _record(
    block: SplitAttentionConv2d, passes: List[Tensor], layer: nn.Module, inputs: Any, logits: Tensor
) -> None:
    attention = radix_softmax(logits.detach().float(), block.radix, block.cardinality)
    passes.append(attention.unflatten(1, (block.radix, -1))[..., 0, 0].cpu())


def measure_attention(
    cfg: CfgNode, model: nn.Module, dataset: str, num_images: int
) -> Tuple[List[Block], List[Sample]]:
    """Measure the attention of all blocks on images of a dataset, evenly spaced in it.

    Args:
        model: a model with its weights; it is put into eval mode.

    Returns:
        The blocks in the order of the network, and the images.

    Raises:
        UserError: the model has no Split-Attention, or an image cannot be used.
    """
    model.eval()
    used: List[Sample] = []
    with recorded_attention(model) as recorded, torch.no_grad():
        for sample in samples(cfg, dataset, num_images, "attention"):
            model([sample.inputs])
            used.append(sample.without_inputs())
    classes = np.array([-1 if sample.label is None else sample.label for sample in used])
    return [
        Block(name, torch.cat(passes).numpy(), classes) for name, passes in recorded.items() if passes
    ], used


def dead_channels(blocks: Sequence[Block]) -> List[str]:
    """Say in a line for each block with dead attention how many of its channels are even or saturated."""
    lines = []
    for block in blocks:
        even, saturated = int(block.even.sum()), int(block.saturated.sum())
        if even or saturated:
            lines.append(
                f"{block.name}: of {block.attention.shape[2]} channels, {even} always have even attention "
                f"(within {EVEN:g} of 1/{max(block.radix, 2)}) and {saturated} always saturated (within "
                f"{SATURATED:g} of 0 or 1)"
            )
    return lines
