"""From a command line to training, evaluation and pictures."""

from .cli import Parser, argument_parser, model_options, run
from .config import load_config
from .failures import one_line_errors
from .trainer import Trainer, evaluate, load_model, train

__all__ = [
    "Parser",
    "Trainer",
    "argument_parser",
    "evaluate",
    "load_config",
    "load_model",
    "model_options",
    "one_line_errors",
    "run",
    "train",
]
