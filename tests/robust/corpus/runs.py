"""Folders of runs: checkpoints, notes and other files that are damaged, foreign or in the way."""

from __future__ import annotations

import functools
import io
import json
import os
import re
import zipfile
from functools import partial
from pathlib import Path
from typing import Any, Callable, Dict, Optional, Sequence, Union

import numpy as np
import torch

from resnest_d2.engine import Trainer, load_config

from .. import tiny
from .case import Case
from .images import plain_dataset

RUNS: Dict[str, Callable[[Path, np.random.Generator], Case]] = {}
_RESUME = ("--resume",)
_NEWEST, _OLDER = "model_0000001.pth", "model_0000000.pth"


@functools.lru_cache(None)
def _content() -> bytes:
    """A checkpoint, as a run of the cases' configuration writes it."""
    settings = (
        *(*tiny.SETTINGS, "MODEL.ROI_HEADS.NUM_CLASSES", 1, "MODEL.RETINANET.NUM_CLASSES", 1),
        *("MODEL.SEM_SEG_HEAD.NUM_CLASSES", 2, "MODEL.DEVICE", "cpu"),
    )
    cfg = load_config(str(tiny.ROOT / "configs/quickstart.yaml"), [str(word) for word in settings])
    model = Trainer.build_model(cfg)
    optimizer = Trainer.build_optimizer(cfg, model)
    trainer = {"iteration": 0, "_trainer": {"iteration": 0, "optimizer": optimizer.state_dict()}}
    return _saved({"model": model.state_dict(), "trainer": {**trainer, "config": cfg.dump()}, "iteration": 0})


def _saved(content: object) -> bytes:
    file = io.BytesIO()
    torch.save(content, file)
    return file.getvalue()


def _unchanged(content: Dict[str, Any]) -> None:
    pass


@functools.lru_cache(None)
def _of_iteration(number: int, change: Callable[[Dict[str, Any]], object] = _unchanged) -> bytes:
    content = torch.load(io.BytesIO(_content()), weights_only=True)
    for part in (content, content["trainer"], content["trainer"]["_trainer"]):
        part["iteration"] = number
    change(content)
    return _saved(content)


def _changed(change: Callable[[Dict[str, Any]], object]) -> Callable[[], bytes]:
    return partial(_of_iteration, 1, change)


def _case(
    change: Callable[[Path, np.random.Generator], object],
    refused: Optional[Sequence[str]],
    goes_on_at: Sequence[int],
    flags: Sequence[str],
    settings: Sequence[object],
    check: Callable[[Path], Optional[str]],
    folder: Path,
    rng: np.random.Generator,
) -> Case:
    data, output = plain_dataset(folder), folder / "output"
    output.mkdir()
    (output / _OLDER).write_bytes(_of_iteration(0))
    (output / _NEWEST).write_bytes(_of_iteration(1))
    for name, text in (("last_checkpoint", _NEWEST), ("seed", "7\n"), ("metrics.json", '{"iteration": 0}\n')):
        (output / name).write_text(text)
    change(output, rng)
    words = tiny.command(
        *(data, output, 3, "TEST.PRECISE_BN.ENABLED", False, "DATALOADER.NUM_WORKERS", 0, *settings),
        flags=tuple(flags),
    )

    def outcome() -> Optional[str]:
        begun = re.findall(r"Starting training from iteration (\d+)", (output / "log.txt").read_text())
        if list(map(int, begun)) not in [[number] for number in goes_on_at]:
            return f"begins at {begun}, not at {goes_on_at}"
        return check(output)

    return Case(["train_net.py", *words[1:]], refused=refused, works=bool(goes_on_at), check=outcome)


def _add(
    name: str,
    change: Callable[[Path, np.random.Generator], object],
    *refused: str,
    at: Optional[int] = None,
    flags: Sequence[str] = _RESUME,
    settings: Sequence[object] = (),
    check: Callable[[Path], Optional[str]] = lambda output: None,
) -> None:
    """A case that is refused with these texts, or goes on at an iteration, or either."""
    begins = () if at is None else (at,)
    RUNS[name] = partial(_case, change, refused or None, begins, flags, settings, check)


def _write(
    name: str, content: Union[bytes, Callable[[], bytes]]
) -> Callable[[Path, np.random.Generator], object]:
    return lambda output, rng: (output / name).write_bytes(content() if callable(content) else content)


