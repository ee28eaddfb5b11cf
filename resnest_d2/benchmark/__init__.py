"""Compare this package with others: the same inputs and weights, measured in turn in the same run."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from contextlib import contextmanager, suppress
from itertools import product
from pathlib import Path
from typing import Any, Dict, Iterator, List, NamedTuple, Optional, Tuple

import torch
from tqdm import tqdm

from .. import model_zoo
from ..config import flatten
from ..engine.fit import fit_to_machine
from ..engine.results import environment
from ..errors import UserError, nearest
from ..evaluation.labels import label
from ..files import writing

_WORKER = Path(__file__).with_name("worker.py")


class Comparison(NamedTuple):
    """One row of the report.

    Attributes:
        title: what is measured.
        task: ``Split-Attention``, ``backbone`` or ``detector``, and ``inference`` or ``training``.
        config: the configuration that both sides build.
        size, batch: height and width in pixels of the images or feature maps, and their number.
        ours, theirs: implementations, with options after plus signs.
        precision: ``fp32``, ``fp16`` or ``bf16``.
        profile: also measure each operator.
        channels: channels of a split, where Split-Attention is measured alone.
        memory_format: of its feature maps in that case, ``contiguous`` or ``channels_last``.
    """

    title: str
    task: str
    config: str
    size: Tuple[int, int]
    batch: int
    ours: str
    theirs: str
    precision: str = "fp32"
    profile: bool = False
    channels: int = 64
    memory_format: str = "contiguous"


class Result(NamedTuple):
    """Seconds per round and MB of both sides, seconds per operator in one round, and the code's commit."""

    comparison: Comparison
    ours: List[float]
    theirs: List[float]
    our_memory: float
    their_memory: float
    our_profile: Dict[str, float]
    their_profile: Dict[str, float]
    commit: Optional[str] = None

    @classmethod
    def of(cls, values: Dict[str, Any]) -> Result:
        """Inverse of :meth:`_asdict`, after a round trip through JSON."""
        comparison = Comparison(*values["comparison"])
        return cls(**{**values, "comparison": comparison._replace(size=tuple(comparison.size))})

    @property
    def ratios(self) -> List[float]:
        """Their time over ours, round by round."""
        return [theirs / ours for ours, theirs in zip(self.ours, self.theirs)]


#: For each stage, the channels of its splits and the stride of its maps in pixels.
STAGES = {"res2": (64, 4), "res3": (128, 8), "res4": (256, 16), "res5": (512, 32)}
_FORMATS = {"contiguous": "NCHW", "channels_last": "channels-last"}


def check_device(device: str) -> None:
    """Raise UserError unless the device is ``cpu``, or ``cuda`` on a machine with a GPU."""
    if device not in ("cpu", "cuda"):
        hint = nearest(device, ("cpu", "cuda"))
        raise UserError(f"--device {device}: {hint} CUDA_VISIBLE_DEVICES picks one of several GPUs")
    if device == "cuda" and not torch.cuda.is_available():
        raise UserError("--device cuda: no CUDA device is visible; use cpu, which needs none")


def comparisons(device: str) -> List[Comparison]:
    """The rows of the benchmarks page; on a GPU, those that take longest come last."""
    cpu = device == "cpu"
    image = (800, 1088) if cpu else (800, 1216)
    sizes = {"backbone": image, "detector": (320, 480) if cpu else image}
    precision = "fp32" if cpu else "fp16"
    # As MODEL.MEMORY_FORMAT auto chooses.
    trained, other = ("ours+channels_last", "ours") if cpu else ("ours", "ours+channels_last")
    other_format = _FORMATS["contiguous" if cpu else "channels_last"]
    folded = "ours+fold"

    def row(
        title: str,
        task: str,
        ours: str,
        theirs: str = "released",
        config: str = "mask_resnest50",
        **values: Any,
    ) -> Comparison:
        subject, mode = task.split()
        batch = 1 if mode == "inference" else 2  # the released code cannot train with 1
        values = {"size": sizes[subject], "batch": batch, "precision": precision, **values}
        return Comparison(title, task, config, ours=ours, theirs=theirs, **values)

    cascade = "cascade_resnest101"
    in_other_format = [
        row(f"mask_resnest50 training, {other_format}", "detector training", other),
        row(f"{cascade} training, {other_format}", "detector training", other, config=cascade),
    ]
    compiled = [
        row("backbone inference, compiled", "backbone inference", folded + "+compile"),
        row(
            "backbone forward and backward beside its own reference compiled",
            "backbone training",
            trained,
            trained + "+compile",
        ),
    ]
    rows = [
        *_of_split_attention(image, precision),
        row("backbone inference", "backbone inference", folded, profile=True),
        row("backbone inference, half precision", "backbone inference", folded + "+half"),
        row("backbone inference, not optimised", "backbone inference", "ours"),
        row("backbone inference beside timm's", "backbone inference", folded, "timm"),
        row("backbone inference beside ResNet-50", "backbone inference", folded, "resnet"),
        row("backbone forward and backward", "backbone training", trained, profile=True),
        row(f"backbone forward and backward, {other_format}", "backbone training", other),
        row("mask_resnest50 training", "detector training", trained),
        row(f"{cascade} training", "detector training", trained, config=cascade, profile=True),
        *([] if cpu else in_other_format),
        row(
            f"{cascade} training, convolutions' outputs kept",
            "detector training",
            trained + "+recompute",
            config=cascade,
        ),
        row(
            f"{cascade} training, blocks' inputs kept",
            "detector training",
            trained + "+checkpoint",
            config=cascade,
        ),
        row("mask_resnest50 inference", "detector inference", folded),
        row(f"{cascade} inference", "detector inference", folded, config=cascade),
        *compiled,
    ]
    if cpu:  # as tools/train_net.py runs there
        kept = "+keep_memory"
        larger = {"config": cascade, "size": (512, 768)}
        rows += [
            row("backbone inference, as run", "backbone inference", folded + kept),
            row(
                "backbone inference, as run: share of the matmul rate",
                "backbone inference",
                folded + kept,
                "matmul",
            ),
            row("backbone forward and backward, as run", "backbone training", trained + kept, profile=True),
            row(
                "backbone forward and backward, as run: share of the matmul rate",
                "backbone training",
                trained + kept,
                "matmul",
            ),
            row(
                "backbone forward and backward, both in bfloat16, as run",
                "backbone training",
                trained + kept,
                precision="bf16",
            ),
            row(f"{cascade} training, as run", "detector training", trained + kept, config=cascade),
            row(f"{cascade} training, as run, larger images", "detector training", trained + kept, **larger),
        ]
    return rows


