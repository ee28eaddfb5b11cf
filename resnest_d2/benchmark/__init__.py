"""Ours and others side by side: the same inputs and weights, one after the other in the same run."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any, Dict, List, NamedTuple, Sequence, Tuple

from tabulate import tabulate
from tqdm import tqdm

from .. import model_zoo
from ..engine.expectations import flatten
from ..engine.fit import fit_to_machine

_WORKER = Path(__file__).with_name("worker.py")


class Comparison(NamedTuple):
    """One row of the report.

    Attributes:
        title: what is measured.
        task: ``backbone inference``, ``backbone training``, ``detector inference`` or ``detector training``.
        config: configuration that both sides build.
        size, batch: height and width of the images in pixels, and their number.
        ours, theirs: implementations, with options after plus signs.
        precision: ``fp32``, ``fp16`` or ``bf16``.
    """

    title: str
    task: str
    config: str
    size: Tuple[int, int]
    batch: int
    ours: str
    theirs: str
    precision: str = "fp32"


class Result(NamedTuple):
    """Seconds and MB of both sides, of each round."""

    comparison: Comparison
    ours: List[float]
    theirs: List[float]
    our_memory: float
    their_memory: float

    @classmethod
    def of(cls, values: Dict[str, Any]) -> Result:
        """From what :meth:`_asdict` gave, through JSON."""
        comparison = Comparison(*values["comparison"])
        return cls(**{**values, "comparison": comparison._replace(size=tuple(comparison.size))})

    @property
    def ratios(self) -> List[float]:
        """Their time over ours, round by round."""
        return [theirs / ours for ours, theirs in zip(self.ours, self.theirs)]


def comparisons(device: str) -> List[Comparison]:
    """What the benchmarks page shows."""
    cpu = device == "cpu"
    large, whole = ((800, 1088), (320, 480)) if cpu else ((800, 1216), (800, 1216))
    precision = "fp32" if cpu else "fp16"
    fast = "ours+fold"

    def row(
        title: str, task: str, ours: str, theirs: str = "released", config: str = "mask_resnest50"
    ) -> Comparison:
        size = large if task.startswith("backbone") else whole
        images = 1 if "inference" in task else 2  # the released code fails with 1
        return Comparison(title, task, config, size, images, ours, theirs, precision)

    cascade = "cascade_resnest101"
    return [
        row("backbone inference", "backbone inference", fast),
        row("backbone inference, half precision", "backbone inference", fast + "+half"),
        row("backbone inference, compiled", "backbone inference", fast + "+compile"),
        row("backbone inference, not optimised", "backbone inference", "ours"),
        row("backbone inference beside timm's", "backbone inference", fast, "timm"),
        row("backbone inference beside ResNet-50", "backbone inference", fast, "resnet"),
        row("backbone forward and backward", "backbone training", "ours"),
        row("backbone forward and backward, channels last", "backbone training", "ours+channels_last"),
        row(f"{cascade} training", "detector training", "ours", config=cascade),
        row(f"{cascade} training, checkpointed", "detector training", "ours+checkpoint", config=cascade),
        row("mask_resnest50 inference", "detector inference", fast),
    ]


def settings_of(comparison: Comparison) -> Dict[str, Any]:
    """The configuration by key: norms for one process, nothing frozen in a backbone alone."""
    cfg = model_zoo.get_config(comparison.config)
    cfg.MODEL.WEIGHTS = ""
    fit_to_machine(cfg, processes=1)
    settings = dict(flatten(cfg))
    if comparison.task.startswith("backbone"):
        settings["MODEL.BACKBONE.NAME"] = "build_resnest_backbone"
        settings["MODEL.BACKBONE.FREEZE_AT"] = 0
    settings["INPUT.MASK_FORMAT"] = "bitmask"  # of the synthetic objects
    return settings


def compare(comparison: Comparison, device: str, rounds: int) -> Result:
    """Run both sides in turn."""
    with tempfile.TemporaryDirectory() as folder:
        shared = "timm" not in (comparison.theirs, comparison.ours)
        request = {
            "task": comparison.task,
            "size": comparison.size,
            "batch": comparison.batch,
            "device": device,
            "precision": comparison.precision,
            "config": settings_of(comparison),
            "weights": str(Path(folder, "weights.pth")) if shared else None,
        }
        sides = [_Side(name) for name in (comparison.ours, comparison.theirs)]
        try:
            answers: List[List[Dict[str, float]]] = [[], []]
            for _ in tqdm(range(rounds), desc=comparison.title):
                for side, of_side in zip(sides, answers):
                    of_side.append(side.run(request))
        finally:
            for side in sides:
                side.close()
    seconds = [[answer["seconds"] for answer in of_side] for of_side in answers]
    memory = [of_side[-1]["memory"] for of_side in answers]
    return Result(comparison, *seconds, *memory)


class _Side:
    """One implementation in its process."""

    def __init__(self, implementation: str) -> None:
        self._log = tempfile.TemporaryFile()
        self._process = subprocess.Popen(
            [sys.executable, "-W", "ignore", str(_WORKER), implementation],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        )

    def run(self, request: Dict[str, Any]) -> Dict[str, float]:
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        answer = self._process.stdout.readline()
        if not answer:
            self._log.seek(0)
            raise RuntimeError(self._log.read().decode(errors="replace")[-3000:])
        return json.loads(answer)

    def close(self) -> None:
        self._process.stdin.close()
        self._process.wait(60)


def markdown(results: Sequence[Result]) -> str:
    """A table: median times, the median of the ratios and their spread, memory."""
    rows = []
    for result in results:
        c = result.comparison
        ratios = result.ratios
        rows.append(
            [
                c.title,
                f"{c.batch} x {c.size[0]}x{c.size[1]}, {c.precision}",
                f"{c.ours} / {c.theirs}",
                *(f"{statistics.median(times):.3f}" for times in (result.ours, result.theirs)),
                f"**{statistics.median(ratios):.2f}** ({min(ratios):.2f} to {max(ratios):.2f})",
                f"{result.our_memory:.0f} / {result.their_memory:.0f}",
            ]
        )
    titles = (
        "what",
        "images",
        "ours / theirs",
        "ours (s)",
        "theirs (s)",
        "times as fast",
        "peak memory (MB)",
    )
    return tabulate(rows, titles, "github", disable_numparse=True)
