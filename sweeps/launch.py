"""The plan as a Ray Tune experiment. The only file that imports ray.tune.

Ray Tune is the engine, our records are the truth: a custom Searcher hands out the plan, longest trajectory first;
trials write their own records and checkpoints into the run folder; resuming is planning again what is not done,
as a new experiment, and never `Tuner.restore` (docs/architecture.md says why).
"""

from __future__ import annotations

import faulthandler
import os
import shutil
import threading
import time
from collections.abc import Iterator, Sequence, Set
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

# First, since it sets what Ray reads when it is imported.
from sweeps.engine import Engine

# isort: split
from ray import tune
from ray.tune.execution import class_cache
from ray.tune.search import Searcher

from analysis.run_folder.run_files import BadRun
from cluster import secrets
from cluster.errors import first_line
from sweeps import attempts, failures, forks, import_order
from sweeps.interrupts import Interrupts
from sweeps.plan import Trajectory
from sweeps.run_folder import compact, trajectory_folder
from workloads.data import VARIABLE

if TYPE_CHECKING:
    from sweeps.screen import RunScreen

MAX_FAILURES = 3  # retries of one trajectory within one `wa run`: a worker or node may die
STOP_SECONDS = 45.0  # granted to trials that were asked to end; what they recorded is on disk before
LOOK_SECONDS = 0.2
# Tune would hand the driver's AWS keys to its actors, and Ray log them in clear on every node; nodes have their own.
class_cache.ENV_VARS_TO_PROPAGATE.difference_update(
    [one for one in class_cache.ENV_VARS_TO_PROPAGATE if one.startswith("AWS_")]
)


@dataclass
class Outcome:
    """The trajectories that are done or have failed for good, and what ended the experiment early, if so."""

    done: list[str] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)
    ended: str | None = None


def _train(config: dict[str, Any]) -> None:
    """The trainable: one trajectory, in a worker process that is used again for the next."""
    import json

    import_order.search_too(config["sys_path"])  # a user's workload, by dotted path
    from sweeps import plan, trajectory

    if config["data_dir"] is not None:
        os.environ[VARIABLE] = config["data_dir"]
    folder = Path(config["folder"])
    planned = json.loads((folder / "trajectory.json").read_text(encoding="utf-8"))
    stopped = False  # by Tune, which ends a trial that reports by SystemExit

    def report(step: int) -> None:
        nonlocal stopped
        try:
            tune.report({"name": config["name"], "step": step})
        except SystemExit:
            stopped = True
            raise

    with _crashes_logged(folder / "log"):
        try:
            trajectory.run(
                plan.from_dict(planned),
                folder,
                **{key: config[key] for key in ("device", "num_devices", "processes", "checkpoint_seconds")},
                planned_code=planned.get("code"),
                report=report,
            )
        except (Exception, SystemExit, KeyboardInterrupt) as error:
            if stopped:
                raise
            # Raised, Tune would try it again; what would fail again ends here, and the driver reads why in the folder.
            if attempts.lasting_error(folder) is not None:
                # Tune prints a line of its own for a trial that reported nothing.
                tune.report({"name": config["name"]})
            elif isinstance(error, Exception):
                if (told := secrets.harmless(error)) is not error:  # Ray logs it
                    raise told from None
                raise
            else:  # Tune would take an exit with code 0 for a trial that is done
                raise RuntimeError(f"the workload's code raised {repr(error).removesuffix('()')}") from error


@contextmanager
def _crashes_logged(log: Path) -> Iterator[None]:
    """Where a fatal signal ends this process, the log says which, and the stack."""
    with open(log, "ab") as stream:
        faulthandler.enable(stream, all_threads=False)
        try:
            yield
        finally:
            faulthandler.disable()


