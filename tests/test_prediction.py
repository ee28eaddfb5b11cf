"""From a trained model to predictions: what they equal, what is read, what is written, what is refused."""

import itertools
import json
import os
import re
import signal
import time

import cv2
import forks
import numpy as np
import pycocotools.mask
import pytest
import torch
from detectron2.evaluation import DatasetEvaluator
from detectron2.structures import Boxes, Instances
from PIL import Image
from pycocotools.coco import COCO
from robust import tiny
from support import ROOT, assert_one_line_error

import resnest_d2
from resnest_d2 import UserError, model_zoo
from resnest_d2.data import own_data
from resnest_d2.engine import Trainer, load_config
from resnest_d2.engine.resuming import class_names
from resnest_d2.engine.signals import ended_at_once
from resnest_d2.prediction import (
    Outputs,
    Predictor,
    find_inputs,
    inputs,
    predict_files,
    read_inputs,
    split_overrides,
)
from resnest_d2.prediction.classes import find_classes
from resnest_d2.prediction.files import _annotations
from resnest_d2.prediction.video import SUFFIX, Video, video_writer

DETECTOR = (
    *tiny.SETTINGS,
    *("MODEL.MASK_ON", True, "MODEL.ROI_HEADS.SCORE_THRESH_TEST", 0.0, "DATALOADER.NUM_WORKERS", 0),
)


def config(name, settings, tmp_path):
    words = [*settings, "MODEL.DEVICE", "cpu", "OUTPUT_DIR", tmp_path]
    cfg = load_config(model_zoo.get_config_file(name), [*map(str, words)]).clone()
    cfg.defrost()
    return cfg


def with_weights(cfg, folder):
    """The configuration with a checkpoint of random weights."""
    torch.manual_seed(0)
    content = {"model": Trainer.build_model(cfg).state_dict(), "trainer": {"classes": class_names(cfg)}}
    torch.save(content, folder / "weights.pth")
    cfg.MODEL.WEIGHTS = str(folder / "weights.pth")
    cfg.freeze()
    return cfg


@pytest.fixture(scope="module")
def detector(tmp_path_factory):
    folder = tmp_path_factory.mktemp("detector")
    return with_weights(config("quickstart", DETECTOR, folder), folder)


def of_own_data(name, settings, words, folder):
    cfg = config(name, (*settings, "DATALOADER.NUM_WORKERS", 0), folder)
    flags = {flag[2:].replace("-", "_"): value for flag, value in zip(words[::2], words[1::2])}
    values = {key: value if key == "classes" else [value] for key, value in flags.items()}
    own_data(values).fit(cfg, None)
    return with_weights(cfg, folder)


@pytest.fixture(scope="module")
def segmentor(tmp_path_factory):
    folder = tmp_path_factory.mktemp("segmentor")
    words = tiny.make_masks(folder)
    return of_own_data("segmentation/deeplabv3_resnest14_small", tiny.SEGMENTATION, words, folder)


@pytest.fixture(scope="module")
def classifier(tmp_path_factory):
    folder = tmp_path_factory.mktemp("classifier")
    words = tiny.make_folders(folder)
    return of_own_data("classification/resnest14_small", tiny.CLASSIFICATION, words, folder)


@pytest.fixture(params=["detector", "segmentor", "classifier"])
def cfg(request):
    return request.getfixturevalue(request.param)


class Collector(DatasetEvaluator):
    """Keeps what the evaluation of a test set is given, by image."""

    def __init__(self):
        self.outputs = {}

    def reset(self):
        pass

    def process(self, inputs, outputs):
        self.outputs.update((record["file_name"], output) for record, output in zip(inputs, outputs))


def same(output, expected):
    """Bit for bit."""
    if "instances" not in expected:
        value = expected["sem_seg"].argmax(0) if "sem_seg" in expected else expected["probabilities"]
        return torch.equal(output, value)
    a, b = output.get_fields(), expected["instances"].get_fields()
    tensors = ([getattr(v, "tensor", v) for v in fields.values()] for fields in (a, b))
    return a.keys() == b.keys() and all(map(torch.equal, *tensors)) and len(output) > 0


