"""Training and evaluation, based on detectron2's DefaultTrainer."""

from __future__ import annotations

import logging
import os
import secrets
import time
import weakref
from collections import OrderedDict
from contextlib import nullcontext, suppress
from functools import partial
from typing import Any, Dict, List, Mapping, Optional, Tuple

import torch
import torch.distributed as dist
from detectron2.config import CfgNode
from detectron2.engine import DefaultTrainer, HookBase, TrainerBase, create_ddp_model, hooks
from detectron2.evaluation import DatasetEvaluator, verify_results
from detectron2.projects.deeplab import build_lr_scheduler
from detectron2.solver import LRScheduler
from detectron2.solver.build import get_default_optimizer_params, maybe_add_gradient_clipping
from detectron2.utils import comm
from detectron2.utils.events import EventStorage, EventWriter
from fvcore.nn.precise_bn import get_bn_modules
from torch import nn
from torch.utils.data import DataLoader

from ..checkpoint import Checkpointer, Coverage, write_backbone
from ..checkpoint.read import WeightsError
from ..config import CLASSIFIER
from ..data.loader import build_test_loader, build_train_loader
from ..errors import OptionError, UserError
from ..evaluation import build_augmented_evaluator, build_evaluator
from ..modeling import optimize_for_inference, to_channels_last, with_test_time_augmentation
from ..processes import Interrupted, found_by_main
from .failures import blames_configuration
from .folder import leave_branch
from .hooks import (
    GiveBackMemory,
    InterruptibleEval,
    PeriodicCheckpointer,
    PeriodicWriter,
    PreciseBN,
    StopOnSignal,
    Throughput,
)
from .results import RecordRun, write_results
from .resuming import check_classes_of_weights, check_same, class_names, trained_classes
from .signals import Signals
from .step import TrainStep
from .trackers import NONE, TrackerWriter
from .trial import try_evaluation
from .writers import build_writers

logger = logging.getLogger(__name__)


