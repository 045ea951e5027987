"""W&B as a projection of the records, through the real client: against a stand-in server, offline, and down."""

from __future__ import annotations

import json
import math
import os
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from record_rows import record
from rich.console import Console
from wandb_server import KEY, WandbServer

from analysis.run_folder.records import load, load_cells
from analysis.run_folder.run_files import wandb_links
from sweeps import publisher, run_folder, tracking, trajectory
from sweeps.blocks import TrackingBlock
from sweeps.cli import main
from sweeps.spec import parse_spec
from sweeps.work import work

pytestmark = pytest.mark.slow
RAW = {
    "study": "w",
    "question": "Does it pay?",
    "workloads": "tinywork:Tiny",
    "seeds": [0, 1],
    "averaging": [{"scheme": "none"}, {"scheme": "lawa", "k": 5, "every": 2}, {"scheme": "ema", "horizon": 0.2}],
    "evaluate": {"every": 20},
}


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, tiny_folder: Path) -> Path:
    """A finished run folder: 2 seeds × 3 cells, trained in process."""
    folder = tmp_path_factory.mktemp("trained") / "run"
    with pytest.MonkeyPatch.context() as patched:
        patched.syspath_prepend(str(tiny_folder))
        train(folder)
    return folder


@pytest.fixture
def run(outside: Path, trained: Path) -> Path:
    return Path(shutil.copytree(trained, outside / "run"))


def train(folder: Path) -> None:
    todo = work([parse_spec(RAW)], folder)
    run_folder.write_plan(folder, todo.studies, todo.trajectories)
    for one in todo.trajectories:
        trajectory.run(one, run_folder.trajectory_folder(folder, one.name))
        run_folder.compact(folder, one.name)


def run_ids(run: Path) -> dict[str, str]:
    """cell -> the id of its run on W&B: the folder's identity, then the cell."""
    identity = json.loads((run / "plan.json").read_text())["id"]
    return {cell: f"{identity[:8]}-{cell}" for cell in load_cells(run)["cell_id"]}


def publish(run: Path, mode: str, seconds: float = 90) -> bool:
    return tracking.finish(tracking.start(run, TrackingBlock(wandb=mode, project="proj")), seconds)


def test_online_one_run_a_cell_with_its_config_and_history(run: Path, wandb_server: WandbServer) -> None:
    assert publish(run, "online"), (run / "wandb.log").read_text()
    frame, table = load(run), load_cells(run)
    ids = run_ids(run)
    assert set(ids) == set(table["cell_id"])
    assert set(wandb_server.runs) == set(ids.values()) == wandb_server.finished
    for cell in table.to_dict("records"):
        told = wandb_server.runs[ids[cell["cell_id"]]]
        assert told["groupName"] == "w"
        assert told["notes"] == "Does it pay?"
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
        assert [row["train/loss"] for row in rows] == mine["train_loss"].tolist()
        assert [row["train/lr"] for row in rows] == mine["step_lr"].tolist()
        assert [row["train/examples_per_second"] for row in rows] == mine["examples_per_second"].tolist()
    before = len(wandb_server.requests)
    assert publish(run, "online")
    assert len(wandb_server.requests) == before  # nothing twice
    assert [p for p in run.rglob("*") if p.is_file() and KEY.encode() in p.read_bytes()] == []


def test_a_second_folder_of_the_same_study_has_runs_of_its_own_and_a_copy_the_same(
    run: Path, wandb_server: WandbServer
) -> None:
    other = run.with_name("other")
    train(other)
    copy = run.with_name("copy")
    shutil.copytree(run, copy)
    assert publish(run, "online"), (run / "wandb.log").read_text()
    before = {name: dict(rows) for name, rows in wandb_server.history.items()}
    assert publish(other, "online")
    assert set(wandb_server.runs) == set(run_ids(run).values()) | set(run_ids(other).values())
    assert len(wandb_server.runs) == 12
    assert {name: wandb_server.history[name] for name in before} == before
    assert run_ids(copy) == run_ids(run)
    run_folder.write_plan(run, work([parse_spec(RAW)], run).studies, [])  # planned again, the identity stays
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
    (run / "wandb" / "told.json").write_text("{")
    assert publish(run, "online"), (run / "wandb.log").read_text()
    assert len(wandb_server.finished) == 6
    assert "told.json: not whole JSON" in (run / "wandb.log").read_text()


def test_a_publisher_that_cannot_write_costs_nothing_but_wandb(run: Path) -> None:
    (run / "wandb").write_text("in the way")
    (run / "wandb.log").symlink_to("/dev/full")
    assert not publish(run, "offline")
    assert len(load(run)) == 18


