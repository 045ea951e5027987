"""Does averaging save over many workloads together?"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import altair as alt
import numpy as np
import pandas as pd
from numpy.typing import NDArray

from analysis import chart as charts
from analysis import families, words
from analysis.chart import Look
from analysis.core import Core
from analysis.pairs import AT_LEAST, AT_MOST, BOTH_MISSED, EXACT, PENDING, overall_bound, sign
from analysis.resampling import FEWEST, RESAMPLES, Interval, draws_of, interval, resample_workloads, widening
from analysis.resampling import with_interval as told
from analysis.study import SCHEME_NAMES
from analysis.style import REFERENCE_LINE
from analysis.survival import restricted_pairs
from analysis.table_format import Column, Shown

Floats = NDArray[np.float64]

FIXED, BEST = "fixed beforehand", "best-looking"
LEFT_OUT_RESAMPLES = 2_000
SPREAD = 1.0  # how far whiskers may reach beyond the dots, in widths of the dots' range


def _mean(values: Floats) -> Floats:
    """Over the last axis, NaN left out."""
    known = ~np.isnan(values)
    count = known.sum(axis=-1)
    total = np.where(known, values, 0.0).sum(axis=-1)
    return np.asarray(np.divide(total, count, out=np.full(total.shape, np.nan), where=count > 0))


def _exp_mean(logs: Floats) -> Floats:
    return np.asarray(np.exp(_mean(logs)))


def _geometric(top: Floats, bottom: Floats) -> Floats:
    return _exp_mean(np.log(top / bottom))


def _sums(top: Floats, bottom: Floats) -> Floats:
    return _mean(top) / _mean(bottom)


def _median(top: Floats, bottom: Floats) -> Floats:
    values = top / bottom
    ordered = np.sort(values, axis=-1)  # NaN last
    count = (~np.isnan(values)).sum(axis=-1, keepdims=True)
    low = np.take_along_axis(ordered, np.maximum(count - 1, 0) // 2, axis=-1)
    high = np.take_along_axis(ordered, np.minimum(count // 2, values.shape[-1] - 1), axis=-1)
    return np.asarray((low + high)[..., 0] / 2)


class Way(NamedTuple):
    """One way to pool. columns: of the pairs, averaged over seeds: a ratio's, or the average's and the baseline's."""

    rule: str
    columns: tuple[str, ...]
    over: Callable[..., Floats]  # the workloads on the last axis
    within: Callable[..., Any] = np.mean
    logs: bool = True  # its interval is stretched on the log scale


WAYS = {
    "mean ratio": Way(
        "arithmetic mean over seeds, then over workloads; a missed target counted at the step budget, a pair that both "
        "miss left out",
        *(("ratio",), _mean),
        logs=False,
    ),
    "geometric mean": Way(
        "geometric mean over seeds, then over workloads; missed targets as for the mean ratio",
        *(("log_ratio",), _exp_mean),
    ),
    "median ratio": Way(
        "median steps over seeds, missed ones at the step budget, average ÷ baseline; then the median over workloads",
        *(("counted", "baseline_counted"), _median, np.median),
    ),
    "restricted mean": Way(
        "mean steps up to the step budget over seeds, average ÷ baseline, a pair that both miss counted T/T; then the "
        "geometric mean over workloads",
        *(("counted", "baseline_counted"), _geometric),
    ),
    "survivors only": Way(
        "the mean ratio over the pairs that both meet the target: seeds that miss it are dropped; shown to compare, "
        "not to use",
        *(("exact_ratio",), _mean),
        logs=False,
    ),
    "device-hours": Way(
        "device-hours of training + averaging to the target, × devices: geometric mean over seeds, then over "
        "workloads; a run that misses pays for all it trained, a pair that both miss left out",
        *(("log_hours_ratio",), _exp_mean),
    ),
    "suite device-hours": Way(
        "Σ over workloads of the mean device-hours, average ÷ baseline: long workloads weigh more; a workload that "
        "nobody solves is charged all it trained",
        *(("hours", "baseline_hours"), _sums),
    ),
    "suite, solved only": Way(
        "the same sum; workloads that nobody solves left out",
        *(("solved_hours", "baseline_solved_hours"), _sums),
    ),
}
FRONT = (  # side by side in the figure, the first before the others
    *("geometric mean", "mean ratio", "median ratio", "restricted mean", "device-hours", "suite device-hours"),
)
SUMS = ("suite device-hours", "suite, solved only")  # say nothing on one workload
_MEANS = list(dict.fromkeys((column, way.within) for way in WAYS.values() for column in way.columns))

