"""The plan as a Ray Tune experiment. The only file that imports ray.tune.

Ray Tune is the engine, our records are the truth: a custom Searcher hands out the plan, longest trajectory first;
what trials report is written into the run folder here; resuming is planning again what is not done, as a new
experiment, and never `Tuner.restore` (docs/architecture.md says why).
"""

from __future__ import annotations

import os
import shutil
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

# First, since it sets what Ray reads when it is imported.
from sweeps.engine import Engine

# isort: split
from ray import tune
from ray.air._internal import usage
from ray.tune.execution import class_cache
from ray.tune.search import Searcher

from cluster import crash_dumps, secrets
from cluster.errors import first_line
from sweeps import failures, import_order
from sweeps.desk import Desk, Outcome
from sweeps.interrupts import Interrupts
from sweeps.plan import Trajectory
from sweeps.resources import ResourcesBlock
from sweeps.wording import duration
from workloads.data import VARIABLE

if TYPE_CHECKING:
    from sweeps.screen import RunScreen

STOP_SECONDS = 45.0  # granted to trials that were asked to end; what they recorded is on disk before
LOOK_SECONDS = 0.2
PATIENCE = 3600.0
# Tune would hand the driver's AWS keys to its actors, and Ray log them in clear on every node; nodes have their own.
class_cache.ENV_VARS_TO_PROPAGATE.difference_update(
    [one for one in class_cache.ENV_VARS_TO_PROPAGATE if one.startswith("AWS_")]
)
# To count callbacks for its makers Tune would import W&B, whose temporary folders outlive a killed driver.
usage.tag_callbacks = lambda callbacks: False


def _train(config: dict[str, Any]) -> None:
    """The trainable: one trajectory, in a worker process that is used again for the next."""
    import json

    given = dict(config)
    config.clear()  # Tune would send it back to the driver with every report
    import_order.search_too(given["sys_path"])  # a user's workload, by dotted path
    from sweeps import plan, trajectory
    from sweeps.reporter import Begun, Reporter
    from sweeps.storage import Place

    if given["data_dir"] is not None:
        os.environ[VARIABLE] = given["data_dir"]
    planned = json.loads(given["planned"])
    stopped = False  # by Tune, which ends a trial that reports by SystemExit

    def send(told: str) -> None:
        """Returns when the driver has written it down."""
        nonlocal stopped
        try:
            tune.report({"name": given["name"], "told": told})
        except SystemExit:
            stopped = True
            raise

    reporter = Reporter(send, Begun(**given["begun"]))
    with crash_dumps.kept() as process:
        reporter.tell(process=process)
        try:
            trajectory.run_trial(
                plan.from_dict(planned),
                reporter,
                Place.of(given["home"]),
                Place.of(given["traces"]),
                replayed=Place.of(given["replayed"]),
                planned_code=planned.get("code"),
                **given["settings"],
            )
        except (Exception, SystemExit, KeyboardInterrupt) as error:
            if stopped:
                raise
            # Tune would tell of it as of a failure to be tried again; the driver has been told that it is none.
            if reporter.has_failed:
                return
            if isinstance(error, Exception):
                if (told := secrets.harmless(error)) is not error:  # Ray logs it
                    raise told from None
                raise
            # Tune would take an exit with code 0 for a trial that is done
            raise RuntimeError(f"the workload's code raised {repr(error).removesuffix('()')}") from error


class PlanSearcher(Searcher):  # type: ignore[misc]
    """Hands out what waits on the desk, and says that all is over when nothing waits and nothing runs."""

    def __init__(self, desk: Desk, on: Engine) -> None:
        super().__init__()
        self.desk, self.on = desk, on

    def __reduce__(self) -> tuple[type[Searcher], tuple[()]]:
        return Searcher, ()  # Tune pickles it for `restore`, which we do not use

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:
        config = self.desk.next()
        if config is None:
            return str(Searcher.FINISHED) if self.desk.is_over else None  # None: Tune asks again
        held = self.on.needs[config["name"]]
        return config | {"holds": {"CPU": held.cpu, "GPU": held.gpu}}

    def on_trial_complete(self, trial_id: str, *_: Any, **__: Any) -> None: ...

    # The run folder is the state.
    def save(self, checkpoint_path: str) -> None: ...
    def restore(self, checkpoint_path: str) -> None: ...


class _Stopped(Exception):
    """Ends Tune's loop, on the path where it stops its trials."""


