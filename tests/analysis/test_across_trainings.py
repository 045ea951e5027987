"""Baselines and averages across trainings: which axis varies, optimizers, decay replaced, shorter schedules."""

from dataclasses import replace

import pandas as pd
import pytest

from analysis.report import Report
from analysis.run_folder import study
from analysis.sections import schedules, trainings
from tests.analysis.conftest import chart_of


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
    return study.training_axes(table.assign(workload="lm", training=range(size), training_label="t"))


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


def test_every_setting_of_every_training_beside_its_baseline_and_the_best_one(joined, ema):
    read = joined(
        ({"lr": 0.01}, {"averages": [ema(0.9), ema(0.8, 0.16)], "noise": 0.0}),
        ({"lr": 0.02}, {"averages": [ema(0.5), ema(0.8, 0.16)], "noise": 0.0, "seed_shift": 0.1}),
        ({"lr": 0.04}, {"averages": [ema(1.5), ema(0.8, 0.16)], "noise": 0.0}),
    )
    made = Report(read)
    table = made.frames["across_trainings"]
    lm = table[table["workload"] == "lm"]
    assert lm["place"].tolist() == [0.01] * 3 + [0.02] * 3 + [0.04] * 3
    assert lm["scheme"].tolist() == ["none", "ema", "ema"] * 3
    assert lm["fixed"].tolist() == [True, True, False] * 3  # 16 % lies far from the pre-specified horizon
    near = lm[lm["fixed"] & (lm["scheme"] == "ema")].set_index("place")
    assert near["ratio"].to_dict() == pytest.approx({0.01: 0.9, 0.02: 0.5, 0.04: 1000 / 750})
    assert near["bound"].to_dict() == {0.01: "exact", 0.02: "exact", 0.04: "at least"}
    assert near["num_missed"].to_dict() == {0.01: 0, 0.02: 0, 0.04: 3}
    assert near["median_steps"].to_dict() == pytest.approx({0.01: 675, 0.02: 375, 0.04: 1000})
    assert near["best_ratio"][0.01] == pytest.approx(0.9)
    _figure(made)


def _figure(made):
    rows = [row for data in chart_of(made, "trainings")["datasets"].values() for row in data]
    seeds = [row for row in rows if "seed" in row and row.get("status") in ("met", "missed")]
    assert len(seeds) == 2 * 9 * 3  # every seed of every setting
    missed = [row for row in seeds if row["status"] == "missed"]
    assert {row["value"] for row in missed} == {1000}
    assert all(row["missed"] for row in missed)
    steps = [row for row in rows if "num_missed" in row and row["value"] > 100]
    assert {row["missed"] for row in steps if row["num_missed"]} == {True}
    assert chart_of(made, "schedules") is None  # learning rates have this figure of their own
    said = made.words(trainings)
    assert said[0].startswith("Steps of EMA 1 % ÷ those of the same training's last iterate, by peak LR: 0.01 0.90")
    assert len(said) == 1  # of equal seeds the width of the basin has no interval


def test_optimizers_against_nadamw_in_steps_and_hours(joined, ema, average):
    read = joined(
        ({"optimizer": "nadamw"}, {"averages": [ema(0.9), average("lawa", 0.16, 0.5)], "seeds": [0, 1]}),
        (
            {"optimizer": "adamw", "num_devices": 6.0},
            {"averages": [ema(0.8), average("lawa", 0.16, 0.5)], "seeds": [0, 1], "noise": 3e-8},
        ),
    )
    made = Report(read)
    table = made.frames["optimizers"]
    lm = table[table["workload"] == "lm"].iloc[0]
    assert (lm["reference"], lm["optimizer"], lm["num_pairs"]) == ("nadamw", "adamw", 2)
    assert lm["geometric_mean"] == pytest.approx(1.0)  # the same curve
    assert lm["hours_ratio"] == pytest.approx(3.0)  # on three times the devices
    said = made.words(trainings)
    assert said[0].endswith("by optimizer: adamw 0.80 [0.79, 0.81], nadamw 0.90 [0.89, 0.91].")
    assert "Baselines against nadamw's, in steps: imagenet_vit, adamw 1.00 [0.98, 1.02]; lm, adamw 1.00" in said[-1]


def test_averages_on_a_constant_lr_against_the_decayed_baseline(joined, ema, task):
    constant = {"schedule": "constant", "final_lr": 1.0, "lr_decay_steps": 0}
    decayed = {"schedule": "cosine", "final_lr": 0.0, "lr_decay_steps": 950}
    flat = [task("lm", "loss", False, 5.0, 1.6, 2.0), task("imagenet_vit", "accuracy", True, 0.1, 0.35, 0.4)]
    full = [task("lm", "loss", False, 5.0, 1.0, 2.0), task("imagenet_vit", "accuracy", True, 0.1, 0.5, 0.4)]
    read = joined(
        (constant, {"tasks": flat, "averages": [ema(1.25), ema(1.6, 0.16)]}),
        (decayed, {"tasks": full, "averages": [ema(1.1), ema(1.2, 0.16)]}),
    )
    made = Report(read)
    rows = made.frames["against_decayed"]
    assert set(rows["versus"]) == {"cosine, to 0 % of the peak"}
    # a ratio of 1.25 leaves 4/5 of the way: the final loss is 5 − 3.4/1.25, that of the decayed baseline 1
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
    assert "or better in 0 of 2 pairs, shown to end worse in 2, undecided in 0." in " ".join(made.words(schedules))