TITLE = "Over all workloads"
CAPTION = (
    "A row a workload, below them the ways to pool; a dot is the ratio, its bar the 95 % interval, left of 1 averaging "
    "saves. A small tick is the number without one workload, a hollow dot a bound."
)
RULE = (
    f"{len(WAYS)} ways to pool, each with its accounting rule: they answer different questions and differ on "
    "the same data. Intervals resample workloads with replacement, and seeds within each drawn workload, and speak of "
    "workloads like these; seeds alone resampled, they speak of these workloads. Widened by √(W/(W−1))·t/z for W "
    "workloads; for fewer than three there is none. Leave-one-out repeats each number without one workload."
)
SHOWN = (
    Shown(
        "pooled",
        "Ways to pool, pre-specified setting",
        ("scheme", "statistic", "value", "num_workloads", "num_missed"),
        lambda frame: frame[
            (frame["versus"] == "same schedule")
            & (frame["horizon"] == FIXED)
            & frame["statistic"].isin(FRONT)
            & (frame["num_workloads"] > 1)
        ],
    ),
)
COLUMNS = {
    "scheme": Column("scheme", lambda row: SCHEME_NAMES.get(row["scheme"], row["scheme"])),
    "value": Column("average ÷ baseline", lambda row: _number(row, ".3f")),
    "num_missed": Column("pairs with a miss", lambda row: f"{row['num_missed']}/{row['num_pairs']}"),
}
_NAMES = ["versus", "horizon", "scheme"]
_COLUMNS = [
    *(*_NAMES, "scope", "workload", "statistic", "value", "low", "high", "seeds_low", "seeds_high", "bound"),
    *("num_workloads", "num_pairs", "num_missed", "num_pending"),
]


def tables(core: Core) -> dict[str, pd.DataFrame]:
    """pooled: every way over all workloads, with its rule · pooled_by_workload: on each alone, low and high over its
    seeds · leave_one_out: without each, `change` from the number over all · families: n of m workloads.
    """
    table = pool(core.by_seed, core.steps, picks(core.chosen, core.horizons))
    whole, alone, without = (table[table["scope"] == scope] for scope in ("all", "alone", "without"))
    whole = whole.drop(columns=["scope", "workload"])
    alone = alone[~alone["statistic"].isin(SUMS)].drop(columns=["scope", "low", "high", "num_workloads"])
    keys = [*_NAMES, "statistic"]
    left = without.merge(whole[[*keys, "value"]].rename(columns={"value": "over_all"}), on=keys, how="left")
    left = left.assign(change=left["value"] - left["over_all"]).rename(columns={"workload": "without"})
    return {
        "pooled": whole.assign(rule=whole["statistic"].map({name: way.rule for name, way in WAYS.items()})),
        "pooled_by_workload": alone.rename(columns={"seeds_low": "low", "seeds_high": "high"}),
        "leave_one_out": left[[*keys, "without", "value", "low", "high", "change", "num_workloads", "num_pairs"]],
        "families": families.families(core.ratios, core.chosen),
    }


def picks(chosen: pd.DataFrame, horizons: pd.DataFrame) -> pd.DataFrame:
    """Which setting stands for a scheme on a workload: the pre-specified one, and the one selected post hoc.

    Args: chosen: of `analysis.pairs.chosen_settings`. horizons: of `analysis.robustness.horizon_map`.
    Returns: horizon (FIXED or BEST), scheme, workload, setting; BEST on the trainings of `chosen` only. Where every
    setting of a scheme misses the target, the smallest lower bound stands for it: no workload drops out by missing.
    """
    fixed = chosen[chosen["near"].astype(bool)].assign(horizon=FIXED)
    trainings = horizons.loc[horizons["setting"].isin(chosen["setting"]), "training"]
    best = horizons[horizons["training"].isin(trainings)].assign(horizon=BEST)
    best = best.sort_values(["best", "ratio", "setting"], ascending=[False, True, True], kind="stable")
    best = best.groupby(["workload", "scheme"], sort=True).head(1)
    return pd.concat([one[["horizon", "scheme", "workload", "setting"]] for one in (fixed, best)], ignore_index=True)


