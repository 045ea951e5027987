"""A run folder of any size with made-up curves: valid by the schema, seeded, written in seconds.

It is what analysis is measured on. Curves fall as a cosine run's do, with a noise that averaging takes away; an
average is ahead mid-run and level at the end, the more so the longer its horizon.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from analysis.run_folder.records import CELLS, RECORDS, TRIALS
from analysis.run_folder.schema import FORMAT
from sweeps.durable import write_table

HORIZONS = np.round(np.geomspace(0.001, 0.3, 25), 5)  # shares of the step budget
EVERY = 8  # steps between snapshots
STEPS = 20  # of training between evaluations


@dataclass(frozen=True)
class Size:
    """How many of each; a trajectory is one (workload, training, seed) and carries every average."""

    workloads: int = 8
    trainings: int = 1  # schedule lengths
    seeds: int = 5
    averages: int = 49
    evaluations: int = 500

    @property
    def num_cells(self) -> int:
        return self.workloads * self.trainings * self.seeds * (1 + self.averages)

    @property
    def num_records(self) -> int:
        return self.num_cells * self.evaluations


def write(folder: Path, size: Size, seed: int = 0) -> Path:
    """Writes cells, records, trials, plan.json and spec.yaml of a finished study; returns the folder."""
    (folder / "records").mkdir(parents=True, exist_ok=True)
    cells: list[dict[str, Any]] = []
    trajectories: list[dict[str, Any]] = []
    for workload in range(size.workloads):
        for training in range(size.trainings):
            for run_seed in range(size.seeds):
                name = _id("trajectory", workload, training, run_seed)
                mine = [_cell(size, name, workload, training, run_seed, one) for one in range(1 + size.averages)]
                rng = np.random.default_rng([seed, workload, training, run_seed])
                write_table(folder / "records" / f"{name}.parquet", _records(size, mine, rng))
                cells += mine
                made = {"trajectory_id": name, "name": name, "expected_seconds": None}
                trajectories.append(made | {"cells": [cell["cell_id"] for cell in mine]})
    write_table(folder / "cells.parquet", pa.Table.from_pylist(cells, schema=CELLS))
    trials = [_trial(one["trajectory_id"]) for one in trajectories]
    write_table(folder / "trials.parquet", pa.Table.from_pylist(trials, schema=TRIALS))
    (folder / "plan.json").write_text(json.dumps(_plan(size, cells, trajectories)), encoding="utf-8")
    (folder / "spec.yaml").write_text("study: synthetic\n", encoding="utf-8")
    return folder


def _id(*parts: object) -> str:
    return sha256(repr(parts).encode()).hexdigest()[:12]


def _target(workload: int) -> float:
    return 1.08 + 0.01 * workload  # what the last iterate reaches after 75 to 85 % of the budget


def _cell(size: Size, trajectory: str, workload: int, training: int, seed: int, average: int) -> dict[str, Any]:
    budget = STEPS * size.evaluations
    scheme = "none" if average == 0 else ("ema", "lawa")[average % 2]
    horizon = float(HORIZONS[(average // 2) % len(HORIZONS)])
    every = EVERY * (1 + average // (2 * len(HORIZONS)))  # longer grids where there are more averages than horizons
    steps = horizon * budget
    row: dict[str, Any] = dict.fromkeys(CELLS.names)
    row |= {"cell_id": _id(trajectory, average), "trajectory_id": trajectory}
    row |= {"study": "synthetic", "studies": ["synthetic"], "workload": f"workload_{workload}"}
    row |= {"preset": "mini", "seed": seed, "step_budget": budget, "optimizer": "nadamw", "lr": 0.01}
    row |= {"precision": "fp32", "accumulate": 1, "schedule": "cosine", "evaluate_every_steps": STEPS}
    row |= {"length_steps": budget, "length_fraction": 1.0, "warmup_steps": budget // 20}
    row |= {"weight_decay": 0.01 * training, "final_lr": 0.0, "scheme": scheme, "metric": "loss"}
    row |= {"higher_is_better": False, "target": _target(workload), "num_devices": 1.0, "device": "cpu"}
    row |= {"processes": 1, "buffers": "live" if average == 0 else "average"}
    if average:
        row |= {"every_steps": every, "horizon_steps": steps, "horizon_fraction": horizon}
        row |= {"burn_in_steps": 0}
    if scheme == "ema":
        row |= {"ema_decay": (steps - every) / (steps + every), "init": "first"}
    if scheme == "lawa":
        row |= {"k": max(1, round(steps / every)), "until_full": "partial"}
    return row


def _records(size: Size, cells: list[dict[str, Any]], rng: np.random.Generator) -> pa.Table:
    """The records of one trajectory, as a trial writes them: evaluation by evaluation, cell by cell."""
    share = np.arange(1, size.evaluations + 1) / size.evaluations
    horizons = np.array([cell["horizon_fraction"] or 0.0 for cell in cells])
    metric = _curves(share, horizons, rng).ravel()
    num = len(cells)
    step = STEPS * np.repeat(np.arange(1, size.evaluations + 1), num)
    columns: dict[str, Any] = {name: pa.nulls(len(step), RECORDS.field(name).type) for name in RECORDS.names}
    columns |= {
        "cell_id": _repeated([cell["cell_id"] for cell in cells], np.tile(np.arange(num), size.evaluations)),
        "trajectory_id": _repeated([cells[0]["trajectory_id"]], np.zeros(len(step), dtype=np.int64)),
        "step": pa.array(step),
        "split": _repeated(["validation"], np.zeros(len(step), dtype=np.int64)),
        "loss": pa.array(metric),
        "metric": pa.array(metric),
        "examples": pa.array(np.full(len(step), 512)),
        "train_seconds": pa.array(0.01 * step),
        "average_seconds": pa.array(0.001 * step * (np.tile(horizons, size.evaluations) > 0)),
        "eval_seconds": pa.array(0.1 * np.repeat(np.arange(1, size.evaluations + 1), num)),
        "diverged": pa.array(np.zeros(len(step), dtype=bool)),
        "metrics": _beside("accuracy", np.exp(-metric)),
    }
    return pa.table({name: columns[name] for name in RECORDS.names}, schema=RECORDS)


def _curves(share: NDArray[np.float64], horizons: NDArray[np.float64], rng: np.random.Generator) -> NDArray[np.float64]:
    """Shape (evaluations, cells): loss = 1 + 3 e^(−5 share) + what the learning rate's noise costs + its own noise.

    The noise cost falls with a cosine learning rate; a horizon h takes all but 1 / (1 + 60 h) of it and lags by h / 2.
    """
    kept = 1 / (1 + 60 * horizons)
    lagged = np.maximum(share[:, None] - horizons / 2, 0)
    temperature = 0.25 * (1 + np.cos(np.pi * share)) * (1 + 0.1 * rng.normal())
    noise = 0.02 * rng.normal(size=(len(share), len(horizons))) * kept
    drift = 0.01 * rng.normal(size=len(share))  # which all averages of a training share
    smooth = 1 + 3 * np.exp(-5 * lagged * (1 + 0.05 * rng.normal())) + temperature[:, None] * kept
    return np.asarray(smooth + noise + drift[:, None] * kept)


def _repeated(values: list[str], indices: NDArray[np.int64]) -> pa.Array:
    return pa.DictionaryArray.from_arrays(pa.array(indices), pa.array(values)).cast(pa.string())


def _beside(name: str, values: NDArray[np.float64]) -> pa.Array:
    names = _repeated([name], np.zeros(len(values), dtype=np.int64))
    return pa.MapArray.from_arrays(np.arange(len(values) + 1, dtype=np.int32), names, pa.array(values))


def _trial(trajectory: str) -> dict[str, Any]:
    row: dict[str, Any] = dict.fromkeys(TRIALS.names)
    row |= {"trajectory_id": trajectory, "name": trajectory, "attempt": 1, "num_devices": 1.0}
    return row | {"versions": "{}", "seconds": 120.0, "status": "done", "device_name": "a CPU"}


def _plan(size: Size, cells: list[dict[str, Any]], trajectories: list[dict[str, Any]]) -> dict[str, Any]:
    names = [f"workload_{workload}" for workload in range(size.workloads)]
    head = {
        "study": "synthetic",
        "question": "Does averaging reach the target in fewer steps?",
        "fuse": True,
        "seeds": list(range(size.seeds)),
        "cells": [cell["cell_id"] for cell in cells],
        "targets": {name: _target_entry(workload) for workload, name in enumerate(names)},
    }
    return head | {"format": FORMAT, "created": "", "versions": {}, "trajectories": trajectories, "studies": [head]}


def _target_entry(workload: int) -> dict[str, Any]:
    value = _target(workload)
    made: dict[str, Any] = {"value": value, "metric": "loss", "higher_is_better": False, "preset": "mini"}
    made |= {"rule": "set by hand", "seeds": [100, 101, 102], "values": [value] * 3, "versions": {}}
    return made | {"date": ""}
