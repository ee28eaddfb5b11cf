"""Generate ``docs/MODEL_ZOO.md`` from the records."""

from __future__ import annotations

from typing import Any, List, Sequence

from tabulate import tabulate

from ..published import MODELS
from ..published.backbones import BACKBONES, OFFICIAL_URL
from ..published.classifiers import CLASSIFIERS
from ..published.detectors import DETECTORS
from ..published.segmentors import SEGMENTORS
from . import available

_HEAD = """# Model zoo

Generated from the records by `make zoo`.

## Detectors

AP and PQ in percent on COCO val2017, single scale, as published: by the paper (arXiv 2004.08955v1, tables 5
and 6) or in the authors' released list. None of them is ours: `tools/reproduce.py` writes its measurements
beside them. Parameters in millions are those of the models as built here, without frozen norms; a test
verifies them. The last column is the authors' trained file, which their host no longer serves: put your copy
into the folder that `RESNEST_D2_WEIGHTS` names.

Each configuration has its AP as detectron2's `TEST.EXPECTED_RESULTS`, with a tolerance of 0.5, and a run
that misses it fails. It is compared only on the full val2017 and with the unchanged recipe; otherwise a log
line says why not.

"""
_SEGMENTORS = """

## Semantic segmentation

mIoU and pixel accuracy in percent on the validation images, multi-scale and flipped, as published: by the
paper (table 7) or in the authors' released list. Parameters include those of the auxiliary head.

"""
_CLASSIFIERS = """

## Image classification

Top-1 accuracy in percent on ImageNet's validation images, as published: by the paper (tables 2, 3 and 4), of
the released PyTorch weights where there are any, or in GluonCV's model zoo. Crop in pixels; parameters in
millions and multiply-adds in billions at that crop are those of the models as built here. The weights of the
last column are below.

"""
_OTHERS = """

Without published figures: {others}.

## Backbones

`MODEL.WEIGHTS resnest://NAME`. Crop in pixels and top-1 in percent are the authors' on ImageNet; – means
unpublished. Their files are release assets under <{url}>,
and the eight digits in a name start its SHA-256, of `resnet50s` and `resnet101s` its SHA-1. The other source
is timm's copy on the Hugging Face hub.

"""


def _link(name: str) -> str:
    return f"[{name}](../configs/{name}.yaml)"


def _table(rows: Sequence[Sequence[Any]], titles: Sequence[str]) -> str:
    """Make a GitHub Markdown table, with two decimals for AP and parameters."""

    def cells(row: Sequence[Any]) -> List[str]:
        shown = (f"{value:.2f}" if isinstance(value, float) else value for value in row)
        return ["–" if value is None else str(value) for value in shown]

    return tabulate(map(cells, rows), titles, "github", disable_numparse=True)


def markdown() -> str:
    """Return the page."""
    detectors = [
        (
            _link(name), r.method, r.backbone, r.params, r.box_ap, r.mask_ap, r.pq, r.table, f"`{r.released}`"
        )
        for name, r in DETECTORS.items()
    ]  # fmt: skip
    titles = "configuration, method, backbone, params, box AP, mask AP, PQ, table, released file".split(", ")
    backbones = [
        (f"`{name}`", r.crop, r.top1, (r.files and f"`{r.files[0]}`") or None, r.hub and f"`{r.hub}`")
        for name, r in BACKBONES.items()
    ]
    segmentors = [
        (
            _link(name), r.method, r.backbone, r.dataset, r.params, r.miou, r.pixel_accuracy, r.table,
            r.released and f"`{r.released}`",
        )
        for name, r in SEGMENTORS.items()
    ]  # fmt: skip
    columns = (
        "configuration, method, backbone, data, params, mIoU, pixel accuracy, table, released file".split(
            ", "
        )
    )
    classifiers = [
        (
            _link(name), r.backbone, r.crop, r.params, r.gmacs, r.top1, r.table,
            r.released and f"`{r.released}`",
        )
        for name, r in CLASSIFIERS.items()
    ]  # fmt: skip
    of_classifiers = "configuration, backbone, crop, params, multiply-adds, top-1, table, weights".split(", ")
    others = ", ".join(_link(name) for name in available() if name not in MODELS)
    return (
        _HEAD
        + _table(detectors, titles)
        + _SEGMENTORS
        + _table(segmentors, columns)
        + _CLASSIFIERS
        + _table(classifiers, of_classifiers)
        + _OTHERS.format(others=others, url=OFFICIAL_URL)
        + _table(backbones, ("name", "crop", "top-1", "authors' file", "timm's"))
        + "\n"
    )
