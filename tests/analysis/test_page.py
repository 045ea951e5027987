"""The page by its structure, and, where a Chromium is installed, as one draws it on a phone and on a desk."""

import html
import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from types import SimpleNamespace

import altair as alt
import numpy as np
import pandas as pd
import pytest

from analysis.presentation import chart as panels
from analysis.presentation import figure_files, page

COLOURS = {"no averaging": "#808080", "EMA 1 %": "#2f86d1", "LAWA 4 %": "#c8344a"}
PROBE = """<script>(async () => {
  const sleep = (time) => new Promise((done) => setTimeout(done, time));
  const wait = async (test) => { while (!test()) await sleep(50); };
  const every = (selector) => [...document.querySelectorAll(selector)];
  const lines = () => every(".chart .mark-line.role-mark path").length;
  const labels = () => every(".chart .role-axis-label text").map((one) => one.textContent).join();
  await wait(() => lines());
  every("details").forEach((one) => { one.open = true; });
  const root = document.documentElement;
  const found = { width: innerWidth, over: root.scrollWidth - root.clientWidth, lines: [lines()] };
  const texts = every("body *").filter((one) => !one.closest(".chart, script") && one.childElementCount === 0
    && one.textContent.trim() && one.offsetParent);
  found.smallest = Math.min(...texts.map((one) => parseFloat(getComputedStyle(one).fontSize)));
  const chart = document.querySelector(".chart svg"), plot = document.querySelector(".chart .role-axis-grid");
  chart.scrollIntoView();
  const box = plot.getBoundingClientRect();
  const at = { clientX: box.left + box.width / 2, clientY: box.top + box.height / 2 };
  const send = (event) => document.elementFromPoint(at.clientX, at.clientY).dispatchEvent(event);
  send(new PointerEvent("pointermove", { bubbles: true, ...at }));
  await wait(() => document.getElementById("vg-tooltip-element")?.textContent);
  await sleep(300);
  found.tooltip = document.getElementById("vg-tooltip-element").innerText;
  const points = every(".chart .mark-symbol.role-mark path");
  found.points = points.filter((one) => one.getAttribute("opacity") !== "0").length;
  found.before = labels();
  const wheel = (keys) => new WheelEvent("wheel", { deltaY: -300, bubbles: true, cancelable: true, ...at, ...keys });
  const plain = wheel({}), zooming = wheel({ ctrlKey: true });
  send(plain); await sleep(300); found.plain = [plain.defaultPrevented, labels()];
  send(zooming); await sleep(300); found.zoomed = [zooming.defaultPrevented, labels()];
  const hidden = document.querySelector("[aria-pressed=false]");
  hidden.click(); await sleep(300); found.lines.push(lines());
  hidden.click(); await sleep(300); found.lines.push(lines());
  every("[type=radio]")[1].click(); await sleep(300); found.lines.push(lines());
  const fill = () => getComputedStyle(document.querySelector(".chart .role-axis-title text")).fill;
  const ink = () => getComputedStyle(document.body).color;
  found.light = [fill(), ink()]; document.getElementById("theme").click(); found.dark = [fill(), ink()];
  parent.postMessage(found, "*");
})();</script></body>"""


def curves():
    """Two panels of three curves with a legend that picks, a radio, zoom and hover."""
    steps = np.arange(0, 1001, 50)
    rows = [
        {"scheme_label": name, "step": s, "loss": 2 - s / 1000 - i / 9} for i, name in enumerate(COLOURS) for s in steps
    ]
    pick = panels.legend_pick(["no averaging", "EMA 1 %"], "curves_pick")
    radio = alt.param(name="measured_in", value="steps", bind=alt.binding_radio(options=["steps", "none"], name="in "))
    parts = []
    for place in (0, 1):
        line = alt.Chart(pd.DataFrame(rows)).mark_line(clip=True).transform_filter(pick)
        line = line.transform_filter("measured_in === 'steps'")
        line = line.encode(x="step:Q", y="loss:Q", color=panels.setting_colour(COLOURS), detail="scheme_label:N")
        line = line.encode(tooltip=panels.tooltips("scheme_label:N:setting", "step:Q:step:,", "loss:Q:loss:.3f"))
        line = panels.zoomable(line, f"zoom_{place}")
        layers = alt.layer(panels.level_rule(1.5), line if place else line.add_params(pick))
        parts.append(panels.titled(layers, f"panel {place}"))
    return panels.grid(parts).add_params(radio)


