"""The lines of one ``eval_measurements.csv``: which are evaluations, in which order, and why the others are not.

A log is appended to by processes that are killed and restarted, and copied by people who sort and join tables. So a
line may be torn, repeated, superseded or out of order; each is told apart, and each line read is accounted for.
"""

from __future__ import annotations

import csv
import math
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import NamedTuple

from sweeps.importers.algoperf_trials import (
    CLOCK_BACK,
    NO_EXAMPLES,
    REPEATED,
    SUPERSEDED,
    TORN,
    UNREADABLE,
    Evaluation,
    Lines,
)

STEP, SECONDS, RESTARTS = "global_step", "accumulated_submission_time", "preemption_count"


class NoLog(ValueError):
    """The file is no such log; the message says what is missing, without the path."""


class _Row(NamedTuple):
    life: tuple[float, int]  # which process wrote it: restarts so far, headers so far
    one: Evaluation

    @property
    def when(self) -> tuple[float, int]:
        return self.one.seconds, self.one.step


def read(data: bytes | None, where: str, metric: str) -> Lines:
    """The evaluations of one log in the order of the clock. No file, or one without a line, holds none.

    where: its path, as the first line left out for a reason is named.

    Raises: NoLog where it is not text, or a column that is needed is missing or stands twice.
    """
    if data is None:
        return Lines()
    found = _Reading(where, metric)
    for number, line in enumerate(_lines(data), start=1):
        found.take(number, line)
    rows = found.rows
    if found.header is None:
        return Lines(num_read=found.num_read, left_out=dict(found.left_out), first=found.first)
    kept, num_moved = _in_order(rows, found)
    if any(after.place < before.place for before, after in pairwise(kept)):  # out of order: numbered anew
        kept = [replace(one, place=place) for place, one in enumerate(kept)]
    return Lines(
        tuple(kept),
        found.num_read,
        dict(found.left_out),
        found.first,
        num_moved,
        found.num_empty_tests,
        found.num_odd_cells,
    )


def count(data: bytes | None) -> int:
    """The lines of a log that is not read further, its header apart."""
    return max(0, sum(bool(line.strip()) for line in (data or b"").splitlines()) - 1)


def _lines(data: bytes) -> Iterator[str]:
    """Lines without their ends, blank ones as well; one that ends with the file and no newline ends in a NUL."""
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise NoLog(f"not text in UTF-8 ({error.reason} at byte {error.start})") from None
    lines = text.replace("\r\n", "\n").replace("\r", "\n").split("\n")
    yield from lines[:-1]
    if lines[-1].strip():
        yield f"{lines[-1]}\0"


class _Reading:
    """Line after line: the rows that are evaluations, and the count of the others by reason."""

    def __init__(self, where: str, metric: str) -> None:
        self.where = where
        self.needed = (STEP, SECONDS, f"validation/{metric}")
        self.header: list[str] | None = None
        self.num_headers = 0
        self.rows: list[_Row] = []
        self.num_read = self.num_empty_tests = self.num_odd_cells = 0
        self.left_out: Counter[str] = Counter()
        self.first: dict[str, str] = {}

    def take(self, number: int, line: str) -> None:
        if not line.strip(" \t\0"):
            return
        torn = line.endswith("\0")
        cells = _cells(line.rstrip("\0"))
        if cells is not None and not torn and STEP in cells:
            self._take_header(cells)
            return
        if self.header is None:
            if torn or cells is None:  # of the header only a piece was written
                self.num_read += 1
                self.leave_out(TORN, number)
                return
            raise NoLog(f"column {STEP!r} is missing")
        self.num_read += 1
        if torn or cells is None or len(cells) != len(self.header):
            # A line without its newline may end within a number, and one of another length in the middle of one.
            self.leave_out(TORN, number)
            return
        self._take_row(number, cells)

    def _take_header(self, cells: list[str]) -> None:
        for name in self.needed:
            if name not in cells:
                raise NoLog(f"column {name!r} is missing")
        if len(set(cells)) < len(cells):
            raise NoLog("a column stands twice")
        self.header = cells
        self.num_headers += 1

    def _take_row(self, number: int, cells: list[str]) -> None:
        assert self.header is not None
        values = {}
        for name, cell in zip(self.header, cells, strict=True):
            values[name] = _float(cell)
        odd = [name for name in values if values[name] is None]
        self.num_odd_cells += sum(name not in self.needed for name in odd)
        numbers = {name: math.nan if value is None else value for name, value in values.items()}
        step, seconds = numbers.pop(STEP), numbers.pop(SECONDS)
        counted = 0 <= step <= 2**53 and step == int(step)
        if not counted or not 0 <= seconds < math.inf or any(name in self.needed for name in odd):
            self.leave_out(UNREADABLE, number)
            return
        if numbers.get("validation/num_examples") == 0:
            self.leave_out(NO_EXAMPLES, number)
            return
        used = {name: value for name, value in numbers.items() if not name.startswith("train/")}
        if used.get("test/num_examples") == 0:  # no test split: its loss of 0 is no measurement
            used = {name: value for name, value in used.items() if not name.startswith("test/")}
            self.num_empty_tests += 1
        restarts = numbers.get(RESTARTS, 0.0)
        life = (0.0 if math.isnan(restarts) else restarts, self.num_headers)
        # The place among the lines that were read, as AlgoPerf's own code numbers them.
        self.rows.append(_Row(life, Evaluation(self.num_read - 1, int(step), seconds, used)))

    def leave_out(self, why: str, number: int | None = None, lines: int = 1) -> None:
        if lines:
            self.left_out[why] += lines
        if number is not None:
            self.first.setdefault(why, f"{self.where}:{number}")


