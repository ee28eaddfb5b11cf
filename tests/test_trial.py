"""What would fail in the evaluation after training fails before it, and leaves nothing behind."""

import logging
import random

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from robust import corpus, tiny
from robust.corpus.config import CONFIG

from resnest_d2 import UserError, model_zoo
from resnest_d2.engine import Trainer, load_model, trainer
from resnest_d2.engine.trial import try_evaluation

EVALUATIONS = [name for name in CONFIG if name.startswith("evaluation: augmentation")]


if "test_preflight" not in DatasetCatalog.list():  # without a file of its own
    DatasetCatalog.register("test_preflight", lambda: DatasetCatalog.get("shapes_val")[:3])
    MetadataCatalog.get("test_preflight").set(evaluator_type="coco", thing_classes=["a", "b", "c"])


def config(folder, *settings):
    cfg = model_zoo.get_config("quickstart")
    cfg.DATASETS.TEST = ("test_preflight",)
    cfg.merge_from_list(
        [*tiny.SETTINGS, "OUTPUT_DIR", str(folder), "MODEL.DEVICE", "cpu", "SOLVER.MAX_ITER", 3]
    )
    cfg.merge_from_list(["TEST.AUG.ENABLED", True, "TEST.AUG.MIN_SIZES", (64,), "MODEL.MASK_ON", True])
    cfg.merge_from_list(["TEST.PRECISE_BN.ENABLED", False, *settings])
    return cfg


@pytest.mark.parametrize("name", EVALUATIONS)
def test_what_only_an_evaluation_shows_is_refused_before_training(name, tmp_path):
    outcome = corpus.run_case("configuration", name, tmp_path / "case", 0)
    assert outcome.good and outcome.result == "refused", outcome
    assert not list((tmp_path / "case").rglob("model_*.pth"))


def test_nothing_of_it_is_left(tmp_path):
    trained = Trainer(config(tmp_path / "out"))
    model = trained.model
    model.train()
    model.backbone.eval()  # whatever the modes are
    before = {name: value.clone() for name, value in model.state_dict().items()}
    modes = [module.training for module in model.modules()]
    thresholds = [vars(module).get("test_score_thresh") for module in model.modules()]
    strides = [parameter.stride() for parameter in model.parameters()]
    files = sorted(tmp_path.rglob("*"))
    states = torch.get_rng_state(), random.getstate(), np.random.get_state()[1]
    try_evaluation(trained.cfg, model, Trainer)
    assert tiny.equal(before, model.state_dict())
    assert [module.training for module in model.modules()] == modes
    assert [vars(module).get("test_score_thresh") for module in model.modules()] == thresholds
    assert [parameter.stride() for parameter in model.parameters()] == strides
    assert all(parameter.grad is None for parameter in model.parameters())
    assert sorted(tmp_path.rglob("*")) == files
    assert torch.equal(torch.get_rng_state(), states[0]) and random.getstate() == states[1]
    assert np.array_equal(np.random.get_state()[1], states[2])
    assert logging.root.manager.disable == logging.NOTSET


@pytest.mark.parametrize("name", ["inference", "inference/instances_predictions.pth", "inference_TTA"])
def test_where_it_could_not_write_is_named_before_training(name, tmp_path):
    cfg = config(tmp_path / "out")
    (tmp_path / "out/inference").mkdir(parents=True)
    if name == "inference":
        (tmp_path / "out/inference").rmdir()
    (tmp_path / "out" / name).mkdir() if name.endswith(".pth") else (tmp_path / "out" / name).touch()
    with pytest.raises(UserError, match=f"cannot write {tmp_path}/out/{name}"):
        try_evaluation(cfg, Trainer.build_model(cfg), Trainer)


def test_weights_that_are_removed_before_they_are_read_are_named(tmp_path):
    """As by a training, beside which others are evaluated."""
    with pytest.raises(UserError, match=r"/gone\.pth not found! .*CHECKPOINTS_TO_KEEP"):
        load_model(config(tmp_path, "MODEL.WEIGHTS", str(tmp_path / "gone.pth")))


def test_training_ends_with_the_weights_that_it_would_have_without(tmp_path, monkeypatch):
    for name in ("with", "without"):
        if name == "without":
            monkeypatch.setattr(trainer, "try_evaluation", lambda *arguments: None)
        torch.manual_seed(3)
        MetadataCatalog.get("test_preflight").__dict__.pop("json_file", None)  # of the other run
        Trainer(config(tmp_path / name)).train()
    assert tiny.equal(tiny.weights(tmp_path / "with"), tiny.weights(tmp_path / "without"))
    both = [sorted(p.relative_to(tmp_path / n) for p in (tmp_path / n).rglob("*") if "tfevents" not in p.name)
            for n in ("with", "without")]  # fmt: skip
    assert both[0] == both[1]


def test_a_dataset_without_a_file_of_its_own_is_not_left_with_one_that_is_gone(tmp_path):
    MetadataCatalog.get("test_preflight").__dict__.pop("json_file", None)
    cfg = config(tmp_path, "TEST.AUG.ENABLED", False)
    try_evaluation(cfg, Trainer.build_model(cfg), Trainer)
    assert MetadataCatalog.get("test_preflight").get("json_file") is None


def test_the_modes_come_back_where_it_fails_too(tmp_path):
    cfg = config(tmp_path, "TEST.AUG.MIN_SIZES", ())
    model = Trainer.build_model(cfg).train()
    with pytest.raises(UserError, match=r"evaluating test_preflight with TEST.AUG.ENABLED True"):
        try_evaluation(cfg, model, Trainer)
    assert all(module.training for module in model.modules() if "Frozen" not in type(module).__name__)
    assert logging.root.manager.disable == logging.NOTSET
