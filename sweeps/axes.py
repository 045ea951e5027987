"""From a raw study to the axes of its grids: lists become axes, blocks are checked, overrides applied.

The cells are counted before any is made.
"""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from sweeps.blocks import (
    AVERAGING,
    Block,
    Budget,
    EvaluateBlock,
    OptimizerBlock,
    ScheduleBlock,
    SpecError,
    TrainingBlock,
)
from sweeps.wording import among, counted, shown

MAX_CELLS = 100_000
OVERRIDABLE = ("step_budget", "optimizer", "schedule", "training", "averaging", "evaluate")

B = TypeVar("B", bound=BaseModel)


@dataclass(frozen=True)
class Placed:
    """A checked block and where it stands in the file: key -> path, for errors found later."""

    block: Any
    path: str
    paths: Mapping[str, str] = field(default_factory=dict, compare=False)

    def error(self, key: str, message: str) -> SpecError:
        return SpecError(self.paths.get(key, f"{self.path}.{key}"), message)


@dataclass(frozen=True)
class Grid:
    """The axes of one workload, overrides applied."""

    step_budgets: tuple[Placed, ...]  # block: int | float
    optimizers: tuple[Placed, ...]
    schedules: tuple[Placed, ...]
    trainings: tuple[Placed, ...]
    averagings: tuple[Placed, ...]
    evaluate: Placed

    def num_cells(self) -> int:
        """Of one seed and preset."""
        axes = (self.step_budgets, self.optimizers, self.schedules, self.trainings, self.averagings)
        return math.prod(len(axis) for axis in axes)


class _Budget(Block):
    step_budget: Budget


def scalar(model: type[Block], key: str, value: Any, path: str | None = None) -> Any:
    return getattr(_validate(model, {key: value}, "", {key: path or key}), key)


def known(raw: Mapping[Any, Any], allowed: Sequence[str], path: str, paths: Mapping[str, str] | None = None) -> None:
    there = set(allowed)
    for key in raw:
        if key not in there:
            where = (paths or {}).get(key, f"{path}.{key}" if path else shown(key)[1:-1])
            raise SpecError(where, f"unknown key{among(key, allowed)}")


def axis(value: Any, path: str) -> list[tuple[str, Any]]:
    """A scalar is one point, a list is an axis: (path, scalar) pairs."""
    if not isinstance(value, list):
        return [(path, value)]
    if not value:
        raise SpecError(path, "empty list: the grid has no cells; allowed: one value or more")
    return [(f"{path}[{i}]", item) for i, item in enumerate(value)]


def names(value: Any, path: str) -> tuple[str, ...]:
    names: dict[str, None] = {}
    for where, name in axis(value, path):
        if not isinstance(name, str) or not name:
            raise SpecError(where, f"got {shown(name)}; allowed: a name")
        if name in names:
            raise SpecError(where, f"{shown(name)} stands twice")
        names[name] = None
    return tuple(names)


def grids(full: Mapping[str, Any], workloads: tuple[str, ...], times: int) -> dict[str, Grid]:
    """workload -> its axes. times: how often each grid is run, over seeds and presets."""
    overrides = full["overrides"]
    if not isinstance(overrides, Mapping):
        raise SpecError("overrides", f"got {shown(overrides)}; allowed: workload -> {', '.join(OVERRIDABLE)}")
    from workloads.protocol import families  # here, so that reading a spec does not import torch

    # An override for a shipped workload that this study leaves out (--set workloads=…) waits for its turn.
    unused = {name for name in families() if name not in workloads}
    known({name: None for name in overrides if name not in unused}, workloads, "overrides")
    shared = _sources(full, {}, "")
    sources = {}
    for workload in workloads:
        own, path = overrides.get(workload), f"overrides.{workload}"
        if own is not None and not isinstance(own, Mapping):
            raise SpecError(path, f"got {shown(own)}; allowed: a mapping of {', '.join(OVERRIDABLE)}")
        known(own or {}, OVERRIDABLE, path)
        sources[workload] = _sources(full, own, path) if own else shared
    _bounded(sources, times)
    made = {id(source): _grid(source) for source in {id(one): one for one in sources.values()}.values()}
    return {workload: made[id(source)] for workload, source in sources.items()}


@dataclass(frozen=True)
class _Source:
    """A key of a grid as it stands in the file: where, and which of its keys come from elsewhere."""

    value: Any
    path: str
    origins: Mapping[str, str]  # key -> path, for keys of an override


def _sources(full: Mapping[str, Any], own: Mapping[str, Any], own_path: str) -> dict[str, _Source]:
    sources = {}
    for key in OVERRIDABLE:
        source = _Source(full[key], key, {})
        if key in own:
            mine, path = own[key], f"{own_path}.{key}"
            if isinstance(mine, Mapping) and key in ("optimizer", "schedule", "training", "evaluate"):
                # a mapping changes those keys in every block
                origins = {name: f"{path}.{name}" for name in mine}
                source = _Source(_merged(full[key], mine, key), key, origins)
            else:
                source = _Source(mine, path, {})  # anything else stands instead
        sources[key] = source
    return sources


def _bounded(sources: Mapping[str, Mapping[str, _Source]], times: int) -> None:
    """Count the cells before any is made. Raises: SpecError beyond MAX_CELLS."""
    whole, most, largest = 0, 0, ""
    for workload, source in sources.items():
        points = {key: _num_points(source[key].value) for key in OVERRIDABLE if key != "evaluate"}
        cells = times * math.prod(points.values())
        whole += cells
        if cells > most:
            names = [key.replace("_", " ") for key in points]
            axes = [counted(n, name) for n, name in zip(points.values(), names, strict=True) if n > 1]
            sizes = " × ".join([f"{times:,} seeds and presets", *axes])
            most, largest = cells, f"{sizes} of {shown(workload)[1:-1]}"
    if whole > MAX_CELLS:
        over = f" over {counted(len(sources), 'workload')}" if len(sources) > 1 else ""
        raise SpecError("", f"a grid of {whole:,} cells{over} ({largest}); allowed: at most {MAX_CELLS:,}")


