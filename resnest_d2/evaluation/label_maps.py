"""Label maps as colours over an image."""

from __future__ import annotations

import colorsys
from typing import List, Sequence, Tuple

import numpy as np

_OPACITY = 0.6
#: Golden ratio: hues that are this far apart on the circle differ for any number of them.
_HUE = 0.6180339887
#: Saturation and value of classes in turn, since hues alone are too few.
_SHADES = ((0.85, 0.95), (0.55, 0.8), (1.0, 0.65))


def class_colours(count: int) -> List[Tuple[int, int, int]]:
    """Return a colour (R, G, B) for each class, of which neighbours differ."""
    colours = []
    for i in range(count):
        colour = colorsys.hsv_to_rgb(i * _HUE % 1, *_SHADES[i % len(_SHADES)])
        colours.append(tuple(round(255 * part) for part in colour))
    return colours


def overlay(pixels: np.ndarray, labels: np.ndarray, colours: Sequence[Sequence[int]]) -> np.ndarray:
    """Colour an image by its labels.

    Args:
        pixels: (H, W, 3) uint8, RGB.
        labels: (H, W) integers; pixels with labels that have no colour stay as they are.
        colours: (R, G, B) of each label.

    Returns:
        (H, W, 3) uint8.
    """
    palette = np.array(colours, np.uint8)
    known = (labels >= 0) & (labels < len(palette))
    mixed = (1 - _OPACITY) * pixels + _OPACITY * palette[np.where(known, labels, 0)]
    return np.where(known[..., None], mixed, pixels).round().astype(np.uint8)
