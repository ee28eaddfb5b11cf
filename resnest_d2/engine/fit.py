"""Check and fit a configuration to the machine: processes, images per process, norms, device."""

from __future__ import annotations

import os
import socket
import tempfile
import urllib.parse
from argparse import Namespace
from pathlib import Path
from typing import List, Sequence

import torch
from detectron2.config import CfgNode
from detectron2.engine import DefaultTrainer
from torch import distributed

from ..config import CLASSIFIER, SEGMENTOR, flatten
from ..data.loader import PREFETCHED, SHARED_MEMORY
from ..errors import OptionError, UserError, check_number

_SYNCHRONISED = ("SyncBN", "naiveSyncBN", "nnSyncBN")
_OWN_HEAD = "ResNeStDeepLabV3Head"
_OWN_BACKBONES = (
    "build_resnest_backbone",
    "build_resnest_fpn_backbone",
    "build_retinanet_resnest_fpn_backbone",
)


def count_processes(args: Namespace) -> int:
    """Number of processes in the run: torchrun's, or else ``--num-gpus`` on each of ``--num-machines``."""
    if distributed.is_torchelastic_launched():
        return int(os.environ["WORLD_SIZE"])
    return args.num_gpus * args.num_machines


def processes_here(args: Namespace) -> int:
    """Number of the run's processes on this machine."""
    return int(os.environ["LOCAL_WORLD_SIZE"]) if distributed.is_torchelastic_launched() else args.num_gpus


def check_processes(cfg: CfgNode, recipe: CfgNode, args: Namespace) -> None:
    """Check that each process on this machine has a GPU or needs none, and that the processes can meet.

    Args:
        recipe: the configuration file alone, which may also ask for the CPU.

    Raises:
        UserError: there are too few GPUs, the numbers of processes and machines make no sense, or the
            processes have no place to meet.
    """
    gpus, on_cpu = torch.cuda.device_count(), cfg.MODEL.DEVICE == "cpu"
    if distributed.is_torchelastic_launched():
        _check_torchrun()
        option, count = "--nproc-per-node", int(os.environ["LOCAL_WORLD_SIZE"])
    else:
        option, count = "--num-gpus", args.num_gpus
        # Without a GPU, MODEL.DEVICE may have become cpu without being asked for.
        on_cpu = on_cpu and (gpus > 0 or "MODEL.DEVICE" in args.opts or recipe.MODEL.DEVICE == "cpu")
        check_number("--num-gpus", args.num_gpus, at_least=1)
        check_number("--num-machines", args.num_machines, at_least=1)
        if not 0 <= args.machine_rank < args.num_machines:
            raise OptionError(
                "--machine-rank", args.machine_rank, f"must be from 0 to {args.num_machines - 1}, as "
                f"--num-machines is {args.num_machines}",
            )  # fmt: skip
    if count > max(gpus, 1) and not on_cpu:
        raise UserError(
            f"{option} {count}: {gpus} visible on this machine; MODEL.DEVICE cpu runs as many processes on "
            "the CPU"
        )
    check_number(option, count, at_most=max(gpus, 8 * (os.cpu_count() or 1)))
    if option == "--num-gpus" and args.num_gpus * args.num_machines > 1:
        _check_meeting_place(args.dist_url, args.num_machines)


def _check_torchrun() -> None:
    """Raise UserError if torchrun's environment is incomplete, for example left over in a shell."""
    names = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_PORT", "MASTER_ADDR")
    values = {name: os.getenv(name) for name in names}
    numbers = {name: int(v) for name, v in values.items() if v and v.isascii() and v.isdigit() and len(v) < 9}
    wrong = [name for name in names[:-1] if name not in numbers] + [names[-1]] * (not values["MASTER_ADDR"])
    if not wrong:
        rank, local_rank, size, local_size, _ = (numbers[name] for name in names[:-1])
        fits = {
            "WORLD_SIZE": size > 0 and local_size > 0 and size % local_size == 0,
            "RANK": rank < size,
            "LOCAL_RANK": local_rank < local_size,
        }
        wrong = [name for name, fit in fits.items() if not fit]
    if wrong:
        others = ", ".join(f"{name} {numbers[name]}" for name in names[:4] if name in numbers)
        raise UserError(
            f"{wrong[0]} is {values[wrong[0]]!r} in the environment, although TORCHELASTIC_RUN_ID says that "
            f"torchrun started this process ({others}); start it with torchrun, or unset TORCHELASTIC_RUN_ID"
        )


