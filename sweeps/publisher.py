"""W&B as a projection of the run folder: a run a cell and one a report. The only file with wandb, a process of its own.

Training never waits for it and never fails with it. What is published is decided by the records, the report's tables
and a note of what W&B has been told, so publishing can be killed, repeated or done long after.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
import select
import shutil
import sys
import threading
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pandas as pd

from analysis.run_folder.live_records import finished
from analysis.run_folder.records import BESIDE, load_cells, load_plan, load_records
from analysis.run_folder.run_files import WANDB_LINKS, BadRun, read_json, wandb_links
from analysis.statistics.steps_to_target import curves, first_crossing, running_best
from cluster.secrets import redacted
from sweeps.durable import make_folder, wait_for_lock, write_atomic

POLL_SECONDS = 2.0
INIT_SECONDS = 15.0  # then offline, said once
LAST_SECONDS = 900.0  # for what is left at the end: where W&B has gone for good, the process does not stay for ever
MOST_REFUSALS = 3  # runs in a row that the server would not take; then all go offline
BEST, STEPS, MET = "best/metric", "target/steps", "target/met"  # a finished run's summary: see `outcome`
RATIO, VERDICT = "steps_ratio", "verdict"  # and once there is a report: see `conclusions`
LOGGED = {  # by key, the column of a record
    "validation/loss": "loss",
    "train/loss": "train_loss",
    "train/lr": "step_lr",
    "train/examples_per_second": "examples_per_second",
    **{f"seconds/{name}": f"{name}_seconds" for name in ("train", "average", "eval")},
}
TOLD = Path("wandb") / "told.json"  # by run, what W&B has of it
# What the server says of one run, where a key or a connection would fail for all: deleted, gone, not valid.
_REFUSAL = re.compile(r"previously created and deleted|HTTP (400|404|409|410|422)\b")


class Publisher:
    """Publishes what the folder holds beyond what W&B has been told.

    Online, the run of a cell stays open while its cell trains, and what is new later (another study that has the cell,
    a report's conclusions) is added to it. An offline run that a kill cuts short holds nothing, so one is written in
    one go once its cell is done, and written anew where there is more to tell.
    """

    def __init__(self, run: Path, mode: str, project: str, entity: str | None) -> None:
        self.run, self.mode, self.project, self.entity = run, mode, project, entity
        self.folder_id = load_plan(run).get("id")
        self.told = _kept(run / TOLD)  # by run: the last step, the studies and the conclusions of a done cell, …
        # By cell, the last step logged; ahead of `told` while the cell trains.
        self.cursors: dict[str, int] = self._delivered()
        self.open: dict[str, Any] = {}  # cell -> live W&B run, when online
        self.refused: set[str] = set()  # what the server does not take: offline, these alone
        self.num_refusals = 0  # in a row
        self.published: set[str] | None = None  # the cells that were finished at the last whole pass

    def _delivered(self) -> dict[str, int]:
        return {name: told["step"] for name, told in self.told.items() if isinstance(told.get("step"), int)}

    def publish(self, is_last: bool = False) -> None:
        """One pass; the last one, when all of the folder is written, publishes its report too."""
        plan = load_plan(self.run)
        # Before the records: what is done now has all of its rows in them.
        over = [one for one in plan["trajectories"] if finished(self.run / "trajectories" / one["name"]) is not None]
        done = {cell for one in over for cell in one["cells"]}
        done -= {
            cell for one in plan["trajectories"] if one not in over for cell in one["cells"]
        }  # there is more to come
        if self._is_offline() and done == self.published and not is_last:
            return  # nothing to say, so nothing to read beside those who train
        questions = {str(study["study"]): study.get("question") for study in plan["studies"]}
        concluded = conclusions(self.run, list(questions)) if is_last else None
        cells = load_cells(self.run).set_index("cell_id", drop=False)
        records = load_records(self.run)
        records = records[records["split"] == "validation"]  # which the curves are of
        for name, rows in records.groupby("cell_id", sort=True):
            cell_id = str(name)
            if cell_id in cells.index and (cell_id in done or not self._is_offline(cell_id)):
                cell = cells.loc[cell_id].to_dict()
                last, told = int(rows["step"].max()), self.told.get(cell_id, {})
                said = told.get("said", {}) if concluded is None else concluded.get(cell_id, {})
                news = {"step": last, "rows": len(rows), "studies": list(cell["studies"]), "said": said}
                if (news != told) if cell_id in done else (last > self.cursors.get(cell_id, -1)):
                    self._publish_cell(cell, rows, questions.get(cell["study"]), news, cell_id in done)
        for study, question in questions.items() if is_last else ():
            self._publish_report(study, question, report_folder(self.run, study, len(questions)))
        self.published = done

    def _is_offline(self, key: str = "") -> bool:
        return self.mode == "offline" or key in self.refused

    def _publish_cell(
        self, cell: Mapping[Any, Any], rows: pd.DataFrame, question: str | None, news: dict[str, Any], done: bool
    ) -> None:
        """Log what lies beyond the cursor of `rows`, all records of the cell; of a run written anew, all."""
        cell_id = str(cell["cell_id"])
        tags = [tag(name) for name in (cell["workload"], cell["trajectory_id"], *cell["studies"])]
        told = {"name": run_name(cell), "group": cell["study"], "job_type": cell["scheme"], "notes": question}
        begun = self.open.pop(cell_id, None)
        if begun is None:
            begun = self._begin(cell_id, done, **told, tags=tags, config=_config(cell))
            if begun is None:
                return
            begun.define_metric("step")
            best = "max" if cell["higher_is_better"] else "min"
            hows = {"validation/loss": "min", "train/loss": "min", f"validation/{cell['metric_name']}": best}
            for key, how in (dict.fromkeys(("train/*", "seconds/*")) | hows).items():  # of others the last
                begun.define_metric(key, step_metric="step", summary=how)
        for row in rows[rows["step"] > self.cursors.get(cell_id, -1)].to_dict("records"):
            begun.log(_point(cell, row), step=int(row["step"]))
        self.cursors[cell_id] = news["step"]
        if not done:
            self.open[cell_id] = begun
            return
        begun.summary.update(outcome(cell, rows) | news["said"])
        self._finish(begun, cell_id, news)

    def _publish_report(self, study: str, question: str | None, folder: Path) -> None:
        """report.html and the tables, as an artifact of a run of their own in the study's group."""
        names = sorted(path.relative_to(folder) for path in folder.glob("tables/[!.]*") if path.is_file())
        if not (folder / "report.html").is_file():
            return
        files = {str(name): (folder / name).read_bytes() for name in (Path("report.html"), *names)}
        news = {"sha256": hashlib.sha256(repr(sorted(files.items())).encode()).hexdigest()}
        key = f"report-{hashlib.sha256(study.encode()).hexdigest()[:8]}"
        if self.told.get(key) == news:
            return
        copy = self.run / "wandb" / key  # which stays as it is for `wandb sync`
        shutil.rmtree(copy, ignore_errors=True)
        make_folder(copy / "tables")
        for name, data in files.items():
            (copy / name).write_bytes(data)
        begun = self._begin(key, True, name=f"report {study}", group=study, job_type="report", notes=question)
        import wandb

        artifact = wandb.Artifact(re.sub(r"[^\w.-]", "-", f"{study[:100]}-{self.run_id(key)}"), type="report")
        artifact.add_dir(str(copy), policy="immutable", skip_cache=True)
        begun.log_artifact(artifact)
        self._finish(begun, key, news)

    def _finish(self, begun: Any, key: str, news: dict[str, Any]) -> None:
        begun.finish()  # returns when all is delivered (or on disk, offline): only then it counts as told
        self.told[key] = news
        write_atomic(self.run / TOLD, json.dumps(self.told).encode())

    def run_id(self, key: str) -> str:
        """The run of a cell or a report: of this folder, which a copy of it is too, and of no other that has the cell.

        One that the server does not take, since it was deleted there, is another run from then on.
        """
        name = key if self.folder_id is None else f"{self.folder_id[:8]}-{key}"
        return f"{name}-again" if key in self.refused else name

    def _begin(self, key: str, done: bool, **told: Any) -> Any:
        """A run on W&B or, where it does not answer or not take it, on disk; there None of one that is not done."""
        import wandb

        quiet = dict.fromkeys(("x_disable_stats", "x_disable_meta", "disable_git", "silent"), True)
        settings = wandb.Settings(**quiet, console="off", save_code=False, init_timeout=INIT_SECONDS)
        told |= {"project": self.project, "entity": self.entity, "dir": str(self.run), "settings": settings}
        if not self._is_offline(key):
            try:
                begun = wandb.init(mode="online", resume="allow", id=self.run_id(key), reinit="create_new", **told)
            except Exception as error:
                self._leave(key, error)
            else:
                self.num_refusals = 0
                self._keep_link(told["group"], begun)
                self._remove_offline(key)
                return begun
        if not done:
            return None
        self.cursors.pop(key, None)  # whole
        self._remove_offline(key)
        return wandb.init(mode="offline", id=self.run_id(key), reinit="create_new", **told)

    def _remove_offline(self, key: str) -> None:
        """What was written of a run for `wandb sync` is told again, whole."""
        for before in (self.run / "wandb").glob(f"offline-run-*-{self.run_id(key)}"):
            self.cursors.pop(key, None)
            shutil.rmtree(before)

    def _leave(self, key: str, error: Exception) -> None:
        """Go offline, with this run or, where the server does not answer, with all."""
        import wandb

        said = (redacted(str(error)).splitlines() or [""])[0][:500]
        if _REFUSAL.search(said) and self.num_refusals < MOST_REFUSALS:
            _say(f"W&B refuses the run of {key}, so it alone is written offline: {said}")
            self.refused.add(key)
            self.num_refusals += 1
            return
        _say(f"W&B is out of reach ({type(error).__name__}: {said}); publishing offline from here on")
        self.mode = "offline"
        wandb.teardown()  # or the id counts as in use by the run that did not begin
        self.open.clear()
        self.cursors = self._delivered()  # what was only logged may be lost: say it again, offline

    def _keep_link(self, study: str, begun: Any) -> None:
        place = "/".join(quote(str(name), safe="") for name in (begun.entity, begun.project, "groups", study))
        links = wandb_links(self.run)
        if links.get(study) != (link := f"{begun.settings.app_url}/{place}"):
            write_atomic(self.run / WANDB_LINKS, json.dumps(links | {study: link}).encode())


def report_folder(run: Path, study: str, num_studies: int) -> Path:
    """Where a study's report lies: of a folder that holds one study alone, at its top."""
    return run if num_studies == 1 else run / "reports" / study


def conclusions(run: Path, studies: list[str]) -> dict[str, dict[str, Any]]:
    """cell -> its ratio to the non-averaged baseline of the same training and seed, and the verdict on its setting.

    As the tables of the report say it; what they do not have is left out. Of a cell of several studies, by the first.
    """
    found: dict[str, dict[str, Any]] = {}
    for study in reversed(studies):
        tables = report_folder(run, study, len(studies)) / "tables"
        settings, ratios = (_table(tables / f"{name}.csv") for name in ("settings", "ratios_by_seed"))
        verdicts = {row["setting"]: row[VERDICT] for row in settings if isinstance(row.get(VERDICT), str)}
        for row in ratios:
            if row.get("versus", "same schedule") == "same schedule":
                ends = {f"steps_{name}": row.get(name) for name in ("ratio", "ratio_low", "ratio_high")}
                said = {key: end for key, end in ends.items() if isinstance(end, float) and math.isfinite(end)}
                said |= {"steps_ratio_bound": row["bound"]} if isinstance(row.get("bound"), str) else {}
                said |= {VERDICT: verdicts[row["setting"]]} if row.get("setting") in verdicts else {}
                found[row["cell_id"]] = said
    return found


def _table(path: Path) -> list[dict[Any, Any]]:
    try:
        return pd.read_csv(path, dtype={"cell_id": str}).to_dict("records")
    except (FileNotFoundError, pd.errors.EmptyDataError):
        return []


def tag(name: object) -> str:
    """A name as W&B takes it as a tag."""
    return str(name)[:64]


def home(entity: str | None, project: str) -> tuple[str | None, bool]:
    """Whose project it is, by default the key's owner's, and whether the server has it."""
    import wandb

    api = wandb.Api()
    entity = entity or api.default_entity
    return entity, any(one.name == project for one in api.projects(entity))


def outcome(cell: Mapping[Any, Any], rows: pd.DataFrame) -> dict[str, Any]:
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


def run_name(cell: Mapping[Any, Any]) -> str:
    """A W&B run's name: workload, scheme with its horizon, schedule length, seed."""
    horizon = cell["horizon_fraction"]
    reach = "" if horizon is None or pd.isna(horizon) else f" {100 * horizon:.3g}%"
    return f"{cell['workload']} {cell['scheme']}{reach} length {cell['length_fraction']:g} seed {cell['seed']}"


def _config(cell: Mapping[Any, Any]) -> dict[str, Any]:
    known: dict[str, Any] = {key: None if pd.isna(value) else value for key, value in cell.items() if key != "studies"}
    plain = {key: value.item() if hasattr(value, "item") else value for key, value in known.items()}
    return {"studies": list(cell["studies"]), **plain}


def _point(cell: Mapping[Any, Any], row: Mapping[Any, Any]) -> dict[str, Any]:
    values = {key: row[column] for key, column in LOGGED.items()}
    values |= {f"validation/{name.removeprefix(BESIDE)}": row[name] for name in row if name.startswith(BESIDE)}
    values[f"validation/{cell['metric_name']}"] = row["metric"]
    known = {key: value for key, value in values.items() if not math.isnan(value)}
    return {"step": int(row["step"]), "diverged": bool(row["diverged"]), **known}


def main(arguments: list[str]) -> int:
    """`python -m sweeps.publisher RUN MODE PROJECT ENTITY`: publish until standard input closes, then once more."""
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
        is_last = bool(select.select([sys.stdin], [], [], POLL_SECONDS)[0])
        if is_last:
            _end_after(LAST_SECONDS)
        try:
            publisher = publisher or Publisher(Path(run), mode, project, entity or None)
            publisher.publish(is_last)
        except Exception as error:
            _say(f"publishing failed, trying again: {type(error).__name__}: {redacted(str(error))}")
            if is_last:
                return 1
        if is_last:
            os.close(lock)
            return 0


def _end_after(seconds: float) -> None:
    """End this process then, whatever it waits for; what it has not published, the next one on the folder does."""

    def end() -> None:
        _say(f"W&B took not all of it in {seconds:g} s; `wa report` or `wa run` on the folder tries again")
        os._exit(1)

    timer = threading.Timer(seconds, end)
    timer.daemon = True
    timer.start()


def _kept(path: Path) -> dict[str, dict[str, Any]]:
    """What an earlier publisher told; where that is damaged, all is told again, which W&B takes once."""
    try:
        return {name: value for name, value in read_json(path).items() if isinstance(value, dict)}
    except FileNotFoundError:
        return {}
    except BadRun as error:
        _say(f"{error}; publishing from the start")
        return {}


def _say(line: str) -> None:
    with suppress(OSError):  # the log may lie on a full disk
        print(line, flush=True)


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
