"""Deployment: models and backbones as ONNX, pt2 and TorchScript, and the proof that they compute the same."""

from .export import PARTS, describe, export, export_verified
from .formats import EXTENSIONS, check_packages
from .graphs import build_graph, check_exportable
from .images import find_images, read_images
from .measure import measure_accuracy, measure_speed
from .options import find_targets
from .quantize import quantize
from .runtime import ExportedModel
from .verify import EXACT, INT8, check, compare, table

__all__ = [
    "EXACT",
    "EXTENSIONS",
    "INT8",
    "PARTS",
    "ExportedModel",
    "build_graph",
    "check",
    "check_exportable",
    "check_packages",
    "compare",
    "describe",
    "export",
    "export_verified",
    "find_images",
    "find_targets",
    "measure_accuracy",
    "measure_speed",
    "quantize",
    "read_images",
    "table",
]
