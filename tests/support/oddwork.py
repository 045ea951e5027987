"""Workloads of a user's own that nobody trains: names, metrics and directions that reports must cope with."""

from __future__ import annotations

from typing import Any, ClassVar

from torch import nn


class Error:
    """A loss between 1 and 0: lower is better, at the end it may be 0."""

    step_budget, batch_size = 200, 8
    metric, higher_is_better = "error", False
    optimizer: ClassVar[dict[str, Any]] = {
        "name": "nadamw",
        "lr": 0.01,
        "beta1": 0.9,
        "beta2": 0.99,
        "weight_decay": 0.1,
    }
    schedule: ClassVar[dict[str, Any]] = {"shape": "cosine", "warmup": 0.05}
    step_seconds = eval_seconds = 0.001

    def model(self) -> nn.Module:
        return nn.Linear(2, 1)

    def _never(self, *_: Any) -> Any:
        raise AssertionError("nothing is trained here")

    batches = loss = eval_batches = eval_step = summarize = _never


class Accuracy(Error):
    metric, higher_is_better = "accuracy", True


class Signed(Error):
    """A score that begins below 0 and ends above: no logarithm of it exists."""

    metric, higher_is_better = 'score <b>&"σ"</b>', True


class Größe_名前_that_is_longer_than_most_columns(Error):
    metric = "Verlust_名前"


LONG = Größe_名前_that_is_longer_than_most_columns
