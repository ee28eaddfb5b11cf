"""A small COCO-format dataset that needs no download: circles, squares and triangles.

Textured shapes occlude each other on a textured background. Every object has a polygon of its visible
part; some images have a crowd region, some have no objects. The same seed gives the same files.
"""

from __future__ import annotations

import json
import math
import os
import shutil
import tempfile
from functools import partial
from pathlib import Path
from typing import Dict, List, Optional, Sequence, Tuple

import numpy as np
import pycocotools.mask as mask_util
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import load_coco_json
from PIL import Image, ImageDraw
from tqdm import tqdm

from ..errors import UserError, needs

CLASSES = ("circle", "square", "triangle")
#: RGB. Objects are close to the colour of their class, but not so close that colour alone identifies it.
COLORS = ((214, 69, 65), (38, 120, 190), (36, 150, 90))
NUM_IMAGES = {"train": 400, "val": 60}
SEED = 2004
#: (width, height) in pixels.
SIZES = ((192, 128), (128, 192))
#: Masks are drawn this many times larger and averaged, which gives soft, sub-pixel outlines.
_SUPERSAMPLING = 4
_MIN_VISIBLE = 0.4


def datasets_root() -> Path:
    """Return the folder of detectron2's datasets: $DETECTRON2_DATASETS, or else ``datasets``."""
    return Path(os.path.expanduser(os.getenv("DETECTRON2_DATASETS", "datasets")))


def register_shapes(root: Optional[Path] = None) -> None:
    """Register ``shapes_train`` and ``shapes_val``; their files are written on first use.

    Args:
        root: folder of the datasets; None for :func:`datasets_root`.
    """
    folder = (root or datasets_root()) / "shapes"
    for split in NUM_IMAGES:
        name, json_file = f"shapes_{split}", folder / "annotations" / f"instances_{split}.json"
        DatasetCatalog.register(name, partial(_load, name, folder, split))
        MetadataCatalog.get(name).set(
            json_file=str(json_file),
            image_root=str(folder / split),
            evaluator_type="coco",
            thing_classes=list(CLASSES),
            thing_colors=list(COLORS),
        )


def _load(name: str, folder: Path, split: str) -> List[dict]:
    if not folder.is_dir():
        generate_shapes(folder)
    metadata = MetadataCatalog.get(name)
    return load_coco_json(metadata.json_file, metadata.image_root, name)


def generate_shapes(
    folder: Path,
    seed: int = SEED,
    num_images: Optional[Dict[str, int]] = None,
    sizes: Sequence[Tuple[int, int]] = SIZES,
) -> None:
    """Write the dataset: ``annotations/instances_<split>.json`` and ``<split>/*.jpg``.

    The folder appears complete or not at all; if several processes write it at once, one wins.

    Args:
        num_images: images per split; defaults to :data:`NUM_IMAGES`.
        sizes: (width, height) in pixels, one of which is chosen for each image.

    Raises:
        UserError: the folder cannot be written.
    """
    folder = Path(folder)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=".shapes-", dir=folder.parent))
    except OSError as e:
        raise UserError(
            f"cannot write the shapes dataset to {folder} ({e.strerror}); "
            "set DETECTRON2_DATASETS to a writable folder"
        ) from None
    try:
        for index, (split, count) in enumerate((num_images or NUM_IMAGES).items()):
            _write_split(temporary, split, count, sizes, np.random.default_rng([seed, index]))
        temporary.chmod(0o755)  # mkdtemp makes it private
        os.rename(temporary, folder)
    except OSError:
        if not folder.is_dir():
            raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _write_split(
    folder: Path, split: str, count: int, sizes: Sequence[Tuple[int, int]], rng: np.random.Generator
) -> None:
    (folder / split).mkdir()
    (folder / "annotations").mkdir(exist_ok=True)
    images, annotations = [], []
    for image_id in tqdm(range(1, count + 1), desc=f"drawing shapes_{split}", disable=count < 100):
        width, height = sizes[rng.integers(len(sizes))]
        # Of every 20 images, one is empty and two have a crowd.
        kind = {0: "empty", 7: "crowd", 14: "crowd"}.get(image_id % 20, "objects")
        pixels, objects = _draw_image(rng, width, height, kind)
        file_name = f"{image_id:06d}.jpg"
        Image.fromarray(pixels).save(folder / split / file_name, quality=92)
        images.append({"id": image_id, "file_name": file_name, "width": width, "height": height})
        for annotation in objects:
            annotations.append({"id": len(annotations) + 1, "image_id": image_id, **annotation})
    categories = [{"id": i, "name": name} for i, name in enumerate(CLASSES, 1)]
    content = {
        "info": {"description": "generated shapes"},
        "images": images,
        "annotations": annotations,
        "categories": categories,
    }
    (folder / "annotations" / f"instances_{split}.json").write_text(json.dumps(content))


