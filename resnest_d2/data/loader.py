"""Training batches that are a function of the seed and of their place in training."""

from __future__ import annotations

import os
import signal
import threading
from contextlib import nullcontext
from typing import Any, Dict, Iterator, List, Optional, Sequence

import torch
from detectron2.config import CfgNode
from detectron2.data import (
    DatasetFromList,
    DatasetMapper,
    build_detection_test_loader,
    build_detection_train_loader,
)
from detectron2.data.build import _train_loader_from_config
from detectron2.structures import Instances
from detectron2.utils import comm
from detectron2.utils.file_io import PathManager
from PIL import Image, UnidentifiedImageError
from torch.utils.data import DataLoader, Dataset, Sampler, get_worker_info

from ..errors import UserError, one_line
from .check import loading, note_annotations
from .seeding import seeded

#: Where workers put tensors for the training process, on Linux.
SHARED_MEMORY = "/dev/shm"
#: Batches that each worker loads ahead: PyTorch's default.
PREFETCHED = 2


class TrainingPositions(Sampler):
    """Endless samples for one process, each an image with its place in training.

    Consecutive ``batch_size`` samples are of one group: images wider than high, or not. detectron2
    groups after loading, and so cannot start anywhere but at the beginning.

    It is iterated in loader workers, which may know nothing of the process group: rank and size are those
    of the process that makes it.

    Args:
        sampler: detectron2's endless sampler of image indices for this process.
        size: number of images.
        batch_size: images per batch of this process.
        groups: the group of each image; None for one group.

    Attributes:
        start: number of batches that are skipped.

    Yields:
        ``position * size + index``: one whole number, as detectron2's datasets are indexed by.
    """

    def __init__(
        self, sampler: Sampler, size: int, batch_size: int, groups: Optional[Sequence[int]] = None
    ) -> None:
        self._sampler, self._size, self._batch_size, self._groups = sampler, size, batch_size, groups
        self._rank, self._world_size = comm.get_rank(), comm.get_world_size()
        self.start = 0

    def __iter__(self) -> Iterator[int]:
        full: Dict[int, List[int]] = {}
        batches = 0
        for position, index in enumerate(self._sampler):
            bucket = full.setdefault(0 if self._groups is None else self._groups[index], [])
            bucket.append((self._rank + position * self._world_size) * self._size + index)
            if len(bucket) == self._batch_size:
                if batches >= self.start:
                    yield from bucket
                bucket.clear()
                batches += 1


class _Samples(Dataset):
    """Dataset dicts by what :class:`TrainingPositions` yields, with the sample's ``position``."""

    def __init__(self, records: List[Dict[str, Any]]) -> None:
        self._records = DatasetFromList(records, copy=False)

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, sample: int) -> Dict[str, Any]:
        position, index = divmod(sample, len(self._records))
        return {**self._records[index], "position": position}


class CheckedMapper:
    """A mapper that says in one line which file it cannot use, and whose random choices may be repeated.

    Args:
        mapper: such as detectron2's DatasetMapper.
        seed: not negative; random choices follow from it and the sample's ``position`` alone. None: they
            are left to chance.
    """

    def __init__(self, mapper: Any, seed: Optional[int] = None) -> None:
        self._mapper, self._seed = mapper, seed
        self._in_worker = False

    def __call__(self, record: Dict[str, Any]) -> Dict[str, Any]:
        """What the mapper returns.

        Raises:
            UserError: the image or the annotations of the record cannot be used.
        """
        if not self._in_worker and get_worker_info() is not None:
            self._in_worker = True
            _outlive_group_signals()
        file = record["file_name"]
        position = record.pop("position", 0)
        try:
            with PathManager.open(file, "rb") as opened, Image.open(opened) as image:
                mode = image.mode
            if mode.startswith(("I", "F")):  # Pillow would clip what is above 255
                raise UserError(f"{file} has more than 8 bits a channel ({mode}); convert it to 8 bits")
            with nullcontext() if self._seed is None else seeded(self._seed, position):
                return self._mapper(record)
        except UserError:
            raise
        except UnidentifiedImageError:
            raise UserError(f"{file} is no image or a damaged one; mend it, or take it out") from None
        except Image.DecompressionBombError as e:
            raise UserError(f"{file} is too large ({e})") from None
        except Exception as e:  # decoders and augmentations raise anything; the file is what matters
            reason = one_line(e, 200) or type(e).__name__
            raise UserError(
                f"{file} cannot be used ({reason}); tools/check_dataset.py finds such images"
            ) from None


def in_shared_memory(batch: List[Dict[str, Any]]) -> List[Dict[str, Any]]:
    """The batch, which a worker has put where the training process reads it.

    The queue would do so in a thread of its own, drop the batch where there is no room, and leave the
    training process waiting for it for ever.

    Raises:
        UserError: there is no room.
    """
    if get_worker_info() is None:
        return batch
    try:
        for record in batch:
            for value in record.values():
                fields = value.get_fields().values() if isinstance(value, Instances) else [value]
                for tensor in (getattr(field, "tensor", field) for field in fields):
                    if isinstance(tensor, torch.Tensor):
                        tensor.share_memory_()
    except RuntimeError as e:
        reason = one_line(e, 200)
        raise UserError(
            f"{SHARED_MEMORY} has no room for what the loader's workers load ({reason}); docker run "
            "--shm-size 8g gives more, fewer DATALOADER.NUM_WORKERS need less, 0 none"
        ) from None
    return batch


def _outlive_group_signals() -> None:
    """Let a worker end when its training process says so, and not by a signal to the whole process group.

    A terminal and a scheduler signal all processes; the training process still needs images to stop well.
    """
    parent = os.getppid()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})

    def wait() -> None:
        while signal.sigwaitinfo({signal.SIGTERM}).si_pid != parent:
            pass
        os._exit(0)

    threading.Thread(target=wait, daemon=True).start()


def build_train_loader(cfg: CfgNode, mapper: Optional[Any] = None) -> DataLoader:
    """detectron2's training loader with reproducible batches.

    Its ``dataset.sampler.start`` may be set before iterating.

    Args:
        cfg: SEED is not negative.
        mapper: DatasetMapper by default.
    """
    with loading(cfg.DATASETS.TRAIN):
        config = _train_loader_from_config(cfg, mapper or DatasetMapper(cfg, True))
    note_annotations(cfg.DATASETS.TEST)
    records = config.pop("dataset")
    # detectron2 seeds some of its samplers by random numbers whatever SEED says.
    config["sampler"]._seed = cfg.SEED
    groups = [int(r["width"] > r["height"]) for r in records] if config["aspect_ratio_grouping"] else None
    batch_size = cfg.SOLVER.IMS_PER_BATCH // comm.get_world_size()
    config["sampler"] = TrainingPositions(config["sampler"], len(records), batch_size, groups)
    config["mapper"] = CheckedMapper(config["mapper"], cfg.SEED)
    config["aspect_ratio_grouping"] = False  # done
    return build_detection_train_loader(_Samples(records), collate_fn=in_shared_memory, **config)


def build_test_loader(cfg: CfgNode, dataset: str) -> DataLoader:
    """detectron2's test loader, with :class:`CheckedMapper`."""
    mapper = CheckedMapper(DatasetMapper(cfg, False))
    with loading([dataset]):
        return build_detection_test_loader(cfg, dataset, mapper=mapper, collate_fn=in_shared_memory)
