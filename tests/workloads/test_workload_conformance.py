"""What every workload promises (workloads/protocol.py). A new one joins with one line in CASES."""

from __future__ import annotations

import copy
import importlib
import itertools
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


def equal(left: Any, right: Any) -> bool:
    pairs = zip(tensors(left), tensors(right), strict=True)
    return all(a.dtype == b.dtype and torch.equal(a, b) for a, b in pairs)


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


def test_every_family_is_held_to_this() -> None:
    assert families() == sorted(CASES)


def test_constants_are_data(workload: Workload) -> None:
    assert isinstance(workload, Workload)
    assert workload.step_budget >= 4000
    assert workload.batch_size > 0
    assert workload.metric
    assert isinstance(workload.higher_is_better, bool)
    assert {"name", "lr", "beta1", "beta2", "eps", "weight_decay"} <= set(workload.optimizer)
    assert set(workload.optimizer) <= {"name", "lr", "beta1", "beta2", "eps", "weight_decay", "grad_clip"}
    assert set(workload.schedule) == {"shape", "length", "warmup", "final_lr"}
    assert 0 < workload.step_seconds < 1
    assert 0 < workload.eval_seconds < 10
    assert workload.step_budget * workload.step_seconds < 90
    with pytest.raises(AttributeError):
        workload.batch_size = 1  # frozen


def test_batch_s_is_a_function_of_seed_and_s(workload: Workload) -> None:
    whole = list(itertools.islice(workload.batches(5, 1), 12))
    late = list(itertools.islice(workload.batches(5, 8), 5))
    assert all(equal(a, b) for a, b in zip(whole[7:], late, strict=True))


def test_batches_share_nothing(workload: Workload) -> None:
    torch.manual_seed(0)
    np.random.seed(0)  # noqa: NPY002
    one, two = workload.batches(5, 1), workload.batches(5, 1)
    first = [next(one), next(one)]
    torch.rand(3)
    np.random.rand(3)  # noqa: NPY002
    again = [next(two), next(two)]
    assert all(equal(a, b) for a, b in zip(first, again, strict=True))
    tensors(first[0])[0].zero_()
    assert not equal(first[0], next(workload.batches(5, 1)))


def test_other_seeds_and_steps_give_other_batches(workload: Workload) -> None:
    found = [next(workload.batches(seed, step)) for seed, step in ((0, 1), (0, 2), (1, 1), (1, 2), (2, 0))]
    assert not any(equal(a, b) for a, b in itertools.combinations(found, 2))


def test_a_batch_has_the_size_it_says(name: str, workload: Workload) -> None:
    batch = next(workload.batches(0, 1))
    assert all(len(tensor) == workload.batch_size for tensor in tensors(batch))
    targets, num_outcomes = CASES[name]
    assert targets(batch).dtype == torch.int64
    assert 0 <= targets(batch).min() <= targets(batch).max() < num_outcomes


def test_model_is_a_function_of_the_global_seed(workload: Workload) -> None:
    states = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        states.append(workload.model().state_dict())
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])
    assert not all(torch.equal(states[0][key], states[2][key]) for key in states[0])


def test_eval_batches_repeat(workload: Workload) -> None:
    one, two = (list(workload.eval_batches("validation")) for _ in range(2))
    assert len(one) == len(two) >= 1
    assert all(equal(a, b) for a, b in zip(one, two, strict=True))
    with pytest.raises(ValueError, match="validation"):
        workload.eval_batches("tset")


def test_eval_step_leaves_everything_as_it_was(workload: Workload) -> None:
    torch.manual_seed(1)
    model = workload.model().eval()
    before = copy.deepcopy(model.state_dict())
    batch = next(iter(workload.eval_batches("validation")))
    kept = [tensor.clone() for tensor in tensors(batch)]
    torch_state, numpy_state = torch.get_rng_state(), np.random.get_state()  # noqa: NPY002
    with torch.no_grad():
        first, second = (workload.eval_step(model, batch) for _ in range(2))
    assert torch.equal(torch_state, torch.get_rng_state())
    assert np.array_equal(numpy_state[1], np.random.get_state()[1])  # type: ignore[index]  # noqa: NPY002
    assert not any(module.training for module in model.modules())
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
    assert all(torch.equal(a, b) for a, b in zip(kept, tensors(batch), strict=True))
    assert set(first) == set(second)
    for key, value in first.items():
        assert value.shape == ()
        assert torch.equal(value, second[key])
        assert not value.requires_grad


def test_evaluating_first_does_not_break_training(workload: Workload) -> None:
    """A cache filled under inference mode must not poison the backward pass."""
    for module in ("layers", *families()):
        for thing in vars(importlib.import_module(f"workloads.{module}")).values():
            if hasattr(thing, "cache_clear"):
                thing.cache_clear()
    model = workload.model()
    with torch.inference_mode():
        held_out = list(workload.eval_batches("validation"))[:1]
    evaluated(workload, model, held_out)
    for batch in (next(workload.batches(0, 1)), *held_out):
        model.zero_grad()
        workload.loss(model.train(), batch).backward()
        assert all(parameter.grad is not None for parameter in model.parameters())


def test_sums_add_up_over_any_split_of_the_batches(workload: Workload) -> None:
    torch.manual_seed(1)
    model = workload.model()
    batches = list(workload.eval_batches("validation"))[:2]
    columns = zip(*(tensors(batch) for batch in batches), strict=True)
    rebuild: Callable[[list[Tensor]], Any] = (
        (lambda parts: parts[0]) if isinstance(batches[0], Tensor) else tuple
    )
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
    """No dropout, no label smoothing: on the same batch both say the same."""
    torch.manual_seed(1)
    model = workload.model()
    batch = next(workload.batches(0, 1))
    assert evaluated(workload, model, [batch]).loss == pytest.approx(
        workload.loss(model.train(), batch).item(), rel=1e-5
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
