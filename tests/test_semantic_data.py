"""Semantic masks: a user's own, detectron2's, and ADE20K's preparation."""

import json
import os
import re
import shutil

import cv2
import numpy as np
import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from PIL import Image
from support import ROOT, assert_one_line_error

from resnest_d2 import OptionError, UserError, model_zoo
from resnest_d2.data import (
    check_classes,
    check_datasets,
    check_registered,
    check_semantic,
    own_data,
    read_labels,
)
from resnest_d2.data.ade20k import write_ade20k_labels
from resnest_d2.data.own import SemanticData
from resnest_d2.data.semantic import load_semantic
from resnest_d2.data.semantic_check import KINDS, check_masks
from resnest_d2.data.semantic_classes import read_classes
from resnest_d2.data.semantic_masks import read_mask
from resnest_d2.engine.cli import argument_parser
from resnest_d2.engine.preflight import fit_to_own_data

NAMES = ["water", "land", "road"]
COLOURS = [[226, 169, 41], [132, 41, 246], [110, 193, 228]]
SIZE = (8, 6)


def labels(seed=0):
    """(6, 8): all three classes, and the ignored label."""
    values = np.random.default_rng(seed).integers(0, 3, SIZE[::-1], dtype=np.uint8)
    values.ravel()[:4] = 0, 1, 2, 255
    return values


def coloured(values, unknown=(9, 9, 9)):
    table = np.full((256, 3), unknown, np.uint8)
    table[: len(COLOURS)] = COLOURS
    return table[values]


def with_palette(values, colours=COLOURS):
    colours = [*colours, *[[9, 9, 9]] * (256 - len(colours))]  # of fewer, Pillow cuts the indices
    image = Image.fromarray(values).convert("P")
    image.putdata(values.ravel().tolist())
    image.putpalette([value for colour in colours for value in colour])
    return image


