"""Steps-to-target as survival times: the restricted mean steps to target (RMST), by Kaplan–Meier over seeds.

The event is meeting the target. A seed that has not met it stays at risk until it is censored, so no seed is dropped
and none is given a number of steps it did not take.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from analysis.statistics.resampling import bootstrap_groups
from analysis.statistics.steps_to_target import grid_sd

Floats = NDArray[np.float64]

RULE = (
    "Restricted mean steps to target: the area under the Kaplan–Meier curve S(t), the share of seeds that have not "
    "met the target by step t, up to the step budget T. A seed that misses the target, or diverges before it, is "
    "censored at T: a schedule that has ended does not meet it later. A seed that is still training is censored "
    "where it stands; where S is then unknown before T, so is the mean. A crossing is placed by interpolation; with "
    "every crossing at the left, then at the right end of its evaluation interval the mean has the two bounds that "
    "the evaluation grid leaves (those of Turnbull's estimate, as seeds share the grid). The ratio divides the means "
    "of an average and its baseline over the same seeds, both up to the smaller T; a pair that both miss counts T/T."
)

# Where in its evaluation interval a crossing is placed.
TIMES = {"point": "", "lower": "_left", "upper": "_right"}
MEANS = [
    *("workload", "training", "setting", "step_budget", "num_seeds", "num_met", "num_missed", "num_unfinished"),
    *("median", "restricted_mean", "restricted_mean_low", "restricted_mean_high", "restricted_mean_left"),
    *("restricted_mean_right", "budget_share"),
]


def kaplan_meier(times: Floats, met: NDArray[np.bool_]) -> tuple[Floats, Floats]:
    """S(t) = Π_{tᵢ ≤ t} (1 − dᵢ/nᵢ): dᵢ of the nᵢ at risk meet the target at tᵢ (Kaplan–Meier 1958).

    At equal steps, crossings come before censorings. Args: times, met: shape (n,). Returns: the sorted times, and S
    from each of them on, shape (n,) both; of equal times the last one counts.
    """
    order = np.lexsort((~met, times))
    at_risk = np.arange(len(times), 0, -1, dtype=np.float64)
    # One seed at a time: (1 − 1/n)(1 − 1/(n−1)) = 1 − 2/n, so ties need no care.
    return times[order], np.asarray(np.cumprod(1 - met[order] / at_risk), dtype=np.float64)


def restricted_mean(times: Floats, survival: Floats, until: float) -> float:
    """RMST = ∫₀ᵀ S(t) dt with T = until; NaN where S is not known up to T.

    S is unknown after the last time, unless it is 0 there (Royston and Parmar 2013 restrict T likewise).
    """
    if times[-1] < until and survival[-1] > 0:
        return float("nan")
    widths = np.diff(np.minimum(times, until), prepend=0.0)
    return float((widths * np.append(1.0, survival[:-1])).sum())


def restricted_means(cells: pd.DataFrame, steps: pd.DataFrame) -> pd.DataFrame:
    """The restricted mean steps to target of every setting that has a target, and what it rests on.

    Args: cells: of `study.progress`. steps: of `steps_to_target`.
    Returns: workload, training, setting, step_budget · num_seeds, num_met, num_missed (diverged ones too),
    num_unfinished · median (Kaplan–Meier, NaN where fewer than half met) · restricted_mean in steps, with bootstrap
    _low and _high over seeds (NaN for one seed, or while one is training) and _left and _right, the bounds of the
    evaluation grid · budget_share: restricted_mean / step_budget.
    """
    keys = ["workload", "training", "setting"]
    observed = steps[["cell_id", "status", "step_budget", "last_step", *TIMES]]
    observed = observed.merge(cells[["cell_id", *keys, "seed"]], on="cell_id")
    observed = observed.sort_values(["setting", "seed", "cell_id"], kind="stable")
    rows: list[dict[str, Any]] = []
    for key, part in observed.groupby(keys, sort=True):
        met, waiting = ((part["status"] == status).to_numpy(dtype=bool) for status in ("met", "unfinished"))
        end = part["last_step"].where(waiting, part["step_budget"]).to_numpy(dtype=np.float64)
        budget = part["step_budget"].iloc[0]
        row = dict(zip(keys, key, strict=True)) | {"step_budget": budget, "num_seeds": len(part)}
        row |= {"num_met": met.sum(), "num_unfinished": waiting.sum(), "num_missed": (~met & ~waiting).sum()}
        for time, name in TIMES.items():
            times, survival = kaplan_meier(np.where(met, part[time].to_numpy(dtype=np.float64), end), met)
            row[f"restricted_mean{name}"] = restricted_mean(times, survival, float(budget))
            if time == "point":
                row["median"] = next(iter(times[survival <= 0.5 + 1e-12]), np.nan)
        rows.append(row)
    table = pd.DataFrame(rows, columns=MEANS)
    done = observed[~observed["setting"].isin(table.loc[table["num_unfinished"] > 0, "setting"])]
    place = done["setting"].map(pd.Series(table.index, index=table["setting"])).to_numpy(dtype=np.int64)
    counted = done["point"].where(done["status"] == "met", done["step_budget"]).to_numpy(dtype=np.float64)
    ends = bootstrap_groups(counted, place, len(table), grid=grid_sd(done["lower"], done["upper"]))
    table["restricted_mean_low"], table["restricted_mean_high"] = ends[1:]
    table["budget_share"] = table["restricted_mean"] / table["step_budget"]
    return table


def restricted_pairs(by_seed: pd.DataFrame, steps: pd.DataFrame) -> pd.DataFrame:
    """The pairs of `pairs.ratios_by_seed` with both sides' steps up to their smaller step budget T.

    Adds counted, baseline_counted: the crossing by interpolation, or T. Nothing of it means much while a
    pair is pending. Over pairs that are trained to their end the mean of these steps is the RMST.
    """
    known = steps.set_index("cell_id")[["step_budget", "point"]].astype(np.float64)
    sides = {"counted": by_seed["cell_id"], "baseline_counted": by_seed["baseline_cell_id"]}
    budget, baseline_budget = (cell_id.map(known["step_budget"]) for cell_id in sides.values())
    until = budget.clip(upper=baseline_budget)
    counted = {name: np.minimum(cell_id.map(known["point"]).fillna(until), until) for name, cell_id in sides.items()}
    return by_seed.assign(**counted)
