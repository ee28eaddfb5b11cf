"""Figures and weights that others have published, as data; none are ours."""

from .classifiers import CLASSIFIERS
from .detectors import DETECTORS
from .segmentors import SEGMENTORS

#: Rows whose trained models are files of their own, by the names of their configurations.
TRAINED = {**DETECTORS, **SEGMENTORS}
#: All published rows. Classifiers are the published backbones.
MODELS = {**TRAINED, **CLASSIFIERS}
