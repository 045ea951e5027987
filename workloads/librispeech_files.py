"""LibriSpeech's files: transcripts, recordings and how long they are."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from workloads import data
from workloads.speech_features import SAMPLE_RATE

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


def check_first(root: Path, subset: str) -> Recording:
    """The first recording of a subset, its FLAC header looked at. Raises: BadData."""
    first = transcribed(transcripts(root, subset)[0])[0]
    num_samples(Path(first.path))
    return first


def transcripts(root: Path, subset: str) -> list[Path]:
    """The transcripts of one subset, in order. Raises: BadData when there is none."""
    found = sorted((root / subset).glob("*/*/*.trans.txt"))
    if not found:
        holds = "<speaker>/<chapter>/*.flac and *.trans.txt"
        raise data.BadData(f"{root / subset}: no transcripts; it should hold {holds}")
    return found


@cache
def recordings(root: Path, split: str, max_samples: int, max_characters: int) -> tuple[Recording, ...]:
    """The recordings of one split, in order, without those that are too long. Raises: BadData."""
    chapters = [path for subset in SUBSETS[split] for path in transcripts(root, subset)]
    listed = [one for chapter in chapters for one in transcribed(chapter) if len(one.text) <= max_characters]
    with ThreadPoolExecutor(16) as pool:  # waits for the disk
        lengths = list(pool.map(num_samples, [Path(recording.path) for recording in listed]))
    return tuple(recording for recording, length in zip(listed, lengths, strict=True) if 0 < length <= max_samples)


def audio(path: str) -> NDArray[np.int16]:
    """The samples of one recording. Raises: BadData."""
    import soundfile

    try:
        samples: NDArray[np.int16] = soundfile.read(path, dtype="int16")[0]
    except soundfile.SoundFileError as error:
        raise data.BadData(f"{path}: cannot be decoded: {error}") from error
    return samples
