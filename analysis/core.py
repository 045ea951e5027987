"""What every section of a report starts from: crossings, pairs and ratios of one study."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import pandas as pd

from analysis.run_folder.study import Study, training_axes
from analysis.statistics import device_hours, generalization, survival, verdicts
from analysis.statistics import pairs as paired
from analysis.statistics.resampling import of_row
from analysis.statistics.steps_to_target import median_curves, steps_to_target


@dataclass(frozen=True)
class Core:
    """One study and its crossings, seed by seed. Tables have the columns that their makers say."""

    study: Study
    steps: pd.DataFrame  # steps_to_target.steps_to_target, one row a cell
    hours: pd.DataFrame  # device_hours.hours_to_target
    baselines: pd.DataFrame  # non-averaged trainings, best first
    pairs: pd.DataFrame  # each average's cell with its baselines of the same seed
    by_seed: pd.DataFrame  # the ratio of each pair
    ratios: pd.DataFrame  # the same over seeds
    by_cell: pd.DataFrame  # best and final metric
    run: Path | None = None  # its folder

    @property
    def cells(self) -> pd.DataFrame:
        return self.study.cells

    @property
    def records(self) -> pd.DataFrame:
        return self.study.records

    @property
    def unit(self) -> str:
        """What a device-hour is called here."""
        return device_hours.unit(self.cells)

    @property
    def primary(self) -> tuple[str, float]:
        """The pre-specified scheme and horizon, as a share of the step budget."""
        named = self.study.plan.get("primary") or {}
        return str(named.get("scheme", "ema")), float(named.get("horizon", paired.CHOSEN_HORIZON))

    @cached_property
    def reference(self) -> dict[str, int]:
        """workload -> the training that the headline figures show."""
        return paired.reference_training(self.cells, self.baselines)

    @cached_property
    def chosen(self) -> pd.DataFrame:
        """The pre-specified setting of each workload and scheme, on the reference training."""
        return paired.chosen_settings(self.cells, self.reference, self.primary[1])

    @cached_property
    def horizons(self) -> pd.DataFrame:
        """Ratio against horizon, one row a setting."""
        return horizon_map(self.ratios, self.cells)

    @cached_property
    def general(self) -> pd.DataFrame:
        """Best and final metric of each setting, and what averaging changes in them."""
        return generalization.generalization(self.by_cell, self.pairs)

    @cached_property
    def medians(self) -> pd.DataFrame:
        """The median learning curve of each setting."""
        return median_curves(self.cells, self.records)

    @cached_property
    def restricted_means(self) -> pd.DataFrame:
        """RMST, one row a setting."""
        return survival.restricted_means(self.cells, self.steps)

    @cached_property
    def training_axes(self) -> pd.DataFrame:
        """Where each training stands among those of its workload."""
        return training_axes(self.cells)

    @cached_property
    def settings(self) -> pd.DataFrame:
        """`settings`, and whether each is of the reference training."""
        table = settings(self.cells, self.steps, self.ratios, self.general)
        return table.assign(reference=table["training"].isin(list(self.reference.values())))

    def frames(self) -> dict[str, pd.DataFrame]:
        """Tables that several sections read, by the name of their CSV file."""
        named = self.named(self.steps).merge(self.hours, on="cell_id", how="left")
        return {
            "settings": self.settings,
            "steps_to_target": named,
            "ratios": self.labelled(self.ratios),
            "ratios_by_seed": self.labelled(self.by_seed),
            "horizon_map": self.labelled(self.horizons),
            "baselines": self.baselines,
            "chosen": self.chosen,
            "median_curves": self.labelled(self.medians),
            "generalization_by_cell": self.named(
                self.by_cell.drop(columns=["workload", "training", "setting", "seed"])
            ),
        }

    def labelled(self, table: pd.DataFrame) -> pd.DataFrame:
        """With the names of each row's setting."""
        names = ["setting", "scheme", "scheme_label", "training_label", "horizon_fraction"]
        new = [name for name in names[1:] if name not in table.columns]
        return table.merge(self.cells.drop_duplicates("setting")[["setting", *new]], on="setting", how="left")

    def named(self, table: pd.DataFrame) -> pd.DataFrame:
        """With the names of each row's cell in front."""
        new = ["cell_id", "workload", "training", "setting", "seed", "scheme_label", "training_label"]
        return self.cells[new].merge(table, on="cell_id", how="right")


def core(study: Study, run: Path | None = None) -> Core:
    """Steps-to-target, pairs, ratios and metrics."""
    cells, records = study.cells, study.records
    steps = steps_to_target(cells, records)
    by_cell = generalization.metrics_by_cell(cells, records)
    scores, hours = paired.score(cells, by_cell, steps), device_hours.hours_to_target(cells, records, steps)
    pairs = paired.pair(cells, scores)
    by_seed = paired.ratios_by_seed(pairs, steps, hours)
    return Core(study, steps, hours, scores, pairs, by_seed, paired.ratios(by_seed), by_cell, run)


