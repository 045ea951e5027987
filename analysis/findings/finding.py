"""Each finding of the paper held against the records: what a finding is, and what decides.

A verdict follows from the intervals alone. **reproduced**: the interval lies on the side the paper names. **refuted**:
it lies on the other side. **undecided**: it covers the boundary. **reproduced in part**: some of what is claimed is, or
the direction is and the size is not.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import pandas as pd

from analysis.pairs import by_workload, over_workloads, sides
from analysis.resampling import Interval, with_interval

REPRODUCED, IN_PART, REFUTED, UNDECIDED = "reproduced", "reproduced in part", "refuted", "undecided"


@dataclass(frozen=True)
class Finding:
    """One claim of the paper, what the records say of it, and why they may differ."""

    name: str
    claim: str  # as the paper has it, with its exhibit
    verdict: str
    here: tuple[str, ...]  # sentences, computed; the first is the one with the interval that decides
    why: Mapping[str, str] = field(default_factory=dict)  # verdict -> the likely reason of it
    study: str = ""  # whose report shows it
    figure: str = ""  # a figure of that report


def below_one(interval: Interval) -> str:
    """The verdict on a claim that a ratio is smaller than 1."""
    if np.isnan(interval.low) or interval.low <= 1 <= interval.high:
        return UNDECIDED
    return REPRODUCED if interval.high < 1 else REFUTED


def counted(pairs: pd.DataFrame, below: str, above: str) -> str:
    """'below on 2 of 9 (a, b), no effect on 6, above on 1 (c)', from the intervals of the workloads."""
    low, covers, high = sides(by_workload(pairs))
    total = pairs["workload"].nunique()
    parts = []
    for names, word in ((low, below), (high, above)):
        if names:
            parts.append(f"{word} on {len(names)} of {total} ({', '.join(names)})")
    if covers:
        parts.append(f"no effect shown on {len(covers)} of {total}")
    return ", ".join(parts)


def over(pairs: pd.DataFrame, form: str = ".2f") -> str:
    """The ratio over workloads, with its interval, as text."""
    return with_interval(over_workloads(pairs), form)
