"""W&B as a projection of the records: one run a cell, published by a process of its own. The only file with wandb.

Training never waits for W&B and never fails with it. What is published is decided by the records and a cursor a
cell, so publishing can be killed, repeated or done long after.
"""

from __future__ import annotations

import json
import math
import os
import re
import select
import subprocess
import sys
from collections.abc import Mapping
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import IO, Any

import pandas as pd

from analysis.finished import finished
from analysis.records import BESIDE, load_cells, load_plan, load_records
from analysis.run_files import BadRun, read_json
from analysis.steps_to_target import curves, first_crossing, running_best
from sweeps.durable import wait_for_lock, write_atomic

POLL_SECONDS = 2.0
INIT_SECONDS = 15.0  # then offline, said once
MOST_REFUSALS = 3  # runs in a row that the server would not take; then all go offline
FINISH_SECONDS = 15.0  # what the driver grants the publisher at the end of a run
BEST, STEPS, MET = "best/metric", "target/steps", "target/met"  # a finished run's summary: see `outcome`


def start(run: Path, mode: str, project: str, entity: str | None) -> subprocess.Popen[bytes] | None:
    """Start the publisher beside the driver; None when W&B is disabled."""
    if mode == "disabled":
        return None
    command = [sys.executable, "-P", "-m", "sweeps.tracking", str(run), mode, project, entity or ""]
    with ExitStack() as stack:
        log: IO[bytes] | int = subprocess.DEVNULL
        with suppress(OSError):  # a full disk costs W&B alone
            log = stack.enter_context(open(run / "wandb.log", "ab"))
        return subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=log,
            stderr=log,
            start_new_session=True,
            env=_environment(run, mode),
        )


def finish(publisher: subprocess.Popen[bytes] | None, seconds: float = FINISH_SECONDS) -> bool:
    """Tell the publisher that the records are complete and wait a little; whether it published all of them.

    A slow one goes on by itself; what it does not publish, the next `wa run` on the folder does.
    """
    if publisher is None:
        return True
    assert publisher.stdin is not None
    publisher.stdin.close()
    try:
        return publisher.wait(seconds) == 0
    except subprocess.TimeoutExpired:
        return False


def _environment(run: Path, mode: str) -> dict[str, str]:
    # Where this process uses W&B itself, its service would be the publisher's too, and keep ids in use after a kill.
    inherited = {name: value for name, value in os.environ.items() if name != "WANDB_SERVICE"}
    return {
        **inherited,
        "WANDB_DIR": str(run.resolve()),
        "WANDB_MODE": mode,
        "WANDB_SILENT": "true",
        "WANDB_ERROR_REPORTING": "false",
        "WANDB_CONSOLE": "off",
    }


class _Refused(Exception):
    """The server answers, and does not take this run."""


# What it says of one run, where a key or a connection would fail for all: deleted, gone, not valid.
_REFUSAL = re.compile(r"previously created and deleted|HTTP (400|404|409|410|422)\b")


