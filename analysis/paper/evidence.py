"""The records of a run folder that holds the paper's studies, and any setting of them against any other."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from analysis.run_folder.study import Study
from analysis.statistics.device_hours import hours_to_target
from analysis.statistics.pairs import KEYS, metric_changes, overall_bound, steps_ratios
from analysis.statistics.steps_to_target import steps_to_target


@dataclass(frozen=True)
class Evidence:
    """Cells, records, steps-to-target and device-hours of a run folder."""

    cells: pd.DataFrame
    records: pd.DataFrame
    steps: pd.DataFrame
    hours: pd.DataFrame

    def pick(self, study: str, scheme: str | list[str] = "none", horizon: Any = None, **axes: Any) -> pd.DataFrame:
        """The cells of a study with one of these schemes, the horizon nearest to this one, and these values on axes."""
        schemes = [scheme] if isinstance(scheme, str) else scheme
        mine = self.cells[self.cells["studies"].map(lambda names: study in names) & self.cells["scheme"].isin(schemes)]
        for axis, value in axes.items():
            mine = mine[
                np.isclose(mine[axis].astype(float), value) if isinstance(value, float) else mine[axis] == value
            ]
        if horizon is not None:
            off = pd.Series(np.log(mine["horizon_fraction"].astype(float) / horizon)).abs()
            # Of several snapshot intervals at one horizon, the study's common one comes first.
            common = (mine["every_steps"].astype(float) / mine["step_budget"] - 0.001).abs()
            mine = mine.assign(off=off.round(2), common=common)[off < 0.2]
            mine = mine.sort_values(["off", "common", "cell_id"], kind="stable").groupby(["training", "seed"]).head(1)
        return mine

    def compare(
        self, top: pd.DataFrame, bottom: pd.DataFrame, quantity: str = "steps", match: Sequence[str] = (),
        at: float | None = None, bottom_at: float | None = None,
    ) -> pd.DataFrame:  # fmt: skip
        """`top` ÷ `bottom`: workload, seed, value (the log of the ratio, below 0 where the top is better), bound (of
        `analysis.statistics.pairs`) and what is matched, once for each value of `match` that both have.

        quantity: ``steps`` (to the target) or ``final_metric``, then at a share of the step budget where one is given.
        A workload in which several cells of a seed could stand for one side is left out.
        """

        def pairs(top: pd.DataFrame, bottom: pd.DataFrame) -> pd.DataFrame:
            if quantity == "steps":
                return steps_ratios(top, bottom, self.steps, self.hours)
            higher = top.groupby("workload")["higher_is_better"].first().astype(bool).to_dict()
            changes = metric_changes(self.metric(top, at), self.metric(bottom, bottom_at), higher)
            return changes.assign(bound="exact")

        keys = [*KEYS, *match]
        unclear = {name for side in (top, bottom) for name in side.loc[side.duplicated(keys), "workload"]}
        top, bottom = (side[~side["workload"].isin(unclear)] for side in (top, bottom))
        if not match:
            return pairs(top, bottom)
        mine, others = (dict(list(side.groupby(list(match), sort=True))) for side in (top, bottom))
        shared = (key for key in mine if key in others)
        found = [pairs(mine[key], others[key]).assign(**dict[str, Any](zip(match, key, strict=True))) for key in shared]
        known = [one for one in found if one["value"].notna().any()]
        return pd.concat(known) if known else pd.DataFrame(columns=[*KEYS, "value", "bound", *match])

    def metric(self, cells: pd.DataFrame, at: float | None = None) -> pd.DataFrame:
        """workload, seed, value: the metric at the last step trained, or linear at a share of the step budget."""
        rows = self.records[self.records["cell_id"].isin(cells["cell_id"])]
        series = dict(list(rows[np.isfinite(rows["metric"].astype(float))].groupby("cell_id", sort=True)))
        found = []
        for cell in cells[(cells["state"] == "finished") & cells["cell_id"].isin(series)].to_dict("records"):
            step = cell["last_step"] if at is None else round(at * cell["step_budget"])
            steps, values = (series[cell["cell_id"]][name].to_numpy(dtype=float) for name in ("step", "metric"))
            value = float(np.interp(step, steps, values, left=np.nan, right=np.nan))
            found.append((cell["workload"], cell["seed"], value))
        return pd.DataFrame(found, columns=[*KEYS, "value"])


def mean(compared: pd.DataFrame, match: Sequence[str]) -> pd.DataFrame:
    """One value a (workload, seed), the mean over what was matched, so that seeds alone are resampled."""
    if not match or compared.groupby(list(match)).ngroups == 1:
        return compared
    return compared.groupby(KEYS).agg(value=("value", "mean"), bound=("bound", overall_bound)).reset_index()


def evidence(study: Study) -> Evidence:
    """Of a study, or of all cells of a run folder (`study.read`).

    Adds axes that claims compare on. lr_factor: the peak LR ÷ the workload's own (that of study speedup) · decay: the
    share of the step budget over which the LR decays, or WSM emulates that it does · batch_factor: batch size ÷ the
    workload's own · horizon_share: horizon_fraction, rounded.
    """
    cells = study.cells
    own = cells[cells["studies"].map(lambda names: "speedup" in names)].drop_duplicates("workload")
    emulated = (cells["k"].astype(float) * cells["every_steps"].astype(float) / cells["step_budget"]).round(4)
    batch = cells["own_batch_size"].astype(float)
    cells = cells.assign(
        lr_factor=cells["lr"] / cells["workload"].map(own.set_index("workload")["lr"]),
        decay=emulated.where(cells["scheme"] == "wsm", cells["lr_decay"].astype(float).round(4)),
        batch_factor=cells["batch_size"].astype(float).fillna(batch) / batch,
        horizon_share=cells["horizon_fraction"].astype(float).round(4),
    )
    steps = steps_to_target(cells, study.records)
    return Evidence(cells, study.records, steps, hours_to_target(cells, study.records, steps))
