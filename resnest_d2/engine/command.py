"""What every command line shares: detectron2's arguments, one process per GPU, one-line errors."""

from __future__ import annotations

import logging
import os
import sys
from argparse import ArgumentParser, Namespace
from contextlib import contextmanager
from typing import Callable, Iterator, List

import torch
import torch.distributed as dist
from detectron2.config import CfgNode
from detectron2.engine import default_argument_parser, default_setup, launch
from detectron2.utils import comm
from detectron2.utils.logger import setup_logger

from ..errors import UserError
from .expectations import keep_comparable
from .setup import check_run, fit_to_own_data, load_config, register_own_data

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
    parser.add_argument(
        "--allow-random-weights",
        action="store_true",
        help="evaluate or draw although parts of the model have no weights in MODEL.WEIGHTS",
    )
    own = parser.add_argument_group("your own data, in COCO's format (each may be given several times)")
    for split in ("train", "val"):
        own.add_argument(f"--{split}-json", action="append", metavar="FILE", help="annotation file")
        own.add_argument(f"--{split}-images", action="append", metavar="DIR", help="its folder of images")
    own.add_argument("--epochs", type=float, help="fit the schedule to so many epochs of the training data")
    return parser


def run(main: Callable[[CfgNode, Namespace], object], args: Namespace) -> None:
    """Check the configuration, then call ``main(cfg, args)`` in every process.

    The processes are those that torchrun started, or else ``--num-gpus`` that are started here.

    A :class:`UserError` is printed as one line, and the process ends with status 2.
    """
    with one_line_errors():
        cfg = load_config(args.config_file, args.opts)
        notes = fit_to_own_data(cfg, args)
        notes += check_run(cfg, args)
        reasons = keep_comparable(cfg, load_config(args.config_file), args)
        notes += [f"Not compared with the published AP: {reason}" for reason in reasons]
        if dist.is_torchelastic_launched():
            with _process_group():
                _main(main, cfg, args, notes)
            return
        launch(
            _main,
            args.num_gpus,
            num_machines=args.num_machines,
            machine_rank=args.machine_rank,
            dist_url=args.dist_url,
            args=(main, cfg, args, notes),
        )


@contextmanager
def one_line_errors() -> Iterator[None]:
    """Print a :class:`UserError` as one line and end the process with status 2."""
    try:
        yield
    except UserError as e:
        # Of the processes of torchrun, which all check the same before they meet, one is enough.
        if dist.is_initialized() or os.getenv("RANK", "0") == "0":
            print(f"error: {e}", file=sys.stderr)
        sys.exit(2)


@contextmanager
def _process_group() -> Iterator[None]:
    """What detectron2's launch() prepares in each process, from torchrun's environment."""
    cuda = torch.cuda.is_available()
    if cuda:
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    dist.init_process_group("nccl" if cuda else "gloo")
    comm.create_local_process_group(int(os.environ["LOCAL_WORLD_SIZE"]))
    comm.synchronize()
    try:
        yield
    finally:
        dist.destroy_process_group()


def _main(
    main: Callable[[CfgNode, Namespace], object], cfg: CfgNode, args: Namespace, notes: List[str]
) -> None:
    default_setup(cfg, args)
    setup_logger(cfg.OUTPUT_DIR, distributed_rank=comm.get_rank(), name="resnest_d2")
    if cfg.MODEL.DEVICE == "cpu" and not torch.cuda.is_available():
        logging.getLogger(__name__).warning("No CUDA device is visible: running on the CPU")
    for note in notes:
        logging.getLogger(__name__).warning(note)
    register_own_data(args)
    main(cfg, args)
