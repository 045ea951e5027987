"""AlgoPerf's criteo1tb text files: cut into stretches of lines, found and parsed."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np
from numpy.typing import NDArray

from workloads import data

NUM_INTEGERS = 13
VOCABULARIES = (  # ids a category field has before they are folded into the table
    *(39884406, 39043, 17289, 7420, 20263, 3, 7120, 1543, 63, 38532951, 2953546, 403346, 10),
    *(2208, 11938, 155, 4, 976, 14, 39979771, 25641295, 39664984, 585935, 12972, 108, 36),
)
TRAIN_DAYS = 23  # days 0 … 22; day 23 is held out
NUM_TEST_FILES, NUM_HELD_OUT_FILES = 19, 36  # day_23_00 … 18 are the test set, … 35 the validation set
HOLDS = "AlgoPerf's text files: day_0_00 … day_22_NN and day_23_00 … day_23_35"
LINE = "a label, 13 integers and 26 categories of 8 hexadecimal digits, separated by tabs"
HEAD, CHUNK = 2**18, 2**24  # bytes read at a time: to measure a file's lines, to collect a batch


class File(NamedTuple):
    """One text file, cut into stretches of equal bytes; a line belongs to the stretch in which it begins."""

    path: Path
    size: int
    num_stretches: int

    def start(self, stretch: int) -> int:
        """The first byte of a stretch."""
        return self.size * stretch // self.num_stretches

    def lines(self, stretch: int) -> bytes:
        """All lines that begin in one stretch."""
        stop = self.start(stretch + 1)
        with self.path.open("rb") as file:
            begun = to_line(file, self.start(stretch))
            return file.read(stop - 1 - begun) + file.readline() if begun < stop else b""


def to_line(file: BinaryIO, start: int) -> int:
    """Where the first line begins that does so at byte `start` or later; the file is read on from there."""
    file.seek(max(start - 1, 0))
    if start:
        file.readline()  # the rest of the line before
    return file.tell()


def fingerprint(digits: NDArray[np.uint64], suffix: bytes) -> NDArray[np.uint64]:
    """FarmHash's Fingerprint64 of 8 bytes (as little-endian integers) followed by 1 to 7 more, the same for all.

    Source: Pike 2014, farmhashna::HashLen0to16; TensorFlow's to_hash_bucket_fast is this, modulo the buckets.
    """
    k2, length = 0x9AE16A3B2F90404F, 8 + len(suffix)
    mul = np.uint64((k2 + 2 * length) % 2**64)
    last = np.uint64(int.from_bytes(suffix.rjust(8, b"\0"), "little"))
    a = digits + np.uint64(k2)
    b = (digits >> np.uint64(8 * len(suffix))) | last
    c = rotated(b, 37) * mul + a
    d = (rotated(a, 25) + b) * mul
    x = (c ^ d) * mul
    y = (d ^ x ^ (x >> np.uint64(47))) * mul
    hashed: NDArray[np.uint64] = (y ^ (y >> np.uint64(47))) * mul
    return hashed


def rotated(values: NDArray[np.uint64], bits: int) -> NDArray[np.uint64]:
    """64-bit values rotated to the right."""
    return (values >> np.uint64(bits)) | (values << np.uint64(64 - bits))


def parse(path: Path, text: bytes, table_rows: int) -> tuple[NDArray[np.float32], NDArray[np.int32], NDArray[np.int64]]:
    """Lines of a file -> log(1 + max(x, 0)) of the integers x, rows of the table, labels.

    Missing integers count as 0, missing categories as 00000000. As in AlgoPerf an id is the fingerprint of the
    digits and the field's number, modulo the field's vocabulary, rounded to float32, modulo the table's rows.
    Raises: BadData.
    """
    import pyarrow as pa
    from pyarrow import csv

    names = [str(i) for i in range(1 + NUM_INTEGERS + len(VOCABULARIES))]
    types = [pa.int8(), *[pa.int64()] * NUM_INTEGERS, *[pa.binary(8)] * len(VOCABULARIES)]
    column_types = dict(zip(names, types, strict=True))
    try:
        table = csv.read_csv(
            pa.BufferReader(text),
            csv.ReadOptions(use_threads=False, block_size=CHUNK, column_names=names),
            csv.ParseOptions(delimiter="\t", quote_char=False),
            csv.ConvertOptions(column_types=column_types, null_values=["", "-1"], strings_can_be_null=True),
        )
    except pa.ArrowInvalid as error:
        raise data.BadData(f"{path}: {str(error).splitlines()[0]}; each line is {LINE}") from error
    label, *fields = (column.combine_chunks() for column in table.columns)
    labels = label.fill_null(-1).to_numpy().astype(np.int64)
    if not np.isin(labels, (0, 1)).all():
        raise data.BadData(f"{path}: a label is neither 0 nor 1; each line is {LINE}")
    integers = np.stack([x.fill_null(0).to_numpy() for x in fields[:NUM_INTEGERS]], axis=1)
    numbers = np.log1p(np.maximum(integers, 0).astype(np.float32))
    ids = np.empty((len(labels), len(VOCABULARIES)), np.int32)
    for i, (column, vocabulary) in enumerate(zip(fields[NUM_INTEGERS:], VOCABULARIES, strict=True)):
        filled = column.fill_null(b"00000000") if column.null_count else column
        digits = np.frombuffer(filled.buffers()[1], "<u8", len(filled), 8 * filled.offset)
        buckets = (fingerprint(digits, b"%d" % i) % np.uint64(vocabulary)).astype(np.float32)
        ids[:, i] = buckets.astype(np.int64) % table_rows
    return numbers, ids, labels


def read_lines(path: Path, start: int, first: int, stop: int) -> bytes:
    """Lines `first` to `stop` - 1 of those that begin at byte `start` or later; after the last the file's first.

    Raises: BadData where the file has too few.
    """
    chunks: list[bytes] = []
    with path.open("rb") as file:
        begun, num_lines, wrapped = to_line(file, start), 0, False
        while num_lines < stop:
            chunk = file.read(CHUNK)
            if not chunk and chunks and not chunks[-1].endswith(b"\n"):
                chunk = b"\n"  # the last line has none
            elif not chunk:
                if wrapped or not begun:
                    raise data.BadData(f"{path}: fewer than {stop} lines")
                file.seek(0)
                wrapped = True
            chunks.append(chunk)
            num_lines += chunk.count(b"\n")
    text = b"".join(chunks)
    ends = np.flatnonzero(np.frombuffer(text, np.uint8) == ord("\n")) + 1
    return text[ends[first - 1] if first else 0 : ends[stop - 1]]


@cache
def files(folder: Path, split: str, batch_size: int) -> tuple[File, ...]:
    """The files of a split, cut into stretches of about `batch_size` lines, by the length of their first ones.

    For training a stretch has at least that many, and files that have fewer are left out.
    Raises: BadData where a file is missing or empty, or no batch can be made.
    """
    if split == "train":
        days = [sorted(folder.glob(f"day_{day}_[0-9]*")) for day in range(TRAIN_DAYS)]
        paths = [path for day, found in enumerate(days) for path in found or [folder / f"day_{day}_00"]]
    else:
        ends = {"test": (0, NUM_TEST_FILES), "validation": (NUM_TEST_FILES, NUM_HELD_OUT_FILES)}
        paths = [folder / f"day_{TRAIN_DAYS}_{number:02d}" for number in range(*ends[split])]
    found = []
    for path in paths:
        if not path.is_file():
            raise data.BadData(f"{path}: no such file; {folder} should hold {HOLDS}")
        with path.open("rb") as opened:
            head = opened.read(HEAD)
        num_lines = max(head.count(b"\n"), 1)
        if not head:
            raise data.BadData(f"{path}: empty; each line is {LINE}")
        size = path.stat().st_size
        mean_line = (head.rfind(b"\n") + 1 or len(head)) / num_lines
        num_batches = size / (mean_line * batch_size)
        found.append(File(path, size, int(num_batches) if split == "train" else max(round(num_batches), 1)))
    if not any(file.num_stretches for file in found):
        raise data.BadData(f"{folder}: no {split} file has a batch of {batch_size} lines")
    return tuple(found)


def located(chosen: Sequence[File], batch: int) -> tuple[File, int]:
    """The file and the stretch of batch number `batch`, the files being read one after the other."""
    for file in chosen:
        if batch < file.num_stretches:
            return file, batch
        batch -= file.num_stretches
    raise IndexError("there are fewer batches")
