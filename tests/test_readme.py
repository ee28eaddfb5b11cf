"""What README and docs say: their commands run, their code runs, their links lead somewhere."""

import json
import os
import re
import shlex

import forks
import pytest
import resnest.torch
import torch
from support import ROOT, of_images
from test_train_net import TINY

from resnest_d2.config import ADDED

pytestmark = pytest.mark.long
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), ROOT / "CONTRIBUTING.md"]


def blocks(language):
    """Of all pages, each text once."""
    found = [b for page in PAGES for b in re.findall(rf"```{language}\n(.*?)```", page.read_text(), re.S)]
    return list(dict.fromkeys(found))


COMMANDS = [
    *dict.fromkeys(
        line for block in blocks("bash") for line in re.sub(r"\\\n\s*", "", block).splitlines() if line
    )
]


def test_the_readme_is_read_in_five_minutes():
    lines = (ROOT / "README.md").read_text().splitlines()
    assert len(lines) <= 140 and max(map(len, lines)) <= 110


def test_the_site_leads_to_every_page():
    site = (ROOT / "mkdocs.yml").read_text()
    assert [page.name for page in PAGES[1:] if not re.search(rf"^ +- .*\b{page.name}$", site, re.M)] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_to_files_and_headings_that_are_there(page):
    links = re.findall(r"\]\((?!https?:)([^)\s]+)\)", page.read_text())
    for link in links:
        file, _, heading = link.partition("#")
        target = page.parent / file if file else page
        assert target.exists(), link
        titles = re.findall(r"^#+ (.+)$", target.read_text(), re.M) if heading else []
        assert not heading or heading in [re.sub(r"\W+", "-", t.lower()).strip("-") for t in titles], link


def test_every_command_is_a_make_target_an_installation_or_a_tool():
    """Make targets run in CI, the installation in test_package.py, the tools below."""
    targets = (ROOT / "Makefile").read_text()
    in_ci = (ROOT / ".ci" / "run").read_text()
    assert COMMANDS and blocks("python")
    for command in COMMANDS:
        first, second, *_ = command.split()
        if first == "make":
            assert re.search(rf"^{second}:", targets, re.M)
            # test_quickstart.py runs the first; test_gpu.py rehearses the second, which needs a GPU; the third
            # writes down what test_parity.py asserts; and the fourth needs what the environment has not.
            assert second in ("quickstart", "gpu", "parity", "docs") or f" {second}" in in_ci
        else:
            assert command == "pip install ." or first == "python"


def few_bccd(bccd, folder):
    """The training images of ``bccd``, and of its others the first eight."""
    (folder / "annotations").mkdir(parents=True)
    for name in ("images", "annotations/train.json"):
        (folder / name).symlink_to(bccd / name)
    val = json.loads((bccd / "annotations/val.json").read_text())
    few = of_images(val, {image["id"] for image in val["images"][:8]})
    (folder / "annotations/val.json").write_text(json.dumps(few))


def few_aerial(aerial, folder):
    """Of the aerial images, the first eight for training and the first four for validation."""
    (folder / "annotations").mkdir(parents=True)
    (folder / "classes.json").symlink_to(aerial / "classes.json")
    for split, count in (("train", 8), ("val", 4)):
        for kind in ("images", "annotations"):
            (folder / kind / split).mkdir(parents=True)
            for file in sorted((aerial / kind / split).iterdir())[:count]:
                (folder / kind / split / file.name).symlink_to(file)


def few_grocery(grocery, folder):
    """Of each class, the first four images for training and the first two for validation."""
    for split, count in (("train", 4), ("val", 2)):
        for of_class in sorted((grocery / split).iterdir()):
            (folder / split / of_class.name).mkdir(parents=True)
            for file in sorted(of_class.iterdir())[:count]:
                (folder / split / of_class.name / file.name).symlink_to(file)


@pytest.mark.slow
def test_tool_commands_run_in_their_order(few_coco, coco_root, tmp_path):
    """On few real images, one process, few iterations, a shallow backbone; else as written."""

    def run(words, **environment):
        return forks.run(words, cwd=tmp_path, environment={**os.environ, **environment}, timeout=300)

    for name in ("tools", "configs"):
        (tmp_path / name).symlink_to(ROOT / name)
    few_bccd(coco_root / "bccd", tmp_path / "bccd")
    few_aerial(coco_root / "aerial", tmp_path / "aerial")
    few_grocery(coco_root / "grocery", tmp_path / "grocery")
    torch.save(resnest.torch.resnest50().state_dict(), tmp_path / "resnest50-528c19ca.pth")
    for command in COMMANDS:
        words = shlex.split(command)
        if words[0] != "python":
            continue
        if not {"tools/train_net.py", "tools/draw_predictions.py", "tools/explain.py"} & {*words}:
            few = ("--images", "20") if "benchmark_coco_eval" in command else ()
            result = run([*words[1:], *few])
            found = "check_dataset" in command and "bccd" in command  # a box without area, which came so
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
        result = run([*words[1:], *tiny], DETECTRON2_DATASETS=str(few_coco))
        assert result.returncode == 0, (command, result.stderr[-3000:])
        if "REFERENCE_WORLD_SIZE" in command:
            assert "batch_size=2, learning_rate=0.0025, max_iter=8" in result.stdout
    assert len(list((tmp_path / "output" / "pictures").iterdir())) == 8  # all there are
    assert (tmp_path / "resnest50_d2.pth").exists()


@pytest.mark.parametrize("code", blocks("python"), ids=lambda code: code.split("\n")[0])
def test_python_code_runs(code, tmp_path):
    result = forks.run(["-c", code], cwd=tmp_path, environment=os.environ, timeout=300)
    assert result.returncode == 0, result.stderr


def test_every_key_that_is_added_is_explained():
    table = (ROOT / "docs/configuration.md").read_text()
    documented = dict(re.findall(r"^\| `(\w+\.[\w.]+)` \| ([\w.]+|\[[^|]*\]) \|", table, re.M))
    assert documented == {
        f"{section}.{key}": str(default) for section, keys in ADDED.items() for key, default in keys.items()
    }
