"""Weights: reading them safely, converting between formats, and finding them by name."""

from .checkpointer import Checkpointer
from .convert import Conversion, convert, write_weights
from .links import LinkHandler, register_handlers
from .read import read_weights
from .resolve import ResNeStHandler

register_handlers()

__all__ = [
    "Checkpointer",
    "Conversion",
    "LinkHandler",
    "ResNeStHandler",
    "convert",
    "read_weights",
    "write_weights",
]
