"""Does what averaging saves depend on how tight the target is?"""

from __future__ import annotations

from typing import Any

import altair as alt
import numpy as np
import pandas as pd

from analysis import words
from analysis.core import Core
from analysis.presentation import chart as charts
from analysis.presentation.chart import REFERENCE_LINE, Look
from analysis.run_folder.study import SCHEME_NAMES, Study, percent
from analysis.statistics import saving_curve as curves
from analysis.statistics import verdicts
from analysis.statistics.pairs import AT_LEAST, AT_MOST, EXACT, in_front, same_schedule, sign
from analysis.statistics.resampling import Interval, with_interval

TITLE = "Saving curve"
CAPTION = (
    "The ratio at every target level, from easy (left) to the baseline's best; below 1 averaging saves. Bands are 95 % "
    "intervals; a hollow point marks a level that some run misses."
)
RULE = (
    "Level q is the best metric that the median baseline has reached after a share q of its training; the curve is the "
    "geometric mean over seeds, then workloads, of the steps to it over the baseline's, the band its interval, level "
    "by level. A level missed counts as a target missed."
)
LEVELS = (0.5, 0.75, 0.9)  # an easy, a middling and a tight one
WIDEST = 1.6  # a ratio up to which an axis makes room for bands
_UNIT = "saving_unit"  # the parameter that says what is drawn: steps or device-hours


def tables(core: Core) -> dict[str, pd.DataFrame]:
    """saving_curve: one row a (versus, setting, share) · pooled_curve: one row a (versus, scheme, share)."""
    measured = curves.measure(core.cells, core.records, core.pairs)
    return {
        "saving_curve": core.labelled(curves.saving_curve(measured)),
        "pooled_curve": curves.pooled_curve(measured, core.chosen),
    }


def chart(
    saving_curve: pd.DataFrame, pooled_curve: pd.DataFrame, chosen: pd.DataFrame, study: Study, look: Look
) -> alt.ConcatChart | None:
    """The ratio at every target level, same schedule, with its band and the targets; a toggle: steps, device-hours."""
    table = same_schedule(saving_curve[saving_curve["ratio"].notna()], look.shown["setting"])
    if table.empty:
        return None
    pick = charts.legend_pick(look.chosen, "saving_pick")
    colours = {label: colour for label, colour in look.colours.items() if label != SCHEME_NAMES["none"]}
    axis = _axis(table[table["scheme_label"].isin(look.chosen)])
    parts: list[Any] = []
    pooled, targets = over_workloads(pooled_curve, chosen), target_shares(study.cells, look.shown)
    if len(pooled):
        layers = [*_curve(pooled, pick, colours, _axis(pooled), "pooled", True), *_places(targets)]
        parts.append(charts.titled(alt.layer(*layers), f"all {int(pooled['num_workloads'].max())} workloads"))
    for place, (workload, mine) in enumerate(table.groupby("workload", sort=True)):
        share = targets.get(str(workload), np.nan)
        marked = charts.marked_at(share, "target") if share < 1 else []
        layers = [*_curve(mine, pick, colours, axis, str(place), not parts), *marked]
        parts.append(charts.titled(alt.layer(*layers), str(workload)))
    made = charts.grid(parts)
    return None if made is None else made.add_params(charts.switch(_UNIT, "ratio in ", ["steps", "device-hours"]))


def over_workloads(pooled_curve: pd.DataFrame, chosen: pd.DataFrame) -> pd.DataFrame:
    """The pooled curve of each scheme, under the label of its horizon; the band over seeds where there is no other."""
    table = same_schedule(pooled_curve).copy()
    labels = chosen[chosen["near"]].groupby("scheme")["scheme_label"].agg(lambda all_: all_.mode()[0])
    table["scheme_label"] = table["scheme"].map(labels)
    for unit in ("", "hours_"):
        for end in ("low", "high"):
            table[unit + end] = table[unit + end].fillna(table[f"{unit}seeds_{end}"])
    return table.assign(setting=-1 - pd.factorize(table["scheme"])[0])


