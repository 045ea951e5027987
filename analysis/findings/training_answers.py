"""The answer at the top of a study that varies its training: one sentence, with its interval."""

from __future__ import annotations

import pandas as pd

from analysis import basin
from analysis.findings import conclusions
from analysis.findings.training_findings import ratio, verdict, word
from analysis.resampling import of_row, with_interval
from analysis.study import Study
from analysis.tables import Tables


def answer(study: Study, tables: Tables) -> str:
    """The answer to what a study that varies its training asks; of any other, that of `conclusions.answer`."""
    axes = set(tables.across_trainings["axis"])
    judged = {
        "lr": _basin_answer,
        "optimizer": _optimizer_answer,
        "schedule": _decay_answer,
        "length": _length_answer,
    }
    said = judged[axes.pop()](tables) if len(axes) == 1 and axes <= set(judged) else None
    return said or conclusions.answer(study, tables)


def _basin_answer(tables: Tables) -> str | None:
    rows = tables.basin[(tables.basin["rule"] == basin.REACHES) & tables.basin["effect"].notna()]
    label = _front(tables, set(rows["scheme_label"]))
    rows = rows[rows["scheme_label"] == label]
    said = [
        f"{r['workload']} {with_interval(of_row(r, 'difference'), '+.2f')} octaves ({word(r['effect'], 'no effect')})"
        for r in rows.to_dict("records")
    ]
    wider = int((rows["effect"] == "wider").sum())
    return (
        f"{label} widens the range of peak LRs that reach the target on {wider} of {len(rows)} workloads: "
        f"{'; '.join(said)}."
        if said
        else None
    )


def _optimizer_answer(tables: Tables) -> str | None:
    rows = tables.across_trainings
    rows = rows[(rows["scheme"] != "none") & rows["ratio"].notna() & rows["ratio_low"].notna()]
    label = _front(tables, set(rows["scheme_label"]))
    rows = rows[rows["scheme_label"] == label]
    said = [f"{name}: {', '.join(_beside(part))}" for name, part in rows.groupby("name", sort=True)]
    fewer = sum(verdict(row) == "fewer" for row in rows.to_dict("records"))
    return (
        f"{label} needs fewer steps to the target than raw runs of the same optimizer in {fewer} of {len(rows)} "
        f"pairs of workload and optimizer: {'; '.join(said)}."
        if said
        else None
    )


def _beside(part: pd.DataFrame) -> list[str]:
    return [f"{row['workload']} {ratio(row)}" for row in part.to_dict("records")]


def _decay_answer(tables: Tables) -> str | None:
    rows = tables.against_decayed
    rows = rows[rows["best"].astype(bool) & (rows["end_lr"] == 1) & rows["effect"].notna()]
    said = [
        f"{r['workload']} {r['scheme_label']} {with_interval(of_row(r, 'difference'), '+.3g')} "
        f"({word(r['effect'], 'not told apart')})"
        for r in rows.to_dict("records")
    ]
    replaced = int((rows["effect"] != "worse").sum())
    return (
        f"On a constant LR the best-looking average, picked after the fact, replaces the decay on {replaced} of "
        f"{len(rows)} workloads; its final metric minus the decayed raw run's: {'; '.join(said)}."
        if said
        else None
    )


def _length_answer(tables: Tables) -> str | None:
    rows = tables.shorter_schedules[tables.shorter_schedules["effect"].notna()]
    label = _front(tables, set(rows["scheme_label"]))
    rows = rows[rows["scheme_label"] == label]
    count = {word: int((rows["effect"] == word).sum()) for word in ("ahead", "level", "behind")}
    return (
        f"{label} of the full-length run is ahead of the raw run of a shorter schedule, at that schedule's end, in "
        f"{count['ahead']}, level in {count['level']} and behind in {count['behind']} of {len(rows)} pairs of workload "
        "and schedule (95 % intervals, paired by seed)."
        if len(rows)
        else None
    )


def _front(tables: Tables, known: set[str]) -> str | None:
    """The average that speaks for a study: of those fixed beforehand, the scheme that `conclusions` puts first."""
    near = tables.chosen[tables.chosen["near"]]
    for scheme in conclusions.answer_schemes(tables):
        for label in near.loc[near["scheme"] == scheme, "scheme_label"]:
            if label in known:
                return str(label)
    return None
