"""Whether an effect is there.

**shown**: the interval leaves out the value that means no effect. **excluded**: it lies inside a margin about that
value, so an effect beyond the margin is ruled out. **undecided**: neither, with the number of seeds (or workloads) at
which an interval about the same value would decide.
"""

from __future__ import annotations

import math
from functools import cache
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.stats import binom, t

from analysis.statistics.pairs import AT_LEAST, AT_MOST, EXACT
from analysis.statistics.resampling import Interval, of_row

SHOWN, EXCLUDED, UNDECIDED = "shown", "excluded", "undecided"
MARGIN = 0.01  # of steps: a change by less than 1 % is no effect worth having
MOST = 1000  # seeds, beyond which no number is given


class Verdict(NamedTuple):
    """needed: how many seeds would decide, MOST + 1 for more than MOST; None where it is decided or cannot be told."""

    word: str
    needed: int | None = None

    def __str__(self) -> str:
        return self.word


def verdict(
    interval: Interval, n: int, *, none: float = 1.0, margin: float = MARGIN, logs: bool = True, bound: object = EXACT
) -> Verdict:
    """Whether an effect is shown, excluded beyond a margin, or undecided, and how many more would decide.

    Args: n: seeds (or workloads) behind the interval. none: the value that means no effect. margin: a share of it where
    `logs`, else in its units. bound: of `pairs`, where runs missed: nothing is shown on the side that the
    bound leaves open, and nothing excluded.
    """
    value, low, high = (math.log(max(one, 1e-300) / none) if logs else one - none for one in interval)
    if math.isnan(low) or math.isnan(high):
        return Verdict(UNDECIDED)
    if not low <= 0 <= high:
        return Verdict(SHOWN if bound in (EXACT, AT_MOST if high < 0 else AT_LEAST) else UNDECIDED)
    if bound != EXACT:
        return Verdict(UNDECIDED)
    inside = math.log1p(margin) if logs else margin
    if max(abs(low), abs(high)) <= inside:
        return Verdict(EXCLUDED)
    n, widths = min(max(n, 2), MOST), _widths()
    width = max(high - value, value - low) * widths / widths[n]
    decides = (width < abs(value)) | (abs(value) + width <= inside)
    more = np.flatnonzero(decides[n + 1 :])
    return Verdict(UNDECIDED, n + 1 + int(more[0]) if len(more) else MOST + 1)


def side(row: Any, name: str, n: int) -> str | None:
    """``fewer`` or ``more`` (steps, shown), ``excluded``, ``undecided``; None without an interval. From a row's columns
    name, name_low, name_high and bound.
    """
    interval = of_row(row, name)
    if math.isnan(interval.low):
        return None
    word = verdict(interval, n, bound=row["bound"]).word
    return ("fewer" if interval.high < 1 else "more") if word == SHOWN else word


@cache
def _widths() -> NDArray[np.float64]:
    """How wide an interval over m values is, in their standard deviations: t(m)/√m, for m up to MOST."""
    m = np.arange(MOST + 1, dtype=float)
    widths = np.full(MOST + 1, np.inf)
    widths[2:] = t.ppf(0.975, m[2:] - 1) / np.sqrt(m[2:])
    return widths


def by_luck(number: int, of: int, side: float = 0.025) -> float:
    """The chance that `number` or more of `of` independent intervals miss the truth on one side: a binomial tail."""
    return float(binom.sf(number - 1, of, side))
