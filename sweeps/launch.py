"""The plan as a Ray Tune experiment. The only file that imports ray.tune.

Ray Tune is the engine, our records are the truth: a custom Searcher hands out the plan, longest trajectory first;
trials write their own records and checkpoints into the run folder; resuming is planning again what is not done,
as a new experiment, and never `Tuner.restore` (docs/architecture.md says why).
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any, Protocol

# Read when ray is imported: our own progress and records stand in for what these switch off.
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")
os.environ.setdefault("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "1")
os.environ.setdefault("TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S", "0")
os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")

import ray
from ray import tune
from ray.job_config import JobConfig
from ray.tune.search import Searcher

from analysis.run_files import BadRun
from sweeps import import_order
from sweeps.attempts import lasting_error
from sweeps.plan import Trajectory
from sweeps.run_folder import compact, trajectory_folder
from workloads.data import VARIABLE

PREFIX = "wa-ray-"  # of Ray's temporary folder, then the driver's pid
MAX_FAILURES = 3  # retries of one trajectory within one `wa run`: a worker or node may die
KNOCK_SECONDS = 10.0
OBJECT_STORE_BYTES = 100 << 20  # records go through the file system; Ray's store stays small


class NoRoom(ValueError):
    """The machine or cluster cannot hold a single trial, or does not answer."""


class Listener(Protocol):
    """What hears of trials: the progress display."""

    def started(self, name: str) -> None: ...
    def progressed(self, name: str, step: int, best: float | None) -> None: ...
    def done(self, name: str) -> None: ...
    def failed(self, name: str) -> None: ...


@dataclass(frozen=True)
class Outcome:
    """What became of the trajectories: done, failed for good, and the rest (interrupted)."""

    done: list[str]
    failed: list[str]


def _train(config: dict[str, Any]) -> None:
    """The trainable: one trajectory, in a worker process that is used again for the next."""
    import json

    import_order.search_too(config["sys_path"])  # a user's workload, by dotted path
    from sweeps import attempts, plan, trajectory

    if config["data_dir"] is not None:
        os.environ[VARIABLE] = config["data_dir"]
    folder = Path(config["folder"])
    planned = json.loads((folder / "trajectory.json").read_text(encoding="utf-8"))

    def report(progress: trajectory.Progress) -> None:
        tune.report({"name": config["name"], "step": progress.step, "best": progress.best})

    try:
        trajectory.run(
            plan.from_dict(planned),
            folder,
            device=config["device"],
            num_devices=config["num_devices"],
            processes=config["processes"],
            checkpoint_seconds=config["checkpoint_seconds"],
            planned_code=planned.get("code"),
            report=report,
        )
    except (Exception, SystemExit):
        # Raised, Tune would try it again; what would fail again ends here, and the driver reads why in the folder.
        if attempts.lasting_error(folder) is None:
            raise
        tune.report(
            {"name": config["name"]}
        )  # Tune prints a line of its own for a trial that reported nothing


class PlanSearcher(Searcher):  # type: ignore[misc]
    """Hands out the plan in its order; plain data only, since Tune pickles it."""

    def __init__(self, configs: list[dict[str, Any]]) -> None:
        super().__init__()
        self.waiting = configs

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:
        return self.waiting.pop(0) if self.waiting else Searcher.FINISHED

    def on_trial_complete(
        self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
    ) -> None:
        pass

    def save(self, checkpoint_path: str) -> None:
        pass  # the run folder is the state

    def restore(self, checkpoint_path: str) -> None:
        pass


class _Callback(tune.Callback):  # type: ignore[misc]
    """Tune's events -> the listener; a finished trajectory's records are compacted at once."""

    def __init__(self, run: Path, listener: Listener, outcome: Outcome) -> None:
        self.run, self.listener, self.outcome = run, listener, outcome

    def __reduce__(self) -> tuple[type[tune.Callback], tuple[()]]:
        return tune.Callback, ()  # Tune pickles its callbacks for `restore`, which we do not use

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self.listener.started(trial.config["name"])

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        if "step" in result:
            self.listener.progressed(trial.config["name"], result["step"], result["best"])

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        name = trial.config["name"]
        if (trajectory_folder(self.run, name) / "done").exists():
            try:
                compact(self.run, name)
            except (OSError, BadRun):  # a full disk, say; `launch` tries it again at the end, and tells
                return
            self.outcome.done.append(name)
            self.listener.done(name)
        elif lasting_error(trajectory_folder(self.run, name)) is not None:
            self.outcome.failed.append(name)
            self.listener.failed(name)

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        # Called at every failure; the trial is lost for good only when no retry is left.
        if trial.num_failures > MAX_FAILURES:
            self.outcome.failed.append(trial.config["name"])
            self.listener.failed(trial.config["name"])


@dataclass(frozen=True)
class Engine:
    """A Ray to run on and how many trials fit at once."""

    slots: int
    cpu: float
    gpu: float
    processes: int = 1


class _OwnSearchPath(JobConfig):  # type: ignore[misc]
    """Workers search what an installation of theirs searches.

    Ray would put the driver's current folder and its script's before everything else there, Python's own modules
    and Ray's included. `_train` appends the user's folders instead.
    """

    def _serialize(self) -> Any:
        self._py_driver_sys_path: list[str] = []
        return super()._serialize()


@contextmanager
def engine(cpu: float, gpu: float, processes: int = 1, address: str | None = None) -> Iterator[Engine]:
    """Start a local Ray, or join the one at `address`; shut down what was started.

    Raises: NoRoom when not even one trial fits, or nothing answers at `address`.
    """
    temporary = None
    quiet = {"log_to_driver": False, "logging_level": "ERROR", "configure_logging": True}
    if address is None:
        _remove_abandoned()
        # /tmp/ray is never cleaned, ours is.
        temporary = Path(tempfile.mkdtemp(prefix=f"{PREFIX}{os.getpid()}-"))
        ray.init(
            job_config=_OwnSearchPath(),
            address="local",  # whatever RAY_ADDRESS says: without --address it is this machine
            include_dashboard=False,
            object_store_memory=OBJECT_STORE_BYTES,
            _temp_dir=str(temporary),
            **quiet,
        )
    else:
        try:
            _knock(address)
            own = (
                None if address.startswith("ray://") else _OwnSearchPath()
            )  # a client's folder does not travel
            ray.init(address=address, job_config=own, **quiet)
        except (OSError, RuntimeError, ValueError) as error:
            hint = "is it up, and do RAY_AUTH_MODE and the token match its own?"
            raise NoRoom(
                f"--address: no Ray answers at {address} ({error}); {hint} (docs/cluster.md)"
            ) from None
    try:
        slots = sum(_slots(node["Resources"], cpu, gpu) for node in ray.nodes() if node["Alive"])
        if slots == 0:
            have = ray.cluster_resources()
            raise NoRoom(
                f"a trial needs {cpu:g} CPU and {gpu:g} GPU; "
                f"the largest node here is part of {have.get('CPU', 0):g} CPU and {have.get('GPU', 0):g} GPU"
            )
        yield Engine(slots, cpu, gpu, processes)
    finally:
        ray.shutdown()
        if temporary is not None:
            shutil.rmtree(temporary, ignore_errors=True)


def _knock(address: str) -> None:
    """Fail within seconds where no one listens; ray.init would try for minutes. Raises: OSError."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if host and port.isdigit():
        socket.create_connection((host, int(port)), timeout=KNOCK_SECONDS).close()


