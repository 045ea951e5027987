"""Scores and profiles in a report: hand-worked times, AlgoPerf's published logs, and the sentences."""

import json
import math

import numpy as np
import pandas as pd
import pytest
import vl_convert

from analysis import methods
from analysis.core import core
from analysis.report import Report
from analysis.run_folder import study
from analysis.sections import profiles, submissions
from analysis.sections import profiles as section
from analysis.statistics import algoperf_score

INF = math.inf


def logs(times):
    """times: {(submission, workload): seconds to target, one a study, ∞ for a miss} -> evaluations."""
    rows = []
    for (submission, workload), studies in times.items():
        for number, seconds in enumerate(studies):
            met = np.isfinite(seconds)
            row = {"submission": submission, "workload": workload, "study": number, "trial": 1}
            row |= {"cell_id": f"{submission}.study{number}.{workload}", "evaluation": 0, "global_step": 10}
            row |= {"seconds": seconds if met else 50.0, "metric": 1.0 if met else 0.5, "target": 1.0}
            rows.append(row | {"higher_is_better": True, "counts_steps": True, "num_devices": 8.0})
    return pd.DataFrame(rows)


TWO = {
    ("fast", "wmt"): [10.0, 10.0, 10.0],
    ("slow", "wmt"): [20.0, 20.0, 20.0],
    ("fast", "ogbg"): [30.0, 30.0, 30.0],
    ("slow", "ogbg"): [15.0, 15.0, INF],
    ("fast", "fastmri"): [10.0, 10.0, INF],
    ("slow", "fastmri"): [INF, INF, 10.0],
}


@pytest.fixture
def two():
    return profiles.of_submissions(logs(TWO))


def test_score_and_lead_by_hand(two):
    clean = two["score_scores"][two["score_scores"]["measure"] == profiles.CLEAN].set_index("submission")
    # fast: r = 1, 2, 1; slow: r = 2, 1, ∞. On the 100 points ρ counts a workload from the first τ ≥ r on.
    tau = np.linspace(1, 4, 100)
    from_two = np.trapezoid((tau >= 2).astype(float), tau) / 3
    assert clean["score"].to_dict() == pytest.approx({"fast": (2 + from_two) / 3, "slow": (1 + from_two) / 3})
    assert clean["integral"].to_dict() == pytest.approx({"fast": (2 + 2 / 3) / 3, "slow": (1 + 2 / 3) / 3})
    assert clean["num_fastest"].to_dict() == {"fast": 2, "slow": 1}
    (lead,) = two["score_leads"][two["score_leads"]["measure"] == profiles.CLEAN].to_dict("records")
    assert (lead["submission"], lead["versus"]) == ("fast", "slow")
    assert lead["difference"] == pytest.approx(1 / 3)


def test_profile_changes_where_a_ratio_is(two):
    mine = two["score_profile"][(two["score_profile"]["measure"] == profiles.CLEAN)]
    points = {name: list(zip(part["tau"], part["share"], strict=True)) for name, part in mine.groupby("submission")}
    assert points["fast"] == [(1.0, pytest.approx(2 / 3)), (2.0, 1.0), (4.0, 1.0)]
    assert points["slow"] == [
        (1.0, pytest.approx(1 / 3)),
        (2.0, pytest.approx(2 / 3)),
        (4.0, pytest.approx(2 / 3)),
    ]


def test_intervals_are_of_resampled_studies(two):
    """Against every resample of the one study that varies, counted out: 27 medians of (10, 10, ∞) a side."""
    clean = two["score_scores"][two["score_scores"]["measure"] == profiles.CLEAN].set_index("submission")
    assert (clean["low"] < clean["score"]).all()
    assert (clean["high"] >= clean["score"]).all()
    assert clean["high"].max() <= 1
    draws = profiles._score_draws(
        pd.DataFrame({"wmt": [10.0, INF]}, index=["a", "b"]),
        pd.DataFrame({"submission": "a", "workload": "wmt", "time": [10.0, 10.0, INF]}),
        paired=False,
    )
    # The median of three is 10 unless two or more of them are the miss: P = 3·(1/9)(2/3) + 1/27 = 7/27.
    assert np.mean(draws["a"] == 0) == pytest.approx(7 / 27, abs=0.02)
    assert set(np.round(draws["a"], 9)) == {0.0, 1.0}
    assert set(draws["b"]) == {0.0}  # never ran
    one = profiles.of_submissions(logs({key: values[:1] for key, values in TWO.items()}))
    assert one["score_scores"]["low"].isna().all()


