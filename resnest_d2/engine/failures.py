"""Failures that have a cause outside the program, said in one line."""

from __future__ import annotations

import errno
import os
import sys
import traceback
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Iterator

import torch
import torch.distributed as dist
from detectron2.config import CfgNode
from detectron2.utils import comm

from ..errors import UserError
from .signals import Interrupted


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
        if comm.is_main_process():
            print(f"stopped by {e}; {e.remedy}", file=sys.stderr)
        sys.exit(e.status)
    except KeyboardInterrupt:
        print("stopped by SIGINT", file=sys.stderr)
        sys.exit(130)


@contextmanager
def named_failures(cfg: CfgNode) -> Iterator[None]:
    """Turns failures of the machine into a UserError that says what would help."""
    try:
        yield
    except torch.OutOfMemoryError:
        raise UserError(f"GPU: {_out_of_memory(cfg)}") from None
    except OSError as e:
        if e.errno not in (
            errno.ENOSPC,
            errno.EDQUOT,
            errno.EACCES,
            errno.EROFS,
            errno.ENOTDIR,
            errno.EEXIST,
        ):
            raise
        raise UserError(
            f"cannot write to {e.filename or cfg.OUTPUT_DIR} ({e.strerror}); make room, or choose another "
            "OUTPUT_DIR"
        ) from None
    except RuntimeError as e:
        if "DefaultCPUAllocator" in str(e):
            raise UserError(_out_of_memory(cfg)) from None
        if str(e).startswith("DataLoader worker"):
            raise UserError(
                f"{str(e).splitlines()[0]} Was it short of memory? Fewer DATALOADER.NUM_WORKERS "
                f"({cfg.DATALOADER.NUM_WORKERS}) need less; 0 loads in the training process"
            ) from None
        if _lost_another(e):
            raise UserError(
                f"another process of this run has ended ({str(e).splitlines()[0][:200]}); its own message "
                "says why; --resume goes on from the newest checkpoint"
            ) from None
        raise


@contextmanager
def blames_configuration(cfg: CfgNode, doing: str) -> Iterator[None]:
    """Turns whatever a block raises into a UserError; the traceback goes to a file.

    For what depends on nothing but the configuration and the data: detectron2 raises anything for a value
    that cannot work.

    Args:
        doing: what the block does, for the message.
    """
    try:
        yield
    except (UserError, OSError, torch.OutOfMemoryError):
        raise
    except Exception as e:
        if "DefaultCPUAllocator" in str(e) or str(e).startswith("DataLoader worker") or _lost_another(e):
            raise
        reason = " ".join(str(e).split())[:300]
        file = Path(cfg.OUTPUT_DIR, "traceback.txt")
        with suppress(OSError):
            file.write_text(traceback.format_exc())
        raise UserError(
            f"{doing} with this configuration failed ({type(e).__name__}: {reason}); traceback in {file}"
        ) from None


def _lost_another(error: Exception) -> bool:
    """Whether a process that this one communicated with has gone; gloo has no type of its own for it."""
    return comm.get_world_size() > 1 and (
        isinstance(error, dist.DistNetworkError)
        or any(reason in str(error) for reason in ("Connection closed by peer", "Connection reset by peer"))
    )


def _out_of_memory(cfg: CfgNode) -> str:
    amp = "" if cfg.SOLVER.AMP.ENABLED or cfg.MODEL.DEVICE == "cpu" else " SOLVER.AMP.ENABLED True,"
    return (
        f"memory does not suffice; a smaller SOLVER.IMS_PER_BATCH ({cfg.SOLVER.IMS_PER_BATCH}),{amp} "
        f"INPUT.MIN_SIZE_TRAIN ({cfg.INPUT.MIN_SIZE_TRAIN}) or INPUT.MAX_SIZE_TRAIN "
        f"({cfg.INPUT.MAX_SIZE_TRAIN}) needs less"
    )
