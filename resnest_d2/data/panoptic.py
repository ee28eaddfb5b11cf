"""COCO's panoptic annotations: segment images, the semantic maps that detectron2 trains on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Dict, List, Union

import numpy as np
import pycocotools.mask
from detectron2.data.datasets.builtin_meta import COCO_CATEGORIES
from PIL import Image
from tqdm import tqdm

from ..errors import UserError
from .coco_check import read_list

#: Label of pixels that do not count, in semantic maps.
_IGNORED = 255
_WALL = 199
_STUFF = [category["id"] for category in COCO_CATEGORIES if not category["isthing"]]


def read_segment_ids(path: Union[str, Path]) -> np.ndarray:
    """(H, W) int64, the segment of each pixel, from a PNG that holds it as R + 256 G + 65536 B."""
    with Image.open(path) as image:
        rgb = np.asarray(image.convert("RGB"), dtype=np.int64)
    return rgb @ np.array([1, 256, 256**2])


def write_segment_ids(ids: np.ndarray, path: Union[str, Path]) -> None:
    """The reverse of :func:`read_segment_ids`."""
    rgb = np.stack((ids % 256, ids // 256 % 256, ids // 256**2), -1)
    Image.fromarray(rgb.astype(np.uint8)).save(path)


def write_semantic_maps(annotations: Path, segments: Path, output: Path) -> int:
    """Write the ``panoptic_stuff_*`` folder of detectron2's ``coco_2017_*_panoptic_separated``.

    Args:
        annotations: COCO's ``panoptic_*.json``.
        segments: its folder of PNGs.
        output: folder for one PNG an image: 0 for any thing, 1 to 53 for stuff in the order of its
            category ids, 255 for no label.

    Returns:
        The number of images.

    Raises:
        UserError: a file is missing or malformed, or a category is not COCO's.
    """
    label = {c["id"]: 0 if c["isthing"] else _STUFF.index(c["id"]) + 1 for c in COCO_CATEGORIES}
    images = list(read_list(annotations, "annotations"))
    if not images:
        raise UserError(f"{annotations} holds no annotations")
    output.mkdir(parents=True, exist_ok=True)
    try:
        for image in tqdm(images, desc=f"semantic maps into {output}"):
            ids = read_segment_ids(segments / image["file_name"])
            semantic = np.full(ids.shape, _IGNORED, dtype=np.uint8)
            for segment in image["segments_info"]:
                semantic[ids == segment["id"]] = label[segment["category_id"]]
            Image.fromarray(semantic).save(output / image["file_name"])
    except OSError as e:
        raise UserError(f"{segments}: {e}") from None
    except (KeyError, TypeError) as e:
        raise UserError(f"{annotations} is not COCO's panoptic format: {e!r}") from None
    return len(images)


def panoptic_of_instances(instances: Path, annotations: Path, segments: Path) -> None:
    """Make panoptic annotations of instance annotations: to try a recipe where there are no others.

    Things lie on each other in the order of the file. Everything else is one segment, a wall, so figures on
    such data say nothing about the segmentation of stuff.

    Args:
        instances: COCO's ``instances_*.json``.
        annotations: JSON file to write.
        segments: folder for its PNGs.
    """
    images = list(read_list(instances, "images"))
    of_image: Dict[int, List[dict]] = {image["id"]: [] for image in images}
    for annotation in read_list(instances, "annotations"):
        of_image[annotation["image_id"]].append(annotation)
    segments.mkdir(parents=True, exist_ok=True)
    result = []
    for image in images:
        height, width = image["height"], image["width"]
        ids = np.ones((height, width), dtype=np.int64)
        infos = [{"id": 1, "category_id": _WALL, "iscrowd": 0}]
        for number, annotation in enumerate(of_image[image["id"]], 2):
            rle = annotation["segmentation"]
            if isinstance(rle, list):
                rle = pycocotools.mask.merge(pycocotools.mask.frPyObjects(rle, height, width))
            elif isinstance(rle["counts"], list):
                rle = pycocotools.mask.frPyObjects(rle, height, width)
            ids[pycocotools.mask.decode(rle).astype(bool)] = number
            infos.append({"id": number, **{k: annotation[k] for k in ("category_id", "iscrowd")}})
        visible = {int(i) for i in np.unique(ids)}
        name = f"{Path(image['file_name']).stem}.png"
        write_segment_ids(ids, segments / name)
        kept = [info for info in infos if info["id"] in visible]
        result.append({"image_id": image["id"], "file_name": name, "segments_info": kept})
    annotations.write_text(
        json.dumps({"images": images, "annotations": result, "categories": COCO_CATEGORIES})
    )


def add_panoptic_of_instances(root: Path, output: Path) -> None:
    """A copy of a DETECTRON2_DATASETS folder, by links, with :func:`panoptic_of_instances` added.

    Args:
        root: folder that holds ``coco``.
        output: folder to make.
    """
    source, coco = (root / "coco").absolute(), output / "coco"
    (coco / "annotations").mkdir(parents=True, exist_ok=True)
    for split in ("train2017", "val2017"):
        for link in (split, f"annotations/instances_{split}.json"):
            (coco / link).unlink(missing_ok=True)
            (coco / link).symlink_to(source / link)
        annotations, segments = coco / f"annotations/panoptic_{split}.json", coco / f"panoptic_{split}"
        panoptic_of_instances(coco / f"annotations/instances_{split}.json", annotations, segments)
        write_semantic_maps(annotations, segments, coco / f"panoptic_stuff_{split}")
