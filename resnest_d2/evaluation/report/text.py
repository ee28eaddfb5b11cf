"""Numbers as the page shows them."""

from __future__ import annotations

import math
from typing import Any


def figure(value: Any, digits: int = 1) -> str:
    """Format a number, or return an en dash if there is none."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return "–"
    return f"{value:,.{digits}f}" if isinstance(value, float) else f"{value:,}"
