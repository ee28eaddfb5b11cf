"""Check that a configuration's datasets exist and fit it, before anything expensive starts."""

from __future__ import annotations

import logging
import os
from contextlib import contextmanager
from typing import Dict, Iterable, Iterator, Tuple

from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.utils.file_io import PathManager

from ..errors import OptionError, UserError, nearest, one_line
from ..files import check_readable
from .annotations import read_coco

logger = logging.getLogger(__name__)

# Metadata in which detectron2's registration functions store the files of a dataset.
_FILES = ("json_file", "image_root", "panoptic_json", "panoptic_root", "sem_seg_root", "dirname")


def check_datasets(names: Iterable[str], key: str) -> None:
    """Raise UserError unless every dataset is registered and its files exist.

    Args:
        names: registered names, the value of ``key``.
        key: configuration key, for the message.
    """
    for name in names:
        if name not in DatasetCatalog.list():
            hint = nearest(name, DatasetCatalog.list())
            raise UserError(f"{key}: no dataset is registered as {name!r}; {hint}")
        if name.startswith("shapes_"):  # written on first use
            continue
        metadata = MetadataCatalog.get(name)
        paths = [metadata.get(attribute) for attribute in _FILES]
        missing = [path for path in paths if path and not PathManager.exists(path)]
        if missing:
            root = os.getenv("DETECTRON2_DATASETS")
            where = f"is {root}" if root else "is not set, so ./datasets is searched"
            raise UserError(
                f"{key}: files of {name!r} are missing: {', '.join(missing)} (DETECTRON2_DATASETS {where})"
            )
        for path in (metadata.get("json_file"), metadata.get("panoptic_json")):
            if path:  # opening a FIFO would block forever
                check_readable(PathManager.get_local_path(path), f"{key}: {name!r} needs")


#: Key and section that hold the number of classes of a model.
_CLASSES = {
    "GeneralizedRCNN": ("MODEL.ROI_HEADS.NUM_CLASSES", "ROI_HEADS"),
    "PanopticFPN": ("MODEL.ROI_HEADS.NUM_CLASSES", "ROI_HEADS"),
    "RetinaNet": ("MODEL.RETINANET.NUM_CLASSES", "RETINANET"),
}


def check_classes(cfg: CfgNode, names: Iterable[str]) -> None:
    """Raise OptionError unless the model has as many classes and keypoints as each dataset.

    Training fails at a class that the model lacks, evaluation at one that the dataset lacks.

    Args:
        names: registered datasets.
    """
    if cfg.MODEL.META_ARCHITECTURE not in _CLASSES:
        return
    key, section = _CLASSES[cfg.MODEL.META_ARCHITECTURE]
    given = cfg.MODEL[section].NUM_CLASSES
    for name in names:
        metadata = MetadataCatalog.get(name)
        classes, file = metadata.get("thing_classes"), metadata.get("json_file")
        if classes is None and file:
            classes = read_coco(PathManager.get_local_path(file))["categories"]
        if classes and len(classes) != given:
            raise OptionError(key, given, f"must be {len(classes)}, the number of classes of {name}")
        stuff, labels = metadata.get("stuff_classes"), cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES
        if cfg.MODEL.META_ARCHITECTURE == "PanopticFPN" and stuff and len(stuff) != labels:
            rule = f"must be {len(stuff)}, the number of labels of {name}"
            raise OptionError("MODEL.SEM_SEG_HEAD.NUM_CLASSES", labels, rule)
        points = metadata.get("keypoint_names")
        if cfg.MODEL.KEYPOINT_ON and points and len(points) != cfg.MODEL.ROI_KEYPOINT_HEAD.NUM_KEYPOINTS:
            raise OptionError(
                "MODEL.ROI_KEYPOINT_HEAD.NUM_KEYPOINTS",
                cfg.MODEL.ROI_KEYPOINT_HEAD.NUM_KEYPOINTS,
                f"must be {len(points)}, the number of keypoints of {name}",
            )


# Size in bytes and modification time in nanoseconds of annotation files when training started.
_noted: Dict[str, Tuple[int, int]] = {}


def note_annotations(names: Iterable[str]) -> None:
    """Remember the state of the datasets' annotation files for :func:`loading`."""
    _noted.clear()
    _noted.update(_states(names))


@contextmanager
def loading(names: Iterable[str]) -> Iterator[None]:
    """Context for loading registered datasets; logs a warning for each file that has changed since noted.

    Raises:
        UserError: a file cannot be loaded. It may have been replaced since it was checked.
    """
    now = _states(names)
    for file, state in now.items():
        if _noted.get(file, state) != state:
            logger.warning("%s has changed since training started; evaluation uses the new file", file)
            _noted[file] = state
    try:
        yield
    except UserError:
        raise
    except (OSError, ValueError, LookupError, TypeError, AttributeError, AssertionError, RecursionError) as e:
        if not now:  # not a file: its registered function has to explain the error
            raise
        reason = one_line(e, 200)
        raise UserError(
            f"{', '.join(now)} cannot be loaded ({type(e).__name__}: {reason}); tools/check_dataset.py shows "
            "what is wrong"
        ) from None


def _states(names: Iterable[str]) -> Dict[str, Tuple[int, int]]:
    """Return size and modification time by annotation file of the datasets; (0, 0) for missing files."""
    metadata = [MetadataCatalog.get(name) for name in names]
    files = [m.get(key) for m in metadata for key in ("json_file", "panoptic_json")]
    states = {}
    for file in filter(None, files):
        try:
            status = os.stat(PathManager.get_local_path(file))
            states[file] = (status.st_size, status.st_mtime_ns)
        except OSError:
            states[file] = (0, 0)
    return states
