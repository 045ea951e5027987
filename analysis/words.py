"""Verdicts and numbers in words: the same in the report, on the terminal and on W&B."""

from __future__ import annotations

from collections.abc import Sequence

from analysis.run_folder.study import percent
from analysis.statistics.verdicts import EXCLUDED, MARGIN, MOST, SHOWN, UNDECIDED, Verdict

_EXCLUDED = f"a change of over {percent(MARGIN)} is excluded"


def needed(found: Verdict, what: str = "seeds") -> str:
    """'about 12 seeds would decide'; empty where it is decided."""
    if found.word != UNDECIDED:
        return ""
    return "there is no interval" if found.needed is None else f"{_about(found.needed)} {what} would decide"


def _about(number: int) -> str:
    return f"more than {MOST:,}" if number > MOST else f"about {number}"


def tally(found: Sequence[tuple[str, float, Verdict]], below: str, above: str) -> str:
    """'a saving is shown on 2 (a, b); a change of over 1 % is excluded on 1 (c); 1 undecided, …'; of one workload
    'a saving is shown on lm'.

    Args: found: a name, by how much it lies above no effect, its verdict. below, above: what is shown on either side.
    """
    if len(found) == 1:
        name, side, one = found[0]
        text, _, number = told(one, side, below=below, above=above).partition("; ")
        return f"{text} on {name}" + (f" ({number})" if number else "")
    fewer = [name for name, side, one in found if one.word == SHOWN and side < 0]
    more = [name for name, side, one in found if one.word == SHOWN and side > 0]
    excluded = [name for name, _, one in found if one.word == EXCLUDED]
    open_ = [(name, one.needed) for name, _, one in found if one.word == UNDECIDED]
    parts = [f"{below} is shown on {_listed(fewer, len(found))}"] if fewer or not more else []
    parts += [f"{above} is shown on {_listed(more, len(found))}"] if more else []
    parts += [f"{_EXCLUDED} on {_listed(excluded, len(found))}"] if excluded else []
    each = ", ".join(f"{name} ({_about(number) if number else 'no interval'})" for name, number in open_)
    parts += [f"{len(open_)} undecided, with the seeds that would decide: {each}"] if open_ else []
    return "; ".join(parts)


def _listed(names: Sequence[str], total: int) -> str:
    if len(names) == total:
        return f"all {total}"
    return f"{len(names)} ({', '.join(names)})" if names else "none"


def told(found: Verdict, change: float, what: str = "seeds", below: str = "a saving", above: str = "a loss") -> str:
    """'a saving is shown', 'a change of over 1 % is excluded', 'undecided; about 12 seeds would decide'.

    Args: change: by how much it lies above no effect. what: whose number would decide. below, above: what is shown.
    """
    if found.word == UNDECIDED:
        return f"{UNDECIDED}; {needed(found, what)}"
    return f"{below if change < 0 else above} is shown" if found.word == SHOWN else _EXCLUDED


def chance(by_luck: float) -> str:
    """'by luck 2.5 times in 100'."""
    return f"by luck {100 * by_luck:.2g} times in 100" if by_luck >= 1e-3 else "by luck less than once in 1,000"


def listed(names: Sequence[str]) -> str:
    """'a, b and c'."""
    return " and ".join(filter(None, [", ".join(names[:-1]), *names[-1:]]))


def first(parts: Sequence[str], most: int, between: str = "; ", rest: str = " and {} more") -> str:
    """'a; b and 3 more': at most so many, and how many are left."""
    return between.join(parts[:most]) + (rest.format(len(parts) - most) if len(parts) > most else "")
