"""The language model: causal, shifted targets, and options that change something."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch

from workloads.lm import PRESETS, Decoder, LanguageModel, text, validation_batches

MINI = PRESETS["mini"]
assert isinstance(MINI, LanguageModel)


def test_a_later_byte_changes_no_earlier_logit() -> None:
    torch.manual_seed(0)
    model = MINI.model().eval()
    tokens = torch.randint(128, (2, 64))
    changed = tokens.clone()
    changed[:, 40] = (changed[:, 40] + 1) % 128
    with torch.inference_mode():
        before, after = model(tokens), model(changed)
    assert torch.equal(before[:, :40], after[:, :40])
    assert (before[:, 40:] - after[:, 40:]).abs().amax(-1).min() > 0


def test_targets_are_the_next_bytes() -> None:
    """A model that knows the text has loss 0, one that repeats its input does not."""

    class Oracle(torch.nn.Module):
        def __init__(self, logits: torch.Tensor) -> None:
            super().__init__()
            self.logits = logits

        def forward(self, tokens: torch.Tensor) -> torch.Tensor:
            return self.logits[:, : tokens.shape[1]]

    batch = next(MINI.batches(0, 1))
    onehot = 50.0 * torch.nn.functional.one_hot(batch, 128).float()
    assert MINI.loss(Oracle(onehot[:, 1:]), batch).item() < 1e-6
    assert MINI.loss(Oracle(onehot[:, :-1]), batch).item() > 10
    sums = MINI.eval_step(Oracle(onehot[:, 1:]), batch)
    assert MINI.summarize({key: float(value) for key, value in sums.items()}).loss < 1e-6


def test_loss_is_per_byte_and_examples_are_windows() -> None:
    summary = MINI.summarize({"loss": 128.0, "examples": 2.0})
    assert summary == (1.0, 1.0, 2)


def test_batches_are_windows_of_the_training_text_only() -> None:
    train = text("train").tobytes()
    batch = next(MINI.batches(0, 1))
    assert batch.shape == (MINI.batch_size, MINI.context + 1)
    for window in batch.numpy().astype(np.uint8):
        assert window.tobytes() in train


def test_validation_windows_span_every_book() -> None:
    windows = torch.cat(validation_batches(64, 512, 128)).numpy().astype(np.uint8)
    held_out = text("validation").tobytes()
    assert len(windows) == 512
    for i, window in enumerate(windows):  # evenly spaced, from the first byte to the last
        start = i * (len(held_out) - 65) // 511
        assert held_out[start : start + 65] == window.tobytes()


@pytest.mark.parametrize(
    ("option", "value"),
    [("context", 32), ("width", 32), ("depth", 1), ("hidden", 64), ("num_heads", 1), ("batch_size", 3)],
)
def test_each_size_changes_the_loss(option: str, value: int) -> None:
    assert getattr(MINI, option) != value
    losses = []
    for workload in (MINI, dataclasses.replace(MINI, **{option: value})):
        torch.manual_seed(0)
        losses.append(workload.loss(workload.model(), next(workload.batches(0, 1))).item())
    assert losses[0] != losses[1]


def test_eval_options_change_the_evaluation_batches() -> None:
    changes: list[dict[str, Any]] = [{"num_eval_windows": 64}, {"eval_batch_size": 7}]
    for change in changes:
        batches = list(dataclasses.replace(MINI, **change).eval_batches("validation"))
        if "num_eval_windows" in change:
            assert sum(len(batch) for batch in batches) == 64
        else:
            assert {len(batch) for batch in batches[:-1]} == {7}


def test_parameters_are_about_120_thousand_and_nothing_else_is_state() -> None:
    model = MINI.model()
    assert isinstance(model, Decoder)
    assert 100_000 < sum(parameter.numel() for parameter in model.parameters()) < 140_000
    assert not list(model.buffers())
