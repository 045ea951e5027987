"""Reading records: order, doubles, what stands beside, and where each cell's rows lie."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from record_rows import record

from analysis.run_folder.records import NAMES, RECORDS, BadRun, load_records, read_table, rows_of_cells, rows_to_table
from analysis.run_folder.run_files import read_parquet


def row(cell: str, step: int, split: str = "validation", **more: Any) -> dict[str, Any]:
    return record(step, cell, **{"split": split, "loss": 1.0, "metric": 1.0, **more})


def write(folder: Path, **parts: list[dict[str, Any]]) -> Path:
    (folder / "records").mkdir()
    for name, rows in parts.items():
        pq.write_table(rows_to_table(rows), folder / "records" / f"{name}.parquet")
    return folder


def test_rows_are_ordered_by_cell_split_and_step_and_of_doubles_the_first_file_counts(tmp_path: Path) -> None:
    run = write(
        tmp_path,
        a=[row("b", 10), row("a", 10, metric=5.0), row("b", 5), row("a", 9, "test")],
        b=[row("a", 10, metric=7.0), row("a", 20)],
    )
    frame = load_records(run)
    found = list(zip(frame["cell_id"], frame["split"], frame["step"], frame["metric"], strict=True))
    assert found == [
        ("a", "test", 9, 1.0),
        ("a", "validation", 10, 5.0),
        ("a", "validation", 20, 1.0),
        ("b", "validation", 5, 1.0),
        ("b", "validation", 10, 1.0),
    ]
    assert frame["step"].dtype == np.int64
    assert frame.index.tolist() == list(range(5))


def test_what_stands_beside_is_nan_where_a_row_or_a_file_lacks_it(tmp_path: Path) -> None:
    run = write(
        tmp_path,
        a=[
            row("a", 1, metrics={"wer": 0.5, "accuracy": 0.25}),
            row("a", 2),
            row("a", 3, metrics={"wer": 0.1}),
        ],
        b=[row("b", 1)],
        c=[row("c", 1, metrics={"bleu": None})],
    )
    frame = load_records(run)
    beside = [name for name in frame.columns if name.startswith("metric_")]
    assert beside == ["metric_accuracy", "metric_bleu", "metric_wer"]
    np.testing.assert_array_equal(frame["metric_wer"], [0.5, np.nan, 0.1, np.nan, np.nan])
    np.testing.assert_array_equal(frame["metric_accuracy"], [0.25, np.nan, np.nan, np.nan, np.nan])
    assert frame["metric_bleu"].isna().all()


def test_of_a_name_twice_in_a_row_the_first_counts(tmp_path: Path) -> None:
    run = write(tmp_path)
    table = rows_to_table([row("a", 1)]).drop_columns("metrics")
    twice = pa.array([[("wer", 0.5), ("wer", 0.7)]], type=RECORDS.field("metrics").type)
    pq.write_table(table.append_column(RECORDS.field("metrics"), twice), run / "records" / "a.parquet")
    assert load_records(run)["metric_wer"].tolist() == [0.5]


def test_no_records_is_an_empty_table_of_the_same_columns(tmp_path: Path) -> None:
    assert load_records(tmp_path).empty
    assert list(load_records(write(tmp_path, empty=[]))) == [n for n in RECORDS.names if n != "metrics"]


def test_names_are_read_as_a_dictionary_and_checked_as_strings(tmp_path: Path) -> None:
    run = write(tmp_path, a=[row("a", 1), row("a", 2)])
    path = run / "records" / "a.parquet"
    table = read_table(path, RECORDS)
    assert pa.types.is_dictionary(read_parquet(path, NAMES)[0]["cell_id"].type)
    assert pa.types.is_string(table["cell_id"].type)
    wrong = table.set_column(0, "cell_id", pa.array([1, 2]))
    pq.write_table(wrong, path)
    with pytest.raises(BadRun, match=r"'cell_id' is int64, not string"):
        load_records(run)


@pytest.mark.parametrize(
    ("order", "slices"),
    [([0, 1, 2, 3, 4], True), ([3, 4, 0, 1, 2], True), ([1, 0, 2, 3, 4], False), ([0, 3, 1, 4, 2], False)],
)
def test_rows_of_cells_are_by_step_whatever_the_order_of_the_table(order: list[int], slices: bool) -> None:
    frame = pd.DataFrame({"cell_id": ["a", "a", "a", "b", "b"], "step": [1, 5, 9, 1, 2]})
    shuffled = frame.iloc[order].reset_index(drop=True)
    found = rows_of_cells(shuffled)
    steps = {cell: shuffled["step"].to_numpy()[rows].tolist() for cell, rows in found.items()}
    assert steps == {"a": [1, 5, 9], "b": [1, 2]}
    assert all(isinstance(rows, slice) for rows in found.values()) == slices


def test_rows_of_no_cells_are_none() -> None:
    assert rows_of_cells(pd.DataFrame({"cell_id": pd.Series([], dtype="str"), "step": np.empty(0)})) == {}
