"""Panoptic quality by COCO's rules, and the files that panoptic recipes are trained on."""

import json

import numpy as np
import pytest
import torch
from conftest import assert_one_line_error
from detectron2.data import DatasetCatalog, MetadataCatalog
from PIL import Image

from resnest_d2 import UserError
from resnest_d2.data.panoptic import (
    panoptic_of_instances,
    read_segment_ids,
    write_segment_ids,
    write_semantic_maps,
)
from resnest_d2.evaluation.panoptic import PanopticEvaluator, match_segments, panoptic_quality

META = MetadataCatalog.get("coco_2017_val_panoptic_separated")
CONTIGUOUS = {**META.stuff_dataset_id_to_contiguous_id, **META.thing_dataset_id_to_contiguous_id}


@pytest.fixture
def coco_sample(fixtures):
    """COCO's two sample images: annotations, (ids, segments) by image, folder."""
    folder = fixtures / "panoptic"
    content = json.loads((folder / "panoptic_examples.json").read_text())
    images = {
        a["image_id"]: (read_segment_ids(folder / "panoptic_examples" / a["file_name"]), a["segments_info"])
        for a in content["annotations"]
    }
    return content, images, folder


def quality_by_definition(images):
    """PQ, SQ, RQ of (truth, its segments, prediction, its segments), from boolean masks and set rules."""
    per_category = {}
    for truth, true_segments, predicted, predicted_segments in images:
        labelled = np.isin(truth, [s["id"] for s in true_segments])
        matched_true, matched_predicted = set(), set()
        for t in true_segments:
            for p in predicted_segments:
                a, b = truth == t["id"], (predicted == p["id"]) & labelled
                iou = (a & b).sum() / max((a | b).sum(), 1)
                if t["category_id"] == p["category_id"] and not t["iscrowd"] and iou > 0.5:
                    matched_true.add(t["id"])
                    matched_predicted.add(p["id"])
                    per_category.setdefault(t["category_id"], [0, 0, 0, 0])[0] += iou
                    per_category[t["category_id"]][1] += 1
        for p in predicted_segments:
            mask = predicted == p["id"]
            crowds = [s["id"] for s in true_segments if s["iscrowd"] and s["category_id"] == p["category_id"]]
            ignored = mask & (~labelled | np.isin(truth, crowds))
            if p["id"] not in matched_predicted and ignored.sum() / mask.sum() <= 0.5:
                per_category.setdefault(p["category_id"], [0, 0, 0, 0])[2] += 1
        for t in true_segments:
            if t["id"] not in matched_true and not t["iscrowd"]:
                per_category.setdefault(t["category_id"], [0, 0, 0, 0])[3] += 1
    values = [
        (iou / (tp + fp / 2 + fn / 2), iou / tp if tp else 0, tp / (tp + fp / 2 + fn / 2))
        for iou, tp, fp, fn in per_category.values()
    ]
    return [100 * v for v in np.mean(values, axis=0)]


def total(images):
    counts = {}
    for image in images:
        for category, values in match_segments(*image).items():
            counts[category] = counts.get(category, 0) + values
    return counts


def test_the_truth_as_prediction_scores_100(coco_sample):
    content, images, _ = coco_sample
    counts = total((ids, segments, ids, segments) for ids, segments in images.values())
    everything = panoptic_quality(counts, [c["id"] for c in content["categories"]])
    assert everything == {"PQ": 100.0, "SQ": 100.0, "RQ": 100.0}
    assert sum(v[1] for v in counts.values()) == sum(
        not s["iscrowd"] for _, segments in images.values() for s in segments
    )


