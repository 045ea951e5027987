"""Does ``global_step`` count optimizer steps? Some submissions count their own calls, of many steps each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from statistics import median

from sweeps.importers.algoperf_trials import Evaluation, Trial

# Counters of optimizer steps run at 0.15 to 3.7 times the hinted pace on every published log (V100 and A100, both
# frameworks), counters of calls at 0.0015 to 0.027 times: the threshold lies between, and as far on the other side.
PACE = 16
STALLED = 0.1  # nor does a counter count steps that stands still in a larger share of the intervals

_Group = tuple[str, str, str]  # submission, workload, framework


def label(trials: Sequence[Trial], told: frozenset[str]) -> list[Trial]:
    """Labels the trials whose global_step cannot be optimizer steps.

    What a counter counts is the submission's own, so its trials on one workload are judged together, by their median
    pace: beside step hint ÷ longest time, or beside the other submissions' in the same framework where two or more
    of those are faster than the hint. Where no trial is long enough to tell, the submission's other workloads in
    that framework do, if they agree. A counter that falls or stands still is seen in its own trial.
    """
    paces: dict[_Group, list[float]] = {}
    for trial in trials:
        if (pace := _pace(trial.evaluations)) is not None:
            paces.setdefault(trial.group, []).append(pace)
    usual = {group: median(of) for group, of in paces.items()}
    hinted = {trial.group: trial.facts.pace for trial in trials}
    off = {group: _off_pace(group, usual, hinted[group]) for group in usual}
    return [replace(trial, not_steps=_why(trial, off, told)) for trial in trials]


def _why(trial: Trial, off: dict[_Group, str | None], told: frozenset[str]) -> str | None:
    if trial.submission in told:
        return "said so"
    pairs = list(pairwise(trial.evaluations))
    if any(after.step < before.step for before, after in pairs):
        return "it falls while the clock runs on"
    stalled = sum(after.step == before.step for before, after in pairs)
    if stalled > max(1.0, STALLED * len(pairs)):
        return f"it stands still in {stalled} of {len(pairs)} intervals"
    if trial.group in off:
        return off[trial.group]
    elsewhere = [why for group, why in off.items() if group[::2] == trial.group[::2]]
    if trial.evaluations and elsewhere and all(elsewhere):
        return "too short to tell, and it counts none on any other workload"
    return None


def _off_pace(group: _Group, usual: dict[_Group, float], hinted: float) -> str | None:
    mine = usual[group]
    others = [pace for other, pace in usual.items() if other[1:] == group[1:] and other != group]
    beside = max(hinted, median(others)) if len(others) > 1 else hinted
    if beside / PACE <= mine <= beside * PACE:
        return None
    whose = "" if beside == hinted else f", {mine / beside:.2g} times that of the others in {group[2]}"
    limit = f"1/{PACE}" if mine < beside else str(PACE)
    return f"it runs at {mine / hinted:.2g} times the hinted pace{whose}; the threshold is {limit}"


def _pace(evaluations: tuple[Evaluation, ...]) -> float | None:
    """Counts a second from the first evaluation on (before it lies compilation), None where too short to tell."""
    if len(evaluations) < 2 or evaluations[-1].seconds <= evaluations[0].seconds:
        return None
    first, last = evaluations[0], evaluations[-1]
    return (last.step - first.step) / (last.seconds - first.seconds)
