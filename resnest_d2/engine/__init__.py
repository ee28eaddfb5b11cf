"""From a command line to training, evaluation and pictures."""

from .cli import argument_parser, model_options, run
from .config import load_config
from .trainer import Trainer, evaluate, load_model, train

__all__ = [
    "Trainer",
    "argument_parser",
    "evaluate",
    "load_config",
    "load_model",
    "model_options",
    "run",
    "train",
]
