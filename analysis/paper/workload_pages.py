"""The measured block of each family's page in docs/workloads/, from the records of the horizon study."""

from __future__ import annotations

from pathlib import Path

from analysis import output
from analysis.pairs import sign
from analysis.paper.evidence import Evidence
from analysis.paper.numbers import SCHEMES, by_workload
from analysis.records import BESIDE
from analysis.resampling import of_row, with_interval
from analysis.study import SCHEME_NAMES, percent

HORIZONS = (0.001, 0.005, 0.01, 0.02, 0.04, 0.16, 0.3)
BEGIN, END = "<!-- measured -->", "<!-- end -->"


def write(of: Evidence, docs: Path) -> None:
    """Rewrites what lies between BEGIN and END on the page of each workload that has one."""
    ratios = {
        (scheme, h): by_workload(of, "horizon", scheme, h).to_dict("index") for scheme in SCHEMES for h in HORIZONS
    }
    for workload in sorted(of.pick("horizon")["workload"].unique()):
        path = docs / "workloads" / f"{workload}.md"
        text = path.read_text(encoding="utf-8") if path.is_file() else ""
        if BEGIN not in text or END not in text:
            continue
        lines = [
            _ends(of, workload),
            "Steps-to-target ÷ the baseline's of the same seed, geometric mean and 95 % interval:",
        ]
        lines += ["", f"| horizon | {' | '.join(map(percent, HORIZONS))} |", "|---" * (len(HORIZONS) + 1) + "|"]
        for scheme in SCHEMES:
            found = [ratios[scheme, h].get(workload) for h in HORIZONS]
            cells = [sign(row["bound"]) + with_interval(of_row(row, "ratio")) if row else "–" for row in found]
            lines.append(f"| {SCHEME_NAMES[scheme]} | {' | '.join(cells)} |")
        before, rest = text.split(BEGIN, 1)
        block = "\n".join(lines)
        output.write(path, f"{before}{BEGIN}\n\n{block}\n\n{END}{rest.split(END, 1)[1]}")


def _ends(of: Evidence, workload: str) -> str:
    """Where the baseline ends and when it meets its target, by seed."""
    baseline = of.pick("horizon", workload=workload).merge(
        of.steps[["cell_id", "status", "counted_steps"]], on="cell_id"
    )
    baseline = baseline.sort_values("seed")
    last = baseline[["cell_id", "last_step", "seed"]].rename(columns={"last_step": "step"})
    ends = of.records.merge(last, on=["cell_id", "step"]).sort_values("seed")
    names = ["metric", *(name for name in ends.columns if name.startswith(BESIDE) and ends[name].notna().all())]
    titles = {"metric": baseline["metric_name"].iloc[0]}
    finals = [
        f"{titles.get(name, name.removeprefix(BESIDE))} {' / '.join(f'{value:.4g}' for value in ends[name])}"
        for name in names
    ]
    reached = (baseline["counted_steps"] / baseline["step_budget"]).map("{:.2f}".format)
    reached = reached.where(baseline["status"] == "met", "never")
    return (
        f"**Measured by `sweeps/horizon.yaml`** (seeds {', '.join(map(str, baseline['seed']))}; buffers averaged). The "
        f"non-averaged baseline at the end, by seed: {'; '.join(finals)}. It meets the target of "
        f"{baseline['target'].iloc[0]:.4g} after these shares of the budget: {', '.join(reached)}."
    )
