"""Evaluate the live weights and every average that exists, into the records, leaving no trace in training."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from sweeps import random_streams
from sweeps.data_parallel import Team
from sweeps.identity import Cell
from sweeps.optimizers import evaluation_weights
from sweeps.plan import Trajectory
from sweeps.recorder import Recorder
from sweeps.training import Stretch, Trainer, to_device
from sweeps.training_state import State
from wa.swap import modes_kept
from workloads.protocol import Batch, Part, Summary, Workload

ALONE = Team()


def evaluate(
    workload: Workload,
    model: nn.Module,
    batches: Iterable[Batch],
    team: Team = ALONE,
    precision: Callable[[], AbstractContextManager[Any]] = nullcontext,
) -> Summary:
    """One model on one split: sums over the batches in float64, in their order, then the workload's summary.

    batches: this rank's, which are batches rank, rank + size, … of the split. precision: the context of a forward
    pass. Leaves parameters, buffers, every module's mode and random state as they were.
    """
    sums: dict[str, Tensor] = {}
    pieces: dict[str, list[Tensor]] = {}
    with modes_kept(model):
        model.eval()
        with torch.no_grad():
            for batch in batches:
                with precision():
                    step = workload.eval_step(model, batch)
                for name, value in step.items():
                    if value.ndim:
                        pieces.setdefault(name, []).append(value.cpu())
                    else:
                        sums[name] = sums[name] + value.double() if name in sums else value.double()
        if not sums and team.size > 1:
            raise RuntimeError(f"fewer validation batches than processes ({team.size}): use fewer processes")
        totals: dict[str, Any] = {name: team.sum(value).item() for name, value in sums.items()}
        totals |= {name: team.join(parts) for name, parts in pieces.items()}
        return Summary(*workload.summarize(totals))


class Evaluator:
    """Evaluates the cells at the grid's steps and records them, each (cell, step, split) once over all attempts."""

    def __init__(self, trajectory: Trajectory, trainer: Trainer, recorder: Recorder | None) -> None:
        self.trajectory, self.trainer, self.recorder = trajectory, trainer, recorder
        self.state, self.team = trainer.state, trainer.team
        self.on_file = dict(recorder.written) if recorder else {}  # by earlier attempts

    def next_step(self, step: int) -> int:
        every = self.trajectory.cells[0].evaluate_every_steps
        return min((step // every + 1) * every, self.trajectory.length_steps)

    def evaluate(self, trained: Stretch) -> None:
        """Record this step's evaluations; what an earlier attempt recorded is taken from the file, clocks too."""
        state = self.state
        for cell in self.trajectory.cells:
            if (row := self.on_file.get((cell.cell_id, state.step, "validation"))) is not None:
                _take_clocks(state, cell, row)
        rows = []
        for cell, summary, seconds in self._evaluate(self.trajectory.cells, "validation"):
            state.eval_seconds[cell.cell_id] = state.eval_seconds.get(cell.cell_id, 0.0) + seconds
            rows.append(_row(state, cell, "validation", summary, state.eval_seconds[cell.cell_id], trained))
        tested = [cell for cell in self.trajectory.cells if cell.evaluate_test]
        if tested and state.step == self.trajectory.length_steps and not trained.diverged:
            for cell, summary, seconds in self._evaluate(tested, "test"):
                rows.append(_row(state, cell, "test", summary, seconds, trained))
        if self.recorder:
            self.recorder.append(rows)

    def _evaluate(self, cells: Sequence[Cell], split: str) -> Iterator[tuple[Cell, Summary, float]]:
        """(cell, summary, seconds) of the cells whose weights exist now and whose record of this step is not on file.

        Swapping weights in is part of the seconds.
        """
        trainer, state = self.trainer, self.state
        is_missing = self.team.decide([(cell.cell_id, state.step, split) not in self.on_file for cell in cells])
        existing = {None, *state.bank}  # an absent average has no record, and never the last iterate's under its name
        for cell, is_so in zip(cells, is_missing, strict=True):
            if not is_so or cell.scheme not in existing:
                continue
            with random_streams.kept():
                start = trainer.clock()
                with self._weights(cell):
                    # This rank's batches, anew: a full split does not fit in memory, a mini's is cached.
                    part = () if self.team.size == 1 else (Part(self.team.rank, self.team.size),)
                    raw = trainer.workload.eval_batches(split, *part)
                    batches = (to_device(trainer.device, batch) for batch in raw)
                    summary = evaluate(trainer.workload, state.model, batches, self.team, trainer.precision)
                seconds = trainer.clock() - start
            yield cell, summary, seconds

    @contextmanager
    def _weights(self, cell: Cell) -> Iterator[None]:
        """Inside, the model has a cell's weights: the average's, or those its optimizer wants evaluated."""
        if cell.scheme is None:
            with evaluation_weights(self.state.optimizer):
                yield
            return
        forwards = self.trainer.recompute if cell.scheme.buffers == "recompute" else None
        with self.state.bank.swapped(cell.scheme, recompute=forwards):
            if forwards is not None:
                self.team.average_statistics(self.state.model)
            yield


def _take_clocks(state: State, cell: Cell, row: dict[str, Any]) -> None:
    state.train_seconds = row["train_seconds"]
    state.eval_seconds[cell.cell_id] = row["eval_seconds"]
    state.average_offset[cell.cell_id] = 0.0
    state.average_offset[cell.cell_id] = row["average_seconds"] - _average_seconds(state, cell)


def _row(
    state: State, cell: Cell, split: str, summary: Summary, eval_seconds: float, trained: Stretch
) -> dict[str, Any]:
    return {
        "cell_id": cell.cell_id,
        "trajectory_id": cell.trajectory_id,
        "step": state.step,
        "split": split,
        "loss": float(summary.loss),
        "metric": float(summary.metric),
        "examples": int(summary.examples),
        "train_seconds": state.train_seconds,
        "average_seconds": _average_seconds(state, cell),
        "eval_seconds": eval_seconds,
        "train_loss": trained.train_loss,
        "step_lr": trained.step_lr,
        "examples_per_second": trained.examples_per_second,
        "diverged": trained.diverged,
        "metrics": {name: float(value) for name, value in summary.metrics.items()},
    }


def _average_seconds(state: State, cell: Cell) -> float:
    if cell.scheme is None:
        return 0.0
    return state.bank.seconds[cell.scheme] + state.average_offset.get(cell.cell_id, 0.0)
