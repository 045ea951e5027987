"""What every shipped family keeps beyond the protocol, whose promises sweeps/conformance.py tries; minis, then full.

The last tests of the minis know what the batches of the families in CASES hold.
"""

from __future__ import annotations

import dataclasses
import itertools
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from batches import equal, evaluated, tensors
from full_data import data_set, small
from torch import Tensor

from sweeps.optimizers import OPTIMIZERS
from workloads.data import VARIABLE, BadData
from workloads.protocol import FAMILIES, Part, Workload, load, presets, splits

# name -> the integers a batch asks the model to predict, and how many there are to choose from
CASES: dict[str, tuple[Callable[[Any], Tensor], int]] = {
    "lm": (lambda batch: batch[:, 1:], 128),
    "imagenet_vit": (lambda batch: batch[1], 13),
    "imagenet_resnet": (lambda batch: batch[1], 13),
}


@pytest.fixture(params=sorted(CASES))
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def workload(name: str) -> Workload:
    return load(name)


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


@pytest.mark.parametrize("family", FAMILIES)
def test_a_mini_is_frozen_data_and_cheap(family: str) -> None:
    workload = load(family)
    assert isinstance(workload, Workload)
    assert workload.step_budget >= 3000
    assert 0 < workload.eval_seconds < 10
    assert 0 < workload.step_budget * workload.step_seconds < 90
    with pytest.raises(AttributeError):
        workload.batch_size = 1  # type: ignore[misc]


@pytest.mark.parametrize("family", FAMILIES)
def test_an_unknown_split_is_told_which_there_are(family: str) -> None:
    with pytest.raises(ValueError, match="validation"):
        list(itertools.islice(load(family).eval_batches("tset"), 1))


@pytest.mark.parametrize("family", FAMILIES)
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


@pytest.mark.parametrize("family", FAMILIES)
def test_weights_that_are_no_numbers_have_a_loss_that_is_none_and_end_no_evaluation(family: str) -> None:
    workload = load(family)
    model = workload.model().eval()
    with torch.inference_mode():
        for parameter in model.parameters():
            parameter.fill_(torch.nan)
        sums = workload.eval_step(model, next(iter(workload.eval_batches("validation"))))
    found = workload.summarize({name: value if value.dim() else float(value) for name, value in sums.items()})
    assert not np.isfinite(found.loss)


OPTIONS: dict[str, dict[str, Any]] = {
    "criteo1tb": {"table_rows": 512, "bottom": (32, 8), "top": (16, 1), "batch_size": 3, "dropout": 0.5},
    "fastmri": {"num_channels": 4, "num_pools": 1, "dropout": 0.3, "batch_size": 3},
    "imagenet_resnet": {"widths": (16, 32), "max_shift": 1, "batch_size": 3},
    "imagenet_vit": {"patch": 16, "width": 32, "depth": 1, "hidden": 32, "num_heads": 1, "max_shift": 1},
    "lm": {"context": 32, "width": 32, "depth": 1, "hidden": 64, "num_heads": 1, "batch_size": 3},
    "ogbg": {"width": 16, "num_rounds": 2, "dropout": 0.3, "residual": False, "batch_size": 3},
    "wmt": {"width": 32, "depth": 1, "hidden": 64, "num_heads": 1, "dropout": 0.1, "attention_dropout": 0.1},
} | {"librispeech_conformer": {"max_stretch": 0.0, "join": 0.0, "batch_size": 3}}


@pytest.mark.parametrize(
    ("family", "option", "value"), [(family, *pair) for family, of in OPTIONS.items() for pair in of.items()]
)
def test_each_option_changes_the_loss(family: str, option: str, value: Any) -> None:
    mini: Any = load(family)
    assert getattr(mini, option) != value
    losses = []
    for workload in (mini, dataclasses.replace(mini, **{option: value})):
        torch.manual_seed(0)
        losses.append(workload.loss(workload.model().train(), next(workload.batches(0, 1))).item())
    assert losses[0] != losses[1]