def _of_split_attention(image: Tuple[int, int], precision: str) -> Iterator[Comparison]:
    """Two images per row: training on all stages in both memory formats, inference on the largest."""
    modes = {"training": "forward and backward", "inference": "forward"}
    for (mode, what), memory_format, stage, theirs in product(
        modes.items(), _FORMATS, STAGES, ("released", "copy")
    ):
        if mode == "inference" and stage != "res2":
            continue
        channels, stride = STAGES[stage]
        share = ": share of the copy bandwidth" if theirs == "copy" else ""
        yield Comparison(
            f"Split-Attention of {stage}, {what}, {_FORMATS[memory_format]}{share}",
            f"Split-Attention {mode}",
            "mask_resnest50",
            (image[0] // stride, image[1] // stride),
            2,
            "ours",
            theirs,
            precision,
            channels=channels,
            memory_format=memory_format,
        )


def settings_of(comparison: Comparison) -> Dict[str, Any]:
    """The configuration by key: norms for one process, and nothing frozen if only the backbone runs."""
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
    """Run both sides in turn.

    Raises:
        UserError: one of them failed, for example because it is not installed.
    """
    with temporary_folder() as folder:
        shared = "timm" not in (comparison.theirs, comparison.ours)
        request = {
            "task": comparison.task,
            "size": comparison.size,
            "batch": comparison.batch,
            "device": device,
            "precision": comparison.precision,
            "channels": comparison.channels,
            "memory_format": comparison.memory_format,
            "config": settings_of(comparison),
            "weights": str(Path(folder, "weights.pth")) if shared else None,
        }
        sides = [_Side(name) for name in (comparison.ours, comparison.theirs)]
        try:
            answers: List[List[Dict[str, Any]]] = [[], []]
            for i in tqdm(range(rounds), desc=comparison.title):
                last = {"profile": comparison.profile and i == rounds - 1}
                for side, of_side in zip(sides, answers):
                    of_side.append(side.run({**request, **last}))
        finally:
            for side in sides:
                side.close()
    seconds = [[answer["seconds"] for answer in of_side] for of_side in answers]
    memory = [of_side[-1]["memory"] for of_side in answers]
    profiles = [of_side[-1].get("profile", {}) for of_side in answers]
    commit = environment(torch.device(device))["commit"]
    return Result(comparison, *seconds, *memory, *profiles, commit=commit)


@contextmanager
def temporary_folder() -> Iterator[Path]:
    """A folder for the files of a measurement. Errors of the system become a UserError."""
    with (
        writing("temporary files", "make room, or name another folder with TMPDIR"),
        tempfile.TemporaryDirectory() as folder,
    ):
        yield Path(folder)


class _Side:
    """One implementation in its own process."""

    def __init__(self, implementation: str) -> None:
        self._name, self._log = implementation, tempfile.TemporaryFile()
        self._process = subprocess.Popen(
            [sys.executable, "-W", "ignore", str(_WORKER), implementation],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        )

    def run(self, request: Dict[str, Any]) -> Dict[str, Any]:
        with suppress(BrokenPipeError):  # it has ended, and its log says why
            self._process.stdin.write(json.dumps(request) + "\n")
            self._process.stdin.flush()
        answer = self._process.stdout.readline()
        if not answer:
            self._log.seek(0)
            lines = self._log.read().decode(errors="replace").strip().splitlines()
            said = label(lines[-1], 300) if lines else "it ended without a message"
            raise UserError(f"{self._name}: {said}")
        return json.loads(answer)

    def close(self) -> None:
        with suppress(BrokenPipeError):
            self._process.stdin.close()
        try:
            self._process.wait(60)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
