"""Hooks that make a resumed run equal to one that was never stopped."""

from __future__ import annotations

import logging
from typing import Any, Callable, Dict, List, Mapping

from detectron2.engine import HookBase, hooks
from detectron2.utils import comm
from fvcore.nn.precise_bn import get_bn_modules
from torch import nn

from ..data.seeding import seed_all
from ..processes import Interrupted
from .memory import give_back_free_memory
from .signals import Signals
from .trackers import TrackerWriter

logger = logging.getLogger(__name__)


class StopOnSignal(HookBase):
    """Ends training between two iterations after a signal.

    It must come after the hooks that belong to the iteration itself.

    Args:
        signal: returns the number of a signal that one of the processes has received, or 0; the same in all.

    Attributes:
        completed: number of the iteration whose state may be saved; -1 before the first and during one.
    """

    def __init__(self, signal: Callable[[], int]) -> None:
        self._signal, self.completed = signal, -1

    def before_step(self) -> None:
        self.completed = -1

    def after_step(self) -> None:
        self.completed = self.trainer.iter
        if self._signal():
            raise Interrupted(self._signal())


class Throughput(HookBase):
    """Adds the images per second of all processes to the metrics, and once estimates the cost of the run.

    It must come after detectron2's IterationTimer.

    Args:
        images: number of images in an iteration of all processes.
        on_gpus: whether each process has a GPU.
    """

    #: Iterations after which the estimate is logged.
    AFTER = 40

    def __init__(self, images: int, on_gpus: bool) -> None:
        self._images, self._on_gpus = images, on_gpus

    def after_step(self) -> None:
        times = self.trainer.storage.histories().get("time")
        if times is None:  # the first iterations are not timed
            return
        rate = self._images / times.median(self.AFTER)
        self.trainer.storage.put_scalar("images_per_second", rate, smoothing_hint=False)
        if self.trainer.iter + 1 == self.trainer.start_iter + self.AFTER:
            hours = (self.trainer.max_iter - self.trainer.start_iter) * self._images / rate / 3600
            of_gpus = f", {hours * comm.get_world_size():.1f} GPU-hours" if self._on_gpus else ""
            logger.info("%.1f images/s: %.2f hours%s, without evaluations", rate, hours, of_gpus)


class GiveBackMemory(HookBase):
    """Bounds the memory of a process on the CPU when its images vary in size."""

    #: Interval in iterations. The kernel zeroes returned pages again, which costs a fraction of an iteration.
    PERIOD = 20

    def after_step(self) -> None:
        if (self.trainer.iter + 1) % self.PERIOD == 0:
            give_back_free_memory()


class PreciseBN(hooks.PreciseBN):
    """detectron2's PreciseBN, but with the same batches each time, and recording whether it has run.

    If it is interrupted, it restores the statistics, and runs again when training resumes.
    """

    def __init__(
        self, period: int, model: nn.Module, data_loader: Any, num_iter: int, signals: Signals, seed: int
    ) -> None:
        super().__init__(period, model, data_loader, num_iter)
        self._norms: List[nn.Module] = get_bn_modules(model)
        self._signals, self._seed, self._ran = signals, seed, -1

    def before_train(self) -> None:
        last = self.trainer.start_iter - 1
        if last >= 0 and self._due(last) and self._ran != last:
            self.trainer.iter = last
            self.update_stats()

    def after_step(self) -> None:
        if self._due(self.trainer.iter):
            self.update_stats()

    def _due(self, iteration: int) -> bool:
        done = iteration + 1
        return done == self.trainer.max_iter or (self._period > 0 and done % self._period == 0)

    def update_stats(self) -> None:
        """Measure the statistics."""
        self._data_iter = None  # start from the first batch
        seed_all(self._seed, self.trainer.iter, comm.get_rank(), 1)
        before = [[buffer.clone() for buffer in norm.buffers()] for norm in self._norms]
        try:
            with self._signals.interruptible():
                super().update_stats()
        except BaseException:
            for norm, values in zip(self._norms, before):
                for buffer, value in zip(norm.buffers(), values):
                    buffer.copy_(value)
            raise
        self._ran = self.trainer.iter

    def state_dict(self) -> Dict[str, int]:
        return {"ran": self._ran}

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        self._ran = state["ran"]


class PeriodicCheckpointer(hooks.PeriodicCheckpointer):
    """detectron2's PeriodicCheckpointer, which also writes a ``model_final`` that a killed run did not."""

    def after_train(self) -> None:
        trainer = self.trainer
        if trainer.start_iter < trainer.max_iter or self.checkpointer.is_newest("model_final"):
            return
        trainer.iter = trainer.start_iter - 1  # the iteration of these weights, even if past the last
        self.save("model_final", iteration=trainer.iter)
        trainer.iter = trainer.max_iter


class PeriodicWriter(hooks.PeriodicWriter):
    """detectron2's PeriodicWriter, which also starts the writer to a tracker before the first iteration."""

    def before_train(self) -> None:
        for writer in self._writers:
            if isinstance(writer, TrackerWriter):
                writer.start()


class InterruptibleEval(hooks.EvalHook):
    """detectron2's EvalHook, which can be interrupted at any point, as it changes nothing in training."""

    def __init__(self, period: int, function: Any, signals: Signals) -> None:
        super().__init__(period, function)
        self._signals = signals

    def _do_eval(self) -> None:
        with self._signals.interruptible():
            super()._do_eval()
