"""The recipes in detectron2's lazy form: each is what its YAML file is, and trains as detectron2 trains them."""

import inspect
import math
from collections.abc import Mapping, Sequence

import numpy as np
import pytest
import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.config import LazyConfig, instantiate
from detectron2.data import (
    DatasetCatalog,
    DatasetMapper,
    build_detection_test_loader,
    build_detection_train_loader,
    get_detection_dataset_dicts,
)
from detectron2.engine import SimpleTrainer, hooks
from detectron2.evaluation import inference_on_dataset
from detectron2.modeling import build_model
from detectron2.modeling.anchor_generator import build_anchor_generator
from detectron2.solver import LRMultiplier
from torch import nn

from resnest_d2 import ResNeSt, UserError, model_zoo
from resnest_d2.engine import Trainer
from resnest_d2.evaluation import build_evaluator
from resnest_d2.published.detectors import DETECTORS

ROWS = sorted(set(DETECTORS) - {"panoptic_resnest200_3x"})
OURS = ("detectron2.", "resnest_d2.", "fvcore.", "torchvision.")


def described(thing, parents=()):
    """What decides the behaviour of an object: its class and, in turn, all it holds; of tensors the shapes."""
    if isinstance(thing, torch.Tensor):
        return tuple(thing.shape), thing.dtype
    if isinstance(thing, Mapping):
        return {key: described(value, parents) for key, value in thing.items()}
    if isinstance(thing, Sequence) and not isinstance(thing, str):
        return [described(value, parents) for value in thing]
    if inspect.isroutine(thing):
        return thing.__qualname__
    if not isinstance(thing, nn.Module) and not type(thing).__module__.startswith(OURS):
        return thing
    if any(thing is parent for parent in parents):
        return "a parent"
    return type(thing).__qualname__, described(vars(thing), (*parents, thing))


def differences(one, other, where=""):
    """The places in which two descriptions differ, with both values."""
    if isinstance(one, dict) and isinstance(other, dict):
        keys = dict.fromkeys([*one, *other])
        return [d for k in keys for d in differences(one.get(k), other.get(k), f"{where}.{k}")]
    if isinstance(one, (list, tuple)) and isinstance(other, (list, tuple)) and len(one) == len(other):
        return [d for i, (a, b) in enumerate(zip(one, other)) for d in differences(a, b, f"{where}.{i}")]
    same = one == other or (isinstance(one, float) and isinstance(other, float) and math.isclose(one, other))
    return [] if same is True else [(where, one, other)]


def test_every_row_of_the_tables_has_a_lazy_form():
    assert model_zoo.available_lazy() == ROWS


def check_model(cfg, lazy):
    """Build both without values, and compare all that they hold."""
    cfg.MODEL.DEVICE = "meta"
    with torch.device("meta"):
        expected, model = build_model(cfg), instantiate(lazy.model)
    shapes = {key: value.shape for key, value in expected.state_dict().items()}
    assert {key: value.shape for key, value in model.state_dict().items()} == shapes
    trained = {key: parameter.requires_grad for key, parameter in expected.named_parameters()}
    assert {key: parameter.requires_grad for key, parameter in model.named_parameters()} == trained
    # A loss without a weight has weight 1.
    implied = (".loss_weight.loss_cls", None, 1.0)
    found = differences(described(expected), described(model))
    assert [d for d in found if not d[0].endswith(implied[0]) or d[1:] != implied[1:]] == []
    return model


def resnet(lazy):
    """The node that holds the depth."""
    network = lazy.model.backbone.bottom_up
    return network.stages if "stages" in network else network


# One with each argument; the others differ from these in depth, or combine what these have.
KINDS = ("faster_resnet50", "faster_resnest50_dcn", "mask_resnest50", "cascade_mask_resnest200_dcn_3x")


