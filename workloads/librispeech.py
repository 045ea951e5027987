"""Speech recognition by CTC: what the Conformer and DeepSpeech share, that is all but the network.

Corpora: `Prompts` (mini, 14 minutes of one speaker in the package) and `LibriSpeech` (full, read from disk).
Source of the full-size task: mlcommons/algorithmic-efficiency, algoperf/workloads/librispeech_conformer.
"""

from __future__ import annotations

import json
import lzma
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cache, partial
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from workloads import data
from workloads.loading import epoch_order, load_batches
from workloads.protocol import WHOLE, Batch, Part, Summary, Sums

BLANK = 0
SAMPLE_RATE = 16000
FRAME, HOP, FFT = 400, 160, 512  # samples: 25 ms every 10 ms
PREEMPHASIS = 0.97
MEL_EDGES = (125.0, 7600.0)  # Hz
MEL_FLOOR = 1e-5
# Mean and standard deviation of each of LibriSpeech's 80 log-mel bins, AlgoPerf's values to two decimals
# (librispeech_pytorch/preprocessor.py).
# fmt: off
MEL_MEAN = (
    -7.60, -7.12, -6.89, -6.87, -6.97, -7.11, -6.95, -6.78, -6.62, -6.49, -6.41, -6.39, -6.42, -6.40, -6.52, -6.71,
    -6.85, -6.99, -6.92, -7.15, -7.20, -7.05, -7.31, -7.12, -7.30, -7.12, -7.24, -7.17, -7.10, -7.09, -6.98, -6.88,
    -6.76, -6.63, -6.51, -6.42, -6.36, -6.32, -6.27, -6.25, -6.28, -6.19, -6.25, -6.15, -6.09, -6.02, -5.93, -5.85,
    -5.82, -5.81, -5.81, -5.77, -5.75, -5.77, -5.78, -5.78, -5.80, -5.80, -5.80, -5.80, -5.82, -5.88, -5.97, -6.04,
    -6.13, -6.23, -6.32, -6.39, -6.49, -6.55, -6.61, -6.65, -6.67, -6.67, -6.68, -6.70, -6.75, -6.79, -6.86, -6.94,
)
MEL_STD = (
    3.44, 3.60, 3.70, 3.74, 3.75, 3.69, 3.69, 3.76, 3.84, 3.90, 3.93, 3.93, 3.91, 3.90, 3.87, 3.82,
    3.76, 3.71, 3.70, 3.60, 3.55, 3.55, 3.45, 3.47, 3.41, 3.44, 3.41, 3.42, 3.43, 3.42, 3.43, 3.44,
    3.46, 3.48, 3.50, 3.50, 3.50, 3.50, 3.49, 3.48, 3.46, 3.46, 3.46, 3.48, 3.50, 3.53, 3.57, 3.59,
    3.60, 3.59, 3.59, 3.58, 3.58, 3.59, 3.58, 3.58, 3.59, 3.59, 3.59, 3.59, 3.59, 3.59, 3.59, 3.59,
    3.58, 3.57, 3.56, 3.55, 3.55, 3.55, 3.54, 3.53, 3.50, 3.49, 3.49, 3.47, 3.46, 3.44, 3.43, 3.43,
)
# fmt: on


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


class LayerNorm(nn.Module):
    """y = (1 + s) · (x − mean) / √(var + ε) + b over the last axis; weight decay draws the gain to 1."""

    def __init__(self, width: int, eps: float = 1e-6) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.zeros(width))
        self.bias = nn.Parameter(torch.zeros(width))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """(…, width) -> (…, width)."""
        return F.layer_norm(x, self.scale.shape, 1 + self.scale, self.bias, self.eps)


