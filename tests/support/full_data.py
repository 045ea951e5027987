"""The smallest data set of each full preset in its real format, and the presets made small enough to train on it."""

from __future__ import annotations

import dataclasses
import gzip
import itertools
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from workloads.protocol import load

# --- lm: token shards -----------------------------------------------------------------------------------------

CONTEXT = 16


def write_shard(path: Path, tokens: np.ndarray) -> None:
    """By llm.c's dev/data/data_common.py: 256 int32 (20240520, 1, how many), then uint16."""
    header = np.zeros(256, "<i4")
    header[:3] = 20240520, 1, len(tokens)
    path.write_bytes(header.tobytes() + tokens.astype("<u2").tobytes())


def write_shards(folder: Path) -> None:
    """Two training shards of 3 and 4 whole windows, one validation shard of 9; tokens count up."""
    length = CONTEXT + 1
    write_shard(folder / "edu_fineweb_train_000001.bin", np.arange(3 * length + 5))
    write_shard(folder / "edu_fineweb_train_000002.bin", 10_000 + np.arange(4 * length))
    write_shard(folder / "edu_fineweb_val_000000.bin", 20_000 + np.arange(9 * length + 1))


# --- criteo1tb: text files ------------------------------------------------------------------------------------


def line(number: int, rng: random.Random, width: int = 0) -> str:
    """One row that carries its number in the first integer; some fields are missing or −1."""
    integers = [f"{number:0{width}d}", *(rng.choice(["", "-1", "-2", "7", "812345"]) for _ in range(12))]
    categories = ["" if rng.random() < 0.2 else f"{rng.getrandbits(32):08x}" for _ in range(26)]
    if width:  # all lines of one length
        integers[1:] = ["15"] * 12
        categories = [f"{rng.getrandbits(32):08x}" for _ in range(26)]
    return "\t".join([str(number % 2), *integers, *categories])


def write_clicks(folder: Path) -> None:
    """AlgoPerf's layout: ten rows a file, numbered through, all of one length."""
    rng, number = random.Random(0), 0
    train = (f"day_{day}_{piece:02d}" for day in range(23) for piece in range(2 if day == 3 else 1))
    for name in (*train, *(f"day_23_{piece:02d}" for piece in range(36))):
        lines = [line(number + i, rng, width=4) for i in range(10)]
        (folder / name).write_text("\n".join(lines) + "\n", encoding="ascii")
        number += 10


# --- fastmri: knees -------------------------------------------------------------------------------------------


def write_volume(path: Path, columns: int, num_slices: int, seed: int) -> None:
    """A file as fastMRI has them: random smooth images, their k-space, the magnitude of their middle."""
    import h5py

    rng = np.random.default_rng(seed)
    kspace = np.zeros((num_slices, 640, columns), np.complex64)
    kspace[:, 300:340, columns // 2 - 20 : columns // 2 + 20] = rng.normal(size=(num_slices, 40, 40, 2)) @ [1, 1j]
    image = np.fft.fftshift(np.fft.ifft2(np.fft.ifftshift(kspace, (1, 2)), norm="ortho"), (1, 2)) * 1e-4
    left = (columns - 320) // 2
    truth = np.abs(image[:, 160:480, left : left + 320]).astype(np.float32)
    with h5py.File(path, "w") as file:
        file["kspace"] = (kspace * 1e-4).astype(np.complex64)
        file["reconstruction_esc"] = truth
        file.attrs["max"], file.attrs["norm"] = truth.max(), np.linalg.norm(truth)
        file.attrs["acquisition"], file.attrs["patient_id"] = "CORPD_FBK", "0"


def write_knees(folder: Path) -> None:
    for split, files in {"train": [(368, 3), (372, 2)], "val": [(372, 2), (320, 1), (368, 2)]}.items():
        below = folder / f"knee_singlecoil_{split}"
        below.mkdir()
        for i, (columns, num_slices) in enumerate(files):
            write_volume(below / f"file100000{i}.h5", columns, num_slices, seed=i)


# --- imagenet: folders of pictures ----------------------------------------------------------------------------

CLASSES = ("n01440764", "n01443537", "n02102040")
TRAIN_PICTURES, VALIDATION_PICTURES, TEST_PICTURES = 3, 2, 1  # a class


def write_picture(path: Path, width: int, height: int, seed: int) -> None:
    """Coarse noise, so that JPEG keeps most of it."""
    coarse = np.random.default_rng(seed).integers(256, size=(5, 6, 3), dtype=np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC).save(path, "JPEG", quality=95)


def write_pictures(folder: Path) -> None:
    numbers = itertools.count()
    for label, name in enumerate(CLASSES):
        for i in range(TRAIN_PICTURES):
            write_picture(folder / "train" / name / f"{name}_{i}.JPEG", 300 - 40 * i, 260, next(numbers))
        for i in range(VALIDATION_PICTURES):
            file = f"ILSVRC2012_val_{label + 3 * i:08}.JPEG"
            write_picture(folder / "val" / name / file, 231, 341 - 150 * i, next(numbers))
        write_picture(folder / "imagenet_v2" / str(label) / "a.jpeg", 256, 256, next(numbers))


# --- librispeech: recordings, transcripts, a tokenizer --------------------------------------------------------

WORDS = "THE QUICK BROWN FOX JUMPS OVER A LAZY DOG WHILE SEVEN WIZARDS BOX FIVE DOZEN LIQUOR JUGS".split()  # noqa: SIM905
SECOND = 16000


def write_recordings(folder: Path) -> None:
    import sentencepiece
    import soundfile

    from workloads.librispeech_files import SUBSETS

    rng = np.random.default_rng(0)
    lines = []
    for speaker, subset in enumerate((subset for subsets in SUBSETS.values() for subset in subsets), start=10):
        for chapter in (1, 2):
            place = folder / "LibriSpeech" / subset / str(speaker) / str(chapter)
            place.mkdir(parents=True)
            transcript = []
            for i in range(2):
                name = f"{speaker}-{chapter}-{i:04d}"
                sound = (rng.normal(size=int(SECOND * rng.uniform(0.6, 1.0))) * 2000).astype(np.int16)
                soundfile.write(place / f"{name}.flac", sound, SECOND)
                transcript.append(f"{name} {' '.join(rng.choice(WORDS, 3))}")
            lines += [line.partition(" ")[2] for line in transcript]
            (place / f"{speaker}-{chapter}.trans.txt").write_text("\n".join(transcript) + "\n")
    with (folder / "spm_model.vocab").open("wb") as file:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(lines), model_writer=file, vocab_size=40, minloglevel=2
        )


