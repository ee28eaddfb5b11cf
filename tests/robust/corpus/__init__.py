"""Bad input by the hundred: each is refused in one line with status 2, or handled, and never anything else.

Each case is a function of a folder and a random generator that writes files and returns the arguments of a
tool. Cases run in forked copies of a process that has everything imported.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import time
from multiprocessing.connection import wait
from pathlib import Path
from typing import Callable, Dict, List, NamedTuple, Optional, Sequence

import forks
import numpy as np
from support import ROOT

from .. import tiny
from .annotations import ANNOTATIONS
from .case import Case
from .commands import COMMANDS
from .config import CONFIG
from .folders import FOLDERS
from .images import IMAGES
from .masks import MASKS
from .reports import REPORTS
from .runs import RUNS
from .weights import WEIGHTS

_SECONDS = 90  # after which a case counts as hung

#: Kind of input to name of the case to (folder, generator) -> what to run, and what must come of it.
CASES: Dict[str, Dict[str, Callable]] = {
    "images": IMAGES,
    "annotations": ANNOTATIONS,
    "masks": MASKS,
    "folders": FOLDERS,
    "configuration": CONFIG,
    "weights": WEIGHTS,
    "runs": RUNS,
    "commands": COMMANDS,
    "reports": REPORTS,
}


class Outcome(NamedTuple):
    """What came of a case.

    Attributes:
        kind, name: of the case.
        result: ``refused``, ``works``, or what is wrong.
        good: it was refused or worked, as the case asks.
        said: the line.
    """

    kind: str
    name: str
    result: str
    good: bool
    said: str


class _Running(NamedTuple):
    """A case on its way."""

    kind: str
    name: str
    case: Case
    process: forks.Process
    log: Path
    end: float


def run_case(kind: str, name: str, folder: Path, seed: int) -> Outcome:
    """Run one case in a process of its own."""
    return _finish(_start(kind, name, folder, seed))


def _start(kind: str, name: str, folder: Path, seed: int) -> _Running:
    if folder.exists():
        shutil.rmtree(folder)
    folder.mkdir(parents=True)
    case = CASES[kind][name](folder, np.random.default_rng([seed, sum(map(ord, kind + name))]))
    tool, *words = case.words
    log = folder / "log.txt"
    environment = {**tiny.environment(), **case.environment}
    process = forks.start([ROOT / "tools" / tool, *words], log, cwd=folder, environment=environment)
    return _Running(kind, name, case, process, log, time.monotonic() + _SECONDS)


def _finish(running: _Running) -> Outcome:
    """Wait for it, as long as a case may take."""
    kind, name, case, process, log, end = running
    status: Optional[int] = None
    try:
        status = process.wait(max(0, end - time.monotonic()))
    except subprocess.TimeoutExpired:
        process.kill()
    return _judge(kind, name, case, status, log.read_text(errors="replace"))


def _judge(kind: str, name: str, case: Case, status: Optional[int], log: str) -> Outcome:
    lines = re.findall(r"^error: (.+)$", log, re.M)
    said = lines[0] if lines else ""
    if status is None:
        return Outcome(kind, name, "hung", False, log[-300:])
    if "Traceback (most recent call last)" in log:
        return Outcome(kind, name, "traceback", False, log[log.rindex("Traceback (most recent") :][-600:])
    if status == 2 and len(lines) == 1:
        fits = case.refused is not None and all(text in said for text in case.refused)
        if kind != "configuration":  # whose fault only detectron2 may know; a file's is to be found
            fits = fits and "traceback in" not in said
        return Outcome(kind, name, "refused", fits, said)
    if status == 0 and not lines:
        wrong = case.check() if case.check and case.works else None
        return Outcome(kind, name, wrong or "works", case.works and not wrong, "")
    if case.statuses and status in case.statuses:
        wrong = case.check() if case.check else None
        return Outcome(kind, name, wrong or "reported", not wrong, log.strip().splitlines()[-1])
    return Outcome(kind, name, f"status {status}", False, log[-600:])


def run_corpus(
    folder: Path, seed: int, every: int = 1, report: Callable[[str], None] = print
) -> List[Outcome]:
    """Run every ``every``-th case of each kind, at a time one more than there are processors: one may start."""
    chosen = [(kind, name) for kind, cases in CASES.items() for name in list(cases)[::every]]
    left, running = list(chosen), []
    outcomes: Dict[tuple, Outcome] = {}
    while left or running:
        while left and len(running) <= os.cpu_count():
            kind, name = left.pop(0)
            # Names of several cases may differ in punctuation alone.
            plain = re.sub(r"\W+", "_", name)[:80]
            place = folder / kind / f"{len(left)}_{plain}"
            running.append(_start(kind, name, place, seed))
        wait([r.process.sentinel for r in running], min(r.end for r in running) - time.monotonic())
        for case in [r for r in running if r.process.poll() is not None or time.monotonic() > r.end]:
            running.remove(case)
            outcome = outcomes[case.kind, case.name] = _finish(case)
            if not outcome.good:
                report(f"{case.kind}: {case.name}: {outcome.result}: {outcome.said}")
            if len(outcomes) % 100 == 0:
                report(f"{len(outcomes)} of {len(chosen)} cases")
    return [outcomes[key] for key in chosen]


def table(outcomes: Sequence[Outcome]) -> List[List[object]]:
    """Rows of kind, cases, refused, handled, and the number of bad outcomes."""
    rows = []
    for kind in CASES:
        of_kind = [o for o in outcomes if o.kind == kind]
        refused = sum(o.good and o.result == "refused" for o in of_kind)
        handled = sum(o.good and o.result != "refused" for o in of_kind)
        rows.append([kind, len(of_kind), refused, handled, sum(not o.good for o in of_kind)])
    return rows
