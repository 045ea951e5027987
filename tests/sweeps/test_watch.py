"""`wa watch`: it follows a folder to the end of its study, waits for one, and writes nothing."""

from __future__ import annotations

import io
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from growing_run import Writer, console, plan_folder
from rich.console import Console

from analysis.run_folder.records import BadRun
from sweeps import screen
from sweeps.cli import main


def on_sleep(monkeypatch: pytest.MonkeyPatch, *steps: Callable[[], Any]) -> list[float]:
    """Do one of these at each sleep of the watch loop; the naps that were asked for."""
    waiting, naps = list(steps), []

    def sleep(seconds: float) -> None:
        naps.append(seconds)
        waiting.pop(0)()

    monkeypatch.setattr(screen.time, "sleep", sleep)
    return naps


def interrupt() -> None:
    raise KeyboardInterrupt


@pytest.mark.parametrize("terminal", [False, True])
def test_it_ends_with_the_study(
    run: Path, writers: list[Writer], monkeypatch: pytest.MonkeyPatch, terminal: bool
) -> None:
    one, other = writers
    one.attempt()
    naps = on_sleep(
        monkeypatch, lambda: one.record((one.raw, 20, 0.5)), one.finish, lambda: (other.attempt(), other.finish())
    )
    out = io.StringIO()
    told = Console(file=out, width=160, height=50, force_terminal=terminal, highlight=False)
    assert screen.watch(run, told, every=0.25) == 0
    assert naps == [0.25] * 3
    if terminal:
        assert "2 of 2 trials done" in out.getvalue().rsplit("Does it pay?", 1)[1]
    else:  # at first, and where a trial ends
        lines = out.getvalue().splitlines()
        assert [line.split("] ")[1].split(" trials")[0] for line in lines] == ["0 of 2", "1 of 2", "2 of 2"]


def test_an_interrupt_ends_it_quietly(run: Path, writers: list[Writer], monkeypatch: pytest.MonkeyPatch) -> None:
    on_sleep(monkeypatch, interrupt)
    told, _ = console()
    assert screen.watch(run, told) == 0


def test_watching_writes_nothing(run: Path, writers: list[Writer]) -> None:
    writers[0].attempt()
    writers[0].record((writers[0].raw, 20, 0.5))
    before = {path: path.stat().st_mtime_ns for path in sorted(run.rglob("*"))}
    done = CliRunner().invoke(main, ["watch", str(run), "--once"])
    assert done.exit_code == 0, done.output
    assert "1 running" in done.output
    assert {path: path.stat().st_mtime_ns for path in sorted(run.rglob("*"))} == before


def test_no_run_folder_is_one_line_and_exit_2(tmp_path: Path) -> None:
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "thesis.tex").touch()  # never a run folder: nothing to wait for
    for path, *options in (
        (tmp_path, "--once"),
        (tmp_path / "absent", "--once"),
        (tmp_path / "absent", "--wait", "0"),
        (tmp_path / "home",),
    ):
        done = CliRunner().invoke(main, ["watch", str(path), *options])
        assert done.exit_code == 2
        assert len(done.output.splitlines()) == 1
        assert "not a run folder" in done.output


def test_it_waits_for_its_folder_and_says_so_once(run: Path, outside: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def done() -> None:
        (planned,) = plan_folder(run)
        Writer(run, planned).attempt()
        Writer(run, planned).finish()

    naps = on_sleep(monkeypatch, lambda: None, lambda: (run / "trajectories").mkdir(parents=True), done)
    told, out = console()
    assert screen.watch(run, told, every=0.5) == 0
    assert naps == [0.5] * 3
    first, last = out.getvalue().splitlines()
    assert first == f"{run}: no run folder yet; waiting for one, for 10 min 0 s at most; Ctrl-C ends it"
    assert "1 of 1 trials done" in last
    assert sorted(path.name for path in outside.iterdir() if path.name != "__pycache__") == ["run", "tinywork.py"]


def test_it_does_not_wait_for_ever(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(screen.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(screen.time, "sleep", lambda seconds: now.__setitem__(0, now[0] + seconds))
    told, _ = console()
    with pytest.raises(BadRun, match="not a run folder"):
        screen.watch(tmp_path / "absent", told)
    assert 600 <= now[0] <= 602
    on_sleep(monkeypatch, interrupt)
    assert screen.watch(tmp_path / "absent", told) == 0


@pytest.mark.slow
def test_a_real_interrupt_leaves_no_traceback(run: Path, writers: list[Writer]) -> None:
    writers[0].attempt()
    command = [str(Path(sys.executable).with_name("wa")), "watch", str(run), "--every", "0.1"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=os.environ)
    assert process.stdout is not None
    assert "0 of 2 trials done" in process.stdout.readline()
    process.send_signal(signal.SIGINT)
    rest = process.communicate(timeout=20)[0]
    assert process.returncode == 0
    assert "Traceback" not in rest
