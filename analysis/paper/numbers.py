"""The paper's own numbers (numbers.yaml) beside this study's at the pre-specified horizon, and whether a target's
tightness, the share of the step budget T after which the baseline is at it, explains what averaging saves.

Another scale: models, data, targets and often metrics differ, so they say what carries over, not what is right.
"""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import yaml
from scipy.stats import linregress, t

from analysis.paper.evidence import Evidence
from analysis.run_folder import output
from analysis.run_folder.records import BESIDE
from analysis.run_folder.study import SCHEME_NAMES, percent
from analysis.statistics import pairs as paired
from analysis.statistics.pairs import AT_LEAST, AT_MOST, CHOSEN_HORIZON, EXACT, overall_bound, sign
from analysis.statistics.resampling import LEVEL, Interval, of_row, with_interval

PAPER, OURS = "the paper", "this study"
SCHEMES = ("ema", "lawa")
LEAST = 3  # workloads of a regression
INSIDE, LARGER, SMALLER, OPEN = "inside our interval", "ours is larger", "ours is smaller", "undecided"
POINTS = ["source", "scheme", "workload", "share", "ratio", "ratio_low", "ratio_high", "bound"]
HEAD = "| scheme | workload | steps ratio, paper | ours | the paper's is | metric, paper | ours (below 1: better) |"


def read() -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load(files("analysis.paper").joinpath("numbers.yaml").read_text(encoding="utf-8"))
    return found


def points(of: Evidence) -> pd.DataFrame:
    """POINTS: the paper's eight a scheme, which have no interval, and those of study speedup: the steps ratio, against
    the median over seeds of the baseline's steps-to-target / T, a miss censored and imputed at T."""
    rows = [
        {"source": PAPER, "scheme": scheme, "workload": workload, "share": point["share"], "ratio": point[scheme]}
        for workload, point in read()["points"].items()
        for scheme in SCHEMES
    ]
    paper = pd.DataFrame(rows).assign(ratio_low=np.nan, ratio_high=np.nan, bound="exact")
    taken = of.pick("speedup").merge(of.steps[["cell_id", "ranked_steps"]], on="cell_id")
    share = (taken["ranked_steps"] / taken["step_budget"]).groupby(taken["workload"]).median().rename("share")
    mine = ((scheme, by_workload(of, "speedup", scheme).join(share)) for scheme in SCHEMES)
    ours = [table.assign(source=OURS, scheme=scheme).reset_index() for scheme, table in mine]
    table = pd.concat([paper, *ours]).astype(dict.fromkeys(["share", "ratio", "ratio_low", "ratio_high"], float))
    table = table.dropna(subset=["share", "ratio"])
    return table.sort_values(["source", "scheme", "workload"], kind="stable").reset_index(drop=True)[POINTS]


def regression(points: pd.DataFrame) -> dict[str, Any] | None:
    """ratio = intercept + slope · share by least squares, with Student's interval of the slope (n − 2 degrees).

    None for fewer than LEAST workloads or one share; low and high are NaN where all points lie on one line.
    """
    if len(points) < LEAST or np.ptp(points["share"]) < 1e-6:
        return None
    found = linregress(points["share"], points["ratio"])
    width = t.ppf((1 + LEVEL) / 2, len(points) - 2) * found.stderr if found.stderr > 1e-6 else np.nan
    ends = {"slope": found.slope, "slope_low": found.slope - width, "slope_high": found.slope + width}
    return {"num_workloads": len(points), "intercept": found.intercept, "r2": found.rvalue**2, **ends}


def beside(of: Evidence) -> list[str]:
    """A Markdown table, a row a (scheme, workload) that both have: steps ratios and final metrics."""
    table, metrics, lines = points(of), read()["metrics"], []
    for scheme in SCHEMES:
        paper, ours = (table[(table["scheme"] == scheme) & (table["source"] == one)] for one in (PAPER, OURS))
        changes = by_workload(of, "generalization", scheme, quantity="final_metric")
        for row in ours.merge(paper[["workload", "ratio"]], on="workload", suffixes=("", "_paper")).to_dict("records"):
            workload, found, theirs = row["workload"], of_row(row, "ratio"), row["ratio_paper"]
            cells = [SCHEME_NAMES[scheme], workload, f"{theirs:.2f}", sign(row["bound"]) + with_interval(found)]
            cells.append(where(theirs, found, row["bound"]))
            if (metric := metrics.get(workload)) and workload in changes.index:
                change = with_interval(of_row(changes.loc[workload], "ratio"), ".4f")
                cells += [f"{metric[scheme] - metric['none']:+.3g} {metric['metric']}", change]
            lines.append(f"| {' | '.join([*cells, '–', '–'][:7])} |")
    return [HEAD, "|---" * 7 + "|", *lines]


