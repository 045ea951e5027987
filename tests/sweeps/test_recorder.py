"""Records are on disk when append returns; a torn line, a second writer or a repeat does no harm."""

import json
import math
import multiprocessing
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from record_rows import record

from analysis.run_folder.records import RECORDS, BadRun, load_records, read_live, rows_to_table
from sweeps.durable import write_atomic
from sweeps.recorder import FolderBusy, Recorder


def row(cell: str = "c", step: int = 1, **changes: Any) -> dict[str, Any]:
    return record(step, cell, **changes)


def live(tmp_path: Path) -> Path:
    folder = tmp_path / "trajectories" / "t"
    folder.mkdir(parents=True, exist_ok=True)
    return folder / "records.jsonl"


def test_what_is_appended_is_read_back_to_the_bit(tmp_path: Path) -> None:
    path = live(tmp_path)
    rng = np.random.default_rng(0)
    rows = [row(step=i, loss=float(rng.normal()), metric=float(rng.normal() * 1e-30)) for i in range(1, 50)]
    with Recorder(path) as recorder:
        recorder.append(rows[:20])
        recorder.append(rows[20:])
    frame = load_records(tmp_path)
    assert frame["loss"].tolist() == [r["loss"] for r in rows]
    assert frame["metric"].tolist() == [r["metric"] for r in rows]
    assert frame.columns.tolist() == [name for name in RECORDS.names if name != "metrics"]


def test_metrics_beside_are_columns_of_their_own_live_and_compacted(tmp_path: Path) -> None:
    rows = [
        row(step=1, metrics={"accuracy": 0.5, "bleu": float("nan")}),
        row(step=2, metrics={"accuracy": 1 / 3}),
        row(step=3),
    ]
    path = live(tmp_path)
    with Recorder(path) as recorder:
        recorder.append(rows)
    from_live = load_records(tmp_path)
    assert from_live["metric_accuracy"].tolist()[:2] == [0.5, 1 / 3]
    assert np.isnan(from_live["metric_accuracy"][2])
    assert from_live["metric_bleu"].isna().all()
    (tmp_path / "records").mkdir()
    pq.write_table(rows_to_table(read_live(path)), tmp_path / "records" / "t.parquet")
    path.unlink()
    pd.testing.assert_frame_equal(load_records(tmp_path), from_live, check_exact=True)


def test_a_repeat_is_not_written(tmp_path: Path) -> None:
    path = live(tmp_path)
    with Recorder(path) as recorder:
        recorder.append([row()])
    with Recorder(path) as recorder:
        recorder.append([row(loss=9.0), row(cell="d")])
        assert recorder.written == {("c", 1, "validation"), ("d", 1, "validation")}
    assert [(r["cell_id"], r["loss"]) for r in read_live(path)] == [("c", 1.1), ("d", 1.1)]


@given(cut=st.integers(1, 200))
def test_a_torn_last_line_is_dropped_then_cut(tmp_path_factory: pytest.TempPathFactory, cut: int) -> None:
    tmp_path = tmp_path_factory.mktemp("torn")
    path = live(tmp_path)
    with Recorder(path) as recorder:
        recorder.append([row(step=1)])
        whole = path.stat().st_size
        recorder.append([row(step=2)])
    path.write_bytes(path.read_bytes()[: whole + min(cut, path.stat().st_size - whole - 1)])
    assert load_records(tmp_path)["step"].tolist() == [1]
    with Recorder(path) as recorder:
        recorder.append([row(step=2)])
    assert [r["step"] for r in read_live(path)] == [1, 2]


def test_a_broken_line_in_the_middle_is_an_error(tmp_path: Path) -> None:
    path = live(tmp_path)
    path.write_text("{oops\n" + json.dumps(row()) + "\n")
    with pytest.raises(BadRun, match=r"records\.jsonl:1"):
        list(read_live(path))


def test_nan_is_null_on_disk_and_nan_again(tmp_path: Path) -> None:
    path = live(tmp_path)
    with Recorder(path) as recorder:
        recorder.append([row(loss=math.nan, metric=math.inf, diverged=True)])
    assert '"loss":null' in path.read_text()
    frame = load_records(tmp_path)
    assert math.isnan(frame["loss"][0])
    assert frame["diverged"][0]


def _try_to_open(path: Path, answer: Any) -> None:
    try:
        Recorder(path, lock_seconds=0.1).close()
        answer.put("opened")
    except FolderBusy:
        answer.put("busy")


def test_a_second_process_waits_for_the_lock(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    answer = context.Queue()
    with Recorder(live(tmp_path)):
        process = context.Process(target=_try_to_open, args=(live(tmp_path), answer))
        process.start()
        assert answer.get(timeout=60) == "busy"
        process.join()
    _try_to_open(live(tmp_path), answer)
    assert answer.get(timeout=60) == "opened"
    answer.close()
    answer.join_thread()


def test_records_in_both_places_count_once(tmp_path: Path) -> None:
    import pyarrow.parquet as pq

    with Recorder(live(tmp_path)) as recorder:
        recorder.append([row(step=1), row(step=2)])
    (tmp_path / "records").mkdir()
    pq.write_table(rows_to_table([row(step=1), row(step=2)]), tmp_path / "records" / "t.parquet")
    assert load_records(tmp_path)["step"].tolist() == [1, 2]


def test_write_atomic_leaves_no_other_file(tmp_path: Path) -> None:
    write_atomic(tmp_path / "a", b"one")
    write_atomic(tmp_path / "a", b"two")
    assert [p.name for p in tmp_path.iterdir()] == ["a"]
    assert (tmp_path / "a").read_bytes() == b"two"
