"""Which signal stops, which ends at once, and who is told."""

import multiprocessing
import os
import signal
import sys
import time

import pytest

from resnest_d2.engine.signals import Interrupted, Signals, end_with_parent, noted_signals


def status_of(function, *arguments):
    """Exit status of a process that calls it."""
    process = multiprocessing.get_context("fork").Process(target=function, args=arguments)
    process.start()
    process.join(30)
    return process.exitcode


def receive(numbers, pause):
    with Signals() as signals:
        for number in numbers:
            os.kill(os.getpid(), number)
            time.sleep(pause)
        assert signals.received == numbers[0]
        try:
            with signals.interruptible():
                sys.exit("not raised")
        except Interrupted as e:
            sys.exit(e.status)


TERM, INT = signal.SIGTERM, signal.SIGINT


@pytest.mark.parametrize(
    "numbers, pause, status",
    [
        ((TERM, TERM, TERM), 0, 143),  # a launcher hands on what its processes have got, too
        ((TERM, TERM), 2.1, 143),
        ((INT, INT), 0, 130),
        ((TERM, INT), 0, 143),
    ],
)
def test_copies_of_a_signal_change_nothing(numbers, pause, status):
    assert status_of(receive, numbers, pause) == status


def test_a_second_ctrl_c_ends_at_once():
    assert status_of(receive_and_hang, INT) == 130


def receive_and_hang(number):
    with Signals():
        os.kill(os.getpid(), number)
        time.sleep(2.1)
        os.kill(os.getpid(), number)
        sys.exit("still there")


def test_a_copy_that_comes_after_training_does_not_kill_what_ends():
    assert status_of(receive_late) == 143


def receive_late():
    try:
        with Signals() as signals:
            os.kill(os.getpid(), TERM)
            with signals.interruptible():
                sys.exit("not raised")
    except Interrupted as e:
        os.kill(os.getpid(), TERM)
        sys.exit(e.status)


def test_signals_are_noted_only_meanwhile():
    before = signal.getsignal(TERM)
    with noted_signals() as noted:
        os.kill(os.getpid(), TERM)
        os.kill(os.getpid(), INT)
        assert noted == [TERM, INT]
    assert signal.getsignal(TERM) is before


def test_a_process_ends_with_its_parent_also_where_that_is_gone_already():
    assert status_of(end_with_parent, os.getpid()) == 0
    assert status_of(end_with_parent, 1) == 143
