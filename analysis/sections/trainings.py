"""Does an average help at every learning rate, optimizer, schedule, length or batch size?"""

from __future__ import annotations

import json
from typing import Any

import altair as alt
import numpy as np
import pandas as pd
from numpy.typing import NDArray

from analysis import words
from analysis.core import Core
from analysis.presentation import chart as charts
from analysis.presentation.chart import REFERENCE_LINE, Look
from analysis.run_folder.study import TITLES, counted
from analysis.statistics import verdicts
from analysis.statistics.generalization import effect, ends_of, over_seeds
from analysis.statistics.pairs import (
    fixed_settings,
    leading,
    mean_ratio,
    ratios,
    ratios_by_seed,
    same_schedule,
    with_bound,
)

TITLE = "Across trainings"
CAPTION = (
    "Dots: RMST (mean steps up to T) or the final metric at every training, with the 95 % interval; hollow where a "
    "seed missed the target. Ticks: seeds. Far values lie off the axis."
)
RULE = {
    "across_trainings": "RMST: the mean over seeds of the steps up to the target or the budget T.",
    "basin": "Basin: how wide a range of peak LRs, in octaves, meets the target, or needs at most 1.1 times the fewest "
    "steps of any LR; linear in log LR, seed by seed, within the grid run.",
}
NEAR_BEST = 1.1  # times a scheme's own smallest steps-to-target
REACHES, NEAR = "reaches the target", "lies within 10 % of its own best"
FEW = 6  # settings up to which all are shown at first
SIDE = 0.04  # how far apart the settings of one place stand, as a share of the axis
FAR = 3.0  # the final metric's axis ends this many interquartile ranges beyond the middle half of its values
REFERENCE_OPTIMIZER = "nadamw"  # the paper's; a study without it is measured against its first one


def tables(core: Core) -> dict[str, pd.DataFrame]:
    """across_trainings: one row a setting · optimizers: baselines of one against another · basin: of peak LRs."""
    cells, axes = core.cells, core.training_axes
    return {
        "across_trainings": across_trainings(core),
        "optimizers": optimizers_compared(cells, axes, core.steps, core.hours),
        "basin": basins(widths(cells, axes, core.steps, core.by_cell)),
    }


def across_trainings(core: Core) -> pd.DataFrame:
    """One row a setting of a workload that has several trainings, in the order of its axis, baselines first.

    axis, place, name: of `study.training_axes` · fixed: pre-specified, or a baseline · num_seeds, num_missed,
    num_unfinished · median_steps (missed counted at T) · restricted_mean, best_metric, final_metric: means over seeds
    with _low and _high · ratio: of steps to the baseline of the same training, best_ratio: to the best training's of
    the workload, which was selected post hoc; geometric means with _low and _high, bound and best_bound.
    """
    columns = ["setting", "training", "training_label", "scheme", "scheme_label", "horizon_fraction", "step_budget"]
    columns += ["num_seeds", "num_unfinished", "num_censored", "steps_to_target", "metric_name", "higher_is_better"]
    names = {"num_censored": "num_missed", "steps_to_target": "median_steps"}
    settings = core.settings[columns].rename(columns=names)
    table = core.training_axes.assign(order=range(len(core.training_axes))).merge(settings, on="training", how="inner")
    fixed = fixed_settings(core.cells, core.primary[1]).query("near")["setting"]
    table["fixed"] = table["setting"].isin(fixed) | (table["scheme"] == "none")
    metrics = ["best_metric", "final_metric"]
    for source, wanted in ((core.restricted_means, ["restricted_mean"]), (core.general, metrics)):
        keep = [f"{name}{end}" for name in wanted for end in ("", "_low", "_high")]
        table = table.merge(source.reindex(columns=["setting", *keep]), on="setting", how="left")
    for versus, name in (("same schedule", ""), ("best baseline", "best_")):
        mine = core.ratios[core.ratios["versus"] == versus]
        ends = {f"geometric_mean{end}": f"{name}ratio{end}" for end in ("", "_low", "_high")}
        mine = mine.rename(columns=ends | {"bound": f"{name}bound"})
        table = table.merge(mine[["setting", *ends.values(), f"{name}bound"]], on="setting", how="left")
    table = table.assign(averaged=table["scheme"] != "none")
    table = table.sort_values(["workload", "order", "averaged", "scheme", "horizon_fraction", "setting"], kind="stable")
    return table.drop(columns=["order", "averaged"]).reset_index(drop=True)


