"""Lines of AlgoPerf's logs that are torn, repeated, superseded or out of order: each told apart, each accounted for."""

import gzip
import math

import numpy as np
import pytest
from algoperf_logs import FALLING, HEADER, WHOLE, lines, put

from analysis.run_folder import records, study
from analysis.statistics import algoperf_score
from sweeps.importers.algoperf import import_algoperf


@pytest.fixture
def logs(tmp_path):
    return tmp_path / "logs"


@pytest.fixture
def run(tmp_path):
    return tmp_path / "runs" / "imported"


LINE = "nadamw/study_0/wmt_jax/trial_1/eval_measurements.csv"


@pytest.mark.parametrize("tail", ["2.0,5", "2.0,5\n", "15.0,250.0,500,0.01,265.0,0.1,2472,0.0"])
def test_a_torn_last_line_is_left_out(logs, run, tail):
    put(logs, lines(FALLING) + tail)  # the third is whole by its commas, and torn in its last number all the same
    done = import_algoperf(logs, run)
    assert done.num_evaluations == 4
    assert done.notes == [f"1 line torn, the first in {LINE}:6: left out."]


def test_an_evaluation_written_twice_counts_once(logs, run):
    text = lines(FALLING)
    put(logs, text + text.splitlines()[-1] + "\n")
    assert import_algoperf(logs, run).num_evaluations == 4
    assert len(study.read(run).records) == 4


def test_a_run_restored_from_a_checkpoint_goes_on_from_there(logs, run):
    # Evaluated at 100, 200, 300; restored at 150 with the clock of 150; evaluated again at 200 and 300.
    put(logs, lines([0.9, 0.8, 0.05, 0.7, 0.6], steps=[100, 200, 300, 200, 300], seconds=[50, 100, 150, 100, 150]))
    import_algoperf(logs, run)
    read = study.read(run).records
    assert read["step"].tolist() == [100, 200, 300]
    assert read["metric"].tolist() == [0.9, 0.7, 0.6]
    assert records.load_plan(run)["steps_withheld"] == {}


def test_a_restored_run_written_from_its_last_line_to_its_first(logs, run):
    header, *rows = lines(
        [0.9, 0.8, 0.05, 0.7, 0.6], steps=[100, 200, 300, 200, 300], seconds=[50, 100, 150, 100, 150]
    ).splitlines()
    put(logs, "\n".join([header, *rows[::-1]]) + "\n")
    import_algoperf(logs, run)
    assert study.read(run).records["metric"].tolist() == [0.9, 0.7, 0.6]


def test_a_step_evaluated_again_later_counts_when_first_seen(logs, run):
    put(logs, lines([0.9, 0.8, 0.7, 0.05], steps=[100, 200, 300, 300], seconds=[50, 100, 150, 160]))
    import_algoperf(logs, run)
    assert study.read(run).records["metric"].tolist() == [0.9, 0.8, 0.7]
    assert algoperf_score.score(algoperf_score.read_evaluations(run)).seconds["seconds"].tolist() == [160]


def test_nan_metrics_meet_nothing_and_a_run_that_stays_nan_has_diverged(logs, run):
    put(logs, lines([0.9, math.nan, 0.5, math.nan, math.nan]))
    import_algoperf(logs, run)
    read = study.read(run)
    assert read.records["diverged"].tolist() == [False, False, False, True, True]
    assert read.cells["state"].tolist() == ["diverged"]
    assert algoperf_score.score(algoperf_score.read_evaluations(run)).seconds["seconds"].tolist() == [math.inf]


def line_of(step, wer, second=None, header=HEADER):
    return lines([wer], steps=[step], seconds=[step / 2 if second is None else second]).splitlines()[1]


