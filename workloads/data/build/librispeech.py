"""Build librispeech.xz and librispeech.json from the Debian packages asterisk-core-sounds-en(-wav) 1.6.1-1.

Run by hand from the repository root, on a Debian or Ubuntu that offers the packages (apt-get, dpkg-deb):
    python workloads/data/build/librispeech.py
Telephone prompts of one speaker as 64 levels of 32 log-mel energies every 10 ms, so that reading them needs no
audio decoder: no library, no version, no rounding between machines. Same source, same bytes again.
It draws docs/img/librispeech_prompts.png too.
"""

from __future__ import annotations

import gzip
import io
import lzma
import re
import wave
from collections.abc import Sequence
from pathlib import PurePosixPath

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from workloads.data.build.sources import PICTURES, Files, debian, shuffled, write, write_json
from workloads.speech_features import mel_triangles

VERSION = "1.6.1-1"
SOURCES = {
    "asterisk-core-sounds-en-wav": "2be3ea287d83299d143815fa804f11179a75b7affd4a758b98b55f5afc18a35d",
    "asterisk-core-sounds-en": "973e797d28e37fa6ca3c0a9d6fa717e77cf1268ae916bf09fd3503113cdffa50",
}
SOUNDS = "usr/share/asterisk/sounds/en_US_f_Allison"
TRANSCRIPTS = "usr/share/doc/asterisk-core-sounds-en/core-sounds-en.txt.gz"
RATE = 8000
FRAME, HOP, FFT = 200, 80, 256  # samples: 25 ms every 10 ms
PREEMPHASIS = 0.97
BINS, EDGES = 32, (60.0, 3800.0)  # Hz
LOWEST, HIGHEST, LEVELS = -16.0, 5.5, 64  # log energies; 256 levels are 2.0 MB, 64 1.3 MB
LONGEST = 7.0  # seconds
DIGITS = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
VALIDATION_FRACTION = 0.25


def transcripts(packed: bytes) -> dict[str, str]:
    """Name -> text as written, from lines `name: text`; lines that begin with a semicolon are comments."""
    lines = gzip.decompress(packed).decode("utf-8", errors="replace").splitlines()
    pairs = (line.partition(":") for line in lines if not line.startswith(";") and ":" in line)
    return {name.strip(): text.strip() for name, _, text in pairs}


def spoken(written: str) -> str | None:
    """The text in a … z, apostrophe and space, single digits as words; None where it is a sound or unclear."""
    text = re.sub(r"\s*\[.\]$", "", written)  # the sign behind its name
    text = re.sub(r"(?<![\w.])\d(?![\w]|\.\d)", lambda found: DIGITS[int(found[0])], text)
    text = " ".join(re.sub(r'[-.,;:!?"]', " ", text.lower()).split())
    # a letter's name is not spelled by that letter
    return text if re.fullmatch(r"[a-z' ]{2,}", text) else None


def samples(file: bytes) -> NDArray[np.float64]:
    """One recording, in [−1, 1)."""
    with wave.open(io.BytesIO(file)) as recording:
        assert (recording.getframerate(), recording.getnchannels(), recording.getsampwidth()) == (RATE, 1, 2)
        pcm = recording.readframes(recording.getnframes())
    return np.frombuffer(pcm, dtype="<i2") / 2**15


def levels(sound: NDArray[np.float64]) -> NDArray[np.uint8]:
    """(samples,) -> (frames, BINS): log-mel energies on a scale of LEVELS steps."""
    emphasized = np.append(sound[:1], sound[1:] - PREEMPHASIS * sound[:-1])
    starts = np.arange(1 + (len(emphasized) - FRAME) // HOP) * HOP
    frames = emphasized[starts[:, None] + np.arange(FRAME)] * np.hanning(FRAME)
    power = np.abs(np.fft.rfft(frames, FFT)) ** 2
    energies = np.log(np.maximum(power @ mel_triangles(EDGES, BINS, RATE, FFT), np.exp(LOWEST)))
    scaled = (energies - LOWEST) / (HIGHEST - LOWEST) * (LEVELS - 1)
    return np.clip(np.round(scaled), 0, LEVELS - 1).astype(np.uint8)


def picture(rows: Sequence[tuple[NDArray[np.uint8], str]]) -> Image.Image:
    """Utterances one below the other, time to the right, pitch upwards, each with its text."""
    zoom, gap = 3, 26
    longest = max(len(row) for row, _ in rows)
    sheet = Image.new("L", (2 * longest + 20, len(rows) * (BINS * zoom + gap) + 10), 255)
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(16)
    for i, (row, text) in enumerate(rows):
        top = i * (BINS * zoom + gap)
        draw.text((10, top + 4), text, fill=0, font=font)
        tile = Image.fromarray(255 - row.T[::-1] * 4).resize((2 * len(row), BINS * zoom))
        sheet.paste(tile, (10, top + gap))
    return sheet


def main() -> None:
    texts: dict[str, str] = {}
    sounds: dict[str, NDArray[np.uint8]] = {}
    files: Files = {}
    for package, sha256 in SOURCES.items():
        files |= debian(package, VERSION, sha256)
    for name, written in sorted(transcripts(files[TRANSCRIPTS]).items()):
        file, text = files.get(f"{SOUNDS}/{PurePosixPath(name).with_suffix('.wav')}"), spoken(written)
        if text is not None and file is not None and len(sound := samples(file)) <= LONGEST * RATE:
            texts[name], sounds[name] = text, levels(sound)
    distinct = shuffled(sorted(set(texts.values())), "split")
    held_out = set(distinct[: round(len(distinct) * VALIDATION_FRACTION)])
    order = shuffled(list(texts), "order")
    train = [name for name in order if texts[name] not in held_out]
    validation = [name for name in order if texts[name] in held_out]
    names = train + validation
    flat = np.concatenate([sounds[name] for name in names])
    steps = np.diff(flat, axis=0, prepend=np.zeros((1, BINS), np.uint8))  # modulo 256: smaller by a sixth
    filters = [{"id": lzma.FILTER_LZMA2, "preset": 9 | lzma.PRESET_EXTREME}]
    write("librispeech.xz", lzma.compress(steps.tobytes(), filters=filters))
    shown = [name for name in train if 3.5 < len(sounds[name]) * HOP / RATE < 4.5][:3]
    picture([(sounds[name], texts[name]) for name in shown]).save(PICTURES / "librispeech_prompts.png", optimize=True)
    frames = [len(sounds[name]) for name in names]
    about = {"bins": BINS, "num_train": len(train), "frames": frames, "texts": [texts[name] for name in names]}
    write_json("librispeech.json", about)
    for split, members in (("train", train), ("validation", validation)):
        minutes = sum(len(sounds[name]) for name in members) * HOP / RATE / 60
        characters = sum(len(texts[name]) for name in members)
        print(f"{split}: {len(members)} utterances, {minutes:.1f} min, {characters:,} characters")


if __name__ == "__main__":
    main()
