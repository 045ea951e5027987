import math

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from analysis.run_folder import study
from analysis.run_folder.records import TRIALS
from analysis.statistics.steps_to_target import (
    HELD,
    first_crossing,
    first_crossings,
    grid_sd,
    least_steps,
    running_best,
    steps_to_target,
)

STEPS = np.array([10.0, 20.0, 30.0, 40.0, 50.0])


def crossing(metric, target, higher=False, in_a_row=1, steps=STEPS):
    return first_crossing(np.asarray(steps, float), np.asarray(metric, float), target, higher, in_a_row)


def test_meets_between_two_evaluations():
    found = crossing([5, 4, 2, 1.5, 1], 2.5)
    assert (found.lower, found.upper) == (20, 30)
    assert found.point == pytest.approx(20 + 10 * (4 - 2.5) / (4 - 2))


def test_higher_is_better_is_the_mirror():
    found = crossing([0.1, 0.2, 0.4, 0.5, 0.6], 0.3, higher=True)
    assert found == pytest.approx((20, 30, 25))
    assert crossing([0.1, 0.2, 0.4, 0.5, 0.6], 0.3, higher=False).upper == 10


def test_equal_to_the_target_meets_it():
    assert crossing([5, 4, 3, 2, 1], 3) == (20, 30, 30)


def test_exactly_at_the_last_evaluation():
    assert crossing([5, 4, 3, 2, 1], 1) == (40, 50, 50)
    assert math.isnan(crossing([5, 4, 3, 2, 1], 0.999).point)


def test_first_evaluation_meets_already():
    assert crossing([1, 1, 1, 1, 1], 2) == (0, 10, 10)


def test_nan_never_meets_and_says_nothing_on_where_between():
    assert crossing([5, np.nan, 1, 1, 1], 2) == (20, 30, 30)
    assert math.isnan(crossing([np.nan] * 5, 2).upper)
    assert math.isnan(crossing([5, -np.inf, 4, 4, 4], 2).upper)


def test_held_asks_for_evaluations_in_a_row():
    spike = [5, 1.9, 4, 1.8, 1.7]
    assert crossing(spike, 2).upper == 20
    assert crossing(spike, 2, in_a_row=2) == pytest.approx((30, 40, 30 + 10 * 2 / 2.2))
    assert math.isnan(crossing(spike, 2, in_a_row=3).upper)  # two evaluations left: cannot be held
    assert crossing([5, 1.9, 1.8, 1.7, 3], 2, in_a_row=3).upper == 20


@pytest.mark.parametrize(
    ("metric", "held"),
    [
        ([5, 1.9, 1.8, 4, 1.9, 1.8, 1.7], (40, 50)),  # two in a row do not hold, the next three do
        ([5, 1.9, 1.8, 4, 1.9, 1.8, 3], None),
        ([5, 4, 1.9, 1.8, 1.7, 4, 4], (20, 30)),
        ([1.9, 1.8, 1.7, 4, 4, 4, 4], (0, 10)),
    ],
)
def test_a_target_is_held_by_three_evaluations_in_a_row(frame_of, metric, held):
    at = np.arange(10, 80, 10)
    cell = frame_of(
        cell_id=["a"],
        target=2.0,
        higher_is_better=False,
        state="finished",
        last_step=70,
        length_steps=70,
        step_budget=70,
    )
    records = frame_of(cell_id="a", step=at, metric=np.array(metric, float), diverged=False)
    (row,) = steps_to_target(cell, records).to_dict("records")
    assert row["held_censored"] == (held is None)
    assert held is None or (row["held_lower"], row["held_upper"]) == held


def test_no_records():
    assert math.isnan(first_crossing(np.empty(0), np.empty(0), 1.0, False).point)
    assert np.isnan(first_crossings(np.empty(0), np.empty(0), np.array([1.0]), False).point).all()


metrics = st.lists(
    st.floats(-100, 100, allow_nan=False, allow_subnormal=False) | st.just(math.nan), min_size=1, max_size=30
)


@given(metrics, st.lists(st.floats(-100, 100), min_size=1, max_size=8), st.booleans())
def test_many_targets_at_once_equal_one_by_one(metric, targets, higher):
    steps = np.arange(1, len(metric) + 1) * 7.0
    many = first_crossings(steps, np.array(metric), np.array(targets), higher).point
    single = [crossing(metric, target, higher, steps=steps).point for target in targets]
    np.testing.assert_array_equal(many, single)


