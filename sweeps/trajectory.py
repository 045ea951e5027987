"""THE loop: train, average, evaluate, record. Knows neither Ray nor W&B.

A trajectory is a function of its cells: rerun, resumed or in company, on a CPU it writes the same records bit for
bit (the `_seconds` columns apart, which are measured).
"""

from __future__ import annotations

import logging
import math
import os
import random
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from sweeps import checkpoint, data_parallel
from sweeps.attempts import Attempt, TrajectoryLog
from sweeps.cells import Cell, Scheme
from sweeps.data_parallel import Team
from sweeps.evaluate import evaluate_cells
from sweeps.optimizers import OPTIMIZERS, evaluation_weights
from sweeps.plan import Trajectory, to_dict
from sweeps.recorder import Recorder, write_atomic
from wa import Bank
from workloads.protocol import Batch, Part, Summary, Workload, load, with_batch_size

RandomStates = tuple[list[Tensor], list[Tensor] | None]  # by rank: of the CPU, of the GPU

RECOMPUTE_BATCHES = 50  # training batches for batch-norm statistics recomputed under averaged weights


@dataclass(frozen=True)
class Progress:
    """Told once an evaluation."""

    step: int
    length_steps: int
    best: float | None  # best target metric so far over the cells


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


def run(
    trajectory: Trajectory,
    folder: Path,
    *,
    device: str = "cpu",
    num_devices: float = 1.0,
    processes: int = 1,
    checkpoint_seconds: float = 10.0,
    report: Callable[[Progress], None] = lambda _: None,
) -> None:
    """Train one trajectory to its end, or on from its last checkpoint, recording into `folder`.

    device: "cpu" or "cuda". num_devices: how many the trial holds; on a CPU this many threads compute.
    processes: data-parallel ranks, one a GPU; this process is rank 0 and starts the others.
    checkpoint_seconds: least time between checkpoints, which are written after an evaluation and take at most a
    twentieth of the time; 0 writes one after every evaluation.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if (folder / "done").exists():
        return
    with Recorder(folder / "records.jsonl") as recorder, TrajectoryLog(folder / "log") as log:
        if (folder / "done").exists():  # by whoever held the lock until now
            return
        attempt = Attempt.begin(folder, trajectory.trajectory_id, device, num_devices)
        leader = _Leader(folder, recorder, attempt, log, checkpoint_seconds, report)
        task = {
            "trajectory": to_dict(trajectory),
            "folder": str(folder.resolve()),
            "num_devices": num_devices,
        }
        try:
            with data_parallel.lead(processes, device, folder, task) as team:
                _run(trajectory, folder, team, device, num_devices, leader)
        except BaseException as error:
            log.exception("ended early")
            attempt.write("failed" if isinstance(error, Exception) else "interrupted")
            raise
        attempt.write("done")
        write_atomic(folder / "done", b"")


def follow(trajectory: Trajectory, folder: Path, team: Team, *, device: str, num_devices: float) -> None:
    """The same as a rank above 0: it trains and evaluates its part and writes nothing."""
    _run(trajectory, folder, team, device, num_devices, leader=None)


@dataclass
class _Leader:
    """What rank 0 alone has and does: records, checkpoints, the log."""

    folder: Path
    recorder: Recorder
    attempt: Attempt
    log: logging.Logger
    checkpoint_seconds: float
    report: Callable[[Progress], None]
    saved: float = field(default_factory=time.monotonic)
    saving_seconds: float = 0.0

    def wants_checkpoint(self) -> bool:
        # A long ring makes a checkpoint dear: it may take a twentieth of the time, no more.
        pause = max(self.checkpoint_seconds, 19 * self.saving_seconds) if self.checkpoint_seconds else 0.0
        return time.monotonic() >= self.saved + pause

    def checkpoint(self, state: State, random: RandomStates) -> None:
        began = time.monotonic()
        _save(state, self.folder / "checkpoint", random)
        self.attempt.write("running")
        self.saved = time.monotonic()
        self.saving_seconds = self.saved - began


def _run(
    trajectory: Trajectory,
    folder: Path,
    team: Team,
    device: str,
    num_devices: float,
    leader: _Leader | None,
) -> None:
    training = trajectory.cells[0].training
    workload = with_batch_size(load(training.workload, training.preset), training.batch_size)
    _reset_process(training.seed, device, num_devices / team.size)
    state = _fresh_state(trajectory, workload, device, team)
    _restore(state, folder / "checkpoint", team, leader.log if leader else None)
    trainer = _Trainer(trajectory, workload, state, team, device)
    evaluator = _Evaluator(trajectory, workload, team, device, leader.recorder if leader else None)

    while state.step < trajectory.length_steps:
        loss = trainer.train(until=evaluator.next_step(state.step))
        diverged = not math.isfinite(loss)
        best = evaluator.evaluate(state, trainer, diverged)
        if leader:
            leader.log.info("step %d training loss %.6g", state.step, loss)
        if diverged:
            if leader:
                leader.log.warning("diverged: the trajectory ends here")
            return
        ended = state.step == trajectory.length_steps
        (save,) = team.decide([leader is not None and leader.wants_checkpoint() and not ended])
        if save:
            random = _random_states(state, team)
            if leader:
                leader.checkpoint(state, random)
        if leader:
            leader.report(Progress(state.step, trajectory.length_steps, best))


class _Trainer:
    """Optimizer steps of one rank, each over its part of the batch in one or more micro-batches."""

    def __init__(
        self, trajectory: Trajectory, workload: Workload, state: State, team: Team, device: str
    ) -> None:
        self.training = trajectory.cells[0].training
        self.workload, self.state, self.team, self.device = workload, state, team, device
        self.parameters = list(state.model.parameters())
        self.clock = _clock(device)
        if self.training.compile is not None:
            state.model.compile(backend=self.training.compile)
        self.model = team.replicate(state.model)
        self.batches = self._parts(state.step + 1)

    def precision(self) -> AbstractContextManager[Any]:
        """The context of a forward pass."""
        if self.training.precision == "fp32":
            return nullcontext()
        return torch.autocast(self.device, torch.bfloat16)

    def recompute(self, model: nn.Module) -> Iterator[None]:
        """Forward passes over the first training batches, for batch-norm statistics."""
        # Its own random stream, so that a scheme's statistics do not depend on its company.
        torch.manual_seed(self.training.seed)
        batches = self._parts(1)
        with torch.no_grad():
            for _ in range(RECOMPUTE_BATCHES):
                for part in next(batches):
                    with self.precision():
                        self.workload.loss(model, _to(self.device, part))
                    yield

    def _parts(self, first_step: int) -> Iterator[tuple[Batch, ...]]:
        """This rank's micro-batches, step after step."""
        each = self.training.accumulate
        count = each * self.team.size
        if count == 1:
            return ((batch,) for batch in self.workload.batches(self.training.seed, first_step))
        mine = range(self.team.rank * each, (self.team.rank + 1) * each)
        parts = [self.workload.batches(self.training.seed, first_step, Part(index, count)) for index in mine]
        return zip(*parts, strict=True)

    def train(self, until: int) -> float:
        """Steps state.step + 1 … until; the last training loss. Averaging time goes to the bank's clock."""
        state, schedule = self.state, self.training.schedule
        lr = dict(self.training.settings)["lr"]
        start, averaging = self.clock(), 0.0
        loss = torch.zeros(())
        for step in range(state.step + 1, until + 1):
            parts = [_to(self.device, part) for part in next(self.batches)]
            for group in state.optimizer.param_groups:
                group["lr"] = lr * schedule.lr_factor(step - 1)
            state.optimizer.zero_grad(set_to_none=True)
            loss = self._backward(parts)
            if self.training.grad_clip is not None:
                nn.utils.clip_grad_norm_(self.parameters, self.training.grad_clip, foreach=True)
            state.optimizer.step()
            self.team.average_statistics(state.model)
            before = time.perf_counter()
            state.bank.update(step)
            averaging += time.perf_counter() - before
        state.step = until
        last = float(self.team.sum(loss.detach()))
        state.train_seconds += self.clock() - start - averaging
        return last

    def _backward(self, parts: list[Batch]) -> Tensor:
        """Gradients of Σ weight·loss / Σ weight over the parts of all ranks; this rank's share of that loss."""
        if len(parts) == self.team.size == 1:
            with self.precision():
                loss = self.workload.loss(self.model, parts[0])
            loss.backward()  # type: ignore[no-untyped-call]
            return loss
        shares = self._shares(parts)
        total = torch.zeros((), device=self.device)
        for i, (part, share) in enumerate(zip(parts, shares, strict=True)):
            alone = isinstance(self.model, DistributedDataParallel) and i < len(parts) - 1
            with self.model.no_sync() if alone else nullcontext():  # type: ignore[operator]
                with self.precision():
                    loss = self.workload.loss(self.model, part) * share
                # DistributedDataParallel takes the mean over ranks where the sum is meant.
                (loss * self.team.size).backward()  # type: ignore[no-untyped-call]
            total += loss.detach()
        return total

    def _shares(self, parts: list[Batch]) -> list[Tensor]:
        weigh = getattr(self.workload, "loss_weight", lambda part: 1.0)
        weights = torch.stack([torch.as_tensor(weigh(part), dtype=torch.float64).cpu() for part in parts])
        return [share.to(self.device) for share in (weights / self.team.sum(weights.sum())).float()]