def optimizers_compared(
    cells: pd.DataFrame, axes: pd.DataFrame, steps: pd.DataFrame, hours: pd.DataFrame
) -> pd.DataFrame:
    """Baselines of each optimizer against those of REFERENCE_OPTIMIZER with the same seed, to the target.

    Returns what `savings.ratios` does (ratios of steps and of device-hours, with intervals), a row a
    (workload, optimizer), and reference: the optimizer it is measured against.
    """
    of = axes.loc[axes["axis"] == "optimizer", "training"]
    own = cells[(cells["scheme"] == "none") & cells["training"].isin(of)]
    known = own.groupby("workload")["optimizer"].agg(set)
    first = known.map(lambda names: REFERENCE_OPTIMIZER if REFERENCE_OPTIMIZER in names else min(names))
    own = own.assign(versus=own["workload"].map(first))
    itself = own["optimizer"] == own["versus"]
    base = own.loc[itself, ["workload", "seed", "cell_id"]].rename(columns={"cell_id": "baseline_cell_id"})
    columns = ["versus", "workload", "training", "setting", "seed", "cell_id"]
    pairs = own.loc[~itself, columns].merge(base, on=["workload", "seed"])
    table = ratios(ratios_by_seed(pairs, steps, hours))
    names = cells.drop_duplicates("training").set_index("training")["optimizer"]
    return table.assign(optimizer=table["training"].map(names)).rename(columns={"versus": "reference"})


def widths(cells: pd.DataFrame, axes: pd.DataFrame, steps: pd.DataFrame, by_cell: pd.DataFrame) -> pd.DataFrame:
    """One row a (workload, rule, averaging, seed) of a workload whose trainings differ in their peak LR alone.

    Args: steps: of `steps_to_target`. by_cell: of `generalization.metrics_by_cell`. Returns: workload, rule,
    averaging, scheme, scheme_label, seed, width (octaves; NaN while an LR is training), grid (octaves), num_lrs,
    num_met, at_edge (the basin touches an end of the grid, so that it may be wider).
    """
    trainings = axes.loc[axes["axis"] == "lr", "training"]
    keys = ["workload", "averaging", "scheme", "scheme_label", "seed"]
    columns = ["cell_id", *keys, "lr", "state", "higher_is_better"]
    table = cells.loc[cells["training"].isin(trainings) & cells["target"].notna(), columns]
    known = ["cell_id", "target", "status", "counted_steps", "step_budget"]
    table = table.merge(steps[known], on="cell_id").merge(by_cell[["cell_id", "best_metric"]], on="cell_id")
    rows: list[dict[str, Any]] = []
    for key, part in table.sort_values("lr").groupby(keys, sort=True):
        x = np.log2(part["lr"].to_numpy(dtype=float))
        sign = 1.0 if part["higher_is_better"].iloc[0] else -1.0
        met = (part["status"] == "met").to_numpy()
        budget = float(part["step_budget"].iloc[0])
        waiting = bool((part["state"] == "unfinished").any())
        # A missed LR lies beyond the budget by no more than rounding: it ends the basin and is not part of it.
        counted = np.where(met, part["counted_steps"].to_numpy(dtype=float), budget * (1 + 1e-9))
        best = (sign * part["best_metric"].to_numpy(dtype=float), sign * float(part["target"].iloc[0]))
        near = (-counted, -min(NEAR_BEST * float(counted.min()), budget))
        for rule, (quality, goal) in {REACHES: best, NEAR: near}.items():
            inside = (quality >= goal) & met.any()
            row = dict(zip(keys, key, strict=True)) | {"rule": rule, "grid": float(x[-1] - x[0])}
            row |= {"num_lrs": len(x), "num_met": int(met.sum()), "at_edge": bool(inside[0] or inside[-1])}
            wide = width_where(x, quality, goal) if met.any() else 0.0
            rows.append(row | {"width": np.nan if waiting else wide})
    columns = ["workload", "rule", *keys[1:], "width", "grid", "num_lrs", "num_met", "at_edge"]
    found = pd.DataFrame(rows, columns=columns)
    return found.sort_values(["workload", "rule", "averaging", "seed"], kind="stable").reset_index(drop=True)


