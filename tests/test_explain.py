"""What networks look at: recorded attention and what is computed from it, class activation maps, their pages."""

import copy
import functools
import re

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.layers import ShapeSpec
from detectron2.modeling import Backbone
from detectron2.modeling.poolers import assign_boxes_to_levels
from detectron2.structures import Boxes
from PIL import Image
from robust import tiny
from support import assert_one_line_error
from test_report import Page
from torch import nn

from resnest_d2 import ResNeSt, SplitAttentionConv2d, UserError, model_zoo, optimize_for_inference
from resnest_d2.engine import Trainer, load_config
from resnest_d2.explain import Block, dead_channels, explain_images, layer_cam, recorded_attention

NARROW = {"width_per_group": 32, "res2_out_channels": 64}


@pytest.mark.parametrize("radix, groups", [(1, 1), (1, 2), (2, 1), (2, 2), (4, 2)])
def test_recorded_attention_is_what_the_splits_are_weighted_by(radix, groups):
    torch.manual_seed(0)
    block = SplitAttentionConv2d(8, 16, groups=groups, radix=radix).double().eval()
    x = torch.randn(3, 8, 5, 6, dtype=torch.float64)
    with torch.no_grad(), recorded_attention(nn.Sequential(block)) as recorded:
        expected = block(x)
    ((passes,),) = recorded.values()
    assert passes.shape == (3, radix, 16)
    splits = block.bn0(block.conv(x)).relu().unflatten(1, (radix, 16))
    torch.testing.assert_close((splits * passes[..., None, None]).sum(1), expected, atol=1e-6, rtol=1e-6)


def networks(**options):
    torch.manual_seed(0)
    return ResNeSt(14, **{**NARROW, **options}).eval()


def attention_of(model, x):
    with torch.no_grad(), recorded_attention(model) as recorded:
        model(x)
    return recorded


def test_a_fused_model_and_one_that_recomputes_activations_have_the_same_attention():
    plain, kept = networks(), networks(checkpoint_stages=["res2", "res3", "res4", "res5"])
    x = torch.rand(2, 3, 48, 64)
    before = attention_of(plain, x)
    assert [*before] == ["res2.0", "res3.0", "res4.0", "res5.0"]
    assert all(value[0].std() > 1e-4 for value in before.values())
    for name, (value,) in attention_of(kept, x).items():
        assert torch.equal(value, before[name][0])
    for name, (value,) in attention_of(optimize_for_inference(plain), x).items():
        torch.testing.assert_close(value, before[name][0], atol=1e-5, rtol=0)


def test_nothing_stays_on_the_model():
    model = networks()
    with pytest.raises(ZeroDivisionError), recorded_attention(model):
        raise ZeroDivisionError
    assert not any(module._forward_hooks for module in model.modules())


def test_a_model_without_splits_is_refused():
    with pytest.raises(UserError, match=r"no Split-Attention \(MODEL.RESNETS.RADIX 0"):
        attention_of(networks(radix=0), torch.rand(1, 3, 32, 32))


def block(attention, classes=None):
    attention = np.array(attention, np.float32)
    return Block("res2.0", attention, np.array([-1] * len(attention) if classes is None else classes))


def test_entropy_is_1_for_equal_splits_and_0_for_one_split():
    assert block([[[0.5, 1.0, 0.25], [0.5, 0.0, 0.75]]]).entropy == pytest.approx([1, 0, 0.8112781], abs=1e-6)
    assert block([[[0.25] * 2] * 4]).entropy == pytest.approx([1, 1])
    assert block([[[0.5, 1.0, 0.0]]]).entropy == pytest.approx([1, 0, 0])  # one split and its sigmoid
    assert block([[[1.0], [0.0]], [[0.5], [0.5]]]).entropy == pytest.approx([0.5])  # the mean over images


