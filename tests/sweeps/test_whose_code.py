"""A user's folder may hold modules of any name: ours run ours, Python's run Python's, and theirs is found last."""

from __future__ import annotations

import os
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from sweeps import import_order, tracking
from sweeps import run as flow
from sweeps.blocks import SpecError, TrackingBlock
from sweeps.cli import main
from sweeps.run import usable
from sweeps.spec import parse_spec
from workloads.protocol import UnknownWorkload, load

STUDY = """
study: s
workloads: ["tinywork:Tiny"]
averaging: [{scheme: none}, {scheme: ema, decay: 0.9}]
evaluate: {every: 20}
tracking: {wandb: disabled}
"""
FILES = ("analysis", "wa", "torch", "numpy", "ray", "random", "queue", "types", "select", "profile", "code")
PACKAGES = ("workloads", "cluster")
BAD = """
import sys
from tinywork import Tiny

class Making(Tiny):
    def __init__(self):
        raise KeyError("no key")

class Exiting(Tiny):
    def __init__(self):
        sys.exit(0)

class Building(Tiny):
    def model(self):
        return [][1]

class Dict(Tiny):
    def model(self):
        return {}

class NoData(Tiny):
    def check_data(self):
        raise RuntimeError("the disk is not mounted")
"""


@pytest.fixture
def crowded(tmp_path: Path, tiny_folder: Path) -> Path:
    """A folder with a workload beside modules that fail, whoever imports them."""
    folder = tmp_path / "crowded"
    folder.mkdir()
    (folder / "tinywork.py").write_text((tiny_folder / "tinywork.py").read_text())
    (folder / "study.yaml").write_text(STUDY)
    for name in FILES:
        (folder / f"{name}.py").write_text("raise RuntimeError('the user file ran')\n")
    for name in PACKAGES:
        (folder / name).mkdir()
        (folder / name / "__init__.py").write_text("raise RuntimeError('the user file ran')\n")
    return folder


@pytest.mark.parametrize(
    ("module", "arguments", "code", "told"),
    [
        ("sweeps.cli", ["plan", "study.yaml"], 0, "2 cells, 1 trajectory to train"),
        ("sweeps.publisher", ["run", "offline", "p", ""], 1, "no plan.json"),
    ],
)
def test_python_m_runs_ours(crowded: Path, module: str, arguments: list[str], code: int, told: str) -> None:
    (crowded / "run").mkdir()
    done = subprocess.run(
        [sys.executable, "-m", module, *arguments],
        cwd=crowded,
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
    )
    assert done.returncode == code, done.stderr
    assert told in done.stdout
    assert "user file" not in done.stdout + done.stderr


def test_the_publisher_runs_ours(crowded: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (crowded / "run").mkdir()
    (crowded / "sweeps").mkdir()
    (crowded / "sweeps" / "__init__.py").write_text("raise RuntimeError('the user file ran')\n")
    monkeypatch.chdir(crowded)
    publisher = tracking.start(Path("run"), TrackingBlock(wandb="offline", project="p"))
    assert publisher is not None
    assert not tracking.finish(publisher, seconds=120)
    log = (crowded / "run" / "wandb.log").read_text()
    assert "no plan.json" in log
    assert "user file" not in log


def test_a_users_package_that_is_imported_already_is_named(tmp_path: Path) -> None:
    (tmp_path / "analysis.py").write_text("")
    done = subprocess.run(
        [sys.executable, "-c", "import analysis, sweeps"], cwd=tmp_path, capture_output=True, text=True
    )
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("ImportError")
    assert last.endswith("analysis.py has the name of a package of wa-sweeps, 'analysis': rename it")


def test_the_users_folder_comes_last(outside: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", [path for path in sys.path if path not in ("", str(outside))])
    before = list(sys.path)
    load("tinywork:Tiny")
    assert sys.path == [*before, str(outside)]
    monkeypatch.setattr(sys, "path", ["", *before])
    import_order.users_folder_last()
    assert sys.path == [*before, ""]
    paths = import_order.users_paths()
    assert str(outside) in paths
    assert not any(path.startswith(sys.prefix) for path in paths)


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("sys:exit", "'sys' is a module of Python's own; rename yours"),
        ("__main__:Mine", "'__main__' is a module of Python's own; rename yours"),
        ("queue:Mine", "'queue' is a module of Python's own; rename yours"),
        ("analysis:Mine", "'analysis' is a package of wa-sweeps and not yours: rename yours"),
        ("workloads.mine:Mine", "'workloads' is a package of wa-sweeps and not yours: rename yours"),
        ("yaml:Mine", "'yaml' is the installed package at"),
    ],
)
def test_a_workload_in_a_module_of_a_taken_name(outside: Path, name: str, told: str) -> None:
    for file in ("sys", "queue", "analysis", "yaml"):
        (outside / f"{file}.py").write_text("from tinywork import Tiny as Mine\n")
    (outside / "workloads").mkdir()
    (outside / "workloads" / "mine.py").write_text("from tinywork import Tiny as Mine\n")
    with pytest.raises(UnknownWorkload) as raised:
        load(name)
    assert told in str(raised.value)


