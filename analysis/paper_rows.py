"""The paper's own numbers beside this study's, where there is a row for it.

Another scale: models, data, targets and often metrics differ, so the rows say what carries over, not what is right.
"""

from __future__ import annotations

from collections.abc import Iterator
from importlib.resources import files
from typing import Any

import numpy as np
import pandas as pd
import yaml

from analysis.generalization import effect
from analysis.pairs import chosen_settings
from analysis.pooled import FIXED
from analysis.resampling import FEWEST, Interval, bootstrap
from analysis.study import SCHEME_NAMES
from analysis.tightness import paper_points

RATIO, SHARE = "steps ratio", "share of T to the target"
METRIC, SUITE = "best metric − baseline's", "suite device-hours ratio"
INSIDE, LARGER, SMALLER, OPEN = "inside our interval", "ours is larger", "ours is smaller", "undecided"
AGREE, NONE, OPPOSITE, EQUAL = "same sign", "ours: no effect", "opposite signs", "the paper's are equal"

RULE = (
    "The paper's numbers beside ours for workloads of the same name, at the horizon fixed beforehand, on the best raw "
    "training that has its optimizer and schedule: NadamW, cosine, over the whole step budget T. Its workloads are "
    "full-size; ours are so only in the full preset. Steps ratio: the geometric mean over seeds is ours. Share of T: "
    "mean over seeds, a miss counted as a bound. Metrics: the change of the best validation metric; only its sign is "
    "compared, as metric and scale may differ. Suite: device-hours summed over the workloads, average ÷ baseline. "
    "Where runs miss and our number is a bound (hollow), it is compared only on the side that it bounds."
)
COLUMNS = [
    *(
        "quantity",
        "workload",
        "scheme",
        "paper_metric",
        "our_metric",
        "paper",
        "ours",
        "low",
        "high",
        "bound",
    ),
    "verdict",
]


def paper_rows(
    cells: pd.DataFrame,
    steps: pd.DataFrame,
    scores: pd.DataFrame,
    ratios: pd.DataFrame,
    general: pd.DataFrame,
    pooled: pd.DataFrame,
    chosen: pd.DataFrame,
) -> pd.DataFrame:
    """One row a (quantity, workload, scheme) that the paper and this study both have; verdict: where ours stands.

    Args: scores, chosen: of `analysis.pairs`. ratios: of `analysis.pairs`. general: of
    `analysis.generalization`. pooled: of `analysis.pooled.overall`.
    """
    trainings = _trainings(cells, scores)
    mine = chosen_settings(cells, trainings)
    mine = mine[mine["near"].astype(bool)]
    paper = yaml.safe_load(files("analysis").joinpath("paper_rows.yaml").read_text(encoding="utf-8"))
    rows = [
        *_ratios(ratios, mine),
        *_shares(cells, steps, {name: trainings[name] for name in mine["workload"]}),
        *_metrics(cells, general, mine, paper["metrics"]["workloads"]),
        *_suite(pooled, mine, chosen, paper["suite_hours"]),
    ]
    return pd.DataFrame(rows, columns=COLUMNS)


def findings(rows: pd.DataFrame) -> list[str]:
    """Counts of the verdicts, a sentence a scheme and quantity."""
    found = []
    for scheme, part in rows[rows["scheme"] != "none"].groupby("scheme", sort=True):
        name = SCHEME_NAMES.get(str(scheme), str(scheme))
        ratios, metrics = (part[part["quantity"] == quantity] for quantity in (RATIO, METRIC))
        if len(ratios):
            found.append(
                f"{name}: {_count(ratios, INSIDE)} of the paper's {len(ratios)} steps ratios {_lie(ratios, INSIDE)} in "
                f"our interval. Ours is larger on {_count(ratios, LARGER)}, smaller on {_count(ratios, SMALLER)} and "
                f"undecided on {_count(ratios, OPEN)}."
            )
        if len(metrics):
            better = len(metrics) - _count(metrics, EQUAL)
            found.append(
                f"{name}, metric at the full budget: the paper's average changes it on {better} of {len(metrics)} "
                f"workloads. Ours has the same sign on {_count(metrics, AGREE)}, the opposite one on "
                f"{_count(metrics, OPPOSITE)}, no effect on {_count(metrics, NONE)}."
            )
        for row in part[part["quantity"] == SUITE].to_dict("records"):
            ends = "" if np.isnan(row["low"]) else f" [{row['low']:.3f}, {row['high']:.3f}]"
            found.append(
                f"{name}, device-hours over the suite: the paper's ratio is {row['paper']:.3f}, ours over "
                f"{row['workload']} {row['ours']:.3f}{ends}: {row['verdict']}."
            )
    return found


def _trainings(cells: pd.DataFrame, scores: pd.DataFrame) -> dict[str, int]:
    """workload of the paper -> its best raw training with the paper's optimizer and schedule."""
    names = set(paper_points()["workload"])
    like = (cells["optimizer"] == "nadamw") & (cells["schedule"] == "cosine")
    like &= (cells["length_steps"] >= cells["step_budget"]) & cells["workload"].isin(names)
    table = scores[scores["training"].isin(cells.loc[like, "training"])].sort_values("rank", kind="stable")
    return dict(table.groupby("workload")["training"].first())