def _draw_image(
    rng: np.random.Generator, width: int, height: int, kind: str
) -> Tuple[np.ndarray, List[dict]]:
    """Draw one image, (height, width, 3) uint8 RGB, and return it with its annotations without ids."""
    pixels = _texture(rng, width, height, rng.uniform(40, 215, 3), contrast=30)
    annotations = []
    occupied = np.zeros((height, width))
    if kind == "crowd":
        category = int(rng.integers(len(CLASSES)))
        center = rng.uniform(0.3, 0.7, 2) * (width, height)
        for _ in range(12):
            position = center + rng.uniform(-22, 22, 2)
            mask = _average(_hard_mask(rng, category, position, rng.uniform(4, 7), width, height))
            pixels = _paint(rng, pixels, mask, category)
            occupied = np.maximum(occupied, mask)
        annotations.append(_crowd_annotation(category, occupied > 0.5))

    placed: List[Tuple[int, np.ndarray]] = []
    num_objects = 0 if kind == "empty" else int(rng.integers(2, 6))
    for _ in range(4 * num_objects):
        if len(placed) == num_objects:
            break
        category, radius = int(rng.integers(len(CLASSES))), rng.uniform(12, 34)
        position = rng.uniform(0.1, 0.9, 2) * (width, height)
        hard = _hard_mask(rng, category, position, radius, width, height)
        rest = [(c, visible & ~hard) for c, visible in placed]
        if (
            hard.sum() < 0.8 * (radius * _SUPERSAMPLING) ** 2  # 60 % of a triangle; others must be inside
            or (occupied * _average(hard)).any()
            or not all(_well_visible(new, old) for (_, new), (_, old) in zip(rest, placed))
        ):
            continue
        placed = [*rest, (category, hard)]
        pixels = _paint(rng, pixels, _average(hard), category)
    annotations += [_annotation(category, visible) for category, visible in placed]
    return pixels.round().astype(np.uint8), annotations


def _texture(
    rng: np.random.Generator, width: int, height: int, color: np.ndarray, contrast: float
) -> np.ndarray:
    """Draw (height, width, 3) float: a colour with stripes, smooth noise and fine noise."""
    y, x = np.mgrid[:height, :width]
    angle, period = rng.uniform(0, math.pi), rng.uniform(6, 40)
    waves = np.sin((x * math.cos(angle) + y * math.sin(angle)) * 2 * math.pi / period)
    coarse = Image.fromarray(rng.uniform(-1, 1, (5, 5)).astype(np.float32))
    smooth = np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC))
    grey = contrast * (0.4 * waves + 0.8 * smooth + 0.15 * rng.standard_normal((height, width)))
    return np.clip(color + grey[..., None], 0, 255)


def _hard_mask(
    rng: np.random.Generator, category: int, center, radius: float, width: int, height: int
) -> np.ndarray:
    """Draw the supersampled mask of one shape; centre and radius are in image pixels."""
    s = _SUPERSAMPLING
    canvas = Image.new("1", (width * s, height * s))
    draw = ImageDraw.Draw(canvas)
    cx, cy, r = center[0] * s, center[1] * s, radius * s
    if CLASSES[category] == "circle":
        draw.ellipse((cx - r, cy - r, cx + r, cy + r), fill=1)
    else:
        corners, first = {"square": (4, math.pi / 4), "triangle": (3, -math.pi / 2)}[CLASSES[category]]
        # Upright, give or take 20 degrees.
        angles = first + rng.uniform(-0.35, 0.35) + 2 * math.pi * np.arange(corners) / corners
        draw.polygon([(cx + r * math.cos(a), cy + r * math.sin(a)) for a in angles], fill=1)
    return np.array(canvas)


def _average(mask: np.ndarray) -> np.ndarray:
    """Average a supersampled mask to (height, width) coverage between 0 and 1."""
    s = _SUPERSAMPLING
    return mask.reshape(mask.shape[0] // s, s, mask.shape[1] // s, s).mean((1, 3))


def _paint(rng: np.random.Generator, pixels: np.ndarray, coverage: np.ndarray, category: int) -> np.ndarray:
    color = COLORS[category] + rng.normal(0, 40, 3)
    texture = _texture(rng, pixels.shape[1], pixels.shape[0], color, contrast=20)
    return pixels + coverage[..., None] * (texture - pixels)


def _outlines(coverage: np.ndarray) -> Tuple[List[np.ndarray], bool]:
    """Return the outer outlines, (points, 2) of x and y in pixels, and whether any of them has a hole."""
    with needs("contourpy", "the shapes dataset"):
        from contourpy import FillType, contour_generator
    padded = np.pad(coverage, 1)
    filled = contour_generator(z=padded, fill_type=FillType.OuterOffset).filled(0.5, 2)
    outer = [points[: offsets[1]] for points, offsets in zip(*filled)]
    # Grid point i is the centre of pixel i - 1 of the unpadded map.
    return [points - 0.5 for points in outer], any(len(offsets) > 2 for offsets in filled[1])


def _well_visible(new: np.ndarray, old: np.ndarray) -> bool:
    """Whether the part of an object that a newer shape leaves visible can still be annotated."""
    if new.sum() == old.sum():
        return True
    outlines, has_hole = _outlines(_average(new))
    return new.sum() > _MIN_VISIBLE * old.sum() and len(outlines) == 1 and not has_hole


def _annotation(category: int, visible: np.ndarray) -> dict:
    polygons = [p for p in _outlines(_average(visible))[0] if len(p) > 3]
    low = np.min([p.min(0) for p in polygons], axis=0)
    high = np.max([p.max(0) for p in polygons], axis=0)
    # np.roll closes the polygon: twice the area by the shoelace formula.
    area = sum(
        abs(np.dot(x, np.roll(y, 1)) - np.dot(y, np.roll(x, 1))) / 2 for x, y in (p.T for p in polygons)
    )
    return {
        "category_id": category + 1,
        "iscrowd": 0,
        "bbox": [round(float(v), 2) for v in (*low, *(high - low))],
        "area": round(float(area), 2),
        "segmentation": [p.round(2).ravel().tolist() for p in polygons],
    }


def _crowd_annotation(category: int, mask: np.ndarray) -> dict:
    rle = mask_util.encode(np.asfortranarray(mask, dtype=np.uint8))
    return {
        "category_id": category + 1,
        "iscrowd": 1,
        "bbox": mask_util.toBbox(rle).tolist(),
        "area": int(mask_util.area(rle)),
        "segmentation": {"size": rle["size"], "counts": rle["counts"].decode()},
    }
