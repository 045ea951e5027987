import pytest

from analysis import report
from analysis.presentation import chart as panels
from analysis.run_folder import study
from tests.analysis.conftest import chart_of


def drawn(run):
    """The settings that figures show, the tables, and the figures there are."""
    (made,) = [report.Report(one, run) for one in study.read_each(run)]
    return made.known["look"], made.core, made


def test_of_many_settings_a_few_are_shown_with_the_chosen_and_the_best(make_run, average):
    averages = [average("ema", h / 1000, 0.9 + abs(h - 23) / 1000, every=e) for h in range(4, 60, 3) for e in (1, 2)]
    d, found, _ = drawn(make_run(lengths=[1.0], averages=averages, seeds=[0, 1]))
    for workload in d.workloads:
        mine = d.shown[(d.shown["workload"] == workload) & (d.shown["scheme"] == "ema")]
        assert len(mine) <= panels.MAX_SETTINGS + 2
        horizons = mine["horizon_fraction"]
        assert horizons.min() == 0.004
        assert horizons.max() == 0.058
        chosen = found.chosen[found.chosen["workload"] == workload]["setting"]
        best = found.horizons[found.horizons["best"] & (found.horizons["workload"] == workload)]
        assert set(chosen) | set(best["setting"]) <= set(mine["setting"])
    assert d.num_left_out == 2 * len(averages) - len(d.shown[d.shown["scheme"] != "none"])


def test_what_lies_far_from_the_chosen_horizon_is_not_shown_first(make_run, average):
    averages = [average("ema", 0.01, 0.9), average("tail", 0.5, 1.1, first=500)]
    d, _, _ = drawn(make_run(lengths=[1.0], averages=averages, seeds=[0, 1]))
    assert d.chosen == ["no averaging", "EMA 1 %"]


def test_a_figure_without_data_is_left_out(make_run, average):
    _, _, made = drawn(make_run(lengths=[1.0], averages=[average("ema", 0.01, 0.9)], seeds=[0, 1]))
    assert chart_of(made, "horizon") is None  # one horizon is no axis
    assert chart_of(made, "schedules") is None  # one schedule is no comparison
    assert chart_of(made, "snapshots") is None
    assert chart_of(made, "generalization") is not None
    assert panels.grid([]) is None


def test_an_axis_holds_its_values_and_what_must_be_seen():
    import pandas as pd

    table = pd.DataFrame({"low": [0.8, float("nan")], "high": [0.9, 1.3]})
    low, high = panels.span(table, ["low", "high"], include=1.0)
    assert low < 0.8
    assert high > 1.3
    assert panels.nice_horizons([0.004, 0.11]) == pytest.approx([0.005, 0.01, 0.02, 0.05, 0.1])
