from types import SimpleNamespace

import pytest
import vl_convert

from analysis import pooled_curve, robustness, saving_curve, study, tables
from analysis.figures import drawing, panels
from analysis.figures.saving_figures import over_workloads, saving_curves, target_shares
from analysis.pairs import chosen_settings, reference_training

VERSION = ".".join(panels.alt.SCHEMA_VERSION.split(".")[:2])


@pytest.fixture
def drawn(task, average, make_run):
    """drawn(**fields of a plan) -> the drawing of two workloads whose targets raw runs meet at 75 and 50 %."""

    def make(names=("lm", "wmt"), lengths=(1.0,), **fields):
        targets = dict(zip(names, (2.0, 3.0), strict=False))
        of = [task(name, "loss", False, 5.0, 1.0, target) for name, target in targets.items()]
        averages = [average("ema", 0.01, 0.9), average("lawa", 0.01, 0.8), average("ema", 0.04, 0.95)]
        plan = {"tasks": of, "averages": averages, "lengths": list(lengths), "spread": 0.02} | fields
        read = study.read(make_run(**plan))
        c = tables.core(read)
        reference = reference_training(read.cells, c.scores)
        chosen = chosen_settings(read.cells, reference)
        measured = saving_curve.measure(read.cells, read.records, c.pairs)
        names_of = read.cells.drop_duplicates("setting")[["setting", "scheme", "scheme_label"]]
        found = SimpleNamespace(  # what the figure uses of a study's tables
            settings=tables.settings(read.cells, c.steps, c.ratios, c.general),
            chosen=chosen,
            horizon_map=robustness.horizon_map(c.ratios, read.cells),
            saving_curve=saving_curve.saving_curve(measured).merge(names_of, on="setting"),
            pooled_curve=pooled_curve.pooled_curve(measured, chosen),
        )
        return drawing.drawing(read, found, reference)

    return make


def test_over_all_workloads_first_then_one_panel_each(drawn):
    spec = saving_curves(drawn()).to_dict()
    assert [panel["title"]["text"] for panel in spec["concat"]] == ["all 2 workloads", "lm", "wmt"]
    one = saving_curves(drawn(names=("lm",))).to_dict()
    assert [panel["title"]["text"] for panel in one["concat"]] == ["lm"]


def test_a_switch_between_steps_and_device_hours_changes_what_is_drawn(drawn):
    spec = saving_curves(drawn()).to_dict()
    (unit,) = [one for one in spec["params"] if one["name"] == "saving_unit"]
    assert unit["bind"]["options"] == ["steps", "device-hours"]
    assert unit["value"] == "steps"
    in_steps = vl_convert.vegalite_to_svg(spec, vl_version=VERSION)
    unit["value"] = "device-hours"
    in_hours = vl_convert.vegalite_to_svg(spec, vl_version=VERSION)
    assert "0.891" not in in_steps
    assert in_steps != in_hours


def test_targets_are_marked_where_the_baseline_meets_them(drawn):
    d = drawn()
    assert target_shares(d) == pytest.approx({"lm": 0.75, "wmt": 0.5})
    short = target_shares(drawn(lengths=(0.75,), names=("lm",)))["lm"]
    assert short == pytest.approx(3 / (4 * 0.9625))  # from 5 to 1.15 over 750 steps, not over 1,000


def test_two_workloads_have_the_band_over_their_seeds(drawn):
    table = over_workloads(drawn())
    assert (table["low"] == table["seeds_low"]).all()
    assert (table["hours_high"] == table["hours_seeds_high"]).all()
    assert table["low"].notna().all()