def _check_meeting_place(url: str, machines: int) -> None:
    """Raise UserError for a ``--dist-url`` at which processes would wait for each other forever."""
    if url == "auto" and machines == 1:
        return
    try:
        parts = urllib.parse.urlsplit(url)
        host, port, path = parts.hostname, parts.port, Path(parts.path)
    except ValueError:  # such as a port above 65535
        parts, host, port, path = urllib.parse.urlsplit(""), None, None, Path()
    if parts.scheme == "tcp" and host and port:
        try:
            socket.getaddrinfo(host, port)
        except (OSError, ValueError) as e:
            raise UserError(f"--dist-url {url}: there is no host {host} ({e})") from None
    elif parts.scheme == "file" and not host and path.is_absolute():
        try:
            exists = path.exists()
            with tempfile.TemporaryFile(dir=path.parent):
                pass
        except OSError as e:
            reason = e.strerror
        else:
            reason = "" if path.is_file() or not exists else "it is not a file"
        if reason:  # PyTorch would retry for half an hour
            raise UserError(f"--dist-url {url}: no file can be made there ({reason}); name one in a folder")
        if machines == 1 and exists:
            raise UserError(f"--dist-url {url}: the file is left from another run; remove it")
    elif not (parts.scheme == "env" and os.getenv("MASTER_ADDR") and os.getenv("MASTER_PORT")):
        where = "" if url == "auto" else f", got {url!r}"
        raise UserError(
            f"--num-machines {machines} needs --dist-url tcp://HOST:PORT, a free port on the machine with "
            f"--machine-rank 0{where}"
        )


def fit_workers(cfg: CfgNode, processes: int, on_this_machine: int, train: bool) -> List[str]:
    """Reduce the number of loader workers, in place, if shared memory cannot hold what they prefetch.

    A worker that runs out of it ends the run halfway through. Docker gives a container 64 MB.

    Args:
        processes: number of processes in the run.
        on_this_machine: how many of them run here.
        train: whether the run trains, or only evaluates.

    Returns:
        The changes, one per line.
    """
    if not cfg.DATALOADER.NUM_WORKERS or not os.path.isdir(SHARED_MEMORY):
        return []
    # A pixel takes 3 bytes, and 8 more if it has a semantic class.
    pixel = 3 + 8 * (cfg.MODEL.META_ARCHITECTURE in ("PanopticFPN", SEGMENTOR))
    sizes, images = cfg.INPUT, cfg.SOLVER.IMS_PER_BATCH // (cfg.SOLVER.REFERENCE_WORLD_SIZE or processes)
    trained = _pixels(max(sizes.MIN_SIZE_TRAIN), sizes.MAX_SIZE_TRAIN)
    if sizes.SCALE_CROP.LONG_SIZE:
        trained = sizes.SCALE_CROP.CROP_SIZE**2
    tested = _pixels(sizes.MIN_SIZE_TEST, sizes.MAX_SIZE_TEST)
    if cfg.MODEL.META_ARCHITECTURE == CLASSIFIER:
        trained = sizes.CLASSIFICATION.TRAIN_CROP**2
        tested = cfg.TEST.IMS_PER_BATCH * sizes.CLASSIFICATION.TEST_CROP**2
    batch = pixel * images * trained if train else 0
    if cfg.DATASETS.TEST:  # prefetched training images stay in memory during evaluation
        batch += 3 * tested
    status = os.statvfs(SHARED_MEMORY)
    free = status.f_bavail * status.f_frsize
    fitting = int(free / max(1, PREFETCHED * batch * on_this_machine))
    workers = cfg.DATALOADER.NUM_WORKERS
    if fitting >= workers:
        return []
    cfg.DATALOADER.NUM_WORKERS = fitting
    needed = workers * PREFETCHED * batch * on_this_machine
    return [
        f"DATALOADER.NUM_WORKERS {fitting} instead of {workers}, which may need {needed >> 20} MB of "
        f"{SHARED_MEMORY}, where {free >> 20} MB are free; docker run --shm-size 8g gives more"
    ]


def _pixels(shorter: int, longer: int) -> int:
    """The most pixels that an image can have after it is scaled to these side lengths."""
    return min(shorter or longer, longer) * longer


