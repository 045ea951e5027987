"""AlgoPerf's trial folders -> a run folder: every trial a cell, every logged evaluation a record.

Reads ``LOGDIR/<submission>/study_<s>/<workload>_<framework>/trial_<t>/`` with ``eval_measurements.csv``,
``hparams.json`` and ``meta_data_0.json``; nothing in them is executed or unpickled. The rules: docs/algoperf_logs.md.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from sweeps.durable import folder_for
from sweeps.importers import algoperf_counters, algoperf_files, algoperf_folders, algoperf_tables
from sweeps.importers.algoperf_account import account
from sweeps.importers.algoperf_trials import BadLogs

__all__ = ["BadLogs", "Imported", "import_algoperf"]


def study_name(folder: str) -> str:
    """The folder's name as a study's: letters, digits, . _ + and - alone, the first a letter or a digit."""
    return re.sub(r"[^A-Za-z0-9._+-]", "_", folder).lstrip("._+-")[:200] or "algoperf"


@dataclass(frozen=True)
class Imported:
    """What an import wrote and what it noticed, a sentence each; num_read = num_recorded + Σ left_out."""

    run: Path
    num_trials: int
    num_evaluations: int
    notes: list[str]
    num_read: int  # lines of the logs, headers apart
    num_recorded: int
    left_out: dict[str, int]  # reason -> lines


def import_algoperf(logs: Path, run: Path, not_steps: frozenset[str] = frozenset()) -> Imported:
    """Write the trials under `logs` as the run folder `run`, which must be new or empty; all of it or nothing.

    Cells: optimizer = submission, seed = study, scheme none; a trial is a hyperparameter point, so trials differ in
    their settings. Seconds are submission time. not_steps: submissions known to count calls, not optimizer steps.
    What cannot be used leaves itself out, and a note says so.
    Raises: BadLogs with the path of the first file that is hostile, or where nothing can be used.
    """
    if run.exists() and (not run.is_dir() or any(run.iterdir())):
        raise BadLogs(f"{run}: not empty; allowed: an empty or new folder")
    try:
        places, skipped = algoperf_folders.find(logs)
        trials, unusable, num_left, remarks = algoperf_files.read(logs, places)
    except OSError as error:
        raise BadLogs(f"{error.filename or logs}: {error.strerror}") from None
    if not trials:
        raise BadLogs(f"{logs / unusable[0].path}: {unusable[0].why}; no trial is left")
    trials = algoperf_counters.label(trials, not_steps)
    unknown = sorted(not_steps - {trial.submission for trial in trials})
    if unknown:
        raise BadLogs(f"{logs}: no submission {unknown[0]!r}")
    found = account(trials, [*skipped, *unusable], num_left, remarks)
    goal = run.resolve()
    with folder_for(goal, "algoperf") as new:
        algoperf_tables.write(new, study_name(goal.name), trials, found)
    return Imported(
        run,
        len(trials),
        sum(len(trial.evaluations) for trial in trials),
        found.notes,
        found.num_read,
        found.num_recorded,
        found.left_out,
    )
