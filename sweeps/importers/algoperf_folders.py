"""Where AlgoPerf's trials lie below a log folder; what else lies there is named, never passed over in silence."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path

from analysis.statistics.algoperf_score import WORKLOADS, base_workload
from sweeps.importers.algoperf_trials import LOG, BadLogs, Place, Skipped

MOST_TRIALS = 100_000
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]{0,99}")
_FRAMEWORK = re.compile(r"[A-Za-z0-9]{1,40}")


def find(logs: Path) -> tuple[list[Place], list[Skipped]]:
    """Every trial folder below `logs` or below one submission's folder, and every folder that is none.

    Read: ``<submission>/study_<s>/<workload>_<framework>/trial_<t>``; ``study_`` and ``trial_`` may be missing, the
    framework too. Raises: BadLogs where there is no trial, or too many.
    """
    if not logs.is_dir():
        raise BadLogs(f"{logs}: no such folder")
    found: list[Place] = []
    skipped: list[Skipped] = []

    def skip(folder: Path, why: str) -> None:
        skipped.append(Skipped(str(folder.relative_to(logs)), why))

    alone = any(re.fullmatch(r"study[_-]?[0-9]+", folder.name) for folder in _folders(logs, skip))
    skipped.clear()
    for submission in [logs] if alone else _folders(logs, skip):
        name = submission.resolve().name
        if not _NAME.fullmatch(name):
            skip(submission, "no submission's name: letters, digits, . _ + and -, at most 100")
            continue
        before = len(found)
        for study, number in _numbered(submission, "study", skip):
            for workload, of in _workloads(study, skip):
                for trial, point in _numbered(workload, "trial", skip):
                    found.append(Place(trial, name, number, *of, point))
                    if len(found) > MOST_TRIALS:
                        raise BadLogs(f"{logs}: more than {MOST_TRIALS:,} trials")
                    for deeper in sorted(trial.glob(f"*/{LOG}")):
                        skip(deeper.parent, "results below a trial's folder, where they are not looked for")
        if len(found) == before:
            skip(submission, "no trial in it")
    if not found:
        first = f"; {skipped[0].path}: {skipped[0].why}" if skipped else ""
        raise BadLogs(f"{logs}: no <submission>/study_<s>/<workload>_<framework>/trial_<t> in it{first}")
    return found, skipped


def _numbered(folder: Path, what: str, skip: Callable[[Path, str], None]) -> Iterator[tuple[Path, int]]:
    """The folders <what>_<number>, by number; of two with one number the plainly written one."""
    found: dict[int, list[Path]] = {}
    for entry in _folders(folder, skip):
        spelt = re.fullmatch(rf"(?i:{what}[_-]?)?([0-9]{{1,6}})", entry.name)
        if spelt is None:
            skip(entry, f"no {what}_<number>")
        else:
            found.setdefault(int(spelt[1]), []).append(entry)
    for number, entries in sorted(found.items()):
        first, *others = sorted(entries, key=lambda entry: (entry.name != f"{what}_{number}", entry.name))
        for other in others:
            skip(other, f"{what} {number} twice, as {first.name} too")
        yield first, number


def _workloads(folder: Path, skip: Callable[[Path, str], None]) -> Iterator[tuple[Path, tuple[str, str]]]:
    for entry in _folders(folder, skip):
        name, _, framework = entry.name.rpartition("_")
        if entry.name in WORKLOADS:
            name, framework = entry.name, "unknown"
        elif framework in ("jax", "pytorch"):
            if name not in WORKLOADS and base_workload(name) is None:
                skip(entry, f"unknown workload {name[:60]!r}")
                continue
        elif name not in WORKLOADS or not _FRAMEWORK.fullmatch(framework):
            skip(entry, "no <workload>_<framework>")
            continue
        yield entry, (name, framework)


def _folders(folder: Path, skip: Callable[[Path, str], None]) -> list[Path]:
    found = []
    for entry in sorted(folder.iterdir()):
        if entry.is_dir() and entry.is_symlink():
            skip(entry, "a link")  # it could lead anywhere, and round in circles
        elif entry.is_dir():
            found.append(entry)
    return found
