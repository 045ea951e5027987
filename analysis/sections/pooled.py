"""Does averaging save over many workloads together?"""

from __future__ import annotations

from typing import Any

import altair as alt
import numpy as np
import pandas as pd

from analysis import words
from analysis.core import Core
from analysis.presentation import chart as charts
from analysis.presentation.chart import REFERENCE_LINE, Look
from analysis.run_folder.study import SCHEME_NAMES
from analysis.statistics import verdicts
from analysis.statistics.pairs import EXACT, sign
from analysis.statistics.pooled import AGAINST_BEST, BEST, FIXED, FRONT, RULES, SAME, SUITE, families, picks, pool
from analysis.statistics.resampling import FEWEST, Interval, with_interval

SPREAD = 1.0  # how far whiskers may reach beyond the dots, in widths of the dots' range
TITLE = "Over all workloads"
CAPTION = (
    "A row a workload, below them the ways to pool; a dot is the ratio, its bar the 95 % interval; left of 1 averaging "
    "saves. A small tick is the number without one workload, a hollow dot a bound."
)
RULE = (
    f"{len(RULES)} ways to pool, each with its rule in pooled.csv, answer different questions. Intervals that resample "
    "workloads, and seeds within each, speak of workloads like these; of fewer than three only seeds are resampled."
)


def tables(core: Core) -> dict[str, pd.DataFrame]:
    """pooled: every way over all workloads, with its rule · pooled_by_workload: on each alone, low and high over its
    seeds · leave_one_out: without each, `change` from the number over all · families: see there.
    """
    table = pool(core.by_seed, core.steps, picks(core.chosen, core.horizons))
    whole, alone, without = (table[table["scope"] == scope] for scope in ("all", "alone", "without"))
    whole = whole.drop(columns=["scope", "workload"])
    alone = alone[alone["statistic"] != SUITE].drop(columns=["scope", "low", "high", "num_workloads"])
    keys = ["versus", "horizon", "scheme", "statistic"]
    left = without.merge(whole[[*keys, "value"]].rename(columns={"value": "over_all"}), on=keys, how="left")
    left = left.assign(change=left["value"] - left["over_all"]).rename(columns={"workload": "without"})
    return {
        "pooled": whole.assign(rule=whole["statistic"].map(RULES)),
        "pooled_by_workload": alone.rename(columns={"seeds_low": "low", "seeds_high": "high"}),
        "leave_one_out": left[[*keys, "without", "value", "low", "high", "change", "num_workloads", "num_pairs"]],
        "families": families(core.ratios, core.chosen),
    }


def chart(
    pooled: pd.DataFrame, pooled_by_workload: pd.DataFrame, leave_one_out: pd.DataFrame, look: Look
) -> alt.ConcatChart | None:
    """A row a workload, a row a pooled number, a colour a scheme; a tick is the number without one workload."""
    parts = []
    for horizon in (FIXED, BEST):
        whole, single, left = (_drawn(one, horizon) for one in (pooled, pooled_by_workload, leave_one_out))
        if len(whole) and whole["num_workloads"].max() >= FEWEST:
            single = single[(single["statistic"] == FRONT[0]) & (single["versus"] == SAME)]
            parts.append(_panel(whole, single, left, look, horizon))
    return charts.grid(parts)


def _drawn(table: pd.DataFrame, horizon: str) -> pd.DataFrame:
    """Rows with a value of every way against the same schedule, and of the first against the best one."""
    table = table[(table["horizon"] == horizon) & table["value"].notna()]
    table = table[(table["versus"] == SAME) | (table["statistic"] == FRONT[0])]
    label = table["statistic"].where(table["versus"] == SAME, AGAINST_BEST)
    return table.assign(row="all: " + label, scheme_name=table["scheme"].map(SCHEME_NAMES))


def _panel(whole: pd.DataFrame, single: pd.DataFrame, left: pd.DataFrame, look: Look, horizon: str) -> Any:
    of = whole.assign(num_workloads=whole["num_workloads"].map("{} workloads".format))
    single = single.assign(row=single["workload"], num_workloads="this workload")
    rows = pd.concat([single, of], ignore_index=True)
    order = single.groupby("workload")["value"].min().sort_values(kind="stable")
    schemes = [name for name in look.averages if name in set(rows["scheme_name"])]
    sort = [*order.index, *(f"all: {name}" for name in (FRONT[0], AGAINST_BEST, *FRONT[1:]))]
    y = alt.Y("row:N", title=None, sort=sort, axis=alt.Axis(ticks=False, domain=False))
    offset = alt.YOffset("scheme_name:N", sort=schemes)
    x = alt.X("value:Q", title="ratio to the baseline (left of 1: averaging saves)")
    x = x.axis(grid=True, tickCount=6, format=".2f").scale(domain=_axis(rows), nice=False, zero=False)
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
    filled = charts.opaque_where(alt.datum.bound == "exact")
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
    below = "against the same schedule, below also the best"
    return charts.titled(drawn, f"horizon {horizon}", below, height=height, width=width)


