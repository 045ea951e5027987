"""paired: an average is evaluated on a part of the batches, by its difference from the live weights on the same ones.

The difference varies far less from batch to batch than the metric does, so a part of them is enough until the average
comes near the target. `estimate` says so or asks for all; it knows the live weights and this average alone, so that it
says the same in any company.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from workloads.protocol import Summary

FEWEST = 8  # batches behind an estimate: of fewer, its error is not known well enough
GROWTH = 1.5
PRECISION = 0.5  # largest standard error, as a share of what a curve changes by from one evaluation to the next
LOOK = 8  # evaluations over which that is taken
NEAR = 2.0  # such changes from the target: there an average is evaluated in full
SURE = 4.0  # standard errors between an estimate and what it is taken to be apart from
EXACT = 1e-9  # how closely a mean of the batches is the value of all
Floats = NDArray[np.float64]


class Estimate(NamedTuple):
    """What a part of the batches says of all: the summary, with the examples behind it, and the metric's error."""

    summary: Summary
    standard_error: float


def order(num_batches: int, seed: int) -> list[int]:
    """The batches in the order in which averages take them: a function of the seed, not of time."""
    return [int(i) for i in np.random.default_rng([seed, num_batches]).permutation(num_batches)]


def sizes(num_batches: int) -> list[int]:
    """How many batches are behind one try after the other; none where there are no more than FEWEST."""
    found, size = [], FEWEST
    while size < num_batches:
        found.append(size)
        size = int(np.ceil(GROWTH * size))
    return found


def are_means(batches: Sequence[Summary], whole: Summary) -> bool:
    """Whether every value of the whole is the mean of the batches', weighted by their examples."""
    weights = _column(batches, "examples")
    if weights.sum() != whole.examples or not len(batches):
        return False
    values, named = _values(batches), _named(whole)
    return values.keys() == named.keys() and all(
        np.isclose(weights @ values[name] / weights.sum(), value, rtol=EXACT, atol=0.0) for name, value in named.items()
    )


def estimate(
    live: Sequence[Summary], whole: Summary, average: Sequence[Summary], change: float, target: float | None
) -> Estimate | None:
    """The average over all batches, as the live weights there plus the mean difference on a part; None: take more.

    With weights w (examples) and differences d on n of N batches, D = Σ w d ÷ Σ w and its standard error
    √((1 − n/N) Σ (w (d − D))² ÷ (n (n − 1))) ÷ mean w. Enough when the error is at most PRECISION changes, and the
    target further away than NEAR changes and SURE errors: what lies about its crossing is evaluated in full.
    Args: live: of each batch, in the order of `order`. whole: of all. average: of the first n batches of that order.
    change: of the metric from one evaluation to the next. target: of the metric.
    """
    n, num_all = len(average), len(live)
    weights, here, there = _column(average, "examples"), _values(average), _values(live[:n])
    means = {name: float(weights @ (here[name] - there[name]) / weights.sum()) for name in here}
    apart = weights * (here["metric"] - there["metric"] - means["metric"])
    error = float(np.sqrt((1 - n / num_all) * (apart @ apart) / (n * (n - 1))) / weights.mean())
    values = {name: value + means[name] for name, value in _named(whole).items()}
    if not error <= PRECISION * change:  # NaN is neither
        return None
    if target is not None and abs(values["metric"] - target) < NEAR * change + SURE * error:
        return None
    loss, metric = values.pop("loss"), values.pop("metric")
    return Estimate(Summary(loss, metric, int(weights.sum()), {n[1:]: v for n, v in values.items()}), error)


def _named(summary: Summary) -> dict[str, float]:
    beside: Mapping[str, float] = summary.metrics
    return {"loss": summary.loss, "metric": summary.metric} | {f"/{name}": value for name, value in beside.items()}


def _values(batches: Sequence[Summary]) -> dict[str, Floats]:
    rows = [_named(one) for one in batches]
    return {name: np.array([row.get(name, np.nan) for row in rows], dtype=np.float64) for name in rows[0]}


def _column(batches: Sequence[Summary], name: str) -> Floats:
    return np.array([getattr(one, name) for one in batches], dtype=np.float64)
