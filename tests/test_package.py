"""The package as others get it: imported, installed from a wheel, used in their own project."""

import json
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from importlib import metadata
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

# A new interpreter of somebody else's, where nothing is to be had that only some have; the last line is JSON.
STRANGER = """
import json, sys
sys.modules["detectron2._C"] = sys.modules["pkg_resources"] = None
import torch
import detectron2.modeling
from detectron2.config import get_cfg
from detectron2.modeling import build_model

before = set(sys.modules)
import resnest_d2
loaded = sorted({name.split(".")[0] for name in set(sys.modules) - before})
with_engine = "resnest_d2.engine" in sys.modules
import resnest_d2.engine

cfg = get_cfg()
resnest_d2.add_resnest_config(cfg)

cfg.MODEL.BACKBONE.NAME = "build_resnest_fpn_backbone"
cfg.MODEL.RESNETS.DEPTH = 14
cfg.MODEL.RESNETS.DEFORM_ON_PER_STAGE = [True] * 4
cfg.MODEL.RESNETS.OUT_FEATURES = ["res2", "res3", "res4", "res5"]
cfg.MODEL.FPN.IN_FEATURES = ["res2", "res3", "res4", "res5"]
cfg.MODEL.ROI_HEADS.IN_FEATURES = cfg.MODEL.RPN.IN_FEATURES = ["p2", "p3", "p4", "p5"]
cfg.MODEL.ANCHOR_GENERATOR.SIZES = [[32], [64], [128], [256]]
cfg.MODEL.ROI_HEADS.NAME = "StandardROIHeads"
cfg.MODEL.ROI_BOX_HEAD.NAME = "FastRCNNConvFCHead"
cfg.MODEL.ROI_BOX_HEAD.NUM_FC = 1
cfg.MODEL.DEVICE = "cpu"
model = build_model(cfg).eval()
with torch.no_grad():
    found = model([{"image": torch.rand(3, 64, 96)}])[0]
print(json.dumps({
    "package": resnest_d2.__file__,
    "config": resnest_d2.model_zoo.get_config_file("cascade_resnest101"),
    "depth": resnest_d2.model_zoo.get_config("cascade_resnest101").MODEL.RESNETS.DEPTH,
    "lazy depth": resnest_d2.model_zoo.get_lazy_config("cascade_resnest101").model.backbone.bottom_up.depth,
    "loaded": loaded,
    "with_engine": with_engine,
    "predictor": resnest_d2.Predictor.__name__,
    "found": list(found),
}))
"""


def run(*args, **kwargs) -> subprocess.CompletedProcess:
    return subprocess.run([*map(str, args)], capture_output=True, text=True, timeout=600, **kwargs)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    # A copy, since a build leaves files in the tree that would get into the next wheel.
    source = folder / "source"
    for name in ("resnest_d2", "configs"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    pip = (sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "-q")
    result = run(*pip, "--wheel-dir", folder, source)
    assert result.returncode == 0, result.stderr
    return next(folder.glob("*.whl"))


@pytest.fixture(scope="module")
def clean_python(wheel, tmp_path_factory) -> Path:
    """Python of a new environment with the wheel; dependencies are those of this environment."""
    folder = tmp_path_factory.mktemp("clean")
    assert run(sys.executable, "-m", "venv", "--without-pip", folder).returncode == 0
    python = folder / "bin" / "python"
    site = run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))").stdout.strip()
    # A path in a .pth file is searched, but its own .pth files, where our editable install is, are not.
    Path(site, "dependencies.pth").write_text(sysconfig.get_path("purelib"))
    result = run(sys.executable, "-m", "pip", "--python", python, "install", "-q", "--no-deps", wheel)
    assert result.returncode == 0, result.stderr
    return python


@pytest.fixture(scope="module")
def stranger(clean_python, tmp_path_factory) -> dict:
    """What a stranger's project finds with the wheel, in a folder of its own."""
    folder = tmp_path_factory.mktemp("project")
    (folder / "project.py").write_text(STRANGER)
    result = run(clean_python, "project.py", cwd=folder)
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout.splitlines()[-1])


def test_wheel_carries_all_configurations_and_modules_but_benchmarks_and_nothing_else(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    configs = {str(p.relative_to(ROOT / "configs")) for p in (ROOT / "configs").rglob("*.yaml")}
    assert {n[len("resnest_d2/configs/") :] for n in names if n.endswith(".yaml")} == configs
    modules = {str(p.relative_to(ROOT)) for p in (ROOT / "resnest_d2").rglob("*.py")}
    benchmarks = {name for name in modules if name.startswith("resnest_d2/benchmark/")}
    lazy = {f"resnest_d2/configs/lazy/{p.name}" for p in (ROOT / "configs/lazy").glob("*.py")}
    assert benchmarks and {n for n in names if n.endswith(".py")} == modules - benchmarks | lazy
    assert len(lazy) > 20
    assert len(configs) > 20 and len(modules) > 20
    assert {n.split("/")[0].split("-")[0] for n in names} == {"resnest_d2"}


def test_wheel_does_not_depend_on_a_distribution_of_detectron2(wheel):
    archive = zipfile.ZipFile(wheel)
    metadata = next(n for n in archive.namelist() if n.endswith("METADATA"))
    lines = archive.read(metadata).decode().splitlines()
    required = [line for line in lines if line.startswith("Requires-Dist:")]
    assert any(line.startswith("Requires-Dist: torch>=") for line in required)
    assert not any("detectron2>" in line or " detectron2" in line.split(";")[0] for line in required)


@pytest.mark.slow
def test_installed_wheel_finds_its_configurations(stranger, clean_python):
    package = Path(stranger["package"]).parent
    assert clean_python.parent.parent in package.parents
    assert Path(stranger["config"]).parent == package / "configs"
    assert stranger["depth"] == stranger["lazy depth"] == 101


@pytest.mark.slow
def test_strangers_project_builds_and_runs_a_detector_without_compiled_extension_or_pkg_resources(stranger):
    assert stranger["found"] == ["instances"]


@pytest.mark.slow
def test_import_loads_no_module_beside_what_detectron2_loads(stranger):
    """`import resnest_d2` is as fast as detectron2's own imports, because it adds little to them."""
    assert "resnest_d2" in stranger["loaded"] and not stranger["with_engine"]
    assert stranger["predictor"] == "Predictor"  # which imports it
    assert {*stranger["loaded"]} <= {
        *("resnest_d2", "detectron2", "fvcore", "torchvision", "contourpy", "safetensors"),
    }


def test_without_detectron2_the_import_says_how_to_get_it(tmp_path):
    code = "import sys; sys.modules['detectron2'] = None; import resnest_d2"
    result = run(sys.executable, "-c", code, cwd=tmp_path)
    assert result.returncode == 1
    last = result.stderr.strip().splitlines()[-1]
    assert last.startswith("ImportError: resnest_d2 needs detectron2, which is not installed.")
    first, second = re.findall(r"pip install ([^&]+)", last)
    assert "sal-detectron2" in second
    extra = {line for line in metadata.requires("resnest_d2") if line.endswith('; extra == "detectron2"')}
    assert {f'{need}; extra == "detectron2"' for need in shlex.split(first)} == extra and len(extra) > 5
    assert "During handling" not in result.stderr
