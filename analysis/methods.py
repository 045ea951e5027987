"""What a report says around its sections: notices, facts, methods of what is shown, and where it ran."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from types import ModuleType
from typing import Any

import pandas as pd

from analysis.core import Core
from analysis.run_folder.study import Study, counted, versions
from analysis.statistics.resampling import RULE as INTERVALS
from analysis.statistics.resampling import small_sample_factor
from analysis.statistics.steps_to_target import HELD

FEW = 10  # below this many seeds the report says how few they are
CROSSING = (
    "The target is met at the first evaluation equal to it or better, the step linear in the metric between two; "
    f"sustained: {HELD} in a row. A run that misses is right-censored and imputed at its step budget T. Baseline: the "
    "last iterate of the same training, or of the best schedule. Pre-specified: the setting nearest to what the study "
    "names as primary, on the longest schedule."
)
BRACKET = (
    "Averages were evaluated at every eighth step of the grid and, on all of it, where they cross the target and four "
    "levels of the non-averaged run (what it has reached at 30, 50, 75 and 90 % of training): there the interval of a "
    "crossing is that of the grid. At other levels of the saving curve it is as wide as its neighbours are apart, and "
    "a best metric is the best of fewer."
)
PAIRED = (
    "Of averages, {share:.0%} of the evaluations are estimates, not exact values: what the live weights have on all "
    "examples plus the mean difference from them on a part, with the standard error in the records. About a crossing "
    "of the target, at the end, and wherever a part does not settle it, averages are evaluated in full."
)


def notices(core: Core) -> Iterator[str]:
    """What is unfinished, failed, diverged, rounded, imported, without target, or rests on few seeds."""
    study, cells = core.study, core.cells
    waiting = cells[cells["state"] == "unfinished"]
    if "imported" in study.plan:
        yield from study.plan.get("notes", [])  # what the import noticed; nothing there is still to come
        return
    if len(waiting):
        total, left = cells["trajectory_id"].nunique(), waiting["trajectory_id"].nunique()
        last = study.trials.sort_values("attempt", kind="stable").groupby("trajectory_id").tail(1)
        failed = last[(last["status"] == "failed") & last["trajectory_id"].isin(waiting["trajectory_id"])]
        tail = f"; {len(failed)} failed at their last attempt" if len(failed) else ""
        yield (
            f"This study is incomplete: {left} of {counted(total, 'trajectory')} are not finished{tail}. Pairs that "
            "wait for them are left out of ratios."
        )
    diverged = cells.loc[cells["state"] == "diverged", "trajectory_id"].nunique()
    if diverged:
        yield f"{counted(diverged, 'trajectory')} diverged: a target not met before counts as missed."
    rounded = cells["trace_dtype"].notna()
    if rounded.any():
        yield (
            f"{counted(int(rounded.sum()), 'cell')} of {len(cells)} come from a trace whose weights were rounded to "
            f"{', '.join(sorted(cells.loc[rounded, 'trace_dtype'].unique()))}: their records are near those of a "
            "training with them, not equal to these."
        )
    imported = cells["weights"].dropna()
    if len(imported):
        yield (
            f"The weights are imported checkpoints ({', '.join(sorted(set(imported)))}): how and how long they were "
            "trained is not known, so device-hours to a target are left out."
        )
    untargeted = sorted(set(cells["workload"]) - set(cells.loc[cells["target"].notna(), "workload"]))
    if untargeted:
        yield f"No target for {', '.join(untargeted)}: wa calibrate computes one by rule."
    seeds = int(cells.groupby("workload")["seed"].nunique().min()) if len(cells) else 0
    few = []
    if seeds == 1:
        few.append("One seed: nothing here has an interval, and a difference may be luck.")
    elif 1 < seeds < FEW:
        factor = small_sample_factor(seeds, seeds - 1)
        few.append(f"{seeds} seeds: intervals are widened for so few ({factor:.2g} times for one workload).")
    if set(cells["preset"]) == {"mini"} and not len(imported):
        few.append("Mini workloads: small models on small real data; sizes of effects need not carry over.")
    if few:
        yield " ".join(few)


def facts(study: Study) -> list[tuple[str, str]]:
    """The run in a few numbers."""
    cells = study.cells
    if "imported" in study.plan:
        numbers = [("workload", cells["workload"].nunique()), ("study", cells["seed"].nunique()), ("trial", len(cells))]
    else:
        numbers = [("workload", cells["workload"].nunique()), ("cell", len(cells))]
        numbers += [("trajectory", cells["trajectory_id"].nunique()), ("seed", cells["seed"].nunique())]
    told = (counted(number, noun).split() for noun, number in [*numbers, ("evaluation", len(study.records))])
    return [(noun, number) for number, noun in told]


def methods(core: Core, sections: Sequence[ModuleType], frames: Mapping[str, pd.DataFrame]) -> list[tuple[str, str]]:
    """Heading -> text, of what is shown. Args: frames: tables; a rule of one without rows is left out."""
    study = core.study
    told = [("Targets", " ".join(_targets(study)))]
    if "imported" not in study.plan:
        told += [("Steps-to-target", CROSSING), ("Intervals", INTERVALS)]
        told += [("Estimates", PAIRED.format(share=share))] if (share := _estimated(core)) else []
        told += [("Evaluations", BRACKET)] if (core.cells["evaluate_averages"] == "bracket").any() else []
    told += [(section.TITLE, _rule(section.RULE, frames)) for section in sections]
    return [*(one for one in told if one[1]), ("Where it ran", " ".join(_provenance(study)))]


def _estimated(core: Core) -> float:
    """The share of the averages' evaluations that rest on a part of the examples."""
    averages = core.cells.loc[core.cells["scheme"] != "none", "cell_id"]
    guessed = core.records.loc[core.records["cell_id"].isin(averages), "standard_error"].notna()
    return float(guessed.sum() / max(1, len(guessed)))


