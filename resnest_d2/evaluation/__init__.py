"""Which evaluator runs on which dataset, and pictures of what was predicted."""

from .evaluators import build_evaluator, build_instance_evaluator
from .pictures import draw_predictions

__all__ = ["build_evaluator", "build_instance_evaluator", "draw_predictions"]
