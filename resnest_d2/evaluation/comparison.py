"""Compare groups of runs by one metric: several seeds each of some recipes, for example."""

from __future__ import annotations

import os
import statistics
from pathlib import Path
from typing import Dict, List, NamedTuple, Optional, Sequence, Tuple

from detectron2.evaluation.testing import flatten_results_dict

from ..errors import UserError, nearest, needs
from ..files import atomic_write_text, check_writable
from .labels import cell
from .results import SHOWN, is_number, read_results


class Group(NamedTuple):
    """Runs that differ by chance only.

    Attributes:
        name: what they have in common.
        values: the metric of each run.
        seconds: the duration of each run, where it is known.
    """

    name: str
    values: List[float]
    seconds: List[float]


def read_groups(
    groups: Sequence[Tuple[str, Sequence[Path]]], metric: Optional[str] = None
) -> Tuple[str, List[Group]]:
    """Read the results of runs.

    Args:
        groups: names of groups with the folders of their runs, each with a ``results.json``.
        metric: task and metric, such as ``bbox/AP``; None for the main one of the first run.

    Returns:
        The metric, and the groups.

    Raises:
        UserError: a run has no results or lacks the metric, or two groups have one name.
    """
    read: List[Group] = []
    for name, folders in groups:
        if name in [group.name for group in read]:
            raise UserError(f"--group {name!r} is given twice; name all folders of a group together")
        if len({*map(os.path.realpath, folders)}) < len(folders):
            raise UserError(f"--group {name!r} has a folder twice; name each once")
        if not folders:
            raise UserError(f"--group {name!r} has no folders; name the OUTPUT_DIRs of its runs")
        values, seconds = [], []
        for folder in folders:
            content = read_results(folder / "results.json")
            metrics = flatten_results_dict(content["results"])
            numbers = {name: value for name, value in metrics.items() if is_number(value)}
            metric = metric or _main_metric(folder, numbers)
            if metric not in numbers or "error" in content:
                what = f"no {metric!r}; {nearest(metric, numbers)}" if metric not in numbers else "a failure"
                raise UserError(f"{folder}: results.json has {what}")
            values.append(numbers[metric])
            seconds += [content["wall_seconds"]] if content["wall_seconds"] is not None else []
        read.append(Group(name, values, seconds))
    if not metric:
        raise UserError("there are no groups; name one with --group")
    return metric, read


def _main_metric(folder: Path, numbers: Dict[str, float]) -> str:
    for task, metrics in SHOWN.items():
        for key in numbers:
            if f"/{key}".endswith(f"/{task}/{metrics[0]}"):
                return key
    raise UserError(f"{folder}: results.json has no evaluation; finish the run, or name others")


def table(metric: str, groups: Sequence[Group]) -> str:
    """Return the groups as a Markdown table: the metric's mean and range, and the mean duration."""
    lines = [f"| runs | number | {metric} | lowest | highest | minutes |", "|---|---|---|---|---|---|"]
    for name, values, seconds in groups:
        minutes = f"{statistics.mean(seconds) / 60:.1f}" if seconds else "–"
        figures = " | ".join(f"{value:.2f}" for value in (statistics.mean(values), min(values), max(values)))
        lines.append(f"| {cell(name)} | {len(values)} | {figures} | {minutes} |")
    return "\n".join(lines)


def draw(metric: str, groups: Sequence[Group], file: Path) -> None:
    """Write a picture of every run and of the groups' means, as SVG.

    Raises:
        UserError: the file cannot be written or is not named ``.svg``, or matplotlib is missing.
    """
    if file.suffix.lower() != ".svg":
        raise UserError(f"--picture {file} must be an SVG image; name it {file.with_suffix('.svg')}")
    check_writable(file)
    with needs("matplotlib", "a picture"):
        from .report import charts
    atomic_write_text(file, charts.groups({group.name: group.values for group in groups}, metric))