class PlanSearcher(Searcher):  # type: ignore[misc]
    """Hands out the plan in its order, a branch once its trunk has left it a state; plain data only: Tune pickles it.

    A trunk that fails for good takes the branches along to which it has left none.
    """

    def __init__(self, configs: list[dict[str, Any]]) -> None:
        super().__init__()
        self.waiting = configs
        self.handed_out: dict[str, str] = {}  # trial -> folder of its trajectory

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:
        if not self.waiting:
            return str(Searcher.FINISHED)
        config: dict[str, Any] | None = next(filter(_may_start, self.waiting), None)  # without one, Tune asks again
        if config is not None:
            self.waiting.remove(config)
            self.handed_out[trial_id] = config["folder"]
        return config

    def on_trial_complete(self, trial_id: str, *_: Any, **__: Any) -> None:
        trunk = self.handed_out.pop(trial_id, "")
        self.waiting = [one for one in self.waiting if _may_start(one) or Path(one["fork"]).parent != Path(trunk)]

    # The run folder is the state.
    def save(self, checkpoint_path: str) -> None: ...
    def restore(self, checkpoint_path: str) -> None: ...


def _may_start(config: dict[str, Any]) -> bool:
    """Whether a trial waits for nothing: a trunk that is done and left no state there has diverged before."""
    fork = config["fork"]
    return fork is None or Path(fork).exists() or Path(fork).with_name("done").exists()


class _Stopped(Exception):
    """Ends Tune's loop, on the path where it stops its trials."""


