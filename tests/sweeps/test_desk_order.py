"""The shipped study on many slots: as the desk hands it out, with a simulated clock; branches wait for their trunks."""

from __future__ import annotations

import heapq
import json
from collections import deque
from functools import cache
from pathlib import Path
from types import SimpleNamespace

import pytest

from sweeps import border, plan
from sweeps.branches import branched
from sweeps.desk import Desk
from sweeps.plan import Trajectory
from sweeps.run_folder import trajectory_folder
from sweeps.studies import load_specs, resolve, union

# As `make study` has it.
STUDY = ("speedup", "generalization", "horizon", "decay_length", "no_decay", "learning_rate", "optimizers")
Event = tuple[float, str, int]  # when, whose, after how many steps; 0: at its end


@cache
def study(preset: str) -> list[Trajectory]:
    studies = resolve(load_specs(map(border.study_file, STUDY), [f"preset={preset}"]))
    return branched(plan.trajectories(union(studies), fuse=True))


def seconds(one: Trajectory) -> float:
    return plan.cost(one).seconds


def until(one: Trajectory, step: int) -> float:
    """Seconds from its start to one of its forks."""
    return seconds(one) * (step - one.first_step) / one.num_steps


def makespan(desk: Desk, slots: int) -> float:
    """When the last trial ends. As Ray Tune does it: so many trials as there are slots are asked for beforehand."""
    asked, events, free, now = deque[Trajectory](), list[Event](), slots, 0.0
    while True:
        while len(asked) < slots and (config := desk.next()) is not None:
            asked.append(desk.all[config["name"]])
        while free and asked:
            one, free = asked.popleft(), free - 1
            for step in one.forks:
                heapq.heappush(events, (now + until(one, step), one.name, step))
            heapq.heappush(events, (now + seconds(one), one.name, 0))
        if not events:
            return now
        now, name, step = heapq.heappop(events)
        if step:
            desk.heard(name, json.dumps({"fork": {"path": f"fork-{step}", "step": step}}))
        else:
            desk.heard(name, json.dumps({"done": True}))
            desk.ended(name)
            free += 1


@pytest.mark.parametrize(("preset", "slots"), [("mini", 8), ("full", 16), ("full", 512)])
def test_the_shipped_study_fills_the_slots(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, preset: str, slots: int
) -> None:
    monkeypatch.setattr("os.fsync", lambda _: None)  # no power is cut here
    todo = study(preset)
    assert any(one.branch is not None for one in todo)
    for one in todo:
        folder = trajectory_folder(tmp_path, one.name)
        folder.mkdir(parents=True)
        (folder / "trajectory.json").write_text("{}")
    listener = SimpleNamespace(retried=pytest.fail, failed=pytest.fail)
    desk = Desk(tmp_path, todo, listener, {one.name: {} for one in todo})  # type: ignore[arg-type]
    took = makespan(desk, slots)
    assert sorted(desk.outcome.done) == sorted(one.name for one in todo)
    assert desk.is_over
    # No order could be done sooner: the work over the slots, or the longest way from a trunk's start to a branch's end.
    trunks = {one.name: one for one in todo}
    ways = [
        seconds(one) + (until(trunks[one.branch.trunk], one.branch.step) if one.branch is not None else 0.0)
        for one in todo
    ]
    bound = max(sum(map(seconds, todo)) / slots, *ways)
    assert bound / took >= 0.95
