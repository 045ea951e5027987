"""Is the metric at the end of training better with an average?"""

from __future__ import annotations

from typing import Any

import altair as alt
import numpy as np
import pandas as pd

from analysis import chart as charts
from analysis import generalization as metrics
from analysis.chart import Look
from analysis.core import Core
from analysis.records import BESIDE
from analysis.study import SCHEME_NAMES
from analysis.table_format import Column, Shown

TITLE = "Final metric"
CAPTION = ""
RULE = ""
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

    Args: test: records of the test split, of `analysis.study.Study`.
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
    columns = ["cell_id", "workload", "training", "setting", "seed", "last_step"]
    finished = cells[cells["state"] == "finished"][columns]
    last = records[["cell_id", "step", *names]].drop_duplicates("cell_id", keep="last")
    last = last.merge(finished, on="cell_id")
    last = last[last["step"] == last["last_step"]]
    same = pairs[pairs["versus"] == "same schedule"].set_index("cell_id")["baseline_cell_id"]
    found = []
    for name in names:
        values = last.set_index("cell_id")[name].astype(float)
        table = last.assign(final=last[name].astype(float))
        table["difference"] = table["final"] - table["cell_id"].map(same).map(values)
        table = metrics.over_seeds(table[np.isfinite(table["final"])], ["final", "difference"])
        table.insert(3, "metric", name.removeprefix(BESIDE))
        found += [table] if len(table) else []
    empty = pd.DataFrame(columns=[*metrics.SETTING, "metric"])
    return pd.concat(found).sort_values(["workload", "setting", "metric"]) if found else empty


def chart(generalization: pd.DataFrame, look: Look) -> alt.ConcatChart | None:
    """Final metric minus the baseline's, paired by seed, with intervals and a line at 0."""
    if "final_difference" not in generalization:
        return None
    table = generalization[generalization["setting"].isin(look.shown["setting"])]
    table = table[table["final_difference"].notna() & (table["scheme"] != "none")]
    table = table.assign(scheme_name=table["scheme"].map(SCHEME_NAMES).fillna(table["scheme"]))
    table = table.rename(columns={"num_pairs": "pairs"})
    parts: list[Any] = []
    for workload in look.workloads:
        mine = table[table["workload"] == workload]
        if mine.empty:
            continue
        info = look.shown[look.shown["workload"] == workload].iloc[0]
        side = "right" if info["higher_is_better"] else "left"
        x = f"final {info['metric_name']} − baseline's ({side} of 0 is better)"
        dots = charts.dots_and_whiskers(
            *(mine, None, "final_difference", "final_difference", look.rows(mine, workload), x),
            colour=charts.scheme_colour(look.averages),
            at=0.0,
        )
        parts.append(charts.titled(dots, workload, **charts.row_size(mine)))
    return charts.grid(parts)
