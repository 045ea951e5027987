"""The shipped families and a user's workload pass the suite; a workload with one promise broken fails there."""

from __future__ import annotations

import sys
import textwrap
from collections.abc import Iterable
from pathlib import Path

import pytest
import torch

from sweeps.conformance import Check, check
from workloads.protocol import UnknownWorkload, families

BROKEN = textwrap.dedent('''
    import functools
    import itertools
    import random
    import sys
    import time
    import numpy as np
    import torch
    from torch import nn
    from tinywork import Tiny, draw
    from workloads.protocol import WHOLE, Part

    class NoSteps(Tiny):
        step_budget = 0

    class UnknownOptimizer(Tiny):
        optimizer = {"name": "nadmw", "lr": 0.1}

    class UnknownSetting(Tiny):
        optimizer = {**Tiny.optimizer, "betas": 0.9}

    class UnknownShape(Tiny):
        schedule = {"shape": "cosinus"}

    class NoData(Tiny):
        def check_data(self):
            raise ValueError("no such folder")

    class SeedsItself(Tiny):
        def model(self):
            torch.manual_seed(1)
            return super().model()

    class ClockedWeights(Tiny):
        def model(self):
            model = super().model()
            with torch.no_grad():
                model[0].weight += time.time_ns() % 1000 / 1000
            return model

    class GlobalBatches(Tiny):
        def batches(self, seed, first_step):
            while True:
                x, y = draw(np.random.default_rng(seed), self.batch_size)
                yield x + torch.rand(()), y

    class DrawsInPassing(Tiny):
        def batches(self, seed, first_step):
            for batch in super().batches(seed, first_step):
                np.random.rand()
                yield batch

    class LateStartIgnored(Tiny):
        def batches(self, seed, first_step):
            return super().batches(seed, 1)

    class OneStream(Tiny):
        def batches(self, seed, first_step):
            rng = np.random.default_rng([seed, first_step])
            while True:
                yield draw(rng, self.batch_size)

    class SeedIgnored(Tiny):
        def batches(self, seed, first_step):
            return super().batches(0, first_step)

    class StepIgnored(Tiny):
        def batches(self, seed, first_step):
            while True:
                yield draw(np.random.default_rng(seed), self.batch_size)

    @functools.cache
    def kept(seed, step):
        return draw(np.random.default_rng([seed, step]), 8)

    class CachedBatches(Tiny):
        def batches(self, seed, first_step):
            return (kept(seed, step) for step in itertools.count(first_step))

    class OneBuffer(Tiny):
        def batches(self, seed, first_step):
            x = torch.empty(8, 8)
            for batch in super().batches(seed, first_step):
                x.copy_(batch[0])
                yield x, batch[1]

    class NoEvaluation(Tiny):
        def eval_batches(self, split):
            return []

    class NewEvaluation(Tiny):
        rng = np.random.default_rng(7)

        def eval_batches(self, split):
            return [draw(self.rng, 100)]

    class EvaluatesInTrainMode(Tiny):
        def eval_step(self, model, batch):
            model.train()
            sums = super().eval_step(model, batch)
            model.eval()
            return sums

    class DrawsInEvaluation(Tiny):
        def eval_step(self, model, batch):
            return super().eval_step(model, (batch[0] + 0.01 * torch.randn(100, 8), batch[1]))

    class RandomEvaluation(Tiny):
        def eval_batches(self, split):
            return [(x + 0.01 * torch.randn(100, 8), y) for x, y in super().eval_batches(split)]

    class LeavesTrainMode(Tiny):
        def eval_step(self, model, batch):
            sums = super().eval_step(model, batch)
            model.train()
            return sums

    class WritesIntoWeights(Tiny):
        def eval_step(self, model, batch):
            model[0].weight.mul_(1.001)
            return super().eval_step(model, batch)

    class WritesIntoTheBatch(Tiny):
        def eval_step(self, model, batch):
            batch[0].clamp_(-1, 1)
            return super().eval_step(model, batch)

    class PlainSums(Tiny):
        def eval_step(self, model, batch):
            return {name: float(value) for name, value in super().eval_step(model, batch).items()}

    class NoSuchSummary(Tiny):
        def summarize(self, sums):
            return float("nan"), 0.5, 200

    class NobodySeen(Tiny):
        def summarize(self, sums):
            return 0.5, 0.5, 0

    class NoGradient(Tiny):
        def loss(self, model, batch):
            return super().loss(model, batch).detach()

    class LossOfEach(Tiny):
        def loss(self, model, batch):
            return nn.functional.cross_entropy(model(batch[0]), batch[1], reduction="none")

    class InfiniteLoss(Tiny):
        def loss(self, model, batch):
            return super().loss(model, batch) / 0

    class Clock(Tiny):
        def loss(self, model, batch):
            return super().loss(model, batch) * (1 + time.time() % 1)

    class Counter(Tiny):
        calls = 0

        def loss(self, model, batch):
            self.calls += 1
            return super().loss(model, batch) * (1 + 0.01 * self.calls)

    class LateCounter(Tiny):
        """A curriculum of its own, from a step that no check reaches."""

        calls = 0

        def loss(self, model, batch):
            self.calls += 1
            return super().loss(model, batch) * (2 if self.calls > 10_000 else 1)

    class RunsOut(Tiny):
        """So does what it reads off a list."""

        calls = 0

        def loss(self, model, batch):
            self.calls += 1
            return super().loss(model, batch) * ([1] * 500)[self.calls]

    class FreezesInEvaluation(Tiny):
        def eval_step(self, model, batch):
            model.requires_grad_(False)
            return super().eval_step(model, batch)

    class SlowClock(Tiny):
        """A clock read in whole seconds."""

        def summarize(self, sums):
            loss, metric, examples = super().summarize(sums)
            return loss + int(time.time()), metric, examples

    class Exits(Tiny):
        def loss(self, model, batch):
            sys.exit(0)

    class Counts(Tiny):
        """For a log: nothing depends on it."""

        calls, seconds = 0, 0.0

        def loss(self, model, batch):
            self.calls += 1
            self.seconds += time.time() % 1
            return super().loss(model, batch)

    class Mixup(Tiny):
        """Draws from every global stream, as the mixups of several libraries do; all of them are kept."""

        def model(self):
            model = super().model()
            with torch.no_grad():
                model[0].weight += 0.1 * np.random.rand() + 0.1 * random.random()
            return model

        def loss(self, model, batch):
            (x, y), share = batch, np.random.beta(1, 1)
            return super().loss(model, (share * x + (1 - share) * x.flip(0), y)) * (0.5 + random.gauss(1, 0.1))

    class Unlearns(Tiny):
        def loss(self, model, batch):
            value = super().loss(model, batch)
            return 2 * value.detach() - value

    class Norm(nn.Module):
        mean = 0.0  # no buffer

        def forward(self, x):
            if self.training:
                self.mean = self.mean + 0.1 * (x.mean(0).detach() - self.mean)
            return x - self.mean

    class HiddenStatistics(Tiny):
        def model(self):
            return nn.Sequential(nn.Linear(8, 16), Norm(), nn.ReLU(), nn.Linear(16, 4))

    class Divisible(Tiny):
        def batches(self, seed, first_step, part=WHOLE):
            mine = slice(part.index, None, part.count)
            return (tuple(t[mine].clone() for t in batch) for batch in super().batches(seed, first_step))

        def eval_batches(self, split, part=WHOLE):
            return list(super().eval_batches(split))[part.index :: part.count]

    class OverlappingParts(Divisible):
        def batches(self, seed, first_step, part=WHOLE):
            return super().batches(seed, first_step, Part(0, part.count))

    class PartsUnweighed(Divisible):
        def loss(self, model, batch):
            return nn.functional.cross_entropy(model(batch[0]), batch[1], weight=torch.arange(1.0, 5.0))

    class EverythingEvaluatedTwice(Divisible):
        def eval_batches(self, split, part=WHOLE):
            return super().eval_batches(split)

    counter = itertools.count()

    class NeverTheSame(Tiny):
        def summarize(self, sums):
            loss, metric, examples = super().summarize(sums)
            return loss + next(counter), metric, examples

    class EvaluationCounts(Tiny):
        evaluations = 0

        def eval_step(self, model, batch):
            self.evaluations += 1
            return super().eval_step(model, batch)

        def loss(self, model, batch):
            return super().loss(model, batch) * (1 + self.evaluations)

    class RunCounts(Tiny):
        """Annealed by the batches drawn since this process began."""

        drawn = 0

        def model(self):
            return nn.Linear(8, 4)

        def batches(self, seed, first_step):
            for batch in super().batches(seed, first_step):
                self.drawn += 1
                yield batch

        def loss(self, model, batch):
            return super().loss(model, batch) / self.drawn
''')