class Publisher:
    """Publishes what the records hold beyond each cell's cursor.

    A cell that a later study of the folder takes over after it was published is told to W&B anew, with the tags and
    config of all its studies; online only, since an offline run is written once.
    """

    def __init__(self, run: Path, mode: str, project: str, entity: str | None) -> None:
        self.run, self.mode, self.project, self.entity = run, mode, project, entity
        self.folder_id = load_plan(run).get("id")
        self.cursor_file = run / "wandb" / "cursors.json"
        self.delivered: dict[str, int] = _kept(self.cursor_file, int)
        self.studies_file = run / "wandb" / "studies.json"
        # The studies that W&B knows of each finished cell.
        self.told: dict[str, list[str]] = _kept(self.studies_file, list)
        # By cell, the last step logged; ahead of `delivered` while the cell trains.
        self.cursors = dict(self.delivered)
        self.open: dict[str, Any] = {}  # cell -> live W&B run, when online
        self.refused: set[str] = set()  # cells whose runs the server does not take: offline, these alone
        self.num_refusals = 0  # in a row
        self.published: set[str] | None = None  # the cells that were finished at the last whole pass

    def publish(self) -> None:
        """One pass. Online, runs of cells that still train stay open; offline, whole cells only.

        (An offline run that a kill cuts short holds nothing, so it is written in one go once its cell is done.)
        """
        finished = self._finished()  # before the records: what is done now has all of its rows in them
        if self.mode == "offline" and finished == self.published:
            return  # nothing to say, so nothing to read beside those who train
        cells = load_cells(self.run).set_index("cell_id", drop=False)
        records = load_records(self.run)
        records = records[records["split"] == "validation"]  # which the curves are of
        for cell_id, rows in records.groupby("cell_id", sort=True):
            cell_id = str(cell_id)
            done = cell_id in finished
            if cell_id not in cells.index or (self._is_offline(cell_id) and not done):
                continue
            cell = _row(cells.loc[cell_id].to_dict())
            if rows["step"].max() > self.cursors.get(cell_id, -1) or (done and cell_id in self.open):
                self._publish_cell(cell, rows, done)
            elif done and self.mode == "online" and self._is_taken_over(cell):
                with suppress(_Refused):
                    self._begin(cell).finish()
                self._remember(cell)
        self.published = finished

    def _is_offline(self, cell_id: str) -> bool:
        return self.mode == "offline" or cell_id in self.refused

    def _finished(self) -> set[str]:
        folder = self.run / "trajectories"
        trajectories = load_plan(self.run)["trajectories"]
        return {
            cell
            for one in trajectories
            if "name" in one and finished(folder / one["name"]) is not None
            for cell in one["cells"]
        }

    def _is_taken_over(self, cell: Mapping[str, Any]) -> bool:
        told = self.told.get(str(cell["cell_id"]), [cell["study"]])  # of an earlier version: who asked first
        return told != list(cell["studies"])

    def _remember(self, cell: Mapping[str, Any]) -> None:
        self.told[str(cell["cell_id"])] = list(cell["studies"])
        write_atomic(self.studies_file, json.dumps(self.told).encode())

    def _publish_cell(self, cell: Mapping[str, Any], rows: pd.DataFrame, done: bool) -> None:
        """Log what lies beyond the cursor of `rows`, all records of the cell."""
        cell_id = str(cell["cell_id"])
        try:
            wandb_run = self.open.pop(cell_id, None) or self._begin(cell)
        except _Refused:
            if not done:
                return
            wandb_run = self._begin(cell)  # offline
        for row in rows[rows["step"] > self.cursors.get(cell_id, -1)].to_dict("records"):
            wandb_run.log(_point(cell, _row(row)), step=int(row["step"]))
        self.cursors[cell_id] = max([self.cursors.get(cell_id, -1), *rows["step"].tolist()])
        if not done:
            self.open[cell_id] = wandb_run
            return
        wandb_run.summary.update(outcome(cell, rows))
        wandb_run.finish()  # returns when all is delivered (or on disk, offline): only then the cursor is kept
        self._remember(cell)
        self.delivered[cell_id] = self.cursors[cell_id]
        write_atomic(self.cursor_file, json.dumps(self.delivered).encode())

    def run_id(self, cell_id: str) -> str:
        """The run of a cell: of this folder, which a copy of it is too, and of no other that has the cell.

        One that the server does not take, since it was deleted there, is another run from then on.
        """
        name = cell_id if self.folder_id is None else f"{self.folder_id[:8]}-{cell_id}"
        return f"{name}-again" if cell_id in self.refused else name

    def _begin(self, cell: Mapping[str, Any]) -> Any:
        import wandb

        settings = wandb.Settings(
            x_disable_stats=True,
            x_disable_meta=True,
            console="off",
            disable_git=True,
            save_code=False,
            init_timeout=INIT_SECONDS,
            silent=True,
        )
        arguments: dict[str, Any] = {
            "project": self.project,
            "entity": self.entity,
            "id": self.run_id(str(cell["cell_id"])),
            "name": run_name(cell),
            "group": cell["study"],
            "job_type": cell["scheme"],
            "tags": [tag(name) for name in (cell["workload"], cell["trajectory_id"], *cell["studies"])],
            "config": _config(cell),
            "dir": str(self.run),
            "reinit": "create_new",
            "settings": settings,
        }
        online = not self._is_offline(str(cell["cell_id"]))
        try:
            begun = wandb.init(mode="online" if online else "offline", resume="allow" if online else None, **arguments)
            self.num_refusals = 0
        except Exception as error:
            if not online:
                raise
            said = (redacted(error).splitlines() or [""])[0][:500]
            if _REFUSAL.search(said) and self.num_refusals < MOST_REFUSALS:
                _say(f"W&B refuses the run of cell {cell['cell_id']}, so it alone is written offline: {said}")
                self.refused.add(str(cell["cell_id"]))
                self.num_refusals += 1
                raise _Refused from None
            _say(
                f"W&B is out of reach ({type(error).__name__}: {said}); publishing offline from here on",
            )
            self.mode = "offline"
            wandb.teardown()  # or the id counts as in use by the run that did not begin
            self.open.clear()
            self.cursors = dict(self.delivered)  # what was only logged may be lost: say it again, offline
            begun = wandb.init(mode="offline", **arguments)
        begun.define_metric("step")
        best = "max" if cell["higher_is_better"] else "min"
        begun.define_metric("validation/loss", step_metric="step", summary="min")
        begun.define_metric(f"validation/{cell['metric_name']}", step_metric="step", summary=best)
        begun.define_metric("seconds/*", step_metric="step", summary="last")
        return begun


