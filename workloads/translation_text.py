"""Parallel text files as tokens: lines found by number, sentences packed several to a row."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from workloads.data import BadData
from workloads.data.reading import tokenizer as sentencepieces
from workloads.translation_model import EOS, PAD

LANGUAGES = ("de", "en")
CHUNK = 1 << 26  # bytes looked through at a time

Pair = tuple[list[int], list[int]]  # tokens of a sentence and of its translation, each with its end mark


class Text(NamedTuple):
    """A text file by line: line i is content[starts[i] : starts[i + 1] - 1]."""

    path: Path
    content: NDArray[np.uint8]
    starts: NDArray[np.int64]

    def line(self, number: int) -> str:
        """Line `number`, from 0, without its end. Raises: BadData where it is no UTF-8."""
        line = self.content[self.starts[number] : self.starts[number + 1] - 1].tobytes()
        try:
            return line.decode("utf-8").strip()
        except UnicodeDecodeError as error:
            raise BadData(f"{self.path}: line {number + 1} is not UTF-8: {error}") from error


@cache
def text(path: Path) -> Text:
    """The file, mapped into memory, and where its lines start. Raises: BadData."""
    if not path.is_file() or not path.stat().st_size:
        raise BadData(f"{path}: missing or empty; it should hold one sentence a line, in UTF-8")
    content: NDArray[np.uint8] = np.memmap(path, dtype=np.uint8, mode="r")
    newline = ord("\n")
    ends = [
        np.flatnonzero(content[first : first + CHUNK] == newline) + first for first in range(0, len(content), CHUNK)
    ]
    if content[-1] != newline:
        ends.append(np.array([len(content)]))
    return Text(path, content, np.concatenate([[0], *(end + 1 for end in ends)]).astype(np.int64))


def parallel(folder: Path, name: str) -> tuple[Text, Text]:
    """The German and the English file of a split. Raises: BadData, also where they differ in length."""
    german, english = (text(folder / f"{name}.{language}") for language in LANGUAGES)
    counts = [len(side.starts) - 1 for side in (german, english)]
    if counts[0] != counts[1]:
        raise BadData(
            f"{english.path}: it has {counts[1]:,} lines where {german.path.name} has {counts[0]:,}; "
            "line i of one should translate line i of the other"
        )
    return german, english


def tokenizer(path: Path, vocabulary: int) -> Any:
    """The sentencepiece model. Raises: BadData."""
    model = sentencepieces(path, vocabulary)
    if model.eos_id() != EOS:
        raise BadData(f"{path}: </s> is piece {model.eos_id()}; it should be piece {EOS}")
    return model


def pairs(sides: tuple[Text, Text], numbers: Iterable[int], model: Any, longest: int) -> Iterable[Pair]:
    """The sentences of those numbers as tokens; unknown pieces, empty and too long sentences are left out."""
    for number in numbers:
        german, english = (
            [token for token in model.encode(side.line(int(number))) if token != PAD] + [EOS] for side in sides
        )
        if min(len(german), len(english)) > 1 and max(len(german), len(english)) <= longest:
            yield german, english


def pack(sentences: Iterable[Pair], num_rows: int, length: int) -> list[NDArray[np.int64]]:
    """Source tokens, target tokens, source segments, target segments: each (num_rows, length) int64.

    Sentences follow each other in a row while both sides fit, in the given order; the first that does not begins
    the next row. Segments number the sentences of a row from 1; the rest is 0. Those after the last row are not
    asked for.
    """
    packed = np.zeros((4, num_rows, length), np.int64)
    row, segment, ends = 0, 0, [0, 0]
    for pair in sentences:
        if any(end + len(side) > length for end, side in zip(ends, pair, strict=True)):
            row, segment, ends = row + 1, 0, [0, 0]
            if row == num_rows:
                break
        segment += 1
        for i, side in enumerate(pair):
            place = slice(ends[i], ends[i] + len(side))
            packed[i, row, place], packed[2 + i, row, place] = side, segment
            ends[i] = place.stop
    return list(packed)
