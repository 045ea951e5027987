"""What the shipped families share: constants as fields, batches made by their number, splits, the metric's name."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any, ClassVar

from torch import Tensor

from workloads.loading import load_batches
from workloads.protocol import WHOLE, Batch, Part, Summary


@dataclass(frozen=True, kw_only=True)
class Task:
    """A preset; a family says what its data are (`source`), what a batch of them is and what is summed over it.

    metric: one of METRICS, "loss" the mean loss. num_workers: processes that make batches ahead; 0: none.
    """

    METRICS: ClassVar[Mapping[str, bool]] = {"loss": False}  # what `metric` may be -> whether higher is better
    splits: ClassVar[tuple[str, ...]] = ("validation",)

    step_budget: int
    batch_size: int
    optimizer: Mapping[str, Any]
    schedule: Mapping[str, Any]
    step_seconds: float
    eval_seconds: float
    eval_batch_size: int
    metric: str = "loss"
    training: Mapping[str, Any] = field(default_factory=dict)
    num_workers: int = 0

    def __post_init__(self) -> None:
        if self.metric not in self.METRICS:
            raise ValueError(f"metric is {self.metric!r}; it is {' or '.join(self.METRICS)}")

    @property
    def higher_is_better(self) -> bool:
        return self.METRICS[self.metric]

    def source(self, split: str) -> Any:
        """What the batches of a split are made of, found once and sent to the workers. Raises: BadData."""
        raise NotImplementedError

    def train_batch(self, source: Any, seed: int, part: Part, step: int) -> Batch:
        """This part of batch `step`."""
        raise NotImplementedError

    def eval_batch(self, source: Any, number: int) -> Batch:
        """Batch `number` of an evaluated split, from 0; here the source is a sequence of them."""
        return source[number]

    def num_eval_batches(self, source: Any) -> int:
        return len(source)

    def batches(self, seed: int, first_step: int, part: Part = WHOLE) -> Iterator[Batch]:
        make = partial(self.train_batch, self.source("train"), seed, part)
        return iter(load_batches(make, first_step, num_workers=self.num_workers))

    def eval_batches(self, split: str, part: Part = WHOLE) -> Iterable[Batch]:
        if split not in self.splits:
            raise ValueError(f"there is no split {split!r} to evaluate; there is {' and '.join(self.splits)}")
        source = self.source(split)
        make = partial(self.eval_batch, source)
        return load_batches(make, part.index, self.num_eval_batches(source), part.count, self.eval_workers)

    @property
    def eval_workers(self) -> int:
        return self.num_workers

    def loss_weight(self, batch: Batch) -> float | Tensor:
        """Examples."""
        return float(len(batch[0]))

    def summary(self, loss: float, examples: float, metrics: Mapping[str, float] | None = None) -> Summary:
        """`metrics`, and the one that is asked for as the target metric."""
        metrics = metrics or {}
        return Summary(loss, {"loss": loss, **metrics}[self.metric], int(examples), metrics)


@dataclass(frozen=True, kw_only=True)
class FileTask(Task):
    """One whose source is a sequence of examples, of which an evaluation takes `eval_batch_size` at a time."""

    def num_eval_batches(self, source: Any) -> int:
        return -(-len(source) // self.eval_batch_size)

    def numbers(self, source: Any, number: int) -> range:
        """Which examples are in evaluation batch `number`."""
        return range(len(source))[number * self.eval_batch_size :][: self.eval_batch_size]
