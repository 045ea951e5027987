"""Raw runs and averages beside each other at every learning rate, optimizer, schedule, length or batch size."""

from __future__ import annotations

import pandas as pd

from analysis.pairs import fixed_settings, ratios, ratios_by_seed

REFERENCE_OPTIMIZER = "nadamw"  # the paper's; a study without it is measured against its first one


def across_trainings(
    cells: pd.DataFrame,
    axes: pd.DataFrame,
    settings: pd.DataFrame,
    ratios: pd.DataFrame,
    means: pd.DataFrame,
    general: pd.DataFrame,
) -> pd.DataFrame:
    """One row a setting of a workload that has several trainings, in the order of its axis, raw runs first.

    axis, place, name: of `training_axis.training_axes` · fixed: its horizon was fixed beforehand (raw ones too) ·
    num_seeds, num_missed, num_unfinished · median_steps (missed counted at the step budget) · restricted_mean,
    best_metric, final_metric: means over seeds with _low and _high · ratio: of steps to the raw run of the same
    training, best_ratio: to the best raw training of the workload, which was picked after the fact; geometric means
    with _low and _high, bound and best_bound (see `pairs.ratios`).
    """
    columns = [
        "setting",
        "training",
        "training_label",
        "scheme",
        "scheme_label",
        "horizon_fraction",
        "step_budget",
    ]
    columns += [
        "num_seeds",
        "num_unfinished",
        "num_censored",
        "steps_to_target",
        "metric_name",
        "higher_is_better",
    ]
    names = {"num_censored": "num_missed", "steps_to_target": "median_steps"}
    table = axes.merge(settings[columns].rename(columns=names), on="training", how="inner")
    fixed = set(fixed_settings(cells).loc[lambda rows: rows["near"], "setting"])
    table["fixed"] = table["setting"].isin(fixed) | (table["scheme"] == "none")
    table = table.merge(_intervals(means, ["restricted_mean"]), on="setting", how="left")
    table = table.merge(_intervals(general, ["best_metric", "final_metric"]), on="setting", how="left")
    for versus, name in (("same schedule", ""), ("best baseline", "best_")):
        mine = ratios[ratios["versus"] == versus]
        ends = {f"geometric_mean{end}": f"{name}ratio{end}" for end in ("", "_low", "_high")}
        mine = mine.rename(columns=ends | {"bound": f"{name}bound"})
        table = table.merge(mine[["setting", *ends.values(), f"{name}bound"]], on="setting", how="left")
    order = {int(training): place for place, training in enumerate(axes["training"])}
    table = table.assign(order=table["training"].map(order), raw=table["scheme"] != "none")
    table = table.sort_values(["workload", "order", "raw", "scheme", "horizon_fraction", "setting"], kind="stable")
    return table.drop(columns=["order", "raw"]).reset_index(drop=True)


def optimizers_compared(
    cells: pd.DataFrame, axes: pd.DataFrame, steps: pd.DataFrame, hours: pd.DataFrame
) -> pd.DataFrame:
    """Raw runs of each optimizer against those of REFERENCE_OPTIMIZER with the same seed, to the target.

    Returns what `pairs.ratios` does (ratios of steps and of device-hours, with intervals), a row a
    (workload, optimizer), and reference: the optimizer it is measured against.
    """
    axes = axes[axes["axis"] == "optimizer"]
    raw = cells[(cells["scheme"] == "none") & cells["training"].isin(axes["training"])]
    pairs = []
    for workload, part in raw.groupby("workload", sort=True):
        known = sorted(set(part["optimizer"]))
        reference = REFERENCE_OPTIMIZER if REFERENCE_OPTIMIZER in known else known[0]
        base = part[part["optimizer"] == reference].set_index("seed")["cell_id"]
        other = part[part["optimizer"] != reference]
        table = other[["training", "setting", "seed", "cell_id"]].assign(workload=workload, versus=reference)
        pairs.append(table.assign(baseline_cell_id=other["seed"].map(base)).dropna(subset="baseline_cell_id"))
    columns = ["versus", "workload", "training", "setting", "seed", "cell_id", "baseline_cell_id"]
    every = pd.concat(pairs)[columns] if pairs else pd.DataFrame(columns=columns)
    table = ratios(ratios_by_seed(every, steps, hours) if len(every) else every)
    names = cells.drop_duplicates("training").set_index("training")["optimizer"]
    return table.assign(optimizer=table["training"].map(names)).rename(columns={"versus": "reference"})


def _intervals(table: pd.DataFrame, names: list[str]) -> pd.DataFrame:
    columns = [f"{name}{end}" for name in names for end in ("", "_low", "_high")]
    return table.reindex(columns=["setting", *columns])
