"""Evaluate the live weights and every average that exists, into the records, leaving no trace in training.

A split is read once an evaluation, however many cells there are: batches outside, cells inside.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from sweeps import bracket, paired, random_streams
from sweeps.data_parallel import Team
from sweeps.feed import tensors, to_device
from sweeps.identity import Cell
from sweeps.memory import HELD_BYTES
from sweeps.optimizers import evaluation_weights
from sweeps.paired import Estimate
from sweeps.plan import Trajectory
from sweeps.reporter import Reporter
from sweeps.training import Passes, Stretch
from sweeps.training_state import State
from wa.buffers import statistics
from wa.swap import modes_kept
from workloads.protocol import Batch, Part, Summary, Workload

ALONE = Team()


class Sums:
    """What one model's evaluation adds up: sums over the batches in float64, in their order, and pieces to join."""

    def __init__(self) -> None:
        self.sums: dict[str, Tensor] = {}
        self.pieces: dict[str, list[Tensor]] = {}

    def add(
        self,
        workload: Workload,
        model: nn.Module,
        batches: Iterable[Batch],
        precision: Callable[[], AbstractContextManager[Any]] = nullcontext,
    ) -> None:
        """Evaluate the model as it is now on some batches.

        precision: the context of a forward pass. Leaves parameters, buffers and every module's mode as they were.
        """
        with modes_kept(model), torch.no_grad():
            model.eval()
            for batch in batches:
                with precision():
                    step = workload.eval_step(model, batch)
                for name, value in step.items():
                    if value.ndim:
                        self.pieces.setdefault(name, []).append(value.cpu())
                    else:
                        self.sums[name] = self.sums[name] + value.double() if name in self.sums else value.double()

    def join(self, later: Sums) -> None:
        """Add what others of these come to, on later batches: the same bits as adding those batches here."""
        for name, value in later.sums.items():
            self.sums[name] = self.sums[name] + value if name in self.sums else value
        for name, parts in later.pieces.items():
            self.pieces.setdefault(name, []).extend(parts)

    def summary(self, workload: Workload, team: Team = ALONE) -> Summary:
        """Over the batches of all ranks. Raises: RuntimeError where this rank had none."""
        if not self.sums and team.size > 1:
            raise RuntimeError(f"fewer validation batches than processes ({team.size}): use fewer processes")
        totals: dict[str, Any] = {name: team.sum(value).item() for name, value in self.sums.items()}
        totals |= {name: team.join(parts) for name, parts in self.pieces.items()}
        return Summary(*workload.summarize(totals))


def evaluate(workload: Workload, model: nn.Module, batches: Iterable[Batch]) -> Summary:
    """One model on one split, in this process alone."""
    sums = Sums()
    sums.add(workload, model, batches)
    return sums.summary(workload)


@dataclass
class _Turn:
    """A cell on its way through a split. streams: puts the random streams where they are in its evaluation.

    statistics: recomputed for it in its first turn. estimate: of a part of the batches, where that is enough.
    """

    cell: Cell
    streams: Callable[[], None]
    sums: Sums = field(default_factory=Sums)
    statistics: dict[str, Tensor] | None = None
    estimate: Estimate | None = None
    seconds: float = 0.0


class _Live(NamedTuple):
    """The live weights' evaluation: of each batch alone, and of all."""

    batches: list[Summary]
    whole: Summary


class _Found(NamedTuple):
    """A cell's evaluation, the seconds it took, and the metric's standard error where it rests on a part of them."""

    cell: Cell
    summary: Summary
    seconds: float
    standard_error: float | None


