"""AlgoPerf's trial folders -> a run folder: every trial a cell, every logged evaluation a record.

Reads ``LOGDIR/<submission>/study_<s>/<workload>_<framework>/trial_<t>/`` with ``eval_measurements.csv``,
``hparams.json`` and ``meta_data_0.json``; nothing in them is executed or unpickled. The rules: docs/algoperf_logs.md.
"""

from __future__ import annotations

import csv
import io
import json
import math
import os
import re
import shutil
import stat
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import pyarrow as pa

from analysis.algoperf_score import EVALUATIONS, EVALUATIONS_FILE
from analysis.finished import Finished
from analysis.records import CELLS, TRIALS, rows_to_table
from analysis.schema import FORMAT
from sweeps.durable import write_atomic, write_table
from sweeps.yaml_file import dump_yaml

MOST_JSON_BYTES, MOST_CSV_BYTES = 2**20, 2**23  # of one file
MOST_TRIALS, MOST_EVALUATIONS = 100_000, 1_000_000
PACE = 2.5  # a counter this many times off the pace of optimizer steps does not count them
STALLED = 0.1  # nor one that stands still in a larger share of the intervals between evaluations

LOWER_IS_BETTER = {
    **dict.fromkeys(("loss", "ctc_loss", "wer", "error_rate", "perplexity"), True),
    **dict.fromkeys(("accuracy", "bleu", "ssim", "mean_average_precision"), False),
}
LOSSES = ("loss", "ctc_loss")  # the latter is speech's
HYPERPARAMETERS = {  # as submissions name them -> as cells do
    "learning_rate": "lr",
    "beta1": "beta1",
    "beta2": "beta2",
    "epsilon": "eps",
    "weight_decay": "weight_decay",
    "momentum": "momentum",
    "grad_clip": "grad_clip",
}
WARMUPS = ("warmup_factor", "warmup_steps_fraction")  # shares of the step hint
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]{0,99}")
_WORKLOAD = re.compile(r"([A-Za-z0-9][A-Za-z0-9_]{0,99})_(jax|pytorch)")


class BadLogs(ValueError):
    """Not AlgoPerf logs, or a broken or hostile file among them; the message has the path."""


@dataclass(frozen=True)
class Facts:
    """What a trial's own metadata says of its workload and its machine."""

    metric: str
    target: float
    test_target: float | None
    step_hint: int  # T
    max_seconds: float  # AlgoPerf's longest submission time
    eval_period_seconds: float
    num_devices: float
    device_name: str
    versions: Mapping[str, str]

    @property
    def pace(self) -> float:
        """Optimizer steps a second, as the step hint and the longest time have it."""
        return self.step_hint / self.max_seconds

    @property
    def workload(self) -> tuple[object, ...]:
        return self.metric, self.target, self.test_target, self.step_hint, self.max_seconds


@dataclass(frozen=True)
class Evaluation:
    """One line of ``eval_measurements.csv``; `values` are its other columns by name, training's apart."""

    place: int  # in the file, from 0
    step: int
    seconds: float
    values: Mapping[str, float]


@dataclass(frozen=True)
class Trial:
    """One trial folder, read. `not_steps`: why its global_step is not taken for optimizer steps; null if it is."""

    folder: Path
    submission: str
    study: int
    workload: str
    framework: str
    number: int
    hyperparameters: Mapping[str, Any]
    facts: Facts | None
    evaluations: tuple[Evaluation, ...]
    num_dropped: int  # torn, repeated and superseded lines
    not_steps: str | None

    @property
    def cell_id(self) -> str:
        return f"{self.submission}.study{self.study}.{self.workload}_{self.framework}.trial{self.number}"


@dataclass(frozen=True)
class Imported:
    """What an import wrote and what it noticed, a sentence each."""

    run: Path
    num_trials: int
    num_evaluations: int
    notes: list[str]


