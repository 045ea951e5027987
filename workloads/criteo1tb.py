"""Predicting a rare event from numbers and hashed categories with AlgoPerf's DLRM-small.

`mini` predicts which flights of 2013 arrive late; `full` is AlgoPerf's criteo1tb, clicks on advertisements
(docs/workloads/criteo1tb.md).
"""

from __future__ import annotations

import io
import lzma
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from workloads import algoperf, data
from workloads.loading import epoch_order, load_batches
from workloads.protocol import WHOLE, Batch, Part, Summary, Sums, Workload


class DLRM(nn.Module):
    """Numbers through an MLP, categories through one table, all dot products of the two, another MLP.

    z₀ = bottom(numbers), zⱼ = table[idⱼ]; logit = top([z₀, (zᵢ · zⱼ) for i ≤ j]). Dropout before the last layer.

    Initial weights: table U(0, 1)/√rows; bottom U(±√(6/(in + out))), top N(0, 2/(in + out)); biases N(0, 1/out).
    Source: Naumov et al. 2019; sizes and initial weights of DlrmSmall in AlgoPerf's criteo1tb_pytorch/models.py.
    """

    def __init__(
        self,
        num_numbers: int,
        num_categories: int,
        table_rows: int,
        bottom: Sequence[int],
        top: Sequence[int],
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        width = bottom[-1]
        self.table = nn.Embedding(table_rows, width)
        nn.init.uniform_(self.table.weight, 0.0, table_rows**-0.5)
        self.bottom = nn.Sequential()
        for num_in, num_out in zip((num_numbers, *bottom), bottom, strict=False):
            self.bottom.extend([nn.Linear(num_in, num_out), nn.ReLU()])
        num_vectors = 1 + num_categories
        rows, columns = torch.triu_indices(num_vectors, num_vectors)
        self.pairs: Tensor
        self.register_buffer("pairs", rows * num_vectors + columns, persistent=False)
        num_products = num_vectors * (num_vectors + 1) // 2
        self.top = nn.Sequential()
        for num_in, num_out in zip((width + num_products, *top), top, strict=False):
            self.top.extend([nn.Linear(num_in, num_out), nn.ReLU()])
        del self.top[-1]  # logits
        self.top.insert(len(self.top) - 1, nn.Dropout(dropout))
        for layer in self.bottom:
            if isinstance(layer, nn.Linear):
                nn.init.xavier_uniform_(layer.weight)
                nn.init.normal_(layer.bias, std=layer.out_features**-0.5)
        for layer in self.top:
            if isinstance(layer, nn.Linear):
                nn.init.xavier_normal_(layer.weight)
                nn.init.normal_(layer.bias, std=layer.out_features**-0.5)

    def forward(self, numbers: Tensor, ids: Tensor) -> Tensor:
        """(batch, num_numbers) float32, (batch, num_categories) int32 -> (batch,) logits."""
        first = self.bottom(numbers)
        vectors = torch.cat([first.unsqueeze(1), self.table(ids)], dim=1)
        products = (vectors @ vectors.transpose(1, 2)).flatten(1).index_select(1, self.pairs)
        logits: Tensor = self.top(torch.cat([first, products], dim=1))
        return logits.squeeze(1)


class Rows(NamedTuple):
    """A batch: numbers (n, …) float32, ids of the categories (n, …) int32, labels (n,) int64 of 0 and 1."""

    numbers: Tensor
    ids: Tensor
    labels: Tensor


@dataclass(frozen=True, kw_only=True)
class EventPrediction:
    """Binary classification by a DLRM; metric: mean cross-entropy, nats a row. A batch is `Rows`."""

    step_budget: int
    batch_size: int
    optimizer: Mapping[str, Any]
    schedule: Mapping[str, Any]
    step_seconds: float
    eval_seconds: float
    table_rows: int
    bottom: tuple[int, ...]
    top: tuple[int, ...]
    eval_batch_size: int
    dropout: float = 0.0
    auc: bool = False  # gives the area under the ROC curve beside the loss
    metric: str = field(default="loss", init=False)
    higher_is_better: bool = field(default=False, init=False)

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        numbers, ids, labels = batch
        return F.binary_cross_entropy_with_logits(model(numbers, ids).float(), labels.float())

    def loss_weight(self, batch: Batch) -> float:
        return len(batch[-1])

    def eval_step(self, model: nn.Module, batch: Batch) -> Sums:
        numbers, ids, labels = batch
        logits = model(numbers, ids).float()
        losses = F.binary_cross_entropy_with_logits(logits, labels.float(), reduction="none")
        sums = {"loss": losses.double().sum(), "examples": torch.tensor(len(losses))}
        return sums | {"labels": labels, "logits": logits} if self.auc else sums

    def summarize(self, sums: Mapping[str, Any]) -> Summary:
        loss = float(sums["loss"] / sums["examples"])
        metrics = {"auc": area_under_curve(sums["labels"], sums["logits"])} if self.auc else {}
        return Summary(loss=loss, metric=loss, examples=int(sums["examples"]), metrics=metrics)


def area_under_curve(labels: Tensor, scores: Tensor) -> float:
    """Probability that a positive row scores above a negative one; nan where that is not defined."""
    from sklearn.metrics import roc_auc_score

    if bool((labels == labels[0]).all()) or not scores.isfinite().all():
        return float("nan")
    return float(roc_auc_score(labels.numpy(), scores.numpy()))


# --- mini: flights ---------------------------------------------------------------------------------------------

NUMBERS = ("departure", "duration", "distance", "plane_year", "plane_seats")  # and the weather's
NUM_WEATHER = 9
CATEGORIES = (
    *("carrier", "origin", "dest", "flight", "tailnum", "plane_model", "hour", "weekday"),
    *("route", "carrier_origin", "day", "day_period", "day_origin", "wind_direction"),
)


def mixed(values: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """A hash of each 64-bit value. Source: the finalizer of splitmix64, Steele, Lea and Flood 2014, fig. 17."""
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        values = (values ^ (values >> np.uint64(shift))) * np.uint64(factor)
    hashed: NDArray[np.uint64] = values ^ (values >> np.uint64(31))
    return hashed


@cache
def flights(table_rows: int) -> dict[str, tuple[NDArray[np.float32], NDArray[np.int32], NDArray[np.int64]]]:
    """Split -> numbers (n, 14), of mean 0 and variance 1 over the training rows, ids (n, 14) and labels (n,)."""
    with np.load(io.BytesIO(lzma.decompress(data.path("criteo1tb.npz.xz").read_bytes()))) as file:
        column = {name: file[name].astype(np.int64) for name in file.files}
    day, hour, origin = column["day"], column["departure"] // 60, column["origin"]
    for name in ("plane_year", "plane_seats", "plane_model"):
        column[name] = column[name][column["tailnum"]]
    weather = column["weather"][:, origin, day, hour]
    column |= {
        "hour": hour,
        "weekday": day % 7,
        "route": column["dest"] * 3 + origin,
        "carrier_origin": column["carrier"] * 3 + origin,
        "day_period": day * 8 + hour // 3,
        "day_origin": day * 3 + origin,
        "wind_direction": weather[3] // 10,
    }
    numbers = np.stack([*(column[name] for name in NUMBERS), *weather], axis=1).astype(np.float64)
    train = column["held_out"] == 0
    numbers = (numbers - numbers[train].mean(0)) / numbers[train].std(0)
    keys = np.stack([i * 2**32 + column[name] for i, name in enumerate(CATEGORIES)], axis=1)
    ids = mixed(keys.astype(np.uint64)) % np.uint64(table_rows)
    return {
        split: (numbers[chosen].astype(np.float32), ids[chosen].astype(np.int32), column["late"][chosen])
        for split, chosen in (("train", train), ("validation", ~train))
    }


@cache
def validation_flights(table_rows: int, batch_size: int) -> tuple[Rows, ...]:
    """All held-out flights."""
    with torch.inference_mode(False):  # cached: later callers may want gradients
        columns = [torch.from_numpy(array) for array in flights(table_rows)["validation"]]
        return tuple(Rows(*pieces) for pieces in zip(*(torch.split(x, batch_size) for x in columns), strict=True))


@dataclass(frozen=True, kw_only=True)
class Flights(EventPrediction):
    """Does a flight arrive more than 15 minutes late? From its schedule, aircraft, day and weather.

    Validation: held-out flights of the same year, drawn at random.
    """

    def model(self) -> nn.Module:
        num_numbers = len(NUMBERS) + NUM_WEATHER
        return DLRM(num_numbers, len(CATEGORIES), self.table_rows, self.bottom, self.top, self.dropout)

    def batches(self, seed: int, first_step: int, part: Part = WHOLE) -> Iterator[Batch]:
        columns = flights(self.table_rows)["train"]
        step = first_step
        while True:
            random = np.random.default_rng([seed, step])
            chosen = random.integers(len(columns[-1]), size=self.batch_size)
            chosen = chosen[part.index :: part.count]
            yield Rows(*(torch.from_numpy(array[chosen]) for array in columns))
            step += 1

    def eval_batches(self, split: str, part: Part = WHOLE) -> Iterable[Batch]:
        if split != "validation":
            raise ValueError(f"criteo1tb has no split {split!r}; it has validation")
        return validation_flights(self.table_rows, self.eval_batch_size)[part.index :: part.count]


# --- full: clicks, in AlgoPerf's files ---------------------------------------------------------------------------

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


def parse(text: bytes, table_rows: int) -> tuple[NDArray[np.float32], NDArray[np.int32], NDArray[np.int64]]:
    """Lines -> log(1 + max(x, 0)) of the integers x, rows of the table, labels.

    Missing integers count as 0, missing categories as 00000000. As in AlgoPerf an id is the fingerprint of the
    digits and the field's number, modulo the field's vocabulary, rounded to float32, modulo the table's rows.
    Raises: BadData.
    """
    import pyarrow as pa
    from pyarrow import csv

    names = [str(i) for i in range(1 + NUM_INTEGERS + len(VOCABULARIES))]
    types = [pa.int8(), *[pa.int64()] * NUM_INTEGERS, *[pa.binary(8)] * len(VOCABULARIES)]
    try:
        table = csv.read_csv(
            pa.BufferReader(text),
            csv.ReadOptions(use_threads=False, block_size=CHUNK, column_names=names),
            csv.ParseOptions(delimiter="\t", quote_char=False),
            csv.ConvertOptions(
                column_types=dict(zip(names, types, strict=True)), null_values=["", "-1"], strings_can_be_null=True
            ),
        )
    except pa.ArrowInvalid as error:
        raise data.BadData(str(error).splitlines()[0]) from error
    label, *fields = (column.combine_chunks() for column in table.columns)
    labels = label.fill_null(-1).to_numpy().astype(np.int64)
    if not np.isin(labels, (0, 1)).all():
        raise data.BadData("a label is neither 0 nor 1")
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
        file.seek(max(start - 1, 0))
        if start:
            file.readline()  # the rest of the line before
        begun, num_lines, wrapped = file.tell(), 0, False
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


def read_stretch(file: File, stretch: int) -> bytes:
    """All lines that begin in one stretch."""
    start, stop = file.start(stretch), file.start(stretch + 1)
    with file.path.open("rb") as opened:
        opened.seek(max(start - 1, 0))
        if start:
            opened.readline()
        begun = opened.tell()
        return opened.read(stop - 1 - begun) + opened.readline() if begun < stop else b""


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


@dataclass(frozen=True, kw_only=True)
class Clicks(EventPrediction):
    """Is an advertisement clicked? AlgoPerf's criteo1tb, read from its text files.

    Training goes through the files in shuffled order, as AlgoPerf does, and through each from its beginning to
    its end. To find batch s without reading what lies before, a file is cut into as many equal stretches as it
    has batches, and a batch is the first `batch_size` lines of one: two neighbours may share or leave out the
    few lines by which a stretch differs from a batch.
    """

    num_eval_files: int | None = None  # None: all, 83 M rows for validation, 95 M for test
    num_workers: int = 8
    splits = ("validation", "test")

    def model(self) -> nn.Module:
        return DLRM(NUM_INTEGERS, len(VOCABULARIES), self.table_rows, self.bottom, self.top, self.dropout)

    def check_data(self) -> None:
        folder = data.dataset("criteo1tb", holds=HOLDS)
        for split in ("train", "validation", "test"):
            for file in files(folder, split, self.batch_size):
                self.rows(file.path, read_lines(file.path, 0, 0, 1))

    def batches(self, seed: int, first_step: int, part: Part = WHOLE) -> Iterator[Batch]:
        folder = data.dataset("criteo1tb", holds=HOLDS)
        make = partial(self.train_batch, files(folder, "train", self.batch_size), seed, part)
        return iter(load_batches(make, first_step, num_workers=self.num_workers))

    def eval_batches(self, split: str, part: Part = WHOLE) -> Iterable[Batch]:
        if split not in self.splits:
            raise ValueError(f"criteo1tb has no split {split!r}; it has validation and test")
        folder = data.dataset("criteo1tb", holds=HOLDS)
        chosen = files(folder, split, self.eval_batch_size)[: self.num_eval_files]
        make = partial(self.eval_batch, chosen)
        num_batches = sum(file.num_stretches for file in chosen)
        return load_batches(make, part.index, num_batches, part.count, num_workers=self.num_workers)

    def train_batch(self, chosen: Sequence[File], seed: int, part: Part, step: int) -> Rows:
        """This part of batch `step`."""
        epoch, batch = divmod(step - 1, sum(file.num_stretches for file in chosen))
        order = epoch_order((seed, epoch), len(chosen))
        file, stretch = located([chosen[i] for i in order], batch)
        first, stop = (self.batch_size * index // part.count for index in (part.index, part.index + 1))
        return self.rows(file.path, read_lines(file.path, file.start(stretch), first, stop))

    def eval_batch(self, chosen: Sequence[File], batch: int) -> Rows:
        """Batch number `batch` of these files: the lines of one stretch."""
        file, stretch = located(chosen, batch)
        return self.rows(file.path, read_stretch(file, stretch))

    def rows(self, path: Path, text: bytes) -> Rows:
        """Lines of the file `path` as a batch. Raises: BadData."""
        try:
            return Rows(*map(torch.from_numpy, parse(text, self.table_rows)))
        except data.BadData as error:
            raise data.BadData(f"{path}: {error}; each line is {LINE}") from error


def located(chosen: Sequence[File], batch: int) -> tuple[File, int]:
    """The file and the stretch of batch number `batch`, the files being read one after the other."""
    for file in chosen:
        if batch < file.num_stretches:
            return file, batch
        batch -= file.num_stretches
    raise IndexError("there are fewer batches")


CONSTANTS = algoperf.constants()["criteo1tb"]
PRESETS: dict[str, Workload] = {
    "mini": Flights(
        step_budget=8000,
        batch_size=64,
        optimizer={"name": "nadamw", "lr": 0.02, "beta1": 0.9, "beta2": 0.99, "eps": 1e-8, "weight_decay": 0.1},
        schedule={"shape": "cosine", "length": 1.0, "warmup": 0.05, "final_lr": 0.0},
        step_seconds=0.0014,
        eval_seconds=0.047,
        table_rows=4096,
        bottom=(64, 16),
        top=(64, 32, 1),
        eval_batch_size=1024,
        auc=True,
    ),
    "full": Clicks(
        step_budget=CONSTANTS.step_budget,
        batch_size=CONSTANTS.batch_size,
        optimizer=CONSTANTS.nadamw.optimizer,
        schedule=CONSTANTS.nadamw.schedule,
        step_seconds=CONSTANTS.step_seconds,
        eval_seconds=CONSTANTS.eval_seconds(83_274_637),
        table_rows=4_194_304,
        bottom=(512, 256, 128),
        top=(1024, 1024, 512, 256, 1),
        dropout=CONSTANTS.nadamw.dropout,
        eval_batch_size=8192,
    ),
}
