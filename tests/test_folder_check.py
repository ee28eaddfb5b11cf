"""What is found in a folder of images for each class."""

import shutil

import numpy as np
import pytest
from PIL import Image
from support import ROOT, assert_one_line_error

from resnest_d2.data import check_folder

TOOL = ROOT / "tools/check_dataset.py"


@pytest.fixture
def folder(tmp_path):
    """Classes a and b of two images each, all different, but of one size in bytes."""
    rng = np.random.default_rng(0)
    for name in ("a", "b"):
        (tmp_path / "train" / name).mkdir(parents=True)
        for i in range(2):
            pixels = rng.integers(0, 255, (9, 7, 3), np.uint8)
            Image.fromarray(pixels).save(tmp_path / "train" / name / f"{i}.bmp")
    return tmp_path / "train"


def test_sound_images_are_counted(folder, run_python):
    result = run_python(TOOL, folder)
    assert result.returncode == 0, result.stderr
    assert result.stdout.splitlines() == ["4 images of 2 classes, 2 to 2 of each", "no problems found"]


def test_every_kind_of_problem_is_found_with_its_place(folder):
    shutil.copy(folder / "a/0.bmp", folder / "b/same.bmp")
    shutil.copy(folder / "a/0.bmp", folder / "a/again.bmp")
    (folder / "a/broken.jpg").write_bytes((folder / "a/1.bmp").read_bytes()[:60])
    Image.fromarray(np.full((4, 4), 40000, np.uint16)).save(folder / "b/deep.png")
    (folder / "b/lost.png").symlink_to("nowhere.png")
    (folder / "c").mkdir()
    report = check_folder(folder)
    assert dict(report.examples) == {
        "class without images": ["c"],
        "image file unreadable": ["a/broken.jpg"],
        "image with more than 8 bits per channel": ["b/deep.png"],
        "image that is not a regular file": ["b/lost.png"],
        "duplicate image": ["a/again.bmp is a/0.bmp"],
        "image of two classes": ["b/same.bmp is a/0.bmp"],
    }
    assert set(report.fatal) == {*report.examples} - {"class without images", "duplicate image"}
    assert set(report.counts.values()) == {1}


def test_only_decoding_finds_a_truncated_image(folder):
    pixels = np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)
    Image.fromarray(pixels).save(folder / "a/cut.png")
    whole = (folder / "a/cut.png").read_bytes()
    (folder / "a/cut.png").write_bytes(whole[: len(whole) // 2])
    assert not check_folder(folder, "header").counts
    assert check_folder(folder).examples == {"image file unreadable": ["a/cut.png"]}


@pytest.mark.parametrize(
    "words, message",
    [
        (["train", "--classes", "classes.json"], "train: name the folder of its images"),
        (["train", "--fix", "fixed"], "train: name the folder of its images"),
        (["train/a/0.bmp"], "train/a/0.bmp: name the folder of its images"),
        (["trian"], "cannot read trian (No such file"),
        (["train/a"], "train/a holds no folders"),
    ],
)
def test_other_arguments_are_refused(folder, run_python, words, message):
    assert_one_line_error(run_python(TOOL, *words, cwd=folder.parent), message)
