"""Recommendations of run folders whose ratios are known in closed form."""

import dataclasses
import json

import numpy as np
import pandas as pd
import pytest

from analysis import recommend as module
from analysis import selection
from analysis.core import core
from analysis.recommend import of_core
from analysis.run_folder.study import read


def recommend(run, every=None):
    """Of a folder of one study."""
    (found,) = module.recommend(run, every)
    return found


def averages(average, ratios, scheme="ema", every=2):
    return [average(scheme, horizon, ratio, every) for horizon, ratio in ratios.items()]


GOOD = {0.005: 0.95, 0.01: 0.9, 0.02: 0.85, 0.04: 0.92, 0.08: 1.05}


def test_the_best_setting_its_saving_and_its_steps(make_run, average):
    made = averages(average, GOOD) + averages(average, {0.02: 0.93}, "lawa")
    found = recommend(make_run(lengths=[1.0], averages=made))
    best = found.overall
    assert (best.verdict, best.setting, best.scheme, best.horizon) == ("shown", "EMA 2 %", "ema", 0.02)
    for interval in (best.ratio, best.expected, best.corrected, best.own):
        assert interval.value == pytest.approx(0.85)
        assert 0.82 < interval.low < 0.84 < 0.86 < interval.high < 0.88  # the evaluation grid, 2 % of the budget
    assert best.flat == (0.02, 0.02)
    assert (best.num_settings, best.num_pairs, best.missed, best.baseline_missed, best.pending) == (6, 6, 0, 0, 0)
    assert found.primary.setting == "EMA 1 %"
    assert found.primary.own.value == pytest.approx(0.9)
    assert [choice.where for choice in found.by_workload] == ["imagenet_vit", "lm"]
    one = found.snapshots[1]
    # h = 2 % of 1,000 steps = 20: LAWA k = 20/2; γ = (20 − 2)/(20 + 2)
    assert (one.workload, one.horizon_steps, one.every, one.k) == ("lm", 20.0, 2, 10)
    assert one.decay == pytest.approx(18 / 22)
    first, second = found.answer
    assert first.startswith("Use EMA 2 %: it takes 0.85 [0.84, 0.86] of the best non-averaged schedule's steps")
    assert "from 6 settings: a saving of 15 % [14, 16] is shown (2 workloads, 3 seeds each; 95 % over seeds)." in first
    assert second.startswith("The pre-specified setting, EMA 1 %, takes 0.90 [0.89, 0.91]")
    text = found.text()
    assert text.index(first) < text.index("LAWA k") < text.index("What it rests on")
    assert "2 workloads, 6 trajectories, 42 cells, 2,100 evaluations; seeds 0, 1, 2" in text
    assert "target of lm: loss at most 2 (3 target seeds)" in text


def test_as_json_it_says_the_same_and_has_no_nan(make_run, average):
    found = recommend(make_run(lengths=[1.0], seeds=[0], averages=averages(average, GOOD)))
    told = json.loads(json.dumps(found.as_dict(), allow_nan=False))
    assert told["answer"] == list(found.answer)
    assert told["overall"]["expected"] == [None, None, None]


def test_the_study_names_what_is_pre_specified(make_run, average):
    run = make_run(lengths=[1.0], averages=averages(average, GOOD) + averages(average, {0.04: 0.8}, "lawa"))
    plan = json.loads((run / "plan.json").read_text())
    (run / "plan.json").write_text(json.dumps(plan | {"primary": {"scheme": "lawa", "horizon": 0.04}}))
    assert recommend(run).primary.setting == "LAWA 4 %"
    (run / "plan.json").write_text(json.dumps(plan | {"primary": {"scheme": "tail", "horizon": 0.04}}))
    assert recommend(run).answer[1] == "The pre-specified setting, Tail at 4 %, was not run."


