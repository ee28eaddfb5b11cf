"""Files in examples/: each runs as its user would run it, and does what it says."""

import json
import os
import re
import shutil
import subprocess
import sys

import forks
import nbformat
import pytest
import torch
from nbclient import NotebookClient
from robust.tiny import SETTINGS
from support import ROOT

from resnest_d2 import ResNeSt

EXAMPLES = ROOT / "examples"


def run(name, folder, *overrides):
    """The output of an example, in a folder of its own, with a narrow network for 40 iterations."""
    words = [EXAMPLES / f"{name}.py", *SETTINGS, "SOLVER.MAX_ITER", 40, "SOLVER.CHECKPOINT_PERIOD", 40]
    result = forks.run([*words, *overrides], cwd=folder, environment=os.environ, timeout=300)
    assert result.returncode == 0, result.stdout[-2000:] + result.stderr[-2000:]
    return result.stdout


def losses(folder):
    """The total loss of iterations 20 and 40, each the median of 20."""
    rows = map(json.loads, (folder / "metrics.json").read_text().splitlines())
    return [row["total_loss"] for row in rows if "total_loss" in row]


def weights(folder):
    return torch.load(folder / "model_final.pth", weights_only=False)["model"]


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.py")), ids=lambda path: path.name)
def test_examples_are_short_and_begin_with_their_command(path):
    lines = path.read_text().splitlines()
    assert 15 <= len(lines) <= 60
    docstring = path.read_text().split('"""')[1]
    assert f"python examples/{path.name}" in docstring


def test_own_project_trains_and_evaluates_with_detectron2s_trainer(tmp_path):
    output = run("own_project", tmp_path)
    folder = tmp_path / "output/own_project"
    first, last = losses(folder)
    assert last < 0.9 * first
    assert any(".bottom_up.res2.0.conv2.fc1." in key for key in weights(folder))  # Split-Attention
    assert "Evaluation results for bbox" in output


def test_own_head_learns(tmp_path):
    run("own_head", tmp_path, "MODEL.MASK_ON", True)
    folder = tmp_path / "output/own_head"
    first, last = losses(folder)
    assert last < 0.9 * first
    assert weights(folder)["sem_seg_head.layers.1.weight"].shape[0] == 2


def test_input_channels_start_from_rgb_weights(tmp_path):
    torch.manual_seed(0)
    net = ResNeSt(14, res2_out_channels=32, bottleneck_width=8)
    torch.save(net.state_dict(), tmp_path / "rgb.pth")
    run("input_channels", tmp_path, "MODEL.WEIGHTS", tmp_path / "rgb.pth")
    start = torch.load(tmp_path / "output/input_channels/four_channels.pth")["model"]["stem.conv1_1.weight"]
    rgb = net.stem.conv1_1.weight.detach()
    assert torch.equal(start[:, :3], rgb) and torch.equal(start[:, 3], rgb.mean(1))
    first, last = losses(tmp_path / "output/input_channels")
    assert last < 0.9 * first
    end = weights(tmp_path / "output/input_channels")["backbone.bottom_up.stem.conv1_1.weight"]
    assert torch.cosine_similarity(start.flatten(), end.flatten(), dim=0) > 0.9  # it started there
    assert (end - start).abs().amax((0, 2, 3)).min() > 0  # and all channels learn


@pytest.fixture
def notebook():
    return nbformat.read(EXAMPLES / "quickstart.ipynb", as_version=4)


def tagged(notebook, tag):
    return [cell for cell in notebook.cells if tag in cell.metadata.get("tags", ())]


def install_options():
    """Those with which the Makefile installs detectron2."""
    recipe = (ROOT / "Makefile").read_text().split("\ndetectron2:\n")[1].split("rm -rf")[0]
    options = re.findall(r"--[\w-]+(?:=\S+| (?!--)[\w./]+)?", recipe)
    assert len(options) == 6 and "--python-version 3.10" in options
    return options


def test_notebook_is_valid_and_stores_no_outputs(notebook):
    nbformat.validate(notebook)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert code and not any(cell.outputs or cell.execution_count for cell in code)


def test_notebook_installs_the_pinned_detectron2(notebook):
    """From the file with its hash, as the Makefile does."""
    pinned = (ROOT / "requirements/detectron2.txt").read_text().splitlines()
    requirement, wheel_hash = next(line for line in pinned if not line.startswith("#")).split()
    assert re.fullmatch(r"--hash=sha256:[0-9a-f]{64}", wheel_hash)
    installs = "\n".join(cell.source for cell in tagged(notebook, "install"))
    assert requirement in installs and installs.count("==") == 1
    assert [option for option in install_options() if option not in installs] == []


