"""Predicting a rare event from numbers and hashed categories with AlgoPerf's DLRM-small.

`mini` predicts which flights of 2013 arrive late; `full` is AlgoPerf's criteo1tb, clicks on advertisements
(docs/workloads/criteo1tb.md).
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from workloads import data
from workloads.algoperf import constants
from workloads.criteo1tb_files import HOLDS, NUM_INTEGERS, VOCABULARIES, File, files, located, parse, read_lines
from workloads.data.reading import in_batches, unpacked
from workloads.layers import cached_tensors
from workloads.protocol import Batch, Part, Summary, Sums, Workload
from workloads.task import Task, epoch_order, mini


class DLRM(nn.Module):
    """Numbers through an MLP, categories through one table, all dot products of the two, another MLP.

    z₀ = bottom(numbers), zⱼ = table[idⱼ]; logit = top([z₀, (zᵢ · zⱼ) for i ≤ j]). Dropout before the last layer.

    Initial weights: table U(0, 1)/√rows; bottom U(±√(6/(in + out))), top N(0, 2/(in + out)); biases N(0, 1/out).
    Source: Naumov et al. 2019; sizes and initial weights of DlrmSmall in AlgoPerf's criteo1tb_pytorch/models.py.
    """

    pairs: Tensor

    def __init__(
        self, numbers: int, categories: int, table_rows: int, bottom: Sequence[int], top: Sequence[int], dropout: float
    ) -> None:
        super().__init__()
        width, num_vectors = bottom[-1], 1 + categories
        self.table = nn.Embedding(table_rows, width)
        nn.init.uniform_(self.table.weight, 0.0, table_rows**-0.5)
        self.bottom = nn.Sequential(*mlp(numbers, *bottom))
        rows, columns = torch.triu_indices(num_vectors, num_vectors)
        self.register_buffer("pairs", rows * num_vectors + columns, persistent=False)
        *hidden, logits, _ = mlp(width + len(rows), *top)
        self.top = nn.Sequential(*hidden, nn.Dropout(dropout), logits)
        for layers, draw in ((self.bottom, nn.init.xavier_uniform_), (self.top, nn.init.xavier_normal_)):
            for layer in layers:
                if isinstance(layer, nn.Linear):
                    draw(layer.weight)
                    nn.init.normal_(layer.bias, std=layer.out_features**-0.5)

    def forward(self, numbers: Tensor, ids: Tensor) -> Tensor:
        """(batch, num_numbers) float32, (batch, num_categories) int32 -> (batch,) logits."""
        first = self.bottom(numbers)
        vectors = torch.cat([first.unsqueeze(1), self.table(ids)], dim=1)
        products = (vectors @ vectors.transpose(1, 2)).flatten(1).index_select(1, self.pairs)
        logits: Tensor = self.top(torch.cat([first, products], dim=1))
        return logits.squeeze(1)


def mlp(*widths: int) -> list[nn.Module]:
    """Linear layers from each width to the next, a ReLU behind each."""
    return [layer for sizes in pairwise(widths) for layer in (nn.Linear(*sizes), nn.ReLU())]


class Rows(NamedTuple):
    """A batch: numbers (n, …) float32, ids of the categories (n, …) int32, labels (n,) int64 of 0 and 1."""

    numbers: Tensor
    ids: Tensor
    labels: Tensor


@dataclass(frozen=True, kw_only=True)
class EventPrediction(Task):
    """Binary classification by a DLRM; metric: mean cross-entropy, nats a row. A batch is `Rows`."""

    table_rows: int = 4096
    bottom: tuple[int, ...] = (64, 16)
    top: tuple[int, ...] = (64, 32, 1)
    dropout: float = 0.0
    eval_batch_size: int = 1024
    auc: bool = False  # record the area under the ROC curve too
    num_numbers: ClassVar[int]
    num_categories: ClassVar[int]

    def model(self) -> nn.Module:
        sizes = (self.num_numbers, self.num_categories, self.table_rows)
        return DLRM(*sizes, self.bottom, self.top, self.dropout)

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        numbers, ids, labels = batch
        return F.binary_cross_entropy_with_logits(model(numbers, ids).float(), labels.float())

    def eval_step(self, model: nn.Module, batch: Batch) -> Sums:
        numbers, ids, labels = batch
        logits = model(numbers, ids).float()
        losses = F.binary_cross_entropy_with_logits(logits, labels.float(), reduction="none")
        sums = {"loss": losses.double().sum(), "examples": torch.tensor(len(losses))}
        return sums | {"labels": labels, "logits": logits} if self.auc else sums

    def summarize(self, sums: Mapping[str, Any]) -> Summary:
        metrics = {"auc": area_under_curve(sums["labels"], sums["logits"])} if self.auc else {}
        return self.summary(float(sums["loss"] / sums["examples"]), sums["examples"], **metrics)


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
    with np.load(io.BytesIO(unpacked("criteo1tb.npz.xz"))) as file:
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


@cached_tensors
def validation_flights(table_rows: int, batch_size: int) -> tuple[Rows, ...]:
    """All held-out flights."""
    return tuple(Rows(*columns) for columns in in_batches(flights(table_rows)["validation"], batch_size))


@dataclass(frozen=True, kw_only=True)
class Flights(EventPrediction):
    """Does a flight arrive more than 15 minutes late? From its schedule, aircraft, day and weather.

    Validation: held-out flights of the same year, drawn at random.
    """

    auc: bool = True
    num_numbers, num_categories = len(NUMBERS) + NUM_WEATHER, len(CATEGORIES)

    def source(self, split: str) -> Any:
        if split == "train":
            return flights(self.table_rows)["train"]
        return validation_flights(self.table_rows, self.eval_batch_size)

    def train_batch(self, source: Any, seed: int, part: Part, step: int) -> Rows:
        chosen = np.random.default_rng([seed, step]).integers(len(source[-1]), size=self.batch_size)[part.every]
        return Rows(*(torch.from_numpy(array[chosen]) for array in source))


# --- full: clicks, in AlgoPerf's files ---------------------------------------------------------------------------


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
    num_numbers, num_categories = NUM_INTEGERS, len(VOCABULARIES)

    def check_data(self) -> None:
        folder = data.dataset("criteo1tb", holds=HOLDS)
        for split in ("train", "validation", "test"):
            for file in files(folder, split, self.batch_size):
                self.rows(file.path, read_lines(file.path, 0, 0, 1))

    def source(self, split: str) -> Sequence[File]:
        folder = data.dataset("criteo1tb", holds=HOLDS)
        if split == "train":
            return files(folder, split, self.batch_size)
        return files(folder, split, self.eval_batch_size)[: self.num_eval_files]

    def num_eval_batches(self, source: Sequence[File]) -> int:
        return sum(file.num_stretches for file in source)

    def train_batch(self, source: Sequence[File], seed: int, part: Part, step: int) -> Rows:
        epoch, batch = divmod(step - 1, sum(file.num_stretches for file in source))
        order = epoch_order((seed, epoch), len(source))
        file, stretch = located([source[i] for i in order], batch)
        first, stop = (self.batch_size * index // part.count for index in (part.index, part.index + 1))
        return self.rows(file.path, read_lines(file.path, file.start(stretch), first, stop))

    def eval_batch(self, source: Sequence[File], number: int) -> Rows:
        """The lines of one stretch."""
        file, stretch = located(source, number)
        return self.rows(file.path, file.lines(stretch))

    def rows(self, path: Path, text: bytes) -> Rows:
        """Lines of the file `path` as a batch. Raises: BadData."""
        return Rows(*map(torch.from_numpy, parse(path, text, self.table_rows)))


PRESETS: dict[str, Workload] = {
    "mini": Flights(**mini(lr=0.02, step_budget=8000, batch_size=64, step_seconds=0.0014, eval_seconds=0.047)),
    "full": Clicks(
        **constants()["criteo1tb"].preset(83_274_637, "dropout"),
        table_rows=4_194_304,
        bottom=(512, 256, 128),
        top=(1024, 1024, 512, 256, 1),
        eval_batch_size=8192,
    ),
}
