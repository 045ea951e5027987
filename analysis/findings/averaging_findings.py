"""The paper's findings on averages of one annealed run: steps, hours, horizons, the end of training, tightness."""

from __future__ import annotations

import numpy as np

from analysis.findings.evidence import Evidence
from analysis.findings.finding import (
    IN_PART,
    REFUTED,
    REPRODUCED,
    UNDECIDED,
    Finding,
    below_one,
    counted,
    over,
)
from analysis.pairs import CHOSEN_HORIZON, over_workloads
from analysis.pooled import FIXED
from analysis.resampling import Interval, with_interval
from analysis.robustness import reaches
from analysis.study import SCHEME_NAMES, percent
from analysis.tables import Tables

SCHEMES = ("ema", "lawa")
PAPER_STEPS = 0.82  # of NadamW's, both schemes
PAPER_HOURS = {"ema": 541 / 612, "lawa": 550 / 612}  # of NadamW's, over the suite


def averaging_findings(of: Evidence, speedup: Tables, horizon: Tables) -> list[Finding]:
    """All of them, in the order of the paper. Args: speedup, horizon: the tables of these two studies."""
    return [
        fewer_steps(of, speedup),
        fewer_hours(of, speedup),
        best_horizon(of, horizon),
        short_horizons(of),
        generalization(of),
        no_rescue(of),
        tightness(of, speedup),
    ]


def fewer_steps(of: Evidence, speedup: Tables) -> Finding:
    """Fig. 1 and 2: 82 % of the steps."""
    told, verdicts, sizes = [], [], []
    for scheme in SCHEMES:
        interval = _pooled(speedup, "mean ratio", scheme)
        verdicts.append(below_one(interval))
        sizes.append(interval.low <= PAPER_STEPS <= interval.high)
        pairs = of.ratios(of.pick("speedup", scheme, CHOSEN_HORIZON), of.pick("speedup"))
        told.append(
            f"{SCHEME_NAMES[scheme]} at a horizon of {percent(CHOSEN_HORIZON)}, fixed beforehand, takes "
            f"{with_interval(interval)} of the raw weights' steps (mean ratio): {counted(pairs, 'fewer', 'more')}."
        )
    longer = of.ratios(of.pick("speedup", "ema", 0.04), of.pick("speedup"))
    told.append(f"EMA at 4 % takes {over(longer)}: {counted(longer, 'fewer', 'more')}.")
    return Finding(
        "fewer_steps",
        "LAWA and EMA reach the target in 82 % of NadamW's steps on average (Fig. 1, 2).",
        _direction_and_size(verdicts, sizes),
        tuple(told),
        {
            IN_PART: "The direction is the paper's, the size is not. Targets are tight here: raw weights need "
            f"{percent(_raw_share(of))} of the budget (median), where little is left to save; at the loss they have "
            f"after half of it, EMA of 1 % takes {_at_half(speedup):.2f} of their steps. And 1 % of these budgets are "
            "30 to 80 steps, of the paper's a thousand: longer horizons save more here."
        },
        "speedup",
        "pooled",
    )


def fewer_hours(of: Evidence, speedup: Tables) -> Finding:
    """Table 1: 10 to 12 % of the GPU-hours."""
    told, verdicts, sizes = [], [], []
    for scheme in SCHEMES:
        paper = PAPER_HOURS[scheme]
        interval = _pooled(speedup, "suite device-hours", scheme)
        verdicts.append(below_one(interval))
        sizes.append(interval.low <= paper <= interval.high)
        told.append(
            f"{SCHEME_NAMES[scheme]} at {percent(CHOSEN_HORIZON)} takes {with_interval(interval)} of the raw weights' "
            f"device-hours, summed over the workloads (the paper: {paper:.2f}), and "
            f"{with_interval(_pooled(speedup, 'device-hours', scheme))} as the geometric mean of ratios."
        )
    return Finding(
        "fewer_hours",
        "Over the suite EMA saves 11.6 % and LAWA 10.1 % of the GPU-hours (Table 1).",
        _direction_and_size(verdicts, sizes),
        tuple(told),
        {IN_PART: "Hours follow steps, since a bank adds little to a step. On CPU these are device-hours."},
        "speedup",
        "user_hours",
    )


