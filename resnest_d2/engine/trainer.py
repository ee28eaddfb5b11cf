"""Training and evaluation, on detectron2's DefaultTrainer."""

from __future__ import annotations

import logging
import os
import secrets
import time
import weakref
from collections import OrderedDict
from contextlib import nullcontext, suppress
from functools import partial
from typing import Any, Dict, List, Optional

import torch
from detectron2.config import CfgNode
from detectron2.engine import DefaultTrainer, HookBase, TrainerBase, create_ddp_model, hooks
from detectron2.evaluation import DatasetEvaluator, verify_results
from detectron2.modeling import GeneralizedRCNNWithTTA
from detectron2.solver.build import get_default_optimizer_params, maybe_add_gradient_clipping
from detectron2.utils import comm
from detectron2.utils.events import EventStorage, EventWriter
from fvcore.nn.precise_bn import get_bn_modules
from torch import nn
from torch.utils.data import DataLoader

from ..checkpoint import Checkpointer, Coverage
from ..checkpoint.read import WeightsError
from ..data.loader import build_test_loader, build_train_loader
from ..errors import OptionError, UserError
from ..evaluation import build_evaluator, build_instance_evaluator
from ..modeling import optimize_for_inference, to_channels_last
from ..processes import found_by_main
from .failures import blames_configuration
from .folder import leave_branch
from .hooks import GiveBackMemory, InterruptibleEval, PeriodicCheckpointer, PreciseBN, StopOnSignal
from .preflight import try_evaluation
from .record import RecordRun, write_results
from .resuming import check_same
from .signals import Interrupted, Signals
from .step import TrainStep
from .writers import build_writers

logger = logging.getLogger(__name__)


