"""What a trial tells: its rows, its log, how its attempt goes and where its checkpoint lies. It writes no file itself.

A message is on disk in the run folder when `send` returns, so that nothing told is lost with the trial's machine.
"""

from __future__ import annotations

import base64
import io
import json
import logging
import zlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from cluster.secrets import redacted

Send = Callable[[str], object]  # a message, JSON; returns once it is on disk; raises what ends the trial
Row = dict[str, Any]
Key = tuple[str, int, str]


@dataclass(frozen=True)
class Begun:
    """What a run folder has of a trajectory as a trial starts; plain values, which travel to other machines.

    attempt: the number of this one. checkpoint: its file, in the trajectory's place in the storage. packed: the rows
    on record.
    """

    attempt: int = 0
    checkpoint: str | None = None
    packed: str = ""

    @property
    def rows(self) -> list[Row]:
        return list(json.loads(zlib.decompress(base64.b64decode(self.packed)))) if self.packed else []

    @staticmethod
    def pack(rows: Iterable[Row]) -> str:
        """As text that is short: a trial's description goes through Ray."""
        rows = list(rows)
        return base64.b64encode(zlib.compress(json.dumps(rows).encode(), 1)).decode() if rows else ""


class Reporter:
    """Tells what is new; a (cell, step, split) is never told twice. `written`: all rows, earlier attempts' too."""

    def __init__(self, send: Send, begun: Begun) -> None:
        self._send, self.attempt, self.checkpoint = send, begun.attempt, begun.checkpoint
        self.written: dict[Key, Row] = {key(row): row for row in begun.rows}
        self.has_failed = False  # in a way that would come again, as it has told
        self.sending = False  # what is raised while it is so is whoever listens, not the workload
        self._text = io.StringIO()
        self.log = _logger(self._text)

    @property
    def last_step(self) -> int:
        """The last step on record, 0 before the first."""
        return max((step for _, step, _ in self.written), default=0)

    def append(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Tell the rows of one evaluation, those not on record yet; on disk when this returns."""
        new = [row for row in rows if key(row) not in self.written]
        if new:
            self.tell(rows=[dict(row) for row in new])
            self.written.update({key(row): dict(row) for row in new})

    def tell(self, **parts: Any) -> None:
        """Send these parts of a message (see `scribe.Scribe.take`), and what has been logged since the last one."""
        text = self._text.getvalue()
        self._text.seek(0)
        self._text.truncate()
        self.sending = True
        self._send(json.dumps({**parts, "log": text} if text else parts))
        self.sending = False
        self.has_failed = bool(parts.get("attempt", {}).get("lasting"))


def key(row: Mapping[str, Any]) -> Key:
    """What a record is of: cell, step and split."""
    return row["cell_id"], row["step"], row["split"]


class _Formatter(logging.Formatter):
    """Errors say what a user's code told them, which may be a key."""

    def format(self, record: logging.LogRecord) -> str:
        line = super().format(record)
        return line if record.levelno < logging.ERROR else redacted(line)


def _logger(stream: io.StringIO) -> logging.Logger:
    """A logger of the trial's own, that reaches no other handler."""
    handler, logger = logging.StreamHandler(stream), logging.Logger("trajectory")
    handler.setFormatter(_Formatter("%(asctime)s %(levelname)s %(message)s"))
    logger.manager = logging.Manager(logging.RootLogger(logging.WARNING))  # no logging.disable reaches it
    logger.addHandler(handler)
    return logger
