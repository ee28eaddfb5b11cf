"""Results, metrics, detections and settings that the tools for reading them are given."""

from __future__ import annotations

from pathlib import Path
from typing import Callable, Dict

import numpy as np

from .case import Case

REPORTS: Dict[str, Callable[[Path, np.random.Generator], Case]] = {}
