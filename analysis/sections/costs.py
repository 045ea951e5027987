"""What does averaging cost a user, and what did the sweep pay?"""

from __future__ import annotations

from typing import Any

import altair as alt
import pandas as pd

from analysis.core import Core
from analysis.presentation import chart as charts
from analysis.presentation.chart import REFERENCE_LINE, Look
from analysis.run_folder.study import SCHEME_NAMES, Study, counted
from analysis.statistics.device_hours import MARGINAL, TOTAL, paid, sweep_hours
from analysis.statistics.pairs import bar, in_front, mean_ratio, same_schedule

TITLE = "Device-hours, marginal and total"
RULE = f"Marginal: {MARGINAL} Total: {TOTAL}"
PARTS = {"all": "#808080", "training": "#5f7fe0", "averaging": "#d1477a", "evaluation": "#b08a00"}


def tables(core: Core) -> dict[str, pd.DataFrame]:
    """sweep_device_hours: what the sweep paid, by part."""
    return {"sweep_device_hours": sweep_hours(core.cells, core.records, core.study.trials)}


def sentences(
    ratios_by_seed: pd.DataFrame, chosen: pd.DataFrame, sweep_device_hours: pd.DataFrame, study: Study, unit: str
) -> list[str]:
    """What a user pays at the pre-specified settings, then what the sweep paid; the two are never mixed."""
    found: list[str] = []
    same = same_schedule(ratios_by_seed[ratios_by_seed["hours_ratio"].notna()], in_front(chosen)["setting"])
    for scheme, mine in list(same.groupby("scheme", sort=True))[:1]:
        found.append(
            f"A user of {SCHEME_NAMES[str(scheme)]} at the pre-specified horizon pays "
            f"{mean_ratio(mine, 'hours_ratio')} of the baseline's {unit} to the target."
        )
    hours = sweep_device_hours.groupby("way")["device_hours"].sum()
    fused, unfused = hours["one trial a trajectory"], hours["one trial a cell"]
    text = f"The sweep of {counted(len(study.cells), 'cell')} paid {hours['paid']:.3g} {unit}"
    if fused > 0 and unfused > 1.05 * fused:
        text += f"; by the records one trial a cell would have cost {unfused / fused:.2g} times one a trajectory"
    found.append(f"{text}.")
    if study.shared:
        shared = paid(study.trials[study.trials["name"].isin(study.shared)])
        found.append(
            f"{shared:.3g} of it trained {counted(len(study.shared), 'trajectory')} that serve other studies of this "
            "folder too: paid once, counted in full in each."
        )
    return found


def chart(ratios: pd.DataFrame, sweep_device_hours: pd.DataFrame, look: Look, unit: str) -> alt.ConcatChart | None:
    """A bar a setting: hours to the target; last, what the sweep paid by part."""
    table = same_schedule(ratios, look.shown["setting"]).dropna(subset=["device_hours", "baseline_device_hours"])
    parts = [_marginal(mine, str(workload), look, unit) for workload, mine in table.groupby("workload", sort=True)]
    paid_for = sweep_device_hours[sweep_device_hours["device_hours"] > 0]
    parts += [_total(paid_for, unit)] if len(paid_for) else []
    made = charts.grid(parts)
    return None if made is None else made.resolve_scale(color="independent")


def caption(ratios: pd.DataFrame, sweep_device_hours: pd.DataFrame, look: Look) -> str:
    """Of the panels that are there."""
    shown = same_schedule(ratios, look.shown["setting"])
    bars = "A bar is the mean cost up to the target, the number at it the ratio to the baseline. Last panel: what"
    known = shown[["device_hours", "baseline_device_hours"]].notna().all(axis=1).any()
    return f"{bars if known else 'What'} the whole sweep paid, beside one trial a trajectory and one a cell."


def _marginal(mine: pd.DataFrame, workload: str, look: Look, unit: str) -> Any:
    own: dict[str, Any] = {"scheme_label": SCHEME_NAMES["none"], "scheme": "none", "bound": "exact"}
    own |= {"device_hours": mine["baseline_device_hours"].iloc[0], "hours_ratio": 1.0}
    mine = pd.concat([pd.DataFrame([own]), mine[[*own, "hours_ratio_low", "hours_ratio_high"]]])
    said = [bar(row, "hours_ratio", "no ratio: both miss") for row in mine.to_dict("records")]
    mine = mine.assign(said=said, scheme_name=mine["scheme"].map(SCHEME_NAMES))
    hover = charts.tooltips(
        *("scheme_label:N:setting", f"device_hours:Q:{unit}:.4g", "hours_ratio:Q:÷ baseline's:.3f"),
        *("hours_ratio_low:Q:from:.3f", "hours_ratio_high:Q:to:.3f", "bound:N:the ratio is"),
    )
    x = alt.X("device_hours:Q", title=f"{unit} to the target", axis=alt.Axis(format="~g", tickCount=5))
    bars = alt.Chart(mine).encode(y=look.rows(mine, workload), x=x)
    text = bars.mark_text(align="left", dx=4, fontSize=11, color=REFERENCE_LINE)
    colour = charts.scheme_colour(look.schemes).legend(None)  # the rows say it
    layered = alt.layer(
        bars.mark_bar(height={"band": 0.7}).encode(color=colour, tooltip=hover), text.encode(text="said:N")
    )
    size = charts.row_size(mine)
    return charts.titled(layered, workload, **size | {"width": size["width"] - 60})  # room for the last number


def _total(table: pd.DataFrame, unit: str) -> Any:
    order = list(dict.fromkeys(table["way"]))
    axis = alt.Axis(ticks=False, domain=False, labelLimit=300)
    bars = alt.Chart(table.assign(rank=table["part"].map(list(PARTS).index))).mark_bar(height={"band": 0.6})
    made = bars.encode(
        y=alt.Y("way:N", title=None, sort=order, axis=axis),
        x=alt.X("device_hours:Q", title=f"{unit}, whole sweep", axis=alt.Axis(format="~g")),
        color=alt.Color("part:N", title=None, sort=list(PARTS), scale=charts.scale(PARTS)),
        order="rank:Q",
        tooltip=charts.tooltips("way:N:way", "part:N:part", f"device_hours:Q:{unit}:.4g"),
    )
    return charts.titled(made, "the sweep", height=36 * len(order) + 10, width=300)
