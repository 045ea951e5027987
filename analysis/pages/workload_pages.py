"""The measured block of each family's page in docs/workloads/, from the records of the horizon study."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from analysis import output
from analysis.findings.evidence import Evidence
from analysis.pairs import by_workload, overall_bound, sign
from analysis.records import BESIDE
from analysis.resampling import Interval, with_interval
from analysis.study import SCHEME_NAMES, percent

HORIZONS = (0.001, 0.005, 0.01, 0.02, 0.04, 0.16, 0.3)
BEGIN, END = "<!-- measured -->", "<!-- end -->"


def write(of: Evidence, docs: Path) -> list[Path]:
    """Rewrites what lies between BEGIN and END on the page of each workload that has one; returns those pages."""
    written = []
    for workload in sorted(of.pick("horizon")["workload"].unique()):
        path = docs / "workloads" / f"{workload}.md"
        text = path.read_text(encoding="utf-8") if path.is_file() else ""
        if BEGIN not in text or END not in text:
            continue
        before, rest = text.split(BEGIN, 1)
        after = rest.split(END, 1)[1]
        output.write(path, f"{before}{BEGIN}\n\n{block(of, workload)}\n\n{END}{after}")
        written.append(path)
    return written


def block(of: Evidence, workload: str) -> str:
    """Target, final values by seed, and the steps ratio of EMA and LAWA at every horizon."""
    raw = of.pick("horizon", workload=workload).sort_values("seed")
    ends = of.records[of.records["cell_id"].isin(raw["cell_id"])]
    ends = ends.merge(raw[["cell_id", "last_step", "seed"]], on="cell_id")
    ends = ends[ends["step"] == ends["last_step"]].sort_values("seed")
    beside = [name for name in ends.columns if name.startswith(BESIDE) and ends[name].notna().all()]
    finals = [f"{raw['metric_name'].iloc[0]} {_each(ends['metric'])}"]
    finals += [f"{name.removeprefix(BESIDE)} {_each(ends[name])}" for name in beside]
    met = raw.merge(of.steps[["cell_id", "status", "counted_steps"]], on="cell_id")
    shares = [
        f"{row['counted_steps'] / row['step_budget']:.2f}" if row["status"] == "met" else "never"
        for row in met.to_dict("records")
    ]
    lines = [
        f"**Measured by `sweeps/horizon.yaml`** (seeds {', '.join(map(str, raw['seed']))}; buffers averaged). Raw "
        f"weights at the end, by seed: {'; '.join(finals)}. They meet the target of {raw['target'].iloc[0]:.4g} after "
        f"these shares of the budget: {', '.join(shares)}.",
        "Steps-to-target ÷ that of the raw weights of the same run, geometric mean and 95 % interval:",
        "",
    ]
    return "\n".join([*lines, *_table(of, workload)])


def _table(of: Evidence, workload: str) -> list[str]:
    raw = of.pick("horizon", workload=workload)
    head = f"| horizon | {' | '.join(percent(horizon) for horizon in HORIZONS)} |"
    rows = [
        f"| {SCHEME_NAMES[scheme]} | "
        + " | ".join(_ratio(of, of.pick("horizon", scheme, h, workload=workload), raw) for h in HORIZONS)
        + " |"
        for scheme in ("ema", "lawa")
    ]
    return [head, "|---" * (len(HORIZONS) + 1) + "|", *rows]


def _ratio(of: Evidence, average: pd.DataFrame, raw: pd.DataFrame) -> str:
    pairs = of.ratios(average, raw)
    if not pairs["value"].notna().any():
        return "–"
    (row,) = by_workload(pairs).to_dict("records")
    return sign(overall_bound(pairs["bound"])) + with_interval(Interval(row["value"], row["low"], row["high"]))


def _each(values: pd.Series) -> str:
    return " / ".join(f"{value:.4g}" for value in values)
