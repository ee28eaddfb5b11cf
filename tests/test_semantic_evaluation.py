"""IoU and accuracy of semantic segmentation."""

import json

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.evaluation import SemSegEvaluator
from PIL import Image

from resnest_d2 import UserError
from resnest_d2.evaluation.semantic import SemanticEvaluator, boundary, confusion, scores

CLASSES = ["a", "b", "c", "never"]


@pytest.fixture
def dataset(tmp_path):
    """Four label maps, with one class that never occurs, and predictions that are right half of the time."""
    rng, name = np.random.default_rng(0), f"semantic_{tmp_path.name}"
    records, predictions = [], []
    for i in range(4):
        labels = np.repeat(np.repeat(rng.integers(0, 3, (6, 8)), 4, 0), 4, 1).astype(np.uint8)
        labels[:3] = 255
        predicted = np.where(rng.random(labels.shape) < 0.5, labels, rng.integers(0, 4, labels.shape)) % 4
        file, image = tmp_path / "masks" / f"{i}.png", tmp_path / "images" / f"{i}.jpg"
        file.parent.mkdir(exist_ok=True)
        Image.fromarray(labels).save(file)
        records.append({"file_name": str(image), "sem_seg_file_name": str(file)})
        predictions.append(
            {"sem_seg": torch.nn.functional.one_hot(torch.tensor(predicted).long(), 4).permute(2, 0, 1)}
        )
    DatasetCatalog.register(name, lambda: records)
    MetadataCatalog.get(name).set(stuff_classes=CLASSES, ignore_label=255, evaluator_type="sem_seg")
    yield name, records, predictions
    DatasetCatalog.remove(name)
    MetadataCatalog.remove(name)


def evaluated(evaluator, records, predictions):
    evaluator.reset()
    for record, prediction in zip(records, predictions):
        evaluator.process([record], [prediction])
    return evaluator.evaluate()["sem_seg"]


def test_measurements_are_detectron2s(dataset):
    name, records, predictions = dataset
    theirs = evaluated(
        SemSegEvaluator(
            name, False, sem_seg_loading_fn=lambda f, dtype: np.array(Image.open(f)).astype(dtype)
        ),
        records,
        predictions,
    )
    ours = evaluated(SemanticEvaluator(name), records, predictions)
    for key in set(theirs) & set(ours):
        assert ours[key] == pytest.approx(theirs[key], nan_ok=True), key
    assert {"mIoU", "fwIoU", "mACC", "pACC", "IoU-a", "ACC-never"} <= set(theirs) & set(ours)


def test_the_authors_mean_counts_a_class_without_labels_as_zero(dataset):
    results = evaluated(SemanticEvaluator(dataset[0]), *dataset[1:])
    assert results["mIoU_all"] == pytest.approx(results["mIoU"] * 3 / 4)


def test_figures_do_not_depend_on_the_order_or_the_batches(dataset, tmp_path):
    name, records, predictions = dataset
    once = evaluated(SemanticEvaluator(name), records, predictions)
    evaluator = SemanticEvaluator(name)
    evaluator.process(records[::-1], predictions[::-1])
    assert evaluator.evaluate()["sem_seg"] == pytest.approx(once, nan_ok=True)


def test_all_labelled_pixels_are_counted_once(dataset, tmp_path):
    name, records, predictions = dataset
    evaluated(SemanticEvaluator(name, str(tmp_path / "out")), records, predictions)
    content = json.loads((tmp_path / "out/sem_seg_evaluation.json").read_text())
    labelled = sum(int((np.array(Image.open(r["sem_seg_file_name"])) != 255).sum()) for r in records)
    assert np.sum(content["confusion"]) == labelled
    truth = np.concatenate([np.array(Image.open(r["sem_seg_file_name"])).ravel() for r in records])
    assert np.sum(content["confusion"], 1).tolist() == [int((truth == i).sum()) for i in range(4)]
    assert [image["file_name"] for image in content["images"]] == [r["file_name"] for r in records]


def test_predictions_are_written_as_label_maps(dataset, tmp_path):
    name, records, predictions = dataset
    evaluated(SemanticEvaluator(name, str(tmp_path / "out")), records, predictions)
    for i, prediction in enumerate(predictions):
        written = np.array(Image.open(tmp_path / f"out/sem_seg_predictions/{i}.png"))
        assert (written == prediction["sem_seg"].argmax(0).numpy()).all()


def test_without_a_labelled_pixel_there_are_no_figures_but_results(dataset):
    name, records, _ = dataset
    Image.fromarray(np.full((8, 8), 255, np.uint8)).save(records[0]["sem_seg_file_name"])
    results = evaluated(SemanticEvaluator(name), records[:1], [{"sem_seg": torch.zeros(4, 8, 8)}])
    assert all(np.isnan(results[name]) for name in ("mIoU", "pACC", "mIoU_all", "fwIoU", "mACC"))


