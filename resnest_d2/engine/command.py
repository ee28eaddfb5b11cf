"""What every command line shares: detectron2's arguments, checks before anything starts, a seed."""

from __future__ import annotations

import logging
import os
import secrets
from argparse import ArgumentParser, Namespace
from pathlib import Path
from typing import Callable, Dict, List

import torch
from detectron2.config import CfgNode
from detectron2.engine import default_argument_parser, default_setup
from detectron2.utils import comm
from detectron2.utils.logger import setup_logger

from ..files import atomic_write_text
from .expectations import keep_comparable
from .failures import named_failures, one_line_errors
from .launch import launch
from .memory import keep_freed_memory
from .setup import check_run, fit_to_own_data, load_config, register_own_data

logger = logging.getLogger(__name__)

_EPILOG = """
Datasets are looked for under $DETECTRON2_DATASETS, by default ./datasets. Without a GPU it runs on the
CPU. A mistake in the arguments or the configuration ends in one line and exit status 2.
"""


def argument_parser(description: str) -> ArgumentParser:
    """detectron2's argument parser.

    Args:
        description: what the command does, with examples; ``%(prog)s`` stands for its name.
    """
    parser = default_argument_parser(epilog=_EPILOG)
    parser.description = description
    parser.set_defaults(dist_url="auto")  # detectron2's is one port for all runs of a user
    parser.add_argument(
        "--allow-random-weights",
        action="store_true",
        help="evaluate or draw although parts of the model have no weights in MODEL.WEIGHTS",
    )
    parser.add_argument(
        "--optimize",
        action="store_true",
        help="evaluate or draw with norms folded into convolutions: faster, the same but for rounding",
    )
    parser.add_argument(
        "--half", action="store_true", help="the same, with the backbone in float16, on a CPU bfloat16"
    )
    own = parser.add_argument_group("your own data, in COCO's format (each may be given several times)")
    for split in ("train", "val"):
        own.add_argument(f"--{split}-json", action="append", metavar="FILE", help="annotation file")
        own.add_argument(f"--{split}-images", action="append", metavar="DIR", help="its folder of images")
    own.add_argument("--epochs", type=float, help="fit the schedule to so many epochs of the training data")
    return parser


def model_options(args: Namespace) -> Dict[str, bool]:
    """Arguments of :func:`load_model` and :func:`evaluate` from the command line."""
    names = {
        "resume": "resume",
        "allow_random": "allow_random_weights",
        "optimize": "optimize",
        "half": "half",
    }
    return {option: getattr(args, name) for option, name in names.items()}


def run(main: Callable[[CfgNode, Namespace], object], args: Namespace) -> None:
    """Check the configuration, then call ``main(cfg, args)`` in every process.

    The processes are those that torchrun started, or else ``--num-gpus`` that are started here. Where
    torchrun starts them again after a failure, they resume.

    A :class:`UserError` is printed as one line, and the process ends with status 2; stopped by SIGTERM or
    SIGINT, it ends with 143 or 130.
    """
    with one_line_errors():
        if int(os.getenv("TORCHELASTIC_RESTART_COUNT", "0")) > 0:
            args.resume = True
        cfg = load_config(args.config_file, args.opts)
        notes = fit_to_own_data(cfg, args)
        notes += check_run(cfg, args)
        reasons = keep_comparable(cfg, load_config(args.config_file), args)
        notes += [f"Not compared with the published AP: {reason}" for reason in reasons]
        launch(_main, (main, cfg, args, notes), args, cfg.MODEL.DEVICE)


def _main(
    main: Callable[[CfgNode, Namespace], object], cfg: CfgNode, args: Namespace, notes: List[str]
) -> None:
    with one_line_errors(), named_failures(cfg):
        _fix_seed(cfg, args.resume)
        default_setup(cfg, args)
        setup_logger(cfg.OUTPUT_DIR, distributed_rank=comm.get_rank(), name="resnest_d2")
        if cfg.MODEL.DEVICE == "cpu":
            keep_freed_memory()
            if not torch.cuda.is_available():
                logger.warning("No CUDA device is visible: running on the CPU")
        for note in notes:
            logger.warning(note)
        register_own_data(args)
        main(cfg, args)


def _fix_seed(cfg: CfgNode, resume: bool) -> None:
    """Draw a SEED where none is set, the same in all processes, and again on ``--resume``."""
    file = Path(cfg.OUTPUT_DIR) / "seed"
    if cfg.SEED < 0:
        seed = int(file.read_text()) if resume and file.exists() else secrets.randbelow(2**31)
        cfg.defrost()
        cfg.SEED = comm.all_gather(seed)[0]
        cfg.freeze()
    if comm.is_main_process():
        atomic_write_text(file, f"{cfg.SEED}\n")
