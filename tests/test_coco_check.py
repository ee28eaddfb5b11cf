"""The dataset check: every kind of problem, its mended copy, and real data."""

import copy
import io
import json
import shutil

import numpy as np
import pycocotools.mask
import pytest
from conftest import assert_one_line_error
from detectron2.data.datasets import load_coco_json
from PIL import Image
from pycocotools.coco import COCO

from resnest_d2 import UserError
from resnest_d2.data import check_coco, generate_shapes
from resnest_d2.data.coco_check import KINDS, _Finite, _runs


@pytest.fixture(scope="module")
def clean(tmp_path_factory):
    """Folder with a dataset that has nothing wrong: annotations.json and images/."""
    folder = tmp_path_factory.mktemp("clean")
    generate_shapes(folder / "shapes", num_images={"train": 8})
    shutil.move(folder / "shapes/annotations/instances_train.json", folder / "annotations.json")
    shutil.move(folder / "shapes/train", folder / "images")
    return folder


@pytest.fixture
def dataset(clean, tmp_path):
    """A copy to spoil: the folder and the content of its annotation file."""
    shutil.copytree(clean, tmp_path / "data")
    return tmp_path / "data", json.loads((clean / "annotations.json").read_text())


def polygon_of(content):
    return next(a for a in content["annotations"] if not a["iscrowd"])


def spoil_image_entry(**values):
    return lambda folder, content: content["images"][0].update(values)


def spoil_annotation(**values):
    return lambda folder, content: polygon_of(content).update(values)


def file_of(folder, content):
    return folder / "images" / content["images"][0]["file_name"]


def repeat(name):
    return lambda folder, content: content[name].append(copy.deepcopy(content[name][0]))


def rotate_by_exif(folder, content):
    image = Image.open(file_of(folder, content))
    exif = Image.Exif()
    exif[0x0112] = 6
    image.save(file_of(folder, content), exif=exif)


def truncate(folder, content):
    path = file_of(folder, content)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def deepen(folder, content):
    size = (content["images"][0]["width"], content["images"][0]["height"])
    Image.new("I;16", size).save(file_of(folder, content), "PNG")


def spoil_rle(content, change):
    entry = content["images"][0]
    mask = np.asfortranarray(np.tri(entry["height"], entry["width"], dtype=np.uint8))
    rle = pycocotools.mask.encode(mask)
    rle = {"size": list(rle["size"]), "counts": rle["counts"].decode()}
    change(rle)
    first = next(a for a in content["annotations"] if a["image_id"] == entry["id"])
    first.update(segmentation=rle)


