"""Real data and published figures live outside the repository; see `shared`."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parent.parent
SHARED = Path(os.getenv("RESNEST_D2_SHARED", ROOT.parent / "shared"))

torch.set_num_threads(2)


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
def fixtures() -> Path:
    """Folder of data with known answers."""
    return _shared("fixtures")


@pytest.fixture
def run_python():
    """run_python("tools/x.py", "--flag", cwd=..., env=...): a finished subprocess, output captured."""

    def run(*args, env=None, timeout=600, **kwargs) -> subprocess.CompletedProcess:
        return subprocess.run(
            [sys.executable, *map(str, args)],
            capture_output=True,
            text=True,
            timeout=timeout,
            env={**os.environ, **{k: str(v) for k, v in (env or {}).items()}},
            **{"cwd": ROOT, **kwargs},
        )

    return run


def assert_one_line_error(result: subprocess.CompletedProcess, *expected: str) -> None:
    """The command ended with status 2 and one line on stderr that holds every expected text."""
    assert result.returncode == 2, result.stderr[-2000:]
    lines = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1, result.stderr[-2000:]
    assert "Traceback" not in result.stderr + result.stdout
    for text in expected:
        assert text in lines[0], lines[0]
