"""``docs/BENCHMARKS.md``, from the measurements of one run."""

from __future__ import annotations

import importlib.metadata
import platform
from pathlib import Path
from typing import Sequence

import torch

from ..engine.record import environment
from . import Result, markdown

_HEAD = """# Benchmarks

Written by `python tools/benchmark.py --page docs/BENCHMARKS.md` on {date}, commit {commit}, on {machine}:
torch {torch}, torchvision {torchvision}, Python {python}, `resnest` {released}, timm {timm}.

"ours" is this package, "released" the plugin of `resnest`, "timm" its `features_only` network, "resnet"
detectron2's ResNet-50. Each side has a process; they run in turn with the same random images, ours and the
released one with the same weights. Times are medians of {rounds} repetitions, ratios those of neighbouring
repetitions: their time by ours. Memory is the process's peak (resident, or CUDA's allocator), libraries
included. `fold` is `resnest_d2.optimize_for_inference`: norms folded, maps channels-last.

"""
_NOT_MEASURED = """
| on a GPU, mixed precision | times as fast |
|---|---|
| backbone inference, 800x1216 | – |
| backbone forward and backward | – |
| cascade_resnest101 training iteration | – |
| its peak memory, and with checkpointed stages | – |
| Split-Attention alone, share of the copy bandwidth | – |

No GPU was at hand; the kernels have run in Triton's interpreter only.
"""


def page(results: Sequence[Result], device: str) -> str:
    """The page."""
    facts = environment()
    head = _HEAD.format(
        date=facts["date"][:10],
        commit=(facts["commit"] or "–")[:8],
        machine=facts["gpu"] or f"{_processor()}, {torch.get_num_threads()} threads",
        torch=torch.__version__,
        torchvision=facts["versions"]["torchvision"],
        python=platform.python_version(),
        released=importlib.metadata.version("resnest"),
        timm=importlib.metadata.version("timm"),
        rounds=len(results[0].ours),
    )
    return head + markdown(results) + "\n" + (_NOT_MEASURED if device == "cpu" else "")


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()
