"""AlgoPerf's trial folders -> a run folder: every trial a cell, every logged evaluation a record.

Reads ``LOGDIR/<submission>/study_<s>/<workload>_<framework>/trial_<t>/`` with ``eval_measurements.csv``,
``hparams.json`` and ``meta_data_0.json``; nothing in them is executed or unpickled. The rules: docs/algoperf_logs.md.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import groupby
from operator import attrgetter
from pathlib import Path

from sweeps.durable import folder_for
from sweeps.importers import algoperf_files, algoperf_tables
from sweeps.importers.algoperf_trials import AGAIN, CALLS, LEFT_OUT, REASONS, BadLogs, Imported, Skipped, Trial, label
from sweeps.wording import counted

__all__ = ["BadLogs", "Imported", "import_algoperf"]

MOST_NAMED = 8  # in one sentence; plan.json names all


def import_algoperf(
    logs: Path, run: Path, not_steps: frozenset[str] = frozenset(), baseline: str | None = None
) -> Imported:
    """Write the trials under `logs` as the run folder `run`, which must be new or empty; all of it or nothing.

    Cells: optimizer = submission, seed = study, scheme none; a trial is a hyperparameter point, so trials differ in
    their settings. Seconds are submission time. not_steps: submissions known to count calls, not optimizer steps.
    baseline: the submission that the report measures the others against.
    What cannot be used leaves itself out, and a note says so.
    Raises: BadLogs with the path of the first file that is hostile, or where nothing can be used.
    """
    if run.exists() and (not run.is_dir() or any(run.iterdir())):
        raise BadLogs(f"{run}: not empty; allowed: an empty or new folder")
    try:
        places, skipped = algoperf_files.find(logs)
        trials, unusable, num_left, remarks = algoperf_files.read(logs, places)
    except OSError as error:
        raise BadLogs(f"{error.filename or logs}: {error.strerror}") from None
    if not trials:
        raise BadLogs(f"{logs / unusable[0].path}: {unusable[0].why}; no trial is left")
    trials = label(trials, not_steps)
    submissions = {trial.submission for trial in trials}
    if unknown := sorted((not_steps | ({baseline} if baseline is not None else set())) - submissions):
        raise BadLogs(f"{logs}: no submission {unknown[0]!r}; allowed: {', '.join(sorted(submissions))}")
    done = _account(trials, [*skipped, *unusable], num_left, remarks)
    goal = run.resolve()
    # The folder's name as a study's: letters, digits, . _ + and - alone, the first a letter or a digit.
    study = re.sub(r"[^A-Za-z0-9._+-]", "_", goal.name).lstrip("._+-")[:200] or "algoperf"
    with folder_for(goal, "algoperf") as new:
        algoperf_tables.write(new, study, trials, done, baseline)
    return done


def _account(trials: Sequence[Trial], skipped: list[Skipped], num_left: int, remarks: list[str]) -> Imported:
    """Nothing that was read is passed over. num_left: lines of trials among `skipped`. remarks: on broken files."""
    total = sum((trial.left_out for trial in trials), Counter({LEFT_OUT: num_left}))
    folders: dict[str, list[str]] = {}  # why -> those skipped for it
    for one in skipped:
        folders.setdefault(one.why, []).append(one.path)
    more = len(remarks) - MOST_NAMED
    done = Imported(
        num_trials=len(trials),
        num_evaluations=sum(len(trial.evaluations) for trial in trials),
        num_read=num_left + sum(trial.lines.num_read for trial in trials),
        num_recorded=sum(len(trial.recorded) for trial in trials),
        left_out={why: total[why] for why in REASONS if total[why]},
        skipped=skipped,
        notes=[
            *(f"Left out, {why}: {_named(paths, 'folder')}." for why, paths in folders.items()),
            *(f"{text}." for text in remarks[:MOST_NAMED]),
            *([f"{more:,} more files are missing or broken and were made do without."] if more > 0 else []),
            *_of_lines(trials, total),
            *_of_counters(trials),
        ],
    )
    if done.num_read != done.num_recorded + sum(done.left_out.values()):
        raise AssertionError(f"lines unaccounted for: {done}")
    return done


def _of_lines(trials: Sequence[Trial], total: Mapping[str, int]) -> list[str]:
    found = []
    if empty := [trial.cell_id for trial in trials if not trial.evaluations]:
        found.append(f"Never evaluated, a miss each: {_named(empty, 'trial')}.")
    for why in REASONS:
        if total[why] and why not in (CALLS, LEFT_OUT):  # their trials are named elsewhere
            first = next(trial for trial in trials if trial.left_out[why])
            what = "records keep the first evaluation, the score sees both" if why == AGAIN else "left out"
            where = first.lines.first.get(why, first.cell_id)
            found.append(f"{counted(total[why], 'line')} {why}, the first in {where}: {what}.")
    if moved := [trial.cell_id for trial in trials if trial.lines.num_moved]:
        number = counted(sum(trial.lines.num_moved for trial in trials), "line")
        found.append(f"{number} out of order were sorted by the clock, none left out: {_named(moved, 'trial')}.")
    if workloads := sorted({trial.workload for trial in trials if trial.lines.num_empty_tests}):
        number = counted(sum(trial.lines.num_empty_tests for trial in trials), "evaluation")
        found.append(f"{number} of a test split without examples left no test record: {', '.join(workloads)}.")
    if odd := sum(trial.lines.num_odd_cells for trial in trials):
        found.append(f"{counted(odd, 'cell')} beside the target metric hold no number and were read as NaN.")
    return found


def _of_counters(trials: Sequence[Trial]) -> list[str]:
    found, of = [], attrgetter("submission")
    for submission, some in groupby(sorted((trial for trial in trials if trial.not_steps), key=of), of):
        part = list(some)
        seen = dict.fromkeys(f"{trial.workload} in {trial.framework}: {trial.not_steps}" for trial in part)
        found.append(
            f"{submission}: global_step of {counted(len(part), 'trial')} does not count optimizer steps "
            f"({'; '.join(seen)}); steps-to-target withheld, seconds kept."
        )
    return found


def _named(names: list[str], what: str) -> str:
    more = len(names) - MOST_NAMED
    tail = f" and {more:,} more" if more > 0 else ""
    return f"{counted(len(names), what)}, {', '.join(names[:MOST_NAMED])}{tail}"