def _num_points(value: Any) -> int:
    """Points of an axis: a list's items, each a scalar or a block that its own lists expand."""
    blocks = value if isinstance(value, list) else [value]
    return sum(
        math.prod(len(item) for item in block.values() if isinstance(item, list) and item)
        if isinstance(block, Mapping)
        else 1
        for block in blocks
    )


def _grid(sources: Mapping[str, _Source]) -> Grid:
    def blocks(key: str, model: type[Block] | None = None, axes: bool = True) -> tuple[Placed, ...]:
        source = sources[key]
        return expand(model, source.value, source.path, axes, source.origins)

    budget = sources["step_budget"]
    return Grid(
        step_budgets=tuple(
            Placed(scalar(_Budget, "step_budget", value, path), path) for path, value in axis(budget.value, budget.path)
        ),
        optimizers=blocks("optimizer", OptimizerBlock),
        schedules=blocks("schedule", ScheduleBlock),
        trainings=blocks("training", TrainingBlock),
        averagings=blocks("averaging"),
        evaluate=blocks("evaluate", EvaluateBlock, axes=False)[0],
    )


def _merged(value: Any, mine: Mapping[str, Any], path: str) -> Any:
    if isinstance(value, list):
        return [_merged(item, mine, path) for item in value]
    if not isinstance(value, Mapping):
        raise _no_mapping(value, path)
    return {**value, **mine}


def expand(
    model: type[Block] | None,
    value: Any,
    path: str,
    axes: bool = True,
    origins: Mapping[str, str] | None = None,
) -> tuple[Placed, ...]:
    """A block, or a list of blocks, each expanded over its own lists.

    origins: key -> path, for keys that come from elsewhere (an override).
    """
    placed: list[Placed] = []
    for where, raw in axis(value, path) if axes else [(path, value)]:
        if not isinstance(raw, Mapping):
            raise _no_mapping(raw, where)
        kind = model or _averaging_model(raw, where)
        paths = {key: (origins or {}).get(key, f"{where}.{key}") for key in raw}
        known(raw, tuple(kind.model_fields), where, paths)
        placed += [Placed(block, where, at) for block, at in _points(kind, raw, where, paths, axes)]
    return tuple(placed)


def _points(
    kind: type[Block], raw: Mapping[str, Any], where: str, paths: Mapping[str, str], axes: bool
) -> Iterator[tuple[Block, dict[str, str]]]:
    """Every combination of a block's lists, checked: (block, key -> path).

    Each value is checked once, beside the first of every other key, and not in all its combinations: what a block
    asks of several keys together is which of them stand there.
    """
    sides = [
        [(key, *point) for point in axis(raw[key], paths[key])] if axes else [(key, paths[key], raw[key])]
        for key in raw
    ]
    first = {key: value for key, _, value in (side[0] for side in sides)}
    at = {key: path for key, path, _ in (side[0] for side in sides)}
    whole = _validate(kind, first, where, at)
    yield whole, at
    checked = []
    for side in sides:
        options = [(side[0][0], side[0][1], getattr(whole, side[0][0]))]
        for key, path, value in side[1:]:
            block = _validate(kind, {**first, key: value}, where, {**at, key: path})
            options.append((key, path, getattr(block, key)))
        checked.append(options)
    for combination in itertools.islice(itertools.product(*checked), 1, None):
        block = whole.model_construct(**{key: value for key, _, value in combination})
        yield block, {key: path for key, path, _ in combination}


def _averaging_model(raw: Mapping[str, Any], where: str) -> type[Block]:
    if "scheme" not in raw:
        raise SpecError(f"{where}.scheme", f"is required; allowed: {', '.join(AVERAGING)}")
    scheme = raw["scheme"]
    if not isinstance(scheme, str) or scheme not in AVERAGING:
        raise SpecError(f"{where}.scheme", f"got {shown(scheme)}{among(scheme, AVERAGING)}")
    return AVERAGING[scheme]


def _no_mapping(value: Any, path: str) -> SpecError:
    key = re.split(r"[. ]", path)[-1].partition("[")[0]
    examples = {
        "optimizer": "name: nadamw, lr: 0.003",
        "schedule": "shape: cosine, length: 1.0",
        "training": "batch_size: 2.0, precision: bf16",
        "averaging": "scheme: ema, decay: 0.99, every: 8",
        "evaluate": "every: 0.01",
        "resources": "cpu: 1, gpu: 0",
        "tracking": "wandb: offline, project: averaging",
    }
    return SpecError(path, f"got {shown(value)}; allowed: a mapping such as {{{examples[key]}}}")


def _validate(model: type[B], values: Mapping[str, Any], where: str, paths: Mapping[str, str]) -> B:
    # An explicit null is a value that no key allows: leaving the key out is how to take the default.
    for key, value in values.items():
        if value is None:
            raise SpecError(paths.get(key, f"{where}.{key}"), "is empty; give a value or leave the key out")
    try:
        return model.model_validate(dict(values))
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        key = str(first["loc"][0]) if first["loc"] else ""
        path = paths.get(key, f"{where}.{key}" if key else where)
        if first["type"] == "missing":
            raise SpecError(path, "is required") from None
        raise SpecError(path, first["msg"].removeprefix("Value error, ")) from None