def test_rows_in_any_other_order_are_sorted_and_none_is_lost(logs, run):
    falls = [round(0.9 - 0.1 * n, 3) for n in range(9)]  # meets .1 at the last: 900 steps, 450 s
    header, *rows = lines(falls).splitlines()
    orders = {
        "reversed": rows[::-1],
        "shuffled": [rows[n] for n in (4, 1, 8, 0, 6, 2, 7, 3, 5)],
        "halves swapped": rows[5:] + rows[:5],
        "two swapped": [*rows[:3], rows[4], rows[3], *rows[5:]],
        "as text": sorted(rows),
    }
    for trial, order in enumerate(orders.values(), start=1):
        put(logs, "\n".join([header, *order]) + "\n", trial=trial)
    done = import_algoperf(logs, run)
    found = algoperf_score.trials_to_target(algoperf_score.read_evaluations(run))
    assert found["num_evaluations"].tolist() == [9] * len(orders)
    assert found["seconds"].tolist() == [450.0] * len(orders)
    assert found["evaluation"].tolist() == [8] * len(orders)
    assert records.load_plan(run)["steps_withheld"] == {}
    assert done.left_out == {}
    assert "out of order were sorted by the clock" in done.notes[-1]


def test_torn_repeated_and_superseded_lines_are_counted_apart(logs, run):
    header = lines([]).strip()
    rows = [
        line_of(100, 0.9),
        line_of(200, 0.8),
        line_of(200, 0.8),  # repeated
        "15.0,15",  # torn in the middle, and the file went on
        line_of(300, 0.7),  # superseded: restored at 250 with its clock
        header,
        line_of(280, 0.5),
        line_of(380, 0.4),
        "3.0,190.0,four,0.4,200.0,4.0,2472,0.4",
        line_of(400, 0.3).replace(",2472,", ",0,"),  # evaluated on nothing
        line_of(480, 0.3),
        line_of(480, 0.2, second=245),  # the same step once more
    ]
    put(logs, "\n".join([header, *rows, "9.0,300"]))
    done = import_algoperf(logs, run)
    assert done.left_out == {
        "torn": 2,
        "not numbers where numbers are needed": 1,
        "evaluated on no examples": 1,
        "repeated": 1,
        "superseded after a restart": 1,
        "of a step evaluated before": 1,
    }
    assert (done.num_read, done.num_recorded) == (12, 5)
    assert study.read(run).records["step"].tolist() == [100, 200, 280, 380, 480]
    said = "\n".join(done.notes)
    assert f"2 lines torn, the first in {LINE}:5: left out." in said
    assert f"1 line not numbers where numbers are needed, the first in {LINE}:10: left out." in said


def test_a_count_of_restarts_tells_a_restart_from_another_order(logs, run):
    def text(counts):
        header, *rows = lines(
            [0.9, 0.3, 0.05, 0.6, 0.5], steps=[100, 200, 300, 250, 350], seconds=[50, 100, 150, 125, 175]
        ).splitlines()
        counted = [f"{row},{n}" for row, n in zip(rows, counts, strict=True)]
        return "\n".join([f"{header},preemption_count", *counted]) + "\n"

    put(logs, text([0, 0, 0, 1, 1]), trial=1)
    put(logs, text([0, 0, 0, 0, 0]), trial=2)
    import_algoperf(logs, run)
    found = study.read(run).records.groupby("cell_id")["step"].apply(list)
    assert found.tolist() == [[100, 200, 250, 350], [100, 200, 250, 300, 350]]


def test_a_clock_that_goes_back_while_steps_go_on_is_left_out_and_said(logs, run):
    put(logs, lines([0.9, 0.8, 0.7, 0.05, 0.04], steps=[100, 200, 300, 400, 500], seconds=[50, 100, 150, 10, 60]))
    done = import_algoperf(logs, run)
    assert done.left_out == {"logged after the clock went back while the steps went on": 2}
    assert algoperf_score.score(algoperf_score.read_evaluations(run)).seconds["seconds"].tolist() == [math.inf]
    assert records.load_plan(run)["steps_withheld"] == {}


