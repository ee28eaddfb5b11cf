"""Signals that end a process: training stops at a point from which it can resume."""

from __future__ import annotations

import ctypes
import math
import os
import signal
import sys
import threading
import time
from contextlib import contextmanager
from types import FrameType
from typing import Any, Dict, Iterator, List, Optional

from ..processes import ENDING, Interrupted

#: Seconds after a signal when the process ends, whatever it is doing: it may wait for one that has died.
DEADLINE = 90
# Seconds in which copies may follow: a terminal signals the launcher and its processes, as does the launcher.
_COPIES = 2
_PR_SET_PDEATHSIG = 1  # from linux/prctl.h


class Signals:
    """Context that records the first of the :data:`ENDING` signals.

    It is raised as :class:`Interrupted` where nothing is half done: between two iterations by
    :class:`StopOnSignal`, and immediately inside :meth:`interruptible`. A second Ctrl-C ends the process at
    once. Other repeated signals do not: schedulers signal every process, and a launcher passes signals on.
    After a signal the handlers stay in place, so that a copy does not disturb the end of the process.

    Attributes:
        received: number of the signal, or None.
    """

    def __init__(self) -> None:
        self.received: Optional[int] = None
        self._since = 0.0
        self._interruptible = False
        self._process = os.getpid()
        self._previous: Dict[int, Any] = {}

    def __enter__(self) -> Signals:
        self._previous = _handle(self._receive)
        return self

    def __exit__(self, *exception: Any) -> None:
        if self.received is None:
            _restore(self._previous)

    def _receive(self, number: int, frame: Optional[FrameType]) -> None:
        if os.getpid() != self._process:  # a loader worker, which inherits the handler and ends with us
            return
        if self.received is not None:
            if number == signal.SIGINT and time.monotonic() > self._since + _COPIES:
                os._exit(128 + number)
            return
        self.received, self._since = number, time.monotonic()
        end = threading.Timer(DEADLINE, os._exit, (128 + number,))
        end.daemon = True
        end.start()
        if self._interruptible:
            raise Interrupted(number)

    @contextmanager
    def interruptible(self) -> Iterator[None]:
        """Context that a signal may leave at any point."""
        self._interruptible = True
        try:
            if self.received is not None:
                raise Interrupted(self.received)
            yield
        finally:
            self._interruptible = False


@contextmanager
def noted_signals() -> Iterator[List[int]]:
    """Collect the numbers of :data:`ENDING` signals, for a process that only passes them on to others."""
    noted: List[int] = []
    previous = _handle(lambda number, frame: noted.append(number))
    try:
        yield noted
    finally:
        _restore(previous)


@contextmanager
def ended_at_once() -> Iterator[None]:
    """Context that a signal leaves at once, since there is nothing to save.

    Raises:
        Interrupted: after a signal. Copies of it change nothing.
    """
    process, since = os.getpid(), -math.inf

    def end(number: int, frame: Optional[FrameType]) -> None:
        nonlocal since
        if os.getpid() != process:  # a loader worker, which inherits the handler
            os._exit(128 + number)
        if time.monotonic() > since + _COPIES:
            since = time.monotonic()
            raise Interrupted(number, "")

    previous = _handle(end)
    try:
        yield
    finally:
        if since == -math.inf:  # otherwise keep ours, so that a copy does not disturb the end of the process
            _restore(previous)


def interrupt_once() -> None:
    """Raise KeyboardInterrupt at the first SIGINT alone: a terminal's also comes from the launcher."""

    def interrupt(number: int, frame: Optional[FrameType]) -> None:
        signal.signal(number, signal.SIG_IGN)
        raise KeyboardInterrupt

    signal.signal(signal.SIGINT, interrupt)


def end_with_parent(parent: Optional[int] = None) -> None:
    """Have the kernel send this process SIGTERM when its parent ends, for whatever reason. Linux only.

    Args:
        parent: process id of the parent, if it may have ended before this call.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    if parent is not None and os.getppid() != parent:
        sys.exit(128 + signal.SIGTERM)


def _handle(handler: Any) -> Dict[int, Any]:
    """Set a handler and return the previous ones. Does nothing in a thread that may not set handlers.

    Ignored signals stay ignored, such as SIGHUP under nohup, and others' handlers stay in place. SIGTERM and
    SIGINT are handled anyway: a shell makes its background processes ignore SIGINT.
    """
    if threading.current_thread() is not threading.main_thread():
        return {}
    previous = {number: signal.getsignal(number) for number in ENDING}
    for number, before in list(previous.items()):
        ours = getattr(before, "__module__", None) == __name__
        if number in (signal.SIGTERM, signal.SIGINT) or before == signal.SIG_DFL or ours:
            signal.signal(number, handler)
        else:
            del previous[number]
    return previous


def _restore(handlers: Dict[int, Any]) -> None:
    for number, handler in handlers.items():
        signal.signal(number, signal.SIG_DFL if handler is None else handler)
