"""The shipped workloads as a table that fits the terminal it is shown in."""

from __future__ import annotations

from sweeps.targets import Target, read_target
from workloads.protocol import families, presets

Rows = list[tuple[str, ...]]


def table(width: int) -> tuple[tuple[str, ...], Rows]:
    """(headers, rows) of at most `width` characters from 60 on: what does not fit is left out, from the right."""
    wide, wide_rows = _wide()
    where = len(wide) - 1
    if _width(wide, wide_rows, 3) <= width:
        return wide, wide_rows
    for columns in (range(where), (0, 1, 2, 4, 5)):
        headers = tuple(wide[i] for i in columns)
        rows = [tuple(row[i] for i in columns) for row in wide_rows]
        if _width(headers, rows, 3) <= width:
            return headers, rows
    return ("workload", "preset", "steps", "target"), [
        (name, preset, budget, f"{metric} {target}")
        for name, preset, budget, _, metric, target, _ in wide_rows
    ]


def _wide() -> tuple[tuple[str, ...], Rows]:
    rows = []
    for name in families():
        for preset, made in presets(name).items():
            target = read_target(name, preset)
            metric = f"{made.metric} {'↑' if made.higher_is_better else '↓'}"
            value = "—" if target is None else f"{target.value:.6g}"
            budget, batch = f"{made.step_budget:,}", f"{made.batch_size:,}"
            rows.append((name, preset, budget, batch, metric, value, _provenance(target)))
    return (
        "workload",
        "preset",
        "step budget",
        "batch",
        "metric",
        "target",
        "where the target comes from",
    ), rows


def _width(headers: tuple[str, ...], rows: Rows, between: int) -> int:
    return sum(between + max(map(len, column)) for column in zip(headers, *rows, strict=True)) + between


def _provenance(target: Target | None) -> str:
    if target is None:
        return "— (`wa calibrate` sets one)"
    if not target.seeds:
        return target.rule
    return f"calibrated: seeds {', '.join(map(str, target.seeds))}; {target.date}"
