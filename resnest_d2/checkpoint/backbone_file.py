"""The file of a backbone's keys beside a classifier's checkpoints, for detectors that start from these."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Dict

import yaml
from detectron2.config import CfgNode

from ..errors import UserError
from ..files import atomic_write_text, read_text
from ..modeling.resnest import STEM_WIDTH
from .links import local_weights

#: Its name, in OUTPUT_DIR.
FILE = "backbone.yaml"
#: Keys of MODEL.RESNETS that weights depend on. The others, such as dilations, belong to the task.
_KEYS = (
    *("DEPTH", "RADIX", "NUM_GROUPS", "BOTTLENECK_WIDTH", "WIDTH_PER_GROUP", "RES2_OUT_CHANNELS"),
    *("DEEP_STEM", "STEM_WIDTH", "STEM_OUT_CHANNELS", "AVD", "AVD_FIRST", "AVG_DOWN", "STRIDE_IN_1X1"),
)
#: Largest difference of means and standard deviations that is one of rounding, in levels of 0 to 255.
_ROUNDING = 0.5


def write_backbone(cfg: CfgNode) -> None:
    """Write the backbone's keys to OUTPUT_DIR, as a configuration that others can name in ``_BASE_``."""
    text = yaml.safe_dump(_section(cfg), default_flow_style=None, sort_keys=False)
    about = "# The backbone of the weights beside this file, for the _BASE_ of other configurations.\n"
    atomic_write_text(Path(cfg.OUTPUT_DIR, FILE), about + text)


def _section(cfg: CfgNode) -> Dict[str, Any]:
    resnets = {key: cfg.MODEL.RESNETS[key] for key in _KEYS}
    if resnets["DEEP_STEM"]:
        resnets["STEM_WIDTH"] = resnets["STEM_WIDTH"] or STEM_WIDTH.get(resnets["DEPTH"], 0)
        del resnets["STEM_OUT_CHANNELS"]  # of the plain stem
    model = {
        "PIXEL_MEAN": list(cfg.MODEL.PIXEL_MEAN),
        "PIXEL_STD": list(cfg.MODEL.PIXEL_STD),
        "RESNETS": resnets,
    }
    return {"MODEL": model, "INPUT": {"FORMAT": cfg.INPUT.FORMAT}, "VERSION": 2}


def _check_backbone(cfg: CfgNode) -> None:
    """Raise UserError if the file beside MODEL.WEIGHTS has another backbone's keys than the configuration.

    Pools have no weights, so a file of weights does not show where a network downsamples, nor which images
    it has seen.
    """
    weights = Path(cfg.MODEL.WEIGHTS) if "\0" not in cfg.MODEL.WEIGHTS else Path()
    file = weights.parent / FILE
    if not cfg.MODEL.WEIGHTS or not weights.is_file() or not file.is_file():
        return
    try:
        noted = yaml.safe_load(read_text(file))
        theirs = {**noted["MODEL"]["RESNETS"], **{k: noted["MODEL"][k] for k in ("PIXEL_MEAN", "PIXEL_STD")}}
        theirs["FORMAT"] = noted["INPUT"]["FORMAT"]
    except (yaml.YAMLError, LookupError, TypeError, ValueError, RecursionError):
        raise UserError(f"{file} holds no keys of a backbone; remove it, or train again") from None
    section = _section(cfg)["MODEL"]
    ours = {**section.pop("RESNETS"), **section, "FORMAT": cfg.INPUT.FORMAT}
    names = {"FORMAT": "INPUT.FORMAT", "PIXEL_MEAN": "MODEL.PIXEL_MEAN", "PIXEL_STD": "MODEL.PIXEL_STD"}
    different = [key for key, value in ours.items() if not _same(value, theirs.get(key, value))]
    if different:
        shown = "; ".join(
            f"{names.get(key, f'MODEL.RESNETS.{key}')} is {ours[key]!r}, in its run {theirs[key]!r:.80}"
            for key in different[:3]
        )
        raise UserError(
            f"MODEL.WEIGHTS {weights} is of another backbone or other images ({shown}); set these as in its "
            f"run, for example by _BASE_: [..., {file}], or give --allow-random-weights"
        )


def fetch_weights(cfg: CfgNode, allow_random: bool = False, needed: str = "") -> None:
    """Fetch and cache MODEL.WEIGHTS, and check the file of a backbone beside it.

    Args:
        allow_random: the weights may be of another backbone.
        needed: why there must be weights; empty if there need not be any.

    Raises:
        UserError: the weights are missing, cannot be fetched, or are of another backbone.
    """
    if cfg.MODEL.WEIGHTS:
        local_weights(cfg.MODEL.WEIGHTS)
    elif needed:
        raise UserError(f'MODEL.WEIGHTS is "", {needed}; name a file')
    if not allow_random:
        _check_backbone(cfg)


def _same(one: Any, other: Any) -> bool:
    if isinstance(one, list) and isinstance(other, list) and len(one) == len(other):
        numbers = all(isinstance(value, (int, float)) for value in other)
        return numbers and all(abs(a - b) <= _ROUNDING for a, b in zip(one, other))
    return one == other
