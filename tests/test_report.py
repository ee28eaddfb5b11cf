"""The page that shows an evaluation: its figures, and that it needs nothing but itself."""

import base64
import html
import io
import json
import os
import re
import resource
import sys
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pycocotools.mask
import pytest
from PIL import Image
from support import assert_one_line_error

from resnest_d2 import UserError
from resnest_d2.evaluation.coco import average_precisions, evaluate_coco
from resnest_d2.evaluation.report import gallery, load_evaluation, write_report
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
    ids, results = [category["id"] for category in truth["categories"]], []
    for i, a in enumerate(a for a in truth["annotations"] if not a["iscrowd"]):
        x, y, w, h = a["bbox"]
        score = float(rng.uniform(0.3, 1))
        kind = i % 8
        if kind == 0:
            continue
        box = [x + 0.4 * w, y, w, h] if kind == 1 else a["bbox"]
        category = ids[ids.index(a["category_id"]) - 1] if kind == 2 else a["category_id"]
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
        run_python("tools/report.py", tmp_path), "has no inference/coco_instances_results.json, inference/"
    )
    (tmp_path / "coco_instances_results.json").write_text("[]")
    with pytest.raises(UserError, match="does not record its dataset; give --annotations and --images"):
        load_evaluation(tmp_path)
    with pytest.raises(UserError, match=r"cannot read --annotations .*none\.json"):
        load_evaluation(folder, tmp_path / "none.json")
    with pytest.raises(UserError, match=r"--images .*none is not a folder"):
        load_evaluation(folder, images=tmp_path / "none")
    with pytest.raises(UserError, match=r"--row mask_resnest5: .*did you mean mask_resnest50"):
        load_evaluation(folder, row="mask_resnest5")


def rle(counts=None):
    mask = np.zeros((48, 64), np.uint8, order="F")
    mask[4:40, 4:40] = 1
    return {"size": [48, 64], "counts": counts or pycocotools.mask.encode(mask)["counts"].decode()}


POINTS = [v for i in range(17) for v in (5 + i, 6 + i, 2)]


class Small:
    """Two images, an object and a detection on each. Its parts may be changed before it is read."""

    def __init__(self, folder):
        self.folder = folder
        box = {"bbox": [4, 4, 36, 36], "area": 1296, "iscrowd": 0, "keypoints": POINTS, "num_keypoints": 17}
        shapes = ([[4, 4, 40, 4, 40, 40, 4, 40]], rle())
        self.truth = {
            "images": [{"id": i, "file_name": f"{i}.png", "width": 64, "height": 48} for i in (1, 2)],
            "annotations": [
                {"id": i, "image_id": i, "category_id": i, "segmentation": shapes[i - 1], **box}
                for i in (1, 2)
            ],
            "categories": [{"id": 1, "name": "a"}, {"id": 2, "name": "b"}],
        }
        self.detections = [
            {
                "image_id": i,
                "category_id": i,
                "score": 0.9,
                "bbox": [4, 4, 36, 36],
                "segmentation": rle(),
                "keypoints": POINTS,
            }
            for i in (1, 2)
        ]
        self.run = {
            "results": {},
            "datasets": [{"name": "own", "json_file": str(folder / "truth.json"), "image_root": str(folder)}],
        }
        self.metrics = "".join(json.dumps(line) + "\n" for line in METRICS)

    def read(self, **arguments):
        """Write the files, and load them."""
        (self.folder / "inference").mkdir(exist_ok=True)
        (self.folder / "truth.json").write_text(json.dumps(self.truth))
        (self.folder / "inference/coco_instances_results.json").write_text(json.dumps(self.detections))
        (self.folder / "results.json").write_text(json.dumps(self.run))
        (self.folder / "metrics.json").write_text(self.metrics)
        return load_evaluation(self.folder, **arguments)

    def page(self, pictures=0):
        """Of the boxes alone, since charts take their time."""
        for entry in (*self.truth["annotations"], *self.detections):
            for field in ("segmentation", "keypoints", "num_keypoints"):
                entry.pop(field, None)
        evaluation = self.read()
        write_report(evaluation, self.folder / "report.html", pictures)
        return (self.folder / "report.html").read_text()


