"""DeepLabV3 and its recipes. Its numbers are compared with the authors' in tests/parity."""

import pytest
import torch
from detectron2.layers import ShapeSpec
from detectron2.modeling import build_model
from detectron2.projects.deeplab.loss import DeepLabCE
from torch.nn import functional as F

from resnest_d2 import OptionError, UserError, model_zoo, optimize_for_inference
from resnest_d2.engine import Trainer, load_config
from resnest_d2.engine.fit import fit_testing
from resnest_d2.modeling import ResNeStDeepLabV3Head

SHAPES = {"res4": ShapeSpec(channels=16, stride=8), "res5": ShapeSpec(channels=32, stride=8)}
ROWS = [n for n in model_zoo.available() if n.startswith("segmentation/") and not n.endswith("_small")]


def head(**options):
    torch.manual_seed(0)
    return ResNeStDeepLabV3Head(SHAPES, **{"num_classes": 3, "channels": 8, "dilations": (2, 3), **options})


def features(size=(5, 6), batch=2):
    return {name: torch.randn(batch, shape.channels, *size) for name, shape in SHAPES.items()}


def config(name="deeplabv3_resnest50_ade20k", *overrides):
    words = ["MODEL.DEVICE", "cpu", "MODEL.RESNETS.NORM", "BN", "MODEL.SEM_SEG_HEAD.NORM", "BN", *overrides]
    return load_config(model_zoo.get_config_file(f"segmentation/{name}"), words)


def built(cfg):
    """The model without memory or time for its values."""
    cfg = cfg.clone()
    cfg.defrost()
    cfg.MODEL.DEVICE = "meta"
    with torch.device("meta"):
        return build_model(cfg)


@pytest.mark.parametrize("name", ROWS)
def test_rows_build_at_stride_8_with_the_head_of_their_name(name):
    cfg = config(name.removeprefix("segmentation/"))
    model = built(cfg)
    assert model.backbone.output_shape()["res5"].stride == 8
    assert model.sem_seg_head.__class__.__name__ == (
        "DeepLabV3PlusHead" if "plus" in name else "ResNeStDeepLabV3Head"
    )
    assert cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES == (150 if "ade20k" in name else 19)


def test_published_rows_have_the_figures_of_the_fact_sheet(facts):
    rows = facts("segmentation")["rows"]
    assert {f"segmentation/{row['config']}" for row in rows} == {r for r in ROWS if "plus" not in r}
    for row in rows:
        expected = {metric: value for _, metric, value, _ in config(row["config"]).TEST.EXPECTED_RESULTS}
        assert expected["mIoU"] == row["miou"] and expected.get("pACC") == row["pix_acc"]


@pytest.mark.parametrize(
    "name, network", [("resnet50", "DeepLabV3 ResNet-50"), ("resnest50", "DeepLabV3 ResNeSt-50")]
)
def test_rows_have_the_published_number_of_parameters(name, network, facts):
    parameters = sum(p.numel() for p in built(config(f"deeplabv3_{name}_ade20k")).parameters())
    assert round(parameters / 1e6, 1) == facts("segmentation")["table_1"][network]["params_M"]


def test_first_blocks_of_dilated_stages_have_half_the_dilation_and_keep_their_pool():
    backbone = built(config()).backbone
    dilations = [
        [block.conv2.conv.dilation[0] for block in stage] for stage in (backbone.res4, backbone.res5)
    ]
    assert dilations[0][:3] == [1, 2, 2] and dilations[1] == [2, 4, 4]
    assert [stage[0].avd_layer is not None for stage in (backbone.res4, backbone.res5)] == [True, True]


def test_training_has_both_losses_and_testing_scores_of_the_size_of_the_image():
    net, labels = head(), torch.randint(3, (2, 40, 48))
    scores, losses = net.train()(features(), labels)
    assert scores is None and set(losses) == {"loss_sem_seg", "loss_sem_seg_aux"}
    scores, losses = net.eval()(features())
    assert scores.shape == (2, 3, 40, 48) and losses == {}


