"""A step in parts: every buffer is the mean over the parts of what each made of the old one, on however many ranks."""

from __future__ import annotations

import copy
import json
import os
import random
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from sweeps import random_streams
from sweeps.blocks import SpecError
from sweeps.cells import cells
from sweeps.data_parallel import Team
from sweeps.optimizers import OPTIMIZERS
from sweeps.plan import Trajectory, to_dict, trajectories
from sweeps.spec import parse_spec
from sweeps.step_buffers import StepBuffers
from workloads.protocol import Part, load

PARTS = 8
STEPS = 5
WORKLOAD = textwrap.dedent('''
    import torch
    from torch import nn
    from tinywork import Parted

    class Drift(nn.Module):
        """A running mean of another name, which is bound anew at each pass, a count and a mask."""

        def __init__(self):
            super().__init__()
            self.register_buffer("seen", torch.zeros(8))
            self.register_buffer("passes", torch.tensor(0))
            self.register_buffer("mask", torch.tensor([0.0, -torch.inf, 0.1]))

        def forward(self, x):
            if self.training:
                self.seen = self.seen + 0.3 * (x.detach().mean(0) - self.seen)
                self.passes += 1
            return x

    class Normed(Parted):
        batch_size = 32

        def model(self):
            norms = nn.BatchNorm1d(16), nn.BatchNorm1d(16, momentum=None)
            first = nn.Linear(8, 16, bias=False)
            return nn.Sequential(Drift(), first, norms[0], nn.ReLU(), norms[1], nn.Linear(16, 4))
''')
RANKS = textwrap.dedent("""
    import json, os, sys, traceback, torch
    from pathlib import Path
    from sweeps import data_parallel, trajectory, training
    from sweeps.evaluate import Evaluator
    from sweeps.plan import from_dict

    training.RECOMPUTE_BATCHES = 3

    def rank_of(rank, size, one, folder):
        evaluate = Evaluator.evaluate

        def kept(self, trained):
            mask = torch.nn.functional.dropout(torch.ones(64))
            result, state = evaluate(self, trained), self.state
            (scheme,) = state.bank
            with state.bank.swapped(scheme, recompute=self.passes.recompute):
                self.team.average_statistics(state.model)
                statistics = state.model.state_dict().items()
                recomputed = {name: value.clone() for name, value in statistics if "running" in name}
            told = {"model": state.model.state_dict(), "recomputed": recomputed, "dropout": mask}
            torch.save(told, folder / f"{size}-{rank}")
            return result

        Evaluator.evaluate = kept
        team = data_parallel.Team(rank, size)
        if size == 1:
            trajectory.train(one, trajectory.Given(*[str(folder)] * 3), team, device="cpu", num_devices=1)
            return
        with data_parallel.joined(rank, size, "cpu", folder / f"store{size}"):
            trajectory.train(one, trajectory.Given(*[str(folder)] * 3), team, device="cpu", num_devices=size)

    folder = Path(sys.argv[1])
    for size in (1, 2, 8):
        one = from_dict(json.loads((folder / f"{size}.json").read_text()))
        children = []
        for rank in range(size):
            child = os.fork()  # the imports are done
            if not child:
                status = 1
                try:
                    rank_of(rank, size, one, folder)
                    status = 0
                except BaseException:
                    traceback.print_exc()
                finally:
                    os._exit(status)
            children.append(child)
        if any([os.waitpid(child, 0)[1] for child in children]):
            sys.exit(f"a rank of {size} failed")
    """)


def study(**changes: Any) -> dict[str, Any]:
    return {
        "study": "t",
        "workloads": "normedwork:Normed",
        "step_budget": STEPS,
        "averaging": {"scheme": "ema", "decay": 0.5, "buffers": "recompute"},
        "evaluate": {"every": STEPS},
        **changes,
    }


def one_trajectory(accumulate: int) -> Trajectory:
    (one,) = trajectories(cells(parse_spec(study(training={"accumulate": accumulate}))), fuse=True)
    return one


