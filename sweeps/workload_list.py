"""The shipped workloads as a table that fits the terminal it is shown in."""

from __future__ import annotations

from sweeps.columns import Row, fitting
from sweeps.targets import Target, read_target
from workloads.protocol import families, presets

HEADERS = ("workload", "preset", "step budget", "batch", "metric", "target", "where the target comes from", "target")
CHOICES = ((0, 1, 2, 3, 4, 5, 6), (0, 1, 2, 3, 4, 5), (0, 1, 2, 4, 5), (0, 1, 7))  # widest first


def table(width: int) -> tuple[Row, list[Row]]:
    """(headers, rows) of at most `width` characters, from 60 on."""
    rows: list[Row] = []
    for name in families():
        for preset, made in presets(name).items():
            target = read_target(name, preset)
            metric = f"{made.metric} {'↑' if made.higher_is_better else '↓'}"
            value = "—" if target is None else f"{target.value:.6g}"
            budget = f"{made.step_budget:,}"
            said = f"{metric} {value} in {budget}"
            rows.append((name, preset, budget, f"{made.batch_size:,}", metric, value, _provenance(target), said))
    return fitting(HEADERS, rows, width, CHOICES)


def as_json() -> list[dict[str, object]]:
    """What `wa workloads --json` prints: one entry a workload and preset."""
    return [
        {
            "workload": name,
            "preset": preset,
            "step_budget": made.step_budget,
            "batch_size": made.batch_size,
            "metric": made.metric,
            "higher_is_better": made.higher_is_better,
            "target": None if (target := read_target(name, preset)) is None else target.model_dump(),
        }
        for name in families()
        for preset, made in presets(name).items()
    ]


def _provenance(target: Target | None) -> str:
    if target is None:
        return "— (`wa calibrate` sets one)"
    if not target.seeds:
        return target.rule
    return f"calibrated: seeds {', '.join(map(str, target.seeds))}; {target.date}"
