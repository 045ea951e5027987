"""bracket: an average is evaluated where its curve crosses the target and a few levels, and coarsely elsewhere.

What is still to be evaluated is a function of the records so far, which are read as the analysis reads them, by
`first_crossing`: so it is what a table of steps-to-target or a saving curve stands on. Every record is one of those
that evaluating all would have written.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from analysis.statistics.steps_to_target import HELD, first_crossing, running_best
from sweeps.identity import Cell

COARSE = 8  # every so many evaluations of a run, all of its averages are evaluated
SHARES = np.array([0.3, 0.5, 0.75, 0.9])  # of training: what the live weights have reached there are the levels
NOISE = 2.0  # standard deviations by which a curve may stray from the straight line between its neighbours
Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Row = Mapping[str, Any]


class Curve(NamedTuple):
    """Evaluations of one cell. steps: increasing. quality: the metric, greater is better; −inf: none, or diverged."""

    steps: Ints
    quality: Floats


def is_coarse(cell: Cell, step: int) -> bool:
    """Whether an average is evaluated at this step of its grid in any case; it is at the last one too."""
    every, scheme = cell.evaluate_every_steps, cell.scheme
    if scheme is None or step % (COARSE * every) == 0:
        return True
    return scheme.exists(step) and not scheme.exists(step - every)


def num_evaluations(num_all: int) -> float:
    """About how many evaluations a bracket makes where `all` makes so many, as measured on minis."""
    return min(num_all, num_all / COARSE + 30)


def wanted(cells: Sequence[Cell], rows: Iterable[Row], target: float | None) -> dict[int, list[Cell]]:
    """step -> the averages to be evaluated there next; nothing when all that is asked is known.

    Args: cells: of one training, the live weights among them, which have a record at every step of the grid. rows:
    their records, in any order.
    """
    (live,) = [cell for cell in cells if cell.scheme is None]
    sign = 1.0 if live.higher_is_better else -1.0
    curves = _curves(rows, sign)
    known = curves[live.cell_id]
    end = live.training.schedule.length_steps
    goals = levels(known, min(end, live.training.step_budget))
    found: dict[int, list[Cell]] = {}
    for cell in cells:
        if cell.averages != "bracket" or cell.cell_id not in curves:
            continue
        assert cell.scheme is not None
        grid = np.array([step for step in known.steps.tolist() if cell.scheme.exists(step)])
        goal = None if target is None else sign * target
        for step in steps_wanted(curves[cell.cell_id], grid, goal, goals):
            found.setdefault(step, []).append(cell)
    return found


class Part(NamedTuple):
    """records: those that a bracket has made. missing: step -> the averages whose records its round still lacks."""

    records: list[Row]
    missing: dict[int, list[Cell]]


def part(cells: Sequence[Cell], rows: Iterable[Row], target: float | None) -> Part:
    """How far a bracket has come with these records; of those that `all` made it takes its own, and misses none.

    Round after round from the coarse ones on, each of which depends on the rounds before it and not on how much of it
    is there: so one that was killed in the middle ends with the same records.
    """
    there = {(row["cell_id"], row["step"]): row for row in rows if row["split"] == "validation"}
    of, last = {cell.cell_id: cell for cell in cells}, max(step for _, step in there)
    known = {key: row for key, row in there.items() if key[1] == last or is_coarse(of[key[0]], key[1])}
    while asked := wanted(cells, known.values(), target):
        more = [(step, cell) for step, mine in asked.items() for cell in mine]
        missing: dict[int, list[Cell]] = {}
        for step, cell in more:
            if (cell.cell_id, step) not in there:
                missing.setdefault(step, []).append(cell)
        if missing:
            return Part(list(known.values()), missing)
        known |= {(cell.cell_id, step): there[cell.cell_id, step] for step, cell in more}
    return Part(list(known.values()), {})


def _curves(rows: Iterable[Row], sign: float) -> dict[str, Curve]:
    points: dict[str, list[tuple[int, float]]] = {}
    for row in rows:
        if row["split"] == "validation":
            usable = row["metric"] is not None and np.isfinite(row["metric"]) and not row["diverged"]
            points.setdefault(row["cell_id"], []).append((row["step"], sign * row["metric"] if usable else -np.inf))
    return {name: Curve(*map(np.array, zip(*sorted(mine), strict=True))) for name, mine in points.items()}


def levels(live: Curve, end: int) -> Floats:
    """The best quality of the live weights at SHARES of `end` steps; NaN before their first evaluation."""
    best = running_best(live.quality, higher=True)
    return np.asarray(np.interp(SHARES * end, live.steps, best, left=np.nan, right=np.nan))


def steps_wanted(curve: Curve, grid: Ints, target: float | None, goals: Floats) -> set[int]:
    """The steps of the grid at which one average is to be evaluated next.

    Of every goal and of the target: both ends of the interval of the grid in which it is first met, of the target of
    HELD in a row too; every step that may meet one of them sooner, as far as the noise there goes; and the neighbours
    of the best. Args: curve: what is known, the ends of the grid among it. target, goals: quality.
    """
    unknown = np.setdiff1d(grid, curve.steps)
    if not len(unknown):
        return set()
    sought = [(float(goal), 1) for goal in goals if not np.isnan(goal)]
    sought += [] if target is None else [(target, 1), (target, HELD)]
    asked: set[int] = set()
    for goal, in_a_row in sought:
        asked |= _of_crossing(curve, grid, unknown, goal, in_a_row)
    best = int(np.searchsorted(grid, curve.steps[np.argmax(curve.quality)]))
    return asked | set(np.intersect1d(unknown, grid[max(0, best - 1) : best + 2]).tolist())


def _of_crossing(curve: Curve, grid: Ints, unknown: Ints, goal: float, in_a_row: int) -> set[int]:
    steps = curve.steps.astype(np.float64)
    met = first_crossing(steps, curve.quality, goal, True, in_a_row)
    upper = np.inf if np.isnan(met.upper) else met.upper
    place = int(np.searchsorted(grid, upper))
    asked: set[int] = set()
    if place < len(grid):
        inside = unknown[(unknown > met.lower) & (unknown < upper)]
        near = int(np.searchsorted(inside, met.point))
        asked |= set(inside[max(0, near - 2) : near + 1].tolist())
        asked |= set(np.intersect1d(unknown, grid[place : place + in_a_row]).tolist())
    before = unknown[unknown < upper]
    expected = np.interp(before, steps, curve.quality)
    return asked | set(before[expected + NOISE * _noise(curve, grid, place) >= goal].tolist())


def _noise(curve: Curve, grid: Ints, place: int) -> float:
    """Standard deviation of the quality about a smooth curve, near a place of the grid.

    √(mean d² ÷ 6) over the second differences d of three neighbours on the grid; 0 where no three are known.
    """
    at = np.searchsorted(grid, curve.steps)
    near = (at[2:] - at[:-2] == 2) & (np.abs(at[1:-1] - place) <= COARSE)
    left, middle, right = curve.quality[:-2][near], curve.quality[1:-1][near], curve.quality[2:][near]
    finite = np.isfinite(left) & np.isfinite(middle) & np.isfinite(right)
    if not finite.any():
        return 0.0
    return float(np.sqrt(np.mean((left - 2 * middle + right)[finite] ** 2) / 6))
