"""Can an average of one run stand in for other LR schedules: shorter ones, or a full decay?"""

from __future__ import annotations

from typing import Any

import altair as alt
import numpy as np
import pandas as pd

from analysis.core import Core
from analysis.presentation import chart as charts
from analysis.presentation.chart import REFERENCE_LINE, Look
from analysis.run_folder.study import SCHEME_NAMES, TRAINING, percent
from analysis.statistics import verdicts
from analysis.statistics.generalization import as_columns, effect
from analysis.statistics.pairs import fixed_settings, in_front
from analysis.statistics.resampling import bootstrap, of_row
from analysis.statistics.steps_to_target import curves, running_best

TITLE = "Averaging and LR schedules"
CAPTION = (
    "Grey: baselines, each on its own schedule; wide band: the best any of them has reached by a step. In colour: "
    "averages on the reference schedule, or where schedules decay to different ends of each."
)
RULE = {
    "shorter_schedules": "The metric of the full-length run's average at the step where the shorter schedule ends "
    "minus the final metric of that schedule's baseline with the same seed.",
    "against_decayed": "Against decay: a run's final metric minus that of the most decayed baseline. It replaces the "
    "decay where its whole interval lies above a loss of 1 % of that metric; not being told from it is no proof.",
}
MARGIN = 0.01  # of the decayed baseline's final metric: a smaller loss is no loss
LENGTH = ["length_steps", "length_fraction", "warmup_steps", "lr_decay_steps", "evaluate_every_steps"]
MAX_POINTS = 120  # a curve; a chart is 400 pixels wide


def tables(core: Core) -> dict[str, pd.DataFrame]:
    """envelope: the best baseline so far · shorter_schedules: averages of the full run where a shorter schedule ends ·
    against_decayed: averages on less decayed schedules, against the decayed baseline.
    """
    return {
        "envelope": envelope(core.cells, core.medians),
        "shorter_schedules": against_shorter(core),
        "against_decayed": against_decayed(core, core.training_axes),
    }


def envelope(cells: pd.DataFrame, medians: pd.DataFrame) -> pd.DataFrame:
    """The best that any baseline of the workload has reached by a step: the running best over median curves.

    Only where a workload has baselines of two trainings or more. Returns: workload, step, share, envelope.
    """
    baseline = cells[cells["scheme"] == "none"].drop_duplicates("setting")[["setting", "higher_is_better"]]
    table = medians.merge(baseline, on="setting", how="inner")
    rows = []
    for workload, part in table.groupby("workload", sort=True):
        if part["training"].nunique() < 2:
            continue
        higher = bool(part["higher_is_better"].iloc[0])
        at_step = part.groupby("step", sort=True).agg(
            share=("share", "first"), value=("median", "max" if higher else "min")
        )
        best = running_best(at_step["value"].to_numpy(dtype=float), higher)
        at = {"step": at_step.index.to_numpy(), "share": at_step["share"].to_numpy()}
        rows.append(pd.DataFrame({"workload": workload, **at, "envelope": best}))
    names = ["workload", "step", "share", "envelope"]
    return pd.concat(rows, ignore_index=True)[names] if rows else pd.DataFrame(columns=names)


