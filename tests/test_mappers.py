"""What becomes of an image and its label map before the network sees them."""

import numpy as np
import pytest
import torch
from detectron2.data import DatasetMapper
from PIL import Image

from resnest_d2 import UserError, model_zoo
from resnest_d2.data.augmentations import PadToSize, RandomBlur, ResizeLongestEdge, scale_and_crop
from resnest_d2.data.mappers import SemanticMapper, build_mapper
from resnest_d2.data.seeding import seeded
from resnest_d2.engine import load_config

NAME = "segmentation/deeplabv3_resnest50_ade20k"


def config(*overrides):
    return load_config(model_zoo.get_config_file(NAME), ["MODEL.DEVICE", "cpu", *map(str, overrides)])


@pytest.fixture
def record(tmp_path):
    """An image whose red value is its label, in a palette, and whose green and blue are its place."""
    height, width = 60, 90
    labels = np.arange(height * width).reshape(height, width) % 150
    y, x = np.mgrid[:height, :width]
    image = np.stack([labels, y, x], 2).astype(np.uint8)
    Image.fromarray(image).save(tmp_path / "image.png")
    mask = Image.fromarray(labels.astype(np.uint8), "P")
    mask.putpalette([7, 8, 9] * 256)
    mask.save(tmp_path / "mask.png")
    return {"file_name": str(tmp_path / "image.png"), "sem_seg_file_name": str(tmp_path / "mask.png")}


def test_a_label_map_with_a_palette_keeps_its_labels(record):
    mapped = SemanticMapper([], "RGB", True)(record)
    assert mapped["image"].dtype == torch.uint8 and mapped["sem_seg"].dtype == torch.int64
    assert (mapped["image"][0] == mapped["sem_seg"]).all()


def test_testing_needs_no_label_map(record):
    mapped = SemanticMapper([], "RGB", False)({"file_name": record["file_name"]})
    assert "sem_seg" not in mapped and (mapped["height"], mapped["width"]) == (60, 90)


def test_a_label_map_of_another_size_is_named(record):
    Image.new("L", (90, 61)).save(record["sem_seg_file_name"])
    with pytest.raises(UserError, match=r"mask.png is not a label map of .*image.png: .* 90x61 and 90x60"):
        SemanticMapper([], "RGB", True)(record)


def test_a_label_that_no_class_has_is_named_in_training(record):
    with pytest.raises(
        UserError, match=r"mask.png has the label 149, but there are 100 classes, .* 255 is ignored"
    ):
        SemanticMapper([], "RGB", True, classes=100)(record)
    SemanticMapper([], "RGB", True, classes=149, ignored=149)(record)


def test_crops_have_their_size_and_pixels_keep_their_labels(record):
    """Without resizing, what is in the crop is the image with its labels; the rest is black and ignored."""
    cfg = config(
        "INPUT.SCALE_CROP.LONG_SIZE",
        "(90,90)",
        "INPUT.SCALE_CROP.CROP_SIZE",
        80,
        "INPUT.SCALE_CROP.BLUR_PROB",
        0.0,
    )
    places, flipped = set(), set()
    for seed in range(20):
        with seeded(0, seed):
            mapped = build_mapper(cfg, True)(record)
        image, labels = mapped["image"], mapped["sem_seg"]
        assert image.shape == (3, 80, 80) and labels.shape == (80, 80)
        counted = labels != 255
        assert counted.sum() == 60 * 80 and not image[:, ~counted].any()
        assert (image[0][counted] == labels[counted]).all()
        places.add(int(image[2, 0, 0]))
        flipped.add(bool(image[2, 0, 0] > image[2, 0, 1]))
    assert len(places) > 5 and flipped == {False, True}


def test_crops_are_drawn_in_both_axes_on_their_own(record):
    cfg = config(
        "INPUT.SCALE_CROP.LONG_SIZE",
        "(90,90)",
        "INPUT.SCALE_CROP.CROP_SIZE",
        48,
        "INPUT.RANDOM_FLIP",
        "none",
        "INPUT.SCALE_CROP.BLUR_PROB",
        0.0,
    )
    corners = set()
    for seed in range(30):
        with seeded(0, seed):
            _, y, x = build_mapper(cfg, True)(record)["image"][:, 0, 0].tolist()
        corners.add((round(y / 12, 1), round(x / 42, 1)))
    assert len({y for y, _ in corners}) > 3 and len({x for _, x in corners}) > 5
    assert any(abs(y - x) > 0.4 for y, x in corners)


@pytest.mark.parametrize(
    "size, expected", [((60, 90), (67, 100)), ((90, 60), (100, 67)), ((50, 50), (100, 100))]
)
def test_the_longer_side_has_the_length(size, expected):
    image = np.zeros((*size, 3), np.uint8)
    assert ResizeLongestEdge((100, 100)).get_transform(image).apply_image(image).shape[:2] == expected


def test_lengths_are_drawn_from_the_whole_range():
    image = np.zeros((10, 20, 3), np.uint8)
    widths = {ResizeLongestEdge((20, 23)).get_transform(image).new_w for _ in range(200)}
    assert widths == {20, 21, 22, 23}


def test_padding_is_black_and_ignored_at_the_right_and_below():
    transform = PadToSize(8, 99).get_transform(np.ones((5, 9, 3), np.uint8))
    image, labels = transform.apply_image(np.ones((5, 9, 3))), transform.apply_segmentation(np.ones((5, 9)))
    assert image.shape == (8, 9, 3) and image[:5].all() and not image[5:].any()
    assert labels.shape == (8, 9) and (labels[:5] == 1).all() and (labels[5:] == 99).all()


def test_blur_changes_images_as_often_as_it_should_and_no_labels():
    image = np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    with seeded(0):
        transforms = [RandomBlur(0.5).get_transform(image) for _ in range(100)]
    changed = sum((t.apply_image(image) != image).any() for t in transforms)
    assert 30 < changed < 70
    assert all((t.apply_segmentation(image[..., 0]) == image[..., 0]).all() for t in transforms)


def test_grey_images_are_blurred_too():
    image = np.random.default_rng(0).integers(0, 256, (16, 16, 1), dtype=np.uint8)
    with seeded(0):
        blurred = RandomBlur(1.0).get_transform(image).apply_image(image)
    assert blurred.shape == image.shape and (blurred != image).any()


def test_recipes_blur_only_where_they_say_so():
    assert any(isinstance(a, RandomBlur) for a in scale_and_crop(config()))
    assert not any(
        isinstance(a, RandomBlur) for a in scale_and_crop(config("INPUT.SCALE_CROP.BLUR_PROB", 0.0))
    )


def test_detectors_have_detectron2s_mapper():
    cfg = load_config(model_zoo.get_config_file("quickstart"))
    assert type(build_mapper(cfg, True)) is DatasetMapper
