"""Real data and published figures live outside the repository; see `shared`."""

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from support import ROOT, SHARED, of_images

# For PyTorch, which nobody has imported yet: threads of two processes that share the cores wait for each other,
# spinning. Processes that tests start have as many.
os.environ.setdefault("OMP_NUM_THREADS", "1")


def pytest_configure(config) -> None:
    """A folder of datasets for all processes of the tests: of the generated ones, few images are enough there."""
    signal.signal(signal.SIGHUP, signal.SIG_DFL)  # which nohup ignores, also for all that tests start
    if not hasattr(config, "workerinput"):  # xdist's workers inherit it
        os.environ["DETECTRON2_DATASETS"] = folder = tempfile.mkdtemp()
        config.add_cleanup(lambda: shutil.rmtree(folder, ignore_errors=True))


def pytest_collection_modifyitems(items) -> None:
    """The longest first, so that no process has one of them left when the other has nothing.

    Those of minutes are marked with their number.
    """
    marked = {item: item.get_closest_marker("long") for item in items}
    items.sort(key=lambda item: -max((0, *marked[item].args)) if marked[item] else 1)


@pytest.fixture(scope="session", autouse=True)
def few_shapes() -> Path:
    """The folder of shapes_train and shapes_val, with 24 + 4 images before somebody writes all."""
    from resnest_d2.data import generate_shapes

    folder = Path(os.environ["DETECTRON2_DATASETS"], "shapes")
    if not folder.exists():
        generate_shapes(folder, num_images={"train": 24, "val": 4})
    return folder


def _shared(*parts: str) -> Path:
    path = SHARED.joinpath(*parts)
    if not path.exists():
        pytest.skip(f"{path} is not there; RESNEST_D2_SHARED names the folder of test data")
    return path.resolve()


@pytest.fixture(scope="session")
def facts():
    """facts("coco_recipes"): published figures from that JSON file."""
    return lambda name: json.loads(_shared("facts", f"{name}.json").read_text())


@pytest.fixture(scope="session")
def coco_root() -> Path:
    """A DETECTRON2_DATASETS folder with 50 + 50 real COCO images."""
    return _shared("datasets", "coco").parent


@pytest.fixture(scope="session")
def few_coco(coco_root, tmp_path_factory) -> Path:
    """The same with 8 + 8 of the images, 4 of them with people, for what has to run rather than to score."""
    root = tmp_path_factory.mktemp("few_coco")
    (root / "coco/annotations").mkdir(parents=True)
    for split in ("train2017", "val2017"):
        (root / "coco" / split).symlink_to(coco_root / "coco" / split)
        files = [f"coco/annotations/{kind}_{split}.json" for kind in ("person_keypoints", "instances")]
        people, everything = (json.loads((coco_root / file).read_text()) for file in files)
        chosen = dict.fromkeys(a["image_id"] for a in people["annotations"] if a["num_keypoints"])
        chosen = {
            *list(chosen)[:4],
            *[image["id"] for image in everything["images"] if image["id"] not in chosen][:4],
        }
        assert len(chosen) == 8
        for file, content in zip(files, (people, everything)):
            (root / file).write_text(json.dumps(of_images(content, chosen)))
    return root


@pytest.fixture(scope="session")
def fixtures() -> Path:
    """Folder of data with known answers."""
    return _shared("fixtures")


@pytest.fixture
def run_python():
    """run_python("tools/x.py", "--flag", cwd=..., env=...): a finished process, output captured.

    A file of Python runs in a forked copy of a process that has everything imported (forks.py); -c, -m and other
    options of Python get a new interpreter.
    """

    import forks

    def run(*args, env=None, timeout=600, cwd=ROOT) -> subprocess.CompletedProcess:
        environment = {**os.environ, **{k: str(v) for k, v in (env or {}).items()}}
        if str(args[0]).endswith(".py"):
            return forks.run(args, cwd=cwd, environment=environment, timeout=timeout)
        return subprocess.run(
            [sys.executable, *map(str, args)],
            **{"capture_output": True, "text": True, "timeout": timeout, "env": environment, "cwd": cwd},
        )

    return run
