"""THE schema of a run folder: columns, dtypes, units; its reader and its checks. The writer imports it.

A run folder holds ``cells.parquet`` (one row a cell, every axis a column), ``records/*.parquet`` (one row an
evaluation of a cell) and, while trajectories run, ``trajectories/<id>/records.jsonl`` (the same rows, live).
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from itertools import chain, pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

# One row: the evaluation of one cell after `step` optimizer steps.
RECORDS = pa.schema(
    [
        ("cell_id", pa.string()),
        ("trajectory_id", pa.string()),
        ("step", pa.int64()),  # optimizer steps completed
        ("split", pa.string()),  # "validation" | "test", at the end of training
        ("loss", pa.float64()),
        ("metric", pa.float64()),
        ("examples", pa.int64()),  # examples evaluated
        ("train_seconds", pa.float64()),  # cumulative wall seconds of training, data included
        ("average_seconds", pa.float64()),  # cumulative wall seconds of this cell's averaging
        ("eval_seconds", pa.float64()),  # cumulative wall seconds of this cell's evaluations on this split
        ("diverged", pa.bool_()),  # training has left the finite numbers; the trajectory ends here
        ("metrics", pa.map_(pa.string(), pa.float64())),  # what stands beside the target metric, by name
    ]
)
BESIDE = "metric_"  # before the name of a metric that stands beside, as a column: metric_accuracy
KEY = ["cell_id", "step", "split"]  # what makes a record one of a kind
NAMES = ["cell_id", "trajectory_id", "split"]  # its columns of strings

# One row a cell. A column that does not apply (k of an EMA, …) is null. `_steps` are steps, `_fraction` shares
# of the step budget; `final_lr` is a share of the peak `lr`.
CELLS = pa.schema(
    [
        ("cell_id", pa.string()),
        ("trajectory_id", pa.string()),
        ("study", pa.string()),  # that asked for it first
        ("studies", pa.list_(pa.string())),  # every study of the folder that has it
        ("workload", pa.string()),
        ("preset", pa.string()),
        ("seed", pa.int64()),
        ("step_budget", pa.int64()),  # T
        ("optimizer", pa.string()),
        ("lr", pa.float64()),
        ("beta1", pa.float64()),
        ("beta2", pa.float64()),
        ("eps", pa.float64()),
        ("weight_decay", pa.float64()),
        ("momentum", pa.float64()),
        ("nesterov", pa.float64()),  # 1 or 0
        ("grad_clip", pa.float64()),
        ("precondition_every", pa.float64()),  # steps
        ("precondition_start", pa.float64()),  # steps
        ("block_size", pa.float64()),
        ("matrix_eps", pa.float64()),
        ("precision", pa.string()),  # fp32 | bf16: of the forward pass, by autocast
        ("compile", pa.string()),  # torch.compile's backend
        ("accumulate", pa.int64()),  # micro-batches a step
        ("batch_size", pa.int64()),  # examples a step; null: the workload's own
        ("own_batch_size", pa.int64()),  # of the workload
        ("schedule", pa.string()),  # shape: cosine | linear | constant
        ("length_steps", pa.int64()),  # training ends there
        ("length_fraction", pa.float64()),
        ("warmup_steps", pa.int64()),
        ("lr_decay_steps", pa.int64()),
        ("lr_decay", pa.float64()),  # share of the schedule's length spent decaying
        ("final_lr", pa.float64()),
        ("scheme", pa.string()),  # none | lawa | ema | tail | wsm
        ("k", pa.int64()),
        ("curve", pa.string()),  # wsm: linear | cosine | sqrt
        ("every_steps", pa.int64()),
        ("ema_decay", pa.float64()),
        ("horizon_steps", pa.float64()),  # averaging horizon: 2 × centre-of-mass lag + every
        ("horizon_fraction", pa.float64()),
        ("burn_in_steps", pa.int64()),
        ("init", pa.string()),  # ema: first | zero
        ("until_full", pa.string()),  # lawa: absent | partial
        ("buffers", pa.string()),  # live | average | recompute
        ("evaluate_every_steps", pa.int64()),
        ("evaluate_test", pa.bool_()),  # on the test split too, at the end of training
        ("metric", pa.string()),  # the target metric's name; `load_cells` calls it metric_name
        ("higher_is_better", pa.bool_()),
        ("target", pa.float64()),  # null until `wa calibrate`
        ("num_devices", pa.float64()),  # devices one trial holds: GPUs when it has any, else CPUs
        ("device", pa.string()),  # "gpu" | "cpu": device-hours are GPU-hours only on "gpu"
        ("processes", pa.int64()),  # data-parallel processes of one trial
    ]
)

# One row an attempt at a trajectory.
TRIALS = pa.schema(
    [
        ("trajectory_id", pa.string()),
        ("attempt", pa.int64()),
        ("host", pa.string()),
        ("device_name", pa.string()),
        ("num_devices", pa.float64()),
        ("versions", pa.string()),  # JSON: package -> version
        ("started", pa.string()),  # ISO 8601, UTC
        ("ended", pa.string()),
        ("seconds", pa.float64()),  # wall seconds of the attempt, all included
        ("status", pa.string()),  # done | failed | interrupted
        ("name", pa.string()),  # the trajectory's folder: its id, with a suffix where one training runs twice
    ]
)

# Columns that folders of earlier versions lack, and what was true then: a value, or a function of the table.
LATER: dict[str, Any] = {
    "metrics": [],
    "studies": lambda table: [[study] for study in table["study"].to_pylist()],
    "name": lambda table: table["trajectory_id"].to_pylist(),
    "nesterov": lambda table: [
        float(bool(m)) if m is not None else None for m in table["momentum"].to_pylist()
    ],
    "precondition_every": None,
    "precondition_start": None,
    "block_size": None,
    "matrix_eps": None,
    "precision": "fp32",
    "compile": None,
    "accumulate": 1,
    "batch_size": None,
    "own_batch_size": None,
    "curve": None,
    "evaluate_test": False,
    "processes": 1,
}


class BadRun(ValueError):
    """Not a run folder, or one whose tables break the schema; the message says where."""


def load(run: str | Path, study: str | None = None) -> pd.DataFrame:
    """Records joined with their cells, of finished and running trajectories alike.

    study: of a folder that holds several, the cells of this one alone.

    One row a record, sorted by (cell_id, split, step); record columns first, then the cell's axes. The target
    metric's name is ``metric_name``, its value ``metric``; what stands beside it has columns of its own, such as
    ``metric_accuracy``.

    Raises: BadRun where `run` has no cells.parquet or no such study, or a table breaks the schema.
    """
    cells = load_cells(run).drop(columns="trajectory_id")
    if study is not None:
        cells = cells[has_study(cells, study, run)]
    return load_records(run).merge(cells, on="cell_id", how="inner", validate="many_to_one")


def load_cells(run: str | Path) -> pd.DataFrame:
    """The cell table, one row a cell, nullable integers where a column does not apply to every scheme.

    The file's ``metric``, a name, is called ``metric_name`` here: beside records, ``metric`` is a value.
    """
    path = Path(run) / "cells.parquet"
    if not path.is_file():
        raise BadRun(f"{run}: not a run folder (no cells.parquet); `wa run FILE --out {run}` makes one")
    cells = _to_pandas(read_table(path, CELLS)).rename(columns={"metric": "metric_name"})
    named = zip(cells["study"], cells["studies"], strict=True)
    # Tuples are hashable, unlike lists.
    every = [(study,) if several is None else tuple(several) for study, several in named]
    return cells.assign(studies=pd.Series(every, index=cells.index, dtype=object))


def has_study(cells: pd.DataFrame, study: str, run: str | Path) -> pd.Series:
    """Which rows of `load_cells` belong to a study of the folder. Raises: BadRun where none do."""
    mine = cells["studies"].map(lambda names: study in names).astype(bool)
    if not mine.any():
        known = sorted({name for names in cells["studies"] for name in names})
        raise BadRun(f"{run}: no cells of a study {study!r}; it holds {', '.join(map(repr, known))}")
    return mine


def load_records(run: str | Path) -> pd.DataFrame:
    """The record table: compacted Parquet and live JSON lines together, each (cell, step, split) once.

    A metric that stands beside the target metric is a column of its own: ``metric_<name>``, NaN where it is not.
    """
    run = Path(run)
    # Live files first: what is compacted meanwhile is then read twice, and not missed.
    live = (rows_to_table(read_live(path)) for path in sorted((run / "trajectories").glob("*/records.jsonl")))
    done = (read_table(path, RECORDS, NAMES) for path in sorted((run / "records").glob("*.parquet")))
    tables = [_encoded(_beside_as_columns(table)) for table in chain(live, done) if len(table)]
    if not tables:
        return _to_pandas(RECORDS.empty_table().drop_columns("metrics"))
    # What stands beside in some files only is null, and so NaN, in the rows of the others.
    table = pa.concat_tables(tables, promote_options="default").unify_dictionaries()
    del tables
    order, columns = _order(table), {}
    for name in sorted(table.column_names, key=lambda name: name if name.startswith(BESIDE) else ""):
        column = table[name].take(order)
        table = table.drop_columns(name)  # one column after the other: a run is not in memory twice
        columns[name] = column.cast(pa.large_string()) if name in NAMES else column
    return _to_pandas(pa.table(columns))


def rows_of_cells(records: pd.DataFrame) -> dict[str, slice | NDArray[np.int64]]:
    """cell_id -> its rows, by step: a slice each where the table is sorted by (cell_id, step), as `load_records` sorts.

    With it one pass over ten million records needs no groups of strings.
    """
    ids, steps = records["cell_id"], records["step"].to_numpy()
    first = (ids != ids.shift()).to_numpy(dtype=bool)
    starts = np.flatnonzero(first)
    names = ids.iloc[starts]
    if names.is_unique and (first[1:] | (np.diff(steps) >= 0)).all():
        edges = pairwise([*starts.tolist(), len(records)])
        return {str(name): slice(*ends) for name, ends in zip(names, edges, strict=True)}
    found: dict[str, slice | NDArray[np.int64]] = {}
    for name, places in records.groupby("cell_id", sort=True).indices.items():
        rows = np.asarray(places, dtype=np.int64)
        found[str(name)] = rows[np.argsort(steps[rows], kind="stable")]
    return found


def load_plan(run: str | Path) -> dict[str, Any]:
    """plan.json: study, question, cells, trajectories, targets with their provenance, versions.

    ``studies`` has study, question, asks, fuse, seeds, cells and targets of each study, in the order they came; at the
    head stand those of the first, but every cell and every workload's target.
    """
    path = Path(run) / "plan.json"
    if not path.is_file():
        raise BadRun(f"{run}: no plan.json")
    plan: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    if "studies" not in plan:  # of an earlier version: one study a folder
        held: dict[str, Any] = {"study": "study", "question": None, "fuse": True, "seeds": [], "targets": {}}
        plan["studies"] = [{key: plan.get(key, without) for key, without in held.items()}]
    return plan


def load_trials(run: str | Path) -> pd.DataFrame:
    """trials.parquet: every attempt at every trajectory; empty before the first one ended."""
    path = Path(run) / "trials.parquet"
    if not path.is_file():
        return _to_pandas(TRIALS.empty_table())
    trials = _to_pandas(read_table(path, TRIALS))
    return trials.assign(name=trials["name"].fillna(trials["trajectory_id"]))


def read_live(path: Path) -> Iterator[dict[str, Any]]:
    """The rows of a live record file; a last line torn by a kill is left out, a broken one before it is an error."""
    try:
        lines = path.read_bytes().split(b"\n")
    except FileNotFoundError:  # compacted between listing and reading: its rows are in records/
        return
    for number, line in enumerate(lines[:-1], start=1):  # what follows the last newline is torn or empty
        try:
            row = json.loads(line)
        except ValueError as error:
            raise BadRun(f"{path}:{number}: broken record ({error})") from error
        yield row


def _beside_as_columns(table: pa.Table) -> pa.Table:
    maps = table["metrics"].combine_chunks()
    table = table.drop_columns("metrics")
    entries = maps.offsets.to_numpy()
    rows = np.repeat(np.arange(len(maps)), np.diff(entries))
    inside = slice(int(entries[0]), int(entries[-1]))
    keys, values = maps.keys.dictionary_encode(), maps.items.to_numpy(zero_copy_only=False)[inside]
    code = keys.indices.to_numpy()[inside]
    for number, name in enumerate(keys.dictionary.to_pylist()):
        column = np.full(len(table), np.nan)
        # Backwards: of one name twice in a row, the first stays.
        column[rows[code == number][::-1]] = values[code == number][::-1]
        table = table.append_column(BESIDE + name, pa.array(column))
    return table


def _encoded(table: pa.Table) -> pa.Table:
    """Names as numbers of a dictionary: there are few, and a row each."""
    for place, name in enumerate(table.column_names):
        if name in NAMES and not pa.types.is_dictionary(table[name].type):
            table = table.set_column(place, name, table[name].dictionary_encode())
    return table


def _order(table: pa.Table) -> NDArray[np.int64]:
    """The rows by (cell_id, split, step), of equal ones the first. Args: table: of `_encoded` columns, not empty."""
    key = np.zeros(len(table), dtype=np.int64)
    for name in ("cell_id", "split"):
        words = table[name].chunk(0).dictionary.to_pylist()
        place = np.empty(len(words), dtype=np.int64)
        place[sorted(range(len(words)), key=words.__getitem__)] = np.arange(len(words))
        key = key * len(words) + place[np.concatenate([chunk.indices for chunk in table[name].chunks])]
    step = table["step"].to_numpy()
    key = key * (int(step.max()) + 1) + step
    order = np.argsort(key, kind="stable")
    first = np.append(True, np.diff(key[order]) > 0)
    return np.asarray(order[first])


def rows_to_table(rows: Iterator[dict[str, Any]] | list[dict[str, Any]]) -> pa.Table:
    """Rows (dicts with the columns of RECORDS, null for NaN) -> a table of the schema."""
    rows = list(rows)
    columns = {
        field.name: pa.array([_value(row, field) for row in rows], type=field.type) for field in RECORDS
    }
    return pa.table(columns, schema=RECORDS)


def _value(row: dict[str, Any], field: pa.Field) -> Any:
    if pa.types.is_map(field.type):
        beside = row.get(field.name, {})  # a live file of an earlier version has none
        return [(name, np.nan if number is None else number) for name, number in beside.items()]
    value = row[field.name]
    return np.nan if value is None and pa.types.is_floating(field.type) else value


def read_table(path: Path, schema: pa.Schema, encoded: Sequence[str] = ()) -> pa.Table:
    """A table of a run folder, checked; columns of later versions are filled in. Raises: BadRun.

    encoded: string columns to read as numbers of a dictionary.
    """
    with pq.ParquetFile(path, read_dictionary=encoded) as file:
        table = file.read(use_threads=False)
    for field in schema:
        if field.name not in table.column_names and field.name in LATER:
            then = LATER[field.name]
            values = then(table) if callable(then) else [then] * len(table)
            table = table.append_column(field, pa.array(values, type=field.type))
    _check(table, schema, path, encoded)
    return table.select([*schema.names, *(n for n in table.column_names if n not in schema.names)])


def _check(table: pa.Table, schema: pa.Schema, path: Path, encoded: Sequence[str]) -> None:
    for field in schema:
        if field.name not in table.column_names:
            raise BadRun(f"{path}: column {field.name!r} is missing")
        found = table.schema.field(field.name).type
        if field.name in encoded and pa.types.is_dictionary(found):
            found = found.value_type
        if found != field.type:
            raise BadRun(f"{path}: column {field.name!r} is {found}, not {field.type}")


_NULLABLE = {pa.int64(): pd.Int64Dtype()}


def _to_pandas(table: pa.Table) -> pd.DataFrame:
    frame: pd.DataFrame = table.to_pandas(split_blocks=True)
    for field in table.schema:
        # Int64 keeps k = 5 an integer beside an EMA's null; plain int64 where nothing is null.
        if field.type == pa.int64() and table[field.name].null_count:
            frame[field.name] = table[field.name].to_pandas(types_mapper=_NULLABLE.get)
    return frame
