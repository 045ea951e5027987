"""LaTeX tables against pandas' own writer, a small reader of LaTeX, and hostile names."""

import re

import pandas as pd
import pytest

from analysis.presentation import latex
from analysis.presentation.table_format import Table

HOSTILE = [
    "a_b & c % d # e $ f {g} ~h ^i",
    r"\input{/etc/passwd} \\ \end{tabular}",
    "[2cm] after the end of a row",
    "* star",
    "≥ 0.9 [0.8, 1.0] − ÷ γ ν² ∞ – é",
    "tab\tand\nline\x00end",
    "naïve 中 \U0001f600",
    "<b>|x|</b>",
]


def table(title, columns, rows, left_out, name):
    return latex.table(Table(title, name, columns, rows, left_out))


def read(text):
    """(environment, columns, rows of cells) of a table; fails where braces or environments do not close."""
    depth, escaped = 0, False
    for char in text:
        depth += 0 if escaped else {"{": 1, "}": -1}.get(char, 0)
        escaped = char == "\\" and not escaped
        assert depth >= 0
    assert depth == 0
    begins, ends = re.findall(r"\\begin\{(\w+)\}", text), re.findall(r"\\end\{(\w+)\}", text)
    assert begins == ends
    assert len(begins) == 1
    spec = re.search(r"\\begin\{\w+\}\{((?:[lr]|p\{[^}]*\})*)\}\n", text)[1]
    columns = len(re.sub(r"p\{[^}]*\}", "l", spec))
    lines = [line[:-3] for line in text.splitlines() if line.endswith(r" \\")]
    assert text.count("\\\\") == len(lines)
    rows = [re.split(r"(?<!\\) & ", line) for line in lines]
    return begins[0], columns, rows


def plain(cell):
    """What a cell of LaTeX reads as, without accents."""
    names = {"textbackslash": "\\", "textasciitilde": "~", "textasciicircum": "^", "textless": "<"}
    names |= {"textgreater": ">", "textbar": "|", "ldots": "…"}
    cell = re.sub(r"\\ensuremath\{([^{}]*)\}", lambda m: SYMBOLS[m[1]], cell)
    cell = re.sub(r"\\(text\w+|ldots)\{\}", lambda m: names[m[1]].replace("\\", "\x01"), cell)
    cell = re.sub(r"(?<!\\)\{([\[\]*])\}", r"\1", cell).replace("--", "–")
    return re.sub(r"\\([&%$#_{}])", r"\1", cell).replace("\x01", "\\")


SYMBOLS = {r"\geq": "≥", "-": "−", r"\div": "÷", r"\gamma": "γ", r"\nu": "ν", "^2": "²", r"\infty": "∞"}


def test_every_text_reads_as_it_was():
    text = table(HOSTILE[0], HOSTILE[:3], [HOSTILE[3:6], HOSTILE[:3]], 0, "x")
    environment, columns, (head, first, second) = read(text)
    assert (environment, columns) == ("tabular", 3)
    assert [plain(cell) for cell in head] == HOSTILE[:3]
    assert [plain(cell) for cell in second] == HOSTILE[:3]
    assert [plain(cell) for cell in first] == ["* star", HOSTILE[4].replace("é", "e"), "tab and line end"]


def test_ascii_alone_and_no_command_of_a_name():
    text = table(" ".join(HOSTILE), ["a"], [[name] for name in HOSTILE], 0, "x")
    assert text.isascii()
    assert set(re.findall(r"\\([a-z]+)", text)) <= {
        *("begin", "end", "toprule", "midrule", "bottomrule", "ensuremath", "linewidth"),
        *("textbackslash", "textasciitilde", "textasciicircum", "textless", "textgreater", "textbar"),
        *("geq", "div", "gamma", "nu", "infty"),
    }
    assert "{[}U+4E2D{]}" in text
    assert "{[}U+1F600{]}" in text
    assert not re.search(r"\\\\\s*[\[*]", text)  # would be an option of the row's end


@pytest.mark.parametrize("rows", [1, latex.LONG, latex.LONG + 1])
def test_long_tables_repeat_their_head(rows):
    text = table("t", ["a", "b"], [["x", "1.5"]] * rows, 0, "t")
    environment, columns, found = read(text)
    assert environment == ("longtable" if rows > latex.LONG else "tabular")
    assert (r"\endhead" in text) == (rows > latex.LONG)
    assert columns == 2
    assert len(found) == rows + 1


def test_rows_left_out_are_named():
    _, _, rows = read(table("t", ["a", "b"], [["x", "y"]], 1234, "big_table"))
    assert rows[-1] == [r"\multicolumn{2}{l}{1,234 more rows in big\_table.csv}"]


def test_numbers_to_the_right_and_long_text_in_lines():
    rows = [["wmt", "0.93 [0.90, 0.96]", "≥ 1,000", "x " * 40], ["lm", "–", "∞", "y"]]
    assert r"\begin{tabular}{lrrp{0.33\linewidth}}" in table("t", list("abcd"), rows, 0, "t")


def test_like_pandas():
    frame = pd.DataFrame({"work_load": ["a & b", "50 %"], "ratio": ["0.9", "1.1"]})
    theirs = frame.style.hide(axis="index").format(escape="latex").format_index(escape="latex", axis=1)
    theirs = theirs.to_latex(hrules=True, column_format="lr")
    ours = table("t", list(frame), frame.to_numpy().tolist(), 0, "t")
    assert ours.splitlines()[2:] == theirs.splitlines()
