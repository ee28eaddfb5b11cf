"""From cfg to backbone, as detectron2 and its users call it."""

import pytest
import torch
from detectron2.config import get_cfg
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY, build_backbone
from detectron2.projects.deeplab import add_deeplab_config

from resnest_d2 import OptionError, ResNeSt, add_resnest_config

# Keys as YAML files of the released plugin have them.
RELEASED_YAML = """
MODEL:
  BACKBONE:
    NAME: "build_resnest_fpn_backbone"
  RESNETS:
    DEEP_STEM: True
    AVD: True
    AVG_DOWN: True
    RADIX: 2
    BOTTLENECK_WIDTH: 64
    STRIDE_IN_1X1: False
    OUT_FEATURES: ["res2", "res3", "res4", "res5"]
  FPN:
    IN_FEATURES: ["res2", "res3", "res4", "res5"]
"""


def small_cfg(name="build_resnest_fpn_backbone", *overrides):
    cfg = get_cfg()
    add_resnest_config(cfg)
    cfg.MODEL.DEVICE = "cpu"
    cfg.MODEL.BACKBONE.NAME = name
    cfg.MODEL.RESNETS.DEPTH = 14
    cfg.MODEL.RESNETS.WIDTH_PER_GROUP = 32
    cfg.MODEL.RESNETS.OUT_FEATURES = ["res2", "res3", "res4", "res5"]
    cfg.MODEL.FPN.IN_FEATURES = ["res2", "res3", "res4", "res5"]
    cfg.merge_from_list(overrides)
    return cfg


