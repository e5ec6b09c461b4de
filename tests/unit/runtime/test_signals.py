"""Handlers of the signals that end a command."""

import ctypes
import os
import signal
import threading

import pytest

from llmctl.runtime.signals import SIGNALS, handled, postponed


@pytest.mark.parametrize("goes_on", [True, False])
def test_a_call_of_another_library_goes_on_or_is_interrupted(goes_on):
    """A library that reads from a connection, as paddle does, takes an interrupted call for a broken connection."""
    libc, buffer = ctypes.CDLL(None, use_errno=True), ctypes.create_string_buffer(1)
    seen, (end, other) = [], os.pipe()

    with handled(lambda number, frame: seen.append(number), goes_on):
        # The handler runs when the call is over: the byte comes some time after the signal.
        threading.Timer(0.3, os.write, (other, b"x")).start()
        threading.Timer(0.1, os.kill, (os.getpid(), signal.SIGTERM)).start()
        got = libc.read(end, buffer, 1)
    assert seen == [signal.SIGTERM]
    assert (got, buffer.raw) == ((1, b"x") if goes_on else (-1, b"\0"))


def test_handlers_are_put_back():
    before = [signal.getsignal(number) for number in SIGNALS]
    with handled(signal.SIG_DFL):
        assert all(signal.getsignal(number) == signal.SIG_DFL for number in SIGNALS)
    assert [signal.getsignal(number) for number in SIGNALS] == before


def test_a_signal_during_the_start_of_a_library_takes_effect_after_it():
    libc, done = ctypes.CDLL(None), []
    with pytest.raises(KeyboardInterrupt), postponed():
        libc.signal(int(signal.SIGTERM), ctypes.c_void_p(int(signal.SIG_IGN)))
        os.kill(os.getpid(), signal.SIGINT)
        done.append("started")
    assert done == ["started"]
    assert libc.signal(int(signal.SIGTERM), ctypes.c_void_p(int(signal.SIG_DFL))) == int(signal.SIG_DFL)
