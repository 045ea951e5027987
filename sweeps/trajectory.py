"""THE loop: train, average, evaluate, record. Knows neither Ray nor W&B.

A trajectory is a function of its cells: rerun, resumed or in company, on a CPU it writes the same records bit for
bit (the `_seconds` columns apart, which are measured).
"""

from __future__ import annotations

import logging
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from sweeps import data_parallel, forks, grace, origins, process, random_streams, retries, rounds, training_state
from sweeps.attempts import Attempt
from sweeps.data_parallel import Team
from sweeps.evaluate import Evaluator
from sweeps.plan import Trajectory, to_dict
from sweeps.replay import Replayer, opened
from sweeps.reporter import Reporter
from sweeps.scribe import Scribe
from sweeps.storage import Place
from sweeps.trace import OWN, TRACES, Keeper, Trace, buffers_of
from sweeps.training import Passes, Trainer
from sweeps.training_state import OfRanks, State
from workloads.protocol import Workload, load, module_name, with_batch_size
from workloads.user_errors import one_line

ASKING_STEPS = 16
_SILENT = logging.Logger("a rank above 0", level=logging.CRITICAL + 1)


def run(
    trajectory: Trajectory,
    folder: Path,
    *,
    report: Callable[[int], None] = lambda _: None,
    **settings: Any,
) -> None:
    """Train one trajectory to its end in this process, or on from its last checkpoint, all in a folder of a run.

    report: told the step after each evaluation. settings: of `run_trial`.
    """
    if (folder / "done").exists():
        return
    with Scribe(folder) as scribe:
        if not (folder / "done").exists():  # by whoever held the lock until now
            traces = Place.of(folder.parent.parent / TRACES)
            reporter = Reporter(scribe.take, scribe.begun())
            run_trial(trajectory, reporter, Place.of(folder), traces, report=report, **settings)


@dataclass(frozen=True)
class Given:
    """What each rank of a trial needs beside the trajectory; plain values, which travel to other processes.

    home, traces, replayed: URIs, as of `run_trial`. checkpoint, fork: local files.
    """

    home: str
    traces: str
    replayed: str
    checkpoint: str | None = None
    fork: str | None = None


@contextmanager
def _given(trajectory: Trajectory, reporter: Reporter, home: Place, traces: Place, replayed: Place) -> Iterator[Given]:
    """The files to go on from are brought to this machine where they lie elsewhere."""
    checkpoint = home / reporter.checkpoint if reporter.checkpoint else None
    fork = None if trajectory.branch is None else forks.place(home.parent, trajectory.branch)
    with ExitStack() as held:
        here = [
            str(held.enter_context(file.local())) if file is not None and file.exists() else None
            for file in (checkpoint, fork)
        ]
        if checkpoint is not None and here[0] is None:
            reporter.log.warning("%s is gone; training from the start", checkpoint)
        yield Given(home.uri, traces.uri, replayed.uri, *here)


def run_trial(
    trajectory: Trajectory,
    reporter: Reporter,
    home: Place,
    traces: Place,
    *,
    replayed: Place | None = None,
    device: str = "cpu",
    num_devices: float = 1.0,
    processes: int = 1,
    checkpoint_seconds: float = 10.0,
    planned_code: str | None = None,
    report: Callable[[int], None] = lambda _: None,
) -> None:
    """Train one trajectory to its end, telling `reporter`.

    home: of its checkpoints; that of its trunk is beside it. traces: of what is kept. replayed: of the trace that is
    replayed, by default there too.
    device: "cpu" or "cuda". num_devices: how many the trial holds; on a CPU this many threads compute.
    processes: data-parallel ranks, one a GPU; this process is rank 0 and starts the others.
    checkpoint_seconds: least time between checkpoints, which take at most a twentieth of the time; 0 writes one after
    every evaluation, and none between.
    planned_code: `origins.digest` of the workload that was planned; another one here is an error.
    SIGTERM ends it once the step is done and a checkpoint is written.

    The process is left as it was found: its settings, environment, logging and random streams.
    """
    log = reporter.log
    with grace.noticed() as asked:
        attempt = Attempt.begin(reporter.attempt, trajectory.trajectory_id, device, num_devices, reporter.tell)
        leader = _Leader(
            *(home, reporter, attempt, checkpoint_seconds, report, planned_code, asked),
            last=reporter.checkpoint,
        )
        try:
            with _given(trajectory, reporter, home, traces, replayed or traces) as given:
                task = {"trajectory": to_dict(trajectory), "given": asdict(given), "num_devices": num_devices}
                with process.kept(), data_parallel.lead(processes, device, log, task) as team:
                    train(trajectory, given, team, device, num_devices, leader)
        except BaseException as error:
            if reporter.sending:  # nobody hears it
                raise
            lasting = not leader.reporting and retries.is_lasting(error)
            log.exception("ended early")
            log.error("%s", one_line(error))  # last, so that the log's last line says what it was
            attempt.end("failed" if lasting or isinstance(error, Exception) else "interrupted", error, lasting)
            raise
        attempt.end("done")
        for file in (*home.files("checkpoint-*"), *(home / OWN).files()):
            file.remove()


