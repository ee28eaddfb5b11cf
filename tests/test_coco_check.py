"""The dataset check: every kind of problem, its mended copy, and real data."""

import copy
import io
import itertools
import json
import math
import os
import re
import resource
import shutil
import stat
import tracemalloc
from contextlib import contextmanager, suppress
from functools import partial, reduce
from operator import getitem

import numpy as np
import pycocotools.mask
import pytest
from detectron2.data.datasets import load_coco_json
from detectron2.data.detection_utils import read_image
from PIL import Image
from pycocotools.coco import COCO
from support import assert_one_line_error

from resnest_d2 import UserError
from resnest_d2.data import check_coco, check_pairs, generate_shapes, load_coco
from resnest_d2.data.annotations import read_coco, run_lengths
from resnest_d2.data.coco_report import KEPT, KINDS, Report
from resnest_d2.data.custom import read_stats
from resnest_d2.data.findings import NARROW
from resnest_d2.data.image_files import real_size
from resnest_d2.data.panoptic import read_panoptic


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


@contextmanager
def files_of_at_most(size):
    """A block in which files cannot grow beyond so many bytes, as on a full disk."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


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
    box, area = pycocotools.mask.toBbox(rle).tolist(), int(pycocotools.mask.area(rle))
    change(rle)
    first = next(a for a in content["annotations"] if a["image_id"] == entry["id"])
    first.update(segmentation=rle, bbox=box, area=area)


def list_twice(folder, content):
    """One entry an object, as some exports have it."""
    first = copy.deepcopy(content["images"][0])
    content["images"].append({**first, "id": 10**6})
    of_first = [a for a in content["annotations"] if a["image_id"] == first["id"]]
    of_first[-1]["image_id"] = 10**6


def pair_points(content, nested):
    annotation = polygon_of(content)
    pairs = np.reshape(annotation["segmentation"][0], (-1, 2)).tolist()
    annotation["segmentation"] = [pairs] if nested else pairs


def name_keypoints(content, change):
    content["categories"][0]["keypoints"] = ["nose", "tail"]
    for annotation in content["annotations"]:
        if annotation["category_id"] == content["categories"][0]["id"]:
            annotation.update(keypoints=[*annotation["bbox"][:2], 2, 0, 0, 0], num_keypoints=1)
            last = annotation
    change(last)


def far_from(box):
    x, y, w, _ = box
    return [x + w + 5, y, 4, 4] if x < 60 else [1, y, 4, 4]


def larger(box):
    x, y, w, h = box
    return [max(x - w / 2, 0), max(y - h / 2, 0), 1.5 * w, 1.5 * h]


def rename(content, change):
    for image in content["images"]:
        image["file_name"] = change(image["file_name"])


def normalise(content):
    sizes = {image["id"]: (image["width"], image["height"]) * 2 for image in content["images"]}
    for annotation in content["annotations"]:
        annotation["bbox"] = np.divide(annotation["bbox"], sizes[annotation["image_id"]]).tolist()
        annotation["area"] = annotation["bbox"][2] * annotation["bbox"][3]


_RUNS = "run-length encoding damaged or of another size"


def narrow(folder, content):
    """An image of which detectron2's resizing leaves nothing, with sides of 1333 pixels at most."""
    entry = content["images"][0]
    entry.update(width=2667, height=1)
    Image.new("RGB", (2667, 1)).save(folder / "images" / entry["file_name"])


