"""Check that a configuration's datasets exist and fit it, before anything expensive starts."""

from __future__ import annotations

import logging
import os
import re
from contextlib import contextmanager
from typing import Any, Dict, Iterable, Iterator, List, Sequence, Tuple

from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.utils.file_io import PathManager

from ..config import CLASSIFIER, SEGMENTOR
from ..errors import OptionError, UserError, first_difference, nearest, one_line
from ..files import check_readable
from .annotations import read_coco, spread
from .image_folder import KIND, image_classes

logger = logging.getLogger(__name__)

# Metadata in which detectron2's registration functions store the files of a dataset.
_FILES = (
    *("json_file", "image_root", "panoptic_json", "panoptic_root", "sem_seg_root", "dirname"),
    *("image_dir", "gt_dir"),
)
#: Values of evaluator_type of datasets of such masks, and of those that have none.
SEMANTIC = ("sem_seg", "cityscapes_sem_seg")
_OBJECTS = ("coco", "lvis", "pascal_voc", "cityscapes_instance")


def check_datasets(names: Iterable[str], key: str) -> None:
    """Raise UserError unless every dataset is registered and its files exist.

    Args:
        names: registered names, the value of ``key``.
        key: configuration key, for the message.
    """
    for name in names:
        if name not in DatasetCatalog.list():
            hint = nearest(name, DatasetCatalog.list())
            if re.fullmatch(r"user_(train|val)_\d+", name):
                hint = "these are own data of an earlier command; name them again by its options"
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
                + _preparation(name, missing)
            )
        for path in (metadata.get("json_file"), metadata.get("panoptic_json")):
            if path:  # opening a FIFO would block forever
                check_readable(PathManager.get_local_path(path), f"{key}: {name!r} needs")


def _preparation(name: str, missing: Sequence[str]) -> str:
    """Say how to get the files of a dataset that has to be prepared; empty for others."""
    if name.startswith("imagenet_"):
        return "; it needs a folder for each class; tools/prepare_imagenet.py sorts validation images"
    if not name.startswith("ade20k_"):
        return ""
    root = MetadataCatalog.get(name).get("image_root", "").partition("/images/")[0]
    if any("annotations_detectron2" not in path for path in missing):
        return f"; unpack ADEChallengeData2016.zip there, then run tools/prepare_ade20k.py {root}"
    return f"; tools/prepare_ade20k.py {root} writes them"


#: Key and section that hold the number of classes of a model.
_CLASSES = {
    "GeneralizedRCNN": ("MODEL.ROI_HEADS.NUM_CLASSES", "ROI_HEADS"),
    "PanopticFPN": ("MODEL.ROI_HEADS.NUM_CLASSES", "ROI_HEADS"),
    "RetinaNet": ("MODEL.RETINANET.NUM_CLASSES", "RETINANET"),
}


def count_classes(cfg: CfgNode) -> int:
    """Return the number of classes that a model tells apart; of PanopticFPN, those of objects.

    0 for models of other projects.
    """
    model = cfg.MODEL.META_ARCHITECTURE
    if model in (SEGMENTOR, CLASSIFIER):
        return (cfg.MODEL.SEM_SEG_HEAD if model == SEGMENTOR else cfg.MODEL.CLASSIFIER).NUM_CLASSES
    return cfg.MODEL[_CLASSES[model][1]].NUM_CLASSES if model in _CLASSES else 0


def known_classes(cfg: CfgNode, dataset: str) -> List[str]:
    """Return the names of the classes of a dataset for such a model; empty if it does not name them."""
    if cfg.MODEL.META_ARCHITECTURE == CLASSIFIER:
        return image_classes(dataset)
    key = "stuff_classes" if cfg.MODEL.META_ARCHITECTURE == SEGMENTOR else "thing_classes"
    return list(MetadataCatalog.get(dataset).get(key) or [])


