"""The paper's equations and deformable convolution, written out without a thought for speed."""

from __future__ import annotations

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
