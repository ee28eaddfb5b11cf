"""Results, metrics, detections and settings that the tools for reading them are given."""

from __future__ import annotations

import gzip
import json
import os
import shlex
import sys
from functools import partial
from pathlib import Path
from typing import Any, Callable, Dict, Optional, Sequence

import numpy as np
import pycocotools.mask
from PIL import Image

from .case import Case

REPORTS: Dict[str, Callable[[Path, np.random.Generator], Case]] = {}

_DETECTIONS = "run/inference/coco_instances_results.json"
_ROW = "mask_resnest50"
REFUSED: Dict = {"works": False}
WORKS: Dict = {"refused": None, "works": True}
EITHER: Dict = {"works": True}


def _rle() -> Dict[str, Any]:
    mask = np.zeros((48, 64), np.uint8, order="F")
    mask[4:40, 4:40] = 1
    rle = pycocotools.mask.encode(mask)
    return {"size": [48, 64], "counts": rle["counts"].decode()}


def _truth() -> Dict[str, Any]:
    box = {"bbox": [4, 4, 36, 36], "area": 1296, "iscrowd": 0}
    shapes = ([[4, 4, 40, 4, 40, 40, 4, 40]], _rle())
    return {
        "images": [{"id": i, "file_name": f"{i}.jpg", "width": 64, "height": 48} for i in (1, 2)],
        "annotations": [
            {"id": i, "image_id": i, "category_id": i, "segmentation": shape, **box}
            for i, shape in enumerate(shapes, 1)
        ],
        "categories": [{"id": 1, "name": "a"}, {"id": 2, "name": "b"}],
    }


def _evaluation(folder: Path, masks: bool) -> None:
    """What an evaluation leaves behind. Masks take twice the time."""
    (folder / "run/inference").mkdir(parents=True)
    (folder / "images").mkdir()
    for i in (1, 2):
        Image.new("RGB", (64, 48), (80 * i, 60, 90)).save(folder / f"images/{i}.jpg")
    (folder / "truth.json").write_text(json.dumps(_truth()))
    found = [
        {"image_id": i, "category_id": i, "score": 0.9, "bbox": [4, 4, 36, 30], "segmentation": _rle()}
        for i in (1, 2)
    ]
    for entry in found if not masks else ():
        del entry["segmentation"]
    (folder / _DETECTIONS).write_text(json.dumps(found))
    dataset = {"name": "own", "json_file": str(folder / "truth.json"), "image_root": str(folder / "images")}
    run = {
        "results": {"bbox": {"AP": 50.0}}, "command": "train_net.py --config-file configs/quickstart.yaml",
        "datasets": [dataset], "date": "2026-01-01T00:00:00", "gpu": None, "commit": None,
        "versions": {"torch": "2"}, "wall_seconds": 7.0,
    }  # fmt: skip
    (folder / "run/results.json").write_text(json.dumps(run))
    lines = [{"iteration": i, "total_loss": 1.0 / i, "lr": 0.1} for i in (19, 39, 59)]
    (folder / "run/metrics.json").write_text("".join(json.dumps(line) + "\n" for line in lines))


def _report(
    change: Callable[[Path], Any],
    flags: Sequence[object],
    expected: Dict,
    folder: Path,
    rng: np.random.Generator,
    masks: bool = False,
) -> Case:
    _evaluation(folder, masks)
    change(folder)
    words = [str(flag).replace("FOLDER", str(folder)) for flag in flags]
    check = partial(_written, folder / "run/report.html")
    return Case(["report.py", folder / "run", "--num-pictures", 0, *words], check=check, **expected)


def _written(file: Path) -> Optional[str]:
    left = [path.name for path in file.parent.iterdir() if path.name.startswith(".")]
    return f"left {left}" if left else None if file.read_text().endswith("</html>") else "no page"


def _nothing(folder: Path) -> None:
    pass


def _bytes(file: str, damage: Callable[[bytes], bytes], folder: Path) -> None:
    (folder / file).write_bytes(damage((folder / file).read_bytes()))


def _instead(file: str, make: Callable[[Path], Any], folder: Path) -> None:
    (folder / file).unlink(missing_ok=True)
    make(folder / file)


