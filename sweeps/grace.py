"""A trial that is asked to end by SIGTERM, as before a spot machine goes, ends its step and writes a checkpoint."""

from __future__ import annotations

import ctypes
import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

MAIN_SECONDS = 5.0  # for the main thread to take a call
SAID = "asked to end by SIGTERM; the checkpoint is of the last step"
_kept_alive: list[Any] = []  # calls that the main thread may still make


class Terminated(BaseException):
    """Ends a trial that was asked to, once its checkpoint is written."""


@contextmanager
def noticed() -> Iterator[threading.Event]:
    """Inside, SIGTERM sets the event and nothing else; what it would have done comes at the end of the block."""
    asked, over, before = threading.Event(), threading.Event(), list[Any]()

    def take() -> None:
        if not over.is_set():
            before.append(signal.signal(signal.SIGTERM, lambda *_: asked.set()))

    def give_back() -> None:
        over.set()
        if before:
            signal.signal(signal.SIGTERM, before[0])

    _in_main_thread(take)
    try:
        yield asked
    finally:
        _in_main_thread(give_back)
        if asked.is_set():
            os.kill(os.getpid(), signal.SIGTERM)


def _in_main_thread(function: Callable[[], None]) -> None:
    """Only the main thread may set signal handlers; a Ray trial is another, while that one waits for its results."""
    if threading.current_thread() is threading.main_thread():
        function()
        return
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
