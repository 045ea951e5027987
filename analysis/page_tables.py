"""The tables that the page and the terminal show; the CSV files hold all rows and columns."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import pandas as pd

from analysis.study import SCHEME_NAMES
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
    yield from _pooled(tables, most)
    means = tables.restricted_means
    if len(means):
        rows = means.to_dict("records")
        frame = means[["workload", "training_label", "scheme_label"]].assign(
            mean=[_ratio(row, "restricted_mean", form=",.0f") for row in rows],
            grid=[_span(row, "restricted_mean", ",.0f") for row in rows],
            share=means["budget_share"],
            median=means["median"],
            met=[f"{row['num_met']}/{row['num_seeds']}" for row in rows],
        )
        names = {"training_label": "schedule", "scheme_label": "scheme", "mean": "restricted mean steps"}
        names |= {"grid": "grid leaves", "share": "÷ step budget", "median": "Kaplan–Meier median"}
        yield _text("Restricted mean steps to target", "restricted_means", frame.rename(columns=names), most)
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


def _pooled(tables: Tables, most: int) -> Iterator[Table]:
    """The pooled numbers with their rules, the same by workload, and without each workload."""
    keys = ["versus", "horizon", "scheme"]
    whole = tables.pooled[tables.pooled["value"].notna()]
    if whole.empty or whole["num_workloads"].max() < 2:
        return
    rows = whole.to_dict("records")
    seeds = [row | {"value_low": row["seeds_low"], "value_high": row["seeds_high"]} for row in rows]
    frame = _schemes(whole)[[*keys, "statistic"]].assign(
        ratio=[_ratio(row | {"value_low": row["low"], "value_high": row["high"]}, "value") for row in rows],
        seeds=[_interval(row, "value") for row in seeds],
        workloads=whole["num_workloads"],
        missed=[f"{row['num_missed']}/{row['num_pairs']}" for row in rows],
        rule=whole["rule"],
    )
    names = {"ratio": "ratio [95 %]", "seeds": "[95 %, seeds alone]", "missed": "pairs with a miss"}
    names |= {"rule": "how it counts"}
    yield _text("Pooled over workloads", "pooled", frame.rename(columns=names), most)
    single = tables.pooled_by_workload
    rows = single.rename(columns={"low": "value_low", "high": "value_high"}).to_dict("records")
    single = _schemes(single).assign(text=[_ratio(row, "value") for row in rows])
    frame = _wide(single, [*keys, "workload"], "statistic")
    yield _text("The same numbers, workload by workload", "pooled_by_workload", frame, most)
    left = tables.leave_one_out
    left = _schemes(left).assign(
        text=left["value"].map("{:.3f}".format), left_out="without " + left["without"]
    )
    yield _text(
        "Pooled without one workload", "leave_one_out", _wide(left, [*keys, "statistic"], "left_out"), most
    )


def _schemes(table: pd.DataFrame) -> pd.DataFrame:
    return table.assign(scheme=table["scheme"].map(SCHEME_NAMES).fillna(table["scheme"]))


def _wide(table: pd.DataFrame, keys: list[str], across: str) -> pd.DataFrame:
    """One column a value of `across`, rows and columns in the order of the table."""
    wide = table.pivot(index=keys, columns=across, values="text")
    rows = pd.MultiIndex.from_frame(table[keys].drop_duplicates())
    return wide.reindex(rows)[list(dict.fromkeys(table[across]))].reset_index()


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


def _interval(row: Mapping[Any, Any], name: str, form: str = ".3f") -> str:
    low, high = row[f"{name}_low"], row[f"{name}_high"]
    return "–" if pd.isna(low) else f"[{low:{form}}, {high:{form}}]"


def _span(row: Mapping[Any, Any], name: str, form: str) -> str:
    low, high = row[f"{name}_left"], row[f"{name}_right"]
    return "–" if pd.isna(low) else f"{low:{form}} to {high:{form}}"


def _ratio(row: Mapping[Any, Any], name: str, bound: str = "bound", form: str = ".3f") -> str:
    if pd.isna(row[name]):
        return "–"
    sign = {"at least": "≥ ", "at most": "≤ ", "mixed": "~ "}.get(str(row.get(bound)), "")
    text = f"{sign}{row[name]:{form}}"
    return text if pd.isna(row[f"{name}_low"]) else f"{text} {_interval(row, name, form)}"
