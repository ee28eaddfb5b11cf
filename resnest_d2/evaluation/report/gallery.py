"""Pictures of a report: predictions and ground truth, coloured by agreement."""

from __future__ import annotations

import base64
import io
from pathlib import Path
from typing import Any, Callable, Dict, List, Optional, Sequence, Tuple

import numpy as np
import pycocotools.mask
from detectron2.data import MetadataCatalog
from detectron2.data.detection_utils import read_image, transform_instance_annotations
from detectron2.data.transforms import ResizeTransform, TransformList
from detectron2.structures import BoxMode
from detectron2.utils.visualizer import Visualizer
from fvcore.transforms.transform import PadTransform
from PIL import Image
from tqdm import tqdm

from ...errors import UserError
from ...files import check_readable, inside
from ..labels import label, plain_text
from .charts import MISSED, RIGHT, WRONG
from .measure import Evaluation, Picture

#: Largest and smallest size of a picture in pixels. Smaller ones get a white margin.
_MOST, _LEAST = (560, 840), (560, 48)  # width, height
LEGEND = {"right": RIGHT, "wrong": WRONG, "missed": MISSED}


def draw(evaluation: Evaluation, picture: Picture, kind: str) -> Dict[str, Any]:
    """Make one entry of the gallery.

    Returns:
        Name of the image, F1 in percent, counts, and both pictures as data URLs; or only the name, and the
        reason why there are no pictures as ``problem``.
    """
    image = picture.image
    entry = {"name": label(Path(image["file_name"]).name, 100)}
    try:
        path = inside(evaluation.images, image["file_name"], "the annotations", links=True)
        pixels = read(path, (image["height"], image["width"]))
    except UserError as e:
        return {**entry, "problem": label(e, 300)}
    name = {c["id"]: label(c["name"], 40) for c in evaluation.truth["categories"]}
    results = evaluation.results
    predicted = [
        (results[i], f"{name[results[i]['category_id']]} {results[i]['score']:.0%}", colour)
        for indices, colour in ((picture.right, RIGHT), (picture.wrong, WRONG))
        for i in indices
    ]
    true = [
        (annotation, name[annotation["category_id"]], colour)
        for annotations, colour in ((picture.found, RIGHT), (picture.missed, MISSED))
        for annotation in annotations
    ]
    return {
        **entry,
        "measured": f"F1 {100 * picture.f1:.0f} % · {len(picture.right)} right, {len(picture.wrong)} wrong, "
        f"{len(picture.missed)} missed",
        "predicted": _overlay(pixels, predicted, kind),
        "truth": _overlay(pixels, true, kind),
    }


def read(path: Path, size: Optional[Tuple[int, int]] = None) -> np.ndarray:
    """Read an image as (H, W, 3) RGB, rotated according to its EXIF data.

    Args:
        size: height and width that the annotations are for; None for any.

    Raises:
        UserError: the image is missing, unreadable or of another size.
    """
    check_readable(path)
    try:
        pixels = read_image(str(path), "RGB")
    except Exception as e:  # a broken file makes Pillow raise almost anything
        raise UserError(f"cannot be decoded ({type(e).__name__}: {e})") from None
    if size and pixels.shape[:2] != size:
        raise UserError(
            f"has {pixels.shape[1]}x{pixels.shape[0]} pixels, but its annotations are for {size[1]}x{size[0]}"
        )
    return pixels


def _box(annotation: Dict[str, Any]) -> Sequence[float]:
    """Return x, y, width and height in pixels; results of masks or keypoints may lack a box."""
    if "bbox" in annotation:
        return annotation["bbox"]
    if "segmentation" in annotation:
        return pycocotools.mask.toBbox(annotation["segmentation"]).tolist()
    x, y = annotation["keypoints"][0::3], annotation["keypoints"][1::3]
    return [min(x), min(y), max(x) - min(x), max(y) - min(y)]


def _overlay(pixels: np.ndarray, objects: Sequence[Tuple[Dict, str, str]], kind: str) -> str:
    """Draw objects (annotation, label and colour of each) on the image, as the data URL of a JPEG."""
    transforms, size = _to_size_of_a_picture(*pixels.shape[:2])
    fields = {"segm": ("segmentation",), "keypoints": ("keypoints",)}.get(kind, ())
    shapes: List[Dict] = [
        transform_instance_annotations(
            {"bbox": _box(o), "bbox_mode": BoxMode.XYWH_ABS, **{f: o[f] for f in fields}}, transforms, size
        )
        for o, _, _ in objects
    ]

    def values(field: str) -> Optional[List]:
        return [shape[field] for shape in shapes] if field in fields else None

    with plain_text():
        visualizer = Visualizer(transforms.apply_image(pixels), MetadataCatalog.get("coco_2017_val"))
        if objects:
            keypoints = values("keypoints")
            visualizer.overlay_instances(
                boxes=np.array([shape["bbox"] for shape in shapes]),
                labels=[text for _, text, _ in objects],
                masks=values("segmentation"),
                keypoints=None if keypoints is None else np.array(keypoints),
                assigned_colors=[colour for _, _, colour in objects],
                alpha=0.35,
            )
        drawn = visualizer.output.get_image()
    return picture(drawn)


def picture(pixels: np.ndarray) -> str:
    """Return an image, (H, W, 3) RGB, as the data URL of a JPEG."""
    file = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(pixels)).save(file, "JPEG", quality=82)
    return data_url(file.getvalue(), "jpeg")


def data_url(image: bytes, kind: str) -> str:
    """Return an image's file as the data URL of its ``kind``, such as ``png``."""
    return f"data:image/{kind};base64,{base64.b64encode(image).decode()}"


def fitting(height: int, width: int) -> Tuple[int, int]:
    """Return the width and height of an image scaled to the size of a picture."""
    scale = min(_MOST[0] / width, _MOST[1] / height)
    return max(round(scale * width), 1), max(round(scale * height), 1)


def shelves(
    ranked: Sequence[Any], count: int, draw: Callable[[Any], Dict[str, Any]]
) -> Dict[str, List[Dict[str, Any]]]:
    """Draw the ``count`` best and the ``count`` worst of some images, without any twice."""
    worst = ranked[max(count, len(ranked) - count) :][::-1]
    chosen = {"Best": ranked[:count], "Worst": worst}
    with tqdm(total=sum(map(len, chosen.values())), desc="pictures") as progress:
        drawn: Dict[str, List[Dict[str, Any]]] = {title: [] for title in chosen}
        for title, images in chosen.items():
            for image in images:
                drawn[title].append(draw(image))
                progress.update()
    return {title: entries for title, entries in drawn.items() if entries}


def _to_size_of_a_picture(height: int, width: int) -> Tuple[TransformList, Tuple[int, int]]:
    """Return the transforms that fit an image into a picture, and the picture's height and width."""
    new = fitting(height, width)[::-1]
    right, below = max(_LEAST[0] - new[1], 0), max(_LEAST[1] - new[0], 0)
    resize, pad = ResizeTransform(height, width, *new), PadTransform(0, 0, right, below, pad_value=255)
    return TransformList([resize, pad]), (new[0] + below, new[1] + right)