@pytest.fixture
def small(tmp_path):
    return Small(tmp_path)


def test_masks_boxes_and_keypoints_of_one_evaluation(small):
    small.truth["annotations"][1]["segmentation"] = {
        "size": [48, 64],
        "counts": [196, *[36, 12] * 35, 36, 1160],
    }
    evaluation = small.read()
    assert evaluation.tasks == ["bbox", "segm", "keypoints"]
    # Uncompressed and compressed are the same mask.
    assert evaluation.truth["annotations"][1]["segmentation"] == evaluation.results[1]["segmentation"]
    for kind in evaluation.tasks:
        assert measure(evaluation, kind).summary["AP"] == pytest.approx(100)


@pytest.mark.parametrize(
    "field, values",
    [
        ("image_id", (None, "1", 3, True, 10**30)),
        ("category_id", (None, 3, [1])),
        ("score", (None, "0.9", float("nan"), float("inf"), True, [0.5])),
        ("bbox", (None, [], [1, 2, 3], "1234", [1, 2, float("nan"), 4], [1, 2, -3, 4], [[1, 2, 3, 4]])),
        ("segmentation", (None, {}, "x", [[1, 2, 3, 4, 5, 6]], rle("###"), rle("o" * 9), rle([5]), rle([-1, 3073]),
                          {"size": [64, 48], "counts": rle()["counts"]}, rle(rle()["counts"][:-2]))),
        ("keypoints", (None, [1, 2, 3], "x", [float("nan")] * 51, POINTS[:-1])),
    ],
)  # fmt: skip
def test_a_detection_that_cannot_be_evaluated_is_named(small, field, values):
    for value in values:
        small.detections[1][field] = value
        with pytest.raises(
            UserError, match=rf"coco_instances_results\.json: detection 1: {field} must be .*, got "
        ):
            small.read()
    del small.detections[1][field]
    with pytest.raises(UserError, match=rf"detection 1: {field} must be .*, got None"):
        small.read()


@pytest.mark.parametrize(
    "name, field, values",
    [
        ("annotations", "image_id", ("1", 3)),
        ("annotations", "category_id", (3, "x")),
        ("annotations", "bbox", ([1, 2, 3], [1, 2, float("nan"), 4])),
        ("annotations", "iscrowd", (7, "x")),
        # As far as that, COCO's rasteriser would need a terabyte.
        (
            "annotations",
            "segmentation",
            ("x", [[1e12] * 6], [["a"] * 6], rle([5]), {"size": [1, 1], "counts": [1]}),
        ),
        ("annotations", "keypoints", ([1, 2], ["a"] * 51)),
        ("images", "id", (None, "x", 1)),
        ("images", "file_name", (None, 3)),
        ("images", "width", (None, 0, "x", 10**9)),
        ("categories", "id", ("x", 1)),
        ("categories", "name", (None, 3)),
    ],
)
def test_an_entry_of_the_ground_truth_that_cannot_be_evaluated_is_named(small, name, field, values):
    for value in values:
        small.truth[name][1][field] = value
        with pytest.raises(UserError, match=r"truth\.json"):
            small.read()


@pytest.mark.parametrize(
    "field, values",
    [
        ("results", (3, [], {"bbox": 3}, {"bbox": {"AP": "x"}}, {"segm": {"AP": float("inf")}})),
        ("command", (3, ["x"], 'train_net.py "')),
        ("datasets", (3, {}, ["x"], [{}], [{"name": "x", "json_file": 3}])),
        ("gpu", (3, [])),
        ("date", (3, {})),
        ("versions", (3, {"torch": 2})),
        ("wall_seconds", ("x", float("nan"), True)),
    ],
)
def test_a_field_of_results_of_a_wrong_type_is_named(small, field, values):
    for value in values:
        small.run[field] = value
        with pytest.raises(UserError, match=rf"results\.json: {field}.* must be .*, got "):
            small.read()


