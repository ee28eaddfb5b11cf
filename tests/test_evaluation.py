"""Evaluators by dataset, and what they say in corner cases."""

import copy
import json
import math
import os

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.structures import BitMasks, Boxes, Instances
from PIL import Image

from resnest_d2 import OptionError, UserError, model_zoo
from resnest_d2.data import load_coco, register_pairs, register_shapes
from resnest_d2.data.annotations import complete, compressed, encode_mask, run_lengths
from resnest_d2.data.check import note_annotations
from resnest_d2.data.loader import build_test_loader
from resnest_d2.data.shapes import generate_shapes
from resnest_d2.evaluation import build_evaluator
from resnest_d2.evaluation.coco import (
    BACKENDS,
    COCOEvaluator,
    average_precisions,
    default_backend,
    evaluate_coco,
    match_detections,
)
from resnest_d2.evaluation.evaluators import SemanticEvaluator


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


def test_a_models_own_masks_are_not_decoded_to_be_checked_and_those_of_others_are(
    shapes_val, tmp_path, monkeypatch
):
    decoded = []
    monkeypatch.setattr(
        "resnest_d2.data.annotations.run_lengths",
        lambda counts, pixels: decoded.append(counts) or run_lengths(counts, pixels),
    )
    own = evaluate(shapes_val, [instances_of(r, keep=True) for r in shapes_val], tmp_path)
    results = json.loads((tmp_path / "coco_instances_results.json").read_text())
    masks = {result["segmentation"]["counts"] for result in results}
    assert own["segm"]["AP"] == pytest.approx(100) and masks and masks.isdisjoint(decoded)
    truth = load_coco(MetadataCatalog.get("shapes_val").json_file)
    assert evaluate_coco(truth, results, "segm").stats[0] == pytest.approx(1) and masks <= {*decoded}
    results[0]["segmentation"]["size"] = [9, 9]
    with pytest.raises(UserError, match=r"detection number 0, .* the run-length encoding of a mask of"):
        evaluate_coco(truth, results, "segm", trust_masks=True)


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


def keypoints_found(coco_root):
    """People of COCO, and their keypoints as if they had been predicted."""
    file = coco_root / "coco/annotations/person_keypoints_val2017.json"
    truth = json.loads(file.read_text())
    results = [
        {**{k: a[k] for k in ("image_id", "category_id", "keypoints")}, "score": 1.0}
        for a in truth["annotations"]
        if a["num_keypoints"] and not a["iscrowd"]
    ]
    return truth, results


@pytest.mark.parametrize("backend", BACKENDS)
def test_keypoints_of_the_truth_score_1(backend, coco_root):
    truth, results = keypoints_found(coco_root)
    assert evaluate_coco(truth, results, "keypoints", backend=backend).stats[0] == pytest.approx(1)
    with pytest.raises(OptionError, match=r"TEST.KEYPOINT_OKS_SIGMAS must have 17 entries, one per keypoint"):
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


@pytest.mark.parametrize("kind, expected", [("coco", COCOEvaluator), ("sem_seg", SemanticEvaluator)])
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


def perfect(truth, iou_type):
    """The objects of an annotation file as detections, by whose own mask or box they are."""
    key = {"bbox": "bbox", "segm": "segmentation", "keypoints": "keypoints"}[iou_type]
    found = []
    for annotation in complete(copy.deepcopy(truth))["annotations"]:
        if annotation["iscrowd"]:
            continue
        shape = annotation[key]
        if iou_type == "segm":
            image = next(i for i in truth["images"] if i["id"] == annotation["image_id"])
            shape = encode_mask(shape, int(image["height"]), int(image["width"]))
        found.append({**{k: annotation[k] for k in ("image_id", "category_id")}, key: shape, "score": 0.9})
    return found


def number_by(ids):
    def change(truth):
        for number, annotation in zip(ids(len(truth["annotations"])), truth["annotations"]):
            annotation["id"] = number

    return change


def drop(*keys):
    def change(truth):
        for annotation in truth["annotations"]:
            if not annotation["iscrowd"]:
                for key in keys:
                    annotation.pop(key)

    return change


