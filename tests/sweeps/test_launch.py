"""The order of the plan, what Tune's events become, and waits that end."""

from __future__ import annotations

import os
import subprocess
import threading
from pathlib import Path
from types import SimpleNamespace

import pytest
from click.testing import CliRunner
from sweep_processes import UNDRAWN

from analysis import load
from sweeps import launch
from sweeps.cli import main
from sweeps.desk import Desk
from sweeps.engine import Engine
from sweeps.interrupts import Interrupts


def test_tune_is_left_at_its_next_step_once_asked(tmp_path: Path) -> None:
    stop = threading.Event()
    callback = launch._Callback(Desk(tmp_path, [], SimpleNamespace(), {}), stop)  # type: ignore[arg-type]
    callback.on_step_begin(0, [])
    stop.set()
    with pytest.raises(launch._Stopped):
        callback.on_step_begin(1, [])


class Hung:
    """A Tuner that Ray's death holds for ever."""

    def fit(self) -> None:
        threading.Event().wait()


@pytest.mark.parametrize("why", ["dead", "asked once", "asked twice"])
def test_no_wait_is_for_ever(why: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launch, "LOOK_SECONDS", 0.001)
    monkeypatch.setattr(launch, "STOP_SECONDS", 0.05 if why == "asked once" else 60.0)
    on = Engine()
    if why == "dead":
        monkeypatch.setattr(Engine, "died", lambda self: "Ray on this machine died (raylet killed by SIGKILL)")
    interrupts = Interrupts(count={"dead": 0, "asked once": 1, "asked twice": 2}[why], first="SIGINT")
    fit = launch._Fit(Hung())
    fit.start()
    stop = threading.Event()
    said = launch._wait(fit, on, stop, interrupts, SimpleNamespace(tick=lambda: None))
    assert on.abandoned
    assert said is not None
    assert ("died" if why == "dead" else "interrupted by SIGINT") in said
    assert stop.is_set() == (why != "dead")


FOLDER_WORK = """
import torch
from workloads import data
from tinywork import Tiny

class FromFolder(Tiny):
    def batches(self, seed, first_step, part=None):
        folder = data.dataset("mine", "scale.txt")
        scale = float((folder / "scale.txt").read_text())
        if part is not None:
            (folder / f"read for part {part.index} of {part.count}").touch()
        for x, y in super().batches(seed, first_step):
            chosen = slice(None) if part is None else slice(part.index, None, part.count)
            yield scale * x[chosen], y[chosen]

    def eval_batches(self, split, part=None):
        batches = super().eval_batches(split)
        return batches if part is None else batches[part.index :: part.count]

    def check_data(self):
        if not (data.dataset("mine", "scale.txt") / "scale.txt").is_file():
            raise data.BadData("mine/scale.txt: no such file")
"""
FOLDER_STUDY = """
study: folder
workloads: "folderwork:FromFolder"
averaging: [{scheme: none}, {scheme: ema, decay: 0.9}]
evaluate: {every: 20}
tracking: {wandb: disabled}
"""


@pytest.mark.slow
def test_data_folder_and_processes_reach_the_trial(outside: Path) -> None:
    """Two data-parallel processes in a Ray trial, on data that the spec says where to find.

    All that in a folder with modules of the names of ours and of Python's, which no process may import.
    """
    for taken in ("analysis.py", "random.py", "queue.py", "sweeps/__init__.py", "workloads/__init__.py"):
        (outside / taken).parent.mkdir(exist_ok=True)
        (outside / taken).write_text("raise RuntimeError('the user file ran')")
    (outside / "folderwork.py").write_text(FOLDER_WORK)
    (outside / "study.yaml").write_text(FOLDER_STUDY)
    (outside / "half" / "mine").mkdir(parents=True)
    (outside / "half" / "mine" / "scale.txt").write_text("0.5")
    command = [*UNDRAWN, "run", "study.yaml", "--out", "run"]
    command += ["--set", "data_dir=half", "resources={cpu: 2, processes: 2}"]
    environment = {name: value for name, value in os.environ.items() if name != "WA_DATA_DIR"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stdout + done.stderr
    frame = load("run")
    assert frame["step"].tolist() == [20, 40, 60] * 2
    assert (frame["processes"] == 2).all()
    read = {path.name for path in (outside / "half" / "mine").glob("read*")}  # by both, and of the same folder
    assert read == {"read for part 0 of 2", "read for part 1 of 2"}
    (log,) = outside.glob("run/trajectories/*/log")
    assert "process 1:" not in log.read_text(), "the second process had nothing to complain of"


def test_missing_data_is_one_line_before_anything_starts(outside: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (outside / "folderwork.py").write_text(FOLDER_WORK)
    (outside / "study.yaml").write_text(FOLDER_STUDY)
    (outside / "empty" / "mine").mkdir(parents=True)
    for sets, told in (
        ([], "set WA_DATA_DIR or"),
        (["data_dir=nowhere"], "no such folder"),
        (["data_dir=empty"], "mine/scale.txt"),
    ):
        monkeypatch.setenv("WA_DATA_DIR", "")  # put back at the end, whatever the command makes of it
        monkeypatch.delenv("WA_DATA_DIR")
        done = CliRunner().invoke(main, ["run", "study.yaml", "--out", "run", *(["--set", *sets] if sets else [])])
        assert done.exit_code == 2
        assert told in done.stderr
        assert done.stderr.count("\n") == 1
        assert not (outside / "run").exists()
