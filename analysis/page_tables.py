"""The tables that the page and the terminal show; the CSV files hold all rows and columns."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import pandas as pd

from analysis.tables import Tables


class Table(NamedTuple):
    title: str
    file: str
    columns: list[str]
    rows: list[list[str]]
    left_out: int


def summary(settings: pd.DataFrame) -> pd.DataFrame:
    """The result table, one row a setting; text where a number needs its interval or bound."""
    out = pd.DataFrame(
        {
            "workload": settings["workload"],
            "schedule": settings["training_label"],
            "scheme": settings["scheme_label"],
            "horizon %": settings["horizon_fraction"].astype(float) * 100,
            "steps to target": [_steps(row) for row in settings.to_dict("records")],
            "ratio": [_ratio(row, "ratio") for row in settings.to_dict("records")],
            "best metric": settings["best_metric"],
            "missed": [
                "–" if pd.isna(row["target"]) else f"{row['num_censored']}/{row['num_seeds']}"
                for row in settings.to_dict("records")
            ],
        }
    )
    order = settings.assign(raw=settings["scheme"] != "none")
    axes = ["workload", "training", "raw", "scheme", "horizon_fraction"]
    return out.loc[order.sort_values(axes, kind="stable").index].reset_index(drop=True)


def shown_tables(tables: Tables, most: int = 200) -> Iterator[Table]:
    """The tables the page shows; the CSV files hold all rows and columns."""
    yield _text("Results by setting", "settings", summary(tables.settings), most)
    ratios = tables.ratios
    if len(ratios):
        frame = ratios[ratios["scheme"] != "none"][["versus", "workload", "training_label", "scheme_label"]]
        rows = ratios[ratios["scheme"] != "none"].to_dict("records")
        frame = frame.assign(
            geometric=[_ratio(row, "geometric_mean") for row in rows],
            arithmetic=[_ratio(row, "mean") for row in rows],
            held=[_ratio(row, "held_geometric_mean", "held_bound") for row in rows],
            hours=[_ratio(row, "hours_ratio") for row in rows],
            pairs=[f"{row['num_exact']}/{row['num_pairs']}" for row in rows],
        )
        names = {"training_label": "schedule", "scheme_label": "scheme", "geometric": "geometric mean"}
        names |= {"arithmetic": "arithmetic mean", "hours": "device-hours ratio", "pairs": "pairs both met"}
        yield _text("Ratios to the baseline", "ratios", frame.rename(columns=names), most)
    if len(tables.generalization) and "final_difference" in tables.generalization:
        rows = tables.generalization.to_dict("records")
        frame = pd.DataFrame(
            {
                "workload": [row["workload"] for row in rows],
                "schedule": [row["training_label"] for row in rows],
                "scheme": [row["scheme_label"] for row in rows],
                "best metric": [_ratio(row, "best_metric", form=".4g") for row in rows],
                "final metric": [_ratio(row, "final_metric", form=".4g") for row in rows],
                "final − baseline's": [_ratio(row, "final_difference", form="+.3g") for row in rows],
                "effect": [row["effect"] for row in rows],
            }
        )
        yield _text("Generalization", "generalization", frame, most)
    if len(tables.metrics_beside):
        rows = tables.metrics_beside.to_dict("records")
        frame = pd.DataFrame(
            {
                "workload": [row["workload"] for row in rows],
                "schedule": [row["training_label"] for row in rows],
                "scheme": [row["scheme_label"] for row in rows],
                "metric": [row["metric"] for row in rows],
                "final": [_ratio(row, "final", form=".4g") for row in rows],
                "final − baseline's": [_ratio(row, "difference", form="+.3g") for row in rows],
            }
        )
        yield _text("Metrics beside the target's", "metrics_beside", frame, most)
    yield _text("Device-hours of the sweep", "sweep_device_hours", tables.sweep_device_hours, most)


def _text(title: str, file: str, frame: pd.DataFrame, most: int) -> Table:
    rows = [[_cell(value) for value in row] for row in frame.head(most).itertuples(index=False)]
    return Table(title, f"tables/{file}.csv", list(frame.columns), rows, max(0, len(frame) - most))


def _cell(value: Any) -> str:
    if value is None or (not isinstance(value, str) and pd.isna(value)):
        return "–"
    if isinstance(value, float):  # numpy.float64 is one
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"
    return str(value)


def _steps(row: Mapping[Any, Any]) -> str:
    """The median; where more than half of the seeds missed, it is only known to be larger than the step budget."""
    if pd.isna(row["steps_to_target"]):
        return "–"
    missed = "> " if 2 * row["num_censored"] > row["num_seeds"] else ""
    return f"{missed}{row['steps_to_target']:,.0f}"


def _ratio(row: Mapping[Any, Any], name: str, bound: str = "bound", form: str = ".3f") -> str:
    if pd.isna(row[name]):
        return "–"
    sign = {"at least": "≥ ", "at most": "≤ ", "mixed": "~ "}.get(str(row.get(bound)), "")
    text = f"{sign}{row[name]:{form}}"
    if not pd.isna(row[f"{name}_low"]):
        text += f" [{row[f'{name}_low']:{form}}, {row[f'{name}_high']:{form}}]"
    return text