def with_float_sizes(truth):
    for image in truth["images"]:
        image.update(width=float(image["width"]), height=str(image["height"]))


def move(lists, key, by):
    def change(truth):
        for entry in truth[lists]:
            entry["id"] += by
        for annotation in truth["annotations"]:
            annotation[key] += by

    return change


CARELESS = {
    "ids from 0": number_by(range),
    "negative ids": number_by(lambda n: range(-n, 0)),
    "ids around 0": number_by(lambda n: range(-n // 2, n)),
    "equal ids": number_by(lambda n: [7] * n),
    "no ids": lambda truth: [a.pop("id") for a in truth["annotations"]],
    "ids as text": number_by(lambda n: map(str, range(n))),
    "ids that floats cannot tell apart": number_by(lambda n: range(2**53, 2**53 + n)),
    "no area": drop("area"),
    "area 0": lambda truth: [a.update(area=0) for a in truth["annotations"]],
    "area of a wrong type": lambda truth: [a.update(area=["x"]) for a in truth["annotations"]],
    "no iscrowd": drop("iscrowd"),
    "iscrowd null": lambda truth: [a.update(iscrowd=a["iscrowd"] or None) for a in truth["annotations"]],
    "none of them": drop("area", "iscrowd", "id"),
    "sizes of another type": with_float_sizes,
    "category 0": move("categories", "category_id", -1),
    "negative categories": move("categories", "category_id", -100),
    "categories of nearly 64 bits": move("categories", "category_id", 2**63 - 1000),
    "image 0": move("images", "image_id", -1),
    "negative images": move("images", "image_id", -100),
    "images of nearly 64 bits": move("images", "image_id", 2**63 - 1000),
}


@pytest.fixture(scope="module")
def shapes_truth(tmp_path_factory):
    """Content of an annotation file with crowds and an image without objects."""
    folder = tmp_path_factory.mktemp("truth") / "shapes"
    generate_shapes(folder, num_images={"val": 21}, sizes=[(96, 128)])
    return json.loads((folder / "annotations/instances_val.json").read_text())


@pytest.mark.parametrize("iou_type", ["bbox", "segm"])
@pytest.mark.parametrize("name", CARELESS)
def test_perfect_detections_have_ap_100_whoever_wrote_the_annotations(name, iou_type, shapes_truth):
    truth = copy.deepcopy(shapes_truth)
    CARELESS[name](truth)
    given, results = copy.deepcopy(truth), perfect(truth, iou_type)
    evals = [evaluate_coco(truth, results, iou_type, backend=backend) for backend in BACKENDS]
    stats = [coco_eval.stats[:12] for coco_eval in evals]
    for key, ids in (("images", evals[0].params.imgIds), ("categories", evals[1].params.catIds)):
        assert list(ids) == sorted(entry["id"] for entry in truth[key])
    assert list(stats[0]) == pytest.approx(list(stats[1]), abs=1e-12)
    whole = evaluate_coco(shapes_truth, perfect(shapes_truth, iou_type), iou_type).stats[:12]
    # Undefined by size where the original is: areas are those of the masks, give or take a border.
    defined = np.array(stats[0]) > -1
    assert np.array_equal(defined, np.array(whole) > -1) and stats[0][0] == pytest.approx(1)
    assert np.array(stats[0])[[0, 1, 2, 8]] == pytest.approx(1)
    matches = match_detections(truth, results, iou_type)
    assert len({match.truth for match in matches}) == len(results) and all(match.truth for match in matches)
    assert truth == given  # nothing is changed in place


def test_what_is_complete_is_left_alone(shapes_truth, facts_of_cocoapi):
    for truth in (shapes_truth, facts_of_cocoapi("bbox")[0]):
        assert complete(truth) == truth


@pytest.mark.parametrize("backend", BACKENDS)
def test_keypoints_without_their_number_and_without_keypoints(backend, coco_root):
    truth, results = keypoints_found(coco_root)
    for annotation in truth["annotations"]:
        if not annotation.pop("num_keypoints"):
            del annotation["keypoints"]
    assert evaluate_coco(truth, results, "keypoints", backend=backend).stats[0] == pytest.approx(1)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("iou_type", ["bbox", "segm"])
def test_nothing_to_find_is_undefined_and_no_failure(backend, iou_type, shapes_truth):
    truth = {**shapes_truth, "annotations": []}
    assert evaluate_coco(truth, [], iou_type, backend=backend).stats[0] == -1
    results = perfect(shapes_truth, iou_type)
    assert evaluate_coco(truth, results, iou_type, backend=backend).stats[0] == -1


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda t: t["annotations"][0].update(bbox="[1 2 3 4]"), r"annotation 1 has the box '\[1 2 3 4\]', but needs"),
        (lambda t: t["annotations"][0].pop("bbox"), "annotation 1 has no box, but needs x, y"),
        (lambda t: t["annotations"][0].update(bbox=[1, 2, 3, math.nan]), "annotation 1 has the box"),
        (lambda t: t["annotations"][0].update(iscrowd="no"), "annotation 1 has iscrowd 'no' instead of the number 0"),
        (lambda t: t["annotations"].insert(2, 3), "entry 2 of the annotations has no image_id that is a whole"),
        (lambda t: t["annotations"][0].update(category_id=[1]), "entry 0 of the annotations has no category_id"),
        (lambda t: t["images"][0].update(id=2**63), "entry 0 of the images has no id that is a whole number"),
        (lambda t: t["categories"][1].pop("name"), "a category has no name"),
    ],
)  # fmt: skip
def test_annotations_that_cannot_be_completed_are_named(change, message, shapes_truth, tmp_path):
    truth = copy.deepcopy(shapes_truth)
    change(truth)
    with pytest.raises(UserError, match=message):
        evaluate_coco(truth, [], "bbox")
    (tmp_path / "a.json").write_text(json.dumps(truth))
    with pytest.raises(UserError, match=r"a\.json: .*tools/check_dataset\.py"):
        load_coco(tmp_path / "a.json")


