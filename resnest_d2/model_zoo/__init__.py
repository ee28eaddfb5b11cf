"""The trained configurations that the package carries, as detectron2.model_zoo has its own."""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import List

from detectron2.config import CfgNode, get_cfg

from ..config import add_resnest_config
from ..errors import UserError

_PACKAGE = Path(__file__).resolve().parent.parent


def config_dir() -> Path:
    """Folder of the configurations: in the installed package, or beside it in a checkout."""
    installed = _PACKAGE / "configs"
    return installed if installed.is_dir() else _PACKAGE.parent / "configs"


def available() -> List[str]:
    """Names of all configurations, e.g. ``cascade_resnest101``."""
    return sorted(path.stem for path in config_dir().glob("*.yaml"))


def get_config_file(name: str) -> str:
    """Path of a configuration, given with or without ``.yaml``.

    Raises:
        UserError: there is none of that name.
    """
    stem = name[: -len(".yaml")] if name.endswith(".yaml") else name
    if stem not in available():
        near = difflib.get_close_matches(stem, available())
        hint = f"did you mean {' or '.join(near)}?" if near else f"there are {', '.join(available())}"
        raise UserError(f"no configuration {name!r} in {config_dir()}; {hint}")
    return str(config_dir() / f"{stem}.yaml")


def get_config(name: str) -> CfgNode:
    """detectron2's defaults, ResNeSt's keys and the configuration ``name``, merged.

    Raises:
        UserError: there is none of that name.
    """
    cfg = get_cfg()
    add_resnest_config(cfg)
    cfg.merge_from_file(get_config_file(name))
    return cfg