class BatchNorm(nn.Module):
    """y = (1 + s) · (x − μ) / √(σ² + ε) + b, with μ and σ² over the valid frames of the batch, 0 elsewhere.

    In training running ← (1 − momentum) · running + momentum · batch statistic (σ² biased); in evaluation the
    running statistics stand for μ and σ².
    """

    running_mean: Tensor
    running_var: Tensor

    def __init__(self, width: int, momentum: float, eps: float = 1e-3) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.zeros(width))
        self.bias = nn.Parameter(torch.zeros(width))
        self.register_buffer("running_mean", torch.zeros(width))
        self.register_buffer("running_var", torch.ones(width))
        self.momentum, self.eps = momentum, eps

    def forward(self, x: Tensor, valid: Tensor) -> Tensor:
        """(batch, time, width), valid (batch, time) bool -> (batch, time, width) float32."""
        x, mask = x.float(), valid[:, :, None]
        mean, var = self.running_mean, self.running_var
        if self.training:
            count = valid.sum()
            mean = (x * mask).sum((0, 1)) / count
            var = ((x - mean).square() * mask).sum((0, 1)) / count
            with torch.no_grad():
                self.running_mean.lerp_(mean, self.momentum)
                self.running_var.lerp_(var, self.momentum)
        gain = (1 + self.scale) * torch.rsqrt(var + self.eps)
        return ((x - mean) * gain + self.bias) * mask


