"""What is acknowledged survives a power cut at any system call; the order of the calls is what durability asks for."""

from __future__ import annotations

import errno
import os
import shutil
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from power_cut import Calls, Disk, write_tree
from record_rows import record

from analysis.run_folder.records import load_records
from sweeps import durable, run_folder
from sweeps.recorder import Recorder


def row(step: int) -> dict[str, Any]:
    return record(step, metrics={"a": 0.5})


@pytest.fixture
def log(tmp_path: Path) -> list[tuple[Any, ...]]:
    """The system calls of a whole trajectory."""
    (tmp_path / "run").mkdir()
    calls = Calls(tmp_path / "run")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(durable, "os", calls)
        train(tmp_path / "run", calls.log)
    return calls.log


def train(run: Path, log: list[tuple[Any, ...]]) -> None:
    """A trajectory's life as its writers lead it; ("told", n) in the log once n rows are acknowledged."""
    folder = run_folder.trajectory_folder(run, "t")
    durable.make_folder(folder)
    with Recorder(folder / "records.jsonl") as recorder:
        for step in (1, 2):
            recorder.append([row(step)])
            log.append(("told", step))
        durable.write_atomic(folder / "checkpoint", b"state")
        recorder.append([row(3)])
        log.append(("told", 3))
        recorder.finish()
    run_folder.compact(run, "t")


def test_rows_that_were_acknowledged_are_readable_after_a_power_cut_at_any_call(
    tmp_path: Path, log: list[tuple[Any, ...]]
) -> None:
    disk, told, seen = Disk(), 0, set()
    for call in [("begin",), *log]:
        if call[0] == "told":
            told = call[1]
        disk.do(call)
        for tree in disk.survivors():
            key = told, tuple(sorted(tree.items()))
            if key in seen:
                continue
            seen.add(key)
            left = tmp_path / "left"
            write_tree(tree, left)
            left.mkdir(exist_ok=True)
            frame = load_records(left)
            assert frame["step"].tolist()[:told] == list(range(1, told + 1)), (call, tree.keys())
            assert frame["loss"].tolist()[:told] == [row(step)["loss"] for step in range(1, told + 1)]
            if "trajectories/t/done" in tree:  # and `wa run` goes on from there
                run_folder.compact(left, "t")
                assert load_records(left)["step"].tolist() == [1, 2, 3]
            shutil.rmtree(left)
    assert told == 3
    assert len(seen) > 50


def test_the_order_of_the_calls(log: list[tuple[Any, ...]]) -> None:
    log = [(call[0], *(part for part in call[1:] if not isinstance(part, bytes))) for call in log]
    home = "trajectories/t"
    renames = [call for call in log if call[0] == "replace"]
    assert [there for _, _, there in renames] == [
        f"{home}/checkpoint",
        f"{home}/done",
        "records/t.parquet",
        f"{home}/done",
    ]
    for rename in renames:  # a file's content, its name, its folder
        at = log.index(rename)
        number = next(call[2] for call in reversed(log[:at]) if call[:2] == ("create", rename[1]))
        assert log[at - 1] == ("fsync", number)
        assert log[at - 2][:2] == ("write", number)
        assert log[at + 1] == ("fsync", os.path.dirname(rename[2]))
    told = [at for at, call in enumerate(log) if call[0] == "told"]
    live = next(call[2] for call in log if call[:2] == ("create", f"{home}/records.jsonl"))
    assert all(log[at - 1] == ("fsync", live) for at in told)  # nothing is acknowledged before it is on disk
    assert log.index(("unlink", f"{home}/records.jsonl")) > log.index(renames[-1])
    assert log.index(("unlink", f"{home}/records.jsonl")) > log.index(("fsync", "records"))


def test_a_file_that_could_not_be_written_leaves_the_old_one_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a"
    durable.write_atomic(path, b"old")

    def full(descriptor: int, data: Any) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "write", full)
    with pytest.raises(OSError, match="No space") as caught:
        durable.write_atomic(path, b"new")
    assert caught.value.filename == str(path)
    assert [(one.name, one.read_bytes()) for one in tmp_path.iterdir()] == [("a", b"old")]


