"""Random numbers that follow from where training is, so that a resumed run draws the same."""

from __future__ import annotations

import random
from contextlib import contextmanager
from typing import Iterator

import numpy as np
import torch


def seed_all(*key: int) -> None:
    """Seed the generators of Python, numpy and torch, on all devices, by non-negative numbers."""
    state = np.random.SeedSequence(key).generate_state(4)
    random.seed(int(state[0]))
    np.random.seed(state[1])
    torch.manual_seed(int(state[2]) << 32 | int(state[3]))


@contextmanager
def seeded(*key: int) -> Iterator[None]:
    """:func:`seed_all` for a block of code without CUDA; afterwards the generators are as before."""
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()
    state = np.random.SeedSequence(key).generate_state(4)
    random.seed(int(state[0]))
    np.random.seed(state[1])
    torch.default_generator.manual_seed(int(state[2]))
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.set_rng_state(states[2])