def test_offline_needs_no_account_and_writes_each_cell(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("HOME", str(run.parent))  # no netrc, no settings
    monkeypatch.setenv("WANDB_SERVICE", "3-1-tcp-localhost-1")  # of a process that uses W&B: here, one long gone
    assert publish(run, "offline"), (run / "wandb.log").read_text()
    written = {path.name.rsplit("-", 1)[1] for path in (run / "wandb").glob("offline-run-*")}
    assert written == set(load_cells(run)["cell_id"])
    assert all(path.stat().st_size > 1000 for path in (run / "wandb").glob("offline-run-*/*.wandb"))


def test_disabled_starts_nothing(run: Path) -> None:
    assert tracking.start(run, TrackingBlock(wandb="disabled", project="proj")) is None
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
        process = tracking.start(run, TrackingBlock(wandb="online", project="proj"))
        assert not tracking.finish(process, seconds=1.0)
        assert time.monotonic() - started < 5
        assert process is not None
        process.kill()
        process.wait()
    finally:
        for name in environment:
            os.environ.pop(name)
        server.stop()


def test_a_publisher_does_not_wait_for_ever_for_a_server_that_has_gone(run: Path) -> None:
    code = """if True:
        import sys, threading
        from sweeps import publisher
        publisher.LAST_SECONDS = 0.2
        publisher.Publisher.publish = lambda self, is_last: threading.Event().wait()
        sys.exit(publisher.main(sys.argv[1:]))
    """
    command = [sys.executable, "-c", code, str(run), "offline", "averaging", ""]
    ended = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60, check=False)
    assert ended.returncode == 1
    assert "W&B took not all of it" in ended.stdout


def test_a_killed_publisher_goes_on_from_its_cursor(run: Path, wandb_server: WandbServer) -> None:
    process = tracking.start(run, TrackingBlock(wandb="online", project="proj"))
    assert process is not None
    deadline = time.monotonic() + 60
    while not (run / "wandb" / "told.json").exists():
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.kill()
    process.communicate()
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
    promised = marker.read_bytes()
    marker.unlink()

    def read_then_end(folder: Path) -> Any:
        frame = tracking_load(folder)
        marker.write_bytes(promised)
        return frame[~((frame["trajectory_id"] == ends.trajectory_id) & (frame["step"] == 60))]

    tracking_load = publisher.load_records
    published: dict[str, list[int]] = {}

    def remember(cell: dict[str, Any], rows: Any, *_: Any) -> None:
        published.setdefault(cell["cell_id"], []).extend(rows["step"])

    one = publisher.Publisher(run, "offline", "proj", None)
    monkeypatch.setattr(one, "_publish_cell", remember)
    monkeypatch.setattr(publisher, "load_records", read_then_end)
    one.publish()
    mine = {cell.cell_id for cell in ends.cells}
    assert published
    assert not mine & set(published)
    monkeypatch.setattr(publisher, "load_records", tracking_load)
    one.publish()
    assert all(published[cell_id] == [20, 40, 60] for cell_id in mine)


def test_only_the_publisher_imports_wandb() -> None:
    code = "import sys, sweeps.run, sweeps.launch, sweeps.cli; print('wandb' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_nan_is_left_out_of_a_point() -> None:
    def point(loss: float) -> dict[str, Any]:
        return publisher._point({"metric_name": "accuracy"}, record(1, loss=loss, train_loss=math.nan))

    assert point(1.0) == point(math.nan) | {"validation/loss": 1.0}
    assert "train/loss" not in point(1.0)
    assert point(1.0)["validation/accuracy"] == 1.0


RATIOS = """versus,setting,seed,cell_id,ratio,bound,ratio_low,ratio_high
same schedule,Tiny/ema,0,{cell},0.75,exact,0.7,0.8
tuned baseline,Tiny/ema,0,{cell},0.9,exact,0.85,0.95
"""


@pytest.fixture
def reported(run: Path) -> Path:
    """With a report, in the columns that are read of it."""
    (run / "tables").mkdir()
    (run / "report.html").write_text("<p>It pays.</p>")
    (run / "tables" / "settings.csv").write_text("setting,verdict\nTiny/ema,shown\n")
    (run / "tables" / "ratios_by_seed.csv").write_text(RATIOS.format(cell=averaged(run)))
    return run


def averaged(run: Path) -> str:
    cells = load_cells(run)
    return str(cells.loc[cells["scheme"] == "ema", "cell_id"].iloc[0])


CONCLUDED = {"steps_ratio": 0.75, "steps_ratio_low": 0.7, "steps_ratio_high": 0.8, "verdict": "shown"}


