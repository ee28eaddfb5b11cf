"""A user's own semantic masks: a folder of them, with a folder of images."""

from __future__ import annotations

import functools
import os
from collections import defaultdict
from pathlib import Path
from typing import Any, Dict, List, NamedTuple, Tuple, Union

from detectron2.data import DatasetCatalog, MetadataCatalog

from ..errors import UserError
from .image_files import EXTENSIONS, files_below
from .semantic_masks import png_header


class Pairing(NamedTuple):
    """Images and masks that belong together, by their paths below their folders.

    Attributes:
        pairs: image and mask of each name, in the order of the names.
        no_mask: images without a mask.
        no_image: masks without an image.
        ambiguous: files that have the name of another but for the extension.
        not_png: files among the masks with the extension of another format.
    """

    pairs: List[Tuple[str, str]]
    no_mask: List[str]
    no_image: List[str]
    ambiguous: List[str]
    not_png: List[str]


def pair_files(masks: Union[str, Path], images: Union[str, Path]) -> Pairing:
    """Match the images and masks of two folders by their relative paths without the extension.

    One folder may lie in the other, and is then no part of it.

    Raises:
        UserError: one of the folders is missing, cannot be read or is empty, or both are the same.
    """
    for folder, what in ((images, "images"), (masks, "masks")):
        if not os.path.isdir(folder):
            raise UserError(f"there is no folder of {what} {os.path.abspath(folder)}")
    if os.path.samefile(masks, images):
        raise UserError(f"{masks} is the folder of images, too; put the masks into a folder of their own")
    of_images, of_masks = _by_name(images, masks, "images"), _by_name(masks, images, "masks")
    groups = (*of_images.values(), *of_masks.values())
    both = sorted(of_images.keys() & of_masks.keys())
    return Pairing(
        [(of_images[name][0], of_masks[name][0]) for name in both],
        [of_images[name][0] for name in sorted(of_images.keys() - of_masks.keys())],
        [of_masks[name][0] for name in sorted(of_masks.keys() - of_images.keys())],
        [path for group in groups for path in group[1:]],
        [path for group in of_masks.values() for path in group if not path.lower().endswith(".png")],
    )


def _by_name(folder: Union[str, Path], without: Union[str, Path], what: str) -> Dict[str, List[str]]:
    """List the images below a folder, except those below another, by relative path without the extension."""
    found: Dict[str, List[str]] = defaultdict(list)
    for path in sorted(files_below(str(folder), {os.path.realpath(without)})):
        stem, extension = os.path.splitext(path)
        if extension.lower() in EXTENSIONS:
            found[os.path.relpath(stem, folder)].append(path)
    if not found:
        raise UserError(f"there are no {what} in {folder}; they are files named {', '.join(EXTENSIONS)}")
    return found


def load_semantic(masks: str, images: str) -> List[Dict[str, Any]]:
    """Return detectron2's records of two folders; the sizes are those of the masks.

    Raises:
        UserError: the folders do not belong together, or a mask is not PNG.
    """
    found = pair_files(masks, images)
    for paths, problem in (
        (found.no_mask, f"images have no mask in {masks}"),
        (found.no_image, f"masks have no image in {images}"),
        (found.ambiguous, "files have the name of another one but for the extension"),
        (found.not_png, "masks are not PNG"),
    ):
        if paths:
            raise UserError(f"{len(paths)} {problem}, such as {paths[0]}; tools/check_dataset.py lists them")
    records = []
    for image, mask in found.pairs:
        width, height, _ = png_header(mask)
        records.append({"file_name": image, "sem_seg_file_name": mask, "height": height, "width": width})
    return records


def register_semantic(name: str, metadata: Dict[str, Any], masks: str, images: str) -> None:
    """Register a folder of masks with its images, as register_coco_instances does a file.

    Args:
        metadata: see :attr:`SemanticClasses.metadata`.
    """
    DatasetCatalog.register(name, functools.partial(load_semantic, masks, images))
    roots = {"image_root": images, "sem_seg_root": masks}
    MetadataCatalog.get(name).set(evaluator_type="sem_seg", **roots, **metadata)
