"""Ray's own words, which come by the hundred lines: into a file of the run folder, not between ours."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from pathlib import Path

from rich.console import Console

RAY_LOG = "ray.log"


@contextmanager
def noise_to(path: Path, console: Console) -> Iterator[None]:
    """Append to `path` what libraries print, and whatever this process writes to standard error; not the console's.

    The file is this user's alone, and is removed where it stays empty. In a thread other than the main one nothing
    is redirected, since the streams are everybody's.
    """
    try:
        kept = os.dup(2)
    except OSError:  # closed by who started this process: there is nothing to keep clean
        kept = -1
    if kept < 0 or threading.current_thread() is not threading.main_thread():
        yield
        return
    sys.stderr.flush()
    file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    os.dup2(file, 2)
    console.file = console.file  # where it writes now, whatever sys.stdout becomes
    try:
        with open(file, "w", encoding="utf-8", closefd=False) as log, redirect_stdout(log):
            yield
    finally:
        sys.stderr.flush()
        os.dup2(kept, 2)
        os.close(kept)
        if os.fstat(file).st_size == 0:
            path.unlink(missing_ok=True)
        os.close(file)


@contextmanager
def hushed() -> Iterator[None]:
    """Drop what is written to standard error, also by libraries that are not in Python; exceptions still say it all."""
    try:
        kept = os.dup(2)
    except OSError:
        kept = -1
    if kept < 0 or threading.current_thread() is not threading.main_thread():
        yield
        return
    sys.stderr.flush()
    void = os.open(os.devnull, os.O_WRONLY)
    os.dup2(void, 2)
    os.close(void)
    try:
        yield
    finally:
        sys.stderr.flush()
        os.dup2(kept, 2)
        os.close(kept)
