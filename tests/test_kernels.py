"""When the Triton kernels are chosen, and what happens where they cannot run; what they compute is in
kernels_on_device.py, which runs in a process of its own."""

import contextlib
import logging
import os
import re

import forks
import pytest
import torch
from support import ROOT

from resnest_d2 import SplitAttentionConv2d
from resnest_d2.ops import autograd, relu_pool, triton_kernels

ON_CUDA = torch.cuda.is_available()


@pytest.mark.long
@pytest.mark.parametrize(
    "chosen, number", [("not slow", 41), pytest.param("slow", 21, marks=pytest.mark.slow)], ids=str
)
def test_kernels_on_this_device(run_python, chosen, number):
    """On CUDA where there is a device, else in Triton's interpreter."""
    pytest.importorskip("triton")
    result = run_python(
        *("-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/kernels_on_device.py", "-m", chosen),
        env={} if ON_CUDA else {"TRITON_INTERPRET": 1},
    )
    assert result.returncode == 0, result.stdout[-3000:]
    passed = int(re.search(r"(\d+) passed", result.stdout)[1])
    assert passed >= number and "skipped" not in result.stdout


def test_the_reference_runs_on_the_cpu():
    assert os.getenv("TRITON_INTERPRET") != "1"
    assert not triton_kernels.is_supported(torch.randn(1, 4, 3, 3), 2)
    assert triton_kernels.unavailable(torch.device("cpu")) == "the kernels are for CUDA devices"


def test_the_key_turns_the_kernels_off(monkeypatch):
    class Refuse:
        def __getattr__(self, name):
            raise AssertionError("kernels were chosen")

    monkeypatch.setattr(autograd, "is_supported", lambda *_: True)
    monkeypatch.setattr(autograd, "Kernels", Refuse())
    SplitAttentionConv2d(32, 32, fused_kernels=False)(torch.randn(2, 32, 4, 4))
    with pytest.raises(AssertionError, match="kernels were chosen"):
        SplitAttentionConv2d(32, 32)(torch.randn(2, 32, 4, 4))


@pytest.fixture
def interpreted(monkeypatch):
    monkeypatch.setenv("TRITON_INTERPRET", "1")


def test_what_is_not_supported_is_said(interpreted):
    x = torch.randn(1, 6, 4, 4)
    assert triton_kernels.is_supported(x, 2)
    for other, radix in ((x, 3), (x.double(), 2), (x[:, :, ::2], 2), (x[:0], 2)):
        assert not triton_kernels.is_supported(other, radix)


def test_images_of_more_elements_than_offsets_hold_are_for_the_reference(interpreted):
    x = torch.empty(1, 2, 2**15, 2**15, dtype=torch.float16)  # never touched, so never there
    assert not triton_kernels.is_supported(x, 2)
    assert triton_kernels.is_supported(x.view(2, 1, 2**15, 2**15), 1)
    assert not triton_kernels.is_supported(torch.empty(65536, 1, 1, 1), 1)  # nor has a grid so many places


def test_tensors_without_data_are_for_the_reference(interpreted):
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode():
        x = torch.randn(2, 8, 6, 6)
        assert not triton_kernels.is_supported(x, 2)
        assert relu_pool(x, 2)[0].shape == (2, 4, 1, 1)
        layer = SplitAttentionConv2d(32, 32).train()
        layer(torch.randn(2, 32, 6, 6)).sum().backward()


@pytest.mark.skipif(ON_CUDA, reason="for machines on which the trial fails")
def test_a_device_on_which_a_trial_fails_is_said_once_and_gets_plain_pytorch(caplog):
    triton_kernels._fails.cache_clear()
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            assert triton_kernels.unavailable(torch.device("cuda", 0))
    (record,) = caplog.records
    assert record.getMessage().startswith(
        "Split-Attention computes in plain PyTorch on cuda:0, without kernels: "
    )
    assert "\n" not in record.getMessage()


def test_without_triton_the_module_is_there_and_says_so():
    code = (
        "import sys; sys.modules['triton'] = None\n"
        "import importlib.util, pathlib, torch\n"
        "spec = importlib.util.spec_from_file_location('kernels', 'resnest_d2/ops/triton_kernels.py')\n"
        "module = importlib.util.module_from_spec(spec); spec.loader.exec_module(module)\n"
        "print(module.unavailable(torch.device('cuda', 0)))"
    )
    result = forks.run(["-c", code], cwd=ROOT, environment=os.environ, timeout=60)
    assert result.stdout.strip() == "Triton is not installed", result.stderr[-2000:]


def test_compiled_kernels_go_elsewhere_where_their_folder_cannot_be_written(monkeypatch, caplog):
    monkeypatch.setenv("TRITON_CACHE_DIR", "/dev/null/kernels")
    find = triton_kernels._find_room_for_compiled_kernels
    find.cache_clear()
    with caplog.at_level(logging.WARNING):
        find(), find()
    (record,) = caplog.records
    assert "Triton has no place for compiled kernels" in record.getMessage()
    assert "/dev/null/kernels" in record.getMessage()
    folder = os.environ["TRITON_CACHE_DIR"]
    assert os.path.isdir(folder) and os.access(folder, os.W_OK)
    find.cache_clear()


def test_kernels_are_launched_on_the_device_of_the_map(monkeypatch):
    """Without a second device, that the launch happens while the map's is current; with two, `make gpu`."""
    current = []

    @contextlib.contextmanager
    def device_of(tensor):
        current.append(tensor)
        yield
        current.pop()

    class Kernel:
        def __getitem__(self, grid):
            return lambda *arguments, **constants: seen.append((current[-1], arguments[0]))

    seen, x = [], torch.randn(2, 8, 5, 5)
    monkeypatch.setattr(torch.cuda, "device_of", device_of)
    for name in ("pool", "weighted_sum", "attention_gradient", "input_gradient"):
        monkeypatch.setattr(triton_kernels, name, Kernel())
    vector, gradient = torch.rand(2, 8, 1, 1), torch.rand(2, 4, 5, 5)
    triton_kernels.Kernels.pool(x, 2)
    triton_kernels.Kernels.weighted_sum(x, vector, 2)
    triton_kernels.Kernels.attention_gradient(x, gradient, 2)
    triton_kernels.Kernels.map_gradient(x, gradient, vector, vector[:, :4], 2)
    assert len(seen) == 4 and all(a is x and b is x for a, b in seen)
