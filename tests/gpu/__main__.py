"""What works on this machine's GPUs, and how fast: `make gpu`.

python -m gpu                    all checks, then the benchmark's rows for GPUs     (in tests/)
python -m gpu --only nan,resume  checks or themes that hold one of the words, without the benchmark
python -m gpu --list             the names, each after its theme
python -m gpu --cpu              a rehearsal without a GPU: small sizes, gloo, bfloat16, Triton's interpreter
                                 for the kernels alone and plain PyTorch around them

Prints PASS, FAIL or SKIP for each check. Ends with 1 if any failed, with 2 where there is no GPU.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import List


def main(args: argparse.Namespace) -> int:
    # Only now, since Triton looks at the environment when it is imported.
    import torch

    from resnest_d2 import UserError
    from resnest_d2.benchmark.page import facts_of
    from resnest_d2.files import atomic_write_text

    from .registry import CHECKS, THEMES, Place

    for theme in THEMES:  # whose checks register themselves
        importlib.import_module(f".{theme}", __package__)

    words = args.only.split(",")
    chosen = [c for c in CHECKS.values() if any(word in f"{c.theme} {c.name}" for word in words)]
    if args.only in CHECKS:
        chosen = [CHECKS[args.only]]
    if args.list:
        print("\n".join(f"{c.theme}  {c.name}" for c in chosen))
        return 0
    if not args.cpu and not torch.cuda.is_available():
        raise UserError("no CUDA device is visible; `python -m gpu --cpu` in tests/ rehearses the checks")
    if not chosen:
        raise UserError(f"--only: no check holds {args.only!r}; --list names them")
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    place, start, outcomes = Place.find(args.cpu), time.monotonic(), []
    for check in chosen:
        outcomes.append(run_here_or_alone(check, place, args))
        print(_line(outcomes[-1]), flush=True)
        if args.json:
            content = {"facts": facts_of(place.device.type), "checks": [o._asdict() for o in outcomes]}
            atomic_write_text(args.json, json.dumps(content, indent=1))
    if not args.cpu and not args.only:
        minutes = args.minutes - (time.monotonic() - start) / 60
        print(f"benchmark, at most {minutes:.1f} minutes", flush=True)
        failed = benchmark(minutes, args.json, args.page)
    else:
        failed = False
    return int(failed or any(o.outcome == "FAIL" for o in outcomes))


def run_here_or_alone(check, place, args):
    """In a process of its own where the check wants one, or where an earlier one has broken CUDA."""
    from .registry import Outcome, run

    if place.small or args.alone or not (check.alone or _is_broken()):
        return run(check, place)
    words = [sys.executable, "-W", "ignore", "-m", "gpu", "--alone", "--only", check.name]
    start = time.monotonic()
    try:
        done = subprocess.run(words, capture_output=True, text=True, timeout=180)
        line = next((x for x in done.stdout.splitlines() if x[:4] in ("PASS", "FAIL", "SKIP")), None)
        last = (done.stderr.strip().splitlines() or [f"status {done.returncode}"])[-1]
    except subprocess.TimeoutExpired:
        line, last = None, "no end within 180 s"
    outcome, note = (line[:4], line.partition(": ")[2]) if line else ("FAIL", last)
    return Outcome(check.theme, check.name, outcome, round(time.monotonic() - start, 1), note)


def _is_broken() -> bool:
    import torch

    try:
        torch.cuda.synchronize()
    except RuntimeError:
        return True
    return False


def _line(o) -> str:
    return f"{o.outcome}  {o.theme} {o.name}, {o.seconds:.1f} s: {o.note}"


def benchmark(minutes: float, json_file: Path | None, page: Path | None) -> bool:
    """The rows for GPUs, whatever fails among them. Returns whether any did."""
    words: List[object] = ["--rounds", 2, "--minutes", minutes, "--device", "cuda", "--keep-going"]
    if json_file:
        words += ["--json", json_file.with_name("benchmark.json")]
    if page:
        words += ["--page", page]
    tool = Path(__file__).resolve().parents[2] / "tools/benchmark.py"
    return subprocess.run([sys.executable, "-W", "ignore", tool, *map(str, words)]).returncode != 0


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m gpu", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--list", action="store_true", help="name the checks and end")
    parser.add_argument("--cpu", action="store_true", help="rehearse on the CPU")
    parser.add_argument("--only", default="", help="words, separated by commas")
    parser.add_argument("--json", type=Path, help="write the outcomes; benchmark.json beside it")
    parser.add_argument("--page", type=Path, help="write the GPU's part of this page, Markdown")
    parser.add_argument("--minutes", type=float, default=9, help="of all, but for the last row's")
    parser.add_argument("--alone", action="store_true", help=argparse.SUPPRESS)
    return parser


if __name__ == "__main__":
    arguments = parser().parse_args()
    if arguments.cpu:
        os.environ["TRITON_INTERPRET"] = "1"
    from resnest_d2.command_line import one_line_errors

    with one_line_errors():
        sys.exit(main(arguments))
