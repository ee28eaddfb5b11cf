"""ResNeSt backbones and recipes for detectron2 (Split-Attention Networks, arXiv 2004.08955).

Importing the package registers the backbones, the datasets and the weight names with detectron2.
"""

from . import prerequisites
from .version import __version__

if prerequisites.met():
    from . import checkpoint, data, model_zoo
    from .config import add_resnest_config
    from .errors import OptionError, UserError
    from .modeling import ResNeSt, SplitAttentionConv2d, optimize_for_inference

__all__ = [
    "OptionError",
    "Predictor",
    "ResNeSt",
    "SplitAttentionConv2d",
    "UserError",
    "__version__",
    "add_resnest_config",
    "checkpoint",
    "data",
    "model_zoo",
    "optimize_for_inference",
]


def __getattr__(name: str) -> object:
    if name == "Predictor":  # imported when it is used, since the engine takes as long as the rest
        from .prediction import Predictor

        return Predictor
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