SPOILT = [
    ("entry is not an object", lambda f, c: c["annotations"].append(3)),
    ("entry is not an object", lambda f, c: c["images"].append("x.jpg")),
    ("entry is not an object", lambda f, c: c["categories"].append(None)),
    ("id missing or of the wrong type", spoil_annotation(id="a")),
    ("id missing or of the wrong type", lambda f, c: polygon_of(c).pop("id")),
    ("id missing or of the wrong type", spoil_image_entry(id=1.5)),
    ("id missing or of the wrong type", lambda f, c: c["categories"].append({"name": "a"})),
    ("category name is not a string", lambda f, c: c["categories"].append({"id": 9})),
    ("duplicate image id", repeat("images")),
    ("duplicate annotation id", repeat("annotations")),
    ("duplicate category id", repeat("categories")),
    ("file_name, width or height of the wrong type", spoil_image_entry(width="192")),
    ("file_name, width or height of the wrong type", spoil_image_entry(height=0)),
    ("file_name, width or height of the wrong type", spoil_image_entry(file_name=None)),
    ("image file missing", spoil_image_entry(file_name="gone.jpg")),
    ("image file unreadable", truncate),
    ("image file unreadable", lambda f, c: file_of(f, c).write_bytes(b"")),
    ("image file unreadable", lambda f, c: file_of(f, c).write_text("no image")),
    ("image of another size", spoil_image_entry(width=1000)),
    ("image of another size", rotate_by_exif),
    ("id missing or of the wrong type", spoil_annotation(id=2.0)),
    ("id missing or of the wrong type", spoil_annotation(id=2**63)),
    (
        "id missing or of the wrong type",
        lambda f, c: polygon_of(c).update(image_id=str(polygon_of(c)["image_id"])),
    ),
    ("id missing or of the wrong type", lambda f, c: c["categories"][0].update(id="1")),
    ("duplicate category name", lambda f, c: c["categories"].append({"id": 9, "name": "circle"})),
    (
        "mask without pixels",
        lambda f, c: spoil_rle(c, lambda rle: rle.update(counts=[rle["size"][0] * rle["size"][1]])),
    ),
    ("annotation id below 1", spoil_annotation(id=0)),
    ("annotation id below 1", spoil_annotation(id=-5)),
    ("name is not valid Unicode", lambda f, c: c["categories"][0].update(name="caf\ud800")),
    ("keypoint names of the wrong type", lambda f, c: c["categories"][0].update(keypoints="nose")),
    (
        "file_name, width or height of the wrong type",
        lambda f, c: c["images"][0].update(width=float(c["images"][0]["width"])),
    ),
    ("image file missing", spoil_image_entry(file_name="a\0.jpg")),
    ("image file missing", spoil_image_entry(file_name="a" * 5000)),
    ("image file missing", spoil_image_entry(file_name="caf\udcff.jpg")),
    ("image listed twice", list_twice),
    ("unknown image", spoil_annotation(image_id=10**6)),
    ("unknown image", spoil_annotation(image_id=10**30)),
    ("unknown image", spoil_annotation(image_id=None)),
    ("unknown category", spoil_annotation(category_id=77)),
    ("unknown category", spoil_annotation(category_id="circle")),
    ("box of the wrong type", spoil_annotation(bbox=[1, 2, 3])),
    ("box of the wrong type", spoil_annotation(bbox=["1", 2, 3, 4])),
    ("box missing", spoil_annotation(bbox=None)),
    ("box within the image's first pixel", spoil_annotation(bbox=[0.2, 0.2, 0.5, 0.5])),
    ("mask outside its box", lambda f, c: polygon_of(c).update(bbox=far_from(polygon_of(c)["bbox"]))),
    ("object annotated twice", lambda f, c: c["annotations"].append({**c["annotations"][0], "id": 10**6})),
    ("image file has a slightly different name", lambda f, c: rename(c, str.upper)),
    ("box in fractions of the image, not in pixels", lambda f, c: normalise(c)),
    ("area matches neither the box nor the mask", spoil_annotation(area=1e12)),
    ("area matches neither the box nor the mask", spoil_annotation(area=1e-3)),
    (
        "keypoint outside the image",
        lambda f, c: name_keypoints(c, lambda a: a.update(keypoints=[-50, 1, 2] * 2)),
    ),
    (
        "keypoint visibility other than 0, 1 or 2",
        lambda f, c: name_keypoints(c, lambda a: a.update(keypoints=[1, 1, 3, 1, 1, 0.5], num_keypoints=2)),
    ),
    (
        "keypoints not given as x, y and visibility",
        lambda f, c: name_keypoints(c, lambda a: a.update(keypoints=[9, 9, 12, 12, 20, 15])),
    ),
    (
        "visible keypoints all outside the box",
        lambda f, c: name_keypoints(c, lambda a: a.update(keypoints=[*far_from(a["bbox"])[:2], 2, 0, 0, 0])),
    ),
    ("box does not match its mask", lambda f, c: polygon_of(c).update(bbox=larger(polygon_of(c)["bbox"]))),
    (
        "num_keypoints is not the number of visible keypoints",
        lambda f, c: name_keypoints(c, lambda a: a.update(num_keypoints=0)),
    ),
    ("number that is not finite", spoil_annotation(bbox=[1, 2, float("nan"), 4])),
    ("number that is not finite", spoil_annotation(bbox=[1, 2, float("inf"), 4])),
    ("number that is not finite", spoil_annotation(bbox=[1, 2, 10**400, 4])),
    ("number that is not finite", spoil_annotation(segmentation=[[1, 2, float("nan"), 4, 5, 6, 7, 8]])),
    ("number that is not finite", spoil_annotation(segmentation=[[1, 2, 10**400, 4, 5, 6, 7, 8]])),
    ("number that is not finite", spoil_annotation(iscrowd=float("nan"))),
    ("number that is not finite", spoil_annotation(segmentation=float("nan"))),
    ("number that is not finite", spoil_annotation(keypoints=float("nan"))),
    ("box without area", spoil_annotation(bbox=[5, 5, 0, 10])),
    ("box without area", spoil_annotation(bbox=[5, 5, -3, 10])),
    ("box outside the image", spoil_annotation(bbox=[-20, 5, 60, 60])),
    ("box outside the image", spoil_annotation(bbox=[1000, 5, 60, 60])),
    ("segmentation of the wrong type", spoil_annotation(segmentation="polygon")),
    ("segmentation of the wrong type", spoil_annotation(segmentation=[1, 2, 3, 4, 5, 6])),
    ("segmentation of the wrong type", spoil_annotation(segmentation={"counts": 3, "size": [1, 1]})),
    ("segmentation of the wrong type", spoil_annotation(segmentation=[["a", "b", "c", "d", "e", "f"]])),
    ("segmentation of the wrong type", spoil_annotation(segmentation=[["1", "2", "9", "2", "9", "9"]])),
    ("segmentation of the wrong type", spoil_annotation(segmentation=[[1, 2, [3], 4, 5, 9]])),
    ("polygon as pairs of coordinates", lambda f, c: pair_points(c, nested=True)),
    ("polygon as pairs of coordinates", lambda f, c: pair_points(c, nested=False)),
    ("polygon far outside the image", spoil_annotation(segmentation=[[0, 0, 1e9, 0, 1e9, 1e9, 0, 1e9]])),
    ("polygon far outside the image", spoil_annotation(segmentation=[[1e9, 1e9, 2e9, 1e9, 2e9, 2e9]])),
    ("degenerate polygon", spoil_annotation(segmentation=[[1, 2, 3, 4]])),
    ("degenerate polygon", spoil_annotation(segmentation=[[1, 2, 3, 4, 5, 6, 7]])),
    ("degenerate polygon", spoil_annotation(segmentation=[[1, 1, 2, 2, 3, 3]])),
    ("crowd as polygon", spoil_annotation(iscrowd=1)),
    ("image with more than 8 bits per channel", deepen),
    (NARROW, narrow),
    (_RUNS, spoil_annotation(segmentation={"counts": [5], "size": [1, 5]})),
    (_RUNS, lambda f, c: spoil_rle(c, lambda rle: rle["size"].reverse())),
    (_RUNS, lambda f, c: spoil_rle(c, lambda rle: rle.update(counts=rle["counts"][:-2]))),
    (_RUNS, lambda f, c: spoil_rle(c, lambda rle: rle.update(counts="\x7f"))),
    (_RUNS, lambda f, c: spoil_rle(c, lambda rle: rle.update(counts=[-1, 10]))),
    ("iscrowd of the wrong type", spoil_annotation(iscrowd="no")),
    ("area missing or not above 0", lambda f, c: polygon_of(c).pop("area")),
    ("area missing or not above 0", spoil_annotation(area=0)),
    ("area missing or not above 0", spoil_annotation(area="12")),
    ("iscrowd missing", lambda f, c: polygon_of(c).pop("iscrowd")),
    ("ignore, which detectron2 does not support", spoil_annotation(ignore=1)),
    ("keypoints missing", lambda f, c: name_keypoints(c, lambda a: a.pop("keypoints"))),
    ("keypoints of the wrong type", spoil_annotation(keypoints=[1, 2])),
    (
        "keypoints of the wrong type",
        lambda f, c: name_keypoints(c, lambda a: a["keypoints"].extend([1, 1, 2])),
    ),
]


