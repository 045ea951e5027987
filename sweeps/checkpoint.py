"""The exact state of a trajectory: written atomically, checked by its sha256, loaded without code."""

from __future__ import annotations

import hashlib
import io
from pathlib import Path
from typing import Any

import torch

from sweeps.durable import write_atomic

State = dict[str, Any]  # nested dicts and lists of tensors and plain values


class BadCheckpoint(RuntimeError):
    """The file is not what was written; the message names it."""


def save(path: Path, state: State) -> None:
    """Write `state`: 64 hex digits of sha256, a newline, torch's zip format."""
    buffer = io.BytesIO()
    torch.save(state, buffer)
    body = buffer.getvalue()
    write_atomic(path, hashlib.sha256(body).hexdigest().encode() + b"\n" + body)


def load(path: Path) -> State | None:
    """The state at `path`, on the CPU; None where there is none yet. Raises: BadCheckpoint."""
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return None
    digest, body = data[:64], data[65:]
    if hashlib.sha256(body).hexdigest().encode() != digest:
        raise BadCheckpoint(f"{path}: its sha256 does not match; remove it to train this trajectory from the start")
    state: State = torch.load(io.BytesIO(body), map_location="cpu", weights_only=True)
    return state
