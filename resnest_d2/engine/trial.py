"""An evaluation of one image before anything long starts: what would fail after it fails in seconds."""

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
from detectron2.modeling import GeneralizedRCNNWithTTA
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from ..data.seeding import seeded
from ..evaluation import build_instance_evaluator
from ..files import check_writable
from ..processes import found_by_main
from .failures import blames_configuration

#: Attributes of detectron2's heads: detections of whatever score, but few.
_ANY_DETECTION = {"test_score_thresh": 0.0, "test_topk_per_image": 5, "max_detections_per_image": 5}


def try_evaluation(cfg: CfgNode, model: nn.Module, trainer: Type[DefaultTrainer]) -> None:
    """Evaluate one image of each dataset of DATASETS.TEST, also with TEST.AUG where it is enabled.

    All processes take part, as in any evaluation. Nothing is left of it: no file, no random number, no
    statistics, no mode, no line in the log.

    Args:
        model: as it is, trained or not.
        trainer: whose loaders and evaluators are used.

    Raises:
        UserError: it cannot be evaluated, and the message names the dataset and its file; or what it writes
            could not be written to OUTPUT_DIR.
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
                    augmented = GeneralizedRCNNWithTTA(cfg, model)
                    evaluator = build_instance_evaluator(cfg, name, folder)
                    _evaluate_one(cfg, augmented, name, trainer, evaluator)
                _check_writable(folder, trainer.evaluation_folder(cfg, augmented=True))


def _check_writable(tried: str, folder: str) -> None:
    """Raise UserError unless files as an evaluation has just written could be written to that folder."""

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
    if inputs is not None:  # else other processes have all images there are
        evaluator.process(inputs, model(inputs))
    evaluator.evaluate()


@contextlib.contextmanager
def _no_trace(cfg: CfgNode, model: nn.Module) -> Iterator[Tuple[CfgNode, str]]:
    """Yields a configuration without loader workers, and a folder that will not stay."""
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
            warnings.simplefilter("ignore")  # of metrics that one image does not define
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
        for metadata in converted:  # the evaluator has made a file in COCO's format, which is gone
            vars(metadata).pop("json_file", None)


def _has_json(name: str) -> bool:
    return MetadataCatalog.get(name).get("json_file") is not None
