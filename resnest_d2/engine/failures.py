"""Report failures with a cause outside the program in one line."""

from __future__ import annotations

import traceback
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Iterator

import torch
import torch.distributed as dist
from detectron2.config import CfgNode
from detectron2.utils import comm

from ..config import CLASSIFIER, SEGMENTOR, flatten
from ..errors import UserError, one_line
from ..files import atomic_write_text
from .values import COMPONENTS


@contextmanager
def named_failures(cfg: CfgNode) -> Iterator[None]:
    """Turn failures of the machine into a UserError that says what would help."""
    try:
        yield
    except torch.OutOfMemoryError:
        raise UserError(f"GPU: {_out_of_memory(cfg)}") from None
    except OSError as e:
        if e.errno is None:
            raise
        # A loader worker that ends while it hands over tensors raises these, without a file name.
        handing = isinstance(e, (ConnectionResetError, ConnectionRefusedError, FileNotFoundError))
        if handing and e.filename is None:
            raise UserError(_worker_ended(cfg, f"DataLoader worker has ended ({e.strerror}).")) from None
        raise UserError(
            f"cannot read or write {e.filename or cfg.OUTPUT_DIR} ({e.strerror}); make room, or choose "
            "another OUTPUT_DIR"
        ) from None
    except EOFError as e:
        if e.args:  # of a file
            raise
        # A loader worker that ends between two messages of a hand-over.
        raise UserError(_worker_ended(cfg, "DataLoader worker has ended.")) from None
    except RuntimeError as e:
        reason = str(e).split("\n")[0][:200]
        if "DefaultCPUAllocator" in str(e):
            raise UserError(_out_of_memory(cfg)) from None
        if reason.startswith("DataLoader worker"):
            raise UserError(_worker_ended(cfg, reason)) from None
        if "ancdata" in reason or "ulimit" in reason:  # how the loader reports too many open files
            raise UserError(
                f"too many open files; raise ulimit -n, or lower DATALOADER.NUM_WORKERS "
                f"({cfg.DATALOADER.NUM_WORKERS})"
            ) from None
        if _lost_another(e):
            raise UserError(
                f"another process of this run has ended ({reason}); its own message "
                "says why; --resume continues from the newest checkpoint"
            ) from None
        raise


@contextmanager
def blames_configuration(cfg: CfgNode, doing: str) -> Iterator[None]:
    """Turn whatever a block raises into a UserError, and write the traceback to a file.

    For blocks that depend only on the configuration and the data: detectron2 raises all kinds of exceptions
    for a value that cannot work.

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
        reason = one_line(e, 300)
        if isinstance(e, AssertionError) and not reason:
            reason = traceback.extract_tb(e.__traceback__)[-1].line or ""
        if isinstance(e, KeyError):  # usually the name of a feature map, from a key
            lists = ((key, value) for key, value in flatten(cfg) if isinstance(value, (list, tuple)))
            holding = [key for key, value in lists if e.args[0] in value]
            reason += "".join(f", in {key}" for key in holding)
        reason += _component(cfg, e)
        file = Path(cfg.OUTPUT_DIR, "traceback.txt")
        with suppress(UserError):
            atomic_write_text(file, traceback.format_exc())
        raise UserError(
            f"{doing} with this configuration failed ({type(e).__name__}: {reason}); traceback in {file}"
        ) from None


def _component(cfg: CfgNode, error: Exception) -> str:
    """The key and the name of the innermost part of the model that raised an error."""
    inner = set(COMPONENTS) - {"MODEL.META_ARCHITECTURE"}  # it contains all the others
    keys = {value: key for key, value in flatten(cfg) if key in inner}
    for frame, _ in reversed([*traceback.walk_tb(error.__traceback__)]):
        owner = frame.f_locals.get("self", frame.f_locals.get("cls"))
        for name in (frame.f_code.co_name, (owner if isinstance(owner, type) else type(owner)).__name__):
            if name in keys:
                return f", in {keys[name]} {name}"
    return ""


def _lost_another(error: Exception) -> bool:
    """Whether a process that this one communicates with has ended; gloo has no exception type for that."""
    return comm.get_world_size() > 1 and (
        isinstance(error, dist.DistNetworkError)
        or any(reason in str(error) for reason in ("Connection closed by peer", "Connection reset by peer"))
    )


def _worker_ended(cfg: CfgNode, reason: str) -> str:
    return (
        f"{reason} Was memory short? Fewer DATALOADER.NUM_WORKERS ({cfg.DATALOADER.NUM_WORKERS}) need "
        "less; 0 loads in the training process"
    )


def _out_of_memory(cfg: CfgNode) -> str:
    if cfg.MODEL.META_ARCHITECTURE == SEGMENTOR:
        return (
            f"not enough memory; a smaller SOLVER.IMS_PER_BATCH ({cfg.SOLVER.IMS_PER_BATCH}), "
            f"INPUT.SCALE_CROP.CROP_SIZE ({cfg.INPUT.SCALE_CROP.CROP_SIZE}), INPUT.MAX_SIZE_TEST "
            f"({cfg.INPUT.MAX_SIZE_TEST}) or TEST.AUG.LONG_SIZE ({cfg.TEST.AUG.LONG_SIZE}) needs less"
        )
    if cfg.MODEL.META_ARCHITECTURE == CLASSIFIER:
        return (
            f"not enough memory; a smaller SOLVER.IMS_PER_BATCH ({cfg.SOLVER.IMS_PER_BATCH}), "
            f"INPUT.CLASSIFICATION.TRAIN_CROP ({cfg.INPUT.CLASSIFICATION.TRAIN_CROP}) or TEST.IMS_PER_BATCH "
            f"({cfg.TEST.IMS_PER_BATCH}) needs less"
        )
    amp = "" if cfg.SOLVER.AMP.ENABLED or cfg.MODEL.DEVICE == "cpu" else " SOLVER.AMP.ENABLED True,"
    return (
        f"not enough memory; a smaller SOLVER.IMS_PER_BATCH ({cfg.SOLVER.IMS_PER_BATCH}),{amp} "
        f"INPUT.MIN_SIZE_TRAIN ({cfg.INPUT.MIN_SIZE_TRAIN}) or INPUT.MAX_SIZE_TRAIN "
        f"({cfg.INPUT.MAX_SIZE_TRAIN}) needs less"
    )
