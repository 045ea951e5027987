"""Is the metric at the end of training better with an average?"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import altair as alt
import numpy as np
import pandas as pd

from analysis import words
from analysis.core import Core
from analysis.presentation import chart as charts
from analysis.presentation.chart import Look
from analysis.presentation.table_format import Column, Shown
from analysis.run_folder.records import BESIDE
from analysis.run_folder.study import SCHEME_NAMES
from analysis.statistics import generalization as metrics
from analysis.statistics import verdicts
from analysis.statistics.generalization import final_changes
from analysis.statistics.pairs import leading, num_units, over_workloads, same_schedule, with_bound
from analysis.statistics.resampling import FEWEST, of_row, with_interval

TITLE = "Final metric"
CAPTION = (
    "A dot is the mean over seeds of an average's final metric minus the last iterate's, its bar the 95 % interval; 0 "
    "is no change."
)
RULE = (
    "The final metric is that of the last step; runs that diverged or are unfinished have none. Differences are paired "
    "by seed with the last iterate. An effect is excluded where the whole interval lies within 1 % of its metric."
)
SHOWN = (
    Shown(
        "test_metrics",
        "On the test split, at the end of training",
        ("workload", "training_label", "scheme_label", "test_metric", "test_difference", "effect"),
    ),
)
COLUMNS = {"test_difference": Column("test − baseline's", "+.3g")}


def tables(core: Core) -> dict[str, pd.DataFrame]:
    return {
        "generalization": core.labelled(core.general),
        "auxiliary_metrics": core.labelled(auxiliary_metrics(core.cells, core.records, core.pairs)),
        "test_metrics": core.labelled(test_metrics(core.cells, core.study.test, core.pairs)),
    }


def test_metrics(cells: pd.DataFrame, test: pd.DataFrame, pairs: pd.DataFrame) -> pd.DataFrame:
    """The metric on the test split at the end of training: one row a setting that was evaluated there.

    Args: test: records of the test split, of `study.Study`.
    workload, training, setting · num_seeds, of finished cells with a finite value · test_metric, and test_difference:
    cell − baseline of the same schedule and seed: means with bootstrap _low and _high, NaN for one seed alone (a
    non-averaged setting has no difference) · num_pairs · effect, of test_difference, as in `generalization`.
    """
    if test.empty:
        return pd.DataFrame(columns=[*metrics.SETTING, "effect"])
    by_cell = metrics.metrics_by_cell(cells, test)
    table = metrics.generalization(by_cell[by_cell["final_metric"].notna()], pairs)
    names = {name: name.replace("final_", "test_") for name in table.columns if name.startswith("final_")}
    return table.drop(columns=[name for name in table.columns if name.startswith("best_")]).rename(columns=names)


def auxiliary_metrics(cells: pd.DataFrame, records: pd.DataFrame, pairs: pd.DataFrame) -> pd.DataFrame:
    """Metrics other than the target's, at the end of training: one row a (setting, metric).

    workload, training, setting, metric · num_seeds, of finished cells with a finite value at their last step ·
    final, and difference: cell − baseline of the same schedule and seed: means with bootstrap _low and _high, NaN
    for one seed alone (a non-averaged setting has no difference).
    """
    names = [name for name in records.columns if name.startswith(BESIDE)]
    finished = cells.loc[cells["state"] == "finished", ["cell_id", *metrics.SETTING, "seed", "last_step"]]
    last = records[["cell_id", "step", *names]].drop_duplicates("cell_id", keep="last").merge(finished, on="cell_id")
    last = last[last["step"] == last["last_step"]].rename(columns=lambda name: name.removeprefix(BESIDE))
    own = [name.removeprefix(BESIDE) for name in names]
    table = last.melt(["cell_id", *metrics.SETTING, "seed"], own, "metric", "final").astype({"final": float})
    baseline = table[["cell_id", "metric", "final"]].set_axis(["baseline_cell_id", "metric", "baseline"], axis=1)
    table = table.merge(same_schedule(pairs)[["cell_id", "baseline_cell_id"]], "left").merge(baseline, "left")
    table = table.assign(difference=table["final"] - table["baseline"])[np.isfinite(table["final"])]
    found = metrics.over_seeds(table, ["final", "difference"], [*metrics.SETTING, "metric"])
    return found.sort_values(["workload", "setting", "metric"])


def chart(generalization: pd.DataFrame, look: Look) -> alt.ConcatChart | None:
    """Final metric minus the baseline's, paired by seed, with intervals and a line at 0."""
    if "final_difference" not in generalization:
        return None
    table = generalization[generalization["setting"].isin(look.shown["setting"])]
    table = table[table["final_difference"].notna() & (table["scheme"] != "none")]
    table = table.assign(scheme_name=table["scheme"].map(SCHEME_NAMES)).rename(columns={"num_pairs": "pairs"})
    parts = []
    for workload, mine in table.groupby("workload", sort=True):
        info = look.shown[look.shown["workload"] == workload].iloc[0]
        side = "right" if info["higher_is_better"] else "left"
        x = f"final {info['metric_name']} − baseline's ({side} of 0 is better)"
        rows, colour = look.rows(mine, str(workload)), charts.scheme_colour(look.averages)
        dots = charts.dots_and_whiskers(mine, "final_difference", rows, x, colour, 0.0)
        parts.append(charts.titled(dots, str(workload), **charts.row_size(mine)))
    return charts.grid(parts)