class _Evaluator:
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

    def evaluate(self, state: State, trainer: _Trainer, diverged: bool) -> float | None:
        """Record this step's evaluations; what an earlier attempt recorded is taken from the file, clocks too."""
        for cell in self.trajectory.cells:
            if (row := self.on_file.get((cell.cell_id, state.step, "validation"))) is not None:
                self._take_clocks(state, cell, row)
                self._keep_best(row["metric"])
        rows = []
        for cell, summary, seconds in self._evaluate(state, trainer, self.trajectory.cells, "validation"):
            state.eval_seconds[cell.cell_id] = state.eval_seconds.get(cell.cell_id, 0.0) + seconds
            rows.append(
                self._row(state, cell, "validation", summary, state.eval_seconds[cell.cell_id], diverged)
            )
            self._keep_best(rows[-1]["metric"])
        tested = [cell for cell in self.trajectory.cells if cell.evaluate_test]
        if tested and state.step == self.trajectory.length_steps and not diverged:
            for cell, summary, seconds in self._evaluate(state, trainer, tested, "test"):
                rows.append(self._row(state, cell, "test", summary, seconds, diverged))
        if self.recorder:
            self.recorder.append(rows)
        return self.best

    def _evaluate(
        self, state: State, trainer: _Trainer, cells: Sequence[Cell], split: str
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
        return (_to(self.device, batch) for batch in batches)

    def _row(
        self, state: State, cell: Cell, split: str, summary: Summary, eval_seconds: float, diverged: bool
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
            "diverged": diverged,
            "metrics": {name: float(value) for name, value in summary.metrics.items()},
        }

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


def _average_seconds(state: State, cell: Cell) -> float:
    if cell.scheme is None:
        return 0.0
    return state.bank.seconds[cell.scheme] + state.average_offset.get(cell.cell_id, 0.0)


# --- state -----------------------------------------------------------------------------------------------------


def _reset_process(seed: int, device: str, num_devices: float) -> None:
    """Make the first and the tenth trajectory of a process alike."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # what deterministic cuBLAS asks for
    torch.set_num_threads(max(1, int(num_devices)) if device == "cpu" else 1)
    torch.set_default_dtype(torch.float32)
    torch.set_grad_enabled(True)
    torch.use_deterministic_algorithms(True, warn_only=True)
    # It costs time, and nothing here reads empty memory.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    torch.backends.cudnn.benchmark = False
    if "torch._dynamo" in sys.modules:
        torch.compiler.reset()
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002  (a user's workload may use the global stream)
    torch.manual_seed(seed)
    if device != "cpu":
        torch.cuda.empty_cache()


def _fresh_state(trajectory: Trajectory, workload: Workload, device: str, team: Team) -> State:
    training = trajectory.cells[0].training
    model = workload.model().to(device)
    if not model.training:  # else the modes are the workload's own: it may keep norms frozen
        model.train()
    if team.rank:
        torch.manual_seed(training.seed + (team.rank << 32))  # dropout of its own; the weights are the same
    build = OPTIMIZERS[training.optimizer]
    schemes: list[Scheme] = [cell.scheme for cell in trajectory.cells if cell.scheme is not None]
    return State(model, build(model.parameters(), **dict(training.settings)), Bank(model, schemes))


def _random_states(state: State, team: Team) -> RandomStates:
    gpu = team.gather(torch.cuda.get_rng_state()) if _on_gpu(state.model) else None
    return team.gather(torch.get_rng_state()), gpu


def _save(state: State, path: Path, random: RandomStates) -> None:
    checkpoint.save(
        path,
        {
            "model": state.model.state_dict(),
            "optimizer": state.optimizer.state_dict(),
            "bank": state.bank.state_dict(),
            "step": state.step,
            "train_seconds": state.train_seconds,
            "eval_seconds": dict(state.eval_seconds),
            "average_offset": dict(state.average_offset),
            "random": random[0],
            "random_gpu": random[1],
        },
    )


def _restore(state: State, path: Path, team: Team, log: logging.Logger | None) -> None:
    try:
        saved = checkpoint.load(path)
    except checkpoint.BadCheckpoint as error:
        if log:
            log.warning("%s; training from the start", error)  # slower, and the same numbers
        return
    if saved is None:
        return
    state.model.load_state_dict(saved["model"])
    state.optimizer.load_state_dict(saved["optimizer"])
    state.bank.load_state_dict(saved["bank"])
    state.step, state.train_seconds = saved["step"], saved["train_seconds"]
    state.eval_seconds, state.average_offset = dict(saved["eval_seconds"]), dict(saved["average_offset"])
    torch.set_rng_state(saved["random"][team.rank])
    if saved["random_gpu"] is not None:
        torch.cuda.set_rng_state(saved["random_gpu"][team.rank])
    if log:
        log.info("on from step %d", state.step)


def _on_gpu(model: nn.Module) -> bool:
    return next(model.parameters()).is_cuda


def _clock(device: str) -> Callable[[], float]:
    if device == "cpu":
        return time.perf_counter

    def synchronized() -> float:
        torch.cuda.synchronize()
        return time.perf_counter()

    return synchronized


def _to(device: str, batch: Batch) -> Batch:
    if device == "cpu":
        return batch
    if isinstance(batch, Tensor):
        return batch.to(device, non_blocking=True)
    if isinstance(batch, dict):
        return {name: _to(device, part) for name, part in batch.items()}
    if isinstance(batch, tuple) and hasattr(batch, "_fields"):
        return type(batch)(*(_to(device, part) for part in batch))
    if isinstance(batch, (list, tuple)):
        return type(batch)(_to(device, part) for part in batch)
    return batch
