"""Whether the datasets of a configuration are there, before anything expensive starts."""

from __future__ import annotations

import difflib
import os
from typing import Iterable

from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.utils.file_io import PathManager

from ..errors import UserError

# What detectron2's registration functions note about the files of a dataset.
_FILES = ("json_file", "image_root", "panoptic_json", "panoptic_root", "sem_seg_root", "dirname")


def check_datasets(names: Iterable[str], key: str) -> None:
    """Raise UserError unless every dataset is registered and its files exist.

    Args:
        names: registered names, the value of ``key``.
        key: configuration key, for the message.
    """
    for name in names:
        if name not in DatasetCatalog.list():
            near = difflib.get_close_matches(name, DatasetCatalog.list())
            hint = f"did you mean {' or '.join(near)}?" if near else "register it first"
            raise UserError(f"{key}: no dataset is registered as {name!r}; {hint}")
        if name.startswith("shapes_"):  # written on first use
            continue
        metadata = MetadataCatalog.get(name)
        paths = [metadata.get(attribute) for attribute in _FILES]
        missing = [path for path in paths if path and not PathManager.exists(path)]
        if missing:
            root = os.getenv("DETECTRON2_DATASETS")
            where = f"is {root}" if root else "is not set, so it is looked for in ./datasets"
            raise UserError(
                f"{key}: files of {name!r} are missing: {', '.join(missing)} (DETECTRON2_DATASETS {where})"
            )