def check_report(run: Path, server: WandbServer) -> None:
    """What the server has of a folder with a report: ratio and verdict of the run it is of, and the artifact."""
    ids = run_ids(run)
    mine = server.summary[ids[averaged(run)]]
    assert CONCLUDED.items() <= mine.items()
    assert set(mine) >= {"best/metric", "validation/loss", "train/loss"}
    others = [server.summary[name] for cell, name in ids.items() if cell != averaged(run)]
    assert not any("steps_ratio" in other for other in others)
    for cell, rows in load(run).groupby("cell_id"):
        assert sorted(row["step"] for row in server.history[ids[str(cell)]].values()) == rows["step"].tolist()
    ((name, artifact),) = server.artifacts.items()
    assert name.startswith("w-")
    assert artifact["type"] == "report"
    assert set(artifact["files"]) == {"report.html", "tables/settings.csv", "tables/ratios_by_seed.csv"}
    assert artifact["files"]["report.html"] == (run / "report.html").read_text()
    told = server.runs[artifact["run"]]
    assert (told["groupName"], told["jobType"], told["notes"]) == ("w", "report", "Does it pay?")


def test_a_report_reaches_runs_and_group_once_and_anew_when_it_changes(
    reported: Path, wandb_server: WandbServer
) -> None:
    reported.joinpath("report.html").rename(reported / "later")
    assert publish(reported, "online"), (reported / "wandb.log").read_text()  # no report, no artifact
    assert not wandb_server.artifacts
    reported.joinpath("later").rename(reported / "report.html")
    assert publish(reported, "online"), (reported / "wandb.log").read_text()
    check_report(reported, wandb_server)
    assert wandb_links(reported) == {"w": f"{wandb_server.url}/team/proj/groups/w"}
    before = len(wandb_server.requests)
    assert publish(reported, "online")
    assert len(wandb_server.requests) == before
    table = reported / "tables" / "ratios_by_seed.csv"
    table.write_text(table.read_text().replace("0.75", "1.25"))
    assert publish(reported, "online")
    assert wandb_server.summary[run_ids(reported)[averaged(reported)]]["steps_ratio"] == 1.25
    (artifact,) = wandb_server.artifacts.values()
    assert "1.25" in artifact["files"]["tables/ratios_by_seed.csv"]


def test_offline_stores_the_same_for_a_sync(reported: Path, wandb_server: WandbServer) -> None:
    report, tables = reported / "report.html", reported / "tables"
    text = report.read_text()
    report.unlink()
    tables.rename(reported / "later")
    assert publish(reported, "offline"), (reported / "wandb.log").read_text()
    (reported / "later").rename(tables)
    report.write_text(text)
    assert publish(reported, "offline"), (reported / "wandb.log").read_text()
    assert not wandb_server.requests
    assert wandb_links(reported) == {}
    written = [str(path) for path in (reported / "wandb").glob("offline-run-*")]
    assert len(written) == 7  # what was written anew is there once
    sync = [str(Path(sys.executable).with_name("wandb")), "sync", *written]
    done = subprocess.run(sync, capture_output=True, text=True, cwd=reported.parent)
    assert done.returncode == 0, done.stdout + done.stderr
    check_report(reported, wandb_server)


def test_wa_run_publishes_its_report_and_says_where(
    reported: Path, wandb_server: WandbServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sweeps.cli._conclude", lambda run, _: (run / "report.html").write_text("concluded"))
    Path("s.yaml").write_text(json.dumps(RAW | {"tracking": {"wandb": "online", "project": "proj"}}))
    done = CliRunner().invoke(main, ["run", "s.yaml", "--out", str(reported)])  # with nothing left to train
    assert done.exit_code == 0, done.output
    assert done.output.splitlines()[-1] == f"W&B: {wandb_server.url}/team/proj/groups/w (w)"
    check_report(reported, wandb_server)


def test_a_report_written_again_is_published_where_the_runs_are(
    reported: Path, wandb_server: WandbServer, capsys: pytest.CaptureFixture[str]
) -> None:
    (reported / "spec.yaml").write_text("tracking: {wandb: online, project: proj}")
    tracking.publish_report(reported, Console())  # nothing of it is on W&B
    assert not (reported / "wandb.log").exists()
    assert publish(reported, "online"), (reported / "wandb.log").read_text()
    (reported / "report.html").write_text("again")
    tracking.publish_report(reported, Console(width=200))
    assert f"{wandb_server.url}/team/proj/groups/w" in capsys.readouterr().out
    deadline = time.monotonic() + 60
    while [one["files"].get("report.html") for one in wandb_server.artifacts.values()] != ["again"]:
        assert time.monotonic() < deadline
        time.sleep(0.1)


def test_tables_of_other_columns_say_nothing(reported: Path) -> None:
    (reported / "tables" / "ratios_by_seed.csv").write_text("cell_id,setting\na,b\n")
    assert publisher.conclusions(reported, ["w"]) == {"a": {}}
    (reported / "tables" / "settings.csv").unlink()
    (reported / "tables" / "ratios_by_seed.csv").write_text("")
    assert publisher.conclusions(reported, ["w"]) == {}
