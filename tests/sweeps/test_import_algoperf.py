"""Made-up log folders with hand-worked outcomes; hostile files; and, where ALGOPERF_LOGS points to them, real logs."""

import gzip
import json
import math
import os
import pickle
import tarfile
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from analysis import algoperf_score, device_hours, records, report, study
from analysis.steps_to_target import steps_to_target
from sweeps.import_algoperf import BadLogs, import_algoperf
from sweeps.targets import Target

META = {
    "workload.target_metric_name": "wer",
    "workload.validation_target_value": 0.1,
    "workload.test_target_value": 0.05,
    "workload.step_hint": 1000,
    "workload.max_allowed_runtime_sec": 500,
    "workload.eval_period_time_sec": 50,
    "gpu_count": 8,
    "gpu_model_name": "Tesla V100-SXM2-16GB",
    "python_version": "3.8.10",
}
POINT = {
    "learning_rate": 0.01,
    "one_minus_beta1": 0.1,
    "beta2": 0.99,
    "weight_decay": 0.5,
    "warmup_factor": 0.05,
}
HEADER = [
    *("accumulated_eval_time", "accumulated_submission_time", "global_step", "test/wer", "total_duration"),
    *("validation/ctc_loss", "validation/num_examples", "validation/wer"),
]


def lines(wers, steps=None, seconds=None):
    """The text of an eval_measurements.csv: one evaluation each 100 steps and 50 s."""
    steps = steps or [100 * n for n in range(1, len(wers) + 1)]
    seconds = seconds or [step / 2 for step in steps]
    rows = [
        [3.0 * n, second, step, wer, second + 3.0 * n, wer * 10, 2472, wer]
        for n, (step, second, wer) in enumerate(zip(steps, seconds, wers, strict=True), start=1)
    ]
    return "".join(",".join(map(str, row)) + "\n" for row in [HEADER, *rows])


FALLING = [0.9, 0.3, 0.2, 0.1]  # meets .1 exactly, at the last evaluation


def put(
    logs,
    text=None,
    submission="nadamw",
    round_=0,
    workload="wmt",
    trial=1,
    meta=META,
    point=POINT,
    framework="jax",
):
    """Writes one trial folder; its path."""
    folder = logs / submission / f"study_{round_}" / f"{workload}_{framework}" / f"trial_{trial}"
    folder.mkdir(parents=True)
    if meta is not None:
        (folder / "meta_data_0.json").write_text(json.dumps(meta))
    (folder / "hparams.json").write_text(json.dumps(point))
    if text != "":
        (folder / "eval_measurements.csv").write_text(lines(FALLING) if text is None else text)
    return folder


@pytest.fixture
def logs(tmp_path):
    return tmp_path / "logs"


@pytest.fixture
def run(tmp_path):
    return tmp_path / "runs" / "imported"


def test_a_trial_becomes_a_cell_and_its_evaluations_records(logs, run):
    put(logs)
    done = import_algoperf(logs, run)
    assert (done.num_trials, done.num_evaluations, done.notes) == (1, 4, [])
    cell = records.load_cells(run).iloc[0]
    expected = {
        "workload": "wmt",
        "preset": "full",
        "seed": 0,
        "optimizer": "nadamw",
        "lr": 0.01,
        "beta1": 0.9,
        "beta2": 0.99,
        "weight_decay": 0.5,
        "scheme": "none",
        "step_budget": 1000,
        "warmup_steps": 50,
        "metric_name": "wer",
        "higher_is_better": False,
        "target": 0.1,
        "num_devices": 8.0,
        "device": "gpu",
        "trial": 1,
        "framework": "jax",
        "evaluate_every_steps": 100,
    }
    assert {name: cell[name] for name in expected} == expected
    table = records.load_records(run)
    assert set(table["split"]) == {"validation", "test"}
    validation = table[table["split"] == "validation"]
    assert validation["step"].tolist() == [100, 200, 300, 400]
    assert validation["metric"].tolist() == FALLING
    assert validation["loss"].tolist() == [9.0, 3.0, 2.0, 1.0]
    assert validation["train_seconds"].tolist() == [50, 100, 150, 200]
    assert validation["eval_seconds"].tolist() == [3, 6, 9, 12]
    assert set(validation["examples"]) == {2472}
    trial = records.load_trials(run).iloc[0]
    assert (trial["seconds"], trial["num_devices"], trial["status"]) == (212.0, 8.0, "done")
    plan = records.load_plan(run)
    target = Target.model_validate(plan["targets"]["wmt"])
    assert (target.value, target.metric, target.higher_is_better, target.preset) == (
        0.1,
        "wer",
        False,
        "full",
    )
    assert "meta_data_0.json" in target.rule
    assert plan["hints"]["wmt"] == {"step_hint": 1000, "max_allowed_runtime_sec": 500.0, "test_target": 0.05}