def test_detections_of_other_images_and_objects_without_masks_are_named(shapes_truth):
    results = [{"image_id": 99, "category_id": 1, "bbox": [1, 1, 2, 2], "score": 1.0}]
    with pytest.raises(UserError, match=r"1 images with detections \(99\) are not in the annotation"):
        evaluate_coco(shapes_truth, results, "bbox")
    truth = copy.deepcopy(shapes_truth)
    objects = [a for a in truth["annotations"] if not a["iscrowd"]]
    objects[3].pop("segmentation")
    with pytest.raises(UserError, match=f"1 objects, the first annotation {objects[3]['id']}, have no segm"):
        evaluate_coco(truth, perfect(shapes_truth, "segm"), "segm")


@pytest.mark.parametrize("backend", BACKENDS)
def test_numbers_of_numpy_are_numbers(backend, shapes_truth):
    truth, results = copy.deepcopy(shapes_truth), perfect(shapes_truth, "bbox")
    for entry in (*truth["images"], *truth["annotations"], *truth["categories"], *results):
        entry.update({k: np.int64(v) for k, v in entry.items() if k == "id" or k.endswith("_id")})
    ids = [np.int64(image["id"]) for image in truth["images"][:9]]
    assert evaluate_coco(truth, results, "bbox", backend=backend, image_ids=ids).stats[0] == pytest.approx(1)


@pytest.mark.parametrize("value", [3, "12", b"12"])
def test_what_is_no_list_is_named(value, shapes_truth):
    with pytest.raises(OptionError, match=f"^image_ids must be a list of the ids of images, got {value!r}$"):
        evaluate_coco(shapes_truth, [], "bbox", image_ids=value)
    with pytest.raises(OptionError, match=f"OKS_SIGMAS must be a list of numbers, got {value!r}$"):
        evaluate_coco(shapes_truth, [], "bbox", keypoint_sigmas=value)


