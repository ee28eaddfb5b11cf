"""Configuration of a run, and everything that can be checked before it starts."""

from __future__ import annotations

import functools
import importlib.util
import os
import re
import urllib.parse
from argparse import Namespace
from contextlib import contextmanager
from itertools import zip_longest
from pathlib import Path
from typing import Dict, Iterator, List, Sequence, Tuple

import torch
import yaml
from detectron2.config import CfgNode, get_cfg

from .. import model_zoo
from ..checkpoint import Checkpointer, local_weights
from ..config import add_resnest_config, unfrozen
from ..data import (
    check_classes,
    check_datasets,
    check_pairs,
    check_registered,
    fit_config,
    max_size_of,
    pairs_of,
    register_pairs,
)
from ..errors import OptionError, UserError, check_number, nearest
from ..files import check_depth, check_link, check_readable, expanded, read_text
from .expectations import flatten
from .fit import check_processes, count_processes, fit_to_machine, fit_workers, processes_here
from .values import check_proposals, check_sigmas, check_values

#: Bounds of a configuration: bytes of a file, files, and values in one.
_MAX_TEXT, _MAX_FILES, _MAX_VALUES = 1 << 20, 100, 100_000
#: Keys that name files or folders.
_PATHS = ("OUTPUT_DIR", "MODEL.WEIGHTS", "DATASETS.PROPOSAL_FILES_TRAIN", "DATASETS.PROPOSAL_FILES_TEST")
#: Tags of YAML keys: text, and ``<<``.
_TEXT_TAGS = ("tag:yaml.org,2002:str", "tag:yaml.org,2002:merge")