# --- ogbg: gzipped tables -------------------------------------------------------------------------------------

NUM_NODES, NUM_EDGES = [3, 2, 1, 4, 3, 2], [2, 1, 0, 4, 2, 1]


def write_table(path: Path, rows: list[list[object]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with gzip.open(path, "wt", encoding="ascii") as file:
        file.writelines(",".join(map(str, row)) + "\n" for row in rows)


def write_molecules(parent: Path) -> None:
    """Six small graphs; labels.npy beside them has the labels."""
    rng, folder = np.random.default_rng(0), parent / "ogbg_molpcba"
    edges = [[[0, 1], [1, 2]], [[0, 1]], [], [[0, 1], [1, 2], [2, 3], [0, 3]], [[0, 2], [0, 1]], [[0, 1]]]
    labels = rng.integers(-1, 2, size=(6, 128))
    tables: dict[str, list[Any]] = {
        "num-node-list": [[n] for n in NUM_NODES],
        "num-edge-list": [[n] for n in NUM_EDGES],
        "node-feat": rng.integers(0, 119, size=(15, 9)).tolist(),
        "edge-feat": rng.integers(0, 5, size=(10, 3)).tolist(),
        "edge": [edge for graph in edges for edge in graph],
        "graph-label": [["" if v < 0 else f"{v}.0" for v in row] for row in labels.tolist()],
    }
    for name, rows in tables.items():
        write_table(folder / f"raw/{name}.csv.gz", rows)
    for split, graphs in (("train", [5, 0, 3]), ("valid", [1, 4]), ("test", [2])):
        write_table(folder / f"split/scaffold/{split}.csv.gz", [[graph] for graph in graphs])
    np.save(parent / "labels.npy", labels)


# --- wmt: parallel text and a tokenizer -----------------------------------------------------------------------

VOCABULARY = 200


def write_news(folder: Path) -> None:
    """A few sentences of the mini's catalogues."""
    import sentencepiece

    from workloads.wmt import MODEL, catalogue

    mini: Any = load("wmt")
    numbers = {"train": range(400), "newstest2013": range(400, 405), "newstest2014": range(405, 408)}
    for name, chosen in numbers.items():
        for side, language in enumerate(("de", "en")):
            lines = [mini.detokenize(catalogue("train")[i][side][:-1]) for i in chosen]
            (folder / f"{name}.{language}").write_text("\n".join(lines) + "\n", encoding="utf-8")
    sentencepiece.SentencePieceTrainer.train(
        input=",".join(str(folder / f"train.{language}") for language in ("de", "en")),
        model_prefix=str(folder / "pieces"),
        vocab_size=VOCABULARY,
        minloglevel=2,
        num_threads=1,
    )
    (folder / "pieces.model").rename(folder / MODEL)


# --- all ------------------------------------------------------------------------------------------------------

WRITERS: dict[str, Callable[[Path], None]] = {
    "criteo1tb": write_clicks,
    "fastmri": write_knees,
    "imagenet": write_pictures,
    "librispeech": write_recordings,
    "lm": write_shards,
    "ogbg": write_molecules,
    "wmt": write_news,
}
_PICTURES = {"num_classes": 3, "batch_size": 2, "eval_batch_size": 4}
_SPEECH = {"max_samples": SECOND, "max_tokens": 48, "eval_batch_size": 3, "num_outputs": 40, "batch_size": 2}
CHANGES: dict[str, dict[str, Any]] = {
    "criteo1tb": {"batch_size": 5, "eval_batch_size": 4, "table_rows": 4096},
    "fastmri": {"batch_size": 2, "eval_batch_size": 2, "num_validation_volumes": 2},
    "imagenet_resnet": _PICTURES,
    "imagenet_vit": {**_PICTURES, "batch_size": 4},
    "librispeech_conformer": _SPEECH,
    "librispeech_deepspeech": _SPEECH,
    "lm": {"batch_size": 2, "context": CONTEXT, "num_eval_windows": 5, "eval_batch_size": 2},
    "ogbg": {"batch_size": 2, "eval_batch_size": 1},
    "wmt": {"batch_size": 5, "eval_batch_size": 4, "max_length": 96, "vocabulary": VOCABULARY, "rows_together": 2},
}


def data_set(family: str) -> str:
    """The folder below WA_DATA_DIR that a family reads."""
    shared = family.partition("_")[0]
    return shared if shared in WRITERS else family


def small(family: str, **changes: Any) -> Any:
    """The full preset of a family for the data that is written here, batches made in this process."""
    full: Any = load(family, "full")
    return dataclasses.replace(full, **{"num_workers": 0, **CHANGES[family], **changes})
