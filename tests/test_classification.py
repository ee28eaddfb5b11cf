"""Image classification: the recipes against the published ones, and what they add to the network."""

import copy
import math
import pickle

import numpy as np
import pytest
import torch
from detectron2.modeling import build_model
from detectron2.utils.events import EventStorage
from PIL import Image
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from resnest_d2 import OptionError, ResNeSt, UserError, model_zoo
from resnest_d2.data.classification import CenterCrop, Lighting, build_classification_mapper, train_transform
from resnest_d2.engine import Trainer, load_config
from resnest_d2.modeling.classification import ImageClassifier, add_drop_block, drop_block
from resnest_d2.published import CLASSIFIERS

IMAGENET = 1_281_167
# Networks of seconds, and those of minutes.
DEEP = ("resnest200", "resnest269")


def config(name="resnest14", *overrides):
    path = model_zoo.get_config_file(f"classification/{name}")
    return load_config(path, ["MODEL.DEVICE", "cpu", *map(str, overrides)])


def small(**options):
    """A classifier of a few thousand parameters."""
    torch.manual_seed(0)
    net = ResNeSt(14, stem_width=8, width_per_group=16, res2_out_channels=16, num_classes=7)
    mean = {"pixel_mean": [100.0, 110.0, 120.0], "pixel_std": [50.0, 55.0, 60.0]}
    return ImageClassifier(backbone=net, **mean, **options)


def batch(count=4, size=32):
    rng = torch.Generator().manual_seed(1)
    return [
        {"image": torch.randint(0, 256, (3, size, size), generator=rng, dtype=torch.uint8), "label": i % 7}
        for i in range(count)
    ]


def loss_of(model, inputs, iteration=0):
    with EventStorage(iteration):
        return model(inputs)["loss_cls"]


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_rows_have_the_size_recorded_and_expect_the_published_accuracy(name):
    row = CLASSIFIERS[name]
    cfg = config(name.removeprefix("classification/")).clone()
    cfg.defrost()
    cfg.MODEL.DEVICE = "meta"
    with torch.device("meta"):
        model = build_model(cfg).eval()
    assert sum(p.numel() for p in model.parameters()) / 1e6 == pytest.approx(row.params, abs=0.006)
    assert cfg.INPUT.CLASSIFICATION.TEST_CROP == row.crop
    assert cfg.TEST.EXPECTED_RESULTS == [["classification", "top1", row.top1, 0.1]]


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[pytest.mark.slow] if n.endswith(DEEP) else []) for n in CLASSIFIERS]
)
def test_rows_cost_the_multiply_adds_recorded(name):
    row = CLASSIFIERS[name]
    cfg = config(name.removeprefix("classification/"))
    with torch.device("meta"):
        from resnest_d2.modeling.build import resnest_options

        net = ResNeSt(**{**resnest_options(cfg), "fused_kernels": False}, num_classes=1000).eval()
        with FlopCounterMode(display=False) as flops, torch.no_grad():
            net(torch.empty(1, 3, row.crop, row.crop))
    assert flops.get_total_flops() / 2e9 == pytest.approx(row.gmacs, abs=0.006)


def test_published_accuracies_are_those_of_the_fact_sheet(facts):
    sheet = facts("classification")
    released = {k: v[1] for k, v in sheet["released"]["readme"]["rows"].items()}
    released.update({k: v[2] for k, v in sheet["released"]["ablation_md"]["rows"].items()})
    released.update({k: sheet["released"]["gluoncv_zoo"]["rows"][k][0] for k in ("resnest14", "resnest26")})
    tricks = sheet["paper"]["table2_left_training_tricks"]["rows"]
    released["resnest50_fast"] = tricks["ResNeSt-50-fast"][2]
    released["resnet50d"], released["resnet50d_mixup"] = tricks["ResNetD-50"][2], tricks["+ mixup"][2]
    released["resnet50d_mixup_autoaugment"] = tricks["+ autoaug"][2]
    table3 = facts("imagenet_and_sizes")["paper_table3_at_224"]
    released["resnest101_fast"] = table3["resnest101_fast"]["top1_224"]
    assert {name.removeprefix("classification/"): row.top1 for name, row in CLASSIFIERS.items()} == released
    for name, (params, gmacs) in sheet["measured_here"]["rows"].items():
        row = CLASSIFIERS.get(f"classification/{name.split('@')[0]}")
        if row and row.crop == int(f"{name}@224".split("@")[1]):
            assert (row.params, row.gmacs) == pytest.approx((params, gmacs), abs=0.006)