@pytest.mark.parametrize("name", ["my logs (new)", ".hidden", "größe", "–", "x" * 250])
def test_a_run_folder_of_any_name_can_be_read(logs, run, name):
    put(logs)
    there = run.with_name(name)
    import_algoperf(logs, there)
    plan = records.load_plan(there)
    assert plan["trajectories"][0]["expected_seconds"] == 212.0
    assert len(study.read(there).records) == 4


def test_steps_and_gpu_hours_to_a_target_met_exactly_at_the_last_evaluation(logs, run):
    put(logs)
    import_algoperf(logs, run)
    read = study.read(run)
    steps = steps_to_target(read.cells, read.records)
    assert steps[["status", "lower", "upper", "point"]].to_numpy().tolist() == [["met", 300, 400, 400]]
    hours = device_hours.hours_to_target(read.cells, read.records, steps)["device_hours"]
    assert hours.tolist() == [pytest.approx(200 * 8 / 3600)]
    assert device_hours.unit(read.cells) == "GPU-hours"


def test_a_run_that_meets_its_target_and_loses_it_again(logs, run):
    put(logs, lines([0.9, 0.05, 0.2]))
    import_algoperf(logs, run)
    read = study.read(run)
    steps = steps_to_target(read.cells, read.records).iloc[0]
    assert (steps["status"], steps["lost_again"], steps["held_censored"]) == ("met", True, True)
    assert algoperf_score.score(algoperf_score.read_evaluations(run)).studies["lost_again"].tolist() == [True]


def test_studies_are_seeds_and_trials_are_settings(logs, run):
    other = POINT | {"learning_rate": 0.02}
    for round_ in range(3):
        put(logs, round_=round_, trial=1)
        put(logs, round_=round_, trial=2, point=other)
        put(logs, round_=round_, submission="shampoo")
    import_algoperf(logs, run)
    cells = study.read(run).cells
    assert cells["setting"].nunique() == 3
    assert (cells.groupby("setting")["seed"].apply(list).map(lambda s: s == [0, 1, 2])).all()
    assert set(cells["optimizer"]) == {"nadamw", "shampoo"}


def test_trials_that_differ_where_cells_have_no_column_are_told_apart_by_name(logs, run):
    for trial, smoothing in enumerate((0.0, 0.1), start=1):
        for round_ in range(2):
            put(
                logs,
                trial=trial,
                round_=round_,
                point=POINT | {"label_smoothing": smoothing, "dropout_rate": 0.1},
            )
    put(logs, submission="again")
    put(logs, submission="again", trial=2)
    import_algoperf(logs, run)
    cells = study.read(run).cells
    names = {"nadamw (label_smoothing 0.0)", "nadamw (label_smoothing 0.1)"}
    assert set(cells["optimizer"]) == names | {"again (jax trial 1)", "again (jax trial 2)"}
    assert not cells.duplicated(["setting", "seed"]).any()


def test_variants_are_workloads_of_their_own(logs, run):
    put(logs)
    put(logs, workload="wmt_glu_tanh", meta=META | {"workload.validation_target_value": 0.3})
    import_algoperf(logs, run)
    cells = records.load_cells(run).set_index("workload")
    assert cells["target"].to_dict() == {"wmt": 0.1, "wmt_glu_tanh": 0.3}


def test_a_submission_alone_may_be_the_log_folder(logs, run):
    put(logs)
    import_algoperf(logs / "nadamw", run)
    assert set(records.load_cells(run)["optimizer"]) == {"nadamw"}


def test_the_report_is_written_from_an_imported_folder(logs, run):
    for round_ in range(2):
        for submission in ("a", "b"):
            put(logs, submission=submission, round_=round_)
    import_algoperf(logs, run)
    text = report.write(run).read_text().replace("\u00a0", " ")
    assert "a and b reach most targets soonest, on 1 of 1 workload; a has the highest score, 1.000" in text
    assert "wmt (full): wer at most 0.1. Published: workload.validation_target_value of the logs" in text
    assert "incomplete" not in text
    assert 'id="score"' in text
    assert 'id="tightness"' not in text
    for name in ("figures/score.pdf", "tables/score_scores.csv", "tables/score_scores.tex"):
        assert (run / name).is_file()
    table = pd.read_csv(run / "tables" / "score_times.csv")
    assert set(table["measure"]) == {"clean", "algoperf-exact"}
    assert (table["time"] == 200.0).all()