def check_classes(cfg: CfgNode, names: Iterable[str]) -> None:
    """Raise UserError unless the model has as many classes and keypoints as each dataset.

    Training fails at a class that the model lacks, evaluation at one that the dataset lacks. The label that
    masks ignore must be the model's, too.

    Args:
        names: registered datasets.
    """
    names = list(names)
    for name in names:
        _check_labels(cfg, name)
    if cfg.MODEL.META_ARCHITECTURE == CLASSIFIER:
        _check_same_classes(names)
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
        points = metadata.get("keypoint_names")
        if cfg.MODEL.KEYPOINT_ON and points and len(points) != cfg.MODEL.ROI_KEYPOINT_HEAD.NUM_KEYPOINTS:
            raise OptionError(
                "MODEL.ROI_KEYPOINT_HEAD.NUM_KEYPOINTS",
                cfg.MODEL.ROI_KEYPOINT_HEAD.NUM_KEYPOINTS,
                f"must be {len(points)}, the number of keypoints of {name}",
            )


def _check_same_classes(names: Sequence[str]) -> None:
    """Raise UserError unless datasets of images by class have the same classes in the same order."""
    for name in names[1:]:
        if pair := first_difference(image_classes(names[0]), image_classes(name)):
            first, other = pair
            raise UserError(f"{name} has the class {other!r} where {names[0]} has {first!r}; rename it")


def _check_labels(cfg: CfgNode, name: str) -> None:
    """Raise UserError unless the model and the dataset have the same kind and number of labels, if any."""
    metadata, model = MetadataCatalog.get(name), cfg.MODEL.META_ARCHITECTURE
    kind, head = metadata.get("evaluator_type"), cfg.MODEL.SEM_SEG_HEAD
    if (model == CLASSIFIER) != (kind == KIND) and (model == CLASSIFIER or model in (SEGMENTOR, *_CLASSES)):
        holds = "is of images by class" if kind == KIND else "is not of images by class"
        rest = "use a recipe of configs/classification" if kind == KIND else "name another dataset"
        raise UserError(f"{name} {holds}, unlike MODEL.META_ARCHITECTURE {model}; {rest}")
    if model == CLASSIFIER:
        given, classes = cfg.MODEL.CLASSIFIER.NUM_CLASSES, image_classes(name)
        if len(classes) != given:
            rule = f"must be {len(classes)}, the number of classes of {name}"
            raise OptionError("MODEL.CLASSIFIER.NUM_CLASSES", given, rule)
        return
    if (model == SEGMENTOR and kind in _OBJECTS) or (model in _CLASSES and kind in SEMANTIC):
        holds, other = ("objects", "a detector") if kind in _OBJECTS else ("labels", "configs/segmentation")
        raise UserError(
            f"{name} has annotations of {holds}, which MODEL.META_ARCHITECTURE {model} cannot learn; name "
            f"another dataset, or use a recipe of {other}"
        )
    if model not in (SEGMENTOR, "PanopticFPN"):
        return
    stuff, ignored = metadata.get("stuff_classes"), metadata.get("ignore_label")
    if not stuff and kind in SEMANTIC:
        raise UserError(f"{name} has no stuff_classes; list the names of its labels there in its metadata")
    if stuff and len(stuff) != head.NUM_CLASSES:
        rule = f"must be {len(stuff)}, the number of labels of {name}"
        raise OptionError("MODEL.SEM_SEG_HEAD.NUM_CLASSES", head.NUM_CLASSES, rule)
    if ignored is not None and ignored != head.IGNORE_VALUE:
        rule = f"must be {ignored}, the label that {name} ignores"
        raise OptionError("MODEL.SEM_SEG_HEAD.IGNORE_VALUE", head.IGNORE_VALUE, rule)


# Size in bytes and modification time in nanoseconds of annotation files when training started.
_noted: Dict[str, Tuple[int, int]] = {}


def note_annotations(names: Iterable[str]) -> None:
    """Remember the state of the datasets' annotation files for :func:`loading`."""
    _noted.clear()
    _noted.update(_states(names))


def load_some(dataset: str, key: str, most: int) -> List[Dict[str, Any]]:
    """Load records of a registered dataset, evenly spaced in it.

    Args:
        key: configuration key that names the dataset, for the message.
        most: number of records, if there are so many.

    Raises:
        UserError: it cannot be loaded, or there are no images.
    """
    with loading([dataset]):
        records = DatasetCatalog.get(dataset)
    if not records:
        raise UserError(f"{key} {dataset} has no images; name another dataset")
    return [records[i] for i in spread(len(records), most)]


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
