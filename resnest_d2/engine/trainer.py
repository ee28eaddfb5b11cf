"""Training and evaluation, on detectron2's DefaultTrainer."""

from __future__ import annotations

import os
import time
import weakref
from collections import OrderedDict
from typing import List, Optional

import torch
from detectron2.config import CfgNode
from detectron2.engine import DefaultTrainer, hooks
from detectron2.evaluation import DatasetEvaluator, verify_results
from detectron2.modeling import GeneralizedRCNNWithTTA
from detectron2.solver.build import get_default_optimizer_params, maybe_add_gradient_clipping
from detectron2.utils import comm
from torch import nn

from ..checkpoint import Checkpointer
from ..errors import OptionError, UserError
from ..evaluation import build_evaluator, build_instance_evaluator
from .record import RecordRun, write_results


class Trainer(DefaultTrainer):
    """DefaultTrainer that knows which evaluator a dataset wants, and test-time augmentation."""

    def build_hooks(self) -> List[hooks.HookBase]:
        # DefaultTrainer has made its own checkpointer by now, which reads no other format, and is about
        # to hand it to a hook.
        self.checkpointer = Checkpointer(self.model, self.cfg.OUTPUT_DIR, trainer=weakref.proxy(self))
        built = super().build_hooks()
        last = len(built) - comm.is_main_process()  # what follows is to be seen by the metrics' writer
        if self.cfg.TEST.AUG.ENABLED:
            built.insert(last, hooks.EvalHook(0, self._evaluate_augmented))
        return [*built[:last], RecordRun(lambda: self._last_eval_results), *built[last:]]

    def _evaluate_augmented(self) -> OrderedDict:
        results = self.test_with_tta(self.cfg, self.model)
        self._last_eval_results = OrderedDict(**self._last_eval_results, **results)
        return results

    @classmethod
    def build_evaluator(
        cls, cfg: CfgNode, dataset_name: str, output_folder: Optional[str] = None
    ) -> DatasetEvaluator:
        """``output_folder`` is by default ``inference`` under OUTPUT_DIR; of several datasets one each."""
        folder = output_folder or os.path.join(cfg.OUTPUT_DIR, "inference")
        if not output_folder and len(cfg.DATASETS.TEST) > 1:  # detectron2's evaluators all use one file name
            folder = os.path.join(folder, dataset_name)
        return build_evaluator(cfg, dataset_name, folder)

    @classmethod
    def build_optimizer(cls, cfg: CfgNode, model: nn.Module) -> torch.optim.Optimizer:
        """detectron2's SGD, or AdamW with the same parameter groups, by SOLVER.OPTIMIZER."""
        if cfg.SOLVER.OPTIMIZER == "SGD":
            return super().build_optimizer(cfg, model)
        if cfg.SOLVER.OPTIMIZER != "ADAMW":
            raise OptionError("SOLVER.OPTIMIZER", cfg.SOLVER.OPTIMIZER, "must be SGD or ADAMW")
        params = get_default_optimizer_params(
            model,
            base_lr=cfg.SOLVER.BASE_LR,
            weight_decay_norm=cfg.SOLVER.WEIGHT_DECAY_NORM,
            bias_lr_factor=cfg.SOLVER.BIAS_LR_FACTOR,
            weight_decay_bias=cfg.SOLVER.WEIGHT_DECAY_BIAS,
        )
        adamw = maybe_add_gradient_clipping(cfg, torch.optim.AdamW)
        return adamw(params, lr=cfg.SOLVER.BASE_LR, weight_decay=cfg.SOLVER.WEIGHT_DECAY)

    @classmethod
    def test_with_tta(cls, cfg: CfgNode, model: nn.Module) -> OrderedDict:
        """Evaluate boxes and masks with TEST.AUG's sizes and flips; result names end in ``_TTA``."""
        folder = os.path.join(cfg.OUTPUT_DIR, "inference_TTA")
        # The augmented model predicts instances only, whatever else the dataset could evaluate.
        evaluators = [build_instance_evaluator(cfg, name, folder) for name in cfg.DATASETS.TEST]
        results = cls.test(cfg, GeneralizedRCNNWithTTA(cfg, model), evaluators)
        return OrderedDict((f"{task}_TTA", metrics) for task, metrics in results.items())


def load_model(cfg: CfgNode, resume: bool = False, allow_random: bool = False) -> nn.Module:
    """The model of ``cfg`` with MODEL.WEIGHTS, or with ``resume`` those of the last checkpoint.

    Raises:
        UserError: the file leaves parts of the model at their random initialisation, unless
            ``allow_random``. A backbone's weights do, and the detector then finds nothing.
    """
    model = Trainer.build_model(cfg)
    checkpointer = Checkpointer(model, save_dir=cfg.OUTPUT_DIR)
    checkpointer.resume_or_load(cfg.MODEL.WEIGHTS, resume=resume)
    learned = [k for k in checkpointer.missing if not k.endswith("num_batches_tracked")]
    if learned and not allow_random:
        parts = ", ".join(sorted({".".join(key.split(".")[:2]) for key in learned}))
        raise UserError(
            f"MODEL.WEIGHTS: {cfg.MODEL.WEIGHTS} holds no weights for {parts}, which would stay random; "
            "name a trained detector, or give --allow-random-weights"
        )
    return model


def evaluate(cfg: CfgNode, resume: bool = False, allow_random: bool = False) -> OrderedDict:
    """Evaluate the model that :func:`load_model` gives on DATASETS.TEST.

    Returns:
        Metrics by task, in percent; with several datasets, that by dataset.
    """
    model = load_model(cfg, resume, allow_random)
    start = time.time()
    results = Trainer.test(cfg, model)
    if cfg.TEST.AUG.ENABLED:
        results.update(Trainer.test_with_tta(cfg, model))
    write_results(cfg, results, wall_seconds=round(time.time() - start, 1))
    if comm.is_main_process():
        verify_results(cfg, results)
    return results


def train(cfg: CfgNode, resume: bool = False) -> Optional[OrderedDict]:
    """Train, evaluating every TEST.EVAL_PERIOD iterations and at the end.

    Args:
        resume: go on from the last checkpoint in OUTPUT_DIR, if there is one.

    Returns:
        The last evaluation's metrics where TEST.EXPECTED_RESULTS holds any, else None, as detectron2.
    """
    trainer = Trainer(cfg)
    trainer.resume_or_load(resume=resume)
    return trainer.train()