@pytest.mark.parametrize(
    "name", [pytest.param(row, marks=[] if row in KINDS else pytest.mark.slow) for row in ROWS]
)
def test_model_is_that_of_the_yaml_file(name):
    cfg, lazy = model_zoo.get_config(name), model_zoo.get_lazy_config(name)
    if name in KINDS and "resnest" in name:
        cfg.MODEL.RESNETS.DEPTH = resnet(lazy).depth = 14  # the same blocks, in less time
    model = check_model(cfg, lazy)
    # Without values on the meta device.
    means = (list(lazy.model.pixel_mean), list(lazy.model.pixel_std), lazy.model.input_format)
    assert means == (cfg.MODEL.PIXEL_MEAN, cfg.MODEL.PIXEL_STD, cfg.INPUT.FORMAT)
    feature = model.backbone.output_shape()
    anchors = build_anchor_generator(cfg, [feature[f] for f in cfg.MODEL.RPN.IN_FEATURES])
    mine = instantiate(lazy.model.proposal_generator.anchor_generator)
    assert all(torch.equal(a, b) for a, b in zip(anchors.cell_anchors, mine.cell_anchors, strict=True))


@pytest.mark.parametrize("name", ROWS)
def test_weights_data_and_schedule_are_those_of_the_yaml_file(name):
    cfg, lazy = model_zoo.get_config(name), model_zoo.get_lazy_config(name)
    assert (resnet(lazy).depth, lazy.train.init_checkpoint) == (cfg.MODEL.RESNETS.DEPTH, cfg.MODEL.WEIGHTS)
    train, test = lazy.dataloader.train, lazy.dataloader.test
    assert (train.dataset.names, test.dataset.names) == (*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST)
    mapper = described(instantiate(train.mapper))
    assert differences(described(DatasetMapper(cfg, True)), mapper) == []
    ours, theirs = (described(m) for m in (instantiate(test.mapper), DatasetMapper(cfg, False)))
    for key in ("is_train", "augmentations", "image_format"):  # the rest is of annotations
        found = differences(theirs[1][key], ours[1][key])
        assert [where for where, *_ in found if not where.endswith((".is_range", ".sample_style"))] == []
    assert len(set(instantiate(test.mapper).augmentations.augs[0].short_edge_length)) == 1
    # What is not set is detectron2's default, which is the YAML file's.
    loader = inspect.signature(build_detection_train_loader.__wrapped__).parameters
    assert loader["sampler"].default is None and cfg.DATALOADER.SAMPLER_TRAIN == "TrainingSampler"
    assert loader["aspect_ratio_grouping"].default == cfg.DATALOADER.ASPECT_RATIO_GROUPING
    assert set(train) == {"_target_", "dataset", "mapper", "total_batch_size", "num_workers"}
    assert (train.total_batch_size, train.num_workers) == (
        cfg.SOLVER.IMS_PER_BATCH,
        cfg.DATALOADER.NUM_WORKERS,
    )
    dicts = inspect.signature(get_detection_dataset_dicts).parameters
    assert dicts["filter_empty"].default == cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS
    assert (train._target_, test._target_) == (build_detection_train_loader, build_detection_test_loader)
    assert test.dataset.filter_empty is False and test.num_workers == cfg.DATALOADER.NUM_WORKERS

    network = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4))
    lazy.optimizer.params.model = network
    optimizers = instantiate(lazy.optimizer), Trainer.build_optimizer(cfg, network)
    groups = [[{**group, "foreach": None} for group in o.param_groups] for o in optimizers]
    assert len({type(o) for o in optimizers}) == 1 and differences(*map(described, groups)) == []
    yaml_schedule = Trainer.build_lr_scheduler(cfg, optimizers[1])
    schedule = LRMultiplier(optimizers[0], instantiate(lazy.lr_multiplier), lazy.train.max_iter)
    assert lazy.train.max_iter == cfg.SOLVER.MAX_ITER and lazy.train.amp.enabled == cfg.SOLVER.AMP.ENABLED
    at = [0, 1, 500, 999, 1000, 1001, *(step + d for step in cfg.SOLVER.STEPS for d in (-1, 0, 1))]
    for iteration in [*at, cfg.SOLVER.MAX_ITER - 1]:
        for scheduler in (yaml_schedule, schedule):
            scheduler.last_epoch = iteration
        assert schedule.get_lr() == yaml_schedule.get_lr(), iteration
    assert (lazy.train.eval_period, lazy.train.checkpointer.period) == (
        cfg.TEST.EVAL_PERIOD,
        cfg.SOLVER.CHECKPOINT_PERIOD,
    )


