"""Training that is killed again and again, and must end with the weights of one that was not."""

from __future__ import annotations

import json
import os
import random
import signal
import time
from pathlib import Path
from typing import Any, Callable, List, NamedTuple, Sequence, Tuple

import forks

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


def kill_until(
    folder: Path,
    kills: int,
    seed: int,
    report: Callable[[str], None] = print,
    make: Callable[[Path], List[str]] = tiny.make_data,
    iterations: int = _ITERATIONS,
) -> Kills:
    """Carry runs to their end under SIGKILLs at random moments until there have been so many.

    Args:
        make: makes the data, and returns the arguments that name them.
    """
    rng = random.Random(seed)
    data = make(folder)
    words = tiny.command(data, folder / "reference", iterations)
    tiny.finish(words, folder / "reference.log")
    expected = tiny.weights(folder / "reference")
    runs = done = writing = equal = 0
    while done < kills:
        output = folder / f"run{runs}"
        words = tiny.command(data, output, iterations, flags=("--resume",))
        while not (output / "results.json").exists():
            process = tiny.fork(words, folder / f"run{runs}.log")
            if done < kills and _kill(process, output, rng):
                done += 1
                writing += bool(list(output.glob(".model_*")))
            status = process.wait(_LIMIT)
            assert status in (0, -signal.SIGKILL), (folder / f"run{runs}.log").read_text()[-2000:]
        equal += tiny.equal(expected, tiny.weights(output))
        runs += 1
        report(f"{done} kills, {runs} runs, {equal} equal")
    return Kills(runs, done, writing, equal)


def _kill(process: forks.Process, output: Path, rng: random.Random) -> bool:
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
            time.sleep(0.0005)
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


class Stop(NamedTuple):
    """One SIGTERM or SIGINT: its number, the exit status, seconds until the end, and whether the weights of the
    run that went on are those of one that was not stopped."""

    signal: int
    status: int
    seconds: float
    equal: bool


def stop_and_go_on(
    folder: Path,
    numbers: List[int],
    seed: int,
    report: Callable[[str], None] = print,
    make: Callable[[Path], List[str]] = tiny.make_data,
) -> List[Stop]:
    """Stop runs by signals at random moments of training, go on with ``--resume``, and compare the weights.

    Args:
        make: as for :func:`kill_until`.
    """
    rng = random.Random(seed)
    data = make(folder)
    # So few checkpoints that the one at the signal counts.
    settings = ("SOLVER.CHECKPOINT_PERIOD", 1000, "DATALOADER.NUM_WORKERS", 1)
    reference = tiny.command(data, folder / "reference", _ITERATIONS, *settings)
    tiny.finish(reference, folder / "reference.log")
    expected = tiny.weights(folder / "reference")
    stops = []
    for i, number in enumerate(numbers):
        output, log = folder / f"stop{i}", folder / f"stop{i}.log"
        words = tiny.command(data, output, _ITERATIONS, *settings, flags=("--resume",))
        process = tiny.fork(words, log)
        while not _trains(output) and process.poll() is None:
            time.sleep(0.001)
        time.sleep(rng.uniform(0.1, 0.8))
        begin = time.time()
        os.killpg(process.pid, number)  # the whole group, as a terminal and a scheduler do
        status = process.wait(_LIMIT)
        seconds = time.time() - begin
        tiny.finish(words, log)
        stops.append(Stop(number, status, seconds, tiny.equal(expected, tiny.weights(output))))
        report(f"{i + 1} of {len(numbers)}")
    return stops


#: Ways to end two processes: how they are started, the signal, and whether it goes to all of them.
WAYS = {
    "SIGTERM to the launcher": ("launch", signal.SIGTERM, False),
    "SIGTERM to the group": ("launch", signal.SIGTERM, True),
    "SIGINT to the group": ("launch", signal.SIGINT, True),
    "SIGKILL to the launcher": ("launch", signal.SIGKILL, False),
    "SIGTERM to torchrun": ("torchrun", signal.SIGTERM, False),
    "SIGTERM to torchrun and all under it": ("torchrun", signal.SIGTERM, True),
}
_STARTS = {
    "launch": ((), ("--num-gpus", "2")),
    "torchrun": (("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"), ()),
}


class GroupStop(NamedTuple):
    """One stop of two processes.

    Attributes:
        way: of :data:`WAYS`.
        status: exit status of the process that started the others.
        lost: iterations that were complete and are in no checkpoint.
        left: processes that outlived it.
        seconds: until all were gone.
    """

    way: str
    status: int
    lost: int
    left: int
    seconds: float


