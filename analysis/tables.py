"""Every table of the report, computed once from a study."""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
import pandas as pd

from analysis import (
    across_trainings,
    baselines,
    basin,
    decay_length,
    decay_replaced,
    device_hours,
    families,
    generalization,
    horizon_fit,
    pooled,
    pooled_curve,
    robustness,
    saving_curve,
    savings,
    snapshot_grid,
    survival,
    training_axis,
)
from analysis.output import write_csv
from analysis.steps_to_target import steps_to_target
from analysis.study import Study


@dataclass(frozen=True)
class Tables:
    """DataFrames, named as their CSV files. Rows sorted, so that equal runs give equal bytes."""

    settings: pd.DataFrame  # one row a setting: its axes and labels, the summary beside
    steps_to_target: pd.DataFrame  # one row a cell
    ratios: pd.DataFrame  # one row a (versus, setting)
    ratios_by_seed: pd.DataFrame
    families: pd.DataFrame  # one row a (versus, scheme): on how many the ratio's interval lies below 1
    survival: pd.DataFrame  # the Kaplan–Meier curve of each setting
    restricted_means: pd.DataFrame  # one row a setting
    restricted_mean_ratios: pd.DataFrame  # one row a (versus, setting)
    pooled: pd.DataFrame  # one row a (versus, horizon, scheme, statistic), over workloads
    pooled_by_workload: pd.DataFrame
    leave_one_out: pd.DataFrame
    saving_curve: pd.DataFrame
    pooled_curve: pd.DataFrame  # one row a (versus, scheme, share), over workloads
    horizon_map: pd.DataFrame
    flat_region: pd.DataFrame
    horizon_fit: pd.DataFrame  # a parabola a (training, scheme)
    horizon_curve: pd.DataFrame
    generalization: pd.DataFrame
    generalization_by_cell: pd.DataFrame
    metrics_beside: pd.DataFrame  # accuracy beside loss, …
    test_metrics: pd.DataFrame  # of the test split, where it was evaluated
    baselines: pd.DataFrame
    chosen: pd.DataFrame  # the horizon fixed beforehand, per workload and scheme
    schedules: pd.DataFrame
    median_curves: pd.DataFrame
    envelope: pd.DataFrame
    gap_to_envelope: pd.DataFrame
    shorter_schedules: pd.DataFrame  # averages of the full run where a shorter schedule ends
    across_trainings: pd.DataFrame  # one row a setting of a workload with several trainings
    optimizers: pd.DataFrame  # raw runs of one against another
    basin: pd.DataFrame  # of peak LRs: one row a (workload, rule, averaging)
    basin_by_seed: pd.DataFrame
    against_decayed: pd.DataFrame  # averages on less decayed schedules
    snapshot_grid: pd.DataFrame  # ν × k and ν × γ
    snapshot_interval: pd.DataFrame  # groups of equal horizon
    sweep_device_hours: pd.DataFrame

    def write(self, folder: Path) -> None:
        """One CSV a table; floats to 10 significant digits."""
        folder.mkdir(parents=True, exist_ok=True)
        for field in fields(self):
            write_csv(folder / f"{field.name}.csv", getattr(self, field.name))


@dataclass(frozen=True)
class Core:
    """What every other table is made from."""

    steps: pd.DataFrame
    scores: pd.DataFrame
    pairs: pd.DataFrame
    hours: pd.DataFrame
    by_seed: pd.DataFrame
    ratios: pd.DataFrame
    by_cell: pd.DataFrame
    general: pd.DataFrame


def core(study: Study) -> Core:
    """Steps-to-target, pairs, ratios and metrics: enough for the result table in a terminal."""
    cells, records = study.cells, study.records
    steps = steps_to_target(cells, records)
    scores = baselines.score(cells, records, steps)
    pairs = baselines.pair(cells, scores)
    hours = device_hours.hours_to_target(cells, records, steps)
    by_seed = savings.ratios_by_seed(pairs, steps, hours)
    by_cell = generalization.metrics_by_cell(cells, records)
    general = generalization.generalization(by_cell, pairs)
    return Core(steps, scores, pairs, hours, by_seed, savings.ratios(by_seed), by_cell, general)


