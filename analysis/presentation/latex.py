r"""A table of the page as LaTeX: booktabs rules, every text escaped; more than LONG rows as a longtable.

For pdfLaTeX, LuaLaTeX and XeLaTeX alike, so the file holds ASCII alone. Needs \usepackage{booktabs}, and
\usepackage{longtable} where the first line says so.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence

from analysis.presentation.table_format import Table

LONG = 40  # rows
WIDE = 48  # characters in a cell, above which a column breaks its lines
_NUMBER = re.compile(r"[<>≥≤~]? ?[+−-]?[\d,]+(\.\d+)?(e[+-]?\d+)?( ?%)?( \[.*\])?|–|∞|\d+/\d+")

# fmt: off
_MATHS = {
    "≥": r"\geq", "≤": r"\leq", "−": "-", "÷": r"\div", "×": r"\times", "·": r"\cdot", "±": r"\pm",
    "≈": r"\approx", "∞": r"\infty", "→": r"\rightarrow", "√": r"\surd", "∫": r"\int",
    "α": r"\alpha", "β": r"\beta", "γ": r"\gamma", "δ": r"\delta", "ε": r"\varepsilon", "η": r"\eta",
    "θ": r"\theta", "κ": r"\kappa", "λ": r"\lambda", "μ": r"\mu", "ν": r"\nu", "ρ": r"\rho",
    "σ": r"\sigma", "τ": r"\tau", "Δ": r"\Delta", "Σ": r"\Sigma",
    "₀": "_0", "₁": "_1", "₂": "_2", "²": "^2", "³": "^3",
}
_TEXT = {
    "\\": "backslash", "~": "asciitilde", "^": "asciicircum", "<": "less", ">": "greater", "|": "bar",
    "’": "quoteright",
}
# fmt: on
_ESCAPED = {char: f"\\{char}" for char in "&%$#_{}"} | {char: rf"\text{name}{{}}" for char, name in _TEXT.items()}
_ESCAPED |= {char: f"{{{char}}}" for char in "[]*"}  # after the end of a row they would be its option and its kind
_ESCAPED |= {"\u00a0": "~", "–": "--", "—": "---", "…": r"\ldots{}"}
_ESCAPED |= {char: rf"\ensuremath{{{name}}}" for char, name in _MATHS.items()}


def escaped(text: str) -> str:
    """Text that LaTeX sets as it reads, in ASCII; a character LaTeX has no name for here becomes [U+...]."""
    return "".join(_escaped(char) for char in text)


def _escaped(char: str) -> str:
    if char in _ESCAPED:
        return _ESCAPED[char]
    if " " <= char <= "~":
        return char
    if char.isspace() or unicodedata.category(char).startswith("C"):  # a control character says nothing
        return " "
    parts = [part for part in unicodedata.normalize("NFKD", char) if not unicodedata.combining(part)]
    if all(" " <= part <= "~" for part in parts):  # é without its accent
        return "".join(_ESCAPED.get(part, part) for part in parts)
    return f"{{[}}U+{ord(char):04X}{{]}}"


def table(shown: Table) -> str:
    """A tabular, or a longtable that repeats its head on every page; rows left out are named in its last line."""
    long = len(shown.rows) > LONG
    kind = "longtable" if long else "tabular"
    head = " & ".join(escaped(column) for column in shown.columns) + r" \\"
    lines = [f"% {kind}; needs booktabs{', longtable' if long else ''}", f"% {escaped(shown.title)}"]
    lines += [rf"\begin{{{kind}}}{{{_alignment(shown.rows)}}}", r"\toprule", head, r"\midrule"]
    lines += [r"\endhead"] if long else []
    lines += [" & ".join(escaped(value) for value in row) + r" \\" for row in shown.rows]
    lines.append(r"\bottomrule")
    if shown.left_out:
        said = escaped(f"{shown.left_out:,} more {'row' if shown.left_out == 1 else 'rows'} in {shown.name}.csv")
        lines.append(rf"\multicolumn{{{len(shown.columns)}}}{{l}}{{{said}}} \\")
    return "\n".join([*lines, rf"\end{{{kind}}}", ""])


def _alignment(rows: Sequence[Sequence[str]]) -> str:
    """Numbers to the right, text to the left, long text in lines of a third of the page."""
    found = []
    for values in zip(*rows, strict=True):
        kind = "r" if all(map(_NUMBER.fullmatch, values)) else "l"
        found.append(r"p{0.33\linewidth}" if max(map(len, values)) > WIDE else kind)
    return "".join(found)