@pytest.mark.parametrize(("every", "steps", "k"), [(4, 4, 5), (0.01, 10, 2), (30, 30, 1)])
def test_at_a_given_snapshot_interval(make_run, average, every, steps, k):
    found = recommend(make_run(lengths=[1.0], averages=averages(average, {0.02: 0.85})), every)
    one = found.snapshots[0]
    assert (one.every, one.k) == (steps, k)
    assert one.decay == (None if steps > 20 else pytest.approx((20 - steps) / (20 + steps)))


def test_an_interval_of_no_length_is_refused(make_run, average):
    for every in (0, -1, np.nan):
        with pytest.raises(ValueError, match="every"):
            recommend(make_run(lengths=[1.0], averages=averages(average, {0.02: 0.85})), every)


def test_undecided_says_how_many_seeds_would_decide(make_run, average):
    found = recommend(make_run(lengths=[1.0], averages=averages(average, {0.01: 0.99, 0.02: 1.2}), spread=0.05))
    assert found.overall.verdict == "undecided"
    assert found.answer[0].startswith("Undecided: the best of 2 settings, EMA 1 %, takes 0.99 [")
    assert f"about {found.overall.needed} seeds would decide" in found.answer[0]


def test_slower_everywhere_is_shown(make_run, average):
    found = recommend(make_run(lengths=[1.0], averages=averages(average, {0.01: 1.1, 0.02: 1.2})))
    assert found.overall.verdict == "shown"
    assert found.answer[0].startswith("No average helps: the best of 2 settings, EMA 1 %, takes 1.10 [1.08, 1.12]")
    found = recommend(make_run(lengths=[1.0], averages=averages(average, {0.01: 1.1})))
    assert found.answer[0].startswith("EMA 1 % takes 1.10")  # one setting was not selected from any


def test_no_effect_needs_its_margin(make_run, average, task):
    made = averages(average, {0.01: 1.0, 0.02: 1.003})
    assert recommend(make_run(lengths=[1.0], averages=made)).overall.verdict == "undecided"  # the grid leaves 2 %
    tasks = [task(f"w{i}", "loss", False, 5.0, 1.0, 2.0) for i in range(12)]
    found = recommend(make_run(tasks=tasks, lengths=[1.0], averages=made))
    assert found.overall.verdict == "excluded"
    assert found.answer[0].startswith("No saving of more than 1 %: the best of 2 settings")


def test_a_selected_setting_is_measured_on_seeds_that_had_no_say(frame_of):
    """Setting i is .7 on seed i and 1.1 elsewhere: all look like .95, none is worth less than 1.1 on a new seed."""
    seeds = [0, 1, 2] * 3
    names = ["a"] * 3 + ["b"] * 3 + ["c"] * 3
    values = [np.log(0.7 if seed == "abc".index(name) else 1.1) for name, seed in zip(names, seeds, strict=True)]
    pairs = frame_of(workload="lm", seed=seeds, fold=seeds, name=names, value=values, bound="exact", grid_sd=0.0)
    assert selection._held_out(pairs).value == pytest.approx(1.1)
    # One that is .8 on every seed wins in every fold and is measured as such.
    steady = frame_of(workload="lm", seed=[0, 1, 2], fold=[0, 1, 2], name="d", value=np.log(0.8))
    steady = steady.assign(bound="exact", grid_sd=0.0)
    assert selection._held_out(pd.concat([pairs, steady], ignore_index=True)).value == pytest.approx(0.8)


def test_the_schedule_is_part_of_the_answer(make_run, average):
    found = recommend(make_run(averages=averages(average, {0.01: 0.9, 0.02: 0.85})))
    best = found.overall
    assert best.setting == "EMA 2 %, cosine, length 50 %"  # the half-length baseline is the best one
    assert best.ratio.value == pytest.approx(0.85)
    # What was pre-specified rides on the reference schedule, the longest, and is told against both.
    assert found.primary.own.value == pytest.approx(0.9)
    assert found.primary.ratio.value > 1
    assert "of the last iterate's steps on its own schedule" in found.answer[1]
    assert "of the best schedule's, 1." in found.answer[1]


