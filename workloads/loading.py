"""The order of an epoch, and batches made by worker processes with the content they have without them."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Iterable, Iterator
from functools import lru_cache, partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import DataLoader, Dataset

from workloads.data import VARIABLE, BadData
from workloads.protocol import Batch


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


class _Numbered(Dataset[Batch]):
    """Batch i is make(i)."""

    def __init__(self, make: Callable[[int], Batch]) -> None:
        self.make = make

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
        return map(make, numbers) if stop is None else _Made(make, range(first, stop, step))
    loader = DataLoader(
        _Numbered(make),
        batch_size=None,
        sampler=numbers,
        num_workers=num_workers,
        multiprocessing_context="forkserver",  # safe beside the threads of a trial
        generator=torch.Generator(),  # else it draws from the training's stream
        worker_init_fn=partial(_see_data, os.environ.get(VARIABLE)),
        persistent_workers=stop is not None,  # a split is gone through again and again
    )
    return iter(_Loaded(loader)) if stop is None else _Loaded(loader)


def _see_data(folder: str | None, worker: int) -> None:
    # A fork server keeps the environment it was started in, which may be that of an earlier trial.
    os.environ.pop(VARIABLE, None)
    if folder is not None:
        os.environ[VARIABLE] = folder


class _Made:
    """Batches made here, anew each time."""

    def __init__(self, make: Callable[[int], Batch], numbers: range) -> None:
        self._make, self._numbers = make, numbers

    def __iter__(self) -> Iterator[Batch]:
        return map(self._make, self._numbers)


class _Loaded:
    """Batches of a loader, anew each time; damaged data is one line, not a worker's whole traceback."""

    def __init__(self, loader: Iterable[Batch]) -> None:
        self._loader = loader

    def __iter__(self) -> Iterator[Batch]:
        try:
            yield from self._loader
        except BadData as error:
            raise BadData(str(error).strip().splitlines()[-1].partition("BadData: ")[2]) from None