def target_shares(cells: pd.DataFrame, shown: pd.DataFrame) -> dict[str, float]:
    """Where on the axis each target lies: the last iterate's median steps to it ÷ its schedule's length."""
    raw = shown[shown["scheme"] == "none"]
    length = cells.drop_duplicates("setting").set_index("setting")[["length_steps", "step_budget"]].min(axis=1)
    share = raw["steps_to_target"].to_numpy(dtype=float) / length.loc[list(raw["setting"])].to_numpy(dtype=float)
    return {str(w): float(s) for w, s in zip(raw["workload"], share, strict=True) if s == s}


def _curve(
    table: pd.DataFrame, pick: alt.Parameter, colours: dict[str, str], domain: list[float], name: str, first: bool
) -> list[Any]:
    """Line at 1, bands, lines and points of one panel. first: it holds the legend's switch for all."""
    table = table.assign(all_reach=table["num_exact"] == table["num_pairs"])
    x = alt.X(
        "share:Q",
        title="target level, by the baseline's progress (→ tighter)",
        axis=alt.Axis(format=".0%", grid=False, values=[0.1, 0.25, 0.5, 0.75, 1.0]),
        scale=alt.Scale(domain=[0.08, 1.0], nice=False),
    )
    y = alt.Y("shown:Q", title="steps (or device-hours) ÷ baseline's").scale(domain=domain, nice=False, zero=False)
    base = alt.Chart(table)
    for end, of in (("", "ratio"), ("_low", "low"), ("_high", "high")):
        shown = f"{_UNIT} === 'steps' ? datum.{of} : datum.hours_{of}"
        base = base.transform_calculate(**{f"shown{end}": shown})
    base = base.transform_filter(pick).encode(x=x, color=charts.setting_colour(colours), detail="setting:N")
    band = base.mark_area(clip=True, opacity=0.16).encode(y=alt.Y("shown_low:Q"), y2="shown_high:Q")
    hover = charts.tooltips(
        *("scheme_label:N:setting", "share:Q:target at share:.1%", "ratio:Q:ratio in steps:.3f", "low:Q:from:.3f"),
        *("high:Q:to:.3f", "hours_ratio:Q:in device-hours:.3f", "hours_low:Q:from:.3f", "hours_high:Q:to:.3f"),
        *("num_exact:Q:pairs that reach it:d", "num_pairs:Q:pairs:d"),
        *(["num_workloads:Q:workloads:d"] if "num_workloads" in table else ["level:Q:target level:.4g"]),
    )
    line = base.mark_line(clip=True, strokeWidth=2).encode(y=y, strokeDash=charts.dashes(), tooltip=hover)
    line = charts.zoomable(line.add_params(pick) if first else line, f"saving_zoom_{name}")
    full = charts.opaque_where(alt.datum.all_reach)
    fill = alt.Color("scheme_label:N", legend=None, scale=charts.scale(colours))
    dots = base.mark_point(clip=True, size=20, strokeWidth=1.2, opacity=1)
    return [charts.level_rule(1.0), band, line, dots.encode(y=y, tooltip=hover, fill=fill, fillOpacity=full)]


def _places(targets: dict[str, float]) -> list[Any]:
    """A tick along the bottom for the target of each workload of this study."""
    table = pd.DataFrame({"workload": list(targets), "share": list(targets.values())})
    if table.empty:
        return []
    ticks = alt.Chart(table).mark_tick(color=REFERENCE_LINE, thickness=2, size=12, clip=True)
    hover = charts.tooltips("workload:N:target of", "share:Q:at share:.0%")
    return [ticks.encode(x=alt.X("share:Q"), y=alt.value(charts.HEIGHT - 6), tooltip=hover)]


def _axis(table: pd.DataFrame) -> list[float]:
    """Holds every ratio of both units and 1; wild bands run off it."""
    low, high = charts.span(table, ["low", "high", "hours_low", "hours_high", "ratio", "hours_ratio"], include=1.0)
    least, most = charts.span(table, ["ratio", "hours_ratio"], include=1.0)
    return [max(low, least - 0.15), min(high, max(WIDEST, most))]


