"""Panoptic quality by COCO's rules, and the files that panoptic recipes are trained on."""

import json
import os

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from PIL import Image
from support import assert_one_line_error
from test_coco_check import files_of_at_most

from resnest_d2 import UserError, model_zoo
from resnest_d2.data import check_registered
from resnest_d2.data.panoptic import (
    panoptic_of_instances,
    read_panoptic,
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


def register(name, panoptic_json, panoptic_root):
    DatasetCatalog.register(name, lambda: [])
    MetadataCatalog.get(name).set(
        panoptic_json=str(panoptic_json),
        panoptic_root=str(panoptic_root),
        thing_dataset_id_to_contiguous_id=META.thing_dataset_id_to_contiguous_id,
        stuff_dataset_id_to_contiguous_id=META.stuff_dataset_id_to_contiguous_id,
    )


@pytest.fixture
def registered(coco_sample):
    """A dataset of the two images."""
    _, _, folder = coco_sample
    name = "test_panoptic"
    register(name, folder / "panoptic_examples.json", folder / "panoptic_examples")
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


def write_small(folder, change=lambda content: None, ids=None):
    """A panoptic file of one image, 4x3 pixels with a person and a wall, and its PNG in segments/."""
    (folder / "segments").mkdir(exist_ok=True)
    ids = np.array([[1, 1, 2, 2]] * 3) if ids is None else ids
    write_segment_ids(ids, folder / "segments/7.png")
    content = {
        "annotations": [
            {
                "image_id": 7,
                "file_name": "7.png",
                "segments_info": [{"id": 1, "category_id": 1}, {"id": 2, "category_id": 199}],
            }
        ],
        "categories": [{"id": 1, "name": "person", "isthing": 1}, {"id": 199, "name": "wall", "isthing": 0}],
    }
    change(content)
    (folder / "p.json").write_text(json.dumps(content))
    return folder / "p.json", folder / "segments"


def set_in_annotation(**values):
    return lambda content: content["annotations"][0].update(values)


MALFORMED = [
    (lambda c: c.pop("annotations"), "it has no annotations"),
    (lambda c: c.update(annotations=3), "'annotations' is not a list"),
    (lambda c: c.pop("categories"), "it has no categories"),
    (lambda c: c["annotations"].append(3), "annotation number 1 has no image_id"),
    (
        lambda c: c["annotations"].append(dict(c["annotations"][0])),
        "image 7 or its file '7.png' is listed twice",
    ),
    (
        lambda c: c["annotations"].append({**c["annotations"][0], "image_id": 8}),
        "its file '7.png' is listed twice",
    ),
    (set_in_annotation(image_id="7"), "annotation number 0 has no image_id that is a whole number"),
    (set_in_annotation(file_name=3), "the annotation of image 7 names no file"),
    (set_in_annotation(segments_info=None), "image 7 has no list segments_info"),
    (set_in_annotation(segments_info=[3]), "a segment of image 7 has no id"),
    (set_in_annotation(segments_info=[{"id": 1.5, "category_id": 1}]), "a segment of image 7 has no id"),
    (set_in_annotation(segments_info=[{"id": 1}]), "segment 1 of image 7 is of no known category"),
    (set_in_annotation(segments_info=[{"id": 1, "category_id": [1]}]), "segment 1 of image 7 is of no known"),
    (lambda c: c["categories"].append("x"), "a category is x, without a whole number as its id"),
    (lambda c: c["categories"][0].pop("isthing"), "category 1 has no isthing of 0 or 1"),
]


@pytest.mark.parametrize("change, message", MALFORMED)
def test_malformed_panoptic_annotations_are_named(change, message, tmp_path):
    file, segments = write_small(tmp_path, change)
    for read in (read_panoptic, lambda file: write_semantic_maps(file, segments, tmp_path / "out")):
        with pytest.raises(UserError, match=rf"p\.json.*{message}"):
            read(file)
    assert not (tmp_path / "out").exists()


def test_deep_panoptic_annotations_are_refused(tmp_path):
    (tmp_path / "p.json").write_text('{"annotations": ' + "[" * 100_000)
    with pytest.raises(UserError, match=r"p\.json is nested more than 100 deep"):
        read_panoptic(tmp_path / "p.json")


@pytest.mark.parametrize("number, thing", [(300, 0), (1, 0), (199, 1)])
def test_categories_that_are_not_cocos_are_named(number, thing, tmp_path):
    file, segments = write_small(tmp_path, lambda c: c["categories"].append({"id": number, "isthing": thing}))
    with pytest.raises(UserError, match=f"category {number} with isthing {thing} is not COCO's"):
        write_semantic_maps(file, segments, tmp_path / "out")


def _segments(content):
    return content["annotations"][0]["segments_info"]


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda c: _segments(c)[0].update(id=2**24), "segment 16777216 .* no RGB image can hold"),
        (lambda c: _segments(c)[0].update(id=0), "segment 0 .* no RGB image can hold"),
        (lambda c: _segments(c).append(dict(_segments(c)[0])), "segment 1 of image 7 is listed twice"),
        (lambda c: _segments(c).pop(), r"7\.png does not match .*: in image 7, segment 2 is not listed"),
        (
            lambda c: _segments(c).append({"id": 3, "category_id": 1}),
            r"7\.png does not match .*: in image 7, segment 3 is listed, but has no pixels$",
        ),
        (
            lambda c: c.update(images=[{"id": 7, "height": 4, "width": 3}]),
            r"7\.png has 4x3 pixels, but its image 7 has 3x4",
        ),
    ],
)
def test_segments_that_are_not_those_of_their_image_are_refused(change, message, tmp_path):
    file, segments = write_small(tmp_path, change)
    with pytest.raises(UserError, match=message):
        write_semantic_maps(file, segments, tmp_path / "out")
    assert not [*tmp_path.glob("out/*")]


