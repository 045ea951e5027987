"""Which setting of a study saves most, measured fairly: selected post hoc on some seeds, measured on the others."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd

from analysis.core import Core, flat_run
from analysis.run_folder.study import SCHEME_NAMES, percent
from analysis.statistics import verdicts
from analysis.statistics.pairs import num_units, over_workloads, overall_bound
from analysis.statistics.resampling import FEWEST, Interval, for_all

EVERYWHERE = "all workloads"
UNKNOWN = Interval(np.nan, np.nan, np.nan)
_OPTIONS = ["init", "until_full", "buffers"]  # parts of an average that its horizon does not say


@dataclass(frozen=True)
class Choice:
    """What one workload, or all together, speak for; setting is empty where there is no ratio.

    verdict: ``shown``, ``excluded``, ``undecided`` (of `analysis.words`), ``no ratio`` · needed: seeds (workloads, over
    FEWEST of them) that would decide, None if unknown · ratio: of the selected setting, on the seeds that selected it ·
    corrected: its interval, widened for num_settings · expected: on seeds that had no say · own: against the last
    iterate of its own schedule · lr_decay: share of the schedule spent decaying, smallest and largest ·
    flat: horizons of its scheme around it whose interval covers its ratio · missed, baseline_missed, both_missed,
    pending: of num_pairs.
    """

    where: str
    verdict: str
    needed: int | None = None
    setting: str = ""
    schedule: str = ""
    scheme: str = ""
    horizon: float = np.nan
    lr_decay: tuple[float, float] | None = None
    num_settings: int = 0
    ratio: Interval = UNKNOWN
    bound: str = "none"
    corrected: Interval = UNKNOWN
    expected: Interval = UNKNOWN
    own: Interval = UNKNOWN
    own_bound: str = "none"
    flat: tuple[float, float] | None = None
    num_pairs: int = 0
    missed: int = 0
    baseline_missed: int = 0
    both_missed: int = 0
    pending: int = 0


@dataclass(frozen=True)
class Snapshots:
    """The selected horizon on one workload in steps, as LAWA(k, every) and EMA(decay, every)."""

    workload: str
    step_budget: int
    horizon_steps: float
    every: int
    k: int
    decay: float | None  # None where the horizon is shorter than one interval


def pairs_of(core: Core) -> pd.DataFrame:
    """Averages against both baselines; `name` says one setting on every workload, `family` all but its horizon."""
    cells = core.cells
    axes = ["setting", "scheme", "horizon_fraction", "every_steps", "step_budget", "lr_decay", *_OPTIONS]
    named = cells[(cells["scheme"] != "none") & cells["horizon_fraction"].notna()].drop_duplicates("setting")
    named = named[[*axes, "training_label"]].rename(columns={"training_label": "schedule"})
    options = named[_OPTIONS].astype("object").where(named[_OPTIONS].notna(), "–")
    varying = [name for name in _OPTIONS if options.groupby(named["scheme"])[name].nunique().gt(1).any()]
    family = named["scheme"].map(SCHEME_NAMES)
    shares = [percent(float(share)) for share in named["horizon_fraction"]]
    tail = named["schedule"].map(lambda label: f", {label}") if named["schedule"].nunique() > 1 else ""
    for name in varying:
        tail = ", " + name.replace("_", " ") + " " + options[name] + tail
    named = named.assign(family=family + tail, name=family + " " + pd.Series(shares, named.index) + tail)
    columns = ["versus", "workload", "training", "setting", "seed", "ratio", "bound", "grid_sd"]
    table = core.by_seed[columns].merge(named, on="setting")
    fold = table.groupby("workload")["seed"].rank(method="dense")
    return table.assign(fold=fold, value=np.log(table["ratio"].astype(float)))


def choose(every: pd.DataFrame, where: str) -> Choice:
    pairs = every[every["versus"] == "best baseline"]
    num_settings = pairs["name"].nunique()
    pick = _pick(pairs)
    if pick is None:
        return Choice(where, "no ratio", num_settings=num_settings, **_count(pairs))
    mine = pairs[pairs["name"] == pick]
    expected, corrected = _held_out(pairs), _corrected(mine, num_settings)
    bound, units = overall_bound(mine["bound"]), num_units(mine)
    seen = [verdicts.verdict(one, units, bound=bound) for one in (expected, corrected)]
    word = seen[0] if seen[0].word == seen[1].word else next(one for one in seen if one.word == verdicts.UNDECIDED)
    if word.word == verdicts.SHOWN and max(expected.high, corrected.high) > 1:
        word = verdicts.Verdict(verdicts.SHOWN)  # slower is shown
    found = _measured(every, mine, where, word)
    return replace(found, num_settings=num_settings, corrected=corrected, expected=expected, flat=_flat(pairs, pick))


def _measured(every: pd.DataFrame, mine: pd.DataFrame, where: str, word: verdicts.Verdict) -> Choice:
    """One setting, against the best baseline and against its own schedule's."""
    first = mine.iloc[0]
    own = every[(every["versus"] == "same schedule") & every["setting"].isin(mine["setting"])]
    decays = mine["lr_decay"].dropna().astype(float)
    return Choice(
        where, word.word, word.needed, str(first["name"]), str(first["schedule"]), str(first["scheme"]),
        float(mine["horizon_fraction"].median()), (float(decays.min()), float(decays.max())) if len(decays) else None,
        num_settings=1, ratio=over_workloads(mine), bound=overall_bound(mine["bound"]), own=over_workloads(own),
        own_bound=overall_bound(own["bound"]), **_count(mine),
    )  # fmt: skip


