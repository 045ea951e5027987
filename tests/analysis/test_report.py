import json
import re
import shutil
from html.parser import HTMLParser

import numpy as np
import pandas as pd
import pytest

from analysis import recommend, report
from analysis.presentation import chart as style
from analysis.run_folder import study
from analysis.run_folder.records import BadRun

HOSTILE = '</script><script>alert(1)</script><img src=x onerror="alert(2)">'


class Page(HTMLParser):
    def __init__(self, text):
        super().__init__()
        self.tags, self.text, self.scripts, self.data, self.inside = [], [], [], {}, None
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        self.inside = tag

    def handle_endtag(self, tag):
        self.inside = None

    def handle_data(self, data):
        (self.scripts if self.inside == "script" else self.text).append(data)
        if self.inside == "script" and "id" in self.tags[-1][1]:
            self.data[self.tags[-1][1]["id"]] = data


def page(run):
    return Page((run / "report.html").read_text(encoding="utf-8"))


def charts(found):
    return {n.removeprefix("chart-"): json.loads(text) for n, text in found.data.items() if n.startswith("chart-")}


def test_every_figure_as_svg_png_and_pdf_every_table_as_csv_and_latex(small, small_report):
    names = {path.stem for path in (small / "figures").glob("*.svg")}
    for ending in ("png", "pdf"):
        assert names == {path.stem for path in (small / "figures").glob(f"*.{ending}")}
    made = small_report
    shown = {f"{table.name}.tex" for section in made.sections for table in made.tables(section)}
    assert {path.name for path in (small / "tables").glob("*.tex")} == shown
    assert (small / "tables" / "settings.tex").read_text().count(r" \\") == 1 + 2 * 5
    assert {path.stem for path in (small / "tables").glob("*.csv")} == {n for n, f in made.frames.items() if len(f)}
    assert names == set(made.charts) >= {"steps", "trainings", "saving_curve", "horizon", "learning_curves", "costs"}
    for path in (small / "figures").glob("*.png"):
        assert path.read_bytes().startswith(b"\x89PNG")
    ratios = pd.read_csv(small / "tables" / "ratios.csv")
    ema = ratios[(ratios["scheme_label"] == "EMA 1 %") & (ratios["versus"] == "same schedule")]
    assert (ema["geometric_mean"].round(2) == 0.89).all()  # seeds 0 and 1: 0.9 · 0.98 and 0.9


def test_question_and_answer_come_first(small, small_report):
    text, made = " ".join(page(small).text), small_report
    question = text.index("Does averaging reach the target in fewer steps?")
    answer = text.index(made.answer[0].replace(" %", "\u00a0%"))
    assert question < answer < text.index("Steps to target") < text.index("Methods")
    for word in ("median over seeds of the best validation metric", "right-censored", "node-a", "torch 2.13.0"):
        assert word in text
    assert "2 seeds: intervals are widened for so few" in text
    assert made.answer == list(recommend.recommend(small)[0].answer)  # never a second opinion


def test_the_page_needs_no_network(small):
    found = page(small)
    for tag, attributes in found.tags:
        assert tag not in {"link", "iframe", "img", "object", "embed"}
        for value in (attributes.get("src"), attributes.get("href")):
            assert value is None or value.startswith(("#", "figures/", "tables/"))
    data = [text for text in found.scripts if text.startswith("{")]
    assert len(data) == len(found.data) == 1 + len(list((small / "figures").glob("*.svg")))
    assert not any("http" in text for text in data)
    assert "cdn" not in (small / "report.html").read_text(encoding="utf-8").lower().replace("cdnot", "")


def test_charts_hold_what_the_tables_say(small):
    spec = charts(page(small))["steps"]
    rows = [row for data in spec["datasets"].values() for row in data if "geometric_mean" in row or "value" in row]
    csv = pd.read_csv(small / "tables" / "ratios.csv")
    drawn = {row["value"] for row in rows if row.get("num_pairs")}
    for value in drawn:
        assert np.isclose(csv["geometric_mean"], value, rtol=1e-6).any()
    assert len(drawn) >= 3


def test_colours_are_the_same_in_every_figure(small):
    for name, spec in charts(page(small)).items():
        text = json.dumps(spec)
        for scheme, label in (("ema", "EMA"), ("lawa", "LAWA")):
            if f'"{label}"' in text and name != "costs":
                assert style.SCHEME_COLOURS[scheme] in text


