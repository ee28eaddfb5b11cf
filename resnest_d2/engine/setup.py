"""Configuration of a run, and everything that can be checked before it starts."""

from __future__ import annotations

import difflib
import importlib.util
import re
from argparse import Namespace
from contextlib import contextmanager
from pathlib import Path
from typing import Iterator, List, Sequence

import torch
import yaml
from detectron2.config import CfgNode, get_cfg
from detectron2.utils.file_io import PathManager

from .. import model_zoo
from ..checkpoint import Checkpointer
from ..config import add_resnest_config
from ..data import check_datasets, check_pairs, check_registered, fit_config, pairs_of, register_pairs
from ..errors import UserError
from .expectations import flatten
from .fit import check_processes, count_processes, fit_to_machine
from .values import check_values


def load_config(config_file: str, overrides: Sequence[str] = ()) -> CfgNode:
    """detectron2's defaults, ResNeSt's keys, a YAML file and KEY VALUE pairs, merged in that order.

    Without a CUDA device MODEL.DEVICE becomes ``cpu``, unless the overrides ask for one.

    Raises:
        UserError: the file is missing or malformed, or a key or value is wrong.
    """
    cfg = get_cfg()
    add_resnest_config(cfg)
    if not config_file:
        raise UserError(f"--config-file is missing; the package's own are in {model_zoo.config_dir()}")
    if not PathManager.isfile(config_file):
        near = difflib.get_close_matches(Path(config_file).stem, model_zoo.available(), 1)
        hint = f"; did you mean {model_zoo.get_config_file(near[0])}?" if near else ""
        raise UserError(f"--config-file: there is no file {Path(config_file).absolute()}{hint}")
    with _as_user_error(cfg, config_file):
        cfg.merge_from_file(config_file, allow_unsafe=False)
    with _as_user_error(cfg, "command line"):
        if len(overrides) % 2:
            raise UserError(f"KEY VALUE pairs expected, got {' '.join(overrides)!r}")
        cfg.merge_from_list(list(overrides))
    if cfg.MODEL.DEVICE == "cuda" and not torch.cuda.is_available():
        if "MODEL.DEVICE" in overrides:
            raise UserError("MODEL.DEVICE cuda: no CUDA device is visible; leave it out to run on the CPU")
        cfg.MODEL.DEVICE = "cpu"
    sizes = cfg.INPUT.MIN_SIZE_TRAIN
    if cfg.INPUT.MIN_SIZE_TRAIN_SAMPLING == "range" and len(sizes) != 2:
        if len(sizes) != 1:
            raise UserError(
                f"INPUT.MIN_SIZE_TRAIN must be two sizes, from and to, got {sizes}; "
                "or set INPUT.MIN_SIZE_TRAIN_SAMPLING to choice"
            )
        cfg.INPUT.MIN_SIZE_TRAIN = sizes * 2  # detectron2 takes no range of one size
    check_values(cfg)
    cfg.freeze()
    return cfg


def fit_to_own_data(cfg: CfgNode, args: Namespace) -> List[str]:
    """Check the datasets named on the command line, and fit ``cfg`` to them, in place.

    Args:
        args: of :func:`argument_parser`; ``own_metadata`` is added for :func:`register_own_data`.

    Returns:
        What the user should know, one a line.

    Raises:
        UserError: see :func:`check_pairs` and :func:`fit_config`.
    """
    args.own_metadata = {}
    train, val = (pairs_of(vars(args), split) for split in ("train", "val"))
    if not train and not val:
        if args.epochs is not None:
            raise UserError("--epochs goes with --train-json; else set SOLVER.MAX_ITER and SOLVER.STEPS")
        return []
    warnings = check_pairs([*train, *val])
    cfg.defrost()
    notes, args.own_metadata = fit_config(cfg, train, val, args.epochs)
    cfg.freeze()
    return warnings + notes


def register_own_data(args: Namespace) -> None:
    """Register the command line's datasets in a spawned process, which knows only the package's own."""
    for split in ("train", "val"):
        register_pairs(split, pairs_of(vars(args), split), args.own_metadata)


