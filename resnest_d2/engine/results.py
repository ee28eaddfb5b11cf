"""The record of a run and its results: ``results.json`` in OUTPUT_DIR."""

from __future__ import annotations

import datetime
import importlib.metadata
import json
import math
import platform
import shlex
import statistics
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any, Callable, Dict, Mapping, Optional

import torch
from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from detectron2.engine import HookBase
from detectron2.utils import comm
from detectron2.utils.file_io import PathManager
from torch import nn

from ..errors import UserError
from ..files import atomic_write_text
from ..version import __version__

FILE = "results.json"
_PACKAGES = ("torchvision", "triton", "numpy", "fvcore", "pycocotools", "faster-coco-eval")


def environment(device: torch.device) -> Dict[str, Any]:
    """Return the date, versions, commit and hardware of this process.

    Args:
        device: the model's device. On the CPU no GPU is named or initialised.
    """
    on_gpu = device.type == "cuda" and torch.cuda.is_available()
    return {
        "date": datetime.datetime.now().isoformat(timespec="seconds"),
        "versions": {
            "python": platform.python_version(),
            "resnest_d2": __version__,
            "torch": torch.__version__,
            **{name: _version(name) for name in _PACKAGES},
        },
        "commit": _commit(),
        "gpu": torch.cuda.get_device_name(device) if on_gpu else None,
        "processes": comm.get_world_size(),
    }


def _commit() -> Optional[str]:
    """Commit of this checkout; None for an installed package, even inside another checkout."""
    root = Path(__file__).resolve().parents[2]
    try:
        git = subprocess.run(
            ["git", "rev-parse", "--show-toplevel", "HEAD"], cwd=root, capture_output=True, text=True
        )
    except OSError:  # there is no git
        return None
    top, _, commit = git.stdout.strip().partition("\n")
    return commit if git.returncode == 0 and Path(top).resolve() == root else None


def _version(package: str) -> Optional[str]:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def write_results(cfg: CfgNode, results: Mapping[str, Any], **measured: Any) -> None:
    """Write :data:`FILE`: evaluation results, other measurements, and :func:`environment`.

    Args:
        results: metrics by task, in percent; with several datasets, one such dict per dataset.
        measured: further figures.
    """
    if not comm.is_main_process():
        return
    content = {
        "results": _without_nan(results),
        "command": shlex.join(sys.argv),
        "datasets": [_dataset(name) for name in cfg.DATASETS.TEST],
        "weights": cfg.MODEL.WEIGHTS,
        "seed": cfg.SEED,
        **measured,
        **environment(torch.device(cfg.MODEL.DEVICE)),
    }
    path = PathManager.get_local_path(str(Path(cfg.OUTPUT_DIR, FILE)))
    atomic_write_text(Path(path), json.dumps(content, indent=1, default=str))


def _dataset(name: str) -> Dict[str, Optional[str]]:
    """Where a dataset was found, for readers of the results that do not register it."""
    metadata = MetadataCatalog.get(name)
    paths = {key: metadata.get(key) for key in ("json_file", "image_root")}
    return {"name": name, **{key: path and str(Path(path).absolute()) for key, path in paths.items()}}


def _without_nan(value: Any) -> Any:
    """Replace NaN and infinity, which JSON lacks, by None: metrics without any object."""
    if isinstance(value, Mapping):
        return {key: _without_nan(entry) for key, entry in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value


class RecordRun(HookBase):
    """Adds the peak CUDA memory to the metrics, and writes the run's results at its end.

    If the evaluation fails, they contain ``error`` and the measurements so far.

    The seconds include all parts of an interrupted run, since they are saved in its checkpoints.

    Args:
        results: returns the results of the last evaluation.
        model: the model whose devices are measured.
    """

    def __init__(self, results: Callable[[], Mapping[str, Any]], model: nn.Module) -> None:
        self._results = results
        devices = {parameter.device for parameter in model.parameters()}
        # On the CPU, asking CUDA for its memory would create a context on the first GPU.
        self._gpus = [device for device in devices if device.type == "cuda"]
        self._before, self._start = 0.0, time.time()
        self._recorded = False

    def before_train(self) -> None:
        self._start = time.time()
        for gpu in self._gpus:
            torch.cuda.reset_peak_memory_stats(gpu)

    def after_step(self) -> None:
        if self._gpus:
            self.trainer.storage.put_scalar("max_mem_mb", self._peak_mb(), smoothing_hint=False)

    def after_train(self) -> None:
        # The largest peak of all processes, since each gets images of all sizes.
        peak = max(comm.all_gather(self._peak_mb())) if self._gpus else None
        self._record(peak_gpu_memory_mb=peak)

    def record_failure(self, error: BaseException) -> None:
        """Write the measurements so far and the error, if it came after the last iteration."""
        if self.trainer.iter < self.trainer.max_iter or self._recorded or not isinstance(error, Exception):
            return
        # The other processes may have ended, so they are not asked.
        peak = self._peak_mb() if self._gpus else None
        with suppress(UserError):
            self._record(peak_gpu_memory_mb=peak, error=f"{type(error).__name__}: {error}")

    def _record(self, **measured: Any) -> None:
        history = self.trainer.storage.histories().get("time")  # the first iterations are not timed
        times = [seconds for seconds, _ in history.values()] if history else []
        write_results(
            self.trainer.cfg,
            self._results(),
            iterations=max(self.trainer.max_iter, self.trainer.start_iter),
            seconds_per_iteration=statistics.median(times) if times else None,
            wall_seconds=round(self._seconds(), 1),
            **measured,
        )
        self._recorded = True

    def state_dict(self) -> Dict[str, float]:
        return {"seconds": self._seconds()}

    def load_state_dict(self, state: Mapping[str, float]) -> None:
        self._before = state["seconds"]

    def _seconds(self) -> float:
        return self._before + time.time() - self._start

    def _peak_mb(self) -> float:
        """Peak memory of tensors in this process, in MB."""
        return sum(torch.cuda.max_memory_allocated(gpu) for gpu in self._gpus) / 2**20
