"""The page that shows an evaluation: its figures, and that it needs nothing but itself."""

import json
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from conftest import assert_one_line_error

from resnest_d2 import UserError
from resnest_d2.evaluation.coco import average_precisions, evaluate_coco
from resnest_d2.evaluation.report import load_evaluation, write_report
from resnest_d2.evaluation.report.measure import measure, rank_pictures

METRICS = [
    {"iteration": 19, "total_loss": 2.0, "loss_cls": 1.0, "loss_mask": 1.0, "lr": 0.01, "bbox/AP": 10.0},
    {"iteration": 39, "total_loss": 1.5, "loss_cls": 0.8, "loss_mask": 0.7, "lr": 0.02, "bbox/AP": 20.0},
]


@pytest.fixture(scope="module")
def folder(coco_root, tmp_path_factory):
    """An evaluation of val2017's images: the truth, some of it moved, renamed, doubled, invented or missing."""
    root = tmp_path_factory.mktemp("run")
    file = coco_root / "coco/annotations/instances_val2017.json"
    truth = json.loads(file.read_text())
    rng = np.random.default_rng(0)
    results = []
    for i, a in enumerate(a for a in truth["annotations"] if not a["iscrowd"]):
        x, y, w, h = a["bbox"]
        score = float(rng.uniform(0.3, 1))
        kind = i % 8
        if kind == 0:
            continue
        box = [x + 0.4 * w, y, w, h] if kind == 1 else a["bbox"]
        category = (a["category_id"] % 80) + 1 if kind == 2 else a["category_id"]
        result = {"image_id": a["image_id"], "category_id": category, "bbox": box, "score": score}
        results += [result] * (2 if kind == 3 else 1)
        if kind == 4:
            results.append({**result, "bbox": [0, 0, 5, 5]})
    (root / "inference").mkdir()
    (root / "inference/coco_instances_results.json").write_text(json.dumps(results))
    (root / "metrics.json").write_text("\n".join(map(json.dumps, METRICS)))
    run = {
        "results": {}, "date": "2026-01-01T00:00:00", "gpu": None, "commit": None, "versions": {"torch": "2"},
        "datasets": [{"name": "coco_2017_val", "json_file": str(file), "image_root": str(coco_root / "coco/val2017")}],
        "command": "train_net.py --config-file configs/faster_resnest50.yaml",
    }  # fmt: skip
    (root / "results.json").write_text(json.dumps(run))
    return root


def test_figures_are_those_of_the_evaluation(folder, capsys):
    evaluation = load_evaluation(folder)
    task = measure(evaluation, "bbox")
    coco_eval = evaluate_coco(evaluation.truth, evaluation.results, "bbox")
    assert list(task.summary.values()) == pytest.approx([100 * s for s in coco_eval.stats], abs=1e-12)
    by_name = {c["name"]: c for c in task.categories}
    per_category = average_precisions(coco_eval).mean(axis=0)
    assert [c["AP"] for c in task.categories] == pytest.approx([*per_category], abs=1e-12, nan_ok=True)
    people = [a for a in evaluation.truth["annotations"] if a["category_id"] == 1 and not a["iscrowd"]]
    assert by_name["person"]["objects"] == len(people)
    # The mean of the precision over recalls is what AP50 is.
    assert task.curves["IoU 0.50"].mean() == pytest.approx(task.summary["AP50"], abs=1e-9)
    assert task.published == 42.33
    assert len(task.right) + len(task.wrong) <= len(evaluation.results)
    assert sum(row["objects"] for row in task.sizes) == sum(c["objects"] for c in task.categories)


def test_a_mistake_of_each_kind_is_counted_as_what_it_is(folder):
    errors = measure(load_evaluation(folder), "bbox").errors
    count = {row["label"]: row["count"] for row in errors["types"]}
    assert list(count) == ["classification", "localisation", "both", "duplicate", "background", "missed"]
    objects = sum(not a["iscrowd"] for a in load_evaluation(folder).truth["annotations"])
    for kind in ("classification", "localisation", "duplicate", "background", "missed"):
        # One object in eight; some land on a neighbour or a crowd, and count as another kind.
        assert objects / 8 * 0.6 <= count[kind] <= objects / 8 * 1.4, (kind, count)


def test_images_are_ranked_by_what_was_found_on_them(folder):
    ranked = rank_pictures(load_evaluation(folder), "bbox")
    assert [p.f1 for p in ranked] == sorted((p.f1 for p in ranked), reverse=True)
    for p in ranked:
        assert len(p.right) == len(p.found)
        denominator = 2 * len(p.right) + len(p.wrong) + len(p.missed)
        assert p.f1 == pytest.approx(2 * len(p.right) / denominator)


