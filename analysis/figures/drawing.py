"""What all figures share: the settings they show, and their colours."""

from __future__ import annotations

from dataclasses import dataclass

import altair as alt
import numpy as np
import pandas as pd

from analysis.figures.palette import scheme_colours, setting_colours
from analysis.pairs import in_front
from analysis.study import SCHEME_NAMES, Study
from analysis.tables import Tables

MAX_SETTINGS = 8  # a workload and scheme, in all figures but the horizon axis


@dataclass(frozen=True)
class Drawing:
    """What all figures share: the tables, the settings they show and their colours."""

    study: Study
    tables: Tables
    shown: pd.DataFrame  # settings of the reference trainings, one row each
    chosen: list[str]  # labels of the horizons fixed beforehand, and raw
    colours: dict[str, str]  # scheme_label -> colour
    schemes: dict[str, str]  # scheme name -> colour
    num_left_out: int  # settings of the reference trainings that are in the tables only

    @property
    def workloads(self) -> list[str]:
        return sorted(set(self.shown["workload"]))

    def rows(self, table: pd.DataFrame, workload: str) -> alt.Y:
        """The axis of one row a setting, in the order of schemes and horizons."""
        mine = self.shown[self.shown["workload"] == workload]["scheme_label"]
        order = [label for label in mine if label in set(table["scheme_label"])]
        return alt.Y("scheme_label:N", title=None, sort=order, axis=alt.Axis(ticks=False, domain=False))

    @property
    def averages(self) -> dict[str, str]:
        """Colours of the schemes but for raw weights."""
        return {name: colour for name, colour in self.schemes.items() if name != SCHEME_NAMES["none"]}


def drawing(study: Study, tables: Tables, reference: dict[str, int]) -> Drawing:
    """Picks the settings of the reference training of each workload and gives each its colour."""
    every = tables.settings
    shown = every[every["training"] == every["workload"].map(reference)]
    shown = shown.sort_values(["scheme", "horizon_fraction", "setting"], kind="stable")
    order = {"none": 0, "ema": 1, "lawa": 2, "tail": 3, "wsm": 4}
    shown = shown.assign(rank=shown["scheme"].map(order).fillna(9)).sort_values("rank", kind="stable")
    chosen = [SCHEME_NAMES["none"], *sorted(set(in_front(tables.chosen)["scheme_label"]))]
    schemes = {SCHEME_NAMES.get(n, n): c for n, c in scheme_colours(sorted(set(shown["scheme"]))).items()}
    some = _some_of(shown, tables)
    return Drawing(study, tables, some, chosen, setting_colours(some, chosen), schemes, len(shown) - len(some))


def _some_of(shown: pd.DataFrame, tables: Tables) -> pd.DataFrame:
    """At most about MAX_SETTINGS a workload and scheme, spread over the horizons; chosen and best always."""
    horizons = tables.horizon_map
    keep = set(tables.chosen["setting"]) | set(horizons.loc[horizons["best"], "setting"])
    parts = []
    for _, part in shown.groupby(["rank", "scheme", "workload"], sort=True):
        if len(part) <= MAX_SETTINGS:
            parts.append(part)
            continue
        one_each = part.drop_duplicates("horizon_fraction")
        places = np.unique(np.linspace(0, len(one_each) - 1, MAX_SETTINGS - 1).round().astype(int))
        spread = set(one_each.iloc[places]["setting"]) | keep
        parts.append(part[part["setting"].isin(spread)])
    return pd.concat(parts)
