"""The language model: causal, shifted targets, options that change something, token shards of `full`."""

from __future__ import annotations

import dataclasses
import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from full_data import CONTEXT, small

from workloads import data
from workloads.lm import PRESETS, Decoder, LanguageModel, TokenLanguageModel, text, validation_batches
from workloads.protocol import Part

FAMILY = "lm"
SMALL = small(FAMILY)
MINI, FULL = PRESETS["mini"], PRESETS["full"]
assert isinstance(MINI, LanguageModel)
assert isinstance(FULL, TokenLanguageModel)


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


# --- mini: what its targets depend on --------------------------------------------------------------------------------


def test_the_minis_weights_are_drawn_as_ever() -> None:
    """Names, order and draws: recorded targets and checkpoints depend on them."""
    torch.manual_seed(0)
    state = MINI.model().state_dict()
    block = [
        *("attention_norm.gain", "attention.qkv.weight", "attention.out.weight"),
        *("mlp_norm.gain", "mlp.gate_up.weight", "mlp.out.weight"),
    ]
    names = [f"blocks.{i}.{name}" for i in range(2) for name in block]
    assert list(state) == ["embedding.weight", *names, "norm.gain", "head.weight"]
    assert state["embedding.weight"][0, :3].tolist() == pytest.approx([-1.12584, -1.15236, -0.25058], rel=1e-4)
    assert state["head.weight"][-1, -3:].tolist() == pytest.approx([0.042879, 0.166642, 0.060826], rel=1e-4)


# --- full ------------------------------------------------------------------------------------------------------------


def test_initial_weights_are_plainlms() -> None:
    """N(0, .02²), the outputs of residual branches smaller by √(2·12); models/transformer.py, _init_weights."""
    torch.manual_seed(0)
    model = dataclasses.replace(FULL, width=192, num_heads=3, hidden=512, vocabulary=2000).model()
    for name, parameter in model.named_parameters():
        if name.endswith("norm.gain"):
            assert torch.equal(parameter, torch.ones_like(parameter))
        else:
            expected = 0.02 / 24**0.5 if name.endswith(("attention.out.weight", "mlp.out.weight")) else 0.02
            assert parameter.std().item() == pytest.approx(expected, rel=0.02), name
            assert abs(parameter.mean().item()) < 0.02 * expected


def test_rotary_base_reaches_every_layer() -> None:
    model = dataclasses.replace(FULL, width=32, num_heads=2, hidden=32, vocabulary=100).model()
    assert isinstance(model, Decoder)
    assert [block.attention.rotary_base for block in model.blocks] == [500_000.0] * 12


def test_an_epoch_has_every_window_once_and_the_next_another_order(folder: Path) -> None:
    length = CONTEXT + 1
    one = dataclasses.replace(SMALL, batch_size=1)
    epochs = [list(itertools.islice(one.batches(0, 1 + 7 * epoch), 7)) for epoch in range(2)]
    windows = [*(i * length for i in range(3)), *(10_000 + i * length for i in range(4))]
    for batches in epochs:
        assert sorted(batch[0, 0].item() for batch in batches) == windows
        assert all(torch.equal(batch[0], batch[0, 0] + torch.arange(length)) for batch in batches)
        assert all(batch.dtype == torch.int64 for batch in batches)
    firsts = [[batch[0, 0].item() for batch in batches] for batches in epochs]
    assert firsts[0] != firsts[1]
    assert next(one.batches(0, 10))[0, 0] == firsts[1][2]
    assert [batch[0, 0].item() for batch in itertools.islice(one.batches(1, 1), 7)] != firsts[0]
    pairs = list(itertools.islice(SMALL.batches(0, 1), 4))  # 7 windows: the fourth begins the next epoch
    assert torch.equal(torch.cat(pairs[:3])[:, 0], torch.tensor(firsts[0][:6]))
    assert pairs[3][:, 0].tolist() == firsts[1][:2]


def test_evaluation_windows_are_evenly_spaced(folder: Path) -> None:
    batches = list(SMALL.eval_batches("validation"))
    assert [len(batch) for batch in batches] == [2, 2, 1]
    starts = torch.cat(batches)[:, 0].tolist()
    assert starts == [20_000 + (i * 9 // 5) * (CONTEXT + 1) for i in range(5)]
    every = dataclasses.replace(SMALL, num_eval_windows=100)
    assert sum(len(batch) for batch in every.eval_batches("validation")) == 9
    parts = [list(SMALL.eval_batches("validation", Part(index, 2))) for index in range(2)]
    assert [batch[0, 0].item() for batch in parts[0]] == [starts[0], starts[4]]
    assert [batch[0, 0].item() for batch in parts[1]] == [starts[2]]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("edu_fineweb_train_000002.bin", b"", "not a token shard"),
        ("edu_fineweb_train_000002.bin", np.arange(600, dtype="<u2").tobytes(), "not a token shard"),
        ("edu_fineweb_val_000000.bin", np.array([20240520, 1, 9], "<i4").tobytes(), "it has 12"),
    ],
)
def test_a_malformed_shard_is_named(own_folder: Path, name: str, content: bytes, message: str) -> None:
    (own_folder / name).write_bytes(content)
    with pytest.raises(data.BadData, match=message) as caught:
        SMALL.check_data()
    assert str(own_folder / name) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_missing_shards_and_too_few_windows_are_bad_data(own_folder: Path) -> None:
    with pytest.raises(data.BadData, match="7 windows of 17 tokens, fewer than 8"):
        dataclasses.replace(SMALL, batch_size=8).check_data()
    (own_folder / "edu_fineweb_val_000000.bin").unlink()
    with pytest.raises(data.BadData, match=r"no \*val\*\.bin"):
        dataclasses.replace(SMALL, batch_size=1).check_data()


def test_a_token_beyond_the_vocabulary_is_bad_data(folder: Path) -> None:
    workload = dataclasses.replace(SMALL, vocabulary=20_100)
    with pytest.raises(data.BadData, match=r"val_000000\.bin: it has token 20"):
        list(workload.eval_batches("validation"))