@pytest.mark.parametrize(
    "ids, said", [([99], "1 images to evaluate .99. "), (["1", 7, -1], r"2 images to evaluate .-1, \.\.\.. ")]
)
def test_images_that_are_not_in_the_file_are_named(ids, said, shapes_truth):
    with pytest.raises(UserError, match=f"{said}are not in the annotation file"):
        evaluate_coco(shapes_truth, [], "bbox", image_ids=ids)


@pytest.mark.parametrize(
    "change, said",
    [
        ({"score": math.nan}, "the score nan"),
        ({"score": math.inf}, "the score inf"),
        ({"score": None}, "the score None"),
        ({"score": "0.5"}, "the score '0.5'"),
        ({"bbox": [1, 2, math.nan, 4]}, r"the bbox \[1, 2, nan, 4\]"),
        ({"bbox": None}, "the bbox None"),
    ],
)
def test_detections_that_are_not_finite_are_named(change, said, shapes_truth):
    results = perfect(shapes_truth, "bbox")
    results[2].update(change)
    with pytest.raises(UserError, match=f"detection number 2, on image 1, has {said}, which must be finite"):
        evaluate_coco(shapes_truth, results, "bbox")


@pytest.mark.parametrize(
    "iou_type, change, said",
    [
        ("bbox", {"image_id": "1"}, "detection number 2 has image_id '1', not a whole number"),
        ("bbox", {"category_id": None}, "detection number 2 has category_id None, not a whole number"),
        ("bbox", {"bbox": [1, 2, 3]}, r"the bbox \[1, 2, 3\], which must be 4 numbers"),
        (
            "segm",
            {"segmentation": {"size": [9, 9], "counts": "Q3"}},
            "the segmentation .* of a mask of 128x96",
        ),
        (
            "segm",
            {"segmentation": {"size": [128, 96], "counts": "CQ"}},
            "the segmentation .* of a mask of 128x96",
        ),
        ("segm", {"segmentation": [[1, 1, 9, 1, 9, 9]]}, "the segmentation .* of a mask of 128x96"),
        ("segm", {"segmentation": None}, "the segmentation .* of a mask of 128x96"),
        ("mask", {}, "iou_type 'mask' is not one of bbox, segm, keypoints"),
    ],
)
def test_detections_that_backends_differ_or_hang_on_are_named(iou_type, change, said, shapes_truth):
    results = perfect(shapes_truth, "segm" if iou_type == "segm" else "bbox")
    results[2].update(change)
    with pytest.raises(UserError, match=said):
        evaluate_coco(shapes_truth, results, iou_type)


@pytest.mark.parametrize("backend", BACKENDS)
def test_types_that_mean_the_same_are_taken(backend, shapes_truth):
    truth = copy.deepcopy(shapes_truth)
    for annotation in truth["annotations"]:
        annotation["bbox"] = tuple(annotation["bbox"])
    results = [{**r, "bbox": np.array(r["bbox"])} for r in perfect(shapes_truth, "bbox")]
    assert evaluate_coco(truth, results, "bbox", backend=backend).stats[0] == pytest.approx(1)
    results = perfect(shapes_truth, "segm")
    for i, result in enumerate(results):
        mask = result["segmentation"]
        size, counts = mask["size"], mask["counts"]
        counts = counts.encode() if i % 2 and isinstance(counts, str) else counts
        result["segmentation"] = {"size": tuple(size), "counts": counts}
    assert evaluate_coco(truth, results, "segm", backend=backend).stats[0] == pytest.approx(1)


def test_keypoints_without_a_constant_each_are_named(coco_root):
    truth, results = keypoints_found(coco_root)
    for sigmas in ([0.0] * 17, [math.nan] * 17, np.full(17, -0.1)):
        with pytest.raises(OptionError, match=r"KEYPOINT_OKS_SIGMAS must be above 0 and finite, got \[[-0n]"):
            evaluate_coco(truth, results, "keypoints", keypoint_sigmas=sigmas)
    other = copy.deepcopy(results)
    other[1]["keypoints"] = other[1]["keypoints"][:3]
    with pytest.raises(UserError, match=r"detection number 1, .*the keypoints .*which must be 51 numbers"):
        evaluate_coco(truth, other, "keypoints")
    truth["annotations"][0]["keypoints"] = [1, 1, 2]
    with pytest.raises(OptionError, match="must have 1 entries, one per keypoint"):
        evaluate_coco(truth, results, "keypoints")


