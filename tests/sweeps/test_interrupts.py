"""The three signals that ask a run to end, against real signals of this process."""

from __future__ import annotations

import os
import pty
import signal
import subprocess
import sys

import pytest

from sweeps.interrupts import interrupts

NUMBERS = [signal.SIGINT, signal.SIGTERM, signal.SIGHUP]


@pytest.mark.parametrize("number", NUMBERS)
def test_raised_while_nothing_runs_and_counted_after(number: signal.Signals) -> None:
    before = [signal.getsignal(each) for each in NUMBERS]
    with interrupts() as taken:
        with pytest.raises(KeyboardInterrupt, match=number.name):
            os.kill(os.getpid(), number)
        taken._last -= 60
        taken.count_from_here()
        os.kill(os.getpid(), number)
        os.kill(os.getpid(), number)  # as `timeout` does: the process, and its group
        assert (taken.count, taken.first) == (2, number.name)
        taken._last -= 60
        os.kill(os.getpid(), signal.SIGTERM)
        assert taken.count == 3
    assert [signal.getsignal(each) for each in NUMBERS] == before


def test_what_is_ignored_stays_ignored() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # nohup
    try:
        with interrupts() as taken:
            os.kill(os.getpid(), signal.SIGHUP)
            assert taken.count == 0
    finally:
        signal.signal(signal.SIGHUP, before)


SPEAKS = """
import sys
from sweeps.interrupts import interrupts
with interrupts() as taken:
    taken.count_from_here()
    print("ready", flush=True)
    while not taken.count:
        pass
    print("a last line", flush=True)
sys.exit(7)
"""


def test_a_terminal_that_is_gone_takes_no_last_line_and_breaks_nothing() -> None:
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-c", SPEAKS], stdin=theirs, stdout=theirs, stderr=theirs, start_new_session=True
    )
    os.close(theirs)
    assert b"ready" in os.read(ours, 100)
    os.close(ours)  # the terminal is gone; its kernel says so to those it controls, we to this one
    process.send_signal(signal.SIGHUP)
    assert process.wait(20) == 7
