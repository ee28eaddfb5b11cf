"""Training, testing and reporting semantic segmentation, by the same commands as detectors."""

import json
import os
import re
import shutil

import forks
import numpy as np
import pytest
import torch
from PIL import Image
from robust import kills, tiny
from support import ROOT, SHARED, assert_one_line_error
from test_processes import Two, losses, run

from resnest_d2 import model_zoo
from resnest_d2.published import SEGMENTORS

pytestmark = pytest.mark.long
#: Nothing random but the order of the images, and no pixels without a label, so that means over the pixels of one
#: process are means over those of all.
DETERMINATE = (
    *("MODEL.SEM_SEG_HEAD.NORM", "SyncBN", "MODEL.RESNETS.NORM", "SyncBN", "MODEL.SEM_SEG_HEAD.DROPOUT", 0.0),
    *("MODEL.SEM_SEG_HEAD.ASPP_DROPOUT", 0.0, "MODEL.DEVICE", "cpu", "SOLVER.OPTIMIZER", "SGD"),
    # With fewer images, the norms of pooled vectors would make much of the last digits of little differences.
    *("SOLVER.BASE_LR", 0.01, "SOLVER.IMS_PER_BATCH", 8),
)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return tiny.make_masks(tmp_path_factory.mktemp("masks"))


@pytest.fixture(scope="module")
def trained(data, tmp_path_factory):
    """OUTPUT_DIR of a training that also tests with augmentation, and what it printed."""
    output = tmp_path_factory.mktemp("trained") / "out"
    augmented = ("TEST.AUG.ENABLED", True, "TEST.AUG.SCALES", (0.75, 1.5), "TEST.AUG.LONG_SIZE", 80)
    words = tiny.command(data, output, 40, *augmented, "TEST.AUG.WINDOW", 48, "TEST.EVAL_PERIOD", 20)
    words += ["SOLVER.WARMUP_ITERS", "0", "SOLVER.BASE_LR", "0.005", "SOLVER.IMS_PER_BATCH", "4"]
    return output, run(words, output.with_suffix(".log"))


def test_it_learns_and_is_tested_at_one_scale_and_at_several(trained):
    output, _ = trained
    results = json.loads((output / "results.json").read_text())["results"]
    assert results["sem_seg"]["mIoU"] > 60 and results["sem_seg_TTA"]["mIoU"] > 60
    lines = [json.loads(line) for line in (output / "metrics.json").read_text().splitlines()]
    trained_on = [line["loss_sem_seg"] for line in lines if "loss_sem_seg" in line]
    assert trained_on[-1] < trained_on[0]
    assert [line["iteration"] for line in lines if "sem_seg/mIoU" in line] == [19, 40]


def test_label_maps_of_both_testings_are_written(trained, data):
    output, _ = trained
    for folder in ("inference", "inference_TTA"):
        evaluation = json.loads((output / folder / "sem_seg_evaluation.json").read_text())
        for image in evaluation["images"]:
            predicted = np.array(Image.open(output / folder / "sem_seg_predictions" / image["prediction"]))
            truth = np.array(Image.open(image["sem_seg_file_name"]))
            assert predicted.shape == truth.shape
            assert image["pACC"] == pytest.approx(100 * (predicted == truth).mean())


def test_pictures_and_a_report_are_made_from_it(trained, data, tmp_path):
    output, _ = trained
    words = tiny.command(data, output, 40, "MODEL.WEIGHTS", output / "model_final.pth")
    words[0] = str(ROOT / "tools/draw_predictions.py")
    run([*words[:1], "--output", str(tmp_path / "pictures"), *words[1:]], tmp_path / "log")
    assert len(list((tmp_path / "pictures").glob("*.png"))) == 4
    run(
        [str(ROOT / "tools/report.py"), str(output), "--output", str(tmp_path / "page.html")],
        tmp_path / "log",
    )
    page = (tmp_path / "page.html").read_text()
    for part in ("mIoU", "Confusion", "Best images", "ground", "Total loss", "accuracy during training"):
        assert part in page, part
    assert page.count("data:image/jpeg") == 8 and "Not shown" not in page
    assert not re.search(r"(?:src|href)=\"(?!data:|#)", page)