def check_run(cfg: CfgNode, args: Namespace) -> List[str]:
    """Find what would otherwise fail in the middle of a run.

    Args:
        args: of :func:`argument_parser`.

    Returns:
        What the user should know, one a line.

    Raises:
        UserError: the run cannot work.
    """
    notes: List[str] = []
    if (args.optimize or args.half) and not args.eval_only:
        raise UserError("--optimize and --half are for --eval-only: a model with folded norms cannot train")
    key = "DATASETS.TEST" if args.eval_only else "DATASETS.TRAIN"
    if not (cfg.DATASETS.TEST if args.eval_only else cfg.DATASETS.TRAIN):
        raise UserError(f"{key} is empty; name a dataset")
    try:
        Path(cfg.OUTPUT_DIR).mkdir(parents=True, exist_ok=True)
    except OSError as e:
        raise UserError(f"OUTPUT_DIR: cannot make {cfg.OUTPUT_DIR} ({e.strerror})") from None
    check_processes(cfg, args)
    if not args.eval_only:
        notes += fit_to_machine(cfg, count_processes(args))
        check_datasets(cfg.DATASETS.TRAIN, "DATASETS.TRAIN")
        if not args.train_json:  # which have been checked
            notes += check_registered(name for name in cfg.DATASETS.TRAIN if not name.startswith("shapes_"))
        if cfg.SOLVER.MAX_ITER in cfg.SOLVER.STEPS:  # detectron2 drops later steps, and stops at this
            raise UserError(
                f"SOLVER.STEPS {cfg.SOLVER.STEPS} must not hold SOLVER.MAX_ITER {cfg.SOLVER.MAX_ITER}"
            )
        crops_polygons = cfg.INPUT.CROP.ENABLED and cfg.MODEL.MASK_ON and cfg.INPUT.MASK_FORMAT == "polygon"
        if crops_polygons and importlib.util.find_spec("shapely") is None:
            raise UserError(
                "INPUT.CROP.ENABLED True: detectron2 crops polygon masks with shapely, which is not "
                "installed; pip install shapely, or set INPUT.MASK_FORMAT to bitmask"
            )
    check_datasets(cfg.DATASETS.TEST, "DATASETS.TEST")
    if args.resume and Checkpointer(torch.nn.Identity(), cfg.OUTPUT_DIR).has_checkpoint():
        return notes
    if not cfg.MODEL.WEIGHTS:
        if args.eval_only:
            raise UserError('MODEL.WEIGHTS is "", and --eval-only would evaluate random weights; name a file')
        return notes
    try:
        # Fetches and caches remote files here, once, rather than in every process.
        path = PathManager.get_local_path(cfg.MODEL.WEIGHTS)
    except UserError:
        raise
    except (OSError, ValueError) as e:
        raise UserError(
            f"MODEL.WEIGHTS: cannot get {cfg.MODEL.WEIGHTS} ({e}); fetch it elsewhere and name the "
            'local file, or MODEL.WEIGHTS "" trains from scratch'
        ) from None
    if not Path(path).is_file():
        raise UserError(
            f'MODEL.WEIGHTS: there is no file {Path(path).absolute()}; MODEL.WEIGHTS "" trains from scratch'
        )
    return notes


@contextmanager
def _as_user_error(cfg: CfgNode, source: str) -> Iterator[None]:
    """Turns what yacs and yaml raise for a bad configuration into one line that names the source."""
    try:
        yield
    except yaml.constructor.ConstructorError as e:
        raise UserError(f"{source}: {e.problem}; a configuration holds no Python objects") from None
    except RecursionError:
        raise UserError(f"{source}: _BASE_ leads back to the file itself") from None
    except (KeyError, AssertionError, ValueError, TypeError, AttributeError, yaml.YAMLError, OSError) as e:
        message = " ".join(str(e).strip("'\"").split())
        unknown = re.search(r"[Nn]on-existent (?:config )?key: ([\w.]+)", message)
        if unknown:
            keys = {key.lower(): key for key, _ in flatten(cfg)}
            near = difflib.get_close_matches(unknown[1].lower(), keys, 1)
            message = f"unknown key {unknown[1]}" + (f"; did you mean {keys[near[0]]}?" if near else "")
        raise UserError(f"{source}: {message}") from None
