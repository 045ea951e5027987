"""The corpora of the speech families: the mini's prompts, and LibriSpeech's files."""

from __future__ import annotations

import dataclasses
import itertools
from pathlib import Path

import numpy as np
import pytest
from batches import equal
from full_data import small

from workloads import librispeech, librispeech_files
from workloads.data import BadData
from workloads.librispeech import LibriSpeech, Prompts, Utterances
from workloads.protocol import Part, load
from workloads.speech_features import SpecAugment

FAMILY = "librispeech_conformer"
MINI = load(FAMILY)
assert isinstance(MINI, Prompts)


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


def test_validation_is_every_prompt_once() -> None:
    batches = list(MINI.eval_batches("validation"))
    found = [
        (row[:length].tobytes(), "".join(librispeech.CHARACTERS[n - 1] for n in numbers[:size]))
        for batch in batches
        for row, length, numbers, size in zip(
            batch.sound.numpy(), batch.lengths, batch.targets, batch.target_lengths, strict=True
        )
    ]
    expected = [(prompt.levels.tobytes(), prompt.text) for prompt in librispeech.prompts("validation")]
    assert sorted(found) == sorted(expected)


def test_a_training_example_is_one_or_two_prompts_at_another_speed() -> None:
    recordings: dict[str, list[np.ndarray]] = {}
    for prompt in librispeech.prompts("train"):
        recordings.setdefault(prompt.text, []).append(prompt.levels)
    num_joined, speeds = 0, []
    for batch in itertools.islice(MINI.batches(7, 1), 60):
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
    known = {(prompt.levels.tobytes(), prompt.text) for prompt in librispeech.prompts("train")}
    task = dataclasses.replace(MINI, augment=SpecAugment(0, 0, 0, 0.0), max_stretch=0.0, join=0.0)
    for batch in itertools.islice(task.batches(0, 1), 20):
        assert batch.kept_frames.all()
        assert batch.kept_bins.all()
        for sound, length, target, size in zip(*batch[:4], strict=True):
            text = "".join(librispeech.CHARACTERS[n - 1] for n in target[:size])
            assert (sound[:length].numpy().tobytes(), text) in known


# ---- full ----


@pytest.fixture
def tiny(folder: Path) -> LibriSpeech:
    found = small(FAMILY)
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
    assert all(map(equal, epoch[3:], itertools.islice(task.batches(4, 4), 3)))
    assert not equal(epoch[0], next(task.batches(4, 7)))  # another order
    assert not epoch[0].kept_frames.all()
    for i in range(2):
        part = next(task.batches(4, 2, Part(i, 2)))
        assert equal(part, Utterances(*(tensor[i::2] for tensor in epoch[1])))


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
        small(FAMILY, num_outputs=1024).check_data()
