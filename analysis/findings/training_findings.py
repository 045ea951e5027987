"""Sentences on averages across trainings: learning rates, optimizers, schedules, lengths, snapshot intervals."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pandas as pd

from analysis import basin
from analysis.findings import conclusions
from analysis.pairs import direction, in_front, sign
from analysis.resampling import Interval, of_row, with_interval
from analysis.study import SCHEME_NAMES, percent
from analysis.tables import Tables
from analysis.training_axis import TITLES


def title(tables: Tables) -> str:
    """The heading of the figure: what varies."""
    axes = set(tables.across_trainings["axis"])
    one = TITLES[str(next(iter(axes)))].split(",")[0] if len(axes) == 1 else TITLES["training"]
    return f"Raw and averaged, by {one}"


def findings(tables: Tables) -> list[str]:
    """What the figure across trainings shows, by the question its axis puts."""
    found = [*basin_findings(tables), *optimizer_findings(tables), *decay_findings(tables)]
    rows = tables.across_trainings
    named = rows[rows["axis"].isin(["batch_size", "length", "training"])]
    named = named[named["fixed"] & (named["scheme"] != "none") & named["ratio"].notna()]
    for workload, part in named.groupby("workload", sort=True):
        said = [
            f"{name}: {', '.join(r['scheme_label'] + ' ' + ratio(r) for r in mine.to_dict('records'))}"
            for name, mine in part.groupby("name", sort=False)
        ]
        where = TITLES[str(part["axis"].iloc[0])]
        found.append(f"{workload}, steps ÷ those of the raw run of the same training, by {where}: {'; '.join(said)}.")
    return found


def basin_findings(tables: Tables) -> list[str]:
    """Does averaging widen the basin of peak LRs: by both rules, workload by workload."""
    found = []
    for (workload, rule), part in tables.basin.groupby(["workload", "rule"], sort=True):
        raw = part[part["scheme"] == "none"]
        if raw.empty or raw["width"].isna().all():
            continue
        base = raw.iloc[0]
        met = f" ({base['num_met']} of {base['num_runs']} runs)" if rule == basin.REACHES else ""
        text = (
            f"{workload}, part of the LR grid of {base['grid']:.2g} octaves that {rule}: raw "
            f"{with_interval(of_row(base, 'width'))}{met}"
        )
        said = []
        for row in part[(part["scheme"] != "none") & part["difference"].notna()].to_dict("records"):
            met = f" ({row['num_met']} of {row['num_runs']} runs)" if rule == basin.REACHES else ""
            change = with_interval(of_row(row, "difference"), "+.2f")
            said.append(f"{row['scheme_label']} {change}{met}: {word(row['effect'], 'no effect')}")
        edge = part["num_at_edge"].max()
        tail = "; a basin that touches an end of the grid may be wider than it shows" if edge else ""
        found.append(f"{text}; averages against it, in octaves: {'; '.join(said)}{tail}.")
    return found


def optimizer_findings(tables: Tables) -> list[str]:
    """What averaging saves with each optimizer, and raw optimizers against each other."""
    found = []
    rows = tables.across_trainings
    rows = rows[(rows["axis"] == "optimizer") & rows["fixed"] & (rows["scheme"] != "none")]
    for (workload, name), part in rows.groupby(["workload", "name"], sort=True):
        said = [f"{r['scheme_label']} {ratio(r)}: {verdict(r)}" for r in part.to_dict("records") if _known(r)]
        missed = [f"{r['scheme_label']}: {r['bound']}" for r in part.to_dict("records") if not _known(r)]
        if said or missed:
            text = "; ".join([*said, *(f"{one} (no ratio: both runs miss, or wait)" for one in missed)])
            found.append(f"{workload}, {name}, steps ÷ those of its own raw run: {text}.")
    for row in tables.optimizers.to_dict("records"):
        head = f"{row['workload']}, raw {row['optimizer']} against raw {row['reference']}"
        if pd.isna(row["geometric_mean"]):
            found.append(f"{head}: no ratio ({row['num_both_missed']} pairs both miss, {row['num_pending']} wait).")
            continue
        steps, hours = (of_row(row, name) for name in ("geometric_mean", "hours_ratio"))
        bound = sign(row["bound"])
        found.append(
            f"{head}: {bound}{with_interval(steps)} of the steps ({_less(steps, row['bound'])}) and "
            f"{bound}{with_interval(hours)} of the device-hours ({_less(hours, row['bound'])})."
        )
    return found


def decay_findings(tables: Tables) -> list[str]:
    """Can averaging replace decay, and does it add to it: counts over workloads, then each one's numbers."""
    rows = tables.against_decayed
    if rows.empty:
        return []
    found = []
    averages = rows[rows["scheme"] != "none"]
    for kind, part in averages.groupby(_kind(averages), sort=False):
        judged = part[part["best"].astype(bool) & part["effect"].notna()]
        if judged.empty:
            continue
        where = {word: list(judged.loc[judged["effect"] == word, "workload"]) for word in ("better", "none", "worse")}
        counts = (
            f"better on {_named(where['better'])}, not told apart on {_named(where['none'])}, worse on "
            f"{_named(where['worse'])}"
        )
        total, best = len(judged), "the best-looking average, picked after the fact,"
        if part["decayed"].all():
            number = len(where["better"])
            found.append(
                f"Decay and averaging together: {best} is better than decay alone on {number} of {total} workloads "
                f"({counts})."
            )
        else:
            number = len(where["better"]) + len(where["none"])
            found.append(
                f"With {kind} {best} replaces the decay on {number} of {total} workloads: its final metric is {counts}."
            )
    for (workload, versus), part in rows.groupby(["workload", "versus"], sort=True):
        said = []
        for name, mine in part.groupby("name", sort=False):
            keep = mine[(mine["scheme"] == "none") | mine["best"].astype(bool) | mine["fixed"].astype(bool)]
            keep = keep[keep["difference"].notna()]
            numbers = [
                f"{'raw' if r['scheme'] == 'none' else r['scheme_label']} "
                f"{with_interval(of_row(r, 'difference'), '+.3g')}: {word(r['effect'], 'no difference shown')}"
                for r in keep.to_dict("records")
            ]
            said += [f"{name}: {', '.join(numbers)}"] if numbers else []
        if said:
            found.append(f"{workload}, final metric − that of the raw run on {versus}: {'; '.join(said)}.")
    return found


