"""A trial that is asked to end by SIGTERM, as before a spot machine goes, ends its step and writes a checkpoint."""

from __future__ import annotations

import ctypes
import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

MAIN_SECONDS = 5.0  # for the main thread to take a call
SAID = "asked to end by SIGTERM; the checkpoint is of the last step"
_kept_alive: list[Any] = []  # calls that the main thread may still make


class Terminated(BaseException):
    """Ends a trial that was asked to, once its checkpoint is written."""


_asked: list[threading.Event] = []  # of the trial that runs
_before: list[Any] = []  # what SIGTERM does while none runs


@contextmanager
def noticed() -> Iterator[threading.Event]:
    """Inside, SIGTERM sets the event and nothing else; what it would have done comes at the end of the block."""
    asked, is_main = threading.Event(), threading.current_thread() is threading.main_thread()
    _asked.append(asked)
    if is_main:
        _listen()
    elif signal.getsignal(signal.SIGTERM) is not _hear:
        _in_main_thread(_listen)
    try:
        yield asked
    finally:
        _asked.remove(asked)
        # In a Ray worker the handler stays, for the next trial: its main thread takes a call after up to 0.2 s only.
        if is_main and not _asked:
            signal.signal(signal.SIGTERM, _before.pop())
        if asked.is_set():
            os.kill(os.getpid(), signal.SIGTERM)


def _listen() -> None:
    if signal.getsignal(signal.SIGTERM) is not _hear:
        _before[:] = [signal.signal(signal.SIGTERM, _hear)]


def _hear(number: int, frame: FrameType | None) -> None:
    for asked in _asked:
        asked.set()
    if _asked:
        return
    if callable(_before[0]):
        _before[0](number, frame)
    elif _before[0] == signal.SIG_DFL:
        signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)


def _in_main_thread(function: Callable[[], None]) -> None:
    """Only the main thread may set signal handlers; a Ray trial is another, while that one waits for its results."""
    done = threading.Event()

    def call(_: int | None) -> int:
        function()
        done.set()
        return 0

    pending = ctypes.PYFUNCTYPE(ctypes.c_int, ctypes.c_void_p)(call)
    _kept_alive.append(pending)
    ctypes.pythonapi.Py_AddPendingCall(pending, None)
    if done.wait(MAIN_SECONDS):
        _kept_alive.remove(pending)