def basins(by_seed: pd.DataFrame) -> pd.DataFrame:
    """Over seeds, of `widths`: one row a (workload, rule, averaging).

    width: mean, with _low and _high · difference: to the baseline with the same seed, likewise · effect: ``wider``,
    ``narrower``, ``none`` (the interval covers 0), None without an interval · num_seeds, num_pending · num_met of
    num_runs (LR, seed) met the target · num_at_edge: seeds whose basin touches an end of the grid.
    """
    pair = ["workload", "rule", "seed"]
    none = by_seed["scheme"] == "none"
    raw = by_seed.loc[none, [*pair, "width"]].rename(columns={"width": "raw"})
    table = by_seed.assign(pending=by_seed["width"].isna()).merge(raw, on=pair, how="left")
    table["difference"] = (table["width"] - table["raw"]).where(table["scheme"] != "none")
    found = over_seeds(
        table, ["width", "difference"], ["workload", "rule", "averaging", "scheme", "scheme_label"],
        grid=("grid", "first"), num_seeds=("seed", "size"), num_pending=("pending", "sum"), num_met=("num_met", "sum"),
        num_runs=("num_lrs", "sum"), num_at_edge=("at_edge", "sum"),
    )  # fmt: skip
    equal = (found["num_seeds"] > 1).to_numpy()  # no effect is shown where all seeds are equal
    found["effect"] = effect(ends_of(found, "difference"), words=("narrower", "none", "wider"), equal=equal)
    return found


def width_where(x: NDArray[np.float64], quality: NDArray[np.float64], goal: float) -> float:
    """The length of the part of [x₀, xₙ] on which `quality`, linear between points, is at least `goal`.

    A point without a quality (NaN) is as far below as can be. Args: x, quality: shape (n,), x increasing.
    """
    above = np.where(np.isnan(quality), -np.inf, quality - goal)
    total = 0.0
    for width, left, right in zip(np.diff(x), above[:-1], above[1:], strict=True):
        low, high = min(left, right), max(left, right)
        if low >= 0:
            total += width
        elif high > 0 and np.isfinite(low):
            total += width * high / (high - low)
    return float(total)


def sentences(
    across_trainings: pd.DataFrame, ratios_by_seed: pd.DataFrame, chosen: pd.DataFrame, basin: pd.DataFrame,
    optimizers: pd.DataFrame,
) -> list[str]:  # fmt: skip
    """What the pre-specified average saves at each training; how wide the basin of LRs is; the best optimizer."""
    if across_trainings.empty:
        return []
    rows = across_trainings[across_trainings["fixed"] & (across_trainings["scheme"] != "none")]
    rows = rows[rows["scheme"].isin(leading(chosen, "ema")["scheme"])]
    same = same_schedule(ratios_by_seed[ratios_by_seed["ratio"].notna()])
    parts = [(name, same[same["setting"].isin(part["setting"])]) for name, part in rows.groupby("name", sort=False)]
    said = [f"{name} {mean_ratio(mine)}" for name, mine in parts if len(mine)]
    found = []
    if len(said) > 1:
        axis = TITLES[str(rows["axis"].iloc[0])].split(",")[0]
        found.append(
            f"Steps of {rows['scheme_label'].iloc[0]} ÷ those of the same training's last iterate, by {axis}: "
            f"{words.first(said, 8, ', ')}."
        )
    return found + _basin_sentence(basin, rows) + _optimizer_sentence(optimizers)


def _basin_sentence(table: pd.DataFrame, rows: pd.DataFrame) -> list[str]:
    mine = table[(table["rule"] == REACHES) & table["scheme_label"].isin(rows["scheme_label"])]
    mine = mine[mine["difference_low"].notna()]
    if mine.empty:
        return []
    wider = int((mine["difference_low"] > 0).sum())
    luck = 100 * verdicts.by_luck(max(wider, 1), len(mine))
    each = [f"{row['workload']} {with_bound(row, 'difference', '+.2f')}" for row in mine.to_dict("records")]
    return [
        f"It is shown to widen the range of peak LRs that reach the target on {wider} of "
        f"{counted(len(mine), 'workload')} ({max(wider, 1)} or more come by luck {luck:.1f} times in 100); in octaves: "
        f"{words.first(each, 4, ', ', ' …')}."
    ]


def _optimizer_sentence(table: pd.DataFrame) -> list[str]:
    known = table[table["geometric_mean"].notna()].to_dict("records")
    said = [f"{row['workload']}, {row['optimizer']} {with_bound(row, 'geometric_mean')}" for row in known]
    told = words.first(said, 6, rest=" …")
    return [f"Baselines against {known[0]['reference']}'s, in steps: {told}."] if said else []


