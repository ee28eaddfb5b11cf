"""Signals that end processes, and decisions that the processes of a run share."""

from __future__ import annotations

import signal
from typing import Callable, Optional, TypeVar

from detectron2.utils import comm

from .errors import UserError

T = TypeVar("T")
#: Signals that end a process: a scheduler's, Ctrl-C, a closed terminal, Slurm's ``--signal``, a time limit.
ENDING = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2, signal.SIGXCPU)


class Interrupted(BaseException):
    """A signal asks the process to end. Not an Exception, so that it is not handled as a failure.

    Args:
        number: number of the signal.
        remedy: how to continue.

    Attributes:
        signal: number of the signal.
        remedy: how to continue.
    """

    def __init__(self, number: int, remedy: str = "--resume continues from the newest checkpoint") -> None:
        super().__init__(signal.Signals(number).name)
        self.signal, self.remedy = number, remedy

    @property
    def status(self) -> int:
        """Exit status of the process, as a shell would report it: 143 for SIGTERM, 130 for SIGINT."""
        return 128 + self.signal


def check_alone(what: str) -> None:
    """Raise UserError if this process is not the only one of its run, as each would do the same.

    Args:
        what: what is done, such as ``pictures are drawn``.
    """
    if comm.get_world_size() > 1:
        raise UserError(f"--num-gpus: {what} in 1 process, got {comm.get_world_size()}; leave it out")


def found_by_main(find: Callable[[], T]) -> T:
    """Call ``find`` in the main process and return its result in all processes.

    Raises:
        UserError: in the main process, if ``find`` raised it.
        SystemExit: in the other processes in that case; the main process prints the message.
    """
    found: Optional[T] = None
    message: Optional[str] = None
    if comm.is_main_process():
        try:
            found = find()
        except UserError as e:
            message = str(e)
    found, message = comm.all_gather((found, message))[0]
    if message is None:
        return found
    if comm.is_main_process():
        raise UserError(message)
    raise SystemExit(2)
