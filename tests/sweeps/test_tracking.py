"""W&B as a projection of the records, through the real client: against a stand-in server, offline, and down."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from wandb_server import WandbServer

from analysis.records import load, load_cells
from sweeps import run_folder, tracking, trajectory
from sweeps.run import work
from sweeps.spec import Spec, parse_spec

pytestmark = pytest.mark.slow
KEY = "secret0key0" * 4


def spec() -> Spec:
    averaging = [
        {"scheme": "none"},
        {"scheme": "lawa", "k": 5, "every": 2},
        {"scheme": "ema", "horizon": 0.2},
    ]
    raw = {"study": "w", "workloads": "tinywork:Tiny", "seeds": [0, 1], "averaging": averaging}
    return parse_spec({**raw, "evaluate": {"every": 20}})


@pytest.fixture
def run(outside: Path) -> Path:
    """A finished run folder: 2 seeds × 3 cells, trained in process."""
    folder = outside / "run"
    todo = work([spec()], folder)
    run_folder.write_plan(folder, todo.studies, todo.trajectories)
    for one in todo.trajectories:
        trajectory.run(one, run_folder.trajectory_folder(folder, one.name))
        run_folder.compact(folder, one.name)
    return folder


def run_ids(run: Path) -> dict[str, str]:
    """cell -> the id of its run on W&B: the folder's identity, then the cell."""
    identity = json.loads((run / "plan.json").read_text())["id"]
    return {cell: f"{identity[:8]}-{cell}" for cell in load_cells(run)["cell_id"]}


def publish(run: Path, mode: str, seconds: float = 90) -> bool:
    return tracking.finish(tracking.start(run, mode, "proj", None), seconds)


def test_online_one_run_a_cell_with_its_config_and_history(run: Path, wandb_server: WandbServer) -> None:
    assert publish(run, "online"), (run / "wandb.log").read_text()
    frame, table = load(run), load_cells(run)
    ids = run_ids(run)
    assert set(ids) == set(table["cell_id"])
    assert set(wandb_server.runs) == set(ids.values()) == wandb_server.finished
    for cell in table.to_dict("records"):
        told = wandb_server.runs[ids[cell["cell_id"]]]
        assert told["groupName"] == "w"
        assert told["jobType"] == cell["scheme"]
        assert cell["trajectory_id"] in told["tags"]
        assert cell["workload"] in told["tags"]
        assert "w" in told["tags"]
        config = {key: value["value"] for key, value in json.loads(told["config"]).items() if key != "_wandb"}
        assert config["seed"] == cell["seed"]
        assert config["studies"] == ["w"]
        assert config["horizon_fraction"] == (None if cell["scheme"] == "none" else cell["horizon_fraction"])
        rows = sorted(wandb_server.history[ids[cell["cell_id"]]].values(), key=lambda row: row["step"])
        mine = frame[frame["cell_id"] == cell["cell_id"]]
        assert [row["step"] for row in rows] == mine["step"].tolist()
        assert [row["validation/loss"] for row in rows] == mine["loss"].tolist()
        assert [row["validation/accuracy"] for row in rows] == mine["metric"].tolist()


def test_publishing_twice_sends_nothing_twice(run: Path, wandb_server: WandbServer) -> None:
    assert publish(run, "online")
    before = len(wandb_server.requests)
    assert publish(run, "online")
    assert len(wandb_server.requests) == before


def test_a_second_folder_of_the_same_study_has_runs_of_its_own_and_a_copy_the_same(
    run: Path, wandb_server: WandbServer
) -> None:
    other = run.with_name("other")
    todo = work([spec()], other)
    run_folder.write_plan(other, todo.studies, todo.trajectories)
    for one in todo.trajectories:
        trajectory.run(one, run_folder.trajectory_folder(other, one.name))
        run_folder.compact(other, one.name)
    copy = run.with_name("copy")
    shutil.copytree(run, copy)
    assert publish(run, "online"), (run / "wandb.log").read_text()
    before = {name: dict(rows) for name, rows in wandb_server.history.items()}
    assert publish(other, "online")
    assert set(wandb_server.runs) == set(run_ids(run).values()) | set(run_ids(other).values())
    assert len(wandb_server.runs) == 12
    assert {name: wandb_server.history[name] for name in before} == before
    assert run_ids(copy) == run_ids(run)
    run_folder.write_plan(run, work([spec()], run).studies, [])  # planned again, the identity stays
    assert run_ids(run) == run_ids(copy)


def test_a_deleted_run_takes_only_itself_offline(run: Path, wandb_server: WandbServer) -> None:
    ids = run_ids(run)
    gone, *others = sorted(ids)
    wandb_server.deleted.add(ids[gone])
    assert publish(run, "online", 120), (run / "wandb.log").read_text()
    assert wandb_server.finished == {ids[cell] for cell in others}
    (written,) = (run / "wandb").glob("offline-run-*")
    assert written.name.endswith(f"{ids[gone]}-again")
    log = (run / "wandb.log").read_text()
    assert "previously created and deleted; try a new run name" in log
    assert gone in log
    assert "out of reach" not in log
    before = len(wandb_server.requests)
    assert publish(run, "online")  # all is told, also what is offline
    assert len(wandb_server.requests) == before


