"""On how many families a scheme saves steps: n of m, with no effect and missed targets counted beside."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

RULE = (
    "By family, at the horizon fixed beforehand: fewer steps where the 95 % interval of the geometric mean over seeds "
    "lies below 1, no effect where it covers 1, more where it lies above. A bound on the wrong side of what it would "
    "show leaves a family undecided, as do a single seed and runs of which none meets the target."
)
KINDS = ("fewer", "no_effect", "more", "undecided")
COLUMNS = [
    *("versus", "scheme", "num_families", "num_fewer", "num_no_effect", "num_more", "num_undecided"),
    "num_with_missed",
]


def families(ratios: pd.DataFrame, chosen: pd.DataFrame) -> pd.DataFrame:
    """One row a (versus, scheme): of num_families workloads, how many are of each of KINDS.

    num_with_missed: those where some seed misses the target, on either side. Pairs that wait are no family's yet.
    Args: ratios: of `analysis.pairs.ratios`. chosen: of `analysis.pairs.chosen_settings`, near ones only.
    """
    near = chosen[chosen["near"].astype(bool)][["setting", "scheme"]]
    table = ratios.drop(columns="scheme", errors="ignore").merge(near, on="setting")
    table = table[table["num_pending"] < table["num_pairs"]]
    missed = table[["num_at_least", "num_at_most", "num_both_missed"]].sum(axis=1) > 0
    table = table.assign(kind=_kinds(table), missed=missed)
    rows: list[dict[str, Any]] = []
    for key, part in table.groupby(["versus", "scheme"], sort=True):
        count = part["kind"].value_counts()
        row: dict[str, Any] = dict(zip(["versus", "scheme"], key, strict=True))
        row |= {"num_families": len(part), **{f"num_{kind}": int(count.get(kind, 0)) for kind in KINDS}}
        rows.append(row | {"num_with_missed": int(part["missed"].sum())})
    return pd.DataFrame(rows, columns=COLUMNS)


def _kinds(table: pd.DataFrame) -> pd.Series:
    low, high, bound = table["geometric_mean_low"], table["geometric_mean_high"], table["bound"]
    fewer = (high < 1) & bound.isin(["exact", "at most"])
    more = (low > 1) & bound.isin(["exact", "at least"])
    kinds = np.select([fewer, more, (low <= 1) & (high >= 1)], ["fewer", "more", "no_effect"], "undecided")
    return pd.Series(kinds, index=table.index, dtype="str")


def sentence(row: Any) -> str:
    """'Of 9 families, 5 need fewer steps, 3 show no effect and 1 needs more; on 2 a seed misses the target.'"""
    total, missed = int(row["num_families"]), int(row["num_with_missed"])
    number = {kind: int(row[f"num_{kind}"]) for kind in KINDS}
    whole = next((kind for kind in KINDS if number[kind] == total), None)
    if whole is not None:
        who = {1: "The one family", 2: "Both families"}.get(total, f"All {total} families")
        text = f"{who} {_verb(whole, total)}"
    else:
        told = [kind for kind in KINDS if number[kind] or kind == "fewer"]
        parts = [f"{number[kind] or 'none'} {_verb(kind, number[kind] or 1)}" for kind in told]
        text = f"Of {total} families, {', '.join(parts[:-1])} and {parts[-1]}"
    if missed == 0:
        return f"{text}."
    where = "" if total == 1 else "on each " if missed == total else f"on {missed} "
    return f"{text}; {where}some seed misses the target."


def _verb(kind: str, number: int) -> str:
    one = number == 1
    return {
        "fewer": f"{'needs' if one else 'need'} fewer steps",
        "no_effect": f"{'shows' if one else 'show'} no effect",
        "more": f"{'needs' if one else 'need'} more steps",
        "undecided": f"{'is' if one else 'are'} undecided",
    }[kind]
