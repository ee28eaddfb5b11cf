"""Images to calibrate and to verify with."""

from __future__ import annotations

from typing import List, Sequence, Tuple

from torch import Tensor

from ..data.annotations import spread
from ..data.check import check_datasets, load_some
from ..errors import UserError
from ..prediction import Predictor, find_inputs


def find_images(
    words: Sequence[str], datasets: Sequence[str], key: str, count: int, option: str
) -> List[str]:
    """List images, evenly spaced among those that are named, or else in the first of some datasets.

    Args:
        words: files, folders and patterns.
        key: of the datasets in the configuration.
        count: most images.
        option: of the command line that names images.

    Raises:
        UserError: there are no images.
    """
    if words:
        paths = [str(source.place) for source in find_inputs(words) if not source.moves]
        if not paths:
            raise UserError(f"{option} {' '.join(words)} names no images")
        return [paths[i] for i in spread(len(paths), count)]
    if not datasets:
        raise UserError(f"{key} is empty; name images in {option}")
    try:
        check_datasets(datasets[:1], key)
        return [record["file_name"] for record in load_some(datasets[0], key, count)]
    except UserError as e:
        raise UserError(f"{e}; or name images in {option}") from None


def read_images(predictor: Predictor, paths: Sequence[str]) -> List[Tuple[str, Tensor]]:
    """Return names of images, and the images as the model sees them, (C, H, W).

    Raises:
        UserError: one cannot be used.
    """
    return [(path, predictor.read(path)["image"]) for path in paths]
