"""The paper's findings on averaging and the training it averages: LR schedules and other optimizers."""

from __future__ import annotations

import numpy as np
import pandas as pd

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
from analysis.pairs import CHOSEN_HORIZON, KEYS, by_workload, over_workloads, sides
from analysis.resampling import Interval, with_interval
from analysis.study import percent

SHORTER = (0.25, 0.5, 0.75)
KEPT = {"a constant LR": 1.0, "a decay to half": 0.5}  # what is left of the peak LR


def schedule_findings(of: Evidence) -> list[Finding]:
    """All of them, in the order of the paper."""
    return [shorter_decay(of), replaces_decay(of), both_best(of), other_optimizers(of), learning_rates(of)]


def shorter_decay(of: Evidence) -> Finding:
    """Fig. 7a and 12: an average of the long run against runs annealed to 25, 50 and 75 %."""
    long = of.pick("decay_length", length_fraction=1.0)
    average = of.pick("decay_length", "ema", 0.04, length_fraction=1.0)
    told, verdicts, closed, behind = [], [], [], 0
    for share in SHORTER:
        short = of.pick("decay_length", length_fraction=share)
        raw, averaged = of.changes(long, short, at=share), of.changes(average, short, at=share)
        interval = over_workloads(averaged)
        verdicts.append(below_one(interval))
        behind += len(sides(by_workload(averaged))[2])
        told.append(
            f"At {percent(share)} of the budget the long run's loss ÷ that of a run annealed to there is "
            f"{over(raw, '.3f')} for raw weights and {with_interval(interval, '.3f')} for EMA of 4 %: "
            f"{counted(averaged, 'ahead', 'behind')}."
        )
        gaps = raw.merge(averaged, on=KEYS, suffixes=("_raw", "_average")).groupby("workload").mean()
        part = float((1 - gaps["value_average"] / gaps["value_raw"]).median())
        closed.append(f"{100 * part:.0f} % at {percent(share)}")
    told.insert(
        0,
        "Of the gap between the long run's raw weights and a run annealed to that step, EMA of 4 % closes (median over "
        f"workloads) {', '.join(closed)}.",
    )
    return Finding(
        "shorter_decay",
        "Averaging one long run acts like a shorter LR decay and traces the envelope of runs with shorter schedules "
        "(Fig. 7a, 12).",
        IN_PART if behind or REFUTED in verdicts else REPRODUCED,
        tuple(told),
        {
            IN_PART: "It closes most of the gap and not all: noise is averaged away, but a run that was annealed has "
            "also moved on along the valley, and an average lags."
        },
        "decay_length",
        "lr_decay",
    )


def replaces_decay(of: Evidence) -> Finding:
    """Fig. 7b and 8: averaging on a constant learning rate against a decay to zero."""
    decayed = of.pick("no_decay", final_lr=0.0)
    told = []
    level: dict[str, bool] = {}  # workload -> whether some average of a constant LR is as good as the decay
    for name, final_lr in KEPT.items():
        for horizon in (None, 0.01, 0.04, 0.16):
            top = of.pick("no_decay", "none" if horizon is None else "ema", horizon, final_lr=final_lr)
            pairs = of.changes(top, decayed)
            label = "raw weights" if horizon is None else f"EMA of {percent(horizon)}"
            told.append(f"{label} on {name}: {over(pairs, '.3f')}; {counted(pairs, 'better', 'worse')}.")
            if horizon is not None and final_lr == 1.0:
                for row in by_workload(pairs).to_dict("records"):
                    level[row["workload"]] = level.get(row["workload"], False) or not row["low"] > 1
    replaced = sorted(workload for workload, is_level in level.items() if is_level)
    total = decayed["workload"].nunique()
    names = f" ({', '.join(replaced)})" if replaced else ""
    return Finding(
        "replaces_decay",
        "Averaging does not replace annealing in general; it does on OGBG, and on Criteo or FastMRI (Fig. 7b, 8).",
        REPRODUCED if 0 < len(replaced) < total else IN_PART if not replaced else REFUTED,
        (
            f"On {len(replaced)} of {total} workloads{names} the final loss of some average of a constant learning "
            "rate is better than that of raw weights decayed to zero, or not told apart from it by these seeds.",
            *(f"Final loss ÷ that of raw weights decayed to zero, {line}" for line in told),
        ),
        {
            IN_PART: "In general it does not, as the paper says; its exceptions are at full size.",
            REFUTED: "Minis are noisy: what is left to learn is small beside it, and an average takes the noise away.",
        },
        "no_decay",
        "trainings",
    )


