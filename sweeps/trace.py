"""The trace: a trajectory's weights and buffers on a grid of steps, kept, so that later questions train nothing.

A part is a safetensors file of whole snapshots, `traces/<trajectory>/<first step>-<last step>.safetensors`, written
atomically. Of snapshot s it holds `s/<name>` for every parameter (tied ones once) and for every buffer that is not
what a fresh model has, `s/~z/<name>`, what else the weights to evaluate are made of, `s/~losses`, (ranks, steps), each
rank's share of the training losses since the last snapshot, and `s/~stream/<name>`, (ranks, …), the random streams. Its
metadata has the sha256 of the file as it is with zeros in its place and, of rounded tensors, their dtype.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor, nn

from analysis.run_folder.run_files import BadRun, broken, load_plan_if_any
from sweeps import durable
from sweeps.storage import Place

PART_BYTES = 64 << 20  # a part is written when its snapshots reach so many, and before a checkpoint
NO_SUM = "0" * 64
FORMAT = "wa-trace 1"
TRACES = "traces"  # of all trajectories, in the storage
PARTS = "[0-9]*.safetensors"
OWN = "trace"  # in a trajectory's folder: the trace that it needs itself, until it is done
LOSSES, STREAM, Z = "~losses", "~stream/", "~z/"
ROUNDED = {"bf16": torch.bfloat16}
REMEDY = "restore it, or free the trace with `wa traces RUN --drop` and train again"


@dataclass(frozen=True)
class Snapshot:
    """One step of a trace: parameters and buffers, Schedule-Free's z, random streams, and the training's clock."""

    tensors: Mapping[str, Tensor]
    z: Mapping[str, Tensor]
    streams: Mapping[str, Tensor]
    train_seconds: float


def buffers_of(model: nn.Module) -> dict[str, Tensor]:
    """Copies of a model's buffers, on the CPU, by name."""
    return {name: buffer.detach().to("cpu", copy=True) for name, buffer in model.named_buffers()}


class Keeper:
    """Writes the trace of a training that goes on; what an earlier attempt wrote of it stays, being the same."""

    def __init__(
        self,
        folder: Place | Path | None,
        wants: Callable[[int], bool],
        fresh: Mapping[str, Tensor],
        dtype: str | None = None,
    ) -> None:
        """folder: None for a rank above 0, which takes part and writes nothing.

        wants: whether to keep a step, beside those of evaluations. fresh: `buffers_of` the model before its first step.
        dtype: of ROUNDED, for wider numbers; None: all exactly.
        """
        self.folder = None if folder is None else Place.of(folder)
        self.wants, self.fresh, self.dtype = wants, fresh, dtype
        self.before: dict[str, str] = {}  # the dtypes of what was rounded
        self.there = set() if folder is None else set(Trace.of(folder, mending=True).steps)
        self.waiting: dict[str, Tensor] = {}
        self.steps: dict[int, float] = {}
        self.size = 0  # bytes that wait

    @torch.no_grad()
    def keep(
        self,
        step: int,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        losses: Tensor,
        streams: Mapping[str, Tensor],
        train_seconds: float,
    ) -> None:
        """Copy the state at `step`; on disk at the next `flush`. losses, streams: a row a rank."""
        if self.folder is None or step in self.there:
            return
        parameters = dict(model.named_parameters())
        tensors: dict[str, Tensor] = {name: p.detach().to("cpu", copy=True) for name, p in parameters.items()}
        buffers = buffers_of(model)
        tensors |= {n: now for n, now in buffers.items() if n not in self.fresh or not _same(now, self.fresh[n])}
        if hasattr(optimizer, "eval"):  # it evaluates other weights than it trains, and makes them of both
            found = {name: optimizer.state.get(p, {}).get("z") for name, p in parameters.items()}
            tensors |= {f"{Z}{name}": z.to("cpu", copy=True) for name, z in found.items() if z is not None}
        tensors = {name: self._rounded(name, tensor) for name, tensor in tensors.items()}
        tensors |= {LOSSES: losses.cpu()} | {f"{STREAM}{name}": value for name, value in streams.items()}
        self.waiting |= {f"{step}/{name}": tensor.contiguous() for name, tensor in tensors.items()}
        self.there.add(step)
        self.steps[step] = train_seconds
        self.size += sum(tensor.nbytes for tensor in tensors.values())
        if self.size >= PART_BYTES:
            self.flush()

    def _rounded(self, name: str, tensor: Tensor) -> Tensor:
        if (
            self.dtype is None
            or not tensor.is_floating_point()
            or tensor.element_size() <= ROUNDED[self.dtype].itemsize
        ):
            return tensor
        self.before[name] = str(tensor.dtype).removeprefix("torch.")
        return tensor.to(ROUNDED[self.dtype])

    def flush(self) -> None:
        """Put what was kept on disk."""
        if self.folder is None or not self.waiting:
            return
        told = {"format": FORMAT, "steps": json.dumps(self.steps), "sha256": NO_SUM}
        told |= {} if self.dtype is None else {"dtype": self.dtype, "before": json.dumps(self.before)}
        data = save(self.waiting, told)
        data = data.replace(NO_SUM.encode(), hashlib.sha256(data).hexdigest().encode(), 1)
        (self.folder / f"{min(self.steps):09d}-{max(self.steps):09d}.safetensors").write(data)
        self.waiting, self.steps, self.size = {}, {}, 0


