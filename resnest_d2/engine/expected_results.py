"""Whether a run may be compared with the published figures of its configuration."""

from __future__ import annotations

from argparse import Namespace
from typing import Any, Dict, List, Tuple

from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog

from ..config import CLASSIFIER, flatten
from ..published.classifiers import VALIDATION as IMAGENET
from ..published.segmentors import VALIDATION

#: Datasets of the published figures, with their numbers of images.
_FULL = {
    "coco_2017_val": 5000,
    "coco_2017_val_panoptic_separated": 5000,
    **dict(VALIDATION.values()),
    **dict([IMAGENET]),
}
# Keys that may differ from the recipe: they change where and how fast a model is computed, but not the model.
_FREE = {
    "MODEL.WEIGHTS",
    "MODEL.DEVICE",
    "SOLVER.CHECKPOINT_PERIOD",
    "SOLVER.REFERENCE_WORLD_SIZE",
    "SOLVER.AMP.ENABLED",
    "SOLVER.CHECKPOINTS_TO_KEEP",
    "TEST.EXPECTED_RESULTS",
    "TEST.EVAL_PERIOD",
    "TEST.IMS_PER_BATCH",
}
#: Top-1 accuracy, in percent, by which two trainings of a classifier may differ; evaluations differ by less.
_OF_TRAININGS = 0.5
_TRAINING = ("MODEL.", "SOLVER.", "INPUT.", "DATASETS.", "DATALOADER.SAMPLER", "TEST.")
_EVALUATION = (
    "MODEL.",
    "INPUT.FORMAT",
    "INPUT.MIN_SIZE_TEST",
    "INPUT.MAX_SIZE_TEST",
    "INPUT.CLASSIFICATION.TEST",
    "TEST.",
)


def keep_comparable(cfg: CfgNode, recipe: CfgNode, args: Namespace) -> List[str]:
    """Clear TEST.EXPECTED_RESULTS if this run cannot be compared with the published figures.

    Published figures are for the full val2017 and for the unchanged recipe.

    Args:
        cfg: the run's configuration, changed in place.
        recipe: the configuration file without the command line's changes.
        args: from :func:`argument_parser`.

    Returns:
        The reason, in one line; empty if the run can be compared or there was nothing to compare with.
    """
    if not cfg.TEST.EXPECTED_RESULTS or cfg.TEST.EXPECTED_RESULTS != recipe.TEST.EXPECTED_RESULTS:
        return []  # the user's own are for any run
    if cfg.MODEL.META_ARCHITECTURE == CLASSIFIER and not args.eval_only:
        cfg.TEST.EXPECTED_RESULTS = [[*e[:3], max(e[3], _OF_TRAININGS)] for e in cfg.TEST.EXPECTED_RESULTS]
    reason = _obstacle(cfg, dict(flatten(recipe)), _EVALUATION if args.eval_only else _TRAINING)
    if not reason:
        return []
    cfg.TEST.EXPECTED_RESULTS = []
    return [reason]


def _obstacle(cfg: CfgNode, recipe: Dict[str, Any], sections: Tuple[str, ...]) -> str:
    for name in cfg.DATASETS.TEST:
        if name not in recipe["DATASETS.TEST"]:
            return f"DATASETS.TEST is {name}, not the full {' and '.join(recipe['DATASETS.TEST'])}"
    for key, value in flatten(cfg):
        if key.startswith(sections) and key not in _FREE and value != recipe[key]:
            return f"{key} is {value!r}, in the recipe {recipe[key]!r}"
    for name in cfg.DATASETS.TEST:
        images = len(DatasetCatalog.get(name))
        if images != _FULL.get(name, images):
            return f"{name} has {images} images here, not {_FULL[name]}"
    return ""
