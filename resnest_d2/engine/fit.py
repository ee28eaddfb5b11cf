"""Whether a configuration fits the machine: processes, images per process, norms, device."""

from __future__ import annotations

import os
from argparse import Namespace
from typing import List

import torch
from detectron2.config import CfgNode
from detectron2.engine import DefaultTrainer
from torch import distributed

from ..errors import OptionError, UserError
from .expectations import flatten

_SYNCHRONISED = ("SyncBN", "naiveSyncBN", "nnSyncBN")
_OWN_BACKBONES = (
    "build_resnest_backbone",
    "build_resnest_fpn_backbone",
    "build_retinanet_resnest_fpn_backbone",
)


def count_processes(args: Namespace) -> int:
    """How many processes train: torchrun's, else ``--num-gpus`` on ``--num-machines``."""
    if distributed.is_torchelastic_launched():
        return int(os.environ["WORLD_SIZE"])
    return args.num_gpus * args.num_machines


def check_processes(cfg: CfgNode, args: Namespace) -> None:
    """That each process of this machine has a GPU, or that none needs one.

    Raises:
        UserError: there are fewer GPUs, or the numbers of processes and machines make no sense.
    """
    gpus, on_cpu = torch.cuda.device_count(), cfg.MODEL.DEVICE == "cpu"
    if distributed.is_torchelastic_launched():
        option, count = "--nproc-per-node", int(os.environ["LOCAL_WORLD_SIZE"])
    else:
        option, count = "--num-gpus", args.num_gpus
        on_cpu = on_cpu and (gpus > 0 or "MODEL.DEVICE" in args.opts)  # without GPUs it is so unasked
        for name, value in (("--num-gpus", args.num_gpus), ("--num-machines", args.num_machines)):
            if value < 1:
                raise OptionError(name, value, "must be >= 1")
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


def fit_to_machine(cfg: CfgNode, processes: int) -> List[str]:
    """Change what cannot be trained here as it is written, in place.

    Returns:
        What was changed, one a line.

    Raises:
        UserError: it cannot work, and what would is the user's choice.
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
        notes.append("SOLVER.AMP.ENABLED on the CPU: bfloat16, which not every processor is fast in")
    return notes


def _fit_norms(cfg: CfgNode, processes: int) -> List[str]:
    if processes == 1:
        changed, norm = _replace_norms(cfg, _SYNCHRONISED, "BN"), "BN"
        why = "there is one process"
    elif cfg.MODEL.DEVICE == "cpu":
        changed, norm = _replace_norms(cfg, ("SyncBN", "nnSyncBN"), "naiveSyncBN"), "naiveSyncBN"
        why = "PyTorch's synchronises on GPUs only"
    else:
        return []
    return [f"{', '.join(changed)}: {norm} instead of a synchronised norm, as {why}"] if changed else []


def _replace_norms(cfg: CfgNode, norms: tuple, norm: str) -> List[str]:
    keys = [key for key, value in flatten(cfg) if key.endswith(".NORM") and value in norms]
    frozen = cfg.is_frozen()
    cfg.defrost()
    cfg.merge_from_list([word for key in keys for word in (key, norm)])
    if frozen:
        cfg.freeze()
    return keys


def _check_pooled_norms(cfg: CfgNode, images: int, processes: int) -> None:
    """Batch statistics of Split-Attention are over its pooled vectors: one value a channel and image."""
    resnets = cfg.MODEL.RESNETS
    together = images if resnets.NORM in _SYNCHRONISED else images // processes
    batch_statistics = resnets.NORM in ("BN", *_SYNCHRONISED) and resnets.RADIX > 0
    trained = cfg.MODEL.BACKBONE.FREEZE_AT < 5  # 5 freezes res5 too
    if cfg.MODEL.BACKBONE.NAME in _OWN_BACKBONES and batch_statistics and trained and together < 2:
        raise UserError(
            f"SOLVER.IMS_PER_BATCH {images} on {processes} process(es) leaves {together} image for the batch "
            f"statistics of MODEL.RESNETS.NORM {resnets.NORM} inside Split-Attention, which needs 2; raise "
            "SOLVER.IMS_PER_BATCH, or set MODEL.RESNETS.NORM to FrozenBN (for fine-tuning) or GN"
        )
