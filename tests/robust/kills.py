"""Training that is killed again and again, and must end with the weights of one that was not."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import time
from pathlib import Path
from typing import Callable, List, NamedTuple

from . import tiny

_ITERATIONS = 40
_LIMIT = 300  # seconds after which a run counts as hung


class Kills(NamedTuple):
    """Outcome.

    Attributes:
        runs: trainings that were carried to their end.
        kills: SIGKILLs in all.
        while_writing: of these, how many came while a checkpoint was being written.
        equal: runs whose final weights are those of the run that was not killed, bit for bit.
    """

    runs: int
    kills: int
    while_writing: int
    equal: int


def kill_until(folder: Path, kills: int, seed: int, report: Callable[[str], None] = print) -> Kills:
    """Carry runs to their end under SIGKILLs at random moments until there have been so many."""
    rng = random.Random(seed)
    data = tiny.make_data(folder)
    reference = _finish(tiny.command(data, folder / "reference", _ITERATIONS), folder / "reference.log")
    assert reference == 0, (folder / "reference.log").read_text()[-2000:]
    expected = tiny.weights(folder / "reference")
    runs = done = writing = equal = 0
    while done < kills:
        output = folder / f"run{runs}"
        words = tiny.command(data, output, _ITERATIONS, flags=("--resume",))
        while not (output / "results.json").exists():
            process = tiny.start(words, folder / f"run{runs}.log")
            if done < kills and _kill(process, output, rng):
                done += 1
                writing += bool(list(output.glob(".model_*")))
            status = process.wait(_LIMIT)
            assert status in (0, -signal.SIGKILL), (folder / f"run{runs}.log").read_text()[-2000:]
        equal += tiny.equal(expected, tiny.weights(output))
        runs += 1
        report(f"{done} kills, {runs} runs, {equal} equal")
    return Kills(runs, done, writing, equal)


def _kill(process: subprocess.Popen, output: Path, rng: random.Random) -> bool:
    """Kill the process and its children at a random moment: while it starts, trains, writes or evaluates."""
    moment = rng.choice(("start", "train", "train", "train", "write", "write", "evaluate"))
    if moment == "start":
        time.sleep(rng.uniform(0, 4))
    else:
        signs: dict = {
            "train": lambda: _trains(output),
            "write": lambda: any(output.glob(".model_*")),
            "evaluate": lambda: (output / "model_final.pth").exists(),
        }
        while not signs[moment]() and process.poll() is None:
            time.sleep(0.0002)
        if moment != "write":
            time.sleep(rng.uniform(0, 1.2))
    if process.poll() is not None:
        return False
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    return True


def _trains(output: Path) -> bool:
    log = output / "log.txt"
    return log.exists() and log.stat().st_mtime > time.time() - 1 and "Starting training" in _tail(log)


def _tail(path: Path) -> str:
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - 3000))
        return file.read().decode(errors="replace")


def _finish(words: List[str], log: Path) -> int:
    return tiny.start(words, log).wait(_LIMIT)


class Stop(NamedTuple):
    """One SIGTERM or SIGINT: its number, the exit status, seconds until the end, and whether the weights of the
    run that went on are those of one that was not stopped."""

    signal: int
    status: int
    seconds: float
    equal: bool


def stop_and_go_on(folder: Path, numbers: List[int], seed: int) -> List[Stop]:
    """Stop runs by signals at random moments of training, go on with ``--resume``, and compare the weights."""
    rng = random.Random(seed)
    data = tiny.make_data(folder)
    # So few checkpoints that the one at the signal counts.
    settings = ("SOLVER.CHECKPOINT_PERIOD", 1000, "DATALOADER.NUM_WORKERS", 1)
    reference = tiny.command(data, folder / "reference", _ITERATIONS, *settings)
    assert _finish(reference, folder / "reference.log") == 0
    expected = tiny.weights(folder / "reference")
    stops = []
    for i, number in enumerate(numbers):
        output, log = folder / f"stop{i}", folder / f"stop{i}.log"
        words = tiny.command(data, output, _ITERATIONS, *settings, flags=("--resume",))
        process = tiny.start(words, log)
        while not _trains(output) and process.poll() is None:
            time.sleep(0.001)
        time.sleep(rng.uniform(0.1, 0.8))
        start = time.time()
        os.killpg(process.pid, number)  # the whole group, as a terminal and a scheduler do
        status = process.wait(_LIMIT)
        seconds = time.time() - start
        assert _finish(words, log) == 0, log.read_text()[-2000:]
        stops.append(Stop(number, status, seconds, tiny.equal(expected, tiny.weights(output))))
    return stops
