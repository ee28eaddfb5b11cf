"""The file of measurements, which grows row by row so that an interrupted run can continue."""

from __future__ import annotations

import json
import reprlib
from pathlib import Path
from typing import Any, Dict, Optional

from ..errors import UserError
from ..evaluation.labels import label
from ..evaluation.results import is_number
from ..files import atomic_write_text, check_writable, read_json
from . import Comparison, Result
from .pipeline import Pipeline

#: Facts that must be the same for all rows of a file, or the rows could not be compared.
_FIXED = ("machine", "torch")


class Store:
    """The measurements of one machine.

    Args:
        file: JSON, read if it exists and written after each measurement; None keeps nothing.
        facts: from :func:`.page.facts_of`.

    Raises:
        UserError: the file is from another machine or version of PyTorch, holds something other than
            measurements, or cannot be written.
    """

    def __init__(self, file: Optional[Path], facts: Dict[str, Any]) -> None:
        exists = file and check_writable(file, "make room, or name another --json").exists()
        known = _read(file) if exists else {}
        before = known.get("facts", {}) if known else facts
        for fact in _FIXED:
            if before.get(fact) != facts[fact]:
                raise UserError(
                    f"--json {file} was measured with {fact} {label(before.get(fact))}, and this is "
                    f"{facts[fact]}; name another file"
                )
        self._file, self.facts = file, facts
        self.results: Dict[Comparison, Result] = {r.comparison: r for r in known.get("results", [])}
        self.pipelines: Dict[str, Pipeline] = {p.config: p for p in known.get("pipelines", [])}

    def add(self, measured: Result | Pipeline) -> None:
        """Keep a row, replacing its earlier measurement."""
        if isinstance(measured, Result):
            self.results[measured.comparison] = measured
        else:
            self.pipelines[measured.config] = measured
        if self._file:
            content = {
                "facts": self.facts,
                "results": [result._asdict() for result in self.results.values()],
                "pipelines": [pipeline._asdict() for pipeline in self.pipelines.values()],
            }
            atomic_write_text(self._file, json.dumps(content))


def _read(file: Path) -> Dict[str, Any]:
    """Read facts, results and pipelines from a file.

    Raises:
        UserError: the file holds something else.
    """
    content = read_json(file, "--json")
    try:
        return {
            "facts": dict(content["facts"].items()),
            "results": [_result(entry) for entry in content["results"]],
            "pipelines": [_pipeline(entry) for entry in content["pipelines"]],
        }
    except (AttributeError, KeyError, TypeError, ValueError) as e:
        reason = label(f"{type(e).__name__}: {e}", 200)
        raise UserError(f"--json {file} holds no measurements ({reason}); name another file") from None


def _result(entry: Dict[str, Any]) -> Result:
    result = Result.of(entry)
    c, sides = result.comparison, (result.ours, result.theirs)
    _check(_are_texts(c.title, c.task, c.config, c.ours, c.theirs, c.precision, c.memory_format), c)
    _check(isinstance(c.profile, bool) and len(c.size) == 2, c)
    _check(all(map(is_number, (*c.size, c.batch, c.channels))), c)
    _check(len(result.ours) == len(result.theirs) > 0, sides)
    _check(all(is_number(seconds) and seconds > 0 for side in sides for seconds in side), sides)
    profiles = (result.our_profile, result.their_profile)
    _check(bool(profiles[0]) == bool(profiles[1]), profiles)
    for profile in filter(None, profiles):
        _check(all(map(is_number, profile.values())) and sum(profile.values()) > 0, profile)
    _check(is_number(result.our_memory) and is_number(result.their_memory), entry)
    _check(result.commit is None or isinstance(result.commit, str), result.commit)
    return result


def _pipeline(entry: Dict[str, Any]) -> Pipeline:
    pipeline = Pipeline(**entry)
    _check(_are_texts(pipeline.config, pipeline.images), pipeline)
    _check(all(map(is_number, (*pipeline.loaded.values(), pipeline.trained, pipeline.batch))), pipeline)
    return pipeline


def _are_texts(*values: object) -> bool:
    return all(isinstance(value, str) for value in values)


def _check(good: bool, value: object) -> None:
    if not good:
        raise ValueError(reprlib.repr(value))
