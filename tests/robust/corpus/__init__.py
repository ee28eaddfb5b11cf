"""Bad input by the hundred: each is refused in one line with status 2, or handled, and never anything else.

Each case is a function of a folder and a random generator that writes files and returns the arguments of a
tool. Cases run in processes forked from this one, which has everything imported.
"""

from __future__ import annotations

import os
import re
import runpy
import shutil
import signal
import sys
import time
from pathlib import Path
from typing import Callable, Dict, List, NamedTuple, Optional, Sequence

import numpy as np
import torch
from conftest import ROOT

from .annotations import ANNOTATIONS
from .case import Case
from .commands import COMMANDS
from .config import CONFIG
from .images import IMAGES
from .reports import REPORTS
from .runs import RUNS
from .weights import WEIGHTS

_SECONDS = 90  # after which a case counts as hung

#: Kind of input to name of the case to (folder, generator) -> what to run, and what must come of it.
CASES: Dict[str, Dict[str, Callable]] = {
    "images": IMAGES,
    "annotations": ANNOTATIONS,
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


def run_case(kind: str, name: str, folder: Path, seed: int) -> Outcome:
    """Run one case in a process of its own."""
    if folder.exists():
        shutil.rmtree(folder)
    folder.mkdir(parents=True)
    case = CASES[kind][name](folder, np.random.default_rng([seed, sum(map(ord, kind + name))]))
    tool, *words = [str(word) for word in case.words]
    log = folder / "log.txt"
    child = os.fork()
    if child == 0:
        os.setsid()
        with log.open("wb") as file:
            os.dup2(file.fileno(), 1)
            os.dup2(file.fileno(), 2)
        sys.stdout, sys.stderr = os.fdopen(1, "w"), os.fdopen(2, "w")  # whatever a test runner put there
        os.environ.update(case.environment)
        os.chdir(folder)
        status = 1
        try:
            sys.argv = [tool, *words]
            runpy.run_path(str(ROOT / "tools" / tool), run_name="__main__")
            status = 0
        except SystemExit as e:
            status = e.code if isinstance(e.code, int) else int(e.code is not None)
        except BaseException:
            import traceback

            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(status)
    status = _wait(child)
    return _judge(kind, name, case, status, log.read_text(errors="replace"))


def _wait(child: int) -> Optional[int]:
    end = time.time() + _SECONDS
    while time.time() < end:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.005)
    os.killpg(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return None


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
        return Outcome(kind, name, "reported", True, log.strip().splitlines()[-1])
    return Outcome(kind, name, f"status {status}", False, log[-600:])


def run_corpus(
    folder: Path, seed: int, every: int = 1, report: Callable[[str], None] = print
) -> List[Outcome]:
    """Run every ``every``-th case of each kind."""
    torch.set_num_threads(1)  # threads do not survive a fork
    outcomes = []
    for kind, cases in CASES.items():
        for name in list(cases)[::every]:
            outcomes.append(run_case(kind, name, folder / kind / re.sub(r"\W+", "_", name)[:80], seed))
            if not outcomes[-1].good:
                report(f"{kind}: {name}: {outcomes[-1].result}: {outcomes[-1].said}")
        report(f"{kind}: {sum(o.kind == kind for o in outcomes)} cases")
    return outcomes


def table(outcomes: Sequence[Outcome]) -> List[List[object]]:
    """Rows of kind, cases, refused, handled, and the number of bad outcomes."""
    rows = []
    for kind in CASES:
        of_kind = [o for o in outcomes if o.kind == kind]
        refused = sum(o.good and o.result == "refused" for o in of_kind)
        handled = sum(o.good and o.result != "refused" for o in of_kind)
        rows.append([kind, len(of_kind), refused, handled, sum(not o.good for o in of_kind)])
    return rows


def prepare() -> None:
    """Import what the tools import, so that forked processes need not."""
    import resnest_d2.data.panoptic
    import resnest_d2.engine
    import resnest_d2.evaluation.report  # noqa: F401
