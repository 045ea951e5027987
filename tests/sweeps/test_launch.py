"""The order of the plan, what Tune's events become, and waits that end."""

from __future__ import annotations

import os
import subprocess
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner
from ray.tune.search import Searcher
from sweep_processes import UNDRAWN

from analysis import load
from sweeps import launch
from sweeps.cli import main
from sweeps.engine import Engine
from sweeps.interrupts import Interrupts


def test_the_searcher_is_the_plan_in_its_order_then_finished() -> None:
    configs = [{"folder": name, "fork": None} for name in "abc"]
    searcher = launch.PlanSearcher([*configs])
    assert [searcher.suggest(str(i)) for i in range(4)] == [*configs, Searcher.FINISHED]


def test_a_branch_waits_for_its_trunks_state_and_goes_with_it(tmp_path: Path) -> None:
    folder = tmp_path / "trunk"
    folder.mkdir()
    trunk, early, late, other = (
        {"folder": str(tmp_path / name), "fork": fork and str(folder / fork)}
        for name, fork in (("trunk", None), ("early", "fork-10"), ("late", "fork-20"), ("other", None))
    )
    searcher = launch.PlanSearcher([early, trunk, late, other])
    assert [searcher.suggest(name) for name in "abc"] == [trunk, other, None]
    (folder / "fork-10").touch()
    assert [searcher.suggest(name) for name in "cd"] == [early, None]
    searcher.on_trial_complete("b", result={})
    assert searcher.suggest("e") is None  # still to come
    searcher.on_trial_complete("a", error=True)
    assert searcher.suggest("f") == Searcher.FINISHED

    searcher = launch.PlanSearcher([trunk, late])
    assert [searcher.suggest(name) for name in "ab"] == [trunk, None]
    (folder / "done").touch()  # it diverged before step 20, as the branch will
    searcher.on_trial_complete("a", result={})
    assert [searcher.suggest(name) for name in "cd"] == [late, Searcher.FINISHED]


class Trial:
    """A trial as Tune shows it to callbacks."""

    def __init__(self, num_failures: int, error_file: Path) -> None:
        self.config, self.num_failures, self.error_file = {"name": "abc"}, num_failures, str(error_file)


class Heard:
    """A listener that remembers."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, ...]] = []

    def __getattr__(self, name: str) -> Callable[..., None]:
        return lambda *given: self.calls.append((name, *given))


def test_a_trial_is_lost_after_its_last_retry_and_not_before(tmp_path: Path) -> None:
    """Tune itself counts the retries (tests/faults has it do so); a retry is no loss, and a loss no retry."""
    outcome, heard = launch.Outcome(), Heard()
    callback = launch._Callback(tmp_path, heard, outcome, threading.Event())
    error = tmp_path / "error.txt"
    error.write_text("Failure # 1 (occurred at x)\nKeyError: 'first'\nFailure # 2 (occurred at x)\nOSError: last\n")
    for failures in range(1, launch.MAX_FAILURES + 1):
        callback.on_trial_recover(0, [], Trial(failures, error))
    assert outcome.failed == []
    assert [call[0] for call in heard.calls] == ["retried"] * launch.MAX_FAILURES
    assert f"OSError: last ({tmp_path / 'trajectories/abc/log'})" in heard.calls[-1][2]
    assert "retry 3 of 3" in heard.calls[-1][2]
    callback.on_trial_error(0, [], Trial(launch.MAX_FAILURES + 1, error))
    assert outcome.failed == ["abc"]
    assert heard.calls[-1][:2] == ("failed", "abc")


def test_tune_is_left_at_its_next_step_once_asked(tmp_path: Path) -> None:
    stop = threading.Event()
    callback = launch._Callback(tmp_path, Heard(), launch.Outcome(), stop)
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
    said = launch._wait(fit, on, stop, interrupts, Heard())
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
    assert len(list(outside.glob("run/trajectories/*/log-rank1"))) == 1, "a second process trained"


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
