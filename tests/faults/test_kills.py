"""Real processes killed with SIGKILL in the middle: then `wa run` again, and nothing is lost and nothing double."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from pathlib import Path

import pandas as pd
import pytest
from sweep_processes import STUDY, WA, num_records, wait, workers

from analysis.run_folder.records import KEY, load, load_records, load_trials
from analysis.run_folder.schema import MEASURED

pytestmark = pytest.mark.slow


@pytest.fixture
def study(outside: Path) -> Path:
    (outside / "kills.yaml").write_text(STUDY)
    return outside


def begin(study: Path, *options: str) -> subprocess.Popen[bytes]:
    log = open(study / "log", "ab")  # noqa: SIM115
    command = [WA, "run", "kills.yaml", "--out", "run", "--checkpoint-seconds", "0", *options]
    process = subprocess.Popen(command, cwd=study, stdout=log, stderr=log, start_new_session=True)
    log.close()
    return process


def assert_like_undisturbed(run: Path, undisturbed: pd.DataFrame) -> None:
    frame = load_records(run)
    pd.testing.assert_frame_equal(frame.drop(columns=MEASURED), undisturbed.drop(columns=MEASURED), check_exact=True)
    # and not by the reader's grace: on disk, too, each record stands once
    stored = pd.concat([pd.read_parquet(path) for path in (run / "records").glob("*.parquet")])
    assert len(stored) == len(stored.drop_duplicates(KEY)) == len(undisturbed)
    assert not list((run / "trajectories").glob("*/records.jsonl"))
    for name in MEASURED[:3]:  # clocks
        assert (frame.groupby("cell_id")[name].diff().dropna() >= 0).all()


def finish(study: Path) -> None:
    process = begin(study)
    assert process.wait(180) == 0, (study / "log").read_text()


@pytest.mark.parametrize("records", [1, 40])
def test_kill_9_of_the_driver(study: Path, undisturbed: pd.DataFrame, records: int) -> None:
    run = (study / "run").resolve()
    process = begin(study)
    wait(lambda: num_records(run) >= records or process.poll() is not None)
    process.send_signal(signal.SIGKILL)
    process.wait()
    before = load_records(run)
    assert 0 < len(before) < len(undisturbed)
    finish(study)  # at once: orphans of the killed driver may still be writing
    assert_like_undisturbed(run, undisturbed)
    kept = load_records(run).merge(before, on=KEY, suffixes=("", "_before"))
    assert len(kept) == len(before)
    assert (kept["train_seconds"] == kept["train_seconds_before"]).all()


def test_kill_9_of_a_worker(study: Path, undisturbed: pd.DataFrame) -> None:
    run = (study / "run").resolve()
    process = begin(study)
    wait(lambda: num_records(run) >= 12 or process.poll() is not None)
    killed = workers(run)
    assert killed
    for pid in killed:
        os.kill(pid, signal.SIGKILL)
    assert process.wait(180) == 0, (study / "log").read_text()  # Ray starts it again by itself
    assert_like_undisturbed(run, undisturbed)
    trials = load_trials(run)
    assert (trials["status"] == "interrupted").sum() >= 1
    assert (trials["status"] == "done").sum() == 3


def test_a_hangup_ends_in_order_and_continues(study: Path, undisturbed: pd.DataFrame) -> None:
    run = (study / "run").resolve()
    process = begin(study)
    wait(lambda: num_records(run) >= 4 or process.poll() is not None)
    process.send_signal(signal.SIGHUP)
    assert process.wait(60) == 1  # incomplete, and said so
    assert "interrupted by SIGHUP; records up to here are kept" in (study / "log").read_text()
    assert "incomplete" in (study / "log").read_text()
    assert (run / "report.html").exists()
    finish(study)
    assert_like_undisturbed(run, undisturbed)


def test_one_trial_per_cell_gives_the_same_records(study: Path, undisturbed: pd.DataFrame) -> None:
    process = begin(study, "--set", "fuse=false", "step_budget=60", "seeds=[0]")
    assert process.wait(180) == 0, (study / "log").read_text()
    assert len(load_trials(study / "run")) == 4
    command = [WA, "run", "kills.yaml", "--out", "fused", "--set", "step_budget=60", "seeds=[0]"]
    done = subprocess.run(command, cwd=study, capture_output=True, text=True, timeout=180)
    assert done.returncode == 0, done.stderr
    assert len(load_trials(study / "fused")) == 1
    one_each, fused = load_records(study / "run"), load_records(study / "fused")
    pd.testing.assert_frame_equal(one_each.drop(columns=MEASURED), fused.drop(columns=MEASURED), check_exact=True)


def test_without_address_it_is_this_machine(study: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")  # somebody's cluster, which is none of ours
    process = begin(study, "--set", "step_budget=20", "seeds=[0]")
    assert process.wait(120) == 0, (study / "log").read_text()


def test_a_second_driver_is_refused(study: Path) -> None:
    process = begin(study)
    try:
        wait(lambda: num_records(study / "run") >= 1 or process.poll() is not None)
        command = [WA, "run", "kills.yaml", "--out", "run"]
        second = subprocess.run(command, cwd=study, capture_output=True, text=True, timeout=60)
        assert second.returncode == 2
        assert "another `wa run`" in second.stderr
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()


def test_a_finished_study_repeats_nothing_and_a_longer_one_adds(study: Path, undisturbed: pd.DataFrame) -> None:
    finish(study)
    run = study / "run"
    before = {path.name: path.stat().st_mtime_ns for path in (run / "records").iterdir()}
    started = time.monotonic()
    finish(study)
    assert time.monotonic() - started < 60
    assert {path.name: path.stat().st_mtime_ns for path in (run / "records").iterdir()} == before
    assert len(load_trials(run)) == 3
    # one more seed and one more scheme: kept cells stay, the new scheme on old seeds trains anew
    text = STUDY.replace("[0, 1, 2]", "[0, 1]").replace("decay: 0.9", "decay: [0.9, 0.5]")
    (study / "kills.yaml").write_text(text)
    finish(study)
    frame = load(run)
    assert sorted(frame[frame["ema_decay"] == 0.5]["seed"].unique()) == [0, 1]
    kept = frame[frame["cell_id"].isin(undisturbed["cell_id"])]
    assert len(kept) == len(undisturbed)
    assert {path.name: path.stat().st_mtime_ns for path in (run / "records").iterdir()}.items() >= before.items()
    # a conflict is one clear line
    (study / "kills.yaml").write_text(text.replace("every: 10", "every: 30"))
    command = [WA, "run", "kills.yaml", "--out", "run"]
    done = subprocess.run(command, cwd=study, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert "evaluate.every" in done.stderr
    assert done.stderr.count("\n") == 1


def test_a_failing_workload_fails_its_trial_and_says_why(study: Path) -> None:
    text = STUDY.replace('"tinywork:Slow"', '["tinywork:Tiny", "tinywork:Failing"]').replace("[0, 1, 2]", "[0]")
    (study / "kills.yaml").write_text(text)
    process = begin(study)
    assert process.wait(180) == 1
    log = (study / "log").read_text()
    assert "no such luck" in log
    assert "incomplete" in log
    frame = load(study / "run")
    assert set(frame["workload"]) == {"tinywork:Tiny"}
    trials = load_trials(study / "run")
    assert (trials["status"] == "failed").sum() == 1  # it would fail again
    assert "tried again" not in log
    assert len(json.loads((study / "run" / "plan.json").read_text())["cells"]) == 8
