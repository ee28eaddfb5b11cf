"""Images in a folder for each class: damaged, missing, of other classes, and settings that cannot work."""

from __future__ import annotations

import json
import os
import shutil
from functools import partial
from pathlib import Path
from typing import Any, Callable, Dict, Sequence

import numpy as np
from PIL import Image

from .. import tiny
from .case import Case

FOLDERS: Dict[str, Callable[[Path, np.random.Generator], Case]] = {}


def _case(
    spoil: Callable[[Path], Any], settings: Sequence[object], refused: Any, folder: Path, rng: object
) -> Case:
    words = tiny.command(tiny.make_folders(folder), folder / "output", 1, *settings)
    spoil(folder)
    works = refused is None
    check = (lambda: None if (folder / "output/results.json").exists() else "no results") if works else None
    return Case(["train_net.py", *words[1:]], refused=refused, works=works, check=check)


def _add(title: str, spoil: Callable[[Path], Any], *refused: str, settings: Sequence[object] = ()) -> None:
    FOLDERS[title] = partial(_case, spoil, settings, refused or None)


def _each(split: str, change: Callable[[Path], Any]) -> Callable[[Path], Any]:
    """Change every image of a split."""
    return lambda folder: [change(path) for path in sorted((folder / split).rglob("*.png"))]


def _image(image: Image.Image, form: str = "PNG", **options: Any) -> Callable[[Path], Any]:
    return lambda path: image.save(path, form, **options)


def _nothing(folder: Path) -> None:
    """Leave it as it is."""


_SIZE, _BAD, _SPLITS = (40, 48), "cannot be read", ("train", "val")
for title, image in (
    ("grey", Image.new("L", _SIZE)),
    ("with transparency", Image.new("RGBA", _SIZE)),
    ("with a palette", Image.new("P", _SIZE)),
    ("black and white", Image.new("1", _SIZE)),
    ("of one pixel", Image.new("RGB", (1, 1))),
    ("of one row", Image.new("RGB", (900, 1))),
    ("of one column", Image.new("RGB", (1, 900))),
):
    _add(f"images {title}", _each("train", _image(image)))
    _add(f"validation images {title}", _each("val", _image(image)))