@dataclass(frozen=True)
class Trace:
    """A trace on disk. parts: step -> the file that has it; seconds: step -> `train_seconds` of the training there.

    rounded: what its weights are rounded to, if they are.
    """

    folder: Place
    parts: Mapping[int, Place]
    seconds: Mapping[int, float]
    rounded: str | None = None
    _open: dict[str, tuple[Any, dict[str, list[str]]]] = field(default_factory=dict)  # a part, its keys by step

    @classmethod
    def of(cls, where: Place | Path, mending: bool = False) -> Trace:
        """The trace in a folder. mending: remove parts that are broken, which the training writes again.

        Raises: BadRun where a part cannot be read.
        """
        parts: dict[int, Place] = {}
        seconds: dict[int, float] = {}
        rounded = None
        folder = Place.of(where)
        for part in folder.files(PARTS):
            try:
                told = _checked(part) if mending else _metadata(part)
            except BadRun:
                if not mending:
                    raise
                part.remove()
                continue
            steps = json.loads(told["steps"])
            parts |= dict.fromkeys(map(int, steps), part)
            seconds |= {int(step): float(at) for step, at in steps.items()}
            rounded = told.get("dtype", rounded)
        return cls(folder, parts, seconds, rounded)

    @property
    def where(self) -> str:
        return str(self.folder)

    @property
    def steps(self) -> list[int]:
        return sorted(self.parts)

    @property
    def diverged(self) -> bool:
        """Whether the training left the finite numbers at its last step."""
        return bool(self.parts) and not torch.isfinite(self.losses(max(self.parts))[-1])

    @property
    def nbytes(self) -> int:
        return sum(part.size() or 0 for part in {part.uri: part for part in self.parts.values()}.values())

    def read(self, step: int) -> Snapshot:
        """One snapshot, mapped from its file. Raises: BadRun where its part is not what was written; KeyError."""
        file, keys = self._part(step)
        found = {key.partition("/")[2]: file.get_tensor(key) for key in keys[str(step)]}
        for name, dtype in json.loads(file.metadata().get("before", "{}")).items():
            found |= {name: found[name].to(getattr(torch, dtype))} if name in found else {}
        z, streams = (
            {key.removeprefix(one): found.pop(key) for key in list(found) if key.startswith(one)} for one in (Z, STREAM)
        )
        del found[LOSSES]
        return Snapshot(found, z, streams, self.seconds[step])

    def losses(self, step: int, rank: int = 0, size: int = 1) -> Tensor:
        """One rank's share of the losses of the steps since the last snapshot, (steps,).

        Where as many ranks trained, what that rank had; else rank 0 has all.
        """
        found: Tensor = self._part(step)[0].get_tensor(f"{step}/{LOSSES}")
        if len(found) == size:
            return found[rank]
        return found.sum(0) if rank == 0 else torch.zeros_like(found[0])

    def _part(self, step: int) -> tuple[Any, dict[str, list[str]]]:
        part = self.parts[step]
        if part.uri not in self._open:
            _checked(part)
            with part.local() as path:  # mapped, it stays when its name goes
                file, keys = safe_open(path, framework="pt"), dict[str, list[str]]()
            for key in file.keys():  # type: ignore[no-untyped-call]  # noqa: SIM118  (it is no dict)
                keys.setdefault(key.partition("/")[0], []).append(key)
            self._open.clear()  # one part at a time
            self._open[part.uri] = file, keys
        return self._open[part.uri]