METRICS = {
    "criteo1tb": None,
    "fastmri": "ssim",
    "imagenet_resnet": "accuracy",
    "imagenet_vit": "accuracy",
    "lm": None,
    "librispeech_conformer": "wer",
    "librispeech_deepspeech": "wer",
    "ogbg": "map",
    "wmt": "bleu",
}


@pytest.mark.parametrize("family", FAMILIES)
def test_the_metric_is_the_loss_or_its_own(family: str) -> None:
    mini: Any = load(family)
    model, batches = mini.model(), list(mini.eval_batches("validation"))[:1]
    found = evaluated(mini, model, batches)
    assert (mini.metric, mini.higher_is_better) == ("loss", False)
    assert found.metric == found.loss
    own = METRICS[family]
    with pytest.raises(ValueError, match=f"metric is 'acuracy'; it is {f'loss or {own}' if own else 'loss'}$"):
        dataclasses.replace(mini, metric="acuracy")
    if own is not None:
        other = dataclasses.replace(mini, metric=own)
        assert other.higher_is_better == (own != "wer")
        assert evaluated(other, model, batches).metric == found.metrics[own] != found.loss
        assert evaluated(other, model, batches).loss == found.loss


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


# --- both presets ------------------------------------------------------------------------------------------------

LIGHT: dict[str, dict[str, Any]] = {  # full presets with small networks
    "fastmri": {"num_channels": 4, "num_pools": 2},
    "imagenet_resnet": {"depths": (1,), "side": 32},
    "imagenet_vit": {"width": 32, "depth": 1, "num_heads": 2, "hidden": 16, "side": 32},
    "lm": {"width": 32, "depth": 2, "num_heads": 2, "hidden": 32},
    "ogbg": {"width": 16},
    "wmt": {"width": 32, "hidden": 32, "depth": 1, "num_heads": 2, "max_length": 64},
}


