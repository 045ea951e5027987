"""A trajectory trained in process, its records, and two of them held against each other."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd

from analysis.run_folder.records import KEY, read_live, rows_to_table
from analysis.run_folder.schema import MEASURED
from sweeps import trajectory
from sweeps.plan import Trajectory


def run(one: Trajectory, folder: Path, **options: Any) -> pd.DataFrame:
    trajectory.run(one, folder, **options)
    return rows(folder)


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
