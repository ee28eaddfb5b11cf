"""Training, testing and handing over image classifiers, by the same commands as detectors."""

import errno
import json
import logging
import os
import re
import shutil

import forks
import numpy as np
import pytest
import torch
import yaml
from robust import kills, tiny
from scipy.io import savemat
from support import ROOT, assert_one_line_error
from test_processes import Two, losses, run

from resnest_d2 import UserError, model_zoo
from resnest_d2.data.image_folder import check_image_folder, class_names, load_image_folder
from resnest_d2.data.imagenet import read_devkit
from resnest_d2.data.loader import CheckedMapper, SkipBadFiles, _Packed, in_shared_memory
from resnest_d2.data.own import ClassFolders, own_data

pytestmark = pytest.mark.long
#: The keys of the tiny backbone, for a detector.
BACKBONE = (
    *("MODEL.RESNETS.DEPTH", 14, "MODEL.RESNETS.RES2_OUT_CHANNELS", 32),
    *("MODEL.RESNETS.BOTTLENECK_WIDTH", 16, "MODEL.MASK_ON", False),
)
#: Nothing that is drawn in each process.
DETERMINATE = (
    *("MODEL.CLASSIFIER.MIXUP_ALPHA", 0.0, "MODEL.RESNETS.NORM", "SyncBN", "MODEL.DEVICE", "cpu"),
    *("SOLVER.OPTIMIZER", "SGD", "SOLVER.BASE_LR", 0.01, "SOLVER.IMS_PER_BATCH", 8),
)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return tiny.make_folders(tmp_path_factory.mktemp("folders"))


@pytest.fixture(scope="module")
def trained(data, tmp_path_factory):
    """OUTPUT_DIR of a training."""
    output = tmp_path_factory.mktemp("trained") / "out"
    words = tiny.command(data, output, 40, "TEST.EVAL_PERIOD", 20, "SOLVER.WARMUP_ITERS", 2)
    run([*words, "INPUT.CLASSIFICATION.COLOR_JITTER", "0.0"], output.with_suffix(".log"))
    return output


def refused(words, tmp_path, *expected):
    result = forks.run(words, cwd=tmp_path, environment=os.environ, timeout=100)
    assert_one_line_error(result, *expected)


def test_it_learns_and_writes_what_it_predicted(trained):
    results = json.loads((trained / "results.json").read_text())["results"]["classification"]
    assert results["top1"] > 80 and "top5" not in results
    lines = [json.loads(line) for line in (trained / "metrics.json").read_text().splitlines()]
    assert [line["iteration"] for line in lines if "classification/top1" in line] == [19, 40]
    content = json.loads((trained / "inference/classification_evaluation.json").read_text())
    assert content["classes"] == ["blue", "green", "red"] and np.sum(content["confusion"]) == 6
    right = [image["label"] == image["top5"][0] for image in content["images"]]
    assert results["top1"] == pytest.approx(100 * np.mean(right))
    assert all(line["images_per_second"] > 0 for line in lines if line["iteration"] == 39)
    assert len(re.findall(r"\d images/s: 0\.\d\d hours, without", (trained / "log.txt").read_text())) == 1
    assert all(os.path.basename(os.path.dirname(i["file_name"])) == content["classes"][i["label"]]
               for i in content["images"])  # fmt: skip


def test_batches_of_a_test_change_nothing(trained, data, tmp_path):
    pages = []
    for size in (1, 4):
        settings = ("MODEL.WEIGHTS", trained / "model_final.pth", "TEST.IMS_PER_BATCH", size)
        run(tiny.command(data, tmp_path / f"{size}", 1, *settings, flags=("--eval-only",)), tmp_path / "log")
        file = tmp_path / f"{size}/inference/classification_evaluation.json"
        pages.append(json.loads(file.read_text()))
    assert pages[0]["confusion"] == pages[1]["confusion"]
    for one, other in zip(*(page["images"] for page in pages)):
        assert one["top5"] == other["top5"]
        assert one["probabilities"] == pytest.approx(other["probabilities"], abs=1e-4)


def test_a_report_shows_classes_confusion_and_images(trained, tmp_path):
    words = [str(ROOT / "tools/report.py"), str(trained), "--output", str(tmp_path / "page.html")]
    run(words, tmp_path / "log")
    page = (tmp_path / "page.html").read_text()
    for part in ("top1", "Confusion", "Best images", "green", "Total loss", "precision"):
        assert part in page, part
    assert page.count("data:image/jpeg") == 6 and "Not shown" not in page


