"""What the shipped minis keep beyond the protocol, whose promises sweeps/conformance.py tries.

Every family is held to the first tests; those below know what the batches of the families in CASES hold.
"""

from __future__ import annotations

import itertools
import sys
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from sweeps.optimizers import OPTIMIZERS
from workloads.protocol import Summary, Workload, families, load

# name -> the integers a batch asks the model to predict, and how many there are to choose from
CASES: dict[str, tuple[Callable[[Any], Tensor], int]] = {
    "lm": (lambda batch: batch[:, 1:], 128),
    "imagenet_vit": (lambda batch: batch[1], 13),
    "imagenet_resnet": (lambda batch: batch[1], 13),
}


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterable[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(params=sorted(CASES))
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def workload(name: str) -> Workload:
    return load(name)


def tensors(batch: Any) -> list[Tensor]:
    """The tensors of a batch, whatever its nesting."""
    if isinstance(batch, Tensor):
        return [batch]
    parts = batch.values() if isinstance(batch, dict) else batch
    return [tensor for part in parts for tensor in tensors(part)]


def evaluated(workload: Workload, model: torch.nn.Module, batches: Iterable[Any] | None = None) -> Summary:
    totals: dict[str, float] = {}
    model.eval()
    with torch.inference_mode():
        for batch in workload.eval_batches("validation") if batches is None else batches:
            for key, value in workload.eval_step(model, batch).items():
                totals[key] = totals.get(key, 0.0) + float(value)
    return workload.summarize(totals)


def trained(workload: Workload, num_steps: int) -> tuple[torch.nn.Module, list[float]]:
    torch.manual_seed(3)
    model = workload.model().train()
    settings = {key: value for key, value in workload.optimizer.items() if key not in ("name", "grad_clip")}
    optimizer = OPTIMIZERS[workload.optimizer["name"]](model.parameters(), **settings)
    losses = []
    for step, batch in enumerate(itertools.islice(workload.batches(3, 1), num_steps)):
        optimizer.param_groups[0]["lr"] = settings["lr"] * min(1.0, (step + 1) / 20)
        optimizer.zero_grad()
        loss = workload.loss(model, batch)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return model, losses


@pytest.mark.parametrize("family", families())
def test_a_mini_is_frozen_data_and_cheap(family: str) -> None:
    workload = load(family)
    assert isinstance(workload, Workload)
    assert workload.step_budget >= 3000
    assert 0 < workload.eval_seconds < 10
    assert 0 < workload.step_budget * workload.step_seconds < 90
    with pytest.raises(AttributeError):
        workload.batch_size = 1  # type: ignore[misc]


@pytest.mark.parametrize("family", families())
def test_an_unknown_split_is_told_which_there_are(family: str) -> None:
    with pytest.raises(ValueError, match="validation"):
        list(itertools.islice(load(family).eval_batches("tset"), 1))


@pytest.mark.parametrize("family", families())
def test_evaluating_first_does_not_break_training(family: str) -> None:
    """A cache filled under inference mode must not poison the backward pass."""
    for module in [name for name in sys.modules if name.startswith("workloads.")]:
        for thing in vars(sys.modules[module]).values():
            if hasattr(thing, "cache_clear"):
                thing.cache_clear()
    workload = load(family)
    model = workload.model()
    with torch.inference_mode():
        workload.eval_step(model.eval(), next(iter(workload.eval_batches("validation"))))
    workload.loss(model.train(), next(workload.batches(0, 1))).backward()
    assert any(parameter.grad is not None for parameter in model.parameters())


@pytest.mark.parametrize("family", families())
def test_weights_that_are_no_numbers_have_a_loss_that_is_none_and_end_no_evaluation(family: str) -> None:
    workload = load(family)
    model = workload.model().eval()
    with torch.inference_mode():
        for parameter in model.parameters():
            parameter.fill_(torch.nan)
        sums = workload.eval_step(model, next(iter(workload.eval_batches("validation"))))
    found = workload.summarize({name: value if value.dim() else float(value) for name, value in sums.items()})
    assert not np.isfinite(found.loss)


def test_a_batch_has_the_size_it_says(name: str, workload: Workload) -> None:
    batch = next(workload.batches(0, 1))
    assert all(len(tensor) == workload.batch_size for tensor in tensors(batch))
    targets, num_outcomes = CASES[name]
    assert targets(batch).dtype == torch.int64
    assert 0 <= targets(batch).min() <= targets(batch).max() < num_outcomes


def test_sums_add_up_over_any_split_of_the_batches(workload: Workload) -> None:
    torch.manual_seed(1)
    model = workload.model()
    batches = list(workload.eval_batches("validation"))[:2]
    columns = zip(*(tensors(batch) for batch in batches), strict=True)
    rebuild: Callable[[list[Tensor]], Any] = (lambda parts: parts[0]) if isinstance(batches[0], Tensor) else tuple
    joined = [torch.cat(column) for column in columns]
    whole = evaluated(workload, model, [rebuild(joined)])
    sizes = [1, 7, 50, len(joined[0]) - 58]
    pieces = zip(*(tensor.split(sizes) for tensor in joined), strict=True)
    split = evaluated(workload, model, [rebuild(list(piece)) for piece in pieces])
    assert whole.examples == split.examples == len(joined[0])
    assert split.loss == pytest.approx(whole.loss, rel=1e-6)
    assert split.metric == pytest.approx(whole.metric, rel=1e-6)
    halves = evaluated(workload, model, batches)
    assert halves.loss == pytest.approx(whole.loss, rel=1e-6)


def test_evaluation_agrees_with_the_training_loss(workload: Workload) -> None:
    """No label smoothing: on the same batch both say the same (with the statistics of evaluation)."""
    torch.manual_seed(1)
    model = workload.model()
    batch = next(workload.batches(0, 1))
    assert evaluated(workload, model, [batch]).loss == pytest.approx(
        workload.loss(model.eval(), batch).item(), rel=1e-5
    )


def test_untrained_loss_is_near_that_of_a_uniform_guess(name: str, workload: Workload) -> None:
    torch.manual_seed(1)
    model = workload.model()
    assert evaluated(workload, model).loss == pytest.approx(np.log(CASES[name][1]), rel=0.25)


def test_loss_decreases_and_beats_the_trivial_predictor(name: str, workload: Workload) -> None:
    """Trivial: the frequencies of the training targets, whatever the input."""
    targets, num_outcomes = CASES[name]
    model, losses = trained(workload, 300)
    assert np.mean(losses[50:60]) < np.mean(losses[:10]) - 0.1
    counts = np.ones(num_outcomes)
    for batch in itertools.islice(workload.batches(0, 1), 400):
        counts += np.bincount(targets(batch).flatten(), minlength=num_outcomes)
    held_out = torch.cat([targets(batch).flatten() for batch in workload.eval_batches("validation")])
    trivial = -np.log(counts / counts.sum())[held_out.numpy()].mean()
    assert evaluated(workload, model).loss < trivial - 0.05
