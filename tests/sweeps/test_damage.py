"""A damaged file is found, whatever was damaged in it: it is refused, or read as exactly what was written."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from record_rows import record

from analysis.run_folder.live_records import LiveRows, as_line
from analysis.run_folder.records import (
    RECORDS,
    BadRun,
    check_records,
    load_records,
    read_live,
    read_table,
    rows_to_table,
)
from analysis.run_folder.run_files import MARK, load_plan
from sweeps import durable, run_folder
from sweeps.recorder import Recorder


def row(step: int, cell: str = "c", **changes: Any) -> dict[str, Any]:
    return record(step, cell, **{"metrics": {"a": 0.5}, **changes})


def live(run: Path, *steps: int) -> Path:
    path = run / "trajectories" / "t" / "records.jsonl"
    durable.make_folder(path.parent)
    with Recorder(path) as recorder:
        recorder.append(row(step) for step in steps)
    return path


def finished(run: Path, *steps: int) -> Path:
    """A finished trajectory, compacted; its Parquet file."""
    path = live(run, *steps)
    with Recorder(path) as recorder:
        recorder.finish()
    run_folder.compact(run, "t")
    return run / "records" / "t.parquet"


def test_a_flipped_bit_of_a_live_file_is_found_or_changes_nothing(tmp_path: Path) -> None:
    path = live(tmp_path, 1, 2, 3)
    data, rows = path.read_bytes(), list(read_live(path))
    assert [one["step"] for one in rows] == [1, 2, 3]
    told = set()
    for at in range(len(data)):
        for bit in range(8):
            changed = bytearray(data)
            changed[at] ^= 1 << bit
            try:
                assert LiveRows(path).feed(bytes(changed)) == rows, (at, bit)
            except BadRun as error:
                told.add(str(error).partition(": ")[0])
    assert told == {f"{path}:{number}" for number in (1, 2, 3, 4)}


@pytest.mark.parametrize(
    "change",
    [
        lambda lines: [lines[0], *lines[2:]],
        lambda lines: [lines[0], lines[0], *lines[1:]],
        lambda lines: [lines[1], lines[0], lines[2]],
        lambda lines: [*lines[1:]],
        lambda lines: [lines[0], json.dumps(row(2)).encode() + b"\n", *lines[1:]],
    ],
    ids=["lost", "twice", "moved", "first lost", "written by hand"],
)
def test_a_line_that_is_lost_repeated_moved_or_foreign_is_found(tmp_path: Path, change: Any) -> None:
    path = live(tmp_path, 1, 2, 3)
    path.write_bytes(b"".join(change(path.read_bytes().splitlines(keepends=True))))
    for read in (lambda: list(read_live(path)), lambda: load_records(tmp_path), lambda: Recorder(path)):
        with pytest.raises(BadRun, match=r"records\.jsonl:[1-3]: broken record \(.*remove .*trajectories/t"):
            read()


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"loss": "1"}, "'loss' is '1', not double"),
        ({"step": 1.5}, "'step' is 1.5, not int64"),
        ({"step": True}, "'step' is True, not int64"),
        ({"step": -1}, "'step' is negative"),
        ({"step": 1 << 80}, "not int64"),
        ({"diverged": 0}, "'diverged' is 0, not bool"),
        ({"metrics": {"a": "x"}}, "'metrics' is not a number by name"),
        ({"colour": 1}, "'colour' is no column"),
    ],
)
def test_a_row_that_breaks_the_schema_is_named(tmp_path: Path, changes: dict[str, Any], said: str) -> None:
    path = tmp_path / "records.jsonl"
    path.write_bytes(as_line({**row(1), **changes}, 0)[0])
    with pytest.raises(BadRun, match=said):
        list(read_live(path))


def test_a_flipped_bit_of_a_parquet_file_is_found_or_changes_nothing(tmp_path: Path) -> None:
    path = tmp_path / "t.parquet"
    table = rows_to_table([row(step) for step in range(1, 40)])
    durable.write_table(path, table)
    columns = [field.name for field in RECORDS if field.name != "standard_error"]  # NaN is not equal to itself
    table = table.select(columns)
    assert (
        pq.read_table(io.BytesIO(path.read_bytes())).select(columns).equals(table)
    )  # other readers look past the checksum
    data, rng = path.read_bytes(), np.random.default_rng(0)
    mark = data.index(MARK)
    places = [*rng.integers(len(data), size=300), *range(mark - 3, mark + 80), *range(len(data) - 8, len(data))]
    same, told = set(), set()
    for at in map(int, places):
        changed = bytearray(data)
        changed[at] ^= 1 << int(rng.integers(8))
        path.write_bytes(changed)
        try:
            assert read_table(path, RECORDS).select(columns).equals(table), at
            same.add(at)
        except BadRun as error:
            told.add(str(error).partition(": ")[0])
    # Only of the words around the checksum, which still matches what it stands for.
    assert same <= {*range(mark, mark + len(MARK)), mark + len(MARK) + 64}
    assert told == {str(path)}
    for length in range(0, len(data), 97):
        path.write_bytes(data[:length])
        with pytest.raises(BadRun, match=r"t\.parquet"):
            read_table(path, RECORDS)


def test_page_checksums_guard_what_another_program_wrote_with_them(tmp_path: Path) -> None:
    path = tmp_path / "t.parquet"
    table = pa.table({"x": pa.array(np.random.default_rng(0).normal(size=500))})
    pq.write_table(table, path, write_page_checksum=True, compression="none", use_dictionary=False)
    data = bytearray(path.read_bytes())
    data[2000] ^= 4
    path.write_bytes(data)
    with pytest.raises(BadRun, match="not a whole Parquet file"):
        read_table(path, table.schema)


def test_a_finished_trajectory_is_held_against_its_marker(tmp_path: Path) -> None:
    path = finished(tmp_path, 1, 2, 3)
    whole = path.read_bytes()
    check_records(tmp_path)
    table = pq.read_table(path)
    other = table.set_column(4, "loss", pa.array([0.1, 0.2, 0.4]))
    for changed, said in (
        (None, "missing, though"),
        (table.slice(0, 2), "2 records where 3 were written"),
        (table.take([0, 1, 1]), "ends at step 2, not at 3"),
        (other, "checksum is another"),
    ):
        path.unlink()
        if changed is not None:
            durable.write_table(path, changed)
        for read in (check_records, load_records):
            with pytest.raises(BadRun, match=rf"{path}.*{said}.*remove {tmp_path}/trajectories/t and `wa run`"):
                read(tmp_path)
        path.write_bytes(whole)
    assert load_records(tmp_path)["step"].tolist() == [1, 2, 3]


def test_live_records_that_are_short_are_not_compacted(tmp_path: Path) -> None:
    path = live(tmp_path, 1, 2, 3)
    with Recorder(path) as recorder:
        recorder.finish()
    path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:2]))
    for read in (load_records, check_records, lambda run: run_folder.compact(run, "t")):
        with pytest.raises(BadRun, match="2 records where 3 were written"):
            read(tmp_path)
    assert path.exists()
    assert not (tmp_path / "records").exists()


def test_a_record_twice_in_one_file_is_found(tmp_path: Path) -> None:
    (tmp_path / "records").mkdir()
    durable.write_table(tmp_path / "records" / "a.parquet", rows_to_table([row(1), row(2)]))
    durable.write_table(tmp_path / "records" / "b.parquet", rows_to_table([row(1), row(2)]))
    assert load_records(tmp_path)["step"].tolist() == [1, 2]
    durable.write_table(tmp_path / "records" / "b.parquet", rows_to_table([row(3), row(2), row(3)]))
    with pytest.raises(BadRun, match=r"b\.parquet: the same record stands in it twice"):
        load_records(tmp_path)


def test_a_line_whole_but_for_its_newline_counts_and_is_mended(tmp_path: Path) -> None:
    path = live(tmp_path, 1, 2)
    whole = path.read_bytes()
    for end in (b"", b"\0\0"):  # as a file system may leave it
        path.write_bytes(whole[:-1] + end)
        assert [one["step"] for one in read_live(path)] == [1, 2]
        Recorder(path).close()
        assert path.read_bytes() == whole
    path.write_bytes(whole[:-1] + b"x")
    with pytest.raises(BadRun, match="damage follows"):
        list(read_live(path))


@pytest.mark.parametrize("name", ["../../..", "a/b", "", ".", "..", "a\0b", "/tmp/x", "a\n", "é"])
def test_a_name_from_a_file_leads_nowhere_else(tmp_path: Path, name: str) -> None:
    study = {"study": "s", "question": None, "fuse": True, "seeds": [], "targets": {}}
    trial = {"name": name, "trajectory_id": "t", "cells": [], "expected_seconds": 0.0}
    plan = {**study, "format": 1, "versions": {}, "studies": [study], "trajectories": [trial]}
    (tmp_path / "plan.json").write_text(json.dumps(plan))
    with pytest.raises(BadRun, match=r"plan\.json: trajectories\.0\.name"):
        load_plan(tmp_path)
    (tmp_path / "plan.json").write_text(json.dumps({**plan, "studies": [{**study, "study": name}]}))
    with pytest.raises(BadRun, match=r"plan\.json: studies\.0\.study"):
        load_plan(tmp_path)


@pytest.mark.parametrize("told", [{"format": 2}, {"format": 0}, {"format": "1"}, {}])
def test_another_format_is_refused(tmp_path: Path, told: dict[str, object]) -> None:
    (tmp_path / "plan.json").write_text(json.dumps({"study": "s", **told}))
    with pytest.raises(BadRun, match=r"plan\.json: the folder has format .*; this reads 1; use the wa-sweeps that"):
        load_plan(tmp_path)


def test_foreign_files_beside_the_records_are_passed_over(tmp_path: Path) -> None:
    finished(tmp_path, 1, 2)
    before = load_records(tmp_path)
    for place in ("records/._t.parquet", "records/.DS_Store", "trajectories/.DS_Store", "records/notes.txt"):
        (tmp_path / place).write_bytes(b"\0\5\x16\7")
    (tmp_path / "trajectories" / "._t").mkdir()
    (tmp_path / "trajectories" / "._t" / "records.jsonl").write_bytes(b"\0\n")
    pd.testing.assert_frame_equal(load_records(tmp_path), before)
    (tmp_path / "records" / "copy of t.parquet").write_bytes(b"PAR1")
    with pytest.raises(BadRun, match=r"copy of t\.parquet: not a whole Parquet file"):
        load_records(tmp_path)
