"""Speech recognition by CTC: what the Conformer and DeepSpeech share, that is all but the network.

`Prompts` (mini) are 14 minutes of one speaker in the package, `LibriSpeech` (full) is read from disk.
Source of the full-size task: mlcommons/algorithmic-efficiency, algoperf/workloads/librispeech_conformer.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from workloads import data
from workloads.data.reading import index, padded, tokenizer, unpacked
from workloads.layers import cached_tensors
from workloads.librispeech_files import HOLDS, SUBSETS, Recording, audio, check_first, recordings
from workloads.protocol import Batch, Part, Summary, Sums
from workloads.speech_features import FRAME, HOP, MEL_MEAN, SpecAugment, log_mel
from workloads.speech_layers import valid_frames
from workloads.task import FileTask, Task, epoch_batch

BLANK = 0
MINI_AUGMENT, FULL_AUGMENT = SpecAugment(2, 8, 4, 0.05), SpecAugment(2, 27, 10, 0.05)
Kept = tuple[NDArray[np.bool_], NDArray[np.bool_]]  # what SpecAugment shows of frames and of bins


class Utterances(NamedTuple):
    """A batch. Padding lies behind each utterance and changes nothing.

    sound: (batch, frames, bins) uint8 levels of log-mel, or (batch, samples) int16. lengths: (batch,) int64, in
    frames or samples. targets: (batch, most) int64 without blanks, padded with 0. target_lengths: (batch,) int64.
    kept_frames (batch, frames) and kept_bins (batch, bins): bool, false where SpecAugment hides.
    """

    sound: Tensor
    lengths: Tensor
    targets: Tensor
    target_lengths: Tensor
    kept_frames: Tensor
    kept_bins: Tensor


def utterances(
    sounds: Sequence[NDArray[Any]], targets: Sequence[NDArray[np.int64]], kept: Kept, *most: int | None
) -> Utterances:
    """A batch; most: to which sounds and targets are padded, None: the longest."""
    lengths, sizes = (torch.tensor([len(array) for array in arrays]) for arrays in (sounds, targets))
    arrays = (*map(padded, (sounds, targets), most), *kept)
    sound, target, frames, bins = map(torch.from_numpy, arrays)
    return Utterances(sound, lengths, target, sizes, frames, bins)


# ---- the task ----


def ctc_losses(logits: Tensor, lengths: Tensor, targets: Tensor, target_lengths: Tensor) -> Tensor:
    """−ln p(target | logits) of each utterance, nats, summed over all alignments; (batch,) float32.

    logits: (batch, time, outputs). Source: Graves et al. 2006, eq. 8.
    """
    log_probabilities = logits.float().log_softmax(-1).transpose(0, 1)
    losses: Tensor = F.ctc_loss(log_probabilities, targets, lengths, target_lengths, blank=BLANK, reduction="none")
    return losses


def greedy(logits: Tensor, lengths: Tensor) -> list[list[int]]:
    """The best output of each valid frame, repetitions merged, blanks dropped."""
    best = logits.argmax(-1)
    previous = F.pad(best, (1, 0), value=BLANK)[:, :-1]
    spoken = (best != BLANK) & (best != previous) & valid_frames(lengths, best.shape[1])
    return [[output for output in row if output != BLANK] for row in best.where(spoken, BLANK).tolist()]


@dataclass(frozen=True, kw_only=True)
class SpeechRecognition(Task):
    """CTC loss, nats a target token; word errors / words ("wer") and characters ("cer") by jiwer, over the whole split.

    network: (bins, num_outputs) -> a module of (features, lengths) -> (logits, lengths). A batch is `Utterances`.
    """

    METRICS: ClassVar[Mapping[str, bool]] = {"loss": False, "wer": False}

    network: Callable[[int, int], nn.Module]
    batch_norm_parts: int | None = None
    augment: SpecAugment
    bins: int
    num_outputs: int

    def features(self, sound: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """What the network hears, (batch, frames, bins), and numbers of frames."""
        raise NotImplementedError

    def texts(self, sequences: Sequence[Sequence[int]]) -> list[str]:
        """Numbers -> texts."""
        raise NotImplementedError

    def model(self) -> nn.Module:
        return self.network(self.bins, self.num_outputs)

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        heard = Utterances(*batch)
        losses = ctc_losses(*self._outputs(model, heard), heard.targets, heard.target_lengths)
        return losses.sum() / heard.target_lengths.sum()

    def loss_weight(self, batch: Batch) -> float:
        """Target tokens, ends included."""
        return float(Utterances(*batch).target_lengths.sum())

    def eval_step(self, model: nn.Module, batch: Batch) -> Sums:
        import jiwer

        heard = Utterances(*batch)
        logits, lengths = self._outputs(model, heard)
        losses = ctc_losses(logits, lengths, heard.targets, heard.target_lengths)
        spoken = zip(heard.targets.tolist(), heard.target_lengths.tolist(), strict=True)
        references = self.texts([numbers[:length] for numbers, length in spoken])
        hypotheses = self.texts(greedy(logits, lengths))
        sums = {"loss": losses.double().sum(), "tokens": heard.target_lengths.sum()}
        for unit, compare in (("words", jiwer.process_words), ("characters", jiwer.process_characters)):
            found = compare(references, hypotheses)
            errors = found.substitutions + found.deletions + found.insertions
            sums[unit] = torch.tensor(found.hits + found.substitutions + found.deletions)
            sums[f"{unit}_wrong"] = torch.tensor(errors)
        return {**sums, "examples": torch.tensor(len(references))}

    def summarize(self, sums: Mapping[str, Any]) -> Summary:
        loss = float(sums["loss"] / sums["tokens"])
        wer, cer = (float(sums[f"{unit}_wrong"] / sums[unit]) for unit in ("words", "characters"))
        return self.summary(loss, sums["examples"], wer=wer, cer=cer)

    def _outputs(self, model: nn.Module, batch: Utterances) -> tuple[Tensor, Tensor]:
        features, lengths = self.features(batch.sound, batch.lengths)
        visible = batch.kept_frames & valid_frames(lengths, features.shape[1])
        logits, lengths = model(features * visible[:, :, None] * batch.kept_bins[:, None], lengths)
        return logits, lengths


# ---- mini ----

CHARACTERS = " 'abcdefghijklmnopqrstuvwxyz"  # character i has number i + 1; 0 is the blank


class Prompt(NamedTuple):
    levels: NDArray[np.uint8]  # (frames, bins), 10 ms a frame
    text: str


def spelled(text: str) -> NDArray[np.int64]:
    """A text as the numbers of its characters."""
    return np.array([CHARACTERS.index(character) + 1 for character in text], dtype=np.int64)


@cache
def prompts(split: str) -> tuple[Prompt, ...]:
    """The utterances of one split; the file holds train, then validation, as differences in time modulo 256."""
    about = index("librispeech.json")
    flat = np.frombuffer(unpacked("librispeech.xz"), dtype=np.uint8)
    levels = np.cumsum(flat.reshape(-1, about["bins"]), axis=0, dtype=np.uint8)
    found = tuple(map(Prompt, np.split(levels, np.cumsum(about["frames"])[:-1]), about["texts"]))
    return found[: about["num_train"]] if split == "train" else found[about["num_train"] :]


@cached_tensors
def prompt_batches(batch_size: int) -> tuple[Utterances, ...]:
    """All validation prompts, from short to long, so that little is padding."""
    chosen = sorted(prompts("validation"), key=lambda prompt: (len(prompt.levels), prompt.text))
    return tuple(prompt_batch(chosen[i : i + batch_size]) for i in range(0, len(chosen), batch_size))


def prompt_batch(chosen: Sequence[Prompt], kept: Kept | None = None) -> Utterances:
    """Prompts as a batch, hidden where `kept` says so."""
    sounds, targets = [prompt.levels for prompt in chosen], [spelled(prompt.text) for prompt in chosen]
    num_frames, num_bins = max(map(len, sounds)), sounds[0].shape[1]
    frames, bins = kept or (np.ones((len(sounds), size), np.bool_) for size in (num_frames, num_bins))
    return utterances(sounds, targets, (frames, bins), None, None)


@dataclass(frozen=True, kw_only=True)
class Prompts(SpeechRecognition):
    """Telephone prompts of one speaker, spelled: validation holds texts that training does not have.

    Training joins two prompts half of the time where both fit into `max_frames`, changes the speed by up to
    `max_stretch` either way and hides bands. Up to a speed of 1.2 all texts have fewer characters than outputs.
    """

    augment: SpecAugment = MINI_AUGMENT
    max_stretch: float = 0.1
    join: float = 0.5
    max_frames: int = 700
    eval_batch_size: int = 20
    bins: int = 32
    num_outputs: int = len(CHARACTERS) + 1

    def features(self, sound: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Levels 0 … 63 to about zero mean and unit variance; padding becomes 0."""
        return (sound.float() - 31) / 14, lengths

    def texts(self, sequences: Sequence[Sequence[int]]) -> list[str]:
        return ["".join(CHARACTERS[number - 1] for number in sequence) for sequence in sequences]

    def source(self, split: str) -> Any:
        return prompts("train") if split == "train" else prompt_batches(self.eval_batch_size)

    def train_batch(self, source: Sequence[Prompt], seed: int, part: Part, step: int) -> Utterances:
        random = np.random.default_rng([seed, step])
        chosen = [self._example(random, source) for _ in range(self.batch_size)]
        lengths = np.array([len(prompt.levels) for prompt in chosen])
        frames, bins = self.augment.kept(random, lengths, int(lengths.max()), self.bins)
        longest = int(lengths[part.every].max())
        return prompt_batch(chosen[part.every], (frames[part.every, :longest], bins[part.every]))

    def _example(self, random: np.random.Generator, train: Sequence[Prompt]) -> Prompt:
        first, second = (train[i] for i in random.integers(len(train), size=2).tolist())
        joined = random.random() < self.join
        speed = 1 + self.max_stretch * random.uniform(-1, 1)
        levels, text = first
        if joined and len(first.levels) + len(second.levels) <= self.max_frames:
            levels, text = np.concatenate([levels, second.levels]), f"{text} {second.text}"
        places = (np.arange(int(len(levels) / speed)) * speed).astype(np.int64)
        return Prompt(levels[places], text)


