"""What every command line shares: detectron2's arguments, one process per GPU, one-line errors."""

from __future__ import annotations

import logging
import os
import secrets
import sys
from argparse import ArgumentParser, Namespace
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Callable, Dict, Iterator, List

import torch
import torch.distributed as dist
from detectron2.config import CfgNode
from detectron2.engine import default_argument_parser, default_setup, launch
from detectron2.utils import comm
from detectron2.utils.logger import setup_logger
from torch.multiprocessing import ProcessExitedException

from ..checkpoint.files import atomic_write_text
from ..errors import UserError
from .expectations import keep_comparable
from .failures import named_failures
from .memory import keep_freed_memory
from .setup import check_run, fit_to_own_data, load_config, register_own_data
from .signals import Interrupted

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
        if dist.is_torchelastic_launched():
            with _process_group():
                _main(main, cfg, args, notes)
            return
        try:
            launch(
                _main,
                args.num_gpus,
                num_machines=args.num_machines,
                machine_rank=args.machine_rank,
                dist_url=args.dist_url,
                args=(main, cfg, args, notes),
            )
        except ProcessExitedException as e:  # it has said why
            sys.exit(e.exit_code)


@contextmanager
def one_line_errors() -> Iterator[None]:
    """Print a :class:`UserError` as one line and end the process with status 2.

    Stopped by a signal, the process ends with 128 and the signal's number.
    """
    try:
        yield
    except UserError as e:
        # Of the processes of torchrun, which all check the same before they meet, one is enough.
        if dist.is_initialized() or os.getenv("RANK", "0") == "0":
            # From a loader's worker, it comes with the worker's traceback.
            print(f"error: {str(e).strip().splitlines()[-1].split('UserError: ')[-1]}", file=sys.stderr)
        sys.exit(2)
    except Interrupted as e:
        print(f"stopped by {e}; --resume goes on from the newest checkpoint", file=sys.stderr)
        sys.exit(e.status)
    except KeyboardInterrupt:
        print("stopped by SIGINT", file=sys.stderr)
        sys.exit(130)


@contextmanager
def _process_group() -> Iterator[None]:
    """What detectron2's launch() prepares in each process, from torchrun's environment."""
    cuda = torch.cuda.is_available()
    if cuda:
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    dist.init_process_group("nccl" if cuda else "gloo", **_own_store())
    comm.create_local_process_group(int(os.environ["LOCAL_WORLD_SIZE"]))
    comm.synchronize()
    try:
        yield
    finally:
        dist.destroy_process_group()


def _own_store() -> Dict[str, Any]:
    """Where the processes meet after a restart.

    torchrun's agent lends them its store, in which a restarted process finds the addresses of its
    predecessors (pytorch issue 135712). On one machine, each restart gets a part of it to itself. On
    several, whose agents count restarts apart, TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 must do.
    """
    world, local = os.environ["WORLD_SIZE"], os.environ["LOCAL_WORLD_SIZE"]
    if os.getenv("TORCHELASTIC_USE_AGENT_STORE") != "True" or world != local:
        return {}
    store = dist.TCPStore(os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]), is_master=False)
    part = f"restart_{os.environ['TORCHELASTIC_RESTART_COUNT']}"
    return {
        "store": dist.PrefixStore(part, store), "rank": int(os.environ["RANK"]), "world_size": int(world)
    }  # fmt: skip


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
