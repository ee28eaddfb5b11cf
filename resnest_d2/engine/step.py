"""One training iteration: mixed precision, the gradient norm, and NaN or infinity."""

from __future__ import annotations

import logging
import math
import time
from pathlib import Path
from typing import Any, Callable, Dict, List, Mapping, Optional, Sequence

import torch
import torch.distributed as dist
from detectron2.engine import SimpleTrainer
from detectron2.modeling.proposal_generator import RPN
from detectron2.modeling.roi_heads import FastRCNNOutputLayers
from detectron2.utils import comm
from detectron2.utils.events import get_event_storage
from torch import nn
from torch.utils._pytree import tree_flatten, tree_unflatten

from ..data.seeding import seed_all
from ..errors import UserError
from ..files import atomic_writer

logger = logging.getLogger(__name__)

#: At this loss scale or below, float16 is not the reason why a gradient is infinite or NaN.
_SMALLEST_SCALE = 1.0
#: Box offsets, in units of their anchors, above which the boxes may not be finite in float32.
_LARGEST_DELTA = 1e30


class TrainStep(SimpleTrainer):
    """detectron2's SimpleTrainer and AMPTrainer in one, which detects NaN and infinite losses and gradients.

    The random numbers of an iteration depend only on the seed, its number and the process, so that a resumed
    run draws the same ones.

    Args:
        amp: use mixed precision, float16 on CUDA and bfloat16 on the CPU. detectron2's needs CUDA.
        seed: at least 0.
        max_skipped: how many iterations in total may be skipped for a NaN or infinite loss or gradient; the
            next one stops training.
        output_dir: folder for the batch of such an iteration.
        received: returns the signal that this process has received, if any.

    Attributes:
        signal: number of a signal that one of the processes received in the last iteration, or 0.
    """

    def __init__(
        self,
        model: nn.Module,
        data_loader: Any,
        optimizer: torch.optim.Optimizer,
        *,
        amp: bool,
        seed: int,
        max_skipped: int,
        output_dir: str,
        received: Callable[[], Optional[int]] = lambda: None,
    ) -> None:
        super().__init__(model, data_loader, optimizer)
        parameter = next(model.parameters())
        self._device = parameter.device.type
        self._amp, self._seed, self._output_dir = amp, seed, Path(output_dir)
        self._max_skipped, self._skipped = max_skipped, 0
        self.grad_scaler = torch.amp.GradScaler(self._device, enabled=amp and self._device == "cuda")
        self._received, self.signal = received, 0
        self._boxes: List[torch.Tensor] = []
        for module in model.modules():
            if isinstance(module, (RPN, FastRCNNOutputLayers)):
                head = module.rpn_head if isinstance(module, RPN) else module
                head.register_forward_hook(_bounds_boxes(self._boxes))
        self._learned = [p for group in optimizer.param_groups for p in group["params"]]

    def run_step(self) -> None:
        """Run one iteration.

        Raises:
            UserError: a loss or the gradient is not finite, and no more iterations may be skipped.
        """
        start = time.perf_counter()
        data = next(self._data_loader_iter)
        data_time = time.perf_counter() - start
        seed_all(self._seed, self.iter, comm.get_rank())
        dtype = torch.float16 if self._device == "cuda" else torch.bfloat16
        self._boxes.clear()
        with torch.autocast(self._device, dtype, enabled=self._amp):
            losses = self.model(data)
        self.optimizer.zero_grad()
        self.grad_scaler.scale(sum(losses.values())).backward()
        self.grad_scaler.unscale_(self.optimizer)  # also for the optimizer's gradient clipping
        norm = self._gradient_norm()
        values = {**{name: loss.detach() for name, loss in losses.items()}, "gradient": norm}
        if self._boxes:
            values["boxes"] = torch.stack(self._boxes).sum()
        finite = torch.stack([value.float() for value in values.values()]).isfinite().tolist()
        bad = [name for name, good in zip(values, finite) if not good]
        # With float16, an infinite gradient means that the scale was too large: the scaler skips the step
        # and halves the scale. From GradScaler's initial 65536, 16 steps in a row lead to _SMALLEST_SCALE.
        if bad == ["gradient"] and self._scale() > _SMALLEST_SCALE:
            bad = []
        rank = comm.get_world_size() - comm.get_rank()
        first, self.signal = _largest([rank if bad else 0, self._received() or 0], norm.device)
        if first:  # all processes take this branch together
            self.grad_scaler.update(self._scale())  # keep the scale, which is not the cause
            self._skip(data, losses, bad, first == rank)
            return
        self._write_metrics(losses, data_time)
        get_event_storage().put_scalar("grad_norm", norm.item())
        self.grad_scaler.step(self.optimizer)
        self.grad_scaler.update()

    def _gradient_norm(self) -> torch.Tensor:
        gradients = [p.grad for p in self._learned if p.grad is not None]
        # As in clip_grad_norm_, which would change gradients whose norm is infinite.
        return torch.linalg.vector_norm(torch.stack(torch._foreach_norm(gradients)))

    def _scale(self) -> float:
        return self.grad_scaler.get_scale()  # 1 where it is disabled

    def _skip(
        self, data: Sequence[Mapping], losses: Mapping[str, torch.Tensor], bad: List[str], speaks: bool
    ) -> None:
        """Write the batch, and stop unless more iterations may be skipped.

        Args:
            bad: names of the values that were not finite in this process.
            speaks: whether this process is the one that reports it.
        """
        self._skipped += 1
        if not bad:
            message = f"not finite at iteration {self.iter} in another process"
        else:
            message = self._report(data, losses, bad)
        if self._skipped > self._max_skipped:
            comm.synchronize()  # the first process to leave ends the others, which may still be writing
            if not speaks:
                raise SystemExit(2)
            raise UserError(
                f"{message}; lower SOLVER.BASE_LR, raise SOLVER.WARMUP_ITERS, set "
                "SOLVER.CLIP_GRADIENTS.ENABLED, or skip SOLVER.SKIP_NOT_FINITE iterations"
            )
        get_event_storage().put_scalar("skipped", self._skipped, smoothing_hint=False)
        logger.warning("%s; skipped (%d of %d)", message, self._skipped, self._max_skipped)

    def _report(self, data: Sequence[Mapping], losses: Mapping[str, torch.Tensor], bad: List[str]) -> str:
        """Write the batch, and return a message about what is wrong."""
        file = self._output_dir / f"not_finite_{self.iter:07d}_{comm.get_rank()}.pth"
        batch = [_plain(record) for record in data]
        values = {name: loss.detach().float().cpu() for name, loss in losses.items()}
        kept = f"the batch is in {file}"
        try:
            with atomic_writer(file) as f:
                torch.save({"losses": values, "batch": batch}, f)
        except UserError as e:  # the other processes wait for this one
            kept = str(e)
        images = ", ".join(str(record.get("image_id", record["file_name"])) for record in data)
        rate = max(group["lr"] for group in self.optimizer.param_groups)
        return (
            f"not finite at iteration {self.iter}: {', '.join(bad)}; learning rate {rate:.3g}, images "
            f"{images}; {kept}"
        )

    def state_dict(self) -> Dict[str, Any]:
        return {
            **super().state_dict(), "grad_scaler": self.grad_scaler.state_dict(), "skipped": self._skipped
        }  # fmt: skip

    def load_state_dict(self, state: Dict[str, Any]) -> None:
        super().load_state_dict(state)
        scale = state.get("grad_scaler")
        if scale:  # empty after a run without AMP or on a CPU: start with the initial scale
            self.grad_scaler.load_state_dict(scale)
        self._skipped = state.get("skipped", 0)


