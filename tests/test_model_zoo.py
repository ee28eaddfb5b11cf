"""Configurations and weights by name."""

import os
import re
import sys

import forks
import pytest
import torch
from detectron2.utils.file_io import PathManager
from support import ROOT

from resnest_d2 import UserError, model_zoo
from resnest_d2.checkpoint import ResNeStHandler
from resnest_d2.model_zoo import __main__ as zoo
from resnest_d2.model_zoo.page import markdown
from resnest_d2.published import CLASSIFIERS, DETECTORS, MODELS, SEGMENTORS, TRAINED
from resnest_d2.published.backbones import BACKBONES, OFFICIAL_URL


def test_weight_records_equal_the_published_ones(facts):
    weights = facts("weights")
    assert weights["official"]["base_url"] == OFFICIAL_URL
    for name, published in weights["official"]["files"].items():
        record = BACKBONES[name]
        assert record.official == published["file"]
        assert (record.crop, record.top1) == (published.get("crop"), published.get("top1"))
    assert {n: r.hub for n, r in BACKBONES.items() if r.hub} == weights["timm"]["ids"]
    others = {file for record in BACKBONES.values() for file in record.others}
    baselines = {
        facts("segmentation")["weights"]["encoding"][name]["file"] for name in ("resnet50s", "resnet101s")
    }
    assert others == {*weights["mmdetection"]["files"], *weights["detectron2_legacy"]["files"], *baselines}


def test_every_resnest_configuration_starts_from_a_weight_that_is_known():
    for name in model_zoo.available():
        weights = model_zoo.get_config(name).MODEL.WEIGHTS
        assert not weights.startswith("resnest://") or PathManager.isfile(weights)


def test_trained_config_names_the_released_detector():
    assert model_zoo.get_checkpoint_url("cascade_resnest101.yaml") == "resnest://cascade_resnest101"
    cfg = model_zoo.get_config("cascade_resnest101", trained=True)
    assert cfg.MODEL.WEIGHTS == "resnest://cascade_resnest101"
    with pytest.raises(UserError, match="no trained model has been published for quickstart"):
        model_zoo.get_checkpoint_url("quickstart")


def test_get_builds_the_model_and_loads_a_trained_detector_that_lies_in_the_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("RESNEST_D2_WEIGHTS", str(tmp_path))
    trained = model_zoo.get("faster_resnest50", device="cpu")
    assert next(trained.parameters()).device.type == "cpu"
    # Under the released name, whose hash a file made here cannot have, it is refused ...
    torch.save({"model": trained.state_dict()}, tmp_path / DETECTORS["faster_resnest50"].released)
    with pytest.raises(
        UserError, match=r"its SHA-256 starts with \w{8} and SHA-1 starts with \w{8}, not ad123c0b; remove it"
    ):
        model_zoo.get("faster_resnest50", trained=True, device="cpu")
    # ... and under the configuration's it is what the user says it is.
    (tmp_path / DETECTORS["faster_resnest50"].released).rename(tmp_path / "faster_resnest50.pth")
    loaded = model_zoo.get("faster_resnest50", trained=True, device="cpu").state_dict()
    assert all(torch.equal(value, loaded[key]) for key, value in trained.state_dict().items())


def test_trained_detector_that_is_nowhere_is_named_with_its_place(tmp_path, monkeypatch):
    monkeypatch.setenv("RESNEST_D2_WEIGHTS", str(tmp_path))
    with pytest.raises(UserError, match=r"resnest://mask_resnest50 is not on this machine. Put mask_rcnn_"):
        ResNeStHandler(cache=tmp_path).resolve("mask_resnest50")


def test_table_lists_every_row_and_what_is_found(tmp_path):
    (tmp_path / "resnest50-528c19ca.pth").write_bytes(b"x")
    environment = {**os.environ, "RESNEST_D2_WEIGHTS": str(tmp_path)}
    result = forks.run(["-m", "resnest_d2.model_zoo"], cwd=ROOT, environment=environment, timeout=60)
    assert result.returncode == 0, result.stderr
    lines = {line.split()[0]: line for line in result.stdout.splitlines() if line}
    assert set(MODELS) | set(BACKBONES) <= set(lines)
    assert lines["resnest50"].endswith(f"{tmp_path}/resnest50-528c19ca.pth")
    assert lines["resnest101"].endswith("–")
    assert " 96.05 " in lines["cascade_resnest101"] and " 47.50 " in lines["cascade_resnest101"]


def test_page_of_the_zoo_is_that_of_the_records():
    assert (ROOT / "docs/MODEL_ZOO.md").read_text() == markdown(), "make zoo"


def test_a_page_is_written_where_it_can_be(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["resnest_d2.model_zoo", "--page", str(tmp_path / "docs/page.md")])
    zoo.main()
    assert (tmp_path / "docs/page.md").read_text() == markdown()
    for place in (str(tmp_path), "/dev/null", "/proc/none/page.md", str(tmp_path / "docs/page.md/page.md")):
        monkeypatch.setattr(sys, "argv", ["resnest_d2.model_zoo", "--page", place])
        with pytest.raises(SystemExit, match="2"):
            zoo.main()
        assert re.fullmatch(
            rf"error: cannot write {place.removesuffix('/page.md')}.*; .*name .*\n", capsys.readouterr().err
        )
    assert [file.name for file in (tmp_path / "docs").iterdir()] == ["page.md"]


def test_page_shows_the_published_figures_and_links_to_files(facts):
    rows = [[c.strip() for c in line.strip("|").split("|")] for line in markdown().splitlines()]
    table = {re.match(r"\[([\w/]+)\]", row[0])[1]: row for row in rows if len(row) == 9 and row[0][0] == "["}
    assert set(table) == set(TRAINED)
    table = {re.match(r"\[([\w/]+)\]", row[0])[1]: row for row in rows if len(row) == 8 and row[0][0] == "["}
    assert set(table) == set(CLASSIFIERS)
    for name, row in CLASSIFIERS.items():
        assert table[name][2:6] == [str(row.crop), *(f"{v:.2f}" for v in (row.params, row.gmacs, row.top1))]
    table = {re.match(r"\[([\w/]+)\]", row[0])[1]: row for row in rows if len(row) == 9 and row[0][0] == "["}
    for name, row in SEGMENTORS.items():
        figures = [f"{v:.2f}" if v is not None else "–" for v in (row.params, row.miou, row.pixel_accuracy)]
        assert table[name][3] == row.dataset and table[name][4:7] == figures
    for name, row in DETECTORS.items():
        figures = [
            f"{v:.2f}" if v is not None else "–" for v in (row.params, row.box_ap, row.mask_ap, row.pq)
        ]
        assert table[name][3:7] == figures
    for link in re.findall(r"\]\(([^)]+)\)", markdown()):
        assert (ROOT / "docs" / link).is_file()
