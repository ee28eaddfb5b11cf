"""Kill, starve and feed rubbish to training, and print what came of it.

python -m robust [--kills 40] [--iterations 800] [--only "Full disk"]     (in tests/; `make robust` does it)

Sections that use one processor are run together, one more than there are processors, since they also wait.
"""

from __future__ import annotations

import argparse
import os
import platform
import signal
import statistics
import sys
import tempfile
import time
import traceback
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, Callable, Dict, List, Tuple

import torch
from tabulate import tabulate

from . import corpus, fuzz, kills, soak, tiny

#: What a section has to tell, and its bad outcomes.
Told = Tuple[str, List[Any]]
Say = Callable[[str], None]


def bad_input(folder: Path, args: argparse.Namespace, say: Say) -> Told:
    outcomes = corpus.run_corpus(folder, args.seed, report=say)
    columns = ("kind", "cases", "refused", "handled", "bad")
    return tabulate(corpus.table(outcomes), columns, "github"), [o for o in outcomes if not o.good]


def damaged_weights(folder: Path, args: argparse.Namespace, say: Say) -> Told:
    fuzzed = fuzz.fuzz(folder, args.files, args.seed, say)
    table = tabulate(sorted(fuzzed.outcomes.items()), ("outcome", "files"), "github")
    return f"{table}\n{args.files} files in {fuzzed.seconds:.0f} s", fuzzed.bad


def soak_with_evaluations(folder: Path, args: argparse.Namespace, say: Say) -> Told:
    return _soaked(soak.soak(folder, args.iterations, report=say))