def schedule_findings(tables: Tables) -> list[str]:
    """Averages of the full run where each shorter schedule ends; then what `conclusions` says of the schedules."""
    found = []
    shorter = tables.shorter_schedules
    chosen = set(in_front(tables.chosen)["setting"])
    judged = shorter[shorter["setting"].isin(chosen) & shorter["effect"].notna()]
    for label, part in judged.groupby("scheme_label", sort=True):
        for _, mine in part.groupby("length_fraction", sort=True):
            share = percent(float(mine["length_fraction"].iloc[0]))
            where = {word: list(mine.loc[mine["effect"] == word, "workload"]) for word in ("ahead", "level", "behind")}
            found.append(
                f"{label} of the full run, at the end of a schedule of {share}, is ahead of the "
                f"raw run of that schedule on {_named(where['ahead'])}, level on {_named(where['level'])}, behind on "
                f"{_named(where['behind'])}."
            )
    for (workload, name), part in judged.groupby(["workload", "scheme_label"], sort=True):
        said = [
            f"{percent(r['length_fraction'])} {with_interval(of_row(r, 'difference'), '+.3g')}: {r['effect']}"
            for r in part.to_dict("records")
        ]
        found.append(f"{workload}, {name}, metric − that of the raw run whose schedule ends at {'; '.join(said)}.")
    axes = tables.across_trainings.drop_duplicates("training")
    own = set(axes.loc[axes["axis"].isin(["lr", "batch_size", "optimizer"]), "workload"])
    part = tables.schedules[~tables.schedules["workload"].isin(own)]
    ours = tables.chosen[~tables.chosen["workload"].isin(own)]
    return found + conclusions.schedule_findings(replace(tables, schedules=part, chosen=ours)) if len(part) else found


def snapshot_findings(tables: Tables) -> list[str]:
    """At equal horizon, does the snapshot interval matter?"""
    table = tables.snapshot_interval
    table = table[table["ratio"].notna() & table["spread"].notna()]
    found = []
    for (workload, scheme), part in table.groupby(["workload", "scheme"], sort=True):
        judged = part[part["effect"].notna()]
        differ = judged[judged["effect"] != "none"].to_dict("records")
        name = SCHEME_NAMES.get(str(scheme), str(scheme))
        widest = part.sort_values("spread").iloc[-1]
        text = (
            f"{workload}, {name}, settings of equal horizon: in {len(part)} {'group' if len(part) == 1 else 'groups'} "
            f"they differ by up to {100 * (widest['spread'] - 1):.1f} % in steps"
        )
        if part["width"].notna().any():
            text += f", while the interval of one spans {100 * (float(part['width'].median()) - 1):.1f} %"
        if judged.empty:
            found.append(f"{text}; no group has an interval (one seed, or all of them equal).")
        elif not differ:
            text += ": the snapshot interval shows no effect"
            found.append(f"{text} in any of them (rarest against most frequent snapshots, paired by seed).")
        else:
            said = [
                f"{_horizons(r)} (every {r['coarsest']} against {r['finest']} steps) "
                f"{with_interval(of_row(r, 'ratio'), '.3f')}"
                for r in differ
            ]
            found.append(
                f"{text}; the rarest snapshots differ from the most frequent ones in {len(differ)} of {len(judged)}, "
                f"at a horizon of {'; '.join(said)} of the steps."
            )
    return found


def _horizons(row: Any) -> str:
    low, high = percent(row["horizon_from"]), percent(row["horizon_to"])
    return low if low == high else f"{low} to {high}"


def _kind(rows: pd.DataFrame) -> pd.Series:
    """The schedules of one kind over workloads: those that decay fully, constant ones, those to the same share."""
    share = rows["end_lr"].map(
        lambda end: "a constant LR" if end == 1 else f"a decay to {percent(float(end))} of the peak"
    )
    return share.where(~rows["decayed"].astype(bool), "full decay")


def _named(workloads: list[str]) -> str:
    return f"{len(workloads)} ({', '.join(workloads)})" if workloads else "none"


def _known(row: Any) -> bool:
    return bool(row["ratio"] == row["ratio"])


def ratio(row: Any) -> str:
    return sign(row["bound"]) + with_interval(of_row(row, "ratio"))


def verdict(row: Any) -> str:
    return _less(of_row(row, "ratio"), row["bound"]).replace("none shown", "no effect")


def _less(interval: Interval, bound: str) -> str:
    """'fewer', 'more', 'none shown', 'undecided' or 'no interval'."""
    return word(direction(interval, bound), "none shown")


def word(effect: Any, none: str) -> str:
    return none if effect == "none" else "no interval" if effect is None or effect != effect else str(effect)
