"""ImageNet's validation images, which come in one folder, sorted into a folder for each class."""

from __future__ import annotations

import csv
import os
import re
from pathlib import Path
from typing import Dict, List, Tuple

from tqdm import tqdm

from ..errors import UserError, needs
from ..files import check_readable, inside, read_text, writing

#: Number of classes; the devkit has numbers of groups of them, too.
CLASSES = 1000
_TRUTH = "data/ILSVRC2012_validation_ground_truth.txt"
_META = "data/meta.mat"
_WNID = re.compile(r"n\d{8}")


def read_devkit(devkit: Path) -> Dict[str, str]:
    """Return the class of each validation image, by the name of its file, from ILSVRC2012_devkit_t12.

    Raises:
        UserError: a file is missing or malformed, or SciPy is, which reads MATLAB's files.
    """
    with needs("scipy", f"{_META} of the devkit"):
        from scipy.io import loadmat
    meta = check_readable(devkit / _META)
    try:
        synsets = loadmat(str(meta), squeeze_me=True)["synsets"]
        wnids = {int(number): str(wnid) for number, wnid in zip(synsets["ILSVRC2012_ID"], synsets["WNID"])}
    except Exception as e:  # damaged bytes make SciPy raise anything
        raise UserError(f"{meta} holds no synsets ({type(e).__name__}); unpack the devkit again") from None
    names = {}
    for i, line in enumerate(read_text(check_readable(devkit / _TRUTH)).split(), 1):
        number = int(line) if line.isascii() and line.isdigit() else 0
        if number not in wnids or number > CLASSES:
            raise UserError(f"{devkit / _TRUTH}, line {i}: {line[:40]!r} is no number of a class")
        names[f"ILSVRC2012_val_{i:08d}.JPEG"] = wnids[number]
    return names


def read_solution(file: Path) -> Dict[str, str]:
    """Return the class of each validation image, by the name of its file, from Kaggle's LOC_val_solution.csv.

    Raises:
        UserError: the file is missing or malformed.
    """
    names = {}
    try:
        rows = list(csv.reader(read_text(check_readable(file)).splitlines()))
    except csv.Error as e:
        raise UserError(f"{file} is no list as LOC_val_solution.csv ({e})") from None
    for i, row in enumerate(rows, 1):
        if row and row[0] == "ImageId":
            continue
        wnid = row[1].split(" ")[0] if len(row) > 1 else ""
        if not _WNID.fullmatch(wnid):
            raise UserError(f"{file}, line {i}: no image and class as in LOC_val_solution.csv")
        names[f"{row[0]}.JPEG"] = wnid
    if not names:
        raise UserError(f"{file} names no images; is it LOC_val_solution.csv?")
    return names


def sort_validation(folder: Path, names: Dict[str, str]) -> Tuple[int, int]:
    """Move the images of a folder into folders named by their classes.

    An interrupted call can be repeated.

    Args:
        names: the class of each image, by the name of its file.

    Returns:
        How many images were moved, and how many were in their places.

    Raises:
        UserError: an image is missing or cannot be moved, or there is one without a class.
    """
    with writing(folder):
        there = {e.name for e in os.scandir(folder) if e.is_file() and not e.name.startswith(".")}
    unknown = sorted(there - names.keys())
    if unknown:
        raise UserError(f"{folder / unknown[0]} has no class; is it the folder of the validation images?")
    lost: List[str] = [
        name for name, wnid in names.items() if name not in there and not (folder / wnid / name).is_file()
    ]
    if lost:
        raise UserError(f"{len(lost)} of {len(names)} images are missing in {folder}, such as {lost[0]}")
    for name in tqdm(sorted(there), desc=f"images into {folder}"):
        target = inside(folder, os.path.join(names[name], name), "the list of classes")
        with writing(target):
            target.parent.mkdir(exist_ok=True)
            os.rename(folder / name, target)
    return len(there), len(names) - len(there)
