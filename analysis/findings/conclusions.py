"""Sentences computed from the tables: the answer at the top of the report, and one paragraph a figure."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from analysis import families, horizon_fit
from analysis.pairs import BOTH_MISSED, CHOSEN_HORIZON, PENDING, direction, in_front, misses, overall_bound, sign
from analysis.pooled import BEST, FIXED, SHOWN
from analysis.resampling import FEWEST, Interval, of_row, stratified_geometric_mean, with_interval
from analysis.robustness import reaches
from analysis.study import SCHEME_NAMES, Study, counted, percent
from analysis.tables import Tables

SHARE = 0.75  # of the baseline's training: the level that stands in where a study has no target


def answer(study: Study, tables: Tables) -> str:
    """The result for the horizon fixed beforehand in one sentence with its interval, then on how many families.

    Last, of a workload whose target no run has met, how near the closest came.
    """
    return " ".join(part for part in (_answer(study, tables), closest(tables)) if part)


def _answer(study: Study, tables: Tables) -> str:
    schemes = answer_schemes(tables)
    if (study.cells["scheme"] == "none").all():
        return "This study holds raw runs only, so it says nothing on averaging."
    if not (study.cells["scheme"] == "none").any():
        return "This study holds no raw runs (scheme none), so there is no baseline to compare averages with."
    if not schemes:
        return (
            f"No averaging horizon near {percent(CHOSEN_HORIZON)} of the step budget was run, so no horizon was "
            "fixed beforehand; the tables hold what was run."
        )
    if study.cells["target"].isna().all():
        return _answer_without_target(tables, schemes[0])
    return overall(study, tables, schemes[0])


def answer_schemes(tables: Tables) -> list[str]:
    """Schemes run near the horizon fixed beforehand: on most workloads first, then EMA, LAWA, others."""
    near = tables.chosen[tables.chosen["near"]]
    order = {"ema": 0, "lawa": 1}
    count = near["scheme"].value_counts()
    return sorted(set(near["scheme"]), key=lambda name: (-count[name], order.get(name, 2), name))


def overall(study: Study, tables: Tables, scheme: str, versus: str = "same schedule") -> str:
    """One scheme at the chosen horizon against one kind of baseline: over all workloads, then on how many of them."""
    mine = tables.chosen[(tables.chosen["scheme"] == scheme) & tables.chosen["near"]]
    rows = tables.ratios_by_seed
    rows = rows[(rows["versus"] == versus) & rows["setting"].isin(mine["setting"])]
    total = study.cells["workload"].nunique()
    name = f"{SCHEME_NAMES.get(scheme, scheme)} at an averaging horizon of {_horizons(mine)}"
    known = rows[rows["ratio"].notna()]
    if known.empty:
        return f"{name} has no steps-to-target ratio: {_why_no_ratio(rows['bound'])}."
    strata = [part["ratio"].to_numpy(dtype=float) for _, part in known.groupby("workload", sort=True)]
    interval = stratified_geometric_mean(strata)
    where = f"{len(strata)} of {total} {_plural(total, 'workload')}"
    seeds = known.groupby("workload")["seed"].nunique()
    where += f", {_range(seeds)} {_plural(int(seeds.max()), 'seed')}{'' if total == 1 else ' each'}"
    said = _sentence(name, interval, rows["bound"], f"{where}; {versus}", int(seeds.min()))
    count = tables.families[(tables.families["versus"] == versus) & (tables.families["scheme"] == scheme)]
    by_family = [families.sentence(row) for row in count.to_dict("records") if row["num_families"] > 1]
    return " ".join([said, *by_family])


def _why_no_ratio(bounds: pd.Series) -> str:
    number = len(bounds)
    if not number:
        return "no pair of runs has a target"
    both, waiting = (int((bounds == kind).sum()) for kind in (BOTH_MISSED, PENDING))
    pairs = f"{number} {_plural(number, 'pair')}"
    if not waiting:
        return f"no pair of runs has met the target, both sides miss it in {'all ' if number > 1 else ''}{pairs}"
    wait = f"{waiting} of {pairs} of runs {'is' if waiting == 1 else 'are'} not finished"
    return f"{wait}, and both sides miss the target in {both}" if both else wait


def _sentence(name: str, interval: Interval, bounds: pd.Series, where: str, seeds: int) -> str:
    bound = overall_bound(bounds)
    number = {"at least": "at least ", "at most": "at most "}.get(bound, "") + with_interval(interval)
    missed = misses(bounds)
    number += f" of the baseline's steps (geometric mean over {where}{'; ' if missed else ''}{missed})"
    side = direction(interval, bound)
    if side is None:
        why = "one seed gives" if seeds < 2 else "equal ratios in all seeds give"
        return f"{name} reaches the target in {number}; {why} no interval."
    verb = {
        "none": "shows no effect: the target takes",
        "fewer": "reaches the target in",
        "more": "is slower: the target takes",
        "undecided": "is undecided: counting misses at the step budget, the target takes",
    }[side]
    return f"{name} {verb} {number}."


def closest(tables: Tables) -> str:
    """Where no run of a workload has met its target: how near the best one came. Empty where all have."""
    cells = tables.steps_to_target
    best = tables.generalization_by_cell.set_index("cell_id")["best_metric"]
    higher = tables.settings.set_index("setting")["higher_is_better"]
    names = tables.settings.set_index("setting")["metric_name"]
    found = []
    for workload, part in cells.groupby("workload", sort=True):
        if (part["status"] == "met").any():
            continue
        values = part["cell_id"].map(best).astype(float)
        known = values[np.isfinite(values)]
        goal, setting = float(part["target"].iloc[0]), part["setting"].iloc[0]
        text = f"No run has met the target of {workload}, {names[setting]} {goal:.5g}"
        if len(known):
            of = float(known.max() if higher[setting] else known.min())
            (row,) = part.loc[known.index[known == of][:1]].to_dict("records")
            text += f": the closest came to {of:.5g} ({row['scheme_label']}, seed {row['seed']})"
        else:
            text += ": none has a finite value"
        found.append(f"{text}.")
    return " ".join(found)


def _answer_without_target(tables: Tables, scheme: str) -> str:
    mine = tables.chosen[(tables.chosen["scheme"] == scheme) & tables.chosen["near"]]
    curve = tables.saving_curve
    curve = curve[(curve["versus"] == "same schedule") & curve["setting"].isin(mine["setting"])]
    at = curve[np.isclose(curve["share"], SHARE) & curve["ratio"].notna()]
    start = (
        "No workload of this study has a target (wa calibrate computes one by rule), so target statistics are "
        "withheld. "
    )
    if at.empty:
        return start.strip()
    per = [
        f"{row['workload']} {with_interval(Interval(row['ratio'], row['low'], row['high']))}"
        for row in at.to_dict("records")
    ]
    name = f"{SCHEME_NAMES.get(scheme, scheme)} at an averaging horizon of {_horizons(mine)}"
    return (
        f"{start}{name} reaches what the baseline has after {percent(SHARE)} of its training in this share of the "
        f"baseline's steps: {'; '.join(per)}."
    )


def ratio_findings(study: Study, tables: Tables) -> list[str]:
    """Each scheme over all workloads, then each workload: the chosen horizon beside the best-looking one."""
    if study.cells["target"].isna().all():
        return []
    schemes = answer_schemes(tables)
    found = [overall(study, tables, scheme) for scheme in schemes[1:]]  # the first is the answer on top
    if (tables.baselines["rank"] > 1).any():
        found += [overall(study, tables, scheme, "best baseline") for scheme in schemes]
    horizons = tables.horizon_map[tables.horizon_map["training"].isin(_reference(tables))]
    for workload, part in horizons.groupby("workload", sort=True):
        if not part["best"].any():
            continue
        best = part[part["best"]].sort_values(["ratio", "setting"], kind="stable").iloc[0]
        text = f"On {workload} the best-looking setting is {best['scheme_label']}: {_row(best)}"
        fixed = part[part["setting"].isin(tables.chosen[tables.chosen["near"]]["setting"])]
        beside = [f"{r['scheme_label']} {_row(r)}" for r in fixed.to_dict("records") if r["ratio"] == r["ratio"]]
        if best["setting"] in set(fixed["setting"]):
            text += ", which was also fixed beforehand"
        else:
            text += f", picked after the fact among {len(part)} and so optimistic"
        others = [line for line in beside if not line.startswith(f"{best['scheme_label']} ")]
        found.append(text + (f"; also fixed beforehand: {', '.join(others)}." if others else "."))
    return found


def pooled_findings(tables: Tables) -> list[str]:
    """The pooled numbers beside each other, what one workload does to them, and the best-looking horizons."""
    found = []
    for scheme in answer_schemes(tables):
        keep = (tables.pooled["versus"] == "same schedule") & (tables.pooled["scheme"] == scheme)
        mine = tables.pooled[keep & tables.pooled["value"].notna()]
        fixed = mine[mine["horizon"] == FIXED].set_index("statistic")
        said = [name for name in SHOWN if name in fixed.index]
        if not said or fixed["num_workloads"].max() < 2:
            continue
        name = SCHEME_NAMES.get(scheme, scheme)
        parts = [f"{statistic} {_pooled(fixed.loc[statistic])}" for statistic in said]
        values = fixed.loc[said, "value"]
        apart = round(100 * float(values.max() - values.min()))
        found.append(
            f"{name}, horizon fixed beforehand, over {fixed['num_workloads'].max()} workloads: {'; '.join(parts)}. The "
            f"same runs, and {apart} {'point' if apart == 1 else 'points'} between the ways to count."
        )
        if SHOWN[0] in fixed.index:
            found += _without_one(tables, scheme, name, fixed.loc[SHOWN[0]])
        best = mine[(mine["horizon"] == BEST) & (mine["statistic"] == SHOWN[0])]
        found += [
            f"{name} at the best-looking horizon of each workload, picked after the fact and so optimistic: "
            f"geometric mean {_pooled(row)}."
            for row in best.to_dict("records")
        ]
    return found


def _pooled(row: Any) -> str:
    interval = Interval(row["value"], row["low"], row["high"])
    return sign(row["bound"]) + with_interval(interval)


def _without_one(tables: Tables, scheme: str, name: str, whole: Any) -> list[str]:
    left = tables.leave_one_out
    left = left[(left["versus"] == "same schedule") & (left["horizon"] == FIXED) & (left["scheme"] == scheme)]
    left = left[(left["statistic"] == SHOWN[0]) & left["value"].notna()].sort_values("value", kind="stable")
    if len(left) < 2:
        return []
    low, high = left.iloc[0], left.iloc[-1]
    text = (
        f"Without one workload the geometric mean of {name} lies between {_pooled_part(low)} (without "
        f"{low['without']}) and {_pooled_part(high)} (without {high['without']})"
    )
    if np.isnan(whole["low"]):
        few = whole["num_workloads"] < FEWEST
        why = "fewer than three workloads" if few else "workloads that are all equal"
        return [f"{text}; {why} give no interval over workloads."]
    covers = whole["low"] <= 1 <= whole["high"]
    changes = left[left["low"].notna() & (((left["low"] <= 1) & (left["high"] >= 1)) != covers)]
    over = "its interval over workloads and seeds covers 1: no effect is shown for workloads in general"
    text += f"; {over}" if covers else "; its interval over workloads and seeds leaves out 1"
    if len(changes):
        return [f"{text}, but not without {' or '.join(sorted(changes['without']))}."]
    return [f"{text}, whichever is left out."]


def _pooled_part(row: Any) -> str:
    return with_interval(Interval(row["value"], row["low"], row["high"]))


def horizon_findings(tables: Tables) -> list[str]:
    """How wide the flat region is."""
    regions = tables.flat_region[tables.flat_region["training"].isin(_reference(tables))]
    found = []
    for row in regions.to_dict("records"):
        inside = reaches(row["flat_from"], row["flat_to"], CHOSEN_HORIZON)
        name = SCHEME_NAMES.get(row["scheme"], row["scheme"])
        span = (
            f"is {percent(row['flat_from'])} alone"
            if row["flat_from"] == row["flat_to"]
            else f"reaches from {percent(row['flat_from'])} to {percent(row['flat_to'])}"
        )
        found.append(
            f"On {row['workload']} the flat region of {name} {span}; "
            f"{percent(CHOSEN_HORIZON)} lies {'inside' if inside else 'outside'}."
        )
    fits = tables.horizon_fit
    return found + horizon_fit.findings(fits[fits["training"].isin(_reference(tables))])


def schedule_findings(tables: Tables) -> list[str]:
    """Averages on the reference schedule beside raw runs of the other schedules."""
    found = []
    for workload, part in tables.schedules.groupby("workload", sort=True):
        known = part[part["median_steps"].notna()].sort_values("median_steps", kind="stable")
        if known.empty:
            continue
        said = []
        for row in known.to_dict("records"):
            name = f"raw ({row['training_label']})" if row["scheme"] == "none" else str(row["scheme_label"])
            missed = f", {row['num_censored']} of {row['num_seeds']} seeds missed" if row["num_censored"] else ""
            said.append(f"{name} {row['median_steps']:,.0f}{missed}")
        found.append(f"{workload}, median steps to the target: {'; '.join(said)}.")
    gaps = tables.gap_to_envelope
    for chosen in in_front(tables.chosen).to_dict("records"):
        gap = gaps[gaps["setting"] == chosen["setting"]]
        if len(gap):
            ahead = float((gap["gap"] > 0).mean())
            found.append(
                f"{chosen['workload']}, {chosen['scheme_label']} on the reference schedule is ahead of every raw run "
                f"in {percent(ahead)} of the evaluations."
            )
    return found


def generalization_findings(tables: Tables) -> list[str]:
    """What averaging changes at the end of training, 'no effect' said plainly."""
    table = tables.generalization
    if "final_difference" not in table:
        return []
    words = {"better": "better", "worse": "worse", "none": "no effect"}
    found = []
    for chosen in in_front(tables.chosen).to_dict("records"):
        mine = table[(table["setting"] == chosen["setting"]) & table["final_difference"].notna()]
        for row in mine.to_dict("records"):
            interval = of_row(row, "final_difference")
            few = "one seed" if row["num_pairs"] < 2 else "the same in all seeds"
            verdict = words.get(row["effect"], f"{few}, no interval")
            found.append(
                f"{chosen['workload']}, {chosen['scheme_label']}: the final metric changes by "
                f"{with_interval(interval, '+.3g')}: {verdict}."
            )
    return found


def hours_findings(study: Study, tables: Tables, unit: str) -> list[str]:
    """Both costs, each in its own sentence."""
    found = []
    same = tables.ratios[tables.ratios["versus"] == "same schedule"]
    for chosen in in_front(tables.chosen).to_dict("records"):
        for row in same[same["setting"] == chosen["setting"]].to_dict("records"):
            if row["hours_ratio"] == row["hours_ratio"]:
                interval = of_row(row, "hours_ratio")
                found.append(
                    f"A user of {chosen['scheme_label']} on {chosen['workload']} pays {sign(row['bound'])}"
                    f"{with_interval(interval)} of the baseline's {unit} to the target."
                )
    hours = tables.sweep_device_hours.groupby("way")["device_hours"].sum()
    fused, unfused = hours["one trial a trajectory"], hours["one trial a cell"]
    if fused > 0:
        times = f": {unfused / fused:.2g} times as much" if unfused > 1.05 * fused else ""
        found.append(
            f"The sweep of {counted(len(study.cells), 'cell')} paid {hours['paid']:.3g} {unit}. "
            f"By the records, one trial a trajectory costs {fused:.3g} and one trial a cell would have cost "
            f"{unfused:.3g}{times}."
        )
    return found


def _row(row: Any) -> str:
    return sign(row["bound"]) + with_interval(Interval(row["ratio"], row["low"], row["high"]))


def _reference(tables: Tables) -> set[int]:
    settings = tables.settings
    return set(settings.loc[settings["setting"].isin(tables.chosen["setting"]), "training"])


def _horizons(chosen: pd.DataFrame) -> str:
    shares = sorted({percent(float(share)) for share in chosen["horizon_fraction"]})
    return f"{' or '.join(shares)} of the step budget, fixed beforehand,"


def _range(counts: pd.Series) -> str:
    low, high = int(counts.min()), int(counts.max())
    return str(low) if low == high else f"{low}–{high}"


def _plural(number: int, word: str) -> str:
    return word if number == 1 else f"{word}s"