@pytest.mark.parametrize("seed", range(5))
def test_runs_of_an_encoded_mask_are_its_runs(seed):
    mask = np.random.default_rng(seed).random((60, 70)) < 0.1 ** (seed + 1)
    text = pycocotools.mask.encode(np.asfortranarray(mask, dtype=np.uint8))["counts"].decode()
    changes = np.flatnonzero(np.diff(mask.ravel(order="F"), prepend=False))
    expected = np.diff([0, *changes, mask.size]).tolist()
    assert run_lengths(text, mask.size) == expected


@pytest.mark.parametrize("groups, sound", [(2, True), (6, True), (7, False), (13, False)])
def test_runs_that_programs_read_as_others_are_none(groups, sound):
    """A difference of -32 to the last but one: with more groups of five bits than it needs, to 32 bits or not."""
    text = "9X15" + "P" + "o" * (groups - 2) + "O"  # 9, 40, 5, and 32 less than 40
    assert run_lengths(text, 62) == ([9, 40, 5, 8] if sound else None)


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
    # The copy is clean but for what may be meant, and loads in detectron2 and pycocotools with nearly everything still there.
    assert set(check_coco(fixed, folder / "images").counts) <= set(KEPT)
    assert len(load_coco_json(str(fixed), str(folder / "images"))) >= 7
    COCO(str(fixed))
    kept = len(json.loads(fixed.read_text())["annotations"])
    assert kept >= report.annotations - 6
    assert not list(folder.glob(".fixed*"))
    for annotation in json.loads(fixed.read_text())["annotations"]:
        assert annotation["area"] > 0 and annotation["iscrowd"] in (0, 1) and annotation["id"] > 0


def test_nan_inside_a_name_is_no_number(dataset):
    folder, content = dataset
    content["categories"][0]["name"] = "a: NaN, b"
    (folder / "annotations.json").write_text(json.dumps(content))
    assert check_coco(folder / "annotations.json", folder / "images").counts == {}
    polygon_of(content)["area"] = math.nan
    (folder / "annotations.json").write_text(json.dumps(content))
    report = check_coco(folder / "annotations.json", folder / "images", fix=folder / "fixed.json")
    assert report.counts == {"area missing or not above 0": 1}
    fixed = json.loads((folder / "fixed.json").read_text())
    assert fixed["categories"][0]["name"] == "a: NaN, b"


def test_objects_of_an_image_listed_twice_come_together(dataset):
    folder, content = dataset
    list_twice(folder, content)
    extra = copy.deepcopy(content["annotations"][0])
    content["annotations"].append({**extra, "id": 10**6, "image_id": 10**6})  # the same object again
    (folder / "annotations.json").write_text(json.dumps(content))
    check_coco(folder / "annotations.json", folder / "images", fix=folder / "fixed.json")
    fixed = json.loads((folder / "fixed.json").read_text())
    assert len(fixed["images"]) == 8 and len(fixed["annotations"]) == len(content["annotations"]) - 1
    assert {a["image_id"] for a in fixed["annotations"]} <= {i["id"] for i in fixed["images"]}


def test_a_missing_area_is_that_of_the_mask_else_of_the_box(dataset):
    folder, content = dataset
    coco = COCO(str(folder / "annotations.json"))
    masks = {a["id"]: int(coco.annToMask(a).sum()) for a in content["annotations"]}
    for annotation in content["annotations"]:
        annotation.pop("area")
    first = content["annotations"][0]
    first.pop("segmentation")
    (folder / "annotations.json").write_text(json.dumps(content))
    check_coco(folder / "annotations.json", folder / "images", fix=folder / "fixed.json")
    for file in ("annotations.json", "fixed.json"):
        completed = load_coco(folder / file)["annotations"]
        assert completed[0]["area"] == pytest.approx(first["bbox"][2] * first["bbox"][3])
        assert [a["area"] for a in completed[1:]] == [masks[a["id"]] for a in completed[1:]]


def exif_image(form, orientation):
    """(bytes) an image of 8x4 pixels with an orientation, of any type."""
    exif = Image.Exif()
    if orientation is not None:
        exif[0x0112] = orientation
    file = io.BytesIO()
    Image.new("RGB", (8, 4), "red").save(file, form, exif=exif)
    return file.getvalue()


@pytest.mark.parametrize("how", ["header", "decode"])
@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_sizes_are_those_that_detectron2_reads(form, how, tmp_path):
    for orientation in (None, 0, *range(1, 11), 65535):
        path = tmp_path / f"{orientation}"
        path.write_bytes(exif_image(form, orientation))
        assert real_size(str(path), how, "", Report()) == read_image(path, "BGR").shape[1::-1]


@pytest.mark.parametrize("how", ["header", "decode"])
def test_a_broken_orientation_turns_nothing(how, tmp_path):
    whole = exif_image("JPEG", 6)
    tag = (
        whole.index(b"\x12\x01\x03\x00") if b"\x12\x01\x03\x00" in whole else whole.index(b"\x01\x12\x00\x03")
    )
    start = whole.index(b"Exif\0\0")
    spoilt = [
        whole[:place] + bytes([value]) + whole[place + 1 :]
        for place in range(start, tag + 12)
        for value in (0, 2, 7, 255)
    ]
    for number, content in enumerate(spoilt):
        path = tmp_path / f"{number}.jpg"
        path.write_bytes(content)
        assert real_size(str(path), how, "", Report()) == read_image(path, "BGR").shape[1::-1]


#: Of an annotation file, which a copy may replace.
_EMPTY = '{"images": [], "annotations": [], "categories": []}'


