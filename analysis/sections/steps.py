"""Does an average reach the target in fewer steps?"""

from __future__ import annotations

from typing import Any

import altair as alt
import pandas as pd

from analysis import words
from analysis.core import Core
from analysis.presentation import chart as charts
from analysis.presentation.chart import Look
from analysis.presentation.table_format import Shown
from analysis.run_folder.study import SCHEME_NAMES
from analysis.statistics import verdicts
from analysis.statistics.pairs import RULE as PAIRED
from analysis.statistics.pairs import leading, mean_ratio, same_schedule
from analysis.statistics.resampling import of_row
from analysis.statistics.steps_to_target import HELD

TITLE = "Steps to target"
CAPTION = (
    "A dot is the geometric mean over seeds, its bar the 95 % interval, a tick one seed; left of 1 the average needs "
    "fewer steps. Hollow: a bound, as some run missed the target."
)
RULE = PAIRED
SHOWN = (
    Shown(
        "settings",
        "Results on the reference schedule",
        ("workload", "scheme_label", "steps_to_target", "ratio", "num_censored"),
        lambda frame: in_order(frame[frame["reference"]]),
    ),
)
SUMMARY = (  # on a terminal
    *("workload", "training_label", "scheme_label", "horizon_fraction", "steps_to_target", "ratio"),
    *("best_metric", "num_censored"),
)


def tables(core: Core) -> dict[str, pd.DataFrame]:
    """restricted_means: RMST, one row a setting."""
    return {"restricted_means": core.labelled(core.restricted_means)}


def chart(
    ratios: pd.DataFrame, ratios_by_seed: pd.DataFrame, baselines: pd.DataFrame, look: Look
) -> alt.ConcatChart | None:
    """Ratio of every setting of the reference schedule: dot, whisker, seeds as ticks, line at 1."""
    table = ratios[ratios["setting"].isin(look.shown["setting"]) & (ratios["scheme"] != "none")]
    table = table[table["geometric_mean"].notna()]
    best = baselines[(baselines["rank"] == 1) & baselines["training"].isin(look.shown["training"])]
    parts = []
    for versus in ("same schedule", "best baseline"):
        seeds = ratios_by_seed[ratios_by_seed["versus"] == versus]
        for workload, mine in table[table["versus"] == versus].groupby("workload", sort=True):
            if versus == "same schedule" or workload not in set(best["workload"]):  # else the same numbers again
                parts.append(_dots(mine, seeds, str(workload), versus, look))
    return charts.grid(parts)


def _dots(table: pd.DataFrame, seeds: pd.DataFrame, workload: str, versus: str, look: Look) -> Any:
    table = table.assign(scheme_name=table["scheme"].map(SCHEME_NAMES))
    seeds = seeds[seeds["setting"].isin(table["setting"]) & seeds["ratio"].notna()]
    seeds = seeds[["setting", "scheme_label", "seed", "ratio", "bound"]].rename(columns={"ratio": "value"})
    seeds = seeds.merge(table[["setting", "scheme_name"]], on="setting")
    x = "steps-to-target ÷ baseline's (left of 1: fewer steps)"
    rows, colour = look.rows(table, workload), charts.scheme_colour(look.averages)
    dots = charts.dots_and_whiskers(table, "geometric_mean", rows, x, colour, 1.0, seeds)
    return charts.titled(dots, workload, f"against the {versus}", **charts.row_size(table))


def in_order(settings: pd.DataFrame) -> pd.DataFrame:
    """Workload by workload, training by training, the baseline before its averages."""
    order = settings.assign(averaged=settings["scheme"] != "none")
    axes = ["workload", "training", "averaged", "scheme", "horizon_fraction"]
    return settings.loc[order.sort_values(axes, kind="stable").index]


def sentences(
    ratios: pd.DataFrame, ratios_by_seed: pd.DataFrame, chosen: pd.DataFrame, primary: tuple[str, float]
) -> list[str]:
    """On how many workloads the pre-specified average saves, how often that comes by luck, and sustained crossings."""
    mine = same_schedule(ratios[ratios["geometric_mean"].notna()], leading(chosen, primary[0])["setting"])
    if mine.empty:
        return []
    rows = mine.to_dict("records")
    each = [verdicts.verdict(of_row(row, "geometric_mean"), row["num_pairs"], bound=row["bound"]) for row in rows]
    found = list(zip(mine["workload"], mine["geometric_mean"] - 1, each, strict=True))
    fewer = [name for name, side, one in found if one.word == verdicts.SHOWN and side < 0]
    told = words.tally(found, "a saving", "a loss")
    several = len(rows) > 1
    luck = words.chance(verdicts.by_luck(len(fewer), len(rows)))
    tail = f" Where nothing is saved, {len(fewer)} or more come {luck}." if fewer and several else ""
    of = f"of {len(rows)} workloads, " if several else ""
    said = [f"{rows[0]['scheme_label']}, pre-specified: {of}{told}.{tail}"]
    seeds = same_schedule(ratios_by_seed[ratios_by_seed["held_ratio"].notna()], mine["setting"])
    if len(seeds):
        over = ", over workloads" if several else ""
        held = mean_ratio(seeds, "held_ratio", "held_")
        said.append(f"Sustained for {HELD} evaluations{over}: {held} of the baseline's steps.")
    return said
