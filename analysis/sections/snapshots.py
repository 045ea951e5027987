"""At one averaging horizon, does it matter how often an average looks at the weights?"""

from __future__ import annotations

from typing import Any

import altair as alt
import numpy as np
import pandas as pd

from analysis import words
from analysis.core import Core
from analysis.presentation import chart as charts
from analysis.presentation.chart import Look
from analysis.run_folder.study import SCHEME_NAMES, counted, percent
from analysis.statistics import verdicts
from analysis.statistics.generalization import effect, ends_of, over_seeds
from analysis.statistics.pairs import EXACT, bar, same_schedule, with_bound

EQUAL = 1.3  # horizons within this factor of one another count as equal
MEMORY = {"lawa": "k, snapshots averaged", "ema": "γ"}  # what an average looks back on, as an axis calls it
INK = "#1f2328"  # on the light colours of a cell, in both themes
RANGE = ["#4f9be0", "#eceff2", "#e8854a"]  # fewer steps than the baseline, as many, more

TITLE = "Snapshot interval"
CAPTION = (
    "A cell is one setting: its ratio of steps to the baseline's (blue: fewer) and its horizon; diagonals have equal "
    "horizons. Marks along its bottom are seeds, a cross one that missed the target."
)
RULE = (
    "Equal horizon: the settings of a scheme whose horizons lie within a factor 1.3 of the shortest of their group. In "
    "each group the rarest snapshots are set against the most frequent ones, steps-to-target paired by seed; a pair "
    "that both miss is left out."
)


def tables(core: Core) -> dict[str, pd.DataFrame]:
    return {
        "snapshot_grid": snapshot_grid(core.horizons, core.cells, core.steps),
        "snapshot_interval": snapshot_interval(core.horizons, core.cells, core.steps),
    }


def snapshot_grid(horizons: pd.DataFrame, cells: pd.DataFrame, steps: pd.DataFrame) -> pd.DataFrame:
    """The settings that form a grid of snapshot interval × memory, of `core.horizon_map`.

    A value of either axis that has but one of the other is no part of it. Returns the map's columns (ratio, low, high,
    bound, horizon_fraction, every_steps, …) and memory (k, or γ to 6 digits) · num_missed of num_seeds.
    """
    missed = cells[["cell_id", "setting"]].merge(steps.assign(missed=steps["status"].isin(["missed", "diverged"])))
    counts = missed.groupby("setting")["missed"].agg(num_missed="sum", num_seeds="size")
    own = cells[cells["scheme"].isin(list(MEMORY))].drop_duplicates("setting").set_index("setting")
    memory = own["k"].astype(float).where(own["scheme"] == "lawa", own["ema_decay"].astype(float)).round(6)
    table = horizons.join(counts, on="setting").join(memory.rename("memory"), on="setting")
    table = table[table["memory"].notna()]
    groups = ["workload", "training", "scheme"]
    table = table.sort_values([*groups, "every_steps", "memory", "setting"], kind="stable")
    table = table.drop_duplicates([*groups, "every_steps", "memory"])
    while len(table):
        alone = pd.Series(False, index=table.index)
        for one, other in (("memory", "every_steps"), ("every_steps", "memory")):
            alone |= table.groupby([*groups, one])[other].transform("nunique") < 2
        if not alone.any():
            break
        table = table[~alone]
    return table.reset_index(drop=True)