@pytest.mark.slow
def test_a_killed_training_ends_with_the_weights_of_one_that_was_not(tmp_path):
    killed = kills.kill_until(tmp_path, 1, seed=3, make=tiny.make_folders, iterations=16)
    assert (killed.kills, killed.equal) == (1, killed.runs)


def test_two_processes_lose_and_score_as_one(data, tmp_path):
    outputs = tmp_path / "one", tmp_path / "two"
    for output, start in zip(outputs, (tiny.fork, Two)):
        words = tiny.command(data, output, 6, *DETERMINATE)
        run([str(ROOT / "tests/robust/losses.py"), *words[1:]], output.with_suffix(".log"), start)
    expected, got = map(losses, outputs)
    assert len(expected) == 6 and got == pytest.approx(expected, rel=1e-4)
    pages = [json.loads((o / "inference/classification_evaluation.json").read_text()) for o in outputs]
    assert pages[0]["confusion"] == pages[1]["confusion"]
    assert [i["file_name"] for i in pages[0]["images"]] == [i["file_name"] for i in pages[1]["images"]]


def test_two_processes_with_statistics_of_their_own_score_as_their_checkpoint(data, tmp_path):
    """As the recipes have it: BN in each process, and mixup."""
    settings = ("MODEL.DEVICE", "cpu", "SOLVER.BASE_LR", 0.02, "SOLVER.IMS_PER_BATCH", 8)
    run(tiny.command(data, tmp_path / "two", 12, *settings), tmp_path / "two.log", Two)
    weights = ("MODEL.WEIGHTS", tmp_path / "two/model_final.pth")
    run(tiny.command(data, tmp_path / "one", 1, *weights, flags=("--eval-only",)), tmp_path / "one.log")
    pages = [
        json.loads((tmp_path / n / "inference/classification_evaluation.json").read_text())
        for n in ("one", "two")
    ]
    for one, two in zip(*(page["images"] for page in pages)):
        assert two["probabilities"] == pytest.approx(one["probabilities"], abs=1e-5)


def detector(few_shapes, output, weights, *settings):
    words = tiny.command(tiny.shapes(few_shapes), output, 1, *BACKBONE, "MODEL.WEIGHTS", weights)
    mean = ("MODEL.PIXEL_MEAN", "[123.68,116.779,103.939]", "MODEL.PIXEL_STD", "[58.393,57.12,57.375]")
    return [*words, *mean, "INPUT.FORMAT", "RGB", *map(str, settings)]


def test_a_detector_starts_from_its_weights(trained, few_shapes, tmp_path):
    """All of the backbone, and nothing of the classifier's last layer."""
    words = detector(few_shapes, tmp_path / "out", trained / "model_final.pth", "SOLVER.BASE_LR", 1e-12)
    log = run(words, tmp_path / "log")
    assert "start at random" in log and "backbone.bottom_up" not in log.split("start at random")[0][-300:]
    ours = torch.load(trained / "model_final.pth", weights_only=True)["model"]
    theirs = torch.load(tmp_path / "out/model_final.pth", weights_only=True)["model"]
    for key, value in ours.items():
        if key.endswith("weight") and "linear" not in key:
            assert torch.allclose(theirs[key.replace("backbone.", "backbone.bottom_up.")], value, atol=1e-6)


@pytest.mark.parametrize(
    "settings, said",
    [
        (("MODEL.RESNETS.AVD_FIRST", True), "MODEL.RESNETS.AVD_FIRST is True, in its run False"),
        (("MODEL.RESNETS.AVG_DOWN", False), "MODEL.RESNETS.AVG_DOWN is False, in its run True"),
        (("MODEL.PIXEL_STD", "[1.0,1.0,1.0]"), "MODEL.PIXEL_STD is [1.0, 1.0, 1.0], in its run [58"),
        (("INPUT.FORMAT", "BGR"), "INPUT.FORMAT is 'BGR', in its run 'RGB'"),
    ],
)
def test_another_backbone_than_the_weights_were_trained_in_is_refused(
    settings, said, trained, few_shapes, tmp_path
):
    words = detector(few_shapes, tmp_path / "out", trained / "model_final.pth", *settings)
    refused(words, tmp_path, said, "backbone.yaml", "_BASE_")


