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

    The file is this user's alone, and is removed where it stays empty.
    """
    with _stderr_to(path) as file:
        if file is None:
            yield
            return
        console.file = console.file  # where it writes now, whatever sys.stdout becomes
        try:
            with open(file, "w", encoding="utf-8", closefd=False) as log, redirect_stdout(log):
                yield
        finally:
            sys.stderr.flush()
            if os.fstat(file).st_size == 0:
                path.unlink(missing_ok=True)


@contextmanager
def hushed() -> Iterator[None]:
    """Drop what is written to standard error, also by libraries that are not in Python; exceptions still say it all."""
    with _stderr_to(Path(os.devnull)):
        yield


@contextmanager
def _stderr_to(path: Path) -> Iterator[int | None]:
    """Append what is written to standard error to a file, whose descriptor it gives.

    None, and nothing is redirected, where it was closed by who started this process, and in a thread other than the
    main one, since the streams are everybody's.
    """
    try:
        kept = os.dup(2) if threading.current_thread() is threading.main_thread() else None
    except OSError:
        kept = None
    if kept is None:
        yield None
        return
    sys.stderr.flush()
    file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    os.dup2(file, 2)
    try:
        yield file
    finally:
        sys.stderr.flush()
        os.dup2(kept, 2)
        os.close(kept)
        os.close(file)
