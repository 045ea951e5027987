"""THE loop: train, average, evaluate, record. Knows neither Ray nor W&B.

A trajectory is a function of its cells: rerun, resumed or in company, on a CPU it writes the same records bit for
bit (the `_seconds` columns apart, which are measured).
"""

from __future__ import annotations

import logging
import math
import os
import random
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from sweeps import checkpoint
from sweeps.attempts import Attempt, TrajectoryLog
from sweeps.cells import Cell, Scheme
from sweeps.evaluate import evaluate_cells
from sweeps.optimizers import OPTIMIZERS
from sweeps.plan import Trajectory
from sweeps.recorder import Recorder, write_atomic
from wa import Bank
from workloads.protocol import Batch, Summary, Workload, load

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
    checkpoint_seconds: float = 10.0,
    report: Callable[[Progress], None] = lambda _: None,
) -> None:
    """Train one trajectory to its end, or on from its last checkpoint, recording into `folder`.

    device: a torch device. num_devices: how many the trial holds; on a CPU this many threads compute.
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
        try:
            _run(trajectory, folder, device, num_devices, checkpoint_seconds, report, recorder, attempt, log)
        except BaseException as error:
            log.exception("ended early")
            attempt.write("failed" if isinstance(error, Exception) else "interrupted")
            raise
        attempt.write("done")
        write_atomic(folder / "done", b"")


def _run(
    trajectory: Trajectory,
    folder: Path,
    device: str,
    num_devices: float,
    checkpoint_seconds: float,
    report: Callable[[Progress], None],
    recorder: Recorder,
    attempt: Attempt,
    log: logging.Logger,
) -> None:
    training = trajectory.cells[0].training
    workload = load(training.workload, training.preset)
    _reset_process(training.seed, device, num_devices)
    state = _fresh_state(trajectory, workload, device)
    _restore(state, folder / "checkpoint", log)
    validation = [_to(device, batch) for batch in workload.eval_batches("validation")]
    evaluator = _Evaluator(trajectory, workload, validation, recorder, device)
    batches = workload.batches(training.seed, state.step + 1)

    saved, saving_seconds = time.monotonic(), 0.0
    while state.step < trajectory.length_steps:
        until = evaluator.next_step(state.step)
        loss = _train(state, trajectory, workload, batches, until, device)
        diverged = not math.isfinite(loss)
        best = evaluator.evaluate(state, diverged)
        log.info("step %d training loss %.6g", state.step, loss)
        if diverged:
            log.warning("diverged: the trajectory ends here")
            return
        # A long ring makes a checkpoint dear: it may take a twentieth of the time, no more.
        pause = max(checkpoint_seconds, 19 * saving_seconds) if checkpoint_seconds else 0.0
        if (began := time.monotonic()) >= saved + pause and state.step < trajectory.length_steps:
            _save(state, folder / "checkpoint")
            attempt.write("running")
            saved = time.monotonic()
            saving_seconds = saved - began
        report(Progress(state.step, trajectory.length_steps, best))


def _train(
    state: State,
    trajectory: Trajectory,
    workload: Workload,
    batches: Iterator[Batch],
    until: int,
    device: str,
) -> float:
    """Steps state.step + 1 … until; the last training loss. Averaging time goes to the bank's clock, not ours."""
    training = trajectory.cells[0].training
    schedule, lr = training.schedule, dict(training.settings)["lr"]
    model, optimizer, bank = state.model, state.optimizer, state.bank
    parameters = list(model.parameters())
    clock = _clock(device)
    start, averaging = clock(), 0.0
    loss = torch.zeros(())
    for step in range(state.step + 1, until + 1):
        batch = _to(device, next(batches))
        for group in optimizer.param_groups:
            group["lr"] = lr * schedule.lr_factor(step - 1)
        loss = workload.loss(model, batch)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        if training.grad_clip is not None:
            nn.utils.clip_grad_norm_(parameters, training.grad_clip, foreach=True)
        optimizer.step()
        before = time.perf_counter()
        bank.update(step)
        averaging += time.perf_counter() - before
    state.step = until
    last = float(loss.detach())
    state.train_seconds += clock() - start - averaging
    return last