def pool(by_seed: pd.DataFrame, steps: pd.DataFrame, picked: pd.DataFrame) -> pd.DataFrame:
    """Every one of WAYS: over all workloads, without each workload, and on each workload alone.

    Args: by_seed: of `analysis.pairs.ratios_by_seed`. steps: of `analysis.steps_to_target`. picked: of `picks`.
    Returns: versus, horizon, scheme · scope (``all``, ``without``, ``alone``), workload (the one left out or alone) ·
    statistic · value, low, high (workloads and seeds resampled; NaN for fewer than FEWEST workloads) · seeds_low,
    seeds_high (seeds resampled within these workloads; NaN where a workload has one seed, and for ``without``) ·
    bound (of the pairs; ``none`` without a value) · num_workloads (that have a value), num_pairs, num_missed (pairs
    in which a side misses), num_pending (left out of everything).
    """
    pairs = restricted_pairs(by_seed, steps).merge(picked, on=["workload", "setting"], how="inner")
    if _baselines(pairs, "same schedule") == _baselines(pairs, "best baseline"):
        pairs = pairs[pairs["versus"] == "same schedule"]
    rows: list[dict[str, Any]] = []
    for key, part in pairs.groupby(_NAMES, sort=True):
        rows += [dict(zip(_NAMES, key, strict=True)) | row for row in _scopes(part)]
    table = pd.DataFrame(rows, columns=_COLUMNS)
    # 'same schedule' and what was pre-specified come first: what was selected post hoc flatters.
    order = table.assign(versus=table["versus"] != "same schedule", horizon=table["horizon"] != FIXED)
    return table.loc[order.sort_values(_NAMES, kind="stable").index].reset_index(drop=True)


def _baselines(pairs: pd.DataFrame, versus: str) -> set[tuple[str, str]]:
    mine = pairs[pairs["versus"] == versus]
    return set(zip(mine["cell_id"], mine["baseline_cell_id"], strict=True))


def _scopes(pairs: pd.DataFrame) -> list[dict[str, Any]]:
    """All rows of one (versus, horizon, scheme)."""
    done = pairs[pairs["bound"] != PENDING]
    # Workloads with a ratio first: then `stratified_geometric_mean` draws the same seeds and has the same interval.
    rated = done.groupby("workload", sort=True)["ratio"].count() > 0
    names = [str(name) for name in [*rated[rated].index, *rated[~rated].index]]
    if not names:
        return []
    parts = [_columns(done[done["workload"] == name]) for name in names]
    draws = np.stack([_means(part, 1 + place) for place, part in enumerate(parts)], axis=-1)
    values = np.stack([_means(part, None) for part in parts], axis=-1)
    sizes = np.array([[part[way.columns[0]].notna().sum() for part in parts] for way in WAYS.values()])
    rows = _rows("all", None, pairs, values, draws, sizes)
    for place, name in enumerate(names):
        own = _means(parts[place], 0)[:, :, None]  # the seeds that the table of ratios draws
        mine = pairs["workload"] == name
        rows += _rows("alone", name, pairs[mine], values[:, :, [place]], own, sizes[:, [place]])
        if len(names) > 1:
            rest = np.delete(np.arange(len(names)), place)
            left = draws[:, :LEFT_OUT_RESAMPLES, rest]
            rows += _rows("without", name, pairs[~mine], values[:, :, rest], left, sizes[:, rest])
    return rows


def _columns(part: pd.DataFrame) -> pd.DataFrame:
    """The pairs of one workload with every column that WAYS name."""
    both = part[["device_hours", "baseline_device_hours"]].notna().all(axis=1)
    sides = {f"{side}hours": part[f"{side}device_hours"].where(both) for side in ("", "baseline_")}
    solved = 1.0 if (part["bound"] != BOTH_MISSED).any() else np.nan
    return part.assign(
        log_ratio=np.log(part["ratio"]),
        exact_ratio=part["ratio"].where(part["bound"] == EXACT),
        log_hours_ratio=np.log(part["hours_ratio"]),
        **sides,
        solved_hours=solved * sides["hours"],
        baseline_solved_hours=solved * sides["baseline_hours"],
    )


def _means(part: pd.DataFrame, stream: int | None) -> Floats:
    """The means of the resamples of this stream, or of the pairs themselves. Returns: shape (len(_MEANS), resamples).

    A pair without a value takes no part in that column, as in `analysis.resampling.bootstrap`.
    """
    found = []
    for name, of in _MEANS:
        known = part[name].dropna().to_numpy(dtype=np.float64)
        if len(known) == 0:
            found.append(np.full(1 if stream is None else RESAMPLES, np.nan))
        else:
            found.append(of(known, keepdims=True) if stream is None else draws_of(known, stream, of))
    return np.stack(found)


