"""Accuracy and speed of a model and of its exported files, side by side."""

from __future__ import annotations

from tempfile import TemporaryDirectory
from typing import Any, Dict, List, Mapping, Sequence

import torch
from detectron2.config import CfgNode
from detectron2.evaluation.testing import flatten_results_dict
from tabulate import tabulate
from torch import Tensor, nn
from torch.utils.benchmark import Timer
from tqdm import tqdm

from ..engine import Trainer

#: Metrics that a table shows, of those that the evaluators report.
_METRICS = ("AP", "AP50", "mIoU", "pACC", "top1", "top5")


def measure_accuracy(cfg: CfgNode, models: Mapping[str, nn.Module]) -> str:
    """Evaluate models on DATASETS.TEST, and return their metrics, in percent, as a table."""
    rows: List[List[Any]] = []
    metrics: Dict[str, None] = {}
    for name, model in models.items():
        with TemporaryDirectory() as folder:  # the run's own results stay
            cfg = cfg.clone()
            cfg.defrost()
            cfg.OUTPUT_DIR = folder
            cfg.freeze()
            found = flatten_results_dict(Trainer.test(cfg, model.eval()))
        shown = {key: value for key, value in found.items() if key.rsplit("/")[-1] in _METRICS}
        metrics.update(dict.fromkeys(shown))
        rows.append([name, *(f"{shown[key]:.2f}" if key in shown else "–" for key in metrics)])
    return tabulate(rows, ["model", *metrics], tablefmt="github", disable_numparse=True)


def measure_speed(models: Mapping[str, nn.Module], images: Sequence[Tensor], rounds: int = 3) -> str:
    """Time models on the same images, one after the other, and return a table.

    Args:
        rounds: all models are timed in turn this often; the median round of each counts.
    """
    records = [[{"image": image}] for image in images]
    seconds: Dict[str, List[float]] = {name: [] for name in models}
    with torch.no_grad(), tqdm(total=rounds * len(models), desc="timing") as progress:
        for _ in range(rounds):
            for name, model in models.items():
                timer = Timer(
                    "for record in records: model(record)",
                    globals={"model": model, "records": records},
                    num_threads=torch.get_num_threads(),
                )
                seconds[name].append(timer.timeit(1).mean / len(records))
                progress.update()
    medians = {name: sorted(times)[rounds // 2] for name, times in seconds.items()}
    first = next(iter(medians.values()))
    rows = [[name, f"{value:.3f}", f"{first / value:.2f}"] for name, value in medians.items()]
    return tabulate(rows, ["model", "s / image", "times as fast"], tablefmt="github", disable_numparse=True)