READ = {
    "CRLF": WHOLE.replace("\n", "\r\n").encode(),
    "CR": WHOLE.replace("\n", "\r").encode(),
    "a byte order mark": b"\xef\xbb\xbf" + WHOLE.encode(),
    "spaces and quotes": WHOLE.replace("global_step,", '"global_step", ').encode(),
    "blank lines": WHOLE.replace("\n", "\n\n").encode(),
    "one more column": "".join(f"{row},x\n" for row in WHOLE.splitlines()).encode(),
    "columns in another order": "".join(",".join(row.split(",")[::-1]) + "\n" for row in WHOLE.splitlines()).encode(),
}


@pytest.mark.parametrize("data", READ.values(), ids=READ.keys())
def test_the_same_table_written_otherwise(logs, run, data):
    (put(logs) / "eval_measurements.csv").write_bytes(data)
    done = import_algoperf(logs, run)
    assert (done.num_evaluations, done.left_out) == (4, {})
    assert study.read(run).records["metric"].tolist() == FALLING


def test_a_packed_log_is_read_and_one_cut_off_is_torn(logs, run):
    for trial, cut in enumerate((None, -12), start=1):
        folder = put(logs, trial=trial)
        (folder / "eval_measurements.csv").unlink()
        packed = gzip.compress(lines([n / 7 for n in range(60, 0, -1)]).encode())
        (folder / "eval_measurements.csv.gz").write_bytes(packed[:cut])
    done = import_algoperf(logs, run)
    counts = records.load_records(run).query("split == 'validation'").groupby("cell_id").size().tolist()
    assert counts[0] == 60
    assert 0 < counts[1] < 60
    assert done.left_out == {"torn": 1}


def test_a_split_without_examples_has_no_records(logs, run):
    text = lines(FALLING).replace("test/wer", "test/num_examples").replace(",0.3,", ",0,")
    put(logs, text)  # the second evaluation ran on no test examples
    done = import_algoperf(logs, run)
    assert set(records.load_records(run)["split"]) == {"validation"}
    assert (done.num_recorded, done.left_out) == (4, {})
    (logs / "nadamw/study_0/wmt_jax/trial_1/eval_measurements.csv").write_text(lines(FALLING).replace("2472", "0"))
    done = import_algoperf(logs, run.with_name("again"))
    assert done.left_out == {"evaluated on no examples": 4}
    assert records.load_records(run.with_name("again")).empty


def test_every_line_read_is_recorded_or_left_out_for_a_reason(logs, run):
    random = np.random.default_rng(5)
    counted = 0
    for trial in range(1, 41):
        wers = random.choice([0.9, 0.5, 0.05, math.nan], 12)
        header, *rows = lines(wers.tolist()).splitlines()
        for at in random.integers(0, len(rows), 3):
            how = random.integers(0, 6)
            if how == 0:
                rows.insert(at, rows[at])
            elif how == 1:
                rows[at] = rows[at][: len(rows[at]) // 2]
            elif how == 2:
                rows[at] = rows[at].replace(",2472,", ",0,")
            elif how == 3:
                rows = [*rows, *rows[at:]]
            elif how == 4:
                random.shuffle(rows)
            else:
                rows[at] = rows[at].replace(".0,", ".0,x", 1)
        counted += len(rows)
        put(logs, "\n".join([header, *rows]) + "\n", trial=trial, submission="ab"[trial % 2])
    broken = put(logs, submission="c")
    (broken / "eval_measurements.csv").write_text(WHOLE.replace("validation/wer", "v"))
    put(logs, submission="calls", text=lines(FALLING, steps=[1, 2, 3, 4], seconds=[50, 100, 150, 200]))
    done = import_algoperf(logs, run)
    assert done.num_read == counted + 8
    assert done.num_read == done.num_recorded + sum(done.left_out.values())
    table = records.load_records(run)
    assert done.num_recorded == len(table[["cell_id", "step"]].drop_duplicates())
    lines_of = records.load_plan(run)["lines"]
    assert lines_of == {"read": done.num_read, "recorded": done.num_recorded, "left_out": done.left_out}
    assert len(done.left_out) >= 6
