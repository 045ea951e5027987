"""Who trained a trajectory, where and when, and how that ended: attempt-<n>.json."""

from __future__ import annotations

import json
import os
import platform
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pyarrow as pa
import torch

from analysis.run_folder.run_files import broken, read_json
from analysis.run_folder.schema import TRIALS
from workloads.user_errors import one_line


@dataclass
class Attempt:
    """One attempt at a trajectory, kept as ``attempt-<n>.json``: a row of trials.parquet. tell: what has it written."""

    row: dict[str, Any]
    began: float
    tell: Callable[..., None]

    @classmethod
    def begin(
        cls, number: int, trajectory_id: str, device: str, num_devices: float, tell: Callable[..., None]
    ) -> Attempt:
        row = {
            "trajectory_id": trajectory_id,
            "attempt": number,
            "host": platform.node(),
            "device_name": torch.cuda.get_device_name() if device != "cpu" else _cpu_name(),
            "num_devices": float(num_devices),
            "versions": _versions(),
            "started": _now(),
            "pid": os.getpid(),
        }
        attempt = cls(row, time.monotonic(), tell)
        attempt.say("running")
        return attempt

    @property
    def number(self) -> int:
        return int(self.row["attempt"])

    def say(self, status: str, **more: Any) -> None:
        """Tell how it stands, with what else is told with it."""
        row = {**self.row, "ended": _now(), "seconds": time.monotonic() - self.began, "status": status}
        self.tell(attempt=row, **more)

    def end(self, status: str, error: BaseException | None = None, is_lasting: bool = False) -> None:
        """Say how it ended. is_lasting: another try would end in the same error."""
        self.row |= {} if error is None else {"error": one_line(error), "lasting": is_lasting}
        self.say(status, **({"done": True} if status == "done" else {}))


def attempts_of(folder: Path) -> list[dict[str, Any]]:
    """The attempts at a trajectory, in their order. Raises: analysis.run_folder.records.BadRun."""
    return sorted(map(_read, folder.glob("attempt-[0-9]*.json")), key=lambda row: int(row["attempt"]))


def _read(path: Path) -> dict[str, Any]:
    remedy = "remove it: its records and its checkpoint stay, the time it took is no longer counted"
    row = read_json(path, remedy)
    for name, kind in {"attempt": int, "status": str, "seconds": int | float, "started": str}.items():
        if not isinstance(row.get(name), kind) or isinstance(row[name], bool):
            raise broken(path, f"{name!r} is {row.get(name)!r}", remedy)
    try:
        datetime.fromisoformat(row["started"])
        pa.Table.from_pylist([row], schema=TRIALS)
    except (pa.ArrowException, ValueError, TypeError) as error:
        raise broken(path, str(error).splitlines()[0], remedy) from None
    return row


def lasting_error(folder: Path) -> str | None:
    """The error, in one line, that ended a trajectory's latest attempt and would end another one too."""
    latest = attempts_of(folder)[-1:]
    return next((str(row["error"]) for row in latest if row.get("lasting")), None)


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")


@cache
def _versions() -> str:
    return json.dumps({"torch": str(torch.__version__), "wa-sweeps": version("wa-sweeps")})


@cache
def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "CPU")
