"""Weights of DeepLabV3 from the authors and from mmsegmentation."""

import hashlib

import pytest
import resnest.torch
import torch
from detectron2.layers import ShapeSpec
from parity.measure import authors_heads
from torch.nn import functional as F

from resnest_d2 import UserError, model_zoo
from resnest_d2.checkpoint import convert
from resnest_d2.checkpoint.segmentors import semantic_head
from resnest_d2.engine import load_config
from resnest_d2.engine.trainer import load_model
from resnest_d2.modeling import ResNeStDeepLabV3Head
from resnest_d2.published import SEGMENTORS


@pytest.fixture(scope="module")
def authors():
    """The content of a file like deeplab_resnest50_ade-2225f09d.pth: no fc, and norms with their counters."""
    torch.manual_seed(0)
    backbone = resnest.torch.resnest50(dilated=True).state_dict()
    state = {f"pretrained.{key}": value for key, value in backbone.items() if not key.startswith("fc.")}
    return state | {key: value.detach().float() for key, value in authors_heads(classes=150).items()}


def config(*overrides):
    words = [
        "MODEL.DEVICE",
        "cpu",
        "MODEL.RESNETS.NORM",
        "BN",
        "MODEL.SEM_SEG_HEAD.NORM",
        "BN",
        *map(str, overrides),
    ]
    return load_config(model_zoo.get_config_file("segmentation/deeplabv3_resnest50_ade20k"), words)


def test_the_authors_file_covers_the_whole_model(authors, tmp_path):
    torch.save(authors, tmp_path / "deeplab.pth")
    model = load_model(config("MODEL.WEIGHTS", tmp_path / "deeplab.pth", "OUTPUT_DIR", tmp_path))
    state = model.state_dict()
    assert (state["backbone.res5.2.conv3.weight"] == authors["pretrained.layer4.2.conv3.weight"]).all()
    assert (state["sem_seg_head.aspp.convs.4.norm.bias"] == authors["head.aspp.b4.gap.2.bias"]).all()
    assert (state["sem_seg_head.aux_head.predictor.bias"] == authors["auxlayer.conv5.4.bias"]).all()


def test_it_is_found_by_its_name_in_the_folder_and_its_hash_is_sha_1(authors, tmp_path, monkeypatch):
    monkeypatch.setenv("RESNEST_D2_WEIGHTS", str(tmp_path))
    monkeypatch.setenv("FVCORE_CACHE", str(tmp_path / "cache"))
    torch.save(authors, tmp_path / "file")
    digest = hashlib.sha1((tmp_path / "file").read_bytes()).hexdigest()[:8]
    row, name = SEGMENTORS["segmentation/deeplabv3_resnest50_ade20k"], f"deeplab_resnest50_ade-{digest}.pth"
    records = {"segmentation/deeplabv3_resnest50_ade20k": row._replace(released=name)}
    monkeypatch.setattr("resnest_d2.checkpoint.resolve.TRAINED", records)
    (tmp_path / "file").rename(tmp_path / name)
    weights = "resnest://segmentation/deeplabv3_resnest50_ade20k"
    load_model(config("MODEL.WEIGHTS", weights, "OUTPUT_DIR", tmp_path))
    torch.save({**authors, "more": torch.ones(1)}, tmp_path / name)
    with pytest.raises(
        UserError, match=f"{name} is damaged: its SHA-256 starts with .* and SHA-1 starts with"
    ):
        load_model(config("MODEL.WEIGHTS", weights, "OUTPUT_DIR", tmp_path))


@pytest.mark.parametrize(
    "key", ["head.aspp.b2.0.weight", "pretrained.layer3.1.conv2.fc1.bias", "head.block.4.bias"]
)
def test_an_incomplete_file_is_refused(key, authors, tmp_path):
    torch.save({k: v for k, v in authors.items() if k != key}, tmp_path / "deeplab.pth")
    with pytest.raises(UserError, match=r"deeplab\.pth .*holds no weights for|deeplab\.pth does not fit"):
        load_model(config("MODEL.WEIGHTS", tmp_path / "deeplab.pth", "OUTPUT_DIR", tmp_path))