def test_half_a_line_of_a_full_disk_does_not_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real, left = os.write, [40]

    def nearly_full(descriptor: int, data: Any) -> int:
        if not left:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return real(descriptor, bytes(data)[: left.pop()])

    with Recorder(tmp_path / "records.jsonl") as recorder:
        recorder.append([row(1)])
        before = (tmp_path / "records.jsonl").read_bytes()
        monkeypatch.setattr(os, "write", nearly_full)
        with pytest.raises(OSError, match=r"No space.*records\.jsonl"):
            recorder.append([row(2)])
        assert (tmp_path / "records.jsonl").read_bytes() == before
        monkeypatch.setattr(os, "write", real)
        recorder.append([row(2)])
        assert len(recorder.written) == 2


@pytest.mark.parametrize("kind", ["pipe", "folder", "link", "dangling", "device"])
def test_only_new_or_plain_files_are_replaced(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "out"
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    elif kind == "device":
        try:
            os.mknod(path, stat.S_IFCHR | 0o600, os.makedev(1, 3))
        except PermissionError:
            pytest.skip("device nodes need root")
    else:
        (tmp_path / "kept").write_text("kept")
        path.symlink_to("kept" if kind == "link" else "nowhere")
    before = path.lstat()
    with pytest.raises(OSError, match="not a plain file"):
        durable.write_atomic(path, b"x")
    assert path.lstat() == before
    assert not list(tmp_path.glob(".*"))


def test_temporary_files_of_dead_writers_go_those_of_living_ones_stay(tmp_path: Path) -> None:
    process = subprocess.Popen([sys.executable, "-c", "pass"])
    process.wait()
    folder = tmp_path / "trajectories" / "t"
    folder.mkdir(parents=True)
    dead = [tmp_path / f".plan.json.{process.pid}.new", folder / f".checkpoint.{process.pid}.new"]
    kept = [tmp_path / f".plan.json.{os.getpid()}.new", tmp_path / ".mine.new", folder / "a.1.new"]
    elsewhere = tmp_path / f".cells.parquet.{process.pid}.new"  # of a living writer on another host
    for path in [*dead, *kept, elsewhere]:
        path.write_bytes(b"half")
    with open(elsewhere, "rb") as stream:
        assert durable.try_lock(stream.fileno(), elsewhere)
        with durable.locked(tmp_path):
            assert not any(path.exists() for path in dead)
            assert all(path.exists() for path in [*kept, elsewhere])


def test_temporary_folders_of_dead_writers_go_those_of_living_ones_stay(tmp_path: Path) -> None:
    process = subprocess.Popen([sys.executable, "-c", "pass"])
    process.wait()
    dead, elsewhere = (tmp_path / f".kind.{'0' * zeros}{process.pid}.new" for zeros in (0, 1))
    mine = [tmp_path / ".kind.mine.new", tmp_path / f".other.{process.pid}.new", tmp_path / ".kind.1.new"]
    for path in [dead, elsewhere, *mine]:
        path.mkdir()
        (path / "half").write_bytes(b"half")
    descriptor = os.open(elsewhere, os.O_RDONLY)
    try:
        assert durable.try_lock(descriptor, elsewhere)  # of a living writer on another host
        with durable.folder_for(tmp_path / "goal", "kind") as new:
            (new / "whole").write_bytes(b"whole")
            assert not (tmp_path / "goal").exists()
    finally:
        os.close(descriptor)
    assert [path.name for path in (tmp_path / "goal").iterdir()] == ["whole"]
    assert {path for path in tmp_path.iterdir() if path.name.startswith(".")} == {elsewhere, *mine}


def _fail_halfway(goal: Path) -> None:
    with durable.folder_for(goal, "kind") as new:
        (new / "half").write_bytes(b"half")
        raise OSError("full")


def test_a_folder_that_fails_halfway_is_not_left(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="full"):
        _fail_halfway(tmp_path / "goal")
    assert not list(tmp_path.iterdir())
