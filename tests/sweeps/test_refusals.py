"""Exit code 2 means that nothing happened: no folder is made, none is changed, and the corrected command goes."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import pytest
from click.testing import CliRunner

from sweeps import durable, run_folder
from sweeps import engine as engines
from sweeps.blocks import SpecError
from sweeps.cli import main
from sweeps.studies import load_specs
from sweeps.work import work

STUDY = """
study: refused
workloads: "tinywork:Tiny"
averaging: {scheme: none}
evaluate: {every: 20}
tracking: {wandb: disabled}
"""
NODE = {"NodeID": "a", "NodeManagerAddress": "127.0.0.1", "Alive": True, "Resources": {"CPU": 1.0}}
BIG = "resources={cpu: 512}"


@contextmanager
def one_small_node() -> Iterator[Mapping[str, object]]:
    yield {}


@pytest.fixture
def study(outside: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A study in the current directory, and a Ray of one CPU."""
    monkeypatch.setattr(engines, "_local", one_small_node)
    monkeypatch.setattr(engines.ray, "nodes", lambda: [NODE])
    monkeypatch.setattr(engines.ray, "shutdown", lambda: None)
    (outside / "study.yaml").write_text(STUDY)
    return outside


def refused(*arguments: str) -> str:
    done = CliRunner().invoke(main, list(arguments))
    assert done.exit_code == 2, done.output
    assert done.output.count("\n") == 1, done.output
    return done.output


def state(folder: Path) -> dict[str, tuple[bytes, int]]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path): (path.read_bytes(), path.stat().st_mtime_ns) for path in files}


def plan_only(folder: Path, *sets: str) -> None:
    todo = work(load_specs([folder / "study.yaml"], sets), None)
    with durable.locked(folder / "run"):
        run_folder.write_plan(folder / "run", todo.studies, todo.trajectories)


def test_no_room_leaves_no_folder(study: Path) -> None:
    said = refused("run", "study.yaml", "--out", "deep/run", "--set", BIG)
    assert "a trial needs 512 CPU and 0 GPU; a node here has 1 CPU and 0 GPU" in said
    assert not (study / "deep").exists()


def test_nobody_at_the_address_leaves_no_folder(study: Path) -> None:
    assert "127.0.0.1:1" in refused("run", "study.yaml", "--out", "run", "--address", "127.0.0.1:1")
    assert not (study / "run").exists()
    assert "127.0.0.1:1" in refused("calibrate", "tinywork:Tiny", "--out", "run", "--address", "127.0.0.1:1")
    assert not (study / "run").exists()


def test_a_folder_that_holds_something_stays_as_it_is(study: Path) -> None:
    plan_only(study)
    before = state(study / "run")
    refused("run", "study.yaml", "--out", "run", "--set", BIG)
    assert state(study / "run") == before


def test_what_was_only_planned_may_be_planned_with_other_resources(study: Path) -> None:
    plan_only(study, BIG)
    run = study / "run"
    (corrected,) = load_specs([study / "study.yaml"], [])
    todo = work([corrected], run)
    assert len(todo.trajectories) == 1
    run_folder.write_plan(run, todo.studies, todo.trajectories)
    folder = run_folder.trajectory_folder(run, todo.trajectories[0].name)
    (folder / "attempt-0.json").write_text('{"attempt": 0, "status": "running"}')
    with pytest.raises(SpecError, match="resources"):  # once begun, its seconds are those of one device
        work(load_specs([study / "study.yaml"], [BIG]), run)


def test_a_plan_that_a_kill_cut_short_is_written_anew(study: Path) -> None:
    plan_only(study)
    run = study / "run"
    for name in ("plan.json", "cells.parquet", "spec.yaml"):
        os.replace(run / name, run / f".{name}.123.new")
    assert len(work(load_specs([study / "study.yaml"], []), run).trajectories) == 1
    (run / "thesis.tex").touch()
    with pytest.raises(SpecError, match="not a run folder"):
        work(load_specs([study / "study.yaml"], []), run)


@pytest.mark.parametrize(
    "arguments",
    [
        ("dashboard", "run"),
        ("dashboard", "run", "--out", "new/workspace.json"),
        ("report", "run"),
        ("recommend", "run"),
        ("import", "algoperf", "nowhere", "-o", "new"),
        ("submit", "study.yaml", "--address", "nonsense"),
        ("run", "study.yaml", "--out", "new", "--set", "no.such=key"),
    ],
)
def test_other_commands_refuse_without_a_trace(study: Path, arguments: tuple[str, ...]) -> None:
    before = sorted(study.rglob("*"))
    refused(*arguments)
    assert [path for path in sorted(study.rglob("*")) if "__pycache__" not in path.parts] == before