def test_images_without_a_size_cannot_have_masks_evaluated(shapes_truth):
    truth = copy.deepcopy(shapes_truth)
    del truth["images"][1]["width"]
    with pytest.raises(UserError, match=r"1 images, the first 2, have no height and width.*check_dataset"):
        evaluate_coco(truth, [], "segm")


@pytest.mark.parametrize("backend", BACKENDS)
def test_no_area_and_no_count_of_keypoints_hides_an_object(backend, coco_root, shapes_truth):
    truth = copy.deepcopy(shapes_truth)
    for annotation in truth["annotations"]:
        annotation["area"] = 1e12
    assert evaluate_coco(truth, perfect(truth, "bbox"), "bbox", backend=backend).stats[0] == pytest.approx(1)
    truth, results = keypoints_found(coco_root)
    for annotation in truth["annotations"]:
        annotation["num_keypoints"] = 0
    assert evaluate_coco(truth, results, "keypoints", backend=backend).stats[0] == pytest.approx(1)


@pytest.mark.parametrize(
    "mask",
    [{"size": [96, 128], "counts": [5]}, {"size": [9, 9], "counts": [81]}, [[1e12] * 6], [[1, 2, 3]], "x"],
)
def test_a_mask_that_would_break_the_evaluation_is_named(mask, shapes_truth):
    truth = copy.deepcopy(shapes_truth)
    truth["annotations"][0]["segmentation"] = mask
    evaluate_coco(truth, perfect(shapes_truth, "bbox"), "bbox")
    with pytest.raises(UserError, match=r"annotation 1: its segmentation must be .*check_dataset\.py"):
        evaluate_coco(truth, [], "segm")


@pytest.fixture
def own_val(tmp_path):
    """A registered validation set, its annotation file, and a configuration that names it."""
    generate_shapes(tmp_path / "shapes", num_images={"val": 3}, sizes=[(64, 64)])
    file = tmp_path / "shapes/annotations/instances_val.json"
    (name,) = register_pairs("val", [(str(file), str(tmp_path / "shapes/val"))], {})
    cfg = model_zoo.get_config("quickstart")
    cfg.merge_from_list(["DATASETS.TEST", (name,), "DATALOADER.NUM_WORKERS", 0])
    return name, file, cfg


def test_a_file_that_changes_during_training_is_noticed_at_evaluation(own_val, tmp_path, caplog):
    name, file, cfg = own_val
    note_annotations([name])
    with caplog.at_level("WARNING", logger="resnest_d2"):
        build_test_loader(cfg, name)
        assert "has changed" not in caplog.text
        content = json.loads(file.read_text())
        content["annotations"].pop()
        file.write_text(json.dumps(content))
        build_test_loader(cfg, name)
        build_evaluator(cfg, name, str(tmp_path))
    assert caplog.text.count(f"{file} has changed since training started; evaluation uses the new file") == 1
    content["categories"].append({"id": 4, "name": "star"})
    for broken in (json.dumps(content), "{", '{"images": 3}'):
        file.write_text(broken)
        with pytest.raises(UserError, match=r"instances_val\.json cannot be loaded \("):
            build_test_loader(cfg, name)
    os.unlink(file)
    for build in (build_test_loader, lambda cfg, name: build_evaluator(cfg, name, str(tmp_path))):
        with pytest.raises(UserError, match=r"instances_val\.json cannot be loaded \(FileNotFoundError"):
            build(cfg, name)