@pytest.mark.parametrize(
    "values, classes, explained, chance",
    [
        ([0.2, 0.2, 0.8, 0.8], [0, 0, 1, 1], 1, 1 / 3),
        ([0.2, 0.8, 0.2, 0.8], [0, 0, 1, 1], 0, 1 / 3),
        ([0.1, 0.3, 0.5, 0.7], [5, 5, 9, 9], 0.8, 1 / 3),  # 1 - (2 * 0.1**2 * 2) / (2 * (0.3**2 + 0.1**2))
        ([0.1, 0.3, 0.9, 0.5, 0.7], [5, 5, -1, 9, 9], 0.8, 1 / 3),  # an image without a class
        ([0.4, 0.4, 0.4, 0.4], [0, 0, 1, 1], np.nan, 1 / 3),
        ([0.1, 0.3, 0.5], [0, 1, 2], np.nan, np.nan),  # a class for each image explains everything
        ([0.1, 0.3, 0.5], [4, 4, 4], np.nan, np.nan),
        ([0.1, 0.3, 0.5], None, np.nan, np.nan),
    ],
)
def test_explained_variance_is_that_between_classes(values, classes, explained, chance):
    measured = block([[[value], [1 - value]] for value in values], classes)
    assert measured.explained == pytest.approx(explained, abs=1e-5, nan_ok=True)
    assert measured.by_chance == pytest.approx(chance, nan_ok=True)


def test_the_class_of_random_attention_explains_as_much_as_by_chance():
    rng = np.random.default_rng(0)
    measured = block(rng.uniform(0, 1, (60, 1, 2000)), rng.integers(0, 12, 60))
    assert measured.explained == pytest.approx(measured.by_chance, abs=0.01)


def test_dead_channels_are_those_that_are_always_even_or_always_saturated():
    first = np.array([[0.5, 0.54, 0.5, 0.995, 0.001, 0.999], [0.46, 0.5, 0.9, 0.999, 0.002, 0.5]])
    measured = block(np.stack([first, 1 - first], 1))
    assert measured.even.tolist() == [True, True, False, False, False, False]
    assert measured.saturated.tolist() == [False, False, False, True, True, False]
    (line,) = dead_channels([measured, block([[[0.3], [0.7]]])])
    assert line.startswith("res2.0: of 6 channels, 2 always have even attention (within 0.05 of 1/2) and 2 ")
    assert block([[[0.25]] * 4]).even.all() and block([[[0.5]]]).even.all()


def test_layer_cam_weights_each_activation_by_its_own_positive_gradient():
    rng = np.random.default_rng(0)
    activation, gradient = rng.normal(size=(2, 3, 4, 5))
    expected = np.zeros((4, 5))
    for y in range(4):
        for x in range(5):
            expected[y, x] = max(sum(max(gradient[c, y, x], 0) * activation[c, y, x] for c in range(3)), 0)
    heat = layer_cam(torch.tensor(activation), torch.tensor(gradient))
    np.testing.assert_allclose(heat, expected / expected.max())
    assert not layer_cam(torch.tensor(activation), -torch.tensor(gradient).abs()).any()