def stop_processes(
    folder: Path,
    ways: Sequence[str],
    seed: int,
    report: Callable[[str], None] = print,
    whole: Callable[..., Any] = tiny.fork,
) -> Tuple[List[GroupStop], bool]:
    """Stop one run of two processes in each of these ways, going on with ``--resume`` in between.

    Args:
        whole: starts what nobody stops: the run to compare with, and the end of the other.

    Returns:
        The stops, and whether the final weights are those of a run that was not stopped, bit for bit.
    """
    rng = random.Random(seed)
    iterations = 16 * len(ways)
    data = tiny.make_data(folder)
    # So few checkpoints that the one at the signal counts.
    settings = (
        *("SOLVER.CHECKPOINT_PERIOD", 10000, "DATALOADER.NUM_WORKERS", 1, "SOLVER.IMS_PER_BATCH", 4),
        *("MODEL.DEVICE", "cpu"),
    )

    def two(output: Path, how: str, start: Callable[..., Any] = tiny.fork) -> Any:
        python, flags = _STARTS[how]
        words = tiny.command(data, output, iterations, *settings, flags=("--resume", *flags))
        words[0] = str(Path(__file__).with_name("losses.py"))
        return start(words, output.with_suffix(".log"), *python)

    reference, output = folder / "reference", folder / "stopped"
    log = output.with_suffix(".log")
    assert two(reference, "launch", whole).wait(_LIMIT) == 0, reference.with_suffix(".log").read_text()[
        -2000:
    ]
    stops, done = [], 0
    for way in ways:
        how, number, everyone = WAYS[way]
        process = two(output, how)
        while _last(output) < done:
            assert process.poll() is None, log.read_text()[-2000:]
            time.sleep(0.01)
        time.sleep(rng.uniform(0, 0.5))
        status, left, seconds = _stop(process, number, everyone)
        newest = max((int(file.stem[6:]) for file in output.glob("model_0*.pth")), default=-1)
        stops.append(GroupStop(way, status, max(0, _last(output) - newest), left, seconds))
        done = newest + 1
        report(way)
    assert two(output, "launch", whole).wait(_LIMIT) == 0, log.read_text()[-2000:]
    return stops, tiny.equal(tiny.weights(reference), tiny.weights(output))


#: Ways to end an evaluation by two processes, as above, and the exit status; torchrun has one of its own.
EVALUATION_WAYS = {
    "SIGTERM to the launcher": ("launch", signal.SIGTERM, False, 143),
    "SIGINT to the group": ("launch", signal.SIGINT, True, 130),
    "SIGTERM to torchrun": ("torchrun", signal.SIGTERM, False, 1),
    "SIGINT to torchrun": ("torchrun", signal.SIGINT, False, 1),
}


class EvaluationStop(NamedTuple):
    """One stop of an evaluation by two processes.

    Attributes:
        way: of :data:`EVALUATION_WAYS`.
        status: exit status of the process that started the others.
        left: processes that outlived it.
        seconds: until all were gone.
        wrong: what should not be: another status, results, processes that are left, a traceback.
    """

    way: str
    status: int
    left: int
    seconds: float
    wrong: str


def stop_evaluations(
    folder: Path, ways: Sequence[str], seed: int, report: Callable[[str], None] = print
) -> List[EvaluationStop]:
    """Stop evaluations by two processes in each of these ways, while images go through the network."""
    rng = random.Random(seed)
    data, trained = tiny.make_data(folder), folder / "trained"
    words = tiny.command(data, trained, 1, "TEST.PRECISE_BN.ENABLED", False)
    tiny.finish(words, folder / "trained.log")
    data[5::2] = data[1:4:2]  # all images are evaluated, and large, for it to take seconds
    settings = (
        *("MODEL.WEIGHTS", trained / "model_final.pth", "MODEL.DEVICE", "cpu"),
        *("INPUT.MIN_SIZE_TEST", 1200),
    )
    stops = []
    for i, way in enumerate(ways):
        how, number, everyone, expected = EVALUATION_WAYS[way]
        python, flags = _STARTS[how]
        output, log = folder / f"evaluation{i}", folder / f"evaluation{i}.log"
        words = tiny.command(data, output, 1, *settings, flags=("--eval-only", *flags))
        log.touch()
        process = tiny.fork(words, log, *python)
        while "Start inference on 12 batches" not in log.read_text():
            assert process.poll() is None, log.read_text()[-2000:]
            time.sleep(0.01)
        time.sleep(rng.uniform(0, 0.5))
        status, left, seconds = _stop(process, number, everyone)
        said = log.read_text()
        faults = {
            f"status {status}": status != expected,
            f"{left} processes left": left,
            "it had ended before": (output / "results.json").exists(),
            # torchrun ends by an exception of its own.
            said[-3000:]: said.count("Traceback") > (how == "torchrun"),
        }
        wrong = ", ".join(fault for fault, there in faults.items() if there)
        stops.append(EvaluationStop(way, status, left, seconds, wrong))
        report(way)
    return stops


def _stop(process: forks.Process, number: int, everyone: bool) -> Tuple[int, int, float]:
    """Send the signal to a process, or to all under it as well.

    Returns:
        Its exit status, how many processes under it are left, and the seconds until all were gone.
    """
    family = _descendants(process.pid)
    begin = time.time()
    for pid in [process.pid, *family] if everyone else [process.pid]:
        os.kill(pid, number)
    status = process.wait(_LIMIT)
    while (left := [pid for pid in family if alive(pid)]) and time.time() < begin + 60:
        time.sleep(0.05)
    return status, len(left), time.time() - begin


def _last(output: Path) -> int:
    """The last iteration whose loss was noted; -1 before the first."""
    try:
        return max(map(int, json.loads((output / "losses.json").read_text())))
    except (OSError, ValueError):  # not there yet, or half written
        return -1


def _descendants(pid: int) -> List[int]:
    """Children of a process, theirs, and so on."""
    children = [
        int(entry) for entry in os.listdir("/proc") if entry.isdigit() and _stat(entry)[1] == str(pid)
    ]
    return children + [below for child in children for below in _descendants(child)]


def alive(pid: int) -> bool:
    """Whether it runs; one that has ended and is not waited for does not."""
    return _stat(str(pid))[0] not in ("Z", "")


def _stat(pid: str) -> List[str]:
    """State and parent of a process, and what follows in its ``stat``; empty where it is gone."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    except OSError:
        return ["", ""]