def _rule(rule: str | Mapping[str, str], frames: Mapping[str, pd.DataFrame]) -> str:
    return rule if isinstance(rule, str) else " ".join(text for name, text in rule.items() if len(frames.get(name, ())))


def _targets(study: Study) -> Iterator[str]:
    by_rule: dict[str, list[str]] = {}
    for workload, target in sorted((study.plan.get("targets") or {}).items()):
        if not target:
            yield f"{workload}: none."
            continue
        side = "at least" if target["higher_is_better"] else "at most"
        seeds = f" (seeds {_list(target['seeds'])})" if target.get("seeds") else ""
        told = by_rule.setdefault(f"{target.get('rule') or 'given by the study'}{seeds}", [])
        told.append(f"{workload}: {target['metric']} {side} {target['value']:.6g}")
    for rule, targets in by_rule.items():
        yield f"{', '.join(targets)}; {rule}."


def _provenance(study: Study) -> Iterator[str]:
    trials = study.trials
    if "imported" in study.plan:
        yield f"Read from the logs of {study.plan['imported']}; nothing was trained here."
    if len(trials):
        hosts, devices = (_list(sorted(set(trials[name].dropna()))) for name in ("host", "device_name"))
        number = _list([f"{one:g}" for one in sorted(set(trials["num_devices"].dropna()))])
        where = f" on {hosts}" if hosts else ""
        yield f"{counted(len(trials), 'attempt')}{where}; {devices}; devices a trial: {number}."
        if seen := versions(trials):
            yield "Versions: " + ", ".join(f"{name} {'/'.join(every)}" for name, every in seen.items()) + "."
    if "imported" not in study.plan:
        fused = "one trial a trajectory" if study.plan.get("fuse", True) else "one trial a cell"
        yield f"Planned {study.plan.get('created', 'at an unknown time')}, {fused}."


def _list(values: Sequence[Any], most: int = 12) -> str:
    text = ", ".join(str(value) for value in values[:most])
    return text + (f" and {len(values) - most} more" if len(values) > most else "")
