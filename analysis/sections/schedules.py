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
from analysis.statistics.generalization import effect, ends_of, over_seeds
from analysis.statistics.pairs import fixed_settings, in_front
from analysis.statistics.steps_to_target import curves

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
    table = table[table.groupby("workload")["training"].transform("nunique") > 1]
    table = table.assign(sign=np.where(table["higher_is_better"].astype(bool), 1.0, -1.0))
    table = table.assign(quality=(table["sign"] * table["median"]).astype(float).fillna(-np.inf))
    found = table.groupby(["workload", "step"], as_index=False, sort=True).agg(
        share=("share", "first"), sign=("sign", "first"), quality=("quality", "max")
    )
    best = found.groupby("workload")["quality"].cummax()
    found["envelope"] = (found["sign"] * best).where(best > -np.inf)
    return found[["workload", "step", "share", "envelope"]]


def against_shorter(core: Core) -> pd.DataFrame:
    """Averages on the full schedule against each baseline whose schedule is shorter, where that schedule ends.

    One row a (setting, shorter schedule): workload, setting, scheme, scheme_label, length_fraction, step (its end),
    num_pairs · difference, with _low and _high, in units of the metric · effect: ``ahead``, ``level``, ``behind``, None
    without an interval. Shorter schedules that differ from the full one in their length alone take part.
    """
    cells = core.cells
    # What decays from its warm-up on is alike, whatever share of it a warm-up of so many steps is.
    throughout = cells["warmup_steps"] + cells["lr_decay_steps"] >= cells["length_steps"]
    axes = cells.assign(lr_decay=cells["lr_decay"].mask(throughout.fillna(False).astype(bool)))
    alike = axes.groupby([axis for axis in TRAINING if axis not in LENGTH], dropna=False).ngroup()
    cells = cells.assign(alike=alike)
    full = cells["training"] == cells["workload"].map(core.reference)
    longest = cells["alike"].map(cells[full].groupby("alike")["length_steps"].first())
    shorter = cells[(cells["scheme"] == "none") & (cells["length_steps"] < longest)]
    shorter = shorter[["workload", "seed", "cell_id", "length_steps", "length_fraction"]]
    averages = cells[full & (cells["scheme"] != "none")]
    names = ["workload", "setting", "scheme", "scheme_label", "higher_is_better"]
    pairs = averages.drop_duplicates("setting")[names].merge(shorter, on="workload")
    cell = averages[["setting", "seed", "cell_id"]].rename(columns={"cell_id": "average"})
    pairs = pairs.merge(cell, on=["setting", "seed"], how="left").rename(columns={"length_steps": "step"})
    series = curves(core.records) if len(pairs) else {}
    there = [_at(series.get(one), step) for one, step in zip(pairs["average"], pairs["step"], strict=True)]
    final = pairs["cell_id"].map(core.by_cell.set_index("cell_id")["final_metric"])
    pairs["difference"] = np.array(there, dtype=float) - final.astype(float)
    keys = ["workload", "setting", "step", "scheme", "scheme_label", "length_fraction", "higher_is_better"]
    table = over_seeds(pairs, ["difference"], keys, num_pairs=("difference", "count"))
    ends = ends_of(table, "difference")
    table["effect"] = effect(ends, table["higher_is_better"].astype(bool), ("behind", "level", "ahead"))
    return table[[*names[:4], "length_fraction", "step", "num_pairs", *(one.name for one in ends), "effect"]]


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
    axes = axes[axes["axis"] == "schedule"].merge(core.baselines[["training", "rank"]], on="training", how="inner")
    axes = axes[axes.groupby("workload")["end_lr"].transform("nunique") > 1]
    base = axes.sort_values(["end_lr", "rank"], kind="stable").groupby("workload")[["training", "name"]].first()
    table = core.cells.merge(core.by_cell[["cell_id", "final_metric"]], on="cell_id")
    table = table.merge(axes[["training", "name", "end_lr"]], on="training")
    table = table.merge(base.set_axis(["most_decayed", "versus"], axis=1), on="workload")
    table["decayed"] = table["training"] == table["most_decayed"]
    itself = table["decayed"] & (table["scheme"] == "none")
    own = table.loc[itself, ["workload", "seed", "final_metric"]].rename(columns={"final_metric": "own"})
    table = table[~itself].merge(own, on=["workload", "seed"], how="left")
    table["difference"] = table["final_metric"] - table["own"]
    keys = ["workload", "training", "setting", "name", "end_lr", "scheme", "scheme_label", "decayed", "versus"]
    table = over_seeds(table, ["difference"], [*keys, "higher_is_better"], num_pairs=("difference", "count"))
    higher = table["higher_is_better"].astype(bool)
    table["effect"] = effect(ends_of(table, "difference"), higher)
    table["fixed"] = table["setting"].isin(fixed_settings(core.cells, core.primary[1]).query("near")["setting"])
    worth = table["difference"].where(higher, -table["difference"])[table["scheme"] != "none"].dropna()
    table["best"] = table.index.isin(worth.groupby(table["training"]).idxmax())  # the first among equals
    table["margin"] = MARGIN * table["workload"].map(own.groupby("workload")["own"].mean()).astype(float).abs()
    columns = ["workload", "training", "name", "end_lr", "setting", *keys[5:], "fixed", "best", "num_pairs"]
    columns += ["difference", "difference_low", "difference_high", "effect", "higher_is_better", "margin"]
    order = {"workload": True, "end_lr": False, "setting": True}
    return table.sort_values(list(order), ascending=list(order.values()), ignore_index=True)[columns]


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
    best = against_decayed[against_decayed["best"].astype(bool) & against_decayed["difference_low"].notna()]
    best = best[~best["decayed"].astype(bool)]
    if len(best):
        said = [replaces(row) for row in best.to_dict("records")]
        yes, no = (said.count(word) for word in (verdicts.SHOWN, verdicts.EXCLUDED))
        found.append(
            f"Without a full decay the best average, selected post hoc, is shown to end within {percent(MARGIN)} of "
            f"the decayed baseline or better in {yes} of {len(said)} pairs, shown to end worse in {no}, undecided in "
            f"{len(said) - yes - no}."
        )
    higher = settings.loc[settings["setting"].isin(front["setting"]), ["setting", "higher_is_better"]]
    mine = median_curves.merge(higher, on="setting").merge(envelope[["workload", "step", "envelope"]])
    if len(mine):
        gap = (mine["median"] - mine["envelope"]) * np.where(mine["higher_is_better"].astype(bool), 1, -1)
        share = float((gap > 0).groupby(mine["setting"]).mean().mean())
        found.append(
            f"Pre-specified averages of the reference run are ahead of every baseline so far in {percent(share)} of "
            "the evaluations (mean over workloads and schemes)."
        )
    return found


def replaces(row: Any) -> str:
    """``shown``: the end is no worse than the margin · ``excluded``: it is worse by more · ``undecided``."""
    side = 1 if row["higher_is_better"] else -1
    low, high = sorted((side * row["difference_low"], side * row["difference_high"]))
    if low > -row["margin"]:
        return verdicts.SHOWN
    return verdicts.EXCLUDED if high < -row["margin"] else verdicts.UNDECIDED


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
        rows = [own.assign(group="baseline"), averaged.assign(group=averaged["scheme"].map(SCHEME_NAMES))]
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
    seen = charts.tooltips("step:Q:step:,", "envelope:Q:best baseline so far:.4g")
    best = best.encode(x="step:Q", y=alt.Y("envelope:Q", scale=scale), tooltip=seen)
    target = charts.target_line(info["target"])
    return alt.layer(best, charts.zoomable(lines, zoom), dots.encode(tooltip=hover), names, *target)