def _ratios(ratios: pd.DataFrame, mine: pd.DataFrame) -> Iterator[dict[str, Any]]:
    same = ratios[ratios["versus"] == "same schedule"].set_index("setting")
    points = paper_points().set_index(["workload", "scheme"])["ratio"]
    for row in mine.to_dict("records"):
        key = (row["workload"], row["scheme"])
        if key in points.index and row["setting"] in same.index:
            ours = same.loc[row["setting"]]
            interval = Interval(*(ours[f"geometric_mean{end}"] for end in ("", "_low", "_high")))
            if not np.isnan(interval.value):
                yield _row(RATIO, *key, float(points[key]), interval, str(ours["bound"]))


def _shares(cells: pd.DataFrame, steps: pd.DataFrame, trainings: dict[str, int]) -> Iterator[dict[str, Any]]:
    raw = cells[cells["scheme"] == "none"].merge(steps[["cell_id", "counted_steps", "censored"]], on="cell_id")
    points = paper_points().drop_duplicates("workload").set_index("workload")["share"]
    for workload, training in sorted(trainings.items()):
        part = raw[(raw["training"] == training) & raw["counted_steps"].notna()]
        if len(part) and not part["censored"].all():
            taken = (part["counted_steps"] / part["step_budget"]).to_numpy(dtype=float)
            bound = "at least" if part["censored"].any() else "exact"
            yield _row(SHARE, workload, "none", float(points[workload]), bootstrap(taken, "mean"), bound)


def _metrics(
    cells: pd.DataFrame, general: pd.DataFrame, mine: pd.DataFrame, paper: dict[str, Any]
) -> Iterator[dict[str, Any]]:
    if "best_difference" not in general:
        return
    known, first = general.set_index("setting"), cells.drop_duplicates("setting").set_index("setting")
    for row in mine.to_dict("records"):
        theirs, setting, scheme = paper.get(row["workload"]), row["setting"], row["scheme"]
        if theirs is None or scheme not in theirs or setting not in known.index:
            continue
        ours = known.loc[setting]
        interval = Interval(*(ours[f"best_difference{end}"] for end in ("", "_low", "_high")))
        if np.isnan(interval.value):
            continue
        change = round(theirs[scheme] - theirs["none"], 9)
        what = effect(interval, bool(first.loc[setting, "higher_is_better"]))
        better = "better" if (change > 0) == theirs["higher_is_better"] else "worse"
        verdict = {None: OPEN, "none": NONE, better: AGREE}.get(what, OPPOSITE) if change else EQUAL
        yield _row(METRIC, row["workload"], scheme, change, interval, "exact") | {
            "verdict": verdict,
            "paper_metric": theirs["metric"],
            "our_metric": first.loc[setting, "metric_name"],
        }


def _suite(
    pooled: pd.DataFrame, mine: pd.DataFrame, chosen: pd.DataFrame, paper: dict[str, Any]
) -> Iterator[dict[str, Any]]:
    """Only where the pooled number is made of these settings, and of resnet's at most."""
    of = pooled[(pooled["versus"] == "same schedule") & (pooled["horizon"] == FIXED) & pooled["value"].notna()]
    of = of[(of["statistic"] == "suite device-hours") & (of["num_workloads"] >= FEWEST)]
    for row in of.to_dict("records"):
        used = chosen[chosen["near"].astype(bool) & (chosen["scheme"] == row["scheme"])]
        others = set(used.loc[~used["setting"].isin(mine["setting"]), "workload"])
        if row["scheme"] in paper and others <= {"imagenet_resnet"}:
            ratio = float(paper[row["scheme"]] / paper["none"])
            ours = Interval(row["value"], row["low"], row["high"])
            yield _row(SUITE, f"{row['num_workloads']} workloads", row["scheme"], ratio, ours, str(row["bound"]))


def _row(quantity: str, workload: str, scheme: str, paper: float, ours: Interval, bound: str) -> dict[str, Any]:
    row = dict(zip(COLUMNS, [quantity, workload, scheme, None, None, paper, *ours, bound], strict=False))
    return row | {"verdict": where(paper, ours, bound)}


def where(paper: float, ours: Interval, bound: str) -> str:
    """Whether the paper's number lies in our interval, or on which side; OPEN where we have none, or a bound alone."""
    if np.isnan(ours.low):
        return OPEN
    if ours.low <= paper <= ours.high:
        return INSIDE
    if paper < ours.low:
        return LARGER if bound in ("exact", "at least") else OPEN
    return SMALLER if bound in ("exact", "at most") else OPEN


def _count(rows: pd.DataFrame, verdict: str) -> int:
    return int((rows["verdict"] == verdict).sum())


def _lie(rows: pd.DataFrame, verdict: str) -> str:
    return "lies" if _count(rows, verdict) == 1 else "lie"