def test_the_copy_replaces_no_other_file(dataset, tmp_path):
    folder, content = dataset
    image = file_of(folder, content)
    (folder / "link.json").symlink_to("annotations.json")
    os.link(folder / "annotations.json", folder / "hard.json")
    (folder / "earlier.json").write_text(_EMPTY)
    others = {
        "package.json": '{"name": "x", "images": [], "categories": []}',
        "config.yaml": "MODEL: {}",
        "results.json": '{"results": {}}',
        "coco_instances_results.json": "[]",
        "cut.json": _EMPTY[:-1],
        "texts.json": _EMPTY.replace("[]", '"x"'),
        "empty.json": "",
    }
    for name, text in others.items():
        (folder / name).write_text(text)
    closed = [
        *((folder / name, "exists and is not an annotation file") for name in others),
        (folder / "annotations.json", "is the annotation file itself"),
        (folder / "images/../annotations.json", "is the annotation file itself"),
        (folder / "link.json", "is the annotation file itself"),
        (folder / "hard.json", "is the annotation file itself"),
        (image, "exists and is not an annotation file"),
        ("/dev/null", "is a FIFO, socket or device"),
        (folder, "is a folder"),
        (folder / "annotations.json/x.json", "cannot write"),
        (folder / ("x" * 300), "cannot write"),
    ]
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    arguments = (folder / "annotations.json", folder / "images", "none")
    for target, message in closed:
        with pytest.raises(UserError, match=message):
            check_coco(*arguments, fix=target, overwrite=True)
    with pytest.raises(UserError, match=r"earlier\.json exists; .* with --overwrite"):
        check_coco(*arguments, fix=folder / "earlier.json")
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before
    assert stat.S_ISCHR(os.stat("/dev/null").st_mode)
    check_coco(*arguments, fix=folder / "earlier.json", overwrite=True)
    assert json.loads((folder / "earlier.json").read_text())["images"]


def fix_over_earlier(folder):
    earlier = folder / "earlier.json"
    check_coco(folder / "annotations.json", folder / "images", "none", fix=earlier, overwrite=True)


def test_a_copy_that_has_no_room_leaves_what_was_there(dataset):
    folder, _ = dataset
    (folder / "earlier.json").write_text(_EMPTY)
    names = {path.name for path in folder.iterdir()}
    with files_of_at_most(5000), pytest.raises(UserError, match=r"cannot write .*File too large.*make room"):
        fix_over_earlier(folder)
    assert {path.name for path in folder.iterdir()} == names
    assert (folder / "earlier.json").read_text() == _EMPTY


def test_a_folder_of_images_that_is_not_there_is_named(dataset):
    folder, _ = dataset
    for images in ("none", "annotations.json", "x" * 5000):
        with pytest.raises(UserError, match="there is no folder of images /"):
            check_coco(folder / "annotations.json", folder / images, fix=folder / "fixed.json")
    assert not (folder / "fixed.json").exists()


def test_a_check_that_fails_leaves_what_was_there(dataset):
    folder, _ = dataset
    (folder / "earlier.json").write_text(_EMPTY)
    whole = (folder / "annotations.json").read_bytes()
    (folder / "annotations.json").write_bytes(whole[:-20])
    names = {path.name for path in folder.iterdir()}
    with pytest.raises(UserError, match="is not valid JSON"):
        fix_over_earlier(folder)
    assert {path.name for path in folder.iterdir()} == names
    assert (folder / "earlier.json").read_text() == _EMPTY


@pytest.mark.parametrize("before", ["", '"images": [], ', '"categories": [{"id": 1, "name": "[[[\\"["}], '])
def test_nesting_is_bounded_while_a_file_is_streamed(before, tmp_path):
    (tmp_path / "a.json").write_text("{" + before + '"annotations": ' + "[" * 200_000)
    tracemalloc.start()
    with pytest.raises(UserError, match=r"a\.json is nested more than 100 deep"):
        check_coco(tmp_path / "a.json", tmp_path)
    assert tracemalloc.get_traced_memory()[1] < 20e6
    tracemalloc.stop()


