"""Raw runs and averages across trainings: which axis varies, optimizers, decay replaced, shorter schedules."""

from dataclasses import replace

import pandas as pd
import pytest

from analysis import baselines, figure_files, study, tables, training_axis
from analysis.figures import curve_figures, drawing, training_figures
from analysis.findings import conclusions, training_answers, training_findings
from analysis.pages import page_tables


@pytest.fixture
def joined(make_run):
    """joined((columns of cells to change, fields of Plan), …) -> one study of as many trainings a workload."""

    def join(*variants):
        parts = [(columns, study.read(make_run(lengths=[1.0], **fields))) for columns, fields in variants]
        cells, records, trials = [], [], []
        for place, (columns, read) in enumerate(parts):
            named = {
                "cell_id": read.cells["cell_id"] + f"-{place}",
                "trajectory": read.cells["trajectory"] + f"-{place}",
            }
            cells.append(read.cells.assign(**named, **columns))
            records.append(read.records.assign(cell_id=read.records["cell_id"] + f"-{place}"))
            trials.append(read.trials)
        first = parts[0][1]
        whole = study.describe(pd.concat(cells, ignore_index=True))
        every = pd.concat(records, ignore_index=True).sort_values(["cell_id", "step"], kind="stable")
        return replace(first, cells=whole, records=every.reset_index(drop=True), trials=pd.concat(trials))

    return join


@pytest.fixture
def ema(average):
    return lambda ratio, horizon=0.01: average("ema", horizon, ratio)


def axes_of(**columns):
    size = max(len(values) for values in columns.values())
    one = {"lr": 0.01, "schedule": "cosine", "length_fraction": 1.0, "final_lr": 0.0, "optimizer": "nadamw"}
    one |= {
        "warmup_steps": 50,
        "lr_decay_steps": 950,
        "length_steps": 1000,
        "lr_decay": 0.95,
        "step_budget": 1000,
    }
    table = pd.DataFrame(dict.fromkeys(study.TRAINING, None) | one, index=range(size)).assign(**columns)
    return training_axis.training_axes(table.assign(workload="lm", training=range(size), training_label="t"))


def test_the_axis_is_what_varies():
    assert set(axes_of(lr=[0.01, 0.02])["axis"]) == {"lr"}
    lengths = {"length_fraction": [0.5, 1.0], "length_steps": [500, 1000], "lr_decay_steps": [475, 950]}
    assert set(axes_of(**lengths)["axis"]) == {"length"}
    assert set(axes_of(final_lr=[0.0, 0.5])["axis"]) == {"schedule"}
    assert set(axes_of(batch_size=[8, 16], step_budget=[1000, 500])["axis"]) == {"batch_size"}
    assert set(axes_of(optimizer=["sgd", "nadamw"], lr=[0.3, 0.01])["axis"]) == {"optimizer"}
    assert set(axes_of(lr=[0.01, 0.02], final_lr=[0.0, 0.5])["axis"]) == {"training"}
    assert set(axes_of(optimizer=["sgd", "sgd", "nadamw"], lr=[0.3, 0.1, 0.01])["axis"]) == {"training"}
    assert set(axes_of(step_budget=[500, 1000])["axis"]) == {"training"}
    assert axes_of(lr=[0.01]).empty


def test_places_and_names_along_the_axis():
    lr = axes_of(lr=[0.02, 0.005, 0.01])
    assert lr["place"].tolist() == [0.005, 0.01, 0.02]
    assert lr["name"].tolist() == ["0.005", "0.01", "0.02"]
    schedule = axes_of(
        schedule=["cosine", "constant", "cosine"], final_lr=[0.0, 1.0, 0.5], lr_decay_steps=[950, 0, 950]
    )
    assert schedule["name"].tolist() == [
        "constant",
        "cosine, to 50 % of the peak",
        "cosine, to 0 % of the peak",
    ]
    assert schedule["end_lr"].tolist() == [1.0, 0.5, 0.0]
    # a linear schedule that spends no step on its decay is constant, whatever its final LR says
    linear = axes_of(schedule=["linear"] * 2, lr_decay_steps=[200, 0], lr_decay=[0.2, 0.0])
    assert linear["name"].tolist() == ["constant", "linear, LR decay 20 %"]