def test_the_file_beside_the_weights_is_a_base_for_other_configurations(trained, tmp_path):
    content = yaml.safe_load((trained / "backbone.yaml").read_text())
    assert content["MODEL"]["RESNETS"]["DEPTH"] == 14 and content["INPUT"]["FORMAT"] == "RGB"
    base = model_zoo.get_config_file("faster_resnest50")
    (tmp_path / "mine.yaml").write_text(f"_BASE_: [{base}, {trained / 'backbone.yaml'}]\n")
    cfg = model_zoo.get_config("faster_resnest50")
    cfg.merge_from_file(str(tmp_path / "mine.yaml"))
    assert cfg.MODEL.RESNETS.RES2_OUT_CHANNELS == 32 and cfg.MODEL.RESNETS.NORM == "SyncBN"


def test_fine_tuning_replaces_the_last_layer_and_says_so(trained, data, tmp_path):
    train = tmp_path / "train"
    shutil.copytree(data[1], train)
    shutil.rmtree(train / "red")
    words = tiny.command(["--train-images", str(train)], tmp_path / "out", 2, "MODEL.WEIGHTS",
                         trained / "model_final.pth")  # fmt: skip
    log = run(words, tmp_path / "log")
    assert "backbone.linear: they start at random" in log
    weights = torch.load(tmp_path / "out/model_final.pth", weights_only=True)["model"]
    assert weights["backbone.linear.weight"].shape[0] == 2


def test_a_run_is_not_resumed_with_other_classes(trained, data, tmp_path):
    shutil.copytree(trained, tmp_path / "out")
    shutil.copytree(data[1], tmp_path / "train")
    (tmp_path / "train/red").rename(tmp_path / "train/ash")
    words = tiny.command(
        ["--train-images", str(tmp_path / "train")], tmp_path / "out", 50, flags=("--resume",)
    )
    refused(words, tmp_path, "'ash' is where 'blue' was")


def test_weights_of_other_classes_are_not_evaluated(trained, data, tmp_path):
    shutil.copytree(data[3], tmp_path / "val")
    shutil.rmtree(tmp_path / "val/red")
    words = tiny.command(
        ["--train-images", data[1], "--val-images", str(tmp_path / "val")], tmp_path / "a", 1
    )
    words += ["MODEL.WEIGHTS", str(trained / "model_final.pth")]
    run([words[0], "--eval-only", *words[1:]], tmp_path / "log")  # all three classes, one without images
    config = ["--config-file", model_zoo.get_config_file("classification/resnest14_small"), "--eval-only"]
    settings = [*map(str, tiny.CLASSIFICATION), "MODEL.WEIGHTS", str(trained / "model_final.pth")]
    words = [words[0], *config, "--val-images", str(tmp_path / "val"), *settings]
    words += ["OUTPUT_DIR", str(tmp_path / "b")]
    refused(words, tmp_path, "holds no weights for backbone.linear")
    shutil.copytree(data[3] + "/red", tmp_path / "val/yellow")
    refused(
        words, tmp_path, "the classes of user_val_1 are not those of the training: 'yellow' is where 'red'"
    )


@pytest.mark.parametrize(
    "spoil, said",
    [
        (lambda f: shutil.rmtree(f / "val"), "there is no folder of images"),
        (lambda f: (f / "val/yellow").mkdir(), "'yellow', which is not one of the 3 classes"),
        (lambda f: [shutil.rmtree(f / "train" / c) for c in ("red", "green", "blue")], "holds no folders"),
        (lambda f: [p.unlink() for p in (f / "train").rglob("*.png")], "there are no images in"),
        (lambda f: [p.write_text("") for p in (f / "val").rglob("*.png")], "images that were looked at cannot be read"),
    ],
)  # fmt: skip
def test_folders_that_cannot_be_learned_from_are_refused(spoil, said, data, tmp_path):
    for i in (1, 3):
        shutil.copytree(data[i], tmp_path / os.path.basename(data[i]))
    spoil(tmp_path)
    folders = ["--train-images", tmp_path / "train", "--val-images", tmp_path / "val"]
    refused(tiny.command(list(map(str, folders)), tmp_path / "out", 1), tmp_path, said)


def test_a_detector_needs_annotations(data, tmp_path):
    words = [
        str(ROOT / "tools/train_net.py"),
        "--config-file",
        model_zoo.get_config_file("quickstart"),
        *data,
    ]
    refused([*words, "OUTPUT_DIR", str(tmp_path / "o")], tmp_path, "needs the annotations", "--train-json")