def import_algoperf(logs: Path, run: Path, not_steps: frozenset[str] = frozenset()) -> Imported:
    """Write the trials under `logs` as the run folder `run`, which must be new or empty; all of it or nothing.

    Cells: optimizer = submission, seed = study, scheme none; a trial is a hyperparameter point, so trials differ in
    their settings. Seconds are submission time. not_steps: submissions known to count calls, not optimizer steps.
    Raises: BadLogs with the path of the first file that is broken or refused.
    """
    if run.exists() and (not run.is_dir() or any(run.iterdir())):
        raise BadLogs(f"{run}: not empty; allowed: an empty or new folder")
    try:
        places, skipped = _places(logs)
        trials = _with_counters(_with_facts(_read(places)), not_steps)
    except OSError as error:
        raise BadLogs(f"{error.filename or logs}: {error.strerror}") from None
    unknown = sorted(not_steps - {trial.submission for trial in trials})
    if unknown:
        raise BadLogs(f"{logs}: no submission {unknown[0]!r}")
    notes = _notes(trials, skipped)
    goal = run.resolve()
    new = goal.with_name(f".{goal.name}.{os.getpid()}.new")
    try:
        _write(new, goal.name, trials, notes)
        os.replace(new, goal)
    finally:
        shutil.rmtree(new, ignore_errors=True)
    return Imported(run, len(trials), sum(len(trial.evaluations) for trial in trials), notes)


# --- reading -----------------------------------------------------------------------------------------------------


class _Place(NamedTuple):
    """Where a trial lies: LOGDIR/submission/study_<study>/<workload>_<framework>/trial_<number>."""

    folder: Path
    submission: str
    study: int
    workload: str
    framework: str
    number: int


def _places(logs: Path) -> tuple[list[_Place], int]:
    """Every trial folder, and how many folders beside the workloads were something else."""
    if not logs.is_dir():
        raise BadLogs(f"{logs}: no such folder")
    alone = any(re.fullmatch(r"study_[0-9]+", entry.name) for entry in _folders(logs))
    found, skipped = [], 0
    for submission in [logs.resolve()] if alone else _folders(logs):
        if not _NAME.fullmatch(submission.name):
            continue
        for study, number in _numbered(submission, "study"):
            for workload in _folders(study):
                name = _WORKLOAD.fullmatch(workload.name)
                if name is None:
                    skipped += 1
                    continue
                for trial, point in _numbered(workload, "trial"):
                    found.append(_Place(trial, submission.name, number, name[1], name[2], point))
                    if len(found) > MOST_TRIALS:
                        raise BadLogs(f"{logs}: more than {MOST_TRIALS:,} trials")
    if not found:
        raise BadLogs(f"{logs}: no <submission>/study_<s>/<workload>_<framework>/trial_<t> in it")
    return found, skipped


def _numbered(folder: Path, what: str) -> list[tuple[Path, int]]:
    found = [
        (entry, re.fullmatch(rf"{what}_(0|[1-9][0-9]{{0,5}})", entry.name)) for entry in _folders(folder)
    ]
    return [(entry, int(match[1])) for entry, match in found if match]


def _folders(folder: Path) -> list[Path]:
    # A linked folder could lead anywhere, and round in circles.
    return sorted(entry for entry in folder.iterdir() if entry.is_dir() and not entry.is_symlink())


def _read(places: list[_Place]) -> list[Trial]:
    trials, num_evaluations = [], 0
    for place in places:
        trials.append(_read_trial(place))
        num_evaluations += len(trials[-1].evaluations)
        if num_evaluations > MOST_EVALUATIONS:
            raise BadLogs(f"{place.folder}: with it more than {MOST_EVALUATIONS:,} evaluations")
    return trials


def _read_trial(place: _Place) -> Trial:
    meta_path, csv_path = place.folder / "meta_data_0.json", place.folder / "eval_measurements.csv"
    meta, points = _read_json(meta_path), _read_json(place.folder / "hparams.json")
    facts = None if meta is None else _facts(meta, meta_path)
    if facts is None and csv_path.exists():
        raise BadLogs(f"{meta_path}: missing, and with it the target of {csv_path.name}")
    logged, torn = ((), 0) if facts is None else _read_evaluations(csv_path, facts.metric)
    kept = _without_superseded(logged)
    return Trial(
        **place._asdict(),
        hyperparameters=points or {},
        facts=facts,
        evaluations=kept,
        num_dropped=torn + len(logged) - len(kept),
        not_steps=None,
    )