def _replace(name: str, make: Callable[[Path], object]) -> Callable[[Path, np.random.Generator], object]:
    def change(output: Path, rng: np.random.Generator) -> None:
        (output / name).parent.mkdir(exist_ok=True)
        (output / name).unlink(missing_ok=True)
        make(output / name)

    return change


def _together(*changes: Callable[[Path, np.random.Generator], object]) -> Callable[..., object]:
    return lambda output, rng: [change(output, rng) for change in changes]


def _link(target: str) -> Callable[[Path], None]:
    return lambda path: path.symlink_to(target)


_IN_THE_WAY: Dict[str, Callable[[Path], object]] = {
    "a folder": Path.mkdir,
    "a FIFO": os.mkfifo,
    "a link to nowhere": _link("nowhere/at/all"),
    "a full device": _link("/dev/full"),
}

# last_checkpoint: what does not name a checkpoint in the folder is passed over.
for title, content in (
    ("empty", b""),
    ("binary", bytes(range(256))),
    ("of another place", b"/etc/passwd"),
    ("of a parent", b"../output2/model_0000000.pth"),
    ("of one that is not there", b"model_0000009.pth"),
    ("of another file", b"seed"),
    ("of many lines", b"model_0000000.pth\nmodel_0000001.pth\n"),
    ("endless", b"model_" + b"0" * 100000 + b".pth"),
    ("with a null byte", b"model_0000000.pth\0"),
):
    _add(f"last_checkpoint {title}", _write("last_checkpoint", content), at=2)
_add("last_checkpoint edited to go back", _write("last_checkpoint", b"model_0000000.pth\n"), at=1)
_add("last_checkpoint not there", lambda output, rng: (output / "last_checkpoint").unlink(), at=2)
_add("last_checkpoint a link to nowhere", _replace("last_checkpoint", _link("nowhere")), at=2)
for title in ("a folder", "a FIFO"):  # read past, but the next cannot be noted
    _add(f"last_checkpoint {title}", _replace("last_checkpoint", _IN_THE_WAY[title]), "last_checkpoint")


def _flip(entry: str, where: str) -> Callable[[Path, np.random.Generator], None]:
    """A bit in the name of a part: where it stands, or in the archive's directory."""

    def change(output: Path, rng: np.random.Generator) -> None:
        content = bytearray((output / _NEWEST).read_bytes())
        place = content.find(entry.encode()) if where == "entry" else content.rfind(entry.encode())
        content[place] ^= 1 << int(rng.integers(8))
        (output / _NEWEST).write_bytes(bytes(content))

    return change


def _flip_anywhere(output: Path, rng: np.random.Generator) -> None:
    content = bytearray((output / _NEWEST).read_bytes())
    content[-int(rng.integers(1, 3000))] ^= 1 << int(rng.integers(8))
    (output / _NEWEST).write_bytes(bytes(content))


def _no_pickle() -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("readme.txt", "no checkpoint")
    return file.getvalue()


# The newest checkpoint: damaged ones are passed over.
for title, change in (
    ("cut", _write(_NEWEST, lambda: _content()[:-700])),
    ("cut to a byte", _write(_NEWEST, b"P")),
    ("empty", _write(_NEWEST, b"")),
    ("random", lambda output, rng: (output / _NEWEST).write_bytes(rng.bytes(4000))),
    ("with a flipped bit in a part's name", _flip("data.pkl", "entry")),
    ("with a flipped bit in the directory's name of a part", _flip("data.pkl", "directory")),
    ("with a flipped bit in a tensor's name", _flip("data/1", "entry")),
    ("that is an archive of something else", _write(_NEWEST, _no_pickle)),
    *((f"that is {title}", _replace(_NEWEST, make)) for title, make in _IN_THE_WAY.items()),
):
    _add(f"newest checkpoint {title}", change, at=1)
for i in range(5):
    # A time stamp may be hit, which nothing depends on; then it is resumed from, else the older one.
    RUNS[f"newest checkpoint with any flipped bit {i}"] = partial(
        _case, _flip_anywhere, None, (1, 2), _RESUME, (), lambda output: None
    )
_add("a folder among the checkpoints", lambda output, rng: (output / "model_0000009.pth").mkdir(), at=2)
_add("a pipe among the checkpoints", lambda output, rng: os.mkfifo(output / "model_0000009.pth"), at=2)
_add(
    "a final one that is a folder",
    lambda output, rng: (output / "model_final.pth").mkdir(),
    "cannot write",
    "model_final.pth: it is a folder",
)
for title, make in _IN_THE_WAY.items():
    both = _together(_replace(_NEWEST, make), _replace(_OLDER, make))
    _add(f"every checkpoint {title}", both, "no checkpoint in", _NEWEST, _OLDER)
