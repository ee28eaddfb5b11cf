"""Datasets of the package and of the user, and checks that a configuration has its data."""

from .annotations import load_coco
from .check import check_classes, check_datasets
from .coco_check import check_coco
from .custom import check_pairs, check_registered, fit_config, max_size_of, register_pairs
from .folder_check import check_folder
from .image_folder import register_imagenet
from .own import OwnData, own_data, pairs_of
from .semantic_check import check_semantic
from .semantic_masks import read_labels
from .shapes import generate_shapes, register_shapes

register_imagenet()
register_shapes()

__all__ = [
    "OwnData",
    "check_classes",
    "check_coco",
    "check_datasets",
    "check_folder",
    "check_pairs",
    "check_registered",
    "check_semantic",
    "fit_config",
    "generate_shapes",
    "load_coco",
    "max_size_of",
    "own_data",
    "pairs_of",
    "read_labels",
    "register_imagenet",
    "register_pairs",
    "register_shapes",
]