def by_workload(
    of: Evidence, study: str, scheme: str, horizon: float = CHOSEN_HORIZON, quantity: str = "steps"
) -> pd.DataFrame:
    """An average ÷ its baseline, a row a workload that has a ratio: ratio, ratio_low, ratio_high, bound."""
    pairs = of.compare(of.pick(study, scheme, horizon), of.pick(study), quantity)
    names = {"value": "ratio", "low": "ratio_low", "high": "ratio_high"}
    table = paired.by_workload(pairs).set_index("workload").rename(columns=names)
    return table.assign(bound=pairs.groupby("workload")["bound"].agg(overall_bound)).dropna(subset="ratio")


def where(paper: float, ours: Interval, bound: str) -> str:
    """Whether the paper's number lies in our interval, or on which side; OPEN where we have none, or a bound alone."""
    if ours.low <= paper <= ours.high:
        return INSIDE
    if paper < ours.low and bound in (EXACT, AT_LEAST):
        return LARGER
    return SMALLER if paper > ours.high and bound in (EXACT, AT_MOST) else OPEN


HORIZONS = (0.001, 0.005, 0.01, 0.02, 0.04, 0.16, 0.3)
BEGIN, END = "<!-- measured -->", "<!-- end -->"


def write_pages(of: Evidence, docs: Path) -> None:
    """Rewrites what lies between BEGIN and END on the page of each workload that has one."""
    ratios = {
        (scheme, h): by_workload(of, "horizon", scheme, h).to_dict("index") for scheme in SCHEMES for h in HORIZONS
    }
    for workload in sorted(of.pick("horizon")["workload"].unique()):
        path = docs / "workloads" / f"{workload}.md"
        text = path.read_text(encoding="utf-8") if path.is_file() else ""
        if BEGIN not in text or END not in text:
            continue
        lines = [_ends(of, workload)]
        lines += [
            "Steps-to-target ÷ the baseline's of the same seed, geometric mean and 95 % interval:",
            "",
            f"| horizon | {' | '.join(map(percent, HORIZONS))} |",
            "|---" * (len(HORIZONS) + 1) + "|",
        ]
        for scheme in SCHEMES:
            found = [ratios[scheme, h].get(workload) for h in HORIZONS]
            cells = [sign(row["bound"]) + with_interval(of_row(row, "ratio")) if row else "–" for row in found]
            lines.append(f"| {SCHEME_NAMES[scheme]} | {' | '.join(cells)} |")
        before, rest = text.split(BEGIN, 1)
        block = "\n".join(lines)
        output.write(path, f"{before}{BEGIN}\n\n{block}\n\n{END}{rest.split(END, 1)[1]}")


def _ends(of: Evidence, workload: str) -> str:
    """Where the baseline ends and when it meets its target, by seed."""
    baseline = of.pick("horizon", workload=workload).sort_values("seed")
    baseline = baseline.merge(of.steps[["cell_id", "status", "counted_steps"]], on="cell_id")
    last = baseline[["cell_id", "last_step", "seed"]].rename(columns={"last_step": "step"})
    ends = of.records.merge(last, on=["cell_id", "step"]).sort_values("seed")
    columns = {"metric": baseline["metric_name"].iloc[0]}
    columns |= {
        one: one.removeprefix(BESIDE) for one in ends.columns if one.startswith(BESIDE) and ends[one].notna().all()
    }
    finals = [f"{title} {' / '.join(map('{:.4g}'.format, ends[one]))}" for one, title in columns.items()]
    reached = (baseline["counted_steps"] / baseline["step_budget"]).map("{:.2f}".format)
    reached = reached.where(baseline["status"] == "met", "never")
    return (
        f"**Measured by `sweeps/horizon.yaml`** (seeds {', '.join(map(str, baseline['seed']))}; buffers averaged). The "
        f"non-averaged baseline at the end, by seed: {'; '.join(finals)}. It meets the target of "
        f"{baseline['target'].iloc[0]:.4g} after these shares of the budget: {', '.join(reached)}."
    )
