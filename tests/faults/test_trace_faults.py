"""A trace on a disk that is full, in a process that is killed, or damaged: what is lost is kept again, or named."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from trained import assert_same, done, rows, run, tiny

from analysis.run_folder.run_files import BadRun
from sweeps import attempts, durable, run_folder, trace, trajectory
from sweeps.plan import Trajectory, to_dict, trajectories
from sweeps.spec import Spec, parse_spec
from sweeps.trace import Trace
from sweeps.work import work

NONE, EMA = {"scheme": "none"}, {"scheme": "ema", "decay": 0.9, "every": 4}
SMALL = 20_000  # bytes of a part: of some five snapshots


def kept() -> Trajectory:
    (one,) = trajectories(tiny([NONE, EMA], keep={"every": 4}), fuse=True)
    return one


def home(run_folder: Path, one: Trajectory) -> Path:
    return run_folder / "trajectories" / one.name


def assert_whole(one: Trajectory, broken: Path, whole: Path) -> None:
    """The records and the trace of a training that was disturbed are those of one that was not."""
    assert_same(rows(home(broken, one)), rows(home(whole, one)))
    here, there = (Trace.of(folder / "traces" / one.name) for folder in (broken, whole))
    assert here.steps == there.steps
    for step in there.steps:
        tensors, expected = here.read(step).tensors, there.read(step).tensors
        assert tensors.keys() == expected.keys()
        assert all(torch.equal(tensors[name], expected[name]) for name in expected)
        assert torch.equal(here.losses(step), there.losses(step))


@pytest.mark.parametrize("part", [1, 3])
def test_a_full_disk_while_keeping(outside: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, part: int) -> None:
    monkeypatch.setattr(trace, "PART_BYTES", SMALL)
    one, write, parts = kept(), durable.write_atomic, list[Path]()

    def full(path: Path, data: Any) -> None:
        parts.extend([path] if path.suffix == ".safetensors" else [])
        if len(parts) == part and path.suffix == ".safetensors":
            write(path, lambda put: (put(data[: len(data) // 2]), no_space(path)))  # as far as there is room
        else:
            write(path, data)

    def no_space(path: Path) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))

    with monkeypatch.context() as patch:
        patch.setattr(durable, "write_atomic", full)
        with pytest.raises(OSError, match="No space left") as caught:
            run(one, home(tmp_path / "broken", one), checkpoint_seconds=0)
    assert str(caught.value.filename).endswith(".safetensors")
    assert attempts.lasting_error(home(tmp_path / "broken", one)) is None  # there may be room at the next try
    assert not list((tmp_path / "broken").rglob("*.new"))
    run(one, home(tmp_path / "broken", one))
    run(one, home(tmp_path / "whole", one))
    assert_whole(one, tmp_path / "broken", tmp_path / "whole")


KILLED = """
import json, os, signal, sys
from pathlib import Path
from sweeps import durable, trace, trajectory
from sweeps.plan import from_dict

trace.PART_BYTES = int(sys.argv[2])
write, parts = durable._write_all, []

def killed(descriptor, data):
    if ".safetensors" in os.readlink(f"/proc/self/fd/{descriptor}"):
        parts.append(data)
        if len(parts) == 2:
            write(descriptor, data[: len(data) // 2])
            os.kill(os.getpid(), signal.SIGKILL)
    write(descriptor, data)

durable._write_all = killed
folder = Path(sys.argv[1])
trajectory.run(from_dict(json.loads((folder / "trajectory.json").read_text())), folder, checkpoint_seconds=0)
"""


def test_a_kill_in_the_middle_of_a_part(outside: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trace, "PART_BYTES", SMALL)
    one, broken = kept(), tmp_path / "broken"
    home(broken, one).mkdir(parents=True)
    (home(broken, one) / "trajectory.json").write_text(json.dumps(to_dict(one)))
    command = [sys.executable, "-c", KILLED, str(home(broken, one)), str(SMALL)]
    assert subprocess.run(command, cwd=outside, check=False).returncode == -signal.SIGKILL
    (half,) = broken.rglob("*.new")
    assert half.stat().st_size > 0
    assert len(Trace.of(broken / "traces" / one.name).steps) < 15
    with durable.locked(broken):  # as the next `wa run` does
        assert not half.exists()
    run(one, home(broken, one))
    run(one, home(tmp_path / "whole", one))
    assert_whole(one, broken, tmp_path / "whole")


def asked(name: str, averaging: Any, **changes: Any) -> Spec:
    spec = {"study": name, "workloads": "tinywork:Tiny", "evaluate": {"every": 20}, "averaging": averaging}
    return parse_spec({**spec, **changes})


@pytest.mark.parametrize("damage", ["flip", "cut", "gone"])
def test_a_damaged_trace_ends_its_replay_for_good_and_a_restored_one_mends_it(
    outside: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, damage: str
) -> None:
    monkeypatch.setattr(trace, "PART_BYTES", SMALL)
    folder = tmp_path / "run"
    (source,) = done(asked("first", [NONE], keep={"every": 4}), folder).trajectories
    later = asked("later", [EMA])
    todo = work([later], folder)
    (one,) = todo.trajectories
    run_folder.write_plan(folder, todo.studies, todo.trajectories)
    part = min((folder / "traces" / source.name).iterdir())
    whole = part.read_bytes()
    changed = bytearray(whole)
    changed[-100] ^= 1
    if damage == "gone":
        part.unlink()
    else:
        part.write_bytes(bytes(changed) if damage == "flip" else whole[:-10])
    with pytest.raises(BadRun) as caught:
        trajectory.run(one, run_folder.trajectory_folder(folder, one.name))
    said = attempts.lasting_error(run_folder.trajectory_folder(folder, one.name))
    assert said is not None  # and so `wa run` does not try it three times more
    named = source.name if damage == "gone" else part.name
    assert named in str(caught.value)
    assert named in said
    assert "\n" not in said
    if damage != "flip":  # which the plan finds without reading all of a trace
        with pytest.raises(BadRun, match=named):
            work([later], folder)
    part.write_bytes(whole)
    assert done(later, folder).trajectories == [one]
    assert work([later], folder).trajectories == []
