"""Make a run's configuration once: read, fit to data and machine, check, and freeze."""

from __future__ import annotations

import importlib.util
import os
import urllib.parse
from argparse import Namespace
from pathlib import Path
from typing import Any, Dict, List, NamedTuple, Tuple

from detectron2.config import CfgNode
from torch import nn

from ..checkpoint import Checkpointer, fetch_weights
from ..data import (
    check_classes,
    check_datasets,
    check_registered,
    own_data,
)
from ..errors import OptionError, UserError, check_number
from .config import read_config
from .expected_results import keep_comparable
from .fit import check_processes, count_processes, fit_testing, fit_to_machine, fit_workers, processes_here
from .folder import follow_weights, restarted
from .trackers import check_tracker
from .values import check_proposals, check_sigmas


class Preflight(NamedTuple):
    """The input of every process of a run.

    Attributes:
        cfg: frozen configuration.
        resume: resume from the newest checkpoint in OUTPUT_DIR.
        metadata: metadata of the datasets that the command line names.
        notes: notes for the user, one per line.
    """

    cfg: CfgNode
    resume: bool
    metadata: Dict[str, Any]
    notes: List[str]


def preflight(args: Namespace) -> Preflight:
    """Find, before the processes start, what would otherwise fail in the middle of a run.

    Args:
        args: from :func:`argument_parser`.

    Raises:
        UserError: the run cannot work, or only the user can choose a setting that does.
    """
    train = not args.eval_only
    if train and (args.optimize or args.half):
        raise UserError("--optimize and --half are for --eval-only: a model with folded norms cannot train")
    cfg, recipe = read_config(args.config_file, args.opts)
    metadata, notes = fit_to_own_data(cfg, args)
    notes += fit_testing(cfg, args.opts)
    if args.eval_only and args.epochs is not None:
        notes.append(f"--epochs {args.epochs:g} has no effect, as --eval-only does not train")
    split = "TRAIN" if train else "TEST"
    if not cfg.DATASETS[split]:
        raise UserError(f"DATASETS.{split} is empty; name a dataset")
    check_output(cfg)
    resume = args.resume or (train and restarted(cfg.OUTPUT_DIR))
    if train:
        cfg.MODEL.WEIGHTS, moved = follow_weights(cfg)
        notes += moved
    if "\0" not in cfg.MODEL.WEIGHTS and os.path.exists(cfg.MODEL.WEIGHTS):
        _check_no_query("MODEL.WEIGHTS", cfg.MODEL.WEIGHTS)
    check_sigmas(cfg)
    check_proposals(cfg, train)
    if train:
        _check_training(cfg)
    check_processes(cfg, recipe, args)
    processes = count_processes(args)
    if train:
        notes += fit_to_machine(cfg, processes)
    notes += fit_workers(cfg, processes, processes_here(args), train)
    notes += check_data(cfg, train, own=bool(metadata))
    _fetch_weights(cfg, train, resume, args.allow_random_weights)
    reasons = keep_comparable(cfg, recipe, args)
    notes += [f"Not compared with the published figures: {reason}" for reason in reasons]
    cfg.freeze()
    return Preflight(cfg, resume, metadata, notes)


def fit_to_own_data(cfg: CfgNode, args: Namespace) -> Tuple[Dict[str, Any], List[str]]:
    """Check the datasets named on the command line, and fit ``cfg`` to them, in place.

    Returns:
        Their metadata, and notes for the user, one per line.
    """
    own = own_data(vars(args))
    own.check_files()
    if args.epochs is not None:
        check_number("--epochs", args.epochs, above=0, at_most=1e6)
    if not own.train and not own.val:
        if args.epochs is not None and not args.eval_only:
            raise UserError(
                "--epochs needs --train-json, --train-masks or --train-images; without them, set "
                "SOLVER.MAX_ITER and SOLVER.STEPS"
            )
        return {}, []
    if not own.train and not args.eval_only:
        raise UserError(
            f"--val-{own.kind} without --train-{own.kind} would train on the recipe's data; give "
            f"--train-{own.kind} and --train-images too, or --eval-only"
        )
    warnings = own.check(cfg)
    notes, metadata = own.fit(cfg, args.epochs)
    return metadata, warnings + notes


def check_output(cfg: CfgNode) -> None:
    if not cfg.OUTPUT_DIR or "://" in cfg.OUTPUT_DIR:
        raise OptionError("OUTPUT_DIR", cfg.OUTPUT_DIR, "must be a folder on this machine")
    _check_no_query("OUTPUT_DIR", cfg.OUTPUT_DIR)
    try:
        Path(cfg.OUTPUT_DIR).mkdir(parents=True, exist_ok=True)
    except (OSError, ValueError) as e:  # ValueError: a null byte
        reason = e.strerror if isinstance(e, OSError) else e
        raise UserError(f"OUTPUT_DIR: cannot make {cfg.OUTPUT_DIR!r} ({reason})") from None


def _check_no_query(key: str, path: str) -> None:
    """Raise UserError for a name that detectron2's checkpointer would change, as it parses it as a URL."""
    try:
        read = urllib.parse.urlparse(path)._replace(query="").geturl()
    except ValueError:  # not a valid address
        read = ""
    if os.path.abspath(read) != os.path.abspath(path):
        raise UserError(
            f"{key} {path!r}: detectron2 parses this as a URL, and would read {read!r} instead; rename it, "
            "without ? or :"
        )


def _check_training(cfg: CfgNode) -> None:
    check_tracker(cfg)
    if cfg.SOLVER.MAX_ITER in cfg.SOLVER.STEPS:  # detectron2 drops later steps, but fails at this one
        raise UserError(
            f"SOLVER.STEPS {cfg.SOLVER.STEPS} must not hold SOLVER.MAX_ITER {cfg.SOLVER.MAX_ITER}"
        )
    solver = cfg.SOLVER
    if solver.RESCALE_INTERVAL and solver.WARMUP_ITERS >= solver.MAX_ITER:  # detectron2 would divide by 0
        rule = f"must be below SOLVER.MAX_ITER {solver.MAX_ITER} with SOLVER.RESCALE_INTERVAL True"
        raise OptionError("SOLVER.WARMUP_ITERS", solver.WARMUP_ITERS, rule)
    crops_polygons = cfg.INPUT.CROP.ENABLED and cfg.MODEL.MASK_ON and cfg.INPUT.MASK_FORMAT == "polygon"
    if crops_polygons and importlib.util.find_spec("shapely") is None:
        raise UserError(
            "INPUT.CROP.ENABLED True: detectron2 crops polygon masks with shapely, which is not "
            "installed; pip install shapely, or set INPUT.MASK_FORMAT to bitmask"
        )


def check_data(cfg: CfgNode, train: bool, own: bool) -> List[str]:
    """Check the datasets of a run. The user's ``own`` have been checked for the most part."""
    names = cfg.DATASETS.TRAIN if train else ()
    check_datasets(names, "DATASETS.TRAIN")
    check_datasets(cfg.DATASETS.TEST, "DATASETS.TEST")
    check_classes(cfg, [*names, *cfg.DATASETS.TEST])
    return [] if own else check_registered(cfg, names, cfg.DATASETS.TEST)


def _fetch_weights(cfg: CfgNode, train: bool, resume: bool, allow_random: bool) -> None:
    """Fetch and cache MODEL.WEIGHTS once here, not in every process, and check their backbone.yaml."""
    if resume and Checkpointer(nn.Identity(), cfg.OUTPUT_DIR).has_checkpoint():
        return
    fetch_weights(cfg, allow_random, "" if train else "and --eval-only would evaluate random weights")
