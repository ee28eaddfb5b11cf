"""Training on a user's own data without writing Python."""

import json
import os

import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import register_coco_instances
from detectron2.data.transforms import ResizeShortestEdge
from PIL import Image
from support import assert_one_line_error
from test_train_net import TINY, ap_tables

from resnest_d2 import OptionError, UserError, model_zoo
from resnest_d2.data import (
    check_classes,
    check_pairs,
    check_registered,
    fit_config,
    generate_shapes,
    pairs_of,
)
from resnest_d2.data.custom import pair_keypoints
from resnest_d2.engine.cli import argument_parser
from resnest_d2.engine.preflight import fit_to_own_data


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


@pytest.mark.parametrize("used", ["train", "test"])
def test_an_image_of_which_resizing_leaves_nothing_is_named_and_no_other(used, registered, tmp_path):
    """Whether it does is as detectron2 resizes."""
    cfg, key = model_zoo.get_config("faster_resnest50"), f"MAX_SIZE_{used.upper()}"
    cfg.INPUT[key] = 100
    for longer, shorter in ((199, 1), (200, 1), (201, 1), (400, 2), (401, 2)):

        def reshape(content, size=(longer, shorter)):
            image = content["images"][0]
            image.update(width=size[0], height=size[1], file_name=str(tmp_path / "narrow.png"))
            content["annotations"] = [a for a in content["annotations"] if a["image_id"] != image["id"]]

        Image.new("RGB", (longer, shorter)).save(tmp_path / "narrow.png")
        name = registered(reshape)
        datasets = ([name], []) if used == "train" else ([], [name])
        size = ResizeShortestEdge.get_output_shape(shorter, longer, 800, cfg.INPUT[key])
        if min(size):
            check_registered(cfg, *datasets)
            continue
        with pytest.raises(
            UserError, match=rf"rounds to 0: image .*{longer}x{shorter}.*raise INPUT.MAX_SIZE"
        ):
            check_registered(cfg, *datasets)
    cfg.INPUT.CROP.ENABLED, cfg.INPUT.MIN_SIZE_TEST = True, 0  # it is another that is resized, or none
    check_registered(cfg, *datasets)


def turned(orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif


@pytest.mark.parametrize(
    "spoil, kind",
    [
        (lambda image, file: image.rotate(90, expand=True).save(file, "JPEG"), "image of another size"),
        (lambda image, file: image.save(file, "JPEG", exif=turned(6)), "image of another size"),
        (lambda image, file: image.save(file, "JPEG", exif=turned(3)), None),
        (lambda image, file: Image.new("I;16", image.size).save(file, "PNG"), "image with more than 8 bits"),
        (lambda image, file: file.write_bytes(b"x"), "image file unreadable"),
    ],
)
def test_a_start_reads_the_headers_of_some_images(spoil, kind, tmp_path):
    """Of more than 200 the first, the last and every few between them."""
    image = Image.new("RGB", (64, 48))
    image.save(tmp_path / "good", "JPEG")
    spoil(image, tmp_path / "bad")
    for i in range(450):
        for name in ("good", "bad"):
            os.link(tmp_path / name, tmp_path / f"{name}{i}.jpg")
    pairs = [(str(tmp_path / "a.json"), str(tmp_path))]
    for bad in ([0], [449], [200, 201, 202]):
        names = [f"{'bad' if i in bad else 'good'}{i}.jpg" for i in range(450)]
        images = [{"id": i, "file_name": name, "width": 64, "height": 48} for i, name in enumerate(names)]
        content = {"images": images, "annotations": [], "categories": [{"id": 1, "name": "a"}]}
        (tmp_path / "a.json").write_text(json.dumps(content))
        if kind is None:
            check_pairs(pairs)
            continue
        with pytest.raises(UserError, match=rf"a\.json: \d x {kind}.*: image .* .bad.*check_dataset.py"):
            check_pairs(pairs)


def test_a_folder_without_the_images_is_named(shapes, tmp_path):
    (tmp_path / "a.json").write_text(json.dumps(shapes[1]))
    with pytest.raises(UserError, match=rf"image file missing: .*; is {tmp_path} the folder of its images\?"):
        check_pairs([(str(tmp_path / "a.json"), str(tmp_path))])


@pytest.fixture
def registered(shapes, tmp_path):
    """registered(change): the name of a dataset whose annotations were changed."""
    names = []

    def register(change):
        names.append(f"test_registered_{len(names)}")
        file = tmp_path / f"{names[-1]}.json"
        content = json.loads(json.dumps(shapes[1]))
        change(content)
        file.write_text(json.dumps(content))
        register_coco_instances(names[-1], {}, str(file), shapes[0][0][1])
        return names[-1]

    yield register
    for name in names:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)