# What each of them breaks, and a word of the remedy.
FAILS = {
    "UnknownOptimizer": ("constants", "nadamw"),
    "UnknownSetting": ("constants", "betas"),
    "UnknownShape": ("constants", "cosine"),
    "NoData": ("constants", "no such folder"),
    "SeedsItself": ("model", "do not seed"),
    "ClockedWeights": ("model", "global random streams alone"),
    "GlobalBatches": ("batches resume", "default_rng"),
    "DrawsInPassing": ("batches resume", "global generator"),
    "LateStartIgnored": ("batches resume", "a function of"),
    "OneStream": ("batches resume", "a function of"),
    "SeedIgnored": ("batches differ", "let both count"),
    "StepIgnored": ("batches differ", "let both count"),
    "CachedBatches": ("batches are fresh", "give a copy"),
    "OneBuffer": ("batches are fresh", "a new one each"),
    "NoEvaluation": ("eval batches repeat", "at least one"),
    "NewEvaluation": ("eval batches repeat", "same batches"),
    "RandomEvaluation": ("eval batches repeat", "draw nothing"),
    "EvaluatesInTrainMode": ("eval step", "model.train()"),
    "DrawsInEvaluation": ("eval step", "dropout off"),
    "LeavesTrainMode": ("eval step", "mode"),
    "WritesIntoWeights": ("eval step", "weights"),
    "WritesIntoTheBatch": ("eval step", "batch"),
    "PlainSums": ("eval step", "make it a tensor"),
    "NoSuchSummary": ("summary", "finite"),
    "NobodySeen": ("summary", "how many"),
    "NoGradient": ("loss", "detach"),
    "LossOfEach": ("loss", "mean"),
    "InfiniteLoss": ("loss", "finite"),
    "Clock": ("loss", "not on a clock"),
    "Counter": ("loss", "what the workload counts"),
    "LateCounter": ("loss", "'calls'"),
    "RunsOut": ("loss", "'calls'"),
    "FreezesInEvaluation": ("eval step", "requires_grad"),
    "Exits": ("loss", "SystemExit: it called exit(0)"),
    "Unlearns": ("learns", "mend the loss"),
    "HiddenStatistics": ("state dict", "register_buffer"),
    "OverlappingParts": ("parts", "each example once"),
    "PartsUnweighed": ("parts", "loss_weight"),
    "EverythingEvaluatedTwice": ("parts", "islice"),
    "NeverTheSame": ("reproducible", "from step 2 on"),
    "SlowClock": ("reproducible", "read no clock"),
    "EvaluationCounts": ("fused", "no trace"),
    "RunCounts": ("resumed", "from step 4 on"),
}
NAMES = [
    *("constants", "model", "batches resume", "batches differ", "batches are fresh", "eval batches repeat"),
    *("eval step", "summary", "loss", "learns", "state dict", "parts", "reproducible", "fused", "resumed"),
]


