"""Where AlgoPerf's trials lie below a log folder, and the three files of each.

What else lies there is named, never passed over in silence; files are read with bounds on their size, never executed
or unpickled.
"""

from __future__ import annotations

import codecs
import json
import math
import re
import stat
import zlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from analysis.statistics.algoperf_score import WORKLOADS, base_workload
from sweeps.importers import algoperf_logs
from sweeps.importers.algoperf_trials import LOG, LOWER_IS_BETTER, BadLogs, Facts, Place, Skipped, Trial, Unusable

MOST_JSON_BYTES, MOST_CSV_BYTES = 2**20, 2**23  # of one file, unpacked
MOST_EVALUATIONS = 1_000_000
META = "meta_data_0.json"
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


def read(logs: Path, places: list[Place]) -> tuple[list[Trial], list[Skipped], int, list[str]]:
    """Every trial that can be read; those left out, the lines of those, and remarks on files made do without.

    A trial takes the target of the others of its workload where its own metadata is missing or broken.
    Raises: BadLogs for links, devices, pickles, files too large, and two targets for one workload.
    """
    facts, remarks, no_facts = _facts_of_all(logs, places)
    usual = {place.workload: facts[place] for place in reversed(places) if place in facts}
    trials: list[Trial] = []
    skipped: list[Skipped] = []
    num_left = num_evaluations = 0
    for place in places:
        path = place.folder / "hparams.json"
        log = _read_bytes(place.folder / LOG, MOST_CSV_BYTES)
        try:
            points: Mapping[str, Any] = _read_json(path)
        except Unusable as error:
            points = {}
            if path.exists():
                remarks.append(f"{path.relative_to(logs)}: {error}; its hyperparameters are unknown")
        mine = facts.get(place, usual.get(place.workload))
        try:
            if mine is None:
                raise Unusable(no_facts[place])
            if mine.metric not in LOWER_IS_BETTER:
                allowed = ", ".join(LOWER_IS_BETTER)
                raise Unusable(f"{META}: unknown metric {mine.metric[:40]!r}; allowed: {allowed}")
            lines = algoperf_logs.read(log, str((place.folder / LOG).relative_to(logs)), mine.metric)
        except Unusable as error:
            skipped.append(Skipped(str(place.folder.relative_to(logs)), str(error)))
            num_left += algoperf_logs.count(log)
            continue
        num_evaluations += len(lines.evaluations)
        if num_evaluations > MOST_EVALUATIONS:
            raise BadLogs(f"{place.folder}: with it more than {MOST_EVALUATIONS:,} evaluations")
        trials.append(Trial(**vars(place), hyperparameters=points, facts=mine, lines=lines))
    return trials, skipped, num_left, remarks


def _facts_of_all(logs: Path, places: list[Place]) -> tuple[dict[Place, Facts], list[str], dict[Place, str]]:
    """The facts that trials state themselves, remarks on metadata that is broken, and why a trial states none."""
    facts: dict[Place, Facts] = {}
    first: dict[str, Place] = {}
    broken: dict[Place, str] = {}
    for place in places:
        path = place.folder / META
        try:
            facts[place] = _facts(_read_json(path))
        except Unusable as error:
            broken[place] = str(error)
            continue
        other = first.setdefault(place.workload, place)
        if facts[other].workload != facts[place].workload:
            raise BadLogs(f"{path}: another target, metric or hint than in {other.folder}")
    remarks = [
        f"{(one.folder / META).relative_to(logs)}: {said}; the target is taken from other trials of {one.workload}"
        for one, said in broken.items()
        if one.workload in first and ((one.folder / LOG).exists() or (one.folder / META).exists())
    ]
    return facts, remarks, {one: f"{META}: {said}, as of every trial of {one.workload}" for one, said in broken.items()}


def _facts(meta: Mapping[str, Any]) -> Facts:
    metric = meta.get("workload.target_metric_name")
    if not isinstance(metric, str):
        raise Unusable(f"workload.target_metric_name is {str(metric)[:40]!r}, not a name")
    test = meta.get("workload.test_target_value")
    return Facts(
        metric=metric,
        target=_number(meta, "workload.validation_target_value"),
        test_target=None if test is None else _number(meta, "workload.test_target_value"),
        step_hint=int(_number(meta, "workload.step_hint", least=1)),
        max_seconds=_number(meta, "workload.max_allowed_runtime_sec", least=1),
        eval_period_seconds=_number(meta, "workload.eval_period_time_sec", least=1e-3),
        num_devices=_number(meta, "gpu_count", least=1),
        device_name=str(meta.get("gpu_model_name", ""))[:100],
        versions={"python": str(meta["python_version"])[:100]} if "python_version" in meta else {},
    )


def _number(meta: Mapping[str, Any], key: str, least: float = -math.inf) -> float:
    value = meta.get(key)
    # 2**53: what a float64 still counts in ones
    if isinstance(value, bool) or not isinstance(value, int | float) or not least <= value <= 2**53:
        raise Unusable(f"{key} is {str(value)[:40]!r}, not a number{f' ≥ {least:g}' if least > 0 else ''}")
    return float(value)


def _read_json(path: Path) -> dict[str, Any]:
    data = _read_bytes(path, MOST_JSON_BYTES)
    if data is None:
        raise Unusable("missing")
    text = data.removeprefix(codecs.BOM_UTF8).strip()
    if text[:1] == b"\x80":
        raise BadLogs(f"{path}: a pickle under a .json name; refused, not loaded")
    if text and text[:1] != b"{":  # a torn file begins as a whole one does: this is something else
        raise BadLogs(f"{path}: not a JSON object")
    try:
        value: dict[str, Any] = json.loads(text.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise Unusable(f"not JSON ({type(error).__name__}: {str(error)[:100]})") from None
    return value


def _read_bytes(path: Path, most: int) -> bytes | None:
    """A plain file's bytes, or those of its .gz; None where there is neither.

    Raises: BadLogs for links, devices and large files.
    """
    for file in (path, path.with_name(f"{path.name}.gz")):
        try:
            status = file.lstat()
        except FileNotFoundError:
            continue
        if not stat.S_ISREG(status.st_mode):
            raise BadLogs(f"{file}: not a plain file")
        if status.st_size > most:
            raise BadLogs(f"{file}: {status.st_size:,} bytes; allowed: {most:,}")
        return file.read_bytes() if file == path else _unpacked(file, most)
    return None


def _unpacked(file: Path, most: int) -> bytes:
    packed, unpacker, found = file.read_bytes(), zlib.decompressobj(wbits=31), b""
    try:
        for start in range(0, len(packed), 2**16):
            found += unpacker.decompress(packed[start : start + 2**16], most + 1 - len(found))
            if len(found) > most:
                raise BadLogs(f"{file}: more than {most:,} bytes unpacked; allowed: {most:,}")
    except zlib.error:
        pass
    # Cut off or damaged: what follows is gone, which a last line without its end says.
    return found if unpacker.eof and not unpacker.unused_data else found + b"?"