def compute(study: Study) -> Tables:
    """All statistics of a run folder; nothing is drawn."""
    cells, records = study.cells, study.records
    c = core(study)
    steps, scores, by_cell, general = c.steps, c.scores, c.by_cell, c.general
    horizons = robustness.horizon_map(c.ratios, cells)
    reference = baselines.reference_training(cells, scores)
    chosen = baselines.chosen_settings(cells, reference)
    axes = training_axis.training_axes(cells)
    summary, means = settings(cells, steps, c.ratios, general), survival.restricted_means(cells, steps)
    octaves = basin.widths(cells, axes, steps, by_cell)
    over_workloads = pooled.pool(c.by_seed, steps, pooled.picks(chosen, horizons))
    overall = pooled.overall(over_workloads)
    medians = decay_length.median_curves(cells, records)
    bound = decay_length.envelope(cells, medians)
    fits, smooth = horizon_fit.horizon_fit(c.by_seed, cells)
    measured = saving_curve.measure(cells, records, c.pairs)
    curve = saving_curve.saving_curve(measured)
    return Tables(
        settings=summary,
        steps_to_target=_named(cells, steps).merge(c.hours, on="cell_id", how="left"),
        ratios=_labelled(cells, c.ratios),
        ratios_by_seed=_labelled(cells, c.by_seed),
        families=families.families(c.ratios, chosen),
        survival=_labelled(cells, survival.kaplan_meier(survival.observations(cells, steps))),
        restricted_means=_labelled(cells, means),
        restricted_mean_ratios=_labelled(cells, survival.restricted_mean_ratios(c.by_seed, steps)),
        pooled=overall,
        pooled_by_workload=pooled.by_workload(over_workloads),
        leave_one_out=pooled.leave_one_out(over_workloads),
        saving_curve=_labelled(cells, curve),
        pooled_curve=pooled_curve.pooled_curve(measured, chosen),
        horizon_map=_labelled(cells, horizons),
        flat_region=robustness.flat_region(horizons),
        horizon_fit=fits,
        horizon_curve=smooth,
        generalization=_labelled(cells, general),
        generalization_by_cell=_named(cells, by_cell.drop(columns=["workload", "training", "setting", "seed"])),
        metrics_beside=_labelled(cells, generalization.metrics_beside(cells, records, c.pairs)),
        test_metrics=_labelled(cells, generalization.test_metrics(cells, study.test, c.pairs)),
        baselines=scores,
        chosen=chosen,
        schedules=_labelled(cells, decay_length.against_schedules(cells, records, steps, list(chosen["setting"]))),
        median_curves=_labelled(cells, medians),
        envelope=bound,
        gap_to_envelope=_labelled(cells, decay_length.gap_to_envelope(cells, medians, bound)),
        shorter_schedules=decay_length.against_shorter(cells, records, reference, by_cell),
        across_trainings=across_trainings.across_trainings(cells, axes, summary, c.ratios, means, general),
        optimizers=across_trainings.optimizers_compared(cells, axes, steps, c.hours),
        basin=basin.basins(octaves),
        basin_by_seed=octaves,
        against_decayed=decay_replaced.against_decayed(cells, axes, by_cell, scores),
        snapshot_grid=snapshot_grid.snapshot_grid(horizons, cells, steps),
        snapshot_interval=snapshot_grid.snapshot_interval(horizons, cells, steps),
        sweep_device_hours=device_hours.sweep_hours(cells, records, study.trials),
    )


def settings(cells: pd.DataFrame, steps: pd.DataFrame, ratios: pd.DataFrame, general: pd.DataFrame) -> pd.DataFrame:
    """One row a setting: labels, seeds, steps-to-target, ratio to the same schedule, best metric.

    steps_to_target: median over seeds, missed ranked at the step budget, and where more than half missed a lower bound
    of it; null while seeds that are not finished may change it · num_unfinished: seeds that go on, num_open: those of
    them that have not met the target · num_censored: seeds that missed ·
    ratio, ratio_low, ratio_high: geometric mean with interval · bound: what the ratio is (`savings.ratios`).
    """
    names = ["cell_id", "counted_steps", "ranked_steps", "censored", "status"]
    merged = cells.merge(steps[names], on="cell_id", how="left")
    merged["missed"] = merged["status"].isin(["missed", "diverged"])
    merged["unfinished"] = merged["state"] == "unfinished"
    merged["open"] = merged["ranked_steps"].isna() & merged["status"].notna()
    merged["at_least"] = merged["ranked_steps"].mask(merged["open"], merged["last_step"].astype(float))
    merged["at_most"] = merged["ranked_steps"].mask(merged["open"], np.inf)
    table = merged.groupby("setting", as_index=False, sort=True).agg(
        workload=("workload", "first"),
        training=("training", "first"),
        training_label=("training_label", "first"),
        scheme=("scheme", "first"),
        scheme_label=("scheme_label", "first"),
        horizon_fraction=("horizon_fraction", "first"),
        metric_name=("metric_name", "first"),
        higher_is_better=("higher_is_better", "first"),
        target=("target", "first"),
        step_budget=("step_budget", "first"),
        num_seeds=("seed", "nunique"),
        num_unfinished=("unfinished", "sum"),
        num_open=("open", "sum"),
        steps_to_target=("at_most", "median"),
        at_least=("at_least", "median"),
        least=("counted_steps", "median"),
        num_censored=("missed", "sum"),
    )
    known = table["steps_to_target"] == table.pop("at_least")  # whatever the runs that go on will say
    table["steps_to_target"] = table["steps_to_target"].where(known)
    least = table.pop("least")
    table["steps_to_target"] = table["steps_to_target"].mask(2 * table["num_censored"] > table["num_seeds"], least)
    same = ratios[ratios["versus"] == "same schedule"]
    same = same.rename(columns={f"geometric_mean{end}": f"ratio{end}" for end in ("", "_low", "_high")})
    table = table.merge(same[["setting", "ratio", "ratio_low", "ratio_high", "bound"]], "left", on="setting")
    if "best_metric" in general:
        keep = ["setting", "best_metric", "final_metric", "effect"]
        return table.merge(general[keep], on="setting", how="left")
    return table.assign(best_metric=np.nan, final_metric=np.nan, effect=None)


def _labelled(cells: pd.DataFrame, table: pd.DataFrame) -> pd.DataFrame:
    names = ["setting", "scheme", "scheme_label", "training_label", "horizon_fraction"]
    new = [name for name in names[1:] if name not in table.columns]
    return table.merge(cells.drop_duplicates("setting")[["setting", *new]], on="setting", how="left")


def _named(cells: pd.DataFrame, table: pd.DataFrame) -> pd.DataFrame:
    new = ["cell_id", "workload", "training", "setting", "seed", "scheme_label", "training_label"]
    return cells[new].merge(table, on="cell_id", how="right")