def chart(
    across_trainings: pd.DataFrame, steps_to_target: pd.DataFrame, generalization_by_cell: pd.DataFrame, look: Look
) -> alt.ConcatChart | None:
    """Two panels a workload: steps to target, and the final metric, against the axis of its trainings."""
    table = across_trainings[across_trainings["scheme_label"].isin(look.colours)]
    if table.empty:
        return None
    labels = [label for label in look.colours if label in set(table["scheme_label"])]
    first = labels if len(labels) <= FEW else look.chosen
    pick = charts.legend_pick(first, "trainings_pick")
    colour = charts.setting_colour({label: look.colours[label] for label in labels})
    parts: list[Any] = []
    for workload, mine in table.groupby("workload", sort=True):
        for panel in (_steps(mine, steps_to_target), _final(mine, generalization_by_cell)):
            if panel is not None:
                parts.append(charts.titled(_panel(mine, panel, labels, colour, pick, first=not parts), str(workload)))
    return charts.grid(parts)


Panel = tuple[pd.DataFrame, pd.DataFrame, list[Any], alt.Y]


def _steps(mine: pd.DataFrame, seeds: pd.DataFrame) -> Panel | None:
    found = _values(mine, "restricted_mean", seeds, "counted_steps")
    if found is None:
        return None
    rows, seeds = found
    rows = rows.assign(missed=rows["num_missed"] > 0)
    seeds = seeds.assign(missed=seeds["status"] != "met")
    budget = float(rows["step_budget"].max())
    low, high = _most(rows, seeds["value"])
    high = min(high, budget + 0.06 * (budget - low))  # no mean lies beyond it
    scale = alt.Scale(domain=[low, high], nice=False, zero=False)
    y = alt.Y("value:Q", title="steps to target", scale=scale, axis=alt.Axis(format=",d", tickCount=6))
    rule = alt.Chart(pd.DataFrame({"at": [budget], "label": ["step budget"]}))
    line = rule.mark_rule(color=REFERENCE_LINE, strokeDash=[6, 4], clip=True).encode(y="at:Q")
    return rows, seeds, [line] if high > 0.98 * budget else [], y


def _final(mine: pd.DataFrame, seeds: pd.DataFrame) -> Panel | None:
    found = _values(mine, "final_metric", seeds.assign(status="final"), "final_metric")
    if found is None:
        return None
    rows, seeds = (table.assign(missed=False) for table in found)
    title = charts.metric_title(rows["metric_name"].iloc[0], bool(rows["higher_is_better"].iloc[0]))
    scale = alt.Scale(domain=_most(rows, seeds["value"]), nice=False, zero=False)
    return (rows, seeds, [], alt.Y("value:Q", title=f"final {title}", scale=scale, axis=alt.Axis(format=".4~g")))


def _values(
    mine: pd.DataFrame, mean: str, seeds: pd.DataFrame, of_seed: str
) -> tuple[pd.DataFrame, pd.DataFrame] | None:
    """The rows that have a mean, as value, low and high, and the value of each of their seeds."""
    rows = mine[mine[mean].notna()]
    seeds = seeds[seeds["setting"].isin(rows["setting"]) & seeds[of_seed].notna()]
    seeds = seeds[["setting", "seed", of_seed, "status"]].rename(columns={of_seed: "value"})
    ends = dict(zip(("value", "low", "high"), ends_of(rows, mean), strict=True))
    return (rows.assign(**ends), seeds) if len(rows) else None


def _most(rows: pd.DataFrame, values: pd.Series) -> list[float]:
    """An axis for all values but those far off the others: a run that went astray must not hide the rest.

    Intervals may stretch it by half of what the values need; longer ones run off it.
    """
    lower, upper = np.quantile(values, [0.25, 0.75])
    room = FAR * (upper - lower)
    low, high = max(float(values.min()), lower - room), min(float(values.max()), upper + room)
    spare = (high - low) or 0.1 * abs(high) or 0.1
    ends = rows[["low", "high"]].to_numpy(dtype=float).ravel()
    ends = ends[np.isfinite(ends)]
    low = max(low - spare / 2, min([low, *ends]))
    high = min(high + spare / 2, max([high, *ends]))
    return [low - 0.06 * spare, high + 0.06 * spare]


