"""Verdicts and numbers in words: the same in the report, on the terminal and on W&B.

Three verdicts. **shown**: the interval leaves out the value that means no effect. **excluded**: it lies inside a margin
about that value, so an effect beyond the margin is ruled out. **undecided**: neither, with the number of seeds (or
workloads) at which an interval about the same value would decide.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cache
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.stats import binom, t

from analysis.pairs import AT_LEAST, AT_MOST, EXACT, sign
from analysis.resampling import Interval, of_row, with_interval
from analysis.study import percent

SHOWN, EXCLUDED, UNDECIDED = "shown", "excluded", "undecided"
MARGIN = 0.01  # of steps: a change by less than 1 % is no effect worth having
MOST = 1000  # seeds, beyond which no number is given
_EXCLUDED = f"a change of over {percent(MARGIN)} is excluded"


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
    `logs`, else in its units. bound: of `analysis.pairs`, where runs missed: nothing is shown on the side that the
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


def needed(found: Verdict, what: str = "seeds") -> str:
    """'about 12 seeds would decide'; empty where it is decided."""
    if found.word != UNDECIDED:
        return ""
    if found.needed is None:
        return "there is no interval"
    return f"{_about(found.needed)} {what} would decide"


def _about(number: int) -> str:
    return f"more than {MOST:,}" if number > MOST else f"about {number}"


def tally(found: Sequence[tuple[str, float, Verdict]], below: str, above: str) -> str:
    """'a saving is shown on 2 (a, b); a change of over 1 % is excluded on 1 (c); 1 undecided, …'; of one workload
    'a saving is shown on lm'.

    Args: found: a name, by how much it lies above no effect, its verdict. below, above: what is shown on either side.
    """
    if len(found) == 1:
        name, side, one = found[0]
        text = {SHOWN: f"{below if side < 0 else above} is shown", UNDECIDED: UNDECIDED}.get(one.word, _EXCLUDED)
        return f"{text} on {name}" + (f" ({needed(one)})" if one.word == UNDECIDED else "")
    fewer = [name for name, side, one in found if one.word == SHOWN and side < 0]
    more = [name for name, side, one in found if one.word == SHOWN and side > 0]
    excluded = [name for name, _, one in found if one.word == EXCLUDED]
    open_ = [(name, one.needed) for name, _, one in found if one.word == UNDECIDED]
    parts = [f"{below} is shown on {_listed(fewer, len(found))}"] if fewer or not more else []
    parts += [f"{above} is shown on {_listed(more, len(found))}"] if more else []
    parts += [f"{_EXCLUDED} on {_listed(excluded, len(found))}"] if excluded else []
    each = ", ".join(f"{name} ({_about(number) if number else 'no interval'})" for name, number in open_)
    parts += [f"{len(open_)} undecided, with the seeds that would decide: {each}"] if open_ else []
    return "; ".join(parts)


def _listed(names: Sequence[str], total: int) -> str:
    if len(names) == total:
        return f"all {total}"
    return f"{len(names)} ({', '.join(names)})" if names else "none"


def phrase(found: Verdict, what: str = "seeds") -> str:
    """'an effect is shown', 'a change of over 1 % is excluded', 'undecided; about 12 seeds would decide'."""
    if found.word == UNDECIDED:
        return f"{UNDECIDED}; {needed(found, what)}"
    return "an effect is shown" if found.word == SHOWN else _EXCLUDED


def told(found: Verdict, ratio: float, what: str = "seeds") -> str:
    """'a saving is shown', or 'undecided, about 12 seeds would decide'. Args: ratio: of steps, or of hours."""
    if found.word == SHOWN:
        return "a saving is shown" if ratio < 1 else "a loss is shown"
    if found.word == EXCLUDED:
        return _EXCLUDED
    return f"undecided, {needed(found, what)}"


def by_luck(number: int, of: int, side: float = 0.025) -> float:
    """The chance that `number` or more of `of` independent intervals miss the truth on one side: a binomial tail."""
    return float(binom.sf(number - 1, of, side))


def chance(by_luck: float) -> str:
    """'by luck 2.5 times in 100'."""
    return f"by luck {100 * by_luck:.2g} times in 100" if by_luck >= 1e-3 else "by luck less than once in 1,000"


def ratio(row: Any, name: str = "ratio", form: str = ".2f") -> str:
    """'≥ 0.90 [0.88, 0.92]', from a row's columns name, name_low, name_high and bound."""
    return sign(row.get("bound")) + with_interval(of_row(row, name), form)