def _statistics(means: Floats) -> Floats:
    """Shape (len(_MEANS), …, workloads) -> (len(WAYS), …)."""
    with np.errstate(divide="ignore", invalid="ignore"):
        of = {key: means[place] for place, key in enumerate(_MEANS)}
        return np.stack([way.over(*(of[column, way.within] for column in way.columns)) for way in WAYS.values()])


def _rows(
    scope: str, workload: str | None, pairs: pd.DataFrame, values: Floats, draws: Floats, sizes: NDArray[np.int64]
) -> list[dict[str, Any]]:
    """One row a statistic. Args: values, draws: shape (len(_MEANS), 1 or resamples, workloads). sizes: (len(WAYS),
    workloads), how many pairs each statistic rests on in each workload.
    """
    found = _statistics(values)[:, 0]
    rests_on = [of[of > 0].tolist() for of in sizes]
    logs = np.array([way.logs for way in WAYS.values()])
    wide = narrow = np.full((3, len(WAYS)), np.nan)
    if max(len(mine) for mine in rests_on) >= FEWEST:
        factors = np.array([widening(len(mine)) if len(mine) >= FEWEST else np.nan for mine in rests_on])
        wide = interval(found, _statistics(resample_workloads(draws)).T, factors, logs=logs)
    if scope != "without":
        narrow = interval(found, _statistics(draws).T, np.array([widening(*mine) for mine in rests_on]), logs=logs)
    done = pairs[pairs["bound"] != PENDING]
    numbers = {
        "num_pairs": len(pairs),
        "num_missed": int(pairs["bound"].isin([AT_LEAST, AT_MOST, BOTH_MISSED]).sum()),
        "num_pending": len(pairs) - len(done),
    }
    ends = zip(found, *wide[1:], *narrow[1:], strict=True)
    return [
        {"scope": scope, "workload": workload, "statistic": statistic}
        | dict(zip(("value", "low", "high", "seeds_low", "seeds_high"), map(float, of), strict=True))
        | {"bound": "none" if np.isnan(of[0]) else _bound(statistic, done), "num_workloads": len(mine), **numbers}
        for statistic, of, mine in zip(WAYS, ends, rests_on, strict=True)
    ]


def _bound(statistic: str, done: pd.DataFrame) -> str:
    """What the number is, given that some runs miss the target."""
    if statistic in ("restricted mean", "survivors only"):
        return EXACT  # by their definition
    if statistic == "suite, solved only":
        done = done[done["workload"].isin(done.loc[done["bound"] != BOTH_MISSED, "workload"])]
    counted = statistic in ("median ratio", *SUMS)  # both sides at a step budget they would have exceeded
    return "mixed" if counted and (done["bound"] == BOTH_MISSED).any() else overall_bound(done["bound"])


def chart(
    pooled: pd.DataFrame, pooled_by_workload: pd.DataFrame, leave_one_out: pd.DataFrame, look: Look
) -> alt.ConcatChart | None:
    """A row a workload, a row a pooled number, a colour a scheme; a tick is the number without one workload."""
    parts: list[Any] = []
    for horizon in (FIXED, BEST):
        whole, single, left = (_drawn(one, horizon) for one in (pooled, pooled_by_workload, leave_one_out))
        if len(whole) and whole["num_workloads"].max() >= FEWEST:
            parts.append(_panel(whole, single[single["statistic"] == FRONT[0]], left, look, horizon))
    return charts.grid(parts)


def _drawn(table: pd.DataFrame, horizon: str) -> pd.DataFrame:
    table = table[(table["versus"] == "same schedule") & (table["horizon"] == horizon) & table["value"].notna()]
    table = table[table["statistic"].isin(FRONT)]
    names = table["scheme"].map(SCHEME_NAMES).fillna(table["scheme"])
    return table.assign(row="all: " + table["statistic"], scheme_name=names)


