"""Speech recognition: features, masks, loss, decoding and statistics against independent truths; both families."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from batches import evaluated
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from wa import EMA, Bank, recompute_statistics
from workloads import librispeech, speech_features, speech_layers
from workloads.librispeech import SpeechRecognition, Utterances
from workloads.librispeech_deepspeech import Recurrent
from workloads.protocol import load
from workloads.speech_features import SpecAugment
from workloads.speech_layers import BatchNorm

FAMILIES = ("librispeech_conformer", "librispeech_deepspeech")


def workload(name: str, preset: str) -> SpeechRecognition:
    found = load(name, preset)
    assert isinstance(found, SpeechRecognition)
    return found


@pytest.fixture(params=FAMILIES)
def mini(request: pytest.FixtureRequest) -> SpeechRecognition:
    return workload(request.param, "mini")


# ---- features, masks ----


def test_log_mel_is_that_of_a_plain_fourier_sum() -> None:
    random = np.random.default_rng(0)
    audio = (random.normal(size=(2, 1500)) * 3000).astype(np.int16)
    audio[1, 700:] = 0
    got, lengths = speech_features.log_mel(torch.from_numpy(audio), torch.tensor([1500, 700]))
    num_frames = 1 + (1500 - 401) // 160
    assert got.shape == (2, num_frames, 80)
    assert lengths.tolist() == [num_frames, 5]  # frames that begin before sample 700
    hertz = np.arange(257) * 16000 / 512
    low, high = (1127 * np.log(1 + edge / 700) for edge in (125, 7600))
    corners = 700 * (np.exp((low + (high - low) * np.arange(82) / 81) / 1127) - 1)
    mel = 1127 * np.log(1 + hertz / 700)
    for row, t, bin_ in ((0, 0, 0), (0, 3, 40), (1, 2, 79), (0, num_frames - 1, 17), (1, 6, 5)):
        x = audio[row, 160 * t : 160 * t + 400] / 2**15
        y = np.array([0.03 * x[0]] + [x[i] - 0.97 * x[i - 1] for i in range(1, 400)])
        y *= 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(400) / 400)
        power = [abs(np.sum(y * np.exp(-2j * np.pi * k * np.arange(400) / 512))) ** 2 for k in range(257)]
        left, middle, right = (1127 * np.log(1 + corner / 700) for corner in corners[bin_ : bin_ + 3])
        weight = np.interp(mel, [left, middle, right], [0, 1, 0])
        expected = np.log(max(weight @ power, 1e-5))
        expected = (expected - speech_features.MEL_MEAN[bin_]) / speech_features.MEL_STD[bin_]
        assert got[row, t, bin_].item() == pytest.approx(expected, abs=2e-3)


def test_spec_augment_hides_bands_of_the_sizes_it_says() -> None:
    augment = SpecAugment(1, 27, 1, 0.05)
    lengths = np.full(4000, 200)
    frames, bins = augment.kept(np.random.default_rng(1), lengths, 240, 80)
    for kept, most in ((frames, 9), (bins, 26)):  # a size is ⌊uniform · limit⌋
        hidden = ~kept
        sizes = hidden.sum(1)
        edges = np.diff(np.pad(hidden, ((0, 0), (1, 1))).astype(int), axis=1)
        assert (edges == 1).sum(1).max() == 1  # one band
        assert np.array_equal(np.unique(sizes), np.arange(most + 1))
        assert sizes.mean() == pytest.approx(most / 2, rel=0.03)
    assert frames[:, 200:].all()
    assert not frames[:, :200].all(0).any()
    many, _ = SpecAugment(2, 27, 10, 0.05).kept(np.random.default_rng(1), lengths, 200, 80)
    assert 0.15 < 1 - many.mean() < 0.25  # ten bands of 2.25 % less their overlap


# ---- loss and decoding ----


def collapse(path: Sequence[int]) -> list[int]:
    merged = [number for number, _ in itertools.groupby(path)]
    return [number for number in merged if number != 0]


def test_ctc_loss_sums_over_all_alignments() -> None:
    torch.manual_seed(0)
    logits, lengths = torch.randn(2, 5, 3), torch.tensor([5, 4])
    targets, sizes = torch.tensor([[1, 1, 2], [2, 0, 0]]), torch.tensor([3, 1])
    got = librispeech.ctc_losses(logits, lengths, targets, sizes)
    p = logits.double().softmax(-1).numpy()
    for row in range(2):
        wanted = targets[row, : sizes[row]].tolist()
        total = sum(
            np.prod([p[row, t, number] for t, number in enumerate(path)])
            for path in itertools.product(range(3), repeat=int(lengths[row]))
            if collapse(path) == wanted
        )
        assert got[row].item() == pytest.approx(-np.log(total), rel=1e-5)


def test_greedy_merges_and_drops_blanks_of_valid_frames() -> None:
    torch.manual_seed(0)
    logits, lengths = torch.randn(40, 12, 4), torch.randint(1, 13, (40,))
    best = logits.argmax(-1)
    expected = [collapse(row[:length].tolist()) for row, length in zip(best, lengths, strict=True)]
    assert librispeech.greedy(logits, lengths) == expected


def edits(left: Sequence[Any], right: Sequence[Any]) -> int:
    rows = list(range(len(right) + 1))
    for i, a in enumerate(left, 1):
        before, rows[0] = rows[0], i
        for j, b in enumerate(right, 1):
            before, rows[j] = rows[j], min(rows[j] + 1, rows[j - 1] + 1, before + (a != b))
    return rows[-1]


class Says(nn.Module):
    """Outputs the same texts whatever it hears."""

    def __init__(self, texts: Sequence[str]) -> None:
        super().__init__()
        self.texts = texts

    def forward(self, features: Tensor, _lengths: Tensor) -> tuple[Tensor, Tensor]:
        logits = torch.zeros(len(self.texts), 2 * max(map(len, self.texts)) + 90, 29)
        for row, text in zip(logits, self.texts, strict=True):
            row[:, 0] = 5
            for i, number in enumerate(librispeech.spelled(text).tolist()):
                row[2 * i, number] = 9
        return logits, torch.full((len(features),), logits.shape[1])


def test_error_rates_count_edits_over_the_split() -> None:
    task = workload(FAMILIES[0], "mini")
    spoken = ["please hold the line", "thank you", "no"]
    heard = ["please fold line", "thank you all", ""]
    levels = np.zeros((40, 32), np.uint8)
    batches = [librispeech.prompt_batch([librispeech.Prompt(levels, text)]) for text in spoken]
    totals: dict[str, float] = {}
    for batch, text in zip(batches, heard, strict=True):
        for key, value in task.eval_step(Says([text]), batch).items():
            totals[key] = totals.get(key, 0.0) + float(value)
    got = task.summarize(totals)
    words = sum(edits(a.split(), b.split()) for a, b in zip(spoken, heard, strict=True))
    characters = sum(edits(a, b) for a, b in zip(spoken, heard, strict=True))
    assert got.metrics["wer"] == pytest.approx(words / 7)
    assert got.metrics["cer"] == pytest.approx(characters / sum(map(len, spoken)))
    assert got.metric == got.loss
    assert got.examples == 3
    assert dataclasses.replace(task, metric="wer").summarize(totals).metric == got.metrics["wer"]
    with pytest.raises(ValueError, match="loss or wer"):
        dataclasses.replace(task, metric="cer")


# ---- layers ----


def test_batch_norm_is_that_of_the_valid_frames() -> None:
    torch.manual_seed(0)
    norm = BatchNorm(6, momentum=0.1)
    nn.init.normal_(norm.scale)
    nn.init.normal_(norm.bias)
    x, lengths = torch.randn(3, 9, 6) * 3 + 1, torch.tensor([9, 4, 1])
    valid = speech_layers.valid_frames(lengths, 9)
    frames = x[valid]
    mean, var = torch.zeros(6), torch.ones(6)
    got = norm.train()(x, valid)
    expected = nn.functional.batch_norm(frames, mean, var, 1 + norm.scale, norm.bias, True, 0.1, 1e-3)
    torch.testing.assert_close(got[valid], expected)
    assert not got[~valid].any()
    torch.testing.assert_close(norm.running_mean, mean)
    # torch keeps the unbiased variance, AlgoPerf the biased one
    torch.testing.assert_close(norm.running_var, 0.9 + 0.1 * frames.var(0, unbiased=False))
    expected = nn.functional.batch_norm(
        frames, norm.running_mean, norm.running_var, 1 + norm.scale, norm.bias, eps=1e-3
    )
    torch.testing.assert_close(norm.eval()(x, valid)[valid], expected)


def test_the_recurrent_layer_is_a_packed_two_way_lstm() -> None:
    torch.manual_seed(0)
    layer = Recurrent(8, momentum=0.1).eval()
    oracle = nn.LSTM(8, 4, bidirectional=True, batch_first=True)
    for name, parameter in oracle.named_parameters():
        one_way = layer.backwards if name.endswith("_reverse") else layer.forwards
        parameter.data = one_way.get_parameter(name.removesuffix("_reverse"))
    x, lengths = torch.randn(3, 7, 8), torch.tensor([7, 3, 5])
    valid, place = speech_layers.valid_frames(lengths, 7), torch.arange(7)
    turned = torch.where(valid, lengths[:, None] - 1 - place, place)
    normalized = layer.batch_norm(x, valid)
    packed = pack_padded_sequence(normalized, lengths, batch_first=True, enforce_sorted=False)
    expected = pad_packed_sequence(oracle(packed)[0], batch_first=True)[0]
    torch.testing.assert_close(layer(x, turned, valid), expected)


def test_padding_changes_nothing(mini: SpeechRecognition) -> None:
    torch.manual_seed(0)
    model = mini.model().train()
    batch = next(mini.batches(0, 1))
    wider = batch._replace(
        sound=nn.functional.pad(batch.sound, (0, 0, 0, 37), value=50),
        kept_frames=nn.functional.pad(batch.kept_frames, (0, 37), value=True),
        targets=nn.functional.pad(batch.targets, (0, 5)),
    )
    losses = [mini.loss(model, each) for each in (batch, wider)]
    torch.testing.assert_close(*losses)
    alone = Utterances(*(tensor[:1] for tensor in batch))
    model.eval()
    with torch.no_grad():
        logits, lengths = mini._outputs(model, batch)
        single, _ = mini._outputs(model, alone)
    torch.testing.assert_close(single[0, : lengths[0]], logits[0, : lengths[0]], rtol=1e-4, atol=1e-5)


def test_gradients_repeat_bit_for_bit(mini: SpeechRecognition) -> None:
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)
    try:
        found = []
        for _ in range(2):
            torch.manual_seed(0)
            model = mini.model().train()
            mini.loss(model, next(mini.batches(0, 1))).backward()
            found.append([parameter.grad for parameter in model.parameters()])
        assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))
    finally:
        torch.use_deterministic_algorithms(before)


# ---- batch-norm statistics under an average ----


def norms(model: nn.Module) -> list[BatchNorm]:
    return [module for module in model.modules() if isinstance(module, BatchNorm)]


def test_recomputed_statistics_are_the_mean_over_batches(mini: SpeechRecognition) -> None:
    torch.manual_seed(0)
    model = mini.model()
    batches = list(itertools.islice(mini.batches(0, 1), 5))
    heard: dict[BatchNorm, list[tuple[np.ndarray, np.ndarray]]] = {norm: [] for norm in norms(model)}

    def listen(norm: BatchNorm, inputs: tuple[Tensor, Tensor]) -> None:
        x, valid = inputs
        frames = np.array([x[i, t].tolist() for i, t in valid.nonzero().tolist()])
        heard[norm].append((frames.mean(0), frames.var(0)))

    hooks = [norm.register_forward_pre_hook(listen) for norm in heard]  # type: ignore[arg-type]
    with torch.no_grad():
        for batch in batches:
            mini.loss(model.train(), batch)
    for hook in hooks:
        hook.remove()
    momenta = [norm.momentum for norm in heard]
    assert recompute_statistics(model.eval(), (mini.loss(model, batch) for batch in batches)) == 5
    assert heard
    for norm, statistics in heard.items():
        assert len(statistics) == 5
        mean, var = (np.mean(values, axis=0) for values in zip(*statistics, strict=True))
        np.testing.assert_allclose(norm.running_mean.numpy(), mean, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(norm.running_var.numpy(), var, rtol=1e-4, atol=1e-5)
    assert momenta == [norm.momentum for norm in heard]


def test_every_policy_evaluates_an_average(mini: SpeechRecognition) -> None:
    torch.manual_seed(0)
    model = mini.model().train()
    schemes = {policy: EMA(decay=0.5, every=1, buffers=policy) for policy in ("live", "average", "recompute")}
    bank = Bank(model, list(schemes.values()))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    seen = []
    for step, batch in enumerate(itertools.islice(mini.batches(0, 1), 3), start=1):
        optimizer.zero_grad()
        mini.loss(model, batch).backward()
        optimizer.step()
        bank.update(step)
        seen.append([norm.running_mean.clone() for norm in norms(model)])
    held_out = list(mini.eval_batches("validation"))[:1]
    few = list(itertools.islice(mini.batches(9, 1), 2))
    losses = {}
    for policy, scheme in schemes.items():
        with (
            bank.swapped(scheme, recompute=lambda m: (mini.loss(m, batch) for batch in few))
            if (policy == "recompute")
            else bank.swapped(scheme)
        ):
            losses[policy] = evaluated(mini, model, held_out).loss
            means = [norm.running_mean.clone() for norm in norms(model)]
        if policy == "average":
            expected = [a / 4 + b / 4 + c / 2 for a, b, c in zip(*seen, strict=True)]
        elif policy == "live":
            expected = seen[-1]
        else:
            continue
        torch.testing.assert_close(means, expected)
    assert len(set(losses.values())) == 3
    assert all(map(torch.equal, seen[-1], [norm.running_mean for norm in norms(model)]))