# Equal in all cells of a setting.
SAME = ["workload", "training", "training_label", "scheme", "scheme_label", "horizon_fraction", "metric_name"]
SAME += ["higher_is_better", "target", "step_budget"]


def settings(cells: pd.DataFrame, steps: pd.DataFrame, ratios: pd.DataFrame, general: pd.DataFrame) -> pd.DataFrame:
    """One row a setting: labels, seeds, steps-to-target, ratio to the same schedule, best metric.

    steps_to_target: median over seeds, missed ranked at the step budget, and where more than half missed a lower bound
    of it; NaN while seeds that are not finished may change it · num_unfinished: seeds that go on, num_open: those of
    them that have not met the target · num_censored: seeds that missed ·
    ratio, ratio_low, ratio_high: geometric mean with interval · bound: what the ratio is (`pairs.ratios`) ·
    verdict: of `analysis.words`; None without a ratio.
    """
    names = ["cell_id", "counted_steps", "ranked_steps", "censored", "status"]
    merged = cells.merge(steps[names], on="cell_id", how="left")
    merged["missed"] = merged["status"].isin(["missed", "diverged"])
    merged["unfinished"] = merged["state"] == "unfinished"
    merged["open"] = merged["ranked_steps"].isna() & merged["status"].notna()
    merged["at_least"] = merged["ranked_steps"].mask(merged["open"], merged["last_step"].astype(float))
    merged["at_most"] = merged["ranked_steps"].mask(merged["open"], np.inf)
    table = merged.groupby("setting", as_index=False, sort=True).agg(
        **{name: (name, "first") for name in SAME},
        num_seeds=("seed", "nunique"),
        num_unfinished=("unfinished", "sum"),
        num_open=("open", "sum"),
        steps_to_target=("at_most", "median"),
        at_least=("at_least", "median"),
        least=("counted_steps", "median"),
        num_censored=("missed", "sum"),
    )
    known = table["steps_to_target"] == table.pop("at_least")  # whatever the runs that go on will say
    most_missed = 2 * table["num_censored"] > table["num_seeds"]
    table["steps_to_target"] = table["steps_to_target"].where(known).mask(most_missed, table.pop("least"))
    same = ratios[ratios["versus"] == "same schedule"]
    same = same.rename(columns={f"geometric_mean{end}": f"ratio{end}" for end in ("", "_low", "_high")})
    rows = same.to_dict("records")
    found = [verdicts.verdict(of_row(row, "ratio"), row["num_pairs"], bound=row["bound"]).word for row in rows]
    same["verdict"] = pd.Series(found, same.index, dtype="str").where(same["bound"] != "none")
    table = table.merge(same[["setting", "ratio", "ratio_low", "ratio_high", "bound", "verdict"]], "left", on="setting")
    if "best_metric" in general:
        keep = ["setting", "best_metric", "final_metric", "effect"]
        return table.merge(general[keep], on="setting", how="left")
    return table.assign(best_metric=np.nan, final_metric=np.nan, effect=None)


def horizon_map(ratios: pd.DataFrame, cells: pd.DataFrame) -> pd.DataFrame:
    """One row a (workload, training, scheme, setting) against the baseline of the same schedule.

    LAWA and EMA on one axis, horizon_fraction. ratio, low, high: geometric mean over seeds · median ·
    num_pairs · bound (see `pairs.ratios`) · best: the smallest ratio of its scheme here (the
    first among equals), lower bounds apart · flat: its interval covers that best ratio; NaN where it has none.
    """
    columns = ["setting", "scheme", "scheme_label", "horizon_fraction", "horizon_steps", "every_steps"]
    names = {"geometric_mean": "ratio", "geometric_mean_low": "low", "geometric_mean_high": "high"}
    same = ratios[ratios["versus"] == "same schedule"].rename(columns=names)
    table = same.merge(cells.drop_duplicates("setting")[columns], on="setting", how="left")
    table = table[table["horizon_fraction"].notna()]
    keys = ["workload", "training", "scheme"]
    candidate = table["ratio"].where(~table["bound"].isin(["at least", "mixed", "none"]))
    smallest = candidate.groupby([table[name] for name in keys]).transform("min")
    flat = ((table["low"] <= smallest) & (smallest <= table["high"])).astype("boolean")
    table["best"] = candidate.notna() & (candidate == smallest)
    table["best"] &= table.groupby([*keys, "best"]).cumcount() == 0
    table["flat"] = flat.where(table["low"].notna() & smallest.notna())
    keep = [*keys, "setting", *columns[2:], "ratio", "low", "high", "median", "num_pairs", "bound", "best", "flat"]
    return table.sort_values([*keys, "horizon_fraction", "setting"], kind="stable")[keep].reset_index(drop=True)


def flat_run(flat: Sequence[bool], place: int) -> tuple[int, int]:
    """Where the run of neighbours that are flat begins and ends around a place, itself flat or not."""
    low = high = place
    while low > 0 and flat[low - 1]:
        low -= 1
    while high < len(flat) - 1 and flat[high + 1]:
        high += 1
    return low, high