both = _together(_write(_NEWEST, b""), _write(_OLDER, lambda: _content()[:-700]))
_add("every checkpoint damaged", both, "no checkpoint in", f"{_NEWEST} is empty", f"{_OLDER} is damaged")


def _nan(content: Dict[str, Any]) -> None:
    next(iter(content["model"].values())).fill_(float("nan"))


def _infinite_rate(content: Dict[str, Any]) -> None:
    content["trainer"]["_trainer"]["optimizer"]["param_groups"][0]["lr"] = float("inf")


def _misshapen(content: Dict[str, Any]) -> None:
    content["trainer"]["_trainer"]["optimizer"]["state"] = {0: {"exp_avg": torch.zeros(7)}}


class _Hostile:
    def __reduce__(self) -> tuple:
        return (print, ("ran code",))


for title, change in (
    ("with NaN", _nan),
    ("with an infinite rate", _infinite_rate),
    ("that would run code", lambda content: content.update(more=_Hostile())),
):
    _add(f"newest checkpoint {title}", _write(_NEWEST, _changed(change)), at=1)


def _later(output: Path) -> Optional[str]:
    said = (
        (output / "log.txt").read_text().count("model_0000008.pth is of iteration 8, past SOLVER.MAX_ITER 3")
    )
    iterations = json.loads((output / "results.json").read_text())["iterations"]
    return None if said == 1 and iterations == 9 else f"said {said} times, {iterations} iterations"


past = _together(
    _write("model_0000008.pth", partial(_of_iteration, 8)), _write("last_checkpoint", b"model_0000008.pth")
)
_add("newest checkpoint past MAX_ITER", past, at=9, check=_later)

# An intact file that no training wrote there must not be taken for one.
for title, content in (
    ("weights", lambda: _saved({"a": torch.zeros(3)})),
    ("weights of a detector", _changed(lambda c: c.pop("trainer"))),
    ("without an iteration", _changed(lambda c: c.pop("iteration"))),
    ("of another iteration", partial(_of_iteration, 9)),
    ("of an iteration beyond numbers", partial(_of_iteration, 10**30)),
    ("of iteration 'one'", _changed(lambda c: c.update(iteration="one"))),
    ("a list", lambda: _saved([1, 2])),
    ("with another state", _changed(lambda c: c.update(trainer={}))),
    ("with a state that is a number", _changed(lambda c: c.update(trainer=3))),
    ("with a momentum of another shape", _changed(_misshapen)),
    ("without an optimizer", _changed(lambda c: c["trainer"]["_trainer"].pop("optimizer"))),
    (
        "with hooks that are numbers",
        _changed(lambda c: c["trainer"].update(hooks={"LRScheduler": 3})),
    ),
):
    _add(f"newest checkpoint {title}", _write(_NEWEST, content), _NEWEST)
foreign = _together(
    _write("model_0000050.pth", lambda: _saved({"a": torch.zeros(3)})),
    _write("last_checkpoint", b"model_0000050.pth"),
)
_add("a foreign checkpoint that is noted", foreign, "model_0000050.pth")
_add("a foreign checkpoint that is evaluated", foreign, "model_0000050.pth", flags=(*_RESUME, "--eval-only"))


def _nothing(output: Path, rng: np.random.Generator) -> None:
    pass


# Another model or optimizer than the checkpoint's.
for key, value in (
    ("MODEL.BACKBONE.FREEZE_AT", 2),
    ("MODEL.RESNETS.DEPTH", 26),
    ("MODEL.RESNETS.RADIX", 1),
    ("MODEL.RESNETS.NORM", "FrozenBN"),
    ("MODEL.FPN.OUT_CHANNELS", 16),
    ("MODEL.FPN.NORM", "GN"),
    ("MODEL.ROI_BOX_HEAD.FC_DIM", 24),
    ("MODEL.ROI_BOX_HEAD.NUM_FC", 2),
    ("MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS", "[[1.0]]"),
    ("SOLVER.OPTIMIZER", "SGD"),
):
    more = ("MODEL.FPN.OUT_CHANNELS", 32) if value == "GN" else ()  # which divides by 32
    _add(f"resumed with another {key}", _nothing, key, settings=(*more, key, value))
