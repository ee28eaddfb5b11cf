"""Predictions beside ground truth, as pictures."""

from __future__ import annotations

from pathlib import Path
from typing import List

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, DatasetMapper, MetadataCatalog
from detectron2.data.detection_utils import read_image, transform_instance_annotations
from detectron2.data.transforms import ResizeTransform, TransformList
from detectron2.utils.visualizer import ColorMode, Visualizer
from PIL import Image, ImageDraw, ImageFont
from torch import nn
from tqdm import tqdm

from ..data.loader import CheckedMapper

#: Width in pixels of each half of a picture.
_WIDTH = 640
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
        model: a detector with its weights; it is put into eval mode.
        dataset: a registered dataset, whose first images that hold objects are drawn.
        folder: where the pictures go, named like the images, as PNG.
        score_threshold: predictions with a lower score are left out.

    Returns:
        The paths written.

    Raises:
        UserError: an image cannot be used.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    metadata = MetadataCatalog.get(dataset)
    mapper = CheckedMapper(DatasetMapper(cfg, is_train=False))
    records = [r for r in DatasetCatalog.get(dataset) if r.get("annotations")][:num_images]
    model.eval()
    paths = []
    # Colours by class need the metadata to say which; others are random.
    mode = ColorMode.SEGMENTATION if metadata.get("thing_colors") else ColorMode.IMAGE
    for record in tqdm(records, desc="drawing predictions"):
        mapped = mapper(record)
        # Everything is drawn at the size of the picture, else labels on small images are tiny.
        image = read_image(record["file_name"], "RGB")
        height, width = round(_WIDTH * image.shape[0] / image.shape[1]), _WIDTH
        resize = TransformList([ResizeTransform(*image.shape[:2], height, width)])
        image = resize.apply_image(image)
        with torch.no_grad():
            inputs = {**mapped, "height": height, "width": width}
            instances = model([inputs])[0]["instances"].to("cpu")
        predicted = Visualizer(image, metadata, instance_mode=mode).draw_instance_predictions(
            instances[instances.scores >= score_threshold]
        )
        annotations = [
            transform_instance_annotations(dict(annotation), resize, (height, width))
            for annotation in record["annotations"]
        ]
        truth = Visualizer(image, metadata, instance_mode=mode).draw_dataset_dict(
            {"annotations": annotations}
        )
        paths.append(folder / f"{Path(record['file_name']).stem}.png")
        _side_by_side(
            {
                f"predictions, score >= {score_threshold:.0%}": predicted.get_image(),
                "ground truth": truth.get_image(),
            }
        ).save(paths[-1])
    return paths


def _side_by_side(images: dict) -> Image.Image:
    """Captioned images of one size in a row."""
    height, width = next(iter(images.values())).shape[:2]
    page = Image.new("RGB", (width * len(images), height + _CAPTION_HEIGHT), "white")
    draw = ImageDraw.Draw(page)
    for i, (caption, pixels) in enumerate(images.items()):
        draw.text((i * width + 8, 5), caption, "black", ImageFont.load_default(16))
        page.paste(Image.fromarray(np.ascontiguousarray(pixels)), (i * width, _CAPTION_HEIGHT))
    return page
