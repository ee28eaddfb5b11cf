"""Pictures of predictions beside the ground truth."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Dict, List, Sequence, Set, Tuple

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, Metadata, MetadataCatalog
from detectron2.data.detection_utils import read_image, transform_instance_annotations
from detectron2.data.transforms import ResizeTransform, TransformList
from detectron2.structures import Instances
from PIL import Image, ImageDraw, ImageFont
from torch import nn
from tqdm import tqdm

from ..config import CLASSIFIER, SEGMENTOR
from ..data.check import loading
from ..data.loader import CheckedMapper
from ..data.mappers import build_mapper
from ..data.semantic_masks import check_size, read_labels
from ..errors import UserError, needs, one_line
from ..files import atomic_writer, unused_name, writing
from .label_maps import class_colours, overlay
from .labels import label, plain_text

if TYPE_CHECKING:
    from detectron2.utils.visualizer import VisImage, Visualizer

#: Width in pixels of each half of a picture.
_WIDTH = 640
#: Least and greatest height in pixels, between which proportions are kept.
_HEIGHTS = (_WIDTH // 16, _WIDTH * 8)
_CAPTION_HEIGHT = 28


def draw_predictions(
    cfg: CfgNode,
    model: nn.Module,
    dataset: str,
    folder: Path,
    num_images: int = 12,
    score_threshold: float = 0.5,
) -> List[Path]:
    """Write one picture per image: predictions on the left, ground truth on the right.

    Args:
        model: a model with its weights; it is put into eval mode.
        dataset: a registered dataset, whose first images with objects or labels are drawn.
        folder: folder for the pictures, PNGs named like the images. If several images of the dataset share
            a name, numbers are appended.
        score_threshold: objects predicted with a lower score are left out.

    Returns:
        The paths written.

    Raises:
        UserError: the model predicts neither objects nor labels, an image or its annotations cannot be used,
            or a picture cannot be written.
    """
    with needs("matplotlib", "drawing"):
        import matplotlib  # noqa: F401
    if cfg.MODEL.META_ARCHITECTURE == CLASSIFIER:
        raise UserError("a classifier finds no objects to draw; tools/report.py shows its images")
    folder = Path(folder)
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
    metadata = MetadataCatalog.get(dataset)
    mapper = CheckedMapper(build_mapper(cfg, train=False))
    with loading([dataset]):
        records = DatasetCatalog.get(dataset)
    if any(Path(r["file_name"]).resolve().parent == folder.resolve() for r in records):
        raise UserError(f"{folder} is the folder of the images, which pictures would replace; name another")
    used: Set[str] = set()
    named = [(unused_name(Path(r["file_name"]).stem, ".png", used), r) for r in records]
    wanted = "sem_seg_file_name" if cfg.MODEL.META_ARCHITECTURE == SEGMENTOR else "annotations"
    named = [(name, record) for name, record in named if record.get(wanted)][:num_images]
    model.eval()
    paths = []
    for name, record in tqdm(named, desc="drawing predictions"):
        mapped = mapper(record)
        # Draw everything at the size of the picture, or labels on small images would be tiny.
        image = read_image(record["file_name"], "RGB")
        height = min(max(round(_WIDTH * image.shape[0] / image.shape[1]), _HEIGHTS[0]), _HEIGHTS[1])
        whole = image.shape[:2]
        resize = TransformList([ResizeTransform(*whole, height, _WIDTH)])
        image = resize.apply_image(image)
        with torch.no_grad():
            inputs = {**mapped, "height": height, "width": _WIDTH}
            output = model([inputs])[0]
        if "instances" in output:
            instances = output["instances"].to("cpu")
            instances = instances[instances.scores >= score_threshold]
            predicted = draw_objects(image, instances, metadata)
            with plain_text():
                truth = _draw_truth(
                    _visualizer(image, metadata), record, resize, (height, _WIDTH)
                ).get_image()
            caption = f"predictions, score >= {score_threshold:.0%}"
        elif "sem_seg" in output:
            colours = metadata.get("stuff_colors") or class_colours(len(output["sem_seg"]))
            predicted = overlay(image, output["sem_seg"].argmax(0).cpu().numpy(), colours)
            labels = read_labels(record["sem_seg_file_name"])
            check_size(record["sem_seg_file_name"], labels.shape, record["file_name"], whole)
            labels = resize.apply_segmentation(labels)
            truth, caption = overlay(image, labels, colours), "predictions"
        else:
            raise UserError(
                f"MODEL.META_ARCHITECTURE {cfg.MODEL.META_ARCHITECTURE} predicts neither objects nor labels "
                "to draw; use the configuration of a detector or of semantic segmentation"
            )
        page = _side_by_side({caption: predicted, "ground truth": truth})
        with atomic_writer(folder / name) as file:
            page.save(file, "PNG")
        paths.append(folder / name)
    return paths


def draw_objects(
    pixels: np.ndarray, instances: Instances, metadata: Metadata, jittering: bool = True
) -> np.ndarray:
    """Draw predicted objects over an image.

    Args:
        pixels: (H, W, 3) uint8, RGB.
        instances: on the CPU, in pixels of the image.
        metadata: names, and colours if there are any, of the classes and keypoints.
        jittering: vary the colours of a class, so that its objects can be told apart; not for videos, where
            they would flicker.

    Returns:
        (H, W, 3) uint8, RGB.
    """
    with plain_text():
        drawn = _visualizer(pixels, metadata).draw_instance_predictions(instances, jittering)
        return drawn.get_image()


def draw_classes(pixels: np.ndarray, lines: Sequence[str]) -> np.ndarray:
    """Write lines of text into the upper left corner of an image, (H, W, 3) uint8 RGB, and return it."""
    page = Image.fromarray(np.ascontiguousarray(pixels))
    draw, font = ImageDraw.Draw(page), ImageFont.load_default(max(10, page.height // 24))
    text = "\n".join(label(line) for line in lines)
    left, top, right, bottom = draw.multiline_textbbox((4, 4), text, font)
    draw.rectangle((left - 4, top - 4, right + 4, bottom + 4), "black")
    draw.multiline_text((4, 4), text, "white", font)
    return np.asarray(page)


def _visualizer(image: np.ndarray, metadata: Metadata) -> Visualizer:
    from detectron2.utils.visualizer import ColorMode, Visualizer  # imports matplotlib

    # Without class colours in the metadata, colours are random.
    mode = ColorMode.SEGMENTATION if metadata.get("thing_colors") else ColorMode.IMAGE
    return Visualizer(image, metadata, instance_mode=mode)


def _draw_truth(
    visualizer: Visualizer, record: Dict[str, Any], resize: TransformList, size: Tuple[int, int]
) -> VisImage:
    """Draw the annotations of an image, resized to (height, width) in pixels."""
    try:
        annotations = [
            transform_instance_annotations(dict(annotation), resize, size)
            for annotation in record["annotations"]
        ]
        # detectron2 looks only at the first one to see if all have masks and keypoints.
        if any("segmentation" in annotation for annotation in annotations):
            annotations = [{"segmentation": [], **annotation} for annotation in annotations]
        if len({np.size(annotation.get("keypoints", ())) for annotation in annotations}) > 1:
            annotations = [{k: v for k, v in a.items() if k != "keypoints"} for a in annotations]
        return visualizer.draw_dataset_dict({"annotations": annotations})
    except Exception as e:  # invalid annotations make detectron2 raise anything
        reason = one_line(e, 200) or type(e).__name__
        raise UserError(
            f"the annotations of {record['file_name']} cannot be drawn ({reason}); tools/check_dataset.py "
            "shows what is wrong"
        ) from None


def _side_by_side(images: dict) -> Image.Image:
    """Place captioned images of the same size side by side."""
    height, width = next(iter(images.values())).shape[:2]
    page = Image.new("RGB", (width * len(images), height + _CAPTION_HEIGHT), "white")
    draw = ImageDraw.Draw(page)
    for i, (caption, pixels) in enumerate(images.items()):
        draw.text((i * width + 8, 5), caption, "black", ImageFont.load_default(16))
        page.paste(Image.fromarray(np.ascontiguousarray(pixels)), (i * width, _CAPTION_HEIGHT))
    return page