class Page(HTMLParser):
    def __init__(self, text):
        super().__init__()
        self.tags, self.open, self.links = [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.links += [v for k, v in attrs if k in ("src", "href", "xlink:href")]
        if tag not in ("meta", "img", "br", "link", "input"):
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.links += [v for k, v in attrs if k in ("src", "href", "xlink:href")]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_page_is_well_formed_and_needs_nothing_else(folder, tmp_path):
    write_report(load_evaluation(folder), tmp_path / "report.html", num_pictures=2)
    text = (tmp_path / "report.html").read_text()
    page = Page(text)
    assert page.open == []
    assert all(link.startswith(("#", "data:image/jpeg;base64,")) for link in page.links), page.links
    assert not re.search(r"@import|url\((?!#)|<script src|<link", text)
    assert page.tags.count("img") == 2 * 4  # the best and the worst two, predictions and truth
    assert page.tags.count("svg") == 6 + 4  # of boxes; of training: AP, two of losses, learning rate
    for text_of in ("faster_resnest50", "42.33", "person", "Kinds of error (TIDE)", "no difference is given"):
        assert text_of in text


def test_tool_takes_detections_of_another_program(fixtures, run_python, tmp_path):
    """cocoapi's own masks, without boxes, without a record of the run, without the images."""
    truth = fixtures / "coco_eval/instances_val2014_100.json"
    results = (fixtures / "coco_eval/instances_val2014_fakesegm100_results.json").read_text()
    (tmp_path / "coco_instances_results.json").write_text(results)
    result = run_python("tools/report.py", tmp_path, "--annotations", truth)
    assert result.returncode == 0, result.stderr
    text = (tmp_path / "report.html").read_text()
    assert "<b>32.0</b>" in text and "<b>56.2</b>" in text  # the known answers, rounded
    assert '<h2 id="segm">' in text and '<h2 id="bbox">' not in text and "<img" not in text


def test_masks_without_boxes_are_drawn(fixtures, tmp_path):
    from PIL import Image

    truth = fixtures / "coco_eval/instances_val2014_100.json"
    results = (fixtures / "coco_eval/instances_val2014_fakesegm100_results.json").read_text()
    (tmp_path / "coco_instances_results.json").write_text(results)
    evaluation = load_evaluation(tmp_path, truth, tmp_path)
    for picture in rank_pictures(evaluation, "segm"):
        size = (picture.image["width"], picture.image["height"])
        Image.new("RGB", size, "white").save(tmp_path / picture.image["file_name"])
    write_report(evaluation, tmp_path / "report.html", num_pictures=1)
    assert (tmp_path / "report.html").read_text().count("<img") == 4


def test_a_model_that_finds_nothing_has_a_page(folder, coco_root, tmp_path):
    (tmp_path / "coco_instances_results.json").write_text("[]")
    truth = coco_root / "coco/annotations/instances_val2017.json"
    write_report(load_evaluation(tmp_path, truth), tmp_path / "report.html", num_pictures=1)
    assert "<b>0.0</b><span>AP</span>" in (tmp_path / "report.html").read_text()


def test_without_tide_the_page_says_how_to_get_it(folder, tmp_path, monkeypatch):
    import importlib.util

    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *a: None if name == "tidecv" else find(name, *a)
    )
    write_report(load_evaluation(folder), tmp_path / "report.html", num_pictures=0)
    text = (tmp_path / "report.html").read_text()
    assert "pip install --no-deps tidecv" in text and "Kinds of error (TIDE)" not in text


def test_what_cannot_be_reported_is_said_in_one_line(folder, run_python, tmp_path):
    with pytest.raises(UserError, match=r"cannot write /dev/null/report\.html"):
        write_report(load_evaluation(folder), Path("/dev/null/report.html"), num_pictures=0)
    assert_one_line_error(
        run_python("tools/report.py", tmp_path), "holds no inference/coco_instances_results.json"
    )
    (tmp_path / "coco_instances_results.json").write_text("[]")
    with pytest.raises(UserError, match="does not tell its dataset; give --annotations and --images"):
        load_evaluation(tmp_path)
    with pytest.raises(UserError, match=r"cannot read .*none\.json"):
        load_evaluation(folder, tmp_path / "none.json")
    (tmp_path / "coco_instances_results.json").write_text("[")
    with pytest.raises(UserError, match=r"cannot read .*coco_instances_results"):
        load_evaluation(tmp_path, tmp_path / "none.json")