def _remove_abandoned() -> None:
    """Remove the temporary folders of drivers that were killed."""
    for folder in Path(tempfile.gettempdir()).glob(f"{PREFIX}*-*"):
        pid = folder.name.removeprefix(PREFIX).partition("-")[0]
        if pid.isdigit() and not Path("/proc", pid).exists() and Path("/proc").exists():
            shutil.rmtree(folder, ignore_errors=True)


def _slots(resources: dict[str, float], cpu: float, gpu: float) -> int:
    by_cpu = int(resources.get("CPU", 0) / cpu + 1e-9)
    if not gpu:
        return by_cpu
    gpus = int(resources.get("GPU", 0))
    return min(
        by_cpu, gpus // int(gpu) if gpu >= 1 else gpus * int(1 / gpu + 1e-9)
    )  # a fraction spans no two GPUs


def launch(
    on: Engine,
    run: Path,
    trajectories: Sequence[Trajectory],
    listener: Listener,
    checkpoint_seconds: float = 10.0,
) -> Outcome:
    """Train the trajectories, in their order, into the run folder. Returns when all ended or on an interrupt."""
    outcome = Outcome([], [])
    if not trajectories:
        return outcome
    # Else a Searcher's actors start one after another.
    os.environ["TUNE_MAX_PENDING_TRIALS_PG"] = str(on.slots)
    num_devices = on.gpu or on.cpu
    configs = [
        {
            "name": one.name,
            "folder": str(trajectory_folder(run, one.name).resolve()),
            "device": "cuda" if on.gpu else "cpu",
            "num_devices": num_devices,
            "processes": on.processes,
            "data_dir": os.environ.get(VARIABLE),
            "checkpoint_seconds": checkpoint_seconds,
            "sys_path": import_order.users_paths(),
        }
        for one in trajectories
    ]
    storage = run.resolve() / ".tune"
    attempt = 1 + len(list(storage.glob("attempt-*")))
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
            name=f"attempt-{attempt}",
            storage_path=str(storage),
            callbacks=[_Callback(run, listener, outcome)],
            failure_config=tune.FailureConfig(max_failures=MAX_FAILURES),
            verbose=0,
        ),
    )
    with _terminated_like_interrupted():
        tuner.fit()
    for one in trajectories:  # a kill between the done marker and Tune's event
        if one.name not in outcome.done and (trajectory_folder(run, one.name) / "done").exists():
            compact(run, one.name)
            outcome.done.append(one.name)
            listener.done(one.name)
    shutil.rmtree(storage, ignore_errors=True)
    return outcome


@contextmanager
def _terminated_like_interrupted() -> Iterator[None]:
    """SIGTERM takes SIGINT's path, on which Tune stops its trials in order."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def interrupt(number: int, frame: FrameType | None) -> None:
        os.kill(os.getpid(), signal.SIGINT)

    before: Callable[[int, FrameType | None], Any] | int | None = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
