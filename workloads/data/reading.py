"""Reading the derived data files and the tokenizers of the full presets; arrays cut and padded."""

from __future__ import annotations

import json
import lzma
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from workloads.data import BadData, path


def unpacked(name: str) -> bytes:
    """The content of an xz file."""
    return lzma.decompress(path(name).read_bytes())


@cache
def index(name: str) -> Any:
    """The content of a JSON file."""
    return json.loads(path(name).read_text(encoding="utf-8"))


def padded(rows: Iterable[Any], size: int | None = None) -> NDArray[Any]:
    """Rows of different lengths as one array, zeros behind them up to `size` or the longest."""
    arrays = [np.asarray(row) for row in rows]
    longest = max(map(len, arrays)) if size is None else size
    stacked = np.zeros((len(arrays), longest, *arrays[0].shape[1:]), arrays[0].dtype)
    for row, array in zip(stacked, arrays, strict=True):
        row[: len(array)] = array
    return stacked


def in_batches(arrays: Iterable[NDArray[Any]], batch_size: int) -> Iterator[tuple[Tensor, ...]]:
    """Batch by batch, its part of each array."""
    return zip(*(torch.split(torch.from_numpy(array), batch_size) for array in arrays), strict=True)


def tiles(name: str, split: str, mode: str) -> NDArray[np.uint8]:
    """(n, side, side, …) of `<name>.webp`, whose rows of square tiles hold train, then validation.

    mode: "L" or "RGB". `<name>.json` says `side`, `columns` and, of a split, the number of tiles or their labels.
    """
    about = index(f"{name}.json")
    side, columns = about["side"], about["columns"]
    train, own = (np.size(about[part]) if isinstance(about[part], list) else about[part] for part in ("train", split))
    sheet = np.asarray(Image.open(path(f"{name}.webp")).convert(mode))
    colours = sheet.shape[2:]
    every = sheet.reshape(-1, side, columns, side, *colours).swapaxes(1, 2).reshape(-1, side, side, *colours)
    first = 0 if split == "train" else train
    return np.ascontiguousarray(every[first : first + own])


@cache
def tokenizer(file: Path, vocabulary: int) -> Any:
    """The sentencepiece model in a file. Raises: BadData where it is missing, no such model, or of another size."""
    import sentencepiece

    belongs = f"it should be a sentencepiece model of {vocabulary:,} pieces"
    if not file.is_file():
        raise BadData(f"{file}: no such file; {belongs}")
    try:
        model = sentencepiece.SentencePieceProcessor(model_proto=file.read_bytes())
    except RuntimeError as error:
        raise BadData(f"{file}: sentencepiece cannot read it; {belongs}") from error
    if model.vocab_size() != vocabulary:
        raise BadData(f"{file}: it has {model.vocab_size():,} pieces; {belongs}")
    return model