def test_results_of_another_kind_and_of_an_evaluator_of_ones_own(small):
    small.run["results"] = {"bbox": {"AP": None}, "mine": {"confusion": [[1, 2], [3, 4]]}, "note": "x"}
    assert small.read().run["results"]["note"] == "x"
    small.run["datasets"] = []
    with pytest.raises(UserError, match="does not record its dataset"):
        small.read()
    del small.run["results"]
    with pytest.raises(UserError, match=r"results\.json is not a results\.json of this package"):
        small.read()


def test_lines_of_metrics_that_a_kill_has_cut_are_left_out(small, caplog):
    line = json.dumps({"iteration": 59, "total_loss": float("nan"), "lr": 0.03, "note": "x"}) + "\n"
    small.metrics = small.metrics[:30] + small.metrics + line + line[:20]
    metrics = small.read().metrics
    # The first of the good ones was written to the end of the one that was cut.
    assert metrics == [METRICS[1], {"iteration": 59, "lr": 0.03}]
    assert "skipping 2 damaged lines, the first is line 1" in caplog.text
    small.metrics = "a,b\n1,2\n"
    with pytest.raises(UserError, match=r"metrics\.json has no metrics"):
        small.read()


def test_charts_of_a_long_training_are_no_larger_than_those_of_a_short_one():
    from resnest_d2.evaluation.report import charts

    losses = np.random.default_rng(0).uniform(0, 1, 30_000).tolist()
    metrics = [{"iteration": i, "total_loss": loss} for i, loss in enumerate(losses)]
    (short,), (long,) = charts.training(metrics[:3000]), charts.training(metrics)
    assert len(long["svg"]) < 1.1 * len(short["svg"])


def test_an_annotation_without_what_others_have_is_named(small):
    del small.truth["annotations"][1]["segmentation"]
    with pytest.raises(UserError, match="annotation 2 has no segmentation, but others have one"):
        small.read()
    del small.truth["annotations"][0]["segmentation"]
    assert small.read().tasks == ["bbox", "keypoints"]
    small.detections = [
        {k: d[k] for k in ("image_id", "category_id", "score", "segmentation")} for d in small.detections
    ]
    with pytest.raises(UserError, match="nothing to compare with the detections' segmentation"):
        small.read()


@pytest.mark.parametrize("field", ["segmentation", "keypoints"])
def test_detections_without_boxes_are_drawn(small, field):
    _picture("1.png")(small.folder)
    for detection in small.detections:
        for other in {"bbox", "segmentation", "keypoints"} - {field}:
            del detection[other]
    evaluation = small.read()
    (kind,) = evaluation.tasks
    picture = next(p for p in rank_pictures(evaluation, kind) if p.image["id"] == 1)
    drawn = gallery.draw(evaluation, picture, kind)
    assert drawn["measured"].startswith("F1 100 % · 1 right") and drawn["predicted"].startswith(
        "data:image/jpeg;base64,"
    )


@pytest.mark.parametrize("emptied", ["annotations", "detections"])
def test_nothing_to_find_or_nothing_found_has_a_page(small, emptied):
    if emptied == "detections":
        small.detections = []
    else:
        small.truth["annotations"] = []
    assert small.page(1).endswith("</html>")


def test_keypoints_of_another_kind_are_left_out(small, caplog):
    for entry in (*small.truth["annotations"], *small.detections):
        entry["keypoints"] = POINTS[:9]
    assert small.read().tasks == ["bbox", "segm"]
    assert "keypoints are left out" in caplog.text


def test_fields_that_the_backends_would_take_for_something_else_are_dropped(small):
    for detection in small.detections:
        detection.update(caption="a cat", id="x", area="x")
    for annotation in small.truth["annotations"]:
        annotation["ignore"] = "x"
    evaluation = small.read()
    assert measure(evaluation, "bbox").summary["AP"] == pytest.approx(100)


NAMES = [
    "$x_1$",
    "$\\frac$",
    "two\nlines\x00",
    "_background",
    "",
    "<script>alert(1)</script>",
    "y" * 5000,
    "שלום",
    "😀",
    "\ud800",
]