def test_images_by_class_are_listed_with_their_labels(data, tmp_path):
    assert class_names(data[1]) == ["blue", "green", "red"]
    records = load_image_folder(data[1], ["blue", "green", "red"])
    assert [r["label"] for r in records] == [0] * 4 + [1] * 4 + [2] * 4
    assert check_image_folder(data[1], ["blue", "green", "red"], True) == []
    (note,) = check_image_folder(data[3], ["blue", "green", "orange", "red"], False)
    assert "1 of 4 classes have no images, such as orange" in note
    assert isinstance(own_data({"train_images": [data[1]]}), ClassFolders)


def test_links_between_classes_give_no_image_another_label(data, tmp_path):
    shutil.copytree(data[1], tmp_path / "train")
    for link, target in (
        ("red/all", "."),
        ("red/other", "blue"),
        ("red/own", "red"),
        ("blue/more", "../more"),
    ):
        (tmp_path / "train" / link).symlink_to(tmp_path / "train" / target)
    shutil.copytree(data[1] + "/blue", tmp_path / "more")
    records = load_image_folder(str(tmp_path / "train"), ["blue", "green", "red"])
    assert [r["label"] for r in records] == [0] * 8 + [1] * 4 + [2] * 4


def test_images_of_one_size_reach_another_process_in_one_piece():
    batch = in_shared_memory([{"image": torch.full((3, 4, 4), i), "label": i} for i in range(5)])
    assert isinstance(batch, list) and not isinstance(batch, _Packed)  # there is no worker here
    packed = _Packed(batch)
    function, (images, rest) = packed.__reduce__()
    assert images.shape == (5, 3, 4, 4) and images.is_shared() and all("image" not in r for r in rest)
    for record, same in zip(batch, function(images, rest)):
        assert record["label"] == same["label"] and torch.equal(record["image"], same["image"])


def test_bad_files_are_named_once_replaced_and_limited(caplog):
    def mapper(record):
        if record["file_name"].startswith("bad"):
            raise UserError(f"{record['file_name']} is damaged")
        return record

    skip = SkipBadFiles(mapper, 2)
    with caplog.at_level(logging.WARNING):
        assert [skip({"file_name": n}) for n in ("bad1", "a", "bad1", "bad2")][1] == {"file_name": "a"}
    assert [r.message for r in caplog.records] == [
        "bad1 is damaged; others take its place (1 of 2)",
        "bad2 is damaged; others take its place (2 of 2)",
    ]
    with pytest.raises(UserError, match=r"bad3 is damaged; it is one more than DATALOADER\.MAX_BAD_FILES 2"):
        skip({"file_name": "bad3"})
    with pytest.raises(UserError, match=r"^bad1 is damaged$"):
        SkipBadFiles(mapper, 0)({"file_name": "bad1"})


@pytest.mark.parametrize("error", [OSError(errno.EMFILE, "Too many open files"), MemoryError()])
def test_failures_of_the_machine_are_not_taken_for_bad_files(error, data):
    def mapper(record):
        raise error

    record = load_image_folder(data[1], ["blue", "green", "red"])[0]
    with pytest.raises(UserError, match=r"0\.png cannot be used"):
        SkipBadFiles(CheckedMapper(mapper), 100)(record)


def test_a_resume_that_is_refused_leaves_the_file_of_the_backbone(trained, data, tmp_path):
    shutil.copytree(trained, tmp_path / "out")
    words = tiny.command(data, tmp_path / "out", 50, "MODEL.RESNETS.AVD_FIRST", True, flags=("--resume",))
    refused(words, tmp_path, "AVD_FIRST is True, in the checkpoint False")
    content = yaml.safe_load((tmp_path / "out/backbone.yaml").read_text())
    assert content["MODEL"]["RESNETS"]["AVD_FIRST"] is False
    run(tiny.command(data, tmp_path / "out", 1), tmp_path / "log")  # a new training moves it with the old
    assert (tmp_path / "out/previous_1/backbone.yaml").exists()


def test_training_goes_on_past_a_damaged_image_within_the_limit(data, tmp_path):
    shutil.copytree(data[1], tmp_path / "train")
    file = tmp_path / "train/red/0.png"
    file.write_bytes(file.read_bytes()[:200])
    words = tiny.command(["--train-images", str(tmp_path / "train")], tmp_path / "out", 8)
    log = run([*words, "DATALOADER.MAX_BAD_FILES", "1", "DATALOADER.NUM_WORKERS", "1"], tmp_path / "log")
    assert log.count("0.png cannot be used") + log.count("0.png is not an image") == 1
    assert "others take its place (1 of 1)" in (tmp_path / "out/log.txt").read_text()
    refused([*words[:-2], "OUTPUT_DIR", str(tmp_path / "again"), *words[-2:]], tmp_path, "0.png")


