"""Durable records of one trajectory: appended, locked, on disk before training goes on."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from analysis.run_folder.live_records import DONE, Finished, LiveRows, as_line
from analysis.run_folder.records import RECORDS
from analysis.run_folder.run_files import read_bytes
from sweeps import durable
from sweeps.reporter import key

LOCK_SECONDS = 60.0  # an orphan of a killed driver writes on for about 2 s


class FolderBusy(RuntimeError):
    """Another process is writing these records."""


class Recorder(AbstractContextManager["Recorder"]):
    """Append-only writer of ``records.jsonl``; holds the file's lock while open.

    What an earlier attempt wrote is kept: `written` tells, a (cell, step, split) is never written twice, and
    a last line torn by a kill is cut off. Raises: FolderBusy when the lock is not free within LOCK_SECONDS;
    analysis.run_folder.records.BadRun where a line is damaged.
    """

    def __init__(self, path: Path, lock_seconds: float = LOCK_SECONDS) -> None:
        self.path = path
        self._descriptor = durable.open_log(path)
        try:
            _lock(self._descriptor, path, lock_seconds)
            self._crc = self._mend()
        except BaseException:
            self.close()
            raise

    def _mend(self) -> int:
        """Takes in what is there and cuts off what a kill tore; returns the checksum of the last line."""
        live, data = LiveRows(self.path), read_bytes(self.path)
        live.feed(data)
        if live.offset != len(data):
            durable.cut(self._descriptor, live.offset)
        if live.offset and data[live.offset - 1 : live.offset] != b"\n":
            durable.append(self._descriptor, b"\n", self.path)
        self.written = set(map(key, live.rows))
        return live.crc

    @property
    def last_step(self) -> int:
        """The last step on file, 0 before the first."""
        return max((step for _, step, _ in self.written), default=0)

    def append(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Write the rows of one evaluation, those not on file yet; on disk when this returns. Raises: OSError."""
        new = [row for row in rows if key(row) not in self.written]
        if not new:
            return
        lines, crc = [], self._crc
        for row in new:
            line, crc = as_line(_plain(row), crc)
            lines.append(line)
        durable.append(self._descriptor, b"".join(lines), self.path)
        self._crc = crc
        self.written.update(map(key, new))

    def finish(self) -> None:
        """Write the done marker beside the records: no more will come, and so many there are."""
        told = Finished(rows=len(self.written), last_step=self.last_step, crc32=self._crc)
        durable.write_atomic(self.path.with_name(DONE), told.as_bytes())

    def close(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)  # which frees the lock
        self._descriptor = -1

    def __exit__(self, *_: object) -> None:
        self.close()


def _plain(row: Mapping[str, Any]) -> dict[str, Any]:
    """A row as JSON has it: None stands for NaN. repr of a float64 reads back to the same bits."""
    assert list(row) == RECORDS.names, f"a record has the columns {RECORDS.names}, not {list(row)}"
    return dict(_finite(row))


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {k: _finite(v) for k, v in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _lock(descriptor: int, path: Path, seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not durable.try_lock(descriptor, path):
        if time.monotonic() > deadline:
            raise FolderBusy(f"{path} is being written by another process; end it, or wait")
        time.sleep(0.05)
