"""What a step is given: on a CPU its batches as they come, elsewhere they are there while the step before runs."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import pytest
import torch
from torch import Tensor

from sweeps.feed import fed, to_device


@pytest.mark.parametrize(
    ("device", "order"),
    [
        ("cpu", "made 1, step 1, made 2, step 2, made 3, step 3"),
        ("meta", "made 1, made 2, step 1, made 3, step 2, step 3"),
    ],
)
def test_a_device_is_one_step_ahead_and_never_past_the_end(device: str, order: str) -> None:
    said = []

    def steps() -> Iterator[tuple[Tensor, ...]]:
        for step in (1, 2, 3):
            said.append(f"made {step}")
            yield torch.tensor([step]), torch.tensor([-step])

    for step, (here, there) in enumerate(fed(device, steps()), start=1):
        said.append(f"step {step}")
        assert [part.item() for part in here] == [step, -step]
        assert [part.device.type for part in there] == [device] * 2
    assert ", ".join(said) == order


class Pair(NamedTuple):
    x: Tensor
    name: str


def test_a_batch_keeps_its_nesting_and_what_is_no_tensor() -> None:
    batch = {"pair": Pair(torch.ones(2), "a"), "list": [torch.ones(3), (torch.ones(1), None)]}
    moved = to_device("meta", batch)
    assert to_device("cpu", batch) is batch
    assert isinstance(moved["pair"], Pair)
    assert moved["pair"].x.is_meta
    assert moved["pair"].name == "a"
    assert [moved["list"][0].shape, moved["list"][1][0].shape, moved["list"][1][1]] == [(3,), (1,), None]
