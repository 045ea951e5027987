"""A large study is analysed in bounded time and memory, and both grow with its size, no faster."""

from dataclasses import replace
from pathlib import Path
from time import process_time

import pandas as pd

from analysis import load
from analysis.report import Report
from analysis.run_folder.study import read
from benchmarks import analysis as benchmark
from benchmarks.synthetic_run import Size, write

SMALL = Size(workloads=2, seeds=2, averages=8, evaluations=40)


def test_the_synthetic_study_is_valid_seeded_and_says_something(tmp_path: Path) -> None:
    frames = [load(write(tmp_path / name, SMALL, seed)) for name, seed in [("a", 0), ("b", 0), ("c", 1)]]
    assert len(frames[0]) == SMALL.num_records == 2 * 2 * 9 * 40
    pd.testing.assert_frame_equal(frames[0], frames[1], check_exact=True)
    assert not frames[0]["metric"].equals(frames[2]["metric"])
    study = read(tmp_path / "a")
    assert (study.cells["state"] == "finished").all()
    frames = Report(study).frames
    assert frames["steps_to_target"]["status"].isin(["met", "missed"]).all()
    assert (frames["steps_to_target"]["status"] == "met").mean() > 0.5
    assert frames["ratios"]["mean"].between(0.5, 1.5).all()
    assert frames["pooled"]["value"].notna().any()


def test_300_000_records_in_seconds() -> None:
    # 1 s of CPU and a quarter of a GiB on a quiet machine; a busy one gets room.
    found = benchmark.measure(benchmark.SHORT)
    assert found["records"] == benchmark.SHORT.num_records == 300_000
    assert found["CPU seconds"] < 6
    assert found["peak GiB"] < 1


def test_four_times_the_cells_take_little_more_than_four_times_as_long(tmp_path: Path) -> None:
    few = Size(workloads=4, seeds=3, averages=9, evaluations=20)
    seconds = []
    for name, size in [("few", few), ("warm", few), ("many", replace(few, trainings=4))]:
        run = write(tmp_path / name, size)
        start = process_time()
        _ = Report(read(run)).frames
        seconds.append(process_time() - start)
    assert seconds[2] < 6 * seconds[1]
