"""What the loop costs beyond a bare one, and what fusing saves.

    python -m benchmarks.trajectory [--short]

Ratios of things measured alternately in one run, on one thread; medians.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

import torch

from analysis.run_folder.records import read_live
from sweeps import process, trajectory
from sweeps.cells import cells
from sweeps.identity import Training
from sweeps.optimizers import OPTIMIZERS
from sweeps.plan import Trajectory, trajectories
from sweeps.spec import parse_spec
from workloads.protocol import load

HORIZONS = [0.0125, 0.025, 0.05, 0.1, 0.15, 0.2, 0.25, 0.3]  # of a run of 2,000 steps and more: every ≥ 8
BANK = [{"scheme": name, "horizon": HORIZONS, "every": 8} for name in ("lawa", "ema")]


def one_trajectory(workload: str, steps: int, averaging: Any, every: int) -> Trajectory:
    """A single fused trajectory of so many steps."""
    raw = {"study": "b", "workloads": workload, "step_budget": steps, "averaging": averaging}
    (one,) = trajectories(cells(parse_spec({**raw, "evaluate": {"every": every}})), fuse=True)
    return one


def bare_seconds(training: Training) -> float:
    """The same training as a bare PyTorch loop in the same settings: model, optimizer, schedule, data."""
    with process.kept():
        process.begin(training.seed, "cpu", 1)
        return _bare_seconds(training)


def _bare_seconds(training: Training) -> float:
    start = perf_counter()
    workload = load(training.workload, training.preset)
    torch.manual_seed(training.seed)
    model = workload.model()
    values = dict(training.settings)
    optimizer = OPTIMIZERS[training.optimizer](model.parameters(), **values)
    batches = workload.batches(training.seed, 1)
    for step in range(training.schedule.length_steps):
        optimizer.param_groups[0]["lr"] = values["lr"] * training.schedule.lr_factor(step)
        loss = workload.loss(model, next(batches))
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        if training.grad_clip is not None:
            torch.nn.utils.clip_grad_norm_(model.parameters(), training.grad_clip, foreach=True)
        optimizer.step()
    float(loss.detach())
    return perf_counter() - start


def run_seconds(one: Trajectory) -> tuple[float, list[dict[str, Any]]]:
    """Wall seconds of a trajectory in process, and the last record of each of its cells."""
    with tempfile.TemporaryDirectory() as folder:
        start = perf_counter()
        trajectory.run(one, Path(folder))
        wall = perf_counter() - start
        rows = {row["cell_id"]: row for row in read_live(Path(folder) / "records.jsonl")}
    return wall, list(rows.values())


def against_bare(workload: str, steps: int, rounds: int) -> float:
    """Steps a second of a trajectory without averages / of the bare loop; one evaluation, which is taken off."""
    one = one_trajectory(workload, steps, {"scheme": "none"}, steps)
    ratios = []
    for _ in range(rounds):
        bare = bare_seconds(one.cells[0].training)
        wall, rows = run_seconds(one)
        ratios.append(bare / (wall - rows[0]["eval_seconds"]))
    return median(ratios)


def bank_share(workload: str, rounds: int, steps: int = 640) -> float:
    """What a bank of 16 with every = 8 adds to a trajectory without averages, as a share; evaluation taken off."""
    bare = one_trajectory(workload, steps, {"scheme": "none"}, steps)
    banked = one_trajectory(workload, steps, [{"scheme": "none"}, *BANK], steps)
    ratios = []
    for _ in range(rounds):
        seconds = []
        for one in (bare, banked):
            wall, rows = run_seconds(one)
            seconds.append(wall - sum(row["eval_seconds"] for row in rows))
        ratios.append(seconds[1] / seconds[0] - 1)
    return median(ratios)


def evaluation_share(workload: str, steps: int = 1000) -> float:
    """50 evaluations of a bank of 16 and the non-averaged baseline / the training time of so many steps."""
    _, rows = run_seconds(one_trajectory(workload, steps, [{"scheme": "none"}, *BANK], max(1, steps // 50)))
    return float(sum(row["eval_seconds"] for row in rows) / rows[0]["train_seconds"])


def fused_over_unfused(workload: str, steps: int) -> float:
    """Device-seconds of the same 17 cells as one trajectory / as one trial per cell, in one run."""
    averaging = [{"scheme": "none"}, *BANK]
    raw = {"study": "b", "workloads": workload, "step_budget": steps, "averaging": averaging}
    grid = cells(parse_spec({**raw, "evaluate": {"every": max(1, steps // 50)}}))
    fused = sum(run_seconds(one)[0] for one in trajectories(grid, fuse=True))
    return fused / sum(run_seconds(one)[0] for one in trajectories(grid, fuse=False))


def main(short: bool = False) -> dict[str, float]:
    """Measure and print; short: a smoke test's length."""
    steps, rounds = (60, 3) if short else (300, 5)
    found: dict[str, float] = {}
    for workload in ("lm", "imagenet_vit"):
        found[f"{workload}: steps a second, trajectory / bare loop"] = against_bare(workload, steps, rounds)
        if not short:
            found[f"{workload}: what a bank of 16 adds to a trajectory"] = bank_share(workload, rounds)
            found[f"{workload}: 50 evaluations of 17 cells / 1,000 steps"] = evaluation_share(workload)
    if not short:
        found["lm: device-seconds of 17 cells, fused / one trial per cell"] = fused_over_unfused("lm", 640)
    for name, value in found.items():
        print(f"{value:8.3f}  {name}")
    return found


if __name__ == "__main__":
    main("--short" in sys.argv)
