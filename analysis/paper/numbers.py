"""The paper's own numbers (numbers.yaml) beside this study's, at the pre-specified horizon.

Another scale: models, data, targets and often metrics differ, so they say what carries over, not what is right.
"""

from __future__ import annotations

from importlib.resources import files
from typing import Any

import numpy as np
import yaml

from analysis import paired
from analysis.baselines import CHOSEN_HORIZON
from analysis.intervals import Interval, with_interval
from analysis.paper.evidence import Evidence
from analysis.savings import overall_bound, sign
from analysis.study import SCHEME_NAMES

INSIDE, LARGER, SMALLER, OPEN = "inside our interval", "ours is larger", "ours is smaller", "undecided"


def read() -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load(files("analysis.paper").joinpath("numbers.yaml").read_text(encoding="utf-8"))
    return found


def beside(of: Evidence) -> list[str]:
    """A Markdown table, a row a (scheme, workload) that both have: steps ratios and final metrics."""
    paper, lines = read(), []
    for scheme in ("ema", "lawa"):
        ours, changes = (
            _by_workload(of, study, scheme, quantity)
            for study, quantity in (("speedup", "steps"), ("generalization", "final_metric"))
        )
        for workload, point in paper["points"].items():
            if workload not in ours:
                continue
            found, bound = ours[workload]
            row = [SCHEME_NAMES[scheme], workload, f"{point[scheme]:.2f}", sign(bound) + with_interval(found)]
            row.append(where(point[scheme], found, bound))
            if workload in changes and (metric := paper["metrics"].get(workload)):
                row += [
                    f"{metric[scheme] - metric['none']:+.3g} {metric['metric']}",
                    with_interval(changes[workload][0], ".4f"),
                ]
            lines.append(f"| {' | '.join([*row, '–', '–'][:7])} |")
    head = "| scheme | workload | steps ratio, paper | ours | the paper's is | metric, paper | ours (below 1: better) |"
    return [head, "|---" * 7 + "|", *lines]


def _by_workload(of: Evidence, study: str, scheme: str, quantity: str) -> dict[str, tuple[Interval, str]]:
    ((_, pairs),) = of.compare(of.pick(study, scheme, CHOSEN_HORIZON), of.pick(study), quantity)
    bounds = pairs.groupby("workload")["bound"].agg(overall_bound)
    found = paired.by_workload(pairs).dropna(subset="value").set_index("workload")[["value", "low", "high"]]
    return {str(name): (Interval(*ends), bounds[name]) for name, *ends in found.itertuples()}


def where(paper: float, ours: Interval, bound: str) -> str:
    """Whether the paper's number lies in our interval, or on which side; OPEN where we have none, or a bound alone."""
    if np.isnan(ours.low):
        return OPEN
    if ours.low <= paper <= ours.high:
        return INSIDE
    if paper < ours.low:
        return LARGER if bound in ("exact", "at least") else OPEN
    return SMALLER if bound in ("exact", "at most") else OPEN
