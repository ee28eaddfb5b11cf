"""Weights: reading them safely, converting between formats, and finding them by name."""

from .checkpointer import Checkpointer
from .convert import Conversion, convert, write_weights
from .files import read_weights
from .resolve import ResNeStHandler, register_handler

register_handler()

__all__ = ["Checkpointer", "Conversion", "ResNeStHandler", "convert", "read_weights", "write_weights"]
