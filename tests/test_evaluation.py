"""Evaluators by dataset, and what they say in corner cases."""

import json
import math

import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.evaluation import SemSegEvaluator
from detectron2.structures import BitMasks, Boxes, Instances

from resnest_d2 import OptionError, UserError, model_zoo
from resnest_d2.data import register_shapes
from resnest_d2.data.shapes import generate_shapes
from resnest_d2.evaluation import build_evaluator
from resnest_d2.evaluation.coco import BACKENDS, COCOEvaluator, default_backend, evaluate_coco


@pytest.fixture(scope="module")
def shapes_val(tmp_path_factory):
    """shapes_val with few images, registered in place of the default one."""
    root = tmp_path_factory.mktemp("datasets")
    generate_shapes(root / "shapes", num_images={"train": 1, "val": 8})
    names = ("shapes_train", "shapes_val")
    for name in names:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)
    register_shapes(root)
    yield DatasetCatalog.get("shapes_val")
    for name in names:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)
    register_shapes()


@pytest.fixture
def facts_of_cocoapi(fixtures):
    """Ground truth, published detections and their twelve statistics, by type."""

    def load(iou_type):
        folder = fixtures / "coco_eval"
        return (
            json.loads((folder / "instances_val2014_100.json").read_text()),
            json.loads((folder / f"instances_val2014_fake{iou_type}100_results.json").read_text()),
            json.loads((folder / "expected.json").read_text())[iou_type],
        )

    return load


def evaluate(records, predictions, tmp_path, cfg=None):
    cfg = cfg or model_zoo.get_config("quickstart")
    evaluator = build_evaluator(cfg, "shapes_val", str(tmp_path))
    evaluator.reset()
    for record, instances in zip(records, predictions):
        evaluator.process([record], [{"instances": instances}])
    return evaluator.evaluate()


def instances_of(record, keep):
    """The ground truth of a record as a detector's output, or nothing."""
    annotations = [a for a in record["annotations"] if keep and not a["iscrowd"]]
    size = (record["height"], record["width"])
    instances = Instances(size)
    xywh = torch.tensor([a["bbox"] for a in annotations], dtype=torch.float32).reshape(-1, 4)
    instances.pred_boxes = Boxes(torch.cat((xywh[:, :2], xywh[:, :2] + xywh[:, 2:]), 1))
    instances.scores = torch.ones(len(annotations))
    instances.pred_classes = torch.tensor([a["category_id"] for a in annotations], dtype=torch.int64)
    polygons = [a["segmentation"] for a in annotations]
    masks = BitMasks.from_polygon_masks([[torch.tensor(p).numpy() for p in m] for m in polygons], *size)
    instances.pred_masks = masks.tensor if annotations else torch.zeros(0, *size, dtype=torch.bool)
    return instances


def test_ground_truth_as_prediction_scores_100(shapes_val, tmp_path):
    results = evaluate(shapes_val, [instances_of(r, keep=True) for r in shapes_val], tmp_path)
    assert results["bbox"]["AP"] == pytest.approx(100)
    assert results["segm"]["AP"] == pytest.approx(100)


def test_a_model_that_finds_nothing_scores_0_not_nan(shapes_val, tmp_path):
    results = evaluate(shapes_val, [instances_of(r, keep=False) for r in shapes_val], tmp_path)
    assert results["bbox"]["AP"] == 0 and results["bbox"]["AP50"] == 0
    assert results["segm"]["AP"] == 0
    assert math.isnan(results["bbox"]["APl"])  # there are no large objects to find


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("iou_type", ["bbox", "segm"])
def test_the_known_answers_of_cocoapi_are_met(backend, iou_type, facts_of_cocoapi):
    truth, results, expected = facts_of_cocoapi(iou_type)
    stats = evaluate_coco(truth, results, iou_type, backend=backend).stats
    assert list(stats) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("backend", BACKENDS)
def test_keypoints_of_the_truth_score_1(backend, coco_root):
    file = coco_root / "coco/annotations/person_keypoints_val2017.json"
    truth = json.loads(file.read_text())
    results = [
        {**{k: a[k] for k in ("image_id", "category_id", "keypoints")}, "score": 1.0}
        for a in truth["annotations"]
        if a.get("num_keypoints") and not a["iscrowd"]
    ]
    assert evaluate_coco(truth, results, "keypoints", backend=backend).stats[0] == pytest.approx(1)
    with pytest.raises(OptionError, match=r"TEST.KEYPOINT_OKS_SIGMAS must have 17 entries, one a keypoint"):
        evaluate_coco(truth, results, "keypoints", backend=backend, keypoint_sigmas=[0.1] * 3)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("iou_type", ["bbox", "segm", "keypoints"])
def test_nothing_found_scores_0_with_either_backend(backend, iou_type, coco_root):
    file = coco_root / "coco/annotations/person_keypoints_val2017.json"
    assert evaluate_coco(json.loads(file.read_text()), [], iou_type, backend=backend).stats[0] == 0


def test_the_backend_is_the_faster_one_if_installed_and_named_in_the_log(shapes_val, tmp_path, caplog):
    assert default_backend() == "faster-coco-eval"
    with caplog.at_level("INFO", logger="resnest_d2"):
        evaluate(shapes_val, [instances_of(r, keep=True) for r in shapes_val], tmp_path)
    assert "Evaluating with faster-coco-eval" in caplog.text


def test_average_recall_is_reported_on_request(shapes_val, tmp_path):
    cfg = model_zoo.get_config("quickstart")
    predictions = [instances_of(r, keep=True) for r in shapes_val]
    plain = evaluate(shapes_val, predictions, tmp_path)
    cfg.TEST.AVERAGE_RECALL = True
    asked = evaluate(shapes_val, predictions, tmp_path, cfg)
    for task in ("bbox", "segm"):
        more = asked[task].keys() - plain[task].keys()
        sizes = {"AR1", "AR10", "AR100", "ARs", "ARm", "ARl"}
        assert more == sizes | {f"AR-{name}" for name in ("circle", "square", "triangle")}
        assert asked[task]["AR100"] == asked[task]["AR-circle"] == pytest.approx(100)
        assert 0 < asked[task]["AR1"] < 100  # one detection an image does not find all


@pytest.mark.parametrize("kind, expected", [("coco", COCOEvaluator), ("sem_seg", SemSegEvaluator)])
def test_evaluator_follows_the_metadata_of_the_dataset(kind, expected, shapes_val, tmp_path):
    name = f"test_evaluator_{kind}"
    DatasetCatalog.register(name, lambda: [])
    metadata = MetadataCatalog.get(name).set(evaluator_type=kind, thing_classes=["a"], stuff_classes=["a"])
    metadata.set(json_file=MetadataCatalog.get("shapes_val").json_file, ignore_label=255)
    evaluator = build_evaluator(model_zoo.get_config("quickstart"), name, str(tmp_path))
    assert type(evaluator) is expected


def test_dataset_without_a_known_evaluator_is_named(tmp_path):
    DatasetCatalog.register("test_no_evaluator", lambda: [])
    with pytest.raises(UserError, match="'test_no_evaluator' has evaluator_type None"):
        build_evaluator(model_zoo.get_config("quickstart"), "test_no_evaluator", str(tmp_path))