def tag(name: object) -> str:
    """A name as W&B takes it as a tag."""
    return str(name)[:64]


def default_entity() -> str | None:
    """Whose project it is when the study names no entity: that of the key's owner, asked of the server."""
    import wandb

    entity: str | None = wandb.Api().default_entity
    return entity


def has_project(entity: str | None, project: str) -> bool:
    """Whether the server has the project that runs of a folder are published to."""
    import wandb

    return any(one.name == project for one in wandb.Api().projects(entity))


def outcome(cell: Mapping[str, Any], rows: pd.DataFrame) -> dict[str, Any]:
    """The summary of a finished run: the best metric; whether it met the target, and the steps that took.

    Steps are those of `steps_to_target`: by interpolation where met, and the step budget, a lower bound, where missed.
    """
    steps, metric = curves(rows.sort_values("step"))[str(cell["cell_id"])]
    higher, target = bool(cell["higher_is_better"]), cell["target"]
    best = running_best(metric, higher)[-1]
    found: dict[str, Any] = {} if math.isnan(best) else {BEST: float(best)}
    if target is None or pd.isna(target):
        return found
    met = first_crossing(steps, metric, float(target), higher)
    is_met = not math.isnan(met.point)
    return found | {MET: is_met, STEPS: met.point if is_met else float(cell["step_budget"])}


def run_name(cell: Mapping[str, Any]) -> str:
    """A W&B run's name: workload, scheme with its horizon, schedule length, seed."""
    horizon = cell["horizon_fraction"]
    reach = "" if horizon is None or pd.isna(horizon) else f" {100 * horizon:.3g}%"
    return f"{cell['workload']} {cell['scheme']}{reach} length {cell['length_fraction']:g} seed {cell['seed']}"


def _config(cell: Mapping[str, Any]) -> dict[str, Any]:
    config = {key: value for key, value in cell.items() if key != "studies"}
    return {
        "studies": list(cell["studies"]),
        **{key: None if value is None or pd.isna(value) else _plain(value) for key, value in config.items()},
    }


def _row(row: Mapping[Any, Any]) -> dict[str, Any]:
    return {str(key): value for key, value in row.items()}


def _plain(value: Any) -> Any:
    return value.item() if hasattr(value, "item") else value


def _point(cell: Mapping[str, Any], row: Mapping[str, Any]) -> dict[str, Any]:
    values = {
        "step": int(row["step"]),
        "validation/loss": row["loss"],
        f"validation/{cell['metric_name']}": row["metric"],
        "seconds/train": row["train_seconds"],
        "seconds/average": row["average_seconds"],
        "seconds/eval": row["eval_seconds"],
        "diverged": bool(row["diverged"]),
        **{f"validation/{name.removeprefix(BESIDE)}": value for name, value in row.items() if name.startswith(BESIDE)},
    }
    return {key: value for key, value in values.items() if not (isinstance(value, float) and math.isnan(value))}


def main(arguments: list[str]) -> int:
    """`python -m sweeps.tracking RUN MODE PROJECT ENTITY`: publish until standard input closes, then once more."""
    run, mode, project, entity = arguments
    publisher = None
    try:
        (Path(run) / "wandb").mkdir(exist_ok=True)
        lock = wait_for_lock(Path(run) / "wandb" / ".lock")  # one publisher a folder, after the other
    except OSError as error:
        _say(f"nothing is published: {error}")
        return 1
    while True:
        # Ready to read means closed: nothing is ever written there.
        complete = bool(select.select([sys.stdin], [], [], POLL_SECONDS)[0])
        try:
            publisher = publisher or Publisher(Path(run), mode, project, entity or None)
            publisher.publish()
        except Exception as error:
            _say(f"publishing failed, trying again: {type(error).__name__}: {redacted(error)}")
            if complete:
                return 1
        if complete:
            os.close(lock)
            return 0


def _kept(path: Path, kind: type) -> dict[str, Any]:
    """What an earlier publisher knew; where that is damaged, all is told again, which W&B takes once."""
    try:
        return {name: value for name, value in read_json(path).items() if isinstance(value, kind)}
    except FileNotFoundError:
        return {}
    except BadRun as error:
        _say(f"{error}; publishing from the start")
        return {}


def _say(line: str) -> None:
    with suppress(OSError):  # the log may lie on a full disk
        print(line, flush=True)


def redacted(error: Exception) -> str:
    """What an error says, without the key."""
    key = os.environ.get("WANDB_API_KEY")
    return str(error).replace(key, "***") if key else str(error)


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