def best_horizon(of: Evidence, horizon: Tables) -> Finding:
    """Fig. 3: a horizon of 1 %, and flat around it."""
    fixed = of.pick("horizon", "ema", CHOSEN_HORIZON)
    told, better = [], []
    for share in (0.005, 0.02, 0.04, 0.16, 0.3):
        interval = over_workloads(of.ratios(of.pick("horizon", "ema", share), fixed))
        told.append(f"at {percent(share)} {with_interval(interval)}")
        if interval.high < 1:
            better.append(share)
    regions = horizon.flat_region
    inside = reaches(regions["flat_from"], regions["flat_to"], CHOSEN_HORIZON)
    shares = inside.groupby(regions["scheme"]).mean()
    where = " and ".join(
        f"{int(inside[regions['scheme'] == scheme].sum())} of {int((regions['scheme'] == scheme).sum())} workloads "
        f"for {SCHEME_NAMES.get(str(scheme), str(scheme))}"
        for scheme in shares.index
    )
    fits = horizon.horizon_fit
    optima = fits[fits["scheme"] == "ema + lawa"]["optimum"].to_numpy(dtype=float)
    flat = bool((shares > 0.5).all())
    verdict = (IN_PART if flat else REFUTED) if better else (REPRODUCED if flat else UNDECIDED)
    return Finding(
        "best_horizon",
        "The best averaging horizon is about 1 % of the budget, and the optimum is flat (Fig. 3, 10, 11).",
        verdict,
        (
            f"EMA's steps ÷ those at 1 %, over workloads: {', '.join(told)}.",
            f"1 % lies in the flat region (what cannot be told from the best) on {where}.",
            f"Smooth fits of LAWA and EMA together are best at {percent(float(np.median(optima)))} (median over "
            f"{len(optima)} workloads; from {percent(optima.min())} to {percent(optima.max())}).",
        ),
        {
            IN_PART: "Flat it is, but the best share is longer. What an average needs is enough steps to average noise "
            "away, and 1 % of these budgets are few."
        },
        "horizon",
        "horizon",
    )


def short_horizons(of: Evidence) -> Finding:
    """Fig. 11: an EMA that looks back too little."""
    short, raw = of.pick("horizon", "ema", 0.001), of.pick("horizon")
    longer = of.ratios(of.pick("horizon", "ema", CHOSEN_HORIZON), short)
    against_raw = of.ratios(short, raw)
    return Finding(
        "short_horizons",
        "An EMA with a short memory is poor: ν = 1 with γ ≤ .99, a horizon of 0.2 % of the budget or less (Fig. 11).",
        below_one(over_workloads(longer)),
        (
            f"EMA at 1 % takes {over(longer)} of the steps of EMA at 0.1 %: {counted(longer, 'fewer', 'more')}.",
            f"EMA at 0.1 % takes {over(against_raw)} of the raw weights': {counted(against_raw, 'fewer', 'more')}.",
        ),
        study="horizon",
        figure="horizon",
    )


def generalization(of: Evidence) -> Finding:
    """Table 2: small gains at the full budget."""
    told, verdicts = [], []
    for scheme in SCHEMES:
        for horizon in (CHOSEN_HORIZON, 0.04):
            pairs = of.changes(of.pick("generalization", scheme, horizon), of.pick("generalization"))
            interval = over_workloads(pairs)
            verdicts.append(below_one(interval))
            told.append(
                f"{SCHEME_NAMES[scheme]} at {percent(horizon)} changes the final loss by a factor of "
                f"{with_interval(interval, '.4f')}: {counted(pairs, 'better', 'worse')}."
            )
    return Finding(
        "generalization",
        "At the full budget averaging gives small gains in the validation metric nearly everywhere (Table 2).",
        verdicts[0] if len(set(verdicts)) == 1 else UNDECIDED,
        tuple(told),
        {
            UNDECIDED: "All schedules but the language model's end at a learning rate of zero, where the last per cent "
            "of a run hardly moves: an average over it is the same point. Where the rate ends at a tenth, there is a "
            "gain."
        },
        "generalization",
        "generalization",
    )


