"""`wa dashboard`: the workspace against its golden JSON, every key against what tracking logs, a push to a stand-in."""

from __future__ import annotations

import json
import re
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from wandb_server import KEY, WandbServer

from analysis import report as reports
from analysis.run_folder.records import load_cells, load_records
from sweeps import dashboard, publisher, run_folder, tracking, trajectory
from sweeps.blocks import TrackingBlock
from sweeps.cli import main
from sweeps.spec import parse_spec
from sweeps.work import work

GOLDEN = Path(__file__).with_name("workspace.json")
RAW = {
    "question": "Does | it pay?",
    "workloads": "tinywork:Tiny",
    "seeds": [0, 1],
    "optimizer": {"lr": [0.01, 0.03]},
    "averaging": [
        {"scheme": "none"},
        {"scheme": "ema", "horizon": [0.1, 0.2]},
        {"scheme": "lawa", "k": 3, "every": 2},
    ],
    "evaluate": {"every": 20},
    "tracking": {"project": "proj"},
}


def planned(folder: Path, train: bool = False, **spec: Any) -> Path:
    """A run folder, planned; trained too where asked."""
    todo = work([parse_spec({"study": "first", **RAW, **spec})], folder)
    run_folder.write_plan(folder, todo.studies, todo.trajectories)
    for one in todo.trajectories if train else ():
        trajectory.run(one, run_folder.trajectory_folder(folder, one.name))
        run_folder.compact(folder, one.name)
    if train:
        run_folder.write_trials(folder)
    return folder


def written(run: Path) -> Any:
    return json.loads(dashboard.as_json(dashboard.workspace(run)))


def test_the_workspace_is_the_golden_one(outside: Path) -> None:
    text = dashboard.as_json(dashboard.workspace(planned(outside / "run")))
    assert text.decode() == GOLDEN.read_text(encoding="utf-8")


def test_its_bytes_hold_no_clock_no_chance_and_no_place(outside: Path, tiny_folder: Path) -> None:
    run = planned(outside / "elsewhere")
    code = (
        "import sys; from pathlib import Path; from sweeps import dashboard as d; "
        "sys.stdout.buffer.write(d.as_json(d.workspace(Path(sys.argv[1]))))"
    )
    other = subprocess.run([sys.executable, "-c", code, str(run)], capture_output=True, check=True)
    assert other.stdout.decode() == GOLDEN.read_text(encoding="utf-8")


def keys(value: Any, section: str = "") -> Iterator[tuple[str, str]]:
    """(kind, key) of everything a view plots, groups, sorts, filters or pins."""
    if isinstance(value, list):
        for one in value:
            yield from keys(one, section)
    if not isinstance(value, dict):
        return
    if set(value) >= {"section", "name"} and isinstance(value["name"], str):
        yield value["section"], value["name"]
    for name, one in value.items():
        if name == "metrics":
            yield from (("logged", key) for key in one)
        elif name in ("xAxis", "yAxis", "accessor") and ":" not in one and one != "_step":
            yield "logged", one
        elif name in ("xAxis", "yAxis", "accessor") and ":" in one:
            kind, _, key = one.partition(":")
            yield kind, key
        elif name == "groupBy":
            yield "config", one
        elif name in ("columnPinned", "columnVisible"):
            yield from ((kind, key) for kind, _, key in (column.partition(":") for column in one))
        else:
            yield from keys(one, name)


def logged(run: Path) -> dict[str, set[str]]:
    """What `sweeps.publisher` really sends for a trained folder."""
    records = load_records(run)
    found: dict[str, set[str]] = {"config": set(), "logged": set(), "summary": set()}
    for cell in load_cells(run).to_dict("records"):
        mine = records[records["cell_id"] == cell["cell_id"]]
        found["config"] |= set(publisher._config(cell))
        found["summary"] |= set(publisher.outcome({**cell, "target": 0.3}, mine))
        for row in mine.to_dict("records"):
            found["logged"] |= set(publisher._point(cell, row))
    found["summary"] |= {publisher.RATIO, publisher.VERDICT}  # of `publisher.conclusions`
    found["logged"] |= found["summary"]
    return found


def test_every_key_is_one_that_is_logged(outside: Path) -> None:
    run = planned(outside / "run", train=True, seeds=[0], optimizer={"lr": 0.03})
    known, used = logged(run), list(keys(written(run)))
    wrong = [(kind, key) for kind, key in used if kind in known and re.sub(r"\.value$", "", key) not in known[kind]]
    assert wrong == []
    assert {"validation/loss", "validation/accuracy", "seconds/train", "seconds/average", "seconds/eval"} <= {
        key for kind, key in used if kind == "logged"
    }
    assert {("summary", publisher.STEPS), ("summary", publisher.BEST), ("config", "scheme.value")} <= set(used)
    assert {kind for kind, _ in used} == {"config", "logged", "summary", "run"}


def test_runs_are_those_of_every_study_in_the_folder(outside: Path) -> None:
    run = planned(outside / "run")
    planned(run, study="second", seeds=[2])
    text = json.dumps(written(run)["spec"]["section"]["runSets"])
    assert '"first"' in text
    assert '"second"' in text
    (cell,) = load_cells(run).head(1).to_dict("records")
    assert publisher.tag(cell["study"]) in text


