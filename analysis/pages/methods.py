"""What the report says around its figures: how to read them, methods filled from the run, caveats."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from analysis import (
    algoperf_score,
    basin,
    decay_length,
    decay_replaced,
    device_hours,
    families,
    horizon_fit,
    pooled,
    pooled_curve,
    profiles,
    robustness,
    saving_curve,
    savings,
    snapshot_grid,
    survival,
)
from analysis.intervals import RULE as INTERVALS
from analysis.intervals import small_sample_factor
from analysis.steps_to_target import HELD
from analysis.study import Study, counted, percent
from analysis.tables import Tables

HOW_TO_READ = {
    "score": "Left: on how many workloads a submission is within τ times the fastest; the higher the better, and the "
    "score is the area below. Right: how far each is from the fastest, a workload a row; at the edge the target was "
    "missed. Switch between the clean rule and AlgoPerf's own code.",
    "profiles": "Left: on how many workloads a scheme is within τ times the fastest; the score is the area below, to "
    "τ = 4. Right: how far each is from the fastest. Every scheme at the horizon fixed beforehand, on the reference "
    "schedule; switch between steps and device-hours.",
    "trainings": "Every training of a workload, raw and averaged. Dots: the mean over seeds, steps up to the step "
    "budget (the restricted mean), with its 95 % interval; hollow where some seed missed the target, which counts at "
    "the step budget. Ticks: seeds. Settings of one training stand side by side. Values far off the others lie off "
    "the axis.",
    "steps_to_target": "A dot is the geometric mean over seeds, its bar the bootstrap 95 % interval, a tick one "
    "seed. Left of 1 the average needs fewer steps. A hollow dot is a bound: some run missed the target.",
    "pooled": "A row a workload, then, shaded, the numbers over all of them. Bars: 95 %, over seeds for a workload, "
    "over workloads and seeds for the shaded rows. A tick is the same number without one workload. A hollow mark is a "
    "bound: some run missed the target.",
    "saving_curve": "The same ratio at every target level, easy ones left, the baseline's best right: x is the share "
    "of its training after which the baseline is at the level. A hollow point: some run does not reach the level. One "
    "ratio at one target is one point of this curve: a dashed line marks this study's target, over all workloads a "
    "tick each. The first panel's band speaks of workloads like these, of these alone for fewer than three. The "
    "switch shows device-hours instead of steps.",
    "horizon": "Every scheme on one axis: how far back its average reaches. The strip along the bottom "
    "is the flat region of a scheme: horizons that cannot be told from its best one. The thick curve is the smooth "
    "fit, a parabola in the logarithm, with its 95 % band.",
    "snapshot_grid": "A cell: steps to target ÷ the baseline's, geometric mean over seeds; blue: fewer. A circle is a "
    "seed in the same colours, a cross one that missed the target; ✕ counts these. Along a falling diagonal, memory × "
    "interval, and with it the horizon, stays about the same.",
    "learning_curves": "Thick: median over seeds; thin: single seeds. Scroll to zoom, drag to pan, double-click to "
    "reset; click on the legend to show or hide a setting.",
    "lr_decay": "Grey: raw runs, each on its own schedule; the wide grey band: the best any raw run has reached by "
    "a step. In colour: averages of one run on the reference schedule; where schedules differ in how far they decay, "
    "the best-looking average of each.",
    "generalization": "Difference in the metric at the end of training, paired by seed. A bar across 0 is no effect.",
    "user_hours": device_hours.USER_RULE + " The number at a bar is the ratio to the baseline.",
    "sweep_hours": device_hours.SWEEP_RULE,
}


def how_to_read(name: str, num_left_out: int) -> str:
    """The line below a figure; it says so where the figure shows some settings only."""
    text = HOW_TO_READ[name]
    if num_left_out and name not in {
        "pooled",
        "horizon",
        "sweep_hours",
        "lr_decay",
        "snapshot_grid",
    }:
        text += (
            " Of many settings it shows a few, spread over the horizons, with the ones fixed beforehand and the "
            f"best-looking ones; {num_left_out} more are in the tables."
        )
    return text


def notices(study: Study) -> Iterator[str]:
    """What a reader must know before the first number: what is unfinished, failed, diverged or without target."""
    cells = study.cells
    waiting = cells[cells["state"] == "unfinished"]
    if imported(study):
        yield from study.plan.get("notes", [])  # what the import noticed; nothing there is still to come
    elif len(waiting):
        total, left = cells["trajectory_id"].nunique(), waiting["trajectory_id"].nunique()
        yield (
            f"This study is incomplete: {left} of {counted(total, 'trajectory')} are not "
            f"finished, {len(waiting)} of {counted(len(cells), 'cell')}. Pairs that wait for them are left out of "
            "ratios and counted as pending."
        )
    last = study.trials.sort_values("attempt", kind="stable").groupby("trajectory_id").tail(1)
    failed = last[(last["status"] == "failed") & last["trajectory_id"].isin(waiting["trajectory_id"])]
    if len(failed) and not imported(study):
        yield f"{len(failed)} of its trajectories failed at their last attempt."
    diverged = cells[cells["state"] == "diverged"]
    if len(diverged):
        yield (
            f"{counted(diverged['trajectory_id'].nunique(), 'trajectory')} diverged; their cells count as missing the "
            "target, unless they met it before."
        )
    untargeted = sorted(set(cells["workload"]) - set(cells.loc[cells["target"].notna(), "workload"]))
    if untargeted and cells["target"].notna().any():  # else the answer says so
        yield (
            f"No target for {', '.join(untargeted)}: target statistics are withheld there; wa calibrate computes "
            "one by rule. The saving curve needs none."
        )


def imported(study: Study) -> bool:
    """Whether the runs are another benchmark's, read from its logs."""
    return "imported" in study.plan


