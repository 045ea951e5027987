"""The lines of one ``eval_measurements.csv``: which are evaluations, in which order, and why the others are not.

A log is appended to by processes that are killed and restarted, and copied by people who sort and join tables. So a
line may be torn, repeated, superseded or out of order; each is told apart, and each line read is accounted for.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Iterable, Sequence
from dataclasses import replace
from itertools import groupby, pairwise
from operator import attrgetter
from typing import NamedTuple

from sweeps.importers import algoperf_trials as why
from sweeps.importers.algoperf_trials import Evaluation, Lines, Unusable

STEP, SECONDS, RESTARTS = "global_step", "accumulated_submission_time", "preemption_count"


class _Row(NamedTuple):
    life: tuple[float, int]  # which process wrote it: restarts so far, headers so far
    one: Evaluation

    @property
    def when(self) -> tuple[float, int]:
        return self.one.seconds, self.one.step


def read(data: bytes | None, where: str, metric: str) -> Lines:
    """The evaluations of one log in the order of the clock. No file, or one without a line, holds none.

    where: its path, as the first line left out for a reason is named.
    Raises: Unusable where it is not text, or a column that is needed is missing or stands twice.
    """
    lines, rows, header, num_headers = Lines(), list[_Row](), list[str](), 0
    needed = (STEP, SECONDS, f"validation/{metric}")
    for number, (text, torn) in enumerate(_texts(data or b""), start=1):
        if not text.strip():
            continue
        cells = None if torn else _cells(text)
        if cells is not None and STEP in cells:
            if missing := [name for name in needed if name not in cells]:
                raise Unusable(f"column {missing[0]!r} is missing")
            if len(set(cells)) < len(cells):
                raise Unusable("a column stands twice")
            header, num_headers = cells, num_headers + 1
            continue
        if not header and cells is not None:
            raise Unusable(f"column {STEP!r} is missing")
        lines.num_read += 1
        # A line without its newline may end within a number, and one of another length in the middle of one.
        found = why.TORN if cells is None or len(cells) != len(header) else _row(header, cells, needed, lines)
        if isinstance(found, Evaluation):
            restarts = found.values.get(RESTARTS, 0.0)
            rows.append(_Row((0.0 if math.isnan(restarts) else restarts, num_headers), found))
        else:
            lines.left_out[found] += 1
            lines.first.setdefault(found, f"{where}:{number}")
    kept = _in_order(_once(rows, lines), lines)
    if any(after.place < before.place for before, after in pairwise(kept)):  # out of order: numbered anew
        kept = [replace(one, place=place) for place, one in enumerate(kept)]
    lines.evaluations = tuple(kept)
    return lines


def count(data: bytes | None) -> int:
    """The lines of a log that is not read further, its header apart."""
    return max(0, sum(bool(line.strip()) for line in (data or b"").splitlines()) - 1)


def _texts(data: bytes) -> list[tuple[str, bool]]:
    """Lines without their ends, blank ones as well, and whether each ends with the file and no newline."""
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise Unusable(f"not text in UTF-8 ({error.reason} at byte {error.start})") from None
    *whole, last = text.replace("\r\n", "\n").replace("\r", "\n").split("\n")
    return [*((line, False) for line in whole), (last, True)]


def _cells(line: str) -> list[str] | None:
    try:
        return [cell.strip() for cell in next(csv.reader((line,)))]
    except (csv.Error, StopIteration):
        return None


def _row(header: Sequence[str], cells: Sequence[str], needed: Sequence[str], lines: Lines) -> Evaluation | str:
    """A line of as many cells as the header, or why it is no evaluation."""
    found = {name: _float(cell) for name, cell in zip(header, cells, strict=True)}
    odd = [name for name, value in found.items() if value is None]
    lines.num_odd_cells += sum(name not in needed for name in odd)
    values = {name: math.nan if value is None else value for name, value in found.items()}
    step, seconds = values.pop(STEP), values.pop(SECONDS)
    if not (0 <= step <= 2**53 and step == int(step) and 0 <= seconds < math.inf) or set(odd) & set(needed):
        return why.UNREADABLE
    if values.get("validation/num_examples") == 0:
        return why.NO_EXAMPLES
    unused: tuple[str, ...] = ("train/",)
    if values.get("test/num_examples") == 0:  # no test split: its loss of 0 is no measurement
        unused = ("train/", "test/")
        lines.num_empty_tests += 1
    used = {name: value for name, value in values.items() if not name.startswith(unused)}
    # The place among the lines that were read, as AlgoPerf's own code numbers them.
    return Evaluation(lines.num_read - 1, int(step), seconds, used)


def _float(text: str) -> float | None:
    """The number a cell holds: NaN if it is empty, None if it is none."""
    if not text:
        return math.nan
    try:
        return None if "_" in text else float(text)  # Python reads 1_0 as 10; a log does not
    except ValueError:
        return None


def _once(rows: Iterable[_Row], lines: Lines) -> list[_Row]:
    """Each line once; of two at one step and second in a row the later, which is the whole one."""
    kept: list[_Row] = []
    seen: set[tuple[float, int, tuple[tuple[str, float], ...]]] = set()
    for row in rows:
        line = (*row.when, tuple((name, value) for name, value in row.one.values.items() if value == value))
        if line in seen:
            lines.left_out[why.REPEATED] += 1
            continue
        seen.add(line)
        if kept and kept[-1].when == row.when and kept[-1].life == row.life:
            kept.pop()
            lines.left_out[why.REPEATED] += 1
        kept.append(row)
    return kept


def _in_order(rows: Sequence[_Row], lines: Lines) -> list[Evaluation]:
    """The evaluations by the clock, without those superseded; `lines` counts these, and those out of order.

    A run restored from a checkpoint logs steps anew, with its clock set back: the later lines count. That it was
    restored is seen from its count of restarts, from a header written again, or from a step logged again at no later
    a second. A file without such a sign, in which step and clock agree once sorted, was only put into another order.
    """
    by_life, kept = groupby(sorted(rows, key=attrgetter("life")), attrgetter("life")), list[Evaluation]()
    for life in (life for _, part in by_life for life in _lives(list(part))):
        ordered = [row.one for row in sorted(life, key=lambda row: row.when)]
        first = ordered[0]
        while kept and first.step <= kept[-1].step and first.seconds <= kept[-1].seconds:
            kept.pop()
            lines.left_out[why.SUPERSEDED] += 1
        if kept and first.seconds < kept[-1].seconds:
            lines.left_out[why.CLOCK_BACK] += len(ordered)  # how long it really trained, nothing tells
        else:
            kept += ordered
    order = [one.place for one in kept]
    lines.num_moved = sum(a != b for a, b in zip(order, sorted(order), strict=True))
    return kept


def _lives(rows: list[_Row]) -> list[list[_Row]]:
    """The lines of one count of restarts, cut where a restart shows all the same."""
    backs = sum(after.when < before.when for before, after in pairwise(rows))
    if 2 * backs > len(rows) - 1:
        rows = rows[::-1]  # written from the last line to the first
    ordered = sorted(rows, key=lambda row: row.when)
    agree = all(before.one.step <= after.one.step for before, after in pairwise(ordered))
    if backs == 0 or (agree and not _logged_anew(rows)):
        return [rows]
    cut: list[list[_Row]] = [[rows[0]]]
    for before, after in pairwise(rows):
        if after.when < before.when:
            cut.append([])
        cut[-1].append(after)
    return cut


def _logged_anew(rows: Iterable[_Row]) -> bool:
    last: dict[int, float] = {}
    for row in rows:
        if row.one.seconds <= last.get(row.one.step, -math.inf):
            return True
        last[row.one.step] = row.one.seconds
    return False
