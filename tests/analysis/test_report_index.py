import json
import re
import shutil
from types import SimpleNamespace

import pandas as pd
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from analysis import recommend, report
from analysis.run_folder import study
from analysis.run_folder.records import BadRun, load, load_cells

HOSTILE = '<script>alert(1)</script><img src=x onerror="alert(2)">'


def of_two(run, second="ema", question="Does an EMA alone do?"):
    """Makes the folder hold a second study: the EMAs and raw runs of the full schedule, which the first has too."""
    table = pq.read_table(run / "cells.parquet")
    rows = table.to_pylist()
    for row in rows:
        mine = row["length_fraction"] == 1.0 and row["scheme"] in {"none", "ema"}
        row["studies"] = [row["study"], second] if mine else [row["study"]]
    pq.write_table(type(table).from_pylist(rows, schema=table.schema), run / "cells.parquet")
    plan = json.loads((run / "plan.json").read_text())
    own = {key: plan[key] for key in ("question", "fuse", "seeds", "targets")}
    cells = [[row["cell_id"] for row in rows if name in row["studies"]] for name in (plan["study"], second)]
    plan["studies"] = [
        {**own, "study": plan["study"], "cells": cells[0]},
        {**own, "study": second, "question": question, "cells": cells[1]},
    ]
    (run / "plan.json").write_text(json.dumps(plan))
    return run


@pytest.fixture
def one(make_run, average, tasks):
    averages = [average("ema", 0.01, 0.9), average("lawa", 0.04, 0.95)]
    return make_run(tasks=[tasks["lm"]], lengths=[0.75, 1.0], averages=averages, spread=0.02, seeds=[0, 1])


@pytest.fixture
def two(one, uncharted):
    """Two studies in a folder, their reports without the charts."""
    return of_two(one)


def test_a_recommendation_of_each_study_or_of_one(two):
    each = recommend.recommend(two)
    assert [one.study for one in each] == ["horizon", "ema"]
    assert each[0].text() != each[1].text()
    assert recommend.recommend(two, study="ema") == (each[1],)
    with pytest.raises(BadRun, match="no cells of a study 'emma'"):
        recommend.recommend(two, study="emma")


def test_each_study_has_the_report_of_a_folder_of_its_own(two, tmp_path):
    index = report.write(two)
    assert index == two / "report.html"
    alone = tmp_path / "alone"
    shutil.copytree(two, alone)
    shutil.rmtree(alone / "reports")
    cells = pq.read_table(two / "cells.parquet")
    keep = [name == "none" or name == "ema" for name in cells["scheme"].to_pylist()]
    full = [share == 1.0 for share in cells["length_fraction"].to_pylist()]
    mine = cells.filter([a and b for a, b in zip(keep, full, strict=True)])
    pq.write_table(mine, alone / "cells.parquet")
    trials = pq.read_table(two / "trials.parquet")
    trials = trials.filter(pc.is_in(trials["trajectory_id"], mine["trajectory_id"].combine_chunks()))
    pq.write_table(trials, alone / "trials.parquet")
    plan = json.loads((alone / "plan.json").read_text())
    (own_entry,) = [one for one in plan.pop("studies") if one["study"] == "ema"]
    (alone / "plan.json").write_text(json.dumps(plan | own_entry | {"studies": [own_entry]}))
    report.write(alone)
    reports = two / "reports" / "ema"
    for path in (alone / "tables").iterdir():
        assert path.read_bytes() == (reports / path.relative_to(alone)).read_bytes(), path.name
    text, own = (folder.joinpath("report.html").read_text() for folder in (reports, alone))
    note = re.search(r"<p>[^<]*serve other studies of this folder too[^<]*</p>\n", text)
    links = re.search(r'<nav aria-label="studies of this folder">.*?</nav>\n', text, re.DOTALL)
    assert text.replace(note[0], "").replace(links[0], "") == own
    assert len(pd.read_csv(two / "reports" / "horizon" / "tables" / "steps_to_target.csv")) == 2 * 2 * 3
    assert len(pd.read_csv(reports / "tables" / "steps_to_target.csv")) == 2 * 2


def test_what_told_of_one_study_is_removed(one, undrawn):
    report.write(one)
    own = one / "figures" / "mine.svg"
    own.write_text("x")
    assert (one / "tables" / "ratios.csv").exists()
    report.write(of_two(one))
    assert not (one / "tables").exists()
    assert list((one / "figures").iterdir()) == [own]


