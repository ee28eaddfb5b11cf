"""Images of a dataset with what is known about them."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Dict, Iterator, List, Optional

import numpy as np
from detectron2.config import CfgNode
from detectron2.structures import BoxMode
from tqdm import tqdm

from ..config import CLASSIFIER, SEGMENTOR
from ..data.check import count_classes, known_classes, load_some
from ..data.loader import CheckedMapper
from ..data.mappers import build_mapper
from ..data.semantic_masks import read_labels


@dataclass(frozen=True)
class Sample:
    """One image.

    Attributes:
        file: its name.
        inputs: of the model, without the image's own size, so that results are in pixels of what it sees.
        label: its class; for detectors and segmentation the annotated one that covers most of it, or None.
    """

    file: Path
    inputs: Dict[str, Any]
    label: Optional[int]

    def without_inputs(self) -> Sample:
        """The same without the pixels."""
        return replace(self, inputs={})


def samples(cfg: CfgNode, dataset: str, num_images: int, purpose: str) -> Iterator[Sample]:
    """Yield images of a registered dataset, evenly spaced in it, as they are tested.

    Args:
        purpose: what they are for, beside the progress.

    Raises:
        UserError: there are no images, or one cannot be used.
    """
    records = load_some(dataset, "DATASETS.TEST", num_images)
    mapper = CheckedMapper(build_mapper(cfg, train=False))
    for record in tqdm(records, desc=purpose):
        inputs = {k: v for k, v in mapper(record).items() if k not in ("height", "width")}
        yield Sample(Path(record["file_name"]), inputs, _label(cfg, record))


def class_names(cfg: CfgNode, dataset: str) -> List[str]:
    """Return the names of a model's classes; their numbers if the dataset does not name them."""
    return known_classes(cfg, dataset) or [*map(str, range(count_classes(cfg)))]


def _label(cfg: CfgNode, record: Dict[str, Any]) -> Optional[int]:
    if cfg.MODEL.META_ARCHITECTURE == CLASSIFIER:
        return record["label"]
    areas: Counter = Counter()
    if cfg.MODEL.META_ARCHITECTURE == SEGMENTOR:
        if "sem_seg_file_name" in record:
            labels, counts = np.unique(read_labels(record["sem_seg_file_name"]), return_counts=True)
            areas.update(dict(zip(labels.tolist(), counts.tolist())))
            del areas[cfg.MODEL.SEM_SEG_HEAD.IGNORE_VALUE]
    else:
        for annotation in (a for a in record.get("annotations", ()) if "bbox" in a):
            box = BoxMode.convert(annotation["bbox"], annotation["bbox_mode"], BoxMode.XYWH_ABS)
            areas[annotation["category_id"]] += box[2] * box[3]
    return max(areas, key=areas.__getitem__) if areas else None
