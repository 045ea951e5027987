"""Whether a workload keeps the protocol's promises (workloads/protocol.py), each tried on the real thing.

What rests on a broken promise is not asked: a check is left out where one that it needs has failed, and those by
the loop need all the others.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from analysis.run_folder.records import KEY, read_live, rows_to_table
from analysis.run_folder.schema import MEASURED
from sweeps import trajectory
from sweeps.plan import Trajectory, trajectories
from sweeps.promises import CHECKS, EVAL_BATCHES, Broken, cells_of, constants, fresh_model, hold
from wa.buffers import statistics_modules
from workloads.protocol import Batch, Workload, load
from workloads.user_errors import one_line


@dataclass(frozen=True)
class Check:
    """One promise; detail: what was tried, or what is broken and the remedy, in one line."""

    name: str
    ok: bool
    detail: str


def check(name: str, preset: str = "mini", steps: int = 24, folder: Path | None = None) -> Iterator[Check]:
    """Try every promise of workload `name`, a family or a user's ``"pkg.mod:Name"``.

    steps: how long the loop trains each time, at least 4. folder: where its temporary records lie.
    Raises: UnknownWorkload.
    """
    workload = _Shortened(load(name, preset))
    first = _tried("constants", lambda: constants(workload, name, preset))
    yield first
    failed = set() if first.ok else {"constants", *CHECKS}
    for title, (examine, needs) in CHECKS.items():
        if failed.isdisjoint((title, *needs)):
            found = _tried(title, functools.partial(examine, workload))
            failed |= set() if found.ok else {title}
            yield found
        else:
            failed.add(title)
    if not failed:
        with tempfile.TemporaryDirectory(dir=folder) as temporary:
            loop = _by_the_loop(name, preset, steps, Path(temporary))
            for title in BY_THE_LOOP:
                found = _tried(title, functools.partial(next, loop))
                yield found
                if not found.ok:
                    return


def _tried(name: str, examine: Callable[[], str]) -> Check:
    try:
        return Check(name, True, examine())
    except Broken as broken:
        return Check(name, False, str(broken))
    except (Exception, SystemExit) as error:  # the workload's own
        return Check(name, False, one_line(error))


class _Shortened:
    """A workload with the first EVAL_BATCHES validation batches."""

    def __init__(self, workload: Workload) -> None:
        self._workload = workload

        @functools.wraps(workload.eval_batches)
        def first(*args: Any, **kwargs: Any) -> list[Batch]:
            return list(itertools.islice(workload.eval_batches(*args, **kwargs), EVAL_BATCHES))

        self.eval_batches = first

    def __getattr__(self, name: str) -> Any:
        return getattr(self._workload, name)


def shortened(preset: str) -> _Shortened:
    """What the loop loads for preset ``"NAME@PRESET"`` of workload ``"sweeps.conformance:shortened"``."""
    name, _, own = preset.rpartition("@")
    return _Shortened(load(name, own))


# --- by the loop itself: two runs, runs in and out of company, runs interrupted ----------------------------------

CELLS: list[dict[str, Any]] = [
    {"scheme": "none"},
    {"scheme": "lawa", "k": 3, "every": 2},
    {"scheme": "ema", "decay": 0.8, "every": 3, "buffers": "average"},
]
BY_THE_LOOP = ("reproducible", "fused", "resumed")
RECOMPUTED = {"scheme": "tail", "start": 0.8, "every": 1, "buffers": "recompute"}


class _Stop(Exception):
    """Ends a trajectory as a kill would, in process."""


def _by_the_loop(name: str, preset: str, steps: int, folder: Path) -> Iterator[str]:
    """What the loop does, promise by promise of BY_THE_LOOP, each resting on those before it. Raises: Broken."""
    schemes = [*CELLS, RECOMPUTED] if statistics_modules(fresh_model(load(name, preset))) else CELLS
    found = cells_of("sweeps.conformance:shortened", f"{name}@{preset}", steps, schemes)
    (fused,) = trajectories(found, fuse=True)
    alone = {one.cells[0].cell_id: one for one in trajectories(found, fuse=False)}

    once = _records(alone[found[0].cell_id], folder / "once")
    time.sleep(1.0 - time.time() % 1.0)  # so that a clock read in whole seconds says another
    twice = _records(alone[found[0].cell_id], folder / "twice")
    hold(
        once.equals(twice),
        f"two runs of {steps} steps in one process differ{_where(once, twice)}; keep no state between "
        "calls (in the workload, its class or its module), read no clock, and draw from the global random streams",
    )
    yield f"two runs of {steps} steps in one process, the same records bit for bit"

    together = _records(fused, folder / "fused")
    each = [once, *(_records(alone[cell.cell_id], folder / cell.cell_id) for cell in found[1:])]
    rows = pd.concat(each).sort_values(KEY).reset_index(drop=True)
    hold(
        together.equals(rows),
        f"{len(found)} cells in one run and in a run each differ{_where(together, rows)}; evaluating must "
        "leave no trace in the model or the workload",
    )
    yield f"{len(found)} cells in one run and in a run each, the same records bit for bit"

    stops = [n * fused.cells[0].evaluate_every_steps for n in (1, 2, 3)]
    for stop in stops:
        _run_until(fused, folder / "interrupted", stop)
    rows = _records(fused, folder / "interrupted")
    hold(
        together.equals(rows),
        f"a run interrupted at steps {stops} and one undisturbed differ{_where(together, rows)}; keep all "
        "that changes in the model's parameters and buffers, and make batch s a function of (seed, s)",
    )
    yield f"interrupted at steps {', '.join(map(str, stops))} and gone on, the same records bit for bit"


def _records(one: Trajectory, folder: Path) -> pd.DataFrame:
    """What a run records, the measured seconds apart."""
    trajectory.run(one, folder, checkpoint_seconds=0)
    table = rows_to_table(list(read_live(folder / "records.jsonl"))).to_pandas()
    kept: pd.DataFrame = table.drop(columns=MEASURED).sort_values(KEY).reset_index(drop=True)
    return kept


def _run_until(one: Trajectory, folder: Path, step: int) -> None:
    def report(now: int) -> None:
        if now >= step:
            raise _Stop

    with contextlib.suppress(_Stop):
        trajectory.run(one, folder, checkpoint_seconds=0, report=report)


def _where(one: pd.DataFrame, other: pd.DataFrame) -> str:
    both = one.merge(other, on=KEY, how="outer", suffixes=("", "_other"))
    steps = both.loc[~((both["loss"] == both["loss_other"]) & (both["metric"] == both["metric_other"])), "step"]
    return f" from step {steps.min()} on" if len(steps) else ""