def snapshot_interval(horizons: pd.DataFrame, cells: pd.DataFrame, steps: pd.DataFrame) -> pd.DataFrame:
    """One row a group of equal horizon with several snapshot intervals: the rarest against the most frequent.

    Returns: workload, training, scheme · horizon_from, horizon_to (shares of the step budget), num_settings · finest,
    coarsest (steps between snapshots) and their settings · num_pairs, num_missed (pairs in which one misses) · ratio:
    steps-to-target of the coarsest ÷ the finest, geometric mean, _low, _high · spread, width: the largest ratio of
    the group ÷ its smallest, and the middle of high ÷ low of one setting · effect: ``rarer is slower``,
    ``rarer is faster``, ``none``, NaN without an interval.
    """
    keys = ["workload", "training", "scheme"]
    by_seed = steps[["cell_id", "counted_steps", "censored"]].merge(cells[["cell_id", "setting", "seed"]], on="cell_id")
    rows = horizons[horizons["setting"].isin(by_seed["setting"])].sort_values([*keys, "horizon_fraction", "setting"])
    rows["group"] = rows.groupby(keys)["horizon_fraction"].transform(equal_horizons)
    groups = rows.sort_values([*keys, "group", "every_steps", "setting"]).groupby([*keys, "group"], as_index=False)
    found = groups.agg(
        horizon_from=("horizon_fraction", "min"), horizon_to=("horizon_fraction", "max"),
        num_settings=("setting", "size"), finest=("every_steps", "first"), coarsest=("every_steps", "last"),
        finest_setting=("setting", "first"), coarsest_setting=("setting", "last"),
        most=("ratio", "max"), least=("ratio", "min"),
    )  # fmt: skip
    width = rows.assign(width=rows["high"] / rows["low"]).groupby([*keys, "group"])["width"].median()
    found = found.merge(width.reset_index(), on=[*keys, "group"]).assign(spread=found["most"] / found["least"])
    found = found[found["finest"] < found["coarsest"]].reset_index(drop=True)
    fine, coarse = (by_seed.rename(columns={"setting": f"{one}_setting"}) for one in ("finest", "coarsest"))
    pairs = found[["finest_setting", "coarsest_setting"]].reset_index().merge(fine, on="finest_setting")
    pairs = pairs.merge(coarse, on=["coarsest_setting", "seed"], suffixes=("_fine", "_coarse"))
    missed = pairs[["censored_fine", "censored_coarse"]].astype(bool)
    ratio = (pairs["counted_steps_coarse"] / pairs["counted_steps_fine"]).where(~missed.all(axis=1))
    pairs = pairs.assign(ratio=ratio, missed=missed.any(axis=1))
    counts = {"num_pairs": ("ratio", "count"), "num_missed": ("missed", "sum")}
    over = over_seeds(pairs, ["ratio"], ["index"], "geometric_mean", **counts)
    found = found.reset_index().merge(over, on="index")
    equal = (found["num_pairs"] > 1).to_numpy()  # no effect is shown where all seeds are equal
    told = ("rarer is faster", "none", "rarer is slower")
    found["effect"] = effect(ends_of(found, "ratio"), words=told, at=1.0, equal=equal)
    columns = [*keys, "horizon_from", "horizon_to", "num_settings", "finest", "coarsest", "finest_setting"]
    columns += ["coarsest_setting", "num_pairs", "num_missed", "ratio", "ratio_low", "ratio_high", "spread", "width"]
    return found[[*columns, "effect"]]


def equal_horizons(horizons: pd.Series) -> list[int]:
    """The number of each horizon's group: runs of sorted horizons within EQUAL of the first of their run."""
    number, start, labels = -1, 0.0, []
    for horizon in horizons.astype(float):
        if horizon > start * EQUAL * (1 + 1e-9):
            number, start = number + 1, horizon
        labels.append(number)
    return labels


def sentences(snapshot_interval: pd.DataFrame, look: Look) -> list[str]:
    """At equal horizon: the rarest snapshots against the most frequent ones, how far apart, and how often by luck."""
    table = snapshot_interval[snapshot_interval["training"].isin(look.shown["training"])]
    rows = table[table["ratio"].notna()].to_dict("records")
    if not rows:
        return []
    told = [verdicts.side(row | {"bound": EXACT}, "ratio", row["num_pairs"]) for row in rows]
    slower, faster, excluded = (told.count(word) for word in ("more", "fewer", verdicts.EXCLUDED))
    shown = slower + faster
    said = [
        f"Rarer snapshots at the same horizon: of {counted(len(rows), 'group')}, slower is shown in {slower}, faster "
        f"in {faster}, a change of over {percent(verdicts.MARGIN)} is excluded in {excluded}, "
        f"{len(rows) - shown - excluded} undecided."
    ]
    if shown:
        row = max(rows, key=lambda row: abs(np.log(row["ratio"])))
        name = f"{row['workload']} {SCHEME_NAMES[row['scheme']]} {percent(row['horizon_from'])}"
        said.append(
            f"Furthest apart: {name}, every {row['coarsest']} against {row['finest']} steps, "
            f"{with_bound(row, form='.3f')} of the steps. Where nothing differs, {shown} or more come "
            f"{words.chance(verdicts.by_luck(shown, len(rows), 0.05))}."
        )
    return said