@pytest.mark.slow
def test_a_killed_training_ends_with_the_weights_of_one_that_was_not(tmp_path):
    killed = kills.kill_until(tmp_path, 1, seed=3, make=tiny.make_masks, iterations=16)
    assert (killed.kills, killed.equal) == (1, killed.runs)


def test_two_processes_lose_and_score_as_one(data, tmp_path):
    outputs = tmp_path / "one", tmp_path / "two"
    for output, start in zip(outputs, (tiny.fork, Two)):
        words = tiny.command(data, output, 6, *DETERMINATE, "INPUT.SCALE_CROP.LONG_SIZE", (80, 96))
        run([str(ROOT / "tests/robust/losses.py"), *words[1:]], output.with_suffix(".log"), start)
    expected, got = map(losses, outputs)
    assert len(expected) == 6 and got == pytest.approx(expected, rel=1e-4)
    pages = [json.loads((o / "inference/sem_seg_evaluation.json").read_text()) for o in outputs]
    assert len(pages[1]["images"]) == 4 and np.sum(pages[1]["confusion"]) == 4 * 64 * 80
    assert pages[1]["results"]["mIoU"] == pytest.approx(pages[0]["results"]["mIoU"], abs=1)


def test_two_processes_count_the_pixels_that_one_counts_for_each_of_several_sets(trained, data, tmp_path):
    """The same weights, at one scale and augmented."""
    again = data + data[data.index("--val-images") : data.index("--classes")]
    settings = (
        "MODEL.WEIGHTS",
        trained[0] / "model_final.pth",
        "MODEL.DEVICE",
        "cpu",
        "TEST.AUG.ENABLED",
        True,
    )
    settings += ("TEST.AUG.SCALES", (1.5,), "TEST.AUG.LONG_SIZE", 80, "TEST.AUG.WINDOW", 48)
    counts = []
    for name, start in (("one", tiny.fork), ("two", Two)):
        words = tiny.command(again, tmp_path / name, 1, *settings, flags=("--eval-only",))
        run(words, tmp_path / f"{name}.log", start)
        files = sorted((tmp_path / name).glob("inference*/*/sem_seg_evaluation.json"))
        assert len(files) == 4
        counts.append([json.loads(file.read_text())["confusion"] for file in files])
    assert counts[0] == counts[1]


def test_a_run_is_not_resumed_with_other_classes(trained, data, tmp_path):
    shutil.copytree(trained[0], tmp_path / "out")
    classes = tmp_path / "classes.json"
    classes.write_text(json.dumps(["ground", "green", "red"]))
    words = tiny.command([*data[:-1], str(classes)], tmp_path / "out", 50, flags=("--resume",))
    words += ["SOLVER.WARMUP_ITERS", "0", "SOLVER.BASE_LR", "0.005", "SOLVER.IMS_PER_BATCH", "4"]
    result = forks.run(words, cwd=tmp_path, environment=os.environ, timeout=100)
    assert_one_line_error(result, "'green' is where 'red' was")


@pytest.mark.parametrize("key, value", [("ASPP_DILATIONS", "(1,2,3)"), ("ALIGN_CORNERS", "False")])
def test_a_run_is_not_resumed_as_a_network_that_computes_something_else(key, value, trained, data, tmp_path):
    shutil.copytree(trained[0], tmp_path / "out")
    words = tiny.command(data, tmp_path / "out", 50, f"MODEL.SEM_SEG_HEAD.{key}", value, flags=("--resume",))
    words += ["SOLVER.WARMUP_ITERS", "0", "SOLVER.BASE_LR", "0.005", "SOLVER.IMS_PER_BATCH", "4"]
    result = forks.run(words, cwd=tmp_path, environment=os.environ, timeout=100)
    assert_one_line_error(result, f"MODEL.SEM_SEG_HEAD.{key} is ", "of another model or optimizer")


