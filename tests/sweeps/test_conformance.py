"""The shipped families and a user's workload pass the suite; a workload with one promise broken fails there."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from pathlib import Path

import pytest
import torch
from broken_workloads import BROKEN

from sweeps.conformance import Check, check
from workloads.protocol import UnknownWorkload, families

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
    found = list(check(family, "mini", steps=8))
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