def facts(study: Study) -> list[tuple[str, str]]:
    """The run in a few numbers."""
    cells = study.cells
    numbers = [("workload", cells["workload"].nunique())]
    if imported(study):
        numbers += [("study", cells["seed"].nunique()), ("trial", len(cells))]
    else:
        numbers += [("cell", len(cells)), ("trajectory", cells["trajectory_id"].nunique())]
        numbers += [("seed", cells["seed"].nunique())]
    told = (counted(number, noun).split() for noun, number in [*numbers, ("evaluation", len(study.records))])
    return [(noun, number) for number, noun in told]


def methods(study: Study) -> list[tuple[str, list[str]]]:
    """Heading -> paragraphs, filled from the run."""
    return [
        *([("Score", [profiles.RULE, *_score_rules()])] if imported(study) else []),
        ("Targets", list(_targets(study))),
        ("Grid", list(_grid(study))),
        (
            "Steps-to-target",
            [
                "The first evaluation whose validation metric is equal to the target or better. It is known only "
                "within one evaluation interval, (the evaluation before, this one]; the point value is linear in "
                "the metric between the two. An average that does not exist yet has no evaluation. The variant "
                f"held asks for {HELD} evaluations in a row; with fewer left before the end it cannot be met.",
                "A run that never meets the target is right-censored at the last step it trained. Where its schedule "
                "was trained to its end, or it diverged, it is counted at its step budget: within that it would not "
                "have met it. Where it stopped before, at a time limit say, it is counted at its last step. Both are "
                "lower bounds. In medians and ranks every miss stands at the step budget, behind all that met. No seed "
                "is dropped.",
            ],
        ),
        ("Restricted mean", [survival.RULE]),
        ("Ratios", [savings.RULE, INTERVALS, families.RULE]),
        ("Over workloads", [pooled.RULE]),
        ("Saving curve", [saving_curve.RULE, pooled_curve.RULE]),
        (
            "Baselines",
            [
                "Same schedule: the raw run of the same workload, seed, step budget, optimizer settings and "
                "schedule. Best baseline: the raw setting of the workload with the smallest median "
                "steps-to-target over seeds. Figures show the reference schedule: the longest, and among those "
                "the one whose raw runs are best; averages have no say in it.",
            ],
        ),
        ("Flat region", [robustness.RULE, horizon_fit.RULE, snapshot_grid.RULE]),
        ("Across trainings", [basin.RULE, decay_replaced.RULE, decay_length.RULE]),
        *([] if imported(study) else [("Performance profiles", [profiles.RULE])]),
        ("Device-hours", [device_hours.USER_RULE, device_hours.SWEEP_RULE]),
        ("Where it ran", list(_provenance(study))),
    ]


FEW = 10  # below this many seeds the report says how few they are


def few_seeds(study: Study) -> str | None:
    """What a reader must know of intervals over so few seeds; null for 10 or more, and for imported runs."""
    if imported(study):  # their score says so itself
        return None
    seeds = int(study.cells.groupby("workload")["seed"].nunique().min()) if len(study.cells) else 0
    if seeds < 2:
        return "One seed: nothing here has an interval, and a difference may be luck."
    if seeds >= FEW:
        return None
    return (
        f"{seeds} seeds: intervals are widened for so few (by {small_sample_factor(seeds, seeds - 1):.2g} for one "
        "workload), so that they cover about as often as they say if seeds scatter normally."
    )


def caveats(study: Study, tables: Tables) -> list[str]:
    """What the numbers do not say."""
    found = ["The best metric of a run is a best over many noisy evaluations."]
    if imported(study):
        found.insert(0, "A score depends on which submissions take part: it does not carry over to other folders.")
    else:
        found[:0] = [
            "A ratio depends on how tight the target is: read it with the saving curve.",
            "The best of many horizons looks better than it is; the horizon fixed beforehand does not.",
        ]
    few = few_seeds(study)
    if few:
        found.insert(0, few)
    again = tables.steps_to_target
    if len(again) and again["lost_again"].any():
        found.append(
            f"{int(again['lost_again'].sum())} of {len(again)} cells meet the target once and fall behind it at a "
            "later evaluation: see the held variant in the tables."
        )
    if set(study.cells["preset"]) == {"mini"}:
        found.append("Mini workloads: small models on small real data; sizes of effects need not carry over.")
    return found