def test_every_setting_of_every_training_beside_its_raw_run_and_the_best_one(joined, ema):
    read = joined(
        ({"lr": 0.01}, {"averages": [ema(0.9), ema(0.8, 0.16)], "noise": 0.0}),
        ({"lr": 0.02}, {"averages": [ema(0.5), ema(0.8, 0.16)], "noise": 0.0, "seed_shift": 0.1}),
        ({"lr": 0.04}, {"averages": [ema(1.5), ema(0.8, 0.16)], "noise": 0.0}),
    )
    found = tables.compute(read)
    lm = found.across_trainings[found.across_trainings["workload"] == "lm"]
    assert lm["place"].tolist() == [0.01] * 3 + [0.02] * 3 + [0.04] * 3
    assert lm["scheme"].tolist() == ["none", "ema", "ema"] * 3
    assert lm["fixed"].tolist() == [True, True, False] * 3  # 16 % lies far from the horizon fixed beforehand
    near = lm[lm["fixed"] & (lm["scheme"] == "ema")].set_index("place")
    assert near["ratio"].to_dict() == pytest.approx({0.01: 0.9, 0.02: 0.5, 0.04: 1000 / 750})
    assert near["bound"].to_dict() == {0.01: "exact", 0.02: "exact", 0.04: "at least"}
    assert near["num_missed"].to_dict() == {0.01: 0, 0.02: 0, 0.04: 3}
    assert near["median_steps"].to_dict() == pytest.approx({0.01: 675, 0.02: 375, 0.04: 1000})
    assert near["best_ratio"][0.01] == pytest.approx(0.9)
    _figure_and_page(read, found)


def _figure_and_page(read, found):
    d = drawing.drawing(read, found, baselines.reference_training(read.cells, found.baselines))
    spec = figure_files.spec(training_figures.training_panels(d))
    rows = [row for data in spec["datasets"].values() for row in data]
    seeds = [row for row in rows if "seed" in row and row.get("status") in ("met", "missed")]
    assert len(seeds) == 2 * 9 * 3  # every seed of every setting
    missed = [row for row in seeds if row["status"] == "missed"]
    assert {row["value"] for row in missed} == {1000}
    assert all(row["missed"] for row in missed)
    steps = [row for row in rows if "num_missed" in row and row["value"] > 100]
    assert {row["missed"] for row in steps if row["num_missed"]} == {True}
    assert curve_figures.schedule_curves(d) is None  # learning rates have this figure of their own
    page = page_tables.shown_tables(found)
    (table,) = [one for one in page if one.title == "Across trainings"]
    assert len(table.rows) == 2 * 6  # the averages that were fixed beforehand, and raw
    assert training_findings.title(found) == "Raw and averaged, by peak LR"


def test_optimizers_against_nadamw_in_steps_and_hours(joined, ema, average):
    read = joined(
        ({"optimizer": "nadamw"}, {"averages": [ema(0.9), average("lawa", 0.16, 0.5)], "seeds": [0, 1]}),
        (
            {"optimizer": "adamw", "num_devices": 6.0},
            {"averages": [ema(0.8), average("lawa", 0.16, 0.5)], "seeds": [0, 1], "noise": 3e-8},
        ),
    )
    found = tables.compute(read)
    lm = found.optimizers[found.optimizers["workload"] == "lm"].iloc[0]
    assert (lm["reference"], lm["optimizer"], lm["num_pairs"]) == ("nadamw", "adamw", 2)
    assert lm["geometric_mean"] == pytest.approx(1.0)  # the same curve
    assert lm["hours_ratio"] == pytest.approx(3.0)  # on three times the devices
    said = training_findings.optimizer_findings(found)
    assert "lm, adamw, steps ÷ those of its own raw run: EMA 1 % 0.80 [0.80, 0.80]: fewer." in said
    assert (
        "lm, raw adamw against raw nadamw: 1.00 [1.00, 1.00] of the steps (none shown) and 3.00 [3.00, 3.00] of the "
        "device-hours (more)." in said
    )


def test_averages_on_a_constant_lr_against_the_decayed_raw_run(joined, ema, task):
    constant = {"schedule": "constant", "final_lr": 1.0, "lr_decay_steps": 0}
    decayed = {"schedule": "cosine", "final_lr": 0.0, "lr_decay_steps": 950}
    flat = [task("lm", "loss", False, 5.0, 1.6, 2.0), task("imagenet_vit", "accuracy", True, 0.1, 0.35, 0.4)]
    full = [task("lm", "loss", False, 5.0, 1.0, 2.0), task("imagenet_vit", "accuracy", True, 0.1, 0.5, 0.4)]
    read = joined(
        (constant, {"tasks": flat, "averages": [ema(1.25), ema(1.6, 0.16)]}),
        (decayed, {"tasks": full, "averages": [ema(1.1), ema(1.2, 0.16)]}),
    )
    found = tables.compute(read)
    rows = found.against_decayed
    assert set(rows["versus"]) == {"cosine, to 0 % of the peak"}
    # a ratio of 1.25 leaves 4/5 of the way: the final loss is 5 − 3.4/1.25, that of the decayed raw run 1
    lm = rows[rows["workload"] == "lm"].set_index(["decayed", "scheme_label"])["difference"].to_dict()
    assert lm == pytest.approx(
        {
            (False, "no averaging"): 0.6,
            (False, "EMA 1 %"): 5 - 3.4 / 1.25 - 1,
            (False, "EMA 16 %"): 5 - 3.4 / 1.6 - 1,
            (True, "EMA 1 %"): 5 - 4 / 1.1 - 1,
            (True, "EMA 16 %"): 5 - 4 / 1.2 - 1,
        }
    )
    assert set(rows.loc[rows["best"], "scheme_label"]) == {"EMA 1 %"}
    assert set(rows["effect"]) == {"worse"}  # in both directions of the metric
    said = training_findings.decay_findings(found)
    assert said[0] == (
        "With a constant LR the best-looking average, picked after the fact, replaces the decay on 0 of 2 workloads: "
        "its final metric is better on none, not told apart on none, worse on 2 (imagenet_vit, lm)."
    )
    assert said[1].startswith("Decay and averaging together: the best-looking average, picked after the fact, is")
    assert "on 0 of 2 workloads" in said[1]