def test_without_a_weight_there_is_no_auxiliary_head():
    net = head(aux_loss_weight=0.0)
    assert not [key for key in net.state_dict() if "aux" in key]
    assert set(net.train()(features(), torch.zeros(2, 40, 48).long())[1]) == {"loss_sem_seg"}


def test_ignored_pixels_do_not_count():
    net, inputs = head(norm="", dropout=0.0, aspp_dropout=0.0), features()
    labels = torch.randint(3, (2, 40, 48))
    labels[:, :7] = 255
    losses = net.train()(inputs, labels)[1]
    scores = net.eval()(inputs)[0]
    expected = F.cross_entropy(scores, labels, ignore_index=255)
    torch.testing.assert_close(losses["loss_sem_seg"], expected)


def test_a_batch_without_labels_has_loss_and_gradients_of_zero():
    net = head()
    losses = net.train()(features(), torch.full((2, 40, 48), 255))[1]
    sum(losses.values()).backward()
    assert all(loss == 0 for loss in losses.values())
    assert all(p.grad is None or not p.grad.any() for p in net.parameters())


@pytest.mark.parametrize(
    "option, value, feature", [("in_feature", "res3", "res3"), ("aux_feature", "stem", "stem")]
)
def test_a_feature_that_the_backbone_lacks_is_named(option, value, feature):
    with pytest.raises(OptionError, match=f"{option} must be one of the backbone's features .*{feature}"):
        head(**{option: value})


def test_folded_norms_leave_the_scores_as_they_are():
    net, inputs = head(), features()
    for module in net.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.uniform_(-1, 1)
            module.running_var.uniform_(0.5, 2)
    expected = net.eval()(inputs)[0]
    optimize_for_inference(net)
    assert not [m for m in net.modules() if isinstance(m, torch.nn.BatchNorm2d)]
    torch.testing.assert_close(net(inputs)[0], expected, rtol=1e-4, atol=1e-5)


def test_heads_have_ten_times_the_learning_rate_and_norms_the_weight_decay():
    cfg = config()
    model = built(cfg)
    names = {parameter: name for name, parameter in model.named_parameters()}
    for group in Trainer.build_optimizer(cfg, model).param_groups:
        for parameter in group["params"]:
            assert group["lr"] == (0.1 if names[parameter].startswith("sem_seg_head.") else 0.01)
            assert group["weight_decay"] == 0.0001


def test_schedule_is_polynomial_to_zero_without_warm_up():
    cfg = config("deeplabv3_resnest50_ade20k", "SOLVER.MAX_ITER", "10")
    optimizer = Trainer.build_optimizer(cfg, torch.nn.Linear(1, 1))
    schedule = Trainer.build_lr_scheduler(cfg, optimizer)
    rates = []
    for _ in range(10):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    assert rates == pytest.approx([0.01 * (1 - i / 10) ** 0.9 for i in range(10)])
    assert optimizer.param_groups[0]["lr"] == 0


def test_a_width_of_the_deep_stem_is_refused_without_one():
    cfg = config("deeplabv3_resnet50_ade20k", "MODEL.RESNETS.DEEP_STEM", "False")
    with pytest.raises(OptionError, match=r"MODEL.RESNETS.STEM_WIDTH must be 0 with"):
        built(cfg)


@pytest.mark.parametrize(
    "key, value", [("INPUT.SCALE_CROP.LONG_SIZE", "(64, 96)"), ("SOLVER.HEAD_LR_FACTOR", "10.0")]
)
def test_settings_without_effect_on_a_detector_are_refused(key, value):
    with pytest.raises(OptionError, match=rf"{key} must be .*MODEL.META_ARCHITECTURE GeneralizedRCNN"):
        load_config(model_zoo.get_config_file("quickstart"), [key, value])


