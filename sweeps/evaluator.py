"""Evaluations on a trajectory's grid of steps: of its cells, once over all attempts, into the records."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

from sweeps.data_parallel import Team
from sweeps.evaluate import evaluate_cells
from sweeps.identity import Cell
from sweeps.optimizers import evaluation_weights
from sweeps.plan import Trajectory
from sweeps.recorder import Recorder
from sweeps.training import Stretch, Trainer, to_device
from sweeps.training_state import State
from workloads.protocol import Batch, Part, Summary, Workload


class Evaluator:
    """Evaluates the cells at the grid's steps and records them, each (cell, step, split) once over all attempts."""

    def __init__(
        self, trajectory: Trajectory, workload: Workload, team: Team, device: str, recorder: Recorder | None
    ) -> None:
        self.trajectory, self.workload, self.team = trajectory, workload, team
        self.device, self.recorder = device, recorder
        self.on_file = dict(recorder.written) if recorder else {}  # by earlier attempts
        self.best: float | None = None

    def next_step(self, step: int) -> int:
        every = self.trajectory.cells[0].evaluate_every_steps
        return min((step // every + 1) * every, self.trajectory.length_steps)

    def evaluate(self, state: State, trainer: Trainer, trained: Stretch) -> float | None:
        """Record this step's evaluations; what an earlier attempt recorded is taken from the file, clocks too."""
        for cell in self.trajectory.cells:
            if (row := self.on_file.get((cell.cell_id, state.step, "validation"))) is not None:
                self._take_clocks(state, cell, row)
                self._keep_best(row["metric"])
        rows = []
        for cell, summary, seconds in self._evaluate(state, trainer, self.trajectory.cells, "validation"):
            state.eval_seconds[cell.cell_id] = state.eval_seconds.get(cell.cell_id, 0.0) + seconds
            rows.append(_row(state, cell, "validation", summary, state.eval_seconds[cell.cell_id], trained))
            self._keep_best(rows[-1]["metric"])
        tested = [cell for cell in self.trajectory.cells if cell.evaluate_test]
        if tested and state.step == self.trajectory.length_steps and not trained.diverged:
            for cell, summary, seconds in self._evaluate(state, trainer, tested, "test"):
                rows.append(_row(state, cell, "test", summary, seconds, trained))
        if self.recorder:
            self.recorder.append(rows)
        return self.best

    def _evaluate(
        self, state: State, trainer: Trainer, cells: Sequence[Cell], split: str
    ) -> Iterator[tuple[Cell, Summary, float]]:
        """(cell, summary, seconds) on a split, of the cells whose record of this step is not on file."""
        keys = [(cell.cell_id, state.step, split) for cell in cells]
        is_missing = self.team.decide([key not in self.on_file for key in keys])
        missing = [cell for cell, is_so in zip(cells, is_missing, strict=True) if is_so]
        return evaluate_cells(
            self.workload,
            state.model,
            state.bank,
            missing,
            lambda: self._batches(split),
            trainer.recompute,
            lambda: evaluation_weights(state.optimizer),
            trainer.clock,
            self.team,
            trainer.precision,
        )

    def _batches(self, split: str) -> Iterator[Batch]:
        """This rank's batches, anew: a full split does not fit in memory, a mini's is cached."""
        if self.team.size == 1:
            batches = self.workload.eval_batches(split)
        else:
            batches = self.workload.eval_batches(split, Part(self.team.rank, self.team.size))
        return (to_device(self.device, batch) for batch in batches)

    def _take_clocks(self, state: State, cell: Cell, row: dict[str, Any]) -> None:
        state.train_seconds = row["train_seconds"]
        state.eval_seconds[cell.cell_id] = row["eval_seconds"]
        state.average_offset[cell.cell_id] = 0.0
        state.average_offset[cell.cell_id] = row["average_seconds"] - _average_seconds(state, cell)

    def _keep_best(self, metric: float | None) -> None:
        if metric is None or not math.isfinite(metric):
            return
        higher = self.trajectory.cells[0].higher_is_better
        if self.best is None or (metric > self.best) == higher:
            self.best = metric


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