def test_names_of_classes_are_shown_as_they_are_and_escaped(small):
    """In each chart of classes six of them, in both pictures all that are on the image."""
    small.truth["categories"] = [
        {"id": i, "name": name} for i, name in enumerate([*NAMES, "twice", "twice"], 1)
    ]
    template, detection = small.truth["annotations"][0], small.detections[0]
    small.truth["annotations"], small.detections = [], []
    for category in small.truth["categories"]:
        i = category["id"]
        small.truth["annotations"].append({**template, "id": i, "category_id": i})
        small.detections.append({**detection, "category_id": i})
    Image.new("RGB", (64, 48)).save(small.folder / "1.png")
    text = small.page(1)
    page = Page(text)
    assert (
        page.open == [] and page.tags.count("script") == 1 and "alert(1)</" not in text.split("<script>")[0]
    )
    cells = [html.unescape(cell) for cell in re.findall(r"<tr><td><bdi>(.*?)</bdi>", text)]
    assert cells[:6] == [
        "$x_1$",
        "$\\frac$",
        "two lines",
        "_background",
        "(no name)",
        "<script>alert(1)</script>",
    ]
    assert cells[7:10] == ["שלום", "😀", "?"] and cells[10:12] == ["twice (11)", "twice (12)"]
    assert len(cells[6]) == 100 and cells[6].endswith("…")
    chart = text[text.index("By class, at IoU 0.50") :]
    chart = chart[: chart.index("</figure>")]
    legend = [html.unescape(entry).strip() for entry in re.findall(r"<text[^>]*>([^<]*)</text>", chart)]
    for name in cells[:5]:
        assert name in legend, legend
    assert page.tags.count("img") == 2


def _picture(name, size=(64, 48), mode="RGB", **options):
    def write(folder):
        Image.new(mode, size, 9).save(folder / name, **options)

    return write


def _turned(folder):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (48, 64)).save(folder / "1.jpg", exif=exif)


@pytest.mark.parametrize(
    "name, size, write, problem",
    [
        ("1.png", (1, 500), _picture("1.png", (1, 500)), None),
        ("1.png", (20000, 10), _picture("1.png", (20000, 10)), None),
        ("1.jpg", (64, 48), _picture("1.jpg", mode="CMYK"), None),
        ("1.png", (64, 48), _picture("1.png", mode="I;16"), None),
        ("1.png", (64, 48), _picture("1.png", mode="LA"), None),
        ("1.jpg", (64, 48), _turned, None),
        ("1.png", (64, 48), _picture("1.png", (32, 24)), "has 32x24 pixels, but its annotations are for 64x48"),
        ("1.png", (64, 48), lambda folder: (folder / "1.png").write_bytes(b"\x89PNG" + bytes(50)), "cannot be decoded"),
        ("1.png", (64, 48), lambda folder: os.mkfifo(folder / "1.png"), "is a FIFO"),
        ("1.png", (64, 48), lambda folder: (folder / "1.png").mkdir(), "is a folder"),
        ("1.png", (64, 48), lambda folder: None, "No such file"),
        ("a\0b.png", (64, 48), lambda folder: None, "does not stay inside"),
        ("<b>&'\".png", (64, 48), lambda folder: None, "No such file"),
    ],
)  # fmt: skip
def test_images_of_all_kinds_are_shown_or_said(small, name, size, write, problem):
    width, height = size
    small.truth["images"] = [{"id": 1, "file_name": name, "width": width, "height": height}]
    box = {"image_id": 1, "category_id": 1, "bbox": [0, 0, width, height]}
    small.truth["annotations"] = [{"id": 1, "area": width * height, "iscrowd": 0, **box}]
    small.detections = [{**box, "score": 0.9}]
    write(small.folder)
    evaluation = small.read()
    picture = gallery.draw(evaluation, rank_pictures(evaluation, "bbox")[0], "bbox")
    if problem:
        assert problem in picture["problem"] and "\n" not in picture["problem"]
        return
    assert "problem" not in picture
    for url in (picture["predicted"], picture["truth"]):
        shown = Image.open(io.BytesIO(base64.b64decode(url.split(",")[1])))
        assert shown.width == 560 and 48 <= shown.height <= 840


def test_a_page_says_which_images_it_does_not_show(small):
    _picture("1.png")(small.folder)
    small.truth["images"][1]["file_name"] = "<b>none.png"
    text = small.page(2)
    assert text.count("<img") == 2 and text.count("Not shown: <bdi>&lt;b&gt;none.png</bdi>: ") == 1


