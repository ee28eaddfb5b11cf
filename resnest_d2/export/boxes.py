"""Selection of boxes with operations that every export format has, and sizes that are known when tracing.

Two boxes, the dummies, come before the real ones in every selection, so that there never are fewer than
two: torch.export assumes that non-maximum suppression keeps at least two, and runtimes do not agree on
convolutions of no images. They lie apart from all others, rank first, and are left out of the outputs.
"""

from __future__ import annotations

import math
from typing import List, Sequence, Tuple

import torch
from detectron2.modeling.poolers import ROIPooler
from torch import Tensor
from torch.nn import functional as F
from torchvision.ops import nms

#: Boxes before the real ones that are no predictions.
DUMMIES = 2


def top(scores: Tensor, count: int) -> Tuple[Tensor, Tensor]:
    """Return the ``count`` best scores in descending order, and their indices.

    Args:
        scores: (n,). If n is smaller, the rest has a score of -inf and any index.
    """
    best, indices = F.pad(scores, (0, count), value=-math.inf).topk(count)
    return best, indices.clamp(max=scores.shape[0] - 1)


def clip(boxes: Tensor, size: Sequence[int]) -> Tensor:
    """Move (..., 4) boxes into an image of (height, width)."""
    height, width = size
    x0, y0, x1, y1 = boxes.unbind(-1)
    return torch.stack([x0.clamp(0, width), y0.clamp(0, height), x1.clamp(0, width), y1.clamp(0, height)], -1)


def nonempty(boxes: Tensor, more_than: float = 0.0) -> Tensor:
    """Whether each of (n, 4) boxes has sides of more than some pixels."""
    return (boxes[:, 2:] - boxes[:, :2] > more_than).all(1)


def finite(values: Tensor) -> Tensor:
    """Whether each value is finite; ``isfinite`` itself is not in all formats."""
    return values.abs() < math.inf


def suppress(
    boxes: Tensor, scores: Tensor, groups: Tensor, num_groups: int, threshold: float, limit: int
) -> Tensor:
    """Non-maximum suppression within each group.

    Each group is moved to a place of its own. The places form a square, since float32 has the fewer digits
    left for overlaps the larger coordinates are.

    Args:
        boxes: (n, 4), the dummies first.
        scores: (n,), above 0.
        groups: (n,), from 0 to ``num_groups`` - 1.
        limit: most boxes that are kept beside the dummies; below 0 for all.

    Returns:
        (m,) indices of those kept, the dummies first, then by descending score.
    """
    columns = math.ceil(math.sqrt(num_groups + DUMMIES))
    extra = torch.arange(num_groups, num_groups + DUMMIES, device=groups.device)
    groups = torch.cat([extra, groups[DUMMIES:]])
    place = torch.stack([groups % columns, groups // columns], 1).to(boxes.dtype)
    moved = boxes + place.repeat(1, 2) * (boxes.max() - boxes.min() + 1)
    first = torch.stack([scores.max() + 2, scores.max() + 1])
    kept = nms(moved, torch.cat([first, scores[DUMMIES:]]), threshold)
    return kept if limit < 0 else kept[: limit + DUMMIES]


def with_dummies(boxes: Tensor) -> Tensor:
    """Put the dummies before (n, 4) boxes: squares of one pixel."""
    dummy = torch.tensor([0.0, 0.0, 1.0, 1.0], dtype=boxes.dtype, device=boxes.device)
    return torch.cat([dummy.expand(DUMMIES, 4), boxes])


def pool(pooler: ROIPooler, features: List[Tensor], boxes: Tensor) -> Tensor:
    """Pool (n, 4) boxes of one image, as :class:`ROIPooler` does.

    Returns:
        (n, C, output_size, output_size)
    """
    rois = F.pad(boxes, (1, 0))
    if len(features) == 1:
        return pooler.level_poolers[0](features[0], rois)
    sides = ((boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])).sqrt()
    level = torch.floor(pooler.canonical_level + torch.log2(sides / pooler.canonical_box_size + 1e-8))
    level = level.clamp(pooler.min_level, pooler.max_level) - pooler.min_level
    levels = torch.arange(len(features), device=boxes.device)
    chosen = level[:, None] == levels
    pooled = [
        layer(feature, rois[chosen[:, i].nonzero()[:, 0]])
        for i, (layer, feature) in enumerate(zip(pooler.level_poolers, features))
    ]
    # Where each box lies among those of its level, and after those of the levels before.
    within = chosen.long().cumsum(0) - 1
    before = chosen.long().sum(0).cumsum(0) - chosen.long().sum(0)
    place = ((within + before) * chosen).sum(1)
    return torch.cat(pooled)[place]