def sentences(saving_curve: pd.DataFrame, pooled_curve: pd.DataFrame, chosen: pd.DataFrame) -> list[str]:
    """Where the pre-specified average saves most and up to which level, in steps, in device-hours, on how many."""
    single = same_schedule(saving_curve[saving_curve["ratio"].notna()], in_front(chosen)["setting"])
    if single.empty:
        return []
    scheme = "ema" if (single["scheme"] == "ema").any() else str(single["scheme"].iloc[0])
    single = single[single["scheme"] == scheme]
    missed = [single[f"num_{kind}"] > 0 for kind in ("at_least", "at_most")]
    single = single.assign(bound=np.select([missed[0] & missed[1], *missed], ["mixed", AT_LEAST, AT_MOST], EXACT))
    pooled = same_schedule(pooled_curve[pooled_curve["scheme"] == scheme])
    whole = pooled if len(pooled) else single[single["setting"] == single["setting"].iloc[0]]
    wide = bool(len(pooled)) and bool(whole["low"].notna().any())
    of = "workloads and seeds" if wide else "seeds"
    where = f"over {whole['num_workloads'].max()} workloads" if len(pooled) else f"on {whole['workload'].iloc[0]}"
    steps, hours = (_verdicts(whole, unit, wide or pooled.empty) for unit in ("", "hours_"))
    found = [f"{SCHEME_NAMES[scheme]}, pre-specified, {where} (95 % over {of}): {_lowest(steps)}; {_up_to(steps)}."]
    found += [f"In device-hours: {_lowest(hours)}; {_up_to(hours)}."] if len(hours) else []
    each = _verdicts(single, "", True)
    number = each["workload"].nunique()
    counts = [int(each["saves"][np.isclose(each["share"], share)].sum()) for share in LEVELS]
    if number > 1:
        shares = ", ".join(f"{n} at {percent(share)}" for n, share in zip(counts, LEVELS, strict=True))
        luck = words.chance(verdicts.by_luck(counts[0], number))
        tail = f" ({counts[0]} or more at one level {luck})" if counts[0] else ""
        found.append(f"Workload by workload a saving is shown on this many of {number}: {shares}{tail}.")
    return found


def _verdicts(table: pd.DataFrame, unit: str, wide: bool) -> pd.DataFrame:
    """share, ratio, low, high, word and saves of each level. unit: of the columns, steps or ``hours_``."""
    ends = {end: table[f"{unit}{'' if wide else 'seeds_'}{end}"] for end in ("low", "high")}
    found = table.assign(ratio=table[f"{unit}ratio"], **ends).dropna(subset="ratio")
    seeds = "num_workloads" if wide and "num_workloads" in found else "num_pairs"
    rows = found[["ratio", "low", "high", seeds, "bound"]].itertuples(index=False)
    told = [verdicts.verdict(Interval(*row[:3]), int(row[3]), bound=row[4]).word for row in rows]
    found = found.assign(word=pd.Series(told, found.index, dtype="str"))
    return found.assign(saves=(found["word"] == verdicts.SHOWN) & (found["ratio"] < 1))


def _lowest(table: pd.DataFrame) -> str:
    row = table.iloc[int(table["ratio"].argmin())]
    number = sign(row["bound"]) + with_interval(Interval(row["ratio"], row["low"], row["high"]))
    return f"lowest, {number}, at the level the baseline reaches after {percent(row['share'])} of its training"


def _up_to(table: pd.DataFrame) -> str:
    """At how many levels a saving is shown, and what is said of the tightest one."""
    saves, last = table[table["saves"]], table.iloc[int(table["share"].argmax())]
    end = "a saving" if last["saves"] else "a loss" if last["word"] == verdicts.SHOWN else last["word"]
    if len(table) == 1:
        return "a saving is shown at the only level" if len(saves) else f"no saving is shown at the only level ({end})"
    if saves.empty:
        return f"a saving is shown at none of {len(table)} levels, the tightest is {end}"
    return (
        f"a saving is shown at {len(saves)} of {len(table)} levels, up to {percent(saves['share'].max())}, and the "
        f"verdict on the tightest is {end}"
    )