def _panel(
    mine: pd.DataFrame, panel: Panel, labels: list[str], colour: alt.Color, pick: alt.Parameter, first: bool
) -> Any:
    rows, seeds, rules, y = panel
    seeds = seeds.merge(rows[["setting", "scheme", "scheme_label", "name", "place"]], on="setting")
    axis, x = str(mine["axis"].iloc[0]), _axis(mine)
    rows, seeds = (_beside(table, mine, labels) for table in (rows, seeds))
    seen = charts.opaque_where(pick)
    base, ticks = (alt.Chart(table).transform_filter(pick).encode(x=x, color=colour) for table in (rows, seeds))
    hover = charts.tooltips(f"name:N:{TITLES[axis]}", "scheme_label:N:setting", "seed:Q:seed:d", "value:Q:value:.5~g")
    mark = alt.when(alt.datum.missed).then(alt.value("circle")).otherwise(alt.value("stroke"))
    ticks = ticks.mark_point(filled=False, size=50, strokeWidth=1.5, clip=True)
    ticks = ticks.encode(y=y, shape=mark, opacity=alt.value(0.6), tooltip=[*hover, alt.Tooltip("status:N", title="it")])
    lines = base.mark_line(strokeWidth=1.5, clip=True)
    lines = lines.encode(y=y, opacity=seen, strokeDash=charts.dashes(), detail="scheme_label:N")
    whiskers = base.mark_rule(strokeWidth=1.5, clip=True).encode(y=alt.Y("low:Q"), y2="high:Q")
    spec: Any = colour.to_dict()
    fill = alt.when(alt.datum.missed).then(alt.value("transparent"))
    hover = charts.tooltips(
        *(f"name:N:{TITLES[axis]}", "scheme_label:N:setting", "value:Q:mean:.5~g", "low:Q:from:.5~g"),
        *("high:Q:to:.5~g", "num_missed:Q:seeds that missed:d", "num_seeds:Q:seeds:d"),
        *("ratio:Q:steps ÷ baseline's:.3f", "best_ratio:Q:steps ÷ best training's:.3f"),
    )
    dots = base.mark_point(size=45, strokeWidth=2, opacity=1, clip=True)
    filled = fill.otherwise(alt.Color("scheme_label:N", legend=None, scale=spec["scale"]))
    dots = dots.encode(y=y, tooltip=hover, fill=filled)
    dots = dots.add_params(pick) if first else dots
    between = [lines] if rows["place"].notna().all() else []  # between names there is nothing to join
    return alt.layer(*rules, ticks, *between, whiskers, dots)


def _axis(mine: pd.DataFrame) -> alt.X:
    names, places, ends = _along(mine)
    if names:
        label = f"split({json.dumps(names)}[datum.value], /_|, /)"
        ticks = alt.Axis(values=places, labelExpr=label, grid=False, labelLimit=110, labelAngle=0)
        return alt.X("at:Q", title=None, axis=ticks, scale=alt.Scale(domain=ends, nice=False, zero=False))
    axis = str(mine["axis"].iloc[0])
    share = axis == "length"
    ticks = alt.Axis(values=places, grid=False, format=".0%" if share else "~g", labelOverlap=False)
    kind = alt.Scale(domain=ends, nice=False, **({"zero": False} if share else {"type": "log"}))
    return alt.X("at:Q", title=TITLES[axis] + ("" if share else " (log)"), axis=ticks, scale=kind)


def _along(mine: pd.DataFrame) -> tuple[list[str], list[Any], list[float]]:
    """The names of the trainings, where they have no other place than their order; their places; the axis's ends."""
    if mine["place"].isna().any():
        names = list(dict.fromkeys(mine["name"]))
        return names, list(range(len(names))), [-0.5, len(names) - 0.5]
    places = sorted(set(mine["place"].astype(float)))
    if mine["axis"].iloc[0] == "length":
        room = 0.12 * (places[-1] - places[0])
        return [], places, [places[0] - room, places[-1] + room]
    room = (places[-1] / places[0]) ** 0.12
    return [], places, [places[0] / room, places[-1] * room]


def _beside(table: pd.DataFrame, mine: pd.DataFrame, labels: list[str]) -> pd.DataFrame:
    """Adds at: the place of a row, moved aside a little, so that the settings of one place do not hide each other."""
    number = table["scheme_label"].map({label: i for i, label in enumerate(labels)}).astype(float)
    aside = SIDE * (number - (len(labels) - 1) / 2)
    names, places, (low, high) = _along(mine)
    if names:
        at = table["name"].map(dict(zip(names, places, strict=True))) + aside * min(4.0, 20 / len(labels))
        return table.assign(at=at.astype(float))
    if mine["axis"].iloc[0] == "length":
        return table.assign(at=table["place"] + aside * (high - low) / 3)
    return table.assign(at=table["place"] * (high / low) ** (aside / 3))
