"""How full the slots are, and how fast a grid is planned.

    python -m benchmarks.launching [--short]

Occupancy: 24 equal trials on 2 slots through Ray Tune; the seconds trials took / what the slots offered from the
first trial's start to the last one's end.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from time import perf_counter

import pandas as pd
from rich.console import Console

from analysis.run_folder.records import load_trials
from sweeps.expected import as_json
from sweeps.run import run_studies
from sweeps.spec import parse_spec
from sweeps.work import work


def occupancy(trials: int) -> float:
    """Seconds in trials / (2 slots × span), from the attempts' own clocks."""
    raw = {"study": "b", "workloads": "benchmarks.sleeper:Sleeper", "seeds": list(range(trials))}
    more = {"averaging": {"scheme": "none"}, "evaluate": {"every": 0.1}, "tracking": {"wandb": "disabled"}}
    with tempfile.TemporaryDirectory() as folder:
        run_studies([parse_spec({**raw, **more})], Path(folder) / "run", Console(quiet=True))
        table = load_trials(Path(folder) / "run")
    assert (table["status"] == "done").all()
    began, ended = (pd.to_datetime(table[name]) for name in ("started", "ended"))
    span = (ended.max() - began.min()).total_seconds()
    return float(table["seconds"].sum() / (2 * span))


def plan_seconds(num_cells: int = 10_000) -> float:
    """Seconds of all that `wa plan --json` does of a spec in memory but printing."""
    decays = [round(0.5 + 0.004 * i, 4) for i in range(100)]
    averaging = [{"scheme": "none"}, {"scheme": "ema", "decay": decays[:99], "every": 8}]
    raw = {"study": "b", "workloads": "lm", "seeds": list(range(10)), "averaging": averaging}
    lengths = {"length": [0.1 * i for i in range(1, 11)]}
    start = perf_counter()
    spec = parse_spec({**raw, "schedule": lengths})
    todo = work([spec], None)
    as_json([spec], todo)
    assert len(todo.cells) == num_cells
    assert len(todo.trajectories) == 100
    return perf_counter() - start


def main(short: bool = False) -> dict[str, float]:
    """Measure and print; short: a smoke test's length."""
    plan_seconds()  # imports and the model's size, once
    found = {"seconds to plan 10,000 cells": plan_seconds()}
    trials = 6 if short else 24
    found[f"occupancy of 2 slots over {trials} equal trials of 3 s"] = occupancy(trials)
    for name, value in found.items():
        print(f"{value:8.3f}  {name}")
    return found


if __name__ == "__main__":
    main("--short" in sys.argv)