@pytest.mark.parametrize("place", [0, 49])
def test_a_start_looks_at_some_of_the_images_that_are_evaluated(place, small_evaluator, tmp_path):
    """At the first, the last and some between them."""

    def repeat(content):
        first = content["annotations"][0]
        content["annotations"] = [
            {**first, "image_id": i, "file_name": "./" * i + "7.png"} for i in range(50)
        ]
        listed = [*first["segments_info"], {"id": 3, "category_id": 1}]
        content["annotations"][place]["segments_info"] = listed

    write_small(tmp_path, repeat)
    MetadataCatalog.get("test_panoptic_small").evaluator_type = "coco_panoptic_seg"
    cfg = model_zoo.get_config("panoptic_resnest200_3x")
    assert check_registered(cfg, ["test_panoptic_small"], []) == []  # in training they are not read
    with pytest.raises(UserError, match=rf"in image {place}, segment 3 is listed, but has no pixels"):
        check_registered(cfg, [], ["test_panoptic_small"])


def test_an_image_without_any_of_its_segments_is_refused(tmp_path):
    file, segments = write_small(tmp_path, ids=np.zeros((3, 4), int))
    with pytest.raises(UserError, match=r"in image 7, segment 1 is listed, but has no pixels, like 1 more"):
        write_semantic_maps(file, segments, tmp_path / "out")


def damage(path, kind):
    if kind == "missing":
        path.unlink()
    elif kind == "cut":
        path.write_bytes(path.read_bytes()[:40])
    elif kind == "text":
        path.write_text("no image")
    elif kind == "empty":
        path.write_bytes(b"")
    elif kind == "folder":
        path.unlink()
        path.mkdir()
    elif kind == "FIFO":
        path.unlink()
        os.mkfifo(path)
    elif kind == "grey":
        Image.new("L", (4, 3), 1).save(path)
    elif kind == "palette":
        Image.new("RGB", (4, 3)).convert("P").save(path)
    elif kind == "JPEG":
        Image.open(path).save(path, "JPEG")


DAMAGED = {
    "missing": "No such file", "cut": "is not an image or is", "text": "is not an image", "empty": "is not an image",
    "folder": "is a folder", "FIFO": "is a FIFO", "grey": "of mode L, but images of segments are RGB", "palette": "of mode P",
    "JPEG": "is JPEG, but images of segments must be PNG",
}  # fmt: skip


@pytest.fixture
def small_evaluator(tmp_path):
    """small_evaluator(): an evaluator of what write_small() wrote, and a prediction of its image."""
    name = "test_panoptic_small"
    register(name, tmp_path / "p.json", tmp_path / "segments")

    def process():
        evaluator = PanopticEvaluator(name)
        output = as_output(np.array([[1, 1, 2, 2]] * 3), [{"id": 1, "category_id": 1}], {1: True})
        evaluator.process([{"image_id": 7}], [output])
        return evaluator.evaluate()

    yield process
    DatasetCatalog.remove(name)
    MetadataCatalog.remove(name)


@pytest.mark.parametrize("kind", DAMAGED)
def test_damaged_images_of_segments_are_named(kind, small_evaluator, tmp_path):
    file, segments = write_small(tmp_path)
    assert small_evaluator()["panoptic_seg"]["PQ_th"] == 100
    damage(segments / "7.png", kind)
    with pytest.raises(UserError, match=rf"7\.png.*{DAMAGED[kind]}"):
        write_semantic_maps(file, segments, tmp_path / "out")
    with pytest.raises(UserError, match=rf"7\.png.*{DAMAGED[kind]}"):
        small_evaluator()


