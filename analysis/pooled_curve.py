"""The saving curve over all workloads: the ratio at every target level, with a band, in steps and in device-hours.

A level is a share of the baseline's training, so it is the same place on the way of every workload, whatever its
metric.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from analysis.pairs import AT_LEAST, AT_MOST, EXACT
from analysis.resampling import FEWEST, RESAMPLES, interval, multisets, weighted_means, widening
from analysis.saving_curve import Curve, counts

Floats = NDArray[np.float64]

RULE = (
    "Over workloads: at each level the geometric mean over workloads of each one's geometric mean over seeds, at the "
    "horizon fixed beforehand. Its band is a hierarchical bootstrap: workloads drawn with replacement, seeds within "
    "each drawn one, the same draws at every level, widened by √(W/(W−1))·t/z for W workloads. So it speaks of "
    "workloads like these. Fewer than three workloads give the band over seeds alone, which speaks of these workloads. "
    "It holds level by level, not for the whole curve at once."
)

COLUMNS = [
    *(
        "versus",
        "scheme",
        "share",
        "ratio",
        "low",
        "high",
        "seeds_low",
        "seeds_high",
        "hours_ratio",
        "hours_low",
    ),
    *(
        "hours_high",
        "hours_seeds_low",
        "hours_seeds_high",
        "bound",
        "num_workloads",
        "num_pairs",
        "num_exact",
    ),
    *("num_at_least", "num_at_most", "num_both_missed"),
]
SAME = "same schedule"


def pooled_curve(measured: list[Curve], chosen: pd.DataFrame) -> pd.DataFrame:
    """ratio(q) = exp(mean over workloads of the mean over seeds of ln ratio(q)), one row a (versus, scheme, share).

    low, high: over workloads and seeds, null for fewer than FEWEST workloads · seeds_low, seeds_high: over the seeds of
    these workloads, null where one has a single seed · hours_…: the same of device-hours · bound: ``exact``,
    ``at least`` (some average misses the level), ``at most`` (some baseline does), ``mixed`` · num_workloads: that have
    a ratio · num_pairs, … : as in `analysis.saving_curve`, summed.
    Args: chosen: of `analysis.pairs.chosen_settings`; near ones take part. Empty for fewer than two workloads.
    """
    near = chosen[chosen["near"].astype(bool)]
    scheme = dict(zip(near["setting"], near["scheme"], strict=True))
    groups: dict[tuple[str, str], list[Curve]] = {}
    for curve in measured:
        if curve.setting in scheme:
            groups.setdefault((curve.versus, scheme[curve.setting]), []).append(curve)
    rows: list[dict[str, Any]] = []
    for versus, name in sorted(groups, key=lambda key: (key[0] != SAME, key)):
        curves = groups[versus, name]
        again = versus != SAME and _equal(curves, groups.get((SAME, name), []))
        if len(curves) > 1 and not again:
            rows += [{"versus": versus, "scheme": name, **row} for row in _levels(curves)]
    return pd.DataFrame(rows, columns=COLUMNS)


def _equal(one: list[Curve], other: list[Curve]) -> bool:
    """Whether both measure the same pairs, as they do where the best baseline has the same schedule."""
    pairs = zip(one, other, strict=False)
    same = (np.array_equal(a.log_ratio, b.log_ratio, equal_nan=True) for a, b in pairs)
    return len(one) == len(other) and all(same)


def _levels(curves: list[Curve]) -> list[dict[str, Any]]:
    shares = np.unique(np.concatenate([curve.share for curve in curves]))
    steps = _pooled([_on(shares, curve, curve.log_ratio) for curve in curves])
    hours = _pooled([_on(shares, curve, curve.log_hours_ratio) for curve in curves])
    table = {"share": shares}
    table |= {name: np.exp(row) for name, row in zip(_ENDS, steps, strict=True)}
    table |= {f"hours_{name}": np.exp(row) for name, row in zip(_ENDS, hours, strict=True)}
    rated = np.stack([~np.isnan(_on(shares, curve, curve.log_ratio)).all(axis=0) for curve in curves])
    table["num_workloads"] = rated.sum(axis=0)
    for curve in curves:
        at = np.searchsorted(shares, curve.share)
        for name, number in counts(curve).items():
            table.setdefault(name, np.zeros(len(shares), dtype=np.int64))[at] += number
    missed = table["num_at_least"] > 0, table["num_at_most"] > 0
    table["bound"] = np.select([missed[0] & missed[1], *missed], ["mixed", AT_LEAST, AT_MOST], EXACT)
    rated_levels = pd.DataFrame(table).query("num_workloads > 0")
    return [{str(name): value for name, value in row.items()} for row in rated_levels.to_dict("records")]


_ENDS = ("ratio", "low", "high", "seeds_low", "seeds_high")


def _on(shares: Floats, curve: Curve, matrix: Floats) -> Floats:
    """The matrix on these shares, NaN where the curve has no level."""
    wide = np.full((len(matrix), len(shares)), np.nan)
    wide[:, np.searchsorted(shares, curve.share)] = matrix
    return wide


def _pooled(logs: list[Floats]) -> Floats:
    """Args: logs: (seeds, levels) a workload. Returns: (5, levels): the mean, and its ends over both and over seeds."""
    centres = np.stack([weighted_means(np.full((1, len(part)), 1 / len(part)), part)[0] for part in logs])
    known = ~np.isnan(centres)
    value = _divided(np.where(known, centres, 0.0).sum(axis=0), known.sum(axis=0))
    sizes = np.stack([(~np.isnan(part)).sum(axis=0) for part in logs], axis=1).tolist()
    narrow = [widening(*(size for size in column if size)) for column in sizes]
    wide = [widening(num) if num >= FEWEST else np.nan for num in known.sum(axis=0).tolist()]
    resampled = [_resampled(part) for part in logs]
    both = interval(value, _draws(resampled, stay=False), np.array(wide), scale=1.0)
    return np.vstack([both, interval(value, _draws(resampled, stay=True), np.array(narrow), scale=1.0)[1:]])


def _resampled(logs: Floats) -> tuple[Floats, Floats]:
    """The means of the different resamples of the seeds, (u, levels), and how likely each is, (u,)."""
    weights, times = multisets(len(logs))
    return weighted_means(weights, logs), times / times.sum()


def _draws(resampled: list[tuple[Floats, Floats]], stay: bool) -> Floats:
    """Means over as many workloads, (RESAMPLES, levels); they stay, or are drawn with replacement."""
    num, rng = len(resampled), np.random.default_rng([0, len(resampled), stay])
    total = np.zeros((RESAMPLES, resampled[0][0].shape[1]))
    known = np.zeros(total.shape, dtype=np.int64)
    for position in range(num):
        which = np.full(RESAMPLES, position) if stay else rng.integers(num, size=RESAMPLES)
        for place, (means, chance) in enumerate(resampled):
            rows = np.flatnonzero(which == place)
            drawn = means[rng.choice(len(means), size=len(rows), p=chance)]
            there = ~np.isnan(drawn)
            total[rows] += np.where(there, drawn, 0.0)
            known[rows] += there
    return _divided(total, known)


def _divided(total: Floats, by: NDArray[Any]) -> Floats:
    return np.asarray(np.divide(total, by, out=np.full(total.shape, np.nan), where=by > 0))