@pytest.mark.parametrize(
    "key, value, rule",
    [
        ("MODEL.SEM_SEG_HEAD.IGNORE_VALUE", "256", "must be >= 0 and <= 255"),
        ("MODEL.SEM_SEG_HEAD.IGNORE_VALUE", "-1", "must be >= 0 and <= 255"),
        ("MODEL.SEM_SEG_HEAD.NUM_CLASSES", "257", "must be <= 256"),
        ("MODEL.SEM_SEG_HEAD.PROJECT_SIZE", "2", "there is no 2; there are 1, 3"),
        ("SOLVER.POLY_LR_CONSTANT_ENDING", "100.0", "must be >= 0 and <= 1"),
        ("SOLVER.BIAS_LR_FACTOR", "2.0", "must be 1 with SOLVER.HEAD_LR_FACTOR"),
        ("INPUT.CROP.ENABLED", "True", "must be False with INPUT.SCALE_CROP.LONG_SIZE"),
        ("INPUT.SCALE_CROP.LONG_SIZE", "(9, 8)", "must be two lengths, from and to"),
    ],
)
def test_settings_that_cannot_work_are_named(key, value, rule):
    with pytest.raises(UserError, match=f"{key}:? {rule}"):
        config("deeplabv3_resnest50_ade20k", key, value)


def test_a_norm_that_does_not_fit_the_heads_channels_is_named_with_its_key():
    words = ("MODEL.SEM_SEG_HEAD.NORM", "GN", "MODEL.SEM_SEG_HEAD.ASPP_CHANNELS", "8")
    with pytest.raises(OptionError, match=r"MODEL\.SEM_SEG_HEAD\.NORM does not fit 8 channels"):
        built(config("deeplabv3_resnest50_ade20k", *words))


def test_an_option_of_detectron2s_head_that_this_one_lacks_is_refused():
    cfg = config("deeplabv3_resnest50_ade20k", "MODEL.SEM_SEG_HEAD.USE_DEPTHWISE_SEPARABLE_CONV", "True")
    with pytest.raises(OptionError, match="USE_DEPTHWISE_SEPARABLE_CONV must be False"):
        built(cfg)


@pytest.mark.parametrize("key, feature", [("IN_FEATURES", "('res9',)"), ("AUX_FEATURE", "res2")])
def test_a_feature_that_the_backbone_lacks_is_named_with_its_key(key, feature):
    cfg = config("deeplabv3_resnest50_ade20k", f"MODEL.SEM_SEG_HEAD.{key}", feature)
    with pytest.raises(
        OptionError, match=rf"MODEL.SEM_SEG_HEAD.{key} must be one of MODEL.RESNETS.OUT_FEATURES"
    ):
        built(cfg)


def test_group_norm_takes_one_image():
    net = head(norm="GN", channels=32, aux_loss_weight=0.0).train()
    losses = net(features(batch=1), torch.zeros(1, 40, 48).long())[1]
    assert all(loss.isfinite() for loss in losses.values())


def test_hard_pixel_mining_is_detectron2s():
    inputs, labels = features(), torch.randint(3, (2, 40, 48))
    options = {"norm": "", "dropout": 0.0, "aspp_dropout": 0.0}
    losses = head(loss_type="hard_pixel_mining", **options).train()(inputs, labels)[1]
    scores = head(**options).eval()(inputs)[0]
    expected = DeepLabCE(ignore_label=255, top_k_percent_pixels=0.2)(scores, labels)
    torch.testing.assert_close(losses["loss_sem_seg"], expected)


def test_testing_is_at_one_scale_on_a_cpu_unless_asked_for():
    cfg = config().clone()
    cfg.defrost()
    assert cfg.TEST.AUG.ENABLED and fit_testing(cfg, ["TEST.AUG.ENABLED", "True"]) == []
    (note,) = fit_testing(cfg, [])
    assert note.startswith("TEST.AUG.ENABLED False on the CPU") and not cfg.TEST.AUG.ENABLED


@pytest.mark.parametrize("key", ["INPUT.SCALE_CROP.CROP_SIZE", "TEST.AUG.WINDOW"])
def test_a_crop_that_is_no_multiple_of_the_stride_is_refused(key):
    with pytest.raises(OptionError, match=f"{key} must be a multiple of the backbone's stride, 8, got 100"):
        config("deeplabv3_resnest50_ade20k", key, "100")