CONSTANT = {"schedule": "constant", "final_lr": 1.0, "lr_decay_steps": 0}
DECAYED = {"schedule": "cosine", "final_lr": 0.0, "lr_decay_steps": 950}


@pytest.mark.parametrize(
    ("schedule", "decay", "final", "end"),
    [
        ("constant", 0, 1.0, 1.0),
        ("1-sqrt", 200, 0.1, 0.1),
        ("power 3", 200, 0.0, 0.0),
        ("inverse_sqrt", 0, 1.0, 0.2),  # √(40 / 1000)
        ("inverse_sqrt", 100, 0.0, 0.0),
    ],
)
def test_the_lr_at_the_end_of_a_schedule(schedule, decay, final, end):
    row = {"schedule": schedule, "lr_decay_steps": decay, "final_lr": final, "warmup_steps": 40, "length_steps": 1000}
    assert study.end_lr(row) == end


@pytest.mark.parametrize(("noise", "said"), [(1e-8, "in 2 of 2 pairs"), (0.05, "in 0 of 2 pairs")])
def test_not_being_told_from_the_decayed_run_is_no_proof_that_it_replaces_the_decay(joined, ema, noise, said):
    equal = {"averages": [ema(1.0), ema(1.0, 0.04)]}  # one of several equals is the best, not all
    read = joined((CONSTANT, equal | {"noise": noise}), (DECAYED, equal | {"noise": 2 * noise}))
    made = Report(read)
    rows = made.frames["against_decayed"]
    assert set(rows["versus"]) == {"cosine, to 0 % of the peak"}  # baselines being equally good
    assert said in " ".join(made.words(schedules))
    assert not (rows["effect"] == "worse").any()


@pytest.mark.parametrize("higher", [True, False])
def test_replacing_the_decay_needs_the_whole_interval_above_the_margin(higher):
    side = 1.0 if higher else -1.0

    def row(value, low, high):
        ends = sorted([side * low, side * high])
        names = {"difference": side * value, "difference_low": ends[0], "difference_high": ends[1]}
        return names | {"margin": 0.01, "higher_is_better": higher}

    assert schedules.replaces(row(0.0, -0.005, 0.005)) == "shown"
    assert schedules.replaces(row(0.1, -0.005, 0.2)) == "shown"
    assert schedules.replaces(row(0.0, -0.02, 0.02)) == "undecided"
    assert schedules.replaces(row(-0.1, -0.2, -0.05)) == "excluded"


def test_the_full_run_averaged_where_each_shorter_schedule_ends(make_run, average):
    read = study.read(make_run(lengths=[0.51, 1.0], averages=[average("ema", 0.01, 0.52)]))
    made = Report(read)
    table = made.frames["shorter_schedules"]
    lm = table[table["workload"] == "lm"]
    assert lm["step"].tolist() == [510]  # between the evaluations at 500 and 520
    # the average is at 510/1000/0.52 of the way; the baseline ends at 1 + 0.15 · 0.49 · 4
    assert lm["difference"].iloc[0] == pytest.approx((5 - 4 * 0.51 / 0.52) - (1 + 0.15 * 0.49 * 4))
    assert lm["effect"].tolist() == ["ahead"]
    vit = table[table["workload"] == "imagenet_vit"]
    assert vit["effect"].tolist() == ["ahead"]
    assert made.words(schedules)[0].startswith(
        "Where a shorter schedule ends, EMA 1 % of the full-length run is shown ahead of that schedule's last iterate "
    )


def test_a_warm_up_of_so_many_steps_leaves_schedules_of_two_lengths_alike(make_run, average):
    read = study.read(make_run(lengths=[0.51, 1.0], averages=[average("ema", 0.01, 0.52)]))
    decays = read.cells["length_steps"] - 20
    cells = read.cells.assign(warmup_steps=20, lr_decay_steps=decays, lr_decay=decays / read.cells["length_steps"])
    assert len(Report(replace(read, cells=cells)).frames["shorter_schedules"]) == 2
    held = cells.assign(lr_decay_steps=decays - 1)  # then its share is another schedule's
    assert Report(replace(read, cells=held)).frames["shorter_schedules"].empty


def test_one_training_has_nothing_to_compare(make_run, average):
    made = Report(study.read(make_run(lengths=[1.0], seeds=[0, 1], averages=[average("ema", 0.01, 0.9)])))
    for name in ("across_trainings", "optimizers", "basin", "against_decayed", "shorter_schedules", "envelope"):
        assert made.frames[name].empty
    assert made.words(trainings) == []
    assert made.words(schedules) == []
    assert chart_of(made, "trainings") is chart_of(made, "schedules") is None