def test_recipes_are_those_of_the_authors_commands(facts):
    rows = facts("classification")["released"]["training_commands"]["rows"]
    for name, row in rows.items():
        gpus, _, images, rate, train_crop, test_crop, drop, dropout = row
        cfg = config(name)
        assert (cfg.SOLVER.REFERENCE_WORLD_SIZE, cfg.SOLVER.IMS_PER_BATCH) == (gpus, images)
        assert cfg.SOLVER.BASE_LR == rate == pytest.approx(0.1 * images / 256)
        crops = cfg.INPUT.CLASSIFICATION
        assert (crops.TRAIN_CROP, crops.TEST_CROP) == (train_crop, test_crop)
        assert (cfg.MODEL.CLASSIFIER.DROP_BLOCK.PROB, cfg.MODEL.CLASSIFIER.DROPOUT) == (drop, dropout)
        assert cfg.SOLVER.MAX_ITER == round(270 * IMAGENET / images)
        assert cfg.SOLVER.WARMUP_ITERS == round(5 * IMAGENET / images)


def test_the_learning_rate_is_linear_for_five_epochs_and_then_half_a_cosine():
    cfg = config("resnest14", "SOLVER.MAX_ITER", 270, "SOLVER.WARMUP_ITERS", 5)
    parameter = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([parameter], lr=cfg.SOLVER.BASE_LR)
    scheduler = Trainer.build_lr_scheduler(cfg, optimizer)
    for iteration in range(270):
        share = (iteration - 5) / 265
        expected = iteration / 5 if iteration < 5 else 0.5 * (1 + math.cos(math.pi * share))
        assert optimizer.param_groups[0]["lr"] == pytest.approx(cfg.SOLVER.BASE_LR * expected, abs=1e-9)
        optimizer.step()
        scheduler.step()


def test_weights_of_convolutions_and_the_linear_layer_decay_and_nothing_else():
    cfg = config()
    model = Trainer.build_model(cfg)
    optimizer = Trainer.build_optimizer(cfg, model)
    decay = {id(p): g["weight_decay"] for g in optimizer.param_groups for p in g["params"]}
    for name, parameter in model.named_parameters():
        assert decay[id(parameter)] == (1e-4 if parameter.dim() > 1 else 0), name
    assert all(group["nesterov"] and group["momentum"] == 0.9 for group in optimizer.param_groups)


def test_the_linear_rule_fits_a_recipe_to_other_numbers_of_processes():
    scaled = Trainer.auto_scale_workers(config("resnest50"), 1).SOLVER
    assert (scaled.IMS_PER_BATCH, scaled.BASE_LR) == (128, pytest.approx(0.05))
    assert scaled.MAX_ITER == 64 * 42226 and scaled.WARMUP_ITERS == 64 * 782


def test_the_loss_is_cross_entropy_with_the_smoothed_labels_of_the_mixed_images():
    """Written out: soft labels of the mixed batch, eps / K on every class, as in the authors' code."""
    model, inputs = small(label_smoothing=0.1, mixup_alpha=0.2).eval(), batch()
    torch.manual_seed(5)
    weight = float(torch.distributions.Beta(0.2, 0.2).sample())
    assert 0 < weight < 1
    images = torch.stack([x["image"] for x in inputs]).float()
    images = (images - model.pixel_mean) / model.pixel_std
    mixed = weight * images + (1 - weight) * images[[3, 2, 1, 0]]
    truth = F.one_hot(torch.tensor([x["label"] for x in inputs]), 7).float() * 0.9 + 0.1 / 7
    truth = weight * truth + (1 - weight) * truth[[3, 2, 1, 0]]
    expected = -(truth * model.backbone(mixed)["linear"].log_softmax(1)).sum(1).mean()
    torch.manual_seed(5)
    model.training = True  # not its norms
    assert torch.allclose(loss_of(model, inputs), expected, rtol=1e-5)


def test_without_its_extras_the_loss_is_plain_cross_entropy_and_testing_gives_probabilities():
    model, inputs = small().eval(), batch()
    scores = model.backbone((torch.stack([x["image"] for x in inputs]) - model.pixel_mean) / model.pixel_std)[
        "linear"
    ]
    probabilities = torch.stack([output["probabilities"] for output in model(inputs)])
    assert torch.allclose(probabilities, scores.softmax(1))
    model.training = True
    labels = torch.tensor([x["label"] for x in inputs])
    assert torch.allclose(loss_of(model, inputs), F.cross_entropy(scores, labels))


def test_extras_change_no_names_of_weights():
    plain = small().state_dict()
    dressed = small(dropout=0.5, drop_block=0.1, zero_init_last_norm=True).state_dict()
    assert plain.keys() == dressed.keys()
    assert not any("linear" not in key and "pixel" in key for key in plain)


