"""Command lines: flags out of range, files of the wrong kind, and what surrounds a process."""

from __future__ import annotations

import os
from functools import partial
from pathlib import Path
from typing import Callable, Dict, List, Sequence

import numpy as np

from .. import tiny
from .case import Case
from .images import plain_dataset, train

COMMANDS: Dict[str, Callable[[Path, np.random.Generator], Case]] = {}
_CONFIG = tiny.ROOT / "configs/quickstart.yaml"


def _words(
    words: Sequence[object], refused: Sequence[str], environment: Dict[str, str], folder: Path, rng: object
) -> Case:
    words = [str(word).format(folder=folder) for word in words]
    return Case(["train_net.py", "--config-file", _CONFIG, *words], refused=refused, environment=environment)


def _refused(title: str, words: Sequence[object], *texts: str, environment: Dict[str, str] = {}) -> None:  # noqa: B006
    COMMANDS[title] = partial(_words, words, texts, environment)


for flag, values in (
    ("--num-gpus", (0, -1, "1.5", "x", "", 10**30, 5000)),
    ("--num-machines", (0, -2, "two")),
    ("--machine-rank", (-1, 1, 5)),
    ("--epochs", ("nan", "inf", "-1", "0", "1e400", "1e30", "x")),
):
    for value in values:
        _refused(f"{flag} {value}", (flag, value, "MODEL.DEVICE", "cpu"), flag)
for rank in (2, 5, -1):
    place = ("--num-machines", 2, "--dist-url", "tcp://127.0.0.1:4000")
    _refused(f"rank {rank} of 2", (*place, "--machine-rank", rank, "MODEL.DEVICE", "cpu"), "--machine-rank")
for url in (
    *(
        "auto",
        "",
        "x",
        "tcp://",
        "tcp://127.0.0.1",
        "tcp://127.0.0.1:0",
        "tcp://127.0.0.1:99999",
        "tcp://:4000",
    ),
    *("tcp://127.0.0.1:port", "tcp://no.such.host.invalid:4000", "tcp://[::1:4000", "127.0.0.1:4000"),
    *("http://127.0.0.1:4000", "env://", "file://", "file:///nowhere/at/all", "file:///proc", "file://name"),
):
    for name, words in (("2 machines", ("--num-machines", 2)), ("2 processes", ("--num-gpus", 2))):
        if (name, url) != ("2 processes", "auto"):
            given = (*words, "--dist-url", url, "MODEL.DEVICE", "cpu")
            _refused(f"{name} that meet at {url!r}", given, "--dist-url")
_refused(
    "a second configuration",
    ("--config-file", "configs/faster_resnest50.yaml"),
    *("--config-file is given twice", "quickstart.yaml", "_BASE_"),
)
_refused("keys of another version", ("VERSION", 99), "VERSION must be 2")
for name in ("a?b", "?", "a?matching_heuristics=True"):
    _refused(f"OUTPUT_DIR {name}", ("OUTPUT_DIR", name), f"OUTPUT_DIR '{name}'", "?")
_refused("a home that nobody can have", ("OUTPUT_DIR", "~\0/x"), "OUTPUT_DIR")
_refused("an unknown flag", ("--frobnicate", 3), "--frobnicate")
_refused("a flag behind the keys", ("SEED", 3, "--resume"), "--resume", "flags come before")
_refused(
    "a flag with a value behind the keys", ("SEED", 3, "--num-gpus", 2), "--num-gpus", "flags come before"
)
_refused(
    "a key in lower case", ("solver.base_lr", 3), "unknown key solver.base_lr", "did you mean SOLVER.BASE_LR"
)
_refused("a key with a space", ("SEED ", 3), "unknown key SEED", "did you mean")
_refused("a section as a key", ("SOLVER", 3), "unknown key SOLVER", "did you mean")
_refused("a key below a value", ("SEED.X", 3), "unknown key SEED.X", "did you mean")
_refused("a key of megabytes", ("K" * 100_000, 3), "unknown key K")
_refused("a value of megabytes", ("SEED", "9" * 100_000), "SEED")
_refused("a value that is nested deep", ("SEED", "[" * 5000 + "]" * 5000), "SEED", "nested")
_refused("a value of many signs", ("SEED", "-" * 100_000 + "1"), "command line")
_refused("a key of two lines", ("SEED\nX", 3), "unknown key SEED X")
_refused("optimize in training", ("--optimize",), "--optimize")
for name in (
    "catalog://x",
    "resnest://x",
    "resnest://",
    "hf://x",
    "{folder}",
    "nowhere.pth",
    "nowhere\n.pth",
):
    _refused(f"MODEL.WEIGHTS {name}", ("MODEL.WEIGHTS", name), "MODEL.WEIGHTS")
_refused("weights to evaluate in a folder", ("--eval-only", "MODEL.WEIGHTS", "{folder}"), "MODEL.WEIGHTS")
# A rank that was left in the environment keeps nobody from saying what is wrong.
for names in (("RANK",), ("RANK", "WORLD_SIZE"), ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")):
    left = dict.fromkeys(names, "1")
    _refused(f"{' and '.join(names)} left in the environment", ("SEED", "x"), "SEED", environment=left)
_refused(
    "torchrun's name left in the environment",
    (),
    "TORCHELASTIC_RUN_ID",
    environment={"TORCHELASTIC_RUN_ID": "x"},
)
_refused(
    "torchrun's environment with a word as a number",
    (),
    "WORLD_SIZE",
    environment={"TORCHELASTIC_RUN_ID": "x", "RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "two"},
)


def _path(flag: str, kind: str, folder: Path, rng: object) -> Case:
    """Where a file is meant, something else."""
    path = folder / "given"
    if kind == "FIFO":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    elif kind == "device":
        path = Path("/dev/zero")
    words: Dict[str, List[object]] = {
        "--config-file": ["--config-file", path],
        "--train-json": ["--config-file", _CONFIG, "--train-json", path, "--train-images", folder],
        "--val-json": ["--config-file", _CONFIG, "--val-json", path, "--val-images", folder],
        "MODEL.WEIGHTS": ["--config-file", _CONFIG, "MODEL.WEIGHTS", path],
        "_BASE_": ["--config-file", folder / "a.yaml"],
    }
    (folder / "a.yaml").write_text(f"_BASE_: {path}\n")
    return Case(["train_net.py", *words[flag]], refused=(flag, str(path)))


for flag in ("--config-file", "--train-json", "--val-json", "MODEL.WEIGHTS", "_BASE_"):
    for kind in ("FIFO", "folder", "device", "nothing"):
        COMMANDS[f"{kind} for {flag}"] = partial(_path, flag, kind)
for url in (
    "http://127.0.0.1/a.yaml",
    "https://127.0.0.1/a.yaml",
    "s3://bucket/a.yaml",
    "detectron2://a.yaml",
):
    COMMANDS[f"--config-file {url}"] = lambda folder, rng, url=url: Case(
        ["train_net.py", "--config-file", url], refused=("--config-file", url, "URL")
    )


def _left_rank_works(folder: Path, rng: object) -> Case:
    case = train(folder, plain_dataset(folder), refused=None, works=True)
    return case._replace(environment={"RANK": "1", "WORLD_SIZE": "2", "TORCHELASTIC_RESTART_COUNT": "x"})


COMMANDS["RANK 1 of 2 left in the environment, and nothing wrong"] = _left_rank_works
