"""Two run folders side by side: what differs around them, and the cells they share, by steps-to-target and metric."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from analysis.presentation.table_format import Column, Shown, aligned, table
from analysis.run_folder import records
from analysis.run_folder.study import AVERAGING, TRAINING, Study, counted, read, versions
from analysis.statistics import device_hours, generalization, verdicts
from analysis.statistics.pairs import ratios, ratios_by_seed
from analysis.statistics.steps_to_target import steps_to_target

RULE = (
    "Cells are the same where workload, preset, seed and every axis of training and averaging are equal, whatever "
    "their ids. Each is compared with its twin, paired by seed: steps-to-target of B over A (geometric mean over "
    "seeds, missed targets counted at the step budget) and final metric of B minus A (mean), with bootstrap 95 % "
    "intervals. Where the targets differ, both runs are measured at A's. Of settings that do not differ about one in "
    "twenty looks as if it did."
)
_SHOWN = 40  # rows of a table in the text


@dataclass(frozen=True)
class Comparison:
    """Two runs compared; `text` is for a terminal.

    differences: what, A's, B's, in targets, versions, devices, where it matters to the numbers first ·
    settings: one row a shared setting: workload, schedule, scheme, num_pairs, num_exact, num_missed (of B),
    num_missed_a, bound (of the ratio, see `pairs.ratios`), steps_ratio, hours_ratio, final_difference: each with _low
    and _high · steps, metric: ``fewer``, ``more``, ``undecided`` (a bound on the wrong side), ``better``, ``worse`` or
    ``none``, None without an interval · only_a, only_b: workload, schedule, scheme, seeds · num_identical: shared cells
    whose records have the same steps and metrics to the last bit.
    """

    a: str
    b: str
    differences: pd.DataFrame
    settings: pd.DataFrame
    only_a: pd.DataFrame
    only_b: pd.DataFrame
    num_shared: int
    num_identical: int

    def text(self) -> str:
        """The answer first, then what differs around them, the shared settings, and what only one of them has."""
        num_a, num_b = (int(side["num_cells"].sum()) for side in (self.only_a, self.only_b))
        parts = [f"A: {self.a}", f"B: {self.b}", ""]
        both = f"{counted(self.num_shared, 'cell')} {'is' if self.num_shared == 1 else 'are'} in both"
        identical = f", {self.num_identical:,} the same to the last bit" if self.num_shared else ""
        parts.append(f"{both}{identical}; {num_a:,} only in A, {num_b:,} only in B.")
        parts += [_verdict(self.settings)] if self.num_shared else []
        differ = ["", "What differs around them", _aligned(self.differences)]
        parts += differ if len(self.differences) else ["Targets, versions and devices are the same."]
        if self.num_shared:
            parts += ["", aligned(table(self.settings, Shown("", "", tuple(_COLUMNS)), _COLUMNS, _SHOWN))]
        for name, side in (("A", self.only_a), ("B", self.only_b)):
            if len(side):
                parts += ["", f"Only in {name}", _aligned(_by_schedule(side))]
        return "\n".join([*parts, "", RULE])

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        frames = {name: getattr(self, name) for name in ("differences", "settings", "only_a", "only_b")}
        made = {name: json.loads(frame.to_json(orient="records")) for name, frame in frames.items()}
        return {"a": self.a, "b": self.b, "shared": self.num_shared, "identical": self.num_identical, **made}


def compare(a: str | Path, b: str | Path) -> Comparison:
    """steps_ratio = geometric mean over seeds of steps-to-target(B) / steps-to-target(A), of settings both have.

    Raises: analysis.run_folder.records.BadRun.
    """
    studies = [(run, read(run), prefix) for run, prefix in ((a, "a:"), (b, "b:"))]
    cells_a, cells_b = (_keyed(run, study.cells, prefix) for run, study, prefix in studies)
    twins = cells_b.merge(cells_a[["key", "cell_id"]], on="key", suffixes=("", "_a"))
    numbers = {key: number for number, key in enumerate(sorted(set(twins["setting_key"])))}
    twins = twins.assign(setting=twins["setting_key"].map(numbers).astype("int64"), training=0)
    # What ratios and metrics call a baseline of the same training.
    pairs = twins.assign(versus="same schedule", baseline_cell_id=twins["cell_id_a"])
    pairs = pairs[["versus", "workload", "training", "setting", "seed", "cell_id", "baseline_cell_id"]]
    both = pd.concat([cells_a, cells_b], ignore_index=True)
    targets = both.groupby("workload")["target"].transform("first")  # A's, B's where A has none
    both = both.assign(training=0, setting=both["setting_key"].map(numbers), target=targets.astype(float))
    both = both[both["setting"].notna()].astype({"setting": "int64"})
    rows = pd.concat([_prefixed(of.records, prefix) for _, of, prefix in studies], ignore_index=True, join="inner")
    rows = rows[rows["cell_id"].isin(both["cell_id"])].reset_index(drop=True)
    only = _only(cells_a, set(cells_b["key"])), _only(cells_b, set(cells_a["key"]))
    around = [_around(study, cells) for (_, study, _), cells in zip(studies, (cells_a, cells_b), strict=True)]
    shared = set(cells_a["workload"]) & set(cells_b["workload"])
    differ = [
        (what, *(side.get(what) or "–" for side in around))
        for what in dict.fromkeys(name for side in around for name in side)
        if around[0].get(what) != around[1].get(what)
        and (not what.startswith("target") or what.split(" of ")[1] in shared)
    ]
    differences, settings = pd.DataFrame(differ, columns=["what", "A", "B"]), _settings(both, rows, pairs, twins)
    return Comparison(str(a), str(b), differences, settings, *only, len(twins), _identical(rows, pairs))


def _keyed(run: str | Path, cells: pd.DataFrame, prefix: str) -> pd.DataFrame:
    # Workload names without the preset that `read` adds where a study has several.
    names = records.load_cells(run).set_index("cell_id")["workload"]
    cells = cells.assign(workload=cells["cell_id"].map(names))
    rows = cells[[*TRAINING, *AVERAGING]].to_dict("records")
    cells["setting_key"] = [" ".join(f"{name}={_same(value)}" for name, value in row.items()) for row in rows]
    cells["key"] = cells["setting_key"] + " seed=" + cells["seed"].astype(str)
    return _prefixed(cells, prefix).drop_duplicates("key")


def _same(value: Any) -> str:
    # Ten digits: a share written by another version may differ in the last bits.
    if value is None or pd.isna(value):
        return ""
    return f"{value:.10g}" if isinstance(value, (int, float, np.number)) else str(value)


def _prefixed(table: pd.DataFrame, prefix: str) -> pd.DataFrame:
    """Ids of the two runs may be equal: they are told apart by their run."""
    return table.assign(cell_id=prefix + table["cell_id"], trajectory_id=prefix + table["trajectory_id"])


def _settings(cells: pd.DataFrame, rows: pd.DataFrame, pairs: pd.DataFrame, twins: pd.DataFrame) -> pd.DataFrame:
    names = twins.drop_duplicates("setting")[["setting", "workload", "training_label", "scheme_label"]]
    names = names.sort_values("setting", kind="stable").set_axis(["setting", "workload", "schedule", "scheme"], axis=1)
    steps = steps_to_target(cells, rows)
    hours = device_hours.hours_to_target(cells, rows, steps)
    over_seeds = ratios(ratios_by_seed(pairs, steps, hours))
    over_seeds = over_seeds.rename(columns=lambda name: name.replace("geometric_mean", "steps_ratio"))
    over_seeds["num_missed"] = over_seeds["num_at_least"] + over_seeds["num_both_missed"]
    over_seeds["num_missed_a"] = over_seeds["num_at_most"] + over_seeds["num_both_missed"]
    counts, ends = ["num_pairs", "num_exact", "num_missed", "num_missed_a", "bound"], ("", "_low", "_high")
    keep = [f"{name}{end}" for name in ("steps_ratio", "hours_ratio") for end in ends]
    found = names.merge(over_seeds[["setting", *counts, *keep]], "left", on="setting")
    general = generalization.generalization(generalization.metrics_by_cell(cells, rows), pairs)
    keep = [f"final_difference{end}" for end in ends]
    if "final_difference" in general:  # a row a setting, of B's cells: A's are the baselines
        general = general[general["final_difference"].notna()]
        found = found.merge(general[["setting", *keep, "effect"]], on="setting", how="left")
    else:
        found = found.assign(**dict.fromkeys(keep, np.nan), effect=None)
    every = pairs.groupby("setting").size()
    found["num_pairs"] = found["num_pairs"].fillna(found["setting"].map(every)).astype("int64")
    found["steps"] = [verdicts.side(row, "steps_ratio", row["num_pairs"]) for row in found.to_dict("records")]
    found = found.rename(columns={"effect": "metric"}).drop(columns="setting")
    several = found["num_pairs"] > 1  # which have no interval where all are equal, but no effect either
    found["steps"] = found["steps"].mask(several & (found["steps_ratio"] == 1), "none")
    found["metric"] = found["metric"].mask(several & (found["final_difference"] == 0), "none")
    order = ["workload", "schedule", "scheme", *counts]
    return found[[*order, *(name for name in found.columns if name not in order)]].reset_index(drop=True)


def _identical(rows: pd.DataFrame, pairs: pd.DataFrame) -> int:
    groups = rows.groupby("cell_id", sort=False)[["step", "metric"]]
    of = {name: part.to_numpy(dtype=np.float64, na_value=np.nan) for name, part in groups}
    ids = zip(pairs["cell_id"], pairs["baseline_cell_id"], strict=True)
    return sum(a in of and b in of and np.array_equal(of[a], of[b], equal_nan=True) for a, b in ids)


def _only(cells: pd.DataFrame, others: set[str]) -> pd.DataFrame:
    """What the other run lacks: a row a setting, with the seeds that it lacks there."""
    mine, names = cells[~cells["key"].isin(others)], ["workload", "training_label", "scheme_label"]
    rows = [
        (*part.iloc[0][names], ", ".join(map(str, sorted(set(part["seed"])))), len(part))
        for _, part in mine.groupby("setting_key", sort=True)
    ]
    return pd.DataFrame(rows, columns=["workload", "schedule", "scheme", "seeds", "num_cells"])


def _around(study: Study, cells: pd.DataFrame) -> dict[str, str]:
    """What stands around a run, targets first; package versions as planned with where nothing has been trained."""
    found, planned = {}, study.plan.get("targets") or {}
    for workload, part in cells.groupby("workload", sort=True):
        values = sorted(set(part["target"].dropna()))
        found[f"target of {workload}"] = ", ".join(f"{value:.8g}" for value in values) or "none"
        if of := planned.get(str(workload)):
            found[f"target rule of {workload}"] = str(of.get("rule"))
            found[f"target seeds of {workload}"] = ", ".join(map(str, of.get("seeds") or []))
    seen = versions(study.trials) or {name: [str(one)] for name, one in (study.plan.get("versions") or {}).items()}
    found |= {f"version of {package}": " / ".join(seen[package]) for package in sorted(seen)}
    columns = {"device": study.trials["device_name"], "host": study.trials["host"], "kind of device": cells["device"]}
    columns |= {"devices a trial": cells["num_devices"], "processes a trial": cells["processes"]}
    found |= {what: " / ".join(map(_plain, sorted(set(of.dropna())))) for what, of in columns.items()}
    unfinished = int((cells["state"] == "unfinished").sum())
    return found | {"cells unfinished": str(unfinished), "fuse": str(study.plan.get("fuse", True))}


def _plain(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def _verdict(settings: pd.DataFrame) -> str:
    """How many settings are on which side."""
    said = []
    columns = (("steps", "steps-to-target", ("fewer", "more")), ("metric", "final metric", ("better", "worse")))
    for column, what, kinds in columns:
        count = Counter(settings[column].dropna())
        sides = ", ".join(f"{kind} in {count[kind]}" for kind in kinds)
        rest = count.total() - sum(count[kind] for kind in kinds)
        without = len(settings) - count.total()
        tail = f", without an interval {without}" if without else ""
        said.append(f"{what} of B shown {sides}, not told apart in {rest}{tail}" if count else f"{what}: no interval")
    return f"{counted(len(settings), 'setting')} in both: {'; '.join(said)}."


def _missed(row: Mapping[Any, Any]) -> str:
    return "–" if pd.isna(row["num_missed"]) else f"{row['num_missed']:.0f} ({row['num_missed_a']:.0f})"


_COLUMNS = {name: Column(name) for name in ("workload", "schedule", "scheme")}
_COLUMNS |= {"num_pairs": Column("seeds"), "steps_ratio": Column("steps B/A", ".3f")}
_COLUMNS |= {"num_missed": Column("missed B (A)", _missed), "steps": Column("steps")}
_COLUMNS |= {"final_difference": Column("final metric B−A", "+.3g", ""), "metric": Column("metric")}


def _by_schedule(only: pd.DataFrame) -> pd.DataFrame:
    """A row a (workload, schedule, seeds): its schemes in a line."""
    keys, rows = ["workload", "schedule", "seeds"], []
    for key, part in only.groupby(keys, sort=True):
        schemes = list(dict.fromkeys(part["scheme"]))
        more = f" and {len(schemes) - 8} more" if len(schemes) > 8 else ""
        rows.append((*key, ", ".join(schemes[:8]) + more))
    return pd.DataFrame(rows, columns=[*keys, "schemes"])


def _aligned(frame: pd.DataFrame) -> str:
    """The first rows as columns, and how many more there are."""
    made = table(frame, Shown("", "", tuple(frame.columns)), {name: Column(name) for name in frame.columns}, _SHOWN)
    return aligned(made) + (f"\n  … and {made.left_out:,} more" if made.left_out else "")
