"""How input is quoted, names are suggested and things are counted in one line of text."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

MAX_LINE = 300


def shown(value: object) -> str:
    """A value as an error line quotes it: one line, at most 60 characters, whatever it is."""
    if isinstance(value, str):
        value = value[:200]
    elif isinstance(value, (list, tuple, dict)) and len(value) > 20:
        return f"a {'mapping' if isinstance(value, dict) else 'list'} of {len(value):,}"
    try:
        text = " ".join(repr(value).split())
    except ValueError:  # an int of more digits than Python writes
        return f"a {type(value).__name__} too large to show"
    return text if len(text) <= 60 else text[:57] + "..."


def one_line(text: str, most: int = MAX_LINE, tail: int = 0) -> str:
    """Text on one line of at most `most` characters, what is not printable escaped.

    tail: how many of its last characters stay where it is cut.
    """
    line = " ".join("".join(c if c.isprintable() or c.isspace() else repr(c)[1:-1] for c in text).split())
    return line if len(line) <= most else line[: most - 3 - tail] + "..." + line[len(line) - tail :]


def closest_first(name: object, known: Iterable[str]) -> tuple[str | None, list[str]]:
    """The known name nearest to `name`, None where none is near, and all of them with it in front."""
    names = list(known)
    close = difflib.get_close_matches(str(name)[:100], names, n=1)
    return (close[0], sorted(names, key=lambda one: one != close[0])) if close else (None, names)


def among(name: object, known: Iterable[str]) -> str:
    """What to say of a name that is none of the known: the nearest, if one is near, and all there are."""
    close, names = closest_first(name, known)
    asked = f" (did you mean {close!r}?)" if close else ""
    return f"{asked}; allowed: {', '.join(names)}"


def counted(number: float, noun: str) -> str:
    """``1 cell``, ``2 batches``, ``1,200 trajectories``."""
    sibilant = noun.endswith(("s", "x", "ch", "sh"))
    many = f"{noun[:-1]}ies" if noun.endswith("y") else f"{noun}{'es' if sibilant else 's'}"
    return f"{number:,.0f} {noun if number == 1 else many}"


def duration(seconds: float) -> str:
    """``42 s``, ``3 min 5 s``, ``2 h 7 min``."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"
