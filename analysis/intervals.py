"""Seeded bootstrap intervals: the same values and seed give the same interval, on any machine."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.stats import norm, t

Floats = NDArray[np.float64]
Statistic = Literal["mean", "geometric_mean", "median"]

RESAMPLES = 10_000
LEVEL = 0.95
AT_ONCE = 2**16  # numbers in a block of resampled columns: it stays in the cache
ROUNDING = 1e-9  # values that differ by a smaller share of themselves are equal

RULE = (
    "Intervals: nonparametric bootstrap over seeds, 10,000 resamples with a fixed seed, percentile, widened by "
    "√(n/(n−1))·t/z for n seeds (Hesterberg 2015), since a plain percentile interval of 3 seeds covers 75 times in "
    "100; over several workloads seeds are resampled within each. One seed has no interval. Nor have seeds that are "
    "all equal: how far other seeds would lie from them is then unknown, not zero, and nothing is decided by them."
)


class Interval(NamedTuple):
    """A statistic and its interval; low and high are NaN where one value, or equal ones, give none. Ends may be ∞."""

    value: float
    low: float
    high: float


def of_row(row: Any, name: str) -> Interval:
    """The interval that a table keeps as the columns name, name_low and name_high."""
    return Interval(*(float(row[f"{name}{end}"]) for end in ("", "_low", "_high")))


def with_interval(interval: Interval, form: str = ".2f") -> str:
    """'0.90 [0.88, 0.92]'; the value alone where there is no interval."""
    if np.isnan(interval.low):
        text = f"{interval.value:{form}}"
    else:
        text = f"{interval.value:{form}} [{interval.low:{form}}, {interval.high:{form}}]"
    return text.replace("-", "−").replace("inf", "∞")


def bootstrap(
    values: Floats,
    statistic: Statistic = "mean",
    *,
    method: Literal["expanded", "percentile", "bca"] = "expanded",
    level: float = LEVEL,
    num_resamples: int = RESAMPLES,
    seed: int = 0,
) -> Interval:
    """Nonparametric bootstrap interval of a statistic of `values`, NaN dropped.

    percentile: the (1 ± level)/2 quantiles of the statistic over resamples drawn with replacement.
    expanded: the same, their distance from the value stretched by `small_sample_factor`, on the log scale for a
    geometric mean: three seeds then cover as often as they say.
    bca: the same quantiles moved by the bias correction z₀ and the acceleration a (Efron 1987, eq. 6.8–6.10):
    α' = Φ(z₀ + (z₀ + z_α) / (1 − a (z₀ + z_α))).
    With n values there are only C(2n−1, n) different resamples (10 for n = 3), all within the values' range: a
    percentile interval of 3 normal values covers their mean 75 times in 100, an expanded one 93 times.

    Equal values have no interval: Student's t is 0/0 there, and resamples of them say nothing of other seeds.
    Infinite values (a censored one) stay: an end is ∞ where a resample's statistic is.

    Args: values: shape (n,). Returns: Interval; all NaN for n = 0, low and high NaN for n = 1 and for equal values.
    """
    values = values[~np.isnan(values)]
    if len(values) == 0:
        return Interval(np.nan, np.nan, np.nan)
    value = float(_apply(values[None, :], statistic)[0])
    if not has_spread(values[:, None])[0]:
        return Interval(value, np.nan, np.nan)
    tails = _tails(level)
    draws, counts = _draws(values, statistic, num_resamples, seed)
    if method == "bca":
        tails = _bca_tails(values, statistic, draws, counts, value, tails)
    low, high = counted_quantiles(draws[:, None], counts, tails)[:, 0]
    if method == "expanded":
        factor = small_sample_factor(len(values), len(values) - 1, level)
        low, high = stretched(value, np.array([low, high]), factor, statistic == "geometric_mean")
    return Interval(value, float(low), float(high))


def has_spread(columns: Floats, scale: float | None = None) -> NDArray[np.bool_]:
    """Whether the values of each column differ by more than ROUNDING of their largest size, or of `scale`.

    NaN left out. Args: columns: shape (n, m). Returns: shape (m,).
    """
    known = ~np.isnan(columns)
    most = np.where(known, columns, -np.inf).max(axis=0, initial=-np.inf)
    least = np.where(known, columns, np.inf).min(axis=0, initial=np.inf)
    size = np.maximum(np.abs(most), np.abs(least)) if scale is None else scale
    with np.errstate(invalid="ignore"):  # of nothing, and of ∞ alone
        return np.asarray((most > least) & (np.isinf(size) | (most - least > ROUNDING * size)))


def stretched(value: Floats | float, ends: Floats, factor: Any, logs: bool = False) -> Floats:
    """The ends moved away from the value by this factor, on the log scale where `logs`; an infinite end stays.

    From an infinite value nothing can be moved away, nor on the log scale from 0: there a finite end stays too.
    """
    with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
        moved = value * (ends / value) ** factor if logs else value + factor * (ends - value)
    fixed = np.isinf(ends) | np.isinf(value) | (logs & (value == 0))
    return np.asarray(np.where(fixed, ends, moved))


@lru_cache(maxsize=1024)
def small_sample_factor(n: float, degrees: float, level: float = LEVEL) -> float:
    """√(n/(n−1)) · t/z: what a percentile interval of n values lacks in width, with so many degrees of freedom.

    The resampled variance is (n−1)/n of the unbiased one, and its own error makes quantiles Student's, not
    normal. Source: the narrowness bias of Hesterberg 2015 (The American Statistician 69:371–386), whose expanded
    percentile interval it follows, stretched rather than read further out, since 10 resamples have no tails.
    """
    upper = (1 + level) / 2
    return float(np.sqrt(n / (n - 1)) * t.ppf(upper, degrees) / norm.ppf(upper))


def bootstrap_columns(
    matrix: Floats, *, level: float = LEVEL, num_resamples: int = RESAMPLES, scale: float | None = None
) -> Floats:
    """Expanded intervals of the mean of each column, rows resampled together, so that bands stay paired.

    A NaN takes no part in its column; one of equal values has no interval. Args: matrix: shape (n, m), finite or NaN.
    scale: of `has_spread`. Returns: shape (3, m): mean, low, high.
    """
    present = ~np.isnan(matrix)
    filled = np.where(present, matrix, 0.0)
    n, m = matrix.shape
    counts = present.sum(axis=0)
    mean = np.divide(filled.sum(axis=0), counts, out=np.full(m, np.nan), where=counts > 0)
    low_high = np.full((2, m), np.nan)
    if n < 2:
        return np.vstack([mean[None, :], low_high])
    weights, times = multisets(n, num_resamples, 0)
    for block in _blocks(m, len(weights)):
        draws = weights @ filled[:, block]
        if not present[:, block].all():
            sizes = weights @ present[:, block].astype(np.float64)
            draws = np.divide(draws, sizes, out=np.full(draws.shape, np.nan), where=sizes > 0)
        low_high[:, block] = counted_quantiles(draws, times, _tails(level))
    low_high[:, ~has_spread(matrix, scale)] = np.nan
    factors = np.full(m, np.nan)
    for count in np.unique(counts[counts > 1]).tolist():
        factors[counts == count] = small_sample_factor(count, count - 1, level)
    return np.vstack([mean[None, :], mean + factors * (low_high - mean)])


def bootstrap_each(matrices: Sequence[Floats], scale: float | None = None) -> list[Floats]:
    """`bootstrap_columns` of every matrix, those with equally many rows side by side: a thousand in one go."""
    found: list[Floats] = [np.empty((3, 0))] * len(matrices)
    for rows in sorted({len(matrix) for matrix in matrices}):
        mine = [place for place, matrix in enumerate(matrices) if len(matrix) == rows]
        bands = bootstrap_columns(np.hstack([matrices[place] for place in mine]), scale=scale)
        edges = np.cumsum([matrices[place].shape[1] for place in mine])
        for place, band in zip(mine, np.split(bands, edges[:-1], axis=1), strict=True):
            found[place] = band
    return found


def bootstrap_groups(
    values: Floats, group: NDArray[np.int64], num_groups: int, statistic: Statistic = "mean"
) -> Floats:
    """`bootstrap` (expanded) of the mean or geometric mean of every group, groups of one size n as columns together.

    Args: values, group: shape (n,), groups numbered from 0. Returns: shape (3, num_groups): value, low, high.
    """
    known = ~np.isnan(values)
    order = np.argsort(group[known], kind="stable")
    ordered, sizes = values[known][order], np.bincount(group[known], minlength=num_groups)
    starts = np.cumsum(sizes) - sizes
    found = np.full((3, num_groups), np.nan)
    for n in np.unique(sizes[sizes > 0]).tolist():
        mine = np.flatnonzero(sizes == n)
        samples = ordered[starts[mine][:, None] + np.arange(n)]
        value = _apply(samples, statistic)
        found[0, mine] = value
        if n == 1:
            continue
        logs = _log(samples) if statistic == "geometric_mean" else samples
        weights, counts = multisets(n, RESAMPLES, 0)
        factor = small_sample_factor(n, n - 1, LEVEL)
        low_high = np.empty((2, len(mine)))
        for block in _blocks(len(mine), len(weights)):
            draws = _weighted(weights, logs[block].T)
            draws = np.exp(draws) if statistic == "geometric_mean" else draws
            low_high[:, block] = counted_quantiles(draws, counts, _tails(LEVEL))
        low_high = stretched(value, low_high, factor, statistic == "geometric_mean")
        found[1:, mine] = np.where(has_spread(samples.T), low_high, np.nan)
    return found


def stratified_geometric_mean(strata: list[Floats], *, level: float = LEVEL, seed: int = 0) -> Interval:
    """The geometric mean over strata (workloads) of the geometric mean within each (seeds).

    Seeds are resampled within each stratum; the strata are the ones studied and stay. NaN dropped. Expanded on
    the log scale, with the degrees of freedom of all strata together.
    Args: strata: one array a workload. Returns: Interval; low and high NaN unless each has 2 values or more, and
    where the values of each are equal.
    """
    logs = [np.log(values[~np.isnan(values)]) for values in strata]
    logs = [part for part in logs if len(part)]
    if not logs:
        return Interval(np.nan, np.nan, np.nan)
    value = float(np.exp(np.mean([part.mean() for part in logs])))
    if min(len(part) for part in logs) < 2 or not any(has_spread(part[:, None], 1.0)[0] for part in logs):
        return Interval(value, np.nan, np.nan)
    draws = np.mean(
        [part[resample(len(part), RESAMPLES, seed + 1 + i)].mean(axis=1) for i, part in enumerate(logs)],
        axis=0,
    )
    sizes = np.array([len(part) for part in logs])
    factor = small_sample_factor(float(sizes.min()), float((sizes - 1).sum()), level)
    low, high = np.log(value) + factor * (np.quantile(draws, [(1 - level) / 2, (1 + level) / 2]) - np.log(value))
    return Interval(value, float(np.exp(low)), float(np.exp(high)))


@lru_cache(maxsize=256)
def resample(n: int, num_resamples: int, seed: int) -> NDArray[np.int64]:
    """Row numbers of `num_resamples` resamples of n rows: shape (num_resamples, n), read-only."""
    rows = np.random.default_rng([seed, n]).integers(0, n, size=(num_resamples, n))
    rows.flags.writeable = False
    return rows


@lru_cache(maxsize=256)
def multisets(n: int, num_resamples: int, seed: int) -> tuple[Floats, NDArray[np.int64]]:
    """The different resamples of `resample` (the order within one means nothing) and how often each was drawn.

    A mean over resamples needs each only once: 10 rows instead of 10,000 for n = 3.
    Returns: weights, shape (u, n), rows that sum to 1; counts, shape (u,), that sum to num_resamples.
    """
    rows = resample(n, num_resamples, seed)
    times = np.zeros((num_resamples, n))
    np.add.at(times, (np.arange(num_resamples)[:, None], rows), 1.0)
    different, counts = np.unique(times, axis=0, return_counts=True)
    return different / n, counts


def _draws(values: Floats, statistic: Statistic, num_resamples: int, seed: int) -> tuple[Floats, NDArray[np.int64]]:
    if statistic == "median":
        rows = resample(len(values), num_resamples, seed)
        return np.median(values[rows], axis=1), np.ones(num_resamples, dtype=np.int64)
    weights, counts = multisets(len(values), num_resamples, seed)
    of = values if statistic == "mean" else _log(values)
    draws = _weighted(weights, of[:, None])[:, 0]
    return (draws if statistic == "mean" else np.exp(draws)), counts


def _log(values: Floats) -> Floats:
    with np.errstate(divide="ignore"):  # of 0, a bound: −∞
        return np.asarray(np.log(values))


def _weighted(weights: Floats, values: Floats) -> Floats:
    """weights @ values, in which a value of weight 0 takes no part though it is infinite: (u, n), (n, m) -> (u, m)."""
    infinite = np.isinf(values)
    if not infinite.any():
        return np.asarray(weights @ values)
    signs = weights @ np.where(infinite, np.sign(values), 0.0)
    some = weights @ infinite.astype(np.float64) > 0
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(some, signs / 0.0, weights @ np.where(infinite, 0.0, values))


def counted_quantiles(draws: Floats, counts: NDArray[np.int64], tails: Floats) -> Floats:
    """numpy.quantile(numpy.repeat(draws, counts, axis=0), tails, axis=0), without the repeat; NaN left out.

    Between a finite draw and an infinite one lies the infinite one, where numpy has NaN.
    """
    columns = np.ascontiguousarray(draws.T)  # a column's draws lie together: sorting is what takes the time
    order = np.argsort(columns, axis=1)
    ordered = np.take_along_axis(columns, order, axis=1)
    up_to = np.cumsum(np.where(np.isnan(ordered), 0, counts[order]), axis=1)
    total, every = up_to[:, -1], np.arange(len(columns))
    found = np.full((len(tails), len(columns)), np.nan)
    for place, tail in enumerate(tails):
        at = tail * (total - 1)
        below, above = np.floor(at), np.ceil(at)
        low, high = (
            ordered[every, np.minimum((up_to <= rank[:, None]).sum(axis=1), len(draws) - 1)] for rank in (below, above)
        )
        with np.errstate(invalid="ignore"):
            between = np.where((low == high) | (at == below), low, low + (high - low) * (at - below))
        found[place] = np.where(total > 0, between, np.nan)
    return found


def ends_of_draws(draws: Floats) -> Floats:
    """The (1 ± LEVEL)/2 quantiles of draws, NaN left out. Args: draws: shape (n, …). Returns: shape (2, …)."""
    flat = draws.reshape(len(draws), -1)
    if np.isfinite(flat).all():
        found = np.quantile(flat, _tails(LEVEL), axis=0)
    else:
        found = counted_quantiles(flat, np.ones(len(flat), dtype=np.int64), _tails(LEVEL))
    return np.asarray(found.reshape(2, *draws.shape[1:]))


def _tails(level: float) -> Floats:
    return np.array([(1 - level) / 2, (1 + level) / 2])


def _blocks(num_columns: int, num_draws: int) -> Iterator[slice]:
    width = max(1, AT_ONCE // num_draws)
    return (slice(start, min(start + width, num_columns)) for start in range(0, num_columns, width))


def _apply(samples: Floats, statistic: Statistic) -> Floats:
    if statistic == "mean":
        return np.asarray(samples.mean(axis=1))
    if statistic == "median":
        return np.asarray(np.median(samples, axis=1))
    if statistic == "geometric_mean":
        return np.asarray(np.exp(_log(samples).mean(axis=1)))
    raise ValueError(f"statistic is 'mean', 'geometric_mean' or 'median', not {statistic!r}")


def _bca_tails(
    values: Floats,
    statistic: Statistic,
    draws: Floats,
    counts: NDArray[np.int64],
    value: float,
    tails: Floats,
) -> Floats:
    n = len(values)
    left_out = np.stack([np.delete(values, i) for i in range(n)])
    jackknife = _apply(left_out, statistic)
    differences = jackknife.mean() - jackknife
    spread = (differences**2).sum() ** 1.5
    acceleration = (differences**3).sum() / (6 * spread) if spread > 0 else 0.0
    total = counts.sum()
    below = (counts[draws < value].sum() + counts[draws <= value].sum()) / (2 * total)
    bias = norm.ppf(np.clip(below, 1 / total, 1 - 1 / total))
    shifted = bias + norm.ppf(tails)
    return np.asarray(norm.cdf(bias + shifted / (1 - acceleration * shifted)))
