"""What the annotations of a scheme's fields say: the bounds it is held to, the keys and words of a study's YAML."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from functools import cache
from numbers import Integral, Real
from types import MappingProxyType
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

Policy = Literal["live", "average", "recompute"]  # what becomes of buffers, see `wa.buffers`


@dataclass(frozen=True)
class Option:
    """What the annotation of a scheme's field says of it: ``every: Annotated[int, Option("…", steps=True)]``.

    steps: it counts optimizer steps, so that a study may say it as a share of its step budget. low ≤ value < below.
    """

    about: str
    steps: bool = False
    low: float = -math.inf
    below: float = math.inf


Every = Annotated[int, Option("steps between snapshots, or a share of the step budget", steps=True, low=1)]
BurnIn = Annotated[int, Option("steps (or a share) before the first interval", steps=True, low=0)]
Buffers = Annotated[Policy, Option("batch-norm statistics: live, average or recompute")]
Window = Annotated[int, Option("snapshots averaged; or give the horizon", low=1)]
Horizon = Annotated[float, Option("how far back the average reaches: steps or a share of the step budget", steps=True)]


@cache
def options(kind: type[Any]) -> Mapping[str, tuple[Any, Option]]:
    """Field -> (its type, its `Option`) of a scheme that is a dataclass.

    A field without an `Option` counts steps where it is called every, burn_in or start. Raises: TypeError, NameError.
    """
    hints = get_type_hints(kind, include_extras=True)
    return MappingProxyType({field.name: _option(field.name, hints[field.name]) for field in fields(kind)})


@cache
def instead(kind: type[Any]) -> Mapping[str, tuple[Any, Option]]:
    """What may be given instead of a scheme's first field: KEY of each classmethod ``from_KEY``, as in `options`."""
    found = {}
    for name in sorted(dir(kind)):
        if (key := name.removeprefix("from_")) != name:
            hints = get_type_hints(getattr(kind, name), include_extras=True)
            found[key] = _option(key, hints[key])
    return MappingProxyType(found)


def _option(name: str, hint: Any) -> tuple[Any, Option]:
    said = [one for one in getattr(hint, "__metadata__", ()) if isinstance(one, Option)]
    return (hint.__origin__, said[0]) if said else (hint, UNSAID.get(name, Option("")))


UNSAID = {"every": Option("", steps=True, low=1)} | dict.fromkeys(("burn_in", "start"), Option("", steps=True, low=0))


def check_options(scheme: object) -> None:
    """Hold a scheme's fields against their types and `Option`s. Raises: ValueError.

    An int of NumPy's becomes Python's: it compares equal but does not serialize.
    """
    for name, (kind, option) in options(type(scheme)).items():  # type: ignore[arg-type]  # its hash is object's
        value: Any = getattr(scheme, name)
        low, below = option.low, option.below
        if kind is int:
            fits, allowed = _is_int(value) and low <= value < below, f"an int >= {low}"
        elif kind is float:
            fits, allowed = _is_real(value) and low <= value < below, f"a number with {low} <= {name} < {below}"
        elif get_origin(kind) is Literal:
            words = get_args(kind)
            fits, allowed = isinstance(value, str) and value in words, " or ".join(repr(word) for word in words)
        else:
            continue
        if not fits:
            raise ValueError(f"{type(scheme).__name__}: {name} must be {allowed}, not {value!r}")
        object.__setattr__(scheme, name, kind(value) if kind in (int, float) else value)


def _is_real(value: object) -> bool:
    return not isinstance(value, bool) and isinstance(value, Real)


def _is_int(value: object) -> bool:
    return not isinstance(value, bool) and isinstance(value, Integral)


def snapshots_in(steps: Any, every: Any, name: str, key: str = "horizon") -> int:
    """How many intervals of `every` steps `steps` are, halves up. Raises: ValueError."""
    check_reach(steps, every, name, key)
    return int(steps / every + 0.5)


def check_reach(steps: Any, every: Any, name: str, key: str = "horizon") -> None:
    """Raises: ValueError unless `steps` is a finite number of at least `every` steps."""
    if not _is_int(every) or every < 1:
        raise ValueError(f"{name}: every must be an int >= 1, not {every!r}")
    if not _is_real(steps) or not every <= steps < math.inf:
        raise ValueError(f"{name}: {key} must be a finite number of steps >= every = {every}, not {steps!r}")
