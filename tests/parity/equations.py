"""The paper's equations, deformable convolution and DeepLabV3, written out without a thought for speed."""

from __future__ import annotations

from typing import Dict, Tuple

import torch
from torch import Tensor

from resnest_d2 import SplitAttentionConv2d
from resnest_d2.modeling.deform_conv import DeformConv2d


def batch_norm(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    """Batch normalisation with the statistics of x: (N, C, H, W)."""
    mean = x.mean((0, 2, 3), keepdim=True)
    variance = ((x - mean) ** 2).mean((0, 2, 3), keepdim=True)
    return (x - mean) / (variance + eps).sqrt() * weight.view(1, -1, 1, 1) + bias.view(1, -1, 1, 1)


def split_attention(layer: SplitAttentionConv2d, x: Tensor) -> Tensor:
    """Equations 1 to 3, one cardinal group after the other, with the weights of ``layer``."""
    big_k, big_r = layer.cardinality, layer.radix
    width = layer.fc1.in_channels // big_k  # C / K
    squeezed = layer.fc1.out_channels // big_k
    in_width = x.shape[1] // (big_k * big_r)
    outputs = []
    for k in range(big_k):
        splits = []
        for r in range(big_r):
            # The transformation of this split: its own slice of the input, norm and ReLU included.
            g = r * big_k + k
            rows = slice(g * width, (g + 1) * width)
            u = torch.nn.functional.conv2d(
                x[:, g * in_width : (g + 1) * in_width], layer.conv.weight[rows], padding=1
            )
            u = batch_norm(u, layer.bn0.weight[rows], layer.bn0.bias[rows], layer.bn0.eps)
            splits.append(u.clamp(min=0))
        u_hat = sum(splits)
        s = u_hat.sum((2, 3)) / (u_hat.shape[2] * u_hat.shape[3])  # equation 1: (N, C/K)
        rows = slice(k * squeezed, (k + 1) * squeezed)
        z = s @ layer.fc1.weight[rows, :, 0, 0].T + layer.fc1.bias[rows]
        z = batch_norm(z[..., None, None], layer.bn1.weight[rows], layer.bn1.bias[rows], layer.bn1.eps)
        z = z[..., 0, 0].clamp(min=0)
        rows = slice(k * big_r * width, (k + 1) * big_r * width)
        logits = z @ layer.fc2.weight[rows, :, 0, 0].T + layer.fc2.bias[rows]
        logits = [logits[:, r * width : (r + 1) * width] for r in range(big_r)]
        if big_r > 1:  # equation 3
            total = sum(logit.exp() for logit in logits)
            weights = [logit.exp() / total for logit in logits]
        else:
            weights = [1 / (1 + (-logits[0]).exp())]
        outputs.append(sum(a[..., None, None] * u for a, u in zip(weights, splits)))  # equation 2
    return torch.cat(outputs, 1)


def deform_conv(layer: DeformConv2d, x: Tensor, offset: Tensor, groups: int, deform_groups: int) -> Tensor:
    """Deformable convolution: for every output position and tap, a bilinear sample of the input."""
    n, channels = x.shape[:2]
    out_channels, per_group, size, _ = layer.weight.shape
    out_height, out_width = offset.shape[2:]
    taps = size * size
    mask = offset.new_ones(n, deform_groups * taps, out_height, out_width)
    if layer.modulated:
        mask = 1 / (1 + (-offset[:, 2 * deform_groups * taps :]).exp())
    rows = torch.arange(out_height, dtype=x.dtype).view(-1, 1) * layer.stride - layer.padding
    columns = torch.arange(out_width, dtype=x.dtype).view(1, -1) * layer.stride - layer.padding
    columns_of = []
    for g in range(deform_groups):
        part = x[:, g * channels // deform_groups : (g + 1) * channels // deform_groups]
        of_taps = []
        for tap in range(taps):
            dy, dx = (offset[:, 2 * (g * taps + tap) + i] for i in (0, 1))
            y = rows + tap // size * layer.dilation + dy
            z = columns + tap % size * layer.dilation + dx
            of_taps.append(bilinear(part, y, z) * mask[:, None, g * taps + tap])
        columns_of.append(torch.stack(of_taps, 2))
    samples = torch.cat(columns_of, 1)  # (N, channels, taps, H', W')
    out = []
    for k in range(groups):
        weight = layer.weight[k * out_channels // groups : (k + 1) * out_channels // groups].flatten(2)
        out.append(torch.einsum("oct,ncthw->nohw", weight, samples[:, k * per_group : (k + 1) * per_group]))
    return torch.cat(out, 1)


def bilinear(x: Tensor, y: Tensor, z: Tensor) -> Tensor:
    """x at rows y and columns z, zero outside. x: (N, C, H, W); y, z: (N, H', W'). (N, C, H', W')."""
    n, channels, height, width = x.shape
    y0, z0 = y.detach().floor(), z.detach().floor()
    out = 0
    for row, wy in ((y0, 1 - (y - y0)), (y0 + 1, y - y0)):
        for column, wz in ((z0, 1 - (z - z0)), (z0 + 1, z - z0)):
            inside = (row >= 0) & (row < height) & (column >= 0) & (column < width)
            index = (row.clamp(0, height - 1) * width + column.clamp(0, width - 1)).long()
            value = x.flatten(2).gather(2, index.flatten(1)[:, None].expand(-1, channels, -1))
            out = out + value.view(n, channels, *y.shape[1:]) * (wy * wz * inside)[:, None]
    return out


def deeplabv3(
    state: Dict[str, Tensor], res4: Tensor, res5: Tensor, size: Tuple[int, int], train: bool
) -> Tuple[Tensor, Tensor]:
    """Scores of the head and of the auxiliary head at an image's size, without dropout.

    Args:
        state: parameters by the authors' names.
        train: normalise with the statistics of the batch instead of the running ones.
    """

    def layer(x: Tensor, conv: str, norm: str, dilation: int = 1) -> Tensor:
        weight = state[f"{conv}.weight"]
        x = torch.nn.functional.conv2d(
            x, weight, padding=dilation * (weight.shape[2] // 2), dilation=dilation
        )
        scale, shift = state[f"{norm}.weight"], state[f"{norm}.bias"]
        if train:
            x = batch_norm(x, scale, shift, 1e-5)
        else:
            mean, variance = (state[f"{norm}.running_{name}"].view(1, -1, 1, 1) for name in ("mean", "var"))
            x = (x - mean) / (variance + 1e-5).sqrt() * scale.view(1, -1, 1, 1) + shift.view(1, -1, 1, 1)
        return x.clamp(min=0)

    def predicted(x: Tensor, block: str) -> Tensor:
        x = layer(x, f"{block}.0", f"{block}.1")
        x = torch.nn.functional.conv2d(x, state[f"{block}.4.weight"], state[f"{block}.4.bias"])
        return interpolated(x, size)

    branches = [
        layer(res5, f"head.aspp.b{i}.0", f"head.aspp.b{i}.1", dilation)
        for i, dilation in enumerate((1, 12, 24, 36))
    ]
    pooled = res5.sum((2, 3), keepdim=True) / (res5.shape[2] * res5.shape[3])
    pooled = layer(pooled, "head.aspp.b4.gap.1", "head.aspp.b4.gap.2")
    x = torch.cat([*branches, pooled + torch.zeros_like(branches[0])], 1)
    x = layer(x, "head.aspp.project.0", "head.aspp.project.1")
    return predicted(x, "head.block"), predicted(res4, "auxlayer.conv5")


def interpolated(x: Tensor, size: Tuple[int, int]) -> Tensor:
    """Bilinear interpolation for which the centres of corner pixels stay where they are."""
    for axis, length in zip((2, 3), size):
        old = x.shape[axis]
        places = torch.arange(length, dtype=x.dtype) * ((old - 1) / max(length - 1, 1))
        below = places.floor().long().clamp(max=max(old - 2, 0))
        share = (places - below).view(-1, *[1] * (3 - axis))
        above = (below + 1).clamp(max=old - 1)
        x = x.index_select(axis, below) * (1 - share) + x.index_select(axis, above) * share
    return x


def cross_entropy(scores: Tensor, labels: Tensor, ignored: int) -> Tensor:
    """Mean over the pixels that are not ignored of minus the logarithm of their class's probability."""
    counted = labels != ignored
    probability = scores.exp() / scores.exp().sum(1, keepdim=True)
    own = probability.gather(1, labels.where(counted, torch.zeros_like(labels))[:, None])[:, 0]
    return -own[counted].log().mean()
