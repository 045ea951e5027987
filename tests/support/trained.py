"""A trajectory trained in process, its records, and two of them held against each other."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd

from analysis.run_folder.records import KEY, read_live, rows_to_table
from analysis.run_folder.schema import MEASURED
from sweeps import run_folder, trajectory
from sweeps.cells import cells
from sweeps.identity import Cell
from sweeps.plan import Trajectory
from sweeps.spec import Spec, parse_spec
from sweeps.work import Work, work

ALL_SCHEMES = [
    {"scheme": "none"},
    {"scheme": "lawa", "k": [2, 5], "every": 3},
    {"scheme": "lawa", "k": 4, "every": 2, "until_full": "partial", "buffers": "average"},
    {"scheme": "ema", "decay": [0.5, 0.9], "init": ["first", "zero"]},
    {"scheme": "ema", "decay": 0.8, "every": 2, "burn_in": 10, "buffers": ["average", "recompute"]},
    {"scheme": "tail", "start": 20, "every": 2},
    {"scheme": "wsm", "k": [4, 6], "every": 3, "curve": "sqrt"},
]


def tiny(averaging: Any, workload: str = "tinywork:Tiny", **changes: Any) -> list[Cell]:
    spec = {"study": "t", "workloads": workload, "averaging": averaging, "evaluate": {"every": 7}, **changes}
    return cells(parse_spec(spec))


def run(one: Trajectory, folder: Path, **options: Any) -> pd.DataFrame:
    trajectory.run(one, folder, **options)
    return rows(folder)


def done(specs: Spec | list[Spec], run: Path) -> Work:
    """What `wa run` does, without Ray."""
    todo = work(specs if isinstance(specs, list) else [specs], run)
    run_folder.write_plan(run, todo.studies, todo.trajectories)
    for one in todo.trajectories:
        trajectory.run(one, run_folder.trajectory_folder(run, one.name))
        run_folder.compact(run, one.name)
    run_folder.write_trials(run)
    return todo


def rows(folder: Path) -> pd.DataFrame:
    frame = rows_to_table(list(read_live(folder / "records.jsonl"))).to_pandas()
    assert not frame.duplicated(KEY).any()
    return frame.sort_values(KEY).reset_index(drop=True)


def assert_same(one: pd.DataFrame, other: pd.DataFrame) -> None:
    # check_exact: bit for bit; what is measured apart.
    pd.testing.assert_frame_equal(one.drop(columns=MEASURED), other.drop(columns=MEASURED), check_exact=True)


class Stop(Exception):
    """Ends a trajectory as a kill would, but in process."""


def stop_at(step: int, with_error: type[BaseException] = Stop) -> Callable[[int], None]:
    def report(now: int) -> None:
        if now == step:
            raise with_error

    return report
