"""The checks behind `make gpu`, as far as a machine without a GPU can rehearse them."""

import json

import pytest
import torch
from gpu import kernels, registry
from gpu.__main__ import main, parser
from gpu.registry import Check, Place, Skip, run
from support import ROOT

from resnest_d2 import UserError
from resnest_d2.ops import triton_kernels

TESTS = ROOT / "tests"
CPU = Place.find(cpu=True)


def outcome(function, **options):
    return run(Check("theme", "name", function, **{"on_cpu": True, "alone": False, **options}), CPU)


def test_a_check_passes_fails_or_is_skipped_with_its_reason():
    def skip(_):
        raise Skip("there is one device")

    def fail(_):
        registry.assert_close([torch.ones(2)], [torch.tensor([1.0, 1.5])], 0.1)

    assert outcome(lambda _: "seen")[2] == "PASS"
    assert outcome(fail)[2::2] == ("FAIL", "AssertionError: error 5.0e-01, more than 1e-01")
    assert outcome(skip)[2::2] == ("SKIP", "there is one device")
    assert outcome(fail, on_cpu=False)[2::2] == ("SKIP", "it needs a GPU")


def test_errors_are_seen_where_values_are_not_finite():
    nan, inf = float("nan"), float("inf")
    expected = [torch.tensor([1.0, nan, inf])]
    assert registry.largest_error(expected, [torch.tensor([1.0, nan, inf])]) == 0
    for wrong in ([1.0, 0.0, inf], [nan, nan, inf], [1.0, nan, -inf]):
        with pytest.raises(AssertionError):
            registry.largest_error(expected, [torch.tensor(wrong)])


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_says_so():
    with pytest.raises(UserError, match="no CUDA device is visible"):
        main(parser().parse_args([]))


@pytest.mark.slow
def test_a_rehearsal_prints_and_writes_what_came_of_each_check(run_python, tmp_path):
    file = tmp_path / "checks.json"
    result = run_python("-m", "gpu", "--cpu", "--only", "kernels_run,graph", "--json", file, cwd=TESTS)
    assert result.returncode == 0, result.stdout + result.stderr[-2000:]
    outcomes = {check["name"]: check["outcome"] for check in json.loads(file.read_text())["checks"]}
    assert outcomes == {"kernels_run": "PASS", "cuda_graph": "SKIP"}
    lines = [line for line in result.stdout.splitlines() if line[:4] in ("PASS", "SKIP", "FAIL")]
    assert len(lines) == 2 and lines[1].startswith("SKIP  kernels cuda_graph")


def test_wrong_kernels_fail_their_check(monkeypatch):
    """Plain PyTorch stands for them, right and then a hundredth too large."""
    pool, weighted_sum = kernels.relu_pool, kernels.relu_weighted_sum
    monkeypatch.setattr(triton_kernels, "is_supported", lambda *_: True)
    monkeypatch.setattr(kernels, "relu_pool", lambda x, radix: pool(x * 1, radix, kernels=False))
    case = (CPU, kernels.SHAPES[1:2], (2,), (torch.float32,))
    assert "of the tolerance" in kernels.compare(*case)
    monkeypatch.setattr(kernels, "relu_weighted_sum", lambda *a: weighted_sum(*a) * 1.01)
    with pytest.raises(AssertionError, match="more than 1e-05"):
        kernels.compare(*case)