def test_it_predicts_what_the_evaluation_does_bit_for_bit(cfg):
    predictor, collector = Predictor(cfg, array_format="BGR"), Collector()
    Trainer.test(cfg, predictor.model, [collector])
    predictor.model.eval()
    files, expected = zip(*collector.outputs.items())
    assert len(files) >= 4
    pictures = [Image.open(file) for file in files]
    arrays = [np.asarray(picture.convert("RGB"))[:, :, ::-1] for picture in pictures]
    raw = []
    predictor.model.register_forward_hook(lambda module, args, outputs: raw.extend(outputs))
    for images in (files, pictures, arrays):
        raw.clear()
        assert all(map(same, predictor(images), expected))
        # Random weights may give all pixels one label.
        scores = [
            (ours["sem_seg"], theirs["sem_seg"]) for ours, theirs in zip(raw, expected) if "sem_seg" in ours
        ]
        assert all(torch.equal(*pair) for pair in scores)


def test_only_neighbours_of_one_size_are_in_a_batch_and_all_come_in_their_order(segmentor):
    predictor, shapes = Predictor(segmentor, batch_size=3, array_format="RGB"), []
    predictor.model.register_forward_pre_hook(
        lambda _, args: shapes.append([tuple(record["image"].shape) for record in args[0]])
    )
    sizes = [(40, 40)] * 4 + [(40, 60)] + [(40, 40)] * 2
    outputs = [*predictor([np.zeros((*size, 3), np.uint8) for size in sizes])]
    assert [len(batch) for batch in shapes] == [3, 1, 1, 2]
    assert all(len({*batch}) == 1 for batch in shapes)
    assert [tuple(output.shape) for output in outputs] == sizes


def test_no_more_images_are_taken_than_a_batch(classifier):
    predictor, taken = Predictor(classifier, batch_size=2, array_format="RGB"), itertools.count()
    images = (np.full((40, 40, 3), i % 256, np.uint8) for i in taken)
    predictions = predictor(images)
    for _ in range(4):
        assert len(next(predictions)) == 3
    assert next(taken) == 4


def test_exif_orientation_is_that_of_detectron2(classifier, tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (30, 50, 3), np.uint8)
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(pixels).save(tmp_path / "turned.png", exif=exif)
    predictor = Predictor(classifier, array_format="RGB")
    expected = next(predictor([np.ascontiguousarray(np.rot90(pixels, -1))]))
    assert not torch.equal(next(predictor(pixels)), expected)
    for image in (tmp_path / "turned.png", Image.open(tmp_path / "turned.png")):
        (prediction,) = predictor.stream(image)
        assert prediction.pixels.shape[:2] == (50, 30) and torch.equal(prediction.output, expected)


def test_objects_below_the_threshold_are_left_out(detector, few_shapes):
    image = next((few_shapes / "val").glob("*.jpg"))
    (everything,) = Predictor(detector)(image)
    middle = float(everything.scores.median())
    (some,) = Predictor(detector, threshold=middle)(image)
    assert 0 < len(some) < len(everything) and (some.scores >= middle).all()