@pytest.fixture(autouse=True)
def _one_thread() -> Iterable[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def broken(outside: Path) -> None:
    (outside / "brokenwork.py").write_text(BROKEN)
    sys.modules.pop("brokenwork", None)


def failures(found: list[Check]) -> list[Check]:
    return [one for one in found if not one.ok]


@pytest.mark.parametrize("family", families())
def test_every_family_keeps_the_protocol(family: str) -> None:
    found = list(check(family, "mini", steps=12))
    assert failures(found) == []
    assert [one.name for one in found] == NAMES


def test_a_users_workload_keeps_it_too(outside: Path, tmp_path: Path) -> None:
    found = list(check("tinywork:Tiny", steps=12, folder=tmp_path))
    assert failures(found) == []
    assert [one.name for one in found] == NAMES
    assert all(one.detail and "\n" not in one.detail for one in found)
    assert [path.name for path in tmp_path.iterdir()] == ["elsewhere"]  # it clears up after itself


@pytest.mark.usefixtures("broken")
def test_parts_are_tried_where_there_are_any() -> None:
    found = {one.name: one for one in check("brokenwork:Divisible", steps=8)}
    assert all(one.ok for one in found.values())
    assert "two parts weigh up" in found["parts"].detail


@pytest.mark.usefixtures("broken")
@pytest.mark.parametrize("name", ["Mixup", "Counts"])
def test_global_random_streams_and_counts_for_a_log_are_allowed(name: str) -> None:
    found = list(check(f"brokenwork:{name}", steps=8))
    assert failures(found) == []
    assert [one.name for one in found] == NAMES


@pytest.mark.usefixtures("broken")
@pytest.mark.parametrize("name", list(FAILS))
def test_one_broken_promise_fails_one_check(name: str) -> None:
    (failed,) = failures(list(check(f"brokenwork:{name}", steps=8)))
    check_name, word = FAILS[name]
    assert failed.name == check_name
    assert word in failed.detail
    assert "\n" not in failed.detail


def test_every_check_is_seen_to_fail() -> None:
    assert {name for name, _ in FAILS.values()} == set(NAMES)


@pytest.mark.usefixtures("broken")
def test_attributes_are_looked_at_before_any_promise() -> None:
    with pytest.raises(UnknownWorkload, match="brokenwork:NoSteps': its step_budget is 0; allowed: an int ≥ 1"):
        next(check("brokenwork:NoSteps"))


def test_no_such_workload() -> None:
    with pytest.raises(UnknownWorkload, match="no workload 'llm'"):
        next(check("llm"))
