"""At one averaging horizon, does it matter how often an average looks at the weights?"""

from __future__ import annotations

from typing import Any

import altair as alt
import numpy as np
import pandas as pd

from analysis.core import Core
from analysis.presentation import chart as charts
from analysis.presentation.chart import Look
from analysis.run_folder.study import SCHEME_NAMES, counted, percent
from analysis.statistics import verdicts
from analysis.statistics.pairs import sign, with_bound
from analysis.statistics.resampling import bootstrap, of_row

EQUAL = 1.3  # horizons within this factor of one another count as equal
MEMORY = {"lawa": "k", "ema": "ema_decay"}
SYMBOL = {"lawa": "k, snapshots averaged", "ema": "γ"}
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
    missed = steps.merge(cells[["cell_id", "setting"]], on="cell_id")
    missed = missed.assign(missed=missed["status"].isin(["missed", "diverged"]))
    counts = missed.groupby("setting")["missed"].agg(num_missed="sum", num_seeds="size")
    axes = cells.drop_duplicates("setting")[["setting", *MEMORY.values()]]
    table = horizons.merge(axes, on="setting", how="left").join(counts, on="setting")
    chosen = [table[MEMORY[s]].iloc[i] if s in MEMORY else None for i, s in enumerate(table["scheme"])]
    table["memory"] = pd.to_numeric(pd.Series(chosen, index=table.index), errors="coerce").astype(float).round(6)
    table = table[table["memory"].notna()].drop(columns=list(MEMORY.values()))
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
    counted = steps[["cell_id", "counted_steps", "censored"]].merge(cells[["cell_id", "setting", "seed"]], on="cell_id")
    by_seed = {setting: part.set_index("seed") for setting, part in counted.groupby("setting")}
    rows: list[tuple[Any, ...]] = []
    for key, part in horizons.groupby(["workload", "training", "scheme"], sort=True):
        for group in _groups(part.sort_values(["horizon_fraction", "setting"], kind="stable")):
            order = group.sort_values(["every_steps", "setting"], kind="stable")
            fine, coarse = order.iloc[0], order.iloc[-1]
            if fine["every_steps"] < coarse["every_steps"] and {fine["setting"], coarse["setting"]} <= set(by_seed):
                pairs = by_seed[fine["setting"]].merge(
                    by_seed[coarse["setting"]], on="seed", suffixes=("_fine", "_coarse")
                )
                rows.append((*key, *_compared(group, fine, coarse, pairs)))
    return pd.DataFrame(rows, columns=_COLUMNS)


_COLUMNS = ["workload", "training", "scheme", "horizon_from", "horizon_to", "num_settings", "finest", "coarsest"]
_COLUMNS += ["finest_setting", "coarsest_setting", "num_pairs", "num_missed", "ratio", "ratio_low", "ratio_high"]
_COLUMNS += ["spread", "width", "effect"]


def _compared(group: pd.DataFrame, fine: Any, coarse: Any, pairs: pd.DataFrame) -> tuple[Any, ...]:
    missed = pairs[["censored_fine", "censored_coarse"]].astype(bool)
    ratio = (pairs["counted_steps_coarse"] / pairs["counted_steps_fine"]).where(~missed.all(axis=1)).to_numpy(float)
    num_pairs, found = int(np.isfinite(ratio).sum()), bootstrap(ratio, "geometric_mean")
    effect = None
    if (num_pairs > 1 and found.value == 1) or found.low <= 1 <= found.high:
        effect = "none"  # equal in all seeds: no interval, and no effect is shown
    elif not np.isnan(found.low):
        effect = "rarer is slower" if found.value > 1 else "rarer is faster"
    spread, width = group["ratio"].max() / group["ratio"].min(), (group["high"] / group["low"]).median()
    return (
        *(group["horizon_fraction"].min(), group["horizon_fraction"].max(), len(group)),
        *(int(one[name]) for name in ("every_steps", "setting") for one in (fine, coarse)),
        *(num_pairs, int(missed.any(axis=1).sum()), *found, float(spread), float(width), effect),
    )


