"""A report answers what its study asks: the same folder, three questions."""

import json

import pytest

from analysis.findings import answers, training_answers
from analysis.records import load_plan
from analysis.study import read
from analysis.tables import compute


def say(run, what):
    plan = load_plan(run)
    plan["studies"][0]["report"] = what
    (run / "plan.json").write_text(json.dumps(plan))


@pytest.fixture
def asked(make_run, task, average):
    """asked(what) -> the answer of a study of three workloads that asks it."""
    tasks = [task(name, "loss", False, 5.0, 1.0, 2.0) for name in ("a", "b", "c")]
    schemes = [average("ema", h, r) for h, r in ((0.005, 0.95), (0.01, 0.9), (0.02, 0.85), (0.04, 0.95))]
    run = make_run(tasks=tasks, lengths=[1.0], averages=schemes, spread=0.02, seed_shift=0.02)
    tables = compute(read(run))

    def ask(what):
        say(run, what)
        return answers.answer(read(run), tables), training_answers.answer(read(run), tables)

    return ask


def test_the_final_metric_is_told_as_a_factor_with_its_interval(asked):
    answer, _ = asked("final_metric")
    assert answer.startswith(
        "At the end of training EMA at a horizon of 1 %, fixed beforehand, changes the metric by a"
    )
    assert "factor of 0." in answer
    assert "[" in answer
    assert "better on" in answer or "no effect shown on 3 of 3" in answer


def test_the_horizon_is_told_with_its_optimum_and_how_flat_it_is(asked):
    answer, default = asked("horizon")
    assert "best at a horizon of" in answer
    assert "(median over 3 workloads" in answer
    assert answer.endswith(default.split(" Of 3 families")[0])


@pytest.mark.parametrize("what", ["steps", None])
def test_steps_to_target_is_what_is_asked_by_default(asked, what):
    answer, default = asked(what)
    assert answer == default


def test_a_study_that_asks_for_steps_is_not_answered_by_the_schedules_it_varies(make_run, average):
    run = make_run(lengths=[0.5, 1.0], averages=[average("ema", 0.01, 0.9)])
    tables = compute(read(run))
    assert "of the full-length run is" in answers.answer(read(run), tables)
    say(run, "steps")
    assert answers.answer(read(run), tables).startswith("EMA at an averaging horizon of 1 %")
