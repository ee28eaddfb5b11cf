from . import triton_kernels
from .autograd import relu_pool, relu_weighted_sum
from .split_attention import radix_softmax, radix_weighted_sum, split_pool

fused = triton_kernels  # as it was called when its checks outside this project were written

__all__ = [
    "radix_softmax",
    "radix_weighted_sum",
    "relu_pool",
    "relu_weighted_sum",
    "split_pool",
    "triton_kernels",
]
