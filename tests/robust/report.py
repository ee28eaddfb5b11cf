"""Kill, starve and feed rubbish to training, and print what came of it.

python -m robust.report [--kills 50] [--iterations 2000]     (in tests/; `make robust` does it)
"""

from __future__ import annotations

import argparse
import platform
import signal
import statistics
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
from tabulate import tabulate

from . import corpus, fuzz, kills, soak, tiny


def main(args: argparse.Namespace) -> int:
    start, bad = time.time(), []
    print(
        f"torch {torch.__version__}, Python {platform.python_version()}, {platform.machine()}, seed {args.seed}"
    )
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        _section("Bad input", start)
        outcomes = corpus.run_corpus(folder / "corpus", args.seed)
        print(tabulate(corpus.table(outcomes), ("kind", "cases", "refused", "handled", "bad"), "github"))
        bad += [o for o in outcomes if not o.good]

        _section("Damaged weight files", start)
        fuzzed = fuzz.fuzz(_new(folder, "fuzz"), args.files, args.seed)
        print(tabulate(sorted(fuzzed.outcomes.items()), ("outcome", "files"), "github"))
        print(f"{args.files} files in {fuzzed.seconds:.0f} s")
        bad += fuzzed.bad

        _section("SIGKILL", start)
        killed = kills.kill_until(_new(folder, "kills"), args.kills, args.seed, start=tiny.fork)
        print(
            f"{killed.kills} kills, {killed.while_writing} of them while a checkpoint was written; "
            f"{killed.equal} of {killed.runs} runs ended with the weights of one that was not killed"
        )
        bad += [killed] * (killed.equal < killed.runs)

        _section("SIGTERM and SIGINT", start)
        numbers = [signal.SIGTERM, signal.SIGINT] * args.stops
        stops = kills.stop_and_go_on(_new(folder, "stops"), numbers, args.seed, tiny.fork)
        rows = [[signal.Signals(s.signal).name, s.status, f"{s.seconds:.1f}", s.equal] for s in stops]
        print(
            tabulate(
                rows, ("signal", "status", "seconds to the end", "weights equal after --resume"), "github"
            )
        )
        bad += [s for s in stops if s.status != 128 + s.signal or not s.equal]

        _section("Signals to two processes", start)
        groups, equal = kills.stop_processes(_new(folder, "groups"), [*kills.WAYS], args.seed)
        columns = ("way", "status", "iterations lost", "processes left", "seconds to the end")
        print(tabulate(groups, columns, "github", floatfmt=".1f"))
        print(
            f"weights in the end {'equal' if equal else 'NOT equal'} to those of a run that was not stopped"
        )
        bad += [s for s in groups if s.lost or s.left] + [groups] * (not equal)

        _section("Full disk", start)
        disk = soak.full_disk(_new(folder, "disk"), tiny.fork)
        print(
            "\n".join(f"{key}: {value}" for key, value in disk.items())
            or "not run: no right to mount a tmpfs"
        )
        bad += [disk] * (bool(disk) and not (disk["undamaged"] and disk["equal"] and disk["status"] == 2))

        _section("Ctrl-C", start)
        stopped = soak.ctrl_c(_new(folder, "ctrl_c"), args.ctrl_c, args.seed)
        seconds = [s.seconds for s in stopped]
        print(
            f"{len(stopped)} runs with loader workers; gone after {statistics.median(seconds):.1f} s (median), "
            f"{max(seconds):.1f} s (at most); processes left behind: {sum(s.left for s in stopped)}"
        )
        bad += [s for s in stopped if s.left]

        _section("Soak", start)
        runs = (("soak", args.iterations, ()), ("sizes", args.iterations // 2, soak.SIZES))
        with ThreadPoolExecutor() as pool:  # each has a process, and so a processor
            longs = pool.map(lambda run: soak.soak(_new(folder, run[0]), run[1], *run[2]), runs)
        for (_, iterations, settings), long in zip(runs, longs):
            print(f"{iterations} iterations, {'images of 100 sizes' if settings else '10 evaluations'}:")
            for what, (quarter, end), unit in (
                ("resident memory", long.memory, " MB"),
                ("open files", long.files, ""),
                ("processes", long.processes, ""),
            ):
                print(f"{what}: {quarter:.0f}{unit} after a quarter, {end:.0f}{unit} at the end")
            print(f"20 checkpoints, {long.seconds:.0f} s")
            bad += [long] * (long.memory[1] > long.memory[0] * 1.05 or long.files[1] > long.files[0] + 2)
    print(
        f"\n{'all as it should be' if not bad else f'{len(bad)} bad outcomes'}, {(time.time() - start) / 60:.1f} min"
    )
    for outcome in bad:
        print(outcome)
    return bool(bad)


def _section(title: str, start: float) -> None:
    print(f"\n# {title} (after {(time.time() - start) / 60:.1f} min)", flush=True)


def _new(folder: Path, name: str) -> Path:
    (folder / name).mkdir()
    return folder / name


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--files", type=int, default=20_000, help="damaged files of weights")
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--stops", type=int, default=4, help="of each signal")
    parser.add_argument("--ctrl-c", type=int, default=8)
    parser.add_argument("--iterations", type=int, default=2000, help="of the soak")
    sys.exit(main(parser.parse_args()))
