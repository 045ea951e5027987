"""The driver's desk: hands out trajectories, writes down what their trials tell, decides what is tried again.

It knows no Ray. A trial that has failed is handed out like any other that waits, so that going on after a failure and
going on after a restart are one path.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from analysis.run_folder.run_files import BadRun
from sweeps import attempts, failures, forks, import_order, replay, trace
from sweeps.plan import Trajectory, cost
from sweeps.run_folder import compact, trajectory_folder
from sweeps.scribe import CHECKPOINT, Scribe, pointed
from sweeps.trace import storage_of
from workloads.data import VARIABLE

if TYPE_CHECKING:
    from sweeps.screen import RunScreen

MOST_FAILURES = 3  # of a trajectory without a new checkpoint between them
MOST_LOST = 10  # of its nodes, likewise: a trial may be what its node dies of
EVALUATIONS = 20  # a trial may say nothing for the time that so many are expected to take
Process = dict[str, Any]  # of a trial: node, pid, dump


@dataclass
class Outcome:
    """The trajectories that are done or have failed for good, and what ended the experiment early, if so."""

    done: list[str] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)
    ended: str | None = None


@dataclass
class Trial:
    """A trajectory on its way. told_at: when its last message came, in seconds of the monotonic clock."""

    scribe: Scribe
    told_at: float
    process: Process | None = None


@dataclass
class _Tries:
    """Failures since the last checkpoint at `step`, and of these the lost nodes."""

    step: int = 0
    failed: int = 0
    lost: int = 0


class Desk:
    """The trajectories of one `wa run`, longest first; a branch waits until its trunk has left it a state."""

    def __init__(
        self, run: Path, trajectories: Sequence[Trajectory], listener: RunScreen, settings: Mapping[str, dict[str, Any]]
    ) -> None:
        """settings: of each by name, keyword arguments of `trajectory.run_trial`."""
        self.run, self.listener, self.settings = run.resolve(), listener, settings
        self.all = {one.name: one for one in trajectories}
        self.waiting = list(trajectories)
        self.unfinished = dict(self.all)
        self.trials: dict[str, Trial] = {}
        self.tries: dict[str, _Tries] = {}
        self.outcome = Outcome()
        self.error: OSError | BadRun | None = None  # of this machine: nothing more can be written
        self.storage = storage_of(run)
        # Those that have begun go on from wherever they are, whatever their trunk has left.
        self.begun = {name for name in self.all if attempts.attempts_of(trajectory_folder(run, name))}
        self.is_idle = False  # nothing that waits may start, and nothing has changed since that was found

    @property
    def is_over(self) -> bool:
        """Whether nothing waits and nothing runs that could fail and wait again."""
        return not self.waiting and not self.trials

    def next(self) -> dict[str, Any] | None:
        """What the next trial is told; None where nothing may start now. A trunk that failed takes branches along."""
        if self.error is not None or self.is_idle:
            return None
        for one in list(self.waiting):
            if (why := self._must_wait(one)) is None:
                self.waiting.remove(one)
                return self._begin(one)
            if why:
                self.waiting.remove(one)
                self.give_up(one.name, why)
        self.is_idle = True
        return None

    def _must_wait(self, one: Trajectory) -> str | None:
        """None: it may start. Empty: not yet. Else why it never can."""
        if one.branch is None or one.branch.trunk not in self.unfinished or forks.is_left(self.run, one.branch):
            return None
        if one.name in self.begun:
            return None
        if one.branch.trunk in self.outcome.failed:
            return f"it starts from step {one.branch.step} of {one.branch.trunk}, which has failed before"
        return ""

    def _begin(self, one: Trajectory) -> dict[str, Any]:
        folder = trajectory_folder(self.run, one.name)
        scribe = Scribe(folder)
        self.trials[one.name] = Trial(scribe, time.monotonic())
        self.begun.add(one.name)
        traces = self.storage / trace.TRACES
        return {
            "name": one.name,
            "planned": (folder / "trajectory.json").read_text(encoding="utf-8"),
            "begun": asdict(scribe.begun()),
            "home": (self.storage / "trajectories" / one.name).uri,
            "traces": traces.uri,
            "replayed": (replay.traces_for(self.run, one) if one.replays else traces).uri,
            "data_dir": os.environ.get(VARIABLE),
            "sys_path": import_order.users_paths(),
            "settings": self.settings[one.name],
        }

    def heard(self, name: str, told: str) -> None:
        """Write a trial's message down. Raises: OSError, BadRun, where this machine cannot; then the run ends."""
        trial = self.trials.get(name)
        if trial is None:
            return
        trial.told_at = time.monotonic()
        try:
            message = trial.scribe.take(told)
        except (OSError, BadRun) as error:
            self.error = error
            raise
        trial.process = message.get("process", trial.process)
        self.is_idle &= "fork" not in message

    def silent(self, patience: float) -> list[tuple[str, float]]:
        """The trials that have said nothing for longer than patience, seconds, and many evaluations' expected time."""
        found, now = [], time.monotonic()
        for name, trial in list(self.trials.items()):  # another thread hands out
            one = self.all[name]
            limit = max(patience, EVALUATIONS * cost(one).seconds / max(1, one.num_evaluations))
            if trial.process is not None and now - trial.told_at > limit:
                found.append((name, now - trial.told_at))
        return found

    def note(self, name: str, text: str) -> None:
        """Add to a trajectory's log."""
        with open(trajectory_folder(self.run, name) / "log", "a", encoding="utf-8") as log:
            log.write(text)

    def ended(self, name: str) -> None:
        """A trial has ended by itself: it is done, or what ended it would end it again."""
        self.is_idle = False
        trial = self.trials.pop(name, None)
        if trial is not None and trial.scribe.leave():
            try:
                compact(self.run, name)
            except (OSError, BadRun) as error:  # a full disk, say
                self.error = error
                return
            self.outcome.done.append(name)
            one = self.unfinished.pop(name)
            if one.branch is not None and all(other.branch != one.branch for other in self.unfinished.values()):
                self._free(one.branch.trunk)
        elif (said := attempts.lasting_error(trajectory_folder(self.run, name))) is not None:
            self.give_up(name, said)

    def failed(self, name: str, why: Callable[[Path], str]) -> None:
        """A trial has died. why: the reason, by its log."""
        self.is_idle = False
        trial = self.trials.pop(name, None)
        if trial is None:
            return
        trial.scribe.leave()
        said = why(trial.scribe.folder / "log")
        is_lost, tries = said in failures.LOST, self.tries.setdefault(name, _Tries())
        if (step := trial.scribe.checkpoint_step) > tries.step:
            tries.step, tries.failed, tries.lost = step, 0, 0
        tries.lost += is_lost
        tries.failed += not is_lost
        if self.error is not None:
            return
        if tries.failed < MOST_FAILURES and tries.lost < MOST_LOST:
            again = "" if is_lost else f" (failure {tries.failed} of {MOST_FAILURES} without a new checkpoint)"
            self.listener.retried(name, f"{said}; tried again{again} ({trial.scribe.folder / 'log'})")
            self.waiting.append(self.all[name])
        else:
            self.give_up(name, said)

    def give_up(self, name: str, said: str) -> None:
        self.outcome.failed.append(name)
        self.listener.failed(name, f"{said} ({trajectory_folder(self.run, name) / 'log'})")

    def close(self) -> None:
        """The run is over: what has not ended was interrupted."""
        for name in list(self.trials):
            if self.trials[name].scribe.is_done:
                self.ended(name)
            else:
                self.trials.pop(name).scribe.leave()
                self.tries.setdefault(name, _Tries())
        self._free()
        for name in self.tries:
            self._sweep(name)

    def _free(self, *trunk: str) -> None:
        with suppress(OSError):  # of a storage that is away: the next `wa run` frees it
            forks.free(self.run, self.storage, self.unfinished.values(), *trunk)

    def _sweep(self, name: str) -> None:
        """Remove the checkpoints of killed attempts that nothing points to."""
        home, kept = self.storage / "trajectories" / name, pointed(trajectory_folder(self.run, name) / CHECKPOINT)
        with suppress(OSError):
            for file in home.files("checkpoint-*"):
                if file.name != kept:
                    file.remove()
