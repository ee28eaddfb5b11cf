"""From a command line to training, evaluation and pictures."""

from .command import argument_parser, run
from .setup import load_config
from .trainer import Trainer, evaluate, load_model, train

__all__ = ["Trainer", "argument_parser", "evaluate", "load_config", "load_model", "run", "train"]