def pre_specified(core: Core, pairs: pd.DataFrame) -> Choice:
    """The setting that the study names as primary, on the reference schedule of each workload; the verdict is on its
    ratio to that schedule's last iterate.
    """
    chosen = core.chosen[core.chosen["near"] & (core.chosen["scheme"] == core.primary[0])]
    rows = pairs[pairs["setting"].isin(chosen["setting"])]
    mine, own = (rows[rows["versus"] == versus] for versus in ("best baseline", "same schedule"))
    if mine.empty:
        return Choice(EVERYWHERE, "no ratio")
    word = verdicts.verdict(over_workloads(own), num_units(own), bound=overall_bound(own["bound"]))
    return _measured(pairs, mine, EVERYWHERE, word)


def _pick(pairs: pd.DataFrame) -> str | None:
    """The setting with the smallest mean log ratio of those that may be selected: see RULE."""
    by = pairs.groupby(["name", "workload"])["value"].mean().unstack()
    count = pairs["bound"].groupby(pairs["name"]).value_counts().unstack(fill_value=0)
    count = count.reindex(columns=["at least", "at most"], fill_value=0)  # one side misses
    means = by.dropna().mean(axis=1)
    means = means[means.index.isin(count.index[count["at least"] <= count["at most"]])]
    return str(means.idxmin()) if len(means) else None


def _held_out(pairs: pd.DataFrame) -> Interval:
    """Each seed measured with the setting that the other seeds select."""
    measured = []
    for fold in sorted(set(pairs["fold"])):
        out = pairs["fold"] == fold
        pick = _pick(pairs[~out])
        if pick is not None:
            measured.append(pairs[out & (pairs["name"] == pick)])
    if not measured:
        return UNKNOWN
    rows = pd.concat(measured).groupby(["workload", "seed"], as_index=False)[["value", "grid_sd"]].mean()
    return over_workloads(rows)


def _corrected(pairs: pd.DataFrame, settings: int) -> Interval:
    """For all settings: what seeds say is stretched as Student's t is, what the evaluation grid leaves as a normal."""
    whole, of_seeds = over_workloads(pairs), over_workloads(pairs.drop(columns="grid_sd"))
    seeds = pairs[pairs["value"].notna()].groupby("workload")["seed"].nunique()
    degrees = len(seeds) - 1 if len(seeds) >= FEWEST else int((seeds - 1).sum())
    one, other = for_all(of_seeds, settings, degrees), for_all(whole, settings, 10**6)
    return Interval(whole.value, float(np.fmin(one.low, other.low)), float(np.fmax(one.high, other.high)))


def _flat(pairs: pd.DataFrame, pick: str) -> tuple[float, float] | None:
    """The run of neighbouring horizons of the selected scheme whose interval covers its ratio."""
    best = pairs.loc[pairs["name"] == pick]
    value = float(np.exp(best.groupby("workload")["value"].mean().mean()))
    family = pairs[pairs["family"] == best["family"].iloc[0]]
    found = []
    for name, part in family.groupby("name"):
        one = over_workloads(part)
        found.append((float(part["horizon_fraction"].median()), name == pick, bool(one.low <= value <= one.high)))
    horizons, picked, flat = zip(*sorted(found), strict=True)
    low, high = flat_run(flat, picked.index(True))
    return (horizons[low], horizons[high]) if len(found) > 1 else None


def _count(pairs: pd.DataFrame) -> dict[str, Any]:
    def of(*kinds: str) -> int:
        return int(pairs["bound"].isin(kinds).sum())

    missed, baseline_missed = of("at least", "both missed"), of("at most", "both missed")
    counts = {"num_pairs": len(pairs), "missed": missed, "baseline_missed": baseline_missed}
    return counts | {"both_missed": of("both missed"), "pending": of("pending")}


def snapshots(overall: Choice, pairs: pd.DataFrame, every: float | None) -> Iterator[Snapshots]:
    if overall.scheme not in ("ema", "lawa"):
        return
    for workload, part in pairs[pairs["name"] == overall.setting].groupby("workload", sort=True):
        budget = int(part["step_budget"].iloc[0])
        horizon = float(part["horizon_fraction"].median()) * budget
        steps = sorted({int(one) for one in part["every_steps"]})
        if every is not None:
            steps = [max(1, round(every * budget if every < 1 else every))]
        for one in steps:
            decay = (horizon - one) / (horizon + one) if horizon >= one else None
            yield Snapshots(str(workload), budget, horizon, one, max(1, round(horizon / one)), decay)