def to_runs(content):
    """One object's mask as run lengths, among polygons."""
    image = content["images"][0]
    of_image = [a for a in content["annotations"] if a["image_id"] == image["id"] and not a["iscrowd"]]
    size = [image["height"], image["width"]]
    of_image[0]["segmentation"] = {"size": size, "counts": [5, 50, size[0] * size[1] - 55]}
    of_image[0].update(bbox=[0, 5, 1, 50], area=50)


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda c: c["annotations"][0].update(category_id=9), "1 x unknown category: annotation 1 "),
        (
            lambda c: c["annotations"][0].pop("segmentation"),
            "1 of [0-9]+ objects .crowds aside. have no segmentation, which",
        ),
    ],
)
def test_registered_datasets_are_checked_too(change, message, registered):
    cfg, name = model_zoo.get_config("mask_resnest50"), registered(change)
    for train, test in (([name], []), ([], [name])):
        with pytest.raises(UserError, match=message):
            check_registered(cfg, train, test)


def test_masks_as_run_lengths_want_bitmasks(registered, shapes, tmp_path):
    cfg, name = model_zoo.get_config("mask_resnest50"), registered(to_runs)
    with pytest.raises(UserError, match=r"1 of [0-9]+ objects have run-length masks, .*MASK_FORMAT bitmask"):
        check_registered(cfg, [name], [])
    assert check_registered(cfg, [], [name]) == []
    cfg.INPUT.MASK_FORMAT = "bitmask"
    assert check_registered(cfg, [name], []) == []
    cfg = model_zoo.get_config("mask_resnest50")
    notes, _ = fit_config(cfg, spoilt(shapes, tmp_path, to_runs), [], 1)
    assert cfg.INPUT.MASK_FORMAT == "bitmask" and any("MASK_FORMAT bitmask instead" in note for note in notes)
    assert fitted("mask_resnest50", shapes, epochs=1)[0].INPUT.MASK_FORMAT == "polygon"


@pytest.mark.parametrize("count", [2, 80])
@pytest.mark.parametrize(
    "name, key", [("faster_resnest50", "ROI_HEADS"), ("retinanet_resnest50", "RETINANET")]
)
def test_other_numbers_of_classes_than_the_data_have_are_named(name, key, count, registered):
    cfg, dataset = model_zoo.get_config(name), registered(lambda content: None)
    cfg.MODEL[key].NUM_CLASSES = 3
    check_classes(cfg, [dataset, "shapes_val"])
    cfg.MODEL[key].NUM_CLASSES = count
    for wrong in (dataset, "shapes_train"):  # read from the file, and known
        with pytest.raises(
            OptionError, match=f"{key}.NUM_CLASSES must be 3, the number of classes of {wrong}"
        ):
            check_classes(cfg, [wrong])


def test_numbers_of_keypoints_are_checked():
    cfg = model_zoo.get_config("faster_resnest50")
    cfg.merge_from_list(["MODEL.KEYPOINT_ON", True, "MODEL.ROI_HEADS.NUM_CLASSES", 1])
    check_classes(cfg, ["keypoints_coco_2017_val"])
    cfg.MODEL.ROI_KEYPOINT_HEAD.NUM_KEYPOINTS = 5
    with pytest.raises(
        OptionError, match=r"ROI_KEYPOINT_HEAD\.NUM_KEYPOINTS must be 17, the number of keypoints"
    ):
        check_classes(cfg, ["keypoints_coco_2017_val"])


def test_validation_data_alone_are_for_evaluation(shapes):
    words = ["--val-json", shapes[0][1][0], "--val-images", shapes[0][1][1]]
    cfg = model_zoo.get_config("faster_resnest50")
    with pytest.raises(UserError, match="--val-json without --train-json would train on the recipe's data"):
        fit_to_own_data(cfg, argument_parser("").parse_args(words))
    fit_to_own_data(cfg, argument_parser("").parse_args([*words, "--eval-only"]))
    assert cfg.DATASETS.TEST == ("user_val_1",)


@pytest.mark.parametrize(
    "left, right",
    [
        ("left_eye", "right_eye"), ("Left_eye", "Right_eye"), ("L_eye", "R_eye"), ("l_eye", "r_eye"),
        ("eye_left", "eye_right"), ("LeftEye", "RightEye"), ("leftEye", "rightEye"), ("eyeLeft", "eyeRight"),
        ("EYE_LEFT", "EYE_RIGHT"), ("eye_l", "eye_r"), ("eye.L", "eye.R"), ("eye-l", "eye-r"), ("eye l", "eye r"),
        ("eyeL", "eyeR"), ("lEye", "rEye"), ("LEye", "REye"), ("leye", "reye"), ("L1", "R1"), ("Leye", "Reye"),
        ("left eye", "right eye"), ("lefteye", "righteye"), ("eye (left)", "eye (right)"), ("eye_L_1", "eye_R_1"),
        ("left_of_right_eye", "right_of_left_eye"), ("left_ear", "Right_Ear"),
    ],
)  # fmt: skip
def test_pairs_of_keypoints_are_known_by_their_names(left, right):
    for names in (["nose", left, right], [right, "nose", left]):
        assert pair_keypoints(names) == ([(left, right)], [])


def test_keypoints_without_another_side_are_told():
    assert pair_keypoints(["leg", "rear", "nose", "LOWER_LIP"]) == ([], [])
    assert pair_keypoints(["left_eye", "right_eye", "l_ear", "EyeL", "nose"])[1] == ["l_ear", "EyeL"]


