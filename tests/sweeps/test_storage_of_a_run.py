"""A run folder and its storage: where checkpoints and traces lie, and what may become of that."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from trained import Stop, assert_same, rows, run, stop_at, tiny

from analysis.run_folder.records import read_live
from sweeps import look, run_folder, scribe, trajectory
from sweeps import run as runs
from sweeps.blocks import SpecError
from sweeps.plan import Trajectory, trajectories
from sweeps.reporter import Reporter
from sweeps.scribe import Scribe
from sweeps.spec import parse_spec
from sweeps.storage import Place
from sweeps.studies import resolve
from sweeps.trace import storage_of

EMA = {"scheme": "ema", "decay": 0.9, "every": 3}


def tell_all(one: Trajectory, folder: Path, store: Path, stop: int | None = None) -> Place:
    """A trial whose node does not see the run folder: it writes into the storage alone."""
    home = Place.of(store) / "trajectories" / one.name
    with Scribe(folder) as here:
        settings = {"report": stop_at(stop)} if stop else {}
        reporter = Reporter(here.take, here.begun())
        trajectory.run_trial(one, reporter, home, Place.of(store) / "traces", checkpoint_seconds=0, **settings)
    return home


def test_a_trial_that_sees_only_the_storage_goes_on_elsewhere(outside: Path, tmp_path: Path) -> None:
    (one,) = trajectories(tiny([{"scheme": "none"}, EMA], keep={"every": 3}), fuse=True)
    folder, store = tmp_path / "run" / "trajectories" / one.name, tmp_path / "store"
    with pytest.raises(Stop):
        tell_all(one, folder, store, stop=28)
    there = {path.name for path in (store / "trajectories" / one.name).iterdir()}
    assert there == {"checkpoint-0-28"}, "the one before is gone"
    assert {path.name for path in folder.iterdir()} == {
        *("records.jsonl", "log", "attempt-0.json", "checkpoint.json"),
    }
    tell_all(one, folder, store)
    assert not list((store / "trajectories" / one.name).iterdir())
    assert list((store / "traces" / one.name).iterdir())
    assert "on from step 28" in (folder / "log").read_text()
    assert_same(rows(folder), run(one, tmp_path / "undisturbed"))


def test_rows_come_before_the_pointer_and_the_pointer_before_the_checkpoint_goes(
    outside: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (one,) = trajectories(tiny([{"scheme": "none"}, EMA]), fuse=True)
    folder, store, seen = tmp_path / "run" / "trajectories" / one.name, tmp_path / "store", list[str]()
    write, append, remove = Scribe._write, scribe.Recorder.append, Place.remove

    def writing(self: Scribe, name: str, content: dict[str, object]) -> None:
        write(self, name, content)
        if name == "checkpoint.json":
            seen.append(f"pointer to {content['step']}")

    def appending(self: scribe.Recorder, rows: list[dict[str, object]]) -> None:
        append(self, rows)
        seen.extend(f"rows of {step}" for step in sorted({str(row["step"]) for row in rows}))

    def removing(self: Place) -> None:
        remove(self)
        seen.append(f"{self.name} removed")

    monkeypatch.setattr(Scribe, "_write", writing)
    monkeypatch.setattr(scribe.Recorder, "append", appending)
    monkeypatch.setattr(Place, "remove", removing)
    with pytest.raises(Stop):
        tell_all(one, folder, store, stop=14)
    assert seen == ["rows of 7", "pointer to 7", "rows of 14", "pointer to 14", "checkpoint-0-7 removed"]
    # Also where one message has both.
    row = next(iter(read_live(folder / "records.jsonl"))) | {"step": 21}
    with Scribe(folder) as here:
        here.take(json.dumps({"checkpoint": {"path": "checkpoint-0-21", "step": 21}, "rows": [row]}))
    assert seen[-2:] == ["rows of 21", "pointer to 21"]


def test_a_folder_keeps_its_storage_while_anything_lies_there(tmp_path: Path) -> None:
    run, other = tmp_path / "run", Place.of(tmp_path / "other")
    trial = run / "trajectories" / "t"
    trial.mkdir(parents=True)
    assert runs._storage(run, None) is None
    assert runs._storage(run, Place.of(run)) is None
    assert runs._storage(run, other) == other
    (trial / "checkpoint.json").write_text('{"path": "checkpoint-0-5", "step": 5}')
    with pytest.raises(SpecError, match="has its checkpoints and traces in"):
        runs._storage(run, other)
    (trial / "checkpoint.json").unlink()
    (run / "traces" / "t").mkdir(parents=True)
    with pytest.raises(SpecError, match="has its checkpoints and traces in"):
        runs._storage(run, other)


def test_the_doctor_asks_nodes_for_the_storage_of_the_run(outside: Path, tmp_path: Path) -> None:
    raw = {"study": "s", "workloads": "tinywork:Tiny", "averaging": {"scheme": "none"}, "evaluate": {"every": 7}}
    folder, storage = outside / "run", Place.of(tmp_path / "store")
    studies = resolve([parse_spec(raw)])
    run_folder.write_plan(folder, studies, trajectories(studies[0].cells, fuse=True), storage=storage)
    assert storage_of(folder) == storage
    assert look._asked_by(folder).storage == storage.uri