def test_training_on_other_classes_starts_from_all_but_the_predictors(authors, tmp_path, caplog):
    from resnest_d2.checkpoint import Checkpointer
    from resnest_d2.engine import Trainer

    torch.save(authors, tmp_path / "deeplab.pth")
    model = Trainer.build_model(config("MODEL.SEM_SEG_HEAD.NUM_CLASSES", 5))
    left = []
    checkpointer = Checkpointer(model)
    checkpointer.check = lambda coverage: left.append(coverage)
    checkpointer.load(str(tmp_path / "deeplab.pth"))
    left[0].check_backbone()
    assert {key.rpartition(".")[0] for key in left[0].missing_keys} == {
        "sem_seg_head.head.predictor", "sem_seg_head.aux_head.predictor",
    }  # fmt: skip


def mmsegmentation(channels=8, inputs=16, classes=3):
    """Random tensors of the head by mmsegmentation's names."""
    torch.manual_seed(1)
    state = {}

    def layer(name, conv_inputs, size):
        state[f"{name}.conv.weight"] = torch.randn(channels, conv_inputs, size, size) / 10
        for part in ("weight", "bias", "running_mean", "running_var"):
            state[f"{name}.bn.{part}"] = torch.rand(channels) + 0.5

    layer("decode_head.image_pool.1", inputs, 1)
    for i in range(4):
        layer(f"decode_head.aspp_modules.{i}", inputs, 3 if i else 1)
    layer("decode_head.bottleneck", 5 * channels, 3)
    layer("auxiliary_head.convs.0", inputs // 2, 3)
    for head in ("decode_head", "auxiliary_head"):
        state[f"{head}.conv_seg.weight"] = torch.randn(classes, channels, 1, 1)
        state[f"{head}.conv_seg.bias"] = torch.randn(classes)
    return state


def test_mmsegmentations_head_has_the_scores_of_its_definition():
    state, x = mmsegmentation(), torch.randn(2, 16, 9, 11)

    def layer(x, name, dilation=1):
        weight = state[f"{name}.conv.weight"]
        x = F.conv2d(x, weight, padding=dilation * (weight.shape[2] // 2), dilation=dilation)
        mean, variance, scale, shift = (
            state[f"{name}.bn.{part}"] for part in ("running_mean", "running_var", "weight", "bias")
        )
        return F.batch_norm(x, mean, variance, scale, shift).relu()

    pooled = layer(x.mean((2, 3), keepdim=True), "decode_head.image_pool.1").expand(-1, -1, 9, 11)
    branches = [layer(x, f"decode_head.aspp_modules.{i}", d) for i, d in enumerate((1, 2, 3, 4))]
    expected = layer(torch.cat([pooled, *branches], 1), "decode_head.bottleneck")
    expected = F.conv2d(expected, state["decode_head.conv_seg.weight"], state["decode_head.conv_seg.bias"])
    expected = F.interpolate(expected, (72, 88), mode="bilinear", align_corners=False)

    shapes = {"res4": ShapeSpec(channels=8, stride=8), "res5": ShapeSpec(channels=16, stride=8)}
    options = {"project_size": 3, "head_conv": False, "align_corners": False, "dilations": (2, 3, 4)}
    net = ResNeStDeepLabV3Head(shapes, num_classes=3, channels=8, aux_loss_weight=0.4, **options).eval()
    head = semantic_head(state)
    prefix = len("sem_seg_head.")
    found = {key[prefix:]: value for key, value in head.state.items() if "aux" not in key}
    missing = net.load_state_dict(found, strict=False)
    assert not missing.unexpected_keys
    assert all("aux_head" in key or key.endswith("num_batches_tracked") for key in missing.missing_keys)
    torch.testing.assert_close(net({"res5": x})[0], expected)


def test_what_has_no_place_is_told(authors):
    conversion = convert({**authors, "jpu.weight": torch.ones(1)})
    assert conversion.unexpected_keys == ["jpu.weight"] and "jpu.weight" in conversion.state


def test_nothing_in_the_files_of_others_has_no_place(authors):
    assert convert(authors).unexpected_keys == []
    assert semantic_head(mmsegmentation()).keys == set(mmsegmentation())
    assert semantic_head({"decode_head.conv_seg.weight": torch.ones(1)}) is None
