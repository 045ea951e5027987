"""A trace stands in for its training: the same records bit for bit, whatever is asked, after kills and in company."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from trained import ALL_SCHEMES, Stop, assert_same, run, stop_at, tiny

from analysis.run_folder.run_files import BadRun
from sweeps import replay, trace, training_state
from sweeps.plan import Trajectory, from_dict, to_dict, trajectories
from sweeps.trace import Trace
from sweeps.training import Trainer


def kept(run_folder: Path, every: int = 1, averaging: Any = ({"scheme": "none"},), **changes: Any) -> Trajectory:
    """A training whose trace is in the run folder, and its trajectory."""
    (one,) = trajectories(tiny(list(averaging), keep={"every": every}, **changes), fuse=True)
    run(one, run_folder / "trajectories" / one.name)
    return one


def asked(of: Trajectory, averaging: Any, **changes: Any) -> Trajectory:
    """A trajectory of the same training with other cells."""
    (one,) = trajectories(tiny(averaging, **changes), fuse=True)
    assert one.trajectory_id == of.trajectory_id
    return one


@pytest.fixture
def untrained(monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*_: Any) -> None:
        raise AssertionError("a replay trains nothing")

    monkeypatch.setattr(Trainer, "_backward", never)


def replayed(one: Trajectory, source: Trajectory, folder: Path, **options: Any) -> Any:
    again = from_dict(to_dict(replace(one, name=f"{one.name}-again", replays=source.name)))
    return run(again, folder / "trajectories" / again.name, **options)


@pytest.mark.parametrize("changes", [{}, {"evaluate": {"every": 5}}, {"evaluate": {"every": 30}}])
def test_a_replay_has_the_records_of_the_training_with_the_same_cells(
    outside: Path, tmp_path: Path, changes: dict[str, Any], request: pytest.FixtureRequest
) -> None:
    source = kept(tmp_path)
    one = asked(source, ALL_SCHEMES, **changes)
    expected = run(one, tmp_path / "trained")
    request.getfixturevalue("untrained")
    assert replay.why_not(one, Trace.of(tmp_path / "traces" / source.name)) is None
    assert_same(replayed(one, source, tmp_path), expected)


def test_what_is_killed_and_resumed_leaves_the_same_trace(
    outside: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trace, "PART_BYTES", 20_000)
    whole = kept(tmp_path / "whole", every=4)
    (one,) = trajectories(tiny([{"scheme": "none"}], keep={"every": 4}), fuse=True)
    folder = tmp_path / "killed" / "trajectories" / one.name
    for step in (7, 28, 35):
        with pytest.raises(Stop):
            run(one, folder, checkpoint_seconds=0.0 if step == 28 else 1e9, report=stop_at(step))
    run(one, folder)
    first, second = (Trace.of(tmp_path / name / "traces" / whole.name) for name in ("whole", "killed"))
    assert first.steps == second.steps == sorted({*range(4, 61, 4), *range(7, 61, 7), 60})
    for step in first.steps:
        here, there = first.read(step), second.read(step)
        assert here.tensors.keys() == there.tensors.keys()
        assert all(torch.equal(here.tensors[name], there.tensors[name]) for name in here.tensors)
        assert torch.equal(first.losses(step), second.losses(step))


def test_a_replay_is_killed_and_resumed_like_a_training(
    outside: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = kept(tmp_path)
    one = asked(source, ALL_SCHEMES)
    expected = replayed(one, source, tmp_path)
    other = replace(one, name="other")
    save = training_state.save

    def saving(state: Any, *more: Any) -> None:
        save(state, *more)
        if state.step == 31:
            raise Stop

    with monkeypatch.context() as patch:
        patch.setattr(training_state, "save", saving)
        patch.setattr("sweeps.trajectory._Leader.wants_checkpoint", lambda self, between=False: True)
        with pytest.raises(Stop):
            replayed(other, source, tmp_path)
    assert_same(replayed(other, source, tmp_path), expected)


def test_a_diverged_training_is_replayed_to_where_it_ended(outside: Path, tmp_path: Path) -> None:
    source = kept(tmp_path, workload="tinywork:Diverging")
    one = asked(source, ALL_SCHEMES[:2], workload="tinywork:Diverging")
    assert replay.why_not(one, Trace.of(tmp_path / "traces" / source.name)) is None
    assert_same(replayed(one, source, tmp_path), run(one, tmp_path / "trained"))


FLAGGED = """
import torch
from torch import nn
from tinywork import Tiny

class Flag(nn.Module):
    '''A buffer that is 1 after every third step alone, and that an evaluation sees.'''

    def __init__(self):
        super().__init__()
        self.register_buffer("flag", torch.zeros(()))
        self.register_buffer("steps", torch.zeros((), dtype=torch.long))

    def forward(self, x):
        if self.training:
            self.steps += 1
            self.flag.fill_(float(self.steps % 3 == 0))
        return x * (1 + self.flag)

class Flagged(Tiny):
    def model(self):
        model = super().model()
        model.append(Flag())
        return model
"""


def test_a_buffer_that_becomes_again_what_it_was_is_replayed_so(outside: Path, tmp_path: Path) -> None:
    (outside / "flaggedwork.py").write_text(FLAGGED)
    told = {"workload": "flaggedwork:Flagged", "evaluate": {"every": 1}}
    source = kept(tmp_path, **told)
    one = asked(source, ALL_SCHEMES[:2], **told)
    assert_same(replayed(one, source, tmp_path), run(one, tmp_path / "trained"))


def test_a_trace_that_is_gone_ends_its_replay_in_a_line(outside: Path, tmp_path: Path) -> None:
    source = kept(tmp_path)
    one = asked(source, ALL_SCHEMES[:2])
    with pytest.raises(Stop):
        replayed(one, source, tmp_path, checkpoint_seconds=0.0, report=stop_at(7))
    shutil.rmtree(tmp_path / "traces")
    with pytest.raises(BadRun, match=f"cannot be replayed: it has not .*; remove trajectories/{one.name}-again"):
        replayed(one, source, tmp_path)


@pytest.mark.parametrize("damage", ["flip", "cut", "empty"])
def test_a_broken_part_is_found_and_named(outside: Path, tmp_path: Path, damage: str) -> None:
    source = kept(tmp_path)
    (part,) = (tmp_path / "traces" / source.name).glob("*.safetensors")
    data = bytearray(part.read_bytes())
    if damage == "flip":
        data[-100] ^= 1
    part.write_bytes({"flip": bytes(data), "cut": bytes(data[:-10]), "empty": b""}[damage])
    with pytest.raises(BadRun, match=f"{part.name}: .*free the trace with `wa traces RUN --drop`"):
        replayed(asked(source, ALL_SCHEMES), source, tmp_path)


def test_a_trace_says_why_it_cannot_serve(outside: Path, tmp_path: Path) -> None:
    source = kept(tmp_path, every=6)
    found = Trace.of(tmp_path / "traces" / source.name)
    every = asked(source, [{"scheme": "none"}, {"scheme": "ema", "decay": 0.9, "every": 4}])
    assert replay.why_not(every, found) == f"it has not every step at which {every.cells[1].scheme} takes a snapshot"
    grid = asked(source, [{"scheme": "none"}], evaluate={"every": 5})
    assert replay.why_not(grid, found) == "it has not every step of an evaluation each 5 steps"
