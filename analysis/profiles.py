"""Performance profiles and scores for a report: of imported submissions, and of the schemes of a study of ours.

A scheme of ours submits its runs on the reference training, at the horizon fixed beforehand; its seeds are its
studies. What counts is counted twice: submissions by two rules, schemes in steps and in device-hours. Frames, each with
a column measure (a rule, or what is counted):
score_times: submission, workload · time (a miss ∞), ratio to the best, num_studies, num_missed, scored ·
score_scores: submission · score, low, high, integral, num_fastest, num_workloads ·
score_leads: submission (the first), versus · difference, low, high ·
score_profile: submission, tau · share, at each τ where a share changes ·
score_differences: of logs, between the two rules.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from analysis.algoperf_score import (
    TAU,
    areas,
    best_trials,
    code_of,
    differences,
    performance_profile,
    ratios_to_best,
    scored_times,
    seconds_to_target,
    trials_to_target,
)
from analysis.core import Core
from analysis.resampling import RESAMPLES, draws_of, interval, widening
from analysis.study import SCHEME_NAMES

Floats = NDArray[np.float64]
CLEAN, EXACT, STEPS = "clean", "algoperf-exact", "steps"
FEWEST = 3  # workloads, for a profile of a study of ours
FRAMES = ("times", "scores", "leads", "profile")

RULE = (
    "t(s, w): the median over studies, a miss counted as ∞; r: its ratio to the best submission's; ρ(τ): the share of "
    "workloads on which r ≤ τ; score: the area under ρ from 1 to 4, divided by 3, by trapezoid on 100 points "
    "(AlgoPerf's definition; Dahl et al. 2023). It depends on who else takes part. Intervals resample studies within "
    "each workload (10,000 resamples, percentile, widened for few): they speak of these workloads."
)


def of_submissions(evaluations: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """The clean rule with intervals, AlgoPerf's beside it; nothing where no base workload was run.

    Args: evaluations: of `analysis.algoperf_score.read_evaluations`.
    """
    parts: dict[str, dict[str, pd.DataFrame]] = {}
    for measure in (CLEAN, EXACT):
        exact = measure == EXACT
        code = code_of(evaluations, exact)
        studies = best_trials(trials_to_target(evaluations, exact), exact)
        studies = studies.rename(columns={"seconds": "time"})
        medians = seconds_to_target(studies.rename(columns={"time": "seconds"}))
        times = scored_times(medians, code)
        if times.empty:
            continue
        every = medians.rename(columns={"seconds": "time"})[
            ["submission", "workload", "time", "num_studies", "num_missed"]
        ]
        parts[measure] = _measured(measure, times, studies, every, paired=False, intervals=not exact)
    return _joined(parts) | {"score_differences": differences(evaluations)} if CLEAN in parts else {}


def of_schemes(core: Core) -> dict[str, pd.DataFrame]:
    """Of a study with a baseline and pre-specified settings on FEWEST workloads or more, else nothing.

    A workload takes part where every run of every scheme has ended; a scheme where it was run on all of those.
    """
    runs = _runs(core)
    waiting = runs.loc[runs["status"] == "unfinished", "workload"]
    runs = runs[~runs["workload"].isin(waiting)]
    counts = runs.groupby("submission")["workload"].nunique()
    runs = runs[runs["submission"].isin(counts.index[counts == runs["workload"].nunique()])]
    if runs["workload"].nunique() < FEWEST or runs["submission"].nunique() < 2:
        return {}
    measures = {STEPS: "point", core.unit: "device_hours"}
    parts = {}
    for measure, column in measures.items():
        studies = runs.assign(time=runs[column].where(runs["status"] == "met", np.inf).fillna(np.inf))
        found = studies.assign(missed=np.isinf(studies["time"])).groupby(["submission", "workload"], sort=True)
        every = found.agg(
            time=("time", "median"), num_studies=("study", "nunique"), num_missed=("missed", "sum")
        ).reset_index()
        times = every.pivot(index="submission", columns="workload", values="time")
        parts[measure] = _measured(measure, times, studies, every, paired=True)
    return _joined(parts)


def _runs(core: Core) -> pd.DataFrame:
    """submission, workload, study (seed), status, point, device_hours: the runs that stand for each scheme."""
    every = core.cells.drop_duplicates("setting")
    own = every[(every["scheme"] == "none") & (every["training"] == every["workload"].map(core.reference))]
    picked = pd.concat([own, core.chosen[core.chosen["near"].astype(bool)]])[["setting", "scheme"]]
    picked = picked.assign(submission=picked["scheme"].map(SCHEME_NAMES).fillna(picked["scheme"]))
    runs = core.named(core.steps).merge(core.hours, on="cell_id", how="left")
    runs = runs.merge(picked[["setting", "submission"]], on="setting", how="inner").rename(columns={"seed": "study"})
    runs = runs.sort_values(["submission", "workload", "study"], kind="stable")
    return runs[["submission", "workload", "study", "status", "point", "device_hours"]]


def _measured(
    measure: str, times: pd.DataFrame, studies: pd.DataFrame, every: pd.DataFrame, paired: bool, intervals: bool = True
) -> dict[str, pd.DataFrame]:
    """Args: times: submissions × workloads that the score takes. every: all medians, with those it does not take."""
    shown = np.unique(np.concatenate([[1.0, TAU[-1]], ratios_to_best(times).to_numpy(dtype=float).ravel()]))
    profile = performance_profile(times, shown[np.isfinite(shown) & (shown <= TAU[-1])])
    changes = profile["share"] != profile.groupby("submission")["share"].shift()
    profile = profile[changes | (profile["tau"] == TAU[-1])]
    scores = areas(times, performance_profile(times))
    fastest = (times == times.min(axis=0)) & np.isfinite(times)
    scores = scores.assign(num_fastest=[int(fastest.loc[name].sum()) for name in scores["submission"]])
    scores = scores.sort_values(["score", "submission"], ascending=[False, True], kind="stable")
    best = every.groupby("workload")["time"].transform("min")
    ratio = np.where(np.isfinite(every["time"]), every["time"] / best, np.inf)
    leads = _leads(scores)
    if intervals:
        draws = _score_draws(times, studies, paired)
        factor = _factor(times, studies)
        scores = _with_bounds(scores, "score", [draws[name] for name in scores["submission"]], factor, 0.0)
        apart = [draws[a] - draws[b] for a, b in zip(leads["submission"], leads["versus"], strict=True)]
        leads = _with_bounds(leads, "difference", apart, factor, -1.0)
    else:
        scores, leads = (table.assign(low=np.nan, high=np.nan) for table in (scores, leads))
    columns = ["submission", "score", "low", "high", "integral", "num_fastest", "num_workloads"]
    found = {
        "times": every.assign(ratio=ratio, scored=every["workload"].isin(times.columns)),
        "scores": scores[columns],
        "leads": leads,
        "profile": profile,
    }
    return {name: table.assign(measure=measure).reset_index(drop=True) for name, table in found.items()}


def _leads(scores: pd.DataFrame) -> pd.DataFrame:
    """How far the highest score lies above each other one."""
    first, rest = scores.iloc[0], scores.iloc[1:]
    return pd.DataFrame(
        {"submission": first["submission"], "versus": rest["submission"], "difference": first["score"] - rest["score"]}
    )


def _score_draws(times: pd.DataFrame, studies: pd.DataFrame, paired: bool) -> Mapping[str, Floats]:
    """submission -> its score over resamples of the studies of each workload; together where they are paired."""
    medians = np.full((RESAMPLES, *times.shape), np.inf)
    groups = dict(iter(studies.groupby(["submission", "workload"], sort=True)["time"]))
    for column, workload in enumerate(times.columns):
        for row, submission in enumerate(times.index):
            if (submission, workload) in groups:
                values = groups[submission, workload].to_numpy(dtype=float)
                seed = 1 + column if paired else 1 + row + column * len(times)
                medians[:, row, column] = draws_of(values, seed, np.median)
    with np.errstate(invalid="ignore"):
        ratio = medians / medians.min(axis=1, keepdims=True)
    weights = np.full(len(TAU), 1.0 / (len(TAU) - 1))  # of the trapezoid
    weights[[0, -1]] /= 2
    beyond = np.append(np.cumsum(weights[::-1])[::-1], 0.0)  # from the first point of TAU with τ ≥ r on
    place = np.searchsorted(TAU, np.where(np.isnan(ratio), np.inf, ratio))
    drawn = beyond[place].mean(axis=2)
    return {str(name): drawn[:, row] for row, name in enumerate(times.index)}


def _factor(times: pd.DataFrame, studies: pd.DataFrame) -> float:
    """What widens the interval; NaN where some submission has one study of a workload."""
    return widening(*studies[studies["workload"].isin(times.columns)].groupby(["submission", "workload"]).size())


def _with_bounds(table: pd.DataFrame, name: str, draws: list[Floats], factor: float, least: float) -> pd.DataFrame:
    columns = np.stack(draws, axis=1) if draws else np.empty((RESAMPLES, 0))
    value, low, high = interval(table[name].to_numpy(dtype=float), columns, factor, scale=1.0)
    low, high = np.clip([low, high], least, 1.0)
    return table.assign(low=np.minimum(low, value), high=np.maximum(high, value))


def _joined(parts: dict[str, dict[str, pd.DataFrame]]) -> dict[str, pd.DataFrame]:
    found = {}
    for name in FRAMES:
        table = pd.concat([part[name] for part in parts.values()], ignore_index=True)
        found[f"score_{name}"] = table[["measure", *(column for column in table if column != "measure")]]
    return found