@pytest.fixture
def split_three_ways(outside: Path, tmp_path: Path) -> dict[int, list[dict[str, Any]]]:
    """Number of ranks -> what each rank had after the last step: 8 parts on 1, 2 and 8 ranks."""
    (outside / "normedwork.py").write_text(WORKLOAD)
    for size in (1, 2, 8):
        (tmp_path / f"{size}.json").write_text(json.dumps(to_dict(one_trajectory(PARTS // size))))
    path = os.pathsep.join(path for path in (str(outside), *sys.path) if path)
    environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
    command = [sys.executable, "-c", RANKS, str(tmp_path)]
    ran = subprocess.run(command, cwd=outside, env=environment, capture_output=True, text=True, timeout=300)
    assert ran.returncode == 0, ran.stderr
    return {
        size: [torch.load(tmp_path / f"{size}-{rank}", weights_only=True) for rank in range(size)] for size in (1, 2, 8)
    }


def by_hand() -> dict[str, Tensor]:
    """The same training in plain PyTorch: a copy of the model for every part, buffers averaged at the end."""
    training = one_trajectory(PARTS).cells[0].training
    workload = load(training.workload, training.preset)
    torch.manual_seed(training.seed)
    model = workload.model().train()
    optimizer = OPTIMIZERS[training.optimizer](model.parameters(), **dict(training.settings))
    batches = [workload.batches(training.seed, 1, Part(i, PARTS)) for i in range(PARTS)]
    for step in range(STEPS):
        copies = [copy.deepcopy(model) for _ in range(PARTS)]
        for one, batch in zip(copies, map(next, batches), strict=True):
            workload.loss(one, batch).backward()
        for parameters in zip(*(m.parameters() for m in (model, *copies)), strict=True):
            parameters[0].grad = torch.stack([p.grad for p in parameters[1:]]).mean(0)
        for group in optimizer.param_groups:
            group["lr"] = dict(training.settings)["lr"] * training.schedule.lr_factor(step)
        optimizer.step()
        for name, buffer in model.named_buffers():
            parts = torch.stack([one.get_buffer(name) for one in copies])
            buffer.copy_(parts[0] if name.endswith(("mask", "passes", "tracked")) else parts.mean(0))
    return model.state_dict()


def assert_close(one: dict[str, Tensor], other: dict[str, Tensor]) -> None:
    assert one.keys() == other.keys()
    for name, value in one.items():
        torch.testing.assert_close(value, other[name], rtol=2e-4, atol=2e-6, msg=lambda m, n=name: f"{n}: {m}")


def test_one_model_whatever_shares_its_parts(split_three_ways: dict[int, list[dict[str, Any]]]) -> None:
    alone = split_three_ways[1][0]
    expected = by_hand()
    assert_close(alone["model"], expected)
    assert expected["2.num_batches_tracked"] == expected["0.passes"] == STEPS
    for size, ranks in split_three_ways.items():
        for rank in ranks:
            assert_close(rank["model"], alone["model"])
            assert_close(rank["recomputed"], alone["recomputed"])
            assert torch.equal(rank["model"]["0.mask"], torch.tensor([0.0, -torch.inf, 0.1]))
        first = ranks[0]["model"]
        assert all(torch.equal(rank["model"][name], first[name]) for rank in ranks for name in first)
        masks = {tuple(rank["dropout"].tolist()) for rank in ranks}
        assert len(masks) == size  # every rank drops other units


@pytest.mark.parametrize("seed", [0, 7, 2**31, 2**40])
def test_every_rank_draws_other_numbers(seed: int) -> None:
    """torch's generator on the CPU looks at the lower half of a seed alone, so the rank has to be in that."""
    with random_streams.kept():
        drawn = set()
        for rank in range(16):
            random_streams.seed_all(seed, rank)
            dropped = nn.functional.dropout(torch.ones(64))
            drawn.add((tuple(dropped.tolist()), np.random.random(), random.random()))  # noqa: NPY002
    assert [len(set(stream)) for stream in zip(*drawn, strict=True)] == [16, 16, 16]


@pytest.mark.parametrize("parts", [1, 2, 8])
def test_running_statistics_have_one_horizon_however_many_parts(parts: int) -> None:
    """AlgoPerf's momentum .01: after 40 steps a running mean has .33 of the way, not the .95 of 8 moves a step."""
    norm = nn.BatchNorm1d(1, momentum=0.01)
    for _ in range(40):
        buffers = StepBuffers(norm)
        for part in torch.tensor([[0.9], [1.1], [0.8], [1.2]]).repeat(8, 1).chunk(parts):
            buffers.begin()
            norm(part)
            buffers.add()
        buffers.finish(Team())
    assert norm.running_mean.item() == pytest.approx(1 - 0.99**40, rel=1e-5)
    assert norm.num_batches_tracked == 40
    variance = torch.tensor([0.9, 1.1, 0.8, 1.2]).repeat(8 // parts).var().item()
    assert norm.running_var.item() == pytest.approx(0.99**40 + (1 - 0.99**40) * variance, rel=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_buffers_that_no_part_changes_keep_their_bits(dtype: torch.dtype) -> None:
    model = nn.Linear(1, 1)
    kept = torch.tensor([0.1, -0.0, torch.inf, -torch.inf, torch.nan, 1e-40], dtype=dtype)
    model.register_buffer("kept", kept.clone())
    model.register_buffer("spread", torch.full((1,), 0.1, dtype=dtype).expand(4))
    buffers = StepBuffers(model)
    for _ in range(3):
        buffers.begin()
        buffers.add()
    buffers.finish(Team())
    assert torch.equal(model.kept.nan_to_num(7), kept.nan_to_num(7))
    assert torch.equal(model.spread, torch.full((4,), 0.1, dtype=dtype))


class Rotary(nn.Module):
    """A table that grows with the longest input so far, and one that is dropped after use, beside a norm."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(1, momentum=0.5)
        self.register_buffer("table", torch.zeros(2), persistent=False)
        self.register_buffer("once", torch.zeros(2), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        if len(x) > len(self.table):
            self.table = torch.arange(float(len(x))).cos()
        self.once = None
        return self.norm(x) * self.table[: len(x), None]


def test_a_cache_that_grows_in_a_part_stays_as_it_grew() -> None:
    model = Rotary()
    buffers = StepBuffers(model)
    for part in (torch.full((3, 1), 1.0), torch.full((6, 1), 3.0), torch.full((2, 1), 5.0)):
        buffers.begin()
        model(part)
        buffers.add()
    buffers.finish(Team())
    assert torch.equal(model.table, torch.arange(6.0).cos())
    assert model.once is None
    assert model.norm.running_mean.item() == pytest.approx((1 + 3 + 5) / 3 / 2)
    assert model.norm.num_batches_tracked == 1


class Twins(Team):
    """Two ranks that always agree."""

    def sum(self, value: Tensor) -> Tensor:
        return 2 * value


def test_equal_statistics_on_two_ranks_are_their_mean() -> None:
    """A sum over ranks that is not divided doubles them."""
    norm = nn.BatchNorm1d(3)
    norm(torch.randn(16, 3) + 2)
    expected = copy.deepcopy(norm.state_dict())
    Twins(0, 2).average_statistics(norm)
    assert_close(dict(norm.state_dict()), expected)
    buffers = StepBuffers(norm)
    buffers.begin()
    norm(torch.full((16, 3), 5.0))
    alone = copy.deepcopy(norm.state_dict())
    buffers.add()
    buffers.finish(Twins(0, 2))
    assert_close(dict(norm.state_dict()), alone)


@pytest.mark.parametrize(
    ("family", "batch", "piece"),
    [("imagenet_resnet", 1024, 128), ("librispeech_conformer", 256, 32), ("librispeech_deepspeech", 256, 32)],
)
def test_full_batch_norm_is_that_of_eight_devices(family: str, batch: int, piece: int) -> None:
    def parts(gpus: int, **changes: Any) -> int:
        resources = {"cpu": 8, "gpu": gpus}
        spec = {
            "workloads": family,
            "preset": "full",
            "averaging": {"scheme": "none"},
            "evaluate": {"every": 0.1},
        }
        base = study(**{**spec, "step_budget": 1.0, "resources": resources, **changes})
        return cells(parse_spec(base))[0].training.accumulate * max(1, gpus)

    assert load(family, "full").batch_size == batch
    for gpus in (0, 1, 2, 4, 8):
        assert batch // parts(gpus) == piece
    for gpus in (3, 16):
        with pytest.raises(SpecError, match=rf"over 8 parts.*{gpus} processes cannot share.*divides 8"):
            parts(gpus)
    assert parts(16, training={"accumulate": 1}) == 16  # asked for
