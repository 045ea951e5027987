"""What sharing a trajectory saves: 128 averages in one trial against one trial a cell, and a replay against training.

    python -m benchmarks.sharing [--short] [WORKLOAD …]

Wall seconds of trials in this process on one thread, imports and Ray apart. One trial a cell is not run 129 times:
the mean of three cells (the last iterate, a LAWA, an EMA), taken before, between and after, stands for each.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import mean
from time import perf_counter
from typing import Any

from analysis.run_folder.records import read_live
from sweeps import trajectory
from sweeps.cells import cells
from sweeps.plan import Trajectory, trajectories
from sweeps.spec import parse_spec
from sweeps.targets import read_target
from workloads.protocol import load

MODES = ("all", "bracket", "paired")
NONE = {"scheme": "none"}
HORIZONS = [0.02, 0.03, 0.05, 0.1, 0.15, 0.2, 0.25, 0.3]
NEW = [0.12, 0.16, 0.2, 0.24, 0.28, 0.32, 0.36, 0.4]  # of averages asked later
EVERY = [1, 2, 3, 4, 5, 6, 7, 8]  # times 8 steps


def averages(horizons: list[float], every: Sequence[int]) -> list[dict[str, Any]]:
    """LAWA and EMA on a grid of horizons and snapshot intervals."""
    return [{"scheme": name, "horizon": horizons, "every": list(every)} for name in ("lawa", "ema")]


@dataclass(frozen=True)
class Took:
    """Wall seconds of a trial, and of its training, its averages and its evaluations."""

    wall: float
    train: float
    average: float
    evaluate: float
    records: int

    def shares(self) -> str:
        parts = {"training": self.train, "averaging": self.average, "evaluation": self.evaluate}
        return ", ".join(f"{name} {part / self.wall:.0%}" for name, part in parts.items())


@contextmanager
def run_folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as folder:
        yield Path(folder)


class Asked:
    """One training on one workload, asked for averages."""

    def __init__(self, workload: str, short: bool) -> None:
        made = load(workload, "mini")
        self.workload, self.steps = workload, 100 if short else made.step_budget
        self.every = 25 if short else self.steps // 100
        self.horizons = HORIZONS[3::2] if short else HORIZONS
        self.short = short
        self.unit = 2 if short else 8  # steps between snapshots, at least

    def trial(self, averaging: Any, mode: str = "all", **keys: Any) -> Trajectory:
        raw = {"study": "b", "workloads": self.workload, "step_budget": self.steps, "averaging": averaging, **keys}
        asked = {} if mode == "all" else {"averages": mode}
        (one,) = trajectories(cells(parse_spec({**raw, "evaluate": {"every": self.every, **asked}})), fuse=True)
        known = read_target(self.workload, "mini")
        return one if known is None else replace(one, target=known.value)


def took(one: Trajectory, run: Path) -> Took:
    """Run a trial in this process, into a run folder."""
    start = perf_counter()
    trajectory.run(one, run / "trajectories" / one.name)
    wall = perf_counter() - start
    rows = list(read_live(run / "trajectories" / one.name / "records.jsonl"))
    last = {row["cell_id"]: row for row in rows}.values()
    return Took(
        wall,
        max((row["train_seconds"] for row in last), default=0.0) if one.replays is None else 0.0,
        sum(row["average_seconds"] for row in last),
        sum(row["eval_seconds"] for row in last),
        len(rows),
    )


def alone(asked: Asked, averaging: Any, mode: str = "all") -> Took:
    with run_folder() as run:
        return took(asked.trial(averaging, mode), run)


def against_one_trial_a_cell(asked: Asked, every: Sequence[int]) -> Iterator[tuple[str, float]]:
    """Averages and the last iterate in one trial / in one each; and of what its seconds are."""
    grid = averages(asked.horizons, every)
    sample: list[Any] = [NONE, *({**block, "horizon": 0.1, "every": every[0]} for block in grid)]
    count = 1 + 2 * len(asked.horizons) * len(every)
    singles, fused = [], dict[str, Took]()
    for i, one in enumerate(sample):  # between the fused ones: a machine that slows down slows all
        singles.append(alone(asked, one).wall)
        if i < len(MODES):
            fused[MODES[i]] = alone(asked, [NONE, *grid], MODES[i])
    for mode, it in fused.items():
        print(f"            {asked.workload}, {count} cells, {mode}: {it.wall:.0f} s: {it.shares()}", flush=True)
        yield f"{count} cells, {mode}: fused / one trial a cell", it.wall / (count * mean(singles))
        yield (
            f"{count} cells, {mode}: records / evaluations of the grid",
            it.records * asked.every / asked.steps / count,
        )


def against_own_evaluations(asked: Asked) -> Iterator[tuple[str, float]]:
    """17 averages and the last iterate / a training with its own evaluations."""
    grid = [NONE, *averages(asked.horizons, [asked.unit]), {"scheme": "tail", "start": 0.5, "every": asked.unit}]
    one = alone(asked, NONE).wall
    for mode in MODES:
        yield (
            f"{len(grid) - 1} averages, {mode} / a training with its own evaluations",
            alone(asked, grid, mode).wall / one,
        )


def replayed(asked: Asked) -> Iterator[tuple[str, float]]:
    """33 new averages: replay of a trace / training with them, whose records are the same."""
    tail = {"scheme": "tail", "start": 0.5, "every": asked.unit}
    new = [*averages(NEW[::4] if asked.short else NEW, [2 * asked.unit, 4 * asked.unit]), tail]
    with run_folder() as run:
        kept = asked.trial([NONE], keep={"every": asked.unit})
        keeping = took(kept, run).wall
        size = sum(path.stat().st_size for path in (run / "traces").rglob("*.safetensors"))
        one = asked.trial(new)
        again = took(replace(one, name=f"{one.name}-replay", replays=kept.name), run).wall
    plain, trained = alone(asked, NONE).wall, alone(asked, new).wall
    yield f"{len(one.cells)} new averages, all: replay / training", again / trained
    yield "a training that keeps its trace / one that does not", keeping / plain
    yield "MiB of the trace", size / 2**20


def main(short: bool = False, workloads: tuple[str, ...] = ("lm", "imagenet_vit")) -> dict[str, float]:
    """Measure and print; short: a smoke test's length, on the quickest workload."""
    found: dict[str, float] = {}
    for workload in ("criteo1tb",) if short else workloads:
        asked = Asked(workload, short)
        every = [asked.unit * times for times in (EVERY[:1] if short else EVERY)]
        parts = [against_one_trial_a_cell(asked, every), replayed(asked)]
        for part in parts if short else [*parts, against_own_evaluations(asked)]:
            for name, value in part:
                print(f"{value:10.3f}  {workload}: {name}", flush=True)
                found[f"{workload}: {name}"] = value
    return found


if __name__ == "__main__":
    main("--short" in sys.argv, tuple(a for a in sys.argv[1:] if a[0] != "-") or ("lm", "imagenet_vit"))