class _Callback(tune.Callback):  # type: ignore[misc]
    """Tune's events -> the listener; a finished trajectory's records are compacted at once."""

    def __init__(
        self,
        run: Path,
        listener: RunScreen,
        outcome: Outcome,
        stop: threading.Event,
        trajectories: Sequence[Trajectory] = (),
    ) -> None:
        self.run, self.listener, self.outcome, self.stop = run, listener, outcome, stop
        self.unfinished = {one.name: one for one in trajectories}
        self.memory_kills = failures.memory_kills()

    def __reduce__(self) -> tuple[type[tune.Callback], tuple[()]]:
        return tune.Callback, ()  # Tune pickles its callbacks for `restore`, which we do not use

    def on_step_begin(self, iteration: int, trials: list[Any], **info: Any) -> None:
        if self.stop.is_set():
            raise _Stopped

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        name = trial.config["name"]
        folder = trajectory_folder(self.run, name)
        if (folder / "done").exists():
            try:
                compact(self.run, name)
            except (OSError, BadRun):  # a full disk, say; `launch` tries it again at the end, and tells
                return
            self.outcome.done.append(name)
            if (ended := self.unfinished.pop(name, None)) is not None and ended.branch is not None:
                forks.free(self.run, self.unfinished.values())
        elif (said := attempts.lasting_error(folder)) is not None:
            self.outcome.failed.append(name)
            self.listener.failed(name, f"{said} ({folder / 'log'})")

    def on_trial_recover(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """A failure with a retry left."""
        again = f"(retry {trial.num_failures} of {MAX_FAILURES})"
        self.listener.retried(trial.config["name"], f"{self._reason(trial)} {again}")

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """The failure after the last retry."""
        self.outcome.failed.append(trial.config["name"])
        self.listener.failed(trial.config["name"], self._reason(trial))

    def _reason(self, trial: Any) -> str:
        said = Path(trial.error_file).read_text(encoding="utf-8", errors="replace") if trial.error_file else ""
        last = said.rpartition("Failure # ")[2]
        kills, self.memory_kills = self.memory_kills, failures.memory_kills()
        log = trajectory_folder(self.run, trial.config["name"]) / "log"
        return f"{failures.reason(last, log, self.memory_kills > kills)} ({log})"


class _Fit(threading.Thread):
    """`tuner.fit` beside the main thread, which a dead Ray must not hold."""

    def __init__(self, tuner: tune.Tuner) -> None:
        super().__init__(daemon=True, name="tune")
        self.tuner = tuner
        self.error: Exception | None = None

    def run(self) -> None:
        try:
            self.tuner.fit()
        except Exception as error:
            self.error = error


def launch(
    on: Engine,
    run: Path,
    trajectories: Sequence[Trajectory],
    listener: RunScreen,
    interrupts: Interrupts,
    checkpoint_seconds: float,
) -> Outcome:
    """Train the trajectories, in their order, into the run folder.

    Returns when all ended, on an interrupt, or when Ray is gone; then trials end with it and records stay.
    """
    outcome, stop, storage = Outcome(), threading.Event(), run.resolve() / ".tune"
    # Else a Searcher's actors start one after another.
    os.environ["TUNE_MAX_PENDING_TRIALS_PG"] = str(on.slots)
    names = {one.name for one in trajectories}
    configs = [
        {
            "name": one.name,
            "fork": _waits_for(one, run, names),
            "folder": str(trajectory_folder(run, one.name).resolve()),
            "device": "cuda" if on.gpu else "cpu",
            "num_devices": on.gpu or on.cpu,
            "processes": on.processes,
            "data_dir": os.environ.get(VARIABLE),
            "checkpoint_seconds": checkpoint_seconds,
            "sys_path": import_order.users_paths(),
        }
        for one in trajectories
    ]
    tuner = tune.Tuner(
        tune.with_resources(_train, {"cpu": on.cpu, "gpu": on.gpu}),
        tune_config=tune.TuneConfig(
            search_alg=PlanSearcher(configs),
            num_samples=-1,
            reuse_actors=True,
            trial_dirname_creator=lambda trial: str(trial.trial_id),
            trial_name_creator=lambda trial: str(trial.trial_id),
        ),
        run_config=tune.RunConfig(
            name=f"attempt-{1 + len(list(storage.glob('attempt-*')))}",
            storage_path=str(storage),
            callbacks=[_Callback(run, listener, outcome, stop, trajectories)],
            failure_config=tune.FailureConfig(max_failures=MAX_FAILURES),
            verbose=0,
        ),
    )
    fit = _Fit(tuner)
    fit.start()
    outcome.ended = _wait(fit, on, stop, interrupts, listener)
    # What Tune did not say is in the folder: a kill came before its event.
    for one in trajectories:
        folder = trajectory_folder(run, one.name)
        if one.name in (*outcome.done, *outcome.failed):
            continue
        if (folder / "done").exists():
            compact(run, one.name)
            outcome.done.append(one.name)
        elif outcome.ended is None:
            said = attempts.lasting_error(folder) or _trunk_failed(one, folder) or failures.reason("", folder / "log")
            outcome.failed.append(one.name)
            listener.failed(one.name, f"{said} ({folder / 'log'})")
    forks.free(run, [one for one in trajectories if one.name not in outcome.done])
    shutil.rmtree(storage, ignore_errors=True)
    return outcome


def _waits_for(one: Trajectory, run: Path, names: Set[str]) -> str | None:
    """The state that a branch waits for: one that has begun, or whose trunk is not trained now, waits for none."""
    begun = attempts.attempts_of(trajectory_folder(run, one.name))
    if one.branch is None or one.branch.trunk not in names or begun:
        return None
    return str(forks.path(run.resolve() / "trajectories", one.branch))


def _trunk_failed(one: Trajectory, folder: Path) -> str | None:
    if one.branch is None or attempts.attempts_of(folder):
        return None
    return f"it starts from step {one.branch.step} of {one.branch.trunk}, which has failed before"


def _wait(fit: _Fit, on: Engine, stop: threading.Event, interrupts: Interrupts, listener: RunScreen) -> str | None:
    """Until the experiment has ended, or must be left; what ended it before its time, in words."""
    asked: float | None = None
    while True:
        fit.join(LOOK_SECONDS)
        listener.tick()
        if (died := on.died()) is not None:
            on.abandoned = True
            return died
        if not fit.is_alive():
            break
        if interrupts.count and asked is None:
            asked = time.monotonic()
            stop.set()
        if interrupts.count > 1 or (asked is not None and time.monotonic() - asked > STOP_SECONDS):
            on.abandoned = True
            return f"interrupted by {interrupts.first}, its trials ended at once"
    if asked is not None:
        return f"interrupted by {interrupts.first}"
    if fit.error is not None:
        if on.answers():
            raise fit.error
        on.abandoned = True
        return f"Ray on {on.where} is gone ({first_line(fit.error)})"
    return None
