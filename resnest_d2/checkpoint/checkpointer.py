"""detectron2's checkpointer: any known format, read safely; checkpoints that survive being killed."""

from __future__ import annotations

import logging
import os
import pickle
import zipfile
import zlib
from pathlib import Path
from typing import Any, Dict, List, Optional

import numpy as np
import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.utils import comm

from ..errors import UserError
from ..files import atomic_write_text, atomic_writer
from .convert import as_checkpoint
from .read import read_numpy_pickle, read_weights

logger = logging.getLogger(__name__)


class Checkpointer(DetectionCheckpointer):
    """Loads checkpoints of any detectron2 model, and ResNeSt weights in the formats of :func:`convert`.

    A checkpoint appears complete or not at all, and the newest that is undamaged is resumed from.

    Args:
        keep: how many numbered checkpoints stay; 0 for all. ``model_final`` always stays.
        arguments, keywords: of detectron2's.

    Attributes:
        missing: names of the model's parameters and buffers that the last file held nothing for.
    """

    missing: List[str] = []

    def __init__(self, *arguments: Any, keep: int = 0, **keywords: Any) -> None:
        super().__init__(*arguments, **keywords)
        self._keep = keep

    def save(self, name: str, **kwargs: Any) -> None:
        """Write ``name.pth``, then forget the oldest.

        Raises:
            UserError: it cannot be written. Whatever was there still is.
        """
        if not self.save_dir or not self.save_to_disk:
            return
        data = {"model": self.model.state_dict(), **kwargs}
        data.update({key: thing.state_dict() for key, thing in self.checkpointables.items()})
        path = self._folder() / f"{name}.pth"
        for stale in self._folder().glob(".model_*.pth-*"):  # of a process that was killed
            stale.unlink()
        logger.info("Saving checkpoint to %s", path)
        remedy = "earlier checkpoints are untouched: make room and go on with --resume"
        # `last_checkpoint` is written first: a process killed in between leaves a name without a file, which
        # is skipped on resuming. The other way round, the new file would not be known as the newest.
        with atomic_writer(path, before=lambda: self.tag_last_checkpoint(path.name), remedy=remedy) as file:
            torch.save(data, file)
        if self._keep:
            numbered = sorted(self._folder().glob("model_" + "[0-9]" * 7 + ".pth"), key=_age)
            for old in numbered[self._keep :]:
                old.unlink()

    def tag_last_checkpoint(self, last_filename_basename: str) -> None:
        """Note which checkpoint is the newest, in ``last_checkpoint``."""
        atomic_write_text(self._folder() / "last_checkpoint", last_filename_basename)

    def has_checkpoint(self) -> bool:
        """Whether there is any in the folder, damaged or not."""
        return bool(self._checkpoints())

    def is_newest(self, *names: str) -> bool:
        """Whether one of ``names`` was written last."""
        return any(path.stem in names for path in self._checkpoints()[:1])

    def get_checkpoint_file(self) -> str:
        """The newest checkpoint that is undamaged; the same in all processes.

        Raises:
            UserError: all are damaged. Training must not start from scratch unnoticed.
        """
        damaged, found = [], None
        if comm.is_main_process():
            for path in self._checkpoints():
                problem = damage(path)
                if problem is None:
                    found = str(path)
                    break
                logger.warning("Skipping %s: %s", path, problem)
                damaged.append(f"{path.name} ({problem})")
        found, damaged = comm.all_gather((found, damaged))[0]
        if found is None:
            raise UserError(
                f"--resume: no checkpoint in {self.save_dir} can be read: {', '.join(damaged)}; restore one, "
                "or start anew in another OUTPUT_DIR"
            )
        return found

    def _folder(self) -> Path:
        return Path(self.path_manager.get_local_path(self.save_dir))

    def _checkpoints(self) -> List[Path]:
        """Newest first: the one that was noted, then by time."""
        if not self.save_dir or not self.path_manager.isdir(self.save_dir):
            return []
        noted = self._folder() / "last_checkpoint"
        newest = noted.read_text().strip() if noted.exists() else None
        paths = self._folder().glob("model_*.pth")
        return sorted(paths, key=lambda path: (path.name != newest, _age(path)))

    def _load_file(self, filename: str) -> Dict[str, Any]:
        if filename.endswith(".pkl"):  # detectron2 unpickles it; look first at what that would run
            try:
                content = read_numpy_pickle(filename)
            except pickle.UnpicklingError as e:
                raise UserError(f"{filename} is refused: its pickle would run code ({e})") from None
            if not isinstance(content, dict):
                raise UserError(f"{filename} holds a {type(content).__name__}, not a dict of weights")
        loaded = super()._load_file(filename)
        for name, value in loaded["model"].items():
            if not isinstance(value, (torch.Tensor, np.ndarray)):
                raise UserError(f"{filename} is no file of weights: {name} is a {type(value).__name__}")
        return loaded

    def _torch_load(self, f: str) -> Dict[str, Any]:
        return as_checkpoint(read_weights(f), f)

    def _load_model(self, checkpoint: Dict[str, Any]) -> Any:
        incompatible = super()._load_model(checkpoint)
        self.missing = [*incompatible.missing_keys, *(k for k, *_ in incompatible.incorrect_shapes)]
        return incompatible


def damage(path: Path) -> Optional[str]:
    """What is wrong with a file of torch.save; None where every part has its checksum.

    torch writes a CRC-32 with each tensor, and does not check it on reading.
    """
    try:
        if os.path.getsize(path) == 0:
            return "empty"
        with zipfile.ZipFile(path) as archive:
            bad = archive.testzip()
    except (zipfile.BadZipFile, EOFError):
        return "truncated"
    except (OSError, zlib.error, NotImplementedError, RuntimeError) as e:
        return f"unreadable, {e}"
    return f"bad checksum of {bad}" if bad else None


def _age(path: Path) -> int:
    """For sorting by age, the newest first."""
    return -path.stat().st_mtime_ns
