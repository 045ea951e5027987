"""What a run folder says to use: scheme, horizon, decay and LR-decay length, what it saves, and how sure that is."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from analysis import robustness, tables
from analysis.horizon_fit import FIXED, horizon_fit
from analysis.pairs import CHOSEN_HORIZON, chosen_settings, overall_bound, reference_training, sign
from analysis.resampling import Interval, bootstrap, stratified_geometric_mean, with_interval
from analysis.study import SCHEME_NAMES, Study, counted, percent, read, read_each

EVERYWHERE = "all workloads"
UNKNOWN = Interval(np.nan, np.nan, np.nan)
RULE = (
    "A setting is a schedule, a scheme and an averaging horizon; snapshot intervals of one horizon count as one. Its "
    "ratio is steps-to-target over those of the best raw run with the same seed, missed targets counted at the step "
    "budget; geometric mean over seeds, then over workloads. Picked is the smallest ratio of the settings that have "
    "one on every workload and miss the target no more often than the raw runs. The best of many looks better than "
    "it is: the expected ratio measures each seed with what the other seeds pick. Recommended is what lies below 1 "
    "with both intervals. All intervals are over seeds, on these workloads."
)
_OPTIONS = ["init", "until_full", "buffers"]  # parts of an average that its horizon does not say


@dataclass(frozen=True)
class Pairs:
    """The pairs of an average and a raw run behind a ratio, and how many of either missed the target."""

    num: int
    missed: int  # the average
    raw_missed: int
    both_missed: int  # counted in the two before as well; these pairs have no ratio
    pending: int


@dataclass(frozen=True)
class Choice:
    """What one workload, or all together, speak for. The setting is empty where there is no ratio.

    verdict: ``recommended``, ``undecided`` (some setting's interval lies below 1, but the pick does not hold),
    ``no effect`` (no setting's interval lies below 1), ``one seed``, ``equal seeds`` (neither has an interval),
    ``no ratio`` ·
    lr_decay: share of the schedule spent decaying, the smallest and the largest of the workloads ·
    ratio: of the pick, on the seeds it was picked on · expected: on seeds that had no say in it ·
    run: the shortest and the longest horizon of its scheme · flat: horizons of its scheme around it whose interval
    covers its ratio · alike: settings of other schemes or schedules whose interval covers it · optimum, smooth_flat:
    of `horizon_fit`, where it is one workload ·
    fixed: settings at the horizon fixed beforehand, whose intervals owe nothing to a pick ·
    num_better, num_worse: settings whose interval lies below 1, above 1.
    """

    where: str
    verdict: str
    pairs: Pairs
    num_settings: int
    num_better: int = 0
    num_worse: int = 0
    setting: str = ""
    schedule: str = ""
    lr_decay: tuple[float, float] | None = None
    scheme: str = ""
    horizon: float = np.nan
    ratio: Interval = UNKNOWN
    bound: str = "exact"  # of the ratio, where runs miss the target: see `analysis.pairs.ratios`
    expected: Interval = UNKNOWN
    run: tuple[float, float] | None = None
    flat: tuple[float, float] | None = None
    alike: tuple[str, ...] = ()
    schedules_alike: tuple[str, ...] = ()
    fixed: tuple[tuple[str, Interval], ...] = ()
    optimum: Interval | None = None
    smooth_flat: tuple[float, float] | None = None


@dataclass(frozen=True)
class Snapshots:
    """The overall pick's horizon on one workload in steps, as LAWA(k, every) and as EMA(decay, every)."""

    workload: str
    step_budget: int
    horizon_steps: float
    every: int
    k: int
    decay: float | None  # null where the horizon is shorter than one interval
    ratio: Interval  # of the pick on this workload


@dataclass(frozen=True)
class Basis:
    """What an answer rests on."""

    workloads: tuple[str, ...]
    seeds: tuple[int, ...]
    num_trajectories: int
    num_cells: int
    num_unfinished: int  # cells
    num_evaluations: int
    raw: dict[str, str]  # workload -> its best raw schedule
    num_schedules: int  # the most a workload has
    targets: dict[str, str]  # workload -> metric, value, seeds it was set on
    rules: tuple[str, ...]
    untargeted: tuple[str, ...]


@dataclass(frozen=True)
class Recommendation:
    """The answer over all workloads, by workload, in steps, and its basis; `text` is for a terminal."""

    study: str
    overall: Choice
    by_workload: tuple[Choice, ...]
    snapshots: tuple[Snapshots, ...]
    basis: Basis

    def text(self) -> str:
        """The answer first, then how flat the optimum is, each workload, and what it rests on."""
        parts = [f"{self.study}: which average to use", "", *_headline(self.overall, self.basis)]
        if self.snapshots:
            said = "recommended" if self.overall.verdict == "recommended" else "best-looking"
            parts += ["", f"The {said} horizon in steps, as LAWA or as EMA (equal centre of mass)"]
            parts += [_aligned([_steps(one) for one in self.snapshots])]
        if self.overall.setting and len(self.by_workload) > 1:
            parts += ["", "By workload: its own pick; the smooth fit is a parabola in the log horizon"]
            parts += [_aligned([_row(choice) for choice in self.by_workload])]
        return "\n".join([*parts, "", "What it rests on", *(f"  {line}" for line in _basis(self))])


def recommend(run: str | Path, every: float | None = None, study: str | None = None) -> tuple[Recommendation, ...]:
    """Reads a run folder and recommends from each study in it, or from one: see `of_study`.

    Raises: analysis.records.BadRun where the folder breaks the schema or has no such study.
    """
    studies = read_each(run) if study is None else [read(run, study)]
    return tuple(of_study(one, every) for one in studies)


def of_study(study: Study, every: float | None = None) -> Recommendation:
    """ratio(setting) = geometric mean over workloads and seeds of steps(setting) / steps(best raw run); see RULE.

    Args: every: the snapshot interval to give k and decay at, in steps (1 or more) or as a share of the step budget
      (below 1); default: the intervals run. Raises: ValueError where it is not above 0.
    """
    if every is not None and not every > 0:
        raise ValueError(f"every is steps (1 or more) or a share of the step budget (below 1), not {every!r}")
    found = tables.core(study)
    chosen = chosen_settings(study.cells, reference_training(study.cells, found.scores))
    pairs = _pairs(study.cells, found.by_seed, chosen[chosen["near"]])
    fits, _ = horizon_fit(found.by_seed, study.cells)
    workloads = sorted(set(study.cells["workload"]))
    alone = [_choose(pairs[pairs["workload"] == name], name, fits) for name in workloads]
    overall = _choose(pairs, EVERYWHERE, fits) if len(workloads) > 1 else alone[0]
    return Recommendation(
        str(study.plan.get("study", "study")),
        overall,
        tuple(alone),
        tuple(_snapshots(overall, pairs, every)),
        _basis_of(study, found.scores),
    )


def _pairs(cells: pd.DataFrame, by_seed: pd.DataFrame, fixed: pd.DataFrame) -> pd.DataFrame:
    """Averages against the best raw run; `name` says one setting on every workload, `family` all but its horizon."""
    axes = ["setting", "scheme", "horizon_fraction", "every_steps", "step_budget", "lr_decay", *_OPTIONS]
    named = cells[(cells["scheme"] != "none") & cells["horizon_fraction"].notna()].drop_duplicates("setting")
    named = named[[*axes, "training_label"]].rename(columns={"training_label": "schedule"})
    options = named[_OPTIONS].astype("object").where(named[_OPTIONS].notna(), "–")
    varying = [name for name in _OPTIONS if options.groupby(named["scheme"])[name].nunique().gt(1).any()]
    family = named["scheme"].map(SCHEME_NAMES).fillna(named["scheme"])
    shares = [percent(float(share)) for share in named["horizon_fraction"]]
    tail = named["schedule"].map(lambda label: f", {label}") if named["schedule"].nunique() > 1 else ""
    for name in varying:
        tail = ", " + name.replace("_", " ") + " " + options[name] + tail
    named = named.assign(family=family + tail, name=family + " " + pd.Series(shares, named.index) + tail)
    mine = by_seed[by_seed["versus"] == "best baseline"]
    table = mine[["workload", "training", "setting", "seed", "ratio", "bound"]].merge(named, on="setting")
    fold = table.groupby("workload")["seed"].rank(method="dense")
    return table.assign(fold=fold, fixed=table["setting"].isin(fixed["setting"]))


def _choose(pairs: pd.DataFrame, where: str, fits: pd.DataFrame) -> Choice:
    logs = _logs(pairs)
    pick = _pick(pairs)
    if pick is None:
        return Choice(where, "no ratio", _count(pairs), num_settings=pairs["name"].nunique())
    settings = pairs.groupby("name").agg(
        family=("family", "first"),
        schedule=("schedule", "first"),
        scheme=("scheme", "first"),
        horizon_fraction=("horizon_fraction", "median"),
    )
    intervals = {name: _interval(logs, str(name)) for name in settings.index}
    settings[["ratio", "low", "high"]] = np.array(list(intervals.values()))
    fixed = [name for name, known in pairs.groupby("name")["fixed"].any().items() if known]
    best = settings.loc[pick].to_dict()
    allowed = pd.Series(settings.index.isin(_allowed(pairs).index), settings.index)
    covers = allowed & (settings["low"] <= best["ratio"]) & (best["ratio"] <= settings["high"])
    same = settings["family"] == best["family"]
    ratio, expected = Interval(best["ratio"], best["low"], best["high"]), _held_out(pairs, logs)
    horizons = settings["horizon_fraction"][same]
    num_better = int((allowed & (settings["high"] < 1)).sum())
    mine = pairs[pairs["name"] == pick]
    fit = fits[fits["training"].isin(mine["training"]) & (fits["scheme"] == best["scheme"])]
    smooth = fit.iloc[0] if where != EVERYWHERE and len(fit) == 1 else None
    decays = mine["lr_decay"].dropna().astype(float)
    seeds = mine[mine["ratio"].notna()].groupby("workload")["seed"].nunique()
    return Choice(
        where,
        _verdict(ratio, expected, num_better, int(seeds.min())),
        _count(mine),
        num_settings=len(settings),
        num_better=num_better,
        num_worse=int((settings["low"] > 1).sum()),
        setting=pick,
        schedule=str(best["schedule"]),
        lr_decay=(float(decays.min()), float(decays.max())) if len(decays) else None,
        scheme=str(best["scheme"]),
        horizon=float(best["horizon_fraction"]),
        ratio=ratio,
        bound=overall_bound(mine["bound"]),
        expected=expected,
        run=(float(horizons.min()), float(horizons.max())),
        flat=_flat(settings[same], pick, covers[same]),
        alike=tuple(settings.index[covers & ~same]),
        schedules_alike=tuple(sorted(set(settings["schedule"][covers]) - {best["schedule"]})),
        fixed=tuple((str(name), intervals[name]) for name in fixed),
        optimum=None if smooth is None else Interval(smooth["optimum"], smooth["optimum_low"], smooth["optimum_high"]),
        smooth_flat=None
        if smooth is None or pd.isna(smooth["flat_from"])
        else (float(smooth["flat_from"]), float(smooth["flat_to"])),
    )


def _logs(pairs: pd.DataFrame) -> pd.DataFrame:
    """The log ratio, one row a setting, one column a (workload, seed); NaN where it has none."""
    known = pairs[pairs["ratio"].notna()]
    logs = known.assign(log=np.log(known["ratio"].astype(float)))
    return logs.pivot_table(index="name", columns=["workload", "seed"], values="log", aggfunc="mean")


def _allowed(pairs: pd.DataFrame) -> pd.DataFrame:
    """The mean log ratio a workload, of settings that may be picked: see RULE."""
    logs = _logs(pairs)
    means = logs.T.groupby(level="workload").mean().T.dropna()
    missed = pairs["bound"].isin(["at least", "both missed"]).groupby(pairs["name"]).sum()
    raw_missed = pairs["bound"].isin(["at most", "both missed"]).groupby(pairs["name"]).sum()
    return means[means.index.isin(missed.index[missed <= raw_missed])]


def _pick(pairs: pd.DataFrame) -> str | None:
    means = _allowed(pairs)
    return str(means.mean(axis=1).idxmin()) if means.size else None


def _held_out(pairs: pd.DataFrame, logs: pd.DataFrame) -> Interval:
    """Each seed measured with the setting that the other seeds pick."""
    measured = []
    for fold in sorted(set(pairs["fold"])):
        out = pairs["fold"] == fold
        pick = _pick(pairs[~out])
        if pick is not None:
            seeds = pd.MultiIndex.from_frame(pairs[out][["workload", "seed"]].drop_duplicates())
            measured.append(logs.loc[[pick]].reindex(columns=seeds).set_axis(["measured"]))
    return _interval(pd.concat(measured, axis=1), "measured") if measured else UNKNOWN


def _interval(logs: pd.DataFrame, name: str) -> Interval:
    """The geometric mean of one row of `_logs`, each workload counting once, over its seeds."""
    known = logs.loc[logs.index == name].T.dropna()
    strata = [np.exp(part.to_numpy(dtype=float)[:, 0]) for _, part in known.groupby(level="workload", sort=True)]
    if not strata:
        return UNKNOWN
    return bootstrap(strata[0], "geometric_mean") if len(strata) == 1 else stratified_geometric_mean(strata)


def _verdict(ratio: Interval, expected: Interval, num_better: int, seeds: int = 1) -> str:
    if np.isnan(ratio.low):
        return "one seed" if seeds < 2 else "equal seeds"
    if num_better == 0:
        return "no effect"
    return "recommended" if ratio.high < 1 and expected.high < 1 else "undecided"


def _flat(settings: pd.DataFrame, pick: str, covers: pd.Series) -> tuple[float, float] | None:
    known = settings["low"].notna()
    horizons = settings.assign(
        workload="", training=0, scheme="", best=settings.index == pick, flat=covers.where(known)
    )
    region = robustness.flat_region(horizons)
    return (float(region["flat_from"].iloc[0]), float(region["flat_to"].iloc[0])) if len(region) else None


def _count(pairs: pd.DataFrame) -> Pairs:
    kinds = pairs["bound"].value_counts()
    both = int(kinds.get("both missed", 0))
    return Pairs(
        len(pairs),
        int(kinds.get("at least", 0)) + both,
        int(kinds.get("at most", 0)) + both,
        both,
        int(kinds.get("pending", 0)),
    )


def _snapshots(overall: Choice, pairs: pd.DataFrame, every: float | None) -> list[Snapshots]:
    if overall.scheme not in FIXED:
        return []
    mine = pairs[pairs["name"] == overall.setting]
    found = []
    for workload, part in mine.groupby("workload", sort=True):
        budget = int(part["step_budget"].iloc[0])
        horizon = float(part["horizon_fraction"].median()) * budget
        steps = sorted({int(one) for one in part["every_steps"]})
        if every is not None:
            steps = [max(1, round(every * budget if every < 1 else every))]
        ratio = _interval(_logs(part), overall.setting)
        for one in steps:
            decay = (horizon - one) / (horizon + one) if horizon >= one else None
            found.append(Snapshots(str(workload), budget, horizon, one, max(1, round(horizon / one)), decay, ratio))
    return found


def _basis_of(study: Study, scores: pd.DataFrame) -> Basis:
    cells = study.cells
    labels = cells.drop_duplicates("training").set_index("training")["training_label"]
    best = scores[scores["rank"] == 1]
    targets = {name: of for name, of in sorted((study.plan.get("targets") or {}).items()) if of}
    return Basis(
        tuple(sorted(set(cells["workload"]))),
        tuple(sorted({int(seed) for seed in cells["seed"]})),
        int(cells["trajectory_id"].nunique()),
        len(cells),
        int((cells["state"] == "unfinished").sum()),
        len(study.records),
        {str(w): str(labels[t]) for w, t in zip(best["workload"], best["training"], strict=True)},
        int(scores.groupby("workload").size().max()) if len(scores) else 0,
        {name: _target(of) for name, of in targets.items()},
        tuple(sorted({str(of.get("rule")) for of in targets.values()})),
        tuple(sorted(set(cells.loc[cells["target"].isna(), "workload"]))),
    )


def _target(of: dict[str, Any]) -> str:
    side = "at least" if of["higher_is_better"] else "at most"
    return f"{of['metric']} {side} {of['value']:.5g} ({len(of.get('seeds') or [])} target seeds)"


# --- the text ----------------------------------------------------------------------------------------------------


def _headline(choice: Choice, basis: Basis) -> list[str]:
    where = f"{len(basis.workloads)} workloads" if len(basis.workloads) > 1 else basis.workloads[0]
    if choice.verdict != "one seed":
        where += f", {counted(len(basis.seeds), 'seed')}{' each' if len(basis.workloads) > 1 else ''}"
    elif len(basis.workloads) == 1:  # others of its seeds may have given no ratio
        where += ", 1 seed"
    of_many = f"the smallest of {choice.num_settings} settings"
    picked, expected = (sign(choice.bound) + with_interval(one) for one in (choice.ratio, choice.expected))
    schedules = sorted(set(basis.raw.values()))
    raw = schedules[0] if len(schedules) == 1 else "; ".join(f"{name}: {of}" for name, of in basis.raw.items())
    if choice.verdict == "no ratio":
        return [f"No recommendation: {_why(choice, basis)}."]
    if choice.verdict in ("one seed", "equal seeds"):
        why = "One seed gives" if choice.verdict == "one seed" else "Equal ratios in all seeds give"
        return [
            f"{why} no interval, so nothing can be recommended. {choice.setting} has {of_many}: {picked} of the best "
            f"raw run's steps, on {where}."
        ]
    if choice.verdict == "no effect":
        lines = [
            f"No effect found: of {choice.num_settings} settings none has an interval below 1; nothing to recommend "
            f"beyond the best raw run ({raw}).",
            f"{choice.setting} has {of_many}: {picked} of its steps, on {where}.",
        ]
        slower = f"{counted(choice.num_worse, 'setting')} {'is' if choice.num_worse == 1 else 'are'} slower."
        return [*lines, *([slower] if choice.num_worse else [])]
    if choice.verdict == "undecided":
        held = [f"{name} ({with_interval(ratio)})" for name, ratio in choice.fixed if ratio.high < 1]
        lines = [
            f"Undecided: {choice.num_better} of {choice.num_settings} settings have an interval below 1, but the pick "
            "does not hold on seeds that had no say in it."
            + (f" What was fixed beforehand does: use {' or '.join(held)}." if held else ""),
            f"{choice.setting} has {of_many}: {picked} of the best raw run's steps; on seeds that had no say "
            f"{expected}, on {where}.",
        ]
    else:
        lines = [
            f"Use {choice.setting}: an averaging horizon of {percent(choice.horizon)} of the step budget.",
            f"Expected: the target in {expected} of the best raw run's steps, a saving of {_saving(choice)}, "
            f"on seeds that had no say in the pick ({where}). As picked, {of_many}: {picked}.",
        ]
    beside = [f"{name} {with_interval(ratio)}" for name, ratio in choice.fixed]
    if beside:
        lines.append(f"Fixed beforehand, so not picked: {'; '.join(beside)}.")
    lines.append(_flatness(choice))
    if choice.optimum is not None:
        flat = "" if choice.smooth_flat is None else f", flat over {_span(choice.smooth_flat)}"
        lines.append(f"Smooth fit: optimum {_horizon(choice.optimum, choice.run)}{flat}.")
    return [*lines, _decay(choice, basis)]


def _why(choice: Choice, basis: Basis) -> str:
    if not basis.raw:
        return "this study holds no raw runs (scheme none) to compare with"
    if choice.num_settings == 0 and len(basis.untargeted) == len(basis.workloads):
        return "no workload has a target; `wa calibrate` computes one by rule"
    if choice.num_settings == 0:
        return "this study holds no averages of a known horizon"
    pairs = choice.pairs
    if pairs.pending == pairs.num:
        return "no pair of runs is far enough yet"
    if pairs.both_missed == pairs.num - pairs.pending:
        wait = f"; {pairs.pending} more are pending" if pairs.pending else ""
        every = f"all {pairs.both_missed} pairs that have come to an end{wait}"
        return f"average and raw run both miss the target in {every}"
    return "no setting has a ratio on every workload and misses the target as rarely as the raw runs"


def _flatness(choice: Choice) -> str:
    if choice.flat is None:
        return "How flat: one horizon of its scheme was run, so this run does not say."
    low, high = choice.flat
    if low == high:
        text = f"How flat: no other horizon of its scheme has an interval that covers {choice.ratio.value:.2f}"
    else:
        text = f"How flat: horizons from {percent(low)} to {percent(high)} cannot be told from it by their intervals"
    inside = robustness.reaches(low, high, CHOSEN_HORIZON)
    text += f"; {percent(CHOSEN_HORIZON)}, fixed beforehand, lies {'inside' if inside else 'outside'}."
    if choice.run is not None and choice.horizon in choice.run:
        end = "longest" if choice.horizon == choice.run[1] else "shortest"
        text += f" It is the {end} horizon of its scheme in this run: the optimum may lie beyond."
    if choice.alike:
        more = f" and {len(choice.alike) - 6} more" if len(choice.alike) > 6 else ""
        text += f" Nor can these be told from it: {'; '.join(choice.alike[:6])}{more}."
    return text


def _decay(choice: Choice, basis: Basis) -> str:
    share = ""
    if choice.lr_decay is not None:
        low, high = (percent(one) for one in choice.lr_decay)
        share = f", decaying over {low if low == high else f'{low} to {high}'} of it"
    if basis.num_schedules < 2:
        return (
            f"LR decay: {choice.schedule}{share}; no other schedule was run, so this run does not say which length "
            "is best."
        )
    text = f"LR decay: {choice.schedule}{share}"
    if choice.schedules_alike:
        text += f"; cannot be told from it: {'; '.join(choice.schedules_alike)}"
    return text + "."


def _saving(choice: Choice) -> str:
    ratio = choice.expected
    value, low, high = (100 * (1 - one) for one in (ratio.value, ratio.high, ratio.low))
    least = {"at most": "≥ ", "at least": "≤ "}.get(choice.bound, "")  # a saving is bounded on the other side
    return least + f"{value:.0f} % [{low:.0f} %, {high:.0f} %]".replace("-", "−")


def _row(choice: Choice) -> dict[str, str]:
    shown = bool(choice.setting)
    pairs = choice.pairs
    return {
        "workload": choice.where,
        "verdict": choice.verdict,
        "setting": choice.setting or "–",
        "as picked": sign(choice.bound) + with_interval(choice.ratio) if shown else "–",
        "expected": sign(choice.bound) + with_interval(choice.expected) if shown and choice.expected.value > 0 else "–",
        "flat region": "–" if choice.flat is None else _span(choice.flat),
        "smooth optimum": "–" if choice.optimum is None else _horizon(choice.optimum, choice.run),
        "smooth flat": "–" if choice.smooth_flat is None else _span(choice.smooth_flat),
        "missed (raw)": f"{pairs.missed} ({pairs.raw_missed}) of {pairs.num}",
    }


def _steps(one: Snapshots) -> dict[str, str]:
    return {
        "workload": one.workload,
        "steps": f"{one.step_budget:,}",
        "horizon": f"{one.horizon_steps:,.4g}",
        "every": f"{one.every:,}",
        "LAWA k": str(one.k),
        "EMA γ": "–" if one.decay is None else f"{one.decay:.4g}",
        "ratio as run": with_interval(one.ratio) if one.ratio.value > 0 else "–",
    }


def _span(ends: tuple[float, float]) -> str:
    return percent(ends[0]) if ends[0] == ends[1] else f"{percent(ends[0])} – {percent(ends[1])}"


def _horizon(one: Interval, run: tuple[float, float] | None) -> str:
    """An optimum at an end of what was run is a bound."""
    if run is not None and np.isclose(one.value, run).any():
        return f"{'≤' if np.isclose(one.value, run[0]) else '≥'} {percent(one.value)}"
    return percent(one.value) + ("" if np.isnan(one.low) else f" [{percent(one.low)}, {percent(one.high)}]")


def _basis(found: Recommendation) -> list[str]:
    basis, pairs = found.basis, found.overall.pairs
    seeds = ", ".join(map(str, basis.seeds))
    lines = [
        f"{counted(len(basis.workloads), 'workload')} ({', '.join(basis.workloads)}), "
        f"{'seed' if len(basis.seeds) == 1 else 'seeds'} {seeds}; {counted(basis.num_trajectories, 'trajectory')}, "
        f"{counted(basis.num_cells, 'cell')}, {counted(basis.num_evaluations, 'evaluation')}",
        f"{'its' if found.overall.setting else 'all'} {counted(pairs.num, 'pair')} with a raw run: the average "
        f"missed the target in {pairs.missed}, the raw run in {pairs.raw_missed}, both in {pairs.both_missed} (no "
        f"ratio); "
        f"{pairs.pending} are pending",
    ]
    if basis.num_unfinished:
        verb = "is" if basis.num_unfinished == 1 else "are"
        lines.append(f"{counted(basis.num_unfinished, 'cell')} {verb} unfinished")
    lines += [f"target of {name}: {said}" for name, said in basis.targets.items()]
    lines += [f"target rule: {rule}" for rule in basis.rules]
    if basis.untargeted:
        lines.append(f"no target, so left out: {', '.join(basis.untargeted)}")
    return [*lines, RULE]


def _aligned(rows: list[dict[str, str]]) -> str:
    """Rows of words as columns, each as wide as its longest."""
    lines = [list(rows[0]), *(list(row.values()) for row in rows)]
    widths = [max(len(line[place]) for line in lines) for place in range(len(lines[0]))]
    return "\n".join(
        "  " + "  ".join(word.ljust(width) for word, width in zip(line, widths, strict=True)).rstrip() for line in lines
    )