def flat(node, prefix=""):
    for key, value in node.items():
        if isinstance(value, type(node)) and value:
            yield from flat(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value


def test_builders_are_registered_under_the_released_names():
    for name in ("resnest", "resnest_fpn", "retinanet_resnest_fpn"):
        assert f"build_{name}_backbone" in BACKBONE_REGISTRY


def test_add_resnest_config_changes_no_existing_value():
    before, cfg = dict(flat(get_cfg())), get_cfg()
    add_resnest_config(cfg)
    after = dict(flat(cfg))
    assert {key: after[key] for key in before} == before
    assert set(after) - set(before) == {
        *(f"MODEL.RESNETS.{k}" for k in ("DEEP_STEM", "AVD", "AVD_FIRST", "AVD_DILATED", "AVG_DOWN")),
        "MODEL.RESNETS.CONTRACT_DILATION",
        *(f"MODEL.RESNETS.{k}" for k in ("RADIX", "BOTTLENECK_WIDTH", "RES4_DILATION", "FUSED_KERNELS")),
        *("MODEL.RESNETS.CHECKPOINT_STAGES", "MODEL.RESNETS.CHECKPOINT_KEEPS", "MODEL.MEMORY_FORMAT"),
        "MODEL.RESNETS.STEM_WIDTH",
        *(f"MODEL.SEM_SEG_HEAD.{k}" for k in ("AUX_FEATURE", "AUX_LOSS_WEIGHT", "DROPOUT", "PROJECT_SIZE")),
        *("MODEL.SEM_SEG_HEAD.HEAD_CONV", "MODEL.SEM_SEG_HEAD.ALIGN_CORNERS"),
        *(f"MODEL.CLASSIFIER.{k}" for k in ("NUM_CLASSES", "LABEL_SMOOTHING", "MIXUP_ALPHA", "DROPOUT")),
        *("TRACKER.SERVICE", "TRACKER.PROJECT", "TRACKER.RUN"),
        *("MODEL.CLASSIFIER.ZERO_INIT_LAST_NORM", "DATALOADER.MAX_BAD_FILES", "TEST.IMS_PER_BATCH"),
        *(f"MODEL.CLASSIFIER.DROP_BLOCK.{k}" for k in ("PROB", "SIZE", "STAGES")),
        *(f"INPUT.CLASSIFICATION.TRAIN_{k}" for k in ("CROP", "AREA", "INTERPOLATION")),
        *(f"INPUT.CLASSIFICATION.{k}" for k in ("AUTO_AUGMENT", "COLOR_JITTER", "LIGHTING", "TEST_CROP")),
        *(f"INPUT.SCALE_CROP.{k}" for k in ("LONG_SIZE", "CROP_SIZE", "BLUR_PROB")),
        *(f"SOLVER.{k}" for k in ("OPTIMIZER", "SKIP_NOT_FINITE", "CHECKPOINTS_TO_KEEP", "HEAD_LR_FACTOR")),
        *("TEST.AVERAGE_RECALL", "TEST.BOUNDARY_IOU"),
        *(f"TEST.AUG.{k}" for k in ("SCALES", "LONG_SIZE", "WINDOW")),
    }


def test_add_resnest_config_keeps_values_when_called_again():
    cfg = small_cfg()
    cfg.MODEL.RESNETS.RADIX = 4
    add_resnest_config(cfg)
    assert cfg.MODEL.RESNETS.RADIX == 4


@pytest.mark.parametrize("order", ["before", "after"])
def test_works_before_and_after_add_deeplab_config(order):
    both = [add_resnest_config, add_deeplab_config]
    cfg = get_cfg()
    for add in both if order == "before" else reversed(both):
        add(cfg)
    cfg.MODEL.DEVICE = "cpu"
    cfg.MODEL.BACKBONE.NAME = "build_resnest_backbone"
    cfg.MODEL.RESNETS.DEPTH = 14
    cfg.MODEL.RESNETS.RES4_DILATION, cfg.MODEL.RESNETS.RES5_DILATION = 2, 4
    assert build_backbone(cfg).output_shape()["res4"].stride == 8


def test_yaml_of_the_released_plugin_loads_unchanged(tmp_path):
    (tmp_path / "released.yaml").write_text(RELEASED_YAML)
    cfg = small_cfg()
    cfg.merge_from_file(str(tmp_path / "released.yaml"))
    assert build_backbone(cfg).output_shape()["p2"].channels == 256


def test_plain_builder_gives_the_stages_asked_for():
    net = build_backbone(small_cfg("build_resnest_backbone", "MODEL.RESNETS.OUT_FEATURES", ["res4"]))
    assert isinstance(net, ResNeSt) and not hasattr(net, "res5")
    assert net.output_shape() == {"res4": ShapeSpec(channels=1024, stride=16)}


@pytest.mark.parametrize("size", [(64, 96), (96, 160)])
def test_fpn_builder_adds_p6_by_pooling(size):
    net = build_backbone(small_cfg())
    outputs = net(torch.randn(1, 3, *size))
    shapes = net.output_shape()
    assert list(outputs) == list(shapes) == ["p2", "p3", "p4", "p5", "p6"]
    for name, shape in shapes.items():
        assert outputs[name].shape == (1, 256, *(-(-s // shape.stride) for s in size))
    torch.testing.assert_close(outputs["p6"], outputs["p5"][:, :, ::2, ::2])


def test_retinanet_builder_convolves_p6_and_p7_from_res5():
    net = build_backbone(
        small_cfg(
            "build_retinanet_resnest_fpn_backbone",
            *("MODEL.RESNETS.OUT_FEATURES", ["res3", "res4", "res5"]),
            *("MODEL.FPN.IN_FEATURES", ["res3", "res4", "res5"]),
        )
    )
    assert {name: shape.stride for name, shape in net.output_shape().items()} == {
        f"p{i}": 2**i for i in range(3, 8)
    }
    assert net.top_block.p6.in_channels == 2048
    outputs = net(torch.randn(1, 3, 128, 128))
    assert outputs["p7"].shape == (1, 256, 1, 1)


@pytest.mark.parametrize("channels, image_format", [(1, "L"), (5, "multispectral")])
def test_stem_takes_the_channels_of_the_image_format(channels, image_format):
    cfg = small_cfg()
    cfg.INPUT.FORMAT = image_format
    cfg.MODEL.PIXEL_MEAN, cfg.MODEL.PIXEL_STD = [0.0] * channels, [1.0] * channels
    net = build_backbone(cfg)
    assert net.bottom_up.stem.conv1_1.in_channels == channels
    assert "p2" in net(torch.randn(1, channels, 64, 64))


# Every key, at a value other than the default, and where it must arrive.
REACHES = [
    ("RADIX", 4, lambda net: net.res2[0].conv2.radix == 4),
    ("NUM_GROUPS", 2, lambda net: net.res2[0].conv2.cardinality == 2),
    ("BOTTLENECK_WIDTH", 128, lambda net: net.res2[0].conv1.out_channels == 64),
    ("WIDTH_PER_GROUP", 64, lambda net: net.res2[0].conv1.out_channels == 64),
    ("RES2_OUT_CHANNELS", 64, lambda net: net.res5[0].out_channels == 512),
    ("DEEP_STEM", False, lambda net: hasattr(net.stem, "conv1")),
    ("AVD", False, lambda net: net.res3[0].avd_layer is None),
    ("AVD_FIRST", True, lambda net: net.res3[0].avd_first),
    ("AVG_DOWN", False, lambda net: net.res3[0].shortcut.stride == (2, 2)),
    ("RES5_DILATION", 2, lambda net: net.output_shape()["res5"].stride == 16),
    ("DEFORM_ON_PER_STAGE", [False, False, False, True], lambda net: net.res5[0].conv2_offset is not None),
    ("NORM", "GN", lambda net: isinstance(net.res2[0].conv1.norm, torch.nn.GroupNorm)),
    ("DEPTH", 26, lambda net: len(net.res2) == 2),
    ("OUT_FEATURES", ["res3"], lambda net: list(net.output_shape()) == ["res3"]),
]


@pytest.mark.parametrize("key, value, arrived", REACHES, ids=[key for key, *_ in REACHES])
def test_key_reaches_the_backbone(key, value, arrived):
    default = build_backbone(small_cfg("build_resnest_backbone"))
    changed = build_backbone(small_cfg("build_resnest_backbone", f"MODEL.RESNETS.{key}", value))
    assert arrived(changed)
    if key != "OUT_FEATURES":
        assert not arrived(default)


@pytest.mark.parametrize(
    "key, value, arrived",
    [
        ("DEFORM_MODULATED", True, lambda net: net.res5[0].conv2.conv.modulated),
        ("DEFORM_NUM_GROUPS", 2, lambda net: net.res5[0].conv2_offset.groups == 2),
    ],
)
def test_deform_key_reaches_the_backbone(key, value, arrived):
    deform = ("MODEL.RESNETS.DEFORM_ON_PER_STAGE", [False, False, False, True])
    assert not arrived(build_backbone(small_cfg("build_resnest_backbone", *deform)))
    cfg = small_cfg("build_resnest_backbone", *deform, f"MODEL.RESNETS.{key}", value)
    assert arrived(build_backbone(cfg))


@pytest.mark.parametrize(
    "key, value, arrived",
    [
        ("CONTRACT_DILATION", True, lambda net: net.res5[0].conv2.conv.dilation == (1, 1)),
        ("AVD_DILATED", False, lambda net: net.res5[0].avd_layer is None),
    ],
)
def test_key_of_dilated_stages_reaches_the_backbone(key, value, arrived):
    dilated = ("MODEL.RESNETS.RES5_DILATION", 2)
    assert not arrived(build_backbone(small_cfg("build_resnest_backbone", *dilated)))
    cfg = small_cfg("build_resnest_backbone", *dilated, f"MODEL.RESNETS.{key}", value)
    assert arrived(build_backbone(cfg))


def test_stem_out_channels_and_stride_in_1x1_reach_where_they_are_consulted():
    plain = ("MODEL.RESNETS.DEEP_STEM", False, "MODEL.RESNETS.STEM_OUT_CHANNELS", 24)
    strided = ("MODEL.RESNETS.AVD", False, "MODEL.RESNETS.STRIDE_IN_1X1", True)
    net = build_backbone(small_cfg("build_resnest_backbone", *plain, *strided))
    assert net.stem.conv1.out_channels == 24 and net.res3[0].conv1.stride == (2, 2)


def test_freeze_at_reaches_the_backbone():
    net = build_backbone(small_cfg("build_resnest_backbone", "MODEL.BACKBONE.FREEZE_AT", 3))
    assert not any(p.requires_grad for p in net.res3.parameters())
    assert all(p.requires_grad for p in net.res4.parameters())


@pytest.mark.parametrize(
    "builder, overrides, message",
    [
        ("resnest", ("RESNETS.RADIX", -1), "MODEL.RESNETS.RADIX must be a whole number >= 0, got -1"),
        ("resnest", ("RESNETS.NORM", "BM"), "MODEL.RESNETS.NORM must be one of .* got 'BM'"),
        (
            "resnest",
            ("RESNETS.RES4_DILATION", 2),
            "MODEL.RESNETS.RES5_DILATION .* `?MODEL.RESNETS.RES4_DILATION",
        ),
        ("resnest", ("RESNETS.AVD", False, "RESNETS.AVD_FIRST", True), "AVD_FIRST needs MODEL.RESNETS.AVD:"),
        ("resnest", ("BACKBONE.FREEZE_AT", 7), "MODEL.BACKBONE.FREEZE_AT must be 0"),
        ("resnest_fpn", ("RESNETS.OUT_FEATURES", ["res2", "res3"]), "MODEL.FPN.IN_FEATURES must be some of"),
        ("resnest_fpn", ("RESNETS.RES5_DILATION", 2), "MODEL.FPN.IN_FEATURES must have strides that double"),
        ("resnest_fpn", ("FPN.IN_FEATURES", ["res2", "res4"]), "MODEL.FPN.IN_FEATURES must have strides"),
        (
            "retinanet_resnest_fpn",
            ("RESNETS.OUT_FEATURES", ["res2"], "FPN.IN_FEATURES", ["res2"]),
            "MODEL.RESNETS.OUT_FEATURES must hold res5",
        ),
    ],
)
def test_combinations_that_cannot_work_are_named_by_key(builder, overrides, message):
    overrides = [f"MODEL.{o}" if i % 2 == 0 else o for i, o in enumerate(overrides)]
    with pytest.raises(OptionError, match=message):
        build_backbone(small_cfg(f"build_{builder}_backbone", *overrides))


def test_forgotten_add_resnest_config_is_named():
    cfg = get_cfg()
    cfg.MODEL.BACKBONE.NAME = "build_resnest_backbone"
    with pytest.raises(OptionError, match="call add_resnest_config"):
        build_backbone(cfg)


def test_a_radix_that_does_not_divide_the_width_is_named():
    with pytest.raises(OptionError, match=r"MODEL.RESNETS.RADIX must divide 32 channels .*got 3"):
        build_backbone(small_cfg("build_resnest_backbone", "MODEL.RESNETS.RADIX", 3))
