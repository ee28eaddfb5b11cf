"""That it is ResNeSt: every comparison of measure.py within its tolerance."""

import itertools
import re

import pytest
import timm
from support import ROOT

from . import measure, report
from .data import coco_batches


def slow_if(slow, names):
    return [pytest.param(name, marks=[pytest.mark.slow] if slow(name) else []) for name in names]


def is_deep(name):
    """Of more blocks like those of ResNeSt-50, which take most of the time."""
    return bool(re.search("101e|200|269", name))


@pytest.fixture(scope="module")
def batch(coco_root):
    """Of small images, since float64 is slow."""
    return coco_batches(coco_root, num=1, size=2, short_side=64)[0]


@pytest.mark.parametrize("radix, cardinality", list(itertools.product((1, 2, 4), (1, 2, 4))))
def test_split_attention_equals_the_equations(radix, cardinality):
    assert measure.split_attention_equations(radix, cardinality) < measure.TOLERANCE["equations"]


@pytest.mark.parametrize("modulated, deform_groups", list(itertools.product((False, True), (1, 2))))
def test_deformable_convolution_equals_its_definition(modulated, deform_groups):
    assert measure.deform_conv_reference(modulated, deform_groups) < measure.TOLERANCE["equations"]


def test_every_resnest_of_timm_is_compared():
    assert set(measure.TIMM) == set(timm.list_models("resnest*"))


@pytest.mark.parametrize("name", slow_if(is_deep, measure.TIMM))
def test_logits_and_features_equal_those_of_timm(name):
    assert measure.timm_classifier(name) < measure.TOLERANCE["features"]


# The others are timm's, too, or have each option of these two.
@pytest.mark.parametrize(
    "name", slow_if(lambda n: n not in ("resnest50", "resnest50_fast_2s2x40d"), measure.AUTHORS)
)
def test_logits_and_features_equal_those_of_the_authors_classification_code(name):
    assert measure.authors_classifier(name) < measure.TOLERANCE["features"]


@pytest.mark.parametrize("name", measure.DILATED)
def test_contracted_dilation_equals_that_of_the_authors_classification_code(name):
    assert measure.dilated_classifier(name) < measure.TOLERANCE["features, float64"]


@pytest.mark.parametrize("depth", slow_if(lambda depth: depth != "50", measure.SEGMENTORS))
def test_deeplabv3_equals_the_authors_backbone_and_the_equations_of_the_heads(depth):
    assert measure.segmentor(depth) < measure.TOLERANCE["train step, float64"]


@pytest.mark.parametrize("name", slow_if(lambda n: "50" not in n, [*measure.PLUGIN, measure.DILATED_PLUGIN]))
def test_state_dict_and_features_equal_those_of_the_released_plugin(name):
    assert measure.plugin_features(name) < measure.TOLERANCE["features"]


@pytest.mark.parametrize("name", slow_if(lambda name: name != "50", measure.PLUGIN))
def test_losses_gradients_and_frozen_stages_equal_those_of_the_released_plugin(name, batch):
    check_train_step(measure.plugin_train_step(name, batch))


@pytest.mark.slow
@pytest.mark.parametrize("name", measure.FAST)
def test_fast_paths_have_the_losses_and_gradients_of_the_released_plugin(name, batch):
    check_train_step(measure.plugin_train_step(name, batch, fast=True))


def check_train_step(errors):
    assert errors["losses"] < measure.TOLERANCE["train step"]
    assert errors["gradients"] < measure.TOLERANCE["train step"]
    ours, theirs = errors["frozen"]
    assert ours == theirs and any(key.startswith("backbone.bottom_up.res2.") for key in ours)


@pytest.mark.slow
def test_loss_curve_equals_that_of_the_released_plugin_over_20_iterations(coco_root):
    curves = measure.plugin_curves(coco_batches(coco_root, num=20, size=2))
    assert len(curves.ours) == 20
    assert curves.error < measure.TOLERANCE["curve"]
    assert curves.ours[-1] < curves.ours[0]  # it does train


def test_page_has_the_comparisons_that_are_made_and_errors_within_their_tolerances():
    table = [
        [cell.strip() for cell in line.split("|")[1:-1]]
        for line in (ROOT / "docs/PARITY.md").read_text().splitlines()
        if line.startswith("|")
    ][2:]
    expected = [[*names, f"{measure.TOLERANCE[kind]:.0e}"] for *names, kind, _ in report.rows()]
    assert [row[:3] for row in table] == expected, "make parity"
    assert all(float(error) < float(tolerance) for *_, tolerance, error in table)


def test_page_is_written_row_by_row(tmp_path, monkeypatch):
    monkeypatch.setattr(report, "rows", lambda: [("a book", "a chapter", "curve", lambda: 3e-5)])
    report.main(str(tmp_path / "page.md"))
    assert "| a book | a chapter | 1e-03 | 3.0e-05 |" in (tmp_path / "page.md").read_text()
