"""The exact state of a trajectory: streamed to the storage atomically, checked by its sha256, loaded without code."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Any

import torch

from sweeps.durable import Buffer, Write
from sweeps.storage import Place

State = dict[str, Any]  # nested dicts and lists of tensors and plain values
AT_ONCE = 1 << 20  # bytes read at a time
TAIL = 65  # a newline and 64 hex digits of sha256, after torch's zip format


class BadCheckpoint(RuntimeError):
    """The file is not what was written; the message names it."""


class _Summed:
    """A file for torch to write to: each part goes on to `write`, and into the checksum on the way."""

    def __init__(self, write: Write) -> None:
        self._write, self.sum = write, hashlib.sha256()

    def write(self, data: Buffer) -> int:
        self.sum.update(data)
        self._write(data)
        return len(data)

    def flush(self) -> None:
        """Nothing is held back."""


def save(file: Place | Path, state: State) -> None:
    """Write `state` from its own tensors, without a copy of them in memory."""

    def content(write: Write) -> None:
        summed = _Summed(write)
        torch.save(state, summed)  # type: ignore[arg-type]
        write(b"\n" + summed.sum.hexdigest().encode())

    Place.of(file).write(content)


def load(path: Path) -> State | None:
    """The state at `path`, its tensors mapped from the file; None where there is none yet. Raises: BadCheckpoint."""
    found = hashlib.sha256()
    try:
        with open(path, "rb") as file:
            left = os.fstat(file.fileno()).st_size - TAIL
            while left > 0 and (part := file.read(min(left, AT_ONCE))):
                found.update(part)
                left -= len(part)
            tail = file.read()
    except FileNotFoundError:
        return None
    if tail != b"\n" + found.hexdigest().encode():
        raise BadCheckpoint(f"{path}: its sha256 does not match; remove it to train this trajectory from the start")
    return mapped(path)


def mapped(path: Path) -> State:
    """The state of a checkpoint that `load` has checked, its tensors mapped from the file."""
    state: State = torch.load(path, map_location="cpu", mmap=True, weights_only=True)
    return state
