"""The file of measurements, which grows row by row so that an interrupted run goes on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Dict, Optional

from ..errors import UserError
from ..files import atomic_write_text
from . import Comparison, Result
from .pipeline import Pipeline

#: Facts that must be the same for all rows of a file, or they could not stand side by side.
_FIXED = ("machine", "torch")


class Store:
    """What has been measured on one machine.

    Args:
        file: JSON, read if there is one and written after each measurement; None keeps nothing.
        facts: of :func:`.page.facts_of`.

    Raises:
        UserError: the file is of another machine or version of PyTorch.
    """

    def __init__(self, file: Optional[Path], facts: Dict[str, Any]) -> None:
        try:
            known = json.loads(file.read_text()) if file and file.exists() else {}
        except ValueError:
            raise UserError(f"--json {file} holds no measurements; name another file") from None
        before = known.get("facts", {}) if known else facts
        for fact in _FIXED:
            if before.get(fact) != facts[fact]:
                raise UserError(
                    f"--json {file} was measured with {fact} {before.get(fact)}, and this is {facts[fact]}; "
                    "name another file"
                )
        self._file, self.facts = file, facts
        self.results: Dict[Comparison, Result] = {
            result.comparison: result for result in map(Result.of, known.get("results", []))
        }
        self.pipelines: Dict[str, Pipeline] = {
            values["config"]: Pipeline(**values) for values in known.get("pipelines", [])
        }

    def add(self, measured: Result | Pipeline) -> None:
        """Keep a row, in place of the same one of before."""
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
