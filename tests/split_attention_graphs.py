"""Split-Attention between norm and sum, by the reference and by the passes, for the tests of both backends."""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from resnest_d2.ops import radix_softmax, radix_weighted_sum, relu_pool, relu_weighted_sum, split_pool

FORMATS = [torch.contiguous_format, torch.channels_last]


class Graph(NamedTuple):
    """Leaves, and what is computed of them."""

    x: Tensor
    logits: Tensor
    attention: Tensor
    pooled: Tensor
    out: Tensor


def build(
    shape, radix, dtype=torch.float64, *, passes, layout=FORMATS[0], cardinality=1, values=None, device="cpu"
):
    """The attention hangs on the pooled vector, as in the network.

    Args:
        shape: (N, C, H, W) of the sum.
        passes: by relu_pool and relu_weighted_sum; else by the reference and autograd.
        values: changes the random map, (N, R*C, H, W), in place.
    """
    generator = torch.Generator().manual_seed(0)
    n, c, h, w = shape
    x = torch.randn((n, radix * c, h, w), generator=generator)
    logits = torch.randn((n, radix * c, 1, 1), generator=generator)
    if values:
        values(x)
    x = x.to(device, dtype).contiguous(memory_format=layout).requires_grad_()
    # The passes keep the vectors in float32 at least, whatever the map's type is.
    logits = logits.to(device, torch.promote_types(dtype, torch.float32)).requires_grad_()
    y = x * 1  # a leaf may not be changed in place
    if passes:
        pooled, activated = relu_pool(y, radix, dtype=logits.dtype)
    else:
        y = F.relu(y)
        pooled = split_pool(y, radix, logits.dtype)
    attention = radix_softmax(logits * (1 + pooled.repeat(1, radix, 1, 1)), radix, cardinality)
    if passes:
        out = relu_weighted_sum(activated, attention)
    else:
        out = radix_weighted_sum(y, attention.to(dtype), radix)
    return Graph(x, logits, attention, pooled, out)


#: Outputs and inputs of a backward pass.
SUBSETS = [
    (("out",), ("attention",)),
    (("pooled",), ("x",)),
    (("out",), ("x",)),
    (("out",), ("logits",)),
    (("out", "pooled"), ("x", "logits")),
    (("pooled", "out"), ("attention", "x")),
    (("pooled",), ("x", "logits")),
]


def gradients(graph, outputs, inputs, allow_unused=True):
    """Of the sum of ``outputs``, times fixed numbers; the graph stays."""
    tensors = [getattr(graph, name) for name in outputs]
    generator = torch.Generator().manual_seed(1)
    of_outputs = [torch.randn(t.shape, generator=generator).to(t) for t in tensors]
    leaves = [getattr(graph, name) for name in inputs]
    return torch.autograd.grad(tensors, leaves, of_outputs, retain_graph=True, allow_unused=allow_unused)