def _groups(part: pd.DataFrame) -> list[pd.DataFrame]:
    """Runs of rows, sorted by horizon, that lie within EQUAL of the first of their run."""
    number, start, labels = -1, 0.0, []
    for horizon in part["horizon_fraction"].to_numpy(dtype=float):
        if horizon > start * EQUAL * (1 + 1e-9):
            number, start = number + 1, horizon
        labels.append(number)
    return [group for _, group in part.groupby(np.array(labels, dtype=int), sort=True)]


def sentences(snapshot_interval: pd.DataFrame, look: Look) -> list[str]:
    """At equal horizon: the rarest snapshots against the most frequent ones, how far apart, and how often by luck."""
    table = snapshot_interval[snapshot_interval["training"].isin(look.shown["training"])]
    table = table[table["ratio"].notna()]
    if table.empty:
        return []
    found = [
        (_group(row), row["ratio"] - 1, verdicts.verdict(of_row(row, "ratio"), row["num_pairs"]))
        for row in table.to_dict("records")
    ]
    shown = [one for one in found if one[2].word == verdicts.SHOWN]
    excluded = sum(one.word == verdicts.EXCLUDED for *_, one in found)
    slower = sum(side > 0 for _, side, _ in shown)
    said = [
        f"Rarer snapshots at the same horizon: of {counted(len(found), 'group')}, slower is shown in {slower}, faster "
        f"in {len(shown) - slower}, a change of over {percent(verdicts.MARGIN)} is excluded in {excluded}, "
        f"{len(found) - len(shown) - excluded} undecided."
    ]
    if shown:
        luck = 100 * verdicts.by_luck(len(shown), len(found), 0.05)
        row = table.iloc[int(np.abs(np.log(table["ratio"])).argmax())].to_dict()
        said.append(
            f"Furthest apart: {_group(row)}, every {row['coarsest']} against {row['finest']} steps, "
            f"{with_bound(row, form='.3f')} of the steps. Where nothing differs, {len(shown)} or more come by luck "
            f"{luck:.2g} times in 100."
        )
    return said


def _group(row: Any) -> str:
    name = SCHEME_NAMES.get(row["scheme"], row["scheme"])
    return f"{row['workload']} {name} {percent(row['horizon_from'])}"


def chart(snapshot_grid: pd.DataFrame, ratios_by_seed: pd.DataFrame, look: Look) -> alt.ConcatChart | None:
    """A panel a (workload, scheme): snapshot interval against memory, colour the ratio of steps, a mark a seed."""
    table = snapshot_grid[snapshot_grid["training"].isin(look.shown["training"])]
    if table.empty:
        return None
    seeds = ratios_by_seed[ratios_by_seed["versus"] == "same schedule"]
    seeds = seeds[["setting", "seed", "ratio", "bound", "steps"]]
    most = max([1.05, *(max(value, 1 / value) for value in table["ratio"].dropna())])
    scale = alt.Scale(type="log", domain=[1 / most, 1.0, most], range=RANGE, clamp=True, interpolate="rgb")
    legend = alt.Legend(title="steps ÷ baseline's", format=".2f", gradientLength=220, direction="horizontal")
    colour = alt.Color("ratio:Q", scale=scale, legend=legend)
    parts = []
    for (workload, scheme), part in table.groupby(["workload", "scheme"], sort=True):
        title = f"{workload}, {SCHEME_NAMES.get(str(scheme), str(scheme))}"
        mine = seeds.merge(part[["setting", "every_steps", "memory"]], on="setting")
        height = 44 + 62 * part["every_steps"].nunique()
        parts.append(charts.titled(_map(part, mine, str(scheme), colour), title, height=height))
    return charts.grid(parts)


def _map(part: pd.DataFrame, seeds: pd.DataFrame, scheme: str, colour: alt.Color) -> Any:
    rows = part.to_dict("records")
    part = part.assign(
        text=[_text(row["ratio"], row["bound"]) for row in rows],
        horizon=[f"horizon {percent(float(row['horizon_fraction']))}" for row in rows],
        missed=[f"✕ {row['num_missed']}/{row['num_seeds']}" for row in rows],
    )
    x = alt.X("memory:O", title=SYMBOL[scheme], axis=alt.Axis(labelAngle=0, format="~g", ticks=False, domain=False))
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


def _text(ratio: float, bound: str) -> str:
    return f"{sign(bound, mixed='~ ')}{ratio:.2f}" if ratio == ratio else "no ratio"
