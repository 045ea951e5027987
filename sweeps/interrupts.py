"""SIGINT, SIGTERM and SIGHUP: all three ask a run to end in order; asked twice, it ends at once."""

from __future__ import annotations

import math
import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import FrameType

# A terminal, `timeout` or a batch system may signal a process itself and with its group: that is asked once.
REPEAT_SECONDS = 1.0
ASKING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@dataclass
class Interrupts:
    """How often this process was asked to end, and by which signal first."""

    count: int = 0
    first: str = ""
    counting: bool = False  # else an interrupt is raised as KeyboardInterrupt where it comes
    _last: float = -math.inf
    _terminals: tuple[int, ...] = field(default_factory=lambda: tuple(fd for fd in (1, 2) if os.isatty(fd)))

    def arm(self) -> None:
        """Take the signals that this process does not ignore, as under nohup; again after others have taken them."""
        if threading.current_thread() is not threading.main_thread():
            return
        for number in ASKING:
            if signal.getsignal(number) is not signal.SIG_IGN:
                signal.signal(number, self._asked)

    def count_from_here(self) -> None:
        """From now on look at `count`: there is work that must be ended in order."""
        self.arm()
        self.counting = True

    def raise_from_here(self) -> None:
        """From now on an interrupt is raised where it comes again."""
        self.counting = False

    def _asked(self, number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        self.count += now - self._last > REPEAT_SECONDS
        self._last = now
        self.first = self.first or signal.Signals(number).name
        for descriptor in self._terminals:
            if not os.isatty(descriptor):  # the terminal is gone, and writing to it would fail
                void = os.open(os.devnull, os.O_WRONLY)
                os.dup2(void, descriptor)
                os.close(void)
        if not self.counting:
            raise KeyboardInterrupt(self.first)


@contextmanager
def interrupts() -> Iterator[Interrupts]:
    """Take the signals for the length of a block; in a thread other than the main one, none."""
    taken = Interrupts()
    before = {number: signal.getsignal(number) for number in ASKING}
    taken.arm()
    try:
        yield taken
    finally:
        if threading.current_thread() is threading.main_thread():
            for number, handler in before.items():
                if handler is not None:
                    signal.signal(number, handler)
