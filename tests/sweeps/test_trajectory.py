"""The loop against itself: fused or not, resumed or not, first or tenth, the same records bit for bit."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from trained import ALL_SCHEMES, Stop, assert_same, rows, run, stop_at, tiny

from analysis.run_folder.records import KEY, load_records
from analysis.run_folder.schema import MEASURED
from sweeps import training_state, trajectory
from sweeps.cells import cells
from sweeps.optimizers import OPTIMIZERS
from sweeps.plan import trajectories
from sweeps.spec import parse_spec
from sweeps.training import Trainer
from sweeps.training_state import State
from wa import Bank
from workloads.protocol import load


def test_fused_equals_one_trial_per_cell(outside: Path, tmp_path: Path) -> None:
    grid = tiny(ALL_SCHEMES)
    (fused,) = trajectories(grid, fuse=True)
    unfused = trajectories(grid, fuse=False)
    assert len(unfused) == len(grid) == 13
    together = run(fused, tmp_path / "fused")
    alone = pd.concat([run(one, tmp_path / one.name) for one in unfused])
    assert_same(together, alone.sort_values(KEY).reset_index(drop=True))
    assert together["cell_id"].nunique() == len(grid)


def test_fused_equals_unfused_on_a_real_workload(tmp_path: Path) -> None:
    averaging = [
        {"scheme": "none"},
        {"scheme": "lawa", "k": [2, 5], "every": 2},
        {"scheme": "ema", "horizon": [0.1, 0.4], "every": 2},
        {"scheme": "tail", "start": 0.5},
    ]
    for workload in ("lm", "imagenet_vit"):
        spec = {"study": "t", "workloads": workload, "step_budget": 40, "averaging": averaging}
        grid = cells(parse_spec({**spec, "evaluate": {"every": 20}}))
        (fused,) = trajectories(grid, fuse=True)
        together = run(fused, tmp_path / workload)
        alone = pd.concat([run(one, tmp_path / one.name) for one in trajectories(grid, fuse=False)])
        assert_same(together, alone.sort_values(KEY).reset_index(drop=True))


def the_checkpoint(folder: Path) -> Path:
    """The only one there, which the pointer names."""
    (found,) = folder.glob("checkpoint-*")
    assert json.loads((folder / "checkpoint.json").read_text())["path"] == found.name
    return found


@pytest.mark.parametrize("step", [3, 31, 58])
def test_a_checkpoint_is_written_when_it_is_due_and_goes_on_between_two_evaluations(
    outside: Path, tmp_path: Path, step: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    (one,) = trajectories(tiny(ALL_SCHEMES), fuse=True)
    undisturbed = run(one, tmp_path / "undisturbed")
    save, saved = trajectory._Leader.checkpoint, []

    def saving(self: Any, state: State, *more: Any) -> None:
        save(self, state, *more)
        saved.append(state.step)
        if state.step == step:
            raise Stop

    monkeypatch.setattr(trajectory._Leader, "checkpoint", saving)
    monkeypatch.setattr(trajectory._Leader, "wants_checkpoint", lambda self, between=False: True)
    folder = tmp_path / "disturbed"
    with pytest.raises(Stop):
        run(one, folder)
    assert saved == list(range(1, step + 1))
    monkeypatch.undo()
    trained = []
    backward = Trainer._backward
    monkeypatch.setattr(Trainer, "_backward", lambda self, *parts: trained.append(1) or backward(self, *parts))
    assert_same(run(one, folder), undisturbed)
    assert len(trained) == one.length_steps - step


def test_a_checkpoint_that_is_gone_means_starting_over(outside: Path, tmp_path: Path) -> None:
    (one,) = trajectories(tiny(ALL_SCHEMES), fuse=True)
    undisturbed = run(one, tmp_path / "undisturbed")
    with pytest.raises(Stop):
        run(one, tmp_path / "a", checkpoint_seconds=0, report=stop_at(28))
    the_checkpoint(tmp_path / "a").unlink()
    assert_same(run(one, tmp_path / "a"), undisturbed)
    assert "is gone; training from the start" in (tmp_path / "a" / "log").read_text()


@pytest.mark.parametrize("checkpoint_seconds", [0.0, 1e9])
@pytest.mark.parametrize("step", [7, 28, 56])
def test_resumed_equals_undisturbed(outside: Path, tmp_path: Path, step: int, checkpoint_seconds: float) -> None:
    (one,) = trajectories(tiny(ALL_SCHEMES), fuse=True)
    undisturbed = run(one, tmp_path / "undisturbed")
    folder = tmp_path / "disturbed"
    with pytest.raises(Stop):
        run(one, folder, checkpoint_seconds=checkpoint_seconds, report=stop_at(step))
    assert bool(list(folder.glob("checkpoint-*"))) == (checkpoint_seconds == 0.0)
    before = rows(folder)
    assert before["step"].max() == step
    after = run(one, folder, checkpoint_seconds=checkpoint_seconds)
    assert_same(after, undisturbed)
    # what was on record before the stop stays as it was, measured seconds too, and time never runs backwards
    kept = after.merge(before, on=KEY, suffixes=("", "_before"))
    assert len(kept) == len(before)
    for name in MEASURED:
        assert (kept[name] == kept[f"{name}_before"]).all()
        assert name == "examples_per_second" or (after.groupby("cell_id")[name].diff().dropna() >= 0).all()


def test_a_bank_that_knows_its_readings_has_the_records_of_one_that_does_not(
    outside: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It goes on from the other's checkpoint too, and writes a smaller one."""
    (one,) = trajectories(tiny([*ALL_SCHEMES, {"scheme": "lawa", "k": [12, 30]}]), fuse=True)
    told = run(one, tmp_path / "told")
    monkeypatch.setattr(training_state, "Bank", lambda model, schemes, read_at, group: Bank(model, schemes))
    assert_same(run(one, tmp_path / "untold"), told)
    with pytest.raises(Stop):
        run(one, tmp_path / "resumed", checkpoint_seconds=0, report=stop_at(28))
    monkeypatch.undo()
    size = the_checkpoint(tmp_path / "resumed").stat().st_size
    with pytest.raises(Stop):
        run(one, tmp_path / "resumed", checkpoint_seconds=0, report=stop_at(35))
    assert the_checkpoint(tmp_path / "resumed").stat().st_size < size
    assert_same(run(one, tmp_path / "resumed"), told)


