"""Durable records of one trajectory: appended, locked, on disk before training goes on."""

from __future__ import annotations

import fcntl
import json
import math
import os
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from analysis.records import RECORDS, read_live

LOCK_SECONDS = 60.0  # an orphan of a killed driver writes on for about 2 s


class FolderBusy(RuntimeError):
    """Another process is writing these records."""


class Recorder:
    """Append-only writer of ``records.jsonl``; holds the file's lock while open.

    What an earlier attempt wrote is kept: `written` tells, a (cell, step, split) is never written twice, and
    a last line torn by a kill is cut off. Raises: FolderBusy when the lock is not free within LOCK_SECONDS.
    """

    def __init__(self, path: Path, lock_seconds: float = LOCK_SECONDS) -> None:
        self.path = path
        self._stream = open(path, "a+b")  # noqa: SIM115  (lives as long as the recorder)
        try:
            _lock(self._stream.fileno(), path, lock_seconds)
            _cut_torn_line(self._stream.fileno())
            self.written: dict[tuple[str, int, str], dict[str, Any]] = {
                _key(row): row for row in read_live(path)
            }
        except BaseException:
            self._stream.close()
            raise

    def append(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Write the rows of one evaluation, those not on file yet; on disk when this returns."""
        new = [row for row in rows if _key(row) not in self.written]
        if not new:
            return
        lines = [json.dumps(_plain(row), allow_nan=False, separators=(",", ":")) + "\n" for row in new]
        self._stream.write("".join(lines).encode())
        self._stream.flush()
        os.fsync(self._stream.fileno())
        self.written.update({_key(row): dict(row) for row in new})

    def close(self) -> None:
        self._stream.close()  # which frees the lock

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _key(row: Mapping[str, Any]) -> tuple[str, int, str]:
    return row["cell_id"], row["step"], row["split"]


def _plain(row: Mapping[str, Any]) -> dict[str, Any]:
    # JSON has no NaN: null stands for it. repr of a float64 reads back to the same bits.
    assert list(row) == RECORDS.names, f"a record has the columns {RECORDS.names}, not {list(row)}"
    return {k: _finite(v) for k, v in row.items()}


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {k: _finite(v) for k, v in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _lock(descriptor: int, path: Path, seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            if time.monotonic() > deadline:
                raise FolderBusy(f"{path} is being written by another process; end it, or wait") from None
            time.sleep(0.05)


def _cut_torn_line(descriptor: int) -> None:
    size = os.fstat(descriptor).st_size
    at = size
    while at > 0:
        start = max(0, at - 65536)
        block = os.pread(descriptor, at - start, start)
        newline = block.rfind(b"\n")
        if newline >= 0:
            at = start + newline + 1
            break
        at = start
    if at != size:
        os.ftruncate(descriptor, at)


def write_atomic(path: Path, data: bytes) -> None:
    """Put `data` at `path` so that a kill leaves the old file or the new one, whole and on disk."""
    new = path.with_name(f".{path.name}.{os.getpid()}.new")
    with open(new, "wb") as stream:
        stream.write(data)
        stream.flush()
        os.fsync(stream.fileno())
    os.replace(new, path)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
