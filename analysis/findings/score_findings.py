"""What the scores say, in computed sentences: who leads by how much, and who is fastest where."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from analysis.profiles import EXACT, Profiles
from analysis.resampling import Interval, with_interval


def answer(found: Profiles) -> str:
    """The one sentence for submissions: which reaches most targets soonest, and how far its score leads."""
    scores = _of(found, found.scores)
    names = list(scores["submission"])
    workloads = int(scores["num_workloads"].iloc[0])
    most = scores[scores["num_fastest"] == scores["num_fastest"].max()]
    counts = f"{int(most['num_fastest'].iloc[0])} of {workloads} {_plural(workloads, 'workload')}"
    leader = names[0]
    if len(names) == 1:
        missed = workloads - int(scores["num_fastest"].iloc[0])
        return (
            f"One submission, {leader}: it meets the target on {counts}"
            f"{f' and misses it on {missed}' if missed else ''}. A score compares submissions, and there is no other."
        )
    if most["num_fastest"].iloc[0] == 0:
        where = "the one workload" if workloads == 1 else f"any of {workloads} workloads"
        return f"No submission of {len(names)} meets a target on {where}."
    fastest = _and(list(most["submission"]))
    text = f"{fastest} {'reach' if len(most) > 1 else 'reaches'} most targets soonest, on {counts}"
    lead = _of(found, found.leads).iloc[0]
    if len(most) == 1 and most["submission"].iloc[0] == leader:
        return f"{text}, and has the highest score, {_number(scores.iloc[0], 'score')}{_lead(lead)}."
    return f"{text}; {leader} has the highest score, {_number(scores.iloc[0], 'score')}{_lead(lead)}."


def findings(found: Profiles | None) -> list[str]:
    """Scores with their leads, who is fastest where, who misses, and what the rule or the unit changes."""
    if found is None:
        return []
    said = []
    for measure in found.measures:
        if measure != EXACT:
            said += _measured(found, measure)
    if found.imported:
        said += _misses(found)
        said += _rules(found)
    return said


def _measured(found: Profiles, measure: str) -> list[str]:
    scores, leads = _of(found, found.scores, measure), _of(found, found.leads, measure)
    counted = "" if found.imported else f", in {measure}"
    each = "; ".join(f"{row['submission']} {_number(row, 'score')}" for row in scores.to_dict("records"))
    said = [f"Score{counted}: {each}."]
    beside = [f"{row['versus']} by {_number(row, 'difference')}" for row in leads.to_dict("records")]
    shown = [row for row in leads.to_dict("records") if row["low"] > 0]
    if beside:
        leader = leads["submission"].iloc[0]
        verdict = "" if len(shown) == len(leads) else _not_shown(leads)
        said.append(f"{leader} leads {_and(beside)}{counted}{verdict}.")
    times = _of(found, found.times, measure)
    times = times[times["scored"].astype(bool)]
    workloads = times["workload"].nunique()
    first = times[(times["ratio"] == 1) & np.isfinite(times["time"])]
    won = {name: sorted(part["workload"]) for name, part in first.groupby("submission", sort=True)}
    parts = [
        f"{name} on {len(won[name])} ({', '.join(won[name])})" if name in won else f"{name} on none"
        for name in scores["submission"]
    ]
    best = times.groupby("workload")["time"].min()
    nobody = sorted(best.index[~np.isfinite(best)])
    tail = f"; nobody meets the target on {_and(nobody)}" if nobody else ""
    said.append(f"Fastest of {workloads} {_plural(workloads, 'workload')}{counted}: {', '.join(parts)}{tail}.")
    return said


def _not_shown(leads: pd.DataFrame) -> str:
    if leads["low"].isna().all():
        return "; no lead has an interval (one study a workload, or all of them equal)"
    said = []
    for unknown, why in ((False, "its interval covers 0"), (True, "it has no interval")):
        equal = sorted(leads.loc[~(leads["low"] > 0) & (leads["low"].isna() == unknown), "versus"])
        said += [f"; the lead over {_and(equal)} may be none: {why}"] if equal else []
    return "".join(said)


def _misses(found: Profiles) -> list[str]:
    times = _of(found, found.times)
    totals = times.groupby("submission", sort=True)[["num_missed", "num_studies"]].sum()
    if not totals["num_missed"].any():
        return []
    parts = [f"{name} {row.num_missed} of {row.num_studies}" for name, row in totals.iterrows()]
    return [f"Studies in which no trial meets the target, variants of workloads included: {', '.join(parts)}."]


def _rules(found: Profiles) -> list[str]:
    if EXACT not in found.measures:
        return []
    between = found.differences
    scores = between[between["what"] == "score"]
    if len(scores):
        words = scores[["clean", "exact"]].map(lambda score: "none" if np.isnan(score) else f"{score:.3f}")
        parts = [
            f"{submission} {exact} instead of {clean}"
            for submission, clean, exact in zip(scores["submission"], words["clean"], words["exact"], strict=True)
        ]
        return [f"By AlgoPerf's own code the scores differ: {', '.join(parts)}."]
    count = int((between["what"] == "seconds").sum())
    tail = f"; {count} {_plural(count, 'time')} to a target {'differs' if count == 1 else 'differ'}" if count else ""
    return [f"AlgoPerf's own code gives the same scores{tail}."]


def _of(found: Profiles, table: pd.DataFrame, measure: str | None = None) -> pd.DataFrame:
    return table[table["measure"] == (measure or found.measures[0])]


def _lead(row: Any) -> str:
    ahead = f", {_number(row, 'difference')} ahead of {row['versus']}"
    if np.isnan(row["low"]):
        return f"{ahead} (no interval: one study a workload, or all of them equal)"
    return ahead if row["low"] > 0 else f"{ahead}: no lead is shown, the interval covers 0"


def _number(row: Any, name: str) -> str:
    return with_interval(Interval(row[name], row["low"], row["high"]), ".3f")


def _and(words: list[str]) -> str:
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"


def _plural(number: int, word: str) -> str:
    return word if number == 1 else f"{word}s"
