"""Steps-to-target as survival times: the Kaplan–Meier curve over seeds and the restricted mean steps to target.

The event is meeting the target. A seed that has not met it stays at risk until it is censored, so no seed is dropped
and none is given a number of steps it did not take.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from analysis.intervals import (
    LEVEL,
    RESAMPLES,
    ROUNDING,
    bootstrap_columns,
    counted_quantiles,
    multisets,
    small_sample_factor,
)
from analysis.savings import PENDING

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

TIMES = {
    "point": "",
    "lower": "_left",
    "upper": "_right",
}  # where in its evaluation interval a crossing is placed


def observations(cells: pd.DataFrame, steps: pd.DataFrame) -> pd.DataFrame:
    """One row a cell that has a target: when it met it, or where it is censored.

    Args: cells: of `analysis.study.progress`. steps: of `analysis.steps_to_target`.
    Returns: cell_id, workload, training, setting, seed, step_budget, met, waiting (still training: censored at its
    last step, not at the budget), and point, lower, upper: the crossing; all three the censoring step where not met.
    """
    names = ["cell_id", "workload", "training", "setting", "seed"]
    table = steps[["cell_id", "status", "step_budget", "last_step", *TIMES]].merge(cells[names], on="cell_id")
    met = (table["status"] == "met").to_numpy(dtype=bool)
    waiting = (table["status"] == "unfinished").to_numpy(dtype=bool)
    end = np.where(waiting, table["last_step"], table["step_budget"]).astype(np.float64)
    for time in TIMES:
        table[time] = np.where(met, table[time].to_numpy(dtype=np.float64), end)
    table = table.assign(met=met, waiting=waiting).drop(columns=["status", "last_step"])
    return table.sort_values(["setting", "seed", "cell_id"], kind="stable").reset_index(drop=True)


def kaplan_meier(observed: pd.DataFrame, time: str = "point") -> pd.DataFrame:
    """S(t) = Π_{tᵢ ≤ t} (1 − dᵢ/nᵢ) of every setting: dᵢ of the nᵢ at risk meet the target at tᵢ (Kaplan–Meier 1958).

    At equal steps, crossings come before censorings. Args: observed: of `observations`; time: one of TIMES.
    Returns one row a (setting, step at which a seed meets the target or is censored), in that order: at_risk, met,
    censored (counts), survival (S from this step on).
    """
    table = pd.DataFrame({"setting": observed["setting"], "step": observed[time], "met": observed["met"]})
    table = table.sort_values(["setting", "step", "met"], ascending=[True, True, False], kind="stable")
    size = table.groupby("setting")["met"].transform("size")
    table["at_risk"] = size - table.groupby("setting").cumcount()
    # One seed at a time: (1 − 1/n)(1 − 1/(n−1)) = 1 − 2/n, so ties need no care.
    table["survival"] = (1 - table["met"] / table["at_risk"]).groupby(table["setting"]).cumprod()
    curve = table.groupby(["setting", "step"], as_index=False, sort=True).agg(
        at_risk=("at_risk", "first"), met=("met", "sum"), size=("met", "size"), survival=("survival", "last")
    )
    curve["censored"] = curve["size"] - curve["met"]
    return curve[["setting", "step", "at_risk", "met", "censored", "survival"]]


def areas(curve: pd.DataFrame, until: pd.Series) -> pd.Series:
    """RMST = ∫₀ᵀ S(t) dt of each setting; NaN where S is not known up to T.

    S is unknown after the last step on file, unless it is 0 there (Royston and Parmar 2013 restrict T likewise).
    Args: curve: of `kaplan_meier`. until: T by setting. Returns: steps, indexed by setting.
    """
    groups = curve.groupby("setting")
    end = curve["setting"].map(until).astype(np.float64)
    stop = curve["step"].clip(upper=end)
    start = stop.groupby(curve["setting"]).shift(fill_value=0.0)
    before = groups["survival"].shift(fill_value=1.0)
    last = groups[["step", "survival"]].last()
    area: pd.Series = ((stop - start) * before).groupby(curve["setting"]).sum()
    return area.where((last["step"] >= until.reindex(last.index)) | (last["survival"] == 0))


def medians(curve: pd.DataFrame) -> pd.Series:
    """The first step with S ≤ ½, by setting; settings whose curve stays above are left out."""
    halved = curve[curve["survival"] <= 0.5 + 1e-12]
    return halved.groupby("setting")["step"].first()


def restricted_means(cells: pd.DataFrame, steps: pd.DataFrame) -> pd.DataFrame:
    """The restricted mean steps to target of every setting that has a target, and what it rests on.

    Returns: workload, training, setting, step_budget · num_seeds, num_met, num_missed (diverged ones too),
    num_unfinished · median (Kaplan–Meier, null where fewer than half met) · restricted_mean in steps, with bootstrap
    _low and _high over seeds (null for one seed, or while one is training) and _left and _right, the bounds of the
    evaluation grid · budget_share: restricted_mean / step_budget.
    """
    observed = observations(cells, steps)
    table = observed.groupby(["workload", "training", "setting"], as_index=False, sort=True).agg(
        step_budget=("step_budget", "first"),
        num_seeds=("seed", "size"),
        num_met=("met", "sum"),
        num_unfinished=("waiting", "sum"),
    )
    table.insert(6, "num_missed", table["num_seeds"] - table["num_met"] - table["num_unfinished"])
    budgets = table.set_index("setting")["step_budget"].astype(np.float64)
    curves = {time: kaplan_meier(observed, time) for time in TIMES}
    table["median"] = table["setting"].map(medians(curves["point"])).astype(np.float64)
    for time, end in TIMES.items():
        table[f"restricted_mean{end}"] = table["setting"].map(areas(curves[time], budgets)).astype(np.float64)
    done = observed[~observed["setting"].isin(observed.loc[observed["waiting"], "setting"])]
    bands = _bands(done["setting"], [done["point"]], bootstrap_columns)
    for end in ("low", "high"):
        table[f"restricted_mean_{end}"] = table["setting"].map(bands[end]).astype(np.float64)
    table["budget_share"] = table["restricted_mean"] / table["step_budget"]
    return table[[*MEANS]]


MEANS = [
    *("workload", "training", "setting", "step_budget", "num_seeds", "num_met", "num_missed"),
    *(
        "num_unfinished",
        "median",
        "restricted_mean",
        "restricted_mean_low",
        "restricted_mean_high",
        "restricted_mean_left",
    ),
    *("restricted_mean_right", "budget_share"),
]


def restricted_mean_ratios(by_seed: pd.DataFrame, steps: pd.DataFrame) -> pd.DataFrame:
    """RMST of a setting ÷ RMST of its baseline, paired by seed: Σₛ min(aₛ, T) / Σₛ min(bₛ, T).

    Over pairs that are trained to their end nothing is censored before T, so that RMST is the mean of the steps
    counted up to T. Args: by_seed: of `analysis.savings.ratios_by_seed`. steps: of `analysis.steps_to_target`.
    Returns one row a (versus, setting): num_pairs, num_pending (left out) · restricted_mean,
    baseline_restricted_mean · ratio with bootstrap _low and _high, pairs resampled together · ratio_left, ratio_right:
    what the evaluation grid leaves open (all of one side at one end, all of the other at the other).
    """
    pairs = restricted_pairs(by_seed, steps)
    keys = ["versus", "workload", "training", "setting"]
    pending = pairs["bound"] == PENDING
    groups = pairs.assign(pending=pending).groupby(keys, sort=True)
    counts = groups.agg(num_pairs=("pending", "size"), num_pending=("pending", "sum"))
    done = pairs[~pending]
    means = done.groupby(keys, sort=True)[[*_ENDS]].mean()
    means["group"] = np.arange(len(means))
    table = counts.join(means, how="left").reset_index()
    with np.errstate(divide="ignore"):
        table["ratio"] = table["counted"] / table["baseline_counted"]
        table["ratio_left"] = table["lower"] / table["baseline_upper"]
        table["ratio_right"] = table["upper"] / table["baseline_lower"]
    group = done.groupby(keys, sort=True).ngroup()
    bands = _bands(group, [done["counted"], done["baseline_counted"]], ratio_of_means)
    for end in ("low", "high"):
        table[f"ratio_{end}"] = table["group"].map(bands[end]).astype(np.float64)
    table = table.rename(columns={"counted": "restricted_mean", "baseline_counted": "baseline_restricted_mean"})
    result: pd.DataFrame = table[[*keys, *RATIOS]]
    return result


RATIOS = [
    *("num_pairs", "num_pending", "restricted_mean", "baseline_restricted_mean", "ratio", "ratio_low"),
    *("ratio_high", "ratio_left", "ratio_right"),
]
_ENDS = ("counted", "lower", "upper", "baseline_counted", "baseline_lower", "baseline_upper")


def restricted_pairs(by_seed: pd.DataFrame, steps: pd.DataFrame) -> pd.DataFrame:
    """The pairs of `by_seed` with both sides' steps up to their smaller step budget T.

    Adds until (T) · counted, baseline_counted: the crossing by interpolation, or T · lower, upper, baseline_lower,
    baseline_upper: the ends of its evaluation interval, or T. Nothing of it means much while a pair is pending.
    """
    known = steps.set_index("cell_id")[["step_budget", "point", "lower", "upper"]].astype(np.float64)
    sides = {"": by_seed["cell_id"], "baseline_": by_seed["baseline_cell_id"]}
    budgets = [cell_id.map(known["step_budget"]) for cell_id in sides.values()]
    until = budgets[0].clip(upper=budgets[1])
    added: dict[str, Any] = {"until": until}
    for side, cell_id in sides.items():
        added[f"{side}counted"] = np.minimum(cell_id.map(known["point"]).fillna(until), until)
        for end in ("lower", "upper"):
            added[f"{side}{end}"] = np.minimum(cell_id.map(known[end]).fillna(until), until)
    return by_seed.assign(**added)


def ratio_of_means(top: Floats, bottom: Floats, *, level: float = LEVEL, num_resamples: int = RESAMPLES) -> Floats:
    """mean(top) / mean(bottom) of each column with an expanded interval, rows resampled in pairs.

    Expanded on the log scale, as `analysis.intervals.bootstrap` does for a geometric mean. Args: top, bottom: shape
    (n, m). Returns: shape (3, m): ratio, low, high; the last two NaN for n = 1 and for equal ratios.
    """
    n, m = top.shape
    ratio = top.mean(axis=0) / bottom.mean(axis=0)
    if n < 2:
        return np.stack([ratio, np.full(m, np.nan), np.full(m, np.nan)])
    weights, counts = multisets(n, num_resamples, 0)
    draws = (weights @ top) / (weights @ bottom)
    tails = counted_quantiles(draws, counts, np.array([(1 - level) / 2, (1 + level) / 2]))
    ends = ratio * (tails / ratio) ** small_sample_factor(n, n - 1, level)
    ends[:, tails[1] - tails[0] <= ROUNDING * ratio] = np.nan  # equal in every row
    return np.vstack([ratio[None, :], ends])


def _bands(group: pd.Series, columns: list[pd.Series], function: Callable[..., Floats]) -> pd.DataFrame:
    """low and high of each group: groups of one size n lie side by side as columns of (n, m), one call a size.

    Args: function: one matrix a column of values -> shape (3, m), its last two rows low and high.
    """
    table = pd.DataFrame({"group": group, **{str(place): column for place, column in enumerate(columns)}})
    table = table.sort_values("group", kind="stable")
    parts = [pd.DataFrame({"low": [], "high": []}, dtype=np.float64)]
    for n, part in table.groupby(table.groupby("group")["group"].transform("size"), sort=True):
        matrices = part.drop(columns="group").to_numpy(dtype=np.float64).T.reshape(len(columns), -1, int(n))
        low, high = function(*matrices.transpose(0, 2, 1))[1:]
        parts.append(pd.DataFrame({"low": low, "high": high}, index=part["group"].to_numpy()[:: int(n)]))
    return pd.concat(parts[1:] or parts)