@pytest.mark.slow
def test_notebook_trains_evaluates_and_shows_pictures(notebook, tmp_path):
    """Its cells but for the installation, with a narrow network for few iterations."""
    (parameters,) = tagged(notebook, "parameters")
    small = [*map(str, SETTINGS), "MODEL.MASK_ON", "True", "MODEL.ROI_HEADS.SCORE_THRESH_TEST", "0.0"]
    parameters.source = f"iterations, overrides, output = 4, {small!r}, {str(tmp_path / 'run')!r}"
    notebook.cells = [cell for cell in notebook.cells if cell not in tagged(notebook, "install")]
    NotebookClient(
        notebook, kernel_name="python3", timeout=300, resources={"metadata": {"path": tmp_path}}
    ).execute()
    outputs = [cell.outputs for cell in notebook.cells if cell.cell_type == "code"]
    pictures = [sum("image/png" in output.get("data", {}) for output in of_cell) for of_cell in outputs]
    assert pictures == [0, 1, 0, 0, 1]
    printed = "".join(output.get("text", "") for output in outputs[3])
    assert re.search(r"^bbox: AP \d+\.\d, AP50 \d+\.\d$", printed, re.M)
    assert re.search(r"^segm: AP \d+\.\d, AP50 \d+\.\d$", printed, re.M)
    assert (tmp_path / "run/model_final.pth").is_file()


INSTRUCTIONS = {"FROM", "RUN", "WORKDIR", "COPY", "ARG", "USER", "ENV", "ENTRYPOINT", "CMD"}


@pytest.fixture(scope="module")
def dockerfile():
    """Its instructions and their arguments."""
    lines = (EXAMPLES / "Dockerfile").read_text().splitlines()
    text = "\n".join(line for line in lines if not line.startswith("#"))
    return [tuple(line.split(None, 1)) for line in text.replace("\\\n", " ").splitlines() if line]


def copied(dockerfile):
    """The sources of COPY."""
    return [s for name, words in dockerfile if name == "COPY" for s in words.split()[:-1]]


def test_dockerfile_pins_its_base_and_does_not_end_as_root(dockerfile):
    assert {name for name, _ in dockerfile} == INSTRUCTIONS  # so nothing is fetched by ADD
    (base,) = [words for name, words in dockerfile if name == "FROM"]
    assert re.fullmatch(r"python:3\.1[0-3]-slim-\w+", base)
    arguments = dict(words.split("=") for name, words in dockerfile if name == "ARG")
    user = [words for name, words in dockerfile if name == "USER"][-1]
    assert int(arguments[user.removeprefix("$")]) > 0


def test_dockerfile_copies_and_installs_what_is_there(dockerfile):
    kept = [line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")]
    assert {source.split("/")[0] for source in copied(dockerfile)} == {*kept}
    assert [source for source in copied(dockerfile) if not (ROOT / source).exists()] == []
    commands = " ".join(words for name, words in dockerfile if name == "RUN")
    required = re.findall(r"--requirement (\S+)", commands)
    assert required == ["requirements/env.txt", "requirements/detectron2.txt"]
    assert {*required} <= {*copied(dockerfile)}
    wanted = [*install_options(), 'rm -rf "$site/tools"']
    assert [option for option in wanted if option not in commands] == []


@pytest.mark.slow
def test_dockerfile_copies_what_its_command_needs(dockerfile, tmp_path):
    for source in copied(dockerfile):
        if (ROOT / source).is_dir():
            shutil.copytree(ROOT / source, tmp_path / source)
        else:
            (tmp_path / source).parent.mkdir(exist_ok=True)
            shutil.copy(ROOT / source, tmp_path / source)
    command = dict(dockerfile)
    python, *words = json.loads(command["ENTRYPOINT"]) + json.loads(command["CMD"])
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    options = {"capture_output": True, "text": True, "cwd": tmp_path, "env": environment}
    result = subprocess.run([sys.executable, *words], timeout=300, **options)
    assert python == "python" and result.returncode == 0, result.stderr[-2000:]
    assert "--config-file" in result.stdout


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_docker_image_starts():
    docker = shutil.which("docker")
    if not docker or subprocess.run([docker, "info"], capture_output=True).returncode:
        pytest.skip("there is no Docker daemon")
    build = [docker, "build", "--file", "examples/Dockerfile", "--tag", "resnest_d2:test", "."]
    environment = {**os.environ, "DOCKER_BUILDKIT": "1"}
    for command in (build, [docker, "run", "--rm", "resnest_d2:test"]):
        result = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment)
        assert result.returncode == 0, result.stderr[-3000:]
    assert "--config-file" in result.stdout
