"""Tables of the measurements, and ``docs/BENCHMARKS.md`` of those of one run."""

from __future__ import annotations

import importlib.metadata
import platform
import statistics
from pathlib import Path
from typing import Sequence

import torch
from tabulate import tabulate

from ..engine.record import environment
from . import Result
from .pipeline import WORKERS, Pipeline

_HEAD = """# Benchmarks

Written by `python tools/benchmark.py --page docs/BENCHMARKS.md` on {date}, commit {commit}, on {machine}:
torch {torch}, torchvision {torchvision}, Python {python}, `resnest` {released}, timm {timm}.

"ours" is this package, "released" the plugin of `resnest`, "timm" its `features_only` network, "resnet"
detectron2's ResNet-50. Each side has a process; they run in turn with the same random images, ours and the
released one with the same weights. Times are medians of {rounds} repetitions, ratios those of neighbouring
repetitions: their time by ours. Memory is the process's peak (resident, or CUDA's allocator), libraries
included. After the plus signs:

- `fold`: `resnest_d2.optimize_for_inference`, norms folded, maps channels-last; `half` and `compile` are its
  options, elsewhere `compile` is `torch.compile(dynamic=True)` of the plain PyTorch reference
- `channels_last`: `MODEL.MEMORY_FORMAT`, by default so on the CPU
- `keep_memory`: memory that tensors free stays with the process, as `tools/train_net.py` has it on the CPU
  (the rows "as run"); malloc otherwise gives each large tensor back to the kernel
- `checkpoint`, `recompute`: `MODEL.RESNETS.CHECKPOINT_STAGES` with all stages, where `CHECKPOINT_KEEPS` is
  `inputs` or `convolutions`

Split-Attention alone is all between the norm and the sum, of 64 channels and 2 splits. Beside it, `copy`
copies as many bytes as it must move at least, so that this ratio is the share of the copy bandwidth. Likewise
`matmul` multiplies large matrices with as many operations as the network has.

"""
_PROFILE = """
## Where the time goes

Operators of one repetition, slower for being profiled, without those that they call: the ten that take most,
and their share of all.
"""
_PIPELINE = """
## Loader and model

Images a second that the training loader gives, by number of worker processes, and that training takes, each
alone on this machine. The images are generated.

"""
_NOT_MEASURED = """
## On a GPU

No GPU was at hand; the kernels have run in Triton's interpreter only. The same command measures there.

| with mixed precision | times as fast |
|---|---|
| backbone inference, 800x1216 | – |
| backbone forward and backward | – |
| cascade_resnest101 training iteration | – |
| its peak memory, and with checkpointed stages | – |
| Split-Attention alone, share of the copy bandwidth | – |
"""


def comparison_table(results: Sequence[Result]) -> str:
    """Median times, the median of the ratios and their spread, memory."""
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
        *("what", "images", "ours / theirs", "ours (s)", "theirs (s)", "times as fast"),
        "peak memory (MB)",
    )
    return tabulate(rows, titles, "github", disable_numparse=True) + "\n"


def profile_table(result: Result, operators: int = 10) -> str:
    """Seconds and shares of the operators that take most, of both sides."""
    profiles = result.our_profile, result.their_profile
    totals = [sum(profile.values()) for profile in profiles]
    most = sorted(set().union(*profiles), key=lambda name: -max(p.get(name, 0) for p in profiles))
    rows = [["all", *(cell for total in totals for cell in (f"{total:.2f}", "100 %"))]]
    for name in most[:operators]:
        seconds = [profile.get(name, 0) for profile in profiles]
        cells = [(f"{s:.2f}", f"{100 * s / total:.0f} %") for s, total in zip(seconds, totals)]
        rows.append([f"`{name}`", *cells[0], *cells[1]])
    c = result.comparison
    titles = ("operator", f"{c.ours} (s)", "share", f"{c.theirs} (s)", "share")
    table = tabulate(rows, titles, "github", disable_numparse=True)
    return f"\n{c.title}, {c.batch} x {c.size[0]}x{c.size[1]}, {c.precision}:\n\n{table}\n"


def pipeline_table(pipelines: Sequence[Pipeline]) -> str:
    """Images a second of loader and model."""
    titles = (
        *("configuration", "images", "batch"),
        *(f"loader, {workers} workers" for workers in WORKERS),
        "training",
    )
    rows = [
        [p.config, p.images, p.batch, *(f"{p.loaded[str(w)]:.0f}" for w in WORKERS), f"{p.trained:.2f}"]
        for p in pipelines
    ]
    return tabulate(rows, titles, "github", disable_numparse=True) + "\n"


def page(results: Sequence[Result], pipelines: Sequence[Pipeline], device: str) -> str:
    """The page."""
    facts = environment(torch.device(device))
    head = _HEAD.format(
        date=facts["date"][:10],
        commit=(facts["commit"] or "–")[:8],
        machine=facts["gpu"] or f"{_processor()}, {torch.get_num_threads()} threads",
        torch=torch.__version__,
        torchvision=facts["versions"]["torchvision"],
        python=platform.python_version(),
        released=importlib.metadata.version("resnest"),
        timm=importlib.metadata.version("timm"),
        rounds=len(results[0].ours) if results else 0,
    )
    profiles = [profile_table(result) for result in results if result.our_profile]
    return "".join(
        [
            head,
            comparison_table(results),
            *([_PROFILE, *profiles] if profiles else []),
            *([_PIPELINE, pipeline_table(pipelines)] if pipelines else []),
            *([_NOT_MEASURED] if device == "cpu" else []),
        ]
    )


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()