# ---- full ----


@dataclass(frozen=True, kw_only=True)
class LibriSpeech(SpeechRecognition, FileTask):
    """Read English books, 960 hours, as sentencepieces and an end; each recording padded to `max_samples`.

    $WA_DATA_DIR/librispeech holds spm_model.vocab and LibriSpeech/<subset>/<speaker>/<chapter>/*.flac, *.trans.txt.
    Longer recordings and texts of more than `max_characters` are left out.
    """

    augment: SpecAugment = FULL_AUGMENT
    max_samples: int = 320_000
    max_characters: int = 256
    max_tokens: int = 256
    eval_batch_size: int = 64
    num_workers: int = 4
    bins: int = len(MEL_MEAN)
    num_outputs: int = 1024
    # batch norm sees 32 recordings, as on each of AlgoPerf's 8 devices
    batch_norm_parts: int | None = 8
    training: Mapping[str, Any] = field(default_factory=lambda: {"accumulate": 8})
    splits = ("validation", "test")

    def check_data(self) -> None:
        """Looks at the tokenizer and at the first recording of every subset. Raises: BadData."""
        for subset in (subset for subsets in SUBSETS.values() for subset in subsets):
            self._batch([check_first(self._folder() / "LibriSpeech", subset)])

    def features(self, sound: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Audio to log-mel energies, on the audio's device."""
        return log_mel(sound, lengths)

    def texts(self, sequences: Sequence[Sequence[int]]) -> list[str]:
        """Sentencepieces -> texts; the end is silent."""
        return [self._tokenizer().decode(list(sequence)) for sequence in sequences]

    def _folder(self) -> Path:
        return data.dataset("librispeech", HOLDS)

    def _tokenizer(self) -> Any:
        return tokenizer(self._folder() / "spm_model.vocab", self.num_outputs)

    def source(self, split: str) -> tuple[Recording, ...]:
        self._tokenizer()
        found = recordings(self._folder() / "LibriSpeech", split, self.max_samples, self.max_characters)
        if split == "train" and len(found) < self.batch_size:
            raise data.BadData(f"{self._folder()}: {len(found)} training recordings; a batch has {self.batch_size}")
        return found

    def train_batch(self, source: Sequence[Recording], seed: int, part: Part, step: int) -> Utterances:
        epoch, place, order = epoch_batch((seed,), step, self.batch_size, len(source))
        mine = range(self.batch_size)[part.every]
        # a stream an example, so that a part hides what the whole batch hides
        streams = [np.random.default_rng([seed, epoch, place, i, 1]) for i in mine]
        return self._batch([source[i] for i in order[mine].tolist()], streams)

    def eval_batch(self, source: Sequence[Recording], number: int) -> Utterances:
        return self._batch([source[i] for i in self.numbers(source, number)])

    def _batch(self, chosen: Sequence[Recording], streams: Sequence[np.random.Generator] = ()) -> Utterances:
        model = self._tokenizer()
        sounds = [audio(recording.path) for recording in chosen]
        targets = [np.array(model.encode(recording.text, add_eos=True)) for recording in chosen]
        for recording, target in zip(chosen, targets, strict=True):
            if len(target) > self.max_tokens:
                raise data.BadData(f"{recording.path}: {len(target)} sentencepieces, over {self.max_tokens}")
        num_frames = 1 + (self.max_samples - FRAME - 1) // HOP
        frames, bins = (np.ones((len(chosen), size), dtype=np.bool_) for size in (num_frames, self.bins))
        for i, stream in enumerate(streams):
            visible = np.array([min(-(-len(sounds[i]) // HOP), num_frames)])
            frames[i : i + 1], bins[i : i + 1] = self.augment.kept(stream, visible, num_frames, self.bins)
        return utterances(sounds, targets, (frames, bins), self.max_samples, self.max_tokens)