# --- broken input that is read all the same ---------------------------------------------------------------------------


LINE = "nadamw/study_0/wmt_jax/trial_1/eval_measurements.csv"


@pytest.mark.parametrize("tail", ["2.0,5", "2.0,5\n", "15.0,250.0,500,0.01,265.0,0.1,2472,0.0"])
def test_a_torn_last_line_is_left_out(logs, run, tail):
    put(
        logs, lines(FALLING) + tail
    )  # the third is whole by its commas, and torn in its last number all the same
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
    put(
        logs,
        lines([0.9, 0.8, 0.05, 0.7, 0.6], steps=[100, 200, 300, 200, 300], seconds=[50, 100, 150, 100, 150]),
    )
    import_algoperf(logs, run)
    read = study.read(run).records
    assert read["step"].tolist() == [100, 200, 300]
    assert read["metric"].tolist() == [0.9, 0.7, 0.6]
    assert records.load_plan(run)["steps_withheld"] == {}


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
    assert algoperf_score.score(algoperf_score.read_evaluations(run)).seconds["seconds"].tolist() == [
        math.inf
    ]


def test_a_trial_never_evaluated_is_a_miss_and_not_forgotten(logs, run):
    put(logs, round_=0)
    put(logs, round_=1, text="")
    put(logs, round_=2, text="", meta=None)
    done = import_algoperf(logs, run)
    assert done.notes[0].startswith(
        "Never evaluated, a miss each: 2 trials, nadamw.study1.wmt_jax.trial1, nadamw"
    )
    assert len(records.load_cells(run)) == 3
    assert records.load_trials(run)["status"].tolist() == ["done", "failed", "failed"]
    assert algoperf_score.score(algoperf_score.read_evaluations(run)).seconds["num_missed"].tolist() == [2]


def test_every_folder_left_out_is_counted_and_named(logs, run):
    put(logs)
    put(logs, submission="schedule free (v2)")
    put(logs, submission="_again")
    put(logs, workload="alphafold")
    put(logs, framework="tensorflow", workload="nonsense")
    round_ = logs / "nadamw" / "study_0"
    (round_ / "trial_1").mkdir()
    (round_ / "wmt_jax" / "trial_01").mkdir()  # would be trial 1 twice
    (round_ / "wmt_jax" / "best").mkdir()
    (logs / "nadamw" / "notes").mkdir()
    (logs / "docs").mkdir()
    (logs / "README.md").write_text("not a folder")
    os.symlink(logs, logs / "nadamw" / "study_7")
    done = import_algoperf(logs, run)
    assert done.num_trials == 1
    named = {one["path"]: one["why"] for one in records.load_plan(run)["left_out"]}
    assert named == {
        "_again": "no submission's name: letters, digits, . _ + and -, at most 100",
        "docs": "no trial in it",
        "nadamw/notes": "no study_<number>",
        "nadamw/study_0/alphafold_jax": "unknown workload 'alphafold'",
        "nadamw/study_0/nonsense_tensorflow": "no <workload>_<framework>",
        "nadamw/study_0/trial_1": "no <workload>_<framework>",
        "nadamw/study_0/wmt_jax/best": "no trial_<number>",
        "nadamw/study_0/wmt_jax/trial_01": "trial 1 twice, as trial_1 too",
        "nadamw/study_7": "a link",
        "schedule free (v2)": "no submission's name: letters, digits, . _ + and -, at most 100",
    }
    said = " ".join(done.notes)
    assert all(path in said and why in said for path, why in named.items())
    assert "Left out, no <workload>_<framework>: 2 folders, " in said


def test_other_spellings_of_the_same_layout_are_read(logs, run):
    folder = put(logs)
    plain = logs / "plain" / "1" / "wmt" / "2"
    plain.parent.mkdir(parents=True)
    folder.rename(plain)
    put(logs, submission="torch", framework="torch")
    import_algoperf(logs, run)
    assert set(records.load_cells(run)["cell_id"]) == {
        "plain.study1.wmt_unknown.trial2",
        "torch.study0.wmt_torch.trial1",
    }
    deeper = put(logs, submission="deeper", text="")
    (deeper / "results").mkdir()
    (deeper / "results" / "eval_measurements.csv").write_text(lines(FALLING))
    done = import_algoperf(logs, run.with_name("again"))
    assert "results below a trial's folder" in done.notes[0]
    assert "deeper/study_0/wmt_jax/trial_1/results" in done.notes[0]


