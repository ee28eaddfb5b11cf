"""Split-Attention's kernels beside the reference, output and every gradient."""

from __future__ import annotations

import copy
import itertools
from typing import List, Tuple

import torch
import torch.nn.functional as F
from torch import Tensor

from resnest_d2 import SplitAttentionConv2d
from resnest_d2.ops import (
    radix_softmax,
    radix_weighted_sum,
    relu_pool,
    relu_weighted_sum,
    split_pool,
    triton_kernels,
)

from .registry import Place, Skip, assert_close, check

#: Largest errors, relative to the largest value: a few roundings of the type.
TOLERANCE = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 1.6e-2}
FORMATS = (torch.contiguous_format, torch.channels_last)
#: Images, channels of a split, height and width: one element, odd sizes, more than a tile, one column.
SHAPES = [(1, 1, 1, 1), (2, 5, 7, 9), (1, 20, 33, 35), (3, 70, 4, 5), (1, 3, 1, 17), (2, 48, 13, 16)]
#: Of two 800x1216 images in ResNeSt-50.
STAGES = [(2, 64, 200, 304), (2, 128, 100, 152), (2, 256, 50, 76), (2, 512, 25, 38)]


def inputs(shape: Tuple[int, ...], radix: int, dtype: torch.dtype, layout, device) -> List[Tensor]:
    """Map, attention, and the gradients of sum and pooled vector."""
    generator, (n, c, h, w) = torch.Generator().manual_seed(0), shape
    sizes = ((n, radix * c, h, w), (n, radix * c, 1, 1), (n, c, h, w), (n, c, 1, 1))
    x, attention, of_sum, of_pool = (torch.randn(size, generator=generator).to(device) for size in sizes)
    x = x.to(dtype).contiguous(memory_format=layout)
    return [x, radix_softmax(attention, radix, 1), of_sum.to(dtype), of_pool.to(dtype)]


def passes(tensors: List[Tensor], radix: int, kernels: bool) -> List[Tensor]:
    """Pooled vector, sum, and the gradients of map and attention, by the kernels or in float64."""
    if not kernels:
        tensors = [tensor.double() for tensor in tensors]
    x, attention, of_sum, of_pool = (tensor.detach() for tensor in tensors)
    x, attention = x.requires_grad_(), attention.requires_grad_()
    if kernels:
        assert triton_kernels.is_supported(x, radix), "the kernels do not take this map"
        pooled, activated = relu_pool(x, radix)
        out = relu_weighted_sum(activated, attention)
    else:
        y = F.relu(x)
        pooled, out = split_pool(y, radix), radix_weighted_sum(y, attention, radix)
    torch.autograd.backward([out, pooled], [of_sum, of_pool.to(pooled.dtype)])
    return [pooled, out, x.grad, attention.grad]


def compare(place: Place, shapes, radixes, dtypes, prepare=lambda x: None) -> str:
    """The largest error over all combinations, in both memory formats."""
    worst, where = 0.0, None
    for case in itertools.product(shapes, radixes, dtypes, FORMATS):
        tensors = inputs(*case, place.device)
        prepare(tensors[0])
        results = [passes(tensors, case[1], kernels) for kernels in (False, True)]
        error, _ = assert_close(*results, TOLERANCE[case[2]])
        if error / TOLERANCE[case[2]] >= worst:
            worst, where = error / TOLERANCE[case[2]], case
    return f"at most {worst:.0%} of the tolerance, at {where}"


@check()
def kernels_run(place: Place) -> None:
    reason = triton_kernels.unavailable(place.device)
    assert reason is None, reason


@check()
def odd_sizes_types_formats_radixes(place: Place) -> str:
    return compare(place, SHAPES[:2] if place.small else SHAPES, (1, 2, 4), TOLERANCE)


@check(on_cpu=False)
def sizes_of_the_stages(place: Place) -> str:
    return compare(place, STAGES, (2,), TOLERANCE)


