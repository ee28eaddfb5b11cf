"""When a run is compared with the published AP, and that a wrong AP is noticed."""

import contextlib
from argparse import Namespace
from functools import partial

import pytest
from detectron2.data import DatasetCatalog
from detectron2.data.datasets import load_coco_json
from detectron2.evaluation import verify_results

from resnest_d2 import model_zoo
from resnest_d2.engine.config import read_config
from resnest_d2.engine.expected_results import keep_comparable

TRAIN, EVALUATE = Namespace(eval_only=False), Namespace(eval_only=True)


@contextlib.contextmanager
def val2017_is(load):
    """coco_2017_val is what the function returns."""
    loader = DatasetCatalog["coco_2017_val"]
    DatasetCatalog.pop("coco_2017_val")
    DatasetCatalog.register("coco_2017_val", load)
    try:
        yield
    finally:
        DatasetCatalog.pop("coco_2017_val")
        DatasetCatalog.register("coco_2017_val", loader)


@pytest.fixture
def full_val2017():
    """coco_2017_val with as many images as it has; no test machine holds them."""
    with val2017_is(lambda: [{}] * 5000):
        yield


def comparison(args, *overrides, name="mask_resnest50"):
    cfg, recipe = read_config(model_zoo.get_config_file(name), [*map(str, overrides)])
    return keep_comparable(cfg, recipe, args), cfg


def test_the_recipe_on_the_full_val2017_is_compared(full_val2017):
    for args in (TRAIN, EVALUATE):
        reasons, cfg = comparison(args)
        assert reasons == []
        assert cfg.TEST.EXPECTED_RESULTS == [["bbox", "AP", 42.81, 0.5], ["segm", "AP", 38.14, 0.5]]


def test_what_does_not_change_the_model_may_differ(full_val2017):
    free = ("MODEL.WEIGHTS", "x.pth", "SOLVER.REFERENCE_WORLD_SIZE", 8, "OUTPUT_DIR", "/tmp/x")
    assert comparison(TRAIN, *free)[0] == []


@pytest.mark.parametrize(
    "key, value",
    [
        ("SOLVER.MAX_ITER", 100),
        ("SOLVER.IMS_PER_BATCH", 2),
        ("SOLVER.BASE_LR", 0.01),
        ("MODEL.RESNETS.RADIX", 1),
        ("INPUT.MIN_SIZE_TEST", 400),
        ("DATASETS.TRAIN", "('shapes_train',)"),
    ],
)
def test_an_altered_recipe_is_not_compared_and_the_key_is_named(key, value, full_val2017):
    reasons, cfg = comparison(TRAIN, key, value)
    assert len(reasons) == 1 and reasons[0].startswith(f"{key} is ")
    assert cfg.TEST.EXPECTED_RESULTS == []


def test_evaluation_does_not_mind_the_schedule_but_the_sizes(full_val2017):
    assert comparison(EVALUATE, "SOLVER.MAX_ITER", 100, "SOLVER.IMS_PER_BATCH", 2)[0] == []
    assert comparison(EVALUATE, "INPUT.MIN_SIZE_TEST", 400)[0] != []


def test_another_dataset_is_not_compared(full_val2017):
    assert comparison(EVALUATE, "DATASETS.TEST", "('shapes_val',)")[0] == [
        "DATASETS.TEST is shapes_val, not the full coco_2017_val"
    ]


def test_a_part_of_val2017_is_not_compared(coco_root):
    coco = coco_root / "coco"
    part = partial(load_coco_json, str(coco / "annotations/instances_val2017.json"), str(coco / "val2017"))
    with val2017_is(part):
        assert comparison(EVALUATE)[0] == ["coco_2017_val has 50 images here, not 5000"]


def test_a_wrong_ap_ends_in_a_failure_and_a_right_one_does_not(full_val2017):
    _, cfg = comparison(EVALUATE)
    assert verify_results(cfg, {"bbox": {"AP": 42.4}, "segm": {"AP": 38.6}})
    with pytest.raises(SystemExit):
        verify_results(cfg, {"bbox": {"AP": 42.2}, "segm": {"AP": 38.6}})
