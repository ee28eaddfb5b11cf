"""Training batches that depend only on the seed and their position in training."""

from __future__ import annotations

import errno
import itertools
import logging
import os
import random
import signal
import threading
from functools import partial
from typing import Any, Dict, Iterator, List, Optional, Sequence, Set, Tuple

import torch
from detectron2.config import CfgNode
from detectron2.data import (
    DatasetFromList,
    MapDataset,
    build_detection_test_loader,
    build_detection_train_loader,
)
from detectron2.structures import Instances
from detectron2.utils import comm
from detectron2.utils.file_io import PathManager
from PIL import Image, UnidentifiedImageError
from torch.utils.data import DataLoader, Dataset, Sampler, get_worker_info

from ..config import CLASSIFIER
from ..errors import OptionError, UserError, one_line
from ..processes import ENDING
from .check import loading, note_annotations
from .mappers import build_mapper
from .seeding import seeded

logger = logging.getLogger(__name__)

#: Where workers put tensors for the training process, on Linux.
SHARED_MEMORY = "/dev/shm"
#: Batches that each worker loads ahead: PyTorch's default.
PREFETCHED = 2
#: Errors of the machine, not of a file.
_OF_THE_SYSTEM = (errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EIO, errno.ESTALE)
#: Number of consecutive images for which a mapper may return None.
_REJECTED = 100


class ResumableBatchSampler(Sampler):
    """Infinite batches of one process, whose samples are an image with its position in training.

    All images of a batch are of one group: wider than high, or not. detectron2 groups images after loading
    them, and so can only start at the beginning.

    Args:
        sampler: detectron2's infinite sampler of image indices for this process.
        batch_size: images per batch of this process.
        groups: group of each image; None for a single group.

    Attributes:
        start: number of batches to skip.

    Yields:
        ``batch_size`` pairs of the position, counted over all processes, and the image index.
    """

    def __init__(self, sampler: Sampler, batch_size: int, groups: Optional[Sequence[int]] = None) -> None:
        self._sampler, self._batch_size, self._groups = sampler, batch_size, groups
        self.start = 0

    def __iter__(self) -> Iterator[List[Tuple[int, int]]]:
        rank, world_size = comm.get_rank(), comm.get_world_size()
        filling: Dict[int, List[Tuple[int, int]]] = {}
        batches, samples = 0, enumerate(self._sampler)
        if self._groups is None:  # the first samples fill the first batches, so that they can be skipped
            batches, samples = self.start, itertools.islice(samples, self.start * self._batch_size, None)
        for position, index in samples:
            group = 0 if self._groups is None else self._groups[index]
            batch = filling.setdefault(group, [])
            batch.append((rank + position * world_size, index))
            if len(batch) == self._batch_size:
                if batches >= self.start:
                    yield batch
                del filling[group]
                batches += 1


class _Samples(Dataset):
    """The mapped images that :class:`ResumableBatchSampler` selects.

    Args:
        mapper: makes random choices that depend only on ``seed`` and the sample's position.
    """

    def __init__(self, records: List[Dict[str, Any]], mapper: Any, seed: int) -> None:
        self._records, self._mapper, self._seed = DatasetFromList(records, copy=False), mapper, seed

    def __getitem__(self, sample: Tuple[int, int]) -> Dict[str, Any]:
        position, index = sample
        with seeded(self._seed, position):
            for _ in range(_REJECTED):
                mapped = self._mapper(self._records[index])
                if mapped is not None:
                    return mapped
                index = random.randrange(len(self._records))  # like detectron2, which would try forever
        raise UserError(f"the mapper of the training data returned None for {_REJECTED} images in a row")


class CheckedMapper:
    """A mapper whose errors say in one line which file cannot be used.

    Args:
        mapper: a mapper such as that of :func:`build_mapper`.
    """

    def __init__(self, mapper: Any) -> None:
        self._mapper = mapper

    def __call__(self, record: Dict[str, Any]) -> Dict[str, Any]:
        """Map a record.

        Raises:
            UserError: the image or the annotations of the record cannot be used.
        """
        file = record["file_name"]
        try:
            with PathManager.open(file, "rb") as opened, Image.open(opened) as image:
                mode = image.mode
            if mode.startswith(("I", "F")):  # Pillow would clip values above 255
                raise UserError(f"{file} has more than 8 bits per channel ({mode}); convert it to 8 bits")
            return self._mapper(record)
        except UserError:
            raise
        except UnidentifiedImageError:
            raise UserError(f"{file} is not an image or is damaged; repair it, or remove it") from None
        except Image.DecompressionBombError as e:
            raise UserError(f"{file} is too large ({e})") from None
        except Exception as e:  # decoders and augmentations raise anything
            reason = one_line(e, 200) or type(e).__name__
            raise UserError(
                f"{file} cannot be used ({reason}); if tools/check_dataset.py finds nothing wrong with it, "
                "the configuration's INPUT does not suit it"
            ) from None


