"""Speech recognition: features, masks, loss, decoding and statistics against independent truths; both families."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from full_data import small
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from wa import EMA, Bank, recompute_statistics
from workloads import librispeech, librispeech_files, speech_features, speech_layers
from workloads.data import BadData
from workloads.librispeech import LibriSpeech, Prompts, SpeechRecognition, Utterances
from workloads.librispeech_deepspeech import Recurrent
from workloads.protocol import Part, load
from workloads.speech_features import SpecAugment
from workloads.speech_layers import BatchNorm

FAMILY = "librispeech"
FAMILIES = ("librispeech_conformer", "librispeech_deepspeech")


def workload(name: str, preset: str) -> SpeechRecognition:
    found = load(name, preset)
    assert isinstance(found, SpeechRecognition)
    return found


@pytest.fixture(params=FAMILIES)
def mini(request: pytest.FixtureRequest) -> SpeechRecognition:
    return workload(request.param, "mini")


def same(left: Utterances, right: Utterances) -> bool:
    return all(a.dtype == b.dtype and torch.equal(a, b) for a, b in zip(left, right, strict=True))


def summary(task: SpeechRecognition, model: nn.Module, batches: Iterable[Any]) -> Any:
    totals: dict[str, float] = {}
    with torch.inference_mode():
        for batch in batches:
            for key, value in task.eval_step(model.eval(), batch).items():
                totals[key] = totals.get(key, 0.0) + float(value)
    return task.summarize(totals)


# ---- the prompts ----


def test_no_text_is_in_both_splits() -> None:
    train, validation = (librispeech.prompts(split) for split in ("train", "validation"))
    assert (len(train), len(validation)) == (369, 120)
    assert not {prompt.text for prompt in train} & {prompt.text for prompt in validation}
    for prompt in (*train, *validation):
        assert prompt.levels.shape[1] == 32
        assert prompt.levels.max() <= 63
        assert len(prompt.levels) <= 700
        assert set(prompt.text) <= set(librispeech.CHARACTERS)
    speech = max(train, key=lambda prompt: len(prompt.levels)).levels
    assert speech.std() > 5  # not the stored differences


def test_validation_is_every_prompt_once(mini: SpeechRecognition) -> None:
    batches = list(mini.eval_batches("validation"))
    found = [
        (row[:length].tobytes(), "".join(librispeech.CHARACTERS[n - 1] for n in numbers[:size]))
        for batch in batches
        for row, length, numbers, size in zip(
            batch.sound.numpy(), batch.lengths, batch.targets, batch.target_lengths, strict=True
        )
    ]
    expected = [(prompt.levels.tobytes(), prompt.text) for prompt in librispeech.prompts("validation")]
    assert sorted(found) == sorted(expected)
    parts = [list(mini.eval_batches("validation", Part(i, 2))) for i in range(2)]
    assert all(map(same, batches[::2], parts[0]))
    assert all(map(same, batches[1::2], parts[1]))
    with pytest.raises(ValueError, match="validation"):
        mini.eval_batches("test")


def test_a_training_example_is_one_or_two_prompts_at_another_speed() -> None:
    recordings: dict[str, list[np.ndarray]] = {}
    for prompt in librispeech.prompts("train"):
        recordings.setdefault(prompt.text, []).append(prompt.levels)
    num_joined, speeds = 0, []
    for batch in itertools.islice(workload(FAMILIES[0], "mini").batches(7, 1), 60):
        for sound, length, target, size in zip(*batch[:4], strict=True):
            text = "".join(librispeech.CHARACTERS[n - 1] for n in target[:size])
            needed = size + sum(a == b for a, b in itertools.pairwise(text))
            assert needed <= -(-length // 4)  # else its CTC loss is infinite
            words = text.split(" ")
            halves = [(" ".join(words[:i]), " ".join(words[i:])) for i in range(1, len(words))]
            joined = [
                np.concatenate(pair)
                for first, second in halves
                for pair in itertools.product(recordings.get(first, []), recordings.get(second, []))
            ]
            rows = [row.tobytes() for row in sound[:length].numpy()]
            sources = [
                levels
                for levels in recordings.get(text, []) + joined
                if set(rows) <= {row.tobytes() for row in levels} and rows[0] == levels[0].tobytes()
            ]
            assert sources
            num_joined += len(sources[0]) > max((len(x) for x in recordings.get(text, [])), default=0)
            speeds.append(len(sources[0]) / int(length))
    assert 80 < num_joined < 160  # half of 240, less those that do not fit
    assert 0.89 < min(speeds) < 0.93
    assert 1.07 < max(speeds) < 1.12


def test_without_augmentation_an_example_is_a_prompt() -> None:
    mini = workload(FAMILIES[0], "mini")
    known = {(prompt.levels.tobytes(), prompt.text) for prompt in librispeech.prompts("train")}
    assert isinstance(mini, Prompts)
    task = dataclasses.replace(mini, augment=SpecAugment(0, 0, 0, 0.0), max_stretch=0.0, join=0.0)
    for batch in itertools.islice(task.batches(0, 1), 20):
        assert batch.kept_frames.all()
        assert batch.kept_bins.all()
        for sound, length, target, size in zip(*batch[:4], strict=True):
            text = "".join(librispeech.CHARACTERS[n - 1] for n in target[:size])
            assert (sound[:length].numpy().tobytes(), text) in known


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
            losses[policy] = summary(mini, model, held_out).loss
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


# ---- full ----


@pytest.fixture
def tiny(folder: Path) -> LibriSpeech:
    found = small(FAMILIES[0])
    assert isinstance(found, LibriSpeech)
    return found


def test_a_batch_is_what_lies_on_disk(tiny: LibriSpeech, folder: Path) -> None:
    import sentencepiece
    import soundfile

    model = sentencepiece.SentencePieceProcessor(model_file=str(folder / "spm_model.vocab"))
    batch = next(iter(tiny.eval_batches("test")))
    place = folder / "LibriSpeech" / "test-clean" / "15" / "1"
    lines = (place / "15-1.trans.txt").read_text().splitlines()
    for row, line in enumerate(lines):
        name, _, text = line.partition(" ")
        sound, _ = soundfile.read(place / f"{name}.flac", dtype="int16")
        assert np.array_equal(batch.sound[row, : batch.lengths[row]].numpy(), sound)
        assert not batch.sound[row, batch.lengths[row] :].any()
        expected = [*model.encode(text), model.eos_id()]
        assert batch.targets[row, : batch.target_lengths[row]].tolist() == expected
        assert tiny.texts([expected]) == [text]


def test_an_epoch_has_every_recording_once_and_parts_make_up_batches(tiny: LibriSpeech) -> None:
    task = tiny
    epoch = list(itertools.islice(task.batches(4, 1), 6))  # 12 recordings
    assert len({row.numpy().tobytes() for batch in epoch for row in batch.sound}) == 12
    assert all(map(same, epoch[3:], itertools.islice(task.batches(4, 4), 3)))
    assert not same(epoch[0], next(task.batches(4, 7)))  # another order
    assert not epoch[0].kept_frames.all()
    for i in range(2):
        part = next(task.batches(4, 2, Part(i, 2)))
        assert same(part, Utterances(*(tensor[i::2] for tensor in epoch[1])))
    parts = [list(task.eval_batches("validation", Part(i, 2))) for i in range(2)]
    whole = list(task.eval_batches("validation"))
    assert all(map(same, whole[::2], parts[0]))
    assert all(map(same, whole[1::2], parts[1]))


def test_long_recordings_are_left_out(tiny: LibriSpeech, folder: Path) -> None:
    lengths = [librispeech_files.num_samples(path) for path in (folder / "LibriSpeech").glob("dev-*/*/*/*.flac")]
    limit = sorted(lengths)[3]
    shorter = dataclasses.replace(tiny, max_samples=limit)
    batches = list(shorter.eval_batches("validation"))
    found = [length for batch in batches for length in batch.lengths.tolist()]
    assert sorted(found) == sorted(length for length in lengths if length <= limit)


def spoil(root: Path, what: str) -> str:
    """Damage a copy of the data; the path that the message should name."""
    speech = root / "LibriSpeech"
    flac = next(iter(sorted(speech.glob("train-clean-100/*/*/*.flac"))))
    if what == "subset":
        (speech / "dev-other").rename(root / "elsewhere")
        return "dev-other"
    if what == "recording":
        flac.unlink()
    elif what == "not flac":
        flac.write_bytes(b"RIFF" + bytes(60))
    elif what == "cut":
        flac.write_bytes(flac.read_bytes()[:100])
    elif what == "rate":
        import soundfile

        soundfile.write(flac, np.zeros(4000, np.int16), 8000)
    elif what == "transcript":
        transcript = next(flac.parent.glob("*.trans.txt"))
        transcript.write_text("a-line-without-text\n")
        return transcript.name
    else:
        tokenizer = root / "spm_model.vocab"
        if what == "no tokenizer":
            tokenizer.unlink()
        else:
            tokenizer.write_bytes(b"<unk>\t0\n")
        return tokenizer.name
    return flac.name


@pytest.mark.parametrize(
    "what", ["subset", "recording", "not flac", "cut", "rate", "transcript", "no tokenizer", "not a tokenizer"]
)
def test_bad_data_is_named(what: str, tiny: LibriSpeech, own_folder: Path) -> None:
    named = spoil(own_folder, what)
    with pytest.raises(BadData, match=named):
        tiny.check_data()

    def read() -> None:
        list(itertools.islice(tiny.batches(0, 1), 6))
        list(tiny.eval_batches("validation"))

    with pytest.raises(BadData, match=named):
        read()


def test_a_tokenizer_of_another_size_is_told(folder: Path) -> None:
    with pytest.raises(BadData, match=r"it has 40 pieces; it should be a sentencepiece model of 1,024"):
        small(FAMILIES[0], num_outputs=1024).check_data()
