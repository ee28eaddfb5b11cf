"""Datasets: what the package brings, and what a configuration needs to be there."""

from .check import check_datasets
from .coco_check import check_coco
from .shapes import generate_shapes, register_shapes

register_shapes()

__all__ = ["check_coco", "check_datasets", "generate_shapes", "register_shapes"]
