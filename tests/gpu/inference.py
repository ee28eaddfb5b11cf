"""Backbones folded, in half precision and on the GPU, beside themselves in float32."""

from __future__ import annotations

import copy
from typing import Optional

import torch
from torch import Tensor

from resnest_d2 import ResNeSt, optimize_for_inference

from .registry import Place, assert_close, check


def backbone(place: Place, **options) -> ResNeSt:
    """With statistics of the images that it sees, so that maps neither vanish nor grow."""
    depth = 14 if place.small else 50
    options["fused_kernels"] = not place.small
    model = ResNeSt(depth, out_features=["res2", "res3", "res4", "res5"], **options).to(place.device)
    with torch.no_grad():
        for _ in range(10):
            model.train()(images(place))
    return model.eval()


def images(place: Place) -> Tensor:
    size = (2, 3, 64, 96) if place.small else (2, 3, 416, 608)
    return torch.randn(size, generator=torch.Generator().manual_seed(1)).to(place.device)


@torch.no_grad()
def compare(place: Place, model: ResNeSt, other: torch.nn.Module, tolerance: float) -> str:
    # TF32, cuDNN's default for convolutions, would hide what is compared.
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        expected = model(images(place))
        device = next(other.parameters()).device
        got = other(images(place).to(device))
    return assert_close([*expected.values()], [*got.values()], tolerance)[1]


def optimized(place: Place, dtype: Optional[torch.dtype], tolerance: float, **options) -> str:
    model = backbone(place, **options)
    return compare(place, model, optimize_for_inference(copy.deepcopy(model), dtype=dtype), tolerance)


@check()
def folded(place: Place) -> str:
    return optimized(place, None, 1e-3)


@check()
def half_precision(place: Place) -> str:
    return optimized(place, place.half, 0.1 if place.small else 0.02)


@check(on_cpu=False)
def half_precision_bfloat16(place: Place) -> str:
    return optimized(place, torch.bfloat16, 0.1)


@check()
def half_precision_deformable(place: Place) -> str:
    options = {"deform_on_per_stage": (False, True, True, True)}
    return optimized(place, place.half, 0.1 if place.small else 0.02, **options)


@check(on_cpu=False)
def as_on_the_cpu(place: Place) -> str:
    model = backbone(place)
    return compare(place, model, copy.deepcopy(model).cpu(), 1e-3)


@check(on_cpu=False, alone=True)
def compiled(place: Place) -> str:
    model = backbone(place)
    return compare(place, model, optimize_for_inference(copy.deepcopy(model), compile=True), 1e-2)