class Trainer(DefaultTrainer):
    """DefaultTrainer that also handles processes on CPUs, signals, NaN and infinity, and exact resuming.

    It also chooses each dataset's evaluator, and supports test-time augmentation.

    Args:
        cfg: configuration whose SEED is not negative.
    """

    def __init__(self, cfg: CfgNode) -> None:
        # DefaultTrainer's constructor would wrap a model on the CPU as if on a GPU, and use another step and
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
        without_workers.DATALOADER.NUM_WORKERS = 0  # as in detectron2, to save memory
        main = comm.is_main_process()
        return [
            hooks.IterationTimer(),
            hooks.LRScheduler(),
            Throughput(cfg.SOLVER.IMS_PER_BATCH, cfg.MODEL.DEVICE != "cpu"),
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
            PeriodicWriter(self.build_writers(), period=20) if main else None,
        ]

    def build_writers(self) -> List[EventWriter]:
        tracker = self.cfg.TRACKER.SERVICE
        sent = [] if tracker == NONE else [TrackerWriter(self.cfg, self.max_iter)]
        return [*build_writers(self.cfg.OUTPUT_DIR, self.max_iter), *sent]

    def _evaluate(self) -> OrderedDict:
        self._last_eval_results = OrderedDict()  # if it fails, no earlier results may remain
        _share_statistics(self.model)
        with blames_configuration(self.cfg, "evaluation"):
            self._last_eval_results = self.test(self.cfg, self.model)
        return self._last_eval_results

    def _evaluate_augmented(self) -> OrderedDict:
        with blames_configuration(self.cfg, "evaluation with TEST.AUG.ENABLED True"):
            results = self.test_with_tta(self.cfg, self.model)
        self._last_eval_results = OrderedDict(**self._last_eval_results, **results)
        return results

    def resume_or_load(self, resume: bool = True, allow_random: bool = False) -> None:
        """Resume from the newest intact checkpoint in OUTPUT_DIR; if there is none, load MODEL.WEIGHTS.

        Raises:
            UserError: the checkpoint is of another configuration; or MODEL.WEIGHTS are of another backbone or
                leave parts of it random, unless ``allow_random``. Other parts left random are logged.
        """
        resumes = resume and self.checkpointer.has_checkpoint()  # load_state_dict checks it
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
        if self.cfg.MODEL.META_ARCHITECTURE == CLASSIFIER and comm.is_main_process():
            write_backbone(self.cfg)

    def state_dict(self) -> Dict[str, Any]:
        return {**super().state_dict(), "config": self.cfg.dump(), "classes": class_names(self.cfg)}

    def load_state_dict(self, state: Dict[str, Any]) -> None:
        """Load a run's state. Raises UserError if the run had another model or optimizer."""
        check_same(state, self.cfg, self.optimizer, self.checkpointer)
        super().load_state_dict(state)

    def train(self) -> Optional[OrderedDict]:
        """Train from ``start_iter`` to ``max_iter``.

        Returns:
            The same as DefaultTrainer.

        Raises:
            Interrupted: after a signal. A checkpoint is written first, if the last one is older.
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
                for hook in self._hooks:  # write the measurements so far, but do not evaluate
                    if isinstance(hook, hooks.PeriodicWriter):
                        with suppress(Exception):  # only the first failure matters
                            hook.after_train()
                    elif isinstance(hook, RecordRun) and not self._signals.received:
                        hook.record_failure(e)
                # RuntimeError: this process needs another one that has ended, such as a loader worker.
                if isinstance(e, (Interrupted, RuntimeError, UserError)):
                    self._save_completed()
                if self._signals.received and isinstance(e, RuntimeError):
                    raise Interrupted(self._signals.received) from None
                raise
        if self.cfg.TEST.EXPECTED_RESULTS and comm.is_main_process():
            _verify(self.cfg, self._last_eval_results)
            return self._last_eval_results
        return None

    def _save_completed(self) -> None:
        """Save a checkpoint of the last iteration that this run completed, unless there is one."""
        iteration = self._stop.completed
        name = f"model_{iteration:07d}"
        if iteration >= self.start_iter and not self.checkpointer.is_newest(name, "model_final"):
            with suppress(WeightsError):  # bad weights are the cause of the failure
                self.checkpointer.save(name, iteration=iteration)

    @classmethod
    def build_model(cls, cfg: CfgNode) -> nn.Module:
        """Build detectron2's model in MODEL.MEMORY_FORMAT."""
        model, wanted = super().build_model(cfg), cfg.MODEL.MEMORY_FORMAT
        # docs/BENCHMARKS.md: faster on a CPU in training and inference; not yet measured on a GPU.
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
        """Build a dataset's evaluator; ``output_folder`` defaults to :meth:`evaluation_folder`."""
        return build_evaluator(cfg, dataset_name, output_folder or cls.evaluation_folder(cfg, dataset_name))

    @classmethod
    def evaluation_folder(cls, cfg: CfgNode, dataset_name: str = "", augmented: bool = False) -> str:
        """Folder of the evaluators: ``inference`` in OUTPUT_DIR; with several datasets, a subfolder for each.

        Args:
            augmented: for TEST.AUG, ``inference_TTA`` instead.
        """
        # All of detectron2's evaluators use the same file name.
        several = [dataset_name] if len(cfg.DATASETS.TEST) > 1 else []
        return os.path.join(cfg.OUTPUT_DIR, "inference_TTA" if augmented else "inference", *several)

    @classmethod
    def build_optimizer(cls, cfg: CfgNode, model: nn.Module) -> torch.optim.Optimizer:
        """Build SGD or AdamW, as SOLVER.OPTIMIZER says, with detectron2's groups and HEAD_LR_FACTOR."""
        solver = cfg.SOLVER
        kinds = {
            "SGD": partial(torch.optim.SGD, momentum=solver.MOMENTUM, nesterov=solver.NESTEROV, foreach=True),
            "ADAMW": torch.optim.AdamW,
        }
        if solver.OPTIMIZER not in kinds:
            raise OptionError("SOLVER.OPTIMIZER", solver.OPTIMIZER, f"must be {' or '.join(kinds)}")
        params = get_default_optimizer_params(
            model,
            base_lr=solver.BASE_LR,
            weight_decay_norm=solver.WEIGHT_DECAY_NORM,
            bias_lr_factor=solver.BIAS_LR_FACTOR,
            weight_decay_bias=solver.WEIGHT_DECAY_BIAS,
            lr_factor_func=lambda name: solver.HEAD_LR_FACTOR if name.startswith("sem_seg_head.") else 1.0,
        )
        optimizer = kinds[solver.OPTIMIZER](params, lr=solver.BASE_LR, weight_decay=solver.WEIGHT_DECAY)
        return maybe_add_gradient_clipping(cfg, optimizer)

    @classmethod
    def build_lr_scheduler(cls, cfg: CfgNode, optimizer: torch.optim.Optimizer) -> LRScheduler:
        """Build detectron2's schedule, or that of its DeepLab project."""
        return build_lr_scheduler(cfg, optimizer)

    @classmethod
    def test_with_tta(cls, cfg: CfgNode, model: nn.Module) -> OrderedDict:
        """Evaluate with TEST.AUG's sizes and flips; result names end in ``_TTA``."""
        evaluators = [
            build_augmented_evaluator(cfg, name, cls.evaluation_folder(cfg, name, augmented=True))
            for name in cfg.DATASETS.TEST
        ]
        results = cls.test(cfg, with_test_time_augmentation(cfg, model), evaluators)
        return OrderedDict((f"{task}_TTA", metrics) for task, metrics in results.items())