@pytest.mark.parametrize("value", ["null", "3", '"x"', "{}"])
@pytest.mark.parametrize("name", ["images", "annotations", "categories"])
def test_what_is_no_list_is_named(name, value, clean, tmp_path):
    content = json.loads((clean / "annotations.json").read_text())
    content[name] = json.loads(value)
    (tmp_path / "a.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match=f"a.json: '{name}' is not a list"):
        check_coco(tmp_path / "a.json", clean / "images", "none")


def test_annotations_inside_the_images_are_not_taken_for_none(clean, tmp_path):
    content = json.loads((clean / "annotations.json").read_text())
    annotations = content.pop("annotations")
    for image in content["images"]:
        image["annotations"] = [a for a in annotations if a["image_id"] == image["id"]]
    (tmp_path / "a.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match=r"a\.json has its annotations inside the entries of images"):
        check_coco(tmp_path / "a.json", clean / "images", "none", fix=tmp_path / "fixed.json")
    assert not (tmp_path / "fixed.json").exists()


@pytest.mark.parametrize(
    "old, new, key",
    [
        (r"\Z", ', "images": []', "images"),
        (r"\Z", r', "\u0069mages": []', "images"),
        (r"\Z", r', "annotations": [1]', "annotations"),
        (r"\Z", r', "info": {"a": 1, "a": 2}', "a"),
        ('"bbox": ', '"bbox": [0, 0, 9, 9], "bbox": ', "bbox"),
        ('"bbox": ', r'"\u0062box": null, "bbox": ', "bbox"),
        ('"id": 2,', '"id": 2, "id": 2,', "id"),
    ],
)
def test_a_key_that_is_there_twice_is_named_by_all_readers(old, new, key, clean, tmp_path):
    text = (clean / "annotations.json").read_text().rstrip()[:-1]
    (tmp_path / "a.json").write_text(re.sub(old, new.replace("\\", r"\\"), text, count=1) + "}")
    read = partial(check_coco, image_root=clean / "images", images="none")
    for reader in (read, load_coco, read_panoptic, read_stats):
        with pytest.raises(UserError, match=rf"a\.json has '{key}' twice in one object, .*; leave one"):
            reader(tmp_path / "a.json")


# What one reader of JSON takes and another does not, or takes for something else.
_READ = {
    "-0": 0,
    "-0.0": -0.0,
    "1E2": 100.0,
    "1e400": math.inf,
    "-Infinity": -math.inf,
    "9" * 500: int("9" * 500),
    r'"\ud800"': "\ud800",
    r'"\ud83d\ude00"': "\U0001f600",
    r'"\\ud800, NaN"': r"\ud800, NaN",
    r'"\/"': "/",
    '"\x7f"': "\x7f",
}
_NOT_READ = ["01", "+1", "1.", ".5", "0x1", "nan", "'x'", "1\v", "1\f", "1 // x", '"\t"', r'"\x41"', r'"\ud"']


@pytest.mark.parametrize("value", [*_READ, *_NOT_READ, "9" * 5000])
def test_the_check_reads_a_file_as_detectron2_does(value, tmp_path):
    """That of pycocotools, by which detectron2 loads it."""
    file = tmp_path / "a.json"
    file.write_text(f'{{"images": [{value}], "images.item": 1, "": {{"images": [5]}}, "annotations": []}}')
    if value in _READ:
        assert read_coco(file)["images"] == json.load(file.open())["images"] == [_READ[value]]
        assert str(read_coco(file)["images"]) == str([_READ[value]])  # -0.0 is no 0
        return
    with pytest.raises(UserError, match=r"a\.json is not valid JSON"):
        read_coco(file)
    with pytest.raises(ValueError):
        json.load(file.open())


@pytest.mark.parametrize(
    "text", [b'{"images": {"item": {"id": 1}}}', b'{"images.item": {"id": 1}}', b"3", b"[{}]"]
)
def test_what_only_looks_like_a_list_is_none(text, tmp_path):
    (tmp_path / "a.json").write_bytes(text)
    with pytest.raises(UserError, match=r"a\.json: 'images' is not a list|a\.json has no list of images"):
        read_coco(tmp_path / "a.json", "images")


ODD = (
    *(None, True, "", "\ud800", "1e400", [], {}, [None], [[]], math.nan, -math.inf, 0.5, 2**63, 10**400),
    *([math.nan] * 4, [10**400] * 6, [[math.nan] * 8], [[10**400] * 6], [[1e308, -1e308] * 3], [["x"] * 6]),
    *({"size": None, "counts": [1]}, {"size": [48, 64], "counts": [10**400]}),
)


@pytest.mark.parametrize("name", ["images", "annotations", "categories"])
def test_whatever_stands_in_a_place_is_mended_or_said_and_what_is_trained_on_is_loaded(name, tmp_path):
    Image.new("RGB", (64, 48)).save(tmp_path / "1.jpg")
    whole = small()
    whole["annotations"].append({**whole["annotations"][0], "id": 2, "bbox": [4, 4, 36, 30]})
    places = [(name, 0), *((name, 0, key) for key in whole[name][0])]
    places += [(name, 0, key, 0) for key in ("bbox", "keypoints") if key in whole[name][0]]
    for place, value in itertools.product(places, ODD):
        content = copy.deepcopy(whole)
        *path, last = place
        reduce(getitem, path, content)[last] = value
        file = tmp_path / "a.json"
        with suppress(UserError):
            checked(content, tmp_path, "exist")
            assert set(check_coco(tmp_path / "fixed.json", tmp_path).counts) <= set(KEPT), (place, value)
        with suppress(UserError):
            load_coco(file)
        with suppress(UserError):
            check_pairs([(str(file), str(tmp_path))])
            load_coco_json(str(file), str(tmp_path))
            read_stats(file)


def test_a_file_that_memory_does_not_hold_is_named(tmp_path):
    with open(tmp_path / "a.json", "w") as file:
        file.truncate(1 << 42)
    with pytest.raises(UserError, match=r"a\.json has 4398046511104 bytes, more than the \d+ allowed"):
        check_coco(tmp_path / "a.json", tmp_path)


def test_a_byte_order_mark_is_named(clean, tmp_path):
    (tmp_path / "a.json").write_bytes(b"\xef\xbb\xbf" + (clean / "annotations.json").read_bytes())
    with pytest.raises(UserError, match=r"a\.json begins with a byte-order mark"):
        check_coco(tmp_path / "a.json", clean / "images", "none")
    with pytest.raises(ValueError):
        COCO(str(tmp_path / "a.json"))


def test_objects_whose_masks_are_run_lengths_are_told(dataset):
    folder, content = dataset
    spoil_rle(content, lambda rle: None)
    (folder / "annotations.json").write_text(json.dumps(content))
    report = check_coco(folder / "annotations.json", folder / "images", "none")
    assert report.counts == {} and report.encoded == 1
    assert f"1 of {report.objects} objects have run-length masks: train on them with INPUT.MASK" in str(
        report
    )


@pytest.mark.parametrize(
    "text, message",
    [
        ("", "is not valid JSON"),
        ("{", "is not valid JSON"),
        ('{"images": [1, 2', "is not valid JSON"),
        ("[]", "has no list of images"),
        ('{"categories": [{"id": 1, "name": "a"}]}', "has no list of images"),
        ("hello", "is not valid JSON"),
        ("\x00\x01", "is not valid JSON"),
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
    assert_one_line_error(run_python(*args), "is not valid JSON")
    assert_one_line_error(run_python(args[0], "none.json", folder), "cannot read none.json (No such file")


def test_a_box_that_is_cut_has_the_area_that_is_left(dataset):
    folder, content = dataset
    polygon_of(content).update(bbox=[-10, -10, 36, 36], area=1296)
    number = polygon_of(content)["image_id"], polygon_of(content)["category_id"]
    del polygon_of(content)["segmentation"]
    (folder / "annotations.json").write_text(json.dumps(content))
    check_coco(folder / "annotations.json", folder / "images", fix=folder / "fixed.json")
    fixed = json.loads((folder / "fixed.json").read_text())["annotations"]
    (cut,) = [a for a in fixed if a["bbox"][:2] == [0, 0] and (a["image_id"], a["category_id"]) == number]
    assert cut["bbox"] == [0, 0, 26, 26] and cut["area"] == 26 * 26


# What is wrong with the first object, and what was meant by it: nothing of it is lost.
_POLYGON = [4.0, 4.0, 40.0, 4.0, 40.0, 40.0, 4.0, 40.0]
_HALVES = [
    [4, 4, 40, 4, 40, 22, 4, 22],
    {"size": [48, 64], "counts": [4 * 48 + 22, *[18, 30] * 35, 18, 1160]},
]
MEANT = {
    "iscrowd as pandas writes none": ({"iscrowd": math.nan}, {"iscrowd": 0}),
    "keypoints as pandas writes none": ({"keypoints": math.nan}, {"keypoints": [0] * 6, "num_keypoints": 0}),
    "iscrowd as text": ({"iscrowd": "0"}, {"iscrowd": 0}),
    "iscrowd as a word": ({"iscrowd": "false"}, {"iscrowd": 0}),
    "box as text": ({"bbox": ["4", " 4.0", "36", "3.6e1"]}, {"bbox": [4, 4, 36, 36]}),
    "no box": ({"bbox": None}, {"bbox": [4, 4, 36, 36]}),
    "box of NaN": ({"bbox": [math.nan] * 4}, {"bbox": [4, 4, 36, 36]}),
    "box without width": ({"bbox": [4, 4, 0, 36]}, {"bbox": [4, 4, 36, 36]}),
    "polygon as text": ({"segmentation": [list(map(str, _POLYGON))]}, {"segmentation": [_POLYGON]}),
    "bow tie": ({"segmentation": [[4, 4, 40, 40, 40, 4, 4, 40]]}, {"segmentation": [[4, 4, 40, 40, 40, 4, 4, 40]]}),
    "runs as floats": (
        {"segmentation": {"size": [48.0, "64"], "counts": [100.0, 500, "2472"]}, "bbox": [2, 0, 11, 48], "area": 500},
        {"segmentation": {"size": [48, 64], "counts": [100, 500, 2472]}},
    ),
    "polygons among runs": ({"segmentation": _HALVES}, {"area": 1296}),
    "a part that is none": ({"segmentation": [_POLYGON, [1, 2]]}, {"segmentation": [_POLYGON]}),
    "one keypoint of NaN": (
        {"keypoints": [5, math.nan, 2, 6, 6, 1]}, {"keypoints": [0, 0, 0, 6, 6, 1], "num_keypoints": 1},
    ),
    "keypoints as text": ({"keypoints": ["5", "5", "2", 6, 6, 1]}, {"keypoints": [5, 5, 2, 6, 6, 1], "num_keypoints": 2}),
    "a keypoint too many": ({"keypoints": [5, 5, 2] * 3}, {"keypoints": [0] * 6, "num_keypoints": 0}),
    "visibilities": ({"keypoints": [5, 5, 3, 6, 6, 0.5]}, {"keypoints": [5, 5, 2, 6, 6, 2], "num_keypoints": 2}),
    "a keypoint outside": ({"keypoints": [5, 5, 2, 600, 6, 1]}, {"keypoints": [5, 5, 2, 0, 0, 0], "num_keypoints": 1}),
    "num_keypoints": ({"num_keypoints": 0}, {"num_keypoints": 2}),
    "area of an hour": ({"area": 1e12}, {"area": 1296}),
    "area of a fraction": ({"area": 0.42}, {"area": 1296}),
}  # fmt: skip


def small(**values):
    """Content of a file with one object, and the report and copy of its check."""
    annotation = {
        **{"id": 1, "image_id": 1, "category_id": 1, "bbox": [4, 4, 36, 36], "area": 1296, "iscrowd": 0},
        **{"segmentation": [_POLYGON], "keypoints": [5, 5, 2, 6, 6, 1], "num_keypoints": 2, **values},
    }
    return {
        "images": [{"id": 1, "file_name": "1.jpg", "width": 64, "height": 48}],
        "annotations": [annotation],
        "categories": [{"id": 1, "name": "a", "keypoints": ["nose", "tail"]}],
    }


def checked(content, tmp_path, images="none"):
    """The report, and the copy."""
    (tmp_path / "a.json").write_text(json.dumps(content))
    report = check_coco(tmp_path / "a.json", tmp_path, images, fix=tmp_path / "fixed.json", overwrite=True)
    return report, json.loads((tmp_path / "fixed.json").read_text())


@pytest.mark.parametrize(
    "size, mended", [((63, 49), True), ((128, 96), False), ((32, 24), False), ((48, 64), False)]
)
def test_coordinates_for_an_image_of_another_size_are_not_kept(size, mended, tmp_path):
    for name in ("1.jpg", "2.jpg"):
        Image.new("RGB", (64, 48)).save(tmp_path / name)
    content = small()
    first = content["images"][0]
    content["images"] = [
        {**first, "width": size[0], "height": size[1]},
        {**first, "id": 2, "file_name": "2.jpg"},
    ]
    content["annotations"].append({**content["annotations"][0], "id": 2, "image_id": 2})
    report, fixed = checked(content, tmp_path, "header")
    assert report.counts == {"image of another size": 1}
    assert f"1.jpg is 64x48, annotated as {size[0]}x{size[1]}" in str(report)
    if mended:
        assert fixed["images"][0] == first and fixed["annotations"] == content["annotations"]
    else:
        assert [image["id"] for image in fixed["images"]] == [2]
        assert [annotation["image_id"] for annotation in fixed["annotations"]] == [2]
        assert "1 images (1 x image of another size); 1 annotations" in report.losses()


# A box of 4, 4, 36, 36 by other rules. That of the mask is right at once where it has no area.
@pytest.mark.parametrize("box", [[0, 0, 20, 20], [22, 22, 36, 26], [4, 4, 10, 36], [0.0, 8.0, 56.0, 40.0]])
def test_a_box_that_its_mask_contradicts_is_said_and_kept(box, tmp_path):
    report, fixed = checked(small(bbox=box, area=1000, keypoints=[0] * 6, num_keypoints=0), tmp_path)
    assert report.counts["box does not match its mask"] == 1 and not report.fatal
    assert fixed["annotations"][0]["bbox"] == box and report.losses() == ""


@pytest.mark.parametrize("box", [[4, 4, 36, 36], [0, 4, 44, 40], [3, 3, 30, 30], [4.0, 4.0, 36.0, 30.0]])
def test_a_box_and_a_mask_may_differ_a_little(box, tmp_path):
    content = small(bbox=box)
    thin = [[10, 4, 10.5, 4, 10.5, 40, 10, 40]]
    content["annotations"].append(
        {**content["annotations"][0], "id": 2, "bbox": [9, 4, 2, 36], "segmentation": thin}
    )
    content["annotations"][1].update(area=18, keypoints=[10, 6, 2, 0, 0, 0], num_keypoints=1)
    assert checked(content, tmp_path)[0].counts == {}


@pytest.mark.parametrize(
    "keypoints, kinds",
    [
        ([5 / 64, 5 / 48, 2, 6 / 64, 6 / 48, 1], {"visible keypoints all outside the box": 1}),
        ([62, 1, 2, 63, 2, 2], {"visible keypoints all outside the box": 1}),
        ([62, 1, 2, 5, 5, 2], {}),
        ([0, 0, 0, 0, 0, 0], {}),
        ([5, 5, 20, 20, 30, 30], {"keypoints not given as x, y and visibility": 1}),
        ([5, 5, 2, 6, 6, 95], {"keypoints not given as x, y and visibility": 1}),
    ],
)
def test_keypoints_that_cannot_be_those_of_their_object_are_said(keypoints, kinds, tmp_path):
    count = sum(v > 0 for v in keypoints[2::3])
    report, fixed = checked(small(keypoints=keypoints, num_keypoints=count), tmp_path)
    assert report.counts == kinds
    hidden = "keypoints not given as x, y and visibility" in kinds
    assert fixed["annotations"][0]["keypoints"] == ([0] * 6 if hidden else keypoints)
    assert hidden == bool(report.fatal)


@pytest.mark.parametrize("name", MEANT)
def test_what_was_meant_is_kept(name, tmp_path):
    spoilt, meant = MEANT[name]
    report, fixed = checked(small(**spoilt), tmp_path)
    (annotation,) = fixed["annotations"]
    assert annotation == {**annotation, **meant} and report.losses() == ""
    assert report.counts or name == "bow tie"
    assert checked(fixed, tmp_path)[0].counts == {}


def test_what_is_right_is_left_alone(tmp_path):
    report, fixed = checked(small(), tmp_path)
    assert (report.counts, report.notes, fixed) == ({}, [], small())


@pytest.mark.parametrize("area", [36 * 36, 30 * 36, 37 * 37])
def test_an_area_may_be_that_of_the_box_or_of_the_mask(area, tmp_path):
    diagonal = [[4, 4, 8, 4, 40, 40, 36, 40]]
    assert checked(small(area=area, segmentation=diagonal), tmp_path)[0].counts == {}


def test_what_a_copy_lacks_is_counted_by_reason(tmp_path):
    content = small()
    first = content["annotations"][0]
    content["images"] += [{"id": 2, "file_name": "2.jpg", "width": 64, "height": 48}, 3]
    changes = (
        {"bbox": [4, 4, 0, 9]},
        {"bbox": "x"},
        {"bbox": [9, 9, -1, 9]},
        {"category_id": 7},
        {"image_id": 2},
    )
    content["annotations"] += [{**first, "id": i, "segmentation": [], **c} for i, c in enumerate(changes, 2)]
    Image.new("RGB", (64, 48)).save(tmp_path / "1.jpg")
    report, fixed = checked(content, tmp_path, "header")
    assert report.losses() == (
        "2 images (1 x image file missing, 1 x entry is not an object); 5 annotations (2 x box without area, "
        "1 x box of the wrong type, 1 x unknown category, 1 x image file missing)"
    )
    assert "unknown image" not in report.counts  # its file is missing
    assert len(fixed["images"]) == len(fixed["annotations"]) == 1


@pytest.mark.parametrize(
    "name",
    [
        "images/1.jpg",
        "./images/1.jpg",
        "train\\images\\1.jpg",
        "C:\\data\\Images\\1.JPG",
        "1.Jpg",
        "/images/1.jpg",
    ],
)
def test_names_of_files_from_elsewhere_are_mended(name, tmp_path):
    (tmp_path / "images").mkdir()
    Image.new("RGB", (64, 48)).save(tmp_path / "images/1.jpg")
    content = small()
    content["images"][0]["file_name"] = name
    (tmp_path / "a.json").write_text(json.dumps(content))
    report = check_coco(tmp_path / "a.json", tmp_path / "images", fix=tmp_path / "fixed.json")
    assert report.counts == {"image file has a slightly different name": 1} and report.losses() == ""
    assert json.loads((tmp_path / "fixed.json").read_text()) == small()


@pytest.mark.parametrize(
    "name, file",
    [("caf\u00e9.jpg", "cafe\u0301.jpg"), ("my%20img.jpg", "my img.jpg"), (" 1.jpg ", "1.jpg")],
)
def test_names_by_the_rules_of_other_systems_are_mended(name, file, tmp_path):
    Image.new("RGB", (64, 48)).save(tmp_path / file)
    content = small()
    content["images"][0]["file_name"] = name
    report, fixed = checked(content, tmp_path, "exist")
    assert report.counts == {"image file has a slightly different name": 1}
    assert fixed["images"][0]["file_name"] == file


@pytest.mark.parametrize(
    "name, hint",
    [("val/1.jpg", "; there is 1.jpg"), ("2.jpg", ""), ("../1.jpg", "; there is 1.jpg"), ("A.jpg", "")],
)
def test_a_copy_without_images_is_not_written(name, hint, tmp_path):
    """Images of another folder are others, and of two files that differ in case neither is meant."""
    (tmp_path / "images").mkdir()
    for file in ("1.jpg", "a.jpg", "a.JPG"):
        Image.new("RGB", (64, 48)).save(tmp_path / "images" / file)
    content = small()
    content["images"][0]["file_name"] = name
    (tmp_path / "a.json").write_text(json.dumps(content))
    message = re.escape(
        f"no images would be left in the repaired copy: 1 x image file missing: image 1 ({name}{hint})"
    )
    with pytest.raises(UserError, match=message):
        check_coco(tmp_path / "a.json", tmp_path / "images", fix=tmp_path / "fixed.json")
    assert not (tmp_path / "fixed.json").exists()


def test_what_no_copy_can_mend_is_noted(tmp_path):
    content = small(keypoints=[0] * 6, num_keypoints=0)
    content["categories"].append({"id": 2, "name": "b", "keypoints": ["nose"]})
    report, _ = checked(content, tmp_path)
    assert report.counts == {} and len(report.notes) == 2
    assert "the categories 'a' and 'b' name different keypoints" in str(report)
    assert "no object has a visible keypoint" in str(report) and "no problems" not in str(report)


def test_boxes_in_fractions_are_those_of_a_whole_file(tmp_path):
    content = small(
        bbox=[0.25, 0.25, 0.5, 0.5], segmentation=[], keypoints=[0.5, 0.5, 2, 0, 0, 0], num_keypoints=1
    )
    report, fixed = checked(content, tmp_path)
    assert fixed["annotations"][0]["bbox"] == [16, 12, 32, 24] and fixed["annotations"][0]["area"] == 768
    assert fixed["annotations"][0]["keypoints"] == [32, 24, 2, 0, 0, 0]
    content["annotations"].append({**small()["annotations"][0], "id": 2})
    report, fixed = checked(content, tmp_path)
    assert report.counts["box within the image's first pixel"] == 1
    assert [a["bbox"] for a in fixed["annotations"]] == [[4, 4, 36, 36]]


@pytest.mark.parametrize("ids", [(-1, -2), (0, 2**61 - 1)])
@pytest.mark.parametrize("of", ["image_id", "category_id"])
def test_objects_of_other_images_or_categories_are_no_object_twice(of, ids, tmp_path):
    """Python's hash of either id is the same."""
    content = small()
    name = {"image_id": "images", "category_id": "categories"}[of]
    first, entry = content["annotations"][0], content[name][0]
    content[name] = [{**entry, "id": i, "file_name": f"{i}.jpg", "name": f"{i}"} for i in ids]
    content["annotations"] = [{**first, "id": k, of: i} for k, i in enumerate(ids, 1)]
    report, fixed = checked(content, tmp_path)
    assert (report.counts, fixed["annotations"]) == ({}, content["annotations"])
    content["annotations"][1][of] = ids[0]
    content["annotations"][1]["bbox"] = [4.0, 4.0, 36.0, 36.0]
    assert checked(content, tmp_path)[0].counts == {"object annotated twice": 1}


@pytest.mark.parametrize("box", [[0, 0, 1, 1], [0.0, 0.0, 1.0, 1.0]])
def test_a_box_of_one_pixel_is_kept(box, tmp_path):
    """It may be the whole image in fractions as well, which is said, unless other boxes tell."""
    content = small(bbox=box, area=1, segmentation=[], keypoints=[0] * 6, num_keypoints=0)
    for others in ([], [{**small()["annotations"][0], "id": 2}]):
        content["annotations"] = [content["annotations"][0], *others]
        report, fixed = checked(content, tmp_path)
        assert report.counts == {"box within the image's first pixel": 1} and not report.fatal
        assert fixed["annotations"] == content["annotations"]
    content["annotations"][1].update(bbox=[0.25, 0.25, 0.5, 0.5], segmentation=[])
    assert checked(content, tmp_path)[1]["annotations"][0]["bbox"] == [0, 0, 64, 48]


def test_boxes_in_fractions_that_start_elsewhere_are_refused(tmp_path):
    """By their centres or two corners, of which some seem to end outside of the image."""
    content = small(bbox=[0.25, 0.25, 0.5, 0.5])
    content["annotations"].append({**content["annotations"][0], "id": 2, "bbox": [0.75, 0.5, 0.5, 0.5]})
    with pytest.raises(UserError, match=r"a\.json: all boxes are fractions .* one would end at 1\.25 of it"):
        checked(content, tmp_path)


def scattered(count, size, seed=0):
    """Boxes x, y, width, height of small objects all over an image."""
    rng = np.random.default_rng(seed)
    start = rng.uniform(0, np.subtract(size, 70), (count, 2))
    return np.hstack((start, rng.uniform(10, 69, (count, 2)))).round(1)


def with_boxes(boxes, size=(640, 480), **values):
    """Annotations of one image."""
    content = small(segmentation=[], **values)
    content["images"][0].update(width=size[0], height=size[1])
    first = content["annotations"][0]
    content["annotations"] = [
        {
            **first,
            "id": i,
            "bbox": list(box),
            "area": box[2] * box[3],
            "keypoints": [0] * 6,
            "num_keypoints": 0,
        }
        for i, box in enumerate(np.asarray(boxes).tolist(), 1)
    ]
    return content


def noted(content, tmp_path):
    return [line for line in checked(content, tmp_path)[0].notes if "keypoint" not in line]


@pytest.mark.parametrize("count", [5, 19, 20, 300])
def test_boxes_by_two_corners_are_said_and_refused_where_they_are_many(count, tmp_path):
    boxes = scattered(count, (640, 480))
    assert noted(with_boxes(boxes), tmp_path) == []
    corners = np.hstack((boxes[:, :2], boxes[:, :2] + boxes[:, 2:]))
    said = (
        rf"\d+ of {count} boxes reach beyond .* when read as x, y, width, height, but none when read as x1, y1, "
        r"x2, y2, such as the box of annotation \d+, \[.*\] on 640x480 pixels; COCO uses x, y, width, height"
    )
    if count < 20:
        (note,) = noted(with_boxes(corners), tmp_path)
        assert re.fullmatch(said, note)
        return
    with pytest.raises(UserError, match=rf"a\.json: {said}$"):
        checked(with_boxes(corners), tmp_path)


@pytest.mark.parametrize("share", [0.1, 0.5])
def test_boxes_that_reach_beyond_their_images_are_not_taken_for_corners(share, tmp_path):
    """Of objects that are cut by the border, somewhere."""
    boxes = scattered(100, (640, 480))
    cut = int(100 * share)
    boxes[:cut, :2] += (600, 440)
    assert noted(with_boxes(boxes), tmp_path) == []


def test_boxes_in_percent_are_said(tmp_path):
    boxes = scattered(100, (640, 480))
    percent = boxes / (640, 480, 640, 480) * 100
    (note,) = noted(with_boxes(percent), tmp_path)
    assert re.fullmatch(
        r"none of 100 boxes has a number above \d\d, on images of at least 480 .*percentages\? COCO uses .*",
        note,
    )
    for content in (
        with_boxes(percent[:19]),  # too few to tell
        with_boxes(percent, (120, 90)),
        with_boxes(boxes / 16),  # of objects in a corner
        with_boxes(boxes * 0.3),
    ):
        assert noted(content, tmp_path) == []


def test_a_copy_without_annotations_is_not_written(tmp_path):
    with pytest.raises(UserError, match=r"no annotations would be left .*: 1 x unknown category: annot"):
        checked(small(category_id="a"), tmp_path)
    assert not (tmp_path / "fixed.json").exists()
    content = small()
    content["Annotations"] = content.pop("annotations")
    report, _ = checked(content, tmp_path)
    assert "there are no annotations" in str(report) and "no problems" not in str(report)


def test_people_in_one_box_are_no_object_twice(tmp_path):
    content = small()
    content["annotations"].append({**content["annotations"][0], "id": 2, "keypoints": [7, 7, 2, 6, 6, 1]})
    assert checked(content, tmp_path)[0].counts == {}
    content["annotations"].append({**content["annotations"][0], "id": 3})
    report, fixed = checked(content, tmp_path)
    assert report.counts == {"object annotated twice": 1} and len(fixed["annotations"]) == 2
