"""Does global_step count optimizer steps? By submission and workload, within a framework."""

import pytest
from algoperf_logs import FALLING, lines, put

from analysis import report
from analysis.run_folder import records, study
from analysis.statistics import algoperf_score
from sweeps.importers.algoperf import BadLogs, import_algoperf


@pytest.fixture
def logs(tmp_path):
    return tmp_path / "logs"


@pytest.fixture
def run(tmp_path):
    return tmp_path / "runs" / "imported"


def withheld(logs, run, **options):
    import_algoperf(logs, run, **options)
    return records.load_plan(run)["steps_withheld"]


def paced(pace, seconds=(50, 100, 150, 200)):
    """A log whose counter runs at `pace` times the hinted one, 2 a second."""
    return lines(FALLING, steps=[round(2 * pace * second) for second in seconds], seconds=list(seconds))


def test_a_counter_far_off_the_hinted_pace(logs, run):
    # Calls of many steps run at most at .027, steps at least at .15 of the hinted pace; micro-batches beyond 16.
    for trial, pace in enumerate((0.027, 0.15, 3.7, 17), start=1):
        put(logs, paced(pace), submission=f"s{trial}", workload=["wmt", "ogbg", "fastmri", "criteo1tb"][trial - 1])
    assert withheld(logs, run) == {
        "s1.study0.wmt_jax.trial1": "it runs at 0.027 times the hinted pace; the threshold is 1/16",
        "s4.study0.criteo1tb_jax.trial1": "it runs at 17 times the hinted pace; the threshold is 16",
    }
    cells = records.load_cells(run).set_index("optimizer")
    assert cells["target"].isna().to_dict() == {"s1": True, "s2": False, "s3": False, "s4": True}
    assert set(study.read(run).records["cell_id"]) == {"s2.study0.ogbg_jax.trial1", "s3.study0.fastmri_jax.trial1"}
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


def test_the_pace_of_others_is_that_of_one_framework(logs, run):
    for number in range(5):
        put(logs, paced(10), submission=f"fast{number}", framework="pytorch")
    put(logs, paced(0.2), submission="slow", framework="jax")  # a fiftieth of theirs, a fifth of the hint's
    assert withheld(logs, run) == {}


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
    assert reasons["nadamw.study0.wmt_jax.trial1"] == "too short to tell, and it counts none on any other workload"
    assert list(reasons) == ["nadamw.study0.ogbg_jax.trial1", "nadamw.study0.wmt_jax.trial1"]


def test_a_counter_is_measured_against_other_submissions_where_they_are_faster(logs, run):
    # A machine ten times as fast as the one of the hint is no reason to doubt a counter.
    for submission in "abc":
        put(logs, paced(10), submission=submission)
    put(logs, paced(0.5), submission="d")
    assert list(withheld(logs, run)) == ["d.study0.wmt_jax.trial1"]
    notes = records.load_plan(run)["notes"]
    assert "0.5 times the hinted pace, 0.05 times that of the others in jax; the threshold is 1/16" in notes[0]


def test_a_counter_that_falls_or_stalls_while_the_clock_runs_on(logs, run):
    put(logs, lines(FALLING, steps=[100, 200, 150, 400], seconds=[50, 100, 150, 200]), trial=1)
    put(logs, lines(FALLING, steps=[100, 100, 100, 400], seconds=[50, 100, 150, 200]), trial=2)
    put(logs, lines(FALLING, steps=[100, 200, 300, 300], seconds=[50, 100, 150, 200]), trial=3)
    reasons = withheld(logs, run)
    assert [reason.split()[1] for reason in reasons.values()] == ["falls", "stands"]
    assert algoperf_score.trials_to_target(algoperf_score.read_evaluations(run))["seconds"].tolist() == [200] * 3


def test_a_submission_known_to_count_calls(logs, run):
    put(logs)
    put(logs, submission="calls")
    assert withheld(logs, run, not_steps=frozenset({"calls"})) == {"calls.study0.wmt_jax.trial1": "said so"}
    with pytest.raises(BadLogs, match="no submission 'cals'"):
        import_algoperf(logs, run.with_name("other"), frozenset({"cals"}))


@pytest.mark.usefixtures("undrawn")
def test_steps_withheld_from_every_trial_leave_a_report(logs, run):
    put(logs)
    put(logs, round_=1)
    import_algoperf(logs, run, frozenset({"nadamw"}))
    assert report.write(run).is_file()