class Trainer(DefaultTrainer):
    """DefaultTrainer that survives: processes on CPUs, signals, numbers that are not finite, resuming.

    It also knows which evaluator a dataset wants, and test-time augmentation.

    Args:
        cfg: SEED is not negative.
    """

    def __init__(self, cfg: CfgNode) -> None:
        # DefaultTrainer's own would wrap a model on the CPU for a GPU, and make another step and
        # checkpointer.
        TrainerBase.__init__(self)
        with blames_configuration(cfg, "setting up training"):
            self._build(cfg)

    def _build(self, cfg: CfgNode) -> None:
        cfg = self.auto_scale_workers(cfg, comm.get_world_size())
        model = self.build_model(cfg)
        on_cpu = {"device_ids": None} if cfg.MODEL.DEVICE == "cpu" else {}
        optimizer = self.build_optimizer(cfg, model)
        self._trainer = TrainStep(
            create_ddp_model(model, broadcast_buffers=False, **on_cpu),
            self.build_train_loader(cfg),
            optimizer,
            amp=cfg.SOLVER.AMP.ENABLED,
            seed=cfg.SEED,
            max_skipped=cfg.SOLVER.SKIP_NOT_FINITE,
            output_dir=cfg.OUTPUT_DIR,
            received=lambda: self._signals.received,
        )
        self.scheduler = self.build_lr_scheduler(cfg, optimizer)
        self.checkpointer = Checkpointer(
            model,
            cfg.OUTPUT_DIR,
            keep=cfg.SOLVER.CHECKPOINTS_TO_KEEP,
            run=secrets.token_hex(8),
            trainer=weakref.proxy(self),
        )
        self.start_iter, self.max_iter, self.cfg = 0, cfg.SOLVER.MAX_ITER, cfg
        self._signals = Signals()
        self._stop = StopOnSignal(lambda: self._trainer.signal)
        self._last_eval_results = OrderedDict()
        self.register_hooks(self.build_hooks())

    def build_hooks(self) -> List[Optional[HookBase]]:
        cfg = self.cfg
        without_workers = cfg.clone()
        without_workers.defrost()
        without_workers.DATALOADER.NUM_WORKERS = 0  # as detectron2, to save memory
        main = comm.is_main_process()
        return [
            hooks.IterationTimer(),
            hooks.LRScheduler(),
            self._stop,
            PreciseBN(
                cfg.TEST.EVAL_PERIOD,
                self.model,
                self.build_train_loader(without_workers),
                cfg.TEST.PRECISE_BN.NUM_ITER,
                self._signals,
                cfg.SEED,
            )
            if cfg.TEST.PRECISE_BN.ENABLED and get_bn_modules(self.model)
            else None,
            PeriodicCheckpointer(self.checkpointer, cfg.SOLVER.CHECKPOINT_PERIOD) if main else None,
            InterruptibleEval(cfg.TEST.EVAL_PERIOD, self._evaluate, self._signals),
            InterruptibleEval(0, self._evaluate_augmented, self._signals) if cfg.TEST.AUG.ENABLED else None,
            GiveBackMemory() if cfg.MODEL.DEVICE == "cpu" else None,
            RecordRun(lambda: self._last_eval_results, self.model),
            hooks.PeriodicWriter(self.build_writers(), period=20) if main else None,
        ]

    def build_writers(self) -> List[EventWriter]:
        return build_writers(self.cfg.OUTPUT_DIR, self.max_iter)

    def _evaluate(self) -> OrderedDict:
        self._last_eval_results = OrderedDict()  # where it fails, the one before is not this one
        with blames_configuration(self.cfg, "evaluation"):
            self._last_eval_results = self.test(self.cfg, self.model)
        return self._last_eval_results

    def _evaluate_augmented(self) -> OrderedDict:
        with blames_configuration(self.cfg, "evaluation with TEST.AUG.ENABLED True"):
            results = self.test_with_tta(self.cfg, self.model)
        self._last_eval_results = OrderedDict(**self._last_eval_results, **results)
        return results

    def resume_or_load(self, resume: bool = True, allow_random: bool = False) -> None:
        """Go on from the newest undamaged checkpoint in OUTPUT_DIR; without any, load MODEL.WEIGHTS.

        Raises:
            UserError: the checkpoint is of another configuration; or MODEL.WEIGHTS are of another backbone or
                leave parts of it random, unless ``allow_random``. What else they leave random is logged.
        """
        resumes = resume and self.checkpointer.has_checkpoint()  # which load_state_dict checks
        self.checkpointer.check = None if resumes else partial(_check_start, allow_random=allow_random)
        super().resume_or_load(resume=resume)
        if self.start_iter > self.max_iter:
            logger.warning(
                "--resume: %s is of iteration %d, past SOLVER.MAX_ITER %d: it is only evaluated",
                self.checkpointer.file,
                self.start_iter - 1,
                self.max_iter,
            )
        if self.start_iter:
            for note in found_by_main(lambda: leave_branch(self.checkpointer, self.start_iter - 1)):
                logger.warning(note)
        self.data_loader.batch_sampler.start = self.start_iter

    def state_dict(self) -> Dict[str, Any]:
        return {**super().state_dict(), "config": self.cfg.dump()}

    def load_state_dict(self, state: Dict[str, Any]) -> None:
        """Raises UserError where it is of a run with another model or optimizer."""
        check_same(state, self.cfg, self.optimizer, self.checkpointer)
        super().load_state_dict(state)

    def train(self) -> Optional[OrderedDict]:
        """Train from ``start_iter`` to ``max_iter``.

        Returns:
            As DefaultTrainer.

        Raises:
            Interrupted: a signal came. A checkpoint is written, if the last one is older.
        """
        logger.info("Starting training from iteration %d", self.start_iter)
        self.iter = self.start_iter
        with self._signals, EventStorage(self.start_iter) as self.storage:
            if self.start_iter < self.max_iter:
                with self._signals.interruptible():
                    try_evaluation(self.cfg, self.model, type(self))
            try:
                self.before_train()
                for iteration in range(self.start_iter, self.max_iter):
                    self.iter = iteration
                    self.before_step()
                    first = blames_configuration(self.cfg, "the first iteration")
                    with first if iteration == self.start_iter else nullcontext():
                        self.run_step()
                    self.after_step()
                self.iter = self.max_iter  # tells the hooks that it has finished
                self.after_train()
            except BaseException as e:
                for hook in self._hooks:  # what was measured is written; nothing is evaluated
                    if isinstance(hook, hooks.PeriodicWriter):
                        with suppress(Exception):  # the first failure is what counts
                            hook.after_train()
                    elif isinstance(hook, RecordRun) and not self._signals.received:
                        hook.record_failure(e)
                # RuntimeError: this process needs another one that has ended, such as a loader's worker.
                if isinstance(e, (Interrupted, RuntimeError, UserError)):
                    self._save_completed()
                if self._signals.received and isinstance(e, RuntimeError):
                    raise Interrupted(self._signals.received) from None
                raise
        if self.cfg.TEST.EXPECTED_RESULTS and comm.is_main_process():
            verify_results(self.cfg, self._last_eval_results)
            return self._last_eval_results
        return None

    def _save_completed(self) -> None:
        """A checkpoint of the last iteration that this run has completed, unless there is one."""
        iteration = self._stop.completed
        name = f"model_{iteration:07d}"
        if iteration >= self.start_iter and not self.checkpointer.is_newest(name, "model_final"):
            with suppress(WeightsError):  # they are what the failure comes of
                self.checkpointer.save(name, iteration=iteration)

    @classmethod
    def build_model(cls, cfg: CfgNode) -> nn.Module:
        """detectron2's, in MODEL.MEMORY_FORMAT."""
        model, wanted = super().build_model(cfg), cfg.MODEL.MEMORY_FORMAT
        # docs/BENCHMARKS.md: faster on a CPU in training as in inference; on a GPU nobody has measured.
        if wanted == "channels_last" or (wanted == "auto" and cfg.MODEL.DEVICE == "cpu"):
            to_channels_last(model)
        return model

    @classmethod
    def build_train_loader(cls, cfg: CfgNode) -> DataLoader:
        return build_train_loader(cfg)

    @classmethod
    def build_test_loader(cls, cfg: CfgNode, dataset_name: str) -> DataLoader:
        return build_test_loader(cfg, dataset_name)

    @classmethod
    def build_evaluator(
        cls, cfg: CfgNode, dataset_name: str, output_folder: Optional[str] = None
    ) -> DatasetEvaluator:
        """``output_folder`` is by default :meth:`evaluation_folder`."""
        return build_evaluator(cfg, dataset_name, output_folder or cls.evaluation_folder(cfg, dataset_name))

    @classmethod
    def evaluation_folder(cls, cfg: CfgNode, dataset_name: str = "", augmented: bool = False) -> str:
        """Where evaluators write: ``inference`` under OUTPUT_DIR, or of several datasets one each in it.

        Args:
            augmented: with TEST.AUG, of all datasets.
        """
        if augmented:
            return os.path.join(cfg.OUTPUT_DIR, "inference_TTA")
        # detectron2's evaluators all use one file name.
        several = [dataset_name] if len(cfg.DATASETS.TEST) > 1 else []
        return os.path.join(cfg.OUTPUT_DIR, "inference", *several)

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
        folder = cls.evaluation_folder(cfg, augmented=True)
        # The augmented model predicts instances only, whatever else the dataset could evaluate.
        evaluators = [build_instance_evaluator(cfg, name, folder) for name in cfg.DATASETS.TEST]
        results = cls.test(cfg, GeneralizedRCNNWithTTA(cfg, model), evaluators)
        return OrderedDict((f"{task}_TTA", metrics) for task, metrics in results.items())


