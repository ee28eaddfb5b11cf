"""The part that all command lines share: detectron2's arguments, checks before anything starts, a seed."""

from __future__ import annotations

import logging
import os
import re
import secrets
import sys
from argparse import Action, ArgumentParser, Namespace, _ArgumentGroup
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Callable, Dict, Iterable, Sequence

import torch
import torch.distributed as dist
from detectron2.config import CfgNode
from detectron2.engine import default_argument_parser
from detectron2.utils import comm
from detectron2.utils.collect_env import collect_env_info
from detectron2.utils.env import seed_all_rng
from detectron2.utils.logger import setup_logger

from ..command_line import Parser, one_line_errors, prepare_process
from ..data import own_data
from ..errors import UserError, check_number
from ..files import atomic_write_text, check_writable, expanded, read_text, writing
from ..processes import found_by_main
from .failures import named_failures
from .folder import check_appendable, own_folder
from .launch import launch
from .memory import keep_freed_memory
from .preflight import Preflight, preflight
from .results import FILE as RESULTS
from .signals import ended_at_once

logger = logging.getLogger(__name__)

_EPILOG = """
Datasets are expected in $DETECTRON2_DATASETS, by default ./datasets. Without a GPU, everything runs on the
CPU. A mistake in the arguments or the configuration is reported in one line, with exit status 2.
"""


def argument_parser(description: str) -> ArgumentParser:
    """detectron2's argument parser with this package's options.

    Args:
        description: what the command does, with examples; ``%(prog)s`` stands for its name.
    """
    parser = Parser(
        description, epilog=_EPILOG, parents=[default_argument_parser()], conflict_handler="resolve"
    )
    prepare_process()  # --help is printed before :func:`run`
    config = {"action": _Once, "const": "one may be the other's _BASE_", "default": "", "metavar": "FILE"}
    parser.add_argument("--config-file", **config, help="path to config file")
    parser.set_defaults(dist_url="auto")  # detectron2's default is the same port for all runs of a user
    parser.add_argument(
        "--allow-random-weights",
        action="store_true",
        help="evaluate or draw even if MODEL.WEIGHTS lacks parts of the model, or train even if they are "
        "another backbone's",
    )
    parser.add_argument(
        "--optimize",
        action="store_true",
        help="evaluate or draw with norms folded into convolutions: faster, same results up to rounding",
    )
    parser.add_argument(
        "--half", action="store_true", help="--optimize, with the backbone in float16 (bfloat16 on a CPU)"
    )
    own = add_own_data(parser)
    own.add_argument("--epochs", type=float, help="fit the schedule to this many epochs of the training data")
    return parser


def add_own_data(parser: ArgumentParser, splits: Sequence[str] = ("train", "val")) -> _ArgumentGroup:
    """Add the options that name a user's own data, those of :func:`resnest_d2.data.own_data`."""
    own = parser.add_argument_group(
        f"your own data: files in COCO format, or masks ({' and '.join(splits)} may be given several times)"
    )
    for split in splits:
        path = {"action": "append", "type": expanded}
        own.add_argument(f"--{split}-json", **path, metavar="FILE", help="annotation file")
        own.add_argument(f"--{split}-masks", **path, metavar="DIR", help="folder of PNGs of labels")
        own.add_argument(f"--{split}-images", **path, metavar="DIR", help="the folder of images of either")
    classes = {"action": _Once, "const": "all masks have the same", "type": expanded, "metavar": "FILE"}
    own.add_argument("--classes", **classes, help="classes of the masks, as docs/own-data.md describes")
    return own


class _Once(Action):
    """Refuse a second file, since argparse would silently drop the first; ``const`` says why."""

    def __call__(self, parser: ArgumentParser, namespace: Namespace, value: str, option: str) -> None:
        before = getattr(namespace, self.dest)
        if before:
            parser.error(f"{option} is given twice, {before} and {value}; {self.const}")
        setattr(namespace, self.dest, value)


def model_options(args: Namespace) -> Dict[str, bool]:
    """Return the arguments of :func:`load_model` and :func:`evaluate` from the command line."""
    names = {
        "resume": "resume",
        "allow_random": "allow_random_weights",
        "optimize": "optimize",
        "half": "half",
    }
    return {option: getattr(args, name) for option, name in names.items()}


def run(main: Callable[[CfgNode, Namespace], object], args: Namespace) -> None:
    """Check the configuration, then call ``main(cfg, args)`` in every process.

    torchrun has started the processes, or else ``--num-gpus`` processes are started here. When torchrun
    restarts them after a failure, they resume their run.

    A :class:`UserError` is printed as one line, and the process ends with status 2. If one of :data:`ENDING`
    stops it, the status is 128 plus the signal's number.
    """
    # A process that waits for others inside PyTorch could not handle a signal.
    at_once = nullcontext() if dist.is_torchelastic_launched() else ended_at_once()
    with one_line_errors(), at_once:
        for word in sys.argv:
            if re.search(r"[\ud800-\udfff]", word):
                raise UserError(f"{word!r} is not valid text in this locale; set PYTHONUTF8=1")
        plan = preflight(args)
        args.resume = plan.resume
        launch(_main, (main, args, plan), args, plan.cfg.MODEL.DEVICE)