class _Evaluator:
    """Evaluates the cells at the grid's steps and records them, each (cell, step) once over all attempts."""

    def __init__(
        self,
        trajectory: Trajectory,
        workload: Workload,
        validation: list[Batch],
        recorder: Recorder,
        device: str,
    ) -> None:
        self.trajectory, self.workload, self.validation = trajectory, workload, validation
        self.recorder, self.device = recorder, device
        self.best: float | None = None

    def next_step(self, step: int) -> int:
        every = self.trajectory.cells[0].evaluate_every_steps
        return min((step // every + 1) * every, self.trajectory.length_steps)

    def evaluate(self, state: State, diverged: bool) -> float | None:
        """Record this step's evaluations; what an earlier attempt recorded is taken from the file, clocks too."""
        on_file = {
            cell.cell_id: self.recorder.written[cell.cell_id, state.step]
            for cell in self.trajectory.cells
            if (cell.cell_id, state.step) in self.recorder.written
        }
        for cell in self.trajectory.cells:
            if (row := on_file.get(cell.cell_id)) is not None:
                self._take_clocks(state, cell, row)
        missing = [cell for cell in self.trajectory.cells if cell.cell_id not in on_file]
        rows = []
        clock = _clock(self.device)
        for cell, summary, seconds in evaluate_cells(
            self.workload, state.model, state.bank, missing, self.validation, self._recompute, clock
        ):
            state.eval_seconds[cell.cell_id] = state.eval_seconds.get(cell.cell_id, 0.0) + seconds
            rows.append(self._row(state, cell, summary, diverged))
        self.recorder.append(rows)
        for row in [*on_file.values(), *rows]:
            self._keep_best(row["metric"])
        return self.best

    def _row(self, state: State, cell: Cell, summary: Summary, diverged: bool) -> dict[str, Any]:
        return {
            "cell_id": cell.cell_id,
            "trajectory_id": cell.trajectory_id,
            "step": state.step,
            "split": "validation",
            "loss": float(summary.loss),
            "metric": float(summary.metric),
            "examples": int(summary.examples),
            "train_seconds": state.train_seconds,
            "average_seconds": _average_seconds(state, cell),
            "eval_seconds": state.eval_seconds[cell.cell_id],
            "diverged": diverged,
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

    def _recompute(self, model: nn.Module) -> Iterator[None]:
        # Its own random stream, so that a scheme's statistics do not depend on its company.
        training = self.trajectory.cells[0].training
        torch.manual_seed(training.seed)
        batches = self.workload.batches(training.seed, 1)
        with torch.no_grad():
            for _ in range(RECOMPUTE_BATCHES):
                self.workload.loss(model, _to(self.device, next(batches)))
                yield


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
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002  (a user's workload may use the global stream)
    torch.manual_seed(seed)
    if device != "cpu":
        torch.cuda.empty_cache()


def _fresh_state(trajectory: Trajectory, workload: Workload, device: str) -> State:
    training = trajectory.cells[0].training
    model = workload.model().to(device)
    model.train()
    build = OPTIMIZERS[training.optimizer]
    schemes: list[Scheme] = [cell.scheme for cell in trajectory.cells if cell.scheme is not None]
    return State(model, build(model.parameters(), **dict(training.settings)), Bank(model, schemes))


def _save(state: State, path: Path) -> None:
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
            "random": torch.get_rng_state(),
            "random_gpu": torch.cuda.get_rng_state() if _on_gpu(state.model) else None,
        },
    )


def _restore(state: State, path: Path, log: logging.Logger) -> None:
    try:
        saved = checkpoint.load(path)
    except checkpoint.BadCheckpoint as error:
        log.warning("%s; training from the start", error)  # slower, and the same numbers
        return
    if saved is None:
        return
    state.model.load_state_dict(saved["model"])
    state.optimizer.load_state_dict(saved["optimizer"])
    state.bank.load_state_dict(saved["bank"])
    state.step, state.train_seconds = saved["step"], saved["train_seconds"]
    state.eval_seconds, state.average_offset = dict(saved["eval_seconds"]), dict(saved["average_offset"])
    torch.set_rng_state(saved["random"])
    if saved["random_gpu"] is not None:
        torch.cuda.set_rng_state(saved["random_gpu"])
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
