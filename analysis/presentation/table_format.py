"""How a table is shown: each column says its title and format once, for the page, LaTeX, Markdown and the terminal.

CSV files hold all rows and columns under the frames' own names.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import pandas as pd

from analysis.statistics.pairs import with_bound

MOST = 200  # rows shown


class Column(NamedTuple):
    """What stands above a column, and how a value is written: a format, or a function of the row.

    A number with columns name_low and name_high beside it is shown with its interval, and with ≥, ≤ or ~ before it
    where the column `bound` says that it is one.
    """

    title: str
    form: str | Callable[[Mapping[Any, Any]], str] = ".4g"
    bound: str = "bound"


class Shown(NamedTuple):
    """A table of the page: which frame, what it is called there, which of its columns, and which rows in what order."""

    frame: str
    title: str
    columns: tuple[str, ...]
    rows: Callable[[pd.DataFrame], pd.DataFrame] | None = None


class Table(NamedTuple):
    """A table as text."""

    title: str
    name: str
    columns: list[str]
    rows: list[list[str]]
    left_out: int


def steps(row: Mapping[Any, Any]) -> str:
    """The median; where more than half of the seeds are censored it is only known to be larger."""
    if pd.isna(row["steps_to_target"]):
        return "–"
    return f"{'> ' if 2 * row['num_censored'] > row['num_seeds'] else ''}{row['steps_to_target']:,.0f}"


def missed(row: Mapping[Any, Any]) -> str:
    """'1/3', and while runs are not finished how many: '0/3, 1 open'."""
    if pd.isna(row.get("target", 0.0)):
        return "–"
    still = f", {row['num_open']} open" if row.get("num_open") else ""
    return f"{row['num_censored']}/{row['num_seeds']}{still}"


COLUMNS: dict[str, Column] = {
    "training_label": Column("schedule"),
    "scheme_label": Column("scheme"),
    "horizon_fraction": Column("horizon %", lambda row: number(100 * row["horizon_fraction"])),
    "steps_to_target": Column("steps to target", steps),
    "num_censored": Column("missed", missed),
    "ratio": Column("ratio", ".3f"),
    "best_metric": Column("best metric"),
    "final_metric": Column("final metric"),
}


def table(frame: pd.DataFrame, shown: Shown, columns: Mapping[str, Column], most: int = MOST) -> Table:
    """The first rows of a frame as text. Args: columns: what a section says of its own, before COLUMNS."""
    known = {name: columns.get(name) or COLUMNS.get(name) or Column(name.replace("_", " ")) for name in shown.columns}
    rows = [[text(row, name, column) for name, column in known.items()] for row in frame.head(most).to_dict("records")]
    titles = [column.title for column in known.values()]
    return Table(shown.title, shown.frame, titles, rows, max(0, len(frame) - most))


def text(row: Mapping[Any, Any], name: str, column: Column) -> str:
    """One cell."""
    if not isinstance(column.form, str):
        return column.form(row)
    value = row[name]
    if f"{name}_low" in row:
        return interval(row, name, column.form, column.bound)
    if isinstance(value, float) and column.form != ".4g" and not math.isnan(value):
        return f"{value:{column.form}}"
    return number(value)


def interval(row: Mapping[Any, Any], name: str, form: str = ".3f", bound: str = "bound") -> str:
    """'≥ 0.90 [0.88, 0.92]', from the columns name, name_low, name_high and bound."""
    return "–" if pd.isna(row[name]) else with_bound(row, name, form, bound, mixed="~ ")


def number(value: Any) -> str:
    """A value without a format of its own."""
    if value is None or (not isinstance(value, str) and pd.isna(value)):
        return "–"
    if isinstance(value, float):  # numpy.float64 is one
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"
    return str(value)


def aligned(table: Table, indent: str = "  ") -> str:
    """For a terminal: columns as wide as their longest text."""
    lines = [table.columns, *table.rows]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    padded = ("  ".join(word.ljust(width) for word, width in zip(line, widths, strict=True)) for line in lines)
    return "\n".join(f"{indent}{line}".rstrip() for line in padded)


def markdown(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Lines of a Markdown table."""
    lines = (columns, ["---"] * len(columns), *rows)
    return ["| " + " | ".join(text.replace("|", "\\|") for text in line) + " |" for line in lines]
