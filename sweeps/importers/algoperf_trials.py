"""What an AlgoPerf trial is, once read: its facts, its evaluations, and the lines that are none."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import click

LOWER_IS_BETTER = {
    **dict.fromkeys(("loss", "ce_loss", "l1_loss", "ctc_loss", "wer", "error_rate", "ppl", "perplexity"), True),
    **dict.fromkeys(("accuracy", "bleu", "ssim", "mean_average_precision"), False),
}
LOG = "eval_measurements.csv"

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
    def group(self) -> tuple[str, str, str]:
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