@check()
def nan_and_infinity_go_through(place: Place) -> str:
    def spoil(x: Tensor) -> None:
        for i, value in enumerate((float("nan"), float("inf"), -float("inf"))):
            x[0, i, i, i + 1] = value

    return compare(place, [(2, 5, 7, 9)], (1, 2), TOLERANCE, spoil)


@check()
def equal_from_run_to_run(place: Place) -> None:
    for layout in FORMATS:
        tensors = inputs(SHAPES[1] if place.small else STAGES[0], 2, place.half, layout, place.device)
        first, second = (passes(tensors, 2, True) for _ in range(2))
        assert all(torch.equal(a, b) for a, b in zip(first, second))


def layer(device: torch.device, **options) -> SplitAttentionConv2d:
    torch.manual_seed(0)
    return SplitAttentionConv2d(32, 32, **options).to(device)


def run_layer(module: torch.nn.Module, x: Tensor) -> List[Tensor]:
    """Output and gradients, those of biases before a norm left out: they are rounding."""
    module.zero_grad()
    out = module(x)
    out.float().square().mean().backward()
    named = [(name, p) for name, p in module.named_parameters() if not name.endswith("fc1.bias")]
    return [out, *(p.grad.clone() for _, p in named)]


@check()
def layer_with_and_without_kernels(place: Place) -> str:
    x = torch.randn(4, 32, 14, 15, device=place.device)
    plain = layer(place.device, fused_kernels=False)
    return assert_close(run_layer(plain, x), run_layer(layer(place.device), x), 1e-4)[1]


@check()
def layer_compiled(place: Place) -> str:
    x = torch.randn(4, 32, 14, 15, device=place.device)
    compiled = torch.compile(layer(place.device), backend="aot_eager" if place.small else "inductor")
    return assert_close(run_layer(layer(place.device), x), run_layer(compiled, x), 1e-3)[1]


@check(on_cpu=False, alone=True)
def cuda_graph(place: Place) -> str:
    x = torch.randn(4, 32, 56, 56, device=place.device)
    eager = layer(place.device)
    graphed = torch.cuda.make_graphed_callables(copy.deepcopy(eager), (x.clone(),))
    x = torch.randn_like(x)
    return assert_close(run_layer(eager, x), run_layer(graphed, x), 1e-3)[1]


@check(on_cpu=False, alone=True)
def side_stream(place: Place) -> str:
    """The map is still being computed when the kernels are launched on its stream."""
    stream = torch.cuda.Stream()
    tensors = inputs(STAGES[1], 2, torch.float16, FORMATS[0], place.device)
    expected = passes([tensors[0].clamp(max=1), *tensors[1:]], 2, False)
    factor = torch.randn(8192, 8192, device=place.device)
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(20):
            factor = (factor @ factor).clamp(-1, 1)
        tensors[0] = tensors[0].clamp(max=1) + 0 * factor[0, 0].half()
        got = passes(tensors, 2, True)
    torch.cuda.current_stream().wait_stream(stream)
    return assert_close(expected, got, TOLERANCE[torch.float16])[1]


@check(on_cpu=False, alone=True)
def second_device(place: Place) -> str:
    """While the first is the current one."""
    if place.count < 2:
        raise Skip("there is one device")
    other = torch.device("cuda", 1)
    return compare(place._replace(device=other), STAGES[:1], (2,), (torch.float16,))


@check(on_cpu=False, alone=True)
def maps_of_more_than_2_31_elements(place: Place) -> None:
    if torch.cuda.mem_get_info()[0] < 20 * 2**30:
        raise Skip("it needs 20 GB")
    x = torch.zeros(5, 128, 2048, 2048, dtype=torch.float16, device=place.device)
    x[-1] = 1
    pooled, activated = relu_pool(x, 2)
    out = relu_weighted_sum(activated, torch.full((5, 128, 1, 1), 0.5, device=place.device))
    assert pooled[:-1].eq(0).all() and pooled[-1].eq(2).all()
    assert out[:-1].eq(0).all() and out[-1].eq(1).all()
