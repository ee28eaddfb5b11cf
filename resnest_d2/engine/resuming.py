"""Check whether a configuration can resume the run that wrote a checkpoint."""

from __future__ import annotations

from typing import Any, Dict, List, Mapping, Sequence

import torch
import yaml
from detectron2.config import CfgNode

from ..checkpoint import Checkpointer
from ..config import flatten
from ..data.check import known_classes
from ..data.image_folder import image_classes
from ..errors import UserError, first_difference

#: Keys, or their beginnings, of what a network computes, and those among them that change nothing of it.
#: Norms are fitted to the number of processes.
_NETWORK = (
    *("MODEL.META_ARCHITECTURE", "MODEL.BACKBONE.NAME", "MODEL.RESNETS.", "MODEL.FPN.", "MODEL.PIXEL_"),
    *("MODEL.ANCHOR_GENERATOR.", "MODEL.SEM_SEG_HEAD.ASPP_DILATIONS", "MODEL.SEM_SEG_HEAD.ALIGN_CORNERS"),
    *("MODEL.SEM_SEG_HEAD.IN_FEATURES", "MODEL.SEM_SEG_HEAD.AUX_FEATURE"),
)
_FREE = tuple(f"MODEL.RESNETS.{key}" for key in ("FUSED_KERNELS", "CHECKPOINT_STAGES", "CHECKPOINT_KEEPS"))


def check_same(
    state: Mapping[str, Any], cfg: CfgNode, optimizer: torch.optim.Optimizer, checkpointer: Checkpointer
) -> None:
    """Raise UserError if a trainer's state is for another model or optimizer, with the keys that differ.

    Other keys may differ: detectron2's users resume with another learning rate or number of iterations.

    Args:
        state: the trainer's state; checkpoints of other trainers have no ``config``.
        checkpointer: the checkpointer that has just loaded the model from the same checkpoint.
    """
    different = _different_keys(state.get("config", ""), cfg)
    misfits = [*checkpointer.missing_keys, *checkpointer.unexpected_keys]
    solver = "SOLVER.OPTIMIZER"
    classes, before = class_names(cfg), state.get("classes")
    if before and classes and (pair := first_difference(before, classes)):
        was, now = pair
        raise UserError(
            f"--resume: the classes of {cfg.DATASETS.TRAIN[0]} are not those of {checkpointer.file}: {now!r} "
            f"is where {was!r} was; train on the same classes in the same order, or start without --resume"
        )
    fits = not misfits and _fits(state["_trainer"]["optimizer"], optimizer)
    if fits and solver not in different and not any(map(_of_network, different)):
        return
    if fits:  # say only what matters
        different = {key: value for key, value in different.items() if key == solver or _of_network(key)}
    keys = [f"{key} is {new!r}, in the checkpoint {old!r}" for key, (old, new) in different.items()]
    what = "; ".join(keys[:5]) or f"they differ in {misfits[0] if misfits else 'the groups of the optimizer'}"
    raise UserError(
        f"--resume: {checkpointer.file} is of another model or optimizer ({what}); use the settings of that "
        "run, name another checkpoint in last_checkpoint, or start again without --resume"
    )


def trained_classes(content: Mapping[str, Any]) -> List[str]:
    """Return the names of the classes that a checkpoint was trained on; empty in files of other programs."""
    state = content.get("trainer")
    classes = state.get("classes") if isinstance(state, dict) else None
    sound = isinstance(classes, list) and all(isinstance(name, str) for name in classes)
    return classes if sound else []


def check_classes_of_weights(cfg: CfgNode, trained: Sequence[str]) -> None:
    """Raise UserError if a classifier's checkpoint was trained on other classes than those of the test sets.

    Args:
        trained: the classes of the training, if known.
    """
    for name in cfg.DATASETS.TEST if trained else ():
        if pair := first_difference(trained, image_classes(name)):
            was, now = pair
            raise UserError(
                f"MODEL.WEIGHTS: the classes of {name} are not those of the training: {now!r} is where "
                f"{was!r} was; name images of the same classes"
            )


def class_names(cfg: CfgNode) -> List[str]:
    """Return the names of the classes of the first training set; empty if its metadata has none."""
    return known_classes(cfg, cfg.DATASETS.TRAIN[0]) if cfg.DATASETS.TRAIN else []


def _different_keys(text: str, cfg: CfgNode) -> Dict[str, tuple]:
    """Model and optimizer keys that differ, with their values in a dumped configuration and in ``cfg``."""
    now = yaml.safe_load(cfg.dump())  # without tuples, like the dumped one
    try:
        old = dict(flatten(CfgNode(yaml.safe_load(text))))
    except (yaml.YAMLError, AssertionError, AttributeError, TypeError, ValueError):  # it holds none
        return {}
    return {
        key: (old[key], value)
        for key, value in flatten(CfgNode(now))
        if key.startswith(("MODEL.", "SOLVER.OPTIMIZER"))
        and key not in ("MODEL.WEIGHTS", "MODEL.DEVICE", "MODEL.MEMORY_FORMAT")
        and old.get(key, value) != value
    }


def _of_network(key: str) -> bool:
    """Whether a key changes what the network computes from the same weights."""
    return key.startswith(_NETWORK) and key not in _FREE and not key.endswith(".NORM")


def _fits(saved: Mapping[str, Any], optimizer: torch.optim.Optimizer) -> bool:
    """Whether the state is for this kind of optimizer and for the same groups and shapes of parameters."""

    def kinds(groups: List[Dict[str, Any]]) -> List[tuple]:
        return [(len(g["params"]), "momentum" in g, "betas" in g) for g in groups]

    if kinds(saved["param_groups"]) != kinds(optimizer.param_groups):
        return False
    numbers = [number for group in saved["param_groups"] for number in group["params"]]
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    shapes = {number: parameter.shape for number, parameter in zip(numbers, parameters)}
    return all(
        value.shape in (shapes[number], ())  # Adam counts its steps in a tensor without dimensions
        for number, state in saved["state"].items()
        for value in state.values()
        if isinstance(value, torch.Tensor)
    )