def test_pairs_are_resampled_together():
    times = pd.DataFrame({"wmt": [1.0, 1.1]}, index=["a", "b"])
    runs = pd.DataFrame({"submission": ["a"] * 4 + ["b"] * 4, "workload": "wmt"})
    slow = np.array([1.0, 2.0, 3.0, 4.0])
    runs["time"] = np.concatenate([slow, 1.1 * slow])
    together = profiles._score_draws(times, runs, paired=True)
    apart = profiles._score_draws(times, runs, paired=False)
    assert (together["a"] > together["b"]).all()
    assert (apart["a"] < apart["b"]).any()


def against(times, baseline="slow"):
    """The table of `submissions.tables` of such logs."""
    return submissions.against(logs(times), baseline)


def answer(times, baseline="slow"):
    found = profiles.of_submissions(logs(times))
    return submissions.answer(against(times, baseline), found["score_scores"], found["score_leads"])


def test_the_answer_names_the_highest_score_and_whether_its_lead_is_shown():
    said = answer(TWO)
    assert said[0].startswith("Of 2 submissions fast has the highest score, 0.891 [")
    assert said[0].endswith("and is fastest on 2 of 3 workloads; its lead over slow is undecided.")
    sure = {
        (name, w): [t, 1.01 * t, 0.99 * t] for name, t in (("a", 1.0), ("b", 3.0)) for w in ("wmt", "ogbg", "fastmri")
    }
    said = answer(sure, "b")
    assert said[0].endswith("its lead over every other is shown.")
    assert said[1].startswith("Against b it is shown to be sooner on 3 of 3 workloads and later on 0")


@pytest.mark.parametrize(
    ("times", "says"),
    [
        ({("a", "wmt"): [1.0], ("a", "ogbg"): [INF]}, "One submission, a: it meets the target on 1 of 2 workloads."),
        ({("a", "wmt"): [INF], ("b", "wmt"): [INF]}, "No submission of 2 meets a target on any of 1 workload."),
        (  # fastest more often, and yet the lower score: it misses what the other meets
            {
                **{("a", w): [1.0] for w in ("wmt", "ogbg")},
                **{("a", w): [INF] for w in ("fastmri", "criteo1tb")},
                **{("b", w): [1.01] for w in ("wmt", "ogbg")},
                ("b", "fastmri"): [1.0],
                ("b", "criteo1tb"): [INF],
            },
            "b has the highest score",
        ),
    ],
)
def test_answers_of_odd_folders(times, says):
    assert says in answer(times, None)[0]


def test_who_against_whom_with_misses():
    table = against(TWO).set_index(["measure", "workload"])
    wmt, ogbg, fastmri = (table.loc[("seconds", name)] for name in ("wmt", "ogbg", "fastmri"))
    assert (wmt["ratio"], wmt["verdict"], wmt["baseline"]) == (0.5, "sooner", "slow")
    assert ogbg["ratio"] == 2.0
    assert (ogbg["baseline_missed"], ogbg["baseline_studies"], ogbg["verdict"]) == (1, 3, "undecided")
    assert fastmri["ratio"] == 0  # the baseline's median misses
    assert (fastmri["num_missed"], fastmri["num_studies"]) == (1, 3)
    both = against({("slow", "lm"): [INF] * 3, ("fast", "lm"): [INF] * 3})
    assert both["verdict"].tolist() == ["both miss", "both miss"]
    assert submissions.chart(both) is None
    spec = json.dumps(submissions.chart(against(TWO)).to_dict())
    assert "submissions_measure" in spec
    assert '"cross"' in spec


def test_the_baseline_is_the_one_named_else_one_called_so():
    names = ["adam", "nadamw_v2", "the_baseline"]
    assert submissions.baseline_of("adam", names) == "adam"
    assert submissions.baseline_of(None, names) == "the_baseline"
    assert submissions.baseline_of(None, names[:2]) == "nadamw_v2"
    assert submissions.baseline_of(None, ["a", "b"]) is None


def test_only_variants_give_no_score():
    assert profiles.of_submissions(logs({("a", "wmt_glu_tanh"): [1.0]})) == {}


def test_the_figure_switches_between_the_rules(two):
    chart = section.chart(two["score_scores"], two["score_profile"], two["score_times"])
    (param,) = [one for one in chart.to_dict()["params"] if one["name"] == "score_measure"]
    assert param["bind"]["options"] == ["clean", "algoperf-exact"]
    assert json.dumps(chart.to_dict()).count("datum.measure == score_measure") >= 2
    assert "step-after" in json.dumps(chart.to_dict())


# --- our own studies -----------------------------------------------------------------------------------------------


