"""AlgoPerf's constants as data: targets, step hints, runtimes, batch sizes and NadamW's best points."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from workloads.task import cosine, nadamw

VERSION = "v0.5"  # the paper's shares of T are shares of this version's step hint


@dataclass(frozen=True)
class NadamW:
    """One point of NadamW's search space."""

    lr: float
    beta1: float
    beta2: float
    weight_decay: float
    warmup: float  # share of the step budget
    dropout: float
    label_smoothing: float


@dataclass(frozen=True)
class Constants:
    """What AlgoPerf sets for one workload; by version where versions differ."""

    metric: str
    higher_is_better: bool
    validation_target: float
    test_target: float
    batch_size: int
    step_hint: Mapping[str, int]
    max_runtime_seconds: Mapping[str, int]
    eval_period_seconds: int
    nadamw: NadamW

    def preset(self, num_eval_examples: int, *regularizers: str) -> dict[str, Any]:
        """The fields of a full preset that are AlgoPerf's; num_eval_examples: of its validation split.

        regularizers: those of "dropout" and "label_smoothing" that are fields of it. Seconds are a GPU's: AlgoPerf's
        runtime on its 8 V100s over its step hint; an example is evaluated in a third of the time it is trained on.
        """
        step_seconds = 8 * self.max_runtime_seconds[VERSION] / self.step_hint[VERSION]
        point = self.nadamw
        return {
            "step_budget": self.step_hint[VERSION],
            "batch_size": self.batch_size,
            "optimizer": nadamw(point.lr, point.beta1, point.beta2, point.weight_decay),
            "schedule": cosine(point.warmup),
            "step_seconds": step_seconds,
            "eval_seconds": num_eval_examples / self.batch_size * step_seconds / 3,
            "metric": self.metric,
            **{name: getattr(point, name) for name in regularizers},
        }


class PublishedTarget(NamedTuple):
    """A validation target that others set for a full preset."""

    metric: str
    higher_is_better: bool
    value: float
    source: str


def published_target(workload: str) -> PublishedTarget | None:
    """The target of a workload's full preset, with where it was published; None where nobody did."""
    if (of := constants().get(workload)) is not None:
        return PublishedTarget(of.metric, of.higher_is_better, of.validation_target, f"AlgoPerf {VERSION}")
    row = dict(_table()["targets"].get(workload, {}))
    return PublishedTarget(value=row.pop("validation_target"), **row) if row else None


@cache
def _table() -> dict[str, Any]:
    table: dict[str, Any] = yaml.safe_load(Path(__file__).with_name("algoperf.yaml").read_text(encoding="utf-8"))
    return table


@cache
def constants() -> Mapping[str, Constants]:
    """Workload -> its constants, from algoperf.yaml."""
    table = _table()
    points = {number: NadamW(**point) for number, point in table["nadamw"].items()}
    return {name: Constants(**{**row, "nadamw": points[row["nadamw"]]}) for name, row in table["workloads"].items()}