def test_weights_with_more_layers_than_the_head_are_refused_and_the_auxiliary_head_is_not_needed(
    trained, data, tmp_path
):
    def evaluate(weights, *settings):
        words = tiny.command(
            data, tmp_path / "out", 1, "MODEL.WEIGHTS", weights, *settings, flags=("--eval-only",)
        )
        return forks.run(words, cwd=tmp_path, environment=os.environ, timeout=100)

    result = evaluate(trained[0] / "model_final.pth", "MODEL.SEM_SEG_HEAD.HEAD_CONV", False)
    assert_one_line_error(result, "has more layers than the model's head (sem_seg_head.head.conv")
    state = torch.load(trained[0] / "model_final.pth", weights_only=True)["model"]
    torch.save({k: v for k, v in state.items() if "aux_head" not in k}, tmp_path / "part.pth")
    assert evaluate(tmp_path / "part.pth").returncode == 0


def test_results_that_the_user_expects_are_compared_on_any_data(trained, data, tmp_path):
    weights = ("MODEL.WEIGHTS", trained[0] / "model_final.pth")
    for expected, status in (("[['sem_seg','mIoU',999.0,1.0]]", 1), ("[['bbox','AP',1.0,1.0]]", 2)):
        words = tiny.command(
            data, tmp_path, 1, *weights, "TEST.EXPECTED_RESULTS", expected, flags=("--eval-only",)
        )
        result = forks.run(words, cwd=tmp_path, environment=os.environ, timeout=100)
        assert result.returncode == status, result.stderr[-1000:]


def test_pictures_do_not_replace_the_images(trained, data, tmp_path):
    images = data[data.index("--val-images") + 1]
    words = tiny.command(data, tmp_path, 1, "MODEL.WEIGHTS", trained[0] / "model_final.pth")
    words = [str(ROOT / "tools/draw_predictions.py"), "--output", images, *words[1:]]
    result = forks.run(words, cwd=tmp_path, environment=os.environ, timeout=100)
    assert_one_line_error(result, f"{images} is the folder of the images, which pictures would replace")


def test_one_image_for_the_norm_of_the_pooled_image_is_refused(data, tmp_path):
    settings = ("SOLVER.IMS_PER_BATCH", 1, "MODEL.RESNETS.NORM", "FrozenBN")
    result = forks.run(
        tiny.command(data, tmp_path, 2, *settings), cwd=tmp_path, environment=os.environ, timeout=100
    )
    assert_one_line_error(
        result, "batch statistics of MODEL.SEM_SEG_HEAD.NORM BN of the pooled image, which needs 2"
    )


@pytest.fixture(scope="module")
def ade20k(tmp_path_factory):
    """A DETECTRON2_DATASETS folder with three real images of ADE20K, for training and for testing."""
    sample = SHARED / "fixtures/ade20k/sampleData"
    if not sample.exists():
        pytest.skip(f"{sample} is not there; RESNEST_D2_SHARED names the folder of test data")
    root = tmp_path_factory.mktemp("datasets")
    base = root / "ADEChallengeData2016"
    for split in ("training", "validation"):
        for kind in ("images", "annotations"):
            (base / kind).mkdir(parents=True, exist_ok=True)
            (base / kind / split).symlink_to(sample / kind)
    result = forks.run(
        [str(ROOT / "tools/prepare_ade20k.py"), str(base)], cwd=root, environment=os.environ, timeout=100
    )
    assert result.returncode == 0, result.stderr
    return root


@pytest.fixture(scope="module")
def cityscapes(tmp_path_factory):
    """The same in the layout of Cityscapes, with its 19 training labels by chance."""
    root, rng = tmp_path_factory.mktemp("datasets"), np.random.default_rng(0)
    for split in ("train", "val"):
        for kind, name in (("leftImg8bit", "leftImg8bit"), ("gtFine", "gtFine_labelTrainIds")):
            folder = root / "cityscapes" / kind / split / "town"
            folder.mkdir(parents=True)
            for i in range(3):
                shape = (64, 128, 3) if kind == "leftImg8bit" else (64, 128)
                high = 256 if kind == "leftImg8bit" else 19
                pixels = rng.integers(0, high, shape).astype(np.uint8)
                Image.fromarray(pixels).save(folder / f"town_{i}_{name}.png")
                if kind == "gtFine":
                    for other in ("instanceIds.png", "labelIds.png"):  # which are looked for
                        (folder / f"town_{i}_gtFine_{other}").touch()
                    (folder / f"town_{i}_gtFine_polygons.json").write_text(
                        '{"imgHeight": 64, "imgWidth": 128}'
                    )
    return root


