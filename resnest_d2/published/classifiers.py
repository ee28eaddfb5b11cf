"""Published figures of image classification, from the paper and the authors' released lists; none are ours.

Tables 3 and 4 and the ablation are of arXiv 2004.08955v1 and of ``ablation.md`` in zhanghang1989/ResNeSt; ResNeSt-14
and 26 are of GluonCV's model zoo.
"""

from __future__ import annotations

from typing import NamedTuple, Optional

#: The name and the number of images of the validation set.
VALIDATION = ("imagenet_1k_val", 50_000)


class PublishedClassifier(NamedTuple):
    """One row of the published classification tables.

    Attributes:
        table: ``3`` or ``4`` of the paper, ``2`` for its ablations, or ``released zoo``.
        backbone: network, as the paper calls it.
        crop: height and width in pixels of test images.
        params, gmacs: parameters in millions and multiply-adds in billions at ``crop``, as built here.
        top1: accuracy on ImageNet's validation images in percent, of the released PyTorch weights where there
            are any.
        released: name of the weights, for ``resnest://``; None if none were released.
    """

    table: str
    backbone: str
    crop: int
    params: float
    gmacs: float
    top1: float
    released: Optional[str]


def _variant(name: str, params: float, gmacs: float, top1: float) -> PublishedClassifier:
    weights = f"resnest50_fast_{name}"
    return PublishedClassifier("2", f"ResNeSt-50-fast {name}", 224, params, gmacs, top1, weights)


# fmt: off
CLASSIFIERS = {
    "classification/resnet50d": PublishedClassifier("2", "ResNetD-50", 224, 25.58, 4.33, 78.31, None),
    "classification/resnet50d_mixup": PublishedClassifier("2", "ResNetD-50, mixup", 224, 25.58, 4.33, 79.15, None),
    "classification/resnet50d_mixup_autoaugment": PublishedClassifier("2", "ResNetD-50, mixup, AutoAugment", 224, 25.58, 4.33, 79.41, None),
    "classification/resnest50_fast_1s1x64d": _variant("1s1x64d", 26.22, 4.33, 80.33),
    "classification/resnest50_fast_2s1x64d": _variant("2s1x64d", 27.48, 4.33, 80.53),
    "classification/resnest50_fast_4s1x64d": _variant("4s1x64d", 31.91, 4.33, 80.76),
    "classification/resnest50_fast_1s2x40d": _variant("1s2x40d", 25.95, 4.37, 80.59),
    "classification/resnest50_fast_2s2x40d": _variant("2s2x40d", 26.94, 4.37, 80.61),
    "classification/resnest50_fast_4s2x40d": _variant("4s2x40d", 30.42, 4.37, 81.14),
    "classification/resnest50_fast_1s4x24d": _variant("1s4x24d", 25.68, 4.4, 80.99),
    "classification/resnest50_fast": PublishedClassifier("3", "ResNeSt-50-fast", 224, 27.48, 4.33, 80.64, None),
    "classification/resnest50": PublishedClassifier("3", "ResNeSt-50", 224, 27.48, 5.37, 81.03, "resnest50"),
    "classification/resnest101_fast": PublishedClassifier("3", "ResNeSt-101-fast", 224, 48.17, 8.04, 81.97, None),
    "classification/resnest101": PublishedClassifier("4", "ResNeSt-101", 256, 48.28, 13.32, 82.83, "resnest101"),
    "classification/resnest200": PublishedClassifier("4", "ResNeSt-200", 320, 70.2, 35.52, 83.84, "resnest200"),
    "classification/resnest269": PublishedClassifier("4", "ResNeSt-269", 416, 110.93, 77.35, 84.54, "resnest269"),
    "classification/resnest14": PublishedClassifier("released zoo", "ResNeSt-14", 224, 10.61, 2.75, 75.75, "resnest14"),
    "classification/resnest26": PublishedClassifier("released zoo", "ResNeSt-26", 224, 17.07, 3.62, 78.68, "resnest26"),
}
# fmt: on
