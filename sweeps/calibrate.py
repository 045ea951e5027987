"""The target rule: the median over held-out seeds of the baseline's best metric with a 0.75-length schedule.

Source: AlgoPerf sets targets as the median of the best values over reruns of a tuned baseline whose schedule ends
at 75 % of the maximum runtime (paper, Section 3; AlgoPerf rules).
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from typing import Any

import pandas as pd

from sweeps.targets import Target
from sweeps.wording import counted

LENGTH = 0.75
SEEDS = (1000, 1001, 1002)  # no study may use them
RULE = f"median over the held-out seeds of the baseline's best validation metric, schedule length {LENGTH}"


def study(workloads: Sequence[str], preset: str, seeds: Sequence[int] = SEEDS) -> dict[str, Any]:
    """The sweep that answers the rule, as a spec: the workload's own optimizer and schedule, no averaging."""
    if len(set(seeds)) < 3:
        raise ValueError(f"got {counted(len(set(seeds)), 'held-out seed')}; allowed: at least 3")
    return {
        "study": "calibrate",
        "question": "Which value must a run reach?",
        "workloads": list(workloads),
        "preset": preset,
        "seeds": list(seeds),
        "schedule": {"length": LENGTH},
        "averaging": [{"scheme": "none"}],
        "tracking": {"wandb": "disabled"},
    }


def targets(records: pd.DataFrame, preset: str, seeds: Sequence[int]) -> Mapping[str, Target]:
    """Records of that sweep, joined with its cells -> workload -> target.

    Raises: ValueError when a seed has no finite value: a target rests on all of its seeds.
    """
    found = {}
    for workload, rows in records.groupby("workload"):
        higher = bool(rows["higher_is_better"].iloc[0])
        by_seed = rows.groupby("seed")["metric"]
        best = (by_seed.max() if higher else by_seed.min()).reindex(list(seeds))
        if best.isna().any():
            raise ValueError(f"{workload}: no value for seed {best[best.isna()].index[0]}; see its log")
        found[str(workload)] = Target(
            value=statistics.median(best.tolist()),
            metric=str(rows["metric_name"].iloc[0]),
            higher_is_better=higher,
            preset=preset,
            rule=RULE,
            seeds=list(seeds),
            values=best.tolist(),
            versions={name: version(name) for name in ("wa-sweeps", "torch")},
            date=datetime.now(UTC).date().isoformat(),
        )
    return found
