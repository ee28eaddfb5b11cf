"""Read a configuration from a file and a command line; errors name the file, key and value."""

from __future__ import annotations

import functools
import os
import re
from contextlib import contextmanager
from itertools import zip_longest
from pathlib import Path
from typing import Dict, Iterator, List, Sequence, Tuple

import torch
import yaml
from detectron2.config import CfgNode

from .. import model_zoo
from ..config import default_config, flatten
from ..errors import OptionError, UserError, nearest
from ..files import check_depth, check_link, check_readable, expanded, read_text
from .values import check_values

#: Limits of a configuration: bytes per file, number of files, and values per file.
_MAX_TEXT, _MAX_FILES, _MAX_VALUES = 1 << 20, 100, 100_000
#: Keys that name files or folders.
_PATHS = ("OUTPUT_DIR", "MODEL.WEIGHTS", "DATASETS.PROPOSAL_FILES_TRAIN", "DATASETS.PROPOSAL_FILES_TEST")
#: Permitted tags of YAML keys: text, and ``<<``.
_TEXT_TAGS = ("tag:yaml.org,2002:str", "tag:yaml.org,2002:merge")


def load_config(config_file: str, overrides: Sequence[str] = ()) -> CfgNode:
    """Merge detectron2's defaults, ResNeSt's keys, a YAML file and KEY VALUE pairs, in that order.

    Without a CUDA device, MODEL.DEVICE becomes ``cpu``, unless the overrides ask for a device. ``~`` is
    expanded in file names.

    Returns:
        A frozen configuration.

    Raises:
        UserError: the file is missing or malformed, or a key or value is wrong.
    """
    cfg, _ = read_config(config_file, overrides)
    cfg.freeze()
    return cfg


def read_config(config_file: str, overrides: Sequence[str] = ()) -> Tuple[CfgNode, CfgNode]:
    """Like :func:`load_config`, but not frozen, and with the recipe: the configuration without overrides."""
    cfg = default_config()
    if not config_file:
        raise UserError(f"--config-file is missing; the package's own are in {model_zoo.config_dir()}")
    config_file = expanded(config_file)
    with _as_user_error(cfg, config_file):
        _check_file(config_file, "--config-file", (), [])
        cfg.merge_from_file(config_file, allow_unsafe=False)
    recipe = cfg.clone()
    with _as_user_error(cfg, "command line"):
        _check_overrides(cfg, overrides)
        cfg.merge_from_list(list(overrides))
    check_values(cfg)
    _expand_paths(cfg)
    find_device(cfg, "MODEL.DEVICE" in overrides)
    for node in (cfg, recipe):
        sizes = node.INPUT.MIN_SIZE_TRAIN
        if node.INPUT.MIN_SIZE_TRAIN_SAMPLING == "range" and len(sizes) == 1:
            node.INPUT.MIN_SIZE_TRAIN = sizes * 2  # detectron2 does not accept a range of one size
    return cfg, recipe


def _expand_paths(cfg: CfgNode) -> None:
    for key in _PATHS:
        *sections, name = key.split(".")
        node = functools.reduce(getattr, sections, cfg)
        value = node[name]
        for file in (value,) if isinstance(value, str) else value:
            check_link(key, str(file))  # the configuration may be a stranger's
        node[name] = expanded(value) if isinstance(value, str) else tuple(map(expanded, value))


def find_device(cfg: CfgNode, asked: bool) -> None:
    """Raise UserError unless MODEL.DEVICE exists. If it was not asked for, the CPU replaces it."""
    name, visible = cfg.MODEL.DEVICE, torch.cuda.device_count()
    device = re.fullmatch(r"cpu|cuda(?::(\d{1,4}))?", name)
    if not device:
        raise OptionError("MODEL.DEVICE", name, "must be cpu, cuda or cuda:NUMBER")
    if name == "cpu" or int(device[1] or 0) < visible:
        return
    if torch.cuda.is_available():
        raise UserError(f"MODEL.DEVICE {name}: {visible} CUDA devices are visible")
    if asked:
        raise UserError(f"MODEL.DEVICE {name}: no CUDA device is visible; leave it out to run on the CPU")
    cfg.MODEL.DEVICE = "cpu"