@pytest.mark.parametrize(
    "ids, message",
    [
        (np.ones((4, 3)), r"7\.png has 3x4 pixels, but its image 7 has 4x3"),
        (np.array([[1, 1, 9, 9]] * 3), "segment 2 is listed, but has no pixels"),
        (np.array([[1, 2, 9, 9]] * 3), "segment 9 is not listed"),
    ],
)
def test_segments_of_another_image_are_named(ids, message, small_evaluator, tmp_path):
    write_small(tmp_path, ids=ids.astype(int))
    with pytest.raises(UserError, match=message):
        small_evaluator()


def test_semantic_maps_replace_nothing_they_are_made_of(tmp_path):
    file, segments = write_small(tmp_path)
    (tmp_path / "link").symlink_to("segments")
    (tmp_path / "out").mkdir()
    (tmp_path / "out/7.png").symlink_to("../segments/7.png")
    before = (segments / "7.png").read_bytes()
    for output in (segments, tmp_path / "link", tmp_path / "segments/../segments", tmp_path / "./segments/"):
        with pytest.raises(UserError, match="is the folder of the segments themselves"):
            write_semantic_maps(file, segments, output)
    with pytest.raises(UserError, match=r"the file name '7\.png' does not stay inside"):
        write_semantic_maps(file, segments, tmp_path / "out")
    assert (segments / "7.png").read_bytes() == before


@pytest.mark.parametrize("name", ["../7.png", "/{}/7.png", "a/../../7.png", "..", ".", "a\0.png"])
def test_semantic_maps_stay_in_their_folder(name, tmp_path):
    folder = tmp_path / "data"
    folder.mkdir()
    file, segments = write_small(folder, set_in_annotation(file_name=name.format(tmp_path)))
    write_segment_ids(np.ones((2, 2), int), tmp_path / "7.png")
    before = (tmp_path / "7.png").read_bytes()
    with pytest.raises(UserError, match=r"p\.json: the file name .* does not stay inside"):
        write_semantic_maps(file, segments, tmp_path / "out")
    assert (tmp_path / "7.png").read_bytes() == before
    assert not (tmp_path / "out").exists() or not list((tmp_path / "out").iterdir())


def test_semantic_maps_of_images_in_folders_lie_in_folders(tmp_path):
    file, segments = write_small(tmp_path, set_in_annotation(file_name="a/7.png"))
    (segments / "a").mkdir()
    (segments / "7.png").rename(segments / "a/7.png")
    write_semantic_maps(file, segments, tmp_path / "out")
    assert Image.open(tmp_path / "out/a/7.png").size == (4, 3)


def test_a_map_that_cannot_be_written_is_named_and_leaves_nothing(tmp_path):
    file, segments = write_small(tmp_path)
    (tmp_path / "out/7.png").mkdir(parents=True)
    with pytest.raises(UserError, match=r"7\.png: it is a folder"):
        write_semantic_maps(file, segments, tmp_path / "out")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["7.png"]
    (tmp_path / "out/7.png").rmdir()
    write_small(tmp_path, ids=np.random.default_rng(0).integers(0, 2, (200, 200)) + 1)
    with files_of_at_most(2000), pytest.raises(UserError, match=r"cannot write .*File too large"):
        write_semantic_maps(file, segments, tmp_path / "out")
    assert not list((tmp_path / "out").iterdir())
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"cannot write .*file"):
        write_semantic_maps(file, segments, tmp_path / "file")


def test_images_of_one_name_have_segments_of_their_own(tmp_path):
    images = [{"id": i, "file_name": f"{i}/x.jpg", "width": 4, "height": 3} for i in (1, 2)]
    annotations = [
        {
            "id": i,
            "image_id": i,
            "category_id": 1,
            "bbox": [0, 0, i, 3],
            "segmentation": [[0, 0, i, 0, i, 3, 0, 3]],
        }
        for i in (1, 2)
    ]
    content = {"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "person"}]}
    (tmp_path / "i.json").write_text(json.dumps(content))
    panoptic_of_instances(tmp_path / "i.json", tmp_path / "p.json", tmp_path / "p")
    for i, annotation in enumerate(read_panoptic(tmp_path / "p.json")["annotations"], 1):
        assert (read_segment_ids(tmp_path / "p" / annotation["file_name"]) == 2).sum() == 3 * i


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