DAMAGES: Dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda b: b"",
    "binary": lambda b: bytes(range(256)),
    "UTF-16": lambda b: b.decode().encode("utf-16"),
    "compressed": gzip.compress,
    "cut": lambda b: b[: len(b) // 2],
    "zeros at its end": lambda b: b[: len(b) // 2] + bytes(512),
    "null": lambda b: b"null",
    "a number": lambda b: b"3",
    "a text": lambda b: b'"x"',
    "a list of lists": lambda b: b"[[[]]]",
    "an empty object": lambda b: b"{}",
    "nested": lambda b: b"[" * 200_000,
    "nested inside": lambda b: b[:1] + b'"x": ' * (b[:1] == b"{") + b"[" * 5000 + b"]" * 5000 + b[1:],
    "a number of ten thousand digits": lambda b: b"[" + b"9" * 10_000 + b"]",
}
# Of metrics, damaged lines are left out; a file of nothing else is refused where it has several lines.
for file, good in (
    ("truth.json", ()),
    (_DETECTIONS, ()),
    ("run/results.json", ()),
    ("run/metrics.json", DAMAGES),
):
    for title, damage in DAMAGES.items():
        expected = {**(EITHER if title in good else REFUSED), "refused": (Path(file).name,)}
        REPORTS[f"report: {file}: {title}"] = partial(_report, partial(_bytes, file, damage), (), expected)
    for title, make in {"a folder": Path.mkdir, "a FIFO": os.mkfifo}.items():
        change = partial(_instead, file, make)
        expected = {**REFUSED, "refused": (Path(file).name, title[2:])}
        REPORTS[f"report: {file}: {title}"] = partial(_report, change, (), expected)
for title, damage in {
    "last line cut": lambda b: b[:-20],
    "a line cut and gone on after": lambda b: b[:60] + b,
    "not a number": lambda b: b + b'{"iteration": 79, "total_loss": NaN, "lr": Infinity}\n',
    "texts for numbers": lambda b: b + b'{"iteration": 79, "total_loss": "x", "lr": [1]}\n',
    "no iteration": lambda b: b + b'{"total_loss": 1}\n',
    "many losses": lambda b: (
        b + json.dumps({"iteration": 79, **{f"loss_{i}": i for i in range(200)}}).encode()
    ),
    "dollars in a loss": lambda b: b.replace(b"total_loss", b"loss_$x_$"),
}.items():
    REPORTS[f"report: metrics: {title}"] = partial(
        _report, partial(_bytes, "run/metrics.json", damage), (), WORKS
    )


def _set(file: str, path: Sequence[Any], value: Any, folder: Path) -> None:
    content = node = json.loads((folder / file).read_text())
    for key in path[:-1]:
        node = node[key]
    if value is _set:
        del node[path[-1]]
    else:
        node[path[-1]] = value
    (folder / file).write_text(json.dumps(content))


def _fields(file: str, fields: Dict[Sequence[Any], Sequence[Any]], expected: Dict) -> None:
    """Each of the values in place of what is there; ``_set`` stands for leaving it out."""
    for path, values in fields.items():
        for value in values:
            shown = "missing" if value is _set else str(value)[:30]
            title = f"report: {Path(file).name}: {'.'.join(map(str, path))} {shown}"
            named = {
                **expected,
                "refused": (Path(file).name, str(path[-1])) if path[-1] != 1 else (Path(file).name,),
            }
            masks = "segmentation" in path
            REPORTS[title] = partial(_report, partial(_set, file, path, value), (), named, masks=masks)


_NAN, _INF = float("nan"), float("inf")
_fields(
    _DETECTIONS,
    {
        (1,): (None, 3, [], "x", {}),
        (1, "image_id"): (_set, None, "1", 99, True, [1], 10**30),
        (1, "category_id"): (_set, None, 0, {}),
        (1, "score"): (_set, None, "0.9", _NAN, _INF, True, [0.9], 10**400),
        (1, "bbox"): (_set, None, [], [1, 2, 3], "1,2,3,4", [1, 2, _NAN, 4], [1, 2, -3, 4], [1e300, 0, 1, 1]),
        (1, "segmentation"): (
            *(_set, None, "x", {}, [[1, 2, 3, 4, 5, 6]], {"size": [48, 64]}),
            *({"size": [64, 48], "counts": _rle()["counts"]}, {"size": [48, 64], "counts": "###"}),
            *({"size": [48, 64], "counts": "o" * 50}, {"size": [48, 64], "counts": [5]}),
            *({"size": [48, 64], "counts": [-1, 3073]}, {"size": [10**9, 10**9], "counts": "0"}),
            {"size": [48, 64], "counts": _rle()["counts"][:-1] + "o"},
        ),
    },
    REFUSED,
)
_fields(
    "truth.json",
    {
        ("annotations", 1): (None, 3, "x", []),
        ("annotations", 1, "id"): (None, "x"),
        ("annotations", 1, "image_id"): (_set, "1", 99),
        ("annotations", 1, "category_id"): (_set, None, 99),
        ("annotations", 1, "bbox"): (_set, [1, 2, 3], [1, 2, _NAN, 4]),
        ("annotations", 1, "area"): ("x", [1], _NAN),
        ("annotations", 1, "iscrowd"): ("x", 5),
        ("annotations", 1, "segmentation"): (_set, 5, "x", [[1e9] * 6], [["a"] * 6], {"size": [48, 64]}),
        ("annotations", 1, "keypoints"): ("x", [1, 2], ["a"] * 51),
        ("images", 1): (None, 3, "x"),
        ("images", 1, "id"): (_set, None, "x", 1),
        ("images", 1, "file_name"): (_set, None, 3),
        ("images", 1, "width"): (_set, None, 0, 10**9, "64"),
        ("categories", 1): (None, 3),
        ("categories", 1, "id"): (_set, "x", 1),
        ("categories", 1, "name"): (_set, None, 3),
    },
    EITHER,  # what is missing may be made up for
)
for path in (("images",), ("categories",)):
    for value in (None, {}, [], "x", _set):
        REPORTS[f"report: truth: {path[0]} {value if value is not _set else 'missing'}"] = partial(
            _report, partial(_set, "truth.json", path, value), (), {"refused": ("truth.json", path[0])}
        )
_fields(
    "run/results.json",
    {
        ("results",): (_set, None, 3, []),
        ("results", "bbox"): (3, "x"),
        ("results", "bbox", "AP"): ("x", _NAN, [1]),
        ("command",): (3, ["x"], 'train_net.py "'),
        ("datasets",): (3, "x", {}, [3], [{}], [{"name": 3}], [{"name": "x", "json_file": 3}]),
        ("gpu",): (3, ["x"]),
        ("date",): (3, []),
        ("commit",): (3, {}),
        ("versions",): (3, [], {"torch": 3}),
        ("wall_seconds",): ("x", _INF),
    },
    REFUSED,
)
for path, value in ((("datasets",), []), (("datasets",), None)):
    REPORTS[f"report: results.json: datasets {value}"] = partial(
        _report, partial(_set, "run/results.json", path, value), (), {"refused": ()}
    )
for name in ("date", "gpu", "commit", "versions", "command", "wall_seconds"):
    REPORTS[f"report: results.json: no {name}"] = partial(
        _report, partial(_set, "run/results.json", (name,), _set), (), WORKS
    )
for name in (
    "$x_1$",
    "$\\frac$",
    "a\nb",
    "",
    "_a",
    "<script>alert(1)</script>",
    "x" * 10_000,
    "שלום",
    "😀",
    "\ud800",
    "\0",
):
    REPORTS[f"report: a class named {name[:30]!r}"] = partial(
        _report, partial(_set, "truth.json", ("categories", 0, "name"), name), (), EITHER
    )

for words, texts in (
    (("--num-pictures", -1), ("--num-pictures", ">= 0")),
    (("--num-pictures", 10**9), ("--num-pictures", "<= 200")),
    (("--annotations", "FOLDER/images"), ("--annotations", "folder")),
    (("--annotations", "FOLDER/fifo"), ("--annotations", "FIFO")),
    (("--annotations", "FOLDER/none.json"), ("--annotations", "No such file")),
    (("--annotations", "FOLDER/images/1.jpg"), ("1.jpg",)),
    (("--annotations", "FOLDER/run/results.json"), ("results.json", "images")),
    (("--annotations", "FOLDER/" + _DETECTIONS), ("coco_instances_results.json",)),
    (("--images", "FOLDER/none"), ("--images", "not a folder")),
    (("--images", "FOLDER/truth.json"), ("--images", "not a folder")),
    (("--row", "mask_resnest5"), ("--row", "did you mean mask_resnest50")),
    (("--row", ""), ("--row",)),
    (("--output", "FOLDER/images"), ("images", "folder")),
    (("--output", "FOLDER/fifo"), ("fifo", "FIFO")),
    (("--output", "/dev/null"), ("/dev/null", "device")),
    (("--output", "/proc/none/page.html"), ("/proc/none",)),
    (("--output", "FOLDER/truth.json/page.html"), ("truth.json",)),
    (("--output", "FOLDER/" + "x" * 300), ("name too long",)),
):
    REPORTS[f"report: {' '.join(map(str, words))}"] = partial(
        _report, lambda folder: os.mkfifo(folder / "fifo"), words, {"refused": texts}
    )


def _no_run(folder: Path, rng: np.random.Generator, name: str = "none") -> Case:
    (folder / "file").touch()
    return Case(["report.py", folder / name], refused=(name, "coco_instances_results.json"))


REPORTS["report: a folder that is not there"] = _no_run
REPORTS["report: a file for a folder"] = partial(_no_run, name="file")


def _reproduce(
    change: Callable[[Path], Any],
    flags: Sequence[object],
    expected: Dict,
    folder: Path,
    rng: np.random.Generator,
) -> Case:
    """A row that is finished, so that nothing is trained."""
    row = folder / "out" / _ROW
    row.mkdir(parents=True)
    (row / "results.json").write_text(json.dumps({"results": {"bbox": {"AP": 42.0}}, "gpu": None}))
    change(row)
    words = ["reproduce.py", "--output", folder / "out", "--num-gpus", 1, *flags]
    return Case(words, check=lambda: None if (folder / "out/table.md").exists() else "no table", **expected)


_ROWS = ("--rows", _ROW)
for title, damage in DAMAGES.items():
    for file in ("results.json", "command.txt"):
        if file == "command.txt" and title == "empty":
            continue
        REPORTS[f"reproduce: {file}: {title}"] = partial(
            _reproduce,
            lambda row, f=file, d=damage: (row / f).write_bytes(d(json.dumps({"a": [1, "x"]}).encode())),
            _ROWS,
            {"refused": (file,)},
        )
for title, make in {"a folder": Path.mkdir, "a FIFO": os.mkfifo}.items():
    for file in ("results.json", "command.txt", "stdout.txt"):
        REPORTS[f"reproduce: {file}: {title}"] = partial(
            _reproduce, partial(_instead, file, make), _ROWS, {"refused": (file, title[2:])}
        )
    for file in ("results.json", "table.md"):
        REPORTS[f"reproduce: {file} of all rows: {title}"] = partial(
            _reproduce, partial(_instead, f"../{file}", make), _ROWS, {"refused": (file, title[2:])}
        )
for title, value in (
    ("of another row", "python train_net.py --config-file other.yaml"),
    ("with more words", shlex.join([sys.executable, "x", "y"])),
    ("with a quote", 'python "'),
):
    REPORTS[f"reproduce: command.txt {title}"] = partial(
        _reproduce,
        lambda row, v=value: (row / "command.txt").write_text(v),
        _ROWS,
        {"refused": ("command.txt",)},
    )
for title, change in {
    "finished": _nothing,
    "an empty command.txt": lambda row: (row / "command.txt").touch(),
    "a binary log": lambda row: (row / "stdout.txt").write_bytes(bytes(range(256))),
}.items():
    REPORTS[f"reproduce: {title}"] = partial(_reproduce, change, _ROWS, WORKS)
REPORTS["reproduce: damaged results of all rows"] = partial(
    _reproduce,
    lambda row: (row.parent / "results.json").write_bytes(b"\xff["),
    _ROWS,
    {"refused": ("results.json is not UTF-8 text",)},
)
for words, texts in (
    ((), ("--table", "--rows", "--all")),
    (("--table", "1"), ("--table 1", "2, 3, 4, 5, 6, 7")),
    (("--table", "five"), ("--table five",)),
    (("--table", "5", "--all"), ("one of",)),
    (("--rows", "mask_resnest5"), ("mask_resnest5", "did you mean mask_resnest50")),
    (("--rows", ","), ("--rows",)),
    (("--rows", f"{_ROW},x"), ("'x'",)),
    ((*_ROWS, "--num-gpus", 0), ("--num-gpus", ">= 1")),
    ((*_ROWS, "--num-gpus", -1), ("--num-gpus",)),
    ((*_ROWS, "--num-gpus", 10**12), ("--num-gpus",)),
    ((*_ROWS, "--num-machines", 0), ("--num-machines", ">= 1")),
    ((*_ROWS, "--num-machines", -1, "--slurm"), ("--num-machines",)),
    ((*_ROWS, "--num-machines", 2), ("--num-machines 2", "--slurm")),
    ((*_ROWS, "--output", "/dev/null"), ("/dev/null",)),
    ((*_ROWS, "--output", "/proc/none"), ("/proc/none",)),
    ((*_ROWS, "SOLVER.BASE_LR"), ("KEY VALUE",)),
    ((*_ROWS, "SOLVER.BASE_LT", 1), ("SOLVER.BASE_LR",)),
    ((*_ROWS, "SOLVER.BASE_LR", "x"), ("BASE_LR",)),
    ((*_ROWS, "OUTPUT_DIR", "x"), ("OUTPUT_DIR", "--output")),
):
    REPORTS[f"reproduce: {' '.join(map(str, words))}"] = partial(
        _reproduce, _nothing, words, {"refused": texts}
    )


def _benchmark(
    make: Callable[[Path], Any],
    flags: Sequence[object],
    expected: Dict,
    folder: Path,
    rng: np.random.Generator,
) -> Case:
    """No row is begun."""
    make(folder)
    words = [str(flag).replace("FOLDER", str(folder)) for flag in flags]
    words = ["--device", "cpu", "--minutes", 0, "--only", "backbone inference, as run", *words]
    return Case(["benchmark.py", *words], **expected)


def _measurements(**values: Any) -> bytes:
    """Of another machine, were they sound."""
    row = [
        "a row",
        "backbone inference",
        "mask_resnest50",
        [64, 96],
        1,
        "ours",
        "released",
        "fp32",
        False,
        64,
        "contiguous",
    ]
    result = {"comparison": row, "ours": [1.0], "theirs": [2.0], "our_memory": 1, "their_memory": 1,
              "our_profile": {}, "their_profile": {}, "commit": None}  # fmt: skip
    return json.dumps(
        {"facts": {"machine": "an abacus", "torch": "2"}, "results": [{**result, **values}], "pipelines": []}
    ).encode()


for title, content in {
    **{title: damage(b'{"facts": {}}') for title, damage in DAMAGES.items()},
    "facts alone": b'{"facts": {}}',
    "facts that are a list": b'{"facts": [], "results": [], "pipelines": []}',
    "another machine": _measurements(),
    "results that are numbers": b'{"facts": {}, "results": [1], "pipelines": []}',
    "results without times": _measurements(ours=[], theirs=[]),
    "times of one side": _measurements(ours=[1.0, 2.0]),
    "times that are texts": _measurements(ours=["1"]),
    "times that are zero": _measurements(ours=[0.0]),
    "times that are not numbers": _measurements(theirs=[_NAN]),
    "a row of texts": _measurements(comparison=["x"] * 11),
    "a short row": _measurements(comparison=["x"]),
    "a profile that is a list": _measurements(our_profile=[1], their_profile=[1]),
    "a profile of zeros": _measurements(our_profile={"x": 0}, their_profile={"x": 0}),
    "a field too many": _measurements(other=1),
    "a memory that is a text": _measurements(our_memory="x"),
    "a commit that is a number": _measurements(commit=3),
    "a pipeline without numbers": b'{"facts": {}, "results": [], "pipelines": [{"config": "x"}]}',
}.items():
    REPORTS[f"benchmark: --json {title}"] = partial(
        _benchmark,
        lambda folder, c=content: (folder / "m.json").write_bytes(c),
        ("--json", "FOLDER/m.json"),
        {"refused": ("--json", "m.json")},
    )
for words, texts in (
    (("--rounds", 0), ("--rounds", ">= 1")),
    (("--rounds", -3), ("--rounds",)),
    (("--minutes", "nan"), ("--minutes", ">= 0")),
    (("--minutes", -1), ("--minutes",)),
    (("--device", "tpu"), ("--device tpu", "cpu")),
    (("--device", "cuda:9"), ("--device cuda:9",)),
    (("--device", ""), ("--device",)),
    (("--only", "backbone inferenze"), ("--only", "did you mean backbone inference")),
    (("--json", "FOLDER"), ("folder",)),
    (("--json", "FOLDER/fifo"), ("FIFO",)),
    (("--json", "/dev/null"), ("/dev/null",)),
    (("--json", "FOLDER/other.md/m.json"), ("other.md",)),
    (("--page", "FOLDER"), ("folder",)),
    (("--page", "FOLDER/fifo"), ("FIFO",)),
    (("--page", "FOLDER/other.md"), ("other.md", "would be lost")),
    (("--page", "FOLDER/binary.md"), ("binary.md",)),
):
    REPORTS[f"benchmark: {' '.join(map(str, words))}"] = partial(
        _benchmark,
        lambda folder: (
            os.mkfifo(folder / "fifo"),
            (folder / "other.md").write_text("# My notes\n"),
            (folder / "binary.md").write_bytes(b"\xff\xfe"),
        ),
        words,
        {"refused": texts},
    )
REPORTS["benchmark: an empty page"] = partial(
    _benchmark, lambda folder: (folder / "p.md").touch(), ("--page", "FOLDER/p.md"), WORKS
)


def _backends(flag: str, value: object, folder: Path, rng: np.random.Generator) -> Case:
    return Case(["benchmark_coco_eval.py", flag, value], refused=(flag, ">= 1"))


for flag in ("--images", "--detections", "--repeats"):
    for value in (0, -1, 10**9):
        REPORTS[f"benchmark_coco_eval: {flag} {value}"] = partial(_backends, flag, value)


_LABELS = "run/inference/sem_seg_evaluation.json"


def _semantic(change: Callable[[Path], Any], expected: Dict, folder: Path, rng: np.random.Generator) -> Case:
    """An evaluation of semantic segmentation, with pictures."""
    predictions = folder / "run/inference/sem_seg_predictions"
    predictions.mkdir(parents=True)
    for name in ("image.jpg", "mask.png"):
        mode, colour = ("L", 1) if name == "mask.png" else ("RGB", (90, 60, 30))
        Image.new(mode, (64, 48), colour).save(folder / name)
    Image.new("L", (64, 48), 0).save(predictions / "image.png")
    image = {"file_name": str(folder / "image.jpg"), "sem_seg_file_name": str(folder / "mask.png")}
    content = {
        "dataset": "own",
        "classes": ["a", "b"],
        "results": {"mIoU": 0.0, "pACC": 0.0, "IoU-a": None},
        "confusion": [[0, 0], [3072, 0]],
        "images": [{**image, "mIoU": 0.0, "pACC": 0.0, "prediction": "image.png"}],
    }
    (folder / _LABELS).write_text(json.dumps(content))
    change(folder)
    check = partial(_written, folder / "run/report.html")
    return Case(["report.py", folder / "run"], check=check, **expected)


REPORTS["labels: as they are"] = partial(_semantic, _nothing, WORKS)
for title, damage in DAMAGES.items():
    REPORTS[f"labels: {title}"] = partial(
        _semantic, partial(_bytes, _LABELS, damage), {"refused": ("sem_seg_evaluation.json",), "works": True}
    )
for title, make in {"a folder": Path.mkdir, "a FIFO": os.mkfifo}.items():
    REPORTS[f"labels: {title}"] = partial(
        _semantic, partial(_instead, _LABELS, make), {"refused": ("sem_seg_evaluation.json", title[2:])}
    )
for where, values in {
    ("dataset",): (None, 3, []),
    ("classes",): (None, [], "ab", ["a"], ["a", "b", "c"], ["a", 3], {"a": 1}),
    ("results",): (None, [], {"mIoU": "x"}, {"mIoU": float("nan")}, {"mIoU": [1]}),
    ("confusion",): (
        None,
        [],
        [[1]],
        [[1, 2]],
        [[1, 2], [3]],
        [[1, 2], [3, -4]],
        [[1, 2], [3, 0.5]],
        [[1, 2], 3],
    ),
    ("confusion", 0, 0): (2**53, True, None, 1e300),
    ("images",): (None, {}, [3], [None]),
    ("images", 0, "file_name"): (None, 3, []),
    ("images", 0, "prediction"): (None, {}),
    ("images", 0, "mIoU"): ("x", float("inf"), []),
}.items():
    for value in values:
        REPORTS[f"labels: {'.'.join(map(str, where))} {json.dumps(value)[:40]}"] = partial(
            _semantic, partial(_set, _LABELS, where, value), {"refused": ("sem_seg_evaluation.json",)}
        )
# An image that cannot be shown leaves a note on the page.
for where, value in {
    ("images", 0, "file_name"): "/none.jpg",
    ("images", 0, "sem_seg_file_name"): "/dev/zero",
    ("images", 0, "prediction"): "../../../mask.png",
    ("classes", 0): "<script>alert(1)</script>\ud800",
}.items():
    REPORTS[f"labels: {where[-1]} {value[:30]!r}"] = partial(
        _semantic, partial(_set, _LABELS, where, value), EITHER
    )
