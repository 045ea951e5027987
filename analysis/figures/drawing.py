"""Which settings figures show, with the study and its tables."""

from __future__ import annotations

from dataclasses import dataclass

from analysis import chart
from analysis.study import Study
from analysis.tables import Tables


@dataclass(frozen=True)
class Drawing(chart.Look):
    """A `Look`, and what figures draw."""

    study: Study
    tables: Tables


def drawing(study: Study, tables: Tables, reference: dict[str, int]) -> Drawing:
    look = chart.look(tables.settings, tables.chosen, tables.horizon_map, reference)
    return Drawing(**vars(look), study=study, tables=tables)
