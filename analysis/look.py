"""Which settings the figures of a study show, and the colour of each."""

from __future__ import annotations

from dataclasses import dataclass

import altair as alt
import numpy as np
import pandas as pd

from analysis.baselines import in_front
from analysis.core import Core
from analysis.figures.palette import scheme_colours, setting_colours
from analysis.study import SCHEME_NAMES

MAX_SETTINGS = 8  # a workload and scheme, in all figures but the horizon axis


@dataclass(frozen=True)
class Look:
    """What all figures share."""

    shown: pd.DataFrame  # settings of the reference trainings, one row each
    chosen: list[str]  # labels of the pre-specified settings, and of the baseline
    colours: dict[str, str]  # scheme_label -> colour
    schemes: dict[str, str]  # scheme name -> colour
    num_left_out: int  # settings of the reference trainings that are in the tables only
    unit: str  # of device-hours

    @property
    def workloads(self) -> list[str]:
        return sorted(set(self.shown["workload"]))

    @property
    def averages(self) -> dict[str, str]:
        """Colours of the schemes but for the baseline."""
        return {name: colour for name, colour in self.schemes.items() if name != SCHEME_NAMES["none"]}

    def rows(self, table: pd.DataFrame, workload: str) -> alt.Y:
        """The axis of one row a setting, in the order of schemes and horizons."""
        mine = self.shown[self.shown["workload"] == workload]["scheme_label"]
        order = [label for label in mine if label in set(table["scheme_label"])]
        return alt.Y("scheme_label:N", title=None, sort=order, axis=alt.Axis(ticks=False, domain=False))


def look(core: Core, unit: str) -> Look:
    """Picks settings of the reference training of each workload and gives each its colour."""
    every = core.settings
    shown = every[every["training"] == every["workload"].map(core.reference)]
    shown = shown.sort_values(["scheme", "horizon_fraction", "setting"], kind="stable")
    order = {"none": 0, "ema": 1, "lawa": 2, "tail": 3, "wsm": 4}
    shown = shown.assign(rank=shown["scheme"].map(order).fillna(9)).sort_values("rank", kind="stable")
    chosen = [SCHEME_NAMES["none"], *sorted(set(in_front(core.chosen)["scheme_label"]))]
    schemes = {SCHEME_NAMES.get(n, n): c for n, c in scheme_colours(sorted(set(shown["scheme"]))).items()}
    some = _some_of(shown, core)
    return Look(some, chosen, setting_colours(some, chosen), schemes, len(shown) - len(some), unit)


def _some_of(shown: pd.DataFrame, core: Core) -> pd.DataFrame:
    """At most about MAX_SETTINGS a workload and scheme, spread over the horizons; chosen and best always."""
    keep = set(core.chosen["setting"]) | set(core.horizons.loc[core.horizons["best"], "setting"])
    parts = []
    for _, part in shown.groupby(["rank", "scheme", "workload"], sort=True):
        if len(part) <= MAX_SETTINGS:
            parts.append(part)
            continue
        one_each = part.drop_duplicates("horizon_fraction")
        places = np.unique(np.linspace(0, len(one_each) - 1, MAX_SETTINGS - 1).round().astype(int))
        parts.append(part[part["setting"].isin(set(one_each.iloc[places]["setting"]) | keep)])
    return pd.concat(parts)
