"""The processes of a run: how they start, how they meet, and how they end together."""

from __future__ import annotations

import multiprocessing
import os
import signal
import socket
import sys
import threading
import time
from argparse import Namespace
from contextlib import contextmanager, nullcontext
from multiprocessing import connection
from multiprocessing.process import BaseProcess
from typing import Any, Callable, Dict, Iterator, Sequence

import torch
import torch.distributed as dist
from detectron2.engine import DEFAULT_TIMEOUT
from detectron2.utils import comm

from ..command_line import one_line_errors
from ..errors import UserError, one_line
from .signals import DEADLINE, end_with_parent, interrupt_once, noted_signals

#: Seconds that a process waits for the others before it says so.
_PATIENCE = 10


def launch(function: Callable[..., object], arguments: Sequence[Any], args: Namespace, device: str) -> None:
    """Call ``function(*arguments)`` in every process of the run.

    torchrun has started the processes, or else ``--num-gpus`` processes are started here. detectron2's
    ``launch`` uses NCCL wherever there is a CUDA device, and on a signal ends before its processes.

    Signals are passed on to the processes started here. They end when this process ends, even by SIGKILL,
    and if one of them fails, the others are terminated.

    Args:
        args: from :func:`argument_parser`.
        device: MODEL.DEVICE; processes communicate through Gloo on the CPU, and through NCCL on GPUs.

    Raises:
        SystemExit: a process that was started here failed; with its status.
        UserError: the processes have no place to meet.
    """
    if dist.is_torchelastic_launched():
        end_with_parent()
        local_rank, local_size = (int(os.environ[name]) for name in ("LOCAL_RANK", "LOCAL_WORLD_SIZE"))
        with _process_group(device, local_rank, local_size):
            function(*arguments)
    elif args.num_gpus * args.num_machines > 1:
        status = _start_and_wait(function, arguments, args, device)
        if status:
            sys.exit(status)
    else:
        function(*arguments)


def _start_and_wait(
    function: Callable[..., object], arguments: Sequence[Any], args: Namespace, device: str
) -> int:
    """Returns 0, or the status of the first process that failed, or 128 plus the number of a signal."""
    url = f"tcp://127.0.0.1:{_free_port()}" if args.dist_url == "auto" else args.dist_url
    # CUDA does not survive a fork. Loader workers are started with the same method as without this.
    method, spawn = multiprocessing.get_start_method(), multiprocessing.get_context("spawn")
    processes = [
        spawn.Process(
            target=_started, args=(rank, os.getpid(), method, function, arguments, args, device, url)
        )
        for rank in range(args.num_gpus)
    ]
    with noted_signals() as signals:
        for process in processes:
            process.start()
        status = _wait(processes, signals)
    return 128 + signals[0] if status and signals else status


def _wait(processes: Sequence[BaseProcess], signals: Sequence[int]) -> int:
    """Wait until all have ended, passing on signals.

    Returns:
        0, or the status of the first process that failed; 128 plus the signal's number if one killed it.
    """
    status, handed_on, end = 0, 0, float("inf")
    while True:
        codes = [process.exitcode for process in processes]  # asked for once, since they may end meanwhile
        failed = [code for code in codes if code]
        alive = [process for process, code in zip(processes, codes) if code is None]
        if failed and not status:
            status = failed[0] if failed[0] > 0 else 128 - failed[0]
            if failed[0] < 0 and not signals:  # it could not print a message itself
                name = signal.Signals(-failed[0]).name
                print(f"error: a process of this run was ended by {name}; was memory short?", file=sys.stderr)
            for process in alive:  # they would wait for it
                process.terminate()
        if not alive:
            return status
        for number in signals[handed_on:]:
            handed_on += 1
            for process in alive:
                os.kill(process.pid, number)
        if (status or signals) and end == float("inf"):
            end = time.monotonic() + DEADLINE + 10  # by then they should have ended by themselves
        if time.monotonic() > end:
            for process in alive:
                process.kill()
        connection.wait([process.sentinel for process in alive], timeout=0.1)


def _started(
    local_rank: int,
    parent: int,
    method: str,
    function: Callable[..., object],
    arguments: Sequence[Any],
    args: Namespace,
    device: str,
    url: str,
) -> None:
    """Entry point of a process that is started here."""
    end_with_parent(parent)
    interrupt_once()
    multiprocessing.set_start_method(method, force=True)
    meeting: Dict[str, Any] = {
        "init_method": url,
        "rank": args.machine_rank * args.num_gpus + local_rank,
        "world_size": args.num_machines * args.num_gpus,
    }
    with one_line_errors(), _process_group(device, local_rank, args.num_gpus, **meeting):
        function(*arguments)


@contextmanager
def _process_group(device: str, local_rank: int, local_size: int, **meeting: Any) -> Iterator[None]:
    """Set up PyTorch's process group, and detectron2's group of the processes on this machine.

    Args:
        meeting: arguments of ``init_process_group`` by which processes find each other; default: torchrun's.

    Raises:
        UserError: they do not find each other.
    """
    cuda = device.startswith("cuda")
    if cuda:
        torch.cuda.set_device(local_rank)
    size = meeting.get("world_size") or int(os.environ["WORLD_SIZE"])
    place = meeting.get("init_method") or f"tcp://{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
    for_whom = f"waiting at {place} for {size} processes, of {max(1, size // local_size)} machine(s)"
    try:
        with _said_to_wait(for_whom) if local_rank == 0 else nullcontext():
            meeting = meeting or _own_store()
            dist.init_process_group("nccl" if cuda else "gloo", timeout=DEFAULT_TIMEOUT, **meeting)
    except (RuntimeError, ValueError, OSError) as e:  # DistError among them
        reason = one_line(e, 200)
        raise UserError(
            f"--dist-url {place}: the processes cannot meet there ({reason}); name a free port on the "
            "machine with --machine-rank 0"
        ) from None
    comm.create_local_process_group(local_size)
    comm.synchronize()
    try:
        yield
    finally:
        dist.destroy_process_group()


@contextmanager
def _said_to_wait(message: str) -> Iterator[None]:
    """Print a message if this process has to wait long, and again every minute."""
    done = threading.Event()

    def say() -> None:
        seconds = _PATIENCE
        while not done.wait(seconds):
            print(message, file=sys.stderr, flush=True)
            seconds = 60

    threading.Thread(target=say, daemon=True).start()
    try:
        yield
    finally:
        done.set()


def _own_store() -> Dict[str, Any]:
    """Return a store where torchrun's processes can meet after a restart.

    torchrun's agent shares its store with them, in which a restarted process finds the addresses of its
    predecessors (pytorch issue 135712). On one machine, each restart gets its own prefix in the store. On
    several, whose agents count restarts separately, TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 is needed.
    """
    world, local = os.environ["WORLD_SIZE"], os.environ["LOCAL_WORLD_SIZE"]
    if os.getenv("TORCHELASTIC_USE_AGENT_STORE") != "True" or world != local:
        return {}
    store = dist.TCPStore(os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]), is_master=False)
    part = f"restart_{os.environ['TORCHELASTIC_RESTART_COUNT']}"
    return {
        "store": dist.PrefixStore(part, store), "rank": int(os.environ["RANK"]), "world_size": int(world)
    }  # fmt: skip


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]