def test_the_grid_draws_the_axes_that_vary(outside: Path) -> None:
    def axes(run: Path) -> list[str]:
        columns = [p for s in written(run)["spec"]["section"]["panelBankConfig"]["sections"] for p in s["panels"]]
        (grid,) = [panel for panel in columns if panel["viewType"] == "Parallel Coordinates Plot"]
        return [column["accessor"] for column in grid["config"]["columns"]]

    assert "config:lr.value" in axes(planned(outside / "run"))
    assert "config:lr.value" not in axes(planned(outside / "other", optimizer={"lr": 0.01}))


def test_the_command_writes_where_it_says_and_tells_how_to_push(outside: Path) -> None:
    run = planned(outside / "run")
    done = CliRunner().invoke(main, ["dashboard", str(run)])
    assert done.exit_code == 0, done.output
    assert "--push" in done.output
    assert (run / "wandb" / "workspace.json").read_text() == GOLDEN.read_text()
    done = CliRunner().invoke(main, ["dashboard", str(run), "--out", "mine/w.json"])
    assert done.exit_code == 0, done.output
    assert Path("mine/w.json").read_text() == GOLDEN.read_text()
    done = CliRunner().invoke(main, ["dashboard", str(outside)])
    assert done.exit_code == 2
    assert "not a run folder" in done.output


def test_a_push_without_a_key_or_a_server_is_one_line(outside: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = planned(outside / "run")
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    done = CliRunner().invoke(main, ["dashboard", str(run), "--push"])
    assert done.exit_code == 1
    assert "WANDB_API_KEY" in done.output
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound, not listening
        url = f"http://127.0.0.1:{taken.getsockname()[1]}"
        monkeypatch.setenv("WANDB_BASE_URL", url)
        monkeypatch.setenv("WANDB_API_KEY", KEY)
        done = CliRunner().invoke(main, ["dashboard", str(run), "--push"])
    assert done.exit_code == 1
    assert len(done.output.splitlines()) == 1
    assert f"out of reach at {url}" in done.output
    assert KEY not in done.output


@pytest.fixture
def views(monkeypatch: pytest.MonkeyPatch, outside: Path, wandb_server: WandbServer) -> WandbServer:
    monkeypatch.setenv("HOME", str(outside))
    return wandb_server


@pytest.mark.slow
def test_a_push_saves_workspace_and_report_and_again_the_same_two(outside: Path, views: WandbServer) -> None:
    run = planned(outside / "run", train=True)
    command = [str(Path(sys.executable).with_name("wa")), "dashboard", str(run), "--push"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr + done.stdout
    assert len(views.views) == 2
    saved = {view["type"]: view for view in views.views.values()}
    workspace, report = saved["project-view"], saved["runs"]
    assert json.loads(workspace["spec"]) == json.loads(GOLDEN.read_text())["spec"]
    assert (workspace["entityName"], workspace["projectName"]) == ("team", "proj")
    (read,) = reports.of_run(run)
    said = report["spec"]
    for words in (" ".join(read.answer), "Does | it pay?", "| workload |"):
        assert json.dumps(words, ensure_ascii=False)[1:-1] in said
    assert "validation/accuracy" in said
    assert len(re.findall(f"{views.url}/team/proj", done.stdout)) == 2
    assert KEY not in done.stdout + done.stderr
    assert [p for p in outside.rglob("*") if p.is_file() and KEY.encode() in p.read_bytes()] == []
    again = subprocess.run(command, capture_output=True, text=True, check=False)
    assert again.returncode == 0, again.stderr
    assert len(views.views) == 2
    assert again.stdout == done.stdout


@pytest.mark.slow
def test_a_project_without_runs_says_how_to_publish_them(outside: Path, views: WandbServer) -> None:
    views.project = "another"
    run = planned(outside / "run")
    with pytest.raises(dashboard.PushFailed, match="no project 'proj' of 'team'; publish the runs first"):
        dashboard.push(run)
    assert views.views == {}


def test_a_finished_run_is_summed_up_as_the_analysis_counts(outside: Path) -> None:
    run = planned(outside / "run", train=True, seeds=[0], optimizer={"lr": 0.03})
    records = load_records(run)
    (cell,) = [row for row in load_cells(run).to_dict("records") if row["scheme"] == "none"]
    mine = records[records["cell_id"] == cell["cell_id"]].sort_values("step")
    metric = mine["metric"].tolist()
    assert publisher.outcome(cell, mine) == {"best/metric": max(metric)}
    assert publisher.outcome({**cell, "target": 2.0}, mine) == {
        "best/metric": max(metric),
        "target/met": False,
        "target/steps": 60.0,
    }
    assert publisher.outcome({**cell, "target": metric[0]}, mine)["target/steps"] == 20.0
    assert publisher.outcome({**cell, "target": metric[0]}, mine)["target/met"] is True


@pytest.mark.slow
def test_a_study_that_takes_over_a_published_run_is_told(outside: Path, views: WandbServer) -> None:
    run = planned(outside / "run", train=True, seeds=[0], optimizer={"lr": 0.03})

    def publish() -> None:
        publisher_process = tracking.start(run, TrackingBlock(wandb="online", project="proj"))
        assert tracking.finish(publisher_process, 90), (run / "wandb.log").read_text()

    publish()
    history = json.dumps(views.history, sort_keys=True)
    planned(run, study="second", seeds=[0], optimizer={"lr": 0.03})
    publish()
    for told in views.runs.values():
        assert {"first", "second"} <= set(told["tags"])
        assert json.loads(told["config"])["studies"]["value"] == ["first", "second"]
    assert json.dumps(views.history, sort_keys=True) == history
    before = len(views.requests)
    publish()
    assert len(views.requests) == before
