"""Which columns of a table fit a terminal."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

Row = tuple[str, ...]
BETWEEN = 2  # blanks after a column


def fitting(headers: Row, rows: Sequence[Row], width: int, choices: Iterable[Sequence[int]]) -> tuple[Row, list[Row]]:
    """The columns of the first choice that fits into `width` characters, else those of the last."""
    chosen, left = headers, list(rows)
    for columns in choices:
        chosen, *left = [tuple(row[i] for i in columns) for row in (headers, *rows)]
        if sum(BETWEEN + max(map(len, column)) for column in zip(chosen, *left, strict=True)) <= width:
            break
    return chosen, left
