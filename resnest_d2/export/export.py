"""From a trained model to verified files."""

from __future__ import annotations

import os
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Dict, List, Optional, Sequence, Tuple

from torch import Tensor
from tqdm import tqdm

from ..config import CLASSIFIER, SEGMENTOR
from ..errors import OptionError
from ..files import writing
from ..prediction import Predictor
from ..version import __version__
from .formats import quiet, write_graph
from .graphs import Graph, build_graph
from .quantize import quantize
from .runtime import ExportedModel
from .verify import EXACT, INT8, Comparison, check, compare, count

#: Parts of a model.
PARTS = ("detector", "backbone")


def export(predictor: Predictor, target: Path, backbone: bool = False) -> None:
    """Write a model, or its backbone, in the format of the target's extension.

    Args:
        target: .onnx, .pt2 or .ts. It is replaced.

    Raises:
        UserError: the model cannot be exported, a package is missing, or the file cannot be written.
    """
    graph, order = build_graph(predictor.model, predictor.cfg, backbone), predictor.cfg.INPUT.FORMAT
    channels = graph.pixel_mean.numel()
    if channels != (1 if order == "L" else 3):
        rule = f"must have as many channels as MODEL.PIXEL_MEAN has values, {channels}"
        raise OptionError("INPUT.FORMAT", order, rule)
    write_graph(graph, describe(predictor, graph, backbone), target, channels)


def describe(predictor: Predictor, graph: Graph, backbone: bool = False) -> Dict[str, Any]:
    """What a user of the file has to know, as JSON has it.

    ``task`` is detection, segmentation or classification; ``channels`` the order of the image's; images are
    resized by ``min_size`` and ``max_size`` as detectron2's ResizeShortestEdge does, bilinearly.
    For classification, the central square of ``crop_fraction`` of the shorter side is resized to ``crop``
    pixels, bicubically. ``pixel_mean`` and ``pixel_std`` are applied by the graph itself.
    """
    cfg = predictor.cfg
    sizes: Dict[str, Any] = {
        "min_size": cfg.INPUT.MIN_SIZE_TEST,
        "max_size": cfg.INPUT.MAX_SIZE_TEST,
    }
    if cfg.MODEL.META_ARCHITECTURE == CLASSIFIER:
        crop = cfg.INPUT.CLASSIFICATION.TEST_CROP
        sizes = {"crop": crop, "crop_fraction": crop / (crop + 32)}
    tasks = {SEGMENTOR: "segmentation", CLASSIFIER: "classification"}
    return {
        "resnest_d2": __version__,
        "part": PARTS[backbone],
        "task": tasks.get(cfg.MODEL.META_ARCHITECTURE, "detection"),
        "outputs": list(graph.names),
        "classes": predictor.classes.names,
        "class_ids": predictor.classes.ids,
        "channels": cfg.INPUT.FORMAT,
        **sizes,
        "size_divisibility": graph.backbone.size_divisibility,
        "pixel_mean": graph.pixel_mean.flatten().tolist(),
        "pixel_std": graph.pixel_std.flatten().tolist(),
    }


def export_verified(
    predictor: Predictor,
    target: Path,
    images: Sequence[Tuple[str, Tensor]],
    backbone: bool = False,
    int8: Optional[Path] = None,
    calibration: Sequence[Tuple[str, Tensor]] = (),
) -> Dict[Path, List[Comparison]]:
    """Write a model, and with ``int8`` a quantised one, if they compute what the model does.

    Args:
        target, int8: files, which are replaced when both are verified.
        images: names, and images as the model sees them, to compare outputs on.
        calibration: the same, to show the quantisation usual values.

    Returns:
        For each file, the differences from the model.

    Raises:
        UserError: see :func:`export`; or a file differs from the model.
    """
    there = next(parent for parent in target.absolute().parents if parent.exists())
    with writing(target):
        folder = TemporaryDirectory(dir=there, prefix=".export-")
    with folder, quiet():
        exact, small = Path(folder.name) / target.name, Path(folder.name) / "int8.onnx"
        export(predictor, exact, backbone)
        found = {target: _verify(predictor, exact, target, images, EXACT)}
        if int8:
            quantize(exact, small, (image for _, image in calibration))
            found[int8] = _verify(predictor, small, int8, images, INT8)
        with writing(target):
            target.parent.mkdir(parents=True, exist_ok=True)
            for file, name in zip((exact, small), found):
                os.replace(file, name)
    return found


def _verify(
    predictor: Predictor,
    file: Path,
    target: Path,
    images: Sequence[Tuple[str, Tensor]],
    tolerance: Dict[str, float],
) -> List[Comparison]:
    compared = compare(predictor.model, ExportedModel(file), images)
    rows = [*tqdm(compared, desc=f"verifying {target.name}", total=count(images))]
    check(rows, tolerance, target)
    return rows