def test_images_of_training_are_bit_for_bit_those_of_the_yaml_file():
    """With random crops of images and polygons."""
    name = "cascade_mask_resnest200_dcn_3x"
    record = DatasetCatalog.get("shapes_train")[0]
    made = []
    for mapper in (
        DatasetMapper(model_zoo.get_config(name), True),
        instantiate(model_zoo.get_lazy_config(name).dataloader.train.mapper),
    ):
        np.random.seed(0)
        made.append(mapper(record))
    one, other = made
    assert torch.equal(one["image"], other["image"])
    assert torch.equal(one["instances"].gt_boxes.tensor, other["instances"].gt_boxes.tensor)


@pytest.mark.parametrize("name", ["faster_resnet50", "cascade_mask_resnest50"])
def test_evaluator_is_that_of_the_yaml_file(name):
    cfg, lazy = model_zoo.get_config(name), model_zoo.get_lazy_config(name)
    lazy.dataloader.test.dataset.names = "shapes_val"  # which is there
    evaluators = build_evaluator(cfg, "shapes_val", None), instantiate(lazy.dataloader.evaluator)
    for evaluator in evaluators:
        del evaluator._coco_api  # of the annotations
    assert differences(*map(described, evaluators)) == []


@pytest.fixture(scope="module")
def shallow():
    """Cascade Mask R-CNN on 14 layers, from the YAML file and from the lazy one, with the same weights."""
    torch.manual_seed(0)
    cfg, lazy = (get("cascade_mask_resnest50") for get in (model_zoo.get_config, model_zoo.get_lazy_config))
    cfg.MODEL.DEVICE, cfg.MODEL.RESNETS.DEPTH, lazy.model.backbone.bottom_up.depth = "cpu", 14, 14
    cfg.MODEL.ROI_HEADS.SCORE_THRESH_TEST = 0.0
    cfg.MODEL.RPN.POST_NMS_TOPK_TEST, lazy.model.proposal_generator.post_nms_topk[1] = 20, 20
    cfg.TEST.DETECTIONS_PER_IMAGE = 10
    for predictor in lazy.model.roi_heads.box_predictors:
        predictor.update(test_score_thresh=0.0, test_topk_per_image=10)
    models = build_model(cfg), instantiate(lazy.model)
    models[1].load_state_dict(models[0].state_dict())
    return models


def test_results_are_bit_for_bit_those_of_the_yaml_model(shallow):
    image = {"image": torch.randint(0, 256, (3, 64, 96), dtype=torch.uint8)}
    with torch.no_grad():
        one, other = (model.eval()([image])[0]["instances"].get_fields() for model in shallow)
    assert len(one["scores"]) > 5 and one.keys() == other.keys()
    for key, value in one.items():
        a, b = (getattr(v, "tensor", v) for v in (value, other[key]))
        assert torch.equal(a, b), key


