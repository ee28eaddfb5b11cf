"""Multi-scale, flipped, sliding-window testing."""

import math

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from torch.nn import functional as F

from resnest_d2.modeling import SemanticSegmentorWithTTA

WINDOW, CLASSES = 32, 3


class Network(nn.Module):
    """A segmentor whose scores depend on where in its input a pixel is, so that windows matter."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.backbone = nn.Conv2d(3, 4, 5, stride=8, padding=2)
        self.convolution = nn.Conv2d(4, CLASSES, 1)
        self.register_buffer("pixel_mean", torch.tensor([10.0, 20.0, 30.0]).view(3, 1, 1))
        self.register_buffer("pixel_std", torch.tensor([50.0, 60.0, 70.0]).view(3, 1, 1))
        self.batches = []

    @property
    def device(self):
        return self.pixel_mean.device

    def sem_seg_head(self, features):
        self.batches.append(len(features))
        scores = self.convolution(features)
        scores = scores + torch.linspace(0, 1, scores.shape[-1])  # left and right are not alike
        return F.interpolate(scores, scale_factor=8, mode="bilinear", align_corners=True), {}


def image(height, width):
    return torch.randint(256, (3, height, width), generator=torch.Generator().manual_seed(1)).to(torch.uint8)


def segment(model, x, **options):
    options = {"scales": (1.0,), "long_size": max(x.shape[1:]), "window": WINDOW, "flip": False, **options}
    return SemanticSegmentorWithTTA(model, **options)([{"image": x}])[0]["sem_seg"]


def plainly(model, x, scales, long_size, flip):
    """The same, pixel by pixel of windows, one window at a time."""
    height, width = x.shape[1:]
    x = (x - model.pixel_mean) / model.pixel_std
    total = torch.zeros(CLASSES, height, width)
    for scale in scales:
        long = math.ceil(long_size * scale)
        size = (
            (long, int(width * long / height + 0.5))
            if height > width
            else (int(height * long / width + 0.5), long)
        )
        scaled = F.interpolate(x[None], size, mode="bilinear", align_corners=True)
        padded_size = [max(side, WINDOW) for side in size]
        black = (-model.pixel_mean / model.pixel_std)[None]
        padded = black.expand(1, 3, *padded_size).clone()
        padded[..., : size[0], : size[1]] = scaled
        step = int(WINDOW * 2 / 3)
        tops, lefts = (range(0, math.ceil((side - WINDOW) / step) * step + 1, step) for side in padded_size)
        summed, count = torch.zeros(1, CLASSES, *padded_size), torch.zeros(padded_size)
        for top in tops:
            for left in lefts:
                part = padded[..., top : top + WINDOW, left : left + WINDOW]
                window = black.expand(1, 3, WINDOW, WINDOW).clone()
                window[..., : part.shape[2], : part.shape[3]] = part
                scores = model.sem_seg_head(model.backbone(window))[0]
                if flip:
                    scores = scores + model.sem_seg_head(model.backbone(window.flip(3)))[0].flip(3)
                summed[..., top : top + WINDOW, left : left + WINDOW] += scores.exp()[
                    ..., : part.shape[2], : part.shape[3]
                ]
                count[top : top + WINDOW, left : left + WINDOW] += 1
        merged = (summed / count)[..., : size[0], : size[1]]
        total += F.interpolate(merged, (height, width), mode="bilinear", align_corners=True)[0]
    return total


@pytest.mark.parametrize("size", [(32, 32), (20, 31), (50, 33), (33, 90)])
@pytest.mark.parametrize("flip", [False, True])
def test_scores_are_those_of_the_definition(size, flip):
    model, x, scales = Network(), image(*size), (0.5, 1.0, 1.75)
    with torch.no_grad():
        expected = plainly(model, x, scales, 60, flip)
    torch.testing.assert_close(segment(model, x, scales=scales, long_size=60, flip=flip), expected)


def test_one_window_without_flip_predicts_what_the_model_does():
    model, x = Network(), image(WINDOW, WINDOW)
    with torch.no_grad():
        normalised = (x - model.pixel_mean) / model.pixel_std
        expected = model.sem_seg_head(model.backbone(normalised[None]))[0][0]
    torch.testing.assert_close(segment(model, x).log(), expected)


def test_windows_are_batched_and_their_order_changes_nothing(monkeypatch):
    model, x = Network(), image(70, 120)
    together = segment(model, x, flip=True)
    assert max(model.batches) > 4  # windows, of which the first is alone
    monkeypatch.setattr("resnest_d2.modeling.multi_scale._MAX_PIXELS", 1)
    alone = segment(model, x, flip=True)
    torch.testing.assert_close(alone, together)
    monkeypatch.setattr(SemanticSegmentorWithTTA, "_starts", reverse(SemanticSegmentorWithTTA._starts))
    torch.testing.assert_close(segment(model, x, flip=True), together)


def reverse(starts):
    return lambda self, length: starts(self, length)[::-1]


def test_scores_too_large_for_float32_stay_finite():
    model = Network()
    with torch.no_grad():
        model.convolution.bias += 100
    assert segment(model, image(40, 40), flip=True).isfinite().all()


def test_a_resized_image_is_read_again_at_its_own_size(tmp_path):
    file, x = tmp_path / "image.png", image(48, 40)
    Image.fromarray(np.ascontiguousarray(x.permute(1, 2, 0).numpy())).save(file)
    small = F.interpolate(x[None].float(), (24, 20))[0].to(torch.uint8)
    augmented = SemanticSegmentorWithTTA(Network(), scales=(1.0,), long_size=48, window=WINDOW)
    record = {"image": small, "height": 48, "width": 40, "file_name": str(file)}
    torch.testing.assert_close(augmented([record])[0]["sem_seg"], augmented([{"image": x}])[0]["sem_seg"])


def test_training_mode_and_gradients_are_left_alone():
    model = Network()
    scores = segment(model, image(40, 40))
    assert model.training
    assert not scores.requires_grad and all(p.grad is None for p in model.parameters())
