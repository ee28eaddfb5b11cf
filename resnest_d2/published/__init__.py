"""Figures and weights that others have published, as data; none are ours."""

from .detectors import DETECTORS
from .segmentors import SEGMENTORS

#: All published rows, by the names of their configurations.
MODELS = {**DETECTORS, **SEGMENTORS}