def both_best(of: Evidence) -> Finding:
    """Fig. 8: averaging together with a decay."""
    both, constant = (of.pick("no_decay", "ema", 0.04, final_lr=lr) for lr in (0.0, 1.0))
    decayed = of.pick("no_decay", final_lr=0.0)
    claims: list[tuple[str, pd.DataFrame, str]] = [
        (
            "EMA of 4 % with a decay to zero takes, of the decay alone's steps,",
            of.ratios(both, decayed),
            ".2f",
        ),
        ("It takes, of the steps of EMA of 4 % at a constant LR,", of.ratios(both, constant), ".2f"),
        ("Its final loss ÷ that of the decay alone is", of.changes(both, decayed), ".4f"),
        ("Its final loss ÷ that of EMA of 4 % at a constant LR is", of.changes(both, constant), ".3f"),
    ]
    verdicts = [below_one(over_workloads(pairs)) for _, pairs, _ in claims]
    words = [("fewer", "more"), ("fewer", "more"), ("better", "worse"), ("better", "worse")]
    return Finding(
        "both_best",
        "Averaging and annealing together are best (Fig. 8).",
        REPRODUCED if set(verdicts) == {REPRODUCED} else REFUTED if set(verdicts) == {REFUTED} else IN_PART,
        tuple(
            f"{text} {over(pairs, form)}: {counted(pairs, *word)}."
            for (text, pairs, form), word in zip(claims, words, strict=True)
        ),
        {IN_PART: "At the end of a decay to zero an average has nothing left to add."},
        "no_decay",
        "trainings",
    )


def other_optimizers(of: Evidence) -> Finding:
    """Fig. 5, and beyond: Shampoo; AdamW, SGD and Schedule-Free."""
    told, verdict = [], UNDECIDED
    for optimizer in ("shampoo", *sorted(set(of.pick("optimizers")["optimizer"]) - {"shampoo"})):
        raw = of.pick("optimizers", optimizer=optimizer)
        said = []
        for horizon in (CHOSEN_HORIZON, 0.04):
            pairs = of.ratios(of.pick("optimizers", "ema", horizon, optimizer=optimizer), raw)
            interval = over_workloads(pairs)
            each = ", ".join(
                f"{row['workload']} {with_interval(Interval(row['value'], row['low'], row['high']))}"
                for row in by_workload(pairs).to_dict("records")
            )
            said.append(f"at {percent(horizon)} {with_interval(interval)} ({each})")
            if optimizer == "shampoo" and horizon == CHOSEN_HORIZON:
                verdict = below_one(interval)
        told.append(f"Of its own raw weights' steps EMA of {optimizer} takes {', '.join(said)}.")
    return Finding(
        "other_optimizers",
        "Averaging carries over to Distributed Shampoo (Fig. 5).",
        verdict,
        tuple(told),
        study="optimizers",
        figure="trainings",
    )


def learning_rates(of: Evidence) -> Finding:
    """Fig. 4 and 6: the gain at every peak LR, and how many of them reach the target."""
    raw = of.pick("learning_rate")
    own = of.pick("speedup").drop_duplicates("workload").set_index("workload")["lr"]
    told, verdicts = [], []
    for factor in (0.25, 0.5, 1.0, 2.0, 4.0):
        at = raw[np.isclose(raw["lr"] / raw["workload"].map(own), factor)]
        average = of.pick("learning_rate", "ema", 0.04)
        average = average[np.isclose(average["lr"] / average["workload"].map(own), factor)]
        pairs = of.ratios(average, at)
        interval = over_workloads(pairs)
        verdicts.append(below_one(interval))
        both = int((pairs["bound"] == "both missed").sum())
        text = "no pair meets the target" if np.isnan(interval.value) else with_interval(interval)
        told.append(f"{factor:g} × {text}" + (f" ({both} of {len(pairs)} pairs both miss)" if both else ""))
    met = of.cells.merge(of.steps[["cell_id", "status"]], on="cell_id")
    reached = [
        int((met[met["cell_id"].isin(cells["cell_id"])]["status"] == "met").sum())
        for cells in (raw, of.pick("learning_rate", "ema", 0.04))
    ]
    good = sum(verdict == REPRODUCED for verdict in verdicts)
    return Finding(
        "learning_rates",
        "Averaging helps over the whole range of peak learning rates (Fig. 4, 6).",
        REPRODUCED if good == len(verdicts) else REFUTED if REFUTED in verdicts else IN_PART if good else UNDECIDED,
        (
            f"EMA of 4 % takes, of the raw weights' steps at this multiple of each workload's own peak LR: "
            f"{'; '.join(told)}.",
            f"Of {len(raw)} runs raw weights reach the target in {reached[0]}, their EMA of 4 % in {reached[1]}.",
        ),
        {IN_PART: "Where too high a rate keeps both from the target, neither has steps to compare."},
        "learning_rate",
        "trainings",
    )
