"""Command lines: flags out of range, files of the wrong kind, and what surrounds a process."""

from __future__ import annotations

from pathlib import Path
from typing import Callable, Dict

import numpy as np

from .case import Case

COMMANDS: Dict[str, Callable[[Path, np.random.Generator], Case]] = {}
