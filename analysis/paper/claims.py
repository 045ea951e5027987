"""Claims as data (claims.yaml), and the one evaluator that turns what was measured into a verdict with its sentences.

A test compares two settings and says between which numbers their ratio must lie. It is *shown* where the whole 95 %
interval lies between them, *excluded* where all of it lies outside, else *undecided*: that an interval covers a number
shows nothing. A claim is *reproduced* where all of its tests are shown, *in part* where some are, *refuted* where none
is and one is excluded, else *undecided*.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.resources import files
from itertools import product
from typing import Any

import numpy as np
import pandas as pd
import yaml

from analysis.run_folder.study import SCHEME_NAMES, percent
from analysis.statistics.resampling import FEWEST, Interval
from analysis.statistics.verdicts import EXCLUDED, MOST, SHOWN, UNDECIDED

REPRODUCED, IN_PART, REFUTED = "reproduced", "reproduced in part", "refuted"
# What a bound leaves of an interval: a ratio that is a lower bound has no upper end, and the other way round.
OPEN = {"at least": (1.0, np.inf), "at most": (0.0, 1.0), "mixed": (0.0, np.inf)}


@dataclass(frozen=True)
class Comparison:
    """One test: two settings (arguments of `Evidence.pick`), and what their ratio must be like."""

    says: str  # with {ratio}, {workloads}, {each}, {closed}, {met}, {by_x} and a function's words filled in
    study: str
    expect: Mapping[str, tuple[float, float]] = field(default_factory=dict)  # meaning -> range; empty: only told
    top: Mapping[str, Any] = field(default_factory=dict)
    bottom: Mapping[str, Any] = field(default_factory=dict)
    quantity: str = "steps"  # or final_metric
    match: Sequence[str] = ()  # this and the next two: of `Evidence.compare`
    at: float | None = None
    bottom_at: float | None = None
    any_of: Sequence[str] = ()  # one of these workloads is enough
    pooled: str = ""  # a statistic of the table `pooled` of the study, instead of the geometric mean
    function: str = ""  # of `measure.FUNCTIONS`, with `top` as its arguments
    gap: Mapping[str, Any] | None = None  # the setting of whose distance from `bottom` {closed} is a share
    x: str | float | None = None  # where it stands in the claim's own chart: a column of `match`, or a number
    series: str = ""


@dataclass(frozen=True)
class Claim:
    """As the paper has it, with its exhibit; figure: one of the report of `study` that shows it."""

    name: str
    text: str
    study: str
    figure: str
    tests: Sequence[Comparison]


@dataclass(frozen=True)
class Measured:
    """What a test found; no words: nothing. `pairs` of a ratio (workload, seed, log value), else `size` many `unit`."""

    intervals: Sequence[Interval]  # one; of `any_of` one a workload
    words: Mapping[str, str]
    bound: str = "exact"
    pairs: pd.DataFrame | None = None
    size: int = 0
    unit: str = "workloads"
    points: pd.DataFrame | None = None


@dataclass(frozen=True)
class Finding:
    """A claim, its verdict, the sentences it follows from, and points for its own chart."""

    claim: Claim
    verdict: str
    here: Sequence[str]
    points: Sequence[pd.DataFrame]


def claims(file: str) -> list[Claim]:
    """Those of a file beside this module, in its order."""
    told = yaml.safe_load(files("analysis.paper").joinpath(file).read_text(encoding="utf-8"))
    made = told.items()
    return [Claim(name, one["claim"], one["study"], one.get("figure", ""), list(_tests(one))) for name, one in made]


def _tests(claim: Mapping[str, Any]) -> Iterator[Comparison]:
    for test in claim["tests"]:
        each, whole = test.get("each", {}), {"study": claim["study"]} | claim.get("all", {}) | test
        for values in product(*each.values()):
            filled = _filled(whole, dict(zip(each, values, strict=True)))
            yield Comparison(**{name: value for name, value in filled.items() if name != "each"})


def _filled(node: Any, values: Mapping[str, Any]) -> Any:
    if isinstance(node, dict):
        return {key: _filled(value, values) for key, value in node.items()}
    for name, value in values.items() if isinstance(node, str) else ():
        if node == f"{{{name}}}":
            return value
        words = percent(value) if isinstance(value, float) else SCHEME_NAMES.get(value, value).replace("_", " ")
        node = node.replace(f"{{{name}}}", words)
    return node


def judge(claim: Claim, measured: Sequence[Measured]) -> Finding | None:
    """The verdict on a claim from what its tests measured, in their order; None where nothing was."""
    here, votes = [], []
    for test, found in zip(claim.tests, measured, strict=True):
        said = []
        for meaning, region in test.expect.items():
            each = [vote(interval, region, found.bound) for interval in found.intervals]
            votes.append(SHOWN if SHOWN in each else EXCLUDED if set(each) == {EXCLUDED} else UNDECIDED)
            said.append(f"{meaning}: {votes[-1]}{needed(found, region) if votes[-1] == UNDECIDED else ''}")
        if found.words:
            text = test.says.format_map(defaultdict(lambda: "–", found.words))
            here.append(f"{text} ({'; '.join(said)})." if said else f"{text}.")
        elif said:
            here.append(f"Not measured: {', '.join(test.expect)}.")
    if all(np.isnan(interval.value) for found in measured for interval in found.intervals):
        return None
    verdict = REFUTED if EXCLUDED in votes else UNDECIDED
    if SHOWN in votes:
        verdict = REPRODUCED if set(votes) == {SHOWN} else IN_PART
    return Finding(claim, verdict, here, [found.points for found in measured if found.points is not None])


def vote(found: Interval, region: tuple[float, float], bound: str = "exact") -> str:
    """Whether a whole interval lies within a region, ends included; a bound has one end alone."""
    if np.isnan(found.low):
        return UNDECIDED
    open_low, open_high = OPEN.get(bound, (1.0, 1.0))
    low, high = found.low * open_low, found.high * open_high
    if region[0] <= low and high <= region[1]:
        return SHOWN
    return EXCLUDED if low > region[1] or high < region[0] else UNDECIDED


def needed(found: Measured, region: tuple[float, float]) -> str:
    """', about 12 seeds would decide': how many, were the value and the spread to stay what they are.

    The interval must shrink to the distance d of the value from the edge that it covers, its variance by (d/width)².
    That of a mean over workloads is (τ² + σ²/n)/W; where τ² alone is too much, no number of seeds decides.
    """
    value, low, high = found.intervals[0]
    if len(found.intervals) > 1 or found.bound != "exact" or np.isnan(low):
        return ""
    scale = math.log if found.pairs is not None and min(value, low) > 0 else float
    shrink = 0.0
    for edge in (edge for edge in region if low < edge < high):
        width, distance = (abs(scale(end) - scale(value)) for end in (high if edge > value else low, edge))
        shrink = max(shrink, (width / distance) ** 2 if distance > 0 else np.inf)
    number, unit = (found.size * shrink, found.unit) if found.pairs is None else _of_pairs(found.pairs, shrink)
    count = f"more than {MOST:,}" if number > MOST else f"about {math.ceil(number):,}"
    return f", {count} {unit} would decide" if number > 0 else ""


def _of_pairs(pairs: pd.DataFrame, shrink: float) -> tuple[float, str]:
    groups = pairs.dropna(subset="value").groupby("workload")["value"]
    workloads, seeds = groups.ngroups, float(groups.size().mean())
    if workloads < FEWEST:
        return seeds * shrink, "seeds"
    total, within = float(groups.mean().var()), float(groups.var().mean())
    room = total / shrink - max(0.0, total - within / seeds)  # what is left of the variance for σ²/n
    return (within / room, "seeds") if room > 0 else (workloads * shrink, "such workloads")