def _targets(study: Study) -> Iterator[str]:
    targets = study.plan.get("targets") or {}
    for workload, target in sorted(targets.items()):
        if not target:
            yield f"{workload}: none."
            continue
        text = (
            f"{workload} ({target.get('preset')}): {target['metric']} "
            f"{'at least' if target['higher_is_better'] else 'at most'} {target['value']:.6g}. "
        )
        rule = str(target.get("rule"))
        if not target.get("seeds"):  # it was not computed from runs
            yield f"{text}{rule[:1].upper()}{rule[1:]}."
            continue
        versions = ", ".join(f"{k} {v}" for k, v in sorted((target.get("versions") or {}).items()))
        values = ", ".join(f"{value:.5g}" for value in target.get("values") or [])
        yield (
            f"{text}Rule: {rule}. Seeds {_list(target['seeds'])}, values {values}; computed "
            f"{target.get('date')} with {versions or 'versions unknown'}."
        )
    if not targets:
        yield "None."


def _score_rules() -> Iterator[str]:
    """Where the clean rule and AlgoPerf's own code part."""
    for row in algoperf_score.RULES.itertuples():
        yield f"{str(row.where).capitalize()}. Clean: {row.clean}. AlgoPerf's own code: {row.exact}."


def _grid(study: Study) -> Iterator[str]:
    if imported(study):
        for workload, part in study.cells.groupby("workload", sort=True):
            yield (
                f"{workload}: {len(part):,} trials in {part['seed'].nunique()} studies; step hint "
                f"{_list(sorted(set(part['step_budget'])))}; evaluated by the clock, about every "
                f"{_list(sorted(set(part['evaluate_every_steps'])))} steps; "
                f"{part['training'].nunique()} hyperparameter points (tables/settings.csv)."
            )
        return
    for workload, part in study.cells.groupby("workload", sort=True):
        schemes = list(dict.fromkeys(part.sort_values(["scheme", "horizon_fraction"])["scheme_label"]))
        yield (
            f"{workload}: {counted(len(part), 'cell')} in {counted(part['trajectory_id'].nunique(), 'trajectory')}; "
            f"step budget {_list(sorted(set(part['step_budget'])))}; evaluated every "
            f"{_list(sorted(set(part['evaluate_every_steps'])))} steps; seeds {_list(sorted(set(part['seed'])))}; "
            f"optimizer {_list(sorted(set(part['optimizer'])))}; schedules: "
            f"{'; '.join(sorted(set(part['training_label'])))}; averaging: {'; '.join(schemes)}."
        )
    horizons = study.cells["horizon_fraction"].dropna()
    if len(horizons):
        yield (
            "Averaging horizon: twice the centre-of-mass lag of the average, in steps and as a share of the step "
            f"budget; here from {percent(float(horizons.min()))} to {percent(float(horizons.max()))}."
        )


def _provenance(study: Study) -> Iterator[str]:
    trials = study.trials
    if len(trials):
        hosts = sorted(set(trials["host"].dropna()))
        names = sorted(set(trials["device_name"].dropna()))
        devices = sorted(set(trials["num_devices"].dropna()))
        where = f" on {len(hosts)} {'host' if len(hosts) == 1 else 'hosts'} ({_list(hosts)})" if hosts else ""
        yield (
            f"{counted(len(trials), 'attempt')} at {counted(trials['trajectory_id'].nunique(), 'trajectory')}{where}; "
            f"{_list(names)}; "
            "devices a trial: "
            f"{_list([f'{number:g}' for number in devices])}."
        )
        seen: dict[str, set[str]] = {}
        for text in sorted(set(trials["versions"].dropna())):
            for package, version in json.loads(text).items():
                seen.setdefault(package, set()).add(str(version))
        if seen:
            yield ("Versions: " + ", ".join(f"{k} {'/'.join(sorted(v))}" for k, v in sorted(seen.items())) + ".")
    planned = ", ".join(f"{k} {v}" for k, v in sorted((study.plan.get("versions") or {}).items()))
    if imported(study):
        yield f"Read from the logs of {study.plan['imported']}; nothing was trained here."
        return
    fused = "one trial a trajectory" if study.plan.get("fuse", True) else "one trial a cell"
    yield f"Planned {study.plan.get('created', 'at an unknown time')}, {fused}{', with ' + planned if planned else ''}."


def _list(values: list[Any], most: int = 12) -> str:
    text = ", ".join(str(value) for value in values[:most])
    return text + (f" and {len(values) - most} more" if len(values) > most else "")
