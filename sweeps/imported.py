"""A trace of another's making: the checkpoints of a training that is not ours, read where they lie.

`traces/<name>/checkpoints.json` says which file has which step, with its size and sha256, and under which name each
tensor of the model is there. Losses, learning rates and seconds of that training are unknown: NaN, never 0.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from analysis.run_folder.run_files import broken, read_json
from sweeps.durable import write_atomic
from sweeps.storage import Place
from sweeps.trace import Snapshot, Trace, check_run, traced
from wa.checkpoint_files import BadFile, Checkpoint

INDEX, FORMAT = "checkpoints.json", "wa-checkpoints 1"
REMEDY = "put it back as it was, or import the checkpoints again into a new run folder"


@dataclass(frozen=True)
class File:
    """A file of a checkpoint, as it was imported."""

    path: str
    size: int
    sha256: str

    @classmethod
    def of(cls, path: Path) -> File:
        with open(path, "rb") as file:
            return cls(str(path), path.stat().st_size, hashlib.file_digest(file, "sha256").hexdigest())

    def check(self) -> None:
        """Raises: BadRun where it is gone, or is not what was imported."""
        path = Path(self.path)
        try:
            now = File.of(path) if path.stat().st_size == self.size else None
        except OSError as error:
            raise broken(path, (error.strerror or type(error).__name__).lower(), REMEDY) from None
        if now != self:
            raise broken(path, "it is not the file that was imported: its sha256 is another", REMEDY)


@dataclass(frozen=True)
class ImportedTrace:
    """What `trace.Trace` is to a replay. tensors: the model's name -> the name in the files, and the model's dtype."""

    folder: Path
    workload: tuple[str, str]  # its name and preset
    checkpoints: Mapping[int, str]
    files: Mapping[int, Sequence[File]]
    tensors: Mapping[str, tuple[str, str]]
    _checked: set[int] = field(default_factory=set)

    @classmethod
    def of(cls, folder: Path) -> ImportedTrace:
        """Raises: BadRun where its index is damaged; FileNotFoundError where there is none."""
        told = read_json(folder / INDEX, REMEDY)
        try:
            if told["format"] != FORMAT:
                raise ValueError(f"its format is {told['format']!r}, not {FORMAT!r}")
            files = {int(step): [File(**one) for one in some] for step, some in told["files"].items()}
            checkpoints = {step: str(told["checkpoints"][str(step)]) for step in files}
            tensors = {name: (str(there), str(dtype)) for name, (there, dtype) in told["tensors"].items()}
            return cls(folder, (told["workload"], told["preset"]), checkpoints, files, tensors)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise broken(folder / INDEX, f"no index of checkpoints ({error})", REMEDY) from None

    def write(self, folder: Path) -> None:
        """Put the index on disk."""
        told = {
            "format": FORMAT,
            "workload": self.workload[0],
            "preset": self.workload[1],
            "checkpoints": self.checkpoints,
            "files": {step: [vars(one) for one in some] for step, some in self.files.items()},
            "tensors": self.tensors,
        }
        write_atomic(folder / INDEX, json.dumps(told, indent=1).encode())

    @property
    def where(self) -> str:
        return str(self.folder)

    @property
    def steps(self) -> list[int]:
        return sorted(self.files)

    @property
    def diverged(self) -> bool:
        """Not as far as anybody can know."""
        return False

    @property
    def rounded(self) -> None:
        """Nothing: the files' own dtypes stay."""
        return None

    @property
    def nbytes(self) -> int:
        """Bytes of the checkpoints, which lie elsewhere."""
        return sum(one.size for some in self.files.values() for one in some)

    def read(self, step: int) -> Snapshot:
        """One checkpoint, whose files are checked the first time. Raises: BadRun; KeyError."""
        if step not in self._checked:
            for one in self.files[step]:
                one.check()
            self._checked.add(step)
        path, found = Path(self.checkpoints[step]), dict[str, Tensor]()
        try:
            checkpoint = Checkpoint.open(path)
            for name, (there, dtype) in self.tensors.items():
                if (stored := checkpoint.find(there)) is None:
                    raise broken(path, f"it has no {there!r}", REMEDY)
                found[name] = stored.read().reshape(stored.shape).to(getattr(torch, dtype))
        except BadFile as error:
            raise broken(path, str(error).removeprefix(f"{path}: "), REMEDY) from None
        return Snapshot(found, {}, {}, math.nan)

    def losses(self, step: int, rank: int = 0, size: int = 1) -> Tensor:
        """Unknown: one NaN."""
        return torch.full((1,), math.nan)


AnyTrace = Trace | ImportedTrace


def open_trace(where: Place | Path) -> AnyTrace:
    """The trace in a folder, ours or imported, which are on this machine. Raises: BadRun."""
    place = Place.of(where)
    if not place.is_bucket and (folder := Path(place.path)).joinpath(INDEX).exists():
        return ImportedTrace.of(folder)
    return Trace.of(place)


def traces(run: Path) -> list[AnyTrace]:
    """Those of a run folder. Raises: BadRun, where a part cannot be read too."""
    check_run(run)
    return [open_trace(place) for place in traced(run).values()]


def described(steps: Sequence[int]) -> str:
    """``500, 1,000, 1,500, …, 5,000``."""
    told = [f"{step:,}" for step in steps]
    return ", ".join(told if len(told) <= 5 else [*told[:3], "…", told[-1]])


def name_of(files: Mapping[int, Sequence[File]]) -> str:
    """The name of a trace: a function of the steps and contents of its files alone."""
    told: list[Any] = [[step, [one.sha256 for one in some]] for step, some in sorted(files.items())]
    return f"imported-{hashlib.sha256(json.dumps(told).encode()).hexdigest()[:12]}"