@pytest.fixture
def ours(make_run, average, task):
    def make(names=("lm", "wmt", "ogbg"), **more):
        made = [task(name, "loss", False, 5.0, 1.0, 2.0) for name in names]
        averages = [average("ema", 0.01, 0.9), average("lawa", 0.01, 0.95), average("ema", 0.08, 0.5)]
        return core(study.read(make_run(tasks=made, lengths=[0.5, 1.0], averages=averages, **more)))

    return make


def test_schemes_submit_at_the_pre_specified_horizon(ours):
    found = profiles.of_schemes(ours())
    assert list(dict.fromkeys(found["score_scores"]["measure"])) == ["steps", "CPU-core-hours"]
    steps = found["score_times"][found["score_times"]["measure"] == "steps"].set_index(["submission", "workload"])[
        "time"
    ]
    assert steps["no averaging", "wmt"] == pytest.approx(750)
    assert steps["EMA", "wmt"] == pytest.approx(675)  # not the 375 of the other horizon
    assert steps["LAWA", "wmt"] == pytest.approx(712.5)
    scores = found["score_scores"][found["score_scores"]["measure"] == "steps"].set_index("submission")
    assert scores["integral"].to_dict() == pytest.approx(
        {"EMA": 1.0, "LAWA": (4 - 0.95 / 0.9) / 3, "no averaging": (4 - 1 / 0.9) / 3}
    )
    assert scores["num_fastest"].to_dict() == {"EMA": 3, "LAWA": 0, "no averaging": 0}
    hours = found["score_times"][found["score_times"]["measure"] != "steps"].set_index(["submission", "workload"])[
        "time"
    ]
    assert hours["EMA", "wmt"] == pytest.approx(675 * 0.011 * 2 / 3600)


def test_a_miss_is_infinite_and_an_unfinished_workload_waits(ours):
    found = profiles.of_schemes(ours(names=("lm", "wmt", "ogbg", "fastmri"), stop={"fastmri-1.0-0": 60}))
    assert set(found["score_times"]["workload"]) == {"lm", "wmt", "ogbg"}
    found = profiles.of_schemes(ours(diverge={"wmt-1.0-0": 60, "wmt-1.0-1": 60}))
    row = found["score_times"].set_index(["measure", "submission", "workload"]).loc["steps", "EMA", "wmt"]
    assert (row["time"], row["num_missed"], row["num_studies"]) == (INF, 2, 3)


@pytest.mark.parametrize("names", [("lm",), ("lm", "wmt")])
def test_few_workloads_have_no_profile(ours, names):
    assert profiles.of_schemes(ours(names=names)) == {}


def test_the_report_has_the_section(make_run, average, task):
    made = [task(name, "loss", False, 5.0, 1.0, 2.0) for name in ("lm", "wmt", "ogbg")]
    read = study.read(make_run(tasks=made, lengths=[1.0], averages=[average("ema", 0.01, 0.9)], seeds=[0, 1]))
    found = Report(read)
    assert "profiles" in found.charts
    assert found.words(section)[0].startswith("Score: EMA 1.000")
    assert dict(methods.methods(found.core, [section], {}))["Performance profiles"] == profiles.RULE


def test_published_targets_are_written_plainly(make_run):
    read = study.read(make_run(lengths=[1.0], averages=[]))
    published = {"value": 0.5, "metric": "loss", "higher_is_better": False, "preset": "full", "seeds": []}
    published |= {"rule": "published: by others", "values": [], "versions": {}, "date": ""}
    read.plan["targets"] = {"wmt": published}
    assert dict(methods.methods(core(read), [], {}))["Targets"] == "wmt: loss at most 0.5; published: by others."


def test_the_areas_are_those_of_the_score(two):
    times = algoperf_score.scored_times(algoperf_score.score(logs(TWO)).seconds)
    found = algoperf_score.areas(times, algoperf_score.performance_profile(times)).set_index("submission")["score"]
    clean = two["score_scores"][two["score_scores"]["measure"] == profiles.CLEAN].set_index("submission")["score"]
    assert clean.to_dict() == pytest.approx(found.to_dict())


def test_a_profile_is_drawn_where_one_rule_alone_has_scores(two):
    """As of logs without an evaluation: by AlgoPerf's own code there is no score then."""
    clean = {name: table[table["measure"] == profiles.CLEAN] for name, table in two.items() if "measure" in table}
    chart = section.chart(clean["score_scores"], clean["score_profile"], clean["score_times"])
    assert "<svg" in vl_convert.vegalite_to_svg(chart.to_dict())
