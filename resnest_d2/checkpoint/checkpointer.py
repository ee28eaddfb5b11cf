"""detectron2's checkpointer, reading safely and any known format."""

from __future__ import annotations

import pickle
from typing import Any, Dict, List

from detectron2.checkpoint import DetectionCheckpointer

from ..errors import UserError
from .convert import as_checkpoint
from .files import read_numpy_pickle, read_weights


class Checkpointer(DetectionCheckpointer):
    """Loads checkpoints of any detectron2 model, and ResNeSt weights in the formats of :func:`convert`.

    Attributes:
        missing: names of the model's parameters and buffers that the last file held nothing for.
    """

    missing: List[str] = []

    def _load_file(self, filename: str) -> Dict[str, Any]:
        if filename.endswith(".pkl"):  # detectron2 unpickles it; look first at what that would run
            try:
                read_numpy_pickle(filename)
            except pickle.UnpicklingError as e:
                raise UserError(f"{filename} is refused: its pickle would run code ({e})") from None
        return super()._load_file(filename)

    def _torch_load(self, f: str) -> Dict[str, Any]:
        return as_checkpoint(read_weights(f), f)

    def _load_model(self, checkpoint: Dict[str, Any]) -> Any:
        incompatible = super()._load_model(checkpoint)
        self.missing = [*incompatible.missing_keys, *(k for k, *_ in incompatible.incorrect_shapes)]
        return incompatible