class SkipBadFiles:
    """A mapper that returns None for files that cannot be used, for another image to take their place.

    Each is logged once.

    Args:
        mapper: raises UserError for such a file.
        limit: number of files of this process, or of this loader worker, above which it raises the error.
    """

    def __init__(self, mapper: Any, limit: int) -> None:
        self._mapper, self._limit = mapper, limit
        self._bad: Set[str] = set()

    def __call__(self, record: Dict[str, Any]) -> Optional[Dict[str, Any]]:
        try:
            return self._mapper(record)
        except UserError as e:
            cause = e.__context__
            if isinstance(cause, MemoryError) or getattr(cause, "errno", None) in _OF_THE_SYSTEM:
                raise
            new = record["file_name"] not in self._bad
            self._bad.add(record["file_name"])
            if len(self._bad) > self._limit:
                if not self._limit:
                    raise
                raise UserError(f"{e}; it is one more than DATALOADER.MAX_BAD_FILES {self._limit}") from None
            if new:
                logger.warning("%s; others take its place (%d of %d)", e, len(self._bad), self._limit)
            return None


class _Packed(list):
    """Records whose images, of one size, go to another process as one tensor, with one file descriptor."""

    def __init__(self, records: List[Dict[str, Any]]) -> None:
        super().__init__(records)
        self.images = torch.stack([record["image"] for record in records]).share_memory_()

    def __reduce__(self) -> Tuple[Any, ...]:
        rest = [{key: value for key, value in record.items() if key != "image"} for record in self]
        return _unpack, (self.images, rest)


def _unpack(images: torch.Tensor, records: List[Dict[str, Any]]) -> List[Dict[str, Any]]:
    return [{**record, "image": image} for record, image in zip(records, images)]


def in_shared_memory(batch: List[Dict[str, Any]], pack: bool = False) -> List[Dict[str, Any]]:
    """Move a worker's batch to shared memory, where the training process reads it.

    Args:
        pack: all images have one size, so that they can be moved together.

    The queue would do so in its own thread, drop the batch if there is no space, and leave the training
    process waiting for it forever.

    Raises:
        UserError: there is not enough space.
    """
    if get_worker_info() is None:
        return batch
    try:
        if pack:
            return _Packed(batch)
        for record in batch:
            for value in record.values():
                fields = value.get_fields().values() if isinstance(value, Instances) else [value]
                for tensor in (getattr(field, "tensor", field) for field in fields):
                    if isinstance(tensor, torch.Tensor):
                        tensor.share_memory_()
    except RuntimeError as e:
        reason = one_line(e, 200)
        raise UserError(
            f"{SHARED_MEMORY} has no space for the loader workers' batches ({reason}); enlarge it with "
            "docker run --shm-size 8g, or lower DATALOADER.NUM_WORKERS (0 needs none)"
        ) from None
    return batch


def _outlive_group_signals(_: int) -> None:
    """Let a worker end only when its training process says so, not by a signal to the process group.

    Terminals and schedulers signal all processes, but training still needs images to stop cleanly.
    """
    parent = os.getppid()
    for number in {*ENDING} - {signal.SIGTERM}:
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})

    def wait() -> None:
        while signal.sigwaitinfo({signal.SIGTERM}).si_pid != parent:
            pass
        os._exit(0)

    threading.Thread(target=wait, daemon=True).start()


def build_train_loader(cfg: CfgNode, mapper: Optional[Any] = None) -> DataLoader:
    """Build a loader of reproducible batches from detectron2's images, sampler and mapper.

    Its ``batch_sampler.start`` may be set before iterating.

    Args:
        cfg: configuration whose SEED is not negative.
        mapper: defaults to that of :func:`build_mapper`.
    """
    with loading(cfg.DATASETS.TRAIN):
        config = build_detection_train_loader.from_config(cfg, mapper=mapper or build_mapper(cfg, True))
    note_annotations(cfg.DATASETS.TEST)
    records, sampler = config["dataset"], config["sampler"]
    # detectron2 seeds some of its samplers randomly, whatever SEED is.
    sampler._seed = cfg.SEED
    if config["aspect_ratio_grouping"] and not all("width" in r and "height" in r for r in records):
        rule = "must be False, since records of DATASETS.TRAIN have no width and height"
        raise OptionError("DATALOADER.ASPECT_RATIO_GROUPING", True, rule)
    groups = [int(r["width"] > r["height"]) for r in records] if config["aspect_ratio_grouping"] else None
    batch_size = cfg.SOLVER.IMS_PER_BATCH // comm.get_world_size()
    return DataLoader(
        _Samples(
            records,
            SkipBadFiles(CheckedMapper(config["mapper"]), cfg.DATALOADER.MAX_BAD_FILES),
            cfg.SEED,
        ),
        batch_sampler=ResumableBatchSampler(sampler, batch_size, groups),
        num_workers=config["num_workers"],
        collate_fn=partial(in_shared_memory, pack=cfg.MODEL.META_ARCHITECTURE == CLASSIFIER),
        worker_init_fn=_outlive_group_signals,
    )


def build_test_loader(cfg: CfgNode, dataset: str) -> DataLoader:
    """Build detectron2's test loader with :class:`CheckedMapper`; of classifiers in batches."""
    classifies = cfg.MODEL.META_ARCHITECTURE == CLASSIFIER
    with loading([dataset]):
        config = build_detection_test_loader.from_config(cfg, dataset, mapper=build_mapper(cfg, False))
    return DataLoader(
        MapDataset(DatasetFromList(config["dataset"]), CheckedMapper(config["mapper"])),
        batch_size=cfg.TEST.IMS_PER_BATCH if classifies else 1,
        sampler=config["sampler"],
        num_workers=config["num_workers"],
        collate_fn=partial(in_shared_memory, pack=classifies),
        worker_init_fn=_outlive_group_signals,
    )