_add("images of 16 bits", _each("train", _image(Image.new("I;16", _SIZE))), "more than 8 bits")
_add("images in CMYK", _each("train", _image(Image.new("CMYK", _SIZE), "JPEG")))
_add("validation images empty", _each("val", lambda p: p.write_bytes(b"")), _BAD)
_add("validation images web pages", _each("val", lambda p: p.write_text("<!DOCTYPE html>")), _BAD)
_add("images cut", _each("train", lambda p: p.write_bytes(p.read_bytes()[:200])), ".png")
_add("validation images FIFOs", _each("val", lambda p: (p.unlink(), os.mkfifo(p))), _BAD)
_add("a folder named like an image", lambda f: (f / "train/red/9.png").mkdir())
_add("links to the folders themselves", lambda f: (f / "train/red/loop").symlink_to(f / "train"))
_add("hidden folders", lambda f: (f / "train/.cache").mkdir())
_add("files beside the classes", lambda f: (f / "train/notes.txt").write_text("x"))
_add("a class without images", lambda f: (f / "train/empty").mkdir())
_add("a class in validation only", lambda f: (f / "val/white").mkdir(), "'white'")
_add("no validation folder", lambda f: shutil.rmtree(f / "val"), "there is no folder of images")
_add("no classes", lambda f: [shutil.rmtree(p) for p in (f / "train").iterdir()], "holds no folders")
_add("no images", _each("train", Path.unlink), "there are no images in")
_add("classes in one another", lambda f: (f / "train/red/blue").mkdir())
_add(
    "a name of odd characters", lambda f: [(f / s / "red").rename(f / s / "r\u00e9d $x <b>") for s in _SPLITS]
)
_add("output among the images", _nothing, "OUTPUT_DIR", settings=("OUTPUT_DIR", "train"))
for key, value, said in (
    ("MODEL.META_ARCHITECTURE", "GeneralizedRCNN", "needs the annotations"),
    ("MODEL.RESNETS.OUT_FEATURES", "['res5']", "OUT_FEATURES"),
    ("MODEL.RESNETS.OUT_FEATURES", "['linear','res5']", "OUT_FEATURES"),
    ("MODEL.BACKBONE.NAME", "build_resnet_backbone", "MODEL.BACKBONE.NAME"),
    ("TEST.AUG.ENABLED", True, "TEST.AUG.ENABLED"),
    ("INPUT.CLASSIFICATION.TRAIN_CROP", 0, "TRAIN_CROP"),
    ("INPUT.CLASSIFICATION.TRAIN_CROP", 1e9, "TRAIN_CROP"),
    ("INPUT.CLASSIFICATION.TRAIN_AREA", 0.0, "TRAIN_AREA"),
    ("INPUT.CLASSIFICATION.TRAIN_AREA", 2.0, "TRAIN_AREA"),
    ("INPUT.CLASSIFICATION.TRAIN_INTERPOLATION", "cubic", "bicubic"),
    ("INPUT.CLASSIFICATION.COLOR_JITTER", -1.0, "COLOR_JITTER"),
    ("INPUT.CLASSIFICATION.LIGHTING", -1.0, "LIGHTING"),
    ("MODEL.CLASSIFIER.LABEL_SMOOTHING", 1.0, "LABEL_SMOOTHING"),
    ("MODEL.CLASSIFIER.DROPOUT", -0.1, "DROPOUT"),
    ("MODEL.CLASSIFIER.MIXUP_ALPHA", "inf", "MIXUP_ALPHA"),
    ("MODEL.CLASSIFIER.DROP_BLOCK.PROB", 1.0, "DROP_BLOCK.PROB"),
    ("MODEL.CLASSIFIER.DROP_BLOCK.STAGES", "['res9']", "res9"),
    ("TEST.IMS_PER_BATCH", 0, "TEST.IMS_PER_BATCH"),
    ("DATALOADER.MAX_BAD_FILES", -1, "MAX_BAD_FILES"),
    ("DATALOADER.ASPECT_RATIO_GROUPING", True, "ASPECT_RATIO_GROUPING"),
    ("MODEL.RESNETS.CHECKPOINT_STAGES", "['res5']", "CHECKPOINT_STAGES"),
    ("SOLVER.IMS_PER_BATCH", 1, "IMS_PER_BATCH"),
):
    drop = ("MODEL.CLASSIFIER.DROP_BLOCK.PROB", 0.1)
    _add(f"{key} {value}", _nothing, said, settings=(*drop, key, value))


def _report(change: Callable[[Dict], Any], folder: Path, rng: object) -> Case:
    content = {
        "dataset": "d", "classes": ["a", "b"], "results": {"top1": 50.0}, "confusion": [[1, 0], [1, 0]],
        "images": [{"file_name": "x.jpg", "label": i, "top5": [0, 1], "probabilities": [0.9, 0.1]} for i in (0, 1)],
    }  # fmt: skip
    change(content)
    (folder / "inference").mkdir()
    file = folder / "inference/classification_evaluation.json"
    file.write_text(json.dumps(content))
    return Case(["report.py", folder, "--output", folder / "page.html"], refused=(file.name,))


for title, change in (
    ("confusion missing", lambda c: c.pop("confusion")),
    ("confusion of other classes", lambda c: c.update(confusion=[[1]])),
    ("images a number", lambda c: c.update(images=3)),
    ("image without a label", lambda c: c["images"][0].pop("label")),
    ("image of no class", lambda c: c["images"][0].update(label=2)),
    ("image without predictions", lambda c: c["images"][0].update(top5=[])),
    ("prediction of no class", lambda c: c["images"][0].update(top5=[-1])),
    ("probability text", lambda c: c["images"][0].update(probabilities=["x"])),
    ("fewer probabilities than predictions", lambda c: c["images"][0].update(probabilities=[])),
    ("results text", lambda c: c.update(results="x")),
):
    FOLDERS[f"report: {title}"] = partial(_report, change)
