"""A user's workload by dotted path: found, made and looked at, with one line for whatever stands in the way."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import math
import os
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from workloads.user_errors import OUR_PACKAGES, one_line

MEMBERS = (
    *("step_budget", "batch_size", "metric", "higher_is_better", "optimizer", "schedule"),
    *("model", "batches", "loss", "eval_batches", "eval_step", "summarize"),
)
NAME = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*:[^\W\d]\w*")
MAX_NAME = 100  # characters: it stands in error lines, tables and ids


class UnknownWorkload(click.ClickException, ValueError):
    """No such workload or preset, or its own code fails; the message says what there is, or where it failed."""

    exit_code = 2


def import_dotted(name: str, what: str = "workload") -> Any:
    """What ``"pkg.mod:Name"`` means. Raises: UnknownWorkload, also where the user's code ends in SystemExit."""
    if len(name) > MAX_NAME or NAME.fullmatch(name) is None:
        raise UnknownWorkload(f"no {what} {name[:60]!r}; your own is 'pkg.mod:Name', as Python spells names")
    module_name, _, attribute = name.partition(":")
    top = module_name.partition(".")[0]
    if top in sys.stdlib_module_names or top in ("__main__", "__mp_main__"):  # in every process, whatever is here
        raise UnknownWorkload(f"cannot import {what} {name!r}: {top!r} is a module of Python's own; rename yours")
    if not {os.getcwd(), ""} & set(sys.path):
        sys.path.append(os.getcwd())  # last: a random.py there is not Python's
    try:
        return getattr(importlib.import_module(module_name), attribute)
    except Exception as error:
        hidden = _hidden(module_name)
        if _is_missing(error, module_name, attribute):
            raise UnknownWorkload(f"cannot import {what} {name!r}: {error}{hidden}") from None
        raise UnknownWorkload(f"{what} {name!r} fails when imported: {one_line(error)}{hidden}") from error
    except SystemExit as error:
        raise UnknownWorkload(f"{what} {name!r} fails when imported: {one_line(error)}") from error


def load_dotted(name: str, preset: str) -> Any:
    """The workload that ``"pkg.mod:Name"`` is or makes. Raises: UnknownWorkload."""
    found = import_dotted(name)
    try:
        if inspect.isclass(found) or inspect.isroutine(found):
            make: Any = found
            found = make(preset=preset) if "preset" in inspect.signature(make).parameters else make()
        missing = [member for member in MEMBERS if not hasattr(found, member)]
        wrong = None if missing else complaint(found)
    except (Exception, SystemExit) as error:
        raise UnknownWorkload(f"workload {name!r} fails when it is made: {one_line(error)}") from error
    if missing:
        raise UnknownWorkload(f"{name!r} is not a workload: it lacks {', '.join(missing)} (see workloads/protocol.py)")
    if wrong is not None:
        raise UnknownWorkload(f"workload {name!r}: its {wrong}")
    return found


def _is_missing(error: Exception, module_name: str, attribute: str) -> bool:
    """Whether the module or the name in it is not there, where any other error is out of the user's code."""
    if isinstance(error, ModuleNotFoundError):
        return error.name is not None and f"{module_name}.".startswith(f"{error.name}.")
    if isinstance(error, AttributeError):
        return error.name == attribute and error.obj is sys.modules.get(module_name)
    return False


def _hidden(module_name: str) -> str:
    """The remedy where the folder has a module of this name that is not the one found."""
    top = module_name.partition(".")[0]
    spec = importlib.util.find_spec(top)
    if spec is None or not any(path.exists() for path in (Path(f"{top}.py"), Path(top))):
        return ""
    places = [*(spec.submodule_search_locations or []), spec.origin or ""]
    if any(Path.cwd() in Path(place).resolve().parents for place in places) and top not in OUR_PACKAGES:
        return ""
    whose = "a package of wa-sweeps" if top in OUR_PACKAGES else f"the installed package at {places[0]}"
    return f"; {top!r} is {whose} and not yours: rename yours"


# --- what its plain attributes may be ---------------------------------------------------------------------------


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
