"""bf16, compile, accumulation and data-parallel processes: each does what it says, and no more."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from trained import assert_same, run, stop_at

from sweeps import evaluate
from sweeps.blocks import SpecError
from sweeps.cells import cells
from sweeps.data_parallel import Team
from sweeps.identity import Cell
from sweeps.plan import Trajectory, to_dict, trajectories
from sweeps.spec import parse_spec

PARTED = textwrap.dedent('''
    import torch
    from torch import nn
    from tinywork import Tiny, draw
    import numpy as np

    class Parted(Tiny):
        """Tiny in parts; examples count by their label, so that parts weigh differently. No noise, no coupling."""

        batch_norm = False

        def model(self):
            norm = [nn.BatchNorm1d(16)] if self.batch_norm else []
            return nn.Sequential(nn.Linear(8, 16), *norm, nn.ReLU(), nn.Linear(16, 4))

        def batches(self, seed, first_step, part=None):
            for x, y in super().batches(seed, first_step):
                chosen = slice(None) if part is None else slice(part.index, None, part.count)
                yield x[chosen], y[chosen]

        def loss_weight(self, batch):
            return (1.0 + batch[1]).sum()

        def loss(self, model, batch):
            x, y = batch
            losses = nn.functional.cross_entropy(model(x), y, reduction="none")
            return ((1.0 + y) * losses).sum() / self.loss_weight(batch)

        def eval_batches(self, split, part=None):
            rng = np.random.default_rng(7)
            batches = [draw(rng, 40 + i) for i in range(5)]
            return batches if part is None else batches[part.index :: part.count]

        def eval_step(self, model, batch):
            x, y = batch
            logits = model(x)
            return {
                "loss": nn.functional.cross_entropy(logits, y, reduction="sum"),
                "n": torch.tensor(len(y)),
                "guesses": logits.argmax(1),
                "labels": y,
            }

        def summarize(self, sums):
            right = sums["guesses"] == sums["labels"]
            order = (torch.arange(len(right)) * right).double().mean()  # tells the order of what is joined
            accuracy = right.double().mean()
            return sums["loss"] / sums["n"], accuracy, int(sums["n"]), {"order": order}

    class Drawing(Parted):
        """Draws from numpy's and Python's global streams, other numbers on each rank."""

        batch_norm = True

        def loss(self, model, batch):
            import random
            return super().loss(model, batch) * (1 + 0.1 * np.random.randn() + 0.1 * random.gauss(0, 1))

    class Normed(Parted):
        batch_norm = True

    class Shared(Parted):
        """Its batches are held one at a time, so that one process has more turns than the other."""

        def model(self):
            from sweeps import evaluate
            evaluate.HELD_BYTES = 1
            return super().model()

    class Slow(Parted):
        def loss(self, model, batch):
            import time
            time.sleep(0.02)
            return super().loss(model, batch)
''')
AVERAGES = [
    {"scheme": "none"},
    {"scheme": "lawa", "k": 3, "every": 2},
    {"scheme": "ema", "decay": 0.9},
    {"scheme": "tail", "start": 20},
]
NORMED = [
    {"scheme": "none"},
    *({"scheme": "ema", "decay": 0.9, "buffers": policy} for policy in ("live", "average", "recompute")),
]


@pytest.fixture
def parted(outside: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (outside / "partedwork.py").write_text(PARTED)
    return outside


def one_trajectory(workload: str = "partedwork:Parted", averaging: Any = AVERAGES, **changes: Any) -> Trajectory:
    found: list[Cell] = cells(
        parse_spec({"study": "t", "workloads": workload, "averaging": averaging, "evaluate": {"every": 7}, **changes})
    )
    (one,) = trajectories(found, fuse=True)
    return one


def results(frame: pd.DataFrame) -> pd.DataFrame:
    """What is not measured in seconds, without the ids."""
    orders = [dict(pairs).get("order", float("nan")) for pairs in frame["metrics"]]
    return frame[["step", "loss", "metric", "examples", "train_loss", "step_lr"]].assign(order=orders)


def assert_close(one: pd.DataFrame, other: pd.DataFrame, relative: float = 1e-4) -> None:
    pd.testing.assert_frame_equal(results(one), results(other), rtol=relative)


def test_micro_batches_make_the_same_step(parted: Path, tmp_path: Path) -> None:
    whole = run(one_trajectory(), tmp_path / "whole")
    for accumulate in (2, 4):
        parts = run(one_trajectory(training={"accumulate": accumulate}), tmp_path / f"{accumulate}")
        assert (parts["cell_id"] != whole["cell_id"]).any()  # other bits, another cell
        by_scheme = [cell.cell_id for cell in one_trajectory(training={"accumulate": accumulate}).cells]
        base = [cell.cell_id for cell in one_trajectory().cells]
        for a, b in zip(by_scheme, base, strict=True):
            assert_close(
                parts[parts["cell_id"] == a].reset_index(drop=True),
                whole[whole["cell_id"] == b].reset_index(drop=True),
            )


def test_two_processes_train_as_one(parted: Path, tmp_path: Path) -> None:
    one = one_trajectory(optimizer={"grad_clip": 0.5})
    alone = run(one, tmp_path / "one")
    together = run(one, tmp_path / "two", processes=2, num_devices=2)
    assert together["cell_id"].tolist() == alone["cell_id"].tolist()
    assert_close(together, alone)
    assert not results(together).equals(results(alone))  # it did take another order of summation


def test_processes_and_micro_batches_together(parted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evaluate, "HELD_BYTES", evaluate.HELD_BYTES)  # put back, which the workload sets
    one = one_trajectory("partedwork:Shared", training={"accumulate": 2})
    assert_close(run(one, tmp_path / "two", processes=2, num_devices=2), run(one, tmp_path / "one"))


def test_two_processes_stopped_and_resumed(parted: Path, tmp_path: Path) -> None:
    one = one_trajectory("partedwork:Drawing", NORMED)
    undisturbed = run(one, tmp_path / "undisturbed", processes=2, num_devices=2)

    folder = tmp_path / "disturbed"
    with pytest.raises(KeyboardInterrupt):
        run(one, folder, processes=2, num_devices=2, checkpoint_seconds=0, report=stop_at(28, KeyboardInterrupt))
    after = run(one, folder, processes=2, num_devices=2)
    assert_same(after, undisturbed)


def begin(folder: Path, *arguments: object) -> subprocess.Popen[bytes]:
    path = os.pathsep.join(path for path in (str(folder), *sys.path) if path)
    environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen([sys.executable, *map(str, arguments)], env=environment, cwd=folder)


def test_every_rank_has_the_same_averages(parted: Path, tmp_path: Path) -> None:
    """Two ranks by hand: each writes its weights, statistics and averages at the end."""
    script = parted / "ranks.py"
    script.write_text(
        textwrap.dedent("""
            import json, sys, torch
            from pathlib import Path
            from sweeps import data_parallel, evaluate, trajectory
            from sweeps.plan import from_dict

            rank, folder = int(sys.argv[1]), Path(sys.argv[2])
            one = from_dict(json.loads((folder / "trajectory.json").read_text()))
            keep = evaluate.Evaluator.evaluate

            def spied(self, trained):
                result, state = keep(self, trained), self.state
                if state.step == one.length_steps:
                    averages = {repr(s): state.bank.tensors(s) for s in state.bank}
                    torch.save({"model": state.model.state_dict(), **averages}, folder / f"rank{rank}")
                return result

            evaluate.Evaluator.evaluate = spied
            with data_parallel.joined(rank, 2, "cpu", folder / "store"):
                team = data_parallel.Team(rank, 2)
                trajectory.train(one, trajectory.Given(*[str(folder)] * 3), team, device="cpu", num_devices=2)
            """)
    )
    one = one_trajectory("partedwork:Normed", NORMED[:3])
    (tmp_path / "trajectory.json").write_text(json.dumps(to_dict(one)))
    ranks = [begin(parted, script, rank, tmp_path) for rank in (0, 1)]
    assert [rank.wait(120) for rank in ranks] == [0, 0]
    first, second = (torch.load(tmp_path / f"rank{rank}", weights_only=True) for rank in (0, 1))
    assert len(first) == 3
    for name, tensors in first.items():
        assert any(tensor.numel() for tensor in tensors.values())
        for key, tensor in tensors.items():
            if "num_batches" not in key:
                assert torch.equal(tensor, second[name][key]), (name, key)


def test_followers_end_with_a_killed_leader(parted: Path, tmp_path: Path) -> None:
    code = textwrap.dedent("""
        import sys, json
        from pathlib import Path
        from sweeps import trajectory
        from sweeps.plan import from_dict
        one = from_dict(json.loads(Path(sys.argv[1]).read_text()))
        trajectory.run(one, Path(sys.argv[2]), processes=2, num_devices=2, checkpoint_seconds=0)
        """)
    one = one_trajectory("partedwork:Slow")
    (tmp_path / "t.json").write_text(json.dumps(to_dict(one)))
    leader = begin(parted, "-c", code, tmp_path / "t.json", tmp_path / "run")
    records = tmp_path / "run" / "records.jsonl"
    deadline = time.monotonic() + 60
    while not (records.exists() and records.stat().st_size) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert records.stat().st_size
    followers = children(leader.pid)
    assert followers
    os.kill(leader.pid, signal.SIGKILL)
    leader.wait()
    while any(is_alive(pid) for pid in followers) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not any(is_alive(pid) for pid in followers)
    undisturbed = run(one, tmp_path / "undisturbed", processes=2, num_devices=2)
    after = run(one, tmp_path / "run", processes=2, num_devices=2)
    assert_same(after, undisturbed)


def children(pid: int) -> list[int]:
    found = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [int(child) for child in found if "sweeps.follower" in command(int(child))]


def command(pid: int) -> str:
    return Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " ")


def is_alive(pid: int) -> bool:
    try:
        return "sweeps.follower" in command(pid)
    except OSError:
        return False


def test_bf16_is_coarser_and_still_learns(parted: Path, tmp_path: Path) -> None:
    fine = run(one_trajectory(), tmp_path / "fp32")
    coarse_one = one_trajectory(training={"precision": "bf16"})
    coarse = run(coarse_one, tmp_path / "bf16")
    raw, raw_fine = (
        frame[frame["cell_id"] == of.cells[0].cell_id]["loss"].to_numpy()
        for frame, of in ((coarse, coarse_one), (fine, one_trajectory()))
    )
    assert not np.array_equal(raw, raw_fine)
    np.testing.assert_allclose(raw, raw_fine, rtol=0.05)
    # the weights themselves stay fp32: bf16 has 8 bits, so its losses repeat exactly, rerun or not
    again = run(coarse_one, tmp_path / "again")
    pd.testing.assert_frame_equal(results(coarse), results(again), check_exact=True)


BACKENDS = ["aot_eager", *(["inductor"] if shutil.which("g++") else [])]


@pytest.mark.filterwarnings("ignore::DeprecationWarning:torch")  # of torch's own, while it loads inductor
@pytest.mark.parametrize("backend", BACKENDS)
def test_compiled_training_is_the_same_training(parted: Path, tmp_path: Path, backend: str) -> None:
    plain = run(one_trajectory("partedwork:Normed", NORMED[1]), tmp_path / "plain")
    one = one_trajectory("partedwork:Normed", NORMED[1], training={"compile": backend})
    compiled = run(one, tmp_path / "compiled")
    assert one.cells[0].training.compile == backend
    assert_close(compiled, plain, relative=1e-3)


def test_compile_is_really_asked_for(parted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []
    monkeypatch.setattr(torch.nn.Module, "compile", lambda self, **options: asked.append(options))
    run(one_trajectory(training={"compile": True}), tmp_path / "a")
    run(one_trajectory(training={"compile": False}), tmp_path / "b")
    assert asked == [{"backend": "inductor"}]


@pytest.mark.parametrize(
    ("changes", "key", "told"),
    [
        ({"training": {"accumulate": 3}}, "training.accumulate", "do not divide a batch of 8"),
        ({"training": {"accumulate": 0}}, "training.accumulate", "from 1 to"),
        ({"training": {"precision": "fp16"}}, "training.precision", "bf16, fp32"),
        ({"training": {"compile": "fast"}}, "training.compile", "inductor"),
        ({"training": {"acumulate": 2}}, "training.acumulate", "accumulate"),
        ({"resources": {"cpu": 1, "processes": 2}}, "resources", "at most one a CPU"),
        ({"resources": {"gpu": 4, "processes": 2}}, "resources", "one a GPU"),
        ({"resources": {"gpu": 1.5}}, "resources.gpu", "whole number"),
        ({"workloads": "tinywork:Tiny", "training": {"accumulate": 2}}, "training.accumulate", "`part`"),
        ({"workloads": "tinywork:Tiny", "resources": {"cpu": 2, "processes": 2}}, "training", "`part`"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_one_line(parted: Path, changes: dict[str, Any], key: str, told: str) -> None:
    spec = {"study": "t", "workloads": "partedwork:Parted", "averaging": AVERAGES, **changes}
    with pytest.raises(SpecError) as error:
        cells(parse_spec(spec))
    assert error.value.path.startswith(key)
    assert told in str(error.value)
    assert "\n" not in str(error.value)


def test_several_gpus_are_a_process_each() -> None:
    spec = {
        "study": "t",
        "workloads": "lm",
        "averaging": {"scheme": "none"},
        "resources": {"cpu": 8, "gpu": 4},
    }
    assert parse_spec(spec).trial("lm").num_processes == 4
    assert parse_spec({**spec, "resources": {"gpu": 0.25}}).trial("lm").num_processes == 1
    with pytest.raises(SpecError, match=r"4 processes"):
        cells(parse_spec({**spec, "training": {"accumulate": 3}}))


def test_processes_take_over_a_workloads_own_micro_batches() -> None:
    def accumulate(**changes: Any) -> int:
        spec = {"study": "t", "workloads": "lm", "preset": "full", "averaging": {"scheme": "none"}, **changes}
        return cells(parse_spec(spec))[0].training.accumulate

    assert accumulate() == 8
    assert accumulate(resources={"cpu": 8, "gpu": 4}) == 2
    assert accumulate(resources={"cpu": 8, "gpu": 16}) == 1
    assert accumulate(resources={"cpu": 8, "gpu": 4}, training={"accumulate": 8}) == 8


def test_a_team_of_one_talks_to_nobody() -> None:
    team, value = Team(), torch.arange(3.0)
    assert team.sum(value) is value
    assert team.decide([True, False]) == [True, False]
    assert torch.equal(team.join([value, value[:1]]), torch.tensor([0.0, 1.0, 2.0, 0.0]))