@pytest.mark.parametrize(
    "image, reason",
    [
        (np.zeros((4, 4, 3), np.float32), r"must be \(H, W, 3\) or \(H, W\) uint8, got \(4, 4, 3\) float32"),
        (np.zeros((4, 4, 4), np.uint8), r"got \(4, 4, 4\) uint8"),
        (np.zeros((0, 4, 3), np.uint8), "holds no pixels"),
        (np.zeros((4, 4, 3), np.uint8), "array_format is None"),
        (3, "must be a path, an array or an image of Pillow, got a int"),
        (Image.new("I;16", (4, 4)), "more than 8 bits"),
        ("none.jpg", r"cannot read none\.jpg"),
        ("folder", "is a folder"),
        ("broken.png", r"broken\.png is not an image or is damaged"),
    ],
)
def test_an_image_that_cannot_be_used_is_named_after_the_predictions_before_it(
    image, reason, segmentor, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder").mkdir()
    (tmp_path / "broken.png").write_text("broken")
    good, predictor = Image.new("RGB", (40, 40)), Predictor(segmentor, batch_size=4)
    predictions = predictor([good, image, good])
    assert next(predictions).shape == (40, 40)
    with pytest.raises(UserError, match=reason):
        next(predictions)
    failed = []
    assert len([*predictor.stream([good, image, good], lambda *given: failed.append(given))]) == 2
    assert len(failed) == 1 and failed[0][0] is image


def test_options_that_cannot_work_are_named(detector):
    for options, reason in (
        ({"array_format": "rgb"}, "array_format must be RGB or BGR, got 'rgb'"),
        ({"batch_size": 0}, "batch_size must be >= 1"),
        ({"threshold": 1.5}, "threshold must be >= 0 and <= 1"),
        ({"weights": ""}, 'MODEL.WEIGHTS is ""'),
        ({"weights": "none.pth"}, r"MODEL\.WEIGHTS: there is no file .*none\.pth"),
        ({"classes": ["a"]}, "1 names of classes are given, but the model has 3 classes"),
        ({"device": "tpu"}, "MODEL.DEVICE must be cpu"),
    ):
        with pytest.raises(UserError, match=reason):
            Predictor(detector, **options)
    with pytest.raises(UserError, match="no trained model has been published for quickstart"):
        Predictor("quickstart")
    with pytest.raises(UserError, match=r"there is no file .*mask_resnest5; did you mean mask_resnest50"):
        Predictor("mask_resnest5")


def test_a_model_is_named_as_in_the_zoo_and_imported_when_it_is_used():
    assert resnest_d2.Predictor is Predictor
    with pytest.raises(AttributeError, match="has no attribute 'predictor'"):
        resnest_d2.predictor  # noqa: B018
    name = "classification/resnest14_small"
    predictor = Predictor(name, "", allow_random=True, device="cpu")
    assert predictor.cfg.MODEL.RESNETS.DEPTH == 14 and predictor.batch_size > 1


def test_classes_are_those_given_or_of_the_training_or_of_the_dataset():
    shapes = model_zoo.get_config("quickstart")
    assert find_classes(shapes, []).names == ["circle", "square", "triangle"]
    colours = find_classes(shapes, []).metadata.thing_colors
    own = find_classes(shapes, ["RBC", "WBC", "Platelets"])
    assert own.names == ["RBC", "WBC", "Platelets"] and own.metadata.thing_colors != colours
    assert own.ids == [1, 2, 3]
    assert find_classes(shapes, ["RBC"] * 3, ["a", "b", "c"]).names == ["a", "b", "c"]
    assert find_classes(shapes, ["of", "others"]).names == ["circle", "square", "triangle"]
    shapes.MODEL.ROI_HEADS.NUM_CLASSES = 2
    assert find_classes(shapes, []).names == ["0", "1"]

    coco = find_classes(model_zoo.get_config("cascade_resnest50"), [])
    assert coco.ids[-1] == 90 and coco.names[-1] == "toothbrush" and len(coco.ids) == 80
    people = find_classes(model_zoo.get_config("keypoint_resnest50"), []).metadata
    assert people.thing_classes == ["person"] and len(people.keypoint_names) == 17
    stuff = find_classes(model_zoo.get_config("segmentation/deeplabv3_resnest50_ade20k"), [])
    assert len(stuff.names) == 150 and stuff.ids[:2] == [0, 1] and len(stuff.metadata.stuff_colors) == 150
    imagenet = find_classes(model_zoo.get_config("classification/resnest50"), [])
    assert imagenet.names[0] == "tench" and len(imagenet.names) == 1000


def test_classes_of_own_data_come_with_the_checkpoint(classifier, tmp_path):
    torch.save({"model": torch.load(classifier.MODEL.WEIGHTS)["model"]}, tmp_path / "bare.pth")
    cfg = model_zoo.get_config("classification/resnest14_small")
    cfg.merge_from_other_cfg(classifier)
    cfg.DATASETS.TRAIN = cfg.DATASETS.TEST = ("of_another_process",)
    assert Predictor(cfg).classes.names == ["blue", "green", "red"]
    assert Predictor(cfg, tmp_path / "bare.pth").classes.names == ["0", "1", "2"]


def clip(file, frames=6, size=(64, 48), rate=10.0):
    rng = np.random.default_rng(0)
    with video_writer(file, rate, size) as write:
        for _ in range(frames):
            write(np.repeat(np.repeat(rng.integers(0, 255, (6, 8, 3), np.uint8), 8, 0), 8, 1))
    return file


def touch(*files):
    for file in files:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch()


def test_words_are_files_folders_patterns_and_cameras(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    touch(*(tmp_path / name for name in ("a/1.jpg", "a/b/1.PNG", "a/.hidden.jpg", "a/x.txt", "a/clip.MP4")))
    touch(*(tmp_path / name for name in ("drawn/1.png", "a/out/1.png", "2", "[1].jpg")))

    def names(*words, without=()):
        return [source.name for source in find_inputs(words, without)]

    assert names("a") == ["a/1.jpg", "a/b/1.PNG", "a/clip.MP4", "a/out/1.png"]
    assert names("a", without=[tmp_path / "a/out"]) == ["a/1.jpg", "a/b/1.PNG", "a/clip.MP4"]
    assert names("a/**/1.*", without=[tmp_path / "a/out"]) == ["a/1.jpg", "a/b/1.PNG"]
    assert names("a/?", without=[]) == ["a/b/1.PNG"]
    assert names("a/x.txt", "[1].jpg", "2", "0") == ["a/x.txt", "[1].jpg", "2", "camera 0"]
    assert names("a/b", "a", "a/../a/1.jpg", without=[tmp_path / "a/out"])[0] == "a/b/1.PNG"
    found = find_inputs(["a", "drawn/1.png", "0"])
    assert [source.stem for source in found] == ["1", "1-2", "clip", "1-3", "1-4", "camera-0"]
    assert [source.moves for source in found] == [False, False, True, False, False, True]
    for words, reason in (
        (["none"], r"cannot read none"),
        (["a/*.bmp"], r"no file matches 'a/\*\.bmp'"),
        ([], "nothing to predict on"),
        (["empty"], "there are no images or videos in empty"),
        (["drawn"], "drawn/1.png is in .*drawn, which is written to"),
    ):
        (tmp_path / "empty").mkdir(exist_ok=True)
        with pytest.raises(UserError, match=reason):
            names(*words, without=[tmp_path / "drawn"])


def test_pairs_begin_at_the_first_key(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    touch(tmp_path / "TEST.JPG")
    words = ["DSC_001.JPG", "TEST.JPG", "a.b"]
    assert split_overrides(words) == (words, [])
    for pairs in (["MODEL.WEIGHTS", "x"], ["SEED", "1"], ["MODEL.WEIGTHS", "x"], ["OUTPUT_DIR", "0"]):
        assert split_overrides([*words, *pairs]) == (words, pairs)


def test_frames_are_written_and_read_with_their_rate_and_size(tmp_path):
    with video_writer(tmp_path / f"é{SUFFIX}", 12.5, (64, 48)) as write:
        for level in (40, 120, 200):
            write(np.full((48, 64, 3), (level, 0, 255 - level), np.uint8))
    video = Video(str(tmp_path / f"é{SUFFIX}"))
    frames = [*video]
    assert video.rate == 12.5 and video.count == len(frames) == 3
    for frame, level in zip(frames, (40, 120, 200)):
        assert frame.shape == (48, 64, 3) and np.abs(frame.mean((0, 1)) - (level, 0, 255 - level)).max() < 12


def test_videos_that_end_early_or_are_none_are_named(tmp_path):
    writer = cv2.VideoWriter(str(tmp_path / "whole.avi"), cv2.VideoWriter_fourcc(*"MJPG"), 10, (64, 48))
    for _ in range(60):
        writer.write(np.zeros((48, 64, 3), np.uint8))
    writer.release()
    content = (tmp_path / "whole.avi").read_bytes()
    for name, part in (("cut", content[: len(content) // 2]), ("text", b"text"), ("empty", b"")):
        (tmp_path / f"{name}.avi").write_bytes(part)
    failed = []
    sources = find_inputs([str(tmp_path / f"{name}.avi") for name in ("whole", "cut", "text", "empty")])
    frames = [*read_inputs(sources, lambda *given: failed.append(given))]
    names = [frame.source.name for frame in frames]
    assert names.count(sources[0].name) == 60 and 10 < names.count(sources[1].name) < 50
    assert [name for name, _ in failed] == [source.name for source in sources[1:]]
    assert all("damaged" in str(error) for _, error in failed)
    with pytest.raises(UserError, match="camera 99 cannot be opened"):
        Video(99)


def test_damaged_frames_are_left_out_and_those_after_them_keep_their_numbers(tmp_path):
    content = bytearray(clip(tmp_path / "clip.mp4", frames=60).read_bytes())
    starts = [match.start() for match in re.finditer(rb"\x00\x00\x01\xb6", content)]
    assert len(starts) == 60
    for i in (20, 21, 40):
        content[starts[i] : starts[i + 1]] = b"\xff" * (starts[i + 1] - starts[i])
    (tmp_path / "clip.mp4").write_bytes(content)
    failed = []
    sources = find_inputs([str(tmp_path / "clip.mp4")])
    frames = [*read_inputs(sources, lambda *given: failed.append(given))]
    assert [name for name, _ in failed] == [f"{sources[0].name}, frame {i}" for i in (20, 21, 40)]
    assert [frame.frame for frame in frames] == [i for i in range(60) if i not in (20, 21, 40)]


@pytest.fixture(scope="module")
def predicted(detector, few_shapes, tmp_path_factory):
    """predict.py on images, two without a name of their own, one broken, and a video: folder, result."""
    folder = tmp_path_factory.mktemp("predicted")
    files = sorted((few_shapes / "val").glob("*.jpg"))
    for target, source in zip(("photos/é ü/1.jpg", "photos/1.jpg", "2.jpg"), files):
        (folder / target).parent.mkdir(parents=True, exist_ok=True)
        (folder / target).write_bytes(source.read_bytes())
    (folder / "photos/broken.jpg").write_bytes(files[0].read_bytes()[:500])
    clip(folder / f"clip{SUFFIX}")
    return folder, tool(folder, detector, "photos", "?.jpg", f"clip{SUFFIX}", "--overwrite")


def tool(folder, cfg, *words, threshold=0.0):
    (folder / "config.yaml").write_text(cfg.dump())
    command = (ROOT / "tools/predict.py", *words, "--output", "drawn", "--json", "found.json")
    command += ("--config-file", "config.yaml", "--threshold", threshold)
    return forks.run(command, cwd=folder, environment=dict(os.environ), timeout=100)


def test_what_cannot_be_read_is_named_left_out_and_counted(predicted):
    _, result = predicted
    assert result.returncode == 1, result.stderr
    assert "left out: photos/broken.jpg cannot be used" in result.stderr
    assert "1 were left out" in result.stderr and "Traceback" not in result.stderr
    assert result.stdout == "3 images and 6 frames: drawn/, found.json\n"


def test_pictures_have_the_names_and_sizes_of_their_images(predicted):
    folder, _ = predicted
    assert {path.name for path in (folder / "drawn").iterdir()} == {
        *("1.png", "1-2.png", "2.png", f"clip{SUFFIX}"),
    }
    for picture, image in (("1.png", "photos/1.jpg"), ("1-2.png", "photos/é ü/1.jpg"), ("2.png", "2.jpg")):
        drawn, plain = (np.asarray(Image.open(folder / name)) for name in (f"drawn/{picture}", image))
        assert drawn.shape == plain.shape and 0 < (drawn != plain).mean()
        assert np.abs(drawn.astype(int) - plain).mean() < 80  # it still shows the image
    video = Video(str(folder / f"drawn/clip{SUFFIX}"))
    assert [frame.shape for frame in video] == [(48, 64, 3)] * 6 and video.rate == 10


def test_the_json_file_is_cocos_with_names_boxes_and_masks(predicted, detector):
    folder, _ = predicted
    content = json.loads((folder / "found.json").read_text())
    images = content["images"]
    assert [image["file_name"] for image in images] == [
        *("photos/1.jpg", "photos/é ü/1.jpg", "2.jpg"),
        *[f"clip{SUFFIX}"] * 6,
    ]
    assert [image.get("frame") for image in images] == [None] * 3 + [*range(6)]
    assert [image["id"] for image in images] == [*range(1, 10)]
    assert content["categories"][2] == {"id": 3, "name": "triangle"}
    coco = COCO(str(folder / "found.json"))
    (expected,) = Predictor(detector)(folder / "2.jpg")
    found = coco.loadAnns(coco.getAnnIds(imgIds=[3]))
    assert len(found) == len(expected) > 0
    size = (images[2]["height"], images[2]["width"])
    for i, entry in enumerate(found):
        x0, y0, x1, y1 = expected.pred_boxes.tensor[i].tolist()
        assert entry["bbox"] == pytest.approx([x0, y0, x1 - x0, y1 - y0])
        assert entry["score"] == pytest.approx(float(expected.scores[i]))
        assert entry["category_id"] == int(expected.pred_classes[i]) + 1
        mask = pycocotools.mask.decode(entry["segmentation"])
        assert mask.shape == size and (mask == expected.pred_masks[i].numpy()).all()


def test_nothing_that_is_there_is_replaced_unless_asked(predicted, detector):
    folder, _ = predicted
    (folder / "drawn/1.png").write_text("mine")
    result = tool(folder, detector, "photos/1.jpg")
    assert_one_line_error(result, "drawn/1.png already exists; --overwrite replaces it")
    assert (folder / "drawn/1.png").read_text() == "mine"
    result = tool(folder, detector, "photos/1.jpg", "--overwrite", threshold=1)
    assert result.returncode == 0, result.stderr
    drawn, plain = (np.asarray(Image.open(folder / name)) for name in ("drawn/1.png", "photos/1.jpg"))
    assert (drawn == plain).all()  # in the same colours, as there is nothing to draw
    content = json.loads((folder / "found.json").read_text())
    assert len(content["images"]) == 1 and content["annotations"] == []


@pytest.mark.parametrize(
    "words, reason",
    [
        (("none.jpg", "--output", "o"), "cannot read none.jpg"),
        (("a/*", "--output", "o"), "no file matches 'a/*'"),
        (("1.png",), "nothing would be written"),
        (("1.png", "--output", "."), "is in ., which is written to"),
        (("1.png", "--json", "1.png", "--overwrite"), "1.png is one of the inputs"),
        (("--output", "o"), "nothing to predict on"),
        (("1.png", "--output", "o", "MODEL.WEIGTHS", "x"), "did you mean MODEL.WEIGHTS"),
        (("1.png", "--output", "o", "--threshold", "2"), "--threshold must be"),
        (("1.png", "--output", "o", "--batch-size", "0"), "--batch-size must be"),
        (("1.png", "--output", "o", "--classes", "list.json"), "list.json must be a list of names"),
        (("1.png", "--output", "o"), 'MODEL.WEIGHTS is ""'),
    ],
)
def test_mistakes_are_named_in_one_line(words, reason, run_python, tmp_path):
    Image.new("RGB", (4, 4)).save(tmp_path / "1.png")
    (tmp_path / "list.json").write_text("[1]")
    zoo = ("--config-file", "classification/resnest14_small")
    overrides = () if "MODEL.WEIGTHS" in words else ("MODEL.WEIGHTS", "")
    result = run_python(ROOT / "tools/predict.py", *words, *zoo, *overrides, cwd=tmp_path)
    assert_one_line_error(result, reason)
    assert {path.name for path in tmp_path.iterdir()} == {"1.png", "list.json"}


def test_label_maps_are_beside_the_json_file_and_pictures_coloured(segmentor, tmp_path):
    file = tmp_path / "1.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (40, 60, 3), np.uint8)).save(file)
    predictor = Predictor(segmentor)
    sources = find_inputs([str(file), str(clip(tmp_path / f"clip{SUFFIX}", frames=2))])
    outputs = Outputs(tmp_path / "drawn", tmp_path / "found.json")
    assert predict_files(predictor, sources, outputs, quiet=True) == (1, 2, 0)
    content = json.loads((tmp_path / "found.json").read_text())
    names = [image["sem_seg_file_name"] for image in content["images"]]
    maps = ["1.png", "clip/000000.png", "clip/000001.png"]
    assert names == [f"found_labels/{name}" for name in maps] and content["annotations"] == []
    assert content["categories"][1] == {"id": 1, "name": "red"}
    (expected,) = predictor(file)
    assert (np.asarray(Image.open(tmp_path / names[0])) == expected.numpy()).all()
    drawn = np.asarray(Image.open(tmp_path / "drawn/1.png")).astype(float)
    colours = np.array(predictor.classes.metadata.stuff_colors)[expected.numpy()]
    plain = np.asarray(Image.open(file))
    assert np.abs(drawn - (0.4 * plain + 0.6 * colours)).max() <= 1
    (tmp_path / "found.json").unlink()
    with pytest.raises(UserError, match="found_labels is not empty"):
        outputs._replace(pictures=None).check(sources, labels=True)


def test_the_likeliest_classes_are_written_and_drawn(classifier, tmp_path):
    file = tmp_path / "1.png"
    Image.new("RGB", (80, 90), "red").save(file)
    predictor = Predictor(classifier)
    predict_files(
        predictor, find_inputs([str(file)]), Outputs(tmp_path / "d", tmp_path / "f.json"), quiet=True
    )
    content = json.loads((tmp_path / "f.json").read_text())
    (expected,) = predictor(file)
    scores = [entry["score"] for entry in content["annotations"]]
    assert scores == sorted(expected.tolist(), reverse=True)
    assert content["annotations"][0]["category_id"] == int(expected.argmax())
    assert [category["name"] for category in content["categories"]] == ["blue", "green", "red"]
    drawn = np.asarray(Image.open(tmp_path / "d/1.png"))
    assert (drawn[-10:] == (255, 0, 0)).all() and (drawn[:20, :40] == 0).any()


def test_keypoints_are_written_as_cocos_and_left_as_they_are(tmp_path):
    instances = Instances((20, 20))
    instances.pred_boxes = Boxes(torch.tensor([[1.0, 2, 5, 8]]))
    instances.scores, instances.pred_classes = torch.tensor([0.5]), torch.tensor([0])
    instances.pred_keypoints = torch.tensor([[[3.5, 4.5, 0.9]]])
    (entry,) = _annotations(instances, [7])
    assert entry["keypoints"] == pytest.approx([3, 4, 0.9]) and entry["category_id"] == 7
    assert entry["area"] == 24
    assert instances.pred_keypoints.flatten().tolist() == pytest.approx([3.5, 4.5, 0.9])


def test_ctrl_c_leaves_no_half_written_file(detector, tmp_path):
    clip(tmp_path / f"clip{SUFFIX}", frames=400)
    (tmp_path / "config.yaml").write_text(detector.dump())
    words = (ROOT / "tools/predict.py", f"clip{SUFFIX}", "--output", "drawn", "--json", "found.json")
    process = forks.start((*words, "--config-file", "config.yaml"), tmp_path / "log", cwd=tmp_path)
    end = time.monotonic() + 60
    while not [*(tmp_path / "drawn").glob(".clip*")] and time.monotonic() < end:
        time.sleep(0.05)
    os.kill(process.pid, signal.SIGINT)
    assert process.wait(60) == 130, (tmp_path / "log").read_text()
    assert "stopped by SIGINT" in (tmp_path / "log").read_text()
    left = {path.name for path in tmp_path.rglob("*")}
    assert left == {"config.yaml", "log", "drawn", f"clip{SUFFIX}"}


def test_ctrl_c_ends_a_camera_and_keeps_what_it_has_seen(segmentor, tmp_path, monkeypatch):
    class Camera(Video):
        """A file in place of the device that the machine lacks, while whose fifth frame somebody types Ctrl-C."""

        def __init__(self, place):
            super().__init__(str(tmp_path / "clip.mp4") if place == 0 else place)

        def __iter__(self):
            for number, frame in enumerate(super().__iter__()):
                if number == 4:
                    os.kill(os.getpid(), signal.SIGINT)
                yield frame

    clip(tmp_path / "clip.mp4", frames=9)
    monkeypatch.setattr(inputs, "Video", Camera)
    outputs = Outputs(tmp_path / "drawn", tmp_path / "found.json")
    before = signal.getsignal(signal.SIGINT)
    with ended_at_once():
        done = predict_files(Predictor(segmentor), find_inputs(["0"]), outputs, quiet=True)
    signal.signal(signal.SIGINT, before)
    assert done == (0, 4, 0)
    assert Video(str(tmp_path / "drawn/camera-0.mp4")).count == 4
    assert len(json.loads((tmp_path / "found.json").read_text())["images"]) == 4


@pytest.mark.slow
def test_memory_stays_flat_over_a_thousand_images(segmentor, tmp_path):
    predictor, seen = Predictor(segmentor), []
    image = Image.new("RGB", (80, 60))
    for i in range(1000):
        image.save(tmp_path / f"{i:04d}.png")

    def resident(*_):
        with open("/proc/self/statm") as file:
            seen.append(int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20)

    predictor.model.register_forward_pre_hook(resident)
    predict_files(
        predictor, find_inputs([str(tmp_path)]), Outputs(tmp_path / "out", tmp_path / "f.json"), quiet=True
    )
    assert len(seen) == 1000 and max(seen[-100:]) < max(seen[100:200]) + 5