def test_a_setting_that_misses_more_often_than_the_baseline_is_not_selected(make_run, average, task):
    easy = task("lm", "loss", False, 5.0, 1.0, 2.0)
    run = make_run(tasks=[easy], lengths=[1.0], averages=averages(average, {0.01: 0.95, 0.02: 0.5}))
    study = read(run)
    fast = study.cells[(study.cells["horizon_fraction"] == 0.02) & (study.cells["seed"] == 0)]["cell_id"].iloc[0]
    records = study.records.copy()
    records.loc[records["cell_id"] == fast, "metric"] = 4.0  # never meets 2.0: imputed at the budget
    found = of_core(core(dataclasses.replace(study, records=records)))
    # (4/3 · .5 · .5)^(1/3) = .69 is the smaller ratio, and a lower bound
    assert found.overall.setting == "EMA 1 %"
    assert found.overall.missed == 0


def test_missed_seeds_are_counted_where_the_baseline_misses_too(make_run, average, task):
    hard = task("lm", "loss", False, 5.0, 1.0, 1.04)  # the baseline meets it at step 990; the slow seed's never does
    made = averages(average, {0.01: 0.9, 0.02: 0.85})
    found = recommend(make_run(tasks=[hard], lengths=[1.0], averages=made, seed_shift=0.2))
    overall = found.overall
    assert (overall.num_pairs, overall.baseline_missed) == (3, 1)
    assert overall.missed == overall.both_missed
    assert f"the baseline in {overall.baseline_missed}" in found.text()


def test_one_seed_decides_nothing(make_run, average):
    found = recommend(make_run(lengths=[1.0], seeds=[3], averages=averages(average, GOOD)))
    assert found.overall.verdict == "undecided"
    assert "one seed with a ratio cannot both select and measure, so nothing is decided" in found.answer[0]


def test_without_target_baseline_or_averages_it_says_why(make_run, average, task):
    untargeted = task("lm", "loss", False, 5.0, 1.0, None)
    answer = recommend(make_run(tasks=[untargeted], averages=averages(average, GOOD))).answer
    assert answer[0].startswith("No workload of this study has a target")
    assert answer[1].startswith("At the end of training EMA 1 % changes the metric by a factor of")
    answer = recommend(make_run(none=False, averages=averages(average, GOOD))).answer
    assert "no baseline to compare averages with" in answer[0]
    assert "non-averaged runs only" in recommend(make_run(averages=[])).answer[0]


def test_unfinished_pairs_wait(make_run, average):
    found = recommend(make_run(lengths=[1.0], averages=averages(average, GOOD), stop={"lm-1.0-0": 300}))
    assert found.by_workload[1].pending == 1
    assert found.by_workload[1].ratio.value == pytest.approx(0.85)
    assert "6 cells unfinished" in found.text()


def test_a_workload_without_target_is_left_out_and_named(make_run, average, task, tasks):
    run = make_run(tasks=[tasks["lm"], task("wmt", "loss", False, 5.0, 1.0, None)], averages=averages(average, GOOD))
    found = recommend(run)
    assert found.overall.verdict == "shown"
    assert "no target, so left out: wmt" in found.text()
    assert found.by_workload[1].verdict == "no ratio"


def test_snapshot_intervals_of_one_horizon_count_as_one(make_run, average):
    made = averages(average, {0.02: 0.8}, every=2) + averages(average, {0.02: 0.9}, every=4)
    found = recommend(make_run(lengths=[1.0], averages=[*made, *averages(average, {0.04: 0.95})]))
    assert found.overall.num_settings == 2
    assert found.overall.ratio.value == pytest.approx(np.sqrt(0.8 * 0.9))
    assert [(one.every, one.k) for one in found.snapshots if one.workload == "lm"] == [(2, 10), (4, 5)]
