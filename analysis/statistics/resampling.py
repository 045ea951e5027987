"""The one bootstrap, over named levels (workloads, the seeds within them), and the one interval made of its draws.

Seeded: the same values give the same interval, on any machine.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from functools import lru_cache
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.stats import norm, t

Floats = NDArray[np.float64]
Counts = NDArray[np.int64]
Statistic = Literal["mean", "geometric_mean"]

RESAMPLES = 10_000
LEVEL = 0.95
TAILS: Floats = np.array([(1 - LEVEL) / 2, (1 + LEVEL) / 2])
FEWEST = 3  # workloads, for an interval that resamples workloads
AT_ONCE = 2**16  # numbers in a block of resampled columns: it stays in the cache
ROUNDING = 1e-9  # values that differ by a smaller share of themselves are equal

Z = float(norm.ppf(TAILS[1]))

RULE = (
    "Nonparametric bootstrap over seeds, over three workloads or more over workloads too; 10,000 resamples, a fixed "
    "seed, percentile, widened by √(n/(n−1))·t/z for n seeds (Hesterberg 2015). No interval is narrower than the "
    "evaluation grid leaves it: a crossing is known within one evaluation interval. One seed has no interval."
)


class Interval(NamedTuple):
    """A statistic and its interval; low and high are NaN where one value, or equal ones without a known grid, give
    none. Ends may be ∞.
    """

    value: float
    low: float
    high: float


def of_row(row: Any, name: str) -> Interval:
    """The interval that a table keeps as the columns name, name_low and name_high."""
    return Interval(*(float(row[f"{name}{end}"]) for end in ("", "_low", "_high")))


def with_interval(interval: Interval, form: str = ".2f") -> str:
    """'0.90 [0.88, 0.92]'; the value alone where there is no interval."""
    ends = "" if np.isnan(interval.low) else f" [{interval.low:{form}}, {interval.high:{form}}]"
    return f"{interval.value:{form}}{ends}".replace("-", "−").replace("inf", "∞")


def interval(
    value: Any, draws: Floats, factor: Any, counts: Counts | None = None, *,
    logs: Any = False, scale: float | None = None, floor: Any = np.nan,
) -> Floats:  # fmt: skip
    """The value and the (1 ± LEVEL)/2 quantiles of its draws, their distance from it stretched by the factor.

    No interval (NaN) where no two draws differ by more than ROUNDING of themselves, or of `scale`: of equal values
    nothing is known of other seeds. Stretched on the log scale where `logs`; an infinite end stays, and from an
    infinite value, or on the log scale from 0, nothing can be moved away: there a finite end stays too.
    Args: value, factor, logs, floor: shape (m,) or one for all. floor: half-width, on the scale that is stretched, that
    the interval has at least wherever there is a factor: of `grid_floor`. draws: (u, m), NaN left out; counts: (u,),
    how often each came up. Returns: shape (3, m): value, low, high.
    """
    value = np.broadcast_to(np.asarray(value, dtype=np.float64), draws.shape[1:])
    ends = _quantiles(draws, counts)
    size = np.abs(ends).max(axis=0) if scale is None else scale
    with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
        differ = (ends[1] > ends[0]) & (np.isinf(size) | (ends[1] - ends[0] > ROUNDING * size))
        moved = np.where(logs, value * (ends / value) ** factor, value + factor * (ends - value))
        stays = ~np.isnan(factor) & (np.isinf(ends) | np.isinf(value) | (np.asarray(logs) & (value == 0)))
        found = np.where(differ, np.where(stays, ends, moved), np.nan)
    away = np.where(~np.isnan(factor) & (floor > 0), floor, np.nan) * np.array([[-1], [1]])
    least = np.where(logs, value * np.exp(away), value + away)
    return np.vstack([value, np.fmin(found[0], least[0]), np.fmax(found[1], least[1])])


def grid_floor(values: Floats, grid: Floats) -> Floats:
    """z·√(Σᵢ sdᵢ Σⱼ sdⱼ)/n over pairs i, j closer than sdᵢ: the half-width the evaluation grid leaves to a mean of n.

    Values that lie apart have errors of their own, which average out; those closer than their error share it.
    Args: values: logs of ratios, shape (n, …), NaN left out. grid: standard deviations of their errors, same shape.
    Returns: shape (…), NaN where there is no value.
    """
    known = ~np.isnan(values)
    sd = np.where(known, grid, 0.0)
    with np.errstate(invalid="ignore"):
        total = sum(
            one * np.where(np.abs(values - at) <= np.maximum(one, ROUNDING), sd, 0.0).sum(axis=0)
            for at, one in zip(values, sd, strict=True)
        )
        return np.asarray(Z * np.sqrt(total) / known.sum(axis=0))


def widening(*sizes: float) -> float:
    """`small_sample_factor` of samples of these sizes resampled each by itself: NaN where one has a single value."""
    fewest = min(sizes, default=0)
    return small_sample_factor(fewest, sum(size - 1 for size in sizes)) if fewest > 1 else np.nan


@lru_cache(maxsize=1024)
def small_sample_factor(n: float, degrees: float) -> float:
    """√(n/(n−1)) · t/z: what a percentile interval of n values lacks in width, with so many degrees of freedom.

    With n values there are only C(2n−1, n) different resamples (10 for n = 3), all within the values' range: a
    percentile interval of 3 normal values covers their mean 75 times in 100, a stretched one 93 times.
    The resampled variance is (n−1)/n of the unbiased one, and its own error makes quantiles Student's, not
    normal. Source: the narrowness bias of Hesterberg 2015 (The American Statistician 69:371–386), whose expanded
    percentile interval it follows, stretched rather than read further out, since 10 resamples have no tails.
    """
    return float(np.sqrt(n / (n - 1)) * t.ppf(TAILS[1], degrees) / Z)


def for_all(ratio: Interval, number: int, degrees: int) -> Interval:
    """Bonferroni: the interval of one of so many ratios, each at level 1 − 5 %/number, so that all hold together."""
    if np.isnan(ratio.low) or degrees < 1 or not 0 < ratio.value < np.inf:
        return ratio
    factor = t.ppf(1 - (1 - LEVEL) / 2 / max(1, number), degrees) / t.ppf(TAILS[1], degrees)
    low, high = (float(ratio.value * (end / ratio.value) ** factor) for end in (ratio.low, ratio.high))
    return Interval(ratio.value, low, high)


def bootstrap(values: Floats, statistic: Statistic = "mean", grid: Floats | None = None) -> Interval:
    """The mean or geometric mean of a sample, NaN dropped, with its interval.

    Infinite values (a censored one) stay: an end is ∞ where a resample's statistic is. Args: values: shape (n,).
    grid: of `bootstrap_columns`.
    """
    known = ~np.isnan(values)
    grid = None if grid is None else grid[known][:, None]
    return Interval(*bootstrap_columns(values[known][:, None], statistic, grid=grid)[:, 0].tolist())


def bootstrap_columns(
    matrix: Floats, statistic: Statistic = "mean", scale: float | None = None, grid: Floats | None = None
) -> Floats:
    """The statistic of each column with its interval, rows resampled together, so that bands stay paired.

    A NaN takes no part in its column. Args: matrix: shape (n, m). scale: of `interval`; where it is given the values
    are logs. grid: shape (n, m), the standard deviation of the log of each value that the evaluation grid leaves.
    Returns: shape (3, m).
    """
    n, m = matrix.shape
    found = np.full((3, m), np.nan)
    if n == 0:
        return found
    logs = statistic == "geometric_mean"
    with np.errstate(divide="ignore"):  # of 0, a bound: −∞
        of = np.log(matrix) if logs else matrix
    factors = np.array([widening(size) for size in (~np.isnan(matrix)).sum(axis=0).tolist()])
    value = np.exp(mean(of, 0)) if logs else mean(of, 0)
    floor = np.full(m, np.nan)
    if grid is not None:
        floor = grid_floor(of, grid) if logs or scale else grid_floor(np.log(matrix), grid) * value
    weights, counts = multisets(n)
    width = max(1, AT_ONCE // len(weights))
    for at in (slice(start, start + width) for start in range(0, m, width)):
        means = weighted_means(weights, of[:, at])
        draws = np.exp(means) if logs else means
        found[:, at] = interval(value[at], draws, factors[at], counts, logs=logs, scale=scale, floor=floor[at])
    return found


def bootstrap_each(
    matrices: Sequence[Floats], statistic: Statistic = "mean", scale: float | None = None,
    grids: Sequence[Floats] | None = None,
) -> list[Floats]:  # fmt: skip
    """`bootstrap_columns` of every matrix, those with equally many rows side by side: a thousand in one go."""
    found: list[Floats] = [np.empty((3, 0))] * len(matrices)
    for rows in sorted({len(matrix) for matrix in matrices}):
        mine = [place for place, matrix in enumerate(matrices) if len(matrix) == rows]
        grid = None if grids is None else np.hstack([grids[place] for place in mine])
        bands = bootstrap_columns(np.hstack([matrices[place] for place in mine]), statistic, scale, grid)
        edges = np.cumsum([matrices[place].shape[1] for place in mine])
        for place, band in zip(mine, np.split(bands, edges[:-1], axis=1), strict=True):
            found[place] = band
    return found


def bootstrap_groups(
    values: Floats, group: Counts, num_groups: int, statistic: Statistic = "mean", grid: Floats | None = None
) -> Floats:
    """`bootstrap` of every group.

    Args: values, group, grid: shape (n,), groups numbered from 0. Returns: shape (3, num_groups): value, low, high.
    """
    known = ~np.isnan(values)
    order = np.argsort(group[known], kind="stable")
    edges = np.cumsum(np.bincount(group[known], minlength=num_groups))

    def columns(of: Floats) -> list[Floats]:
        return np.split(of[known][order][:, None], edges)[:num_groups]

    bands = bootstrap_each(columns(values), statistic, grids=None if grid is None else columns(grid))
    return np.hstack([np.empty((3, 0)), *bands])


def stratified_geometric_mean(
    strata: Sequence[Floats], levels: Collection[str] = ("seed",), grids: Sequence[Floats] = ()
) -> Interval:
    """The geometric mean over strata (workloads) of the geometric mean within each (seeds), NaN dropped.

    Args: levels: of `resampled`. grids: like strata, of `bootstrap_columns`. Returns: Interval; low and high NaN unless
    each stratum has 2 values or more, and where all are equal and there are no grids.
    """
    logs = [np.log(values[~np.isnan(values)]) for values in strata]
    logs = [part for part in logs if len(part)]
    if not logs:
        return Interval(np.nan, np.nan, np.nan)
    floor = pooled_floor([grid_floor(np.log(of), grid) for of, grid in zip(strata, grids, strict=bool(grids))])
    sizes = [len(part) for part in logs]
    value = float(np.mean([part.mean() for part in logs]))
    if min(sizes) < 2:
        return Interval(float(np.exp(value)), np.nan, np.nan)
    factor = widening(len(logs)) if "workload" in levels else widening(*sizes)
    found = interval(value, resampled(logs, levels).mean(axis=1)[:, None], factor, scale=1.0, floor=floor)
    return Interval(*np.exp(found[:, 0]).tolist())


def mean(values: Floats, axis: int = -1) -> Floats:
    """NaN left out; NaN where nothing is left."""
    known = ~np.isnan(values)
    number = known.sum(axis=axis)
    total = np.where(known, values, 0.0).sum(axis=axis)
    return np.asarray(np.divide(total, number, out=np.full(total.shape, np.nan), where=number > 0))


def pooled_floor(floors: Any) -> Floats:
    """The `grid_floor` of a mean over workloads. Args: floors: one a workload, on the first axis; NaN left out."""
    floors = np.asarray(floors)
    return np.asarray(np.sqrt(np.nansum(floors**2, axis=0)) / np.maximum((~np.isnan(floors)).sum(axis=0), 1))


def resampled(strata: Sequence[Floats], levels: Collection[str] = ("seed",)) -> Floats:
    """The mean of every stratum over RESAMPLES resamples: shape (RESAMPLES, strata).

    levels: what is resampled. ``seed``: the values within each stratum, while the strata are the ones studied and
    stay; with ``workload`` strata too are drawn with replacement.
    """
    draws = np.stack([draws_of(part, 1 + place) for place, part in enumerate(strata)], axis=-1)
    return resample_workloads(draws[None])[0] if "workload" in levels else draws


def draws_of(values: Floats, stream: int, of: Callable[..., Any] = np.mean) -> Floats:
    """A statistic over RESAMPLES resamples of one sample, shape (n,) -> (RESAMPLES,); equal streams draw alike."""
    return np.asarray(of(values[resample(len(values), RESAMPLES, stream)], axis=1))


def resample_workloads(draws: Floats) -> Floats:
    """Workloads drawn with replacement, and for each drawn one a resample of its seeds of its own.

    Args: draws: shape (p, resamples, workloads), the resamples of the seeds. Returns: the same shape.
    """
    _, num_resamples, num_workloads = draws.shape
    rng = np.random.default_rng([0, num_workloads])
    size = (num_resamples, num_workloads)
    drawn: Floats = draws[:, rng.integers(num_resamples, size=size), rng.integers(num_workloads, size=size)]
    return drawn


@lru_cache(maxsize=256)
def resample(n: int, num_resamples: int, stream: int) -> NDArray[np.int64]:
    """Row numbers of `num_resamples` resamples of n rows: shape (num_resamples, n), read-only."""
    rows = np.random.default_rng([stream, n]).integers(0, n, size=(num_resamples, n))
    rows.flags.writeable = False
    return rows


@lru_cache(maxsize=256)
def multisets(n: int, num_resamples: int = RESAMPLES, stream: int = 0) -> tuple[Floats, Counts]:
    """The different resamples of `resample` (the order within one means nothing) and how often each was drawn.

    A mean over resamples needs each only once: 10 rows instead of 10,000 for n = 3.
    Returns: weights, shape (u, n), rows that sum to 1; counts, shape (u,), that sum to num_resamples.
    """
    rows = resample(n, num_resamples, stream)
    times = np.zeros((num_resamples, n))
    np.add.at(times, (np.arange(num_resamples)[:, None], rows), 1.0)
    different, counts = np.unique(times, axis=0, return_counts=True)
    return different / n, counts


def weighted_means(weights: Floats, values: Floats) -> Floats:
    """Means over the rows, by weights that sum to 1: (u, n), (n, m) -> (u, m).

    NaN, and infinite values of weight 0, take no part; NaN where nothing does.
    """
    missing, infinite = np.isnan(values), np.isinf(values)
    means = weights @ np.where(missing | infinite, 0.0, values)
    if missing.any():
        size = weights @ (~missing).astype(np.float64)
        means = np.divide(means, size, out=np.full(means.shape, np.nan), where=size > 0)
    if infinite.any():
        signs = weights @ np.where(infinite, np.sign(values), 0.0)
        with np.errstate(divide="ignore", invalid="ignore"):
            means = np.where(weights @ infinite.astype(np.float64) > 0, signs / 0.0, means)
    return np.asarray(means)


def _quantiles(draws: Floats, counts: Counts | None) -> Floats:
    """The (1 ± LEVEL)/2 quantiles of each column of draws, NaN left out: (u, m) -> (2, m)."""
    if counts is not None:
        return counted_quantiles(draws, counts, TAILS)
    found = np.full((2, draws.shape[1]), np.nan)
    finite = np.isfinite(draws).all(axis=0)
    found[:, finite] = np.quantile(draws[:, finite], TAILS, axis=0)  # partitions: faster than to sort
    found[:, ~finite] = counted_quantiles(draws[:, ~finite], np.ones(len(draws), dtype=np.int64), TAILS)
    return found


def counted_quantiles(draws: Floats, counts: Counts, tails: Floats) -> Floats:
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


def ratios_of_medians(top: Floats, bottom: Floats) -> Interval:
    """median(top) ÷ median(bottom) of two independent samples, ∞ allowed; the value is NaN where both medians are ∞.

    A resample with both medians ∞ is open: 0 for the lower bound, ∞ for the upper. The interval is widened about a
    value between 0 and ∞ alone: from 0, ∞ or none there is no distance to stretch. Low and high are NaN where a side
    has one value.
    """
    value = float(_ratio(np.median(top), np.median(bottom)))
    n = min(len(top), len(bottom))
    if n < 2:
        return Interval(value, np.nan, np.nan)
    sides = (np.median(of[resample(len(of), RESAMPLES, seed)], axis=1) for seed, of in ((1, top), (2, bottom)))
    draws = _ratio(*sides)
    low, high = (
        float(np.quantile(np.where(np.isnan(draws), open_, draws), tail, method="nearest"))
        for open_, tail in zip((0.0, np.inf), TAILS, strict=True)
    )
    if 0 < value < np.inf:
        factor = small_sample_factor(n, 2 * (n - 1))
        low, high = value * (low / value) ** factor, value * (high / value) ** factor
    return Interval(value, low, high)


def _ratio(top: Any, bottom: Any) -> Any:
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(np.isinf(bottom), np.where(np.isinf(top), np.nan, 0.0), top / bottom)
