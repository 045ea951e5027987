"""The tables that the page and the terminal show; the CSV files hold all rows and columns."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from pathlib import PurePosixPath
from typing import Any, NamedTuple

import pandas as pd

from analysis.profiles import Profiles
from analysis.savings import sign
from analysis.study import SCHEME_NAMES
from analysis.tables import Tables


class Table(NamedTuple):
    title: str
    file: str
    columns: list[str]
    rows: list[list[str]]
    left_out: int

    @property
    def tex(self) -> str:
        """The name of the same table as LaTeX, beside the CSV."""
        return f"{PurePosixPath(self.file).stem}.tex"


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
            "missed": ["–" if pd.isna(row["target"]) else _missed(row) for row in settings.to_dict("records")],
        }
    )
    order = settings.assign(raw=settings["scheme"] != "none")
    axes = ["workload", "training", "raw", "scheme", "horizon_fraction"]
    return out.loc[order.sort_values(axes, kind="stable").index].reset_index(drop=True)


def _missed(row: Mapping[Any, Any]) -> str:
    """'1/3', and while runs are not finished how many: '0/3, 1 open'."""
    still = f", {row['num_open']} open" if row["num_open"] else ""
    return f"{row['num_censored']}/{row['num_seeds']}{still}"


def shown_tables(tables: Tables, scored: Profiles | None = None, most: int = 200) -> Iterator[Table]:
    """The tables the page shows; the CSV files hold all rows and columns."""
    if scored and scored.imported:
        yield from _scores(scored, most)
        yield _text("Results by setting", "settings", summary(tables.settings), most)
        return
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
    if scored and not scored.imported:
        yield from _scores(scored, most)
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
    yield from _across_trainings(tables, most)
    if len(tables.generalization) and "final_difference" in tables.generalization:
        rows = tables.generalization.to_dict("records")
        columns = {
            "best metric": [_ratio(row, "best_metric", form=".4g") for row in rows],
            "final metric": [_ratio(row, "final_metric", form=".4g") for row in rows],
            "final − baseline's": [_ratio(row, "final_difference", form="+.3g") for row in rows],
            "effect": [row["effect"] for row in rows],
        }
        frame = _by_setting(tables.generalization, columns)
        yield _text("Generalization", "generalization", frame, most)
    if len(tables.test_metrics):
        rows = tables.test_metrics.to_dict("records")
        columns = {
            "test metric": [_ratio(row, "test_metric", form=".4g") for row in rows],
            "test − baseline's": [_ratio(row, "test_difference", form="+.3g") for row in rows],
            "effect": [row["effect"] for row in rows],
        }
        frame = _by_setting(tables.test_metrics, columns)
        yield _text("On the test split, at the end", "test_metrics", frame, most)
    if len(tables.metrics_beside):
        rows = tables.metrics_beside.to_dict("records")
        columns = {
            "metric": [row["metric"] for row in rows],
            "final": [_ratio(row, "final", form=".4g") for row in rows],
            "final − baseline's": [_ratio(row, "difference", form="+.3g") for row in rows],
        }
        frame = _by_setting(tables.metrics_beside, columns)
        yield _text("Metrics beside the target's", "metrics_beside", frame, most)
    yield _text("Device-hours of the sweep", "sweep_device_hours", tables.sweep_device_hours, most)


def _by_setting(table: pd.DataFrame, columns: Mapping[str, list[Any]]) -> pd.DataFrame:
    """Each row's workload, schedule and scheme, then these columns."""
    names = {"training_label": "schedule", "scheme_label": "scheme"}
    return table[["workload", *names]].rename(columns=names).assign(**columns)


def _scores(scored: Profiles, most: int) -> Iterator[Table]:
    """The scores, the times behind them, and where the two rules part."""
    by = "rule" if scored.imported else "measured in"
    rows = scored.scores.to_dict("records")
    frame = scored.scores[["measure", "submission"]].assign(
        score=[_with_ends(row, "score") for row in rows],
        integral=scored.scores["integral"],
        fastest=[f"{row['num_fastest']}/{row['num_workloads']}" for row in rows],
    )
    names = {"measure": by, "score": "score [95 %]", "integral": "closed form", "fastest": "fastest on"}
    yield _text("Scores", "score_scores", frame.rename(columns=names), most)
    leads = scored.leads[["measure", "submission", "versus"]].assign(
        difference=[_with_ends(row, "difference") for row in scored.leads.to_dict("records")]
    )
    names = {"measure": by, "submission": "first", "difference": "score − other's [95 %]"}
    yield _text("By how much the first leads", "score_leads", leads.rename(columns=names), most)
    times = scored.times.assign(text=[_time(row) for row in scored.times.to_dict("records")])
    frame = _wide(times, ["measure", "workload"], "submission").rename(columns={"measure": by})
    yield _text("Median time to the target, studies that miss", "score_times", frame, most)
    if len(scored.differences):
        frame = scored.differences.assign(
            clean=scored.differences["clean"].map(_digits), exact=scored.differences["exact"].map(_digits)
        )
        yield _text("Where the two rules differ", "score_differences", frame, most)


def _time(row: Mapping[Any, Any]) -> str:
    """'7,208 (1/5)': the median over studies, ∞ where most miss, and how many do."""
    text = _digits(row["time"])
    return f"{text} ({row['num_missed']}/{row['num_studies']})" if row["num_missed"] else text


def _digits(value: float) -> str:
    if math.isnan(value):
        return "–"
    if math.isinf(value):
        return "∞"
    return f"{value:,.2f}" if value >= 100 else f"{value:.6g}"


def _with_ends(row: Mapping[Any, Any], name: str) -> str:
    return _ratio({**row, f"{name}_low": row["low"], f"{name}_high": row["high"]}, name)


def _across_trainings(tables: Tables, most: int) -> Iterator[Table]:
    """Raw runs and the averages fixed beforehand at every learning rate, optimizer, schedule, …"""
    table = tables.across_trainings
    table = table[table["fixed"].astype(bool)]
    if table.empty:
        return
    rows = table.to_dict("records")
    frame = table[["workload", "name", "scheme_label"]].assign(
        median=[
            _steps(row | {"steps_to_target": row["median_steps"], "num_censored": row["num_missed"]}) for row in rows
        ],
        missed=[f"{row['num_missed']}/{row['num_seeds']}" for row in rows],
        mean=[_ratio(row, "restricted_mean", bound="", form=",.0f") for row in rows],
        best=[_ratio(row, "best_metric", bound="", form=".4g") for row in rows],
        final=[_ratio(row, "final_metric", bound="", form=".4g") for row in rows],
        ratio=[_ratio(row, "ratio") for row in rows],
        best_ratio=[_ratio(row, "best_ratio", bound="best_bound") for row in rows],
    )
    names = {
        "name": "training",
        "scheme_label": "scheme",
        "median": "median steps",
        "mean": "restricted mean steps",
    }
    names |= {"best": "best metric", "final": "final metric", "ratio": "steps ÷ own raw run's"}
    names |= {"best_ratio": "steps ÷ best raw training's"}
    yield _text("Across trainings", "across_trainings", frame.rename(columns=names), most)


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
    left = _schemes(left).assign(text=left["value"].map("{:.3f}".format), left_out="without " + left["without"])
    yield _text("Pooled without one workload", "leave_one_out", _wide(left, [*keys, "statistic"], "left_out"), most)


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
    text = f"{sign(row.get(bound), mixed='~ ')}{row[name]:{form}}"
    return text if pd.isna(row[f"{name}_low"]) else f"{text} {_interval(row, name, form)}"
