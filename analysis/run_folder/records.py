"""The reader of a run folder, and its checks.

A run folder holds ``cells.parquet`` (one row a cell, every axis a column), ``records/*.parquet`` (one row an
evaluation of a cell) and, while trajectories run, ``trajectories/<name>/records.jsonl`` (the same rows, live). What
is finished is held against its done marker, and every row against the cells and the plan.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
from numpy.typing import NDArray

from analysis.run_folder import run_files
from analysis.run_folder.live_records import Finished, LiveRows, again, finished, read_live
from analysis.run_folder.run_files import BadRun, broken, load_plan, load_plan_if_any, read_bytes, read_parquet
from analysis.run_folder.schema import ADDED, BESIDE, CELLS, KEY, NAMES, RECORDS, TRIALS

__all__ = ["BESIDE", "CELLS", "KEY", "NAMES", "RECORDS", "TRIALS", "BadRun", "check_records", "has_study", "load"]
__all__ += ["load_cells", "load_plan", "load_records", "load_trials", "read_live", "read_table", "rows_of_cells"]
__all__ += ["rows_to_table"]


def load(run: str | Path, study: str | None = None) -> pd.DataFrame:
    """Records joined with their cells, of finished and running trajectories alike, by (cell_id, split, step).

    Record columns first, then the cell's axes. The target metric's name is ``metric_name``, its value ``metric``; what
    stands beside it has columns of its own, such as ``metric_accuracy``. study: of a folder that holds several, the
    cells of this one alone. Raises: BadRun where `run` has no cells.parquet or no such study, or breaks the schema.
    """
    cells = load_cells(run).drop(columns="trajectory_id")
    if study is not None:
        cells = cells[has_study(cells, study, run)]
    return load_records(run).merge(cells, on="cell_id", how="inner", validate="many_to_one")


def load_cells(run: str | Path) -> pd.DataFrame:
    """The cell table, one row a cell, nullable integers where a column does not apply to every scheme.

    The file's ``metric``, a name, is called ``metric_name`` here: beside records, ``metric`` is a value.
    """
    load_plan_if_any(Path(run))  # which may be of another format
    cells = _to_pandas(_cells(Path(run))).rename(columns={"metric": "metric_name"})
    return cells.assign(studies=cells["studies"].map(tuple))  # hashable, unlike lists


def _cells(run: Path) -> pa.Table:
    path = run / "cells.parquet"
    try:
        table = read_table(path, CELLS)
    except FileNotFoundError:
        raise BadRun(f"{run}: not a run folder (no cells.parquet); `wa run FILE --out {run}` makes one") from None
    if table["cell_id"].null_count or len(table["cell_id"].unique()) != len(table):
        raise broken(path, "a cell has no id, or that of another")
    return table


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
    read = [(path, table) for path, table in _tables(Path(run)) if len(table)]
    if not read:
        return no_records()
    places, tables = zip(*read, strict=True)
    # What stands beside in some files only is null, and so NaN, in the rows of the others.
    table = pa.concat_tables(tables, promote_options="default").unify_dictionaries()
    ends = np.cumsum([len(one) for one in tables])
    del read, tables
    order, file, again_in = _order(table, ends)
    if again_in is not None:
        raise broken(places[again_in], "the same record stands in it twice")
    columns = {}
    for name in sorted(table.column_names, key=lambda name: name if name.startswith(BESIDE) else ""):
        column = table[name].take(order)
        table = table.drop_columns(name)  # one column after the other: a run is not in memory twice
        columns[name] = column.cast(pa.large_string()) if name in NAMES else column
    frame = _to_pandas(pa.table(columns))
    if file is None:
        return frame
    # A trajectory's live file, which is compacted meanwhile, and its Parquet file are one trial's.
    trials = [path.parent.name if path.suffix == ".jsonl" else path.stem for path in places]
    return _clocks_joined(frame, np.unique(trials, return_inverse=True)[1][file])


def _clocks_joined(records: pd.DataFrame, trial: NDArray[np.int64]) -> pd.DataFrame:
    """The clocks of cells that several trials recorded, each as one series by step.

    Evaluations of all trials are added up; training and averaging, which a replay repeats, stand where the trial does
    that is furthest. trial: of each row.
    """
    curve = records.groupby(["cell_id", "split"], sort=False).ngroup()
    several = pd.Series(trial).groupby(curve).transform("nunique") > 1
    rows, curve = records[several], curve[several]
    own = rows["eval_seconds"]
    spent = own.groupby([curve, trial[several]]).diff().fillna(own)
    joined = {"eval_seconds": spent.groupby(curve).cumsum()}
    joined |= {name: rows[name].groupby(curve).cummax() for name in ("train_seconds", "average_seconds")}
    return records.assign(
        **{name: series.reindex(records.index).fillna(records[name]) for name, series in joined.items()}
    )


def no_records() -> pd.DataFrame:
    """An empty table of records."""
    return _to_pandas(RECORDS.empty_table().drop_columns("metrics"))


def check_records(run: Path) -> None:
    """Read every record and hold it against the plan and the done markers. Raises: BadRun, for what is lost too."""
    for _ in _tables(run):
        pass


def _tables(run: Path) -> Iterator[tuple[Path, pa.Table]]:
    """Every file of records with its rows, checked, what stands beside as columns. Raises: BadRun."""
    folders = sorted(path for path in (run / "trajectories").glob("[!.]*") if path.is_dir())
    # Markers, then live files, then Parquet: what is compacted meanwhile is read twice, and not missed.
    done = {folder.name: marker for folder in folders if (marker := finished(folder)) is not None}
    plan = load_plan_if_any(run) or {"trajectories": []}
    promised = {name: Finished(**told) for name, told in plan.get("records", {}).items()} | done  # imported, trained
    grid = _Grid.of(run, plan)
    seen = set()
    for folder in folders:
        live = LiveRows(folder / "records.jsonl")
        try:
            live.feed(read_bytes(live.path, again(folder)))
        except FileNotFoundError:  # not begun, or compacted
            continue
        seen.add(folder.name)
        table = rows_to_table(live.rows)
        if folder.name in done:
            done[folder.name].check(table, live.path, again(folder), live.crc)
        yield live.path, grid.checked(table, live.path)
    for path in sorted((run / "records").glob("[!.]*.parquet")):
        folder = run / "trajectories" / path.stem
        not_ours = run_files.IMPORT if path.stem in promised else run_files.RESTORE
        remedy = again(folder) if path.stem in done else not_ours
        table, digest = read_parquet(path, NAMES, remedy)
        table = _conformed(table, RECORDS, path, NAMES)
        seen.add(path.stem)
        if path.stem in promised:
            promised[path.stem].check(table, path, remedy, digest)
        yield path, grid.checked(table, path, is_trained=path.stem in done)
    for name in promised:
        if name not in seen:
            remedy = again(run / "trajectories" / name) if name in done else run_files.IMPORT
            raise broken(run / "records" / f"{name}.parquet", "missing, though what it holds is done", remedy)


@dataclass(frozen=True)
class _Grid:
    """What the rows of a folder may be of: its cells, and the steps at which each is evaluated."""

    cells: frozenset[str]  # empty where the folder does not say
    steps: Mapping[str, tuple[int, int]]  # cell -> (interval, the last step)

    @classmethod
    def of(cls, run: Path, plan: Mapping[str, Any]) -> _Grid:
        if not (run / "cells.parquet").exists():
            return cls(frozenset(), {})
        table = _cells(run)
        columns = [table[name].to_pylist() for name in ("cell_id", "evaluate_every_steps", "length_steps")]
        steps = {name: (every, end) for name, every, end in zip(*columns, strict=True)}
        return cls(frozenset(steps).union(*(one["cells"] for one in plan["trajectories"])), steps)

    def checked(self, table: pa.Table, path: Path, is_trained: bool = True) -> pa.Table:
        """The table as `load_records` puts it together. is_trained: by us, and so evaluated on the grid alone."""
        for name in [*KEY, "diverged"]:
            if table[name].null_count:
                raise broken(path, f"column {name!r} has empty values")
        table = _encoded(_beside_as_columns(table)).unify_dictionaries()
        if not len(table):
            return table
        step = table["step"].to_numpy()
        if step.min() < 0:
            raise broken(path, f"a record of step {step.min()}")
        names = table["cell_id"].chunk(0).dictionary.to_pylist()
        if self.cells and (unknown := [name for name in names if name not in self.cells]):
            raise broken(path, f"records of a cell {unknown[0]!r}, which is none of the folder's")
        if is_trained and self.steps:
            of = np.array([self.steps.get(name, (1, _NO_END)) for name in names], dtype=np.int64)
            every, end = of[np.concatenate([chunk.indices for chunk in table["cell_id"].chunks])].T
            if (wrong := (step > end) | ((step % every != 0) & (step != end))).any():
                raise broken(path, f"a record of step {step[wrong][0]:,}, at which nothing is evaluated")
        return table


_NO_END = np.iinfo(np.int64).max


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


def load_trials(run: str | Path) -> pd.DataFrame:
    """trials.parquet: every attempt at every trajectory; empty before the first one ended."""
    try:
        return _to_pandas(read_table(Path(run) / "trials.parquet", TRIALS))
    except FileNotFoundError:
        return _to_pandas(TRIALS.empty_table())


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


def _order(table: pa.Table, ends: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64] | None, int | None]:
    """The rows by (cell_id, split, step), of equal ones the first; and the first file that has one twice.

    Between them the file of each, where rows of one cell and split are in several.

    table: of `_encoded` columns, not empty. ends: where each file's rows end in it.
    """
    key = np.zeros(len(table), dtype=np.int64)
    for name in ("cell_id", "split"):
        words = table[name].chunk(0).dictionary.to_pylist()
        place = np.empty(len(words), dtype=np.int64)
        place[sorted(range(len(words)), key=words.__getitem__)] = np.arange(len(words))
        key = key * len(words) + place[np.concatenate([chunk.indices for chunk in table[name].chunks])]
    step, most = table["step"].to_numpy(), int(table["step"].to_numpy().max()) + 1
    key = key * most + step
    order = np.argsort(key, kind="stable")
    key = key[order]
    first = np.append(True, np.diff(key) > 0)
    file = np.searchsorted(ends, order, side="right")  # of equal rows, those of one file are neighbours
    again = (np.diff(file) == 0) & ~first[1:]
    twice = int(file[1:][again].min()) if again.any() else None
    order, file, curve = order[first], file[first], key[first] // most
    mixed = ((np.diff(file) != 0) & (np.diff(curve) == 0)).any()
    return order, file if mixed else None, twice


def rows_to_table(rows: Iterable[dict[str, Any]]) -> pa.Table:
    """Rows (dicts with the columns of RECORDS, null for NaN) -> a table of the schema."""
    rows = list(rows)
    columns = {field.name: pa.array([_value(row, field) for row in rows], type=field.type) for field in RECORDS}
    return pa.table(columns, schema=RECORDS)


def _value(row: dict[str, Any], field: pa.Field) -> Any:
    if pa.types.is_map(field.type):
        return [(name, np.nan if number is None else number) for name, number in row[field.name].items()]
    value = row.get(field.name) if field.name in ADDED else row[field.name]
    return np.nan if value is None and pa.types.is_floating(field.type) else value


def read_table(path: Path, schema: pa.Schema) -> pa.Table:
    """A table of a run folder, checked. Raises: FileNotFoundError, BadRun."""
    return _conformed(read_parquet(path)[0], schema, path)


def _conformed(table: pa.Table, schema: pa.Schema, path: Path, encoded: Sequence[str] = ()) -> pa.Table:
    """The table in the schema's order, checked. encoded: string columns that are numbers of a dictionary."""
    if len(set(table.column_names)) != len(table.column_names):
        raise broken(path, "two of its columns have the same name")
    for field in schema:
        if field.name in ADDED and field.name not in table.column_names:
            table = table.append_column(field, pa.nulls(len(table), field.type))
        if field.name not in table.column_names:
            raise broken(path, f"column {field.name!r} is missing")
        found = table.schema.field(field.name).type
        if field.name in encoded and pa.types.is_dictionary(found):
            found = found.value_type
        if found != field.type:
            raise broken(path, f"column {field.name!r} is {found}, not {field.type}")
    return table.select([*schema.names, *(n for n in table.column_names if n not in schema.names)])


def _to_pandas(table: pa.Table) -> pd.DataFrame:
    frame: pd.DataFrame = table.to_pandas(split_blocks=True)
    for field in table.schema:
        # Int64 keeps k = 5 an integer beside an EMA's null; plain int64 where nothing is null.
        if field.type == pa.int64() and table[field.name].null_count:
            frame[field.name] = table[field.name].to_pandas(types_mapper={field.type: pd.Int64Dtype()}.get)
    return frame
