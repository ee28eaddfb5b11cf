"""ResNeSt backbones and recipes for detectron2 (Split-Attention Networks, arXiv 2004.08955).

Importing the package registers the backbones, the datasets and the weight names with detectron2.
"""

try:
    import detectron2  # noqa: F401
except ModuleNotFoundError as e:
    if e.name != "detectron2":
        raise
    raise ImportError(
        "resnest_d2 needs detectron2, which is not installed. Build it from source "
        "(https://detectron2.readthedocs.io/tutorials/install.html), or, without a compiler: pip install "
        "--no-deps --only-binary=:all: --python-version 3.10 --target "
        '"$(python -c \'import sysconfig; print(sysconfig.get_path("purelib"))\')" sal-detectron2==0.7.2'
    ) from None

from . import checkpoint, data, model_zoo
from .config import add_resnest_config
from .errors import OptionError, UserError
from .modeling import ResNeSt, SplitAttentionConv2d, optimize_for_inference
from .version import __version__

__all__ = [
    "OptionError",
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