def test_a_warm_up_as_long_as_the_training_is_refused(data, tmp_path):
    words = tiny.command(data, tmp_path / "out", 6, "SOLVER.WARMUP_ITERS", 6)
    refused(words, tmp_path, "SOLVER.WARMUP_ITERS must be below SOLVER.MAX_ITER 6")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["resnest26", "resnest50_fast_2s2x40d", "resnet50d"])
def test_rows_train_and_are_tested_in_a_smoke_run(name, data, tmp_path):
    folder = tmp_path / "data/imagenet"  # a few images of three classes
    folder.mkdir(parents=True)
    for i, split in ((1, "train"), (3, "val")):
        (folder / split).symlink_to(data[i])
    words = [str(ROOT / "tools/reproduce.py"), "--smoke", "--output", str(tmp_path / "out"), "--rows"]
    environment = {**os.environ, "DETECTRON2_DATASETS": str(tmp_path / "data")}
    words += [f"classification/{name}", "MODEL.CLASSIFIER.NUM_CLASSES", "3"]
    result = forks.run(words, cwd=tmp_path, environment=environment, timeout=300)
    assert result.returncode == 0, result.stdout + result.stderr
    assert "top-1" in result.stdout


def imagenet(folder):
    """Three validation images as they come, and their classes."""
    (folder / "val").mkdir()
    classes = ("n01440764", "n01443537", "n01440764")
    for i, _ in enumerate(classes, 1):
        (folder / f"val/ILSVRC2012_val_{i:08d}.JPEG").write_text(str(i))
    return classes


def test_validation_images_are_sorted_by_kaggles_list_and_again_nothing_moves(run_python, tmp_path):
    classes = imagenet(tmp_path)
    rows = [f"ILSVRC2012_val_{i:08d},{c} 1 2 3 4 {c} 5 6 7 8" for i, c in enumerate(classes, 1)]
    (tmp_path / "s.csv").write_text("ImageId,PredictionString\n" + "\n".join(rows))
    for said in ("moved 3 images, 0 were", "moved 0 images, 3 were"):
        words = ("tools/prepare_imagenet.py", tmp_path / "val", "--solution", tmp_path / "s.csv")
        result = run_python(*words)
        assert result.returncode == 0 and said in result.stdout, result.stderr
    assert class_names(str(tmp_path / "val")) == ["n01440764", "n01443537"]
    assert (tmp_path / "val/n01440764/ILSVRC2012_val_00000003.JPEG").read_text() == "3"


@pytest.mark.parametrize(
    "spoil, said",
    [
        (lambda f: (f / "val/other.jpg").touch(), "other.jpg has no class"),
        (lambda f: next((f / "val").iterdir()).unlink(), "1 of 3 images are missing"),
        (lambda f: (f / "s.csv").write_text("a,b"), "s.csv, line 1: no image and class"),
        (lambda f: (f / "s.csv").write_text(""), "names no images"),
        (lambda f: (f / "s.csv").unlink(), "s.csv"),
        (lambda f: shutil.rmtree(f / "val"), "val"),
    ],
)
def test_validation_images_that_cannot_be_sorted_stay(spoil, said, run_python, tmp_path):
    rows = [f"ILSVRC2012_val_{i:08d},{c} 1 2 3 4" for i, c in enumerate(imagenet(tmp_path), 1)]
    (tmp_path / "s.csv").write_text("\n".join(rows))
    spoil(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    result = run_python("tools/prepare_imagenet.py", tmp_path / "val", "--solution", tmp_path / "s.csv")
    assert_one_line_error(result, said)
    assert sorted(tmp_path.rglob("*")) == before


def test_the_devkit_tells_the_classes_by_number(tmp_path):
    (tmp_path / "data").mkdir()
    kinds = [("ILSVRC2012_ID", "O"), ("WNID", "O"), ("words", "O")]
    synsets = np.array([(1, "n01443537", "goldfish"), (2, "n01440764", "tench")], dtype=kinds)
    savemat(tmp_path / "data/meta.mat", {"synsets": synsets})
    truth = tmp_path / "data/ILSVRC2012_validation_ground_truth.txt"
    truth.write_text("2\n1\n2\n")
    names = {
        f"ILSVRC2012_val_{i:08d}.JPEG": c for i, c in enumerate(("n01440764", "n01443537", "n01440764"), 1)
    }
    assert read_devkit(tmp_path) == names
    truth.write_text("2\n3\n")
    with pytest.raises(UserError, match="line 2: '3' is no number of a class"):
        read_devkit(tmp_path)
