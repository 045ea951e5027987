"""Real processes killed with SIGKILL in the middle: then `wa run` again, and nothing is lost and nothing double."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
from collections.abc import Sequence
from pathlib import Path

import pandas as pd
import pytest
from click.testing import CliRunner
from sweep_processes import STUDY, UNDRAWN, WA, num_records, wait, workers

from analysis.run_folder.records import KEY, load, load_records, load_trials
from analysis.run_folder.schema import MEASURED
from sweeps import cli, durable
from sweeps.grace import SAID

pytestmark = pytest.mark.slow


@pytest.fixture
def study(outside: Path) -> Path:
    (outside / "kills.yaml").write_text(STUDY)
    return outside


def begin(study: Path, *options: str, wa: Sequence[str] = UNDRAWN) -> subprocess.Popen[bytes]:
    command = [*wa, "run", "kills.yaml", "--out", "run", "--checkpoint-seconds", "0", *options]
    with open(study / "log", "ab") as log:
        return subprocess.Popen(command, cwd=study, stdout=log, stderr=log, start_new_session=True)


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
    assert process.wait(400) == 0, (study / "log").read_text()


def test_kill_9_of_the_driver_and_again_and_a_hangup(study: Path, undisturbed: pd.DataFrame) -> None:
    run = (study / "run").resolve()
    kept = []
    for wa, more, number in (
        (UNDRAWN, 1, signal.SIGKILL),
        (UNDRAWN, 16, signal.SIGKILL),  # at once: orphans of the killed driver may still be writing
        ([WA], 8, signal.SIGHUP),
    ):
        least = num_records(run) + more
        process = begin(study, wa=wa)
        wait(lambda least=least, process=process: num_records(run) >= least or process.poll() is not None)
        process.send_signal(number)
        assert process.wait(120) == (1 if number == signal.SIGHUP else -number)  # incomplete, and said so
        kept.append(load_records(run))
    assert "interrupted by SIGHUP; records up to here are kept" in (study / "log").read_text()
    assert "incomplete" in (study / "log").read_text()
    assert (run / "report.html").exists()
    assert 0 < len(kept[0]) <= len(kept[1]) <= len(kept[2]) < len(undisturbed)
    finish(study)
    assert_like_undisturbed(run, undisturbed)
    for before in kept:
        both = load_records(run).merge(before, on=KEY, suffixes=("", "_before"))
        assert len(both) == len(before)
        assert (both["train_seconds"] == both["train_seconds_before"]).all()


def test_kill_9_of_a_worker(study: Path, undisturbed: pd.DataFrame) -> None:
    run = (study / "run").resolve()
    process = begin(study)
    wait(lambda: num_records(run) >= 12 or process.poll() is not None)
    killed = workers(run)
    assert killed
    for pid, number in zip(killed, [signal.SIGTERM, *[signal.SIGKILL] * len(killed)], strict=False):
        os.kill(pid, number)
    assert process.wait(400) == 0, (study / "log").read_text()  # Ray starts it again by itself
    assert_like_undisturbed(run, undisturbed)
    assert SAID in (study / "log").read_text()  # of SIGTERM, before which a checkpoint is written
    went_on = [log for log in run.glob("trajectories/*/log") if SAID in log.read_text()]
    assert [re.search(r"on from step (\d+)", log.read_text()) is not None for log in went_on] == [True]
    trials = load_trials(run)
    assert (trials["status"] == "interrupted").sum() >= 1
    assert (trials["status"] == "done").sum() == 3


def test_a_second_driver_is_refused(study: Path, tiny_folder: Path, undisturbed: pd.DataFrame) -> None:
    run = shutil.copytree(tiny_folder / "run", study / "run")
    with durable.locked(run):
        second = CliRunner().invoke(cli.main, ["run", "kills.yaml", "--out", "run"])
    assert second.exit_code == 2
    assert "another `wa run`" in second.stderr


def test_a_finished_study_repeats_nothing_and_a_longer_one_adds(
    study: Path, tiny_folder: Path, undisturbed: pd.DataFrame
) -> None:
    run = shutil.copytree(tiny_folder / "run", study / "run")
    before = {path.name: path.stat().st_mtime_ns for path in (run / "records").iterdir()}
    finish(study)
    assert "0 trajectories to train, 3 trajectories done already" in (study / "log").read_text()
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
    done = CliRunner().invoke(cli.main, ["run", "kills.yaml", "--out", "run"])
    assert done.exit_code == 2
    assert "evaluate.every" in done.stderr
    assert done.stderr.count("\n") == 1


def test_a_failing_workload_fails_its_trial_and_says_why(study: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")  # somebody's cluster, which is none of ours
    text = STUDY.replace('"tinywork:Slow"', '["tinywork:Tiny", "tinywork:Failing"]').replace("[0, 1, 2]", "[0]")
    (study / "kills.yaml").write_text(text)
    process = begin(study)
    assert process.wait(400) == 1
    log = (study / "log").read_text()
    assert "no such luck" in log
    assert "incomplete" in log
    frame = load(study / "run")
    assert set(frame["workload"]) == {"tinywork:Tiny"}
    trials = load_trials(study / "run")
    assert (trials["status"] == "failed").sum() == 1  # it would fail again
    assert "tried again" not in log
    assert len(json.loads((study / "run" / "plan.json").read_text())["cells"]) == 8
