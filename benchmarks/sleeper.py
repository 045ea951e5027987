"""Workloads of steps that only wait, in a module that is quickly imported."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from time import sleep
from typing import Any

import torch
from torch import Tensor, nn


class Sleeper:
    """A workload of steps that only wait, so that what is measured is the launching."""

    step_budget = 10
    batch_size = 1
    metric = "loss"
    higher_is_better = False
    optimizer: Mapping[str, Any] = {"name": "sgd", "lr": 0.1}
    schedule: Mapping[str, Any] = {"shape": "constant"}
    step_seconds = 0.3
    eval_seconds = 0.0

    def model(self) -> nn.Module:
        return nn.Linear(1, 1)

    def batches(self, seed: int, first_step: int) -> Iterator[Tensor]:
        while True:
            yield torch.ones(1, 1)

    def loss(self, model: nn.Module, batch: Tensor) -> Tensor:
        sleep(self.step_seconds)
        value: Tensor = (model(batch) ** 2).mean()
        return value

    def eval_batches(self, split: str) -> list[Tensor]:
        return [torch.ones(1, 1)]

    def eval_step(self, model: nn.Module, batch: Tensor) -> dict[str, Tensor]:
        return {"loss": (model(batch) ** 2).sum()}

    def summarize(self, sums: Mapping[str, float]) -> tuple[float, float, int]:
        return sums["loss"], sums["loss"], 1


class Nap(Sleeper):
    """A trial of half a second."""

    step_budget = 5
    step_seconds = 0.1


class ShortNap(Nap):
    """A trial of a tenth of a second."""

    step_seconds = 0.02