def against_shorter(core: Core) -> pd.DataFrame:
    """Averages on the full schedule against each baseline whose schedule is shorter, where that schedule ends.

    One row a (setting, shorter schedule): workload, setting, scheme, scheme_label, length_fraction, step (its end),
    num_pairs · difference, with _low and _high, in units of the metric · effect: ``ahead``, ``level``, ``behind``, None
    without an interval. Shorter schedules that differ from the full one in their length alone take part.
    """
    cells = core.cells
    names = {"better": "ahead", "worse": "behind", "none": "level"}
    same = [axis for axis in TRAINING if axis not in LENGTH]
    final = core.by_cell.set_index("cell_id")["final_metric"]
    alone = cells.drop_duplicates("training").set_index("training")
    rows: list[dict[str, Any]] = []
    series: dict[str, tuple[Any, Any]] = {}
    for workload, full in core.reference.items():
        mine = cells[cells["workload"] == workload]
        wanted = alone.loc[full, same]
        matching = [one for one in set(mine["training"]) if alone.loc[one, same].equals(wanted)]
        shorter = mine[(mine["scheme"] == "none") & mine["training"].isin(matching)]
        shorter = shorter[shorter["length_steps"] < alone.loc[full, "length_steps"]]
        averages = mine[(mine["training"] == full) & (mine["scheme"] != "none")]
        if shorter.empty or averages.empty:
            continue
        series = series or curves(core.records)
        for setting, part in averages.groupby("setting", sort=True):
            one = part.iloc[0]
            for _, own in shorter.groupby("length_steps", sort=True):
                end = int(own["length_steps"].iloc[0])
                there = {row["seed"]: _at(series.get(row["cell_id"]), end) for row in part.to_dict("records")}
                change = own["seed"].map(there).astype(float) - own["cell_id"].map(final)
                found = bootstrap(change.to_numpy(dtype=float))
                row = {"workload": workload, "setting": setting, "scheme": one["scheme"], "step": end}
                row |= {"scheme_label": one["scheme_label"], "length_fraction": own["length_fraction"].iloc[0]}
                row |= {"num_pairs": int(change.notna().sum())} | as_columns("difference", found)
                known = effect(found, bool(one["higher_is_better"]))
                rows.append(row | {"effect": None if known is None else names[known]})
    columns = ["workload", "setting", "scheme", "scheme_label", "length_fraction", "step", "num_pairs", "difference"]
    return pd.DataFrame(rows, columns=[*columns, "difference_low", "difference_high", "effect"])


def _at(curve: tuple[Any, Any] | None, step: int) -> float:
    """The metric at a step, linear between evaluations; NaN before the first and after the last."""
    return np.nan if curve is None else float(np.interp(step, *curve, left=np.nan, right=np.nan))


def against_decayed(core: Core, axes: pd.DataFrame) -> pd.DataFrame:
    """One row a setting of a workload whose schedules end at different LRs, but for the decayed baseline itself.

    workload, training, name, end_lr, setting, scheme, scheme_label · decayed: it is on the decayed schedule · versus:
    that schedule's name (of several that decay as far, the best baseline's) · fixed: pre-specified · best: the best
    average of its training, selected post hoc · num_pairs · difference, with _low and _high, in units of the metric ·
    effect: ``better``, ``worse``, ``none``, None without an interval · margin: MARGIN in units of the metric.
    """
    cells = core.cells
    axes = axes[axes["axis"] == "schedule"].merge(core.baselines[["training", "rank"]], on="training", how="inner")
    final = core.by_cell[["cell_id", "final_metric"]]
    fixed = set(fixed_settings(cells, core.primary[1]).loc[lambda rows: rows["near"], "setting"])
    rows: list[dict[str, Any]] = []
    for workload, part in axes.groupby("workload", sort=True):
        if part["end_lr"].nunique() < 2:
            continue
        base = part.sort_values(["end_lr", "rank"], kind="stable").iloc[0]
        mine = cells[cells["training"].isin(part["training"])].merge(final, on="cell_id")
        own = mine[(mine["training"] == base["training"]) & (mine["scheme"] == "none")]
        mine = mine.assign(change=mine["final_metric"] - mine["seed"].map(own.set_index("seed")["final_metric"]))
        names = part.set_index("training")
        for (_, setting), group in mine.groupby(["training", "setting"], sort=True):
            one = group.iloc[0]
            if setting in set(own["setting"]):
                continue
            change = bootstrap(group["change"].to_numpy(dtype=float))
            row = {"workload": workload, "training": one["training"], "name": names["name"][one["training"]]}
            row |= {"end_lr": names["end_lr"][one["training"]], "setting": setting, "scheme": one["scheme"]}
            row |= {"scheme_label": one["scheme_label"], "decayed": one["training"] == base["training"]}
            row |= {"versus": base["name"], "fixed": setting in fixed, "num_pairs": int(group["change"].notna().sum())}
            higher = bool(one["higher_is_better"])
            row |= as_columns("difference", change) | {
                "effect": effect(change, higher),
                "worth": change.value if higher else -change.value,
            }
            row |= {"higher_is_better": higher, "margin": MARGIN * abs(float(own["final_metric"].mean()))}
            rows.append(row)
    columns = ["workload", "training", "name", "end_lr", "setting", "scheme", "scheme_label", "decayed", "versus"]
    columns += ["fixed", "best", "num_pairs", "difference", "difference_low", "difference_high", "effect"]
    columns += ["higher_is_better", "margin"]
    if not rows:
        return pd.DataFrame(columns=columns)
    table = pd.DataFrame(rows)
    worth = table["worth"].where(table["scheme"] != "none")
    first = worth.dropna().groupby(table["training"]).idxmax()  # the first among equals
    table["best"] = table.index.isin(first)
    order = np.lexsort((table["setting"], -table["end_lr"], table["workload"]))
    return table.iloc[order][columns].reset_index(drop=True)