def test_the_mean_loss_survives_a_kill_between_two_evaluations(
    outside: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (one,) = trajectories(tiny(ALL_SCHEMES), fuse=True)
    undisturbed = run(one, tmp_path / "undisturbed")
    assert undisturbed["train_loss"].nunique() == 9  # of each stretch its own

    backward, calls = Trainer._backward, []

    def dies_in_step_32(self: Trainer, *parts: Any) -> torch.Tensor:
        calls.append(self)
        if len(calls) == 32:
            raise Stop
        return backward(self, *parts)

    monkeypatch.setattr(Trainer, "_backward", dies_in_step_32)
    with pytest.raises(Stop):
        run(one, tmp_path / "disturbed", checkpoint_seconds=0)
    assert rows(tmp_path / "disturbed")["step"].max() == 28
    assert_same(run(one, tmp_path / "disturbed"), undisturbed)


def test_a_damaged_checkpoint_means_starting_over(outside: Path, tmp_path: Path) -> None:
    (one,) = trajectories(tiny(ALL_SCHEMES), fuse=True)
    undisturbed = run(one, tmp_path / "undisturbed")
    with pytest.raises(Stop):
        run(one, tmp_path / "a", checkpoint_seconds=0, report=stop_at(28))
    the_checkpoint(tmp_path / "a").write_bytes(b"rubbish")
    assert_same(run(one, tmp_path / "a"), undisturbed)
    assert "training from the start" in (tmp_path / "a" / "log").read_text()


def test_a_finished_trajectory_is_not_trained_again(outside: Path, tmp_path: Path) -> None:
    (one,) = trajectories(tiny({"scheme": "none"}), fuse=True)
    run(one, tmp_path / "a")
    told: list[int] = []
    run(one, tmp_path / "a", report=told.append)
    assert told == []


def test_first_and_tenth_of_a_process_are_alike(outside: Path, tmp_path: Path) -> None:
    grid = trajectories(tiny({"scheme": "ema", "decay": 0.9}, seeds=[0, 1, 2]), fuse=True)
    first = {one.name: run(one, tmp_path / f"first-{one.name}") for one in grid}
    torch.manual_seed(123)
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    torch.rand(7)
    try:
        for one in reversed(grid):
            assert_same(run(one, tmp_path / f"again-{one.name}"), first[one.name])
    finally:
        torch.set_num_threads(threads)


def test_records_lie_on_the_grid_and_absent_averages_have_none(outside: Path, tmp_path: Path) -> None:
    (one,) = trajectories(tiny(ALL_SCHEMES), fuse=True)
    frame = run(one, tmp_path / "a")
    grid = [7, 14, 21, 28, 35, 42, 49, 56, 60]
    for cell in one.cells:
        steps = frame[frame["cell_id"] == cell.cell_id]["step"].tolist()
        assert steps == [step for step in grid if cell.scheme is None or cell.scheme.exists(step)]


def test_each_record_is_of_the_average_it_names(outside: Path, tmp_path: Path) -> None:
    """Train by hand, keep every snapshot, and evaluate Σ c θ: the naive way, on the live batch-norm buffers."""
    schemes = [{"scheme": "lawa", "k": 5, "every": 3}, {"scheme": "ema", "decay": 0.9}]
    schemes.append({"scheme": "wsm", "k": 5, "every": 3, "curve": "cosine"})
    grid = tiny([{"scheme": "none"}, *schemes])
    (one,) = trajectories(grid, fuse=True)
    frame = run(one, tmp_path / "a").set_index(["cell_id", "step"])
    work = load("tinywork:Tiny")
    training = grid[0].training
    torch.manual_seed(training.seed)
    torch.set_num_threads(1)
    model = work.model()
    build = OPTIMIZERS[training.optimizer]
    optimizer = build(model.parameters(), **dict(training.settings))
    weights: dict[int, list[torch.Tensor]] = {}
    batches = work.batches(training.seed, 1)
    losses: list[float] = []
    for step in range(1, 61):
        optimizer.param_groups[0]["lr"] = lr = 0.03 * training.schedule.lr_factor(step - 1)
        optimizer.zero_grad()
        loss = work.loss(model, next(batches))
        loss.backward()
        losses.append(loss.item())
        optimizer.step()
        weights[step] = [p.detach().double().clone() for p in model.parameters()]
        if step % 7 and step != 60:
            continue
        told = frame.loc[(grid[0].cell_id, step)]
        assert (told["train_loss"], told["step_lr"]) == (pytest.approx(sum(losses) / len(losses), rel=1e-6), lr)
        losses.clear()
        for cell in grid:
            coefficients = {step: 1.0} if cell.scheme is None else cell.scheme.coefficients(step)
            if not coefficients:
                continue
            live = [p.detach().clone() for p in model.parameters()]
            with torch.no_grad():
                for i, p in enumerate(model.parameters()):
                    p.copy_(sum(c * weights[s][i] for s, c in coefficients.items()))
            model.eval()
            sums = [work.eval_step(model, batch) for batch in work.eval_batches("validation")]
            mean = sum(float(s["loss"].detach()) for s in sums) / 200
            assert frame.loc[(cell.cell_id, step), "loss"] == pytest.approx(mean, rel=1e-5)
            with torch.no_grad():
                for p, value in zip(model.parameters(), live, strict=True):
                    p.copy_(value)
            model.train()


def final(folder: Path, **changes: Any) -> float:
    averaging = changes.pop("averaging", {"scheme": "none"})
    (one,) = trajectories(tiny(averaging, **changes), fuse=True)
    frame = run(one, folder)
    return float(frame["loss"].iloc[-1])


@pytest.mark.parametrize(
    "change",
    [
        {"seeds": 1},
        {"step_budget": 50},
        {"optimizer": {"lr": 0.01}},
        {"optimizer": {"beta1": 0.5}},
        {"optimizer": {"weight_decay": 0.5}},
        {"optimizer": {"grad_clip": 0.1}},
        {"optimizer": {"name": "adamw"}},
        {"optimizer": {"name": "sgd", "lr": 0.03}},
        {"schedule": {"shape": "linear"}},
        {"schedule": {"warmup": 0.5}},
        {"schedule": {"final_lr": 0.5}},
        {"schedule": {"length": 0.5}},
        {"schedule": {"lr_decay": 0.2}},
        {"averaging": {"scheme": "ema", "decay": 0.9}},
        {"averaging": {"scheme": "ema", "decay": 0.9, "buffers": "average"}},
        {"averaging": {"scheme": "ema", "decay": 0.9, "buffers": "recompute"}},
    ],
    ids=json.dumps,
)  # fmt: skip
def test_every_option_changes_the_result(outside: Path, tmp_path: Path, change: dict[str, Any]) -> None:
    others = [final(tmp_path / "base")]
    if change.get("averaging", {}).get("buffers"):
        others.append(final(tmp_path / "live", averaging={"scheme": "ema", "decay": 0.9}))
    assert final(tmp_path / "changed", **change) not in others


def test_divergence_is_recorded_and_ends_the_trajectory(outside: Path, tmp_path: Path) -> None:
    averaging = [{"scheme": "none"}, {"scheme": "ema", "decay": 0.9}]
    (one,) = trajectories(tiny(averaging, workload="tinywork:Diverging"), fuse=True)
    frame = run(one, tmp_path / "a")
    assert frame.groupby("cell_id")["step"].max().tolist() == [35, 35]
    last = frame[frame["step"] == 35]
    assert last["diverged"].all()
    assert all(math.isnan(loss) for loss in last["loss"])
    assert not frame[frame["step"] < 35]["diverged"].any()
    assert (tmp_path / "a" / "done").exists()


def test_attempts_are_told(outside: Path, tmp_path: Path) -> None:
    (one,) = trajectories(tiny({"scheme": "none"}), fuse=True)
    with pytest.raises(Stop):
        run(one, tmp_path / "a", report=stop_at(14))
    run(one, tmp_path / "a")
    attempts = [json.loads((tmp_path / "a" / f"attempt-{n}.json").read_text()) for n in (0, 1)]
    assert [a["status"] for a in attempts] == ["failed", "done"]
    assert all(a["seconds"] > 0 and a["ended"] > a["started"] for a in attempts)


def test_seconds_are_measured_and_add_up(outside: Path, tmp_path: Path) -> None:
    import time

    (one,) = trajectories(tiny(ALL_SCHEMES, workload="tinywork:Slow"), fuse=True)
    start = time.perf_counter()
    frame = run(one, tmp_path / "a")
    wall = time.perf_counter() - start
    end = frame[frame["step"] == 60]
    assert end["train_seconds"].nunique() == 1
    assert end["train_seconds"].iloc[0] >= 60 * 0.02
    assert end["train_seconds"].iloc[0] + end["eval_seconds"].sum() < wall
    none = end["cell_id"] == one.cells[0].cell_id
    assert (end[none]["average_seconds"] == 0).all()
    assert (end[~none]["average_seconds"] > 0).all()
    first = frame[frame["cell_id"] == one.cells[0].cell_id].iloc[0]
    assert first["examples_per_second"] == pytest.approx(7 * 8 / first["train_seconds"])


def test_load_records_reads_running_trajectories(outside: Path, tmp_path: Path) -> None:
    (one,) = trajectories(tiny({"scheme": "none"}), fuse=True)
    with pytest.raises(Stop):
        run(one, tmp_path / "trajectories" / "a", report=stop_at(14))
    assert load_records(tmp_path)["step"].tolist() == [7, 14]
