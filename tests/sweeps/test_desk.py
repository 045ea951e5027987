"""What the driver hands out, when, and what it makes of the ends of trials; without Ray."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from sweeps import desk as desks
from sweeps import failures
from sweeps.attempts import Attempt, attempts_of
from sweeps.cells import cells
from sweeps.desk import Desk
from sweeps.plan import Branch, Trajectory, to_dict
from sweeps.reporter import Begun, Reporter
from sweeps.run_folder import trajectory_folder
from sweeps.spec import parse_spec


class Heard:
    """A listener that remembers."""

    def __init__(self) -> None:
        self.retries: list[str] = []
        self.losses: dict[str, str] = {}

    def retried(self, name: str, why: str) -> None:
        self.retries.append(f"{name}: {why}")

    def failed(self, name: str, why: str) -> None:
        self.losses[name] = why


SPEC = {"study": "p", "workloads": "lm", "step_budget": 60, "averaging": {"scheme": "none"}, "evaluate": {"every": 10}}
CELL = cells(parse_spec(SPEC))[0]
TRUNK = Trajectory("trunk", (CELL,), forks=(10, 20))
EARLY, LATE = (Trajectory(f"late-{step}", (CELL,), branch=Branch("trunk", step)) for step in (10, 20))
OTHER = Trajectory("other", (CELL,))


def at(run: Path, *trajectories: Trajectory) -> Desk:
    for one in trajectories:
        folder = trajectory_folder(run, one.name)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "trajectory.json").write_text(json.dumps(to_dict(one)))
    return Desk(run, trajectories, Heard(), {one.name: {"device": "cpu"} for one in trajectories})  # type: ignore[arg-type]


def handed_out(desk: Desk) -> list[str]:
    found = []
    while (config := desk.next()) is not None:
        found.append(config["name"])
    return found


def tell(desk: Desk, name: str, **parts: Any) -> None:
    desk.heard(name, json.dumps(parts))


def died(desk: Desk, name: str, said: str = "KeyError: 'x'") -> None:
    desk.failed(name, lambda log: said)


def test_the_plan_in_its_order_then_nothing(tmp_path: Path) -> None:
    desk = at(tmp_path, TRUNK, OTHER)
    assert handed_out(desk) == ["trunk", "other"]
    assert not desk.is_over, "either could fail and be handed out again"
    for name in ("trunk", "other"):
        tell(desk, name, done=True)
        desk.ended(name)
    assert desk.is_over
    assert desk.outcome.done == ["trunk", "other"]
    assert len(list((tmp_path / "records").glob("*.parquet"))) == 2


def test_a_branch_waits_for_its_trunks_state(tmp_path: Path) -> None:
    desk = at(tmp_path, EARLY, TRUNK, LATE, OTHER)
    assert handed_out(desk) == ["trunk", "other"]
    tell(desk, "trunk", fork={"path": "fork-10", "step": 10})
    assert handed_out(desk) == ["late-10"]
    tell(desk, "trunk", done=True)  # it diverged before step 20, as the branch will
    desk.ended("trunk")
    assert handed_out(desk) == ["late-20"]


def test_a_trunk_that_fails_for_good_takes_branches_along(tmp_path: Path) -> None:
    desk = at(tmp_path, EARLY, TRUNK, LATE)
    for i in range(desks.MOST_FAILURES):
        assert handed_out(desk) == (["late-10", "trunk"] if i == 1 else ["trunk"]), "it has its state since the first"
        tell(desk, "trunk", fork={"path": "fork-10", "step": 10}, checkpoint={"path": "checkpoint-0-3", "step": 3})
        died(desk, "trunk")
    died(desk, "trunk")  # of no trial
    assert handed_out(desk) == []
    assert desk.outcome.failed == ["trunk", "late-20"]
    assert "it starts from step 20 of trunk, which has failed before" in desk.listener.losses["late-20"]  # type: ignore[attr-defined]


def test_a_failure_is_tried_again_while_checkpoints_advance(tmp_path: Path) -> None:
    desk = at(tmp_path, OTHER)
    last = None
    for step in (0, 0, 5, 5, 9):  # never three in a row without one
        config = desk.next()
        assert config is not None
        assert config["begun"]["checkpoint"] == last
        last = f"checkpoint-{step}"
        tell(desk, "other", checkpoint={"path": last, "step": step})
        died(desk, "other")
    assert desk.outcome.failed == []
    assert len(desk.listener.retries) == 5  # type: ignore[attr-defined]
    assert "failure 2 of 3 without a new checkpoint" in desk.listener.retries[1]  # type: ignore[attr-defined]
    died(desk, "other")
    assert handed_out(desk) == ["other"]
    died(desk, "other")
    assert handed_out(desk) == ["other"]
    died(desk, "other")
    assert desk.outcome.failed == ["other"]
    assert desk.is_over


def test_a_trial_that_says_nothing_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    desk, now = at(tmp_path, OTHER), [1000.0]
    monkeypatch.setattr(desks.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(desks, "cost", lambda one: SimpleNamespace(seconds=60.0))  # of six evaluations
    desk.next()
    now[0] += 1000
    assert desk.silent(100) == [], "it has not begun: it waits for a place, say"
    tell(desk, "other", process={"node": "n", "pid": 1, "dump": "d"})
    now[0] += 190
    assert desk.silent(100) == [], "twenty evaluations are expected to take 200 s"
    now[0] += 20
    assert desk.silent(100) == [("other", 210.0)]
    assert desk.silent(300) == []
    tell(desk, "other", log="a word")
    assert desk.silent(100) == []


def test_a_lost_node_is_no_failure(tmp_path: Path) -> None:
    desk = at(tmp_path, OTHER)
    for _ in range(desks.MOST_LOST):
        assert desk.outcome.failed == []
        assert handed_out(desk) == ["other"]
        died(desk, "other", failures.NODE_LOST)
    assert desk.outcome.failed == ["other"], "a trial may be what its nodes die of"


def test_what_would_fail_again_is_not_tried_again(tmp_path: Path) -> None:
    desk = at(tmp_path, OTHER)
    config = desk.next()
    assert config is not None
    reporter = Reporter(lambda told: desk.heard("other", told), Begun(**config["begun"]))
    Attempt.begin(0, "id", "cpu", 1.0, reporter.tell).end("failed", KeyError("column y"), is_lasting=True)
    assert reporter.has_failed
    desk.ended("other")
    assert desk.outcome.failed == ["other"]
    assert desk.listener.losses["other"].startswith("KeyError: 'column y' (")  # type: ignore[attr-defined]
    assert desk.is_over


def test_a_trial_is_told_what_is_on_record(tmp_path: Path) -> None:
    desk = at(tmp_path, OTHER)
    names = ("cell_id", "trajectory_id", "step", "split")
    row = dict.fromkeys(
        [
            *(*names, "loss", "metric", "examples", "standard_error", "train_seconds", "average_seconds"),
            *("eval_seconds", "train_loss", "step_lr", "examples_per_second", "diverged", "metrics"),
        ]
    )
    row |= {"cell_id": "c", "trajectory_id": "t", "step": 5, "split": "validation", "loss": 0.1 + 0.2, "examples": 3}
    row |= {"diverged": False, "metrics": {}}
    config = desk.next()
    assert config is not None
    reporter = Reporter(lambda told: desk.heard("other", told), Begun(**config["begun"]))
    attempt = Attempt.begin(reporter.attempt, "id", "cpu", 1.0, reporter.tell)
    reporter.append([row])
    reporter.append([row])
    attempt.say("running", checkpoint={"path": "checkpoint-0-5", "step": 5})
    died(desk, "other")
    (told,) = attempts_of(trajectory_folder(tmp_path, "other"))
    assert told["status"] == "interrupted", "it did not say how it ended"
    again = desk.next()
    assert again is not None
    begun = Begun(**again["begun"])
    assert (begun.attempt, begun.checkpoint) == (1, "checkpoint-0-5")
    assert begun.rows == [row]
    assert Reporter(lambda told: None, begun).last_step == 5


def test_a_disk_that_is_full_here_ends_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    desk = at(tmp_path, OTHER, replace(OTHER, name="more"))
    assert desk.next() is not None

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device", "records.jsonl")

    monkeypatch.setattr(desks.Scribe, "take", full)
    with pytest.raises(OSError, match="No space"):
        tell(desk, "other")
    died(desk, "other")
    assert desk.next() is None
    assert isinstance(desk.error, OSError)
    assert desk.listener.retries == []  # type: ignore[attr-defined]
