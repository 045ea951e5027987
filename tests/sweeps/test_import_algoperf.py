"""Made-up log folders with hand-worked outcomes; hostile files; and, where ALGOPERF_LOGS points to them, real logs."""

import json
import math
import os
import pickle
from pathlib import Path

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


@pytest.mark.parametrize("tail", ["2.0,5", "2.0,5\n", "15.0,250.0,500,0.01,265.0,0.1,2472,0.0"])
def test_a_torn_last_line_is_left_out(logs, run, tail):
    put(
        logs, lines(FALLING) + tail
    )  # the third is whole by its commas, and torn in its last number all the same
    done = import_algoperf(logs, run)
    assert done.num_evaluations == 4
    assert "1 torn" in done.notes[0]


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
    assert "2 trials were never evaluated" in done.notes[0]
    assert len(records.load_cells(run)) == 3
    assert records.load_trials(run)["status"].tolist() == ["done", "failed", "failed"]
    assert algoperf_score.score(algoperf_score.read_evaluations(run)).seconds["num_missed"].tolist() == [2]


def test_folders_that_are_no_workload_are_left_out_and_counted(logs, run):
    put(logs)
    (logs / "nadamw" / "study_0" / "trial_1").mkdir()
    (logs / "nadamw" / "notes").mkdir()
    (logs / "nadamw" / "study_0" / "wmt_jax" / "trial_01").mkdir()  # would be trial 1 twice
    (logs / "README.md").write_text("not a folder")
    os.symlink(logs, logs / "nadamw" / "study_7")
    assert import_algoperf(logs, run).notes == ["1 folders are no <workload>_<framework> and were left out."]


# --- does global_step count optimizer steps? ----------------------------------------------------------------------


def withheld(logs, run, **options):
    import_algoperf(logs, run, **options)
    return records.load_plan(run)["steps_withheld"]


def test_a_counter_off_the_hinted_pace(logs, run):
    put(
        logs, lines(FALLING, steps=[510, 1020, 1530, 2040], seconds=[100, 200, 300, 400])
    )  # 2.55 times 2 a second
    put(logs, lines(FALLING, steps=[490, 980, 1470, 1960], seconds=[100, 200, 300, 400]), trial=2)
    assert withheld(logs, run) == {"nadamw.study0.wmt_jax.trial1": "it runs at 2.5 times the hinted pace"}
    cells = records.load_cells(run).set_index("trial")
    assert cells["target"].isna().to_dict() == {1: True, 2: False}
    assert set(study.read(run).records["cell_id"]) == {"nadamw.study0.wmt_jax.trial2"}
    found = algoperf_score.trials_to_target(algoperf_score.read_evaluations(run))
    assert found["seconds"].tolist() == [400, 400]
    assert found["step"].isna().tolist() == [True, False]


def test_a_counter_is_measured_against_other_submissions_where_there_are_enough(logs, run):
    # A machine five times as fast as the one of the hint is no reason to doubt a counter.
    for submission in "abc":
        put(logs, lines(FALLING, seconds=[10, 20, 30, 40]), submission=submission)
    put(logs, lines(FALLING, steps=[300, 600, 900, 1200], seconds=[10, 20, 30, 40]), submission="d")
    assert list(withheld(logs, run)) == ["d.study0.wmt_jax.trial1"]
    notes = records.load_plan(run)["notes"]
    assert notes[0].startswith("d: global_step of 1 trials does not count optimizer steps")


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


def _json(text):
    return lambda folder: (folder / "hparams.json").write_bytes(text)


def _linked(folder):
    (folder / "eval_measurements.csv").unlink()
    os.symlink("/etc/hostname", folder / "eval_measurements.csv")


def _pipe(folder):
    (folder / "eval_measurements.csv").unlink()
    os.mkfifo(folder / "eval_measurements.csv")


def _large(name):
    return lambda folder: os.truncate(folder / name, 2**26)


WHOLE = lines(FALLING)
REFUSED = {
    "column global_step missing": (_csv(WHOLE.replace("global_step", "step")), "'global_step' is missing"),
    "metric missing": (_csv(WHOLE.replace("validation/wer", "v")), "'validation/wer' is missing"),
    "seconds missing": (_csv(WHOLE.replace("accumulated_submission_time", "t")), "time' is missing"),
    "column twice": (_csv(WHOLE.replace("total_duration", "global_step")), "stands twice"),
    "empty file": (_csv(""), "no complete line"),
    "header torn": (_csv("global_step,accum"), "no complete line"),
    "a line short inside": (_csv(WHOLE.replace("2472,0.3\n", "2472\n")), ":3: 7 fields"),
    "not a number": (_csv(WHOLE.replace(",300,", ",three,")), ":4: global_step is 'three'"),
    "half a step": (_csv(WHOLE.replace(",300,", ",300.5,")), ":4: global_step is 300.5"),
    "a step NaN": (_csv(WHOLE.replace(",300,", ",,")), "not a whole number"),
    "steps beyond counting": (_csv(WHOLE.replace(",300,", ",1e300,")), "not a whole number"),
    "seconds negative": (_csv(WHOLE.replace(",150.0,", ",-150.0,")), "is -150, not seconds"),
    "seconds NaN": (_csv(WHOLE.replace(",150.0,", ",nan,")), "not seconds"),
    "not text": (_csv(b"\xff\xfe\x00" + WHOLE.encode()), "not CSV"),
    "a field without end": (_csv('"' + "x" * 200_000 + "\n"), "not CSV"),
    "linked file": (_linked, "not a plain file"),
    "a pipe": (_pipe, "not a plain file"),
    "CSV too large": (_large("eval_measurements.csv"), "67,108,864 bytes"),
    "JSON too large": (_large("hparams.json"), "67,108,864 bytes"),
    "JSON torn": (_json(b'{"learning_rate": 0.0'), "not JSON"),
    "JSON too deep": (_json(b"[" * 200_000), "not JSON"),
    "JSON list": (_json(b"[1]"), "not a JSON object"),
    "no metadata": (lambda folder: (folder / "meta_data_0.json").unlink(), "missing"),
    "unknown metric": (_meta(target_metric_name="vibes"), "'vibes'; allowed: loss"),
    "metric not a name": (_meta(target_metric_name=3), "allowed: loss"),
    "metric a list": (_meta(target_metric_name=["wer"]), "allowed: loss"),
    "target not a number": (_meta(validation_target_value="0.1"), "validation_target_value is '0.1'"),
    "target NaN": (_meta(validation_target_value=math.nan), "validation_target_value is 'nan'"),
    "no step hint": (_meta(step_hint=0), "not a number ≥ 1"),
    "runtime infinite": (_meta(max_allowed_runtime_sec=math.inf), "max_allowed_runtime_sec"),
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
    monkeypatch.setattr("sweeps.import_algoperf.dump_yaml", lambda value: 1 / 0)
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