def soak_with_sizes(folder: Path, args: argparse.Namespace, say: Say) -> Told:
    return _soaked(soak.soak(folder, args.iterations * 3 // 10, *soak.SIZES, report=say))


def _soaked(run: soak.Soak) -> Told:
    lines = [
        f"{what}: {quarter:.0f}{unit} after a quarter, {end:.0f}{unit} at the end"
        for what, (quarter, end), unit in (
            ("resident memory", run.memory, " MB"),
            ("open files", run.files, ""),
            ("processes", run.processes, ""),
        )
    ]
    text = "\n".join([*lines, f"{run.iterations} iterations, 20 checkpoints, {run.seconds:.0f} s"])
    return text, [run] * (run.memory[1] > run.memory[0] * 1.05 or run.files[1] > run.files[0] + 2)


def sigkill(folder: Path, args: argparse.Namespace, say: Say) -> Told:
    return _killed(kills.kill_until(folder, args.kills, args.seed, say))


def sigkill_segmentation(folder: Path, args: argparse.Namespace, say: Say) -> Told:
    return _killed(kills.kill_until(folder, args.kills // 10, args.seed, say, tiny.make_masks))


def _killed(killed: kills.Kills) -> Told:
    text = (
        f"{killed.kills} kills, {killed.while_writing} of them while a checkpoint was written; "
        f"{killed.equal} of {killed.runs} runs ended with the weights of one that was not killed"
    )
    return text, [killed] * (killed.equal < killed.runs)


def stops(folder: Path, args: argparse.Namespace, say: Say) -> Told:
    """SIGTERM of a detector's training, and SIGINT of a segmentation network's."""
    outcomes = []
    for number, make in ((signal.SIGTERM, tiny.make_data), (signal.SIGINT, tiny.make_masks)):
        place = folder / str(number)
        place.mkdir()
        outcomes += kills.stop_and_go_on(place, [number] * args.stops, args.seed, say, make)
    rows = [[signal.Signals(s.signal).name, s.status, s.seconds, s.equal] for s in outcomes]
    columns = ("signal", "status", "seconds to the end", "weights equal after --resume")
    return (
        tabulate(rows, columns, "github", floatfmt=".1f"),
        [s for s in outcomes if s.status != 128 + s.signal or not s.equal],
    )


def stops_of_two(folder: Path, args: argparse.Namespace, say: Say) -> Told:
    outcomes, equal = kills.stop_processes(folder, [*kills.WAYS][:: args.every], args.seed, say)
    columns = ("way", "status", "iterations lost", "processes left", "seconds to the end")
    weights = f"weights in the end {'equal' if equal else 'NOT equal'} to those of a run that was not stopped"
    bad = [s for s in outcomes if s.lost or s.left] + [outcomes] * (not equal)
    return f"{tabulate(outcomes, columns, 'github', floatfmt='.1f')}\n{weights}", bad


def stops_of_evaluations(folder: Path, args: argparse.Namespace, say: Say) -> Told:
    outcomes = kills.stop_evaluations(folder, [*kills.EVALUATION_WAYS][:: args.every], args.seed, say)
    columns = ("way", "status", "processes left", "seconds to the end")
    rows = [outcome[:4] for outcome in outcomes]
    return tabulate(rows, columns, "github", floatfmt=".1f"), [s for s in outcomes if s.wrong]


def ctrl_c(folder: Path, args: argparse.Namespace, say: Say) -> Told:
    outcomes = soak.ctrl_c(folder, args.ctrl_c, args.seed, say)
    seconds = [s.seconds for s in outcomes]
    text = (
        f"{len(outcomes)} runs with loader workers; gone after {statistics.median(seconds):.1f} s (median), "
        f"{max(seconds):.1f} s (at most); processes left behind: {sum(s.left for s in outcomes)}\n"
        f"statuses: {', '.join(str(s.status) for s in outcomes)}"
    )
    return text, [s for s in outcomes if s.left]


def full_disk(folder: Path, args: argparse.Namespace, say: Say) -> Told:
    disk = soak.full_disk(folder)
    if not disk:
        return "not run: no right to mount a tmpfs", []
    good = disk["undamaged"] and disk["equal"] and disk["status"] == 2
    return "\n".join(f"{key}: {value}" for key, value in disk.items()), [disk] * (not good)


#: Sections that use all processors.
ALONE: Dict[str, Callable[..., Told]] = {"Bad input": bad_input, "Damaged weight files": damaged_weights}
#: Sections that use one, or now and then two, the longest first.
TOGETHER: Dict[str, Callable[..., Told]] = {
    "Signals to two processes": stops_of_two,
    "Soak": soak_with_evaluations,
    "SIGKILL": sigkill,
    "Signals to two processes that evaluate": stops_of_evaluations,
    "Soak with images of a hundred sizes": soak_with_sizes,
    "Ctrl-C": ctrl_c,
    "SIGKILL of semantic segmentation": sigkill_segmentation,
    "SIGTERM and SIGINT": stops,
    "Full disk": full_disk,
}


def main(args: argparse.Namespace) -> int:
    start, bad = time.time(), []
    print(
        f"torch {torch.__version__}, Python {platform.python_version()}, {platform.machine()}, seed {args.seed}"
    )

    def say(title: str, text: str) -> None:
        print(f"{(time.time() - start) / 60:4.1f} min  {title}: {text}", flush=True)

    def run(title: str) -> str:
        begin, folder = time.time(), Path(name, title)
        folder.mkdir()
        try:
            text, wrong = {**ALONE, **TOGETHER}[title](folder, args, partial(say, title))
        except Exception:
            text, wrong = traceback.format_exc(), [f"{title}: it broke off"]
        bad.extend(wrong)
        say(title, f"{len(wrong)} bad outcomes, {time.time() - begin:.0f} s")
        return f"\n# {title}\n{text}"

    alone, together = ([t for t in group if t in (args.only or group)] for group in (ALONE, TOGETHER))
    with tempfile.TemporaryDirectory() as name, ThreadPoolExecutor(1 + (os.cpu_count() or 1)) as pool:
        for text in map(run, alone):
            print(text, flush=True)
        for text in pool.map(run, together):
            print(text, flush=True)
    print(
        f"\n{f'{len(bad)} bad outcomes' if bad else 'all as it should be'}, {(time.time() - start) / 60:.1f} min"
    )
    for outcome in bad:
        print(outcome)
    return bool(bad)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--files", type=int, default=20_000, help="damaged files of weights")
    parser.add_argument("--kills", type=int, default=40)
    parser.add_argument("--stops", type=int, default=1, help="of each signal")
    parser.add_argument("--ctrl-c", type=int, default=4)
    parser.add_argument("--every", type=int, default=2, help="1 for all ways to stop two processes")
    parser.add_argument("--iterations", type=int, default=500, help="of the soak")
    sections = [*ALONE, *TOGETHER]
    parser.add_argument("--only", action="append", choices=sections, metavar="TITLE", help="of a section")
    sys.exit(main(parser.parse_args()))