# --- lines: order, repeats, restarts, pieces --------------------------------------------------------------------


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
    put(
        logs,
        lines([0.9, 0.8, 0.7, 0.05, 0.04], steps=[100, 200, 300, 400, 500], seconds=[50, 100, 150, 10, 60]),
    )
    done = import_algoperf(logs, run)
    assert done.left_out == {"logged after the clock went back while the steps went on": 2}
    assert algoperf_score.score(algoperf_score.read_evaluations(run)).seconds["seconds"].tolist() == [
        math.inf
    ]
    assert records.load_plan(run)["steps_withheld"] == {}


WHOLE = lines(FALLING)
READ = {
    "CRLF": WHOLE.replace("\n", "\r\n").encode(),
    "CR": WHOLE.replace("\n", "\r").encode(),
    "a byte order mark": b"\xef\xbb\xbf" + WHOLE.encode(),
    "spaces and quotes": WHOLE.replace("global_step,", '"global_step", ').encode(),
    "blank lines": WHOLE.replace("\n", "\n\n").encode(),
    "one more column": "".join(f"{row},x\n" for row in WHOLE.splitlines()).encode(),
    "columns in another order": "".join(
        ",".join(row.split(",")[::-1]) + "\n" for row in WHOLE.splitlines()
    ).encode(),
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
    (logs / "nadamw/study_0/wmt_jax/trial_1/eval_measurements.csv").write_text(
        lines(FALLING).replace("2472", "0")
    )
    done = import_algoperf(logs, run.with_name("again"))
    assert done.left_out == {"evaluated on no examples": 4}
    assert records.load_records(run.with_name("again")).empty


def test_a_language_model_is_a_workload_of_the_leaderboard(logs, run):
    meta = {
        **META,
        "workload.target_metric_name": "ppl",
        "workload.validation_target_value": 22.2995,
        "workload.step_hint": 72000,
        "workload.max_allowed_runtime_sec": 31967,
    }
    del meta["workload.test_target_value"]
    header = "accumulated_submission_time,global_step,test/loss,test/num_examples,test/ppl,"
    header += "validation/loss,validation/num_examples,validation/ppl"
    rows = [(62.3, 1, 0.0, 0, 1.0, 10.5, 100000, 36843.5), (2630.7, 6601, 0.0, 0, 1.0, 3.1, 100000, 22.2)]
    text = "\n".join([header, *(",".join(map(str, row)) for row in rows)]) + "\n"
    put(logs, text, workload="finewebedu_lm", framework="pytorch", meta=meta)
    put(logs)
    done = import_algoperf(logs, run)
    cell = records.load_cells(run).set_index("workload").loc["finewebedu_lm"]
    assert (cell["metric_name"], bool(cell["higher_is_better"]), cell["target"]) == ("ppl", False, 22.2995)
    table = records.load_records(run).query("cell_id.str.contains('finewebedu')")
    assert table[["split", "metric", "loss"]].to_numpy().tolist() == [
        ["validation", 36843.5, 10.5],
        ["validation", 22.2, 3.1],
    ]
    assert "2 evaluations of a test split without examples left no test record: finewebedu_lm." in done.notes
    found = algoperf_score.score(algoperf_score.read_evaluations(run))
    assert found.seconds.set_index("workload")["seconds"].to_dict() == {"finewebedu_lm": 2630.7, "wmt": 200.0}
    assert found.scores["num_workloads"].tolist() == [2]
    assert records.load_plan(run)["leaderboard"] == "v1.0"
    assert report.write(run).is_file()


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


# --- does global_step count optimizer steps? ----------------------------------------------------------------------


def withheld(logs, run, **options):
    import_algoperf(logs, run, **options)
    return records.load_plan(run)["steps_withheld"]


def paced(pace, seconds=(50, 100, 150, 200)):
    """A log whose counter runs at `pace` times the hinted one, 2 a second."""
    return lines(FALLING, steps=[round(2 * pace * second) for second in seconds], seconds=list(seconds))


def test_a_counter_far_off_the_hinted_pace(logs, run):
    # Calls of many steps run at most at .027, steps at least at .15 of the hinted pace; micro-batches beyond 16.
    for trial, pace in enumerate((0.027, 0.15, 3.7, 17), start=1):
        put(
            logs,
            paced(pace),
            submission=f"s{trial}",
            workload=["wmt", "ogbg", "fastmri", "criteo1tb"][trial - 1],
        )
    assert withheld(logs, run) == {
        "s1.study0.wmt_jax.trial1": "it runs at 0.027 times the hinted pace; the threshold is 1/16",
        "s4.study0.criteo1tb_jax.trial1": "it runs at 17 times the hinted pace; the threshold is 16",
    }
    cells = records.load_cells(run).set_index("optimizer")
    assert cells["target"].isna().to_dict() == {"s1": True, "s2": False, "s3": False, "s4": True}
    assert set(study.read(run).records["cell_id"]) == {
        "s2.study0.ogbg_jax.trial1",
        "s3.study0.fastmri_jax.trial1",
    }
    found = algoperf_score.trials_to_target(algoperf_score.read_evaluations(run))
    assert found["seconds"].tolist() == [200] * 4
    assert found["step"].isna().tolist() == [True, False, False, True]
    notes = records.load_plan(run)["notes"]
    assert notes[0].startswith(
        "s1: global_step of 1 trial does not count optimizer steps (wmt in jax: it runs at 0.027"
    )


def test_frameworks_that_differ_in_pace_are_not_held_against_each_other(logs, run):
    # As on speech: three submissions in one framework, four times as fast as the majority in the other.
    for number in range(5):
        put(logs, paced(0.21), submission=f"slow{number}", framework="jax")
    for number in range(3):
        put(logs, paced(3.7), submission=f"fast{number}", framework="pytorch")
    put(logs, paced(0.02), submission="calls", framework="pytorch")
    assert list(withheld(logs, run)) == ["calls.study0.wmt_pytorch.trial1"]


def test_a_submission_is_judged_on_a_workload_by_its_median_trial(logs, run):
    # One trial of three was held up; and one of a counter of calls is as fast as a counter of steps.
    for trial, pace in enumerate((1.0, 0.02, 0.9), start=1):
        put(logs, paced(pace), submission="steps", trial=trial)
    for trial, pace in enumerate((0.02, 0.9, 0.01), start=1):
        put(logs, paced(pace), submission="calls", trial=trial)
    assert {name.split(".")[0] for name in withheld(logs, run)} == {"calls"}
    assert len(withheld(logs, run.with_name("again"))) == 3


def test_two_counters_of_calls_do_not_make_the_third_submission_odd(logs, run):
    put(logs, paced(1.0), submission="steps")
    for name in ("ema", "queue"):
        put(logs, paced(0.002, seconds=(500, 1000, 1500, 2000)), submission=name)
    assert {name.split(".")[0] for name in withheld(logs, run)} == {"ema", "queue"}


def test_a_counter_too_short_to_tell_is_taken_as_its_submission_counts_elsewhere(logs, run):
    put(logs, paced(0.01), workload="ogbg")
    put(logs, lines([0.9], steps=[1], seconds=[60]))
    put(logs, lines([0.9], steps=[1], seconds=[60]), submission="other")
    reasons = withheld(logs, run)
    assert (
        reasons["nadamw.study0.wmt_jax.trial1"]
        == "too short to tell, and it counts none on any other workload"
    )
    assert list(reasons) == ["nadamw.study0.ogbg_jax.trial1", "nadamw.study0.wmt_jax.trial1"]


def test_a_counter_is_measured_against_other_submissions_where_they_are_faster(logs, run):
    # A machine ten times as fast as the one of the hint is no reason to doubt a counter.
    for submission in "abc":
        put(logs, paced(10), submission=submission)
    put(logs, paced(0.5), submission="d")
    assert list(withheld(logs, run)) == ["d.study0.wmt_jax.trial1"]
    notes = records.load_plan(run)["notes"]
    assert (
        "0.5 times the hinted pace, 0.05 times that of the others in jax; the threshold is 1/16" in notes[0]
    )


def test_a_counter_that_falls_or_stalls_while_the_clock_runs_on(logs, run):
    put(logs, lines(FALLING, steps=[100, 200, 150, 400], seconds=[50, 100, 150, 200]), trial=1)
    put(logs, lines(FALLING, steps=[100, 100, 100, 400], seconds=[50, 100, 150, 200]), trial=2)
    put(logs, lines(FALLING, steps=[100, 200, 300, 300], seconds=[50, 100, 150, 200]), trial=3)
    reasons = withheld(logs, run)
    assert [reason.split()[1] for reason in reasons.values()] == ["falls", "stands"]
    assert (
        algoperf_score.trials_to_target(algoperf_score.read_evaluations(run))["seconds"].tolist() == [200] * 3
    )


def test_a_submission_known_to_count_calls(logs, run):
    put(logs)
    put(logs, submission="calls")
    assert withheld(logs, run, not_steps=frozenset({"calls"})) == {"calls.study0.wmt_jax.trial1": "said so"}
    with pytest.raises(BadLogs, match="no submission 'cals'"):
        import_algoperf(logs, run.with_name("other"), frozenset({"cals"}))


def test_steps_withheld_from_every_trial_leave_a_report(logs, run):
    put(logs)
    put(logs, round_=1)
    import_algoperf(logs, run, frozenset({"nadamw"}))
    assert report.write(run).is_file()


# --- refused ------------------------------------------------------------------------------------------------------


class Bomb:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize("name", ["hparams.json", "meta_data_0.json"])
def test_a_pickle_under_a_json_name_is_refused_never_loaded(logs, run, tmp_path, name, protocol):
    folder = put(logs)
    trace = tmp_path / "loaded"
    (folder / name).write_bytes(pickle.dumps(Bomb(trace), protocol=protocol))
    with pytest.raises(BadLogs, match=name):
        import_algoperf(logs, run)
    assert not trace.exists()
    pickle.loads((folder / name).read_bytes())  # the bomb is live: loading it would have left its trace
    assert trace.exists()


def _csv(text):
    return lambda folder: (folder / "eval_measurements.csv").write_bytes(
        text if isinstance(text, bytes) else text.encode()
    )


def _meta(**changes):
    meta = {**META, **{f"workload.{name}": value for name, value in changes.items()}}
    return lambda folder: (folder / "meta_data_0.json").write_text(json.dumps(meta))


def _json(text, name="hparams.json"):
    return lambda folder: (folder / name).write_bytes(text)


def _linked(folder):
    (folder / "eval_measurements.csv").unlink()
    os.symlink("/etc/hostname", folder / "eval_measurements.csv")


def _pipe(folder):
    (folder / "eval_measurements.csv").unlink()
    os.mkfifo(folder / "eval_measurements.csv")


def _large(name):
    return lambda folder: os.truncate(folder / name, 2**26)


def _bomb(folder):
    (folder / "eval_measurements.csv").unlink()
    (folder / "eval_measurements.csv.gz").write_bytes(gzip.compress(b"\n" * 2**24))


REFUSED = {
    "linked file": (_linked, "not a plain file"),
    "a pipe": (_pipe, "not a plain file"),
    "CSV too large": (_large("eval_measurements.csv"), "67,108,864 bytes"),
    "CSV too large unpacked": (_bomb, "more than 8,388,608 bytes unpacked"),
    "JSON too large": (_large("hparams.json"), "67,108,864 bytes"),
    "JSON too deep": (_json(b"[" * 200_000), "not a JSON object"),
    "JSON list": (_json(b"[1]"), "not a JSON object"),
    "two targets": (_meta(validation_target_value=0.2), "another target"),
}


@pytest.mark.parametrize(("break_it", "says"), REFUSED.values(), ids=REFUSED.keys())
def test_refused_with_one_line_and_the_path(logs, run, break_it, says):
    put(logs, round_=0)
    folder = put(logs, round_=1)
    break_it(folder)
    with pytest.raises(BadLogs) as caught:
        import_algoperf(logs, run)
    text = str(caught.value)
    assert says in text
    assert text.startswith(str(folder))
    assert "\n" not in text
    assert len(text) < len(str(folder)) + 250
    assert not run.parent.exists() or not list(run.parent.iterdir())


LEAVES_ITSELF_OUT = {  # how it is broken, and what the note says
    "column global_step missing": (_csv(WHOLE.replace("global_step", "step")), "'global_step' is missing"),
    "metric missing": (_csv(WHOLE.replace("validation/wer", "v")), "'validation/wer' is missing"),
    "seconds missing": (_csv(WHOLE.replace("accumulated_submission_time", "t")), "time' is missing"),
    "column twice": (_csv(WHOLE.replace("total_duration", "global_step")), "stands twice"),
    "not text": (_csv(b"\xff\xfe\x00" + WHOLE.encode()), "not text in UTF-8"),
    "unknown metric": (_meta(target_metric_name="vibes"), "unknown metric 'vibes'; allowed: loss"),
}


@pytest.mark.parametrize(("break_it", "says"), LEAVES_ITSELF_OUT.values(), ids=LEAVES_ITSELF_OUT.keys())
def test_a_trial_that_cannot_be_used_leaves_itself_out_with_a_note(logs, run, break_it, says):
    put(logs)
    folder = put(logs, workload="ogbg")
    break_it(folder)
    done = import_algoperf(logs, run)
    assert done.num_trials == 1
    assert done.left_out == {"of trials that were left out": 4}
    assert done.num_read == 8
    (note,) = done.notes
    assert note.startswith("Left out, ")
    assert says in note
    assert "nadamw/study_0/ogbg_jax/trial_1" in note
    (folder / "eval_measurements.csv").write_text(WHOLE)
    (folder / "meta_data_0.json").write_text(json.dumps(META))
    assert import_algoperf(logs, run.with_name("whole")).num_trials == 2


MADE_DO = {  # how, what the note says, evaluations left of 4
    "empty file": (_csv(""), "Never evaluated, a miss each: 1 trial", 0),
    "header only": (_csv(lines([])), "Never evaluated, a miss each: 1 trial", 0),
    "header torn": (_csv("global_step,accum"), "1 line torn", 0),
    "a line short inside": (_csv(WHOLE.replace("2472,0.3\n", "2472\n")), "1 line torn", 3),
    "not a number": (_csv(WHOLE.replace(",300,", ",three,")), ".csv:4: left out", 3),
    "not quite a number": (_csv(WHOLE.replace(",300,", ",3_00,")), ".csv:4: left out", 3),
    "half a step": (_csv(WHOLE.replace(",300,", ",300.5,")), ".csv:4: left out", 3),
    "a step NaN": (_csv(WHOLE.replace(",300,", ",,")), ".csv:4: left out", 3),
    "steps beyond counting": (_csv(WHOLE.replace(",300,", ",1e300,")), ".csv:4: left out", 3),
    "seconds negative": (_csv(WHOLE.replace(",150.0,", ",-150.0,")), ".csv:4: left out", 3),
    "seconds NaN": (_csv(WHOLE.replace(",150.0,", ",nan,")), ".csv:4: left out", 3),
    "the metric no number": (_csv(WHOLE.replace("2472,0.3", "2472,high")), ".csv:3: left out", 3),
    "another cell no number": (_csv(WHOLE.replace(",3.0,", ",much,")), "1 cell beside the target", 4),
    "a field without end": (_csv(WHOLE + '"' + "x" * 200_000 + "\n"), "1 line torn", 4),
    "JSON torn": (_json(b'{"learning_rate": 0.0'), "hparams.json: not JSON", 4),
    "no metadata": (lambda folder: (folder / "meta_data_0.json").unlink(), "meta_data_0.json: missing", 4),
    "metadata torn": (_json(b'{"gpu_count": 8', "meta_data_0.json"), "meta_data_0.json: not JSON", 4),
    "metadata empty": (_json(b"", "meta_data_0.json"), "meta_data_0.json: not JSON", 4),
    "metric not a name": (_meta(target_metric_name=3), "target_metric_name is '3', not a name", 4),
    "target not a number": (_meta(validation_target_value="0.1"), "validation_target_value is '0.1'", 4),
    "target NaN": (_meta(validation_target_value=math.nan), "validation_target_value is 'nan'", 4),
    "no step hint": (_meta(step_hint=0), "not a number ≥ 1", 4),
    "runtime infinite": (_meta(max_allowed_runtime_sec=math.inf), "max_allowed_runtime_sec", 4),
}


@pytest.mark.parametrize(("break_it", "says", "left"), MADE_DO.values(), ids=MADE_DO.keys())
def test_a_broken_file_is_made_do_with_and_the_note_says_so(logs, run, break_it, says, left):
    put(logs, round_=0)
    break_it(put(logs, round_=1))
    done = import_algoperf(logs, run)
    assert any(says in note for note in done.notes)
    assert records.load_cells(run)["target"].tolist() == [0.1, 0.1]
    counts = records.load_records(run).query("split == 'validation'").groupby("cell_id").size()
    assert counts.get("nadamw.study1.wmt_jax.trial1", 0) == left
    assert done.num_read == done.num_recorded + sum(done.left_out.values())
    assert len(done.notes) <= 2


def test_no_logs(logs, run):
    with pytest.raises(BadLogs, match="no such folder"):
        import_algoperf(logs, run)
    logs.mkdir()
    with pytest.raises(BadLogs, match="no <submission>"):
        import_algoperf(logs, run)
    (logs / "nadamw" / "study_0" / "wmt_jax" / "trial_1").mkdir(parents=True)
    with pytest.raises(BadLogs, match="missing, as of every trial of wmt"):
        import_algoperf(logs, run)


def test_a_folder_in_use_is_not_written_over(logs, run):
    put(logs)
    run.mkdir(parents=True)
    import_algoperf(logs, run)  # empty: taken
    before = (run / "cells.parquet").read_bytes()
    with pytest.raises(BadLogs, match="not empty"):
        import_algoperf(logs, run)
    assert (run / "cells.parquet").read_bytes() == before
    assert [path.name for path in run.parent.iterdir()] == [run.name]


def test_an_import_that_fails_while_writing_leaves_nothing(logs, run, monkeypatch):
    put(logs)
    monkeypatch.setattr("sweeps.importers.algoperf_tables.dump_yaml", lambda value: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        import_algoperf(logs, run)
    assert list(run.parent.iterdir()) == []


def test_the_same_logs_give_the_same_folder(logs, run):
    for trial in (1, 2):
        put(logs, trial=trial)
    import_algoperf(logs, run)
    again = run.parent.parent / "again" / run.name
    import_algoperf(logs, again)
    for name in (
        "cells.parquet",
        "plan.json",
        "trials.parquet",
        "algoperf.parquet",
        "records/nadamw.parquet",
    ):
        assert (run / name).read_bytes() == (again / name).read_bytes()


SHARED = Path(__file__).parents[2] / ".." / "shared" / "algoperf_v10"


@pytest.mark.skipif(not (SHARED / "logs.tar.xz").is_file(), reason="no ../shared/algoperf_v10 here")
def test_the_2026_logs(tmp_path, run):
    """Every published score and time to six digits, from the logs themselves; no counter of steps is doubted."""
    with tarfile.open(SHARED / "logs.tar.xz") as packed:
        packed.extractall(tmp_path / "logs", filter="data")
    done = import_algoperf(tmp_path / "logs", run)
    assert (done.num_trials, done.num_read, done.num_recorded, done.left_out) == (456, 12_591, 12_591, {})
    assert records.load_plan(run)["steps_withheld"] == {}
    assert "494 evaluations of a test split without examples" in done.notes[-1]
    found = algoperf_score.score(algoperf_score.read_evaluations(run))
    scores = pd.read_csv(SHARED / "scores.csv", index_col="submission")["score"]
    assert found.scores.set_index("submission")["score"].round(6).to_dict() == scores.round(6).to_dict()
    times = pd.read_csv(SHARED / "time_to_targets.csv", index_col="submission")
    wide = found.seconds.pivot(index="submission", columns="workload", values="seconds")
    assert times.shape == (17, 9)
    assert wide.loc[times.index, times.columns].round(6).equals(times.round(6))
    assert found.differences.empty


@pytest.mark.skipif(
    "ALGOPERF_LOGS" not in os.environ, reason="ALGOPERF_LOGS: AlgoPerf v0.5's external-tuning logs"
)
def test_the_real_logs(run):
    done = import_algoperf(Path(os.environ["ALGOPERF_LOGS"]), run)
    assert (done.num_trials, done.num_evaluations) == (1102, 73_219)
    assert records.load_plan(run)["steps_withheld"] == {}
    evaluations = algoperf_score.read_evaluations(run)
    found = algoperf_score.score(evaluations, exact=True).scores
    assert [f"{score:.6f}" for score in found["score"]] == ["0.714646", "0.732323", "0.861111"]
    here = Path(__file__).parents[1] / "data" / "algoperf_v05.csv.xz"
    cut = pd.read_csv(here, dtype={"seconds": "str", "metric": "str"})
    cut = cut.astype({"seconds": "float64", "metric": "float64"})
    key = ["submission", "workload", "study", "trial", "evaluation"]
    both = cut.merge(evaluations, on=key, suffixes=("", "_full"))
    assert len(both) == len(cut)
    for name in ("global_step", "seconds", "metric"):
        assert (both[name] == both[f"{name}_full"]).all()