def sentences(
    envelope: pd.DataFrame, median_curves: pd.DataFrame, shorter_schedules: pd.DataFrame, against_decayed: pd.DataFrame,
    chosen: pd.DataFrame, settings: pd.DataFrame,
) -> list[str]:  # fmt: skip
    """Against shorter schedules, against a full decay, against the best baseline at every step."""
    front = in_front(chosen)
    found = []
    rows = shorter_schedules[shorter_schedules["setting"].isin(front["setting"]) & shorter_schedules["effect"].notna()]
    for label, part in list(rows.groupby("scheme_label", sort=True))[:1]:
        ahead, behind = (int((part["effect"] == word).sum()) for word in ("ahead", "behind"))
        found.append(
            f"Where a shorter schedule ends, {label} of the full-length run is shown ahead of that schedule's last "
            f"iterate in {ahead} of {len(part)} pairs of workload and schedule, behind in {behind}; others: undecided."
        )
    best = against_decayed[against_decayed["best"].astype(bool)] if len(against_decayed) else against_decayed
    best = best[~best["decayed"].astype(bool) & best["difference_low"].notna()]
    if len(best):
        said = [replaces(row) for row in best.to_dict("records")]
        yes, no = (said.count(word) for word in (verdicts.SHOWN, verdicts.EXCLUDED))
        found.append(
            f"Without a full decay the best average, selected post hoc, is shown to end within {percent(MARGIN)} of "
            f"the decayed baseline or better in {yes} of {len(said)} pairs, shown to end worse in {no}, undecided in "
            f"{len(said) - yes - no}."
        )
    gaps = [_ahead(median_curves, envelope, settings, row) for row in front.to_dict("records")]
    gaps = [gap for gap in gaps if gap == gap]
    if gaps:
        found.append(
            f"Pre-specified averages of the reference run are ahead of every baseline so far in "
            f"{percent(float(np.mean(gaps)))} of the evaluations (mean over workloads and schemes)."
        )
    return found


def replaces(row: Any) -> str:
    """``shown``: the end is no worse than the margin · ``excluded``: it is worse by more · ``undecided``."""
    worth = of_row(row, "difference")
    if row["higher_is_better"]:
        low, high = worth.low, worth.high
    else:
        low, high = -worth.high, -worth.low
    if low > -row["margin"]:
        return verdicts.SHOWN
    return verdicts.EXCLUDED if high < -row["margin"] else verdicts.UNDECIDED


def _ahead(medians: pd.DataFrame, bound: pd.DataFrame, settings: pd.DataFrame, chosen: Any) -> float:
    """The share of evaluations at which a setting's median is better than the envelope; NaN without one."""
    mine = medians[medians["setting"] == chosen["setting"]].merge(bound[["workload", "step", "envelope"]])
    if mine.empty:
        return np.nan
    higher = settings.loc[settings["setting"] == chosen["setting"], "higher_is_better"].astype(bool).iloc[0]
    gap = mine["median"] - mine["envelope"]
    return float((gap > 0).mean() if higher else (gap < 0).mean())


