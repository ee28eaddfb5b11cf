"""The backbone: every option on and off, and detectron2's backbone contract."""

import logging

import pytest
import torch
from detectron2.layers import FrozenBatchNorm2d
from fvcore.nn import FlopCountAnalysis
from torch import nn

from resnest_d2 import OptionError, ResNeSt
from resnest_d2.modeling.resnest import STAGE_BLOCKS

FEATURES = ("stem", "res2", "res3", "res4", "res5")
ODD = (2, 3, 75, 101)


def small(**options):
    """A ResNeSt with one block per stage and an eighth of the channels."""
    narrow = {"width_per_group": 32, "res2_out_channels": 32, "stem_width": 8}
    return ResNeSt(14, **{**narrow, "out_features": FEATURES, **options})


def shapes_seen_by(module: nn.Module, net: ResNeSt, size=ODD):
    """Input and output shape of a module in a forward pass of the net."""
    seen = []
    hook = module.register_forward_hook(lambda _, args, out: seen.append((args[0].shape, out.shape)))
    net(torch.randn(size))
    hook.remove()
    return seen[0]


OPTIONS = [
    {},
    {"deep_stem": False, "stem_out_channels": 24},
    {"radix": 0},
    {"radix": 1},
    {"radix": 4},
    {"cardinality": 4},
    {"radix": 4, "cardinality": 2, "bottleneck_width": 40},
    {"radix": 1, "cardinality": 4, "bottleneck_width": 24, "avd_first": True},
    {"avd": False},
    {"avd": False, "stride_in_1x1": True},
    {"avd_first": True},
    {"avg_down": False},
    {"res5_dilation": 2},
    {"res4_dilation": 2, "res5_dilation": 4},
    {"res4_dilation": 2, "res5_dilation": 4, "contract_dilation": True, "avd_dilated": False},
    {"deform_on_per_stage": (True, True, True, True)},
    {"deform_on_per_stage": (False, True, True, True), "deform_modulated": True, "deform_num_groups": 2},
    {"in_channels": 1},
    {"in_channels": 7},
    {"norm": "FrozenBN"},
    {"norm": ""},
    {"num_classes": 10, "out_features": (*FEATURES, "linear")},
]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("size", [(64, 96), (75, 101), (33, 31)])
def test_output_shape_equals_real_shapes(options, size):
    net = small(**options)
    outputs = net(torch.randn(2, options.get("in_channels", 3), *size))
    assert list(outputs) == list(net.output_shape())
    for name, shape in net.output_shape().items():
        if name == "linear":
            assert outputs[name].shape == (2, shape.channels)
        else:
            assert outputs[name].shape == (2, shape.channels, *(-(-s // shape.stride) for s in size))


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_every_trainable_parameter_gets_a_gradient(options):
    net = small(**options)
    outputs = net(torch.randn(2, options.get("in_channels", 3), 75, 101))
    sum(y.square().mean() for y in outputs.values()).backward()
    missing = [n for n, p in net.named_parameters() if p.requires_grad and p.grad is None]
    assert missing == []


@pytest.mark.parametrize("depth", STAGE_BLOCKS)
def test_depth_sets_the_blocks_of_each_stage(depth):
    with torch.device("meta"):
        net = ResNeSt(depth, out_features=FEATURES)
    assert tuple(len(getattr(net, name)) for name in FEATURES[1:]) == STAGE_BLOCKS[depth]


def test_parameter_names_are_the_released_ones():
    names = {n for n in small().state_dict() if "running" not in n and "tracked" not in n}
    norm = ("norm.weight", "norm.bias")
    expected = {f"stem.conv1_{i}.{p}" for i in (1, 2, 3) for p in ("weight", *norm)}
    for stage in FEATURES[1:]:
        for conv in ("conv1", "conv3", "shortcut"):
            expected |= {f"{stage}.0.{conv}.{p}" for p in ("weight", *norm)}
        for part in ("bn0", "fc1", "bn1", "fc2"):
            expected |= {f"{stage}.0.conv2.{part}.{p}" for p in ("weight", "bias")}
        expected.add(f"{stage}.0.conv2.conv.weight")
    assert names == expected


def test_deep_stem_off_is_the_plain_stem():
    net = small(deep_stem=False, stem_out_channels=24)
    assert net.stem.conv1.kernel_size == (7, 7) and not hasattr(net.stem, "conv1_1")
    assert net.output_shape()["stem"].channels == 24


def test_avd_puts_the_stride_into_an_average_pool_after_the_3x3_convolution():
    net = small(stride_in_1x1=True)  # not consulted with avd
    for block in (net.res3[0], net.res4[0], net.res5[0]):
        (_, _, h, w), (_, _, oh, ow) = shapes_seen_by(block.avd_layer, net)
        assert (oh, ow) == (-(-h // 2), -(-w // 2))
        (_, _, h, w), (_, _, oh, ow) = shapes_seen_by(block.conv2, net)
        assert (oh, ow) == (h, w)
        assert block.conv1.stride == (1, 1)
    assert net.res2[0].avd_layer is None


def test_avd_first_puts_the_pool_before_the_3x3_convolution():
    last, first = small(), small(avd_first=True)
    assert shapes_seen_by(last.res3[0].conv2, last)[0][2:] == (19, 26)
    assert shapes_seen_by(first.res3[0].conv2, first)[0][2:] == (10, 13)


@pytest.mark.parametrize("in_1x1", (False, True))
@pytest.mark.parametrize("radix", (0, 2))
def test_avd_off_puts_the_stride_into_a_convolution(in_1x1, radix):
    block = small(avd=False, stride_in_1x1=in_1x1, radix=radix).res3[0]
    conv2 = block.conv2.conv if radix else block.conv2
    assert block.avd_layer is None
    assert (block.conv1.stride[0], conv2.stride[0]) == ((2, 1) if in_1x1 else (1, 2))


def test_avg_down_off_strides_the_shortcut_convolution():
    assert small().res3[0].shortcut.stride == (1, 1)
    assert isinstance(small().res3[0].shortcut_avgpool, nn.AvgPool2d)
    assert small(avg_down=False).res3[0].shortcut.stride == (2, 2)
    assert small(avg_down=False).res3[0].shortcut_avgpool is None


@pytest.mark.parametrize("dilations, strides", [((1, 2), (16, 16)), ((2, 4), (8, 8))])
def test_dilated_stages_keep_resolution_and_their_average_pool(dilations, strides):
    net = ResNeSt(26, res4_dilation=dilations[0], res5_dilation=dilations[1], out_features=FEATURES)
    shapes = net.output_shape()
    assert (shapes["res4"].stride, shapes["res5"].stride) == strides
    for stage, dilation in zip((net.res4, net.res5), dilations):
        assert all(block.conv2.conv.dilation == (dilation, dilation) for block in stage)
    assert net.res5[0].avd_layer.stride == 1 and net.res5[0].avd_layer.kernel_size == 3
    assert net.res5[1].avd_layer is None


@pytest.mark.parametrize("dilations", [(1, 1), (1, 2), (2, 4)])
def test_contracted_dilation_halves_that_of_the_first_block_of_dilated_stages(dilations):
    net = ResNeSt(
        26, **dict(zip(("res4_dilation", "res5_dilation"), dilations)), contract_dilation=True,
        deform_on_per_stage=(False, True, True, True),
    )  # fmt: skip
    for stage, dilation in zip((net.res3, net.res4, net.res5), (1, *dilations)):
        for block, expected in zip(stage, (max(1, dilation // 2), dilation)):
            assert (block.conv2.conv.dilation, block.conv2.conv.padding) == (expected, expected)
            assert block.conv2_offset.dilation == block.conv2_offset.padding == (expected, expected)


@pytest.mark.parametrize("avd_first", (False, True))
def test_avd_dilated_off_drops_the_pool_of_dilated_stages_alone(avd_first):
    net = small(res5_dilation=2, avd_dilated=False, avd_first=avd_first)
    assert [net.res3[0].avd_layer.stride, net.res4[0].avd_layer.stride] == [2, 2]
    assert net.res5[0].avd_layer is None
    assert net.output_shape()["res5"].stride == 16


def test_radix_0_is_a_plain_convolution_and_radix_1_has_attention():
    assert not hasattr(small(radix=0).res2[0].conv2, "fc1")
    assert small(radix=1).res2[0].conv2.fc2.out_channels == 32


def test_group_width_counts_the_cardinality_once():
    net = ResNeSt(14, cardinality=2, bottleneck_width=40, radix=4)
    assert [getattr(net, s)[0].conv1.out_channels for s in FEATURES[1:]] == [80, 160, 320, 640]


@pytest.mark.parametrize("freeze_at", range(6))
def test_freeze_at_freezes_exactly_its_stages(freeze_at):
    net = small(freeze_at=freeze_at, num_classes=5, out_features=[*FEATURES, "linear"])
    for i, name in enumerate(FEATURES, 1):
        stage = getattr(net, name)
        frozen = i <= freeze_at
        assert all(p.requires_grad != frozen for p in stage.parameters())
        assert any(isinstance(m, FrozenBatchNorm2d) for m in stage.modules()) == frozen
        assert any(isinstance(m, nn.BatchNorm2d) for m in stage.modules()) != frozen
    assert net.linear.weight.requires_grad


@pytest.mark.parametrize(
    "features", [("stem",), ("res2",), ("res3", "stem"), ("res2", "res4"), FEATURES], ids=str
)
def test_out_features_come_alone_and_later_stages_are_not_built(features):
    net = small(out_features=features)
    assert set(net(torch.randn(ODD))) == set(features) == set(net.output_shape())
    last = max(FEATURES.index(name) for name in features)
    assert [name for name in FEATURES if hasattr(net, name)] == list(FEATURES[: last + 1])


def test_default_output_is_the_last_layer():
    assert list(ResNeSt(14).output_shape()) == ["res5"]
    assert list(ResNeSt(14, num_classes=3).output_shape()) == ["linear"]


def test_linear_stands_on_res5_whatever_else_is_asked_for():
    net = small(num_classes=4, out_features=["res2", "linear"])
    assert net.linear.in_features == net.res5[-1].out_channels
    assert net(torch.randn(ODD))["linear"].shape == (2, 4)


def test_eval_output_of_an_image_does_not_depend_on_its_batch():
    net, x = small().eval(), torch.randn(ODD)
    with torch.no_grad():
        together, alone = net(x)["res5"], net(x[:1])["res5"]
    torch.testing.assert_close(together[:1], alone)


# Published by timm for its own models, and by table 3 of the paper (one or two decimals).
MEASURED = {
    "resnest14": (10.61, 2.76),
    "resnest26": (17.07, 3.64),
    "resnest50": (27.48, 5.40),
    "resnest50_fast_1s4x24d": (25.68, 4.43),
    "resnest50_fast_4s2x40d": (30.42, 4.40),
    "resnest101": (48.28, 10.24),
    "resnest200": (70.20, 17.49),
    "resnest269": (110.93, 22.53),
}
PAPER = {"resnest50_fast_2s1x64d": (27.5, 4.34), "resnest101_fast": (48.2, 8.07)}


@pytest.mark.parametrize("variant, millions", [(v, size) for v, (size, _) in {**MEASURED, **PAPER}.items()])
def test_variants_have_the_published_size(variant, millions):
    with torch.device("meta"):
        net = ResNeSt.from_variant(variant, num_classes=1000)
    size = sum(p.numel() for p in net.parameters()) / 1e6
    assert size == pytest.approx(millions, abs=0.05 if variant in PAPER else 0.01)


def deep_are_slow(costs):
    deep = {"resnest200", "resnest269", "resnest101_fast"}
    return [pytest.param(v, cost, marks=[pytest.mark.slow] * (v in deep)) for v, (_, cost) in costs.items()]


@pytest.mark.parametrize("variant, gmacs", deep_are_slow({**MEASURED, **PAPER}))
def test_variants_have_the_published_cost(variant, gmacs):
    logging.getLogger("fvcore.nn.jit_analysis").setLevel(logging.ERROR)
    net = ResNeSt.from_variant(variant, num_classes=1000).eval()
    cost = FlopCountAnalysis(net, torch.randn(1, 3, 224, 224)).total() / 1e9
    assert cost == pytest.approx(gmacs, rel=0.01)


def test_sizes_asserted_here_are_those_of_the_fact_sheet(facts):
    sizes = facts("imagenet_and_sizes")
    measured = {k: (v["params"], v["gmacs_224"]) for k, v in sizes["timm_measured"].items()}
    assert measured == MEASURED
    assert sizes["depths"] == {str(depth): list(blocks) for depth, blocks in STAGE_BLOCKS.items()}
    paper = sizes["paper_table3_at_224"]
    assert {k: (paper[k]["params"], paper[k]["gmacs"]) for k in PAPER} == PAPER


@pytest.mark.parametrize(
    "radix, cardinality, width", [(1, 1, 64), (2, 1, 64), (4, 1, 64), (1, 2, 40), (2, 2, 40)]
)
def test_fast_variant_names_set_radix_cardinality_and_width(radix, cardinality, width):
    with torch.device("meta"):
        net = ResNeSt.from_variant(f"resnest50_fast_{radix}s{cardinality}x{width}d")
    block = net.res3[0]
    assert block.avd_first
    assert (block.conv2.radix, block.conv2.cardinality) == (radix, cardinality)
    assert block.conv1.out_channels == 2 * width * cardinality


def test_options_win_over_the_variant_name():
    assert ResNeSt.from_variant("resnest14_fast", avd_first=False, freeze_at=2).res3[0].avd_first is False


@pytest.mark.parametrize(
    "options, message",
    [
        ({"depth": 34}, "depth must be one of 14, 26, 50, 101, 152, 200, 269, got 34"),
        ({"radix": -1}, "radix must be a whole number >= 0, got -1"),
        ({"cardinality": 0}, "cardinality must be a whole number >= 1, got 0"),
        ({"cardinality": 3, "radix": 1, "bottleneck_width": 24}, "cardinality must divide 32 channels"),
        ({"in_channels": 0}, "in_channels must be a whole number >= 1, got 0"),
        ({"bottleneck_width": 0}, "bottleneck_width must be >= 1, got 0"),
        ({"avd": False, "avd_first": True}, "avd_first needs `avd`"),
        ({"res4_dilation": 2}, "res5_dilation must make one of"),
        ({"res5_dilation": 3}, "res5_dilation must make one of"),
        ({"deform_on_per_stage": (True,)}, "deform_on_per_stage must have one entry"),
        ({"deform_on_per_stage": (True,) * 4, "deform_num_groups": 7}, "deform_num_groups must divide 64"),
        ({"freeze_at": 6}, "freeze_at must be 0"),
        ({"out_features": []}, "out_features must be some of"),
        ({"out_features": ["res6"]}, "out_features must be some of stem, res2, res3, res4, res5, got"),
        ({"out_features": ["linear"]}, "out_features must be some of"),
        ({"out_features": ["res5"], "num_classes": 3}, "out_features must hold linear"),
        ({"norm": "BatchNorm"}, "norm must be one of"),
        ({"norm": 5}, "norm must be one of"),
        ({"radix": True}, "radix must be a whole number >= 0, got True"),
        ({"stem_width": -4}, "stem_width must be a whole number >= 1, got -4"),
        ({"stem_width": 0}, "stem_width must be a whole number >= 1, got 0"),
        ({"num_classes": 0, "out_features": ["linear"]}, "num_classes must be a whole number >= 1, got 0"),
        ({"deep_stem": "no"}, "deep_stem must be True or False, got 'no'"),
        ({"deform_on_per_stage": None}, "deform_on_per_stage must be a list, got None"),
        ({"out_features": "res5"}, "out_features must be a list, got 'res5'"),
        ({"norm": "GN", "bottleneck_width": 40}, "norm does not fit 80 channels .*; use BN"),
    ],
)
def test_options_that_cannot_work_are_named(options, message):
    with torch.device("meta"), pytest.raises(OptionError, match=message):
        ResNeSt(**{"depth": 14, **options})


@pytest.mark.parametrize("name", ["resnet50", "resnest51", "resnest50_2s1x64d_fast", "resnest"])
def test_unknown_variant_is_named(name):
    with pytest.raises(OptionError, match=f"variant must be .* got '{name}'"):
        ResNeSt.from_variant(name)
