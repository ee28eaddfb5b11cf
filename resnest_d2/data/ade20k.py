"""ADE20K's masks, as its scene parsing benchmark has them, with the labels that detectron2 trains on."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Dict, List, Tuple

import numpy as np
from PIL import Image
from tqdm import tqdm

from ..errors import UserError
from ..files import atomic_writer, inside, writing
from .semantic_masks import read_labels

#: Number of classes; in the benchmark's masks they are 1 to 150, and 0 is unlabelled.
CLASSES = 150
_SPLITS = ("training", "validation")


def write_ade20k_labels(root: Path) -> Dict[str, Tuple[int, int]]:
    """Write the ``annotations_detectron2`` of ``ADEChallengeData2016`` from its ``annotations``.

    A mask that has been written after its source is kept, so that an interrupted call can be repeated.

    Args:
        root: the folder ``ADEChallengeData2016``, with both splits or one.

    Returns:
        For each split, how many masks were written, and how many were kept.

    Raises:
        UserError: there are no masks, one of them cannot be read or has labels that ADE20K does not have, or
            the new ones cannot be written or would replace their own sources.
    """
    sources = {split: root / "annotations" / split for split in _SPLITS}
    files = {split: _masks(folder) for split, folder in sources.items() if folder.is_dir()}
    if not any(files.values()):
        raise UserError(
            f"there are no masks in {' or '.join(map(str, sources.values()))}; name the folder "
            "ADEChallengeData2016 as it is unpacked"
        )
    output = root / "annotations_detectron2"
    for split in files:
        with writing(output):
            (output / split).mkdir(parents=True, exist_ok=True)
        if (output / split).samefile(sources[split]):
            raise UserError(f"{output / split} is {sources[split]} itself; remove the link")
    return {split: _write(sources[split], names, output / split) for split, names in files.items() if names}


def _masks(folder: Path) -> List[str]:
    """Return the names of a split's masks."""
    try:
        return sorted(name for name in os.listdir(folder) if name.endswith(".png") and name[0] != ".")
    except OSError as e:
        raise UserError(f"cannot read {folder} ({e.strerror}); name a folder that you can read") from None


def _write(source: Path, names: List[str], output: Path) -> Tuple[int, int]:
    kept = 0
    for name in tqdm(names, desc=f"labels into {output}"):
        target = inside(output, name, source)
        made = target.stat() if target.is_file() else None
        if made and made.st_size and made.st_mtime >= (source / name).stat().st_mtime:
            kept += 1
            continue
        labels = read_labels(source / name)
        if labels.max() > CLASSES:
            raise UserError(
                f"{source / name} has the label {labels.max()}, but ADE20K's are from 0 to {CLASSES}; was it "
                "prepared before?"
            )
        with atomic_writer(target) as file:  # 0 becomes 255, the ignored label
            Image.fromarray(labels - np.uint8(1)).save(file, "PNG")
    return len(names) - kept, kept