def _metadata(part: Place) -> dict[str, str]:
    """What a part says of itself, at its start: format, steps, sha256. Raises: BadRun where it is not whole."""
    try:
        size = int.from_bytes(part.read_start(8), "little")
        header = json.loads(part.read_start(8 + size)[8:])
        told: dict[str, str] = header.pop("__metadata__", {})
        end = 8 + size + max((one["data_offsets"][1] for one in header.values()), default=0)
    except (ValueError, TypeError, KeyError, OverflowError, MemoryError) as error:
        raise broken(str(part), f"no safetensors file ({error})", REMEDY) from None
    except OSError as error:
        raise broken(str(part), str(error).splitlines()[0], REMEDY) from None
    if told.get("format") != FORMAT:
        raise broken(str(part), f"its format is {told.get('format')!r}, not {FORMAT!r}", REMEDY)
    if end != (there := part.size()):
        raise broken(str(part), f"it has {there or 0:,} bytes, not the {end:,} that its header tells of", REMEDY)
    return told


def _checked(part: Place) -> dict[str, str]:
    """The same, of bytes that are those that were written. Raises: BadRun."""
    told = _metadata(part)
    plain = part.read().replace(told["sha256"].encode(), NO_SUM.encode(), 1)
    if hashlib.sha256(plain).hexdigest() != told["sha256"]:
        raise broken(str(part), "its sha256 does not match", REMEDY)
    return told


def _same(one: Tensor, other: Tensor) -> bool:
    alike = one.shape == other.shape and one.dtype == other.dtype
    return alike and bool(((one == other) | ((one != one) & (other != other))).all())


def drop(run: Path) -> int:
    """Free the traces of a run folder; the bytes they had. Raises: BadRun; SpecError while a run is at work there.

    Checkpoints that were imported lie elsewhere and stay.
    """
    check_run(run)
    with durable.locked(run):
        parts = [part for folder in (storage_of(run) / TRACES).folders() for part in folder.files(PARTS)]
        freed = sum(part.size() or 0 for part in parts)
        for part in parts:
            part.remove()
        shutil.rmtree(run / TRACES, ignore_errors=True)
    return freed


def storage_of(run: Path) -> Place:
    """Where the checkpoints and traces of a run folder lie: with it, if its plan does not say. Raises: BadRun."""
    return Place.of((load_plan_if_any(run) or {}).get("storage") or run)


def traced(run: Path) -> dict[str, Place]:
    """The traces that a run has, by name: imported ones in its folder, its own in its storage. Raises: BadRun."""
    homes = {home.uri: home / TRACES for home in (Place.of(run), storage_of(run))}
    return {folder.name: folder for home in homes.values() for folder in home.folders()}


def check_run(run: Path) -> None:
    """Raises: BadRun where neither a run nor an imported trace is."""
    if not (run / "plan.json").exists() and not (run / TRACES).is_dir():
        raise BadRun(f"{run}: not a run folder; there is no plan.json")
