"""Figures as files: what they hold, and that the same chart gives the same bytes whatever the process did before."""

import re

import altair as alt
import pandas as pd
import vl_convert

from analysis.presentation import chart as panels
from analysis.presentation import figure_files

CHART = {
    "data": {"values": [{"x": i, "y": i % 3, "c": f"series {i % 3}"} for i in range(12)]},
    "title": {"text": "Bold heads need a second font"},
    "mark": {"type": "point", "opacity": 0.5, "filled": True},
    "encoding": {
        "x": {"field": "x", "type": "quantitative"},
        "y": {"field": "y", "type": "quantitative"},
        "color": {"field": "c", "type": "nominal"},
        "opacity": {"field": "x", "type": "quantitative", "legend": None},
    },
}


def test_three_kinds_of_file_and_the_height(tmp_path):
    height = figure_files.write(CHART, tmp_path, "x")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["x.pdf", "x.png", "x.svg"]
    assert (tmp_path / "x.png").read_bytes().startswith(b"\x89PNG")
    pdf = (tmp_path / "x.pdf").read_bytes()
    assert pdf.startswith(b"%PDF-")
    for word in (b"CreationDate", b"ModDate", b"/ID"):
        assert word not in pdf
    assert f'height="{height}"' in (tmp_path / "x.svg").read_text()


def test_a_file_names_a_font_of_known_widths_and_leaves_long_labels_a_margin(tmp_path):
    labels = [{"x": 1, "c": "a label of many a wide WORD, MMMMMMMM"}]
    encoding = {
        "x": {"field": "x", "type": "quantitative"},
        "y": {"field": "c", "type": "nominal", "title": None},
    }
    figure_files.write({"data": {"values": labels}, "mark": "bar", "encoding": encoding}, tmp_path, "x")
    svg = (tmp_path / "x.svg").read_text()
    fonts = set(re.findall(r'font-family="([^"]*)"', svg))
    assert [font.split(",")[0] for font in fonts] == ["'Liberation Sans'"]
    labels_end = float(re.search(r'transform="translate\(([0-9.]+),', svg)[1])
    plain = str(
        vl_convert.vegalite_to_svg(
            {"data": {"values": labels}, "mark": "bar", "encoding": encoding, "config": {"padding": 0}}
        )
    )
    assert labels_end >= float(re.search(r'transform="translate\(([0-9.]+),', plain)[1]) * 1.1


def test_the_page_holds_the_columns_that_marks_use():
    table = pd.DataFrame({"x": [1.123456789, 2.0], "y": [1, 2], "unused": [3, 4]})
    found = figure_files.spec(alt.concat(alt.Chart(table).mark_point().encode(x="x:Q", y="y:Q")))
    (rows,) = found["datasets"].values()
    assert rows == [{"x": 1.123457, "y": 1}, {"x": 2.0, "y": 2}]
    assert figure_files.spec(None) is None


def test_a_file_holds_nothing_that_waits_for_a_pointer(tmp_path):
    table = pd.DataFrame({"x": [1, 2, 3], "y": [1, 3, 2], "name": "a"})
    line = alt.Chart(table).mark_line().encode(x="x:Q", y="y:Q", color="name:N", tooltip=panels.tooltips("x:Q:x"))
    zoom = alt.selection_interval(name="zoom", bind="scales")
    still = alt.concat(alt.layer(panels.level_rule(1.0), line.add_params(zoom)))
    live = alt.concat(alt.layer(panels.level_rule(1.0), panels.zoomable(line, "zoom")))
    for chart, name in ((still, "still"), (live, "live")):
        figure_files.write(figure_files.spec(chart), tmp_path, name)
    assert (tmp_path / "live.svg").read_bytes() == (tmp_path / "still.svg").read_bytes()
    assert "zoom_hover_near" in str(figure_files.spec(live))
