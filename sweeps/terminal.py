"""What `wa` writes to a terminal: tables that fit its width, plain text where there is none."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table


def console() -> Console:
    """Standard output; 160 columns where it is no terminal and COLUMNS does not say."""
    from rich.console import Console

    told = sys.stdout.isatty() or "COLUMNS" in os.environ
    return Console(highlight=False, markup=False, width=None if told else 160)


def table(headers: Iterable[object], rows: Iterable[Sequence[object]], title: str | None = None) -> Table:
    """A table whose long cells fold; text is never markup."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    made = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, show_edge=False, padding=(0, 1, 0, 0))
    for header in headers:
        made.add_column(Text(str(header)), overflow="fold")
    for row in rows:
        made.add_row(*(Text(str(value)) for value in row))
    return made


def cell(value: Any) -> str:
    """A value of a result table; — where there is none."""
    if isinstance(value, float):
        return "—" if value != value else f"{value:.4g}"
    return "—" if value is None else str(value)


Row = tuple[str, ...]


def fitting(headers: Row, rows: Sequence[Row], width: int, choices: Iterable[Sequence[int]]) -> tuple[Row, list[Row]]:
    """The columns of the first choice that fits into `width` characters, else those of the last."""
    chosen, left = headers, list(rows)
    for columns in choices:
        chosen, *left = [tuple(row[i] for i in columns) for row in (headers, *rows)]
        if sum(2 + max(map(len, column)) for column in zip(chosen, *left, strict=True)) <= width:  # 2 blanks between
            break
    return chosen, left
