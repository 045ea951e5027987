import pytest

from analysis import study, tables
from analysis.findings import conclusions, curve_conclusions
from analysis.pages import methods
from analysis.resampling import Interval, with_interval


def said(run):
    read = study.read(run)
    found = tables.compute(read)
    return read, found, conclusions.answer(read, found)


def test_the_answer_names_horizon_ratio_interval_workloads_and_seeds(make_run):
    _, _, answer = said(make_run(lengths=[1.0], spread=0.02))
    assert answer.startswith("EMA at an averaging horizon of 1 % of the step budget, fixed beforehand, reaches")
    assert "0.90 [0.88, 0.92]" in answer
    assert "2 of 2 workloads, 3 seeds each" in answer
    assert answer.endswith(". Both families need fewer steps.")


def test_no_effect_is_said_plainly(make_run, average):
    _, _, answer = said(make_run(lengths=[1.0], averages=[average("ema", 0.01, 1.0)], spread=0.03))
    assert "shows no effect" in answer
    assert "1.00 [0.9" in answer


def test_slower_is_said_plainly(make_run, average):
    _, _, answer = said(make_run(lengths=[1.0], averages=[average("ema", 0.01, 1.2)], spread=0.01))
    assert "is slower: the target takes 1.20" in answer


def test_a_bound_is_called_one(make_run, average):
    _, _, answer = said(make_run(lengths=[1.0], averages=[average("ema", 0.01, 1.6)]))
    assert "at least 1.33" in answer


def test_one_seed_gives_no_interval(make_run):
    _, _, answer = said(make_run(lengths=[1.0], seeds=[3]))
    assert "one seed gives no interval" in answer
    assert "[" not in answer


def test_without_a_target_it_says_so_and_reads_the_saving_curve(make_run, task):
    read, found, answer = said(make_run(tasks=[task("lm", "loss", False, 5.0, 1.0, None)], lengths=[1.0], spread=0.02))
    assert "target statistics are withheld" in answer
    assert "after 75 % of its training" in answer
    assert "lm 0.90 [0.8" in answer
    assert conclusions.ratio_findings(read, found) == []


def test_a_target_for_one_of_two_workloads(make_run, task, tasks):
    untargeted = task("mine:Own", "loss", False, 5.0, 1.0, None)
    read, _, answer = said(make_run(tasks=[tasks["lm"], untargeted], lengths=[1.0], spread=0.02))
    assert "1 of 2 workloads" in answer
    assert any("No target for mine:Own" in line for line in methods.notices(read))


def test_without_baseline_without_average_without_near_horizon(make_run, average):
    assert "no raw runs" in said(make_run(lengths=[1.0], none=False))[2]
    assert "raw runs only" in said(make_run(lengths=[1.0], averages=[]))[2]
    far = make_run(lengths=[1.0], averages=[average("ema", 0.05, 0.9)])
    assert "No averaging horizon near 1 %" in said(far)[2]


def test_nobody_meets_the_target(make_run, task):
    _, _, answer = said(make_run(tasks=[task("lm", "loss", False, 5.0, 1.0, 0.5)], lengths=[1.0]))
    assert "no pair of runs has met the target" in answer


def test_the_best_looking_horizon_is_called_optimistic(make_run, average):
    averages = [average("ema", 0.01, 0.95), average("ema", 0.04, 0.85)]
    read, found, _ = said(make_run(lengths=[1.0], averages=averages, spread=0.01))
    lines = conclusions.ratio_findings(read, found)
    assert any("EMA 4 %" in x and "picked after the fact" in x and "EMA 1 % 0.95" in x for x in lines)


def test_findings_of_every_figure(make_run):
    read, found, _ = said(make_run(spread=0.02))
    assert any("0.90, 0.90, 0.90" in line for line in curve_conclusions.findings(found))
    assert any("flat region of EMA" in line and "inside" in line for line in conclusions.horizon_findings(found))
    assert any("median steps to the target" in line for line in conclusions.schedule_findings(found))
    assert any("final metric changes by" in line for line in conclusions.generalization_findings(found))
    costs = conclusions.hours_findings(read, found, "CPU-core-hours")
    assert any("0.99 [0.94, 1.04]" in line for line in costs[:-1])
    assert "times as much" in costs[-1]


def test_incomplete_failed_and_diverged_are_said_first(make_run):
    read = study.read(make_run(lengths=[1.0], stop={"lm-1.0-0": 500}, diverge={"imagenet_vit-1.0-1": 300}))
    notices = list(methods.notices(read))
    assert "1 of 6 trajectories are not finished, 11 of 66 cells" in notices[0]
    assert any("1 trajectory diverged" in line for line in notices)
    assert list(methods.notices(study.read(make_run(lengths=[1.0])))) == []


@pytest.mark.parametrize(
    ("interval", "form", "text"),
    [
        (Interval(0.9, 0.8, 1.0), ".2f", "0.90 [0.80, 1.00]"),
        (Interval(0.9, float("nan"), float("nan")), ".2f", "0.90"),
        (Interval(-0.5, -1, 0), "+.1f", "−0.5 [−1.0, +0.0]"),
    ],
)
def test_numbers_with_intervals(interval, form, text):
    assert with_interval(interval, form) == text
