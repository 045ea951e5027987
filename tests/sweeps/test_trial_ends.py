"""How a trial ends: what its attempt and its log say, what is tried again, what is measured and saved on the way."""

from __future__ import annotations

import itertools
import json
import sys
import textwrap
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from analysis.run_folder.records import read_live
from sweeps import attempts, launch, retries, training_state, trajectory
from sweeps.cells import cells
from sweeps.desk import Desk
from sweeps.plan import Trajectory, to_dict, trajectories
from sweeps.spec import parse_spec

ENDING = textwrap.dedent("""
    import logging
    import sys
    import torch
    from tinywork import Diverging, Tiny

    class Raises(Tiny):
        def loss(self, model, batch):
            logging.disable(logging.CRITICAL)
            self.calls = getattr(self, "calls", 0) + 1
            if self.calls == 9:
                raise KeyError("column y")
            return super().loss(model, batch)

    class Exits(Tiny):
        def loss(self, model, batch):
            sys.exit(0)

    class Interrupted(Tiny):
        def loss(self, model, batch):
            raise KeyboardInterrupt

    class Offline(Tiny):
        def loss(self, model, batch):
            try:
                raise ConnectionResetError("the data server is gone")
            except ConnectionResetError as error:
                raise ValueError("no batch") from error

    class Short(Tiny):
        def batches(self, seed, first_step):
            return zip(range(10), super().batches(seed, first_step))

        def loss(self, model, batch):
            return super().loss(model, batch[1])

    class DivergesAtTheEnd(Tiny):
        splits = ("validation", "test")

        def loss(self, model, batch):
            self.calls = getattr(self, "calls", 0) + 1
            return super().loss(model, batch) * (float("nan") if self.calls == 60 else 1.0)

    class OneRankRaises(Tiny):
        def batches(self, seed, first_step, part=None):
            for x, y in super().batches(seed, first_step):
                if part is not None and part.index == 1:
                    raise LookupError("rank 1 has no such shard")
                yield x[part.index :: part.count], y[part.index :: part.count]

        def eval_batches(self, split, part=None):
            return super().eval_batches(split)[part.index :: part.count]
""")


@pytest.fixture(autouse=True)
def _ending(outside: Path) -> None:
    (outside / "endingwork.py").write_text(ENDING)
    sys.modules.pop("endingwork", None)


def one(name: str, every: int = 7, **changes: Any) -> Trajectory:
    averaging = [{"scheme": "none"}, {"scheme": "ema", "decay": 0.9}]
    spec = {"study": "t", "workloads": name, "averaging": averaging, "evaluate": {"every": every}, **changes}
    (found,) = trajectories(cells(parse_spec(spec)), fuse=True)
    return found


def attempt(folder: Path) -> dict[str, Any]:
    row: dict[str, Any] = json.loads((folder / "attempt-0.json").read_text())
    return row


@pytest.mark.parametrize(
    ("name", "kind", "status", "told"),
    [
        ("Raises", KeyError, "failed", "KeyError: 'column y' ("),
        ("Exits", SystemExit, "failed", "SystemExit: it called exit(0) ("),
        ("Short", ValueError, "failed", "batches() ends before step 11"),
    ],
)
def test_an_error_of_the_workloads_own_is_said_once_and_comes_again(
    tmp_path: Path, name: str, kind: type[BaseException], status: str, told: str
) -> None:
    folder = tmp_path / "a"
    with pytest.raises(kind):
        trajectory.run(one(f"endingwork:{name}"), folder)
    row = attempt(folder)
    assert (row["status"], row["lasting"]) == (status, True)
    assert told in row["error"]
    if name != "Short":
        assert "endingwork.py:" in row["error"]
    assert attempts.lasting_error(folder) == row["error"]
    assert (folder / "log").read_text().splitlines()[-1].endswith(row["error"]), "also where it disabled logging"
    assert not (folder / "done").exists()


