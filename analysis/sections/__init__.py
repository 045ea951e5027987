"""The sections of a report, one file a question.

A section has TITLE, CAPTION or `caption(…)` (what is seen) and RULE (how it is computed, or name of a frame -> rule of
what it holds), `tables(core)`, and may have `chart(…)` and `sentences(…)`. Their parameters are names of frames: its
own, another section's, `Core.frames`'s, or `look`, `study`, `unit` (of device-hours), `primary` (the pre-specified
scheme and horizon).
A file put in this folder is a section; ORDER says where known ones stand, others follow.
"""

from __future__ import annotations

import inspect
import pkgutil
from collections.abc import Callable, Iterable, Mapping
from importlib import import_module
from types import ModuleType
from typing import Any

import pandas as pd

from analysis.core import Core
from analysis.statistics.resampling import FEWEST

ORDER: tuple[str, ...] = (
    *("steps", "pooled", "saving_curve", "horizon", "snapshots", "trainings", "schedules", "generalization"),
    *("profiles", "learning_curves", "costs"),
)
# Of another benchmark's runs: no averages, no schedules to tell of.
OF_LOGS = ("submissions", "profiles", "learning_curves", "costs")
FIRST = {"steps": "steps", "final_metric": "generalization", "horizon": "horizon"}  # what the study asks: `report:`


def every() -> list[str]:
    """Names of all sections."""
    return sorted(one.name for one in pkgutil.iter_modules(__path__))


def named(name: str) -> ModuleType:
    """One section. Raises: ModuleNotFoundError."""
    return import_module(f"{__name__}.{name}")


def of_study(core: Core) -> list[ModuleType]:
    """The sections of a study, the one it asks for first."""
    if "imported" in core.study.plan:
        return [named(name) for name in OF_LOGS if name in every()]
    first = FIRST.get(str(core.study.plan.get("report")), "steps")
    if first == "steps" and core.cells["workload"].nunique() >= FEWEST:
        first = "pooled"
    rank = {name: place for place, name in enumerate(ORDER)} | {first: -1}
    names = [name for name in every() if name != "submissions"]
    return [named(name) for name in sorted(names, key=lambda name: (rank.get(name, len(rank)), name))]


def name(section: ModuleType) -> str:
    """What its figure and its place on the page are called."""
    return section.__name__.rpartition(".")[2]


def frames(core: Core, sections: Iterable[ModuleType]) -> dict[str, pd.DataFrame]:
    """Every table, by the name of its CSV file."""
    found = core.frames()
    for section in sections:
        found |= section.tables(core)
    return found


def call(function: Callable[..., Any], known: Mapping[str, Any]) -> Any:
    """A section's function with the frames that its parameters name."""
    return function(**{parameter: known[parameter] for parameter in inspect.signature(function).parameters})
