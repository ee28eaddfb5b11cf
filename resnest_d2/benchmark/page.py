"""Tables of the measurements, and ``docs/BENCHMARKS.md``, with a part for each kind of machine."""

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

Each part was written by `python tools/benchmark.py --page docs/BENCHMARKS.md` on that kind of machine;
`make gpu` also writes the GPU part. Times of exported files are on [their own page](deploy.md#speed).

"ours" is this package, "released" the plugin in `resnest`, "timm" its `features_only` network, and "resnet"
detectron2's ResNet-50. Each side has its own process; they run in turn on the same random images, ours and
the released one with the same weights. Times are medians over repetitions; ratios compare neighbouring
repetitions, their time divided by ours. Memory is the process's peak (resident, or CUDA's allocator),
including libraries. A dash means not measured. Options follow the plus signs:

- `fold`: `resnest_d2.optimize_for_inference`, norms folded, maps channels-last; `half` and `compile` are its
  options; without `fold`, `compile` is `torch.compile(dynamic=True)` of the plain PyTorch reference
- `channels_last`: `MODEL.MEMORY_FORMAT`, the default on the CPU
- `keep_memory`: the process keeps the memory that tensors free, as `tools/train_net.py` does on the CPU (the
  rows "as run"); otherwise malloc returns each large tensor to the kernel
- `checkpoint`, `recompute`: `MODEL.RESNETS.CHECKPOINT_STAGES` with all stages and `CHECKPOINT_KEEPS` set to
  `inputs` or `convolutions`

Split-Attention of a stage is everything between the norm and the sum, run alone on maps of the size that
ResNeSt-50 has there, with two splits of the given number of channels. `copy` copies the fewest bytes that
Split-Attention must move, so that the ratio is its share of the copy bandwidth. Likewise, `matmul` multiplies
large matrices with as many operations as the network has.
"""
#: Heading of each device's part.
PARTS = {"cpu": "## On a CPU", "cuda": "## On a GPU"}
_PART = """{heading}

Measured on {date}, commit {commits}, on {machine}: torch {torch}, torchvision {torchvision}, Python {python},
`resnest` {released}, timm {timm}; {rounds} repetitions per side.

"""
_PROFILE = """
### Where the time goes

Operators (on a GPU, kernels) of one repetition, excluding the operators they call; profiling slows them down.
The ten that take longest, and their share of the total.
"""
_PIPELINE = """
### Loader and model

Images per second delivered by the training loader, by number of worker processes, and used by training, each
measured alone. The images are generated.

"""


def comparison_table(rows: Sequence[Comparison], measured: Mapping[Comparison, Result]) -> str:
    """Median times, the median of the ratios and their range, memory; dashes where nothing was measured."""
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
    """Seconds and shares of the operators that take longest, on both sides."""
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
    """Shorten the names of kernels, which have hundreds of characters."""
    name = name.replace("|", "/").removeprefix("void ")
    return name if len(name) <= characters else name[: characters - 1] + "…"


def pipeline_table(pipelines: Sequence[Pipeline]) -> str:
    """Images per second of the loader and the model."""
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
    """Return the date, the machine and the versions that a measurement here depends on."""
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
    """The measurements of one machine.

    Args:
        facts: from :func:`facts_of`, on the machine that measured.
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
    """The current text of the page's file; empty if there is none.

    Raises:
        UserError: the file cannot be read or written, or holds something else, which would be lost.
    """
    text = read_text(file, "--page") if check_writable(file).exists() else ""
    if text.strip() and not text.startswith(_HEAD.splitlines()[0]):
        raise UserError(f"--page {file} is not a benchmarks page and would be lost; name another file")
    return text


def page(text: str, device: str, new: str) -> str:
    """The page with one part replaced; the other kind of machine's part stays as it was.

    Args:
        text: the current page, or empty.
        new: from :func:`part`.
    """
    parts = {**{d: part(comparisons(d), {}, [], d, {}) for d in PARTS}, **_parts_of(text), device: new}
    return "\n".join([_HEAD, *(parts[d].rstrip() + "\n" for d in PARTS)])


def _parts_of(text: str) -> Dict[str, str]:
    by_heading = {heading: device for device, heading in PARTS.items()}
    heading = "|".join(map(re.escape, by_heading))
    pieces = re.split(f"^({heading})$", text, flags=re.M)
    return {by_heading[h]: h + body for h, body in zip(pieces[1::2], pieces[2::2])}
