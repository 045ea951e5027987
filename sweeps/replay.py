"""A replay: a trajectory's weights come from its trace in place of training; all else is as in training.

Same bank, same evaluator, same records bit for bit as those of a training with the same cells.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn

from analysis.run_folder.run_files import broken
from sweeps import random_streams
from sweeps.blocks import SpecError
from sweeps.imported import INDEX, AnyTrace, ImportedTrace, described, open_trace
from sweeps.plan import Trajectory
from sweeps.storage import Place
from sweeps.trace import TRACES, Snapshot, storage_of
from sweeps.training import Passes, Stretch
from sweeps.training_state import State


def why_not(trajectory: Trajectory, trace: AnyTrace) -> str | None:
    """Why a trace cannot stand for the training of these cells, in a few words; None where it can."""
    steps, length = set(trace.steps), trajectory.length_steps
    if trace.diverged:
        length = max(steps)  # it diverged, and so would the training
    if trace.rounded is not None and trajectory.recorded is not None:
        return f"its weights are rounded to {trace.rounded}, and the records that these cells have need not be"
    for cell in trajectory.cells:
        if any(step not in steps for step in cell.snapshots(length)):
            return f"it has not every step at which {cell.scheme} takes a snapshot"
    if any(step not in steps for step in {length, *(at for at in trajectory.evaluation_steps if at < length)}):
        return f"it has not every step of an evaluation each {trajectory.cells[0].evaluate_every_steps} steps"
    return None


def opened(trajectory: Trajectory, traces: Place | Path) -> AnyTrace:
    """The trace that a trajectory replays. Raises: BadRun where it is gone, broken, or cannot serve."""
    trace = open_trace(Place.of(traces) / str(trajectory.replays))
    why = why_not(trajectory, trace)
    if why is not None:
        remedy = f"remove trajectories/{trajectory.name}, whose weights come from it, and `wa run` trains them"
        raise broken(trace.where, f"the trace cannot be replayed: {why}", remedy)
    return trace


def imported(run: Path, trajectory: Trajectory) -> str:
    """The imported trace that has a trajectory's weights. Raises: SpecError where it is not there or cannot serve."""
    training = trajectory.cells[0].training
    name = str(training.weights)
    folder = run / TRACES / name
    if not (folder / INDEX).exists():
        there = sorted(path.parent.name for path in (run / TRACES).glob(f"*/{INDEX}"))
        allowed = ", ".join(there) or f"what `wa import checkpoints DIR -o {run}` makes"
        raise SpecError("weights", f"{run} has no imported {name!r}; allowed: {allowed}")
    trace, asked = ImportedTrace.of(folder), (training.workload, training.preset)
    if trace.workload != asked:
        raise SpecError("weights", f"{name} is of {' '.join(trace.workload)}, not of {' '.join(asked)}")
    if (why := why_not(trajectory, trace)) is not None:
        steps = f"its steps are {described(trace.steps)}"
        raise SpecError("weights", f"{name} cannot serve: {why}; {steps}; allowed: what needs no others")
    return name


def traces_for(run: Path, trajectory: Trajectory) -> Place:
    """Where the trace lies that a trajectory replays: an imported one always in the run folder."""
    is_imported = (run / TRACES / str(trajectory.replays) / INDEX).exists()
    return (Place.of(run) if is_imported else storage_of(run)) / TRACES


class Replayer:
    """What `training.Trainer` is to the loop, with the weights of a trace. fresh: `trace.buffers_of` a fresh model."""

    def __init__(self, passes: Passes, state: State, trace: AnyTrace, fresh: Mapping[str, Tensor]) -> None:
        self.passes, self.state, self.trace, self.fresh = passes, state, trace, fresh

    def train(self, until: int, pause: Callable[[int], bool] = lambda step: False) -> Stretch | None:
        """Snapshots of the steps state.step + 1 … until, into the bank; as `Trainer.train`. Raises: BadRun."""
        state, began = self.state, self.state.train_seconds
        total, last, step = state.stretch_loss, torch.zeros(()), state.step
        for step in [at for at in self.trace.steps if state.step < at <= until]:
            if step in (until, state.bank.due):
                snapshot = self.trace.read(step)
                self._check(snapshot, step)
                write(state.model, {**self.fresh, **snapshot.tensors}, self.passes.device)
                for name, p in state.model.named_parameters():
                    if name in snapshot.z:
                        state.optimizer.state[p]["z"] = snapshot.z[name].to(self.passes.device)
                if snapshot.streams:  # else they stay as the seed and the model's making left them
                    team = self.passes.team
                    random_streams.put({name: of[team.rank % len(of)].clone() for name, of in snapshot.streams.items()})
                state.train_seconds = snapshot.train_seconds
                state.bank.update(step)
            for last in self.trace.losses(step, self.passes.team.rank, self.passes.team.size):
                total = total + last
            if step < until and pause(step):
                break
        state.step, state.stretch_loss = step, total
        state.stretch_seconds += state.train_seconds - began
        if step != until:
            return None
        stretch = self.passes.stretch(state, last)
        return replace(stretch, diverged=False) if isinstance(self.trace, ImportedTrace) else stretch

    def _check(self, snapshot: Snapshot, step: int) -> None:
        """Raises: BadRun where a parameter would be left as it was, or what is no part of the model be set."""
        if gone := [name for name, _ in self.state.model.named_parameters() if name not in snapshot.tensors]:
            said = f"step {step} has no {gone[0]!r}, which the model has: it is of another model"
            raise broken(self.trace.where, said, "put the workload's code back as it was")


@torch.no_grad()
def write(model: nn.Module, tensors: Mapping[str, Tensor], device: str) -> None:
    """Put parameters and buffers into the model, by name; a buffer of another shape is bound anew."""
    places = dict(model.named_parameters()) | dict(model.named_buffers())
    for name, value in tensors.items():
        place = places.get(name)
        if place is not None and place.shape == value.shape and place.dtype == value.dtype:
            place.copy_(value)
        else:
            owner, _, last = name.rpartition(".")
            setattr(model.get_submodule(owner), last, value.to(device, copy=True))
