"""Which signal stops, which ends at once, and who is told."""

import multiprocessing
import os
import signal
import sys
import time

import pytest

from resnest_d2.engine.signals import (
    ENDING,
    Interrupted,
    Signals,
    end_with_parent,
    ended_at_once,
    noted_signals,
)


@pytest.fixture(autouse=True)
def handlers():
    """Those that stay once a signal has come are not for the next test."""
    before = {number: signal.getsignal(number) for number in ENDING}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


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


#: Seconds after which a signal is no copy of the one before, in place of 2, for those that wait so long.
COPIES = ("resnest_d2.engine.signals._COPIES", 0.1)


@pytest.mark.parametrize(
    "numbers, pause, status",
    [
        ((TERM, TERM, TERM), 0, 143),  # a launcher hands on what its processes have got, too
        ((TERM, TERM), 0.2, 143),
        ((INT, INT), 0, 130),
        ((TERM, INT), 0, 143),
        *(((number,), 0, 128 + number) for number in ENDING),
    ],
)
def test_copies_of_a_signal_change_nothing(numbers, pause, status, monkeypatch):
    if pause:
        monkeypatch.setattr(*COPIES)
    assert status_of(receive, numbers, pause) == status


def test_a_second_ctrl_c_ends_at_once(monkeypatch):
    monkeypatch.setattr(*COPIES)
    assert status_of(receive_and_hang, INT) == 130


def receive_and_hang(number):
    with Signals():
        os.kill(os.getpid(), number)
        time.sleep(0.2)
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


def test_a_process_ends_when_its_parent_is_killed():
    reader, writer = os.pipe()
    parent = os.fork()
    if parent == 0:
        if os.fork() == 0:
            end_with_parent()
            os.write(writer, b"there")
            time.sleep(5)
            os.write(writer, b"still there")
        time.sleep(30)
        os._exit(0)
    os.close(writer)
    assert os.read(reader, 5) == b"there"
    os.kill(parent, signal.SIGKILL)
    os.waitpid(parent, 0)
    assert os.read(reader, 5) == b""  # both have let go of the pipe
    os.close(reader)


@pytest.mark.parametrize("number", ENDING)
def test_before_training_a_signal_ends_at_once_with_its_status(number):
    assert status_of(receive_early, number) == 128 + number


def receive_early(number):
    try:
        with ended_at_once():
            os.kill(os.getpid(), number)
            time.sleep(10)
    except Interrupted as e:
        sys.exit(e.status)


def test_a_signal_that_something_swallowed_may_be_repeated(monkeypatch):
    monkeypatch.setattr("resnest_d2.engine.signals._COPIES", 0)
    with ended_at_once():
        for _ in range(2):
            with pytest.raises(Interrupted):
                os.kill(os.getpid(), TERM)


@pytest.mark.parametrize("block", [Signals, noted_signals, ended_at_once])
def test_what_is_ignored_or_of_others_stays_so(block):
    """As SIGHUP is under nohup."""
    others = {signal.SIGHUP: signal.SIG_IGN, signal.SIGUSR1: lambda number, frame: None}
    before = {number: signal.signal(number, handler) for number, handler in others.items()}
    try:
        with block():
            assert {number: signal.getsignal(number) for number in others} == others
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def test_blocks_inside_each_other_hand_signals_on():
    before = {number: signal.getsignal(number) for number in ENDING}
    with ended_at_once():
        with Signals() as signals:
            for number in ENDING:
                assert signal.getsignal(number) == signals._receive
    assert {number: signal.getsignal(number) for number in ENDING} == before