class Evaluator:
    """Evaluates the cells at the grid's steps and records them, each (cell, step, split) once over all attempts."""

    def __init__(self, trajectory: Trajectory, passes: Passes, state: State, reporter: Reporter | None) -> None:
        self.trajectory, self.passes, self.state, self.reporter = trajectory, passes, state, reporter
        self.workload, self.team, self.device = passes.workload, passes.team, passes.device
        self.on_file = dict(reporter.written) if reporter else {}  # by earlier attempts
        self.sparse = {cell.cell_id for cell in trajectory.bracketed}
        self.are_means = True  # the values of a split, of those of its batches, as far as is known
        self.loaders: dict[str, Iterable[Batch]] = {}  # split -> what can be gone through anew

    def next_step(self, step: int) -> int:
        every = self.trajectory.cells[0].evaluate_every_steps
        return min((step // every + 1) * every, self.trajectory.length_steps)

    def evaluate(self, trained: Stretch) -> None:
        """Record this step's evaluations; what an earlier attempt recorded is taken from the file, clocks too."""
        state = self.state
        for cell in self.trajectory.cells:
            if (row := self.on_file.get((cell.cell_id, state.step, "validation"))) is not None:
                _take_clocks(state, cell, row)
        rows: list[dict[str, Any]] = []
        is_last = trained.diverged or state.step == self.trajectory.length_steps
        due = [cell for cell in self._own(state.step, "validation") if is_last or self._is_due(cell)]
        for found in self._evaluate(due, "validation", [] if is_last else self.trajectory.paired):
            row = _row(state, found, "validation", self._spent(found), trained)
            (state.riders if found.cell in self.trajectory.riders else rows).append(row)
        tested = [cell for cell in self._own(state.step, "test") if cell.evaluate_test]
        if tested and state.step == self.trajectory.length_steps and not trained.diverged:
            rows += [_row(state, found, "test", found.seconds, trained) for found in self._evaluate(tested, "test")]
        if self.reporter:
            self.reporter.append(rows)

    def _own(self, step: int, split: str) -> Sequence[Cell]:
        riders = self.trajectory.riders if step <= max(self.trajectory.forks, default=0) else ()
        return (*self.trajectory.cells, *riders) if self.trajectory.records(step, split) else ()

    def _is_due(self, cell: Cell) -> bool:
        return cell.cell_id not in self.sparse or bracket.is_coarse(cell, self.state.step)

    def fill(self, cells: Sequence[Cell]) -> None:
        """Record averages at a step gone by, whose weights `state` has again.

        What the record says of the training is the live weights' there; its averaging is taken to cost as much a step
        as between the cell's neighbouring records.
        """
        live = self.trajectory.live
        assert self.reporter is not None
        assert live is not None
        state, on_file = self.state, self.reporter.written
        trained, rows = on_file[live.cell_id, state.step, "validation"], []
        paid: dict[str, dict[int, float]] = {cell.cell_id: {0: 0.0} for cell in cells}  # by step
        for (name, step, _), row in on_file.items():
            if name in paid:
                paid[name][step] = row["average_seconds"]
        told = Stretch(
            0.0, trained["train_loss"], trained["step_lr"], trained["examples_per_second"], trained["diverged"]
        )
        for found in self._evaluate(cells, "validation"):
            steps, seconds = zip(*sorted(paid[found.cell.cell_id].items()), strict=True)
            row = _row(state, found, "validation", self._spent(found), told)
            row["train_seconds"] = trained["train_seconds"]
            row["average_seconds"] = float(np.interp(state.step, steps, seconds))
            rows.append(row)
        self.reporter.append(rows)

    def _spent(self, found: _Found) -> float:
        """Seconds of the cell's evaluations so far, this one among them."""
        spent = self.state.eval_seconds
        spent[found.cell.cell_id] = spent.get(found.cell.cell_id, 0.0) + found.seconds
        return spent[found.cell.cell_id]

    def _evaluate(self, cells: Sequence[Cell], split: str, in_part: Sequence[Cell] = ()) -> list[_Found]:
        """Of the cells whose weights exist now and whose record of this step is not on file.

        Seconds: swapping weights in, forward passes, and an equal share of making the batches. Each cell draws from
        the random streams as the training left them, whatever its company and however the batches are shared out.
        """
        passes, state = self.passes, self.state
        is_missing = self.team.decide([(cell.cell_id, state.step, split) not in self.on_file for cell in cells])
        existing = {None, *state.bank}  # an absent average has no record, and never the last iterate's under its name
        due = [cell for cell, is_so in zip(cells, is_missing, strict=True) if is_so and cell.scheme in existing]
        if not due:
            return []
        in_part = [cell for cell in in_part if cell in due and self.are_means]
        if in_part:  # the live weights go first, also where their record is on file
            due = [*(cell for cell in cells if cell.scheme is None), *(cell for cell in due if cell.scheme is not None)]
        with random_streams.kept():
            turns = [_Turn(cell, random_streams.here()) for cell in due]
            for share, seconds, is_whole in self._shares(split):
                made, versions = random_streams.here(), _versions(share)
                live: _Live | None = None
                for turn in turns:
                    start = passes.clock()
                    turn.streams()
                    with self._weights(turn):
                        if turn.cell.scheme is None and in_part and is_whole:
                            live = self._live(turn, share)
                        elif live is not None and turn.cell in in_part:
                            self._by_parts(turn, share, live)
                        else:
                            turn.sums.add(self.workload, state.model, share, passes.precision)
                    if _versions(share) != versions:  # the next cell would see what this one left
                        raise ValueError("eval_step changes a batch in place; let it work on a copy")
                    turn.streams = random_streams.here()
                    turn.seconds += passes.clock() - start + seconds / len(turns)
                made()
            found = []
            for turn in turns:
                start = passes.clock()
                turn.streams()
                summary, error = turn.estimate or (turn.sums.summary(self.workload, self.team), None)
                found.append(_Found(turn.cell, summary, turn.seconds + passes.clock() - start, error))
        return found

    def _live(self, turn: _Turn, batches: Sequence[Batch]) -> _Live | None:
        """Evaluate the live weights in full, by batches; None where they are not what a part can be held against."""
        before = random_streams.read(self.device != "cpu")
        each = [self._alone(batch) for batch in batches]
        after = random_streams.read(self.device != "cpu")
        for one in each:
            turn.sums.join(one)
        whole, summaries = turn.sums.summary(self.workload), [one.summary(self.workload) for one in each]
        # What draws from the random streams says something else of a batch when others come before it.
        draws = any(not torch.equal(before[name], after[name]) for name in before)
        are_means = paired.are_means(summaries, whole) and not draws
        if math.isfinite(whole.loss) and math.isfinite(whole.metric):
            self.are_means = are_means
        return _Live(summaries, whole) if are_means else None

    def _alone(self, batch: Batch) -> Sums:
        """One batch, of the model as it is now."""
        one = Sums()
        one.add(self.workload, self.state.model, [batch], self.passes.precision)
        return one

    def _by_parts(self, turn: _Turn, batches: Sequence[Batch], live: _Live) -> None:
        """The model as it is now by a part of the batches, and in full where that is not enough."""
        order, change = paired.order(len(batches), self.passes.training.seed), self._change(live.whole)
        there, done, average = [live.batches[i] for i in order], dict[int, Sums](), list[Summary]()
        for size in paired.sizes(len(batches)) if change else ():
            new = order[len(average) : size]
            done |= {i: self._alone(batches[i]) for i in new}
            average += [done[i].summary(self.workload) for i in new]
            turn.estimate = paired.estimate(there, live.whole, average, change, self.trajectory.target)
            if turn.estimate is not None:
                return
        for i, batch in enumerate(batches):  # in their order, for the bits
            turn.sums.join(done.get(i) or self._alone(batch))

    def _change(self, live: Summary) -> float:
        """What the live metric changes by from one evaluation to the next, over the last LOOK; 0 without."""
        cell = self.trajectory.live
        assert self.reporter is not None
        assert cell is not None
        before = self.state.step - paired.LOOK * cell.evaluate_every_steps
        row = self.reporter.written.get((cell.cell_id, before, "validation"))
        return 0.0 if row is None or row["metric"] is None else abs(live.metric - row["metric"]) / paired.LOOK

    def _shares(self, split: str) -> Iterator[tuple[list[Batch], float, bool]]:
        """This rank's batches, as many at a time as HELD_BYTES hold, the seconds they took, and whether they are all.

        None is one share. All ranks have as many shares, of none at last: they swap an average in together, each of
        them having a part.
        """
        batches, is_first, is_last, more = self._batches(split), True, False, True
        while more:
            start, share, size = self.passes.clock(), [], 0
            for batch in batches:
                share.append(to_device(self.device, batch))
                size += sum(leaf.nbytes for leaf in tensors(share[-1]))
                if size >= HELD_BYTES:
                    break
            else:
                is_last = True
            if share or is_first or self.team.size > 1:
                yield share, self.passes.clock() - start, is_first and is_last
            is_first = False
            more = bool(self.team.sum(torch.tensor(not is_last, dtype=torch.int64)))

    @contextmanager
    def _weights(self, turn: _Turn) -> Iterator[None]:
        """Inside, the model has a cell's weights: the average's, or those its optimizer wants evaluated."""
        scheme = turn.cell.scheme
        if scheme is None:
            with evaluation_weights(self.state.optimizer):
                yield
            return
        recomputed = scheme.buffers == "recompute"
        forwards = (turn.statistics or self.passes.recompute) if recomputed else None
        with self.state.bank.swapped(scheme, recompute=forwards):
            if recomputed and turn.statistics is None:
                self.team.average_statistics(self.state.model)
                turn.statistics = statistics(self.state.model)
            yield

    def _batches(self, split: str) -> Iterator[Batch]:
        """This rank's batches; a workload's loader stays for the next evaluation, its processes with it."""
        part = () if self.team.size == 1 else (Part(self.team.rank, self.team.size),)
        batches = self.loaders.get(split)
        if batches is None:
            batches = self.workload.eval_batches(split, *part)
            if not isinstance(batches, Iterator):  # which can be gone through once
                self.loaders[split] = batches
        return iter(batches)


def _versions(batches: list[Batch]) -> list[int]:
    """How often each tensor was written to, as torch counts it; inference tensors are not counted."""
    return [tensor._version for tensor in tensors(batches) if not tensor.is_inference()]


def _take_clocks(state: State, cell: Cell, row: dict[str, Any]) -> None:
    state.train_seconds = math.nan if (told := row["train_seconds"]) is None else told  # unknown: imported
    state.eval_seconds[cell.cell_id] = row["eval_seconds"]
    state.average_offset[cell.cell_id] = 0.0
    state.average_offset[cell.cell_id] = row["average_seconds"] - _average_seconds(state, cell)


def _row(state: State, found: _Found, split: str, eval_seconds: float, trained: Stretch) -> dict[str, Any]:
    cell, summary = found.cell, found.summary
    return {
        "cell_id": cell.cell_id,
        "trajectory_id": cell.trajectory_id,
        "step": state.step,
        "split": split,
        "loss": float(summary.loss),
        "metric": float(summary.metric),
        "examples": int(summary.examples),
        "standard_error": found.standard_error,
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
