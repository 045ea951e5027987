"""What `averages: bracket` and `paired` evaluate, and whether they say what `all` says.

    python -m benchmarks.asking [--short | RUN]

`all` is trained once with its trace. A bracket's records are a part of its records, by the function that asks for them;
`paired` replays the trace. RUN: a run folder with records of `all`, of which the bracket's part is taken.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

import analysis
from analysis.run_folder.records import read_live
from analysis.statistics.saving_curve import SHARES
from analysis.statistics.steps_to_target import HELD, first_crossing, first_crossings, running_best
from sweeps import bracket, run_folder, trajectory
from sweeps.cells import cells
from sweeps.plan import Trajectory, trajectories
from sweeps.spec import parse_spec
from sweeps.targets import read_target

Rows = Sequence[dict[str, Any]]
HORIZONS = [0.01, 0.04, 0.1]
WORKLOADS = ("criteo1tb", "imagenet_vit", "imagenet_resnet")


def one_trajectory(workload: str, seed: int, how: str, budget: float, every: float) -> Trajectory:
    averaging = [
        {"scheme": "none"},
        *({"scheme": name, "horizon": HORIZONS, "every": 0.002} for name in ("lawa", "ema")),
    ]
    raw = {"study": "b", "workloads": workload, "seeds": [seed], "averaging": averaging, "step_budget": budget}
    raw |= {"evaluate": {"every": every, "averages": how}, "keep": {"every": 0.002}}
    (one,) = trajectories(cells(parse_spec(raw)), fuse=True)
    return one


def trained(
    workload: str, seed: int, budget: float, every: float
) -> Iterator[tuple[str, Trajectory, Rows, Rows, float]]:
    """(mode, trajectory, records of all, of the mode, share of the averages' examples that it evaluates)."""
    with tempfile.TemporaryDirectory() as folder:
        one = one_trajectory(workload, seed, "all", budget, every)
        home = Path(folder) / "trajectories"
        trajectory.run(one, home / one.name)
        full = list(read_live(home / one.name / "records.jsonl"))
        known = read_target(workload, "mini")
        ranked = sorted((row["metric"] for row in full), reverse=one.cells[0].higher_is_better)
        target = known.value if known is not None and budget == 1 else ranked[len(ranked) // 3]
        asked = one_trajectory(workload, seed, "bracket", budget, every)
        some = bracket.part(asked.cells, full, target).records
        yield "bracket", replace(one, target=target), full, [dict(row) for row in some], _examples(one, some, full)
        asked = one_trajectory(workload, seed, "paired", budget, every)
        again = replace(asked, name=f"{one.name}-paired", replays=one.name, target=target)
        trajectory.run(again, home / again.name)
        rows = list(read_live(home / again.name / "records.jsonl"))
        yield "paired", replace(one, target=target), full, rows, _examples(one, rows, full)


def of_run(run: Path) -> Iterator[tuple[str, Trajectory, Rows, Rows, float]]:
    """The same of a run folder's trajectories with a baseline among them, by the bracket alone."""
    records = analysis.load(run)
    for one in run_folder.started(run):
        mine = records[records["cell_id"].isin([cell.cell_id for cell in one.cells])]
        if any(cell.scheme is None for cell in one.cells) and len(mine):
            few = [replace(cell, averages="bracket" if cell.scheme else "all") for cell in one.cells]
            target, full = float(mine["target"].iloc[0]), mine.to_dict("records")
            some = bracket.part(few, full, target).records
            yield "bracket", replace(one, target=target), full, [dict(row) for row in some], _examples(one, some, full)


def _examples(one: Trajectory, some: Iterable[Any], full: Iterable[Any]) -> float:
    averages = {cell.cell_id for cell in one.cells if cell.scheme is not None}
    made, of = (sum(row["examples"] for row in rows if row["cell_id"] in averages) for rows in (some, full))
    return float(made / of)


def compared(one: Trajectory, full: Rows, some: Rows) -> Iterator[tuple[bool, bool, float]]:
    """Of each average: the same steps-to-target, the same sustained, how far the steps to a level of the saving curve
    lie apart at most, in evaluations; what differs is printed."""
    higher, every = one.cells[0].higher_is_better, one.cells[0].evaluate_every_steps
    (live,) = [cell for cell in one.cells if cell.scheme is None]
    steps, metric = _curve(full, live.cell_id)
    levels = np.interp(SHARES * one.length_steps, steps, running_best(metric, higher), left=np.nan)
    for cell in one.cells:
        if cell.scheme is not None:
            there, here = _curve(full, cell.cell_id), _curve(some, cell.cell_id)
            same = []
            for in_a_row in (1, HELD):
                two = [first_crossing(*curve, float(one.target or 0.0), higher, in_a_row) for curve in (there, here)]
                same.append(np.array_equal(*two, equal_nan=True))
                if not same[-1]:
                    print(f"  {cell.training.workload} seed {cell.training.seed} {cell.scheme}: {two[0]}, not {two[1]}")
            both = [first_crossings(*curve, levels, higher).point for curve in (there, here)]
            apart = np.abs(both[0] - both[1]) / every
            yield same[0], same[1], float(np.nanmax(apart, initial=0.0))


def _curve(rows: Rows, cell_id: str) -> tuple[Any, Any]:
    mine = sorted((row["step"], row["metric"]) for row in rows if row["cell_id"] == cell_id)
    steps, metric = zip(*mine, strict=True)
    return np.array(steps, dtype=np.float64), np.array(metric, dtype=np.float64)


def main(short: bool, run: Path | None = None) -> dict[str, float]:
    """Shares by mode; printed too."""
    if run is not None:
        measured = [*of_run(run)]
    elif short:
        measured = [*trained("criteo1tb", 0, 0.05, 0.02)]
    else:
        measured = [one for name in WORKLOADS for seed in range(3) for one in trained(name, seed, 1.0, 0.01)]
    found: dict[str, float] = {}
    for mode in dict.fromkeys(mode for mode, *_ in measured):
        mine = [(share, [*compared(one, full, some)]) for kind, one, full, some, share in measured if kind == mode]
        first, held, apart = zip(*(row for _, rows in mine for row in rows), strict=True)
        found |= {
            f"{mode}: averages": float(len(first)),
            f"{mode}: share of the examples": float(np.mean([share for share, _ in mine])),
            f"{mode}: the same steps-to-target": float(np.mean(first)),
            f"{mode}: the same, sustained": float(np.mean(held)),
            f"{mode}: evaluations apart on the saving curve, median of the worst level": float(np.median(apart)),
        }
    for name, value in found.items():
        print(f"{name}: {value:.3g}")
    return found


if __name__ == "__main__":
    given = [word for word in sys.argv[1:] if word != "--short"]
    main("--short" in sys.argv, Path(given[0]) if given else None)
