"""The generated dataset, and the check that datasets are there."""

import filecmp
import itertools
import json
import sys
import threading
from pathlib import Path

import numpy as np
import pycocotools.mask as mask_util
import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from PIL import Image
from pycocotools.coco import COCO

from resnest_d2 import UserError
from resnest_d2.data import check_datasets, generate_shapes
from resnest_d2.data.shapes import COLORS, SIZES

FEW = {"train": 44, "val": 22}


@pytest.fixture(scope="module")
def shapes(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("datasets") / "shapes"
    generate_shapes(folder, seed=3, num_images=FEW)
    return folder


@pytest.fixture(scope="module")
def coco(shapes) -> COCO:
    return COCO(str(shapes / "annotations" / "instances_train.json"))


def files_below(folder):
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file())


def test_same_seed_gives_the_same_files_and_another_seed_others(tmp_path):
    one, same, other = (tmp_path / name for name in ("one", "same", "other"))
    for folder, seed in ((one, 3), (same, 3), (other, 4)):
        generate_shapes(folder, seed=seed, num_images={"train": 5, "val": 3})
    names = files_below(one)
    assert len(names) == 5 + 3 + 2
    assert files_below(same) == names
    assert filecmp.cmpfiles(one, same, names, shallow=False) == (names, [], [])
    assert filecmp.cmpfiles(one, other, names, shallow=False)[0] == []


def test_splits_differ(shapes):
    train, val = (
        json.loads((shapes / "annotations" / f"instances_{split}.json").read_text())["annotations"]
        for split in ("train", "val")
    )
    assert train[: len(val)] != val


def test_images_have_the_size_recorded(shapes, coco):
    for record in coco.imgs.values():
        image = Image.open(shapes / "train" / record["file_name"])
        assert image.size == (record["width"], record["height"]) and image.size in SIZES


def test_there_are_crowds_empty_images_and_all_classes(coco):
    assert {a["category_id"] for a in coco.anns.values() if not a["iscrowd"]} == {1, 2, 3}
    crowds = [a for a in coco.anns.values() if a["iscrowd"]]
    assert len(crowds) == 2 * FEW["train"] // 20
    assert all(isinstance(a["segmentation"], dict) for a in crowds)
    assert sum(not coco.getAnnIds(i) for i in coco.imgs) == FEW["train"] // 20


def test_area_and_box_are_those_of_the_mask(coco):
    for annotation in coco.anns.values():
        mask = coco.annToMask(annotation)
        rows, columns = np.where(mask)
        x, y, w, h = annotation["bbox"]
        box = (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)
        assert np.abs(np.subtract((x, y, x + w, y + h), box)).max() <= 1
        assert annotation["area"] == pytest.approx(mask.sum(), abs=4 + 0.04 * mask.sum())


def test_masks_lie_on_pixels_of_the_class_colour(shapes, coco):
    """Outlines in the right place: the mean colour inside is nearer its class's than that outside."""
    nearer = []
    for annotation in coco.anns.values():
        if annotation["iscrowd"]:
            continue
        file_name = coco.imgs[annotation["image_id"]]["file_name"]
        pixels = np.asarray(Image.open(shapes / "train" / file_name), dtype=float)
        mask = coco.annToMask(annotation).astype(bool)
        color = np.array(COLORS[annotation["category_id"] - 1])
        inside = np.abs(pixels[mask].mean(0) - color).sum()
        nearer.append(inside < np.abs(pixels[~mask].mean(0) - color).sum())
    assert np.mean(nearer) > 0.85


def test_objects_occlude_each_other_without_sharing_pixels(coco):
    touching = 0
    for image_id in coco.imgs:
        masks = [coco.annToMask(a) for a in coco.loadAnns(coco.getAnnIds(image_id))]
        boxes = [mask_util.toBbox(mask_util.encode(np.asfortranarray(m))) for m in masks]
        for i, j in itertools.combinations(range(len(masks)), 2):
            smaller = min(masks[i].sum(), masks[j].sum())
            assert (masks[i] & masks[j]).sum() <= 0.1 * smaller
            touching += mask_util.iou([boxes[i]], [boxes[j]], [0])[0, 0] > 0.05
    assert touching >= 5


def test_two_writers_leave_one_complete_dataset(tmp_path):
    folder = tmp_path / "shapes"
    writers = [
        threading.Thread(target=generate_shapes, args=(folder, 3, {"train": 3, "val": 2})) for _ in range(2)
    ]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert [p.name for p in tmp_path.iterdir()] == ["shapes"]
    assert len(files_below(folder)) == 3 + 2 + 2


def test_folder_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"cannot write the shapes dataset .*DETECTRON2_DATASETS"):
        generate_shapes(tmp_path / "file" / "shapes")


def test_shapes_are_registered_with_what_detectron2_needs():
    for name in ("shapes_train", "shapes_val"):
        assert name in DatasetCatalog.list()
        metadata = MetadataCatalog.get(name)
        assert metadata.evaluator_type == "coco"
        assert metadata.thing_classes == ["circle", "square", "triangle"]


def test_unknown_dataset_is_named_with_the_nearest():
    with pytest.raises(
        UserError, match=r"DATASETS.TEST: no dataset .*'coco_2017_vall'; did you mean coco_2017_val"
    ):
        check_datasets(["coco_2017_vall"], "DATASETS.TEST")


def test_missing_files_of_a_dataset_are_named(tmp_path):
    name = "test_missing_files"
    DatasetCatalog.register(name, lambda: [])
    MetadataCatalog.get(name).set(json_file=str(tmp_path / "a.json"), image_root=str(tmp_path))
    with pytest.raises(UserError, match=rf"{tmp_path}/a.json \(DETECTRON2_DATASETS"):
        check_datasets([name], "DATASETS.TRAIN")
    (tmp_path / "a.json").write_text("{}")
    check_datasets([name], "DATASETS.TRAIN")


def test_without_contourpy_the_line_says_how_to_get_it(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "contourpy", None)
    with pytest.raises(
        UserError, match=r"the shapes dataset needs contourpy, which .*: pip install contourpy"
    ):
        generate_shapes(tmp_path / "shapes", num_images={"train": 1})
    assert list(tmp_path.iterdir()) == []