def test_same_folder_same_bytes(small, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(small, copy)
    shutil.rmtree(copy / "tables")
    shutil.rmtree(copy / "figures")
    report.write(copy)
    for path in sorted(small.rglob("*")):
        if path.is_file() and path.suffix != ".pdf":
            assert path.read_bytes() == (copy / path.relative_to(small)).read_bytes(), path


def test_hostile_strings_stay_text(make_run, task, average, undrawn):
    hostile = task(HOSTILE, f"loss{HOSTILE}", False, 5.0, 1.0, 2.0)
    run = make_run(tasks=[hostile], lengths=[1.0], averages=[average("ema", 0.01, 0.9)], seeds=[0, 1])
    report.write(run)
    found = page(run)
    assert [tag for tag, _ in found.tags].count("script") == 3 + len(found.data)
    assert not any(tag == "img" for tag, _ in found.tags)
    assert not any(name.startswith("on") for _, attributes in found.tags for name in attributes)
    assert HOSTILE in " ".join(found.text)


@pytest.mark.parametrize("case", ["no target", "no baseline", "no average", "one seed", "running", "nothing"])
def test_every_kind_of_study_gives_a_report(case, make_run, task, average, undrawn):
    few = {"lengths": [1.0], "averages": [average("ema", 0.01, 0.9)], "seeds": [0, 1]}
    run = {
        "no target": lambda: make_run(**few | {"tasks": [task("lm", "loss", False, 5.0, 1.0, None)]}),
        "no baseline": lambda: make_run(**few, none=False),
        "no average": lambda: make_run(**few | {"averages": []}),
        "one seed": lambda: make_run(**few | {"seeds": [0]}),
        "running": lambda: make_run(**few, stop={"lm-1.0-0": 60}, missing=("imagenet_vit-1.0-1",)),
        "nothing": lambda: make_run(
            **few, missing=tuple(f"{w}-1.0-{s}" for w in ("lm", "imagenet_vit") for s in (0, 1))
        ),
    }[case]()
    path = report.write(run)
    text = path.read_text(encoding="utf-8")
    drawn = set(charts(page(run)))
    if case == "no target":
        assert "No workload of this study has a target" in text
        assert "saving_curve" in drawn
        assert "steps" not in drawn
    if case in {"running", "nothing"}:
        assert "This study is incomplete" in text
    if case == "nothing":
        assert drawn == set()
    if case == "no baseline":
        assert drawn == {"learning_curves", "costs"}


def test_the_page_says_where_its_files_are_and_keeps_room_for_its_charts(small):
    found = page(small)
    links = [attributes["href"] for tag, attributes in found.tags if tag == "a"]
    files = [link for link in links if not link.startswith("#")]
    assert all((small / link).is_file() for link in files)
    drawn = {path.relative_to(small).as_posix() for path in (small / "figures").glob("*.*g")}
    assert drawn <= set(files)
    assert {"tables/settings.csv", "tables/settings.tex"} <= set(files)
    rooms = [attributes for _, attributes in found.tags if "data-chart" in attributes]
    assert len(rooms) == len(charts(found))
    for room in rooms:
        svg = (small / "figures" / f"{room['data-chart']}.svg").read_text()
        height = int(re.search(r"min-height: (\d+)px", room["style"])[1])
        assert height >= float(re.search(r'height="([0-9.]+)"', svg)[1])


def test_the_title_is_the_question(small):
    title = re.search(r"<title>(.*?)</title>", (small / "report.html").read_text())[1]
    assert title == "Does averaging reach the target in fewer steps? · horizon"


def test_summary_for_the_terminal(small_report):
    made = small_report
    table = made.summary()
    assert table.columns == [
        *("workload", "schedule", "scheme", "horizon %", "steps to target", "ratio", "best metric", "missed")
    ]
    row = [row for row in table.rows if row[0] == "lm" and row[2] == "EMA 1 %"][-1]
    assert row[3] == "1"
    assert row[5].startswith("0.8")
    assert "[" in row[5]
    assert row[7] == "0/2"
    assert len(table.rows) == 2 * 2 * 5
    assert len(made.summary(most=5).rows) == 2 * 5  # the reference schedules alone


def test_not_a_run(tmp_path):
    with pytest.raises(BadRun):
        report.write(tmp_path)


def test_large_curves_are_thinned():
    from analysis.presentation import chart as panels

    table = pd.DataFrame({"setting": [0] * 1000 + [1] * 10, "step": [*range(1000), *range(10)]})
    thinned = panels.thin(table, "setting", 120)
    assert len(thinned[thinned["setting"] == 0]) <= 120
    assert thinned[thinned["setting"] == 0]["step"].max() == 999
    assert len(thinned[thinned["setting"] == 1]) == 10


def test_schemes_it_does_not_know_get_a_colour_of_their_own():
    colours = style.scheme_colours(["none", "ema", "bema", "wsm"])
    assert colours["ema"] == style.SCHEME_COLOURS["ema"]
    assert len(set(colours.values())) == 4


def test_analysis_imports_no_other_room():
    import subprocess
    import sys

    code = "import sys, analysis.report; print({'torch', 'ray', 'wandb', 'wa', 'sweeps'} & set(sys.modules))"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "set()"


def test_reading_is_free_of_side_effects(small):
    before = {path: path.stat().st_mtime_ns for path in small.rglob("*") if path.is_file()}
    study.read(small)
    assert before == {path: path.stat().st_mtime_ns for path in small.rglob("*") if path.is_file()}
    assert re.search(r"report\.html", str(sorted(before)))


def test_several_schedules_without_a_target_are_a_page_all_the_same(make_run, task, average, undrawn):
    untargeted = task("lm", "accuracy", True, 0.1, 0.7, None)
    run = make_run(tasks=[untargeted], lengths=[0.5, 1.0], averages=[average("lawa", 0.18, 0.9)])
    report.write(run)
    assert "trainings" in charts(page(run))