for title, change in (
    ("no configuration", lambda content: content["trainer"].pop("config")),
    ("a broken configuration", lambda content: content["trainer"].update(config="a: [")),
    ("a configuration that is a list", lambda content: content["trainer"].update(config="[1, 2]")),
):
    _add(
        f"resumed with another DEPTH and {title} in the checkpoint",
        _write(_NEWEST, _changed(change)),
        "--resume",
        settings=("MODEL.RESNETS.DEPTH", 26),
    )
for key, value in (("SOLVER.BASE_LR", 0.001), ("SOLVER.MAX_ITER", 4), ("MODEL.RPN.NMS_THRESH", 0.8)):
    _add(f"resumed with another {key}", _nothing, at=2, settings=(key, value))

# The seed, where it is not set.
for title, content in (
    ("empty", b""),
    ("a word", b"seven"),
    ("binary", bytes(range(256))),
    ("negative", b"-7"),
    ("too large", b"1" + b"0" * 20),
    ("endless", b"7" * 100000),
    ("two numbers", b"7 8"),
):
    _add(f"seed {title}", _write("seed", content), "seed", settings=("SEED", -1))
for title in ("a folder", "a FIFO"):
    for flags in (_RESUME, ()):
        change = _replace("seed", _IN_THE_WAY[title])
        _add(
            f"seed {title}{' on --resume' * bool(flags)}", change, "seed", flags=flags, settings=("SEED", -1)
        )
_add("seed not there", lambda output, rng: (output / "seed").unlink(), at=2, settings=("SEED", -1))

# Files that a run writes.
for name in ("log.txt", "config.yaml", "metrics.json"):
    for title, make in _IN_THE_WAY.items():
        _add(f"{name} {title}", _replace(name, make), name)
for name in ("results.json", "inference/coco_instances_results.json", "inference/instances_predictions.pth"):
    _add(f"{name} a folder", _replace(name, Path.mkdir), name.split("/")[-1])
for name in ("coco_instances_results.json", "instances_predictions.pth"):
    _add(f"{name} a full device", _replace(f"inference/{name}", _link("/dev/full")), name)
_add("inference a file", _write("inference", b""), "inference")
for title in ("a folder", "a FIFO"):
    _add(f"the lock {title}", _replace(".lock", _IN_THE_WAY[title]), ".lock")
_add("the lock of one that is gone", _write(".lock", b'{"pid": 1, "host": "x", "since": "y"}'), at=2)
_add("the lock rubbish", _write(".lock", bytes(range(256))), at=2)


# A new run where another has been.
def _apart(output: Path) -> Optional[str]:
    there = {path.name for path in (output / "previous_1").iterdir()}
    kept = {_NEWEST, _OLDER, "last_checkpoint", "seed"} <= there
    fresh = not (output / _NEWEST).exists() or (output / _NEWEST).read_bytes() != _of_iteration(1)
    return None if kept and fresh else f"previous_1 holds {there}"


def _follows(output: Path) -> Optional[str]:
    weights = json.loads((output / "results.json").read_text())["weights"]
    return _apart(output) or (None if "previous_1" in weights else weights)


def _half_moved(output: Path, rng: np.random.Generator) -> None:
    (output / "previous_1.unfinished").mkdir()
    (output / _NEWEST).rename(output / "previous_1.unfinished" / _NEWEST)


_add("a new run over an old one", _nothing, at=0, flags=(), check=_apart)
_add("a new run whose predecessor is half moved", _half_moved, at=0, flags=(), check=_apart)
_add("a resumed run whose predecessor is half moved", _half_moved, at=0, check=_apart)
for name in ("metrics.json", "last_checkpoint", "model_final.pth", "results.json", "inference"):
    for title in ("a folder", "a FIFO", "a link to nowhere"):
        _add(f"a new run over {name}, {title}", _replace(name, _IN_THE_WAY[title]), at=0, flags=())
_add("a new run beside previous_1, a file", _write("previous_1", b""), at=0, flags=())
_add("a new run beside an unfinished file", _write("previous_1.unfinished", b""), "previous_1", flags=())


def _from_within(folder: Path, rng: np.random.Generator) -> Case:
    settings = ("MODEL.WEIGHTS", folder / "output" / _NEWEST)
    return _case(_nothing, None, (0,), (), settings, _follows, folder, rng)


def _from_half_moved(folder: Path, rng: np.random.Generator) -> Case:
    settings = ("MODEL.WEIGHTS", folder / "output" / _NEWEST)
    return _case(_half_moved, None, (0,), _RESUME, settings, _apart, folder, rng)


RUNS["a new run from the weights of the old one"] = _from_within
RUNS["a resumed run from weights that are half moved"] = _from_half_moved
