"""The records of a run folder that holds the paper's studies, and any setting of them against any other."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from analysis.device_hours import hours_to_target
from analysis.pairs import KEYS, metric_changes, steps_ratios
from analysis.steps_to_target import steps_to_target
from analysis.study import Study


@dataclass(frozen=True)
class Evidence:
    """The records of a run folder that holds the studies, and what the findings share."""

    cells: pd.DataFrame
    records: pd.DataFrame
    steps: pd.DataFrame
    hours: pd.DataFrame

    def pick(self, study: str, scheme: str = "none", horizon: float | None = None, **axes: Any) -> pd.DataFrame:
        """The cells of a study with this scheme, the horizon nearest to this one, and these values on other axes."""
        cells = self.cells
        mine = cells[cells["studies"].map(lambda names: study in names) & (cells["scheme"] == scheme)]
        for axis, value in axes.items():
            close = np.isclose(mine[axis].astype(float), value) if isinstance(value, float) else mine[axis] == value
            mine = mine[close]
        if horizon is not None:
            off = pd.Series(np.log(mine["horizon_fraction"].astype(float) / horizon)).abs()
            # Of several snapshot intervals at one horizon, the study's common one comes first.
            common = (mine["every_steps"].astype(float) / mine["step_budget"] - 0.001).abs()
            mine = mine.assign(off=off.round(2), common=common)[off < 0.2]
            mine = (
                mine.sort_values(["off", "common", "cell_id"], kind="stable")
                .groupby(["training", "seed"], sort=True)
                .head(1)
            )
        return mine

    def ratios(self, top: pd.DataFrame, bottom: pd.DataFrame) -> pd.DataFrame:
        """Steps-to-target of `top` ÷ `bottom`, paired by seed."""
        return steps_ratios(top, bottom, self.steps, self.hours)

    def changes(
        self, top: pd.DataFrame, bottom: pd.DataFrame, at: float | None = None, *, both: bool = False
    ) -> pd.DataFrame:
        """Metric of `top` ÷ `bottom`, below 1 where `top` is better, paired by seed.

        Each at its last step; `top` at a share of the step budget, if one is given, and with `both` `bottom` too.
        """
        higher = top.groupby("workload")["higher_is_better"].first().astype(bool)
        below = self.metric(bottom, at if both else None)
        return metric_changes(self.metric(top, at), below, higher.to_dict())

    def metric(self, cells: pd.DataFrame, at: float | None = None) -> pd.DataFrame:
        """workload, seed, value: the metric at the last step trained, or linear at a share of the step budget."""
        rows = self.records[self.records["cell_id"].isin(cells["cell_id"])]
        rows = rows[np.isfinite(rows["metric"].astype(float))]
        found = []
        series = dict(list(rows.groupby("cell_id", sort=True)))
        for cell in cells.to_dict("records"):
            mine = series.get(cell["cell_id"])
            if mine is None or cell["state"] != "finished":
                continue
            step = cell["last_step"] if at is None else round(at * cell["step_budget"])
            steps, values = mine["step"].to_numpy(dtype=float), mine["metric"].to_numpy(dtype=float)
            value = float(np.interp(step, steps, values, left=np.nan, right=np.nan))
            found.append((cell["workload"], cell["seed"], value))
        return pd.DataFrame(found, columns=[*KEYS, "value"])


def evidence(study: Study) -> Evidence:
    """Of a study, or of all cells of a run folder (`analysis.study.read`)."""
    steps = steps_to_target(study.cells, study.records)
    return Evidence(study.cells, study.records, steps, hours_to_target(study.cells, study.records, steps))