@pytest.fixture
def label_map(tmp_path):
    """label_map(): the result of evaluating a 4x3 image, all of class 1, by the map labels.png."""
    name, image, labels = "test_label_map", str(tmp_path / "x.jpg"), tmp_path / "labels.png"
    DatasetCatalog.register(name, lambda: [{"file_name": image, "sem_seg_file_name": str(labels)}])
    MetadataCatalog.get(name).set(evaluator_type="sem_seg", stuff_classes=["a", "b"], ignore_label=255)
    evaluator = build_evaluator(model_zoo.get_config("quickstart"), name, str(tmp_path))

    def process():
        evaluator.reset()
        scores = torch.tensor([0.0, 1.0])[:, None, None].expand(2, 3, 4)
        evaluator.process([{"file_name": image}], [{"sem_seg": scores}])
        return evaluator.evaluate()["sem_seg"]

    yield labels, process
    DatasetCatalog.remove(name)
    MetadataCatalog.remove(name)


def test_label_maps_that_do_not_fit_are_named(label_map):
    labels, process = label_map
    Image.new("L", (4, 3), 1).save(labels)
    assert process()["IoU-b"] == 100
    spoilt = (
        (lambda: Image.new("L", (5, 3), 1).save(labels), " is not a label map"),
        (lambda: Image.new("L", (4, 3), 7).save(labels), " has the label 7"),
        (lambda: Image.new("RGB", (4, 3)).save(labels), ": mask in colours, not labels"),
        (lambda: labels.write_bytes(b"no image"), ": mask file unreadable"),
        (labels.unlink, ": mask file unreadable"),
    )
    for spoil, said in spoilt:
        spoil()
        with pytest.raises(UserError, match=rf"labels\.png{said}"):
            process()


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_class_without_objects_keeps_its_place_among_keypoints(backend):
    points = [float(n) for i in range(17) for n in (5 + 2 * i, 40 - i, 2)]
    box = {"image_id": 1, "category_id": 2, "bbox": [5, 24, 32, 16], "keypoints": points}
    truth = {
        "images": [{"id": 1, "file_name": "a.jpg", "width": 64, "height": 48}],
        "categories": [{"id": 1, "name": "none"}, {"id": 2, "name": "person"}],
        "annotations": [{**box, "id": 1, "area": 512.0, "iscrowd": 0, "num_keypoints": 17}],
    }
    found = evaluate_coco(truth, [{**box, "score": 0.9}], "keypoints", backend=backend)
    ap = average_precisions(found).mean(axis=0)
    assert np.isnan(ap[0]) and ap[1] == pytest.approx(100)


@pytest.mark.parametrize("backend", BACKENDS)
def test_polygons_that_are_none_do_not_make_boxes_of_a_mask(backend):
    image = {"id": 1, "width": 64, "height": 64}
    polygon = [1, 1, 50, 1, 50, 50]
    truth = {
        "images": [image],
        "categories": [{"id": 1, "name": "a"}],
        "annotations": [
            {
                "id": 1,
                "image_id": 1,
                "category_id": 1,
                "iscrowd": 0,
                "bbox": [1, 1, 49, 49],
                "area": 1200,
                "segmentation": [[1, 1, 5, 5], polygon],
            }
        ],
    }
    mask = compressed(encode_mask([polygon], 64, 64))
    found = [{"image_id": 1, "category_id": 1, "score": 0.9, "segmentation": mask}]
    assert evaluate_coco(truth, found, "segm", backend=backend).stats[0] == pytest.approx(1)


def test_constants_of_other_keypoints_suit_a_dataset_in_which_none_is_annotated():
    truth = {
        "images": [{"id": 1, "width": 64, "height": 64}],
        "categories": [{"id": 1, "name": "a"}],
        "annotations": [
            {"id": 1, "image_id": 1, "category_id": 1, "iscrowd": 0, "bbox": [1, 1, 9, 9], "area": 81}
        ],
    }
    found = [{"image_id": 1, "category_id": 1, "score": 0.9, "keypoints": [3, 3, 1] * 5}]
    evaluated = evaluate_coco(truth, found, "keypoints", keypoint_sigmas=[0.1] * 5)
    assert evaluated.stats[0] == -1  # nothing to find