class ConvSubsampling(nn.Module):
    """Two 3×3 convolutions of stride 2 with ReLU, then a linear layer over channels × bins: a quarter of the frames."""

    def __init__(self, bins: int, channels: int, width: int) -> None:
        super().__init__()
        self.convolutions = nn.ModuleList(
            nn.Conv2d(num_in, channels, 3, stride=2, padding=1) for num_in in (1, channels)
        )
        self.out = nn.Linear(channels * (bins // 4), width)

    def forward(self, features: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """(batch, frames, bins), lengths -> (batch, ⌈frames / 4⌉, width), ⌈lengths / 4⌉."""
        x = features[:, None]
        for convolution in self.convolutions:
            lengths = (lengths + 1) // 2
            x = F.relu(convolution(x))
            x = x * valid_frames(lengths, x.shape[2])[:, None, :, None]
        return self.out(x.transpose(1, 2).flatten(2)), lengths


def valid_frames(lengths: Tensor, num_frames: int) -> Tensor:
    """(batch,) -> (batch, num_frames) bool: frame t of an utterance is valid when t < length."""
    return torch.arange(num_frames, device=lengths.device) < lengths[:, None]


def initialize(module: nn.Module) -> None:
    """Glorot-uniform weights and zero biases for the linear and convolutional layers, as AlgoPerf has them."""
    for layer in module.modules():
        if isinstance(layer, nn.Linear | nn.Conv1d | nn.Conv2d):
            nn.init.xavier_uniform_(layer.weight)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)


@cache
def mel_weights(device: torch.device) -> Tensor:
    """(FFT / 2 + 1, 80) triangles, evenly spaced and linear in mel = 1127 ln(1 + f / 700 Hz); bin 0 counts for none."""
    low, high = (1127 * np.log1p(edge / 700) for edge in MEL_EDGES)
    edges = np.linspace(low, high, len(MEL_MEAN) + 2)
    mel = 1127 * np.log1p(np.linspace(0, SAMPLE_RATE / 2, FFT // 2 + 1)[:, None] / 700)
    rising = (mel - edges[:-2]) / (edges[1:-1] - edges[:-2])
    falling = (edges[2:] - mel) / (edges[2:] - edges[1:-1])
    with torch.inference_mode(False):  # cached: the first caller may be an evaluation
        return torch.tensor(np.maximum(np.minimum(rising, falling), 0), dtype=torch.float32, device=device)


def log_mel(audio: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
    """Normalized log-mel energies of 25 ms every 10 ms, pre-emphasized inside each frame, periodic Hann window.

    audio: (batch, samples) int16, lengths: (batch,) -> (batch, frames, 80) float32, numbers of frames. A frame is
    valid when its first sample is. Source: AlgoPerf's MelFilterbankFrontend.
    """
    with torch.autocast(audio.device.type, enabled=False):  # half precision has no place under a logarithm
        frames = (audio.float() / 2**15).unfold(1, FRAME + 1, HOP)[..., :FRAME]
        # the window is 0 at a frame's first sample, so that whatever stands there is silent
        emphasized = F.pad(frames[..., 1:] - PREEMPHASIS * frames[..., :-1], (1, 0))
        window = torch.hann_window(FRAME, device=audio.device)
        power = torch.fft.rfft(emphasized * window, FFT).abs().square()
        energies = (power @ mel_weights(audio.device)).clamp(min=MEL_FLOOR).log()
        mean, std = (torch.tensor(values, device=audio.device) for values in (MEL_MEAN, MEL_STD))
        lengths = ((lengths + HOP - 1) // HOP).clamp(max=energies.shape[1])
        return (energies - mean) / std, lengths


@dataclass(frozen=True)
class SpecAugment:
    """Hides bands of frequency and of time. Source: Park et al. 2019, time bands relative to the utterance.

    A frequency band is narrower than `max_bins`, a time band than `max_time_ratio` of the utterance.
    """

    num_frequency_masks: int
    max_bins: int
    num_time_masks: int
    max_time_ratio: float

    def kept(
        self, random: np.random.Generator, lengths: NDArray[np.int64], num_frames: int, bins: int
    ) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
        """What stays visible: (batch, num_frames) and (batch, bins)."""
        everywhere = np.full(len(lengths), bins)
        frames = _outside_bands(random, lengths, self.max_time_ratio * lengths, self.num_time_masks, num_frames)
        return frames, _outside_bands(
            random, everywhere, 0 * everywhere + self.max_bins, self.num_frequency_masks, bins
        )


def _outside_bands(
    random: np.random.Generator, ranges: NDArray[Any], max_sizes: NDArray[Any], count: int, size: int
) -> NDArray[np.bool_]:
    sizes = (random.random((len(ranges), count)) * max_sizes[:, None]).astype(np.int64)
    starts = (random.random((len(ranges), count)) * (ranges[:, None] - sizes + 1)).astype(np.int64)
    position = np.arange(size)
    inside = (position >= starts[..., None]) & (position < (starts + sizes)[..., None])
    outside: NDArray[np.bool_] = ~inside.any(1)
    return outside


class Corpus(Protocol):
    """Where utterances come from."""

    @property
    def bins(self) -> int: ...
    @property
    def num_outputs(self) -> int: ...
    @property
    def splits(self) -> tuple[str, ...]: ...

    def check(self) -> None: ...
    def batches(self, seed: int, first_step: int, batch_size: int, part: Part) -> Iterator[Batch]: ...
    def eval_batches(self, split: str, part: Part) -> Iterable[Batch]: ...
    def features(self, sound: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]: ...
    def texts(self, sequences: Sequence[Sequence[int]]) -> list[str]: ...


def padded(arrays: Sequence[NDArray[Any]], size: int | None = None) -> Tensor:
    """Arrays of different lengths as one tensor, zeros behind them up to `size` or the longest."""
    longest = max(len(array) for array in arrays) if size is None else size
    stacked = np.zeros((len(arrays), longest, *arrays[0].shape[1:]), arrays[0].dtype)
    for row, array in zip(stacked, arrays, strict=True):
        row[: len(array)] = array
    return torch.from_numpy(stacked)


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
    index = json.loads(data.path("librispeech.json").read_text(encoding="ascii"))
    flat = np.frombuffer(lzma.decompress(data.path("librispeech.xz").read_bytes()), dtype=np.uint8)
    levels = np.cumsum(flat.reshape(-1, index["bins"]), axis=0, dtype=np.uint8)
    ends = np.cumsum(index["frames"])
    found = [
        Prompt(levels[end - frames : end], text)
        for end, frames, text in zip(ends.tolist(), index["frames"], index["texts"], strict=True)
    ]
    return tuple(found[: index["num_train"]] if split == "train" else found[index["num_train"] :])


@cache
def prompt_batches(batch_size: int) -> tuple[Utterances, ...]:
    """All validation prompts, from short to long, so that little is padding."""
    chosen = sorted(prompts("validation"), key=lambda prompt: (len(prompt.levels), prompt.text))
    with torch.inference_mode(False):  # cached: later callers may want gradients
        return tuple(prompt_batch(chosen[i : i + batch_size]) for i in range(0, len(chosen), batch_size))


def prompt_batch(
    chosen: Sequence[Prompt], kept: tuple[NDArray[np.bool_], NDArray[np.bool_]] | None = None
) -> Utterances:
    """Prompts as a batch, hidden where `kept` says so."""
    sound = padded([prompt.levels for prompt in chosen])
    targets = [spelled(prompt.text) for prompt in chosen]
    frames, bins = kept or (np.ones(sound.shape[:2], np.bool_), np.ones(sound.shape[::2], np.bool_))
    return Utterances(
        sound,
        torch.tensor([len(prompt.levels) for prompt in chosen]),
        padded(targets),
        torch.tensor([len(target) for target in targets]),
        torch.from_numpy(frames),
        torch.from_numpy(bins),
    )


@dataclass(frozen=True)
class Prompts:
    """Telephone prompts of one speaker, spelled: validation holds texts that training does not have.

    Training joins two prompts half of the time where both fit into `max_frames`, changes the speed by up to
    `max_stretch` either way and hides bands. Up to a speed of 1.2 all texts have fewer characters than outputs.
    """

    augment: SpecAugment = SpecAugment(2, 8, 4, 0.05)
    max_stretch: float = 0.1
    join: float = 0.5
    max_frames: int = 700
    eval_batch_size: int = 20
    bins: int = 32
    num_outputs: int = len(CHARACTERS) + 1
    splits = ("validation",)

    def check(self) -> None:
        """The data lies in the package."""

    def features(self, sound: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Levels 0 … 63 to about zero mean and unit variance; padding becomes 0."""
        return (sound.float() - 31) / 14, lengths

    def texts(self, sequences: Sequence[Sequence[int]]) -> list[str]:
        """Numbers -> texts."""
        return ["".join(CHARACTERS[number - 1] for number in sequence) for sequence in sequences]

    def batches(self, seed: int, first_step: int, batch_size: int, part: Part) -> Iterator[Batch]:
        train = prompts("train")
        step = first_step
        while True:
            random = np.random.default_rng([seed, step])
            chosen = [self._example(random, train) for _ in range(batch_size)]
            lengths = np.array([len(prompt.levels) for prompt in chosen])
            frames, bins = self.augment.kept(random, lengths, int(lengths.max()), self.bins)
            mine = slice(part.index, None, part.count)
            longest = int(lengths[mine].max())
            yield prompt_batch(chosen[mine], (frames[mine, :longest], bins[mine]))
            step += 1

    def _example(self, random: np.random.Generator, train: Sequence[Prompt]) -> Prompt:
        first, second = (train[i] for i in random.integers(len(train), size=2).tolist())
        joined = random.random() < self.join
        speed = 1 + self.max_stretch * random.uniform(-1, 1)
        levels, text = first
        if joined and len(first.levels) + len(second.levels) <= self.max_frames:
            levels, text = np.concatenate([levels, second.levels]), f"{text} {second.text}"
        places = (np.arange(int(len(levels) / speed)) * speed).astype(np.int64)
        return Prompt(levels[places], text)

    def eval_batches(self, split: str, part: Part) -> Iterable[Batch]:
        if split != "validation":
            raise ValueError(f"librispeech's mini has no split {split!r}; it has validation")
        return prompt_batches(self.eval_batch_size)[part.index :: part.count]


# ---- full ----

SUBSETS = {
    "train": ("train-clean-100", "train-clean-360", "train-other-500"),
    "validation": ("dev-clean", "dev-other"),
    "test": ("test-clean",),
}
HOLDS = "spm_model.vocab and LibriSpeech/{train-clean-100, …, test-clean}"


class Recording(NamedTuple):
    path: str
    text: str


def num_samples(path: Path) -> int:
    """How long a 16 kHz FLAC file is, from its first 42 bytes: much faster than opening 280,000 decoders.

    Raises: BadData. Source: RFC 9639, section 8.2.
    """
    try:
        with path.open("rb") as file:
            head = file.read(42)
    except OSError as error:
        raise data.BadData(f"{path}: {error.strerror}; its transcript is there") from error
    bits = int.from_bytes(head[18:26], "big")  # rate 20, channels − 1 3, bits a sample − 1 5, samples 36
    if len(head) < 42 or head[:4] != b"fLaC" or head[4] & 127 != 0:
        raise data.BadData(f"{path}: not a FLAC file")
    if (bits >> 44, (bits >> 41) & 7) != (SAMPLE_RATE, 0):
        raise data.BadData(f"{path}: {bits >> 44} Hz, {1 + (bits >> 41 & 7)} channels; it should be 16000 Hz, 1")
    return bits & (1 << 36) - 1


def transcribed(path: Path) -> list[Recording]:
    """The recordings of one chapter, from its transcript of lines `<id> TEXT`. Raises: BadData."""
    found = []
    for line in path.read_text(encoding="utf-8").splitlines():
        name, _, text = line.strip().partition(" ")
        if not text:
            raise data.BadData(f"{path}: line {line!r} is not `<utterance> <text>`")
        found.append(Recording(str(path.with_name(f"{name}.flac")), text))
    return found


def transcripts(root: Path, subset: str) -> list[Path]:
    """The transcripts of one subset, in order. Raises: BadData when there is none."""
    found = sorted((root / subset).glob("*/*/*.trans.txt"))
    if not found:
        raise data.BadData(
            f"{root / subset}: no transcripts; it should hold <speaker>/<chapter>/*.flac and *.trans.txt"
        )
    return found


@cache
def recordings(root: Path, split: str, max_samples: int, max_characters: int) -> tuple[Recording, ...]:
    """The recordings of one split, in order, without those that are too long. Raises: BadData."""
    chapters = [path for subset in SUBSETS[split] for path in transcripts(root, subset)]
    listed = [
        recording for chapter in chapters for recording in transcribed(chapter) if len(recording.text) <= max_characters
    ]
    with ThreadPoolExecutor(16) as pool:  # waits for the disk
        lengths = list(pool.map(num_samples, [Path(recording.path) for recording in listed]))
    return tuple(recording for recording, length in zip(listed, lengths, strict=True) if 0 < length <= max_samples)


@cache
def tokenizer(path: Path, vocabulary: int) -> Any:
    """The sentencepiece model at `path`. Raises: BadData."""
    import sentencepiece

    belongs = f"a sentencepiece model of {vocabulary:,} pieces belongs there"
    if not path.is_file():
        raise data.BadData(f"{path}: no such file; {belongs}")
    try:
        model = sentencepiece.SentencePieceProcessor(model_file=str(path))
    except (OSError, RuntimeError) as error:
        raise data.BadData(f"{path}: not a sentencepiece model; {belongs}") from error
    if model.vocab_size() != vocabulary:
        raise data.BadData(f"{path}: {model.vocab_size():,} pieces; {belongs}")
    return model


def audio(path: str) -> NDArray[np.int16]:
    """The samples of one recording. Raises: BadData."""
    import soundfile

    try:
        samples: NDArray[np.int16] = soundfile.read(path, dtype="int16")[0]
    except soundfile.SoundFileError as error:
        raise data.BadData(f"{path}: cannot be decoded: {error}") from error
    return samples


@dataclass(frozen=True)
class LibriSpeech:
    """Read English books, 960 hours, as sentencepieces and an end; each recording padded to `max_samples`.

    $WA_DATA_DIR/librispeech holds spm_model.vocab and LibriSpeech/<subset>/<speaker>/<chapter>/*.flac, *.trans.txt.
    Longer recordings and texts of more than `max_characters` are left out. num_workers: processes that read, for
    each part of a batch.
    """

    augment: SpecAugment = SpecAugment(2, 27, 10, 0.05)
    max_samples: int = 320_000
    max_characters: int = 256
    max_tokens: int = 256
    eval_batch_size: int = 64
    num_workers: int = 2
    bins: int = len(MEL_MEAN)
    num_outputs: int = 1024
    splits = ("validation", "test")

    def check(self) -> None:
        """Looks at the tokenizer and at the first recording of every subset. Raises: BadData."""
        folder = self._folder()
        for subset in (subset for subsets in SUBSETS.values() for subset in subsets):
            first = transcribed(transcripts(folder / "LibriSpeech", subset)[0])[0]
            num_samples(Path(first.path))
            self._batch(folder, [first], None)

    def features(self, sound: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Audio to log-mel energies, on the audio's device."""
        return log_mel(sound, lengths)

    def texts(self, sequences: Sequence[Sequence[int]]) -> list[str]:
        """Sentencepieces -> texts; the end is silent."""
        model = self._tokenizer(data.dataset("librispeech", HOLDS))
        return [model.decode(list(sequence)) for sequence in sequences]

    def batches(self, seed: int, first_step: int, batch_size: int, part: Part) -> Iterator[Batch]:
        folder = self._folder()
        train = self._recordings(folder, "train")
        if len(train) < batch_size:
            raise data.BadData(f"{folder}: {len(train)} training recordings; a batch has {batch_size}")
        make = partial(self._train_batch, folder, train, seed, batch_size, part)
        return iter(load_batches(make, first_step, num_workers=self.num_workers))

    def eval_batches(self, split: str, part: Part) -> Iterable[Batch]:
        if split not in self.splits:
            raise ValueError(f"librispeech has no split {split!r}; it has validation and test")
        folder = self._folder()
        held_out = self._recordings(folder, split)
        make = partial(self._eval_batch, folder, held_out)
        stop = -(-len(held_out) // self.eval_batch_size)
        return load_batches(make, part.index, stop, part.count, self.num_workers)

    def _folder(self) -> Path:
        folder = data.dataset("librispeech", HOLDS)
        self._tokenizer(folder)
        return folder

    def _tokenizer(self, folder: Path) -> Any:
        return tokenizer(folder / "spm_model.vocab", self.num_outputs)

    def _recordings(self, folder: Path, split: str) -> tuple[Recording, ...]:
        return recordings(folder / "LibriSpeech", split, self.max_samples, self.max_characters)

    # What a worker process runs gets its folder: workers do not see a later change of the environment.

    def _train_batch(
        self, folder: Path, train: Sequence[Recording], seed: int, batch_size: int, part: Part, step: int
    ) -> Batch:
        epoch, place = divmod(step - 1, len(train) // batch_size)
        order = epoch_order((seed, epoch), len(train))[place * batch_size :][:batch_size]
        mine = range(part.index, batch_size, part.count)
        # a stream an example, so that a part hides what the whole batch hides
        streams = [np.random.default_rng([seed, epoch, place, i, 1]) for i in mine]
        return self._batch(folder, [train[i] for i in order[mine].tolist()], streams)

    def _eval_batch(self, folder: Path, held_out: Sequence[Recording], number: int) -> Batch:
        chosen = held_out[number * self.eval_batch_size :][: self.eval_batch_size]
        return self._batch(folder, chosen, None)

    def _batch(
        self, folder: Path, chosen: Sequence[Recording], streams: Sequence[np.random.Generator] | None
    ) -> Utterances:
        model = self._tokenizer(folder)
        sounds = [audio(recording.path) for recording in chosen]
        targets = [np.array(model.encode(recording.text, add_eos=True)) for recording in chosen]
        for recording, target in zip(chosen, targets, strict=True):
            if len(target) > self.max_tokens:
                raise data.BadData(f"{recording.path}: {len(target)} sentencepieces, over {self.max_tokens}")
        lengths = np.array([len(sound) for sound in sounds])
        num_frames = 1 + (self.max_samples - FRAME - 1) // HOP
        frames = np.ones((len(chosen), num_frames), dtype=np.bool_)
        bins = np.ones((len(chosen), self.bins), dtype=np.bool_)
        for i, stream in enumerate(streams or ()):
            visible = np.minimum(-(-lengths[i : i + 1] // HOP), num_frames)
            frames[i : i + 1], bins[i : i + 1] = self.augment.kept(stream, visible, num_frames, self.bins)
        return Utterances(
            padded(sounds, self.max_samples),
            torch.from_numpy(lengths),
            padded(targets, self.max_tokens),
            torch.tensor([len(target) for target in targets]),
            torch.from_numpy(frames),
            torch.from_numpy(bins),
        )


# ---- the workload ----


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
    best, spoken = best.cpu(), spoken.cpu()
    return [row[keep].tolist() for row, keep in zip(best, spoken, strict=True)]


@dataclass(frozen=True)
class SpeechRecognition:
    """CTC loss, nats a target token; metric: "loss" or "wer", word errors / words by jiwer, over the whole split.

    network: (bins, num_outputs) -> a module of (features, lengths) -> (logits, lengths). A batch is `Utterances`.
    """

    corpus: Corpus
    network: Callable[[int, int], nn.Module]
    step_budget: int
    batch_size: int
    optimizer: Mapping[str, Any]
    schedule: Mapping[str, Any]
    step_seconds: float
    eval_seconds: float
    training: Mapping[str, Any] = field(default_factory=dict)
    batch_norm_parts: int | None = None
    metric: str = "loss"
    higher_is_better: bool = field(default=False, init=False)

    def __post_init__(self) -> None:
        if self.metric not in ("loss", "wer"):
            raise ValueError(f"metric is {self.metric!r}; it is loss or wer")

    def check_data(self) -> None:
        self.corpus.check()

    def model(self) -> nn.Module:
        return self.network(self.corpus.bins, self.corpus.num_outputs)

    def batches(self, seed: int, first_step: int, part: Part = WHOLE) -> Iterator[Batch]:
        return self.corpus.batches(seed, first_step, self.batch_size, part)

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        heard = Utterances(*batch)
        losses = ctc_losses(*self._outputs(model, heard), heard.targets, heard.target_lengths)
        return losses.sum() / heard.target_lengths.sum()

    def loss_weight(self, batch: Batch) -> float:
        """Target tokens, ends included."""
        return float(Utterances(*batch).target_lengths.sum())

    @property
    def splits(self) -> tuple[str, ...]:
        return self.corpus.splits

    def eval_batches(self, split: str, part: Part = WHOLE) -> Iterable[Batch]:
        return self.corpus.eval_batches(split, part)

    def eval_step(self, model: nn.Module, batch: Batch) -> Sums:
        import jiwer

        heard = Utterances(*batch)
        logits, lengths = self._outputs(model, heard)
        losses = ctc_losses(logits, lengths, heard.targets, heard.target_lengths)
        spoken = zip(heard.targets.tolist(), heard.target_lengths.tolist(), strict=True)
        references = self.corpus.texts([numbers[:length] for numbers, length in spoken])
        hypotheses = self.corpus.texts(greedy(logits, lengths))
        sums = {"loss": losses.double().sum(), "tokens": heard.target_lengths.sum()}
        count = partial(torch.tensor, device=logits.device)
        for unit, compare in (("words", jiwer.process_words), ("characters", jiwer.process_characters)):
            found = compare(references, hypotheses)
            errors = found.substitutions + found.deletions + found.insertions
            sums[unit] = count(found.hits + found.substitutions + found.deletions)
            sums[f"{unit}_wrong"] = count(errors)
        return {**sums, "examples": count(len(references))}

    def summarize(self, sums: Mapping[str, Any]) -> Summary:
        loss = float(sums["loss"] / sums["tokens"])
        wer, cer = (float(sums[f"{unit}_wrong"] / sums[unit]) for unit in ("words", "characters"))
        metric = wer if self.metric == "wer" else loss
        return Summary(loss, metric, int(sums["examples"]), {"wer": wer, "cer": cer})

    def _outputs(self, model: nn.Module, batch: Utterances) -> tuple[Tensor, Tensor]:
        features, lengths = self.corpus.features(batch.sound, batch.lengths)
        visible = batch.kept_frames & valid_frames(lengths, features.shape[1])
        logits, lengths = model(features * visible[:, :, None] * batch.kept_bins[:, None], lengths)
        return logits, lengths
