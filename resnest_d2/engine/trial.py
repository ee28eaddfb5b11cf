"""Evaluate one image before a long run starts, so that what would fail at its end fails within seconds."""

from __future__ import annotations

import contextlib
import io
import logging
import tempfile
import warnings
from pathlib import Path
from typing import Iterator, Tuple, Type

import torch
from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from detectron2.engine import DefaultTrainer
from detectron2.evaluation import DatasetEvaluator
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from ..data.seeding import seeded
from ..evaluation import build_augmented_evaluator
from ..files import check_writable
from ..modeling import with_test_time_augmentation
from ..processes import found_by_main
from .failures import blames_configuration

#: Attributes of detectron2's heads that give a few detections, whatever their scores.
_ANY_DETECTION = {"test_score_thresh": 0.0, "test_topk_per_image": 5, "max_detections_per_image": 5}


def try_evaluation(cfg: CfgNode, model: nn.Module, trainer: Type[DefaultTrainer]) -> None:
    """Evaluate one image of each dataset in DATASETS.TEST, also with TEST.AUG if it is enabled.

    All processes take part, as in any evaluation. It leaves no trace: no files or log lines, and no change
    to random numbers, statistics or the model's mode.

    Args:
        model: the model, trained or not.
        trainer: class whose loaders and evaluators are used.

    Raises:
        UserError: the evaluation fails, and the message names the dataset and its file; or its files could
            not be written to OUTPUT_DIR.
    """
    if isinstance(model, DistributedDataParallel):
        model = model.module
    with _no_trace(cfg, model) as (cfg, folder):
        for name in cfg.DATASETS.TEST:
            file = MetadataCatalog.get(name).get("json_file", "")
            with blames_configuration(cfg, f"evaluating DATASETS.TEST {name} {file}".strip()):
                _evaluate_one(cfg, model, name, trainer, trainer.build_evaluator(cfg, name, folder))
            _check_writable(folder, trainer.evaluation_folder(cfg, name))
            if cfg.TEST.AUG.ENABLED:
                with blames_configuration(cfg, f"evaluating {name} with TEST.AUG.ENABLED True"):
                    augmented = with_test_time_augmentation(cfg, model)
                    evaluator = build_augmented_evaluator(cfg, name, folder)
                    _evaluate_one(cfg, augmented, name, trainer, evaluator)
                _check_writable(folder, trainer.evaluation_folder(cfg, name, augmented=True))


def _check_writable(tried: str, folder: str) -> None:
    """Raise UserError unless the files that an evaluation has just written could be written to a folder."""

    def check() -> None:
        for file in Path(tried).rglob("*"):
            target = Path(folder, file.relative_to(tried))
            if not file.is_dir():
                check_writable(target, "move it away, or name another OUTPUT_DIR", in_place=True)

    found_by_main(check)


def _evaluate_one(
    cfg: CfgNode, model: nn.Module, name: str, trainer: Type[DefaultTrainer], evaluator: DatasetEvaluator
) -> None:
    evaluator.reset()
    inputs = next(iter(trainer.build_test_loader(cfg, name)), None)
    if inputs is not None:  # otherwise other processes have all the images
        evaluator.process(inputs, model(inputs))
    evaluator.evaluate()


@contextlib.contextmanager
def _no_trace(cfg: CfgNode, model: nn.Module) -> Iterator[Tuple[CfgNode, str]]:
    """Yield a configuration without loader workers, and a temporary folder; undo all changes afterwards."""
    cfg = cfg.clone()
    cfg.defrost()
    cfg.DATALOADER.NUM_WORKERS = 0
    training = {module: module.training for module in model.modules()}
    changed = [
        (module, attribute, getattr(module, attribute))
        for module in training
        for attribute in _ANY_DETECTION
        if hasattr(module, attribute)
    ]
    converted = [MetadataCatalog.get(n) for n in cfg.DATASETS.TEST if not _has_json(n)]
    disabled = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with (
            tempfile.TemporaryDirectory(prefix="resnest_d2-") as folder,
            contextlib.redirect_stdout(io.StringIO()),
            warnings.catch_warnings(),
            seeded(0),
            torch.no_grad(),
        ):
            warnings.simplefilter("ignore")  # one image does not define all metrics
            model.eval()
            for module, attribute, _ in changed:
                setattr(module, attribute, _ANY_DETECTION[attribute])
            yield cfg, folder
    finally:
        logging.disable(disabled)
        for module, attribute, value in changed:
            setattr(module, attribute, value)
        for module, mode in training.items():
            module.training = mode
        for metadata in converted:  # the file in COCO format that the evaluator made is gone
            vars(metadata).pop("json_file", None)


def _has_json(name: str) -> bool:
    return MetadataCatalog.get(name).get("json_file") is not None