def test_pictures_are_of_the_folder_alone(small):
    """What lies elsewhere may be private. A link that somebody put into the folder is what they meant."""
    for entry in (*small.truth["annotations"], *small.detections):
        del entry["keypoints"]
    (small.folder / "images").mkdir()
    small.run["datasets"][0]["image_root"] = str(small.folder / "images")
    _picture("1.png")(small.folder)
    (small.folder / "images/link.png").symlink_to(small.folder / "1.png")
    for name, shown in (("../1.png", False), (str(small.folder / "1.png"), False), ("link.png", True)):
        small.truth["images"][0]["file_name"] = name
        evaluation = small.read()
        picture = next(p for p in rank_pictures(evaluation, "bbox") if p.image["id"] == 1)
        drawn = gallery.draw(evaluation, picture, "bbox")
        assert ("predicted" in drawn) == shown == ("does not stay inside" not in drawn.get("problem", ""))


def test_numbers_of_pictures_out_of_range_are_named(small):
    evaluation = small.read()
    for number in (-1, 201, 10**9):
        with pytest.raises(UserError, match=r"--num-pictures must be >= 0 and <= 200, got "):
            write_report(evaluation, small.folder / "report.html", number)


@pytest.fixture
def small_disk():
    """No file can grow beyond so many bytes; Python ignores the signal that comes with it."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    yield lambda size: resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def test_a_page_that_does_not_fit_leaves_the_one_before_and_nothing_else(small, small_disk):
    evaluation = small.read()
    evaluation.tasks, evaluation.images = [], None  # all but its head takes time
    (small.folder / "report.html").write_text("<!DOCTYPE html>before")
    there = sorted(os.listdir(small.folder))
    small_disk(2000)
    with pytest.raises(UserError, match=r"cannot write .*report\.html \(File too large\); make room"):
        write_report(evaluation, small.folder / "report.html", 0)
    assert (small.folder / "report.html").read_text() == "<!DOCTYPE html>before" and sorted(
        os.listdir(small.folder)
    ) == there


def test_a_page_replaces_nothing_but_a_page(small):
    """A link in a folder of somebody else's may lead to any file."""
    small.page()
    small.page()
    os.replace(small.folder / "report.html", small.folder / "other.html")
    (small.folder / "report.html").symlink_to("truth.json")
    before = (small.folder / "truth.json").read_text()
    with pytest.raises(
        UserError, match=r"truth\.json exists and is not an HTML page; name another file with --output"
    ):
        small.page()
    assert (small.folder / "truth.json").read_text() == before
    os.remove(small.folder / "report.html")
    (small.folder / "report.html").symlink_to("other.html")
    assert small.page().endswith("</html>") and (small.folder / "report.html").is_symlink()


def test_without_jinja2_the_line_says_how_to_get_it(small, monkeypatch):
    monkeypatch.setitem(sys.modules, "jinja2", None)
    with pytest.raises(UserError, match=r"a report needs jinja2, which .*: pip install jinja2"):
        write_report(small.read(), small.folder / "report.html", 0)


def test_without_matplotlib_the_line_says_how_to_get_it(small, monkeypatch):
    for module in [m for m in sys.modules if m.startswith("resnest_d2.evaluation.report.")]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.delattr("resnest_d2.evaluation.report.charts", raising=False)
    evaluation = small.read()
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(UserError, match=r"a report needs matplotlib, which .*: pip install matplotlib"):
        write_report(evaluation, small.folder / "report.html", 0)


def test_a_tide_that_cannot_be_imported_is_done_without(small, tmp_path_factory, monkeypatch, caplog):
    broken = tmp_path_factory.mktemp("site")
    (broken / "tidecv.py").write_text("import a_package_that_is_missing")
    monkeypatch.syspath_prepend(broken)
    monkeypatch.delitem(sys.modules, "tidecv", raising=False)
    assert measure(small.read(), "bbox").errors is None
    assert "kinds of error are left out: tidecv cannot be imported (No module named" in caplog.text
