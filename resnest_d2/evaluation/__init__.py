"""Evaluators by dataset, and pictures of predictions."""

from .evaluators import build_augmented_evaluator, build_evaluator, build_instance_evaluator
from .pictures import draw_predictions

__all__ = [
    "build_augmented_evaluator",
    "build_evaluator",
    "build_instance_evaluator",
    "draw_predictions",
]
