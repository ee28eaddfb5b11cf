"""Folders of runs: checkpoints, notes and other files that are damaged, foreign or in the way."""

from __future__ import annotations

from pathlib import Path
from typing import Callable, Dict

import numpy as np

from .case import Case

RUNS: Dict[str, Callable[[Path, np.random.Generator], Case]] = {}
