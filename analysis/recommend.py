"""What a study says to use, what it saves and how sure that is: the report's first screen, `wa recommend`, W&B."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from analysis import sections, selection, words
from analysis.core import Core, core
from analysis.presentation.table_format import Table, aligned
from analysis.run_folder.study import SCHEME_NAMES, counted, percent, read, read_each
from analysis.selection import Choice, Snapshots
from analysis.statistics import verdicts
from analysis.statistics.generalization import final_changes
from analysis.statistics.pairs import num_units, over_workloads, sign
from analysis.statistics.resampling import FEWEST, Interval, with_interval

RULE = (
    "A setting is a schedule, a scheme and an averaging horizon; its ratio is steps-to-target over those of the best "
    "non-averaged schedule with the same seed, censored runs imputed at T; geometric mean over seeds, then workloads. "
    "Selected post hoc: the smallest ratio of the settings that have one on every workload and miss the target no more "
    "often than the baseline. The best of many looks better than it is, so it is measured on each seed with what the "
    "other seeds select; a saving is shown only where that interval lies below 1, and the selected one's too, widened "
    "for the number of settings (Bonferroni). Over three workloads or more intervals resample workloads and seeds, "
    "else seeds."
)


@dataclass(frozen=True)
class Recommendation:
    """The answer, the pre-specified setting, each workload, and what it rests on."""

    study: str
    question: str | None
    answer: tuple[str, ...]
    overall: Choice
    primary: Choice
    by_workload: tuple[Choice, ...]
    snapshots: tuple[Snapshots, ...]
    basis: tuple[str, ...]
    rule: str

    def as_dict(self) -> dict[str, Any]:
        """For JSON: NaN is None."""
        return _plain(asdict(self))  # type: ignore[no-any-return]

    def text(self) -> str:
        """For a terminal: the answer first."""
        parts = [self.study, "", *self.answer]
        if self.snapshots:
            columns = ["workload", "steps", "horizon", "every", "LAWA k", "EMA γ"]
            table = Table("", "", columns, [_steps_row(one) for one in self.snapshots], 0)
            parts += ["", f"{self.overall.setting} in steps, as LAWA or as EMA of equal centre of mass", aligned(table)]
        if self.overall.setting and len(self.by_workload) > 1:
            columns = ["workload", "verdict", "selected", "ratio", "expected", "flat region", "missed (baseline)"]
            table = Table("", "", columns, [_row(one) for one in self.by_workload], 0)
            parts += ["", "Each workload on its own", aligned(table)]
        return "\n".join([*parts, "", "What it rests on", *(f"  {line}" for line in (*self.basis, self.rule))])


def recommend(run: str | Path, every: float | None = None, study: str | None = None) -> tuple[Recommendation, ...]:
    """Recommends from each study of a run folder, or from one: see `of_core`.

    Raises: analysis.run_folder.records.BadRun where the folder breaks the schema or has no such study.
    """
    studies = read_each(run) if study is None else [read(run, study)]
    return tuple(of_core(core(one, Path(run)), every) for one in studies)


def of_core(core: Core, every: float | None = None, frames: Mapping[str, pd.DataFrame] | None = None) -> Recommendation:
    """ratio(setting) = geometric mean over workloads and seeds of steps(setting) / steps(best baseline); see RULE.

    Args: every: the snapshot interval to give k and decay at, in steps (1 or more) or as a share of the step budget
      (below 1); default: the intervals run. frames: of the sections, if they are there already.
    Imported logs average nothing: of them it says what the section of submissions answers.
    Raises: ValueError where every is not above 0.
    """
    if every is not None and not every > 0:
        raise ValueError(f"every is steps (1 or more) or a share of the step budget (below 1), not {every!r}")
    pairs = selection.pairs_of(core)
    names = sorted(set(core.cells["workload"]))
    alone = [selection.choose(pairs[pairs["workload"] == name], name) for name in names]
    overall = selection.choose(pairs, selection.EVERYWHERE) if len(names) > 1 else alone[0]
    primary, plan = selection.pre_specified(core, pairs), core.study.plan
    if "imported" in plan:
        logs, profiles = sections.named("submissions"), sections.named("profiles")
        answer, rule = sections.call(logs.answer, frames or sections.frames(core, [logs, profiles])), logs.RULE
    else:
        answer, rule = _answer(core, overall, primary), RULE
    steps = tuple(selection.snapshots(overall, pairs, every))
    name, question, basis = str(plan.get("study", "study")), plan.get("question"), tuple(_basis(core, overall))
    return Recommendation(name, question, tuple(answer), overall, primary, tuple(alone), steps, basis, rule)


def _answer(core: Core, overall: Choice, primary: Choice) -> Iterator[str]:
    """One or two sentences to what the study asks; a third where it asks for the horizon or the final metric."""
    asked = core.study.plan.get("report")
    why = _why_not(core, overall)
    if why is None:
        yield _selected(core, overall)
        yield _pre_specified(core, primary)
        if asked == "horizon" and overall.flat is not None:
            low, high = map(percent, overall.flat)
            alone = f"No other horizon of its scheme has an interval that covers {overall.ratio.value:.2f}."
            yield alone if low == high else f"Horizons from {low} to {high} cannot be told from it by their intervals."
    else:
        yield why
        if primary.setting and not np.isnan(primary.ratio.value):
            yield _pre_specified(core, primary)
        if len(core.records):
            yield from _closest(core)
    if asked == "final_metric" or core.cells["target"].isna().all():
        yield from _final(core)


def _selected(core: Core, one: Choice) -> str:
    steps, fair = "of the best non-averaged schedule's steps to the target", "on seeds that had no say in selecting it"
    number, many, where = _number(one, one.expected), one.num_settings, _whose(core)
    if many == 1:
        return f"{one.setting} takes {_number(one, one.ratio)} {steps}: {_verdict(one, one.ratio, core)} ({where})."
    if np.isnan(one.expected.value):
        return (
            f"Of {many} settings {one.setting} has the smallest ratio, {_number(one, one.ratio)} {steps}; one seed "
            f"with a ratio cannot both select and measure, so nothing is decided ({where.partition(';')[0]})."
        )
    if one.verdict == verdicts.SHOWN and one.expected.high < 1:
        return (
            f"Use {one.setting}: it takes {number} {steps}, measured {fair} from {many} settings: a saving of "
            f"{_saving(one.expected)} is shown ({where})."
        )
    lead = {verdicts.UNDECIDED: "Undecided", verdicts.SHOWN: "No average helps"}.get(
        one.verdict, f"No saving of more than {percent(verdicts.MARGIN)}"
    )
    verdict = _verdict(one, one.expected, core).removeprefix("undecided; ")
    return f"{lead}: the best of {many} settings, {one.setting}, takes {number} {steps} {fair}: {verdict} ({where})."


def _pre_specified(core: Core, one: Choice) -> str:
    scheme, horizon = core.primary
    name = f"{SCHEME_NAMES.get(scheme, scheme)} at {percent(horizon)}"
    if not one.setting or np.isnan(one.ratio.value):
        return f"The pre-specified setting, {name}, {'has no ratio' if one.num_pairs else 'was not run'}."
    best = "" if one.own == one.ratio else f"; of the best schedule's, {_number(one, one.ratio)}"
    own = sign(one.own_bound) + with_interval(one.own)
    return (
        f"The pre-specified setting, {one.setting}, takes {own} of the last iterate's steps on its own schedule: "
        f"{_verdict(one, one.own, core)}{best}."
    )


def _saving(ratio: Interval) -> str:
    value, low, high = (100 * (1 - one) for one in (ratio.value, ratio.high, ratio.low))
    return f"{value:.0f} % [{low:.0f}, {high:.0f}]".replace("-", "−")


def _final(core: Core) -> Iterator[str]:
    """What the pre-specified setting changes at the end of training, over workloads."""
    near = core.chosen[core.chosen["near"]]
    mine = near[near["scheme"] == core.primary[0]]
    mine = mine if len(mine) else near[near["scheme"] == near["scheme"].min()]
    higher = core.cells.groupby("workload")["higher_is_better"].first().astype(bool)
    pairs = final_changes(core.by_cell, core.cells, mine, higher.to_dict())
    found = over_workloads(pairs)
    if not np.isnan(found.value):
        verdict = words.told(verdicts.verdict(found, num_units(pairs)), 0, _kind(pairs), above="an effect")
        yield (
            f"At the end of training {mine['scheme_label'].mode()[0]} changes the metric by a factor of "
            f"{with_interval(found, '.4f')} over {counted(pairs['workload'].nunique(), 'workload')} (below 1 is "
            f"better): {verdict}."
        )


def _number(one: Choice, interval: Interval) -> str:
    return sign(one.bound) + with_interval(interval)


def _verdict(one: Choice, ratio: Interval, core: Core) -> str:
    """In words, with how many more seeds or workloads would decide."""
    return words.told(verdicts.Verdict(one.verdict, one.needed), ratio.value - 1, _kind(core.cells))


def _kind(rows: pd.DataFrame) -> str:
    return "workloads" if rows["workload"].nunique() >= FEWEST else "seeds"


def _whose(core: Core) -> str:
    """Whose interval it is."""
    seeds = core.cells.groupby("workload")["seed"].nunique()
    each = f"{counted(int(seeds.min()), 'seed')}{' each' if len(seeds) > 1 else ''}"
    resampled = "workloads and seeds" if len(seeds) >= FEWEST else "seeds"
    whose = f"; 95 % over {resampled}" if seeds.min() > 1 else ""
    return f"{counted(len(seeds), 'workload')}, {each}{whose}"


def _why_not(core: Core, one: Choice) -> str | None:
    """Why there is no ratio; None where there is one."""
    cells = core.cells
    if core.records.empty:
        return "Nothing has been recorded yet."
    if (cells["scheme"] == "none").all():
        return "This study holds non-averaged runs only, so it says nothing on averaging."
    if not (cells["scheme"] == "none").any():
        return "This study holds no non-averaged runs (scheme none), so there is no baseline to compare averages with."
    if cells["target"].isna().all():
        return (
            "No workload of this study has a target, so steps-to-target is withheld; `wa calibrate` sets one by rule."
        )
    if one.setting:
        return None
    if one.num_settings == 0:
        return "This study holds no average of a known horizon beside a baseline with a target."
    if one.pending == one.num_pairs:
        return "No pair of runs is far enough yet to compare."
    if one.both_missed == one.num_pairs - one.pending:
        wait = f"; {one.pending} more are pending" if one.pending else ""
        return f"No answer yet: average and baseline both miss the target in all {one.both_missed} ended pairs{wait}."
    return "No setting has a ratio on every workload and misses the target as rarely as the baseline."


def _closest(core: Core) -> Iterator[str]:
    """Where no run of a workload has met its target: how near the best one came."""
    cells = core.cells.merge(core.steps[["cell_id", "status"]], on="cell_id")
    cells["best"] = cells["cell_id"].map(core.by_cell.set_index("cell_id")["best_metric"]).astype(float)
    for workload, part in cells.groupby("workload", sort=True):
        if (part["status"] == "met").any():
            continue
        known, first = part[np.isfinite(part["best"])], part.iloc[0]
        text = f"No run has met the target of {workload}, {first['metric_name']} {first['target']:.5g}"
        if known.empty:
            yield f"{text}: none has a finite value."
            continue
        row = known.loc[known["best"].idxmax() if first["higher_is_better"] else known["best"].idxmin()]
        yield f"{text}: the closest came to {row['best']:.5g} ({row['scheme_label']}, seed {row['seed']})."


def _row(one: Choice) -> list[str]:
    flat = "–" if one.flat is None else " – ".join(dict.fromkeys(percent(end) for end in one.flat))
    shown = [_number(one, ratio) if ratio.value > 0 else "–" for ratio in (one.ratio, one.expected)]
    verdict = "; ".join(p for p in (one.verdict, words.needed(verdicts.Verdict(one.verdict, one.needed))) if p)
    missed = f"{one.missed} ({one.baseline_missed}) of {one.num_pairs}"
    return [one.where, verdict, one.setting or "–", *shown, flat, missed]


def _steps_row(one: Snapshots) -> list[str]:
    decay = "–" if one.decay is None else f"{one.decay:.4g}"
    return [one.workload, f"{one.step_budget:,}", f"{one.horizon_steps:,.4g}", f"{one.every:,}", str(one.k), decay]


def _basis(core: Core, overall: Choice) -> Iterator[str]:
    cells = core.cells
    numbers = [(cells["workload"].nunique(), "workload"), (cells["trajectory_id"].nunique(), "trajectory")]
    numbers += [(len(cells), "cell"), (len(core.records), "evaluation")]
    unfinished = int((cells["state"] == "unfinished").sum())
    told = ", ".join(counted(number, noun) for number, noun in numbers)
    seeds = ", ".join(map(str, sorted(set(cells["seed"]))))
    yield f"{told}; seeds {seeds}" + (f"; {counted(unfinished, 'cell')} unfinished" if unfinished else "")
    if "imported" in core.study.plan:
        return
    yield (
        f"{counted(overall.num_pairs, 'pair')}: the average missed the target in {overall.missed}, the baseline in "
        f"{overall.baseline_missed}, both in {overall.both_missed} (no ratio); {overall.pending} are pending"
    )
    for name, of in sorted((core.study.plan.get("targets") or {}).items()):
        if of:
            side = "at least" if of["higher_is_better"] else "at most"
            seeds = f" ({len(of['seeds'])} target seeds)" if of.get("seeds") else ""
            yield f"target of {name}: {of['metric']} {side} {of['value']:.5g}{seeds}"
    untargeted = sorted(set(cells.loc[cells["target"].isna(), "workload"]))
    if untargeted:
        yield f"no target, so left out: {', '.join(untargeted)}"


def _plain(value: Any) -> Any:
    """JSON has no NaN."""
    if isinstance(value, dict):
        return {name: _plain(one) for name, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(one) for one in value]
    return None if isinstance(value, float) and not np.isfinite(value) else value
