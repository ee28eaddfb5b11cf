"""What a check is, where it runs, and what comes of it."""

from __future__ import annotations

import time
import traceback
from typing import Callable, Dict, List, NamedTuple, Optional, Tuple

import torch
from torch import Tensor


class Place(NamedTuple):
    """Where the checks run: on CUDA devices, or, in the rehearsal, on the CPU with small sizes."""

    device: torch.device
    count: int

    @classmethod
    def find(cls, cpu: bool) -> Place:
        return cls(torch.device("cpu"), 2) if cpu else cls(torch.device("cuda", 0), torch.cuda.device_count())

    @property
    def small(self) -> bool:
        return self.device.type == "cpu"

    @property
    def half(self) -> torch.dtype:
        """The type of mixed precision."""
        return torch.bfloat16 if self.small else torch.float16


class Check(NamedTuple):
    """A function that raises where something is wrong, and may return a word on what it saw.

    Attributes:
        on_cpu: whether the rehearsal can run it.
        alone: runs in a process of its own, since it may leave CUDA unusable for the next.
    """

    theme: str
    name: str
    function: Callable[[Place], Optional[str]]
    on_cpu: bool
    alone: bool


class Outcome(NamedTuple):
    """``PASS``, ``FAIL`` or ``SKIP``, with what was seen, or why."""

    theme: str
    name: str
    outcome: str
    seconds: float
    note: str


class Skip(Exception):
    """Why a check says nothing here."""


#: Modules of this package, most important first.
THEMES = ("kernels", "training", "distributed", "inference")
#: By name, in the order in which they run.
CHECKS: Dict[str, Check] = {}


def check(name: str = "", on_cpu: bool = True, alone: bool = False) -> Callable:
    """Register a function, under its own name by default. Its module's name is its theme."""

    def register(function: Callable[[Place], Optional[str]]) -> Callable:
        theme, key = function.__module__.split(".")[-1], name or function.__name__
        assert key not in CHECKS, key
        CHECKS[key] = Check(theme, key, function, on_cpu, alone)
        return function

    return register


def run(check: Check, place: Place) -> Outcome:
    """Run a check in this process."""
    start, outcome, note = time.monotonic(), "PASS", ""
    try:
        if place.small and not check.on_cpu:
            raise Skip("it needs a GPU")
        torch.manual_seed(0)
        note = check.function(place) or ""
    except Skip as e:
        outcome, note = "SKIP", str(e)
    except Exception as e:  # whatever a check meets is its result
        lines = str(e).strip().splitlines() or [traceback.format_exc().strip().splitlines()[-2].strip()]
        outcome, note = "FAIL", f"{type(e).__name__}: {lines[0][:300]}"
    return Outcome(check.theme, check.name, outcome, round(time.monotonic() - start, 1), note)


def largest_error(expected: List[Tensor], got: List[Tensor]) -> float:
    """Of all tensors, relative to each one's largest value. NaN and infinity must be in the same places."""
    errors = [_error(a.detach().double().cpu(), b.detach().double().cpu()) for a, b in zip(expected, got)]
    assert len(expected) == len(got)
    return max(errors)


def _error(expected: Tensor, got: Tensor) -> float:
    assert expected.shape == got.shape, f"shape {tuple(got.shape)}, expected {tuple(expected.shape)}"
    finite = expected.isfinite()
    torch.testing.assert_close(got[~finite], expected[~finite], equal_nan=True, rtol=0, atol=0)
    assert got[finite].isfinite().all(), "not finite"
    if not finite.any():
        return 0.0
    return ((expected - got)[finite].abs().max() / expected[finite].abs().max().clamp(min=1e-3)).item()


def assert_close(expected: List[Tensor], got: List[Tensor], tolerance: float) -> Tuple[float, str]:
    """
    Raises:
        AssertionError: the largest error is above the tolerance.
    """
    error = largest_error(expected, got)
    assert error <= tolerance, f"error {error:.1e}, more than {tolerance:.0e}"
    return error, f"error {error:.1e}"