def sentences(
    generalization: pd.DataFrame, test_metrics: pd.DataFrame, generalization_by_cell: pd.DataFrame,
    settings: pd.DataFrame, chosen: pd.DataFrame, primary: tuple[str, float],
) -> list[str]:  # fmt: skip
    """What the pre-specified average changes at the end of training: by workload, over all, on the test split."""
    picked = leading(chosen, primary[0])
    higher = settings.groupby("workload")["higher_is_better"].first().astype(bool).to_dict()
    found = _by_workload(generalization, "final", picked, higher)
    if found is None:
        return []
    label = picked["scheme_label"].mode()[0]
    return [
        f"{label}, pre-specified, against the last iterate at the end of training: {found}.",
        *_over_workloads(generalization_by_cell, settings, picked, higher),
        *(f"On the test split: {one}." for one in [_by_workload(test_metrics, "test", picked, higher)] if one),
    ]


def _by_workload(table: pd.DataFrame, split: str, picked: pd.DataFrame, higher: Mapping[Any, bool]) -> str | None:
    """In words: where better and worse are shown, a change is excluded, or seeds lack."""
    name = f"{split}_difference"
    if name not in table:
        return None
    rows = table[table["setting"].isin(picked["setting"]) & table[name].notna()].to_dict("records")
    if not rows:
        return None
    found = []
    for row in rows:
        margin = verdicts.MARGIN * abs(row[f"{split}_metric"] - row[name])
        verdict = verdicts.verdict(of_row(row, name), row["num_pairs"], none=0.0, margin=margin, logs=False)
        worse = -row[name] if higher[row["workload"]] else row[name]
        found.append((row["workload"], worse, verdict))
    text = f"{with_bound(rows[0], name, '+.3g')} on {rows[0]['workload']}; " if len(found) == 1 else ""
    return text + words.tally(found, "better", "worse")


def _over_workloads(
    by_cell: pd.DataFrame, settings: pd.DataFrame, picked: pd.DataFrame, higher: Mapping[Any, bool]
) -> list[str]:
    """The factor over several workloads; one whose metric is 0 or below at a time has none."""
    pairs = final_changes(by_cell, settings, picked, higher)
    total, number = over_workloads(pairs), pairs["workload"].nunique()
    if number < 2:
        return []
    verdict = verdicts.verdict(total, num_units(pairs))
    told = words.told(verdict, 0, "workloads" if number >= FEWEST else "seeds", above="an effect")
    return [
        f"Over {number} workloads it changes the metric by a factor of {with_interval(total, '.4f')} (below 1 is "
        f"better): {told}."
    ]
