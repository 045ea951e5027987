"""Whatever is wrong with a folder or a path ends in one line that names it, and an exit code; never in a traceback."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import shutil
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result
from sweep_processes import WA

from analysis import load, report
from sweeps import cli, run_folder, trajectory
from sweeps.spec import load_spec
from sweeps.work import work

STUDY = """
study: b
workloads: "tinywork:Tiny"
averaging:
  - {scheme: none}
  - {scheme: ema, decay: 0.9}
evaluate: {every: 20}
tracking: {wandb: disabled}
"""
pytestmark = pytest.mark.usefixtures("uncharted")


def train(run: Path, spec: Path) -> None:
    todo = work([load_spec(spec)], run)
    run_folder.write_plan(run, todo.studies, todo.trajectories)
    for one in todo.trajectories:
        trajectory.run(one, run_folder.trajectory_folder(run, one.name))
        run_folder.compact(run, one.name)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, tiny_folder: Path) -> Iterator[Path]:
    """A folder with a study and its finished run, trained once; its module is on the path for these tests."""
    home = tmp_path_factory.mktemp("border")
    shutil.copy(tiny_folder / "tinywork.py", home)
    (home / "b.yaml").write_text(STUDY)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(home)
        patch.syspath_prepend(str(home))
        sys.modules.pop("tinywork", None)
        train(home / "run", home / "b.yaml")
        run_folder.write_trials(home / "run")
        yield home


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(trained / "run", tmp_path / "run"))


def wa(*arguments: object) -> Result:
    """The command line, in this process: an exception that is not its own end is an error of ours."""
    done = CliRunner().invoke(cli.main, [str(one) for one in arguments])
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    return done


def commands(run: Path) -> dict[str, tuple[object, ...]]:
    return {
        "run": ("run", "b.yaml", "--out", run),
        "plan": ("plan", "b.yaml", "--out", run),
        "watch": ("watch", run, "--once"),
        "report": ("report", run),
        "recommend": ("recommend", run),
        "compare": ("compare", run, run),
        "dashboard": ("dashboard", run),
    }


CHEAP = ("run", "plan", "watch")


def delete(path: Path) -> None:
    path.unlink()


def empty(path: Path) -> None:
    path.write_bytes(b"")


def halve(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def scramble(path: Path) -> None:
    path.write_bytes(np.random.default_rng(0).bytes(path.stat().st_size))


def replace_with_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def replace_with_pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def link_round(path: Path) -> None:
    path.unlink()
    path.symlink_to(path.name)


def other_keys(path: Path) -> None:
    path.write_bytes(b'{"a": [1], "name": 7, "study": {}, "rows": "x", "cells": null}')


WAYS = [delete, empty, halve, scramble, replace_with_folder, replace_with_pipe, link_round, other_keys]
FILES = [
    *("plan.json", "cells.parquet", "trials.parquet", "spec.yaml", "records/*.parquet"),
    *("trajectories/*/trajectory.json", "trajectories/*/attempt-0.json", "trajectories/*/done"),
]


@pytest.mark.parametrize("break_it", WAYS)
@pytest.mark.parametrize("file", FILES)
def test_every_file_broken_in_every_way(
    run: Path, file: str, break_it: Callable[[Path], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    (path,) = run.glob(file)
    write = report.write
    break_it(path)
    dear = ("report", "recommend", "compare", "dashboard")
    place = FILES.index(file) + WAYS.index(break_it)
    cheap = CHEAP[place % 3], CHEAP[(place + 1) % 3]  # every command meets every file, and every way
    tried = [name for name in (*cheap, dear[place % 4]) if not retrains(file, break_it, name)]
    codes = {}
    for name in tried:
        # `wa run` ends with the report, whose figures take seconds; `wa report` draws them here.
        monkeypatch.setattr(report, "write", write if name == "report" else lambda run, _: run / "report.html")
        done = wa(*commands(run)[name])
        assert done.exit_code in (0, 1, 2), name
        codes[name] = done.exit_code
        if done.exit_code:
            (line,) = done.stderr.splitlines()
            assert path.name in line or str(run) in line, line
            assert line.startswith("wa: ")
    if file in ("plan.json", "cells.parquet", "records/*.parquet") and (file, break_it) != ("plan.json", delete):
        told = {code for name, code in codes.items() if "records" not in file or name != "dashboard"}
        assert told == {2}, codes  # the dashboard is made from plan and cells
        with pytest.raises(ValueError, match=path.name):
            load(run)


def retrains(file: str, break_it: Callable[[Path], None], command: str) -> bool:
    """Whether `wa run` trains again, which takes a Ray: where the folder no longer says that it did."""
    return command == "run" and (file, break_it) in {
        ("trajectories/*/attempt-0.json", delete),
        ("trajectories/*/done", delete),
    }


def test_foreign_files_change_nothing(run: Path) -> None:
    before = load(run)
    for place in (".DS_Store", "records/._x.parquet", "records/.DS_Store", "trajectories/.DS_Store", "Thumbs.db"):
        (run / place).write_bytes(b"\0\5\x16\7")
    (run / "trajectories" / "notes").mkdir()
    (run / "trajectories" / "notes" / "todo.txt").write_text("x")
    for name in ("plan", "watch", "recommend"):
        assert wa(*commands(run)[name]).exit_code == 0, name
    assert load(run).equals(before)


def test_a_lost_parquet_file_is_noticed_and_training_again_gives_the_same_rows(run: Path, trained: Path) -> None:
    (path,) = (run / "records").iterdir()
    path.unlink()
    for name in [*CHEAP, "report", "recommend", "compare"]:
        done = wa(*commands(run)[name])
        assert done.exit_code == 2
        home = run / "trajectories" / path.stem
        assert f"{path}: missing" in done.stderr
        assert f"remove {home} and `wa run` trains it again" in done.stderr
    shutil.rmtree(home)  # as it says
    train(run, trained / "b.yaml")
    assert path.is_file()
    columns = ["cell_id", "step", "loss", "metric"]
    assert load(run)[columns].equals(load(trained / "run")[columns])


def test_lost_live_records_are_trained_again_though_a_checkpoint_is_ahead(tmp_path: Path, trained: Path) -> None:
    run = tmp_path / "run"
    todo = work([load_spec(trained / "b.yaml")], run)
    run_folder.write_plan(run, todo.studies, todo.trajectories)
    (one,) = todo.trajectories
    home = run_folder.trajectory_folder(run, one.name)

    def stop(step: int) -> None:
        if step == 40:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        trajectory.run(one, home, checkpoint_seconds=0, report=stop)
    assert list(home.glob("checkpoint-*"))
    live = home / "records.jsonl"
    live.write_bytes(live.read_bytes().splitlines(keepends=True)[0])
    trajectory.run(one, home)
    run_folder.compact(run, one.name)
    columns = ["cell_id", "step", "loss", "metric"]
    assert load(run)[columns].equals(load(trained / "run")[columns])


@pytest.mark.parametrize("name", ["plan.json", "trajectory.json"])
def test_a_name_in_a_file_does_not_lead_out_of_the_folder(run: Path, tmp_path: Path, name: str) -> None:
    (path,) = run.rglob(name)
    told = json.loads(path.read_text())
    (told["trajectories"][0] if name == "plan.json" else told)["name"] = "../../.."
    path.write_text(json.dumps(told))
    before = sorted(one for one in tmp_path.rglob("*"))
    for command in CHEAP:
        done = wa(*commands(run)[command])
        assert done.exit_code == 2
        assert str(path) in done.stderr
    assert sorted(one for one in tmp_path.rglob("*")) == before


def test_another_format_is_refused_by_every_command(run: Path) -> None:
    plan = json.loads((run / "plan.json").read_text())
    assert plan["format"] == 1
    (run / "plan.json").write_text(json.dumps({**plan, "format": 2}))
    for name, command in commands(run).items():
        done = wa(*command)
        assert done.exit_code == 2, name
        assert "format 2" in done.stderr
        assert done.stderr.count("\n") == 1


def out_of(kind: str, tmp_path: Path) -> Path:
    out = tmp_path / "out"
    if kind == "a file":
        out.write_text("kept")
    elif kind == "below a file":
        (tmp_path / "file").write_text("kept")
        out = tmp_path / "file" / "out"
    elif kind == "a dangling link":
        out.symlink_to(tmp_path / "nowhere")
    elif kind == "a link in circles":
        out.symlink_to(out)
    elif kind == "a long name":
        out = tmp_path / ("x" * 300)
    elif kind == "a pipe":
        os.mkfifo(out)
    elif kind == "somebody's":
        out.mkdir()
        (out / "thesis.tex").write_text("kept")
    elif kind == "a kernel's":
        out = Path("/proc/wa")
    return out


PLACES = ("a file", "below a file", "a dangling link", "a link in circles", "a long name", "a pipe")


@pytest.mark.parametrize("kind", [*PLACES, "somebody's", "a kernel's"])
def test_an_out_that_cannot_be_is_one_line_before_anything_is_written(trained: Path, tmp_path: Path, kind: str) -> None:
    out = out_of(kind, tmp_path)
    before = sorted(tmp_path.rglob("*"))
    with pytest.MonkeyPatch.context() as patch:  # nothing to train, so no Ray: what is written is the plan
        patch.setattr("sweeps.plan.trajectories", lambda *_: [])
        done = wa("run", trained / "b.yaml", "--out", out)
    assert done.exit_code == 2
    assert str(out)[:120] in done.stderr
    assert done.stderr.count("\n") == 1
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOTSUP])
def test_a_file_system_without_locks_is_refused(run: Path, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    def flock(descriptor: object, how: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", flock)
    done = wa("run", "b.yaml", "--out", run)
    assert done.exit_code == 2
    assert "has no locks" in done.stderr
    assert str(run) in done.stderr


@pytest.mark.parametrize("kind", ["device", "pipe", "folder", "link"])
def test_the_dashboard_replaces_plain_files_alone(run: Path, tmp_path: Path, kind: str) -> None:
    out = tmp_path / "out.json"
    if kind == "device":
        try:
            os.mknod(out, stat.S_IFCHR | 0o600, os.makedev(1, 3))
        except PermissionError:
            pytest.skip("device nodes need root")
    elif kind == "pipe":
        os.mkfifo(out)
    elif kind == "folder":
        out.mkdir()
    else:
        (tmp_path / "kept.json").write_text("kept")
        out.symlink_to("kept.json")
    before = out.lstat()
    done = wa("dashboard", run, "--out", out)
    assert done.exit_code == 2
    assert f"{out}: there is something that is not a plain file" in done.stderr
    assert done.stderr.count("\n") == 1
    assert out.lstat() == before


@pytest.mark.parametrize(("command", "code"), [("report", 1), ("run", 2), ("dashboard", 2)])
def test_a_full_disk_is_one_line_and_the_old_files_stay(run: Path, trained: Path, command: str, code: int) -> None:
    for name in ("tables", "figures"):
        (run / name).mkdir()
    (run / "report.html").write_text("old")
    before = load(run)
    limited = f"ulimit -f 1; exec {WA} {' '.join(map(str, commands(run)[command]))}"  # of a file, in KiB
    done = subprocess.run(["bash", "-c", limited], cwd=trained, capture_output=True, text=True, timeout=120)
    assert done.returncode == code, done.stdout
    assert len(done.stderr.splitlines()) == 1, done.stderr
    assert done.stderr.startswith(f"wa: {run}/")
    assert "file too large" in done.stderr
    assert (run / "report.html").read_text() == "old"
    assert not list(run.rglob(".*.new"))
    assert load(run).equals(before)


def test_a_disk_that_fills_once_work_has_begun_is_exit_1(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fill(*_: object) -> bool:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(tmp_path / "new" / "trials.parquet"))

    monkeypatch.setattr("sweeps.run._engine", lambda *_: nullcontext(object()))
    monkeypatch.setattr("sweeps.run._launch", fill)
    done = wa("run", trained / "b.yaml", "--out", tmp_path / "new")
    assert done.exit_code == 1
    assert done.stderr == (
        f"wa: {tmp_path}/new/trials.parquet: no space left on device; "
        "free some space there, and the same command goes on\n"
    )


def test_what_a_killed_writer_left_goes_at_the_next_start(run: Path) -> None:
    process = subprocess.Popen([sys.executable, "-c", "pass"])
    process.wait()
    left = run / f".cells.parquet.{process.pid}.new"
    left.write_bytes(b"half")
    assert wa("run", "b.yaml", "--out", run).exit_code == 0
    assert not left.exists()


def test_a_deep_folder_hides_no_remedy(tmp_path: Path) -> None:
    run = tmp_path.joinpath(*["a folder of some length"] * 12)
    run.mkdir(parents=True)
    (run / "plan.json").write_text("{")
    told = CliRunner().invoke(cli.main, ["recommend", str(run)])
    assert told.exit_code == 2
    assert len(told.stderr) > 300
    assert str(run / "plan.json") in told.stderr
    assert "restore" in told.stderr.rpartition("plan.json")[2]
