"""A report is a loop over its sections, each of them one file."""

import json
from types import ModuleType

import pytest

from analysis import report, sections
from analysis.core import core
from analysis.run_folder.study import read

NEW = '''"""How many cells are there?"""

TITLE, CAPTION, RULE = "Cells", "Nothing to see.", "Counted."


def tables(core):
    import pandas as pd
    return {"how_many": pd.DataFrame({"cells": [len(core.cells)]})}


def sentences(how_many, settings):
    return [f"There are {how_many['cells'].iloc[0]} cells in {len(settings)} settings."]
'''


def test_every_section_says_what_it_is():
    for name in sections.every():
        module = sections.named(name)
        assert isinstance(module, ModuleType)
        assert module.__doc__
        assert module.__doc__.split("\n")[0].endswith("?"), name
        for part in ("TITLE", "RULE", "tables"):
            assert hasattr(module, part), (name, part)
        assert hasattr(module, "CAPTION") or hasattr(module, "caption"), name


def test_a_file_put_into_the_folder_is_a_section(make_run, average, tmp_path, monkeypatch, uncharted):
    (tmp_path / "cells_of_a_study.py").write_text(NEW)
    monkeypatch.setattr(sections, "__path__", [*sections.__path__, str(tmp_path)])
    run = make_run(lengths=[1.0], averages=[average("ema", 0.01, 0.9)])
    report.write(run)
    assert "There are 12 cells in 4 settings." in (run / "report.html").read_text()
    assert (run / "tables" / "how_many.csv").read_text() == "cells\n12\n"


@pytest.mark.parametrize(
    ("asked", "first"), [("horizon", "horizon"), ("final_metric", "generalization"), (None, "steps")]
)
def test_what_is_asked_comes_first(make_run, average, asked, first):
    run = make_run(lengths=[1.0], averages=[average("ema", 0.01, 0.9)])
    plan = json.loads((run / "plan.json").read_text())
    (run / "plan.json").write_text(json.dumps(plan | ({"report": asked} if asked else {})))
    of = sections.of_study(core(read(run)))
    assert sections.name(of[0]) == first
    assert len(of) == len({sections.name(one) for one in of})


def test_a_section_says_three_sentences_at_most(make_run, average, tasks):
    made = [
        average(scheme, horizon, 0.9, every)
        for scheme in ("ema", "lawa")
        for horizon in (0.01, 0.04)
        for every in (2, 5)
    ]
    for one in report.of_run(make_run(averages=made, spread=0.03)):
        for section in one.sections:
            assert len(one.words(section)) <= 3, section.TITLE


def test_a_report_takes_away_what_an_earlier_one_wrote_and_nothing_else(make_run, average, uncharted):
    run = make_run(lengths=[1.0], averages=[average("ema", 0.01, 0.9)])
    report.write(run)
    (run / "tables" / "mine.csv").write_text("a,b\n")
    listed = run / "tables" / report.WRITTEN
    (run / "tables" / "stale.csv").write_text("old\n")
    listed.write_text(listed.read_text() + "stale.csv\n../plan.json\n")
    report.write(run)
    assert (run / "tables" / "mine.csv").read_text() == "a,b\n"
    assert not (run / "tables" / "stale.csv").exists()
    assert (run / "plan.json").is_file()
