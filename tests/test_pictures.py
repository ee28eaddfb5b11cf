"""Pictures of predictions: what they show, their names, and what they cannot be made of."""

import json
import runpy

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.structures import Boxes, Instances
from detectron2.utils import comm
from PIL import Image
from robust.corpus.images import dataset
from support import ROOT
from test_coco_check import files_of_at_most
from torch import nn

from resnest_d2 import UserError, model_zoo
from resnest_d2.data import register_pairs
from resnest_d2.evaluation import draw_predictions


class Finder(nn.Module):
    """Finds one object of the first class, the left half of each image."""

    def forward(self, inputs):
        (record,) = inputs
        size = (record["height"], record["width"])
        instances = Instances(size)
        instances.pred_boxes = Boxes(torch.tensor([[0.0, 0.0, size[1] / 2, size[0]]]))
        instances.scores, instances.pred_classes = torch.tensor([0.9]), torch.tensor([0])
        return [{"instances": instances}]


@pytest.fixture
def draw(tmp_path):
    """draw(images, annotate=...): the pictures of images by file name, with an object each."""

    def make(images, annotate=lambda annotations: None, category="thing", model=None):
        for name, image in images.items():
            path = tmp_path / "images" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            image.save(path)
        content = {
            "images": [
                {"id": i, "file_name": name, "width": image.width, "height": image.height}
                for i, (name, image) in enumerate(images.items(), 1)
            ],
            "annotations": [
                {
                    "id": i,
                    "image_id": i,
                    "category_id": 1,
                    "iscrowd": 0,
                    "bbox": [0, 0, image.width, image.height],
                }
                for i, image in enumerate(images.values(), 1)
            ],
            "categories": [{"id": 1, "name": category}],
        }
        annotate(content["annotations"])
        (tmp_path / "a.json").write_text(json.dumps(content))
        (name,) = register_pairs("val", [(str(tmp_path / "a.json"), str(tmp_path / "images"))], {})
        cfg = model_zoo.get_config("quickstart")
        try:
            return draw_predictions(cfg, model or Finder(), name, tmp_path / "pictures", num_images=100)
        finally:
            DatasetCatalog.remove(name)
            MetadataCatalog.remove(name)

    return make


def test_a_damaged_image_is_named(tmp_path):
    dataset(tmp_path, b"no image", name="bad.jpg")
    (name,) = register_pairs("val", [(str(tmp_path / "a.json"), str(tmp_path / "images"))], {})
    with pytest.raises(UserError, match=r"bad\.jpg is not an image or is damaged"):
        draw_predictions(model_zoo.get_config("quickstart"), nn.Identity(), name, tmp_path / "pictures")


def test_a_model_without_instances_is_named(draw):
    class Proposer(nn.Module):
        def forward(self, inputs):
            return [{"proposals": None} for _ in inputs]

    with pytest.raises(
        UserError, match="META_ARCHITECTURE GeneralizedRCNN predicts neither objects nor labels"
    ):
        draw({"a.jpg": Image.new("RGB", (40, 30))}, model=Proposer())


def test_images_of_one_name_have_pictures_of_their_own(draw):
    names = ("a/1.jpg", "b/1.jpg", "1.jpg", "1.png", "1-2.jpg", "x.y.jpg", "A.jpg", "a.jpg")
    images = {name: Image.new("RGB", (40, 30), (30 * i, 90, 90)) for i, name in enumerate(names)}
    paths = draw(images)
    expected = ["1.png", "1-2.png", "1-3.png", "1-4.png", "1-2-2.png", "x.y.png", "A.png", "a-2.png"]
    assert [path.name for path in paths] == expected
    # Each shows its own image: the lower left corner of the ground truth has no text.
    shown = [np.array(Image.open(path))[-30, -20] for path in paths]
    assert len({tuple(pixel) for pixel in shown}) == len(names)


def test_dollars_in_names_are_drawn_as_they_are(draw):
    image = {"1.png": Image.new("RGB", (320, 240), "white")}

    def text_of(category):
        (path,) = draw(image, category=category)
        return np.array(Image.open(path))

    plain = text_of("a S b S c")
    assert not np.array_equal(text_of("a $ b $ c"), plain)
    for name in ("$\\frac{$", "$x$", "$$", "\\$", "$\\undefined$"):
        text_of(name)
    # As mathematics the dollars would be left out, and the name would be shorter.
    dark = [(text_of(name) < 60).all(-1).sum() for name in ("$WWWW$", "WWWW")]
    assert dark[0] > dark[1]


@pytest.mark.parametrize("size", [(1, 500), (500, 1), (20000, 10), (10, 20000), (1, 1), (60000, 60)])
def test_images_of_odd_proportions_have_sane_pictures(size, draw):
    (path,) = draw({"1.png": Image.new("RGB", size)})
    width, height = Image.open(path).size
    assert width == 1280 and 60 <= height <= 5200


def test_objects_with_masks_of_any_kind_and_without_are_drawn(draw):
    def annotate(annotations):
        first = annotations[0]
        rle = {"size": [30, 40], "counts": [100, 500, 600]}
        for number, segmentation in enumerate((rle, [[1, 1, 20, 1, 20, 20]], [], None), 10):
            annotations.append({**first, "id": number})
            if segmentation is not None:
                annotations[-1]["segmentation"] = segmentation
        annotations[1]["keypoints"] = [1, 1, 2]
        first["segmentation"] = [[1, 1, 20, 1, 20, 20]]

    assert len(draw({"1.png": Image.new("RGB", (40, 30))}, annotate)) == 1


def test_annotations_that_cannot_be_drawn_are_named(draw):
    with pytest.raises(UserError, match=r"the annotations of .*1\.png cannot be drawn .*check_dataset"):
        draw({"1.png": Image.new("RGB", (40, 30))}, lambda a: a[0].update(segmentation=[["x"] * 6]))


def test_a_folder_that_cannot_be_written_is_named_and_keeps_no_rest(draw, tmp_path):
    (tmp_path / "pictures/1.png").mkdir(parents=True)
    with pytest.raises(UserError, match=r"1\.png: it is a folder"):
        draw({"1.png": Image.new("RGB", (40, 30))})
    assert [path.name for path in (tmp_path / "pictures").iterdir()] == ["1.png"]
    (tmp_path / "pictures/1.png").rmdir()
    with files_of_at_most(2000), pytest.raises(UserError, match=r"cannot write .*File too large"):
        draw({"1.png": Image.fromarray(np.random.default_rng(0).integers(0, 255, (15, 20, 3), np.uint8))})
    assert not list((tmp_path / "pictures").iterdir())
    (tmp_path / "pictures").rmdir()
    (tmp_path / "pictures").write_text("")
    with pytest.raises(UserError, match=r"cannot write .*pictures"):
        draw({"1.png": Image.new("RGB", (40, 30))})


def test_several_processes_are_refused_as_each_would_draw_all(monkeypatch):
    monkeypatch.setattr(comm, "get_world_size", lambda: 2)
    with pytest.raises(UserError, match="--num-gpus: pictures are drawn in 1 process, got 2"):
        runpy.run_path(str(ROOT / "tools/draw_predictions.py"))["main"](None, None)