def no_rescue(of: Evidence) -> Finding:
    """A seed whose baseline fails."""
    cells = of.cells[(of.cells["optimizer"] == "nadamw") & (of.cells["length_fraction"] > 0.99)]
    cells = cells.merge(of.steps[["cell_id", "status"]], on="cell_id")
    failed = cells[(cells["scheme"] == "none") & cells["status"].isin(["missed", "diverged"])]
    near = cells[cells["scheme"].isin(SCHEMES) & cells["horizon_fraction"].astype(float).between(0.008, 0.05)]
    keys = ["training", "seed"]
    failed = failed.merge(near[keys].drop_duplicates(), on=keys)
    rescued = failed.merge(near.loc[near["status"] == "met", keys].drop_duplicates(), on=keys)
    kinds = {
        f"a final LR of {percent(float(lr))} of the peak": (
            int((rescued["final_lr"] == lr).sum()),
            int((failed["final_lr"] == lr).sum()),
        )
        for lr in sorted(failed["final_lr"].unique())
    }
    told = "; ".join(f"with {name} {saved} of {total}" for name, (saved, total) in kinds.items())
    share = len(rescued) / max(1, len(failed))
    return Finding(
        "no_rescue",
        "A seed whose baseline fails to reach the target is not rescued by averaging.",
        UNDECIDED if failed.empty else REPRODUCED if rescued.empty else REFUTED if share > 0.5 else IN_PART,
        (
            f"Of {len(failed)} full-length NadamW runs of all studies whose raw weights miss the target, "
            f"{len(rescued)} have an average of 1 to 4 % that meets it: {told}.",
        ),
        {
            IN_PART: "Where the rate goes to zero, as the paper's does, see the first number. Where it stays high, raw "
            "weights bounce above a target that their average meets."
        },
    )


def tightness(of: Evidence, speedup: Tables) -> Finding:
    """Not a claim of the paper: its own eight points, asked what they have in common."""
    table = speedup.tightness
    told = [
        f"{row['source'][0].upper()}{row['source'][1:]}: the ratio rises by {row['slope']:.2f} "
        f"[{row['slope_low']:.2f}, {row['slope_high']:.2f}] from an immediate target to one at the end; this explains "
        f"{100 * row['r2']:.0f} % [{100 * row['r2_low']:.0f}, {100 * row['r2_high']:.0f}] of its variance "
        f"({row['num_workloads']} workloads).".replace("-", "−")
        for row in table[table["scheme"] == "ema"].to_dict("records")
    ]
    levels = table[(table["scheme"] == "ema") & (table["source"] == "this study, every level")].iloc[0]
    return Finding(
        "tightness",
        "(Asked by us.) Does the target's tightness explain why one workload saves 57 % and another 11 %? The later "
        "raw weights reach the target, the less averaging saves.",
        REPRODUCED if levels["slope_low"] > 0 else REFUTED if levels["slope_high"] < 0 else UNDECIDED,
        tuple(reversed(told)),
        study="speedup",
        figure="tightness",
    )


def _pooled(speedup: Tables, statistic: str, scheme: str) -> Interval:
    table = speedup.pooled
    keep = (table["versus"] == "same schedule") & (table["horizon"] == FIXED)
    row = table[keep & (table["scheme"] == scheme) & (table["statistic"] == statistic)].iloc[0]
    return Interval(row["value"], row["low"], row["high"])


def _direction_and_size(verdicts: list[str], sizes: list[bool]) -> str:
    if set(verdicts) == {REPRODUCED}:
        return REPRODUCED if all(sizes) else IN_PART
    return REFUTED if REFUTED in verdicts else UNDECIDED


def _raw_share(of: Evidence) -> float:
    raw = of.pick("speedup").merge(of.steps[["cell_id", "ranked_steps"]], on="cell_id")
    return float((raw["ranked_steps"] / raw["step_budget"]).median())


def _at_half(speedup: Tables) -> float:
    """Geometric mean over workloads of EMA's ratio at the level that raw weights reach after half their training."""
    chosen, curve = speedup.chosen, speedup.saving_curve
    mine = chosen.loc[(chosen["scheme"] == "ema") & chosen["near"], "setting"]
    curve = curve[(curve["versus"] == "same schedule") & curve["setting"].isin(mine)]
    return float(np.exp(np.log(curve.loc[np.isclose(curve["share"], 0.5), "ratio"].astype(float)).mean()))
