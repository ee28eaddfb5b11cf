"""From a trained model to verified files."""

from __future__ import annotations

import os
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Dict, Iterator, List, Optional, Sequence, Tuple

from tqdm import tqdm

from ..config import CLASSIFIER, SEGMENTOR
from ..files import writing
from ..prediction import Predictor
from ..version import __version__
from .formats import write_graph
from .graphs import Graph, build_graph
from .images import read_images
from .quantize import quantize
from .runtime import ExportedModel
from .verify import EXACT, INT8, Comparison, check, compare

#: Parts of a model.
PARTS = ("detector", "backbone")


def export(predictor: Predictor, target: Path, backbone: bool = False) -> None:
    """Write a model, or its backbone, in the format of the target's extension.

    Args:
        target: .onnx, .pt2 or .ts. It is replaced.

    Raises:
        UserError: the model cannot be exported, a package is missing, or the file cannot be written.
    """
    graph = build_graph(predictor.model, predictor.cfg, backbone)
    channels = graph.pixel_mean.numel()
    write_graph(graph, describe(predictor, graph, backbone), target, channels)


def describe(predictor: Predictor, graph: Graph, backbone: bool = False) -> Dict[str, Any]:
    """What a user of the file has to know, as JSON has it.

    ``task`` is detection, segmentation or classification; ``channels`` the order of the image's; images are
    resized by ``min_size`` and ``max_size`` like detectron2's ResizeShortestEdge, for classification to
    ``crop``. ``pixel_mean`` and ``pixel_std`` are applied by the graph itself.
    """
    cfg = predictor.cfg
    sizes: Dict[str, Any] = {
        "min_size": cfg.INPUT.MIN_SIZE_TEST,
        "max_size": cfg.INPUT.MAX_SIZE_TEST,
    }
    if cfg.MODEL.META_ARCHITECTURE == CLASSIFIER:
        sizes = {"crop": cfg.INPUT.CLASSIFICATION.TEST_CROP}
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
    images: Sequence[str],
    backbone: bool = False,
    int8: Optional[Path] = None,
    calibration: Sequence[str] = (),
) -> Iterator[Tuple[Path, List[Comparison]]]:
    """Write a model, and with ``int8`` a quantised one, each only if it computes what the model does.

    Args:
        target, int8: files, which are replaced.
        images: files to compare the model's outputs on.
        calibration: files that show the quantisation usual values.

    Yields:
        Each file that is written, with the differences from the model.

    Raises:
        UserError: see :func:`export`; or a file differs from the model.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    with writing(target), TemporaryDirectory(dir=target.parent, prefix=".export-") as folder:
        exact = Path(folder) / f"model{target.suffix}"
        export(predictor, exact, backbone)
        yield _verify(predictor, exact, target, images, EXACT)
        if int8:
            small = Path(folder) / "int8.onnx"
            quantize(target, small, (image for _, image in read_images(predictor, calibration)))
            yield _verify(predictor, small, int8, images, INT8)


def _verify(
    predictor: Predictor, file: Path, target: Path, images: Sequence[str], tolerance: Dict[str, float]
) -> Tuple[Path, List[Comparison]]:
    """Give a file its name if it computes what the model does."""
    compared = compare(predictor.model, ExportedModel(file), read_images(predictor, images))
    rows = [*tqdm(compared, desc=f"verifying {target.name}", total=len(images) + 1)]
    check(rows, tolerance, target)
    os.replace(file, target)
    return target, rows