def load_config(config_file: str, overrides: Sequence[str] = ()) -> CfgNode:
    """detectron2's defaults, ResNeSt's keys, a YAML file and KEY VALUE pairs, merged in that order.

    Without a CUDA device MODEL.DEVICE becomes ``cpu``, unless the overrides ask for one. ``~`` is expanded
    in names of files.

    Raises:
        UserError: the file is missing or malformed, or a key or value is wrong.
    """
    cfg = get_cfg()
    add_resnest_config(cfg)
    if not config_file:
        raise UserError(f"--config-file is missing; the package's own are in {model_zoo.config_dir()}")
    config_file = expanded(config_file)
    with _as_user_error(cfg, config_file):
        _check_file(config_file, "--config-file", (), [])
        cfg.merge_from_file(config_file, allow_unsafe=False)
    with _as_user_error(cfg, "command line"):
        _check_overrides(cfg, overrides)
        cfg.merge_from_list(list(overrides))
    check_values(cfg)
    for key in _PATHS:
        *sections, name = key.split(".")
        node = functools.reduce(getattr, sections, cfg)
        value = node[name]
        for file in (value,) if isinstance(value, str) else value:
            check_link(key, str(file))  # it may be a stranger's configuration
        node[name] = expanded(value) if isinstance(value, str) else tuple(map(expanded, value))
    device = re.fullmatch(r"cpu|cuda(?::(\d{1,4}))?", cfg.MODEL.DEVICE)
    if not device:
        raise OptionError("MODEL.DEVICE", cfg.MODEL.DEVICE, "must be cpu, cuda or cuda:NUMBER")
    if cfg.MODEL.DEVICE != "cpu" and int(device[1] or 0) >= torch.cuda.device_count():
        if "MODEL.DEVICE" in overrides or torch.cuda.is_available():
            raise UserError(
                f"MODEL.DEVICE {cfg.MODEL.DEVICE}: no CUDA device is visible; leave it out to run on the CPU"
                if not torch.cuda.is_available()
                else f"MODEL.DEVICE {cfg.MODEL.DEVICE}: {torch.cuda.device_count()} CUDA devices are visible"
            )
        cfg.MODEL.DEVICE = "cpu"
    sizes = cfg.INPUT.MIN_SIZE_TRAIN
    if cfg.INPUT.MIN_SIZE_TRAIN_SAMPLING == "range" and len(sizes) != 2:
        if len(sizes) != 1:
            raise UserError(
                f"INPUT.MIN_SIZE_TRAIN must be two sizes, from and to, got {sizes}; "
                "or set INPUT.MIN_SIZE_TRAIN_SAMPLING to choice"
            )
        cfg.INPUT.MIN_SIZE_TRAIN = sizes * 2  # detectron2 takes no range of one size
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
    for flag, pairs in (("--train-json", train), ("--val-json", val)):
        for json_file, _ in pairs:
            check_readable(json_file, flag)
    if args.epochs is not None:
        check_number("--epochs", args.epochs, above=0, at_most=1e6)
    if not train and not val:
        if args.epochs is not None and not args.eval_only:
            raise UserError("--epochs goes with --train-json; else set SOLVER.MAX_ITER and SOLVER.STEPS")
        return []
    if not train and not args.eval_only:
        raise UserError(
            "--val-json without --train-json would train on the recipe's data; give --train-json and "
            "--train-images too, or --eval-only"
        )
    warnings = check_pairs(train, max_size_of(cfg, True)) + check_pairs(val, max_size_of(cfg, False))
    with unfrozen(cfg):
        notes, args.own_metadata = fit_config(cfg, train, val, args.epochs)
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
    if not cfg.OUTPUT_DIR or "://" in cfg.OUTPUT_DIR:
        raise OptionError("OUTPUT_DIR", cfg.OUTPUT_DIR, "must be a folder of this machine")
    _check_no_query("OUTPUT_DIR", cfg.OUTPUT_DIR)
    if "\0" not in cfg.MODEL.WEIGHTS and os.path.exists(cfg.MODEL.WEIGHTS):
        _check_no_query("MODEL.WEIGHTS", cfg.MODEL.WEIGHTS)
    try:
        Path(cfg.OUTPUT_DIR).mkdir(parents=True, exist_ok=True)
    except (OSError, ValueError) as e:  # ValueError: a null byte
        reason = e.strerror if isinstance(e, OSError) else e
        raise UserError(f"OUTPUT_DIR: cannot make {cfg.OUTPUT_DIR!r} ({reason})") from None
    check_processes(cfg, args)
    check_sigmas(cfg)
    check_proposals(cfg, not args.eval_only)
    processes = count_processes(args)
    if not args.eval_only:
        notes += fit_to_machine(cfg, processes)
    notes += fit_workers(cfg, processes, processes_here(args), not args.eval_only)
    if not args.eval_only:
        check_datasets(cfg.DATASETS.TRAIN, "DATASETS.TRAIN")
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
    train = () if args.eval_only else cfg.DATASETS.TRAIN
    check_classes(cfg, [*train, *cfg.DATASETS.TEST])
    if not args.train_json and not args.val_json:  # which have been checked
        notes += check_registered(cfg, train, cfg.DATASETS.TEST)
    if args.resume and Checkpointer(torch.nn.Identity(), cfg.OUTPUT_DIR).has_checkpoint():
        return notes
    if not cfg.MODEL.WEIGHTS:
        if args.eval_only:
            raise UserError('MODEL.WEIGHTS is "", and --eval-only would evaluate random weights; name a file')
        return notes
    local_weights(cfg.MODEL.WEIGHTS)  # fetched and cached here, once, rather than in every process
    return notes


def _check_no_query(key: str, path: str) -> None:
    """Raise UserError for a name that detectron2's checkpointer would change, as it takes it for a URL."""
    try:
        read = urllib.parse.urlparse(path)._replace(query="").geturl()
    except ValueError:  # of an address that is none
        read = ""
    if os.path.abspath(read) != os.path.abspath(path):
        raise UserError(
            f"{key} {path!r}: detectron2 reads weights by URLs, and would take this for {read!r}; rename it, "
            "above all without ? or :"
        )


def _check_overrides(cfg: CfgNode, overrides: Sequence[str]) -> None:
    """Raise UserError for KEY VALUE pairs that are none, or whose key is not known."""
    keys = [key for key, _ in flatten(cfg)]
    for key, value in zip_longest(overrides[::2], overrides[1::2]):
        if key.startswith("--"):
            raise UserError(f"{key} stands behind the KEY VALUE pairs; flags come before them")
        if key not in keys:
            raise _unknown(key, keys)
        if value is None:
            raise UserError(f"KEY VALUE pairs expected, got {' '.join(map(str, overrides))!r}")
        check_depth(str(value), f"{key}: the value")