@dataclass
class _Leader:
    """What rank 0 alone has and does: records, checkpoints, the log. last: the checkpoint that the pointer names."""

    home: Place
    reporter: Reporter
    attempt: Attempt
    checkpoint_seconds: float
    report: Callable[[int], None]
    planned_code: str | None
    asked: threading.Event  # to end
    last: str | None
    reporting: bool = False  # what is raised while it is so is whoever listens, not the workload
    saved: float = field(default_factory=lambda: time.monotonic())
    saving_seconds: float = 0.0

    def wants_checkpoint(self, between: bool = False) -> bool:
        """Whether one is due, at an evaluation or between two."""
        if self.asked.is_set():
            return True
        if between and not self.checkpoint_seconds:
            return False
        # A long ring makes a checkpoint dear: it may take a twentieth of the time, no more.
        pause = max(self.checkpoint_seconds, 19 * self.saving_seconds) if self.checkpoint_seconds else 0.0
        return time.monotonic() >= self.saved + pause

    def checkpoint(self, state: State, gathered: OfRanks) -> None:
        """Put it into the storage; then the pointer to it goes beside the records, and then the one before goes."""
        began = time.monotonic()
        file = f"checkpoint-{self.attempt.number}-{state.step}"
        try:
            training_state.save(state, self.home / file, gathered)
        except OSError as error:
            if not self.home.is_bucket:
                raise
            self.reporter.log.warning("no checkpoint at step %d, training goes on: %s", state.step, one_line(error))
        else:
            self.attempt.say("running", checkpoint={"path": file, "step": state.step})
            if self.last not in (None, file):
                (self.home / str(self.last)).remove()
            self.last = file
        self.saved = time.monotonic()
        self.saving_seconds = self.saved - began
        self.heed()

    def leave(self, trunk: Trajectory, state: State, gathered: OfRanks) -> None:
        """Put the state into the storage from which branches start; then the pointer to it."""
        file = forks.leave(trunk, self.home, state, gathered, self.reporter)
        self.reporter.tell(fork={"path": file.name, "step": state.step})

    def heed(self) -> None:
        """Raises: grace.Terminated where the trial was asked to end, once all it needs to go on is on disk."""
        if self.asked.is_set():
            raise grace.Terminated(grace.SAID)

    def tell(self, step: int) -> None:
        self.reporting = True
        self.report(step)
        self.reporting = False


def train(
    trajectory: Trajectory, given: Given, team: Team, device: str, num_devices: float, leader: _Leader | None = None
) -> None:
    """One rank's part; a rank above 0, which has no leader's things, writes nothing."""
    training = trajectory.cells[0].training

    def made() -> Workload:
        return with_batch_size(load(training.workload, training.preset), training.batch_size)

    workload = process.imported(module_name(training.workload), made)
    if leader:
        origins.check_here(trajectory, leader.planned_code)
    process.begin(training.seed, device, num_devices / team.size, training.precision, training.deterministic)
    # The records say it themselves: a run whose weights are not finite has diverged.
    warnings.filterwarnings("ignore", "a snapshot was not finite", RuntimeWarning)
    log, reporter = (leader.reporter.log, leader.reporter) if leader else (_SILENT, None)
    state = training_state.fresh(trajectory, workload, device, team)
    traces, fresh, keeper = Place.of(given.traces), buffers_of(state.model), None
    kept, trace_steps = trajectory.keep_every_steps, trajectory.trace_steps
    own = Place.of(given.home) / OWN if kept is None else traces / trajectory.name
    if leader and trajectory.branch is not None and kept is not None:
        forks.take_trace(trajectory, traces)
    if trace_steps:
        keeper = Keeper(own if leader else None, trace_steps.__contains__, fresh, trajectory.keep_dtype)
    last_step = reporter.last_step if reporter else 0
    is_on = training_state.restore(state, given.checkpoint, team, last_step, log)
    if trajectory.branch is not None and not is_on:
        forks.start(trajectory, given.fork, state, team, reporter, log)
    if keeper and trajectory.bracketed and any(step <= state.step for step in trace_steps - keeper.there):
        log.warning("the trace before step %d is not whole; training from the start", state.step)
        random_streams.seed_all(training.seed)
        state = training_state.fresh(trajectory, workload, device, team)
    passes = Passes(trajectory, workload, state.model, team, device)
    trainer: Trainer | Replayer
    if trajectory.replays is None:
        trainer = Trainer(passes, state, keeper)
    else:
        trainer = Replayer(passes, state, opened(trajectory, Place.of(given.replayed)), fresh)
    evaluator = Evaluator(trajectory, passes, state, reporter)

    def due(step: int) -> bool:
        """Whether branches part or a checkpoint is due; ranks ask each other now and then, since that takes time."""
        if step in trajectory.forks:
            return True
        if team.size > 1 and step % ASKING_STEPS:
            return False
        return team.decide([leader is not None and leader.wants_checkpoint(between=True)])[0]

    while state.step < trajectory.length_steps:
        trained = trainer.train(until=evaluator.next_step(state.step), pause=due)
        if trained is not None:
            # Before the rows, which take it along.
            log.info("step %d training loss %.6g", state.step, trained.last_loss)
            if trained.diverged:
                log.warning("diverged: the trajectory ends here")
            evaluator.evaluate(trained)
            if trained.diverged:
                if keeper:
                    keeper.flush()
                break
        ended, parting = state.step == trajectory.length_steps, state.step in trajectory.forks
        is_due = bool(trajectory.bracketed) if ended else leader and leader.wants_checkpoint(between=trained is None)
        (save,) = team.decide([leader is not None and bool(is_due)])
        gathered = training_state.of_ranks(state, team) if save or parting else {}
        if leader:
            if keeper and (save or ended or parting):
                keeper.flush()  # a checkpoint comes after what it has kept
            if parting:  # before a checkpoint from which this step is past
                leader.leave(trajectory, state, gathered)
            if save:
                leader.checkpoint(state, gathered)
            if trained is not None:
                leader.tell(state.step)
    if leader and trajectory.bracketed:
        trace = trainer.trace if isinstance(trainer, Replayer) else Trace.of(own)
        rounds.close(evaluator, trace, fresh, leader.heed, leader.tell)
