"""SIGTERM and SIGINT: training stops where it can go on from."""

from __future__ import annotations

import os
import signal
import threading
from contextlib import contextmanager
from types import FrameType
from typing import Any, Dict, Iterator, Optional

from detectron2.utils import comm

#: Seconds after which the process ends whatever it is doing, such as waiting for one that has died.
_DEADLINE = 90


class Interrupted(BaseException):
    """A signal asks the process to end. Not an Exception, so that nobody takes it for a failure.

    Attributes:
        signal: its number.
    """

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.signal = number

    @property
    def status(self) -> int:
        """Exit status of the process, as a shell would report it: 143 for SIGTERM, 130 for SIGINT."""
        return 128 + self.signal


class Signals:
    """Notes the first SIGTERM or SIGINT while it is entered; a second one ends the process at once.

    It is raised as :class:`Interrupted` where nothing is half done: by :meth:`check`, and immediately
    inside :meth:`interruptible`.

    Attributes:
        received: its number, or None.
    """

    def __init__(self) -> None:
        self.received: Optional[int] = None
        self._interruptible = False
        self._process = os.getpid()
        self._previous: Dict[int, Any] = {}

    def __enter__(self) -> Signals:
        if threading.current_thread() is threading.main_thread():  # others may not
            for number in (signal.SIGTERM, signal.SIGINT):
                self._previous[number] = signal.signal(number, self._receive)
        return self

    def __exit__(self, *exception: Any) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _receive(self, number: int, frame: Optional[FrameType]) -> None:
        if os.getpid() != self._process:  # a loader's worker, which inherits the handler and ends with us
            return
        if self.received is not None:
            os._exit(128 + number)
        self.received = number
        end = threading.Timer(_DEADLINE, os._exit, (128 + number,))
        end.daemon = True
        end.start()
        if self._interruptible:
            raise Interrupted(number)

    def check(self) -> None:
        """Raise :class:`Interrupted` in all processes if one of them has received a signal."""
        received = [number for number in comm.all_gather(self.received) if number is not None]
        if received:
            raise Interrupted(received[0])

    @contextmanager
    def interruptible(self) -> Iterator[None]:
        """A block that may be left at any point."""
        self._interruptible = True
        try:
            if self.received is not None:
                raise Interrupted(self.received)
            yield
        finally:
            self._interruptible = False
