"""Names, colours and ids of the classes that a model predicts."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Iterator, List, NamedTuple, Optional, Sequence, Union

import torchvision
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, Metadata, MetadataCatalog

from ..config import CLASSIFIER, SEGMENTOR
from ..data.check import count_classes
from ..data.image_folder import image_classes
from ..errors import UserError
from ..evaluation.label_maps import class_colours
from ..files import read_json

#: Metadata of keypoints, which drawing needs beside those of classes.
_KEYPOINTS = ("keypoint_names", "keypoint_connection_rules")


class Classes(NamedTuple):
    """The classes of a model.

    Attributes:
        names: of each class, from 0 on; numbers where they are unknown.
        ids: of each in files of results: the ids of the model's dataset if it is registered, or else the
            label for pixels and whole images, and for objects the numbers from 1 on.
        metadata: for detectron2's drawing functions.
    """

    names: List[str]
    ids: List[int]
    metadata: Metadata


def find_classes(cfg: CfgNode, trained: Sequence[str], given: Optional[Sequence[str]] = None) -> Classes:
    """Find the classes of a model: those that are given, or else of its training, or of its dataset.

    Args:
        trained: the names that the checkpoint holds, which are no help if they are not as many as the
            model's classes.

    Raises:
        UserError: there are not as many names given as classes.
    """
    model, count = cfg.MODEL.META_ARCHITECTURE, count_classes(cfg)
    if given is not None and count and len(given) != count:
        raise UserError(f"{len(given)} names of classes are given, but the model has {count} classes")
    kind = {SEGMENTOR: "stuff", CLASSIFIER: "image"}.get(model, "thing")
    known = [*_known(cfg, kind)]
    names = list(given or (trained if len(trained) == count or not count else ()))
    names = names or next((list(own) for _, own in known if len(own) == count), [*map(str, range(count))])
    same = next((data for data, own in known if list(own) == names), Metadata())
    metadata = Metadata()
    colours = same.get(f"{kind}_colors") or class_colours(len(names))
    metadata.set(**{f"{kind}_classes": names, f"{kind}_colors": list(colours)})
    metadata.set(**{key: same.get(key) for key in _KEYPOINTS if same.get(key)})
    ids = [*range(len(names))] if kind != "thing" else [*range(1, len(names) + 1)]
    for theirs, label in (same.get("thing_dataset_id_to_contiguous_id") or {}).items():
        ids[label] = theirs
    return Classes(names, ids, metadata)


def read_names(file: Union[str, Path]) -> List[str]:
    """Read the names of classes: a JSON list, or an object with such a list as ``classes``.

    Raises:
        UserError: the file cannot be read, or holds something else.
    """
    content = read_json(file, "--classes")
    names = content.get("classes") if isinstance(content, dict) else content
    if not isinstance(names, list) or not names or not all(isinstance(name, str) for name in names):
        raise UserError(f'--classes {file} must be a list of names, ["a", "b"], or an object with "classes"')
    return names


def _known(cfg: CfgNode, kind: str) -> Iterator[tuple]:
    """Yield the metadata and the names of the classes of the configuration's datasets, if known."""
    for name in (*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST):
        if name not in DatasetCatalog.list():  # a user's own, of another process
            continue
        metadata = MetadataCatalog.get(name)
        if name.startswith("imagenet_1k_"):  # words, where the names of the folders are numbers of WordNet
            weights = torchvision.models.ResNet50_Weights.IMAGENET1K_V2
            yield metadata, weights.meta["categories"]
        elif kind == "image":
            with suppress(UserError):  # its folders are not there
                yield metadata, image_classes(name)
        else:
            yield metadata, metadata.get(f"{kind}_classes") or []