def _panel(whole: pd.DataFrame, single: pd.DataFrame, left: pd.DataFrame, look: Look, horizon: str) -> Any:
    of = whole.assign(num_workloads=whole["num_workloads"].map("{} workloads".format))
    single = single.assign(row=single["workload"], num_workloads="this workload")
    rows = pd.concat([single, of], ignore_index=True)
    order = single.groupby("workload")["value"].min().sort_values(kind="stable")
    schemes = [name for name in look.averages if name in set(rows["scheme_name"])]
    sort = [*order.index, *(f"all: {name}" for name in FRONT)]
    y = alt.Y("row:N", title=None, sort=sort, axis=alt.Axis(ticks=False, domain=False))
    offset = alt.YOffset("scheme_name:N", sort=schemes)
    x = alt.X(
        "value:Q",
        title="ratio to the baseline (left of 1: averaging saves)",
        axis=alt.Axis(grid=True, tickCount=6, format=".2f"),
        scale=alt.Scale(domain=_axis(rows), nice=False, zero=False),
    )
    colour = charts.scheme_colour(look.averages)
    base = alt.Chart(rows).encode(y=y, yOffset=offset, color=colour)
    shade = alt.Chart(of[["row"]].drop_duplicates()).mark_rect(color=REFERENCE_LINE, opacity=0.09)
    seen = charts.tooltips(
        *("row:N:row", "scheme_name:N:scheme", "value:Q:ratio:.3f", "low:Q:from:.3f", "high:Q:to:.3f"),
        *("bound:N:it is", "num_workloads:N:over", "num_pairs:Q:pairs:d", "num_missed:Q:a side misses:d"),
    )
    without = charts.tooltips(
        *("without:N:without", "row:N:row", "scheme_name:N:scheme", "value:Q:ratio:.3f", "change:Q:change:+.3f")
    )
    ticks = alt.Chart(left).mark_tick(thickness=1.5, size=8, clip=True)
    filled = alt.when(alt.datum.bound == "exact").then(alt.value(1)).otherwise(alt.value(0))
    dots = base.mark_point(size=62, strokeWidth=2, opacity=1, clip=True)
    dots = dots.encode(x=x, tooltip=seen, shape=charts.scheme_shape(look.averages), fillOpacity=filled)
    drawn = alt.layer(
        shade.encode(y=y),
        charts.vertical_rule(1.0, title=""),
        ticks.encode(x=x, y=y, yOffset=offset, color=colour, opacity=alt.value(0.6), tooltip=without),
        base.mark_rule(strokeWidth=2, clip=True).encode(x=alt.X("low:Q", title=""), x2="high:Q"),
        dots.encode(fill=alt.Color("scheme_name:N", legend=None, scale=charts.scale(look.averages))),
    )
    height = (10 + 11 * len(schemes)) * len(set(rows["row"]))
    width = max(220, 500 - 6 * int(rows["row"].str.len().max()))
    return charts.titled(drawn, f"horizon {horizon}", "against the same schedule", height=height, width=width)


def _axis(rows: pd.DataFrame) -> list[float]:
    """Holds every dot and 1; whiskers that are much wider run off it."""
    low, high = charts.span(rows, ["value"], include=1.0)
    room = SPREAD * (high - low)
    ends = rows[["low", "high", "value"]].to_numpy(dtype=float)
    ends = ends[np.isfinite(ends)]
    return [max(low - room, min(low, float(ends.min()))), min(high + room, max(high, float(ends.max())))]


def sentences(pooled: pd.DataFrame, leave_one_out: pd.DataFrame) -> list[str]:
    """The pre-specified average over all workloads, how far the ways to count differ, and what one workload does."""
    mine = pooled[(pooled["horizon"] == FIXED) & pooled["value"].notna() & (pooled["num_workloads"] > 1)]
    same = mine[(mine["versus"] == "same schedule") & mine["statistic"].isin(FRONT)]
    if same.empty:
        return []
    scheme = "ema" if (same["scheme"] == "ema").any() else str(same["scheme"].iloc[0])
    name, same = SCHEME_NAMES.get(scheme, scheme), same[same["scheme"] == scheme]
    first = same[same["statistic"] == FRONT[0]].to_dict("records")
    found = [f"{name}, pre-specified, over {row['num_workloads']} workloads: {_said(row)}." for row in first]
    return [*found, f"{_ways(same)}."]


def _said(row: Any) -> str:
    return f"geometric mean {_number(row)}"


def _ways(same: pd.DataFrame) -> str:
    low, high = (same.loc[same["value"] == end].iloc[0] for end in (same["value"].min(), same["value"].max()))
    return (
        f"The same runs, counted in {len(same)} ways: from {low['value']:.2f} ({low['statistic']}) to "
        f"{high['value']:.2f} ({high['statistic']})"
    )


def _number(row: Any, form: str = ".2f") -> str:
    """With its interval: over workloads and seeds, or, of two workloads, over their seeds."""
    ends = ("low", "high") if row["low"] == row["low"] else ("seeds_low", "seeds_high")
    return sign(row["bound"]) + told(Interval(row["value"], *(row[end] for end in ends)), form)
