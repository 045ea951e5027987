"""Everything that changes while a trajectory runs: made anew, written to a checkpoint, read from one."""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from sweeps import checkpoint, random_streams
from sweeps.data_parallel import Team
from sweeps.optimizers import OPTIMIZERS
from sweeps.plan import Trajectory
from sweeps.storage import Place
from wa import Bank
from workloads.protocol import Workload

OfRanks = dict[str, Any]  # of a checkpoint, what not every rank has: "streams" (name -> a tensor by rank) and "bank"


@dataclass
class State:
    """Everything that changes while a trajectory runs.

    evaluated: the step of the last evaluation; stretch_loss, stretch_seconds: Σ losses and seconds of the steps since.
    losses: of the steps since the last snapshot of a trace that is kept. riders: the rows of a trunk's riders so far.
    """

    model: nn.Module
    optimizer: torch.optim.Optimizer
    bank: Bank
    step: int = 0
    evaluated: int = 0
    stretch_loss: Tensor = field(default_factory=lambda: torch.zeros((), dtype=torch.float64))
    stretch_seconds: float = 0.0
    losses: list[Tensor] = field(default_factory=list)
    riders: list[dict[str, Any]] = field(default_factory=list)
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
    optimizer: torch.optim.Optimizer = torch.optim.SGD(model.parameters(), lr=0.0)  # of imported weights: never steps
    if training.weights is None:
        optimizer = OPTIMIZERS[training.optimizer](model.parameters(), **dict(training.settings))
    return State(model, optimizer, Bank(model, trajectory.schemes, read_at=trajectory.read_at, group=team.group))


def streams_of_ranks(state: State, team: Team) -> dict[str, list[Tensor]]:
    """Where the random streams of every rank are."""
    on_gpu = next(state.model.parameters()).is_cuda
    return {name: team.gather(value) for name, value in random_streams.read(on_gpu).items()}


def of_ranks(state: State, team: Team) -> OfRanks:
    """All that is each rank's own: random streams, losses since the last evaluation, a share of the averages."""
    losses = torch.stack(state.losses).view(-1) if state.losses else torch.zeros(0)
    own = {"stretch_loss": team.gather(state.stretch_loss), "losses": team.gather(losses)}
    return {"streams": streams_of_ranks(state, team) | own, "bank": state.bank.state_dict(copy=False)}


_PLAIN = (
    *("step", "evaluated", "stretch_seconds", "riders"),
    *("train_seconds", "eval_seconds", "average_offset"),
)


def save(state: State, path: Place | Path, gathered: OfRanks, **more: Any) -> None:
    """Write all of it to a checkpoint, and what else is told. gathered: by `of_ranks`."""
    parts = {"model": state.model.state_dict(), "optimizer": state.optimizer.state_dict(), **gathered}
    checkpoint.save(path, {**parts, **{name: getattr(state, name) for name in _PLAIN}, **more})


def read(path: str | None, team: Team, log: logging.Logger, last_step: float = math.inf) -> checkpoint.State | None:
    """The checkpoint of all ranks, where there is a whole one: rank 0 checks it, others map what they need."""
    if path is None:  # for all ranks alike
        return None
    saved = _good(Path(path), team, last_step, log) if team.rank == 0 else None
    (is_there,) = team.decide([saved is not None])
    return (saved or checkpoint.mapped(Path(path))) if is_there else None


def _good(path: Path, team: Team, last_step: float, log: logging.Logger) -> checkpoint.State | None:
    """The checkpoint, where there is one to go on from; the log says why not."""
    try:
        saved = checkpoint.load(path)
    except checkpoint.BadCheckpoint as error:
        log.warning("%s; training from the start", error)  # slower, and the same numbers
        return None
    if saved is None:
        return None
    if saved["evaluated"] > last_step:  # it comes after its rows: where they are lost, they have to be recorded again
        log.warning("records before the checkpoint of step %d are lost; training from the start", saved["evaluated"])
        return None
    if len(saved["streams"]["torch"]) != team.size:  # of a replay, which may go on elsewhere
        log.warning("the checkpoint is of another number of processes; training from the start")
        return None
    return saved


def restore(state: State, path: str | None, team: Team, last_step: int, log: logging.Logger) -> bool:
    """Go on from a checkpoint; whether there is a whole one. The random streams are this rank's.

    last_step: the last one that rank 0 has on record.
    """
    saved = read(path, team, log, last_step)
    if saved is None:
        return False
    put(state, saved, team)
    log.info("on from step %d", state.step)
    return True


def put(state: State, saved: checkpoint.State, team: Team, whole_bank: bool = True) -> None:
    """Make the state what was saved. whole_bank: of these schemes exactly; else of more."""
    # What keeps the tensors that it is given gets its own: these are a file's.
    own = tree_map_only(Tensor, Tensor.clone, {name: saved[name] for name in ("optimizer", *_PLAIN) if name in saved})
    state.model.load_state_dict(saved["model"])
    state.optimizer.load_state_dict(own["optimizer"])
    state.bank.load_state_dict(saved["bank"], strict=whole_bank)
    for name in _PLAIN:
        setattr(state, name, own.get(name, getattr(state, name)))  # an earlier version's has no riders
    mine = {name: ranks[team.rank].clone() for name, ranks in saved["streams"].items()}
    state.stretch_loss, state.losses = mine.pop("stretch_loss"), list(mine.pop("losses"))
    random_streams.put(mine)
