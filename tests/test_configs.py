"""The recipes: their settings against the released ones, and that each builds."""

import pytest
import torch
import yaml
from detectron2.config import get_cfg
from detectron2.modeling import build_model

from resnest_d2 import UserError, model_zoo
from resnest_d2.published.classifiers import CLASSIFIERS
from resnest_d2.published.detectors import DETECTORS
from resnest_d2.published.segmentors import SEGMENTORS

# Not rows of the published tables.
OURS = {"quickstart", *(f"{m}_resnest{d}" for m in ("retinanet", "keypoint") for d in (50, 101))}
OURS |= {
    f"segmentation/deeplabv3plus_resnest{d}_{data}" for d in (50, 101) for data in ("ade20k", "cityscapes")
}
OURS |= {"segmentation/deeplabv3_resnest14_small", "classification/resnest14_small"}


def flat(node, prefix=""):
    for key, value in node.items():
        if hasattr(value, "items") and value:
            yield from flat(value, f"{prefix}{key}.")
        else:
            yield prefix + key, list(value) if isinstance(value, tuple) else value


def test_every_published_row_has_a_configuration_and_no_other_is_there():
    assert set(model_zoo.available()) == set(DETECTORS) | set(SEGMENTORS) | set(CLASSIFIERS) | OURS


@pytest.mark.parametrize("name", DETECTORS)
def test_resolved_settings_equal_the_released_recipe_key_by_key(name, facts):
    recipe = facts("coco_recipes")["recipes"][name]
    defaults = dict(flat(get_cfg()))
    cfg = dict(flat(model_zoo.get_config(name)))
    # Keys of ResNeSt are not detectron2's, so they have no default there; the baselines ignore them.
    released = {key: recipe.get(key, default) for key, default in defaults.items()}
    released.update(recipe)
    del released["MODEL.WEIGHTS"]  # a name in place of the dead link; see facts/weights.json
    del released["TEST.EXPECTED_RESULTS"]  # ours: the published AP, below
    assert {key: cfg[key] for key in released} == released


def test_baselines_start_from_the_msra_weights_and_resnests_from_their_own(facts):
    baselines = facts("weights")["resnet_baselines"]
    for name, row in DETECTORS.items():
        weights = model_zoo.get_config(name).MODEL.WEIGHTS
        if row.backbone in baselines:
            assert weights == baselines[row.backbone]
        else:
            depth = row.backbone.split("-")[1]
            assert weights == f"resnest://resnest{depth}"


def test_records_equal_the_published_tables(facts):
    for row in facts("coco_tables")["rows"]:
        record = DETECTORS[row["config"]]._asdict()
        params = record.pop("params")
        assert record == {key: row.get(key) for key in record}
        millions = facts("imagenet_and_sizes")["detector_params_millions"].get(row["config"])
        assert millions in (None, params)


@pytest.mark.parametrize("name", DETECTORS)
def test_rows_expect_their_published_ap(name):
    row = DETECTORS[name]
    figures = (("bbox", "AP", row.box_ap), ("segm", "AP", row.mask_ap), ("panoptic_seg", "PQ", row.pq))
    expected = [[*figure, 0.5] for figure in figures if figure[2] is not None]
    assert model_zoo.get_config(name).TEST.EXPECTED_RESULTS == expected


@pytest.mark.parametrize("name", sorted({*DETECTORS, *SEGMENTORS, *OURS}))
def test_model_builds_and_has_the_parameters_recorded(name):
    cfg = model_zoo.get_config(name)
    cfg.MODEL.DEVICE = "meta"
    with torch.device("meta"):
        millions = sum(p.numel() for p in build_model(cfg).parameters()) / 1e6
    if name in {*DETECTORS, *SEGMENTORS}:
        assert millions == pytest.approx({**DETECTORS, **SEGMENTORS}[name].params, abs=0.01)


@pytest.mark.parametrize("name", sorted({*DETECTORS, *SEGMENTORS, *CLASSIFIERS, *OURS}))
def test_leaf_is_a_few_lines_over_base(name):
    path = model_zoo.config_dir() / f"{name}.yaml"
    leaf = yaml.safe_load(path.read_text())
    assert all(base.removeprefix("../").startswith("base/") for base in leaf["_BASE_"])
    assert len(path.read_text().splitlines()) <= 10


def test_config_file_is_found_with_and_without_suffix():
    path = model_zoo.get_config_file("cascade_resnest101")
    assert path.endswith("configs/cascade_resnest101.yaml")
    assert model_zoo.get_config_file("cascade_resnest101.yaml") == path


def test_unknown_configuration_is_named_with_the_nearest():
    with pytest.raises(UserError, match=r"'cascade_resnet102'.*did you mean cascade_resnet101"):
        model_zoo.get_config_file("cascade_resnet102")
