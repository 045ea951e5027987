"""What an import made of the lines it read: so many recorded, so many left out for each reason; and in sentences."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from sweeps.importers.algoperf_trials import AGAIN, CALLS, LEFT_OUT, REASONS, Skipped, Trial
from sweeps.wording import counted

MOST_NAMED = 8  # in one sentence; plan.json names all


@dataclass(frozen=True)
class Account:
    """num_read = num_recorded + Σ left_out: nothing that was read is passed over."""

    num_read: int
    num_recorded: int
    left_out: dict[str, int]  # reason -> lines
    skipped: list[Skipped]
    notes: list[str]


def account(trials: Sequence[Trial], skipped: list[Skipped], num_left: int, remarks: list[str]) -> Account:
    """The account of an import. num_left: lines of the trials among `skipped`. remarks: on files made do without."""
    total: Counter[str] = Counter({LEFT_OUT: num_left})
    for trial in trials:
        total.update(trial.left_out)
    found = Account(
        num_read=num_left + sum(trial.lines.num_read for trial in trials),
        num_recorded=sum(len(trial.recorded) for trial in trials),
        left_out={why: total[why] for why in REASONS if total[why]},
        skipped=skipped,
        notes=[
            *_of_folders(skipped),
            *_of_files(remarks),
            *_of_trials(trials),
            *_of_lines(trials, total),
            *_of_counters(trials),
        ],
    )
    if found.num_read != found.num_recorded + sum(found.left_out.values()):
        raise AssertionError(f"lines unaccounted for: {found}")
    return found


def _of_folders(skipped: list[Skipped]) -> list[str]:
    by: dict[str, list[str]] = {}
    for one in skipped:
        by.setdefault(one.why, []).append(one.path)
    return [f"Left out, {why}: {_named(paths, 'folder')}." for why, paths in by.items()]


def _of_files(remarks: list[str]) -> list[str]:
    more = len(remarks) - MOST_NAMED
    return [f"{text}." for text in remarks[:MOST_NAMED]] + (
        [f"{more:,} more files are missing or broken and were made do without."] if more > 0 else []
    )


def _of_trials(trials: Sequence[Trial]) -> list[str]:
    empty = [trial.cell_id for trial in trials if not trial.evaluations]
    return [f"Never evaluated, a miss each: {_named(empty, 'trial')}."] if empty else []


def _of_lines(trials: Sequence[Trial], total: Counter[str]) -> list[str]:
    found = []
    for why in REASONS:
        if not total[why] or why in (CALLS, LEFT_OUT):  # their trials are named elsewhere
            continue
        first = next(trial for trial in trials if trial.left_out.get(why))
        where = first.lines.first.get(why, first.cell_id)
        what = "records keep the first evaluation, the score sees both" if why == AGAIN else "left out"
        found.append(f"{counted(total[why], 'line')} {why}, the first in {where}: {what}.")
    moved = [trial for trial in trials if trial.lines.num_moved]
    if moved:
        number = sum(trial.lines.num_moved for trial in moved)
        found.append(
            f"{counted(number, 'line')} out of order were sorted by the clock, none left out for it: "
            f"{_named([trial.cell_id for trial in moved], 'trial')}."
        )
    tests = sum(trial.lines.num_empty_tests for trial in trials)
    if tests:
        workloads = sorted({trial.workload for trial in trials if trial.lines.num_empty_tests})
        found.append(
            f"{counted(tests, 'evaluation')} of a test split without examples left no test record: "
            f"{', '.join(workloads)}."
        )
    odd = sum(trial.lines.num_odd_cells for trial in trials)
    if odd:
        found.append(f"{counted(odd, 'cell')} beside the target metric hold no number and were read as NaN.")
    return found


def _of_counters(trials: Sequence[Trial]) -> list[str]:
    by: dict[str, list[Trial]] = {}
    for trial in trials:
        if trial.not_steps:
            by.setdefault(trial.submission, []).append(trial)
    found = []
    for submission, part in sorted(by.items()):
        seen = dict.fromkeys((trial.workload, trial.framework, trial.not_steps) for trial in part)
        why = "; ".join(f"{workload} in {framework}: {said}" for workload, framework, said in seen)
        found.append(
            f"{submission}: global_step of {counted(len(part), 'trial')} does not count optimizer steps ({why}); "
            "steps-to-target withheld, seconds kept."
        )
    return found


def _named(names: list[str], what: str) -> str:
    more = len(names) - MOST_NAMED
    tail = f" and {more:,} more" if more > 0 else ""
    return f"{counted(len(names), what)}, {', '.join(names[:MOST_NAMED])}{tail}"