def _bounds_boxes(noted: List[torch.Tensor]) -> Callable[..., Any]:
    """Make a hook for modules that predict boxes. It inserts zeros where detectron2 would raise in training:
    a FloatingPointError after an RPN's head, an AssertionError between the stages of a cascade.

    The process that raised it would leave the others waiting in the norms of the heads. Instead it completes
    the iteration with them, and all skip it.

    Args:
        noted: gets a number for each run, infinite if something was replaced.
    """

    def hook(head: nn.Module, inputs: Any, outputs: Any) -> Any:
        if not head.training:  # detectron2 drops such boxes in inference
            return None
        tensors, structure = tree_flatten(outputs)
        wrong = [~(x.detach().abs() < _LARGEST_DELTA) for x in tensors]
        noted.append(torch.where(torch.stack([mask.any() for mask in wrong]).any(), math.inf, 0.0))
        return tree_unflatten([x.masked_fill(mask, 0) for x, mask in zip(tensors, wrong)], structure)

    return hook


def _largest(values: Sequence[int], device: torch.device) -> List[int]:
    """Return the maximum of each value over all processes.

    Args:
        device: device that the processes' backend communicates on.
    """
    if comm.get_world_size() == 1:
        return list(values)
    tensor = torch.tensor(values, device=device)
    dist.all_reduce(tensor, dist.ReduceOp.MAX)
    return tensor.tolist()


def _plain(record: Mapping[str, Any]) -> Dict[str, Any]:
    """A training record as tensors and plain values, which can be loaded without running code."""
    plain = {k: v for k, v in record.items() if isinstance(v, (int, float, str, torch.Tensor))}
    if "instances" in record:
        instances = record["instances"]
        plain["gt_boxes"], plain["gt_classes"] = instances.gt_boxes.tensor, instances.gt_classes
    return plain