_RUNS = "run-length encoding damaged or of another size"
SPOILT = [
    ("entry is no object", lambda f, c: c["annotations"].append(3)),
    ("entry is no object", lambda f, c: c["images"].append("x.jpg")),
    ("entry is no object", lambda f, c: c["categories"].append(None)),
    ("id missing or of a wrong type", spoil_annotation(id="a")),
    ("id missing or of a wrong type", lambda f, c: polygon_of(c).pop("id")),
    ("id missing or of a wrong type", spoil_image_entry(id=1.5)),
    ("id missing or of a wrong type", lambda f, c: c["categories"].append({"id": 9})),
    ("duplicate image id", repeat("images")),
    ("duplicate annotation id", repeat("annotations")),
    ("duplicate category id", repeat("categories")),
    ("file_name, width or height of a wrong type", spoil_image_entry(width="192")),
    ("file_name, width or height of a wrong type", spoil_image_entry(height=0)),
    ("file_name, width or height of a wrong type", spoil_image_entry(file_name=None)),
    ("image file missing", spoil_image_entry(file_name="gone.jpg")),
    ("image file unreadable", truncate),
    ("image file unreadable", lambda f, c: file_of(f, c).write_bytes(b"")),
    ("image file unreadable", lambda f, c: file_of(f, c).write_text("no image")),
    ("image of another size", spoil_image_entry(width=1000)),
    ("image of another size", rotate_by_exif),
    ("unknown image", spoil_annotation(image_id=10**6)),
    ("unknown image", spoil_annotation(image_id=None)),
    ("unknown category", spoil_annotation(category_id=77)),
    ("unknown category", spoil_annotation(category_id="circle")),
    ("box of a wrong type", spoil_annotation(bbox=[1, 2, 3])),
    ("box of a wrong type", spoil_annotation(bbox=["1", 2, 3, 4])),
    ("box of a wrong type", spoil_annotation(bbox=None)),
    ("number that is not finite", spoil_annotation(bbox=[1, 2, float("nan"), 4])),
    ("number that is not finite", spoil_annotation(bbox=[1, 2, float("inf"), 4])),
    ("number that is not finite", spoil_annotation(segmentation=[[1, 2, float("nan"), 4, 5, 6, 7, 8]])),
    ("box without area", spoil_annotation(bbox=[5, 5, 0, 10])),
    ("box without area", spoil_annotation(bbox=[5, 5, -3, 10])),
    ("box outside the image", spoil_annotation(bbox=[-20, 5, 60, 60])),
    ("box outside the image", spoil_annotation(bbox=[1000, 5, 60, 60])),
    ("segmentation of a wrong type", spoil_annotation(segmentation="polygon")),
    ("segmentation of a wrong type", spoil_annotation(segmentation=[1, 2, 3, 4, 5, 6])),
    ("segmentation of a wrong type", spoil_annotation(segmentation={"counts": 3, "size": [1, 1]})),
    ("segmentation of a wrong type", spoil_annotation(segmentation=[["a", "b", "c", "d", "e", "f"]])),
    ("degenerate polygon", spoil_annotation(segmentation=[[1, 2, 3, 4]])),
    ("degenerate polygon", spoil_annotation(segmentation=[[1, 2, 3, 4, 5, 6, 7]])),
    ("degenerate polygon", spoil_annotation(segmentation=[[1, 1, 2, 2, 3, 3]])),
    ("crowd as polygon", spoil_annotation(iscrowd=1)),
    ("image of more than 8 bits a channel", deepen),
    (_RUNS, spoil_annotation(segmentation={"counts": [5], "size": [1, 5]})),
    (_RUNS, lambda f, c: spoil_rle(c, lambda rle: rle["size"].reverse())),
    (_RUNS, lambda f, c: spoil_rle(c, lambda rle: rle.update(counts=rle["counts"][:-2]))),
    (_RUNS, lambda f, c: spoil_rle(c, lambda rle: rle.update(counts="\x7f"))),
    (_RUNS, lambda f, c: spoil_rle(c, lambda rle: rle.update(counts=[-1, 10]))),
    ("iscrowd of a wrong type", spoil_annotation(iscrowd="no")),
    ("keypoints of a wrong type", spoil_annotation(keypoints=[1, 2])),
]


@pytest.mark.parametrize("seed", range(5))
def test_runs_of_an_encoded_mask_are_its_runs(seed):
    mask = np.random.default_rng(seed).random((60, 70)) < 0.1 ** (seed + 1)
    text = pycocotools.mask.encode(np.asfortranarray(mask, dtype=np.uint8))["counts"].decode()
    changes = np.flatnonzero(np.diff(mask.ravel(order="F"), prepend=False))
    expected = np.diff([0, *changes, mask.size]).tolist()
    assert _runs(text) == expected


def test_every_kind_of_problem_has_a_case():
    assert {kind for kind, _ in SPOILT} == set(KINDS)


def test_clean_dataset_has_no_problems_and_its_numbers(clean):
    report = check_coco(clean / "annotations.json", clean / "images")
    content = json.loads((clean / "annotations.json").read_text())
    assert report.counts == {} and "no problems found" in str(report)
    assert (report.images, report.categories) == (8, 3)
    assert report.annotations == len(content["annotations"])
    annotated = {a["image_id"] for a in content["annotations"]}
    assert report.empty == 8 - len(annotated)


