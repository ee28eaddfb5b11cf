"""The Triton kernels compiled ahead of time, by the host code that launches them, for GPUs that are not here."""

import itertools
import re
import subprocess
from pathlib import Path

import pytest
import torch
from split_attention_graphs import FORMATS

from resnest_d2.ops import triton_kernels
from resnest_d2.ops.triton_kernels import Kernels

triton = pytest.importorskip("triton")
HALF = torch.float16
#: Compute capability: Turing, Ampere, Ada, Hopper, and two of Blackwell.
CAPABILITIES = (75, 80, 89, 90, 100, 120)
#: Registers of a thread by radix, of 255; with 128, 512 threads share a multiprocessor. No detector has radix 4.
MOST_REGISTERS = {1: 128, 2: 128, 4: 192}


class Target:
    """What Triton asks its driver for when it compiles."""

    def __init__(self, capability):
        self.capability = capability

    def get_current_target(self):
        return triton.backends.compiler.GPUTarget("cuda", self.capability, 32)

    def get_current_device(self):
        return self.capability  # variants are kept by device

    def get_current_stream(self, device):
        return 0


@pytest.fixture
def compiled(monkeypatch):
    """compiled(capability, dtype, radix, layout, size): the four kernels, by name."""

    def compile_all(capability, dtype, radix, layout, bias=None, shape=(2, 64, 50, 76)):
        kernels = {}

        def warm_up(kernel, grid, x, *arguments, **constants):
            kernels[kernel.__name__] = kernel.warmup(*arguments, grid=grid, **constants)

        monkeypatch.setattr(triton_kernels, "_launch", warm_up)
        monkeypatch.setattr(triton_kernels, "_multiprocessors", lambda device: 132)
        n, channels, *size = shape
        x = torch.empty((n, radix * channels, *size), dtype=dtype).contiguous(memory_format=layout)
        grad_out = torch.empty((n, channels, *size), dtype=dtype).contiguous(memory_format=layout)
        attention, grad_pooled = torch.empty(n, radix * channels, 1, 1), torch.empty(n, channels, 1, 1)
        monkeypatch.setattr(triton.runtime.driver, "_active", Target(capability))
        Kernels.pool(x, radix, torch.float32, bias)
        Kernels.weighted_sum(x, attention, radix, bias)
        Kernels.attention_gradient(x, grad_out, radix)
        Kernels.map_gradient(x, grad_out, attention, grad_pooled, radix)
        assert set(kernels) == {"pool", "weighted_sum", "attention_gradient", "input_gradient"}
        return kernels

    return compile_all


def resources(kernel, tmp_path):
    """Registers of a thread, and bytes that it spills."""
    tool = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
    file = tmp_path / "kernel.cubin"
    file.write_bytes(kernel.asm["cubin"])
    usage = subprocess.run([tool, "-res-usage", file], capture_output=True, text=True, check=True).stdout
    return int(re.search(r"REG:(\d+)", usage)[1]), int(re.search(r"LOCAL:(\d+)", usage)[1])


def widest_access(kernel):
    """Bytes."""
    widths = {"b16": 2, "b32": 4, "b64": 8}
    found = re.findall(r"(?:ld|st)\.global\S*?(?:\.v(\d))?\.(b16|b32|b64)\b", kernel.asm["ptx"])
    return max(int(count or 1) * widths[kind] for count, kind in found)


DTYPES = triton_kernels._DTYPES
CASES = [
    *itertools.product((90,), DTYPES, (2,), FORMATS),
    *itertools.product((90,), (HALF,), (1, 4), FORMATS),
    *itertools.product((75,), (torch.bfloat16,), (2,), FORMATS),
    *itertools.product((75, 80, 89, 100, 120), (HALF,), (2,), FORMATS),
]
# Combinations of what CASES vary one at a time.
PRODUCTS = [
    *itertools.product((90,), (dtype for dtype in DTYPES if dtype != HALF), (1, 4), FORMATS),
    *itertools.product((75,), (torch.float32,), (2,), FORMATS),
]


@pytest.mark.parametrize(
    "capability, dtype, radix, layout",
    [*CASES, *(pytest.param(*case, marks=pytest.mark.slow) for case in PRODUCTS)],
    ids=str,
)
def test_kernels_compile_with_wide_accesses_and_without_spills(
    compiled, tmp_path, capability, dtype, radix, layout
):
    assert_well_compiled(compiled(capability, dtype, radix, layout), tmp_path, capability, dtype, radix)


@pytest.mark.parametrize("layout", FORMATS)
@pytest.mark.parametrize("shape", [(2, 64, 25, 38), (1, 4096, 3, 5)], ids=["rows anywhere", "one part"])
def test_kernels_of_other_sizes_compile_likewise(compiled, tmp_path, shape, layout):
    kernels = compiled(90, HALF, 2, layout, shape=shape)
    assert_well_compiled(kernels, tmp_path, 90, HALF, 2)


def test_maps_that_are_nowhere_aligned_compile(compiled):
    compiled(90, HALF, 2, FORMATS[0], shape=(2, 5, 7, 9))


@pytest.mark.parametrize("layout", FORMATS)
def test_kernels_that_add_a_bias_compile_likewise(compiled, tmp_path, layout):
    kernels = compiled(90, HALF, 2, layout, bias=torch.empty(128))
    assert_well_compiled(kernels, tmp_path, 90, HALF, 2)


def assert_well_compiled(kernels, tmp_path, capability, dtype, radix):
    for name, kernel in kernels.items():
        ptx = kernel.asm["ptx"]
        registers, spilled = resources(kernel, tmp_path)
        assert registers <= MOST_REGISTERS[radix] and (spilled == 0 or radix > 2), name
        assert widest_access(kernel) == 16, name
        if dtype != torch.float32:  # of the type of the maps, and of nothing else
            assert not re.search(r"(ld|st)\.global\S*\.b16\b", ptx), name
        if name != "input_gradient":  # which compares
            # Turing has no such maximum, and asks for NaN before it takes one.
            wanted = r"\bmax\.NaN\." if capability >= 80 else r"\bsetp\.nan\."
            assert re.search(wanted, ptx), name
            assert capability < 80 or not re.search(r"\bmax\.b?f", ptx), name