def chart(snapshot_grid: pd.DataFrame, ratios_by_seed: pd.DataFrame, look: Look) -> alt.ConcatChart | None:
    """A panel a (workload, scheme): snapshot interval against memory, colour the ratio of steps, a mark a seed."""
    table = snapshot_grid[snapshot_grid["training"].isin(look.shown["training"])]
    if table.empty:
        return None
    seeds = same_schedule(ratios_by_seed)[["setting", "seed", "ratio", "bound", "steps"]]
    most = max([1.05, *(max(value, 1 / value) for value in table["ratio"].dropna())])
    scale = alt.Scale(type="log", domain=[1 / most, 1.0, most], range=RANGE, clamp=True, interpolate="rgb")
    legend = alt.Legend(title="steps ÷ baseline's", format=".2f", gradientLength=220, direction="horizontal")
    colour = alt.Color("ratio:Q", scale=scale, legend=legend)
    parts = []
    for (workload, scheme), part in table.groupby(["workload", "scheme"], sort=True):
        title = f"{workload}, {SCHEME_NAMES[str(scheme)]}"
        mine = seeds.merge(part[["setting", "every_steps", "memory"]], on="setting")
        height = 44 + 62 * part["every_steps"].nunique()
        parts.append(charts.titled(_map(part, mine, str(scheme), colour), title, height=height))
    return charts.grid(parts)


def _map(part: pd.DataFrame, seeds: pd.DataFrame, scheme: str, colour: alt.Color) -> Any:
    rows = part.to_dict("records")
    part = part.assign(
        text=[bar(row, "ratio", "no ratio") for row in rows],
        horizon=[f"horizon {percent(float(row['horizon_fraction']))}" for row in rows],
        missed=[f"✕ {row['num_missed']}/{row['num_seeds']}" for row in rows],
    )
    x = alt.X("memory:O", title=MEMORY[scheme], axis=alt.Axis(labelAngle=0, format="~g", ticks=False, domain=False))
    y = alt.Y("every_steps:O", title="snapshot every … steps", sort="descending")
    base = alt.Chart(part).encode(x=x, y=y)
    hover = charts.tooltips(
        *("scheme_label:N:setting", "horizon_fraction:Q:horizon, share of the step budget:.2~%"),
        *("ratio:Q:ratio:.3f", "low:Q:from:.3f", "high:Q:to:.3f", "bound:N:the ratio is"),
        *("num_missed:Q:seeds that missed:d", "num_seeds:Q:seeds:d"),
    )
    cells = base.mark_rect(stroke="#ffffff", strokeWidth=2).encode(color=colour, tooltip=hover)
    unknown = alt.Chart(part[part["ratio"].isna()]).mark_rect(stroke="#ffffff", strokeWidth=2, color=RANGE[1])
    text = base.mark_text(color=INK, fontSize=13, fontWeight=600, dy=-14).encode(text="text:N")
    horizon = base.mark_text(color=INK, fontSize=10, dy=0).encode(text="horizon:N")
    crosses = alt.Chart(part[part["num_missed"] > 0]).mark_text(color=INK, fontSize=11, dx=46, dy=-14)
    crosses = crosses.encode(x=x, y=y, text="missed:N")
    return alt.layer(unknown.encode(x=x, y=y), cells, text, horizon, crosses, *_seeds(seeds, x, y, colour))


def _seeds(seeds: pd.DataFrame, x: alt.X, y: alt.Y, colour: alt.Color) -> list[alt.Chart]:
    """A mark a seed along the bottom of each cell: a circle where the average met the target, else a cross."""
    order, layers = sorted(set(seeds["seed"])), []
    hover = charts.tooltips("seed:Q:seed:d", "ratio:Q:ratio:.3f", "bound:N:it is", "steps:Q:steps:,.0f")
    for place, seed in enumerate(order):
        mine = seeds[seeds["seed"] == seed].assign(met=seeds["bound"].isin(["exact", "at most"]))
        across = 0.5 + 0.8 * (place - (len(order) - 1) / 2) / max(8, len(order))
        marks = alt.Chart(mine).mark_point(filled=True, size=46, opacity=1, stroke=INK, strokeWidth=0.8)
        shape = alt.when(alt.datum.met).then(alt.value("circle")).otherwise(alt.value("cross"))
        marks = marks.encode(x=x.bandPosition(across), y=y.bandPosition(0.8), shape=shape, color=colour)
        layers.append(marks.encode(tooltip=hover))
    return layers