def with_keypoints(content, names):
    for category in content["categories"]:
        category["keypoints"] = names
    for annotation in content["annotations"]:
        annotation.update(keypoints=[5, 5, 2] * len(names), num_keypoints=len(names))


@pytest.mark.parametrize(
    "names, said",
    [
        (
            ["head", "tail"],
            "none form a left and right pair, so they are not swapped when an image is flipped",
        ),
        (["l_eye", "r_eye", "l_ear"], "l_ear have no counterpart, so they are not swapped"),
        (["l_eye", "r_eye", "nose"], None),
    ],
)
def test_flips_of_keypoints_are_said_in_one_note(names, said, shapes, tmp_path):
    cfg = model_zoo.get_config("quickstart")
    cfg.MODEL.KEYPOINT_ON = True
    pairs = spoilt(shapes, tmp_path, lambda content: with_keypoints(content, names))
    notes, metadata = fit_config(cfg, pairs, [], 1)
    assert len(notes) == bool(said) and all(said in note for note in notes)
    assert metadata["keypoint_flip_map"] == ([("l_eye", "r_eye")] if "l_eye" in names else [])


def test_objects_without_keypoints_are_named_before_training(shapes, tmp_path):
    def change(content):
        with_keypoints(content, ["a", "b"])
        del content["annotations"][0]["keypoints"]

    cfg = model_zoo.get_config("quickstart")
    cfg.MODEL.KEYPOINT_ON = True
    with pytest.raises(
        UserError, match=r"1 of [0-9]+ objects have no keypoints, which MODEL.KEYPOINT_ON needs"
    ):
        fit_config(cfg, spoilt(shapes, tmp_path, change), [], 1)


def test_keypoints_that_cannot_be_learned_are_named_before_training(shapes, tmp_path, registered):
    def hide(content):
        with_keypoints(content, ["a", "b"])
        for annotation in content["annotations"]:
            annotation.update(keypoints=[0] * 6, num_keypoints=0)

    def mix(content):
        with_keypoints(content, ["a", "b"])
        content["categories"][1]["keypoints"] = ["a", "c"]

    cfg = model_zoo.get_config("quickstart")
    hidden, mixed = spoilt(shapes, tmp_path, hide), registered(mix)
    assert any("no object has a visible keypoint" in line for line in check_pairs(hidden))
    fit_config(cfg.clone(), hidden, [], 1)
    cfg.MODEL.KEYPOINT_ON = True
    with pytest.raises(UserError, match=r"spoilt\.json: none of \d+ objects has a visible keypoint"):
        fit_config(cfg.clone(), hidden, [], 1)
    with pytest.raises(UserError, match=r"none of \d+ objects has a visible keypoint"):
        check_registered(cfg, [registered(hide)], [])
    mixed = [(MetadataCatalog.get(mixed).json_file, shapes[0][0][1])]
    with pytest.raises(UserError, match="its categories' keypoints differ among themselves"):
        fit_config(cfg, mixed, [], 1)


def test_a_file_that_is_too_large_to_be_checked_is_said(registered, monkeypatch):
    name = registered(lambda content: content["annotations"][0].update(category_id=9))
    monkeypatch.setattr("resnest_d2.data.custom._CHECKED", 100)
    (note,) = check_registered(model_zoo.get_config("mask_resnest50"), [name], [])
    file = MetadataCatalog.get(name).json_file
    assert note.startswith(f"{file} is not checked at each start") and f"check_dataset.py {file} " in note


def test_validation_data_without_an_object_are_told(shapes, tmp_path):
    empty = spoilt(shapes, tmp_path, lambda content: content["annotations"].clear())
    notes, _ = fit_config(model_zoo.get_config("quickstart"), [shapes[0][0]], empty, 1)
    assert notes == [f"{empty[0][0]}: no image has an object, so AP will be undefined"]


@pytest.mark.parametrize(
    "change, name, message",
    [
        (lambda c: c["categories"].pop(), "faster_resnest50", "has the classes .*'triangle'.*has "),
        (
            lambda c: [a.pop("segmentation") for a in c["annotations"]],
            "mask_resnest50",
            r"spoilt\.json: \d+ of \d+ objects .crowds aside. have no segmentation, which MODEL.MASK_ON",
        ),
        (lambda c: c["annotations"].clear(), "faster_resnest50", "no image has an object"),
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
    assert "Not compared with the published figures: DATASETS.TEST is user_val_1" in result.stdout


def test_command_line_names_what_is_missing(shapes, run_python, tmp_path):
    base = ("tools/train_net.py", "--config-file", "configs/quickstart.yaml", "--train-json")
    result = run_python(*base, "none.json", "--train-images", tmp_path)
    assert_one_line_error(result, "cannot read --train-json none.json (No such file")
    result = run_python(*base, shapes[0][0][0], "--train-images", tmp_path / "none")
    assert_one_line_error(result, f"there is no folder of images {tmp_path}/none")