def load_model(
    cfg: CfgNode,
    resume: bool = False,
    allow_random: bool = False,
    optimize: bool = False,
    half: bool = False,
) -> nn.Module:
    """The model of ``cfg`` with MODEL.WEIGHTS, or with ``resume`` those of the last checkpoint.

    Args:
        optimize: for inference, see :func:`optimize_for_inference`.
        half: that too, with the backbone in float16, on the CPU in bfloat16.

    Raises:
        UserError: there is no such file, numbers of it are not finite, it is of another backbone, or it
            leaves parts of the model at their random initialisation, unless ``allow_random``. A backbone's
            weights do, and the detector then finds nothing.
    """
    with blames_configuration(cfg, "building the model"):
        model = Trainer.build_model(cfg)
    checkpointer = Checkpointer(model, save_dir=cfg.OUTPUT_DIR)
    checkpointer.check = None if allow_random else Coverage.check_all
    try:
        checkpointer.resume_or_load(cfg.MODEL.WEIGHTS, resume=resume)
    except AssertionError as e:  # fvcore's; there was one when the configuration was checked
        raise UserError(
            f"{e} A training removes those beyond SOLVER.CHECKPOINTS_TO_KEEP; try again, or name another"
        ) from None
    if optimize or half:
        dtype = (torch.bfloat16 if cfg.MODEL.DEVICE == "cpu" else torch.float16) if half else None
        optimize_for_inference(model, dtype=dtype)
    return model


def evaluate(cfg: CfgNode, **options: bool) -> OrderedDict:
    """Evaluate a model on DATASETS.TEST.

    Args:
        options: of :func:`load_model`, which gives the model.

    Returns:
        Metrics by task, in percent; with several datasets, that by dataset.
    """
    model = load_model(cfg, **options)
    try_evaluation(cfg, model, Trainer)
    start = time.time()
    with blames_configuration(cfg, "evaluation"):
        results = Trainer.test(cfg, model)
        write_results(cfg, results, wall_seconds=round(time.time() - start, 1))
        if cfg.TEST.AUG.ENABLED:
            results.update(Trainer.test_with_tta(cfg, model))
            write_results(cfg, results, wall_seconds=round(time.time() - start, 1))
    if comm.is_main_process():
        verify_results(cfg, results)
    return results


def _check_start(coverage: Coverage, allow_random: bool) -> None:
    """Refuse weights of another backbone; say which heads start at random."""
    if not allow_random:
        coverage.check_backbone()
    if coverage.missing_keys:
        logger.info("MODEL.WEIGHTS has nothing for %s: they start at random", coverage.parts)


def train(cfg: CfgNode, resume: bool = False, allow_random: bool = False) -> Optional[OrderedDict]:
    """Train, evaluating every TEST.EVAL_PERIOD iterations and at the end.

    Args:
        resume: go on from the last checkpoint in OUTPUT_DIR, if there is one.
        allow_random: start although MODEL.WEIGHTS leaves parts of the backbone random.

    Returns:
        The last evaluation's metrics where TEST.EXPECTED_RESULTS holds any, else None, as detectron2.
    """
    trainer = Trainer(cfg)
    trainer.resume_or_load(resume=resume, allow_random=allow_random)
    return trainer.train()
