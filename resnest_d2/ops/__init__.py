from .split_attention import radix_softmax, radix_weighted_sum, split_pool

__all__ = ["radix_softmax", "radix_weighted_sum", "split_pool"]
