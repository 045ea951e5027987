"""One pass over the validation data an evaluation: batches outside, cells inside, and the bits of each cell alone."""

from __future__ import annotations

import os
import textwrap
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from trained import assert_same, run

from analysis.run_folder.records import KEY
from sweeps import evaluate
from sweeps.cells import cells
from sweeps.plan import Trajectory, trajectories
from sweeps.spec import parse_spec
from workloads.task import load_batches

READ = textwrap.dedent('''
    import torch
    from tinywork import Tiny

    reads = []  # of batches

    class Counted(Tiny):
        """Every batch that is read is counted; forward passes draw from the random streams."""

        def eval_batches(self, split):
            for number, batch in enumerate(super().eval_batches(split)):
                reads.append(number)
                yield batch

        def eval_step(self, model, batch):
            noise = torch.rand(()).double()
            return {name: value + noise for name, value in super().eval_step(model, batch).items()}

    class Writing(Counted):
        def eval_step(self, model, batch):
            batch[0].mul_(2)
            return super().eval_step(model, batch)
''')
AVERAGES = [
    {"scheme": "none"},
    {"scheme": "ema", "decay": [0.5, 0.9], "buffers": ["live", "average", "recompute"]},
    {"scheme": "lawa", "k": 3, "every": 2},
]


@pytest.fixture(autouse=True)
def _counted(outside: Path) -> None:
    (outside / "readwork.py").write_text(READ)


def grid(fuse: bool = True, averaging: Any = AVERAGES, workload: str = "Counted") -> list[Trajectory]:
    spec = {"study": "t", "workloads": f"readwork:{workload}", "averaging": averaging, "evaluate": {"every": 10}}
    return trajectories(cells(parse_spec({**spec, "step_budget": 40})), fuse=fuse)


@pytest.mark.parametrize("held", [1, 2**28])
def test_in_company_a_cell_has_the_records_it_has_alone(tmp_path: Path, held: int, monkeypatch: Any) -> None:
    alone = pd.concat([run(one, tmp_path / one.name) for one in grid(fuse=False)]).sort_values(KEY)
    monkeypatch.setattr(evaluate, "HELD_BYTES", held)  # 1: cells take turns on every batch
    (one,) = grid()
    assert_same(run(one, tmp_path / "together"), alone.reset_index(drop=True))


def test_a_batch_is_read_once_an_evaluation(tmp_path: Path) -> None:
    (one,) = grid()
    (few,) = grid(averaging=[{"scheme": "none"}])
    import readwork

    counts = []
    for trajectory in (few, one):
        readwork.reads.clear()
        run(trajectory, tmp_path / str(len(counts)))
        counts.append(len(readwork.reads))
    assert counts[0] == counts[1] > 0


def test_a_workload_that_writes_into_its_batches_is_refused(tmp_path: Path) -> None:
    (one,) = grid(workload="Writing")
    with pytest.raises(ValueError, match="eval_step changes a batch in place; let it work on a copy"):
        run(one, tmp_path / "a")


def _pid(number: int) -> tuple[int, int]:
    return number, os.getpid()


def test_loader_processes_stay_for_the_next_evaluation() -> None:
    split = load_batches(_pid, 0, 6, num_workers=2)
    first, second = list(split), list(split)
    assert [number for number, _ in first] == [number for number, _ in second] == list(range(6))
    assert {pid for _, pid in first} == {pid for _, pid in second}
    assert os.getpid() not in {pid for _, pid in first}