@pytest.fixture
def bad(outside: Path) -> Path:
    (outside / "badwork.py").write_text(BAD)
    (outside / "dividing.py").write_text("import os\n1 / 0\n")
    (outside / "unfinished.py").write_text("def f(:\n")
    (outside / "leaving.py").write_text("raise SystemExit(3)\n")
    (outside / "lacking.py").write_text("import a_library_that_is_not_here\n")
    for name in ("badwork", "dividing", "unfinished", "leaving", "lacking"):
        sys.modules.pop(name, None)
    return outside


def spec(*names: str) -> Any:
    averaging = [{"scheme": "none"}]
    raw = {"study": "s", "workloads": list(names), "averaging": averaging, "tracking": {"wandb": "disabled"}}
    return parse_spec({**raw, "evaluate": {"every": 20}})


FAILURES = {
    "dividing:W": ("when imported: ZeroDivisionError: division by zero", "dividing.py:2"),
    "unfinished:W": ("when imported: SyntaxError", "unfinished.py:1"),
    "leaving:W": ("when imported: SystemExit: it called exit(3)", "leaving.py:1"),
    "lacking:W": (
        "when imported: ModuleNotFoundError: No module named 'a_library_that_is_not_here'",
        "lacking.py:1",
    ),
    "badwork:Making": ("when it is made: KeyError: 'no key'", "badwork.py:7"),
    "badwork:Exiting": ("when it is made: SystemExit: it called exit(0)", "badwork.py:11"),
    "badwork:Building": ("in model(): IndexError: list index out of range", "badwork.py:15"),
    "badwork:Dict": ("in model(): AttributeError", ""),
    "nowhere_at_all:W": ("No module named 'nowhere_at_all'", ""),
    "sys:exit": ("a module of Python's own", ""),
}


@pytest.mark.parametrize("name", list(FAILURES))
def test_code_that_fails_is_one_line_and_does_not_stop_the_others(bad: Path, name: str) -> None:
    words, place = FAILURES[name]
    (left,), (line,) = usable([spec("tinywork:Tiny", name)])
    assert left.workloads == ("tinywork:Tiny",)
    for part in (repr(name), words, place, "left out"):
        assert part in line
    assert "\n" not in line
    with pytest.raises(SpecError) as raised:
        usable([spec(name)])
    assert words in str(raised.value)
    assert "workloads[0]" in str(raised.value)


def test_the_others_run_and_the_study_is_incomplete(bad: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    launched: list[str] = []

    def launch(engine: Any, todo: Any, *_: Any) -> bool:
        launched.extend(one.cells[0].training.workload for one in todo.trajectories)
        return True

    monkeypatch.setattr(flow, "_engine", lambda *_: nullcontext("one"))
    monkeypatch.setattr(flow.tracking, "start", lambda *_: None)
    monkeypatch.setattr(flow, "_launch", launch)
    monkeypatch.setattr("sweeps.cli._conclude", lambda *_: None)
    (bad / "s.yaml").write_text(STUDY.replace('"tinywork:Tiny"', '"tinywork:Tiny", "badwork:Building"'))
    done = CliRunner().invoke(main, ["run", "s.yaml", "--out", "run"])
    assert done.exit_code == 1, done.output
    assert launched == ["tinywork:Tiny"]
    assert "fails in model(): IndexError" in done.output
    planned = CliRunner().invoke(main, ["plan", "s.yaml"])
    assert planned.exit_code == 1
    assert "fails in model(): IndexError" in planned.output
    (bad / "s.yaml").write_text(STUDY.replace("tinywork:Tiny", "badwork:NoData"))
    done = CliRunner().invoke(main, ["run", "s.yaml", "--out", "elsewhere"])
    assert (done.exit_code, done.output.count("\n")) == (2, 1)
    assert "badwork:NoData fails in check_data(): RuntimeError: the disk is not mounted" in done.output
    assert not os.path.exists("elsewhere")