class _Callback(tune.Callback):  # type: ignore[misc]
    """Tune's events -> the desk."""

    def __init__(self, desk: Desk, stop: threading.Event) -> None:
        self.desk, self.stop = desk, stop
        self.memory_kills = failures.memory_kills()

    def __reduce__(self) -> tuple[type[tune.Callback], tuple[()]]:
        return tune.Callback, ()  # Tune pickles its callbacks for `restore`, which we do not use

    def on_step_begin(self, iteration: int, trials: list[Any], **info: Any) -> None:
        if self.stop.is_set() or self.desk.error is not None:
            raise _Stopped

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        """The trial waits until this returns."""
        if "told" in result:
            self.desk.heard(trial.config["name"], result["told"])

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self.desk.ended(trial.config["name"])
        _forget(trial)

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        name = trial.config["name"]
        said = Path(trial.error_file).read_text(encoding="utf-8", errors="replace") if trial.error_file else ""
        held = self.desk.trials.get(name)
        is_there = failures.died_without_a_word(said) and not failures.lost_its_node(said)
        if held is not None and held.process is not None and is_there:  # who is not would hold up all trials
            self.desk.note(name, crash_dumps.fetched(held.process))
        kills, self.memory_kills = self.memory_kills, failures.memory_kills()
        self.desk.failed(name, lambda log: failures.reason(said, log, self.memory_kills > kills))
        _forget(trial)


def _forget(trial: Any) -> None:
    """Tune holds every trial of a run to its end; what it was told is long, and is there several times."""
    name = trial.config["name"]
    trial.config.clear()
    trial.config["name"] = trial.experiment_tag = name
    trial.evaluated_params = {}
    trial.run_metadata.last_result.pop("told", None)
    trial.run_metadata.metric_analysis.clear()  # mean, least and last of each of Tune's own numbers: most of it
    trial.run_metadata.metric_n_steps.clear()


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
    patience: float = PATIENCE,
) -> Outcome:
    """Train the trajectories, in their order, into the run folder. patience: with a trial that says nothing, seconds.

    Returns when all ended, on an interrupt, or when Ray is gone; then trials end with it and records stay.
    """
    stop, storage = threading.Event(), run.resolve() / ".tune"
    # Else a Searcher's actors start one after another.
    os.environ["TUNE_MAX_PENDING_TRIALS_PG"] = str(on.pending)
    settings = {name: {**_held(trial), "checkpoint_seconds": checkpoint_seconds} for name, trial in on.needs.items()}
    desk = Desk(run, trajectories, listener, settings)
    tuner = tune.Tuner(
        tune.with_resources(_train, _placement),
        tune_config=tune.TuneConfig(
            search_alg=PlanSearcher(desk, on),
            num_samples=-1,
            reuse_actors=True,
            trial_dirname_creator=lambda trial: str(trial.trial_id),
            trial_name_creator=lambda trial: str(trial.trial_id),
        ),
        run_config=tune.RunConfig(
            name=f"attempt-{1 + len(list(storage.glob('attempt-*')))}",
            storage_path=str(storage),
            callbacks=[_Callback(desk, stop)],
            failure_config=tune.FailureConfig(max_failures=0),
            verbose=0,
        ),
    )
    fit = _Fit(tuner)
    fit.start()
    try:
        desk.outcome.ended = _wait(fit, on, stop, interrupts, listener, lambda: _end_silent(desk, patience))
    finally:
        desk.close()
    if desk.error is not None:
        raise desk.error
    for one in desk.waiting if desk.outcome.ended is None else ():
        desk.give_up(one.name, "it was never begun")
    if not desk.outcome.failed and desk.outcome.ended is None:  # else what Ray Tune has written tells more
        shutil.rmtree(storage, ignore_errors=True)
    return desk.outcome


def _end_silent(desk: Desk, patience: float) -> None:
    """A trial that hangs is ended, to be tried again; its log says where its threads stood."""
    for name, seconds in desk.silent(patience):
        trial = desk.trials.get(name)
        if trial is not None and trial.process is not None:
            process, trial.process = trial.process, None  # once
            stood = crash_dumps.stopped(process) or "nobody could say: its node does not answer\n"
            desk.note(name, f"where it stood:\n{stood}{failures.SILENT} for {duration(seconds)}, so it was ended\n")


def _held(trial: ResourcesBlock) -> dict[str, Any]:
    """The settings of a trial that say what it holds."""
    devices, kind = trial.devices
    return {"device": "cuda" if kind == "gpu" else "cpu", "num_devices": devices, "processes": trial.num_processes}


def _placement(config: dict[str, Any]) -> tune.PlacementGroupFactory:
    return tune.PlacementGroupFactory([config["holds"]])


def _wait(
    fit: _Fit,
    on: Engine,
    stop: threading.Event,
    interrupts: Interrupts,
    listener: RunScreen,
    look: Callable[[], None] = lambda: None,
) -> str | None:
    """Until the experiment has ended, or must be left; what ended it before its time, in words."""
    asked: float | None = None
    while True:
        fit.join(LOOK_SECONDS)
        listener.tick()
        look()
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