def _check_overrides(cfg: CfgNode, overrides: Sequence[str]) -> None:
    """Raise UserError for incomplete KEY VALUE pairs and unknown keys."""
    keys = [key for key, _ in flatten(cfg)]
    for key, value in zip_longest(overrides[::2], overrides[1::2]):
        if key.startswith("--"):
            raise UserError(f"{key} comes after the KEY VALUE pairs; flags come before them")
        if key not in keys:
            raise _unknown(key, keys)
        if value is None:
            raise UserError(f"KEY VALUE pairs expected, got {' '.join(map(str, overrides))!r}")
        check_depth(str(value), f"{key}: the value")


def _unknown(key: str, keys: Sequence[str]) -> UserError:
    """The error for an unknown key. Without a dot, it may be meant as a section."""
    sections = [] if "." in key else dict.fromkeys(known.split(".")[0] for known in keys)
    return UserError(f"unknown key {key}; {nearest(key, [*sections, *keys])}")


def _check_file(path: str, name: str, within: Tuple[str, ...], read: List[str]) -> None:
    """Raise UserError for a configuration file that detectron2 would read endlessly or wrongly.

    Args:
        name: the flag or key that names the file, for the message.
        within: files whose ``_BASE_`` led here.
        read: all files read so far; this one is added.
    """
    if "://" in path:
        raise UserError(f"{name} {path} is a URL; only files on this machine are read")
    if not os.path.exists(path):
        hint = nearest(Path(path).stem, model_zoo.available(), limit=50)
        raise UserError(
            f"{name}: there is no file {Path(path).absolute()}; {hint} The package's own are in "
            f"{model_zoo.config_dir()}"
        )
    if os.path.realpath(path) in within:
        raise UserError(f"{name} leads back to {path}")
    read.append(path)
    if len(read) > _MAX_FILES:
        raise UserError(f"{name}: more than {_MAX_FILES} files are read for one configuration")
    text = read_text(check_readable(path, name, _MAX_TEXT))
    check_depth(text, path)
    loader = yaml.SafeLoader(text)
    root = loader.get_single_node()
    if not isinstance(root, yaml.MappingNode):
        raise UserError(f"{path} holds no KEY: VALUE pairs")
    if _count_values(root, path, {}) > _MAX_VALUES:
        raise UserError(f"{path} holds more than {_MAX_VALUES} values, counting those of aliases")
    content = loader.construct_document(root)
    if content.get("VERSION", 2) != 2:
        raise UserError(
            f"{path}: VERSION must be 2, the version of these keys, got {content['VERSION']!r:.40}"
        )
    bases = content.get("_BASE_", [])
    for base in bases if isinstance(bases, list) else [bases]:
        if not isinstance(base, str) or not base:
            raise UserError(f"{path}: _BASE_ must be the name of a file, or a list of names, got {base!r}")
        target = os.path.join(os.path.dirname(path), expanded(base))
        _check_file(target, f"{path}: _BASE_", (*within, os.path.realpath(path)), read)


def _count_values(node: yaml.Node, path: str, known: Dict[int, int]) -> int:
    """Return the number of values in a YAML node, counting those of aliases.

    Args:
        known: counts of nodes, by their ids; 0 while a node is being counted.

    Raises:
        UserError: an alias is part of its own value, or a key is not text or appears twice.
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
    """Turn what yacs and yaml raise for a bad configuration into a UserError that names the source."""
    try:
        yield
    except yaml.constructor.ConstructorError as e:
        raise UserError(f"{source}: {e.problem}; a configuration cannot hold Python objects") from None
    except (RecursionError, MemoryError):
        raise UserError(f"{source}: nested too deeply") from None
    except UserError as e:
        raise UserError(f"{source}: {e}" if source == "command line" else str(e)) from None
    except (KeyError, AssertionError, ValueError, TypeError, AttributeError, yaml.YAMLError, OSError) as e:
        message = " ".join(str(e).strip("'\"").split())
        unknown = re.search(r"Non-existent config key: (.+)", message)
        if unknown:
            message = str(_unknown(unknown[1], [key for key, _ in flatten(cfg)]))
        raise UserError(f"{source}: {message}") from None
