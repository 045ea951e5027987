"""The measured block of each family's page in docs/workloads/, from the records of the horizon study."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from analysis import output, paired
from analysis.intervals import of_row, with_interval
from analysis.paper.evidence import Evidence
from analysis.records import BESIDE
from analysis.savings import overall_bound, sign
from analysis.study import SCHEME_NAMES, percent

HORIZONS = (0.001, 0.005, 0.01, 0.02, 0.04, 0.16, 0.3)
BEGIN, END = "<!-- measured -->", "<!-- end -->"


def write(of: Evidence, docs: Path) -> None:
    """Rewrites what lies between BEGIN and END on the page of each workload that has one."""
    for workload in sorted(of.pick("horizon")["workload"].unique()):
        path = docs / "workloads" / f"{workload}.md"
        text = path.read_text(encoding="utf-8") if path.is_file() else ""
        if BEGIN in text and END in text:
            before, rest = text.split(BEGIN, 1)
            output.write(path, f"{before}{BEGIN}\n\n{block(of, workload)}\n\n{END}{rest.split(END, 1)[1]}")


def block(of: Evidence, workload: str) -> str:
    """Target, final values by seed, and the steps ratio of EMA and LAWA at every horizon."""
    baseline = of.pick("horizon", workload=workload).sort_values("seed")
    ends = of.records.merge(baseline[["cell_id", "last_step", "seed"]], on="cell_id")
    ends = ends[ends["step"] == ends["last_step"]].sort_values("seed")
    names = ["metric", *(name for name in ends.columns if name.startswith(BESIDE) and ends[name].notna().all())]
    titles = [baseline["metric_name"].iloc[0], *(name.removeprefix(BESIDE) for name in names[1:])]
    finals = [
        f"{title} {' / '.join(f'{value:.4g}' for value in ends[name])}"
        for title, name in zip(titles, names, strict=True)
    ]
    met = baseline.merge(of.steps[["cell_id", "status", "counted_steps"]], on="cell_id")
    reached = (met["counted_steps"] / met["step_budget"]).map("{:.2f}".format).where(met["status"] == "met", "never")
    rows = [
        f"| {SCHEME_NAMES[scheme]} | "
        + " | ".join(_ratio(of, of.pick("horizon", scheme, h, workload=workload), baseline) for h in HORIZONS)
        + " |"
        for scheme in ("ema", "lawa")
    ]
    return "\n".join(
        [
            f"**Measured by `sweeps/horizon.yaml`** (seeds {', '.join(map(str, baseline['seed']))}; buffers averaged). "
            f"The non-averaged baseline at the end, by seed: {'; '.join(finals)}. It meets the target of "
            f"{baseline['target'].iloc[0]:.4g} after these shares of the budget: {', '.join(reached)}.",
            "Steps-to-target ÷ that of the baseline of the same seed, geometric mean and 95 % interval:",
            "",
            f"| horizon | {' | '.join(percent(horizon) for horizon in HORIZONS)} |",
            "|---" * (len(HORIZONS) + 1) + "|",
            *rows,
        ]
    )


def _ratio(of: Evidence, average: pd.DataFrame, baseline: pd.DataFrame) -> str:
    ((_, pairs),) = of.compare(average, baseline)
    if not pairs["value"].notna().any():
        return "–"
    row = paired.by_workload(pairs).iloc[0].rename({"low": "value_low", "high": "value_high"})
    return sign(overall_bound(pairs["bound"])) + with_interval(of_row(row, "value"))