@pytest.fixture(params=[(family, preset) for family in FAMILIES for preset in ("mini", "full")], ids="-".join)
def either(
    request: pytest.FixtureRequest, data_sets: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> Workload:
    """A mini, or a full preset with a small network, on its data."""
    family, preset = request.param
    monkeypatch.setenv(VARIABLE, str(data_sets(family).parent))
    workload: Any = load(family) if preset == "mini" else small(family, **LIGHT.get(family, {}))
    return dataclasses.replace(workload, batch_size=max(3, workload.batch_size))


def examples(workload: Any, batch: Any) -> list[bytes]:
    """One example after another without its padding; with mixup the first picture is a neighbour."""
    rows = batch if isinstance(batch, Tensor) else batch[0]
    rows = rows[1:] if getattr(workload, "mixup", 0) else rows
    return [row.numpy().tobytes().rstrip(b"\0") for row in rows]


@pytest.mark.parametrize("count", [2, 3])
def test_parts_make_up_the_batch_and_its_loss(either: Workload, count: int) -> None:
    torch.manual_seed(0)
    model = either.model().eval()
    whole = next(either.batches(1, 4))
    parts = [next(either.batches(1, 4, Part(index, count))) for index in range(count)]
    assert sorted(row for part in parts for row in examples(either, part)) == sorted(examples(either, whole))
    weights = [float(either.loss_weight(part)) for part in parts]  # type: ignore[attr-defined]
    assert sum(weights) == float(either.loss_weight(whole))  # type: ignore[attr-defined]
    with torch.no_grad():
        losses = [either.loss(model, part).item() for part in parts]
        assert np.average(losses, weights=weights) == pytest.approx(either.loss(model, whole).item(), rel=1e-5)


def test_parts_of_an_evaluation_are_every_nth_batch(either: Workload) -> None:
    for split in splits(either):
        whole = list(either.eval_batches(split))
        for index in range(2):
            part = list(either.eval_batches(split, Part(index, 2)))
            assert len(part) == len(whole[index::2])
            assert all(map(equal, part, whole[index::2]))


def test_a_batch_is_a_function_of_seed_and_step(either: Workload) -> None:
    first = list(itertools.islice(either.batches(5, 1), 4))
    assert equal(first[2:], list(itertools.islice(either.batches(5, 3), 2)))
    others = [first[0], first[1], next(either.batches(6, 1))]
    assert not any(equal(a, b) for a, b in itertools.combinations(others, 2) if len(a) == len(b))


# --- full ----------------------------------------------------------------------------------------------------------

EXAMPLES = {"criteo1tb": 170, "fastmri": 3, "imagenet": 6, "librispeech": 8, "lm": 5, "ogbg": 2, "wmt": 5}
# AlgoPerf's, by its models and printed counts; plainLM's of lm
PARAMETERS = {
    "criteo1tb": 539_267_457,
    "fastmri": 7_756_097,
    "imagenet_resnet": 25_557_032,
    "imagenet_vit": 22_122_472,
    "librispeech_conformer": 32_321_792,
    "librispeech_deepspeech": 18_393_600,
    "lm": 123_551_232,
    "ogbg": 3_554_176,
    "wmt": 133_521_408,
}


@pytest.mark.parametrize("family", FAMILIES)
def test_a_full_model_has_as_many_parameters_as_its_original(family: str) -> None:
    with torch.device("meta"):
        model = load(family, "full").model()
    assert sum(parameter.numel() for parameter in model.parameters()) == PARAMETERS[family]


@pytest.mark.parametrize("family", FAMILIES)
def test_full_trains_and_evaluates(
    family: str, data_sets: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The real layers on the real format; only the largest networks and pictures are made small."""
    monkeypatch.setenv(VARIABLE, str(data_sets(family).parent))
    less = LIGHT[family] if family in ("fastmri", "lm", "wmt") else {}
    workload = small(family, **({"side": 96} if family.startswith("imagenet") else less))
    workload.check_data()
    torch.manual_seed(0)
    model = workload.model()
    batch = next(workload.batches(0, 1))
    with torch.autocast("cpu", torch.bfloat16, enabled=family.startswith("imagenet")):
        loss = workload.loss(model.train(), batch)
    loss.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    found = evaluated(workload, model)
    assert found.examples == EXAMPLES[data_set(family)]
    assert np.isfinite([loss.item(), found.loss]).all()
    assert found.metric == {"loss": found.loss, **found.metrics}.get(workload.metric, found.metric)


@pytest.mark.parametrize(
    "family", [family for family in FAMILIES if family not in ("imagenet_vit", "librispeech_conformer")]
)
def test_worker_processes_change_nothing(
    family: str, data_sets: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(VARIABLE, str(data_sets(family).parent))
    here, there = (small(family, num_workers=number) for number in (0, 1))
    assert all(equal(a, b) for a, b in zip(itertools.islice(here.batches(4, 9), 3), there.batches(4, 9), strict=False))


@pytest.mark.parametrize("family", FAMILIES)
def test_missing_data_are_named_and_what_belongs_there(
    family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    full = small(family)
    monkeypatch.delenv(VARIABLE, raising=False)
    with pytest.raises(BadData, match=rf"{data_set(family)}: no data folder given; set {VARIABLE} .* with "):
        full.check_data()
    monkeypatch.setenv(VARIABLE, str(tmp_path))
    with pytest.raises(BadData, match=rf"{tmp_path / data_set(family)}: no such folder; it should hold "):
        next(full.batches(0, 1))
    (tmp_path / data_set(family)).mkdir()
    for ask in (full.check_data, lambda: next(full.batches(0, 1)), lambda: list(full.eval_batches("validation"))):
        with pytest.raises(BadData) as error:
            ask()
        assert str(tmp_path / data_set(family)) in str(error.value)
        assert "\n" not in str(error.value)


@pytest.mark.parametrize("family", FAMILIES)
def test_each_preset_can_be_asked_for_the_splits_it_names(
    family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(VARIABLE, str(tmp_path))  # full presets find nothing there
    for workload in presets(family).values():
        for split in ("validation", "test", "train"):
            try:
                workload.eval_batches(split)
                there = True
            except BadData:
                there = True
            except ValueError:
                there = False
            assert there == (split in splits(workload)), split


def test_a_workload_that_does_not_say_has_validation_alone() -> None:
    assert splits(load("lm")) == ("validation",)
    assert splits(load("imagenet_vit", "full")) == ("validation", "test")
