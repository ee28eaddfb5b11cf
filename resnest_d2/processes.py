"""How processes are asked to end, and what those of a run decide together."""

from __future__ import annotations

import signal
from typing import Callable, Optional, TypeVar

from detectron2.utils import comm

from .errors import UserError

T = TypeVar("T")
#: From whoever ends processes: a scheduler, Ctrl-C, a terminal that is closed, Slurm's ``--signal``, a limit.
ENDING = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2, signal.SIGXCPU)


class Interrupted(BaseException):
    """A signal asks the process to end. Not an Exception, so that nobody takes it for a failure.

    Args:
        number: of the signal.
        remedy: how to go on.

    Attributes:
        signal: its number.
        remedy: how to go on.
    """

    def __init__(self, number: int, remedy: str = "--resume goes on from the newest checkpoint") -> None:
        super().__init__(signal.Signals(number).name)
        self.signal, self.remedy = number, remedy

    @property
    def status(self) -> int:
        """Exit status of the process, as a shell would report it: 143 for SIGTERM, 130 for SIGINT."""
        return 128 + self.signal


def found_by_main(find: Callable[[], T]) -> T:
    """What the main process finds, in all processes. The others wait for it.

    Raises:
        UserError: the main process raised it.
        SystemExit: the same in the others, which end with its status and leave the line to it.
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
