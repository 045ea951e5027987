"""What the shipped families share: constants as fields, batches made by their number, the orders of epochs."""

from __future__ import annotations

import itertools
import multiprocessing
import os
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache, partial
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from workloads.data import VARIABLE, BadData
from workloads.protocol import WHOLE, Batch, Part, Summary


@dataclass(frozen=True, kw_only=True)
class Task:
    """A preset; a family says what its data are (`source`), what a batch of them is and what is summed over it.

    metric: one of METRICS, "loss" the mean loss. num_workers: processes that make batches ahead; 0: none.
    """

    METRICS: ClassVar[Mapping[str, bool]] = {"loss": False}  # what `metric` may be -> whether higher is better
    splits: ClassVar[tuple[str, ...]] = ("validation",)
    evaluates_here: ClassVar[bool] = False  # makes no evaluation batches in workers, which would read the data anew

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

    def micro_batches(self, seed: int, first_step: int, parts: Sequence[Part]) -> Iterator[tuple[Batch, ...]]:
        """These parts of each batch, made together, so that a rank has one loader however many they are."""
        make = partial(self._train_parts, self.source("train"), seed, tuple(parts))
        return iter(load_batches(make, first_step, num_workers=self.num_workers))

    def _train_parts(self, source: Any, seed: int, parts: tuple[Part, ...], step: int) -> tuple[Batch, ...]:
        return tuple(self.train_batch(source, seed, part, step) for part in parts)

    def eval_batches(self, split: str, part: Part = WHOLE) -> Iterable[Batch]:
        if split not in self.splits:
            raise ValueError(f"there is no split {split!r} to evaluate; there is {' and '.join(self.splits)}")
        source, num_workers = self.source(split), 0 if self.evaluates_here else self.num_workers
        make = partial(self.eval_batch, source)
        return load_batches(make, part.index, self.num_eval_batches(source), part.count, num_workers)

    def loss_weight(self, batch: Batch) -> float | Tensor:
        """Examples."""
        return float(len(batch[0]))

    def summary(self, loss: float, examples: float, **metrics: float) -> Summary:
        """`metrics`, and the one that is asked for as the target metric."""
        return Summary(loss, {"loss": loss, **metrics}[self.metric], int(examples), metrics)


@dataclass(frozen=True, kw_only=True)
class FileTask(Task):
    """One whose source is a sequence of examples, of which an evaluation takes `eval_batch_size` at a time."""

    def num_eval_batches(self, source: Any) -> int:
        return -(-len(source) // self.eval_batch_size)

    def numbers(self, source: Any, number: int) -> range:
        """Which examples are in evaluation batch `number`."""
        return range(len(source))[number * self.eval_batch_size :][: self.eval_batch_size]


# --- default blocks ----------------------------------------------------------------------------------------------


def nadamw(lr: float, beta1: float = 0.9, beta2: float = 0.99, weight_decay: float = 0.1) -> dict[str, Any]:
    """NadamW as an optimizer block."""
    return {"name": "nadamw", "lr": lr, "beta1": beta1, "beta2": beta2, "eps": 1e-8, "weight_decay": weight_decay}


def cosine(warmup: float, final_lr: float = 0.0) -> dict[str, Any]:
    """A schedule block: linear warm-up over that share of T, then a cosine to final_lr times the learning rate."""
    return {"shape": "cosine", "length": 1.0, "warmup": warmup, "final_lr": final_lr}


def mini(lr: float, weight_decay: float = 0.1, **constants: float) -> dict[str, Any]:
    """The fields of a mini that learns by NadamW, warmed up over 5 % of T; constants: sizes and seconds."""
    return {"optimizer": nadamw(lr, weight_decay=weight_decay), "schedule": cosine(0.05), **constants}


# --- the order of an epoch ---------------------------------------------------------------------------------------


@lru_cache(maxsize=2)
def epoch_order(stream: tuple[int, ...], size: int) -> NDArray[np.int64]:
    """The order in which an epoch goes through `size` examples, a function of the arguments; kept, so read it only.

    stream: what names its random stream, the seed and the epoch among it.
    """
    return np.random.default_rng(stream).permutation(size)


def epoch_batch(stream: tuple[int, ...], step: int, batch_size: int, size: int) -> tuple[int, int, NDArray[np.int64]]:
    """Batch `step` of epochs through `size` examples: its epoch, its place therein and the examples.

    The last examples of an epoch that fill no batch are left out.
    """
    epoch, place = divmod(step - 1, size // batch_size)
    order = epoch_order((*stream, epoch), size)
    return epoch, place, order[place * batch_size :][:batch_size]


def end_to_end(stream: tuple[int, ...], places: NDArray[np.int64], size: int) -> NDArray[np.int64]:
    """The examples at some ascending places of the epochs' orders, laid end to end."""
    epochs, ranks = np.divmod(places, size)
    chosen = [epoch_order((*stream, epoch), size)[ranks[epochs == epoch]] for epoch in np.unique(epochs).tolist()]
    return np.concatenate(chosen)


# --- batches made by worker processes, with the content they have without them -----------------------------------


@dataclass
class _Numbered(Dataset[Batch]):
    make: Callable[[int], Batch]

    def __getitem__(self, number: int) -> Batch:
        return self.make(number)


def load_batches(
    make: Callable[[int], Batch], first: int, stop: int | None = None, step: int = 1, num_workers: int = 0
) -> Iterable[Batch]:
    """make(first), make(first + step), … below `stop` (None: endless), made ahead by `num_workers` processes.

    make: a function of the number alone that a process can be sent (a module's function, a method of a frozen
    dataclass, a functools.partial of one). num_workers: 0 makes them here, when they are asked for. Those below a
    `stop` can be gone through again; their processes stay as long as what is returned. Neither touches the caller's
    random state.
    """
    numbers = itertools.count(first, step) if stop is None else range(first, stop, step)
    if num_workers == 0:
        return map(make, numbers) if stop is None else _Anew(partial(map, make, numbers))
    loader = DataLoader(
        _Numbered(make),
        batch_size=None,
        sampler=numbers,
        num_workers=num_workers,
        multiprocessing_context="forkserver",  # safe beside the threads of a trial
        generator=torch.Generator(),  # else it draws from the training's stream
        worker_init_fn=partial(_begin, os.environ.get(VARIABLE)),
        persistent_workers=stop is not None,  # a split is gone through again and again
        pin_memory=torch.cuda.is_initialized(),  # type: ignore[no-untyped-call]  # by a thread, for copies that wait for nobody
    )
    return _in_one_line(loader) if stop is None else _Anew(partial(_in_one_line, loader))


def _begin(folder: str | None, worker: int) -> None:
    # A fork server keeps the environment it was started in, which may be that of an earlier trial.
    os.environ.pop(VARIABLE, None)
    if folder is not None:
        os.environ[VARIABLE] = folder
    threading.Thread(target=_end_with_trial, daemon=True).start()


def _end_with_trial() -> None:
    # Where a trial is killed its workers see nothing of it: their parent is the fork server, which waits for them.
    trial = multiprocessing.parent_process()
    if trial is not None:
        trial.join()
        os._exit(1)


class _Anew:
    """Batches that can be gone through again."""

    def __init__(self, begin: Callable[[], Iterator[Batch]]) -> None:
        self._begin = begin

    def __iter__(self) -> Iterator[Batch]:
        return self._begin()


def _in_one_line(loader: Iterable[Batch]) -> Iterator[Batch]:
    try:
        yield from loader
    except BadData as error:  # of a worker: its whole traceback, what is wrong in the last line
        raise BadData(str(error).strip().splitlines()[-1].partition("BadData: ")[2]) from None
