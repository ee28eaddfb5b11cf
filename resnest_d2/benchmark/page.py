"""Tables of the measurements, and ``docs/BENCHMARKS.md``, which has a part for each kind of machine."""

from __future__ import annotations

import importlib.metadata
import platform
import re
import statistics
from pathlib import Path
from typing import Any, Dict, List, Mapping, Optional, Sequence

import torch
from tabulate import tabulate

from ..collect_env import processor
from ..engine.results import environment
from ..errors import UserError
from ..files import check_writable, read_text
from . import Comparison, Result, comparisons
from .pipeline import WORKERS, Pipeline

_HEAD = """# Benchmarks

Each part was written by `python tools/benchmark.py --page docs/BENCHMARKS.md` on a machine of its kind, the
GPU's also by `make gpu`.

"ours" is this package, "released" the plugin of `resnest`, "timm" its `features_only` network, "resnet"
detectron2's ResNet-50. Each side has a process; they run in turn with the same random images, ours and the
released one with the same weights. Times are medians of repetitions, ratios those of neighbouring
repetitions: their time by ours. Memory is the process's peak (resident, or CUDA's allocator), libraries
included. What was not measured has a dash. After the plus signs:

- `fold`: `resnest_d2.optimize_for_inference`, norms folded, maps channels-last; `half` and `compile` are its
  options, elsewhere `compile` is `torch.compile(dynamic=True)` of the plain PyTorch reference
- `channels_last`: `MODEL.MEMORY_FORMAT`, by default so on the CPU
- `keep_memory`: memory that tensors free stays with the process, as `tools/train_net.py` has it on the CPU
  (the rows "as run"); malloc otherwise gives each large tensor back to the kernel
- `checkpoint`, `recompute`: `MODEL.RESNETS.CHECKPOINT_STAGES` with all stages, where `CHECKPOINT_KEEPS` is
  `inputs` or `convolutions`

Split-Attention of a stage is all between the norm and the sum, alone, on maps as ResNeSt-50 has them there,
of two splits with so many channels each. Beside it, `copy` copies as many bytes as it must move at least, so
that this ratio is the share of the copy bandwidth. Likewise `matmul` multiplies large matrices with as many
operations as the network has.
"""
#: Devices to the headings of their parts.
PARTS = {"cpu": "## On a CPU", "cuda": "## On a GPU"}
_PART = """{heading}

Measured on {date}, commit {commits}, on {machine}: torch {torch}, torchvision {torchvision}, Python {python},
`resnest` {released}, timm {timm}; {rounds} repetitions a side.

"""
_PROFILE = """
### Where the time goes

Operators of one repetition without those that they call, on a GPU kernels, slower for being profiled: the ten
that take most, and their share of all.
"""
_PIPELINE = """
### Loader and model

Images a second that the training loader gives, by number of worker processes, and that training takes, each
alone on this machine. The images are generated.

"""


def comparison_table(rows: Sequence[Comparison], measured: Mapping[Comparison, Result]) -> str:
    """Median times, the median of the ratios and their spread, memory; dashes where nothing is measured."""
    cells = [[c.title, _images(c), f"{c.ours} / {c.theirs}", *_figures(measured.get(c))] for c in rows]
    titles = (
        *("what", "images", "ours / theirs", "ours (s)", "theirs (s)", "times as fast"),
        "peak memory (MB)",
    )
    return tabulate(cells, titles, "github", disable_numparse=True) + "\n"


def _images(c: Comparison) -> str:
    maps = f", {c.channels} channels" if c.task.startswith("Split-Attention") else ""
    return f"{c.batch} x {c.size[0]}x{c.size[1]}{maps}, {c.precision}"


def _figures(result: Optional[Result]) -> List[str]:
    if result is None:
        return ["–"] * 4
    digits = 5 if result.comparison.task.startswith("Split-Attention") else 3
    return [
        *(f"{statistics.median(times):.{digits}f}" for times in (result.ours, result.theirs)),
        f"**{statistics.median(result.ratios):.2f}** ({min(result.ratios):.2f} to {max(result.ratios):.2f})",
        f"{result.our_memory:.0f} / {result.their_memory:.0f}",
    ]


