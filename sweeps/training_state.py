"""Everything that changes while a trajectory runs: made anew, written to a checkpoint, read from one.

A checkpoint is written atomically, checked by its sha256 and loaded without running code from it.
"""

from __future__ import annotations

import hashlib
import io
import logging
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sweeps import random_streams
from sweeps.data_parallel import Team
from sweeps.durable import write_atomic
from sweeps.optimizers import OPTIMIZERS
from sweeps.plan import Trajectory
from wa import Bank, Scheme
from workloads.protocol import Workload

Streams = dict[str, list[Tensor]]  # random stream -> where it is, by rank


@dataclass
class State:
    """Everything that changes while a trajectory runs."""

    model: nn.Module
    optimizer: torch.optim.Optimizer
    bank: Bank
    step: int = 0
    train_seconds: float = 0.0
    eval_seconds: dict[str, float] = field(default_factory=dict)  # by cell
    average_offset: dict[str, float] = field(default_factory=dict)  # by cell: recorded minus the bank's clock


def fresh(trajectory: Trajectory, workload: Workload, device: str, team: Team) -> State:
    """The state before the first step."""
    training = trajectory.cells[0].training
    model = workload.model().to(device)
    if not model.training:  # else the modes are the workload's own: it may keep norms frozen
        model.train()
    if team.rank:
        random_streams.seed_all(training.seed, team.rank)  # dropout of its own; the weights are the same
    build = OPTIMIZERS[training.optimizer]
    schemes: list[Scheme] = [cell.scheme for cell in trajectory.cells if cell.scheme is not None]
    return State(model, build(model.parameters(), **dict(training.settings)), Bank(model, schemes))


def streams_of_ranks(state: State, team: Team) -> Streams:
    """Where the random streams of every rank are."""
    on_gpu = next(state.model.parameters()).is_cuda
    return {name: team.gather(value) for name, value in random_streams.read(on_gpu).items()}


_STATEFUL, _PLAIN = ("model", "optimizer", "bank"), ("step", "train_seconds", "eval_seconds", "average_offset")


def save(state: State, path: Path, streams: Streams) -> None:
    """Write all of it to a checkpoint."""
    parts = {name: getattr(state, name).state_dict() for name in _STATEFUL}
    write_checkpoint(path, {**parts, **{name: getattr(state, name) for name in _PLAIN}, "streams": streams})


class BadCheckpoint(RuntimeError):
    """The file is not what was written; the message names it."""


def write_checkpoint(path: Path, values: dict[str, Any]) -> None:
    """Nested dicts and lists of tensors and plain values: 64 hex digits of sha256, a newline, torch's zip format."""
    buffer = io.BytesIO()
    torch.save(values, buffer)
    body = buffer.getvalue()
    write_atomic(path, hashlib.sha256(body).hexdigest().encode() + b"\n" + body)


def read_checkpoint(path: Path) -> Any:
    """What was written to `path`, on the CPU; None where nothing was yet. Raises: BadCheckpoint."""
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return None
    digest, body = data[:64], data[65:]
    if hashlib.sha256(body).hexdigest().encode() != digest:
        raise BadCheckpoint(f"{path}: its sha256 does not match; remove it to train this trajectory from the start")
    return torch.load(io.BytesIO(body), map_location="cpu", weights_only=True)


def restore(state: State, path: Path, team: Team, last_step: int, log: logging.Logger) -> None:
    """Go on from a checkpoint, where there is a whole one; the random streams are this rank's.

    last_step: the last one that rank 0 has on record.
    """
    try:
        saved = read_checkpoint(path)
    except BadCheckpoint as error:
        log.warning("%s; training from the start", error)  # slower, and the same numbers
        return
    if saved is None:
        return
    # A checkpoint comes after its rows: where they are lost, they have to be recorded again.
    (is_ahead,) = team.decide([team.rank == 0 and saved["step"] > last_step])
    if is_ahead:
        log.warning("records before the checkpoint of step %d are lost; training from the start", saved["step"])
        return
    for name in _STATEFUL:
        getattr(state, name).load_state_dict(saved[name])
    for name in _PLAIN:
        setattr(state, name, saved[name])
    random_streams.put({name: ranks[team.rank] for name, ranks in saved["streams"].items()})
    log.info("on from step %d", state.step)