def row(name, output, *settings, flags=()):
    path = model_zoo.get_config_file(f"segmentation/{name}")
    words = [str(ROOT / "tools/train_net.py"), "--config-file", path, *flags, "OUTPUT_DIR", str(output)]
    small = (
        "MODEL.WEIGHTS",
        "",
        "SOLVER.MAX_ITER",
        1,
        "SOLVER.IMS_PER_BATCH",
        2,
        "SOLVER.REFERENCE_WORLD_SIZE",
        0,
    )
    small += (
        "INPUT.SCALE_CROP.LONG_SIZE",
        (64, 96),
        "INPUT.SCALE_CROP.CROP_SIZE",
        64,
        "INPUT.MIN_SIZE_TEST",
        96,
    )
    small += ("DATALOADER.NUM_WORKERS", 0, "INPUT.MAX_SIZE_TEST", 96)
    return [*words, *map(str, (*small, *settings))]


def smoke(words, datasets, folder):
    environment = {**os.environ, "DETECTRON2_DATASETS": str(datasets)}
    result = forks.run(words, cwd=folder, environment=environment, timeout=300)
    assert result.returncode == 0, result.stderr[-3000:]
    return result.stdout + result.stderr


AUGMENTED = (
    *("TEST.AUG.ENABLED", True, "TEST.AUG.SCALES", (1.0,), "TEST.AUG.LONG_SIZE", 96, "TEST.AUG.WINDOW", 64),
)
SMOKED = [name.removeprefix("segmentation/") for name in SEGMENTORS]


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", [*SMOKED, *(f"deeplabv3plus_resnest50_{data}" for data in ("ade20k", "cityscapes"))]
)
def test_rows_train_and_are_tested(name, ade20k, cityscapes, tmp_path):
    datasets = ade20k if name.endswith("ade20k") else cityscapes
    smoke(row(name, tmp_path / "out", *AUGMENTED), datasets, tmp_path)
    results = json.loads((tmp_path / "out/results.json").read_text())["results"]
    for task in ("sem_seg", "sem_seg_TTA"):
        assert 0 <= results[task]["mIoU"] <= 100
    content = json.loads((tmp_path / "out/inference_TTA/sem_seg_evaluation.json").read_text())
    labels = [np.array(Image.open(image["sem_seg_file_name"])) for image in content["images"]]
    assert len(labels) == 3 and np.sum(content["confusion"]) == sum(int((m != 255).sum()) for m in labels)


@pytest.mark.slow
def test_rows_are_reproduced_beside_their_published_figures(ade20k, tmp_path):
    words = [str(ROOT / "tools/reproduce.py"), "--smoke", "--output", str(tmp_path / "out"), "--rows"]
    log = smoke([*words, "segmentation/deeplabv3_resnet50_ade20k"], ade20k, tmp_path)
    assert "| mIoU" in log.replace("|   mIoU", "| mIoU") and "42.10" in log and "80.39" in log


def test_weights_of_another_network_are_refused(data, trained, tmp_path):
    state = torch.load(trained[0] / "model_final.pth", weights_only=True)["model"]
    torch.save({k: v for k, v in state.items() if "res4" not in k}, tmp_path / "part.pth")
    words = tiny.command(data, tmp_path / "out", 2, "MODEL.WEIGHTS", tmp_path / "part.pth")
    result = forks.run(words, cwd=tmp_path, environment=os.environ, timeout=100)
    assert_one_line_error(result, "MODEL.WEIGHTS: ", "does not fit the model")
