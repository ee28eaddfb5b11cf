"""The fused kernels, as far as a machine without a GPU can show, and when they are chosen."""

import os
import re

import pytest
import torch
import torch.nn.functional as F

from resnest_d2 import SplitAttentionConv2d
from resnest_d2.ops import fused, passes, radix_softmax, radix_weighted_sum, split_pool


def test_kernels_in_the_interpreter(run_python):
    pytest.importorskip("triton")
    result = run_python(
        *("-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/kernels_in_interpreter.py"),
        env={"TRITON_INTERPRET": 1},
    )
    assert result.returncode == 0, result.stdout[-3000:]
    passed = int(re.search(r"(\d+) passed", result.stdout)[1])
    assert passed >= 90 and "skipped" not in result.stdout


def test_the_reference_runs_on_the_cpu():
    assert os.getenv("TRITON_INTERPRET") != "1"
    assert not fused.is_supported(torch.randn(1, 4, 3, 3), 2)


def test_the_key_turns_the_kernels_off(monkeypatch):
    class Refuse:
        def __getattr__(self, name):
            raise AssertionError("kernels were chosen")

    monkeypatch.setattr(passes, "is_supported", lambda *_: True)
    monkeypatch.setattr(passes, "Kernels", Refuse())
    SplitAttentionConv2d(32, 32, fused_kernels=False)(torch.randn(2, 32, 4, 4))
    with pytest.raises(AssertionError, match="kernels were chosen"):
        SplitAttentionConv2d(32, 32)(torch.randn(2, 32, 4, 4))


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("shape", [(1, 1, 1, 1), (2, 5, 7, 9), (3, 6, 4, 5)], ids=str)
@pytest.mark.parametrize("cardinality", [1, 2, 4])
@pytest.mark.parametrize("radix", [1, 2, 3, 4])
def test_plain_passes_equal_the_reference_output_and_every_gradient(radix, cardinality, shape, layout):
    generator = torch.Generator().manual_seed(0)
    n, c, h, w = shape
    c *= cardinality
    x, logits, of_sum, of_pool = (
        torch.randn(s, generator=generator, dtype=torch.float64)
        for s in ((n, radix * c, h, w), (n, radix * c, 1, 1), (n, c, h, w), (n, c, 1, 1))
    )
    results = []
    for plain in (False, True):
        map_ = x.clone().contiguous(memory_format=layout).requires_grad_()
        raw = logits.clone().requires_grad_()
        y = map_ * 1  # a leaf may not be changed in place
        if plain:
            pooled, activated = passes.relu_pool(y, radix)
            attention = radix_softmax(raw * (1 + pooled.repeat(1, radix, 1, 1)), radix, cardinality)
            out = passes.relu_weighted_sum(activated, attention)
        else:
            y = F.relu(y)
            pooled = split_pool(y, radix)
            attention = radix_softmax(raw * (1 + pooled.repeat(1, radix, 1, 1)), radix, cardinality)
            out = radix_weighted_sum(y, attention, radix)
        torch.autograd.backward([out, pooled], [of_sum, of_pool])
        with torch.no_grad():
            again = passes.relu_weighted_sum(passes.relu_pool(map_ * 1, radix)[1], attention)
        results.append((pooled, out, map_.grad, raw.grad, again))
    for a, b in zip(*results):
        torch.testing.assert_close(b, a, rtol=1e-12, atol=1e-12)
