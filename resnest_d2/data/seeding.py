"""Random numbers that depend on the position in training, so that a resumed run draws the same ones."""

from __future__ import annotations

import random
from contextlib import contextmanager
from typing import Iterator, Tuple

import numpy as np
import torch


def seed_all(*key: int) -> None:
    """Seed the generators of Python, numpy and torch, on all devices, with non-negative numbers."""
    high, low = _seed_python_and_numpy(*key)
    torch.manual_seed(high << 32 | low)


@contextmanager
def seeded(*key: int) -> Iterator[None]:
    """Apply :func:`seed_all` to a block of code without CUDA, then restore the generators."""
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()
    torch.default_generator.manual_seed(_seed_python_and_numpy(*key)[0])
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.set_rng_state(states[2])


def _seed_python_and_numpy(*key: int) -> Tuple[int, int]:
    """Seed both, and return two more 32-bit numbers derived from the key, for torch."""
    state = [int(number) for number in np.random.SeedSequence(key).generate_state(4)]
    random.seed(state[0])
    np.random.seed(state[1])
    return state[2], state[3]
