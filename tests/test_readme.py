"""What the README says: its commands run, its code runs, its figures are those of the code."""

import re
import shlex
import subprocess
import sys

import pytest
import resnest.torch
import torch
from conftest import ROOT
from test_train_net import TINY

from resnest_d2.config import ADDED

README = (ROOT / "README.md").read_text()


def blocks(language):
    return re.findall(rf"```{language}\n(.*?)```", README, re.S)


COMMANDS = [line for block in blocks("bash") for line in block.splitlines()]


def test_every_command_is_a_make_target_an_installation_or_a_tool():
    """Make targets run in CI, the installation in test_package.py, the tools below."""
    targets = (ROOT / "Makefile").read_text()
    in_ci = (ROOT / ".ci" / "run").read_text()
    for command in COMMANDS:
        first, second, *_ = command.split()
        if first == "make":
            assert re.search(rf"^{second}:", targets, re.M)
            # test_quickstart.py runs the former; the latter needs a GPU, and test_gpu.py rehearses it.
            assert second in ("quickstart", "gpu") or f" {second}" in in_ci
        else:
            assert command == "pip install ." or first == "python"


def test_tool_commands_run_in_their_order(run_python, coco_root, tmp_path):
    """On 50 real images, one process, few iterations, a shallow backbone; else as written."""
    for name in ("tools", "configs"):
        (tmp_path / name).symlink_to(ROOT / name)
    (tmp_path / "bccd").symlink_to(coco_root / "bccd")
    torch.save(resnest.torch.resnest50().state_dict(), tmp_path / "resnest50-528c19ca.pth")
    for command in COMMANDS:
        words = shlex.split(command)
        if words[0] != "python":
            continue
        if not {"tools/train_net.py", "tools/draw_predictions.py"} & {*words}:
            few = ("--images", 100) if "benchmark_coco_eval" in command else ()
            result = run_python(*words[1:], *few, cwd=tmp_path)
            found = "check_dataset" in command  # a box without area, which came so
            assert result.returncode == found, (command, result.stderr[-3000:])
            continue
        if "--num-gpus" in words:
            del words[words.index("--num-gpus") : words.index("--num-gpus") + 2]
        tiny = [*map(str, TINY)]
        if "--epochs" in words:
            words[words.index("--epochs") + 1] = "0.02"
            del tiny[tiny.index("SOLVER.MAX_ITER") : tiny.index("SOLVER.MAX_ITER") + 2]
        if "MODEL.WEIGHTS" in words:
            del tiny[tiny.index("MODEL.WEIGHTS") : tiny.index("MODEL.WEIGHTS") + 2]
        if "SOLVER.REFERENCE_WORLD_SIZE" in words:  # from 8 processes to one
            tiny += ["SOLVER.IMS_PER_BATCH", "16", "SOLVER.MAX_ITER", "1"]
        result = run_python(*words[1:], *tiny, cwd=tmp_path, env={"DETECTRON2_DATASETS": coco_root})
        assert result.returncode == 0, (command, result.stderr[-3000:])
        if "REFERENCE_WORLD_SIZE" in command:
            assert "batch_size=2, learning_rate=0.0025, max_iter=8" in result.stdout
    assert len(list((tmp_path / "output" / "pictures").iterdir())) == 12
    assert (tmp_path / "resnest50_d2.pth").exists()


@pytest.mark.parametrize("code", blocks("python"), ids=lambda code: code.split("\n")[0])
def test_python_code_runs(code, tmp_path):
    result = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr


def test_every_key_that_is_added_is_explained():
    documented = dict(re.findall(r"^\| `(\w+\.[\w.]+)` \| (\w+|\[\]) \|", README, re.M))
    assert documented == {
        f"{section}.{key}": str(default) for section, keys in ADDED.items() for key, default in keys.items()
    }