@pytest.mark.parametrize("seed", range(6))
def test_altered_predictions_score_as_the_definition_says(seed, coco_sample):
    """Segments are shifted, merged, dropped, given another category, and put where nobody labelled."""
    content, images, _ = coco_sample
    rng = np.random.default_rng(seed)
    altered = []
    for truth, segments in images.values():
        shift = tuple(int(s) for s in rng.integers(-12, 12, 2))
        predicted = np.roll(truth, shift, (0, 1))
        own = [{"id": s["id"], "category_id": s["category_id"]} for s in segments]
        for segment in list(own):
            kind = rng.choice(["keep", "drop", "category", "merge"], p=[0.6, 0.1, 0.15, 0.15])
            if kind == "category":
                segment["category_id"] = own[rng.integers(len(own))]["category_id"]
            elif kind in ("drop", "merge") and len(own) > 2:
                own.remove(segment)
                into = own[0]["id"] if kind == "merge" else 0
                predicted = np.where(predicted == segment["id"], into, predicted)
        void = (truth == 0) & (rng.random(truth.shape) < 0.7)
        predicted = np.where(void, 7, predicted)
        own.append({"id": 7, "category_id": own[0]["category_id"]})
        own = [s for s in own if (predicted == s["id"]).any()]
        altered.append((truth, segments, predicted, own))
    ours = panoptic_quality(total(altered), [c["id"] for c in content["categories"]])
    assert [*ours.values()] == pytest.approx(quality_by_definition(altered), abs=1e-9)
    assert 0 < ours["PQ"] < 99


def segments(*pairs, crowd=()):
    return [{"id": i, "category_id": c, "iscrowd": int(i in crowd)} for i, c in pairs]


def test_counts_of_cases_worked_out_by_hand():
    truth = np.array([[1, 1, 1, 1, 2, 2, 0, 0]])
    # 3 of the 4 pixels of 1, with one more where nothing is labelled: that one does not count.
    counts = match_segments(truth, segments((1, 5), (2, 6)), np.array([[9, 9, 9, 0, 0, 0, 9, 8]]),
                            segments((9, 5), (8, 6)))  # fmt: skip
    assert counts[5].tolist() == [0.75, 1, 0, 0]
    assert counts[6].tolist() == [0, 0, 0, 1]  # 2 is missed; 8 lies where nothing is labelled
    # Exactly one half is no match.
    counts = match_segments(truth, segments((1, 5)), np.array([[9, 9, 0, 0, 0, 0, 0, 0]]), segments((9, 5)))
    assert counts[5].tolist() == [0, 0, 1, 1]
    # A crowd is not to be found, and is no mistake in its own category only.
    crowd = segments((1, 5), crowd=(1,))
    predicted = np.array([[9, 9, 9, 0, 0, 0, 0, 0]])
    assert match_segments(truth, crowd, predicted, segments((9, 5))) == {}
    assert match_segments(truth, crowd, predicted, segments((9, 6)))[6].tolist() == [0, 0, 1, 0]


@pytest.fixture
def registered(coco_sample):
    """A dataset of the two images."""
    _, _, folder = coco_sample
    name = "test_panoptic"
    DatasetCatalog.register(name, lambda: [])
    MetadataCatalog.get(name).set(
        panoptic_json=str(folder / "panoptic_examples.json"),
        panoptic_root=str(folder / "panoptic_examples"),
        thing_dataset_id_to_contiguous_id=META.thing_dataset_id_to_contiguous_id,
        stuff_dataset_id_to_contiguous_id=META.stuff_dataset_id_to_contiguous_id,
    )
    yield name
    DatasetCatalog.remove(name)
    MetadataCatalog.remove(name)


def as_output(ids, segments, isthing):
    infos = [
        {
            "id": s["id"],
            "isthing": isthing[s["category_id"]],
            "category_id": CONTIGUOUS[s["category_id"]],
        }
        for s in segments
    ]
    return {"panoptic_seg": (torch.from_numpy(ids), infos)}


