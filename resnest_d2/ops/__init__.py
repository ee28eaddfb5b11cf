from .passes import relu_pool, relu_weighted_sum
from .split_attention import radix_softmax, radix_weighted_sum, split_pool

__all__ = ["radix_softmax", "radix_weighted_sum", "relu_pool", "relu_weighted_sum", "split_pool"]
