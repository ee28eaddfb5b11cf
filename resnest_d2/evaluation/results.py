"""``results.json``, read back: what a run was and what it measured."""

from __future__ import annotations

import reprlib
import shlex
from pathlib import Path
from typing import Any, Dict, List

from ..errors import UserError
from ..files import read_json

#: Metrics of each task that tables show.
SHOWN = {"bbox": ("AP",), "segm": ("AP",), "panoptic_seg": ("PQ",)}
#: Numbers beyond this, or not finite, are none that anybody measured.
LARGEST = 1e15


def is_number(value: object) -> bool:
    """Whether that is a number in JSON, finite and not absurd; a bool is none."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and -LARGEST <= value <= LARGEST


def refuse(file: object, where: str, rule: str, value: object) -> UserError:
    """The error of an entry of a file that breaks a rule."""
    return UserError(f"{file}: {where} {rule}, got {reprlib.repr(value)}")


def read_results(file: Path) -> Dict[str, Any]:
    """The content of a ``results.json``; fields that this package uses are there, if only as None or empty.

    Raises:
        UserError: it cannot be read, or is not the results of a run.
    """
    content = read_json(file)
    if not isinstance(content, dict) or "results" not in content:
        raise UserError(f"{file} is no results.json of this package: it holds no results")
    _check_metrics(file, content["results"])
    for name in ("command", "date", "commit", "gpu"):
        if not isinstance(content.setdefault(name, None), (str, type(None))):
            raise refuse(file, name, "must be a text or null", content[name])
    for name in ("wall_seconds", "seconds_per_iteration", "peak_gpu_memory_mb"):
        if not is_number(content.setdefault(name, None)) and content[name] is not None:
            raise refuse(file, name, "must be a finite number or null", content[name])
    try:
        shlex.split(content["command"] or "")
    except ValueError as e:
        raise refuse(file, "command", f"must be a command line ({e})", content["command"]) from None
    versions = content.setdefault("versions", {})
    if not isinstance(versions, dict) or not all(isinstance(v, (str, type(None))) for v in versions.values()):
        raise refuse(file, "versions", "must be texts by name", versions)
    _check_datasets(file, content.setdefault("datasets", []))
    return content


def _check_metrics(file: Path, results: Any) -> None:
    """Those that are shown; others are the evaluator's own."""
    if not isinstance(results, dict):
        raise refuse(file, "results", "must be metrics by task", results)
    for task, names in SHOWN.items():
        metrics = results.get(task, {})
        if not isinstance(metrics, dict):
            raise refuse(file, f"results: {task}", "must be metrics by name", metrics)
        for name in names:
            if metrics.get(name) is not None and not is_number(metrics[name]):
                raise refuse(
                    file, f"results: {task}: {name}", "must be a finite number or null", metrics[name]
                )


def _check_datasets(file: Path, datasets: List[Any]) -> None:
    if not isinstance(datasets, list):
        raise refuse(file, "datasets", "must be a list", datasets)
    for i, dataset in enumerate(datasets):
        if not isinstance(dataset, dict) or not isinstance(dataset.get("name"), str):
            raise refuse(file, f"datasets[{i}]", "must be an object with a name", dataset)
        for key in ("json_file", "image_root"):
            if not isinstance(dataset.setdefault(key, None), (str, type(None))):
                raise refuse(file, f"datasets[{i}]: {key}", "must be a path or null", dataset[key])