@given(metrics, st.floats(-100, 100), st.booleans(), st.floats(0.01, 1000))
def test_scaling_steps_scales_steps_to_target(metric, target, higher, factor):
    steps = np.arange(1, len(metric) + 1) * 3.0
    one = crossing(metric, target, higher, steps=steps)
    other = crossing(metric, target, higher, steps=steps * factor)
    np.testing.assert_allclose(other, np.array(one) * factor, rtol=1e-9)


@given(metrics, st.floats(-100, 100), st.floats(0, 50), st.booleans())
def test_a_harder_target_never_comes_earlier(metric, target, harder, higher):
    steps = np.arange(1, len(metric) + 1) * 3.0
    hard = target + harder if higher else target - harder
    easy_point, hard_point = first_crossings(steps, np.array(metric), np.array([target, hard]), higher).point
    assume(not math.isnan(hard_point))
    assert easy_point <= hard_point + 1e-9


@given(metrics, st.floats(-100, 100), st.booleans())
def test_the_point_lies_in_its_interval_and_held_is_never_earlier(metric, target, higher):
    steps = np.arange(1, len(metric) + 1) * 3.0
    first = crossing(metric, target, higher, steps=steps)
    held = crossing(metric, target, higher, HELD, steps=steps)
    if not math.isnan(first.upper):
        assert first.lower <= first.point <= first.upper
    if not math.isnan(held.upper):
        assert first.upper <= held.upper


def test_running_best_skips_nan():
    np.testing.assert_array_equal(running_best(np.array([np.nan, 3.0, 4.0, np.nan, 2.0]), False), [np.nan, 3, 3, 3, 2])
    np.testing.assert_array_equal(running_best(np.array([3.0, 1.0, 5.0]), True), [3, 3, 5])


def table(run):
    read = study.read(run)
    steps = steps_to_target(read.cells, read.records)
    return read, steps.merge(read.cells[["cell_id", "scheme", "horizon_fraction", "seed"]], on="cell_id")


def test_closed_form_run_both_directions(make_run):
    _, steps = table(make_run(lengths=[1.0], noise=0.0))
    raw = steps[steps["scheme"] == "none"]
    assert len(raw) == 6  # two workloads, three seeds
    np.testing.assert_allclose(raw["point"], 750.0)
    np.testing.assert_allclose(raw["lower"], 740.0)
    np.testing.assert_allclose(raw["upper"], 760.0)
    ema = steps[(steps["scheme"] == "ema") & (steps["horizon_fraction"] == 0.01)]
    np.testing.assert_allclose(ema["point"], 675.0)
    assert not steps["lost_again"].any()
    assert set(steps["status"]) == {"met"}


def test_missed_cells_stay_and_count_at_the_step_budget(make_run, task):
    hard = task("lm", "loss", False, 5.0, 1.0, 1.2)  # length 0.5 ends at 1.3
    _, steps = table(make_run(tasks=[hard], lengths=[0.5]))
    assert len(steps) == 33
    assert steps["censored"].all()
    assert set(steps["status"]) == {"missed"}
    assert set(steps["last_step"]) == {500}
    assert set(steps["counted_steps"]) == {1000.0}  # a schedule that has ended does not meet it later
    assert set(steps["ranked_steps"]) == {1000.0}
    assert steps["point"].isna().all()


def test_a_run_that_ended_at_a_time_limit_counts_as_far_as_it_was_seen(make_run):
    # A log that stops at 600 of 1,000 steps, and is done: its target would have taken more than 600.
    run = make_run(lengths=[1.0], averages=[], noise=0.0, stop={"lm-1.0-0": 600, "imagenet_vit-1.0-1": 800})
    trials = pq.read_table(run / "trials.parquet").to_pylist()
    done = pa.Table.from_pylist([row | {"status": "done"} for row in trials], schema=TRIALS)
    pq.write_table(done, run / "trials.parquet")
    _, steps = table(run)
    lm = steps[steps["cell_id"].str.startswith("lm")].set_index("seed").loc[0]
    assert (lm["status"], lm["last_step"]) == ("missed", 600)
    assert lm["counted_steps"] == lm["held_counted_steps"] == 600
    assert lm["ranked_steps"] == 1000  # behind the other seeds, which met it at 750
    vit = steps[steps["cell_id"].str.startswith("imagenet_vit")].set_index("seed").loc[1]
    assert (vit["status"], vit["counted_steps"], vit["ranked_steps"]) == ("met", 750, 750)