def test_the_index_leads_to_each_study_and_each_back_and_the_cost_is_added_once(two):
    text = report.write(two).read_text()
    for name, question in (("horizon", "Does averaging reach the target"), ("ema", "Does an EMA alone do?")):
        assert f'<a href="reports/{name}/report.html">{name}</a>' in text
        assert question in text
        own = (two / "reports" / name / "report.html").read_text()
        answer = re.search(r'class="answer">\s*<p>([^<]*)<', own)[1]
        assert "[" in answer
        assert answer.replace("\u00a0", " ") in text.replace("\u00a0", " ")
    rows = re.findall(r'<tr>(<th scope="row">.*?)</tr>', text)
    found = [re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row) for row in rows]
    each = 36 * 2 / 3600  # device-hours of every trial
    assert found == [
        ["horizon", "12", "4", "2", f"{4 * each:.3g}"],
        ["ema", "4", "2", "2", f"{2 * each:.3g}"],
        ["all, each once", "12", "4", "", f"{4 * each:.3g}"],
    ]
    note = "0.04 of it trained 2 trajectories that serve other studies of this folder too"
    assert note in (two / "reports" / "horizon" / "report.html").read_text().replace("\u00a0", " ")
    first = {path: path.read_bytes() for path in two.rglob("*") if path.is_file()}
    report.write(two)
    assert first == {path: path.read_bytes() for path in two.rglob("*") if path.is_file()}
    leads_back_and_to_its_neighbours(two, two / "report.html")


def leads_back_and_to_its_neighbours(two, index):
    for name, expected in (
        ("horizon", {"all 2 studies": index, "ema →": two / "reports" / "ema" / "report.html"}),
        ("ema", {"all 2 studies": index, "← horizon": two / "reports" / "horizon" / "report.html"}),
    ):
        page = two / "reports" / name / "report.html"
        links = re.search(r'<nav aria-label="studies of this folder">(.*?)</nav>', page.read_text(), re.DOTALL)[1]
        found = {text: href for href, text in re.findall(r'<a href="([^"]*)">([^<]*)</a>', links)}
        assert {text: (page.parent / href).resolve() for text, href in found.items()} == {
            text: path.resolve() for text, path in expected.items()
        }


def test_what_the_terminal_shows_is_a_table_a_study(two):
    tables = {one.name: one.summary() for one in report.of_run(two)}
    assert {name: len(table.rows) for name, table in tables.items()} == {"horizon": 2 * 3, "ema": 2}
    assert {row[2] for row in tables["ema"].rows} == {"no averaging", "EMA 1 %"}


def test_load_and_read_narrow_to_a_study(two):
    cells = load_cells(two)
    mine = cells[cells["studies"].map(lambda names: "ema" in names)]
    assert set(load(two, study="ema")["cell_id"]) == set(mine["cell_id"])
    assert len(load(two, study="horizon")) == len(load(two))
    read = study.read(two, "ema")
    assert set(read.cells["cell_id"]) == set(mine["cell_id"])
    assert set(read.trials["trajectory_id"]) == set(mine["trajectory_id"])
    assert read.plan["question"] == "Does an EMA alone do?"
    with pytest.raises(BadRun, match="it holds 'ema', 'horizon'"):
        study.read(two, "lawa")


def test_hostile_strings_stay_text(make_run, average, uncharted):
    few = {"lengths": [1.0], "averages": [average("ema", 0.01, 0.9)], "seeds": [0, 1]}
    text = report.write(of_two(make_run(**few), question=HOSTILE)).read_text()
    assert "<script" not in text
    assert "<img" not in text
    assert "&lt;script&gt;" in text


@pytest.mark.parametrize("name", ["../elsewhere", "..", "a/b", HOSTILE])
def test_no_study_writes_elsewhere(name, make_run, average, uncharted, tmp_path):
    run = make_run(lengths=[1.0], averages=[average("ema", 0.01, 0.9)], seeds=[0, 1])
    with pytest.raises(BadRun, match="cannot name a folder"):
        report.write(of_two(run, second=name))
    assert not (tmp_path / "elsewhere").exists()


def test_a_page_leads_to_its_runs_on_wandb_and_nowhere_else(tmp_path):
    one = SimpleNamespace(plan={"study": "w"})
    assert report.on_wandb(tmp_path, one) == []
    (tmp_path / "wandb").mkdir()
    links = tmp_path / "wandb" / "links.json"
    for link, allowed in (("https://wandb.ai/t/p/groups/w", True), ("javascript:alert(1)", False), (1, False)):
        links.write_text(json.dumps({"w": link, "another": "https://wandb.ai"}))
        assert report.on_wandb(tmp_path, one) == ([("runs on W&B", link)] if allowed else [])
