"""What a workload's plain attributes may be, looked at when it is loaded."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any


def _is_count(value: Any) -> bool:
    return type(value) is int and value >= 1


def _is_name(value: Any) -> bool:
    return isinstance(value, str) and 0 < len(value) <= 100 and value.isprintable()


def _is_seconds(value: Any) -> bool:
    return isinstance(value, int | float) and type(value) is not bool and math.isfinite(value) and value >= 0


def _are_splits(value: Any) -> bool:
    return isinstance(value, tuple | list) and all(map(_is_name, value)) and "validation" in value


OPTIONAL = ("step_seconds", "eval_seconds", "splits", "batch_norm_parts")  # absent or None
ATTRIBUTES: dict[str, tuple[Callable[[Any], bool], str]] = {
    "step_budget": (_is_count, "an int ≥ 1 (steps)"),
    "batch_size": (_is_count, "an int ≥ 1 (examples)"),
    "metric": (_is_name, "a name of ≤ 100 printable characters"),
    "higher_is_better": (lambda value: type(value) is bool, "True or False"),
    "step_seconds": (_is_seconds, "a number ≥ 0"),
    "eval_seconds": (_is_seconds, "a number ≥ 0"),
    "splits": (_are_splits, 'a tuple of names, "validation" among them'),
    "batch_norm_parts": (_is_count, "an int ≥ 1"),
}


def complaint(workload: Any) -> str | None:
    """``step_budget is '100'; allowed: an int ≥ 1``, or None. What its blocks may hold a study knows."""
    for name, (accept, allowed) in ATTRIBUTES.items():
        value = getattr(workload, name, None)
        left_out = value is None and name in OPTIONAL
        if not left_out and not accept(value):
            return f"{name} is {' '.join(repr(value).split())[:60]}; allowed: {allowed}"
    return None
