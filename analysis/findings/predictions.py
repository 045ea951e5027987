"""What the field predicts of averaging beyond the paper, each prediction held against the workloads that can tell.

Four predictions: that the best horizon follows the batch size, that an average needs batch-norm statistics of its own,
that one centre of mass makes LAWA and EMA alike, and that merging emulates an LR decay (sweeps/open_questions.yaml).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from analysis import paired
from analysis.findings.evidence import Evidence, evidence
from analysis.findings.finding import IN_PART, REFUTED, REPRODUCED, UNDECIDED, Finding, counted, over
from analysis.intervals import (
    LEVEL,
    RESAMPLES,
    ROUNDING,
    Interval,
    counted_quantiles,
    multisets,
    small_sample_factor,
    with_interval,
)
from analysis.output import write_csv
from analysis.paired import KEYS
from analysis.steps_to_target import steps_to_target
from analysis.study import SCHEME_NAMES, Study, percent

Floats = NDArray[np.float64]

OWN_LEVEL = 0.75  # share of the budget whose raw level is a batch size's own target
HALFWAY = 0.5  # share of the budget at which the learning rate is still high
ALIKE_STEPS, ALIKE_METRIC = 0.05, 0.01  # what still counts as equal: 5 % of the steps, 1 % of the metric
RECOMPUTE, POLICIES = "recompute", ("live", "average")
CURVES = ("linear", "cosine", "sqrt")

FILE = "predictions"
POINTS = ["question", "workload", "series", "scheme", "x", "value", "low", "high", "num_pairs"]


@dataclass(frozen=True)
class Prediction:
    """A finding, in a few words, and its points."""

    finding: Finding
    short: str  # for the answer at the top: what was measured, with its interval
    points: pd.DataFrame  # POINTS: ratios, below 1 is better; x: a share of the step budget


def of_study(study: Study) -> list[Prediction]:
    """`predictions` of a study that asks for them (``report: predictions`` in plan.json); none of another."""
    return predictions(evidence(study)) if study.plan.get("report") == "predictions" else []


def predictions(of: Evidence) -> list[Prediction]:
    """Those of the four that the records can speak of; trainings that are not finished are left out."""
    cells = of.cells[of.cells["state"] != "unfinished"]
    asked = (batch_size, batch_norm, equal_centre, merged_decay)
    return [found for found in (ask(of, cells) for ask in asked) if found is not None]


def points(found: Iterable[Prediction]) -> pd.DataFrame:
    """The points of all of them, as tables/predictions.csv has them."""
    every = [one.points for one in found]
    return pd.concat(every, ignore_index=True) if every else pd.DataFrame(columns=POINTS)


def write(found: Sequence[Prediction], folder: Path) -> None:
    """Their points as folder/predictions.csv, floats to 10 significant digits; nothing where there are none."""
    if found:
        write_csv(folder / f"{FILE}.csv", points(found))


def findings(found: Iterable[Prediction]) -> list[str]:
    """Each prediction with its verdict and what decides it, for the report."""
    return [f"{one.finding.claim} {one.finding.verdict.capitalize()}. {one.finding.here[0]}" for one in found]


# --- the best horizon and the batch size ---------------------------------------------------------------------------


def batch_size(of: Evidence, cells: pd.DataFrame) -> Prediction | None:
    """γ → γ^κ at a batch κ times as large (EMA scaling rule, Busbridge et al. 2023, NeurIPS)."""
    own = cells["own_batch_size"].astype(float)
    cells = cells.assign(factor=cells["batch_size"].astype(float).fillna(own) / own)
    cells = cells[cells["scheme"].isin(["none", "ema"])]
    cells = cells[cells.groupby("workload")["factor"].transform("nunique") > 1]
    cells = cells[cells["workload"].isin(_single(cells[cells["scheme"] == "none"], "factor")["workload"])]
    steps = steps_to_target(_with_own_target(of, cells), of.records)
    table = cells.merge(steps[["cell_id", "counted_steps", "censored"]], on="cell_id")
    raw = table[table["scheme"] == "none"].set_index(["training", "seed"])["counted_steps"].astype(float)
    table = table[(table["scheme"] == "ema") & table["counted_steps"].notna()]
    table = table.assign(
        x=np.log(table["horizon_fraction"].astype(float)), y=np.log(table["counted_steps"].astype(float))
    )
    horizons = table.groupby(["workload", "factor", "seed"])["x"].transform("nunique")
    table = table[horizons >= 3]  # a parabola
    table = table[table.groupby(["workload", "seed"])["factor"].transform("nunique") > 1]
    if table.empty:
        return None
    table["value"] = table["y"] - np.log(raw.reindex(pd.MultiIndex.from_frame(table[["training", "seed"]])).to_numpy())
    told, verdicts, drawn = [], [], []
    for workload, mine in table.groupby("workload", sort=True):
        found = horizon_exponent(mine)
        verdicts.append(_exponent(found))
        told.append(f"{with_interval(found)} on {workload}")
        for (factor, x), part in mine.groupby(["factor", "x"], sort=True):
            series = f"batch {round(_number(factor) * float(part['own_batch_size'].iloc[0])):,d}"
            drawn.append(_point("batch_size", part, series, "ema", float(np.exp(_number(x)))))
    best = [
        f"{workload} {', '.join(f'{factor:g} × {percent(_best(part))}' for factor, part in mine.groupby('factor'))}"
        for workload, mine in table.groupby("workload", sort=True)
    ]
    finding = Finding(
        "batch_size",
        "A batch κ times as large has its best horizon at 1/κ of the steps, as γ → γ^κ says (Busbridge et al. 2023).",
        _together(verdicts),
        (
            f"The best horizon goes as κ to the power {', '.join(told)}: −1 would keep its reach in examples, 0 keeps "
            f"its share of the budget. Same peak LR and number of steps; {table['seed'].nunique()} seeds.",
            f"Best of the horizons up to {percent(float(np.exp(table['x'].max())))} of the budget at each multiple of "
            f"a workload's own batch: {'; '.join(best)}. The target of a batch size is what its raw weights have after "
            f"{percent(OWN_LEVEL)} of the budget, median over seeds; {int(table['censored'].sum())} of {len(table)} "
            "averages miss it.",
        ),
        {
            REFUTED: "The rule keeps one training in examples: the same number, and the LR scaled with the batch. "
            "Here every batch size trains as many steps at one LR; how far an average may look back then follows how "
            "far the weights move, which is set by steps and LR."
        },
    )
    return Prediction(
        finding,
        f"the best horizon goes as the batch size to the power {', '.join(told)}",
        pd.DataFrame(drawn, columns=POINTS),
    )


def horizon_exponent(table: pd.DataFrame) -> Interval:
    """β of best horizon ∝ κ^β, from log steps = a(κ, seed) + b·x + c·x² + d·x·ln κ, least squares: β = −d / 2c.

    The minimum over x = ln horizon lies at −(b + d ln κ) / 2c. Seeds are resampled as a whole, the interval stretched
    by `small_sample_factor`; NaN where the fit has no minimum, infinite where that of a resample has none.
    Args: table: seed, factor (κ), x, y (log steps).
    """
    parts = []
    for _, mine in table.groupby("seed", sort=True):
        x, log_kappa = mine["x"].to_numpy(dtype=float), np.log(mine["factor"].to_numpy(dtype=float))
        design = pd.DataFrame({"b": x, "c": x**2, "d": x * log_kappa, "y": mine["y"].to_numpy(dtype=float)})
        within = (design - design.groupby(log_kappa).transform("mean")).to_numpy()  # a(κ, seed) drops out
        parts.append(within.T @ within)
    products: Floats = np.stack(parts)
    value = float(_beta(products.mean(axis=0)[None])[0])
    if len(parts) < 2 or np.isnan(value):
        return Interval(value, np.nan, np.nan)
    weights, counts = multisets(len(parts), RESAMPLES, 0)
    draws = _beta(np.einsum("us,sij->uij", weights, products))
    if np.isnan(draws).any():
        return Interval(value, -np.inf, np.inf)
    low, high = counted_quantiles(draws[:, None], counts, np.array([(1 - LEVEL) / 2, (1 + LEVEL) / 2]))[:, 0]
    if high - low <= ROUNDING:  # the same for all seeds
        return Interval(value, np.nan, np.nan)
    factor = small_sample_factor(len(parts), len(parts) - 1)
    return Interval(value, value + factor * (low - value), value + factor * (high - value))


def _beta(products: Floats) -> Floats:
    """−d / 2c of each of the normal equations, shape (u, 4, 4); NaN where c ≤ 0: no minimum."""
    solved = np.linalg.solve(products[:, :3, :3], products[:, :3, 3:])[:, :, 0]
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(solved[:, 1] > 0, -solved[:, 2] / (2 * solved[:, 1]), np.nan)


def _exponent(found: Interval) -> str:
    covers = [bool(found.low <= power <= found.high) for power in (-1.0, 0.0)]
    if np.isnan(found.low) or all(covers):
        return UNDECIDED
    return REPRODUCED if covers[0] else REFUTED


def _best(table: pd.DataFrame) -> float:
    """The horizon with the fewest steps, geometric mean over seeds."""
    return float(np.exp(float(table.groupby("x")["y"].mean().sort_values(kind="stable").index[0])))


def _with_own_target(of: Evidence, cells: pd.DataFrame) -> pd.DataFrame:
    """`cells` with what raw weights of the same training have at OWN_LEVEL, median over seeds, as their target."""
    raw = cells[cells["scheme"] == "none"]
    levels = {training: of.metric(part, OWN_LEVEL)["value"].median() for training, part in raw.groupby("training")}
    return cells.assign(target=cells["training"].map(levels).astype(float))


# --- batch-norm statistics -----------------------------------------------------------------------------------------


def batch_norm(of: Evidence, cells: pd.DataFrame) -> Prediction | None:
    """Statistics of the live model, averaged, or recomputed (SWA, Izmailov et al. 2018, recomputes)."""
    cells = cells[cells["scheme"].isin(["ema", "lawa"])]
    same = ["training", "scheme", "horizon_fraction"]
    cells = cells[cells.groupby(same)["buffers"].transform("nunique") == len(POLICIES) + 1]
    if cells.empty:
        return None
    end, halfway = (_policies(of, cells, at) for at in (None, HALFWAY))
    drawn = [
        _point("batch_norm", part, policy, "none", _number(horizon))
        for horizon, mine in cells.groupby("horizon_fraction", sort=True)
        for policy, pairs in _policies(of, mine, HALFWAY).items()
        for _, part in pairs.groupby("workload", sort=True)
    ]
    each = ", ".join(
        f"{percent(one['x'])} {with_interval(Interval(one['value'], one['low'], one['high']), '.3f')}"
        for one in drawn
        if one["series"] == "live"
    )
    live = [paired.over_workloads(pairs["live"]) for pairs in (end, halfway)]
    good = [_as_good(paired.over_workloads(pairs["average"]), ALIKE_METRIC) == REPRODUCED for pairs in (end, halfway)]
    worse = any(interval.low > 1 for interval in live)
    finding = Finding(
        "batch_norm",
        "An average needs batch-norm statistics of its own, and averaging them is as good as recomputing them (within "
        f"{percent(ALIKE_METRIC)} of the loss).",
        REPRODUCED
        if worse and all(good)
        else IN_PART
        if worse or all(good)
        else REFUTED
        if all(interval.high < 1 for interval in live)
        else UNDECIDED,
        (
            "Metric ÷ that with recomputed statistics, at the end (and halfway): "
            + "; ".join(f"{name} {over(end[name], '.4f')} ({over(halfway[name], '.3f')})" for name in POLICIES)
            + f". Mean over schemes and horizons ({', '.join(sorted(set(cells['workload'])))}).",
            f"Halfway, the live model's by horizon: {each}.",
        ),
        {
            IN_PART: "At the end of a decay to zero the live weights are the average's, and so are their statistics; "
            "the farther apart they lie, the more the policy matters."
        },
    )
    changed = with_interval(live[1], ".3f")
    short = f"halfway the live model's batch-norm statistics change an average's metric by a factor of {changed}"
    return Prediction(finding, short, pd.DataFrame(drawn, columns=POINTS))


def _policies(of: Evidence, cells: pd.DataFrame, at: float | None) -> dict[str, pd.DataFrame]:
    """log(metric with a policy ÷ with recomputed statistics) by seed, averaged over the settings of `cells`."""
    found = {}
    for policy in POLICIES:
        parts = []
        for _, mine in cells.groupby(["training", "scheme", "horizon_fraction"], sort=True):
            top, bottom = (mine[mine["buffers"] == name] for name in (policy, RECOMPUTE))
            parts.append(of.changes(top, bottom, at=at, both=True))
        found[policy] = _mean(parts)
    return found


# --- one centre of mass --------------------------------------------------------------------------------------------


def equal_centre(of: Evidence, cells: pd.DataFrame) -> Prediction | None:
    """LAWA(k) against EMA with k = (1 + γ)/(1 − γ)."""
    cells = cells[cells["scheme"].isin(["ema", "lawa"])]
    cells = cells.assign(near=cells["horizon_fraction"].astype(float).round(4))
    same = ["training", "buffers", "every_steps", "near"]
    cells = cells[cells.groupby(same)["scheme"].transform("nunique") == 2]
    parts, drawn, told = [], [], []
    for horizon, mine in cells.groupby("near", sort=True):
        each = [
            of.ratios(*(part[part["scheme"] == scheme] for scheme in ("lawa", "ema")))
            for _, part in mine.groupby(["training", "buffers", "every_steps"], sort=True)
        ]
        pairs = _mean(each)
        if pairs["value"].isna().all():
            continue
        parts.append(pairs)
        told.append(f"{percent(_number(horizon))} {over(pairs)}")
        drawn += [
            _point("equal_centre", part, "LAWA ÷ EMA", "lawa", _number(horizon))
            for _, part in pairs.groupby("workload")
        ]
    if not parts:
        return None
    pairs = _mean(parts)
    interval = paired.over_workloads(pairs)
    finding = Finding(
        "equal_centre",
        f"At equal centre of mass LAWA and EMA are alike, within {percent(ALIKE_STEPS)} of the steps.",
        _alike(interval, ALIKE_STEPS),
        (
            f"{SCHEME_NAMES['lawa']} takes {with_interval(interval)} of EMA's steps, mean over horizons "
            f"({', '.join(sorted(set(pairs['workload'])))}; {pairs['seed'].nunique()} seeds).",
            f"Horizon by horizon: {', '.join(told)}.",
        ),
    )
    short = f"at equal centre of mass LAWA takes {with_interval(interval)} of EMA's steps"
    return Prediction(finding, short, pd.DataFrame(drawn, columns=POINTS))


# --- merging instead of a decay ------------------------------------------------------------------------------------


def merged_decay(of: Evidence, cells: pd.DataFrame) -> Prediction | None:
    """Warmup-Stable-Merge (arXiv 2507.17634): merge weights that emulate an LR decay, against the decay itself."""
    constant = cells[cells["schedule"] == "constant"]
    emulated = (constant["k"] * constant["every_steps"] / constant["step_budget"]).astype(float).round(4)
    decays = cells[(cells["schedule"] == "linear") & (cells["scheme"] == "none")]
    decays = _single(decays.assign(share=decays["lr_decay"].astype(float).round(4)), "share")
    constant = constant[constant["workload"].isin(_single(constant[constant["scheme"] == "none"])["workload"])]
    merged = constant.assign(share=emulated)[constant["scheme"] == "wsm"]
    raw, ema = constant[constant["scheme"] == "none"], constant[constant["scheme"] == "ema"]
    told, closed, linear, drawn = [], [], [], []
    for share in sorted(set(merged["share"]) & set(decays["share"])):
        decayed = decays[decays["share"] == share]
        sides = {"raw weights": ("none", raw)}
        sides |= {str(label): ("ema", part) for label, part in ema.groupby("scheme_label", sort=True)}
        mine = merged[merged["share"] == share]
        sides |= {f"WSM {curve}": ("wsm", mine[mine["curve"] == curve]) for curve in CURVES}
        changes = {name: of.changes(top, decayed) for name, (_, top) in sides.items() if len(top)}
        changes = {name: pairs for name, pairs in changes.items() if pairs["value"].notna().any()}
        if "WSM linear" not in changes or "raw weights" not in changes:
            continue
        linear.append(changes["WSM linear"])
        gap = changes["WSM linear"].merge(changes["raw weights"], on=KEYS, suffixes=("", "_raw"))
        part = 1 - float(gap["value"].mean()) / float(gap["value_raw"].mean())
        closed.append(f"{100 * part:.0f} % (over {percent(share)})")
        said = ", ".join(f"{name} {over(pairs, '.3f')}" for name, pairs in changes.items())
        told.append(f"Final metric of a constant LR ÷ that of a decay over the last {percent(share)}: {said}.")
        drawn += [
            _point("merged_decay", rows, name, sides[name][0], share)
            for name, pairs in changes.items()
            for _, rows in pairs.groupby("workload", sort=True)
        ]
    if not linear:
        return None
    whole = _mean(linear)
    interval = paired.over_workloads(whole)
    finding = Finding(
        "merged_decay",
        "Merging the snapshots of a constant LR with the weights of a decay is as good as that decay, within "
        f"{percent(ALIKE_METRIC)} of the loss (WSM, arXiv 2507.17634).",
        _as_good(interval, ALIKE_METRIC),
        (
            f"WSM with the weights of a linear decay has {with_interval(interval, '.3f')} of that decay's own final "
            f"metric, mean over {len(linear)} lengths of it: {counted(whole, 'better', 'worse')}. Of what the "
            f"decay gains over the raw weights of a constant LR it gains {', '.join(closed)}.",
            *told,
        ),
    )
    short = f"merging instead of a decay leaves {with_interval(interval, '.3f')} of its final metric"
    return Prediction(finding, short, pd.DataFrame(drawn, columns=POINTS))


def _single(cells: pd.DataFrame, *axes: str) -> pd.DataFrame:
    """Those of workloads that train one of them a seed: of several, which stands for which is not known."""
    return cells[~cells["workload"].isin(cells.loc[cells.duplicated([*KEYS, *axes]), "workload"])]


# --- verdicts and points -------------------------------------------------------------------------------------------


def _alike(interval: Interval, margin: float) -> str:
    """The verdict on a claim that a ratio lies within 1 ± margin."""
    if 1 - margin <= interval.low and interval.high <= 1 + margin:
        return REPRODUCED
    return REFUTED if interval.low > 1 + margin or interval.high < 1 - margin else UNDECIDED


def _as_good(interval: Interval, margin: float) -> str:
    """The verdict on a claim that a ratio is at most 1 + margin."""
    if interval.high <= 1 + margin:
        return REPRODUCED
    return REFUTED if interval.low > 1 + margin else UNDECIDED


def _together(verdicts: list[str]) -> str:
    return verdicts[0] if len(set(verdicts)) == 1 else IN_PART if REPRODUCED in verdicts else UNDECIDED


def _mean(pairs: list[pd.DataFrame]) -> pd.DataFrame:
    """One value a (workload, seed): the mean over the settings compared, so that seeds alone are resampled."""
    return pd.concat(pairs).groupby(KEYS)["value"].mean().reset_index()


def _point(question: str, pairs: pd.DataFrame, series: str, scheme: str, x: float) -> dict[str, Any]:
    """Of log ratios of one workload by seed, the row of POINTS to draw."""
    row: dict[Any, Any] = paired.by_workload(pairs).iloc[0].to_dict()
    return row | {"question": question, "series": series, "scheme": scheme, "x": x}


def _number(key: Any) -> float:
    return float(key)