def _share_statistics(model: nn.Module) -> None:
    """Give all processes the running statistics of the main one, which are those in its checkpoints.

    Without a synchronised norm, each process has its own, and would evaluate another model.
    """
    if comm.get_world_size() > 1:
        for module in get_bn_modules(model):
            for statistics in (module.running_mean, module.running_var):
                dist.broadcast(statistics, 0)


def load_model(
    cfg: CfgNode,
    resume: bool = False,
    allow_random: bool = False,
    optimize: bool = False,
    half: bool = False,
) -> nn.Module:
    """Build the model of ``cfg`` and load MODEL.WEIGHTS, or with ``resume`` the last checkpoint.

    Args:
        optimize: apply :func:`optimize_for_inference`.
        half: apply it, with the backbone in float16, or on the CPU in bfloat16.

    Raises:
        UserError: the file does not exist, holds NaN or infinity, is of another backbone, or leaves parts
            of the model at their random initialisation, unless ``allow_random``. The weights of a backbone
            alone leave the detector random, which then finds nothing.
    """
    model, classes = load_with_classes(cfg, resume, allow_random, optimize, half)
    if cfg.MODEL.META_ARCHITECTURE == CLASSIFIER and not allow_random:
        check_classes_of_weights(cfg, classes)
    return model


def load_with_classes(
    cfg: CfgNode,
    resume: bool = False,
    allow_random: bool = False,
    optimize: bool = False,
    half: bool = False,
) -> Tuple[nn.Module, List[str]]:
    """Like :func:`load_model`, for any images: DATASETS need not exist.

    Returns:
        The model, and the names of the classes of its training; empty if the file does not hold them.
    """
    with blames_configuration(cfg, "building the model"):
        model = Trainer.build_model(cfg)
    checkpointer = Checkpointer(model, save_dir=cfg.OUTPUT_DIR)
    checkpointer.check = None if allow_random else Coverage.check_all
    try:
        content = checkpointer.resume_or_load(cfg.MODEL.WEIGHTS, resume=resume)
    except AssertionError as e:  # fvcore's; the file existed when the configuration was checked
        raise UserError(
            f"{e} A training removes those beyond SOLVER.CHECKPOINTS_TO_KEEP; try again, or name another"
        ) from None
    if optimize or half:
        dtype = (torch.bfloat16 if cfg.MODEL.DEVICE == "cpu" else torch.float16) if half else None
        optimize_for_inference(model, dtype=dtype)
    return model, trained_classes(content)


def evaluate(cfg: CfgNode, **options: bool) -> OrderedDict:
    """Evaluate a model on DATASETS.TEST.

    Args:
        options: arguments of :func:`load_model`, which makes the model.

    Returns:
        Metrics by task, in percent; with several datasets, one such dict per dataset.
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
        _verify(cfg, results)
    return results


def _verify(cfg: CfgNode, results: Mapping[str, Any]) -> None:
    """Call detectron2's verify_results, which ends the process with status 1 if a result is missed."""
    missing = {task for task, *_ in cfg.TEST.EXPECTED_RESULTS} - {*results}
    if missing:
        names, there = ", ".join(sorted(missing)), ", ".join(results)
        raise UserError(
            f"TEST.EXPECTED_RESULTS names {names}, but the results are of {there}; name one of them"
        )
    verify_results(cfg, results)


def _check_start(coverage: Coverage, allow_random: bool) -> None:
    """Refuse weights of another backbone, and log which heads start at random."""
    if not allow_random:
        coverage.check_backbone()
    if coverage.missing_keys:
        logger.info("MODEL.WEIGHTS has nothing for %s: they start at random", coverage.parts)


def train(cfg: CfgNode, resume: bool = False, allow_random: bool = False) -> Optional[OrderedDict]:
    """Train, evaluating every TEST.EVAL_PERIOD iterations and at the end.

    Args:
        resume: resume from the last checkpoint in OUTPUT_DIR, if there is one.
        allow_random: start even if MODEL.WEIGHTS leaves parts of the backbone random.

    Returns:
        The last evaluation's metrics if TEST.EXPECTED_RESULTS has entries, else None, as in detectron2.
    """
    trainer = Trainer(cfg)
    trainer.resume_or_load(resume=resume, allow_random=allow_random)
    return trainer.train()