@pytest.fixture
def folder(tmp_path):
    """masks/, images/ with four of each, one of them below, and classes.json: nothing is wrong."""
    for index, name in enumerate(("a", "b", "c", "below/d")):
        for kind in ("masks", "images"):
            (tmp_path / kind / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(labels(index)).save(tmp_path / f"masks/{name}.png")
        Image.new("RGB", SIZE).save(tmp_path / f"images/{name}.jpg")
    (tmp_path / "classes.json").write_text(json.dumps({"classes": NAMES, "colours": COLOURS}))
    return tmp_path


def check(folder, **options):
    return check_semantic(folder / "masks", folder / "images", folder / "classes.json", **options)


def start(folder):
    return check_masks(*(str(folder / name) for name in ("masks", "images", "classes.json")))


def put(folder, image, name="b", **options):
    """Save as a mask."""
    image = image if isinstance(image, Image.Image) else Image.fromarray(image)
    image.save(folder / f"masks/{name}.png", "PNG", **options)


def segmentor(**keys):
    cfg = model_zoo.get_config("faster_resnest50")
    cfg.MODEL.META_ARCHITECTURE = "SemanticSegmentor"
    cfg.merge_from_list([word for key, value in keys.items() for word in (key.replace("__", "."), value)])
    return cfg


def test_nothing_wrong_is_nothing_found(folder):
    report = check(folder)
    assert not report.counts and not report.notes and start(folder) == []
    assert str(report) == "4 images with masks, 3 classes, 2.1% of the pixels ignored\nno problems found"


def test_a_class_whose_label_is_ignored_is_named(folder):
    (folder / "classes.json").write_text(json.dumps({"classes": NAMES, "ignore_label": 1}))
    report = check(folder, how="header")
    assert f"the ignored label 1 is also that of the class {NAMES[1]!r}" in str(report)


@pytest.mark.parametrize("split, count", [("train", 307), ("val", 88)])
def test_real_masks_have_nothing_wrong(split, count, own_aerial):
    masks, images = own_aerial / "annotations" / split, own_aerial / "images" / split
    report = check_semantic(masks, images, own_aerial / "classes.json", how="header")
    assert not report.counts and not report.notes and report.images == count
    shares = json.loads((own_aerial / "classes.json").read_text())["pixel_share_percent"][split]
    assert 100 * report.pixels[:5] / report.pixels[:5].sum() == pytest.approx([*shares.values()], abs=0.006)


@pytest.fixture
def own_aerial(coco_root):
    return coco_root / "aerial"


def turned_by_exif(file):
    exif = Image.Exif()
    exif[0x0112] = 3
    Image.new("RGB", SIZE).save(file, exif=exif)


# Kind of problem, and what makes it in a folder.
SPOILT = {
    "image without a mask": lambda f: (f / "masks/b.png").unlink(),
    "mask without an image": lambda f: (f / "images/b.jpg").unlink(),
    "file with the name of another one but for the extension": lambda f: Image.new("RGB", SIZE).save(f / "images/b.png"),
    "image file unreadable": lambda f: (f / "images/b.jpg").write_bytes(b"x"),
    "image with more than 8 bits per channel": lambda f: Image.new("I;16", SIZE).save(f / "images/b.jpg", "PNG"),
    "image whose shorter side, when resized, rounds to 0": lambda f: Image.new("RGB", (3000, 1)).save(f / "images/b.jpg"),
    "mask file unreadable": lambda f: (f / "masks/b.png").write_bytes((f / "masks/b.png").read_bytes()[:60]),
    "mask that is not PNG": lambda f: Image.fromarray(labels(1)).save(f / "masks/b.png", "BMP"),
    "mask in colours, not labels": lambda f: put(f, coloured(labels(1))),
    "mask with more than 8 bits per pixel": lambda f: put(f, labels(1).astype(np.uint16)),
    "mask of another size than its image": lambda f: put(f, labels(1).T.copy()),
    "label that no class has": lambda f: put(f, labels(1) + (labels(1) == 2) * np.uint8(5)),
    "palette with the classes' colours in another order": lambda f: put(f, with_palette(labels(1), COLOURS[::-1])),
    "mask with a palette, whose indices are read as labels": lambda f: put(f, with_palette(labels(1), [[0, 0, 0]] * 3)),
    "image that its EXIF orientation turns or mirrors, unlike its mask": lambda f: turned_by_exif(f / "images/b.jpg"),
    "mask all of whose pixels are ignored": lambda f: put(f, np.full_like(labels(1), 255)),
}  # fmt: skip


def test_every_kind_of_problem_has_a_test():
    assert SPOILT.keys() == KINDS.keys()


@pytest.mark.parametrize("kind", SPOILT)
def test_a_problem_is_found_counted_and_named_and_refused_where_it_is_fatal(kind, folder):
    SPOILT[kind](folder)
    report = check(folder)
    assert report.counts[kind] == 1 and "b" in report.examples[kind][0] and f"1 x {kind}: " in str(report)
    others = {"mask of another size than its image"} if "rounds to 0" in kind else set()
    assert {*report.counts} - {kind} <= others
    if KINDS[kind]:
        with pytest.raises(UserError, match=rf"masks: 1 x {kind}: .*b"):
            start(folder)
    else:
        (line,) = start(folder)
        assert f"1 x {kind}: b." in line


@pytest.mark.parametrize("kind", ["image without a mask", "mask without an image", "mask that is not PNG"])
def test_what_is_refused_when_checked_is_refused_when_loaded(kind, folder):
    assert len(load_semantic(str(folder / "masks"), str(folder / "images"))) == 4
    SPOILT[kind](folder)
    with pytest.raises(UserError, match=r"b\.(png|jpg)"):
        load_semantic(str(folder / "masks"), str(folder / "images"))


def test_records_pair_images_of_any_format_with_masks_and_know_their_sizes(folder):
    for name, suffix in (("a", "png"), ("b", "TIFF"), ("c", "webp")):
        (folder / f"images/{name}.jpg").unlink()
        Image.new("RGB", SIZE).save(folder / f"images/{name}.{suffix}")
    for rest in ("._a.png", ".DS_Store", "notes.txt", "below/._d.jpg"):  # of other programs
        (folder / "masks" / rest).write_text("")
    (folder / "masks/loop").symlink_to(folder / "masks")
    (folder / "images/loop").symlink_to(folder / "images")
    records = load_semantic(str(folder / "masks"), str(folder / "images"))
    assert [os.path.relpath(r["file_name"], folder / "images") for r in records] == [
        "a.png", "b.TIFF", "below/d.jpg", "c.webp",
    ]  # fmt: skip
    for record in records:
        assert record["sem_seg_file_name"].endswith(".png") and (record["width"], record["height"]) == SIZE
    assert check(folder).counts == {}


@pytest.mark.parametrize("outer, inner", [("images", "masks"), ("masks", "images")])
def test_one_folder_may_lie_in_the_other(outer, inner, folder):
    shutil.move(folder / inner, folder / outer / inner)
    places = {outer: folder / outer, inner: folder / outer / inner}
    assert len(load_semantic(str(places["masks"]), str(places["images"]))) == 4


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
@pytest.mark.parametrize("mode", ["L", "P"])
def test_labels_of_fewer_bits_are_read_as_they_are_meant(mode, bits, tmp_path):
    """Where detectron2 would read their brightness."""
    values = (np.arange(48).reshape(SIZE[::-1]) % 2**bits).astype(np.uint8)
    image = Image.fromarray(values) if mode == "L" else with_palette(values, [[7, 7, 7]] * 2**bits)
    if (mode, bits) == ("L", 1):
        image = Image.fromarray(values.astype(bool))
    image.save(tmp_path / "a.png", bits=bits)
    assert (tmp_path / "a.png").read_bytes()[24] == bits
    read = read_labels(tmp_path / "a.png")
    assert read.dtype == np.uint8 and np.array_equal(read, values)
    read[:] = 0  # a mapper may write into it


@pytest.mark.parametrize("kind", ["mask file unreadable", "mask that is not PNG", "mask in colours, not labels",
                                  "mask with more than 8 bits per pixel"])  # fmt: skip
def test_what_holds_no_labels_is_not_read_as_labels(kind, folder):
    SPOILT[kind](folder)
    with pytest.raises(UserError, match=rf"b\.png: {kind} .*check_dataset\.py") as caught:
        read_labels(folder / "masks/b.png")
    assert isinstance(type(caught.value)("as PyTorch raises those of workers again"), UserError)


@pytest.mark.parametrize("sampled", [40, 10])
def test_a_start_looks_at_some_masks_of_many_and_at_both_ends(sampled, tmp_path, monkeypatch):
    monkeypatch.setattr("resnest_d2.data.semantic_check._SAMPLE", sampled)
    monkeypatch.setattr("resnest_d2.data.semantic_check._DECODED", 10)
    for name in ("masks", "images"):
        (tmp_path / name).mkdir()
    (tmp_path / "classes.json").write_text(json.dumps(NAMES))
    for i in range(50):
        Image.fromarray(labels()).save(tmp_path / f"masks/{i:02}.png")
        Image.new("RGB", SIZE).save(tmp_path / f"images/{i:02}.jpg")
    assert start(tmp_path) == []
    for place in (0, 49):
        put(tmp_path, labels() | 64, f"{place:02}")
        with pytest.raises(UserError, match=rf"1 x label that no class has: {place:02}\.png \(64, 65, 66\)"):
            start(tmp_path)
        put(tmp_path, labels(), f"{place:02}")
    read = []

    def counted(path, decode):
        read.append(decode)
        return read_mask(path, decode)

    monkeypatch.setattr("resnest_d2.data.semantic_check.read_mask", counted)
    assert start(tmp_path) == [] and len(read) == sampled and sum(read) == 10


def test_masks_of_which_all_are_ignored_are_refused(folder):
    for name in ("a", "b", "c", "below/d"):
        put(folder, np.full_like(labels(), 255), name)
    with pytest.raises(UserError, match=r"all pixels of the masks .* have the ignored label 255"):
        start(folder)


def test_classes_that_never_occur_are_said(folder):
    (folder / "classes.json").write_text(json.dumps([*NAMES, "car", "boat"]))
    assert check(folder).notes == ["2 of 5 classes never occur: 'car', 'boat'"]
    assert start(folder) == []  # which looks at some masks only


def test_colours_become_labels(folder):
    for index, name in enumerate(("a", "b", "c", "below/d")):
        put(folder, coloured(labels(index)), name)
    report = check(folder, fix=folder / "out")
    assert report.counts["mask in colours, not labels"] == 4 and report.losses() == ""
    assert any("no class has, such as [9, 9, 9]; --fix ignores them" in note for note in report.notes)
    shutil.rmtree(folder / "masks")
    (folder / "out").rename(folder / "masks")
    assert check(folder).counts == {} and start(folder) == []
    for index, name in enumerate(("a", "b", "c", "below/d")):
        assert np.array_equal(read_labels(folder / f"masks/{name}.png"), labels(index))


CONVERTED = {
    "RGB": lambda v: Image.fromarray(coloured(v)),
    "RGBA": lambda v: Image.fromarray(coloured(v)).convert("RGBA"),
    "a palette in another order": lambda v: with_palette(np.where(v < 3, 2 - v, v).astype(np.uint8), COLOURS[::-1]),
    "a palette of other indices": lambda v: with_palette(np.where(v < 3, 10 + v, v).astype(np.uint8), [[0, 0, 0]] * 10 + COLOURS),
    "a palette of other indices, and of a colour of no class": lambda v: with_palette(np.where(v < 3, 10 + v, 9).astype(np.uint8), [[9, 9, 9]] * 10 + COLOURS),
    "a palette in order": with_palette,
    "grey as RGB": lambda v: Image.fromarray(v).convert("RGB"),
    "grey with alpha": lambda v: Image.fromarray(v).convert("LA"),
    "16 bits": lambda v: Image.fromarray(v.astype(np.uint16)),
    "labels": Image.fromarray,
}  # fmt: skip


@pytest.mark.parametrize("form", CONVERTED)
def test_a_repaired_copy_has_the_same_labels_whatever_they_were_stored_as(form, folder):
    put(folder, CONVERTED[form](labels(1)))
    report = check(folder, fix=folder / "out")
    assert report.losses() == "" and np.array_equal(read_labels(folder / "out/b.png"), labels(1))
    assert Image.open(folder / "out/b.png").mode == "L"
    assert sorted(p.name for p in (folder / "out").rglob("*.png")) == ["a.png", "b.png", "c.png", "d.png"]


@pytest.mark.parametrize("form, suffix", [("BMP", "bmp"), ("TIFF", "tif")])
def test_other_formats_are_converted_unless_they_change_values(form, suffix, folder):
    (folder / "masks/b.png").unlink()
    Image.fromarray(labels(1)).save(folder / f"masks/b.{suffix}", form)
    (folder / "masks/c.png").unlink()
    Image.fromarray(labels(2)).save(folder / "masks/c.jpg")
    report = check(folder, fix=folder / "out")
    assert report.counts == {"mask that is not PNG": 2}
    assert report.losses() == "1 masks (1 x mask that is not PNG)"
    assert np.array_equal(read_labels(folder / "out/b.png"), labels(1))
    assert not (folder / "out/c.png").exists()


def test_masks_that_do_not_fit_their_images_are_left_out(folder):
    put(folder, labels().T.copy(), "b")
    put(folder, labels() | 8, "c")
    (folder / "images/below/d.jpg").unlink()
    report = check(folder, fix=folder / "out")
    assert report.losses() == (
        "3 masks (1 x mask without an image, 1 x mask of another size than its image, 1 x label that no class has)"
    )
    assert [path.name for path in (folder / "out").rglob("*.png")] == ["a.png"]
    (folder / "masks/a.png").unlink()
    with pytest.raises(UserError, match="no mask can be converted: 3 masks"):
        check(folder, fix=folder / "none")


def test_colours_of_no_known_class_need_those_of_the_classes(folder):
    put(folder, coloured(labels(1)))
    (folder / "classes.json").write_text(json.dumps(NAMES))
    with pytest.raises(
        UserError, match=r'such as b\.png, need the classes\' colours .* add "colours": .*json'
    ):
        check(folder, fix=folder / "out")
    assert not (folder / "out").exists()
    put(folder, Image.fromarray(labels(1)).convert("RGB"))  # grey, which needs none
    check(folder, fix=folder / "out")
    assert np.array_equal(read_labels(folder / "out/b.png"), labels(1))


@pytest.mark.parametrize(
    "target, message",
    [
        ("masks", "is, holds or lies in the folder of masks"),
        ("masks/new", "is, holds or lies in the folder of masks"),
        ("images", "is, holds or lies in the folder of images"),
        (".", "is, holds or lies in the folder of masks"),
        ("link", "is, holds or lies in the folder of masks"),
        ("classes.json", "is not a folder"),
        ("classes.json/out", "cannot write"),
        ("full", "is not empty; .*--overwrite"),
    ],
)
def test_a_repaired_copy_replaces_nothing_that_must_be_kept(target, message, folder):
    (folder / "link").symlink_to("masks")
    (folder / "full").mkdir()
    (folder / "full/a.png").write_text("kept")
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    with pytest.raises(UserError, match=message):
        check(folder, fix=folder / target)
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before
    check(folder, fix=folder / "full", overwrite=True)
    assert np.array_equal(read_labels(folder / "full/a.png"), labels(0))


@pytest.mark.parametrize(
    "content, message",
    [
        (3, "must be a list of names"),
        ([], "must be a list of names"),
        ({"colours": COLOURS}, "must be a list of names"),
        ([{"id": 1, "name": "a"}], "is not a name"),
        (["a", " "], "is not a name"),
        (["a", "\ud800"], "is not a name"),
        (["a", "b", "a"], "'a' is listed twice"),
        ([str(i) for i in range(257)], "257 classes are more than the 256 labels"),
        ({"classes": NAMES, "ignore_label": -1}, "from 0 to 255, got -1"),
        ({"classes": NAMES, "ignore_label": None}, "from 0 to 255, got None"),
        ({"classes": NAMES, "ignore_label": 65535}, "from 0 to 255, got 65535"),
        ({"classes": NAMES, "ignore_label": "255"}, "from 0 to 255, got '255'"),
        ({"classes": NAMES, "colours": COLOURS[:2]}, "for each of the 3 classes, got 2"),
        ({"classes": NAMES, "colours": "red"}, "for each of the 3 classes, got 'red'"),
        ({"classes": NAMES, "colours": [*COLOURS[:2], [1, 2]]}, r"colour of 'road' must be .*got \[1, 2\]"),
        ({"classes": NAMES, "colors": [*COLOURS[:2], [1, 2, 256]]}, "colour of 'road' must be"),
        ({"classes": NAMES, "colours": [*COLOURS[:2], COLOURS[0]]}, "is that of two classes"),
    ],
)
def test_classes_that_cannot_be_used_are_named(content, message, tmp_path):
    (tmp_path / "classes.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match=rf"--classes .*classes.json: .*{message}"):
        read_classes(tmp_path / "classes.json")


def test_classes_are_a_list_or_an_object_with_colours_and_an_ignored_label(tmp_path):
    for content, colours, ignored in (
        (NAMES, None, 255),
        ({"classes": NAMES, "ignore_label": 0, "colours": COLOURS, "name": "x"}, [*map(tuple, COLOURS)], 0),
    ):
        (tmp_path / "classes.json").write_text(json.dumps(content))
        classes = read_classes(tmp_path / "classes.json")
        assert (classes.names, classes.colours, classes.ignored) == (NAMES, colours, ignored)


def test_the_documented_file_of_classes_is_read(tmp_path):
    (example,) = re.findall(r"```json\n(.*?)```", (ROOT / "docs/own-data.md").read_text(), re.S)
    (tmp_path / "classes.json").write_text(example)
    classes = read_classes(tmp_path / "classes.json")
    assert len(classes.names) == len(classes.colours) == 5 and classes.ignored == 255


def words(folder, *splits):
    pairs = [(f"--{s}-masks", folder / "masks", f"--{s}-images", folder / "images") for s in splits]
    return [
        str(word) for word in (*(w for pair in pairs for w in pair), "--classes", folder / "classes.json")
    ]


def parsed(*given):
    return argument_parser("").parse_args([str(word) for word in given])


def test_the_command_line_fits_a_recipe_to_masks(folder):
    (folder / "classes.json").write_text(
        json.dumps({"classes": NAMES, "colours": COLOURS, "ignore_label": 254})
    )
    for name in ("a", "b", "c", "below/d"):
        put(folder, np.minimum(labels(), 254), name)
    cfg = segmentor(SOLVER__IMS_PER_BATCH=2)
    args = parsed(*words(folder, "train", "train", "val"), "--epochs", 90)
    metadata, notes = fit_to_own_data(cfg, args)
    assert cfg.DATASETS.TRAIN == ("user_train_1", "user_train_2") and cfg.DATASETS.TEST == ("user_val_1",)
    assert cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES == 3 and cfg.MODEL.SEM_SEG_HEAD.IGNORE_VALUE == 254
    assert cfg.SOLVER.MAX_ITER == 90 * 8 // 2 and cfg.SOLVER.STEPS == (240, 320)
    assert cfg.SOLVER.WARMUP_ITERS == 36
    assert notes == ["MODEL.SEM_SEG_HEAD.IGNORE_VALUE 254 instead of 255, as --classes says"]
    for _ in range(2):  # as a process does that starts anew, and one that does not
        own_data(vars(args)).register(metadata)
        dataset = MetadataCatalog.get("user_val_1")
        assert len(DatasetCatalog.get("user_train_2")) == 4 and dataset.evaluator_type == "sem_seg"
        assert dataset.stuff_classes == NAMES and dataset.ignore_label == 254
        assert dataset.stuff_colors == [*map(tuple, COLOURS)]
        assert (dataset.image_root, dataset.sem_seg_root) == (str(folder / "images"), str(folder / "masks"))
        DatasetCatalog.remove("user_val_1")
        MetadataCatalog.remove("user_val_1")
    check_classes(cfg, ["user_train_1"])


def test_without_epochs_the_recipes_iterations_are_said_in_epochs(folder):
    _, (note,) = fit_to_own_data(segmentor(), parsed(*words(folder, "train", "val")))
    assert note.startswith("the recipe's 90000 iterations are 360000 epochs of your 4 images; --epochs N")


def test_validation_masks_alone_are_for_evaluation(folder):
    with pytest.raises(UserError, match="--val-masks without --train-masks would train on the recipe's data"):
        fit_to_own_data(segmentor(), parsed(*words(folder, "val")))
    cfg = segmentor()
    fit_to_own_data(cfg, parsed(*words(folder, "val"), "--eval-only"))
    assert cfg.DATASETS.TEST == ("user_val_1",)


@pytest.mark.parametrize(
    "given, message",
    [
        (["--train-masks", "m", "--train-images", "i"], "masks need --classes FILE"),
        (["--train-images", "i"], "--train-images needs the annotations: --train-json or --train-masks"),
        (["--train-masks", "m", "--classes", "c"], "--train-masks and --train-images must come in pairs, got 1 and 0"),
        (["--train-masks", "m", "--train-json", "j", "--train-images", "i"], "--train-json names objects and --train-masks labels"),
        (["--train-masks", "m", "--train-images", "i", "--val-json", "j", "--val-images", "i"], "--val-json names objects and --train-masks"),
        (["--classes", "c"], "--classes names the labels of masks; give --train-masks"),
        (["--classes", "c", "--train-json", "j", "--train-images", "i"], "--classes names the labels of masks"),
        (["--epochs", 3], "--epochs needs --train-json, --train-masks or --train-images"),
    ],
)  # fmt: skip
def test_options_that_do_not_belong_together_are_refused(given, message):
    with pytest.raises(UserError, match=message):
        fit_to_own_data(segmentor(), parsed(*given))


def test_recipes_and_data_of_different_kinds_are_refused(folder, few_shapes):
    with pytest.raises(
        UserError, match=r"META_ARCHITECTURE GeneralizedRCNN .*masks; use a recipe in configs/segm"
    ):
        fit_to_own_data(model_zoo.get_config("faster_resnest50"), parsed(*words(folder, "train")))
    coco = [
        "--train-json",
        few_shapes / "annotations/instances_val.json",
        "--train-images",
        few_shapes / "val",
    ]
    with pytest.raises(UserError, match=r"SemanticSegmentor learns masks .*_val\.json; give --train-masks"):
        fit_to_own_data(segmentor(), parsed(*coco))
    with pytest.raises(UserError, match=r"coco_2017_val has annotations of objects, .*recipe of a detector"):
        check_classes(segmentor(), ["coco_2017_val"])
    with pytest.raises(
        UserError, match=r"ade20k_sem_seg_val has annotations of labels, .*configs/segmentation"
    ):
        check_classes(model_zoo.get_config("faster_resnest50"), ["ade20k_sem_seg_val"])


@pytest.mark.parametrize("name, count", [("ade20k_sem_seg_val", 150), ("cityscapes_fine_sem_seg_val", 19)])
def test_the_number_of_labels_and_the_ignored_one_are_the_datasets(name, count):
    cfg = segmentor(MODEL__SEM_SEG_HEAD__NUM_CLASSES=count)
    check_classes(cfg, [name])
    cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES = 54
    with pytest.raises(OptionError, match=f"SEM_SEG_HEAD.NUM_CLASSES must be {count}, .*{name}, got 54"):
        check_classes(cfg, [name])
    cfg = segmentor(MODEL__SEM_SEG_HEAD__NUM_CLASSES=count, MODEL__SEM_SEG_HEAD__IGNORE_VALUE=0)
    with pytest.raises(OptionError, match=f"IGNORE_VALUE must be 255, the label that {name} ignores, got 0"):
        check_classes(cfg, [name])


@pytest.fixture
def ade(fixtures, tmp_path):
    """ADEChallengeData2016 of three real images, all of them validation."""
    root = tmp_path / "ADEChallengeData2016"
    for kind in ("images", "annotations"):
        (root / kind).mkdir(parents=True)
        (root / kind / "validation").symlink_to(fixtures / "ade20k/sampleData" / kind)
    return root


@pytest.fixture
def registered():
    """registered(records, **metadata): the name of a dataset of semantic masks."""
    names = []

    def register(records, kind="sem_seg", **metadata):
        names.append(f"test_semantic_{len(names)}")
        DatasetCatalog.register(names[-1], records if callable(records) else lambda: records)
        MetadataCatalog.get(names[-1]).set(evaluator_type=kind, **metadata)
        return names[-1]

    yield register
    for name in names:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)


@pytest.mark.parametrize("kind", ["sem_seg", "cityscapes_sem_seg"])
def test_some_masks_of_registered_datasets_are_checked(kind, folder, registered):
    masks, images = str(folder / "masks"), str(folder / "images")
    about = {"stuff_classes": NAMES, "ignore_label": 255, "sem_seg_root": masks}
    name = registered(lambda: load_semantic(masks, images), kind, **about)
    assert check_registered(segmentor(), [name], [name]) == []
    put(folder, labels(1) | 8)
    for train, test in (([name], []), ([], [name])):
        message = (
            rf"{name}: 1 x label that no class has: b\.png \(8, 9, 10\); it is registered with 3 classes"
        )
        with pytest.raises(UserError, match=message):
            check_registered(segmentor(), train, test)
    assert check_registered(segmentor(), [], []) == []


@pytest.mark.parametrize(
    "records, message",
    [
        ([{"file_name": "a.jpg"}], r"1 of its images have no mask, such as a\.jpg"),
        ([], "it is empty"),
        ([{"file_name": "a.jpg", "sem_seg_file_name": "none.png"}], r"image file unreadable: a\.jpg"),
        (lambda: load_semantic("nowhere", "nowhere"), "there is no folder of images"),
        (lambda: 1 / 0 if False else [][0], "cannot be loaded .IndexError"),
    ],
)
def test_registered_datasets_that_cannot_be_used_are_named(records, message, registered):
    name = registered(records, stuff_classes=NAMES)
    with pytest.raises(UserError, match=message):
        check_registered(segmentor(), [], [name])


def test_ade20k_is_prepared_as_detectron2_expects_it(ade, registered):
    before = sorted((ade / "annotations/validation").iterdir())
    assert write_ade20k_labels(ade) == {"validation": (3, 0)}
    for path in before:
        source = np.asarray(Image.open(path))
        written = np.asarray(Image.open(ade / "annotations_detectron2/validation" / path.name))
        assert written.dtype == np.uint8 and set(np.unique(written)) <= {*range(150), 255}
        assert np.array_equal(written == 255, source == 0)
        assert np.array_equal(written[source > 0] + 1, source[source > 0])
    assert sorted((ade / "annotations/validation").iterdir()) == before
    roots = {
        "sem_seg_root": str(ade / "annotations_detectron2/validation"),
        "image_root": str(ade / "images/validation"),
    }
    about = MetadataCatalog.get("ade20k_sem_seg_val")
    name = registered(
        lambda: load_semantic(*roots.values()), stuff_classes=about.stuff_classes, ignore_label=255, **roots
    )
    assert check_registered(segmentor(MODEL__SEM_SEG_HEAD__NUM_CLASSES=150), [name], []) == []


def test_preparing_ade20k_goes_on_where_it_was_interrupted(ade, run_python, monkeypatch):
    written = ade / "annotations_detectron2/validation"
    save, saved = Image.Image.save, []

    def interrupted(image, file, *arguments):
        saved.append(image)
        save(image, file, *arguments)
        if len(saved) == 2:
            raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(Image.Image, "save", interrupted)
        with pytest.raises(KeyboardInterrupt):
            write_ade20k_labels(ade)
    assert len([*written.iterdir()]) == 1  # whole ones only
    result = run_python("tools/prepare_ade20k.py", ade)
    assert result.returncode == 0 and result.stdout == "validation: wrote 2 masks, kept 1 that were there\n"


@pytest.mark.parametrize(
    "spoil, message",
    [
        (lambda f: shutil.rmtree(f / "annotations"), "there are no masks in .*annotations/training or .*validation"),
        (lambda f: (f / "annotations_detectron2").symlink_to("annotations"), "annotations/training itself"),
        (lambda f: (f / "annotations_detectron2").write_text(""), "cannot write .*annotations_detectron2"),
        (lambda f: Image.new("L", SIZE, 151).save(f / "annotations/training/a.png"), "has the label 151, .*0 to 150"),
        (lambda f: Image.new("RGB", SIZE).save(f / "annotations/training/a.png"), "a.png: mask in colours"),
        (lambda f: (f / "annotations/training/a.png").write_text(""), "a.png: mask file unreadable"),
    ],
)  # fmt: skip
def test_what_is_not_ade20k_is_refused(spoil, message, tmp_path):
    (tmp_path / "annotations/training").mkdir(parents=True)
    Image.new("L", SIZE, 150).save(tmp_path / "annotations/training/a.png")
    spoil(tmp_path)
    with pytest.raises(UserError, match=message):
        write_ade20k_labels(tmp_path)
    if (tmp_path / "annotations/training/a.png").exists():
        assert (
            not [*tmp_path.glob("annotations_detectron2/*/*.png")]
            or (tmp_path / "annotations_detectron2").is_symlink()
        )


def test_what_is_missing_of_ade20k_and_what_writes_it_is_said(ade):
    about = MetadataCatalog.get("ade20k_sem_seg_val")
    before = about.image_root, about.sem_seg_root
    try:
        with pytest.raises(
            UserError, match=r"; unpack ADEChallengeData2016\.zip there, then run tools/prepare"
        ):
            check_datasets(["ade20k_sem_seg_val"], "DATASETS.TEST")
        about.__dict__["image_root"] = str(ade / "images/validation")
        about.__dict__["sem_seg_root"] = str(ade / "annotations_detectron2/validation")
        with pytest.raises(UserError, match=rf"; tools/prepare_ade20k.py {ade} writes them"):
            check_datasets(["ade20k_sem_seg_val"], "DATASETS.TEST")
        write_ade20k_labels(ade)
        check_datasets(["ade20k_sem_seg_val"], "DATASETS.TEST")
    finally:
        about.__dict__["image_root"], about.__dict__["sem_seg_root"] = before


def test_the_tool_reports_and_repairs_masks(folder, run_python):
    put(folder, coloured(labels(1)))
    tool = ("tools/check_dataset.py", folder / "masks", folder / "images")
    assert_one_line_error(run_python(*tool), "masks need --classes FILE")
    result = run_python(*tool, "--classes", folder / "classes.json", "--fix", folder / "out")
    assert result.returncode == 1, result.stderr
    assert "problem: 1 x mask in colours, not labels: b.png (PNG, RGB)" in result.stdout
    assert f"wrote {folder / 'out'}, leaving out nothing" in result.stdout
    fixed = (tool[0], folder / "out", tool[2], "--classes", folder / "classes.json")
    assert run_python(*fixed).returncode == 0
    result = run_python(tool[0], folder / "a.json", tool[2], "--classes", folder / "classes.json")
    assert_one_line_error(result, "there is no folder of masks")


def test_the_command_line_refuses_masks_in_one_line(folder, run_python):
    put(folder, coloured(labels(1)))
    base = ("tools/train_net.py", "--config-file", "configs/quickstart.yaml", *words(folder, "train"))
    result = run_python(*base, "MODEL.META_ARCHITECTURE", "SemanticSegmentor", "OUTPUT_DIR", folder / "out")
    assert_one_line_error(
        result, "1 x mask in colours, not labels: b.png", "tools/check_dataset.py", "--fix OUT"
    )


def test_a_schedule_needs_the_images_of_all_folders(folder):
    pair = (str(folder / "masks"), str(folder / "images"))
    cfg = segmentor(SOLVER__IMS_PER_BATCH=4)
    SemanticData([pair] * 3, [], str(folder / "classes.json")).fit(cfg, 5)
    assert cfg.SOLVER.MAX_ITER == 15


def fixed(folder):
    """The labels of the copy's b.png, or None without one."""
    report = check(folder, fix=folder / "fixed")
    file = folder / "fixed/b.png"
    return report, (np.asarray(Image.open(file)) if file.exists() else None)


def test_masks_of_16_bits_in_several_channels_are_not_converted(folder):
    values = np.repeat(labels(1)[..., None].astype(np.uint16), 3, 2)
    assert cv2.imwrite(str(folder / "masks/b.png"), values)
    report, copy = fixed(folder)
    assert report.counts["mask with more than 8 bits per pixel"] == 1 and copy is None


def test_a_compression_that_changes_labels_is_not_converted(folder):
    (folder / "masks/b.png").unlink()
    Image.fromarray(labels(1)).save(folder / "masks/b.tif", compression="jpeg")
    report, copy = fixed(folder)
    assert report.counts["mask that is not PNG"] == 1 and copy is None


def test_a_palette_with_two_classes_exchanged_and_another_colour_is_in_another_order(folder):
    put(folder, with_palette(labels(1), [COLOURS[1], COLOURS[0], [255, 255, 255]]))
    assert check(folder).counts["palette with the classes' colours in another order"] == 1


def test_grey_labels_stay_even_if_a_class_is_black(folder):
    colours = [[0, 0, 0], *COLOURS[1:]]
    (folder / "classes.json").write_text(json.dumps({"classes": NAMES, "colours": colours}))
    put(folder, np.repeat(labels(1)[..., None], 3, 2))
    _, copy = fixed(folder)
    assert (copy == labels(1)).all()


@pytest.mark.parametrize("key", ["ignore_index", "ignored_label", "Colours", "class_names"])
def test_a_key_that_is_nearly_one_of_ours_is_not_passed_over(key, folder):
    (folder / "classes.json").write_text(json.dumps({"classes": NAMES, key: 0}))
    with pytest.raises(UserError, match=f"'{key}' is not read; did you mean '"):
        check(folder)


def test_folders_that_link_to_each_other_are_read_once(folder):
    for kind in ("masks", "images"):
        for a in range(9):
            (folder / kind / f"d{a}").mkdir()
        for a in range(9):
            for b in range(9):
                (folder / kind / f"d{a}/l{b}").symlink_to(folder / kind / f"d{b}")
    assert not check(folder).counts


@pytest.mark.parametrize("output", ["images", "masks/below/out"])
def test_an_output_among_the_data_is_refused(output, folder):
    cfg = segmentor(OUTPUT_DIR=str(folder / output))
    pair = (str(folder / "masks"), str(folder / "images"))
    with pytest.raises(UserError, match=r"OUTPUT_DIR .* is in .*, among whose files its own would be"):
        SemanticData([pair], [], str(folder / "classes.json")).check(cfg)
