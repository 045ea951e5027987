"""Finding a workload by family name or by dotted path, and errors that name the remedy."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from workloads.protocol import UnknownWorkload, Workload, load, source_file

USER_MODULE = '''
import torch
from workloads.protocol import Summary

class Line:
    """y = 2x on noisy points."""
    step_budget, batch_size, metric, higher_is_better = 50, 4, "loss", False
    optimizer = {"name": "sgd", "lr": 0.1}
    schedule = {"shape": "constant", "warmup": 0.0}
    step_seconds, eval_seconds = 1e-4, 1e-4

    def __init__(self, preset="mini"):
        self.preset = preset

    def model(self):
        return torch.nn.Linear(1, 1)

    def batches(self, seed, first_step):
        step = first_step
        while True:
            x = torch.randn(4, 1, generator=torch.Generator().manual_seed(seed * 1000 + step))
            yield x, 2 * x
            step += 1

    def loss(self, model, batch):
        return (model(batch[0]) - batch[1]).square().mean()

    def eval_batches(self, split):
        return [(torch.ones(2, 1), 2 * torch.ones(2, 1))]

    def eval_step(self, model, batch):
        return {"loss": (model(batch[0]) - batch[1]).square().sum(), "examples": torch.tensor(2)}

    def summarize(self, sums):
        loss = sums["loss"] / sums["examples"]
        return Summary(loss, loss, int(sums["examples"]))

LINE = Line()

def make():
    return Line("made")

class Half:
    step_budget = 3
'''


@pytest.fixture
def user_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A module in a folder outside the repository, the current directory being that folder."""
    (tmp_path / "my_own_workloads.py").write_text(USER_MODULE, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry])
    yield "my_own_workloads"
    sys.modules.pop("my_own_workloads", None)


@pytest.mark.parametrize("attribute", ["Line", "LINE", "make"])
def test_a_users_own_workload_by_dotted_path(user_module: str, attribute: str) -> None:
    workload = load(f"{user_module}:{attribute}")
    assert isinstance(workload, Workload)
    model, batches = workload.model(), workload.batches(0, 1)
    before = workload.loss(model, next(batches)).item()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(100):
        optimizer.zero_grad()
        workload.loss(model, next(batches)).backward()
        optimizer.step()
    assert workload.loss(model, next(batches)).item() < before / 10


def test_the_preset_reaches_a_users_class(user_module: str) -> None:
    assert load(f"{user_module}:Line", "full").preset == "full"  # type: ignore[attr-defined]
    assert load(f"{user_module}:make", "full").preset == "made"  # type: ignore[attr-defined]


def test_targets_lie_beside_the_users_file(user_module: str, tmp_path: Path) -> None:
    assert source_file(f"{user_module}:Line") == tmp_path / "my_own_workloads.py"
    assert source_file("lm").name == "lm.py"


def test_an_unknown_name_lists_the_families() -> None:
    with pytest.raises(UnknownWorkload, match=r"'ml'.*imagenet_vit, .*lm, ogbg"):
        load("ml")


def test_an_unknown_preset_lists_the_presets() -> None:
    with pytest.raises(UnknownWorkload, match=r"'huge'.*mini"):
        load("lm", "huge")


def test_an_unknown_dotted_path_says_why(user_module: str) -> None:
    with pytest.raises(UnknownWorkload, match="nowhere_at_all"):
        load("nowhere_at_all:Thing")
    with pytest.raises(UnknownWorkload, match="Lime"):
        load(f"{user_module}:Lime")


def test_what_a_half_workload_lacks_is_named(user_module: str) -> None:
    with pytest.raises(UnknownWorkload, match=r"lacks batch_size, .*summarize"):
        load(f"{user_module}:Half")


def test_a_preset_is_the_same_object_at_every_call() -> None:
    assert load("lm") is load("lm", "mini")