class Known(Backbone):
    """Four channels at stride 1, the mean of each weighted for three classes: all gradients are known."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.res5 = nn.Conv2d(3, 4, 1)
        self.linear = nn.Linear(4, 3)
        with torch.no_grad():
            self.res5.weight.abs_()  # so that activations are positive and one of the classes has a map
            self.linear.weight.copy_(
                torch.tensor([[-1, -1, -1, 0], [0.5, -1, 0.25, 0], [0.1, 0.2, 0.3, 0.4]])
            )

    def forward(self, x):
        return {"linear": self.linear(self.res5(x).add_(0).mean((2, 3)))}

    def output_shape(self):
        return {"linear": ShapeSpec(channels=3)}


class Classifier(nn.Module):
    def __init__(self):
        super().__init__()
        self.backbone = Known()

    def forward(self, inputs):
        scores = self.backbone(torch.stack([record["image"] for record in inputs]).float() / 255)["linear"]
        return [{"probabilities": row} for row in scores.softmax(1)]


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """Names of three images in a folder."""
    folder = tmp_path_factory.mktemp("pictures")
    rng = np.random.default_rng(0)
    for i in range(3):
        Image.fromarray(rng.integers(0, 256, (60, 80, 3), np.uint8)).save(folder / f"{i}.png")
    return sorted(folder.iterdir())


@pytest.fixture
def colours(pictures):
    """A dataset of these images, of three classes."""
    DatasetCatalog.register(
        "colours", lambda: [{"file_name": str(f), "label": i} for i, f in enumerate(pictures)]
    )
    MetadataCatalog.get("colours").set(image_classes=["red", "green", "blue"])
    yield "colours"
    DatasetCatalog.remove("colours")
    MetadataCatalog.remove("colours")


@pytest.fixture(scope="module")
def classifies():
    settings = ["INPUT.CLASSIFICATION.TEST_CROP", "32", "MODEL.CLASSIFIER.NUM_CLASSES", "3"]
    return load_config(model_zoo.get_config_file("classification/resnest14_small"), settings)


def test_the_map_of_a_network_with_known_gradients(classifies, colours):
    model = Classifier()
    (explained,) = explain_images(classifies, model, colours, 1, class_name="green")
    x = torch.tensor(
        explained.pixels[..., ::-1].copy() if classifies.INPUT.FORMAT == "BGR" else explained.pixels
    )
    activation = model.backbone.res5(x.permute(2, 0, 1)[None].float() / 255)[0]
    weights = model.backbone.linear.weight[1].clamp(min=0)
    expected = (weights[:, None, None] * activation).sum(0).clamp(min=0).detach()
    np.testing.assert_allclose(explained.heat, expected / expected.max(), atol=1e-6)
    assert explained.layer == "res5" and explained.what.startswith("green ")
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_without_a_class_it_is_the_predicted_one(classifies, colours):
    model = Classifier()
    with torch.no_grad():
        model.backbone.linear.bias[2] = 40.0  # where the gradient of the probability is 0
    for explanation in explain_images(classifies, model, colours, 3):
        assert explanation.what == "blue 100%" and explanation.heat.max() > 0


@pytest.mark.parametrize(
    "options, message",
    [
        ({"class_name": "gren"}, "has no class 'gren'; did you mean green"),
        ({"layer": "res55"}, "there is no 'res55'; did you mean res5"),
        ({"layer": "linear"}, "--layer linear has no map of the image"),
    ],
)
def test_what_is_not_there_is_named(options, message, classifies, colours):
    with pytest.raises(UserError, match=re.escape(message)):
        explain_images(classifies, Classifier(), colours, 1, **options)


def test_a_dataset_without_images_is_named(classifies):
    DatasetCatalog.register("empty", lambda: [])
    MetadataCatalog.get("empty").set(image_classes=["red", "green", "blue"])
    try:
        with pytest.raises(UserError, match=r"DATASETS\.TEST empty has no images"):
            explain_images(classifies, Classifier(), "empty", 1)
    finally:
        DatasetCatalog.remove("empty")
        MetadataCatalog.remove("empty")


#: Recipe, settings that make it small, and more of them.
KINDS = {
    "detector": ("quickstart", tiny.SETTINGS, ("MODEL.ROI_HEADS.SCORE_THRESH_TEST", 0.0)),
    "segmentation": (
        *("segmentation/deeplabv3_resnest14_small", tiny.SEGMENTATION),
        ("MODEL.SEM_SEG_HEAD.NUM_CLASSES", 3),
    ),
    "classifier": (
        *("classification/resnest14_small", tiny.CLASSIFICATION),
        ("MODEL.CLASSIFIER.NUM_CLASSES", 3),
    ),
}


@pytest.fixture(scope="module")
def run_of(tmp_path_factory, few_shapes):
    """run_of(kind): flags and KEY VALUE pairs of a network with random weights and its images; cfg and the model."""

    @functools.cache
    def make(kind):
        folder = tmp_path_factory.mktemp(kind)
        makers = {"segmentation": tiny.make_masks, "classifier": tiny.make_folders}
        data = makers[kind](folder) if kind in makers else tiny.shapes(few_shapes)
        pairs = zip(data[::2], data[1::2])
        name, settings, more = KINDS[kind]
        file = str(model_zoo.get_config_file(name))
        words = [str(word) for word in (*settings, *more)]
        cfg = load_config(file, words)
        torch.manual_seed(0)
        model = Trainer.build_model(cfg)
        torch.save({"model": model.state_dict()}, folder / "w.pth")
        flags = ["--config-file", file, *(w for pair in pairs if "train" not in pair[0] for w in pair)]
        words += ["MODEL.WEIGHTS", str(folder / "w.pth"), "OUTPUT_DIR", str(folder / "out")]
        return flags, words, cfg, model

    return make


def test_a_detection_is_explained_on_the_level_that_it_came_from_and_in_its_box(run_of, monkeypatch):
    _, _, cfg, model = run_of("detector")
    levels = set()
    for size in (12, 24, 48):  # as if the small images were large, so that objects are of several levels
        monkeypatch.setattr(model.roi_heads.box_pooler, "canonical_box_size", size)
        for explanation in explain_images(cfg, model, "shapes_val", 2, detection=2):
            box = Boxes(torch.tensor([explanation.box]))
            level = assign_boxes_to_levels([box], 2, 5, size, 4).item() + 2
            assert explanation.layer == f"p{level}"
            levels.add(level)
            # Random weights hardly move a proposal, so what is farther from the box than two pixels of the map
            # is not seen.
            x0, y0, x1, y1 = (int(side) for side in explanation.box)
            heat, edge = explanation.heat.copy(), 2 * 2**level
            assert heat[y0 : y1 + 1, x0 : x1 + 1].max() > 0.5
            heat[max(y0 - edge, 0) : y1 + edge, max(x0 - edge, 0) : x1 + edge] = 0
            assert not heat.any()
    assert len(levels) > 1


@pytest.mark.parametrize(
    "options, message",
    [
        ({"detection": 6}, "--detection 6: the model finds at most 5 in each of 2 images"),
        ({"detection": 6, "class_name": "circle"}, "--detection 6: the model finds at most"),
        ({"layer": "p22"}, "did you mean p2"),
        ({"layer": "mask_head_of"}, "--layer: there is no"),
        ({"layer": "box_predictor"}, "--layer box_predictor has no map of the image"),
        ({"layer": "conv1"}, "'conv1' is the end of"),
        ({"layer": "proposal_generator.rpn_head.conv"}, "does not change the score"),
    ],
)
def test_a_layer_or_a_detection_that_a_detector_has_not_is_named(options, message, run_of):
    _, _, cfg, model = run_of("detector")
    with pytest.raises(UserError, match=re.escape(message)):
        explain_images(cfg, model, "shapes_val", 2, **options)


@pytest.mark.parametrize("name", ["cascade_resnest50", "retinanet_resnest50"])
def test_other_detectors_are_explained(name, few_shapes):
    settings = [*tiny.SETTINGS, "DATASETS.TEST", "('shapes_val',)", "MODEL.RETINANET.SCORE_THRESH_TEST", 0.0]
    settings += ["MODEL.ROI_HEADS.SCORE_THRESH_TEST", 0.0, "MODEL.RESNETS.NORM", "BN", "MODEL.FPN.NORM", ""]
    settings += ["MODEL.ROI_HEADS.NUM_CLASSES", 3, "MODEL.RETINANET.NUM_CLASSES", 3]
    cfg = load_config(model_zoo.get_config_file(name), [*map(str, settings)])
    torch.manual_seed(0)
    for explanation in explain_images(cfg, Trainer.build_model(cfg), "shapes_val", 2):
        assert re.fullmatch("p[2-7]", explanation.layer) and explanation.heat.max() > 0, explanation.problem


def test_a_layer_inside_of_the_backbone_has_a_map_of_the_whole_image_also_in_a_fused_model(run_of):
    _, _, cfg, model = run_of("detector")
    (explained,) = explain_images(cfg, model, "shapes_val", 1, layer="res4")
    assert explained.layer == "res4" and explained.heat.shape == explained.pixels.shape[:2]
    fused = optimize_for_inference(copy.deepcopy(model))
    (again,) = explain_images(cfg, fused, "shapes_val", 1, layer="res4")
    np.testing.assert_allclose(again.heat, explained.heat, atol=1e-3)
    assert again.heat.any()


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_the_tool_writes_pictures_and_a_page_that_needs_nothing_else(kind, run_of, run_python, tmp_path):
    flags, rest, *_ = run_of(kind)
    for what, count in (("attention", 4), ("cam", 3)):
        out = tmp_path / what
        result = run_python("tools/explain.py", what, *flags, "--num-images", 3, "--output", out, *rest)
        assert result.returncode == 0, result.stderr[-3000:]
        files = sorted(out.glob("*.png"))
        assert len(files) == count and str(out / "index.html") in result.stdout
        assert all(np.array(Image.open(file).convert("RGB")).std() > 1 for file in files)
        text = (out / "index.html").read_text()
        page = Page(text)
        assert not page.open and all(link.startswith(("data:image/", "#")) for link in page.links)
        assert sum(link.startswith("data:") for link in page.links) == (4 if what == "attention" else 6)
    assert "res5.0" in (tmp_path / "attention/index.html").read_text()


def test_files_of_others_are_kept_unless_asked(run_of, run_python, tmp_path):
    flags, rest, *_ = run_of("classifier")
    (tmp_path / "mine.txt").touch()
    words = ("tools/explain.py", "cam", *flags, "--num-images", 1, "--output", tmp_path)
    assert_one_line_error(run_python(*words, *rest), f"{tmp_path} is not empty")
    assert run_python(*words, "--overwrite", *rest).returncode == 0
    assert (tmp_path / "mine.txt").exists()
    assert_one_line_error(run_python(*words, *rest), "is not empty")  # though they are its own


@pytest.mark.parametrize(
    "first, flags, settings, message",
    [
        ("", (), (), "the first word must be attention or cam"),
        ("attention", ("--layer", "res4"), (), "are for cam"),
        ("cam", ("--num-images", "0"), (), "--num-images must be >= 1"),
        ("cam", ("--num-images", "x"), (), "--num-images"),
        ("attention", ("--allow-random-weights",), ("MODEL.RESNETS.RADIX", 0), "has no Split-Attention"),
    ],
)
def test_mistakes_are_named_in_one_line(first, flags, settings, message, run_of, run_python, tmp_path):
    usual, rest, *_ = run_of("classifier")
    words = [*([first] if first else []), *usual, *flags, "--output", tmp_path / "out", *rest, *settings]
    assert_one_line_error(run_python("tools/explain.py", *words), message)
    assert not (tmp_path / "out").exists()


def test_names_on_a_page_are_escaped(tmp_path):
    from resnest_d2.explain import Explanation, pages

    pixels = np.full((20, 30, 3), 200, np.uint8)
    image = tmp_path / "<b>$x$&.png"
    heat = np.linspace(0, 1, 600, dtype=np.float32).reshape(20, 30)
    explained = [Explanation(image, "<i>dog</i> 97%", "p3", pixels, heat, (2.0, 2.0, 9.0, 9.0))]
    explained.append(Explanation(image, problem="has <none>"))
    (path,) = pages.write_maps(explained, "<u>", tmp_path / "out")
    text = (path.parent / "index.html").read_text()
    assert path.name == "<b>$x$&.png"
    assert not re.search("<(b|i|u|none)>", text) and "&lt;i&gt;dog" in text and "has &lt;none&gt;" in text
