"""Training on a user's own data without writing Python."""

import json

import pytest
from conftest import assert_one_line_error
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import register_coco_instances
from test_train_net import TINY, ap_tables

from resnest_d2 import UserError, model_zoo
from resnest_d2.data import check_pairs, check_registered, fit_config, generate_shapes, pairs_of


@pytest.fixture(scope="module")
def shapes(tmp_path_factory):
    """(annotation file, folder of images) of a training and a validation split, and their content."""
    folder = tmp_path_factory.mktemp("own") / "shapes"
    generate_shapes(folder, num_images={"train": 24, "val": 6})
    pairs = [
        (str(folder / f"annotations/instances_{split}.json"), str(folder / split))
        for split in ("train", "val")
    ]
    return pairs, json.loads((folder / "annotations/instances_train.json").read_text())


def fitted(name, shapes, *overrides, epochs=None):
    pairs, _ = shapes
    cfg = model_zoo.get_config(name)
    cfg.merge_from_list([*overrides])
    return cfg, fit_config(cfg, [pairs[0]], [pairs[1]], epochs)[0]


def annotated_images(content):
    return len({a["image_id"] for a in content["annotations"] if not a["iscrowd"]})


def test_datasets_are_registered_and_load(shapes):
    cfg, _ = fitted("faster_resnest50", shapes)
    assert cfg.DATASETS.TRAIN == ("user_train_1",) and cfg.DATASETS.TEST == ("user_val_1",)
    assert len(DatasetCatalog.get("user_train_1")) == 24
    assert MetadataCatalog.get("user_train_1").thing_classes == ["circle", "square", "triangle"]


@pytest.mark.parametrize("name", ["mask_resnest50", "cascade_resnest101", "retinanet_resnest50"])
def test_number_of_classes_is_set_for_every_head(name, shapes):
    cfg, _ = fitted(name, shapes)
    assert cfg.MODEL.ROI_HEADS.NUM_CLASSES == cfg.MODEL.RETINANET.NUM_CLASSES == 3
    assert cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES == 4


