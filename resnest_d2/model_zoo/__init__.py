"""Configurations and weights by name, with the functions that detectron2.model_zoo has for its own.

detectron2's own cannot be imported beside setuptools 82 or newer, so it is not used here.
"""

from __future__ import annotations

from pathlib import Path
from typing import List, Optional

import torch
from detectron2.config import CfgNode, get_cfg
from detectron2.modeling import build_model
from torch import nn

from ..checkpoint import Checkpointer
from ..config import add_resnest_config
from ..errors import UserError, nearest
from ..published.detectors import DETECTORS

_PACKAGE = Path(__file__).resolve().parent.parent


def config_dir() -> Path:
    """Folder of the configurations: in the installed package, or beside it in a checkout."""
    installed = _PACKAGE / "configs"
    return installed if installed.is_dir() else _PACKAGE.parent / "configs"


def available() -> List[str]:
    """Names of all configurations, e.g. ``cascade_resnest101``; those in a subfolder carry its name."""
    paths = (path.relative_to(config_dir()) for path in config_dir().rglob("*.yaml"))
    return sorted(path.with_suffix("").as_posix() for path in paths if path.parts[0] != "base")


def get_config_file(name: str) -> str:
    """Path of a configuration, given with or without ``.yaml``.

    Raises:
        UserError: there is none of that name.
    """
    name = str(name)[:100].removesuffix(".yaml")
    if name not in available():
        hint = nearest(name, available(), limit=50)
        raise UserError(f"no configuration {name!r} in {config_dir()}; {hint}")
    return str(config_dir() / f"{name}.yaml")


def get_config(name: str, trained: bool = False) -> CfgNode:
    """detectron2's defaults, ResNeSt's keys and the configuration ``name``, merged.

    Args:
        trained: MODEL.WEIGHTS is the authors' trained detector instead of the ImageNet backbone.

    Raises:
        UserError: there is none of that name, or with ``trained`` no trained detector was published.
    """
    cfg = get_cfg()
    add_resnest_config(cfg)
    cfg.merge_from_file(get_config_file(name))
    if trained:
        cfg.MODEL.WEIGHTS = get_checkpoint_url(name)
    return cfg


def get_checkpoint_url(name: str) -> str:
    """Where detectron2 finds the authors' trained detector of a configuration: ``resnest://name``.

    Raises:
        UserError: none was published for it.
    """
    get_config_file(name)
    name = str(name).removesuffix(".yaml")
    if name not in DETECTORS:
        raise UserError(f"nobody has published a trained detector for {name}")
    return f"resnest://{name}"


def get(name: str, trained: bool = False, device: Optional[str] = None) -> nn.Module:
    """The model of a configuration.

    Args:
        trained: with the authors' trained weights; else at its random initialisation.
        device: ``cpu``, ``cuda``, ...; None for CUDA where there is a device.

    Raises:
        UserError: see :func:`get_config`; or the trained weights are not on this machine.
    """
    cfg = get_config(name, trained)
    cfg.MODEL.DEVICE = device or ("cuda" if torch.cuda.is_available() else "cpu")
    model = build_model(cfg)
    if trained:
        Checkpointer(model).load(cfg.MODEL.WEIGHTS)
    return model
