"""Traces of trials of several processes, and of an optimizer that evaluates other weights than those it trains."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from trained import assert_same, run, tiny

from sweeps import replay
from sweeps.plan import Trajectory, trajectories
from sweeps.trace import Trace
from sweeps.trajectory import _Leader

TWO = {"processes": 2, "num_devices": 2}
EVERY_THIRD = [
    {"scheme": "none"},
    {"scheme": "lawa", "k": [2, 5], "every": 3},
    {"scheme": "ema", "decay": 0.8, "every": 3, "buffers": ["average", "recompute"]},
    {"scheme": "tail", "start": 21, "every": 3},
]


def kept(averaging: Any, **changes: Any) -> Trajectory:
    told = {"keep": {"every": 3}, "evaluate": {"every": 20}, "step_budget": 40}
    (one,) = trajectories(tiny(averaging, **{**told, **changes}), fuse=True)
    return one


def replayed(one: Trajectory, folder: Path, name: str, **options: Any) -> pd.DataFrame:
    assert replay.why_not(one, Trace.of(folder / "traces" / one.name)) is None
    return run(replace(one, name=name, replays=one.name), folder / "trajectories" / name, **options)


class Killed(BaseException):
    """Ends a trial after a checkpoint between two evaluations and two snapshots."""


def test_two_processes_are_replayed_by_two_and_by_one(
    outside: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = kept(EVERY_THIRD, workload="tinywork:Parted")
    folder, save = tmp_path / "trajectories" / one.name, _Leader.checkpoint

    def saving(self: _Leader, state: Any, streams: Any) -> None:
        save(self, state, streams)
        if state.step == 32:
            raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(_Leader, "checkpoint", saving)
        patch.setattr(_Leader, "wants_checkpoint", lambda self, between=False: True)
        with pytest.raises(Killed):
            run(one, folder, **TWO)
    trained = run(one, folder, **TWO)
    assert "on from step 32" in (folder / "log").read_text()
    assert_same(replayed(one, tmp_path, "by-two", **TWO), trained)  # each rank's own losses, streams and buffers
    alone = replayed(one, tmp_path, "by-one")
    # Statistics that are recomputed are of the parts of a batch, and so of as many processes.
    averages = {cell.cell_id for cell in one.cells if cell.scheme is None or cell.scheme.buffers != "recompute"}
    here, there = (rows[rows["cell_id"].isin(averages)] for rows in (alone, trained))
    for name in ("loss", "metric", "train_loss"):
        np.testing.assert_allclose(here[name], there[name], rtol=1e-6)
    assert here["step"].tolist() == there["step"].tolist()


def test_schedule_free_is_replayed_at_the_weights_it_evaluates(outside: Path, tmp_path: Path) -> None:
    one = kept(EVERY_THIRD[:2], optimizer={"name": "schedule_free_adamw", "lr": 0.03})
    trained = run(one, tmp_path / "trajectories" / one.name)
    assert_same(replayed(one, tmp_path, "again"), trained)
