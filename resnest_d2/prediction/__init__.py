"""From a trained model to predictions: of images, folders, videos and cameras, as pictures and as JSON."""

from .classes import read_names
from .files import Outputs, Summary, predict_files
from .inputs import Input, Source, find_inputs, read_inputs, split_overrides
from .predictor import Prediction, Predictor, load_named

__all__ = [
    "Input",
    "Outputs",
    "Prediction",
    "Predictor",
    "Source",
    "Summary",
    "find_inputs",
    "load_named",
    "predict_files",
    "read_inputs",
    "read_names",
    "split_overrides",
]