def test_an_interrupt_and_a_lost_connection_are_no_fault_of_the_code(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        trajectory.run(one("endingwork:Interrupted"), tmp_path / "a")
    assert attempt(tmp_path / "a")["status"] == "interrupted"
    with pytest.raises(ValueError, match="no batch"):
        trajectory.run(one("endingwork:Offline"), tmp_path / "b")
    assert attempt(tmp_path / "b")["status"] == "failed"
    for folder in (tmp_path / "a", tmp_path / "b"):
        assert attempts.lasting_error(folder) is None


def test_whoever_listens_may_end_it_without_blame(tmp_path: Path) -> None:
    """Tune ends a trial by SystemExit out of its report."""

    def stop(step: int) -> None:
        raise SystemExit(0)

    with pytest.raises(SystemExit):
        trajectory.run(one("tinywork:Tiny"), tmp_path / "a", report=stop)
    assert attempt(tmp_path / "a")["status"] == "interrupted"
    assert attempts.lasting_error(tmp_path / "a") is None


@pytest.mark.parametrize(
    ("error", "lasting"),
    [
        (TypeError("x"), True),
        (RuntimeError("shapes do not match"), True),
        (FileNotFoundError("tokens.bin"), True),
        (SystemExit(1), True),
        (retries.RankFailed("x"), True),
        (KeyboardInterrupt(), False),
        (OSError(5, "Input/output error"), False),
        (TimeoutError(), False),
        (MemoryError(), False),
        (torch.OutOfMemoryError("x"), False),
        (RuntimeError("CUDA error: an illegal memory access"), False),
        (RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed"), False),
        (RuntimeError("[gloo/transport/tcp/pair.cc] Connection closed by peer"), False),
    ],
)
def test_what_is_tried_again(error: BaseException, lasting: bool) -> None:
    assert retries.is_lasting(error) is lasting


def test_the_trial_gives_tune_only_what_is_worth_another_try(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = ("Raises", "Exits", "Offline")
    planned = [replace(one(f"endingwork:{name}"), name=name) for name in names]
    for trajectory_ in planned:
        folder = tmp_path / "trajectories" / trajectory_.name
        folder.mkdir(parents=True)
        (folder / "trajectory.json").write_text(json.dumps(to_dict(trajectory_)))
    lost: list[str] = []
    listener: Any = SimpleNamespace(failed=lambda name, reason: lost.append(f"{name}: {reason}"))
    desk = Desk(tmp_path, planned, listener, {name: {} for name in names})
    monkeypatch.setattr(launch.tune, "report", lambda told: desk.heard(told["name"], told["told"]))
    monkeypatch.setattr(launch.crash_dumps, "kept", lambda: nullcontext({"node": "n", "pid": 1, "dump": "d"}))
    outcomes = {}
    for name in names:
        config = desk.next()
        assert config is not None
        try:
            launch._train(config)
            outcomes[name] = "ended"
            desk.ended(name)
        except ValueError:
            outcomes[name] = "tried again"
    assert outcomes == {"Raises": "ended", "Exits": "ended", "Offline": "tried again"}
    assert desk.outcome.failed == ["Raises", "Exits"]
    assert lost[0].startswith("Raises: KeyError: 'column y' (")
    assert str(tmp_path / "trajectories" / "Raises" / "log") in lost[0]


def test_an_error_on_another_rank_is_told_and_not_tried_again(tmp_path: Path) -> None:
    with pytest.raises(retries.RankFailed, match="rank 1 has no such shard"):
        trajectory.run(one("endingwork:OneRankRaises"), tmp_path / "a", processes=2, num_devices=2)
    assert "LookupError" in str(attempts.lasting_error(tmp_path / "a"))


def test_a_rank_that_does_not_start_is_not_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONHOME", str(tmp_path))  # no Python starts with that
    with pytest.raises(RuntimeError, match="process 1 of the trial ended with exit code 1 as it starts"):
        trajectory.run(one("endingwork:OneRankRaises"), tmp_path / "a", processes=2, num_devices=2)


def test_a_run_that_diverges_at_its_very_end_is_not_tested(tmp_path: Path) -> None:
    evaluate = {"every": 20, "test": True}
    trajectory.run(one("endingwork:DivergesAtTheEnd", evaluate=evaluate), tmp_path / "a")
    rows = list(read_live(tmp_path / "a" / "records.jsonl"))
    assert {(row["step"], row["diverged"]) for row in rows} == {(20, False), (40, False), (60, True)}
    assert {row["split"] for row in rows} == {"validation"}


@pytest.mark.parametrize(
    ("checkpoint_seconds", "saving", "least"),
    [(10.0, 30.0, 19 * 30.0), (250.0, 0.01, 250.0), (0.0, 30.0, 0.0)],
)
def test_checkpoints_take_a_twentieth_of_the_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, checkpoint_seconds: float, saving: float, least: float
) -> None:
    """By a clock that only training and saving move: 100 s an evaluation, `saving` a checkpoint."""
    clock = SimpleNamespace(now=0.0)
    monkeypatch.setattr(trajectory, "time", SimpleNamespace(monotonic=lambda: clock.now))
    saves: list[tuple[float, float]] = []
    write = training_state.save

    def save(*arguments: Any) -> None:
        write(*arguments)
        saves.append((clock.now, clock.now + saving))
        clock.now += saving

    def report(step: int) -> None:
        clock.now += 100.0

    monkeypatch.setattr(training_state, "save", save)
    trajectory.run(one("tinywork:Tiny", every=2), tmp_path / "a", checkpoint_seconds=checkpoint_seconds, report=report)
    gaps = [later[0] - earlier[1] for earlier, later in itertools.pairwise(saves)]
    assert len(gaps) >= 3
    assert all(gap >= least for gap in gaps)
    assert all(gap <= least + 100.0 for gap in gaps), "and no later than it may"
    if not checkpoint_seconds:
        assert len(saves) == 29  # after every evaluation but the last