@pytest.fixture(scope="module")
def text():
    rows = [["lm", "0.93", "a long cell " * 20]]
    table = SimpleNamespace(title="Ratios", name="ratios", columns=["workload", "ratio", "said"], rows=rows, left_out=3)
    first = {
        "name": "steps",
        "title": "Steps to target",
        "caption": "A curve a setting.",
        "sentences": ["Second words."],
    }
    other = {"name": "pooled", "title": "Over workloads", "sentences": ["Third words."], "caption": ""}
    return page.report(
        {"steps": figure_files.spec(curves())},
        study="horizon",
        question="Does it save?",
        answer=["EMA 1 % saves 7 %.", "Pre-specified: the same."],
        notices=["One seed."],
        sections=[first | {"tables": [table]}, other | {"tables": []}],
        methods=[("Intervals", "A bootstrap.")],
        facts=[("torch", "2.13.0")],
        links=[
            ("all 2 studies", "../../report.html"),
            ("runs on W&B", "https://example.org/group?a=1&b=2"),
        ],
        heights={"steps": 300},
    )


class Elements(HTMLParser):
    """Elements in order, each with its attributes and the names of those it lies in."""

    VOID = ("meta", "input", "br")

    def __init__(self, text):
        super().__init__()
        self.open, self.found, self.words = [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.found.append((tag, dict(attributes), tuple(self.open)))
        self.open += [] if tag in self.VOID else [tag]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if data.strip() and not {"script", "style"} & set(self.open):
            self.words.append(data.strip().replace("\u00a0", " "))

    def of(self, tag):
        return [attributes for name, attributes, _ in self.found if name == tag]


@pytest.fixture(scope="module")
def elements(text):
    found = Elements(text)
    assert found.open == []
    return found


def test_the_answer_comes_first_then_the_figure_that_shows_it_and_how_it_is_computed_last(elements):
    order = ["Does it save?", "EMA 1 % saves 7 %.", "Pre-specified: the same.", "One seed.", "Steps to target"]
    order += ["A curve a setting.", "Second words.", "Ratios", "Third words.", "Methods", "A bootstrap.", "2.13.0"]
    places = [elements.words.index(word) for word in order]
    assert places == sorted(places)
    for tag, attributes, inside in elements.found:
        if tag in {"table", "dl"} or attributes.get("id") == "methods":
            assert "details" in (*inside, tag)


def test_landmarks_language_skip_link_and_one_heading(elements):
    assert elements.of("html") == [{"lang": "en"}]
    assert [len(elements.of(tag)) for tag in ("h1", "main", "header", "footer")] == [1, 1, 1, 1]
    assert elements.of("a")[0]["href"] == "#main"
    assert elements.of("main")[0]["id"] == "main"
    assert all("aria-label" in nav for nav in elements.of("nav"))
    ids = [attributes["id"] for _, attributes, _ in elements.found if "id" in attributes]
    assert len(ids) == len(set(ids))
    assert {one["aria-labelledby"] for one in elements.of("section")} <= set(ids)
    assert {"https://example.org/group?a=1&b=2", "../../report.html"} <= {one["href"] for one in elements.of("a")}


def test_a_chart_says_what_it_shows_and_a_table_what_its_cells_are(elements):
    (chart,) = (attributes for _, attributes, _ in elements.found if "data-chart" in attributes)
    assert (chart["role"], chart["aria-label"]) == ("img", "Steps to target. A curve a setting.")
    assert len(elements.of("caption")) == len(elements.of("table")) == 1
    assert [one["scope"] for one in elements.of("th")] == ["col", "col", "col", "row"]


def test_what_can_be_switched_is_a_button_or_an_input(text, elements):
    switches = {one["style"].split()[-1]: one["aria-pressed"] for one in elements.of("button") if "style" in one}
    assert switches == dict(zip(COLOURS.values(), ["true", "true", "false"], strict=True))
    radios = [(one["type"], one["value"], "checked" in one) for one in elements.of("input")]
    assert radios == [("radio", "steps", True), ("radio", "none", False)]
    spec = json.loads(re.search(r'id="chart-steps">(.*?)</script>', text)[1])
    assert [param["bind"] for param in spec["params"] if "bind" in param] == ["scales", "legend", "scales"]
    assert '"legend":{' not in json.dumps(spec, separators=(",", ":"))  # the buttons are the legend
    assert text.count("the wheel zooms") == 1


def test_print_leaves_the_controls_out_and_is_light(text):
    css = " ".join(re.findall(r"@media print \{(.*?\}) \}", text, re.DOTALL))
    hidden = " ".join(re.findall(r"([^{}]*)\{ display: none !important", css))
    for name in ("nav", ".skip", ".bar button", ".files", 'button[aria-pressed="false"]', "tooltip", "input"):
        assert name in hidden
    assert "color-scheme: light" in css
    assert ".chart svg { max-width: 100%" in css


@pytest.fixture(scope="module")
def drawn(text, tmp_path_factory):
    """What a Chromium finds on the page, by the width of its window."""
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if chromium is None:
        pytest.skip("needs a Chromium to draw the page")
    folder = tmp_path_factory.mktemp("drawn")
    (folder / "page.html").write_text(PROBE.join(text.rsplit("</body>", 1)))
    frames = "".join(
        f'<iframe src="page.html" style="position: absolute; top: 0; width: {width}px; height: 800px"></iframe>'
        for width in (390, 1100)
    )
    collect = 'addEventListener("message", (e) => { all.push(e.data); found.textContent = JSON.stringify(all); });'
    (folder / "both.html").write_text(f"<pre id=found></pre><script>const all = []; {collect}</script>{frames}")
    quiet = ["--disable-quic", "--no-first-run", "--disable-background-networking", "--disable-component-update"]
    command = [chromium, "--headless", "--no-sandbox", "--disable-gpu", *quiet, "--disable-sync", "--dump-dom"]
    command += [f"--user-data-dir={folder / 'profile'}", "--virtual-time-budget=20000", "--window-size=1200,900"]
    done = subprocess.run([*command, f"file://{folder / 'both.html'}"], capture_output=True, text=True, timeout=300)
    found = re.search(r'<pre id="found">(.*?)</pre>', done.stdout, re.DOTALL)
    return {one["width"]: one for one in json.loads(html.unescape(found[1]))}


@pytest.mark.parametrize("width", [390, 1100])
def test_the_page_never_scrolls_sideways(drawn, width):
    assert drawn[width]["over"] <= 0
    assert drawn[width]["smallest"] >= (16 if width < 700 else 14)


@pytest.mark.parametrize("width", [390, 1100])
def test_the_nearest_point_answers_the_pointer(drawn, width):
    said = drawn[width]["tooltip"].split()
    assert " ".join(said[1:-4]) in COLOURS
    assert (said[0], said[-4], said[-2]) == ("setting", "step", "loss")
    assert drawn[width]["points"] == 2  # one on each curve shown


@pytest.mark.parametrize("width", [390, 1100])
def test_the_wheel_scrolls_and_zooms_only_with_a_modifier(drawn, width):
    found = drawn[width]
    assert found["plain"] == [False, found["before"]]
    assert found["zoomed"][0] is True
    assert found["zoomed"][1] != found["before"]


def test_buttons_and_radios_drive_the_chart(drawn):
    assert drawn[1100]["lines"] == [4, 6, 4, 0]  # two panels of two curves, a third shown and hidden, none of a unit


def test_the_charts_text_has_the_pages_colour_in_both_themes(drawn):
    found = drawn[1100]
    assert found["light"][0] == found["light"][1]
    assert found["dark"][0] == found["dark"][1] != found["light"][0]
