"""The run folder of imported AlgoPerf trials: every trial a cell, every evaluation recorded a record or two."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pyarrow as pa

from analysis.run_folder.live_records import Finished
from analysis.run_folder.records import CELLS, RECORDS, TRIALS, rows_to_table
from analysis.run_folder.schema import FORMAT
from analysis.statistics.algoperf_score import ALL_BASE, EVALUATIONS, EVALUATIONS_FILE, HELD_OUT, LM, base_workload
from sweeps.durable import write_atomic, write_table
from sweeps.importers.algoperf_trials import Evaluation, Facts, Imported, Trial
from sweeps.yaml_file import dump_yaml

LOSSES = ("loss", "ctc_loss")  # the latter is speech's
# as submissions name them -> as cells do
HYPERPARAMETERS = {name: name for name in ("beta1", "beta2", "weight_decay", "momentum", "grad_clip")}
HYPERPARAMETERS |= {"learning_rate": "lr", "epsilon": "eps"}
WARMUPS = ("warmup_factor", "warmup_steps_fraction")  # shares of the step hint


def write(run: Path, study: str, trials: list[Trial], done: Imported, baseline: str | None) -> None:
    """Fill the empty folder `run`: cells, records, trials, every evaluation as logged, plan."""
    (run / "records").mkdir()
    names = _optimizer_names(trials)
    cells = [_cell_row(trial, names[trial.cell_id], study) for trial in trials]
    extra = [("framework", pa.string()), ("trial", pa.int64()), ("hyperparameters", pa.string())]
    write_table(run / "cells.parquet", pa.Table.from_pylist(cells, schema=pa.schema([*CELLS, *extra])))
    written = {}
    for submission in sorted({trial.submission for trial in trials}):
        rows = [row for trial in trials if trial.submission == submission for row in _record_rows(trial)]
        table = rows_to_table(rows).sort_by([(name, "ascending") for name in ("cell_id", "split", "step")])
        sha256 = write_table(run / "records" / f"{submission}.parquet", table, "zstd")
        written[submission] = asdict(Finished(rows=len(table), sha256=sha256))
    write_table(run / "trials.parquet", pa.Table.from_pylist([_trial_row(one) for one in trials], schema=TRIALS))
    of = _leaderboard({trial.workload: trial.facts for trial in trials})
    logged = [row | {"leaderboard": of} for trial in trials for row in _logged_rows(trial)]
    write_table(run / EVALUATIONS_FILE, pa.Table.from_pylist(logged, schema=EVALUATIONS), "zstd")
    document = _plan(study, trials, done, of) | {"format": FORMAT, "records": written, "baseline": baseline}
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
        varying = [k for k in dict.fromkeys(k for o in others for k in o) if len({o.get(k) for o in others}) > 1]
        labels = [", ".join(f"{k} {o.get(k, '–')}" for k in varying) for o in others]
        alike = Counter((label, trial.study) for label, trial in zip(labels, part, strict=True))
        for trial, label in zip(part, labels, strict=True):
            twin = f"{trial.framework} trial {trial.number}" if alike[label, trial.study] > 1 else ""
            text = ", ".join(filter(None, (label, twin)))
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
    return None if share is None else int(share * trial.facts.step_hint)


def _cell_row(trial: Trial, optimizer: str, study: str) -> dict[str, Any]:
    facts, points = trial.facts, trial.hyperparameters
    row: dict[str, Any] = dict.fromkeys(CELLS.names) | _settings(points)
    row |= dict.fromkeys(("cell_id", "trajectory_id"), trial.cell_id) | {"study": study, "studies": [study]}
    row |= {"workload": trial.workload, "seed": trial.study, "framework": trial.framework, "trial": trial.number}
    row |= {"hyperparameters": json.dumps(dict(points), sort_keys=True), "warmup_steps": _warmup(trial)}
    row |= {"metric": facts.metric, "higher_is_better": facts.higher_is_better, "num_devices": facts.num_devices}
    row |= dict.fromkeys(("step_budget", "length_steps"), facts.step_hint) | {"length_fraction": 1.0}
    row |= {"target": None if trial.not_steps else facts.target, "optimizer": optimizer, "scheme": "none"}
    row |= {"preset": "full", "precision": "fp32", "accumulate": 1, "processes": 1, "device": "gpu"}
    # Logs do not say which schedule; evaluations go by the clock: the steps of one period at the hinted pace.
    every = max(1, round(facts.eval_period_seconds * facts.pace))
    return row | {"schedule": "as submitted", "evaluate_every_steps": every}


def _record_rows(trial: Trial) -> Iterator[dict[str, Any]]:
    metric, evaluations = trial.facts.metric, trial.recorded
    finite = [math.isfinite(one.values[f"validation/{metric}"]) for one in evaluations]
    row = dict.fromkeys(RECORDS.names) | dict.fromkeys(("cell_id", "trajectory_id"), trial.cell_id)
    for place, one in enumerate(evaluations):
        for split in ("validation", "test"):
            start = f"{split}/"
            found = {name.removeprefix(start): value for name, value in one.values.items() if name.startswith(start)}
            if metric not in found:
                continue
            examples, value = found.pop("num_examples", math.nan), found[metric]
            losses = [found.pop(name) for name in LOSSES if name in found]
            found.pop(metric, None)
            yield (
                row
                | {"step": one.step, "split": split, "metric": value, "metrics": found}
                | {
                    "loss": losses[0] if losses else math.nan,
                    "examples": int(examples) if 0 <= examples <= 2**53 else None,
                    "train_seconds": one.seconds,
                    "average_seconds": 0.0,
                    "eval_seconds": one.values.get("accumulated_eval_time", 0.0),
                    "diverged": not any(finite[place:]),  # and never finite again
                }
            )


def _logged_rows(trial: Trial) -> Iterator[dict[str, Any]]:
    facts = trial.facts
    row = {"submission": trial.submission, "workload": trial.workload, "study": trial.study, "trial": trial.number}
    row |= {"cell_id": trial.cell_id, "target": facts.target, "higher_is_better": facts.higher_is_better}
    row |= {"counts_steps": trial.not_steps is None, "num_devices": facts.num_devices}
    for one in trial.evaluations or (Evaluation(-1, 0, 0.0, {}),):
        metric = one.values.get(f"validation/{facts.metric}", math.nan)
        yield row | {"evaluation": one.place, "global_step": one.step, "seconds": one.seconds, "metric": metric}


def _trial_row(trial: Trial) -> dict[str, Any]:
    facts = trial.facts
    row: dict[str, Any] = dict.fromkeys(TRIALS.names) | dict.fromkeys(("trajectory_id", "name"), trial.cell_id)
    row |= {"attempt": 1, "status": "done" if trial.evaluations else "failed", "seconds": _total_seconds(trial)}
    row |= {"device_name": facts.device_name, "num_devices": facts.num_devices}
    return row | {"versions": json.dumps({**facts.versions, "framework": trial.framework}, sort_keys=True)}


def _total_seconds(trial: Trial) -> float:
    """Wall seconds of the whole trial: as logged, else the sum of what is."""
    if not trial.evaluations:
        return 0.0
    last = trial.evaluations[-1]
    total = last.values.get("total_duration", math.nan)
    if 0 <= total < math.inf:
        return total
    parts = (last.values.get(part, 0.0) for part in ("accumulated_eval_time", "accumulated_logging_time"))
    return last.seconds + sum(part for part in parts if 0 <= part < math.inf)


def _plan(study: str, trials: list[Trial], done: Imported, leaderboard: str) -> dict[str, Any]:
    of = {trial.workload: trial.facts for trial in sorted(trials, key=lambda trial: trial.workload)}
    source = "published: workload.validation_target_value of the logs' meta_data_0.json"
    rule: dict[str, Any] = {"rule": source, "preset": "full", "seeds": [], "values": [], "versions": {}, "date": ""}
    told = {
        "study": study,
        "question": "Which submission reaches AlgoPerf's targets in the fewest seconds?",
        "fuse": True,
        "seeds": sorted({trial.study for trial in trials}),
        "cells": [trial.cell_id for trial in trials],
        "targets": {  # as `sweeps.targets.Target` has them, whose import would bring torch
            name: {"value": one.target, "metric": one.metric, "higher_is_better": one.higher_is_better, **rule}
            for name, one in of.items()
        },
    }
    hints = {
        name: {"step_hint": one.step_hint, "max_allowed_runtime_sec": one.max_seconds, "test_target": one.test_target}
        for name, one in of.items()
    }
    ids = ((trial.cell_id, _total_seconds(trial)) for trial in trials)
    return told | {
        "studies": [told],
        "created": "by wa import algoperf",
        "imported": "AlgoPerf",
        "hints": hints,
        "steps_withheld": {trial.cell_id: trial.not_steps for trial in trials if trial.not_steps},
        "notes": done.notes,
        "lines": {"read": done.num_read, "recorded": done.num_recorded, "left_out": done.left_out},
        "left_out": [one._asdict() for one in done.skipped],
        "leaderboard": leaderboard,
        "trajectories": [{"name": i, "trajectory_id": i, "cells": [i], "expected_seconds": s} for i, s in ids],
        "versions": {},
    }


# Step hints and longest submission times in seconds of ALL_BASE, as the published logs' metadata have them.
_BUDGETS = {
    "v0.5": (
        (10_666, 36_189, 186_666, 186_666, 80_000, 48_000, 80_000, 133_333),
        (7_703, 8_859, 63_008, 77_520, 61_068, 55_506, 18_477, 48_151),
    ),
    "v0.6": (
        (10_666, 18_094, 195_999, 167_999, 76_000, 38_400, 52_000, 120_000),
        (7_703, 4_430, 66_159, 69_768, 58_015, 44_405, 12_011, 43_336),
    ),
    "v1.0": (
        (10_666, 18_094, 195_999, 167_999, 76_000, 38_400, 52_000, 120_000, 72_000),
        (8_915, 2_745, 49_918, 64_292, 43_680, 36_949, 11_303, 16_114, 31_967),
    ),
}


def _leaderboard(of: Mapping[str, Facts]) -> str:
    """The one whose budgets most workloads have; without any, the one whose workloads they are."""
    by_workloads = "v0.5" if of.keys() & {*HELD_OUT} else "v1.0" if LM in of else "v0.6"
    votes = dict.fromkeys(_BUDGETS, 0)
    for version, (steps, seconds) in _BUDGETS.items():
        budgets = dict(zip(ALL_BASE, zip(steps, seconds, strict=True), strict=False))
        for name, facts in of.items():
            votes[version] += budgets.get(base_workload(name) or name) == (facts.step_hint, facts.max_seconds)
    return max(votes, key=lambda name: (votes[name], name == by_workloads))