def chart(
    envelope: pd.DataFrame, median_curves: pd.DataFrame, across_trainings: pd.DataFrame, against_decayed: pd.DataFrame,
    chosen: pd.DataFrame, look: Look,
) -> alt.ConcatChart | None:  # fmt: skip
    """Baselines of every schedule, their envelope, and averages beside them.

    Where schedules differ in length: the pre-specified averages of the reference schedule. Where they differ in how far
    they decay: the best average of each. Learning rates and batch sizes have a figure of their own.
    """
    axes = across_trainings.drop_duplicates("training")[["workload", "training", "axis", "name"]]
    axes = axes[~axes["axis"].isin(["lr", "batch_size"])]
    parts: list[Any] = []
    for number, workload in enumerate(look.workloads):
        names = axes[axes["workload"] == workload]
        mine = median_curves[median_curves["training"].isin(names["training"])]
        own = mine[mine["scheme"] == "none"]
        edge = envelope[envelope["workload"] == workload]
        if edge.empty or own.empty:
            continue
        averaged = mine[mine["setting"].isin(_beside(names, against_decayed, chosen))]
        kind = averaged["scheme"].map(SCHEME_NAMES).fillna(averaged["scheme"])
        rows = [own.assign(group="baseline"), averaged.assign(group=kind)]
        table = charts.thin(pd.concat(rows), "setting", MAX_POINTS)
        table = table.merge(names[["training", "name"]], on="training")
        table["series"] = table["name"] + ", " + table["scheme_label"]
        info = look.shown[look.shown["workload"] == workload].iloc[0]
        parts.append(charts.titled(_panel(look, table, edge, info, f"schedule_zoom_{number}"), workload))
    return charts.grid(parts)


def _beside(names: pd.DataFrame, rows: pd.DataFrame, chosen: pd.DataFrame) -> pd.Series:
    """The averaged settings that a panel shows."""
    if (names["axis"] == "schedule").all() and len(rows):
        return rows.loc[rows["best"].astype(bool), "setting"]
    return chosen["setting"]


def _panel(look: Look, table: pd.DataFrame, edge: pd.DataFrame, info: Any, zoom: str) -> Any:
    higher = bool(info["higher_is_better"])
    scale = alt.Scale(domain=charts.zoomed(table, "median"), nice=False)
    y = alt.Y("median:Q", title=charts.metric_title(info["metric_name"], higher), scale=scale)
    colours = {"baseline": look.schemes.get(SCHEME_NAMES["none"], REFERENCE_LINE), **look.averages}
    colour = alt.Color("group:N", title=None, scale=charts.scale(colours))
    base = alt.Chart(table).encode(x=alt.X("step:Q", title="step", axis=charts.step_axis()), y=y)
    hover = charts.tooltips("series:N:run", "step:Q:step:,", "median:Q:median:.4g", "num_seeds:Q:seeds:d")
    lines = base.mark_line(clip=True, strokeWidth=1.8).encode(color=colour, detail="setting:N", tooltip=hover)
    lines = lines.encode(strokeDash=charts.dashes())
    ends = table.sort_values("step").groupby("setting", as_index=False).last()
    ends = ends[ends["group"] == "baseline"]
    dots = alt.Chart(ends).mark_point(filled=True, size=60, opacity=1, clip=True).encode(x="step:Q", y=y, color=colour)
    names = alt.Chart(ends).mark_text(align="right", dx=-2, dy=-13 if higher else 13, fontSize=11, color=REFERENCE_LINE)
    names = names.encode(x="step:Q", y=y, text="name:N")
    shown = charts.thin(edge.assign(setting=0), "setting", MAX_POINTS)
    best = alt.Chart(shown).mark_line(clip=True, strokeWidth=9, opacity=0.28, color=REFERENCE_LINE)
    best = best.encode(
        x="step:Q",
        y=alt.Y("envelope:Q", scale=scale),
        tooltip=charts.tooltips("step:Q:step:,", "envelope:Q:best baseline so far:.4g"),
    )
    target = charts.target_line(float(info["target"])) if pd.notna(info["target"]) else []
    return alt.layer(best, charts.zoomable(lines, zoom), dots.encode(tooltip=hover), names, *target)