def test_blocks_start_as_their_shortcuts_with_zero_gamma():
    model = small(zero_init_last_norm=True)
    block = model.backbone.res3[0]
    x = torch.randn(2, 16, 16, 16)
    assert torch.allclose(block(x), F.relu(block.shortcut(block.shortcut_avgpool(x))))
    other = small().backbone.res3[0]
    assert not torch.allclose(other(x), F.relu(other.shortcut(other.shortcut_avgpool(x))))
    with pytest.raises(OptionError, match="zero_init_last_norm"):
        net = ResNeSt(14, norm="", num_classes=3)
        ImageClassifier(backbone=net, pixel_mean=[0.0], pixel_std=[1.0], zero_init_last_norm=True)


def test_dropout_is_in_training_only_and_before_the_linear_layer():
    model, inputs = small(dropout=0.5), batch()
    model.eval()
    assert torch.equal(model(inputs)[0]["probabilities"], model(inputs)[0]["probabilities"])
    x = torch.ones(1, model.backbone.linear.in_features)
    model.train()
    torch.manual_seed(0)
    kept = F.dropout(x, 0.5)
    torch.manual_seed(0)
    assert torch.allclose(model.backbone.linear(x), F.linear(kept, *model.backbone.linear.parameters()))


@pytest.mark.parametrize("size, shape", [(3, (14, 14)), (3, (7, 5)), (3, (2, 2)), (1, (8, 8)), (3, (1, 1))])
def test_drop_block_drops_squares_that_all_images_share_and_keeps_the_mean(size, shape):
    torch.manual_seed(0)
    x = torch.ones(2, 64, *shape)
    dropped = drop_block(x, 0.2, size)
    assert torch.equal(dropped[0], dropped[1])
    assert dropped.mean() == pytest.approx(1, abs=1e-5)
    zero = (dropped[0] == 0).float()
    assert 0 < zero.mean() < 0.6 and not (zero == zero[0]).all()
    # Each zero lies in a square of zeros, of which a part may lie beyond the map.
    side = min(size, *shape)
    around = F.pad(zero[None], [side - 1] * 4, value=1.0)
    squares = (F.avg_pool2d(around, side, 1) == 1).float()
    assert torch.equal(F.max_pool2d(squares, side, 1)[0], zero)


def test_drop_block_drops_as_much_as_the_authors():
    """Their seeds lie on the whole map, at a rate that is right for those away from its border."""
    torch.manual_seed(0)
    dropped = (drop_block(torch.ones(1, 4000, 14, 14), 0.02, 3) == 0).float()
    rate = 0.02 / 9 * 14**2 / 12**2
    assert float(dropped[:, :, 1:-1, 1:-1].mean()) == pytest.approx(1 - (1 - rate) ** 9, rel=0.05)
    assert float(dropped[:, :, 0, 0].mean()) == pytest.approx(1 - (1 - rate) ** 4, rel=0.2)


def test_drop_block_grows_linearly_and_sits_in_three_places_of_the_last_two_stages(monkeypatch):
    seen = []
    monkeypatch.setattr(
        "resnest_d2.modeling.classification.drop_block",
        lambda x, probability, size: seen.append((probability, size, x.shape[1])) or x,
    )
    model = small(drop_block=0.1, max_iter=50)
    for iteration in (0, 24, 49):
        seen.clear()
        loss_of(model, batch(), iteration)
        assert [p for p, *_ in seen] == pytest.approx([0.1 * (iteration + 1) / 50] * len(seen))
        blocks = [block for stage in ("res4", "res5") for block in getattr(model.backbone, stage)]
        channels = [(b.conv1.out_channels, b.conv1.out_channels, b.conv3.out_channels) for b in blocks]
        assert [c for *_, c in seen] == [c for block in channels for c in block]
    seen.clear()
    model.eval()
    model(batch())
    assert not seen


def test_drop_block_and_recomputed_activations_of_a_stage_exclude_each_other():
    words = ("MODEL.CLASSIFIER.DROP_BLOCK.PROB", 0.1, "MODEL.RESNETS.CHECKPOINT_STAGES", "['res3','res5']")
    with pytest.raises(OptionError, match=r"CHECKPOINT_STAGES must not hold res5"):
        config("resnest14", *words)
    config("resnest14", *words[2:])
    net = ResNeSt(14, checkpoint_stages=["res5"], num_classes=3)
    with pytest.raises(OptionError, match="must not share a stage"):
        add_drop_block(net, 0.1, 3, ["res5"], 1)


def test_images_of_a_test_are_the_authors_crop():
    """Pixel by pixel against its definition: a square of s / (s + 32) of the shorter side, resized to s."""
    rng = np.random.default_rng(0)
    for (width, height), size in (((90, 60), 32), ((61, 97), 48), ((500, 375), 224), ((40, 40), 64)):
        image = Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8))
        side = size / (size + 32) * min(width, height)
        left, top = round((width - side) / 2), round((height - side) / 2)
        right, bottom = round(left + side), round(top + side)
        square = Image.fromarray(np.asarray(image)[top:bottom, left:right])
        expected = np.asarray(square.resize((size, size), Image.Resampling.BICUBIC))
        assert np.array_equal(np.asarray(CenterCrop(size)(image)), expected)


