"""Writes what a trial tells into the run folder: rows first, then what builds on them. The driver's side of a trial."""

from __future__ import annotations

import json
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from analysis.run_folder.live_records import DONE, LiveRows, again
from analysis.run_folder.run_files import broken, read_bytes, read_json
from sweeps import durable
from sweeps.attempts import attempts_of
from sweeps.recorder import LOCK_SECONDS, Recorder
from sweeps.reporter import Begun

CHECKPOINT = "checkpoint.json"  # the pointer to a trajectory's latest checkpoint: where it lies, and its step


def fork_pointer(folder: Path, step: int) -> Path:
    """In a trunk's folder, what says where the state lies from which its branches start at a step."""
    return folder / f"fork-{step}.json"


def pointed(pointer: Path) -> str | None:
    """The file that a pointer names, in its trajectory's place in the storage; None without one. Raises: BadRun."""
    try:
        told = read_json(pointer, again(pointer.parent))
    except FileNotFoundError:
        return None
    if not isinstance(told.get("path"), str):
        raise broken(pointer, f"'path' is {told.get('path')!r}", again(pointer.parent))
    return str(told["path"])


def has_pointers(run: Path) -> bool:
    """Whether anything of a run lies in its storage that is still needed, traces apart."""
    return any(run.glob(f"trajectories/*/{CHECKPOINT}")) or any(run.glob("trajectories/*/fork-*.json"))


class Scribe(AbstractContextManager["Scribe"]):
    """One trajectory's folder, held while its trial runs. Raises: recorder.FolderBusy; BadRun where it is damaged."""

    def __init__(self, folder: Path, lock_seconds: float = LOCK_SECONDS) -> None:
        durable.make_folder(folder)
        self.folder = folder
        self.recorder = Recorder(folder / "records.jsonl", lock_seconds)

    def begun(self) -> Begun:
        """What the next trial is to know."""
        number = max((int(row["attempt"]) for row in attempts_of(self.folder)), default=-1) + 1
        live = LiveRows(self.folder / "records.jsonl")
        live.feed(read_bytes(live.path))
        return Begun(number, pointed(self.folder / CHECKPOINT), Begun.pack(live.rows))

    def take(self, told: str) -> dict[str, Any]:
        """Write a message down, and return its parts; on disk when this returns. Raises: OSError.

        rows: of an evaluation. log: text. attempt: a row of trials.parquet, as it stands. checkpoint, fork: a file and
        its step, which the trial has put into the storage. done: no more will come.
        """
        message: dict[str, Any] = json.loads(told)
        if "log" in message:
            with open(self.folder / "log", "a", encoding="utf-8") as log:
                log.write(message["log"])
        self.recorder.append(message.get("rows", ()))
        if "attempt" in message:
            self._write(f"attempt-{message['attempt']['attempt']}.json", message["attempt"])
        if "fork" in message:
            self._write(fork_pointer(self.folder, message["fork"]["step"]).name, message["fork"])
        if "checkpoint" in message:
            self._write(CHECKPOINT, message["checkpoint"])
        if message.get("done"):
            self.recorder.finish()
        return message

    @property
    def is_done(self) -> bool:
        return (self.folder / DONE).exists()

    @property
    def checkpoint_step(self) -> int:
        """That of the latest checkpoint, 0 without one."""
        try:
            return int(read_json(self.folder / CHECKPOINT, again(self.folder))["step"])
        except FileNotFoundError:
            return 0

    def leave(self) -> bool:
        """Let go of the folder; an attempt that did not say how it ended was interrupted. Whether all is done."""
        self.recorder.close()
        for row in attempts_of(self.folder)[-1:]:
            if row["status"] == "running":
                self._write(f"attempt-{row['attempt']}.json", {**row, "status": "interrupted"})
        return self.is_done

    def _write(self, name: str, content: dict[str, Any]) -> None:
        durable.write_atomic(self.folder / name, json.dumps(content).encode())

    def __exit__(self, *_: object) -> None:
        self.recorder.close()
