"""That it is ResNeSt: every comparison of measure.py within its tolerance."""

import itertools

import pytest
import timm

from . import measure
from .data import coco_batches


@pytest.fixture(scope="module")
def batches(coco_root):
    return coco_batches(coco_root, num=20, size=2)


@pytest.mark.parametrize("radix, cardinality", list(itertools.product((1, 2, 4), (1, 2, 4))))
def test_split_attention_equals_the_equations(radix, cardinality):
    assert measure.split_attention_equations(radix, cardinality) < measure.TOLERANCE["equations"]


@pytest.mark.parametrize("modulated, deform_groups", list(itertools.product((False, True), (1, 2))))
def test_deformable_convolution_equals_its_definition(modulated, deform_groups):
    assert measure.deform_conv_reference(modulated, deform_groups) < measure.TOLERANCE["equations"]


def test_every_resnest_of_timm_is_compared():
    assert set(measure.TIMM) == set(timm.list_models("resnest*"))


@pytest.mark.parametrize("name", measure.TIMM)
def test_logits_and_features_equal_those_of_timm(name):
    assert measure.timm_classifier(name) < measure.TOLERANCE["features"]


@pytest.mark.parametrize("name", measure.AUTHORS)
def test_logits_and_features_equal_those_of_the_authors_classification_code(name):
    assert measure.authors_classifier(name) < measure.TOLERANCE["features"]


@pytest.mark.parametrize("name", measure.DILATED)
def test_contracted_dilation_equals_that_of_the_authors_classification_code(name):
    assert measure.dilated_classifier(name) < measure.TOLERANCE["features, float64"]


@pytest.mark.parametrize("name", [*measure.PLUGIN, measure.DILATED_PLUGIN])
def test_state_dict_and_features_equal_those_of_the_released_plugin(name):
    assert measure.plugin_features(name) < measure.TOLERANCE["features"]


@pytest.mark.parametrize(
    "name, fast", [*((name, False) for name in measure.PLUGIN), *((name, True) for name in measure.FAST)]
)
def test_losses_gradients_and_frozen_stages_equal_those_of_the_released_plugin(name, fast, batches):
    errors = measure.plugin_train_step(name, batches[0], fast)
    assert errors["losses"] < measure.TOLERANCE["train step"]
    assert errors["gradients"] < measure.TOLERANCE["train step"]
    ours, theirs = errors["frozen"]
    assert ours == theirs and any(key.startswith("backbone.bottom_up.res2.") for key in ours)


def test_loss_curve_equals_that_of_the_released_plugin_over_20_iterations(batches):
    curves = measure.plugin_curves(batches)
    assert len(curves.ours) == 20
    assert curves.error < measure.TOLERANCE["curve"]
    assert curves.ours[-1] < curves.ours[0]  # it does train
