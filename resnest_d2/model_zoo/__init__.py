"""Configurations and weights by name, with the same functions as detectron2.model_zoo.

detectron2's module cannot be imported with setuptools 82 or newer, so it is not used here.
"""

from __future__ import annotations

from pathlib import Path
from typing import List, Optional

import torch
from detectron2.config import CfgNode, LazyConfig
from detectron2.modeling import build_model
from omegaconf import DictConfig
from torch import nn

from ..checkpoint import Checkpointer
from ..config import default_config
from ..errors import UserError, nearest
from ..published import CLASSIFIERS, MODELS

_PACKAGE = Path(__file__).resolve().parent.parent


def config_dir() -> Path:
    """Return the folder of the configurations, in the installed package or beside it in a checkout."""
    installed = _PACKAGE / "configs"
    return installed if installed.is_dir() else _PACKAGE.parent / "configs"


def available() -> List[str]:
    """List the names of all configurations, e.g. ``cascade_resnest101``, with the subfolder if any."""
    paths = (path.relative_to(config_dir()) for path in config_dir().rglob("*.yaml"))
    return sorted(path.with_suffix("").as_posix() for path in paths if path.parts[0] != "base")


def get_config_file(name: str) -> str:
    """Return the path of a configuration, given with or without ``.yaml``.

    Raises:
        UserError: there is no configuration of that name.
    """
    return _file(config_dir(), name, ".yaml", available())


def _file(folder: Path, name: str, suffix: str, names: List[str]) -> str:
    name = str(name)[:100].removesuffix(suffix)
    if name not in names:
        hint = nearest(name, names, limit=50)
        raise UserError(f"no configuration {name!r} in {folder}; {hint}")
    return str(folder / f"{name}{suffix}")


def get_config(name: str, trained: bool = False) -> CfgNode:
    """Merge detectron2's defaults, ResNeSt's keys and the configuration ``name``.

    Args:
        trained: set MODEL.WEIGHTS to the authors' trained model instead of the ImageNet backbone.

    Raises:
        UserError: there is no such configuration, or with ``trained`` no published trained model for it.
    """
    cfg = default_config()
    cfg.merge_from_file(get_config_file(name))
    if trained:
        cfg.MODEL.WEIGHTS = get_checkpoint_url(name)
    return cfg


def available_lazy() -> List[str]:
    """List the names of the configurations that :func:`get_lazy_config` knows."""
    return sorted(path.stem for path in (config_dir() / "lazy").glob("*.py") if path.stem != "common")


def get_lazy_config(name: str) -> DictConfig:
    """Return the configuration ``name`` in detectron2's lazy form, with the settings of its YAML file.

    Its parts are ``model``, ``dataloader``, ``optimizer``, ``lr_multiplier`` and ``train``, as detectron2's
    ``lazyconfig_train_net.py`` takes them.

    Raises:
        UserError: there is none of that name.
    """
    return LazyConfig.load(_file(config_dir() / "lazy", name, ".py", available_lazy()))


def get_checkpoint_url(name: str) -> str:
    """Return the authors' trained model of a configuration as ``resnest://name`` for detectron2.

    Raises:
        UserError: none was published.
    """
    get_config_file(name)
    name = str(name).removesuffix(".yaml")
    if name not in MODELS or not MODELS[name].released:
        raise UserError(
            f"no trained model has been published for {name}; docs/MODEL_ZOO.md lists those that have been"
        )
    return f"resnest://{CLASSIFIERS[name].released if name in CLASSIFIERS else name}"


def get(name: str, trained: bool = False, device: Optional[str] = None) -> nn.Module:
    """Build the model of a configuration.

    Args:
        trained: load the authors' trained weights; otherwise the initialisation is random.
        device: ``cpu``, ``cuda``, ...; None for CUDA if available, or else the CPU.

    Raises:
        UserError: see :func:`get_config`; or the trained weights are not on this machine.
    """
    cfg = get_config(name, trained)
    cfg.MODEL.DEVICE = device or ("cuda" if torch.cuda.is_available() else "cpu")
    model = build_model(cfg)
    if trained:
        Checkpointer(model).load(cfg.MODEL.WEIGHTS)
    return model