def test_an_average_that_cannot_be_told_from_the_decayed_run_replaces_the_decay(joined, ema):
    constant = {"schedule": "constant", "final_lr": 1.0, "lr_decay_steps": 0}
    decayed = {"schedule": "cosine", "final_lr": 0.0, "lr_decay_steps": 950}
    equal = {"averages": [ema(1.0), ema(1.0, 0.04)]}  # one of several equals is the best, not all
    read = joined((constant, equal), (decayed, equal))
    found = tables.compute(read)
    assert set(found.against_decayed["versus"]) == {"cosine, to 0 % of the peak"}  # raw runs being equally good
    said = training_findings.decay_findings(found)
    assert "replaces the decay on 2 of 2 workloads" in said[0]
    assert "not told apart on 2 (imagenet_vit, lm)" in said[0]


def test_the_full_run_averaged_where_each_shorter_schedule_ends(make_run, average):
    read = study.read(make_run(lengths=[0.51, 1.0], averages=[average("ema", 0.01, 0.52)]))
    found = tables.compute(read)
    lm = found.shorter_schedules[found.shorter_schedules["workload"] == "lm"]
    assert lm["step"].tolist() == [510]  # between the evaluations at 500 and 520
    # the average is at 510/1000/0.52 of the way; the raw run ends at 1 + 0.15 · 0.49 · 4
    assert lm["difference"].iloc[0] == pytest.approx((5 - 4 * 0.51 / 0.52) - (1 + 0.15 * 0.49 * 4))
    assert lm["effect"].tolist() == ["ahead"]
    vit = found.shorter_schedules[found.shorter_schedules["workload"] == "imagenet_vit"]
    assert vit["effect"].tolist() == ["ahead"]
    said = training_findings.schedule_findings(found)
    assert said[0] == (
        "EMA 1 % of the full run, at the end of a schedule of 51 %, is ahead of the raw run of that schedule on 2 "
        "(imagenet_vit, lm), level on none, behind on none."
    )


def test_one_training_has_nothing_to_compare(make_run, average):
    found = tables.compute(study.read(make_run(lengths=[1.0], seeds=[0, 1], averages=[average("ema", 0.01, 0.9)])))
    for table in (
        found.across_trainings,
        found.optimizers,
        found.basin,
        found.against_decayed,
        found.shorter_schedules,
    ):
        assert table.empty
    assert training_findings.findings(found) == []
    assert training_findings.schedule_findings(found) == []


def test_the_answer_is_the_one_the_study_asks_for(joined, ema, make_run, average):
    rates = joined(*(({"lr": lr}, {"averages": [ema(ratio)]}) for lr, ratio in ((0.01, 0.9), (0.02, 1.5))))
    found = tables.compute(rates)
    assert training_answers.answer(rates, found).startswith(
        "EMA 1 % widens the range of peak LRs that reach the target on 0 of 2 workloads: imagenet_vit"
    )
    optimizers = joined(*(({"optimizer": name}, {"averages": [ema(0.9)]}) for name in ("nadamw", "sgd")))
    assert training_answers.answer(optimizers, tables.compute(optimizers)) == (
        "EMA 1 % needs fewer steps to the target than raw runs of the same optimizer in 4 of 4 pairs of workload and "
        "optimizer: nadamw: imagenet_vit 0.90 [0.90, 0.90], lm 0.90 [0.90, 0.90]; sgd: imagenet_vit 0.90 [0.90, 0.90], "
        "lm 0.90 [0.90, 0.90]."
    )
    constant = {"schedule": "constant", "final_lr": 1.0, "lr_decay_steps": 0}
    schedules = joined((constant, {"averages": [ema(1.1)]}), ({"lr_decay_steps": 950}, {"averages": [ema(1.0)]}))
    said = training_answers.answer(schedules, tables.compute(schedules))
    assert "replaces the decay on 0 of 2 workloads; its final metric minus the decayed raw run's: imagenet_vit" in said
    shorter = study.read(make_run(lengths=[0.5, 1.0], averages=[average("ema", 0.01, 0.5)]))
    assert training_answers.answer(shorter, tables.compute(shorter)).startswith(
        "EMA 1 % of the full-length run is ahead of the raw run of a shorter schedule, at that schedule's end, in 2, "
    )
    alone = study.read(make_run(lengths=[1.0], averages=[average("ema", 0.01, 0.9)]))
    found = tables.compute(alone)
    assert training_answers.answer(alone, found) == conclusions.answer(alone, found)
