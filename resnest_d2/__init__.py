"""ResNeSt backbones and recipes for detectron2 (Split-Attention Networks, arXiv 2004.08955).

Importing the package registers the backbones, the datasets and the weight names with detectron2.
"""

import sys
import warnings

if sys.flags.optimize > 1:  # detectron2 adds to docstrings as it is imported
    raise ImportError("detectron2 cannot be imported by python -OO, which drops docstrings; use python -O")
if any(action == "error" and kind is Warning for action, _, kind, _, _ in warnings.filters):
    # Who asks for errors means the code at hand, and these packages warn as they are imported.
    warnings.filterwarnings("default", module=r"(torch|torchvision|detectron2|fvcore|iopath)\b")
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
try:
    import torchvision  # noqa: F401
except Exception as e:  # one that was built for another torch raises RuntimeError or OSError
    import torch

    # With the name, `python -m resnest_d2.collect_env` says it in one line.
    raise ImportError(
        f"resnest_d2 needs torchvision, which cannot be imported ({type(e).__name__}: {str(e)[:200]}); "
        f"install the version that goes with torch {torch.__version__} (Python {sys.version.split()[0]})",
        name=__name__,
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
