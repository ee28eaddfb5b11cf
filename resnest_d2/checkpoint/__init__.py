"""Read weights safely, convert between their formats, and find them by name."""

from .backbone_file import fetch_weights, write_backbone
from .checkpointer import Checkpointer
from .convert import Conversion, as_safetensors, averaged, check_target, convert, write_weights
from .coverage import Coverage
from .hub import HubHandler, check_model_name
from .links import LinkHandler, local_weights, register_handlers
from .read import read_weights
from .resolve import ResNeStHandler

register_handlers()

__all__ = [
    "Checkpointer",
    "Conversion",
    "Coverage",
    "HubHandler",
    "LinkHandler",
    "ResNeStHandler",
    "as_safetensors",
    "averaged",
    "check_model_name",
    "check_target",
    "convert",
    "fetch_weights",
    "local_weights",
    "read_weights",
    "write_backbone",
    "write_weights",
]
