"""Grouping, order and cost of trajectories."""

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sweeps import memory, plan
from sweeps.cells import cells
from sweeps.identity import Cell
from sweeps.plan import cost, makespan_seconds, trajectories
from sweeps.spec import parse_spec
from wa import Bank
from workloads.protocol import load

AVERAGING = [{"scheme": "none"}, {"scheme": "ema", "decay": [0.9, 0.99]}, {"scheme": "lawa", "k": [2, 9]}]


def grid(**changes: Any) -> list[Cell]:
    spec = {"study": "p", "workloads": ["lm", "imagenet_vit"], "averaging": AVERAGING, "seeds": [0, 1]}
    return cells(parse_spec({**spec, **changes}))


def names(found: list[plan.Trajectory]) -> set[frozenset[str]]:
    return {frozenset(cell.cell_id for cell in one.cells) for one in found}


def test_cells_that_differ_only_in_averaging_are_one_trajectory() -> None:
    found = trajectories(grid(schedule={"length": [0.5, 1.0]}), fuse=True)
    assert len(found) == 2 * 2 * 2
    assert all(len(one.cells) == 5 for one in found)
    assert all(len({cell.trajectory_id for cell in one.cells}) == 1 for one in found)
    assert [one.name for one in found] != sorted(one.name for one in found)


def test_unfused_is_one_trial_a_cell() -> None:
    found = trajectories(grid(), fuse=False)
    assert len(found) == 20 == len({one.name for one in found})
    assert all(len(one.cells) == 1 for one in found)


def test_longest_first() -> None:
    found = trajectories(grid(schedule={"length": [0.25, 1.0, 0.5]}), fuse=True)
    seconds = [cost(one).seconds for one in found]
    assert seconds == sorted(seconds, reverse=True)


@given(done=st.sets(st.integers(0, 19)), in_progress=st.integers(0, 4))
def test_each_cell_is_trained_once_whatever_was_started(done: set[int], in_progress: int) -> None:
    every = grid()
    first = trajectories(every, fuse=True)
    started = first[:in_progress]
    going = {cell.cell_id for one in started for cell in one.cells}
    finished = {every[i].cell_id for i in done} - going
    todo = [cell for cell in every if cell.cell_id not in finished]
    found = trajectories(todo, True, started, [one.name for one in first])
    trained = [cell.cell_id for one in found for cell in one.cells]
    assert sorted(trained) == sorted(cell.cell_id for cell in todo)
    assert names(started) <= names(found)  # what has begun goes on as it is
    assert len({one.name for one in found}) == len(found)


def test_round_trip_through_plain_values() -> None:
    for one in trajectories(grid(), fuse=True):
        assert plan.from_dict(plan.to_dict(one)) == one


def test_cost_adds_what_each_average_brings() -> None:
    one, bare = (
        trajectories(grid(workloads="lm", seeds=0, averaging=averaging), fuse=True)[0]
        for averaging in (AVERAGING, {"scheme": "none"})
    )
    assert cost(one).train_seconds == cost(bare).train_seconds
    assert cost(one).eval_seconds == pytest.approx(5 * cost(bare).eval_seconds)
    assert cost(one).average_seconds > cost(bare).average_seconds == 0
    model = load("lm").model()
    schemes = [cell.scheme for cell in one.cells if cell.scheme is not None]
    bank = Bank(model, schemes, read_at=one.evaluation_steps)
    for step in range(1, 30):
        bank.update(step)
    assert sum(memory.parts(one).values()) - sum(memory.parts(bare).values()) == bank.nbytes


def test_planning_leaves_torchs_random_state_alone(outside: Path) -> None:
    before = torch.get_rng_state()
    trajectories(grid(workloads="tinywork:Tiny"), fuse=True)
    assert torch.equal(torch.get_rng_state(), before)


@given(st.lists(st.floats(0.1, 10), min_size=1, max_size=30), st.integers(1, 8))
def test_makespan_is_between_its_bounds(seconds: list[float], slots: int) -> None:
    found = makespan_seconds(seconds, slots)
    least = max(sum(seconds) / slots, max(seconds))
    assert least - 1e-9 <= found <= sum(seconds) / slots + max(seconds) + 1e-9  # Graham's bound for lists


def test_makespan_by_hand() -> None:
    assert makespan_seconds([3, 3, 2, 2, 2], 2) == 7
    assert makespan_seconds([5], 4) == 5
    assert makespan_seconds([1, 2, 3], 1) == 6