def test_epochs_fit_the_schedule_in_proportion(shapes):
    cfg, _ = fitted("faster_resnest50", shapes, "SOLVER.IMS_PER_BATCH", 4, epochs=90)
    iterations = -(-90 * annotated_images(shapes[1]) // 4)
    assert cfg.SOLVER.MAX_ITER == iterations
    assert cfg.SOLVER.STEPS == (round(iterations * 6 / 9), round(iterations * 8 / 9))
    assert cfg.SOLVER.WARMUP_ITERS == iterations // 10


def test_what_the_recipe_assumes_is_said(shapes):
    _, notes = fitted("faster_resnest50", shapes, "SOLVER.IMS_PER_BATCH", 2)
    assert any("90000 iterations are " in n and "--epochs N" in n for n in notes)
    assert any("SOLVER.BASE_LR 0.02 is high" in n and "gives 0.0025" in n for n in notes)
    assert not any("anchor" in n for n in notes)
    _, notes = fitted("faster_resnest50", shapes, "INPUT.MIN_SIZE_TRAIN", (16,), epochs=1)
    assert [n for n in notes if "of the objects lie outside" in n and "INPUT.MIN_SIZE_TRAIN" in n]
    _, notes = fitted("quickstart", shapes, epochs=1)
    assert notes == []


def test_keypoint_heads_are_fitted(coco_root):
    coco = coco_root / "coco"
    pair = (str(coco / "annotations/person_keypoints_train2017.json"), str(coco / "train2017"))
    cfg = model_zoo.get_config("faster_resnest50")
    cfg.MODEL.KEYPOINT_ON = True
    _, metadata = fit_config(cfg, [pair], [], 1)
    assert metadata["keypoint_flip_map"] == MetadataCatalog.get("user_train_1").keypoint_flip_map
    assert cfg.MODEL.ROI_KEYPOINT_HEAD.NUM_KEYPOINTS == 17 and cfg.MODEL.ROI_HEADS.NUM_CLASSES == 1
    flips = MetadataCatalog.get("user_train_1").keypoint_flip_map
    assert ("left_eye", "right_eye") in flips and len(flips) == 8


def spoilt(shapes, tmp_path, change):
    content = json.loads(json.dumps(shapes[1]))
    change(content)
    (tmp_path / "spoilt.json").write_text(json.dumps(content))
    return [(str(tmp_path / "spoilt.json"), shapes[0][0][1])]


def test_fatal_problems_stop_before_training_and_harmless_ones_are_said(shapes, tmp_path):
    assert check_pairs(shapes[0]) == []
    fatal = spoilt(shapes, tmp_path, lambda c: c["annotations"][0].update(category_id=9))
    with pytest.raises(UserError, match=r"1 x unknown category: annotation 1 .*check_dataset.py --fix"):
        check_pairs(fatal)
    harmless = spoilt(shapes, tmp_path, lambda c: c["annotations"][0].update(bbox=[1, 1, 0, 0]))
    assert len(check_pairs(harmless)) == 1


def test_registered_datasets_are_checked_too(shapes, tmp_path):
    (file, images), *_ = spoilt(shapes, tmp_path, lambda c: c["annotations"][0].update(category_id=9))
    register_coco_instances("test_registered", {}, file, images)
    try:
        with pytest.raises(UserError, match="1 x unknown category: annotation 1 "):
            check_registered(["test_registered"])
    finally:
        DatasetCatalog.remove("test_registered")
        MetadataCatalog.remove("test_registered")


@pytest.mark.parametrize(
    "change, name, message",
    [
        (lambda c: c["categories"].pop(), "faster_resnest50", "has the classes .*'triangle'.*has "),
        (
            lambda c: [a.pop("segmentation") for a in c["annotations"]],
            "mask_resnest50",
            r"spoilt\.json: \d+ of \d+ objects have no segmentation, which MODEL.MASK_ON",
        ),
        (lambda c: c["annotations"].clear(), "faster_resnest50", "no image holds an object"),
        (lambda c: None, "panoptic_resnest200_3x", "PanopticFPN needs semantic annotations"),
    ],
)
def test_data_that_the_recipe_cannot_learn_from_are_named(change, name, message, shapes, tmp_path):
    pairs = spoilt(shapes, tmp_path, change)
    with pytest.raises(UserError, match=message):
        fit_config(model_zoo.get_config(name), pairs, [shapes[0][1]], None)


def test_files_and_folders_come_in_pairs():
    assert pairs_of({"train_json": ["a", "b"], "train_images": ["c", "d"]}, "train") == [
        ("a", "c"),
        ("b", "d"),
    ]
    with pytest.raises(UserError, match="--train-json and --train-images must come in pairs, got 2 and 1"):
        pairs_of({"train_json": ["a", "b"], "train_images": ["c"]}, "train")


def test_command_line_trains_and_evaluates_on_own_data(shapes, run_python, tmp_path):
    (train, train_images), (val, val_images) = shapes[0]
    data = ("--train-json", train, "--train-images", train_images, "--train-json", val, "--train-images", val_images,
            "--val-json", val, "--val-images", val_images)  # fmt: skip
    tiny = list(TINY)
    del tiny[tiny.index("SOLVER.MAX_ITER") : tiny.index("SOLVER.MAX_ITER") + 2]
    result = run_python(
        *("tools/train_net.py", "--config-file", "configs/mask_resnest50.yaml", *data, "--epochs", 0.2),
        *(*tiny, "OUTPUT_DIR", tmp_path),
    )
    assert result.returncode == 0, result.stderr[-3000:]
    assert set(ap_tables(result.stdout)) == {"bbox", "segm"}
    assert "Not compared with the published AP: DATASETS.TEST is user_val_1" in result.stdout


def test_command_line_names_what_is_missing(shapes, run_python, tmp_path):
    base = ("tools/train_net.py", "--config-file", "configs/quickstart.yaml", "--train-json")
    result = run_python(*base, "none.json", "--train-images", tmp_path)
    assert_one_line_error(result, "cannot read none.json (No such file")
    result = run_python(*base, shapes[0][0][0], "--train-images", tmp_path / "none")
    assert_one_line_error(result, f"there is no folder of images {tmp_path}/none")
