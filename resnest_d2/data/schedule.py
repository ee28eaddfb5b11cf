"""Fit a schedule to a number of epochs, for data of any kind."""

from __future__ import annotations

import math
from typing import List, Optional

from detectron2.config import CfgNode


def fit_schedule(cfg: CfgNode, images: int, epochs: Optional[float]) -> List[str]:
    """Set the number of iterations, and the steps and the warmup in proportion, in place.

    Args:
        images: number of images in an epoch.
        epochs: None keeps the recipe's iterations.

    Returns:
        Notes for the user, one per line.
    """
    solver, per_epoch = cfg.SOLVER, images / cfg.SOLVER.IMS_PER_BATCH
    if epochs is None:
        return [
            f"the recipe's {solver.MAX_ITER} iterations are {solver.MAX_ITER / per_epoch:.0f} epochs of "
            f"your {images} images; --epochs N fits the schedule"
        ]
    old, new = solver.MAX_ITER, max(1, math.ceil(epochs * per_epoch))
    steps = (round(step * new / old) for step in solver.STEPS)
    solver.STEPS = tuple(step for step in steps if 0 < step < new)
    solver.WARMUP_ITERS = min(solver.WARMUP_ITERS, new // 10)
    solver.MAX_ITER = new
    return []