def _read_bytes(path: Path, most: int) -> bytes | None:
    """A plain file's bytes, null where there is none. Raises: BadLogs for links, devices and large files."""
    try:
        status = path.lstat()
    except FileNotFoundError:
        return None
    if not stat.S_ISREG(status.st_mode):
        raise BadLogs(f"{path}: not a plain file")
    if status.st_size > most:
        raise BadLogs(f"{path}: {status.st_size:,} bytes; allowed: {most:,}")
    return path.read_bytes()


def _read_json(path: Path) -> dict[str, Any] | None:
    data = _read_bytes(path, MOST_JSON_BYTES)
    if data is None:
        return None
    if data[:1] == b"\x80":
        raise BadLogs(f"{path}: a pickle under a .json name; refused, not loaded")
    try:
        value = json.loads(data.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise BadLogs(f"{path}: not JSON ({type(error).__name__}: {str(error)[:100]})") from None
    if not isinstance(value, dict):
        raise BadLogs(f"{path}: not a JSON object")
    return value


def _facts(meta: Mapping[str, Any], path: Path) -> Facts:
    metric = meta.get("workload.target_metric_name")
    if not isinstance(metric, str) or metric not in LOWER_IS_BETTER:
        allowed = ", ".join(LOWER_IS_BETTER)
        raise BadLogs(f"{path}: workload.target_metric_name is {str(metric)[:40]!r}; allowed: {allowed}")
    test = meta.get("workload.test_target_value")
    return Facts(
        metric=metric,
        target=_number(meta, "workload.validation_target_value", path),
        test_target=None if test is None else _number(meta, "workload.test_target_value", path),
        step_hint=int(_number(meta, "workload.step_hint", path, least=1)),
        max_seconds=_number(meta, "workload.max_allowed_runtime_sec", path, least=1),
        eval_period_seconds=_number(meta, "workload.eval_period_time_sec", path, least=1e-3),
        num_devices=_number(meta, "gpu_count", path, least=1),
        device_name=str(meta.get("gpu_model_name", ""))[:100],
        versions={"python": str(meta["python_version"])[:100]} if "python_version" in meta else {},
    )


def _number(meta: Mapping[str, Any], key: str, path: Path, least: float = -math.inf) -> float:
    value = meta.get(key)
    # 2**53: what a float64 still counts in ones
    if isinstance(value, bool) or not isinstance(value, int | float) or not least <= value <= 2**53:
        raise BadLogs(
            f"{path}: {key} is {str(value)[:40]!r}, not a number{f' ≥ {least:g}' if least > 0 else ''}"
        )
    return float(value)


def _read_evaluations(path: Path, metric: str) -> tuple[tuple[Evaluation, ...], int]:
    """Evaluations in file order, and how many torn last lines were left out."""
    data = _read_bytes(path, MOST_CSV_BYTES)
    if data is None:
        return (), 0
    whole, newline, torn = data.rpartition(b"\n")  # a last line without its newline may end within a number
    dropped = bool(torn.strip())
    try:
        lines = list(csv.reader(io.StringIO(whole.decode("utf-8"), newline="")))
    except (ValueError, csv.Error) as error:
        raise BadLogs(f"{path}: not CSV ({str(error)[:100]})") from None
    if not newline or not lines:
        raise BadLogs(f"{path}: no complete line")
    header, rows = lines[0], lines[1:]
    for needed in ("global_step", "accumulated_submission_time", f"validation/{metric}"):
        if needed not in header:
            raise BadLogs(f"{path}: column {needed!r} is missing")
    if len(set(header)) < len(header):
        raise BadLogs(f"{path}: a column stands twice")
    if rows and len(rows[-1]) < len(header):
        rows, dropped = rows[:-1], True
    found = tuple(
        _evaluation(place, dict(_cells(header, row, place, path)), path) for place, row in enumerate(rows)
    )
    return found, int(dropped)


def _cells(header: list[str], row: list[str], place: int, path: Path) -> Iterator[tuple[str, float]]:
    if len(row) != len(header):
        raise BadLogs(f"{path}:{place + 2}: {len(row)} fields, the header has {len(header)}")
    for name, text in zip(header, row, strict=True):
        try:
            yield name, float(text) if text else math.nan
        except ValueError:
            raise BadLogs(f"{path}:{place + 2}: {name} is {text[:40]!r}, not a number") from None


def _evaluation(place: int, values: dict[str, float], path: Path) -> Evaluation:
    step, seconds = values.pop("global_step"), values.pop("accumulated_submission_time")
    if not (0 <= step <= 2**53 and step == int(step)):
        raise BadLogs(f"{path}:{place + 2}: global_step is {step:g}, not a whole number ≥ 0")
    if not 0 <= seconds < math.inf:
        raise BadLogs(f"{path}:{place + 2}: accumulated_submission_time is {seconds:g}, not seconds")
    used = {name: value for name, value in values.items() if not name.startswith("train/")}
    return Evaluation(place, int(step), seconds, used)


def _without_superseded(evaluations: tuple[Evaluation, ...]) -> tuple[Evaluation, ...]:
    """A run restored from a checkpoint logs steps anew, with its clock set back: the later lines count.

    The same step at the same second is one evaluation written twice; the later line counts too.
    """
    kept: list[Evaluation] = []
    for one in evaluations:
        while kept and one.step <= kept[-1].step and one.seconds <= kept[-1].seconds:
            kept.pop()
        kept.append(one)
    return tuple(kept)


def _with_facts(trials: list[Trial]) -> list[Trial]:
    """Trials of a workload agree on its target and hints; one without metadata takes the others'."""
    first: dict[str, Trial] = {}
    for trial in trials:
        if trial.facts is None:
            continue
        other = first.setdefault(trial.workload, trial)
        if other.facts is not None and other.facts.workload != trial.facts.workload:
            raise BadLogs(
                f"{trial.folder / 'meta_data_0.json'}: another target, metric or hint than in {other.folder}"
            )
    for trial in trials:
        if trial.workload not in first:
            raise BadLogs(
                f"{trial.folder / 'meta_data_0.json'}: missing, as of every trial of {trial.workload}"
            )
    return [trial if trial.facts else replace(trial, facts=first[trial.workload].facts) for trial in trials]


# --- does global_step count optimizer steps? ------------------------------------------------------------------------


def _with_counters(trials: list[Trial], told: frozenset[str]) -> list[Trial]:
    """Labels the trials whose global_step cannot be optimizer steps.

    A counter of optimizer steps grows from evaluation to evaluation, and on one machine at about one pace whoever
    trains: within PACE of the median submission's where three or more ran the workload, else of step hint ÷ longest
    time. A counter of calls that happens to keep the pace cannot be told.
    """
    paces: dict[str, dict[str, list[float]]] = {}
    for trial in trials:
        if (pace := _pace(trial.evaluations)) is not None:
            paces.setdefault(trial.workload, {}).setdefault(trial.submission, []).append(pace)
    usual = {
        workload: median(median(of) for of in by.values()) for workload, by in paces.items() if len(by) >= 3
    }
    return [
        replace(trial, not_steps=_why_not_steps(trial, usual.get(trial.workload), told)) for trial in trials
    ]


def _why_not_steps(trial: Trial, usual: float | None, told: frozenset[str]) -> str | None:
    if trial.submission in told:
        return "said so"
    pairs = list(zip(trial.evaluations, trial.evaluations[1:], strict=False))
    if any(after.step < before.step for before, after in pairs):
        return "it falls while the clock runs on"
    stalled = sum(after.step == before.step for before, after in pairs)
    if stalled > max(1.0, STALLED * len(pairs)):
        return f"it stands still in {stalled} of {len(pairs)} intervals"
    pace = _pace(trial.evaluations)
    if pace is None or trial.facts is None:
        return None
    times = pace / (usual if usual else trial.facts.pace)
    if not 1 / PACE <= times <= PACE:
        return (
            f"it runs at {times:.2g} times the {'pace of the other submissions' if usual else 'hinted pace'}"
        )
    return None


def _pace(evaluations: tuple[Evaluation, ...]) -> float | None:
    """Counts a second from the first evaluation on (before it lies compilation), null where too short to tell."""
    if len(evaluations) < 3 or evaluations[-1].seconds <= evaluations[0].seconds:
        return None
    first, last = evaluations[0], evaluations[-1]
    return (last.step - first.step) / (last.seconds - first.seconds)


def _stepwise(trial: Trial) -> tuple[Evaluation, ...]:
    """The evaluations that become records: none where steps are not counted, a step evaluated again once."""
    if trial.not_steps:
        return ()
    return tuple({one.step: one for one in reversed(trial.evaluations)}.values())[::-1]


# --- writing -----------------------------------------------------------------------------------------------------


def _write(run: Path, study: str, trials: list[Trial], notes: list[str]) -> None:
    (run / "records").mkdir(parents=True)
    names = _optimizer_names(trials)
    cells = [_cell_row(trial, names[trial.cell_id], study) for trial in trials]
    extra = [("framework", pa.string()), ("trial", pa.int64()), ("hyperparameters", pa.string())]
    schema = pa.schema([*CELLS, *extra])
    write_table(run / "cells.parquet", pa.Table.from_pylist(cells, schema=schema))
    written = {}
    for submission in sorted({trial.submission for trial in trials}):
        rows = [row for trial in trials if trial.submission == submission for row in _record_rows(trial)]
        table = rows_to_table(rows).sort_by([(name, "ascending") for name in ("cell_id", "split", "step")])
        sha256 = write_table(run / "records" / f"{submission}.parquet", table, "zstd")
        written[submission] = asdict(Finished(rows=len(table), sha256=sha256))
    write_table(run / "trials.parquet", pa.Table.from_pylist([_trial_row(t) for t in trials], schema=TRIALS))
    logged = pa.Table.from_pylist(
        [row for trial in trials for row in _logged_rows(trial)], schema=EVALUATIONS
    )
    write_table(run / EVALUATIONS_FILE, logged, "zstd")
    document = _plan(study, trials, notes) | {"format": FORMAT, "records": written}
    write_atomic(run / "plan.json", json.dumps(document, indent=1).encode())
    source = {"study": study, "imported": "algoperf", "workloads": sorted({t.workload for t in trials})}
    write_atomic(run / "spec.yaml", dump_yaml(source).encode())


def _optimizer_names(trials: list[Trial]) -> dict[str, str]:
    """cell_id -> its submission, with what else tells its trials apart where the cells' columns do not.

    Of one submission on one workload, two trials may differ only in a dropout rate, which no column has: then the
    name says it, as in ``baseline (label_smoothing 0.1)``; where hyperparameters are equal, framework and number do.
    """
    groups: dict[tuple[Any, ...], list[Trial]] = {}
    for trial in trials:
        settings = tuple(sorted(_settings(trial.hyperparameters).items()))
        groups.setdefault((trial.submission, trial.workload, settings, _warmup(trial)), []).append(trial)
    names = {}
    for (submission, *_), part in groups.items():
        others = [_others(trial) for trial in part]
        varying = [
            k for k in dict.fromkeys(k for o in others for k in o) if len({o.get(k) for o in others}) > 1
        ]
        labels = [", ".join(f"{k} {o.get(k, '–')}" for k in varying) for o in others]
        points: dict[tuple[str, int], set[tuple[str, int]]] = {}
        for trial, label in zip(part, labels, strict=True):
            points.setdefault((label, trial.study), set()).add((trial.framework, trial.number))
        for trial, label in zip(part, labels, strict=True):
            twin = f"{trial.framework} trial {trial.number}"
            said = [label, twin] if len(points[label, trial.study]) > 1 else [label]
            text = ", ".join(filter(None, said))
            names[trial.cell_id] = f"{submission} ({text})" if text else submission
    return names


def _settings(points: Mapping[str, Any]) -> dict[str, float]:
    found = {column: _setting(points.get(name)) for name, column in HYPERPARAMETERS.items()}
    rest = _setting(points.get("one_minus_beta1"))
    if rest is not None:
        found["beta1"] = round(1 - rest, 12)
    return {column: value for column, value in found.items() if value is not None}


def _others(trial: Trial) -> dict[str, str]:
    mapped = {*HYPERPARAMETERS, *WARMUPS, "one_minus_beta1"}
    return {k[:40]: str(v)[:40] for k, v in sorted(trial.hyperparameters.items()) if k not in mapped}


def _setting(value: Any) -> float | None:
    known = isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= 2**53
    return float(value) if known else None


def _warmup(trial: Trial) -> int | None:
    shares = [_setting(trial.hyperparameters.get(name)) for name in WARMUPS]
    share = next((share for share in shares if share is not None and 0 <= share <= 1), None)
    return None if share is None or trial.facts is None else int(share * trial.facts.step_hint)


def _cell_row(trial: Trial, optimizer: str, study: str) -> dict[str, Any]:
    facts = trial.facts
    assert facts is not None
    row: dict[str, Any] = dict.fromkeys(CELLS.names)
    return row | {
        "cell_id": trial.cell_id,
        "trajectory_id": trial.cell_id,
        "study": study,
        "workload": trial.workload,
        "preset": "full",
        "seed": trial.study,
        "step_budget": facts.step_hint,
        "optimizer": optimizer,
        **_settings(trial.hyperparameters),
        "precision": "fp32",
        "accumulate": 1,
        "schedule": "as submitted",  # logs do not say which
        "length_steps": facts.step_hint,
        "length_fraction": 1.0,
        "warmup_steps": _warmup(trial),
        "scheme": "none",
        # Evaluations go by the clock: the steps of one period at the hinted pace.
        "evaluate_every_steps": max(1, round(facts.eval_period_seconds * facts.pace)),
        "metric": facts.metric,
        "higher_is_better": not LOWER_IS_BETTER[facts.metric],
        "target": None if trial.not_steps else facts.target,
        "num_devices": facts.num_devices,
        "device": "gpu",
        "processes": 1,
        "framework": trial.framework,
        "trial": trial.number,
        "hyperparameters": json.dumps(dict(trial.hyperparameters), sort_keys=True),
    }


def _record_rows(trial: Trial) -> Iterator[dict[str, Any]]:
    facts, evaluations = trial.facts, _stepwise(trial)
    assert facts is not None
    finite = [_is_finite(one, facts.metric) for one in evaluations]
    for place, one in enumerate(evaluations):
        for split in ("validation", "test"):
            if f"{split}/{facts.metric}" not in one.values:
                continue
            found = {
                name.removeprefix(f"{split}/"): value
                for name, value in one.values.items()
                if name.startswith(f"{split}/")
            }
            examples = found.pop("num_examples", math.nan)
            metric = found[facts.metric]
            losses = [found.pop(name, None) for name in LOSSES]
            loss = next((loss for loss in losses if loss is not None), math.nan)
            found.pop(facts.metric, None)
            yield {
                "cell_id": trial.cell_id,
                "trajectory_id": trial.cell_id,
                "step": one.step,
                "split": split,
                "loss": loss,
                "metric": metric,
                "examples": int(examples) if 0 <= examples <= 2**53 else None,
                "train_seconds": one.seconds,
                "average_seconds": 0.0,
                "eval_seconds": one.values.get("accumulated_eval_time", 0.0),
                "diverged": not any(finite[place:]),  # and never finite again
                "metrics": found,
            }


def _is_finite(one: Evaluation, metric: str) -> bool:
    return math.isfinite(one.values[f"validation/{metric}"])


def _logged_rows(trial: Trial) -> Iterator[dict[str, Any]]:
    facts = trial.facts
    assert facts is not None
    nothing = Evaluation(-1, 0, 0.0, {})
    for one in trial.evaluations or (nothing,):
        yield {
            "submission": trial.submission,
            "workload": trial.workload,
            "study": trial.study,
            "trial": trial.number,
            "cell_id": trial.cell_id,
            "evaluation": one.place,
            "global_step": one.step,
            "seconds": one.seconds,
            "metric": one.values.get(f"validation/{facts.metric}", math.nan),
            "target": facts.target,
            "higher_is_better": not LOWER_IS_BETTER[facts.metric],
            "counts_steps": trial.not_steps is None,
            "num_devices": facts.num_devices,
        }


def _trial_row(trial: Trial) -> dict[str, Any]:
    facts, last = trial.facts, trial.evaluations[-1] if trial.evaluations else None
    assert facts is not None
    parts = ("accumulated_eval_time", "accumulated_logging_time")
    total = 0.0
    if last:
        total = last.values.get("total_duration", math.nan)
        if not 0 <= total < math.inf:
            total = last.seconds + sum(last.values.get(part, 0.0) for part in parts)
    return {
        "trajectory_id": trial.cell_id,
        "attempt": 1,
        "host": None,
        "device_name": facts.device_name,
        "num_devices": facts.num_devices,
        "versions": json.dumps({**facts.versions, "framework": trial.framework}, sort_keys=True),
        "started": None,
        "ended": None,
        "seconds": total,
        "status": "done" if trial.evaluations else "failed",
    }


def _plan(study: str, trials: list[Trial], notes: list[str]) -> dict[str, Any]:
    of = {trial.workload: trial.facts for trial in trials if trial.facts is not None}
    targets = {  # as `sweeps.targets.Target` has them, whose import would bring torch
        workload: {
            "value": facts.target,
            "metric": facts.metric,
            "higher_is_better": not LOWER_IS_BETTER[facts.metric],
            "preset": "full",
            "rule": "published: workload.validation_target_value of the logs' meta_data_0.json",
            "seeds": [],
            "values": [],
            "versions": {},
            "date": "",
        }
        for workload, facts in sorted(of.items())
    }
    hints = {
        workload: {
            "step_hint": facts.step_hint,
            "max_allowed_runtime_sec": facts.max_seconds,
            "test_target": facts.test_target,
        }
        for workload, facts in sorted(of.items())
    }
    return {
        "study": study,
        "question": "Which submission reaches AlgoPerf's targets in the fewest seconds?",
        "created": "by wa import algoperf",
        "imported": "AlgoPerf",
        "fuse": True,
        "seeds": sorted({trial.study for trial in trials}),
        "cells": [trial.cell_id for trial in trials],
        "targets": targets,
        "hints": hints,
        "steps_withheld": {trial.cell_id: trial.not_steps for trial in trials if trial.not_steps},
        "notes": notes,
        "trajectories": [
            {"name": t.cell_id, "trajectory_id": t.cell_id, "cells": [t.cell_id], "expected_seconds": None}
            for t in trials
        ],
        "versions": {},
    }


def _notes(trials: list[Trial], skipped: int) -> list[str]:
    found = []
    if skipped:
        found.append(f"{skipped} folders are no <workload>_<framework> and were left out.")
    empty = [trial for trial in trials if not trial.evaluations]
    if empty:
        found.append(f"{len(empty)} trials were never evaluated: misses, {empty[0].cell_id} among them.")
    dropped = sum(trial.num_dropped for trial in trials)
    if dropped:
        found.append(f"{dropped} torn, repeated or superseded lines were left out.")
    for submission in sorted({trial.submission for trial in trials if trial.not_steps}):
        part = [trial for trial in trials if trial.submission == submission and trial.not_steps]
        found.append(
            f"{submission}: global_step of {len(part)} trials does not count optimizer steps "
            f"({part[0].cell_id}: {part[0].not_steps}); steps-to-target withheld, seconds kept."
        )
    return found