def _cells(line: str) -> list[str] | None:
    try:
        return [cell.strip() for cell in next(csv.reader((line,)))]
    except (csv.Error, StopIteration):
        return None


def _float(text: str) -> float | None:
    """The number a cell holds: NaN if it is empty, null if it is none."""
    if not text:
        return math.nan
    try:
        return None if "_" in text else float(text)  # Python reads 1_0 as 10; a log does not
    except ValueError:
        return None


# --- order ----------------------------------------------------------------------------------------------------------


def _in_order(rows: Sequence[_Row], found: _Reading) -> tuple[list[Evaluation], int]:
    """The evaluations by the clock, without those repeated or superseded, and how many stood out of order.

    A run restored from a checkpoint logs steps anew, with its clock set back: the later lines count. That it was
    restored is seen from its count of restarts, from a header written again, or from a step logged again at no later
    a second. A file without such a sign, in which step and clock agree once sorted, was only put into another order.
    """
    once = _once(rows, found)
    by_life: dict[tuple[float, int], list[_Row]] = {}
    for row in once:
        by_life.setdefault(row.life, []).append(row)
    lives = [life for _, part in sorted(by_life.items()) for life in _lives(part)]
    kept: list[_Row] = []
    num_superseded, num_back = 0, 0
    for life in lives:
        ordered = sorted(life, key=lambda row: row.when)
        first = ordered[0].one
        while kept and first.step <= kept[-1].one.step and first.seconds <= kept[-1].one.seconds:
            kept.pop()
            num_superseded += 1
        if kept and first.seconds < kept[-1].one.seconds:
            num_back += len(ordered)  # how long it really trained, nothing tells
            continue
        kept += ordered
    found.leave_out(SUPERSEDED, lines=num_superseded)
    found.leave_out(CLOCK_BACK, lines=num_back)
    order = [row.one.place for row in kept]
    in_file = sorted(order)
    return [row.one for row in kept], sum(a != b for a, b in zip(order, in_file, strict=True))


def _once(rows: Iterable[_Row], found: _Reading) -> list[_Row]:
    """Each line once; of two at one step and second in a row the later, which is the whole one."""
    kept: list[_Row] = []
    seen: set[tuple[float, int, tuple[tuple[str, float], ...]]] = set()
    for row in rows:
        line = (*row.when, tuple((name, value) for name, value in row.one.values.items() if value == value))
        if line in seen:
            found.leave_out(REPEATED)
            continue
        seen.add(line)
        if kept and kept[-1].when == row.when and kept[-1].life == row.life:
            kept.pop()
            found.leave_out(REPEATED)
        kept.append(row)
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