@pytest.mark.parametrize("form, order", [("RGB", [0, 1, 2]), ("BGR", [2, 1, 0])])
def test_the_mapper_reads_images_in_the_format_of_the_configuration(form, order, tmp_path):
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 256, (50, 70, 3), dtype=np.uint8)).save(tmp_path / "a.png")
    cfg = config("resnest14", "INPUT.FORMAT", form, "INPUT.CLASSIFICATION.TEST_CROP", 32)
    record = {"file_name": str(tmp_path / "a.png"), "label": 3}
    mapped = build_classification_mapper(cfg, False)(record)
    expected = np.asarray(CenterCrop(32)(Image.open(tmp_path / "a.png")))
    assert mapped["label"] == 3 and np.array_equal(mapped["image"], expected.transpose(2, 0, 1)[order])


def test_augmentation_is_in_the_authors_order_and_each_part_can_be_turned_off():
    def parts(*overrides):
        return [type(t).__name__ for t in train_transform(config("resnest50", *overrides)).transforms]

    every = ["AutoAugment", "RandomResizedCrop", "RandomHorizontalFlip", "ColorJitter", "Lighting"]
    assert parts() == every
    for name, *off in (
        ("AutoAugment", "INPUT.CLASSIFICATION.AUTO_AUGMENT", False),
        ("RandomHorizontalFlip", "INPUT.RANDOM_FLIP", "none"),
        ("ColorJitter", "INPUT.CLASSIFICATION.COLOR_JITTER", 0.0),
        ("Lighting", "INPUT.CLASSIFICATION.LIGHTING", 0.0),
    ):
        assert parts(*off) == [part for part in every if part != name]
    crop = train_transform(config("resnest269")).transforms[1]
    assert (crop.size, crop.scale, crop.interpolation.value) == ((320, 320), (0.1, 1.0), "bicubic")


def test_training_images_depend_on_the_seed_alone_and_have_the_size_of_the_crop():
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (60, 80, 3), dtype=np.uint8))
    transform = train_transform(config("resnest50"))
    drawn = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        drawn.append(np.asarray(transform(image)))
    assert drawn[0].shape == (224, 224, 3)
    assert np.array_equal(drawn[0], drawn[1]) and not np.array_equal(drawn[0], drawn[2])


def test_lighting_adds_one_colour_along_the_principal_components():
    grey = Image.new("RGB", (4, 4), (128, 128, 128))
    torch.manual_seed(3)
    shifts = np.array([np.asarray(Lighting(0.1)(grey))[0, 0].astype(float) - 128 for _ in range(4000)])
    vectors = np.array([[-0.5675, 0.7192, 0.4009], [-0.5808, -0.0045, -0.814], [-0.5836, -0.6948, 0.4203]])
    spread = (shifts @ vectors).std(0)
    assert spread == pytest.approx(0.1 * np.array([55.46, 4.794, 1.148]), rel=0.1, abs=0.25)
    assert len({tuple(p) for p in np.asarray(Lighting(0.1)(grey)).reshape(-1, 3)}) == 1
    assert Lighting(0.0)(grey).getpixel((0, 0)) == (128, 128, 128)


def test_a_model_of_other_features_or_tests_is_refused():
    with pytest.raises(OptionError, match=r"MODEL.RESNETS.OUT_FEATURES must be \[linear\]"):
        build_model(config("resnest14", "MODEL.RESNETS.OUT_FEATURES", "['res5']"))
    with pytest.raises(OptionError, match=r"TEST.AUG.ENABLED must be False"):
        config("resnest14", "TEST.AUG.ENABLED", True)
    with pytest.raises(OptionError, match=r"MODEL.BACKBONE.NAME must be build_resnest_backbone"):
        config("resnest14", "MODEL.BACKBONE.NAME", "build_resnest_fpn_backbone")
    with pytest.raises(UserError, match="LABEL_SMOOTHING"):
        config("resnest14", "MODEL.CLASSIFIER.LABEL_SMOOTHING", 1.5)


def test_a_copy_of_a_classifier_drops_its_own_pixels():
    """Hooks hold no module, so that a copied or saved model is one of its own."""
    model = small(drop_block=0.5, dropout=0.5)
    twin = copy.deepcopy(model)
    twin.eval()
    model.train()
    assert torch.equal(twin(batch())[0]["probabilities"], twin(batch())[0]["probabilities"])
    assert pickle.loads(pickle.dumps(model)).state_dict().keys() == model.state_dict().keys()
