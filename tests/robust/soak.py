"""Long runs, full disks and Ctrl-C: what stays flat, what is lost, what is left behind."""

from __future__ import annotations

import contextlib
import os
import random
import re
import signal
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Callable, Dict, List, NamedTuple, Optional, Tuple

from resnest_d2.checkpoint.read import damage

from . import tiny

_LIMIT = 1800


class Soak(NamedTuple):
    """A long run: its iterations, and what it used when a quarter was done, and at the end.

    Attributes:
        memory: resident memory in MB.
        files: open files.
        processes: it and its children.
    """

    iterations: int
    seconds: float
    memory: Tuple[float, float]
    files: Tuple[int, int]
    processes: Tuple[int, int]


#: Images of a hundred sizes, in both orientations, and maps of up to a MB.
SIZES = (
    *("INPUT.MIN_SIZE_TRAIN", tuple(range(100, 200)), "INPUT.MIN_SIZE_TRAIN_SAMPLING", "choice"),
    *("MODEL.RESNETS.RES2_OUT_CHANNELS", 64, "MODEL.RESNETS.BOTTLENECK_WIDTH", 16),
    *("SOLVER.IMS_PER_BATCH", 2, "TEST.EVAL_PERIOD", 0),
)


def soak(folder: Path, iterations: int, *settings: object, report: Callable[[str], None] = print) -> Soak:
    """Train with evaluation, checkpoints and loader workers, and watch.

    Args:
        settings: further KEY VALUE pairs, such as :data:`SIZES`.
    """
    output, log = folder / "soak", folder / "soak.log"
    periods = ("TEST.EVAL_PERIOD", iterations // 10, "SOLVER.CHECKPOINT_PERIOD", iterations // 20)
    words = tiny.command(
        *(tiny.make_data(folder), output, iterations, *periods, "DATALOADER.NUM_WORKERS", 2, *settings)
    )
    start = time.time()
    process = tiny.start(words, log)
    samples: List[Tuple[int, float, int, int]] = []
    said = 0
    while process.poll() is None:
        assert time.time() - start < _LIMIT, "hung"
        time.sleep(0.2)
        done = _iteration(output / "metrics.json")
        usage = _usage(process.pid)
        if usage and done < iterations - 1:
            samples.append((done, *usage))
        if done >= said + iterations // 10:
            report(f"{done} of {iterations} iterations")
            said = done
    assert process.returncode == 0, log.read_text()[-2000:]
    quarter = [s for s in samples if iterations * 0.2 <= s[0] <= iterations * 0.35]
    end = [s for s in samples if s[0] >= iterations * 0.8]
    # The median of a stretch: what is used between evaluations, whose workers come and go.
    return Soak(
        iterations,
        time.time() - start,
        *(tuple(statistics.median(s[i] for s in part) for part in (quarter, end)) for i in (1, 2, 3)),
    )


def _iteration(metrics: Path) -> int:
    if not metrics.exists():
        return 0
    found = re.findall(r'"iteration": (\d+)', metrics.read_text()[-600:])
    return int(found[-1]) if found else 0


def _usage(pid: int) -> Tuple[float, int, int] | None:
    try:
        status = Path(f"/proc/{pid}/status").read_text()
        memory = int(re.search(r"VmRSS:\s+(\d+)", status)[1]) / 1024
        return memory, len(os.listdir(f"/proc/{pid}/fd")), len(_session(pid))
    except (OSError, TypeError):
        return None


def _session(leader: int) -> List[int]:
    """Living processes of a session."""
    members = []
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            try:
                fields = Path(f"/proc/{entry}/stat").read_text().rsplit(")", 1)[1].split()
            except OSError:
                continue
            if int(fields[3]) == leader and fields[0] != "Z":
                members.append(int(entry))
    return members


class CtrlC(NamedTuple):
    """One Ctrl-C: seconds after the start, exit status, seconds until all were gone, processes left.

    During imports, the status is that of a KeyboardInterrupt, or what an importing module makes of it.
    """

    after: float
    status: Optional[int]
    seconds: float
    left: int


def ctrl_c(folder: Path, times: int, seed: int, report: Callable[[str], None] = print) -> List[CtrlC]:
    """Interrupt runs with loader workers at random moments, as a terminal does, and look who is left."""
    rng = random.Random(seed)
    data = tiny.make_data(folder)
    outcomes = []
    for i in range(times):
        words = tiny.command(data, folder / f"c{i}", 100, "DATALOADER.NUM_WORKERS", 2, "TEST.EVAL_PERIOD", 10)
        process = tiny.start(words, folder / f"c{i}.log")
        after = rng.uniform(0.2, 9)
        time.sleep(after)
        start = time.time()
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGINT)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(300)
        end = time.time()
        while (left := _session(process.pid)) and time.time() < end + 15:
            time.sleep(0.05)
        outcomes.append(CtrlC(after, process.returncode, time.time() - start, len(left)))
        for pid in left:
            os.kill(pid, signal.SIGKILL)
        report(f"{i + 1} of {times}")
    return outcomes


def full_disk(folder: Path) -> Dict[str, object]:
    """Write checkpoints into a file system that fills up; then make room and go on.

    Returns:
        ``status`` and ``said`` of the run that met the full disk, the checkpoints that it had, whether
        they are ``undamaged``, and whether the weights in the end are those of a run with room, ``equal``.
        Empty where this machine does not let us mount a small file system.
    """
    data = tiny.make_data(folder)
    settings = ("SOLVER.CHECKPOINTS_TO_KEEP", 0)
    log, small = folder / "small.log", folder / "small"
    whole = tiny.command(data, folder / "whole", 20, *settings)
    tiny.finish(whole, folder / "whole.log")
    small.mkdir()
    words = tiny.command(data, small / "run", 20, *settings, flags=("--resume",))
    script = 'mount -t tmpfs -o size=7m tmpfs "$0" || exit 77; "$@"; s=$?; cp -r "$0/run" "$0.kept"; exit $s'
    unshare = ["unshare", "-m"] if os.geteuid() == 0 else ["unshare", "-rm"]
    command = [*unshare, "sh", "-c", script, str(small), sys.executable, *words]
    with log.open("wb") as file:
        status = subprocess.run(command, stdout=file, stderr=file, env=tiny.environment()).returncode
    if not (folder / "small.kept").exists():
        return {}
    kept = folder / "small.kept"
    checkpoints = sorted(kept.glob("model_*.pth"))
    undamaged = all(damage(path) is None for path in checkpoints)
    (small / "run").symlink_to(kept)
    resumed = tiny.fork(words, folder / "resumed.log").wait(_LIMIT)
    said = re.findall(r"^error: (.+)$", log.read_text(), re.M)
    return {
        "status": status,
        "said": said,
        "traceback": "Traceback" in log.read_text(),
        "checkpoints": [path.name for path in checkpoints],
        "undamaged": undamaged,
        "equal": resumed == 0 and tiny.equal(tiny.weights(folder / "whole"), tiny.weights(kept)),
    }