def test_what_an_earlier_publisher_left_damaged_costs_nothing(run: Path, wandb_server: WandbServer) -> None:
    (run / "wandb").mkdir()
    (run / "wandb" / "cursors.json").write_text("{")
    (run / "wandb" / "studies.json").write_text('{"c": 1}')
    assert publish(run, "online"), (run / "wandb.log").read_text()
    assert len(wandb_server.finished) == 6
    assert "cursors.json: not whole JSON" in (run / "wandb.log").read_text()


def test_a_publisher_that_cannot_write_costs_nothing_but_wandb(run: Path) -> None:
    (run / "wandb").write_text("in the way")
    (run / "wandb.log").symlink_to("/dev/full")
    assert not publish(run, "offline")
    assert len(load(run)) == 18


def test_the_key_reaches_no_file(run: Path, wandb_server: WandbServer) -> None:
    assert publish(run, "online")
    holding = [p for p in run.rglob("*") if p.is_file() and KEY.encode() in p.read_bytes()]
    assert holding == []


def test_offline_needs_no_account_and_writes_each_cell(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("HOME", str(run.parent))  # no netrc, no settings
    assert publish(run, "offline"), (run / "wandb.log").read_text()
    written = {path.name.rsplit("-", 1)[1] for path in (run / "wandb").glob("offline-run-*")}
    assert written == set(load_cells(run)["cell_id"])
    assert all(path.stat().st_size > 1000 for path in (run / "wandb").glob("offline-run-*/*.wandb"))


def test_a_publisher_has_a_service_of_its_own(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_SERVICE", "3-1-tcp-localhost-1")  # of a process that uses W&B: here, one long gone
    assert publish(run, "offline"), (run / "wandb.log").read_text()
    assert len(list((run / "wandb").glob("offline-run-*"))) == 6


def test_disabled_starts_nothing(run: Path) -> None:
    assert tracking.start(run, "disabled", "proj", None) is None
    assert publish(run, "disabled")
    assert not (run / "wandb").exists()


def test_down_falls_back_to_offline_and_says_so_once(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    monkeypatch.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{port}")
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    assert publish(run, "online", seconds=120), (run / "wandb.log").read_text()
    log = (run / "wandb.log").read_text()
    assert log.count("out of reach") == 1
    assert KEY not in log
    assert len(list((run / "wandb").glob("offline-run-*"))) == 6


def test_a_slow_server_does_not_hold_the_run(run: Path) -> None:
    server = WandbServer(delay_seconds=5.0)
    try:
        environment = {"WANDB_BASE_URL": server.url, "WANDB_API_KEY": KEY}
        os.environ.update(environment)
        started = time.monotonic()
        publisher = tracking.start(run, "online", "proj", None)
        assert not tracking.finish(publisher, seconds=1.0)
        assert time.monotonic() - started < 5
        assert publisher is not None
        publisher.kill()
        publisher.wait()
    finally:
        for name in environment:
            os.environ.pop(name)
        server.stop()


def test_a_killed_publisher_goes_on_from_its_cursor(run: Path, wandb_server: WandbServer) -> None:
    publisher = tracking.start(run, "online", "proj", None)
    assert publisher is not None
    deadline = time.monotonic() + 60
    while not (run / "wandb" / "cursors.json").exists():
        assert time.monotonic() < deadline
        time.sleep(0.01)
    publisher.kill()
    publisher.communicate()
    assert publish(run, "online"), (run / "wandb.log").read_text()
    frame = load(run)
    for cell_id, rows in frame.groupby("cell_id"):
        told = wandb_server.history[run_ids(run)[str(cell_id)]].values()
        assert sorted(row["step"] for row in told) == rows["step"].tolist()


def test_a_cell_that_ends_while_records_are_read_waits_for_the_next_pass(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (run / "wandb").mkdir()
    ends = run_folder.started(run)[0]
    marker = run_folder.trajectory_folder(run, ends.name) / "done"
    marker.unlink()

    def read_then_end(folder: Path) -> Any:
        frame = tracking_load(folder)
        marker.touch()
        return frame[~((frame["trajectory_id"] == ends.trajectory_id) & (frame["step"] == 60))]

    tracking_load = tracking.load_records
    published: dict[str, list[int]] = {}

    def remember(cell: dict[str, Any], rows: Any, done: bool) -> None:
        published.setdefault(cell["cell_id"], []).extend(rows["step"])

    publisher = tracking.Publisher(run, "offline", "proj", None)
    monkeypatch.setattr(publisher, "_publish_cell", remember)
    monkeypatch.setattr(tracking, "load_records", read_then_end)
    publisher.publish()
    mine = {cell.cell_id for cell in ends.cells}
    assert published
    assert not mine & set(published)
    monkeypatch.setattr(tracking, "load_records", tracking_load)
    publisher.publish()
    assert all(published[cell_id] == [20, 40, 60] for cell_id in mine)


def test_only_the_publisher_imports_wandb() -> None:
    code = "import sys, sweeps.run, sweeps.launch, sweeps.cli; print('wandb' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def point(**row: Any) -> dict[str, Any]:
    values = {"step": 1, "loss": 1.0, "metric": 2.0, "train_seconds": 0.0, "average_seconds": 0.0}
    cell = {"metric_name": "accuracy"}
    return tracking._point(cell, {**values, "eval_seconds": 0.0, "diverged": False, **row})


def test_nan_is_left_out_of_a_point() -> None:
    assert "validation/loss" not in point(loss=float("nan"))
    assert point()["validation/accuracy"] == 2.0
