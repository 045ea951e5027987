"""Made-up log folders with hand-worked outcomes; the 2026 logs; and, where ALGOPERF_LOGS points to them, v0.5's."""

import os
import tarfile
from pathlib import Path

import pandas as pd
import pytest
from algoperf_logs import FALLING, META, POINT, lines, put
from click.testing import CliRunner

from analysis import report
from analysis.run_folder import records, study
from analysis.statistics import algoperf_score, device_hours
from analysis.statistics.steps_to_target import steps_to_target
from sweeps import cli
from sweeps.importers import command
from sweeps.importers.algoperf import BadLogs, import_algoperf
from sweeps.targets import Target


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
    assert (target.value, target.metric, target.higher_is_better, target.preset) == (0.1, "wer", False, "full")
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
            put(logs, trial=trial, round_=round_, point=POINT | {"label_smoothing": smoothing, "dropout_rate": 0.1})
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
    assert "Of 2 submissions a has the highest score, 1.000, and is fastest on 1 of 1 workload" in text
    assert "its lead over b is undecided" in text
    assert "wmt: wer at most 0.1; published: workload.validation_target_value of the logs" in text
    assert "incomplete" not in text
    assert '<h2 id="profiles">' in text
    for name in ("figures/profiles.pdf", "tables/score_scores.csv"):
        assert (run / name).is_file()
    table = pd.read_csv(run / "tables" / "score_times.csv")
    assert set(table["measure"]) == {"clean", "algoperf-exact"}
    assert (table["time"] == 200.0).all()


def test_a_trial_never_evaluated_is_a_miss_and_not_forgotten(logs, run):
    put(logs, round_=0)
    put(logs, round_=1, text="")
    put(logs, round_=2, text="", meta=None)
    done = import_algoperf(logs, run)
    assert done.notes[0].startswith("Never evaluated, a miss each: 2 trials, nadamw.study1.wmt_jax.trial1, nadamw")
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


@pytest.mark.usefixtures("undrawn")
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
    for name in ("cells.parquet", "plan.json", "trials.parquet", "algoperf.parquet", "records/nadamw.parquet"):
        assert (run / name).read_bytes() == (again / name).read_bytes()


ASKED = {
    "": None,
    "--algoperf-exact": "as logged",
    "--exact": "as logged",
    "--algoperf-exact v0.6": "v0.6",
    "--algoperf-exact=v1.0": "v1.0",
    "--exact v0.5": "v0.5",
}


@pytest.mark.parametrize("first", [True, False], ids=["before the folder", "after it"])
@pytest.mark.parametrize(("asked", "exact"), ASKED.items(), ids=ASKED.keys())
def test_the_exact_rule_stands_alone_or_names_its_leaderboard(asked, exact, first):
    words = [*asked.split(), "LOGS", "-o", "RUN"] if first else ["LOGS", "-o", "RUN", *asked.split()]
    found = command.import_algoperf.make_context("algoperf", words).params
    assert (found["exact"], found["logdir"], found["out"]) == (exact, Path("LOGS"), Path("RUN"))


@pytest.mark.usefixtures("undrawn")
def test_the_command_says_whose_code_it_follows_and_where_the_lines_went(logs, run):
    v05 = {**META, "workload.step_hint": 133_333, "workload.max_allowed_runtime_sec": 48_151}
    put(logs, lines(FALLING, steps=[100, 200, 300, 400]) + "2.0,5", meta=v05)
    told = CliRunner().invoke(cli.main, ["import", "algoperf", "--algoperf-exact", str(logs), "-o", str(run)])
    assert told.exit_code == 0, told.output
    assert "1 trial; 5 lines read, 4 recorded, 1 torn" in told.output
    assert "scores by AlgoPerf's own code, v0.5" in " ".join(told.output.split())
    assert "0.000000" in told.output  # its held-out variant is not there
    wrong = CliRunner().invoke(
        cli.main, ["import", "algoperf", str(logs), "-o", str(run.with_name("x")), "--exact", "v0.7"]
    )
    assert wrong.exit_code == 2
    assert not run.with_name("x").exists()


@pytest.mark.usefixtures("undrawn")
def test_the_baseline_that_the_report_measures_against(logs, run):
    """As named on import, kept for later reports; named again, for one report; a wrong name writes nothing."""
    for submission, wers in (("nadamw", [0.9, 0.3, 0.1]), ("ours", [0.9, 0.1]), ("theirs", FALLING)):
        for dropout in (0.0, 0.1):  # cells' names then are not the submissions'
            put(logs, lines(wers), submission, trial=int(dropout * 10), point={**POINT, "dropout": dropout})

    def wa(*words):
        return CliRunner().invoke(cli.main, [*map(str, words)])

    def measured(baseline=None):
        (read,) = report.of_run(run, baseline)
        return set(read.frames["against_baseline"]["baseline"])

    refused = wa("import", "algoperf", logs, "-o", run, "--baseline", "mine")
    assert (refused.exit_code, run.exists()) == (2, False)
    assert "no submission 'mine'; allowed: nadamw, ours, theirs" in refused.output
    done = wa("import", "algoperf", logs, "-o", run, "--baseline", "ours")
    assert done.exit_code == 0, done.output
    assert set(pd.read_csv(run / "tables" / "against_baseline.csv")["baseline"]) == {"ours"}
    assert (measured("theirs"), measured()) == ({"theirs"}, {"ours"})
    refused = wa("report", run, "--baseline", "theirs (dropout 0.1)")
    assert refused.exit_code == 2
    assert "allowed: nadamw, ours, theirs" in refused.output


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


@pytest.mark.skipif("ALGOPERF_LOGS" not in os.environ, reason="ALGOPERF_LOGS: AlgoPerf v0.5's external-tuning logs")
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
