"""Colours by WCAG 2.1: 3:1 for marks (1.4.11), 4.5:1 for text (1.4.3), on the page's light and dark background."""

import re
from pathlib import Path

import pandas as pd
import pytest

from analysis.presentation import chart as style

CSS = (Path(style.__file__).parent / "page_template.html").read_text()
BACKGROUNDS = re.search(r"--bg: light-dark\((#\w{6}), (#\w{6})\)", CSS).groups()


def luminance(colour):
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    parts = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
    return 0.2126 * parts[0] + 0.7152 * parts[1] + 0.0722 * parts[2]


def contrast(one, other):
    low, high = sorted([luminance(one), luminance(other)])
    return (high + 0.05) / (low + 0.05)


def settings(scheme, number):
    labels = [f"{scheme} {place}" for place in range(number)]
    return pd.DataFrame(
        {"scheme": scheme, "scheme_label": labels, "horizon_fraction": [0.01 * 2**n for n in range(number)]}
    )


@pytest.mark.parametrize("background", BACKGROUNDS)
@pytest.mark.parametrize("scheme", [*style.SHADES, "another"])
def test_every_number_of_horizons_stands_out(scheme, background):
    for number in range(1, 13):
        table = settings(scheme, number)
        for chosen in range(number):
            for colour in style.setting_colours(table, [f"{scheme} {chosen}"]).values():
                assert contrast(colour, background) >= 3


@pytest.mark.parametrize("background", BACKGROUNDS)
def test_every_submission_unknown_scheme_and_line_stands_out(background):
    colours = [style.REFERENCE_LINE, *style.submission_colours([f"s{n}" for n in range(40)]).values()]
    colours += style.scheme_colours([*style.SHADES, "a", "b", "c", "d"]).values()
    assert min(contrast(colour, background) for colour in colours) >= 3


def test_submissions_differ():
    assert len(set(style.submission_colours([f"s{n}" for n in range(21)]).values())) == 21


@pytest.mark.parametrize("scheme", [name for name in style.SHADES if name != "none"])
def test_shorter_horizons_are_lighter_and_longer_ones_darker(scheme):
    found = list(style.setting_colours(settings(scheme, 5), [f"{scheme} 2"]).values())
    shades = [luminance(colour) for colour in found]
    assert found[2] == style.SCHEME_COLOURS[scheme]
    assert len(set(found)) == 5
    assert shades[0] > shades[2] > shades[4]


@pytest.mark.parametrize("theme", [0, 1])
@pytest.mark.parametrize(
    ("text", "under"),
    [("text", "bg"), ("muted", "bg"), ("muted", "card"), ("text", "card"), ("accent", "bg"), ("warn", "warn-bg")],
)
def test_text_is_readable(text, under, theme):
    one, other = (
        re.search(rf"--{name}: light-dark\((#\w{{6}}), (#\w{{6}})\)", CSS).groups()[theme] for name in (text, under)
    )
    assert contrast(one, other) >= 4.5


def test_the_charts_text_is_the_pages():
    light = dict(re.findall(r"--(\w+): light-dark\((#\w{6})", CSS))
    assert (style.TEXT, style.MUTED, style.theme()["background"]) == (light["text"], light["muted"], light["bg"])