def _axis(rows: pd.DataFrame) -> list[float]:
    """Holds every dot and 1; whiskers that are much wider run off it."""
    low, high = charts.span(rows, ["value"], include=1.0)
    room = SPREAD * (high - low)
    ends = rows[["low", "high", "value"]].to_numpy(dtype=float)
    ends = ends[np.isfinite(ends)]
    return [max(low - room, min(low, float(ends.min()))), min(high + room, max(high, float(ends.max())))]


def sentences(pooled: pd.DataFrame, leave_one_out: pd.DataFrame, families: pd.DataFrame) -> list[str]:
    """The pre-specified average over all workloads, on how many of them, and what rests on the way to count."""
    mine = pooled[(pooled["horizon"] == FIXED) & pooled["value"].notna() & (pooled["num_workloads"] > 1)]
    whole = mine[mine["statistic"] == FRONT[0]].set_index(["versus", "scheme"])
    if SAME not in whole.index:
        return []
    scheme, *others = sorted(whole.loc[SAME].index, key=lambda name: (name != "ema", name))
    row, name = whole.loc[(SAME, scheme)], SCHEME_NAMES[scheme]
    same = mine[(mine["versus"] == SAME) & (mine["scheme"] == scheme)].set_index("statistic")
    of = "workloads and seeds" if row["low"] == row["low"] else "the seeds of these workloads"
    said = f"{name}, pre-specified, over {row['num_workloads']} workloads: {_number(row)} of the last iterate's steps"
    said += f", sustained {_number(same.loc[FRONT[1]])}" if FRONT[1] in same.index else ""
    said += f" (95 % over {of}): {_told(row)}"
    if (AGAINST_BEST, scheme) in whole.index:
        best = whole.loc[(AGAINST_BEST, scheme)]
        said += f"; of the best non-averaged schedule's {_number(best)}: {_told(best)}"
    if row["num_workloads"] < FEWEST:
        return [f"{said}."]
    counts = families[families["versus"] == SAME].set_index("scheme")
    mine = counts.loc[scheme]
    alone = [f"{name} {_alone(mine)}" + (f", {words.chance(mine['by_luck'])}" if mine["num_fewer"] else "")]
    alone += [f"{SCHEME_NAMES[o]}, over all {_number(whole.loc[(SAME, o)])}, {_alone(counts.loc[o])}" for o in others]
    left = leave_one_out[(leave_one_out["horizon"] == FIXED) & (leave_one_out["scheme"] == scheme)]
    left = left[(left["versus"] == SAME) & (left["statistic"] == FRONT[0]) & left["low"].notna()]
    return [f"{said}.", f"One by one: {'; '.join(alone)}.", f"{_ways(same)}{_without_one(left, row)}."]


def _alone(count: pd.Series) -> str:
    return f"saves, shown, on {count['num_fewer']} of {count['num_families']}"


def _ways(same: pd.DataFrame) -> str:
    values = same.loc[[one for one in FRONT if one in same.index], "value"]
    low, high = str(values.idxmin()), str(values.idxmax())
    return f"Counted in {len(values)} ways these runs give {values[low]:.2f} ({low}) to {values[high]:.2f} ({high})"


def _without_one(left: pd.DataFrame, whole: pd.Series) -> str:
    """Whether the verdict rests on one workload. Args: left: of the same number without each."""
    if len(left) < FEWEST or np.isnan(whole["low"]):
        return ""
    word = _verdict(whole).word
    other = sorted(row["without"] for row in left.to_dict("records") if _verdict(row).word != word)
    return f"; without {' or '.join(other)} the verdict is another" if other else "; no single workload decides it"


def _told(row: pd.Series) -> str:
    return words.told(_verdict(row), row["value"] - 1, "workloads" if row["low"] == row["low"] else "seeds")


def _verdict(row: Any) -> verdicts.Verdict:
    n = row["num_workloads"] if row["low"] == row["low"] else row["num_pairs"] // row["num_workloads"]
    return verdicts.verdict(_interval(row), int(n), bound=row.get("bound", EXACT))


def _interval(row: Any) -> Interval:
    """Over workloads and seeds, or, of two workloads, over their seeds."""
    ends = ("low", "high") if row["low"] == row["low"] or "seeds_low" not in row else ("seeds_low", "seeds_high")
    return Interval(*(float(row[end]) for end in ("value", *ends)))


def _number(row: Any) -> str:
    return sign(row["bound"]) + with_interval(_interval(row))