@pytest.mark.parametrize(
    ("state", "last", "length", "least"),
    [
        ("finished", 500, 500, 1000),  # a short schedule, trained to its end
        ("finished", 880, 1000, 880),  # stopped at 88 % of T
        ("finished", 1000, 1000, 1000),
        ("finished", 1200, 1000, 1000),  # past its budget
        ("finished", 300, 500, 300),  # a short schedule that stopped as well
        ("diverged", 300, 1000, 1000),
        ("unfinished", 300, 1000, math.nan),
    ],
)
def test_least_steps_of_a_miss(state, last, length, least):
    cell = {"state": state, "last_step": last, "length_steps": length, "step_budget": 1000}
    np.testing.assert_equal(least_steps(cell), float(least))


def test_held_is_censored_near_the_end(make_run, task):
    late = task("lm", "loss", False, 5.0, 1.0, 1.04)  # met at 990: only the last evaluation meets
    _, steps = table(make_run(tasks=[late], lengths=[1.0], averages=[]))
    assert (steps["upper"] == 1000).all()
    assert steps["held_censored"].all()
    assert (steps["held_counted_steps"] == 1000).all()


def test_diverged_and_unfinished_runs(make_run):
    run = make_run(lengths=[1.0], averages=[], diverge={"lm-1.0-0": 300}, stop={"lm-1.0-1": 400})
    _, steps = table(run)
    lm = steps[steps["cell_id"].str.startswith("lm")].set_index("seed")
    assert lm.loc[0, "status"] == "diverged"
    assert lm.loc[0, "counted_steps"] == 1000
    assert lm.loc[0, "last_step"] == 300
    assert lm.loc[1, "status"] == "unfinished"
    assert math.isnan(lm.loc[1, "counted_steps"])
    assert lm.loc[2, "status"] == "met"


def test_a_diverged_run_that_met_the_target_before_has_met_it(make_run):
    _, steps = table(make_run(lengths=[1.0], averages=[], diverge={"lm-1.0-0": 900}))
    first = steps[steps["cell_id"] == "lm-1.0-0-none-nan-2"].iloc[0]
    assert first["status"] == "met"
    assert first["point"] == pytest.approx(750)
    assert first["lost_again"]


def test_a_trajectory_without_records_stays_in_the_table(make_run):
    _, steps = table(make_run(lengths=[1.0], averages=[], missing=("lm-1.0-2",)))
    assert len(steps) == 6
    assert (steps["status"] == "unfinished").sum() == 1


def test_no_target_no_row(make_run, task):
    _, steps = table(make_run(tasks=[task("lm", "loss", False, 5.0, 1.0, None)], lengths=[1.0], averages=[]))
    assert len(steps) == 0


def test_an_average_that_does_not_exist_yet_has_no_crossing_before_it_does(make_run, task, average):
    easy = task("lm", "loss", False, 5.0, 1.0, 4.5)  # LAWA of horizon 0.3 exists after step 300
    run = make_run(tasks=[easy], lengths=[1.0], averages=[average("lawa", 0.3, 0.9, first=300)])
    _, steps = table(run)
    lawa = steps[steps["scheme"] == "lawa"]
    assert set(lawa["upper"]) == {320}
    assert set(lawa["point"]) == {320}
    assert set(lawa["lower"]) == {0}


def test_order_of_rows_does_not_matter(make_run):
    read, steps = table(make_run(lengths=[0.5, 1.0], noise=0.02))
    shuffled = read.records.sample(frac=1, random_state=1).reset_index(drop=True)
    again = steps_to_target(read.cells, shuffled)
    columns = list(again.columns)
    assert again.equals(steps[columns])


@pytest.mark.parametrize(("lower", "upper"), [(740, 760), (100, 300), (1, 1000), (0, 20)])
def test_the_error_of_a_crossing_is_that_of_a_uniform_one(lower, upper):
    logs = np.log(lower + (upper - lower) * (np.arange(1_000_000) + 0.5) / 1_000_000)
    assert grid_sd(lower, upper) == pytest.approx(logs.std(), rel=1e-3)
    if lower == 740:
        assert grid_sd(lower, upper) == pytest.approx(np.log(760 / 740) / np.sqrt(12), rel=1e-3)
    assert grid_sd(np.array([np.nan]), np.array([np.nan])).tolist() == [0]  # never met: no error, a bound