def _unknown(key: str, keys: Sequence[str]) -> UserError:
    """What is said of a key that there is not. Where it has no dot, a section may be meant."""
    sections = [] if "." in key else dict.fromkeys(known.split(".")[0] for known in keys)
    return UserError(f"unknown key {key}; {nearest(key, [*sections, *keys])}")


def _check_file(path: str, name: str, within: Tuple[str, ...], read: List[str]) -> None:
    """Raise UserError for a configuration file that detectron2 would read without an end, or wrongly.

    Args:
        name: what names it, for the message.
        within: files whose ``_BASE_`` led here.
        read: all that have been read, to which this is added.
    """
    if "://" in path:
        raise UserError(f"{name} {path} is a URL; only files of this machine are read")
    if not os.path.exists(path):
        hint = nearest(Path(path).stem, model_zoo.available(), limit=50)
        raise UserError(
            f"{name}: there is no file {Path(path).absolute()}; {hint} The package's are in "
            f"{model_zoo.config_dir()}"
        )
    if os.path.realpath(path) in within:
        raise UserError(f"{name} leads back to {path}")
    read.append(path)
    if len(read) > _MAX_FILES:
        raise UserError(f"{name}: more than {_MAX_FILES} files are read for one configuration")
    text = read_text(check_readable(path, name, _MAX_TEXT))
    check_depth(text, path)
    root = yaml.compose(text, Loader=yaml.SafeLoader)
    if not isinstance(root, yaml.MappingNode):
        raise UserError(f"{path} holds no KEY: VALUE pairs")
    if _count_values(root, path, {}) > _MAX_VALUES:
        raise UserError(f"{path} holds more than {_MAX_VALUES} values, its aliases followed")
    bases = yaml.safe_load(text).get("_BASE_", [])
    for base in bases if isinstance(bases, list) else [bases]:
        if not isinstance(base, str) or not base:
            raise UserError(f"{path}: _BASE_ must be the name of a file, or a list of names, got {base!r}")
        target = os.path.join(os.path.dirname(path), expanded(base))
        _check_file(target, f"{path}: _BASE_", (*within, os.path.realpath(path)), read)


def _count_values(node: yaml.Node, path: str, known: Dict[int, int]) -> int:
    """How many values a node of YAML stands for, its aliases followed.

    Args:
        known: of nodes by their ids; 0 while one is being counted.

    Raises:
        UserError: an alias leads back to where it stands, or a key is no text, or there twice.
    """
    if id(node) in known:
        if not known[id(node)]:
            raise UserError(f"{path}, line {node.start_mark.line + 1}: an alias leads back to its own value")
        return known[id(node)]
    known[id(node)] = 0
    size, keys = 1, set()
    for entry in node.value if isinstance(node, yaml.CollectionNode) else ():
        key, value = entry if isinstance(entry, tuple) else (None, entry)
        if key is not None:
            where = f"{path}, line {key.start_mark.line + 1}"
            if key.tag not in _TEXT_TAGS:
                raise UserError(f"{where}: a key must be text, got {str(key.value)[:50]!r}")
            if key.value in keys:
                raise UserError(f"{where}: {key.value} is there twice; remove one")
            keys.add(key.value)
        size += _count_values(value, path, known)
    known[id(node)] = size
    return size


@contextmanager
def _as_user_error(cfg: CfgNode, source: str) -> Iterator[None]:
    """Turns what yacs and yaml raise for a bad configuration into one line that names the source."""
    try:
        yield
    except yaml.constructor.ConstructorError as e:
        raise UserError(f"{source}: {e.problem}; a configuration holds no Python objects") from None
    except (RecursionError, MemoryError):
        raise UserError(f"{source}: nested too deep") from None
    except UserError as e:
        raise UserError(f"{source}: {e}" if source == "command line" else str(e)) from None
    except (KeyError, AssertionError, ValueError, TypeError, AttributeError, yaml.YAMLError, OSError) as e:
        message = " ".join(str(e).strip("'\"").split())
        unknown = re.search(r"Non-existent config key: (.+)", message)
        if unknown:
            message = str(_unknown(unknown[1], [key for key, _ in flatten(cfg)]))
        raise UserError(f"{source}: {message}") from None
