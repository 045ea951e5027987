"""What a cell is: a point of the grid in steps, with an id that is a function of its fields."""

from __future__ import annotations

import hashlib
import inspect
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, is_dataclass
from functools import cached_property
from typing import Any, cast

from sweeps.schedules import POWER, Schedule
from wa import Recursive, Scheme, Windowed
from wa.schemes import SCHEMES
from workloads.dotted import UnknownWorkload, import_dotted


@dataclass(frozen=True)
class Training:
    """What decides the trained weights: all of a cell but its averaging."""

    workload: str
    preset: str
    seed: int
    step_budget: int  # T; horizons are shares of it
    optimizer: str
    settings: tuple[tuple[str, float], ...]  # the optimizer's, sorted by name
    grad_clip: float | None
    schedule: Schedule
    precision: str = "fp32"  # fp32 | tf32: of all products | bf16: of the forward pass, by autocast
    compile: str | None = None  # torch.compile's backend
    accumulate: int = 1  # micro-batches a step
    batch_size: int | None = None  # examples a step; None: the workload's own
    deterministic: bool = True  # the same bits each time
    weights: str | None = None  # the imported trace that they come from; None: they are trained

    @cached_property
    def trajectory_id(self) -> str:
        """12 hex digits, a function of the fields alone; a field with a default counts where it differs."""
        told = {one.name: value for one in fields(self) if (value := getattr(self, one.name)) != one.default}
        schedule = asdict(self.schedule)
        if schedule["power"] == POWER:
            del schedule["power"]
        return _digest(told | {"schedule": schedule})


@dataclass(frozen=True)
class Cell:
    """One point of the grid."""

    training: Training
    scheme: Scheme | None  # None: the live weights
    evaluate_every_steps: int
    metric_name: str
    higher_is_better: bool
    evaluate_test: bool = False  # on the test split too, at the end of training
    keep_every_steps: int | None = None  # of a trace that is kept of its training
    keep_dtype: str | None = None  # to which its weights are rounded
    averages: str = "all"  # all | paired | bracket: how much of the grid is evaluated; no part of what a cell is

    @property
    def trajectory_id(self) -> str:
        return self.training.trajectory_id

    @cached_property
    def cell_id(self) -> str:
        """12 hex digits: training and averaging. The evaluation grid is no part of what a cell is."""
        return cell_id(self.trajectory_id, self.scheme)

    def snapshots(self, length: int) -> Sequence[int]:
        """The steps of a training of this length at which its average takes a snapshot."""
        scheme = self.scheme
        return () if scheme is None else range(scheme.burn_in + scheme.every, length + 1, scheme.every)


def cell_id(trajectory_id: str, scheme: Scheme | None) -> str:
    """The id of the cell that averages this training by this scheme."""
    return _digest([trajectory_id, scheme_to_dict(scheme)])


_JSON = json.JSONEncoder(sort_keys=True, separators=(",", ":"), allow_nan=False)


def _digest(value: Any) -> str:
    return hashlib.sha256(_JSON.encode(value).encode()).hexdigest()[:12]


def scheme_class(name: str) -> type[Scheme]:
    """A scheme by its name in SCHEMES, or a user's by dotted path. Raises: ValueError, in one line."""
    if ":" not in name:
        return SCHEMES[name]
    found: Any = import_dotted(name, "scheme")
    is_scheme = inspect.isclass(found) and issubclass(found, (Recursive, Windowed))
    if not is_scheme or not is_dataclass(found):
        raise UnknownWorkload(f"{name!r} is no scheme; allowed: a dataclass that is a wa.Recursive or a wa.Windowed")
    return cast(type[Scheme], found)


_FLAT = (int, float, str, type(None))


def scheme_name(kind: type[Scheme]) -> str:
    """What `scheme_class` finds it by."""
    own = f"{kind.__module__}:{kind.__qualname__}"
    return next((name for name, one in SCHEMES.items() if one is kind), own)


def scheme_to_dict(scheme: Scheme | None) -> dict[str, Any]:
    """A scheme as plain values, with its name under ``scheme``."""
    if scheme is None:
        return {"scheme": "none"}
    told = {one.name: getattr(scheme, one.name) for one in fields(cast(Any, scheme))}
    if not all(isinstance(value, _FLAT) for value in told.values()):
        told = asdict(cast(Any, scheme))  # which takes ten times as long
    return {"scheme": scheme_name(type(scheme)), **told}


def cell_to_dict(cell: Cell) -> dict[str, Any]:
    """A cell as plain values; `cell_from_dict` gives it back, equal."""
    return asdict(cell) | {"scheme": scheme_to_dict(cell.scheme)}


def cell_from_dict(value: Mapping[str, Any]) -> Cell:
    """The cell that `cell_to_dict` wrote."""
    training = dict(value["training"])
    training["schedule"] = Schedule(**training["schedule"])
    training["settings"] = tuple((name, number) for name, number in training["settings"])
    scheme = dict(value["scheme"])
    kind = scheme.pop("scheme")
    made = None if kind == "none" else scheme_class(kind)(**scheme)
    return Cell(**{**value, "training": Training(**training), "scheme": made})
