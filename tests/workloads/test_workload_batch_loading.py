"""Worker processes change neither the order nor the content of batches, nor the caller's random state."""

import itertools
import os
from functools import partial

import numpy as np
import pytest
import torch
from torch import Tensor

from workloads.data import VARIABLE, BadData
from workloads.task import load_batches


def draw(seed: int, number: int) -> Tensor:
    return torch.from_numpy(np.random.default_rng([seed, number]).normal(size=3))


@pytest.mark.parametrize("num_workers", [0, 2])
def test_in_order_from_anywhere(num_workers: int) -> None:
    state = torch.get_rng_state()
    endless = load_batches(partial(draw, 5), first=4, num_workers=num_workers)
    found = list(itertools.islice(endless, 6))
    assert all(torch.equal(batch, draw(5, 4 + i)) for i, batch in enumerate(found))
    assert torch.equal(state, torch.get_rng_state())


@pytest.mark.parametrize("num_workers", [0, 2])
def test_every_second_one_up_to_an_end(num_workers: int) -> None:
    found = list(load_batches(partial(draw, 5), first=1, stop=8, step=2, num_workers=num_workers))
    assert [batch.tolist() for batch in found] == [draw(5, i).tolist() for i in (1, 3, 5, 7)]


def where(number: int) -> str:
    return f"{number} {os.environ.get(VARIABLE)}"


def test_workers_see_the_data_folder_of_their_trial(monkeypatch: pytest.MonkeyPatch) -> None:
    for folder in ("one", "two", None):
        monkeypatch.delenv(VARIABLE, raising=False)
        if folder is not None:
            monkeypatch.setenv(VARIABLE, folder)
        assert list(load_batches(where, 1, 3, num_workers=1)) == [f"1 {folder}", f"2 {folder}"]


def refuse(number: int) -> Tensor:
    raise BadData(f"file {number}: no such file; it should hold numbers")


@pytest.mark.parametrize("num_workers", [0, 1])
def test_bad_data_is_one_line_from_a_worker_too(num_workers: int) -> None:
    with pytest.raises(BadData) as error:
        next(iter(load_batches(refuse, first=3, num_workers=num_workers)))
    assert str(error.value) == "file 3: no such file; it should hold numbers"