@pytest.mark.slow
def test_it_trains_and_evaluates_as_detectron2_trains_lazy_configurations(tmp_path, monkeypatch):
    """As in lazyconfig_train_net.py: everything is instantiated from the configuration, nothing else is set."""
    torch.manual_seed(0)
    backbone = ResNeSt(14)
    torch.save(backbone.state_dict(), tmp_path / "resnest14.pth")
    monkeypatch.setenv("RESNEST_D2_WEIGHTS", str(tmp_path))
    monkeypatch.setenv("FVCORE_CACHE", str(tmp_path / "cache"))
    cfg = model_zoo.get_lazy_config("mask_resnest50")
    overrides = [
        *("model.backbone.bottom_up.depth=14", "model.roi_heads.num_classes=3", "train.max_iter=2"),
        *("train.init_checkpoint=resnest://resnest14", f"train.output_dir={tmp_path}/output"),
        *("dataloader.train.dataset.names=shapes_train", "dataloader.test.dataset.names=shapes_val"),
        *("dataloader.train.total_batch_size=2", "dataloader.train.num_workers=0"),
        *("dataloader.test.num_workers=0", "dataloader.train.mapper.augmentations.0.max_size=96"),
        *("dataloader.test.mapper.augmentations.0.max_size=64", "model.roi_heads.batch_size_per_image=16"),
        *("model.proposal_generator.post_nms_topk=[20,20]", "model.roi_heads.box_head.conv_dims=[]"),
        "model.roi_heads.mask_head.conv_dims=[16,16]",
    ]
    LazyConfig.save(LazyConfig.apply_overrides(cfg, overrides), str(tmp_path / "config.yaml"))
    cfg = LazyConfig.load(str(tmp_path / "config.yaml"))  # that script writes it for later
    model = instantiate(cfg.model)
    cfg.optimizer.params.model = model
    trainer = SimpleTrainer(model, instantiate(cfg.dataloader.train), instantiate(cfg.optimizer))
    checkpointer = DetectionCheckpointer(model, cfg.train.output_dir, trainer=trainer)
    results, rates = [], []

    def test():
        loader, evaluator = instantiate(cfg.dataloader.test), instantiate(cfg.dataloader.evaluator)
        results.append(inference_on_dataset(model, loader, evaluator))
        return results[-1]

    def note():
        rates.append(trainer.optimizer.param_groups[0]["lr"])

    trainer.register_hooks(
        [
            hooks.LRScheduler(scheduler=instantiate(cfg.lr_multiplier)),
            hooks.EvalHook(cfg.train.eval_period, test),
            hooks.CallbackHook(before_step=lambda trainer: note()),
        ]
    )
    checkpointer.resume_or_load(cfg.train.init_checkpoint, resume=False)
    stem = backbone.state_dict()["stem.conv1_1.weight"]
    assert torch.equal(model.backbone.bottom_up.stem.conv1_1.weight, stem)
    trainer.train(0, cfg.train.max_iter)
    assert rates[0] == pytest.approx(0.02 * 0.001) and len(rates) == 2
    assert all(torch.isfinite(value).all() for value in model.state_dict().values())
    assert len(results) == 1 and {"bbox", "segm"} == set(results[0])


def test_a_configuration_of_ones_own_takes_one_of_these(tmp_path):
    (tmp_path / "own.py").write_text(
        "from resnest_d2.model_zoo import get_lazy_config\n"
        "_recipe = get_lazy_config('cascade_resnest101.py')\n"
        "model, train = _recipe.model, _recipe.train\n"
        "model.roi_heads.num_classes = 3\n"
        "train.init_checkpoint = 'resnest://cascade_resnest101'\n"
    )
    cfg = LazyConfig.load(str(tmp_path / "own.py"))
    assert set(cfg) == {"model", "train"}
    assert [p.num_classes for p in cfg.model.roi_heads.box_predictors] == [3, 3, 3]
    assert model_zoo.get_lazy_config("cascade_resnest101").model.roi_heads.num_classes == 80


def test_an_unknown_name_is_named_with_the_nearest():
    with pytest.raises(UserError, match=r"'cascade_resnest102' in .*lazy; did you mean cascade_resnest101"):
        model_zoo.get_lazy_config("cascade_resnest102")
    with pytest.raises(UserError, match="no configuration 'common'"):
        model_zoo.get_lazy_config("common")


def test_leaf_is_a_line_over_what_is_shared():
    for name in ROWS:
        path = model_zoo.config_dir() / "lazy" / f"{name}.py"
        assert len(path.read_text().splitlines()) == 3