def profile_table(result: Result, operators: int = 10) -> str:
    """Seconds and shares of the operators that take most, of both sides."""
    profiles = result.our_profile, result.their_profile
    totals = [sum(profile.values()) for profile in profiles]
    most = sorted(set().union(*profiles), key=lambda name: -max(p.get(name, 0) for p in profiles))
    rows = [["all", *(cell for total in totals for cell in (f"{total:.2f}", "100 %"))]]
    for name in most[:operators]:
        seconds = [profile.get(name, 0) for profile in profiles]
        cells = [(f"{s:.2f}", f"{100 * s / total:.0f} %") for s, total in zip(seconds, totals)]
        rows.append([f"`{_short(name)}`", *cells[0], *cells[1]])
    c = result.comparison
    titles = ("operator", f"{c.ours} (s)", "share", f"{c.theirs} (s)", "share")
    table = tabulate(rows, titles, "github", disable_numparse=True)
    return f"\n{c.title}, {_images(c)}:\n\n{table}\n"


def _short(name: str, characters: int = 80) -> str:
    """Kernels have names of hundreds of characters."""
    name = name.replace("|", "/").removeprefix("void ")
    return name if len(name) <= characters else name[: characters - 1] + "…"


def pipeline_table(pipelines: Sequence[Pipeline]) -> str:
    """Images a second of loader and model."""
    titles = (
        *("configuration", "images", "batch"),
        *(f"loader, {workers} workers" for workers in WORKERS),
        "training",
    )
    rows = []
    for p in pipelines:
        loaded = [p.loaded.get(str(workers)) for workers in WORKERS]
        cells = ["–" if images is None else f"{images:.0f}" for images in loaded]
        rows.append([p.config, p.images, p.batch, *cells, f"{p.trained:.2f}"])
    return tabulate(rows, titles, "github", disable_numparse=True) + "\n"


def facts_of(device: str) -> Dict[str, Any]:
    """The date, the machine and the versions that a measurement here depends on."""
    here = environment(torch.device(device))
    return {
        "date": here["date"][:10],
        "machine": here["gpu"] if device == "cuda" else f"{processor()}, {torch.get_num_threads()} threads",
        "torch": torch.__version__,
        "python": platform.python_version(),
        "torchvision": here["versions"]["torchvision"],
        "released": _version("resnest"),
        "timm": _version("timm"),
    }


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "–"


def part(
    rows: Sequence[Comparison],
    measured: Mapping[Comparison, Result],
    pipelines: Sequence[Pipeline],
    device: str,
    facts: Mapping[str, Any],
) -> str:
    """What was measured on one machine.

    Args:
        facts: of :func:`facts_of`, on the machine that measured.
    """
    results = [measured[row] for row in rows if row in measured]
    profiles = [profile_table(result) for result in results if result.our_profile]
    commits = sorted({(result.commit or "–")[:8] for result in results})
    rounds = sorted({len(result.ours) for result in results})
    head = f"{PARTS[device]}\n\nNot measured.\n\n"
    if results:
        facts = {**facts, "commits": ", ".join(commits), "rounds": " or ".join(map(str, rounds))}
        head = _PART.format(heading=PARTS[device], **facts)
    return "".join(
        [
            head,
            comparison_table(rows, measured),
            *([_PROFILE, *profiles] if profiles else []),
            *([_PIPELINE, pipeline_table(pipelines)] if pipelines else []),
        ]
    )


def page_before(file: Path) -> str:
    """What is in the file of the page, nothing where there is none.

    Raises:
        UserError: it cannot be read or written, or holds something else, which would be lost.
    """
    text = read_text(file, "--page") if check_writable(file).exists() else ""
    if text.strip() and not text.startswith(_HEAD.splitlines()[0]):
        raise UserError(f"--page {file} is no page of benchmarks, and would be lost; name another file")
    return text


def page(text: str, device: str, new: str) -> str:
    """The page with one part replaced, that of the other kind of machine as it was.

    Args:
        text: the page that there is, or nothing.
        new: of :func:`part`.
    """
    parts = {**{d: part(comparisons(d), {}, [], d, {}) for d in PARTS}, **_parts_of(text), device: new}
    return "\n".join([_HEAD, *(parts[d].rstrip() + "\n" for d in PARTS)])


def _parts_of(text: str) -> Dict[str, str]:
    by_heading = {heading: device for device, heading in PARTS.items()}
    heading = "|".join(map(re.escape, by_heading))
    pieces = re.split(f"^({heading})$", text, flags=re.M)
    return {by_heading[h]: h + body for h, body in zip(pieces[1::2], pieces[2::2])}