def test_without_an_ignored_label_in_the_metadata_it_is_that_of_the_configuration(dataset):
    name, records, predictions = dataset
    expected = evaluated(SemanticEvaluator(name), records, predictions)
    MetadataCatalog.remove(name)
    MetadataCatalog.get(name).set(stuff_classes=CLASSES)
    got = evaluated(SemanticEvaluator(name, ignore_value=255), records, predictions)
    assert got == pytest.approx(expected, nan_ok=True)
    with pytest.raises(UserError, match="has the label 255, but"):
        evaluated(SemanticEvaluator(name, ignore_value=9), records, predictions)


def test_an_ignored_class_is_not_counted_among_all(dataset):
    name, records, predictions = dataset
    MetadataCatalog.remove(name)
    MetadataCatalog.get(name).set(stuff_classes=CLASSES, ignore_label=3)
    for record in records:  # 255 is no label here
        labels = np.array(Image.open(record["sem_seg_file_name"]))
        Image.fromarray(np.where(labels == 255, 3, labels)).save(record["sem_seg_file_name"])
    results = evaluated(SemanticEvaluator(name), records, predictions)
    assert results["mIoU_all"] == pytest.approx(results["mIoU"])


def test_images_of_one_name_have_predictions_of_their_own(dataset, tmp_path):
    name, records, predictions = dataset
    records[1]["file_name"] = records[0]["file_name"].replace(".jpg", ".png")
    evaluated(SemanticEvaluator(name, str(tmp_path / "out")), records, predictions)
    files = sorted(file.name for file in (tmp_path / "out/sem_seg_predictions").iterdir())
    assert files == ["0.jpg.png", "0.png.png", "2.jpg.png", "3.jpg.png"]


@pytest.mark.parametrize(
    "labels, reason",
    [
        (np.full((24, 32), 7, np.uint8), "has the label 7, but there are 4 classes"),
        (np.zeros((24, 31), np.uint8), "their sizes are 31x24 and 32x24 pixels"),
        (np.zeros((24, 32, 3), np.uint8), "mask in colours, not labels"),
    ],
    ids=["label out of range", "size", "colours"],
)
def test_a_label_map_that_cannot_be_evaluated_is_named(dataset, labels, reason):
    name, records, predictions = dataset
    Image.fromarray(labels).save(records[1]["sem_seg_file_name"])
    with pytest.raises(UserError, match=rf"masks/1\.png.*{reason}"):
        evaluated(SemanticEvaluator(name), records, predictions)


def test_boundary_is_within_the_distance_of_another_label_or_the_edge():
    labels = np.zeros((60, 80), int)
    labels[20:40, 30:60] = 1
    reach, expected = 2, np.full(labels.shape, 9)
    for y in range(60):
        for x in range(80):
            rows, columns = range(y - reach, y + reach + 1), range(x - reach, x + reach + 1)
            inside = rows[0] >= 0 and rows[-1] < 60 and columns[0] >= 0 and columns[-1] < 80
            same = (
                inside
                and (labels[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1] == labels[y, x]).all()
            )
            if not same:
                expected[y, x] = labels[y, x]
    assert (boundary(labels, 9) == expected).all()  # 2 % of a diagonal of 100


def test_boundary_iou_is_one_for_equal_labels_and_lower_than_iou_for_a_shifted_one(dataset):
    name, records, _ = dataset
    truth = [torch.tensor(np.array(Image.open(r["sem_seg_file_name"])) % 4).long() for r in records]
    one_hot = [{"sem_seg": torch.nn.functional.one_hot(t, 4).permute(2, 0, 1)} for t in truth]
    results = evaluated(SemanticEvaluator(name, boundaries=True), records, one_hot)
    assert results["BoundaryIoU-a"] == results["mBoundaryIoU"] == 100
    shifted = [{"sem_seg": p["sem_seg"].roll(1, 2)} for p in one_hot]
    results = evaluated(SemanticEvaluator(name, boundaries=True), records, shifted)
    assert 0 < results["mBoundaryIoU"] < results["mIoU"] < 100


def test_a_perfect_prediction_scores_one_and_labels_outside_are_not_counted():
    truth = np.array([[0, 1], [255, -1]])
    counts = confusion(np.array([[0, 1], [1, 1]]), truth, 2)
    assert counts.tolist() == [[1, 0], [0, 1]]
    assert scores(counts).pixel_accuracy == 1 and scores(counts).iou.tolist() == [1, 1]
