"""What an AlgoPerf trial is, once read: its facts, its evaluations, the lines that are none, and what it counts.

Does ``global_step`` count optimizer steps? Some submissions count their own calls, of many steps each.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import click

LOWER_IS_BETTER = {
    **dict.fromkeys(("loss", "ce_loss", "l1_loss", "ctc_loss", "wer", "error_rate", "ppl", "perplexity"), True),
    **dict.fromkeys(("accuracy", "bleu", "ssim", "mean_average_precision"), False),
}
LOG = "eval_measurements.csv"
Group = tuple[str, str, str]  # submission, workload, framework

# Why a line of a log is not among the records. Every line read has one of these reasons, or is recorded.
TORN = "torn"
UNREADABLE = "not numbers where numbers are needed"
NO_EXAMPLES = "evaluated on no examples"
REPEATED = "repeated"
SUPERSEDED = "superseded after a restart"
CLOCK_BACK = "logged after the clock went back while the steps went on"
LEFT_OUT = "of trials that were left out"
CALLS = "of a counter that does not count optimizer steps"
AGAIN = "of a step evaluated before"
REASONS = (TORN, UNREADABLE, NO_EXAMPLES, REPEATED, SUPERSEDED, CLOCK_BACK, LEFT_OUT, CALLS, AGAIN)


class BadLogs(click.ClickException, ValueError):
    """Not AlgoPerf logs, or a hostile file among them; the message has the path."""

    exit_code = 2


class Unusable(ValueError):
    """A file that says too little to use; the message says what is wrong, without the path."""


@dataclass(frozen=True)
class Place:
    """Where a trial lies: LOGDIR/submission/study_<study>/<workload>_<framework>/trial_<number>."""

    folder: Path
    submission: str
    study: int
    workload: str
    framework: str
    number: int


class Skipped(NamedTuple):
    """A folder, or a trial, that is not among the trials, and why."""

    path: str  # from the log folder on
    why: str


@dataclass(frozen=True)
class Facts:
    """What a trial's own metadata says of its workload and its machine."""

    metric: str
    target: float
    test_target: float | None
    step_hint: int  # T
    max_seconds: float  # AlgoPerf's longest submission time
    eval_period_seconds: float
    num_devices: float
    device_name: str
    versions: Mapping[str, str]

    @property
    def pace(self) -> float:
        """Optimizer steps a second, as the step hint and the longest time have it."""
        return self.step_hint / self.max_seconds

    @property
    def higher_is_better(self) -> bool:
        return not LOWER_IS_BETTER[self.metric]

    @property
    def workload(self) -> tuple[object, ...]:
        return self.metric, self.target, self.test_target, self.step_hint, self.max_seconds


@dataclass(frozen=True)
class Evaluation:
    """One line of ``eval_measurements.csv``; `values` are its other columns by name, training's apart."""

    place: int  # among the lines of the file, from 0
    step: int
    seconds: float
    values: Mapping[str, float]


@dataclass
class Lines:
    """The lines of one log: evaluations in the order of the clock, and what became of the others."""

    evaluations: tuple[Evaluation, ...] = ()
    num_read: int = 0
    left_out: Counter[str] = field(default_factory=Counter)  # reason -> lines
    first: dict[str, str] = field(default_factory=dict)  # reason -> the first of them, path and line
    num_moved: int = 0  # stood out of order
    num_empty_tests: int = 0  # evaluations whose test split has no examples
    num_odd_cells: int = 0  # cells of other columns that are no numbers


