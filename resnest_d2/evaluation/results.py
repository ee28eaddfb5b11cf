"""Read ``results.json``, the record of a run and its measurements."""

from __future__ import annotations

import json
import reprlib
import shlex
from pathlib import Path
from typing import Any, Dict, List, Mapping

import numpy as np

from ..errors import UserError
from ..files import atomic_write_text, read_json

#: Metrics of each task that are shown in tables.
SHOWN = {
    "bbox": ("AP",),
    "segm": ("AP",),
    "panoptic_seg": ("PQ",),
    "sem_seg": ("mIoU", "pACC"),
    "sem_seg_TTA": ("mIoU", "pACC"),
    "classification": ("top1",),
}
#: Numbers larger than this cannot be measurements.
LARGEST = 1e15


def is_number(value: object) -> bool:
    """Whether a value is a finite number up to :data:`LARGEST`, and not a bool."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and -LARGEST <= value <= LARGEST


def refuse(file: object, where: str, rule: str, value: object) -> UserError:
    """Make the error for a file's entry that breaks a rule."""
    return UserError(f"{file}: {where} {rule}, got {reprlib.repr(value)}")


def write_counts(file: Path, results: Mapping[str, float], confusion: np.ndarray, **rest: Any) -> None:
    """Write the file of an evaluation that counts true and predicted classes, from which the report is made.

    Args:
        results: metrics by name; NaN for undefined ones, which JSON lacks.
        confusion: (classes, classes) counts by true and predicted class.
        rest: what else belongs to the evaluation.
    """
    shown = {name: None if np.isnan(value) else value for name, value in results.items()}
    file.parent.mkdir(parents=True, exist_ok=True)
    atomic_write_text(file, json.dumps({**rest, "results": shown, "confusion": confusion.tolist()}, indent=1))


def read_results(file: Path) -> Dict[str, Any]:
    """Read a ``results.json``; missing fields that this package uses are set to None or empty.

    Raises:
        UserError: the file cannot be read, or does not have the results of a run.
    """
    content = read_json(file)
    if not isinstance(content, dict) or "results" not in content:
        raise UserError(f"{file} is not a results.json of this package: it has no results")
    _check_metrics(file, content["results"])
    for name in ("command", "date", "commit", "gpu"):
        if not isinstance(content.setdefault(name, None), (str, type(None))):
            raise refuse(file, name, "must be a string or null", content[name])
    for name in ("wall_seconds", "seconds_per_iteration", "peak_gpu_memory_mb"):
        if not is_number(content.setdefault(name, None)) and content[name] is not None:
            raise refuse(file, name, "must be a finite number or null", content[name])
    try:
        shlex.split(content["command"] or "")
    except ValueError as e:
        raise refuse(file, "command", f"must be a command line ({e})", content["command"]) from None
    versions = content.setdefault("versions", {})
    if not isinstance(versions, dict) or not all(isinstance(v, (str, type(None))) for v in versions.values()):
        raise refuse(file, "versions", "must be strings by name", versions)
    _check_datasets(file, content.setdefault("datasets", []))
    return content


def _check_metrics(file: Path, results: Any) -> None:
    """Check the metrics that are shown; others are up to the evaluator."""
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