@pytest.mark.parametrize("kind, spoil", SPOILT)
def test_problem_is_found_and_mended(kind, spoil, dataset):
    folder, content = dataset
    spoil(folder, content)
    (folder / "annotations.json").write_text(json.dumps(content))
    fixed = folder / "fixed.json"
    report = check_coco(folder / "annotations.json", folder / "images", fix=fixed)
    assert report.counts[kind] >= 1 and f"x {kind}: " in str(report)
    assert kind in report.fatal or not KINDS[kind]
    # The copy is clean, and loads in detectron2 and pycocotools with nearly everything still there.
    assert check_coco(fixed, folder / "images").counts == {}
    assert len(load_coco_json(str(fixed), str(folder / "images"))) >= 7
    COCO(str(fixed))
    kept = len(json.loads(fixed.read_text())["annotations"])
    assert kept >= report.annotations - 6
    assert not list(folder.glob(".fixed*"))


def test_nan_inside_a_name_is_no_number(dataset):
    folder, content = dataset
    content["categories"][0]["name"] = "a: NaN, b"
    (folder / "annotations.json").write_text(json.dumps(content))
    assert check_coco(folder / "annotations.json", folder / "images").counts == {}


def test_tokens_cut_by_the_end_of_a_chunk_are_replaced():
    text = b'{"a": [' + b"NaN, -Infinity, 1.5, " * 50 + b"NaN]}"
    for size in range(1, 40):
        file, read = _Finite(io.BytesIO(text)), []
        while chunk := file.read(size):
            read.append(chunk)
        assert json.loads(b"".join(read))["a"] == [None, None, 1.5] * 50 + [None]


@pytest.mark.parametrize(
    "text, message",
    [
        ("", "is no valid JSON"),
        ("{", "is no valid JSON"),
        ('{"images": [1, 2', "is no valid JSON"),
        ("[]", "holds no list of categories"),
        ('{"categories": [{"id": 1, "name": "a"}]}', "holds no list of images"),
        ("hello", "is no valid JSON"),
        ("\x00\x01", "is no valid JSON"),
    ],
)
def test_file_that_is_no_annotation_file_is_named(text, message, tmp_path):
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(UserError, match=message):
        check_coco(tmp_path / "a.json", tmp_path)


@pytest.mark.parametrize("images", ["none", "exist", "header", "decode"])
def test_images_are_looked_at_as_far_as_asked(images, dataset):
    folder, content = dataset
    truncate(folder, content)
    file = folder / "images" / content["images"][1]["file_name"]
    file.unlink()
    report = check_coco(folder / "annotations.json", folder / "images", images)
    assert report.counts["image file missing"] == (images != "none")
    assert report.counts["image file unreadable"] == (images == "decode")


@pytest.mark.parametrize("split, images", [("train2017", 50), ("val2017", 50)])
@pytest.mark.parametrize("kind", ["instances", "person_keypoints"])
def test_real_coco_is_clean(split, images, kind, coco_root):
    annotations = coco_root / f"coco/annotations/{kind}_{split}.json"
    report = check_coco(annotations, coco_root / "coco" / split)
    assert report.images == images and report.counts == {}


def test_boxes_without_area_are_found_in_bccd(coco_root):
    folder = coco_root / "bccd"
    counts = [
        check_coco(folder / f"annotations/{s}.json", folder / "images").counts for s in ("train", "val")
    ]
    assert counts == [{"box without area": 1}] * 2


def test_command_reports_fixes_and_tells_by_its_status(dataset, run_python):
    folder, content = dataset
    args = ("tools/check_dataset.py", folder / "annotations.json", folder / "images")
    result = run_python(*args)
    assert result.returncode == 0 and "no problems found" in result.stdout
    spoil_annotation(bbox=[5, 5, 0, 10])(folder, content)
    (folder / "annotations.json").write_text(json.dumps(content))
    result = run_python(*args, "--fix", folder / "fixed.json", "--quick")
    assert result.returncode == 1
    assert "warning: 1 x box without area: annotation " in result.stdout
    assert (folder / "fixed.json").exists()
    (folder / "annotations.json").write_text("{")
    assert_one_line_error(run_python(*args), "is no valid JSON")
    assert_one_line_error(run_python(args[0], "none.json", folder), "cannot read none.json (No such file")