def test_evaluator_translates_a_models_output(coco_sample, registered, tmp_path):
    content, images, _ = coco_sample
    isthing = {c["id"]: bool(c["isthing"]) for c in content["categories"]}
    evaluator = PanopticEvaluator(registered, str(tmp_path))
    for image_id, (ids, infos) in images.items():
        evaluator.process([{"image_id": image_id}], [as_output(ids, infos, isthing)])
    results = evaluator.evaluate()["panoptic_seg"]
    assert set(results) == {f"{q}{s}" for q in ("PQ", "SQ", "RQ") for s in ("", "_th", "_st")}
    assert [*results.values()] == pytest.approx([100] * 9)
    assert json.loads((tmp_path / "panoptic.json").read_text())
    # Without its things, the stuff is as good as before, and the figure over all categories is the mean.
    evaluator.reset()
    for image_id, (ids, infos) in images.items():
        stuff = [s for s in infos if not isthing[s["category_id"]]]
        evaluator.process([{"image_id": image_id}], [as_output(ids, stuff, isthing)])
    results = evaluator.evaluate()["panoptic_seg"]
    assert results["PQ_st"] == 100 and results["PQ_th"] == 0 and 0 < results["PQ"] < 100
    with pytest.raises(UserError, match=r"panoptic_examples\.json has no annotation of image 5"):
        evaluator.process([{"image_id": 5}], [{}])


def test_segment_ids_survive_a_png(tmp_path):
    ids = np.array([[0, 255, 256], [65535, 65536, 256**3 - 1]])
    write_segment_ids(ids, tmp_path / "x.png")
    assert (read_segment_ids(tmp_path / "x.png") == ids).all()


def test_semantic_maps_label_stuff_by_its_order_and_things_0(coco_sample, tmp_path):
    content, images, folder = coco_sample
    file = folder / "panoptic_examples.json"
    assert write_semantic_maps(file, folder / "panoptic_examples", tmp_path) == 2
    isthing = {c["id"]: c["isthing"] for c in content["categories"]}
    for annotation in content["annotations"]:
        semantic = np.asarray(Image.open(tmp_path / annotation["file_name"]))
        ids = images[annotation["image_id"]][0]
        for s in annotation["segments_info"]:
            wanted = 0 if isthing[s["category_id"]] else CONTIGUOUS[s["category_id"]]
            assert (semantic[ids == s["id"]] == wanted).all()
        assert (semantic[ids == 0] == 255).all()


def test_semantic_maps_tool_and_what_it_refuses(coco_sample, run_python, tmp_path):
    _, _, folder = coco_sample
    command = ("tools/prepare_panoptic.py", folder / "panoptic_examples.json")
    result = run_python(*command, folder / "panoptic_examples", tmp_path / "out")
    assert result.returncode == 0 and "wrote 2 semantic maps" in result.stdout, result.stderr
    assert_one_line_error(run_python(*command, tmp_path, tmp_path / "out"), "No such file")
    (tmp_path / "bad.json").write_text('{"annotations": [{"file_name": 3}]}')
    result = run_python("tools/prepare_panoptic.py", tmp_path / "bad.json", tmp_path, tmp_path / "out")
    assert_one_line_error(result, "bad.json is not COCO's panoptic format")


def test_panoptic_annotations_of_instances_hold_every_visible_object(coco_root, tmp_path):
    instances = coco_root / "coco/annotations/instances_val2017.json"
    panoptic_of_instances(instances, tmp_path / "p.json", tmp_path / "p")
    truth = json.loads(instances.read_text())
    content = json.loads((tmp_path / "p.json").read_text())
    assert len(content["annotations"]) == len(truth["images"]) == 50
    for annotation in content["annotations"]:
        ids = read_segment_ids(tmp_path / "p" / annotation["file_name"])
        assert {s["id"] for s in annotation["segments_info"]} == {*np.unique(ids).tolist()}
        objects = [a for a in truth["annotations"] if a["image_id"] == annotation["image_id"]]
        things = [s for s in annotation["segments_info"] if s["id"] != 1]
        assert len(objects) * 0.8 <= len(things) <= len(objects)
        # Those that nothing covers have the area of their annotation.
        last = objects[-1] if objects else None
        if last and not last["iscrowd"]:
            assert (ids == len(objects) + 1).sum() == pytest.approx(last["area"], rel=0.25, abs=60)