def _main(main: Callable[[CfgNode, Namespace], object], args: Namespace, plan: Preflight) -> None:
    with one_line_errors(), named_failures(plan.cfg), own_folder(plan.cfg, args) as own:
        cfg = plan.cfg.clone()
        cfg.defrost()
        cfg.OUTPUT_DIR, cfg.MODEL.WEIGHTS, args.resume = own.output_dir, own.weights, own.resume
        cfg.SEED = _choose_seed(cfg, args)
        cfg.freeze()
        _set_up(cfg, args)
        if cfg.MODEL.DEVICE == "cpu":
            keep_freed_memory()
            if not torch.cuda.is_available():
                logger.warning("No CUDA device is visible: running on the CPU")
        for note in [*plan.notes, *own.notes]:
            logger.warning(note)
        own_data(vars(args)).register(plan.metadata)  # a spawned process only knows the package's datasets
        main(cfg, args)


def _choose_seed(cfg: CfgNode, args: Namespace) -> int:
    """Return SEED, or draw one that is the same in all processes and after ``--resume``."""
    file = Path(cfg.OUTPUT_DIR) / "seed"

    def seed() -> int:
        number = cfg.SEED
        if number < 0 and args.resume and os.path.lexists(file):
            number = _read_seed(file)
        elif number < 0:
            number = secrets.randbelow(2**31)
        if not args.eval_only:  # an evaluation must not replace a training's seed
            atomic_write_text(file, f"{number}\n")
        return number

    return found_by_main(seed)


def _read_seed(file: Path) -> int:
    text = read_text(file).strip()
    try:
        number = int(text)
        check_number(str(file), number, at_least=0, at_most=2**32 - 1)  # numpy's and detectron2's limits
    except ValueError as e:
        reason = e if isinstance(e, UserError) else f"{file} holds {text[:40]!r}, not a number"
        raise UserError(f"{reason}; set SEED to the run's seed, or start again without --resume") from None
    return number


def _set_up(cfg: CfgNode, args: Namespace) -> None:
    """Open the logs, note in them what runs here, write ``config.yaml``, and seed.

    An evaluation leaves the ``config.yaml`` of a training as it is.

    It does what detectron2's default_setup does, which parses the dumped configuration three times: half of
    the seconds that a small run takes.

    Raises:
        UserError: a file cannot be written.
    """
    folder, rank = Path(cfg.OUTPUT_DIR), comm.get_rank()
    log = folder / (f"log.txt.rank{rank}" if rank else "log.txt")
    opened = [log]
    if comm.is_main_process():
        opened += [folder / "config.yaml", *([] if args.eval_only else [folder / "metrics.json"])]
    for file in opened:
        check_appendable(file)
    if comm.is_main_process():  # also what is written at the end
        for name in (RESULTS, *([] if args.eval_only else ["last_checkpoint", "model_final.pth"])):
            check_writable(folder / name, "move it away, or name another OUTPUT_DIR")
    loggers = [
        setup_logger(cfg.OUTPUT_DIR, distributed_rank=rank, name="fvcore"),
        setup_logger(cfg.OUTPUT_DIR, distributed_rank=rank),
        setup_logger(cfg.OUTPUT_DIR, distributed_rank=rank, name="resnest_d2"),
    ]
    _end_on_failure(loggers, log)
    logger.info("Process %d of %d; %s", rank, comm.get_world_size(), args)
    logger.info("Environment:\n%s", collect_env_info())
    logger.info("%s:\n%s", args.config_file, read_text(expanded(args.config_file)))
    if comm.is_main_process():
        text, file = cfg.dump(), folder / "config.yaml"
        logger.info("The whole configuration:\n%s", text)
        if not (args.eval_only and file.exists()):  # a training's is what its weights are used with
            with writing(file):
                file.write_text(text)
    seed_all_rng(cfg.SEED + rank)
    if not args.eval_only:
        torch.backends.cudnn.benchmark = cfg.CUDNN_BENCHMARK


def _end_on_failure(loggers: Iterable[logging.Logger], log: Path) -> None:
    """End the run if a line cannot be written to the log file."""
    for handler in [handler for logger in loggers for handler in logger.handlers]:
        if Path(str(getattr(getattr(handler, "stream", None), "name", ""))) == log:
            handler.handleError = partial(_end_without_log, handler, log)


def _end_without_log(handler: logging.StreamHandler, log: Path, record: logging.LogRecord) -> None:
    """Called by logging if a line could not be written; by default it prints a traceback and goes on."""
    error = sys.exc_info()[1]
    if not isinstance(error, OSError):
        logging.Handler.handleError(handler, record)
        return
    with open(os.devnull, "w") as nowhere:  # flushing the rest of the buffer must not fail again
        os.dup2(nowhere.fileno(), handler.stream.fileno())
    with writing(log):
        raise error
