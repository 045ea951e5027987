"""Everything that changes while a trajectory runs: made anew, written to a checkpoint, read from one."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from sweeps import checkpoint, random_streams
from sweeps.data_parallel import Team
from sweeps.optimizers import OPTIMIZERS
from sweeps.plan import Trajectory
from wa import Bank, Scheme
from workloads.protocol import Workload

Streams = dict[str, list[Tensor]]  # random stream -> where it is, by rank; beside them other tensors of each rank


@dataclass
class State:
    """Everything that changes while a trajectory runs.

    evaluated: the step of the last evaluation; stretch_loss, stretch_seconds: Σ losses and seconds of the steps since.
    losses: of the steps since the last snapshot of a trace that is kept.
    """

    model: nn.Module
    optimizer: torch.optim.Optimizer
    bank: Bank
    step: int = 0
    evaluated: int = 0
    stretch_loss: Tensor = field(default_factory=lambda: torch.zeros((), dtype=torch.float64))
    stretch_seconds: float = 0.0
    losses: list[Tensor] = field(default_factory=list)
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
    schemes: list[Scheme] = [cell.scheme for cell in trajectory.cells if cell.scheme is not None]
    optimizer: torch.optim.Optimizer = torch.optim.SGD(model.parameters(), lr=0.0)  # of imported weights: never steps
    if training.weights is None:
        optimizer = OPTIMIZERS[training.optimizer](model.parameters(), **dict(training.settings))
    return State(model, optimizer, Bank(model, schemes, read_at=trajectory.evaluation_steps))


def streams_of_ranks(state: State, team: Team) -> Streams:
    """Where the random streams of every rank are."""
    on_gpu = next(state.model.parameters()).is_cuda
    return {name: team.gather(value) for name, value in random_streams.read(on_gpu).items()}


def of_ranks(state: State, team: Team) -> Streams:
    """All that is each rank's own: its random streams, and its share of the losses since the last evaluation."""
    losses = torch.stack(state.losses).view(-1) if state.losses else torch.zeros(0)
    own = {"stretch_loss": team.gather(state.stretch_loss), "losses": team.gather(losses)}
    return streams_of_ranks(state, team) | own


_STATEFUL = ("model", "optimizer", "bank")
_PLAIN = (
    *("step", "evaluated", "stretch_seconds"),
    *("train_seconds", "eval_seconds", "average_offset"),
)


def save(state: State, path: Path, streams: Streams) -> None:
    """Write all of it to a checkpoint."""
    parts = {"model": state.model.state_dict(), "optimizer": state.optimizer.state_dict()}
    parts["bank"] = state.bank.state_dict(copy=False)
    checkpoint.save(path, {**parts, **{name: getattr(state, name) for name in _PLAIN}, "streams": streams})


def _good(path: Path, team: Team, last_step: int, log: logging.Logger) -> checkpoint.State | None:
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


def restore(state: State, path: Path, team: Team, last_step: int, log: logging.Logger) -> None:
    """Go on from a checkpoint, where there is a whole one; the random streams are this rank's.

    last_step: the last one that rank 0 has on record.
    """
    saved = _good(path, team, last_step, log) if team.rank == 0 else None
    (is_there,) = team.decide([saved is not None])
    if not is_there:
        return
    saved = saved or checkpoint.mapped(path)  # rank 0 has checked it: others map what they need
    # What keeps the tensors that it is given gets its own: these are a file's.
    own = tree_map_only(Tensor, Tensor.clone, {name: saved[name] for name in ("optimizer", *_PLAIN)})
    for name in _STATEFUL:
        getattr(state, name).load_state_dict((saved | own)[name])
    for name in _PLAIN:
        setattr(state, name, own[name])
    mine = {name: ranks[team.rank].clone() for name, ranks in saved["streams"].items()}
    state.stretch_loss, state.losses = mine.pop("stretch_loss"), list(mine.pop("losses"))
    random_streams.put(mine)
    log.info("on from step %d", state.step)