def fit_testing(cfg: CfgNode, overrides: Sequence[str]) -> List[str]:
    """Test semantic segmentation at one scale on a CPU, in place, unless the overrides ask for TEST.AUG.

    Returns:
        The change, in one line.
    """
    segments = cfg.MODEL.META_ARCHITECTURE == SEGMENTOR and cfg.TEST.AUG.ENABLED
    if not segments or cfg.MODEL.DEVICE != "cpu" or "TEST.AUG.ENABLED" in overrides:
        return []
    cfg.TEST.AUG.ENABLED = False
    return [
        "TEST.AUG.ENABLED False on the CPU, where the many scales and windows take minutes for an image; set "
        "it to True to test with them"
    ]


def fit_to_machine(cfg: CfgNode, processes: int) -> List[str]:
    """Change settings, in place, that cannot be trained on this machine.

    Returns:
        The changes, one per line.

    Raises:
        UserError: the configuration cannot work here, and only the user can choose one that does.
    """
    notes = _fit_norms(cfg, processes)
    scaled = cfg.clone()
    reference = cfg.SOLVER.REFERENCE_WORLD_SIZE
    if reference and reference != processes:
        if cfg.SOLVER.IMS_PER_BATCH % reference:
            raise OptionError(
                "SOLVER.IMS_PER_BATCH", cfg.SOLVER.IMS_PER_BATCH,
                f"must be a multiple of SOLVER.REFERENCE_WORLD_SIZE {reference}",
            )  # fmt: skip
        scaled = DefaultTrainer.auto_scale_workers(cfg, processes)
    images = scaled.SOLVER.IMS_PER_BATCH
    if images < 1 or images % processes:
        raise OptionError(
            "SOLVER.IMS_PER_BATCH", images, f"must be a multiple of the number of processes, {processes}"
        )
    _check_pooled_norms(cfg, images, processes)
    if cfg.SOLVER.AMP.ENABLED and cfg.MODEL.DEVICE == "cpu":
        notes.append("SOLVER.AMP.ENABLED on the CPU: bfloat16, which is slow on some processors")
    return notes


def _fit_norms(cfg: CfgNode, processes: int) -> List[str]:
    if processes == 1:
        changed, norm = _replace_norms(cfg, _SYNCHRONISED, "BN"), "BN"
        why = "there is one process"
    elif cfg.MODEL.DEVICE == "cpu":
        changed, norm = _replace_norms(cfg, ("SyncBN", "nnSyncBN"), "naiveSyncBN"), "naiveSyncBN"
        why = "PyTorch's SyncBN needs GPUs"
    else:
        return []
    return [f"{', '.join(changed)}: {norm} instead of a synchronised norm, as {why}"] if changed else []


def _replace_norms(cfg: CfgNode, norms: tuple, norm: str) -> List[str]:
    keys = [key for key, value in flatten(cfg) if key.endswith(".NORM") and value in norms]
    cfg.merge_from_list([word for key in keys for word in (key, norm)])
    return keys


def _check_pooled_norms(cfg: CfgNode, images: int, processes: int) -> None:
    """Check that batch statistics over one pooled vector per image are possible, wherever there are any."""
    model = cfg.MODEL

    def check(key: str, norm: str, place: str, others: str) -> None:
        together = images if norm in _SYNCHRONISED else images // processes
        if norm in ("BN", *_SYNCHRONISED) and together < 2:
            raise UserError(
                f"SOLVER.IMS_PER_BATCH {images} on {processes} process(es) leaves {together} image for the "
                f"batch statistics of {key} {norm} {place}, which needs 2; raise SOLVER.IMS_PER_BATCH, or "
                f"set {key} to {others}"
            )

    trained = model.BACKBONE.FREEZE_AT < 5  # 5 freezes res5 too
    if model.BACKBONE.NAME in _OWN_BACKBONES and model.RESNETS.RADIX > 0 and trained:
        others = "FrozenBN (for fine-tuning) or GN"
        check("MODEL.RESNETS.NORM", model.RESNETS.NORM, "inside Split-Attention", others)
    if model.META_ARCHITECTURE == SEGMENTOR and model.SEM_SEG_HEAD.NAME == _OWN_HEAD:
        check("MODEL.SEM_SEG_HEAD.NORM", model.SEM_SEG_HEAD.NORM, "of the pooled image", "GN")