@dataclass(frozen=True)
class Trial(Place):
    """One trial folder, read. `not_steps`: why its global_step is not taken for optimizer steps; None if it is."""

    hyperparameters: Mapping[str, Any]
    facts: Facts
    lines: Lines
    not_steps: str | None = None

    @property
    def evaluations(self) -> tuple[Evaluation, ...]:
        return self.lines.evaluations

    @property
    def cell_id(self) -> str:
        return f"{self.submission}.study{self.study}.{self.workload}_{self.framework}.trial{self.number}"

    @property
    def group(self) -> Group:
        return self.submission, self.workload, self.framework

    @property
    def recorded(self) -> tuple[Evaluation, ...]:
        """The evaluations that become records: none where steps are not counted, a step evaluated again once."""
        if self.not_steps:
            return ()
        return tuple({one.step: one for one in reversed(self.evaluations)}.values())[::-1]

    @property
    def left_out(self) -> Counter[str]:
        """Reason -> lines: with those recorded they are the lines read."""
        unrecorded = len(self.evaluations) - len(self.recorded)
        return self.lines.left_out + Counter({CALLS if self.not_steps else AGAIN: unrecorded})


@dataclass(frozen=True)
class Imported:
    """What an import wrote, and what it noticed, a sentence each; num_read = num_recorded + Σ left_out."""

    num_trials: int
    num_evaluations: int
    num_read: int  # lines of the logs, headers apart
    num_recorded: int
    left_out: dict[str, int]  # reason -> lines
    skipped: list[Skipped]
    notes: list[str]


# Counters of optimizer steps run at 0.15 to 3.7 times the hinted pace on every published log (V100 and A100, both
# frameworks), counters of calls at 0.0015 to 0.027 times: the threshold lies between, and as far on the other side.
PACE = 16
STALLED = 0.1  # nor does a counter count steps that stands still in a larger share of the intervals


def label(trials: Sequence[Trial], told: frozenset[str]) -> list[Trial]:
    """The trials, those labelled whose global_step cannot be optimizer steps; `told` are submissions said to be so.

    What a counter counts is the submission's own, so its trials on one workload are judged together, by their median
    pace: beside step hint ÷ longest time, or beside the other submissions' in the same framework where two or more
    of those are faster than the hint. Where no trial is long enough to tell, the submission's other workloads in
    that framework do, if they agree. A counter that falls or stands still is seen in its own trial.
    """
    paces: dict[Group, list[float]] = {}
    for trial in trials:
        if len(every := trial.evaluations) > 1 and every[-1].seconds > every[0].seconds:
            pace = (every[-1].step - every[0].step) / (every[-1].seconds - every[0].seconds)
            paces.setdefault(trial.group, []).append(pace)  # before its first evaluation lies compilation
    usual = {group: median(of) for group, of in paces.items()}
    hinted = {trial.group: trial.facts.pace for trial in trials}
    off = {group: _off_pace(group, usual, hinted[group]) for group in usual}
    return [replace(trial, not_steps=_why_not_steps(trial, off, told)) for trial in trials]


def _why_not_steps(trial: Trial, off: dict[Group, str | None], told: frozenset[str]) -> str | None:
    if trial.submission in told:
        return "said so"
    pairs = list(pairwise(trial.evaluations))
    if any(after.step < before.step for before, after in pairs):
        return "it falls while the clock runs on"
    stalled = sum(after.step == before.step for before, after in pairs)
    if stalled > max(1.0, STALLED * len(pairs)):
        return f"it stands still in {stalled} of {len(pairs)} intervals"
    if trial.group in off:
        return off[trial.group]
    elsewhere = [why for group, why in off.items() if group[::2] == trial.group[::2]]
    if trial.evaluations and elsewhere and all(elsewhere):
        return "too short to tell, and it counts none on any other workload"
    return None


def _off_pace(group: Group, usual: dict[Group, float], hinted: float) -> str | None:
    mine = usual[group]
    others = [pace for other, pace in usual.items() if other[1:] == group[1:] and other != group]
    beside = max(hinted, median(others)) if len(others) > 1 else hinted
    if beside / PACE <= mine <= beside * PACE:
        return None
    whose = "" if beside == hinted else f", {mine / beside:.2g} times that of the others in {group[2]}"
    limit = f"1/{PACE}" if mine < beside else str(PACE)
    return f"it runs at {mine / hinted:.2g} times the hinted pace{whose}; the threshold is {limit}"
