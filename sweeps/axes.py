"""From a written study to the axes of its grids: lists become axes, overrides are applied, cells are counted."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from pydantic import ValidationError

from sweeps.blocks import ONE, Block, SpecError
from sweeps.study_model import GridBlock, StudyModel
from sweeps.wording import counted, shown

MAX_CELLS = 100_000

B = TypeVar("B", bound=Block)


@dataclass(frozen=True)
class Placed:
    """One point of a block: its values, and where they stand in the file, for errors found later."""

    block: Block
    values: Mapping[str, Any]
    path: str
    paths: Mapping[str, str]

    def error(self, key: str, message: str) -> SpecError:
        return SpecError(self.paths.get(key, f"{self.path}.{key}"), message)


@dataclass(frozen=True)
class Written:
    """A block as it stands in the file: the points of each key that it has, by path and value."""

    block: Block
    path: str
    axes: Mapping[str, list[tuple[str, Any]]]

    @property
    def num_points(self) -> int:
        return math.prod(len(axis) for axis in self.axes.values())

    def points(self) -> Iterator[Placed]:
        for point in itertools.product(*self.axes.values()):
            at = dict(zip(self.axes, point, strict=True))
            values, paths = ({key: pair[i] for key, pair in at.items()} for i in (1, 0))
            yield Placed(self.block, values, self.path, paths)


@dataclass(frozen=True)
class Grid:
    """The axes of one workload, overrides applied; named as the keys of a study."""

    step_budget: list[tuple[str, int | float]]
    optimizer: list[Written]
    schedule: list[Written]
    training: list[Written]
    averaging: list[Written]
    evaluate: list[Written]  # one, of one point
    keep: list[Written]  # likewise
    resources: list[Written]  # likewise

    def sizes(self) -> dict[str, int]:
        axes = {key: getattr(self, key) for key in ("optimizer", "schedule", "training", "averaging")}
        return {"step budget": len(self.step_budget)} | {k: sum(b.num_points for b in v) for k, v in axes.items()}


def points(blocks: Iterable[Written]) -> list[Placed]:
    return [point for block in blocks for point in block.points()]


def validate(model: type[B], raw: Any, path: str = "", context: str | None = None) -> B:
    """Raises: SpecError for the first key that is wrong. path: where `raw` stands."""
    try:
        return model.model_validate(raw, context=context)
    except ValidationError as error:
        order = {key: i for i, key in enumerate(raw)} if isinstance(raw, Mapping) else {}
        found = error.errors(include_url=False, include_input=False)
        first = min(found, key=lambda one: order.get(one["loc"][0], 0) if one["loc"] else -1)  # as the file goes
        keys = [path] if path else []
        keys += _keys(raw, tuple(step for step in first["loc"] if context != ONE or isinstance(step, str)))
        if first["type"] == "key":
            keys.append(first["ctx"]["key"])
        raise SpecError(".".join(keys).replace(".[", "["), first["msg"].removeprefix("Value error, ")) from None


def _keys(raw: Any, location: tuple[int | str, ...]) -> Iterator[str]:
    """The keys and indices of a location in the file; the index of a lone value is none."""
    for step in location:
        if isinstance(raw, list) and isinstance(step, int):
            yield f"[{step}]"
            raw = raw[step]
        elif isinstance(raw, Mapping) and step in raw:
            yield str(step)
            raw = raw[step]


def own_block(model: type[Block], raw: Any, path: str) -> Placed:
    """A block that a workload says of itself, where a list is no axis. Raises: SpecError."""
    return points(_written((validate(model, raw, path, ONE),), raw, path))[0]


def grids(study: StudyModel, raw: Mapping[str, Any]) -> dict[str, Grid]:
    """workload -> its axes. raw: the study as written. Raises: SpecError for more than MAX_CELLS cells."""
    shared = _axes(study, raw, "")
    found = {}
    for workload in study.workloads:
        told = raw["overrides"].get(workload, {})
        own = _axes(study.overrides[workload], told, f"overrides.{workload}.") if told else {}
        merged = {key: _merged(shared[key], axes, told[key], key) for key, axes in own.items()}
        found[workload] = Grid(**(shared | merged))
    _bounded(found, len(study.seeds) * len(study.preset))
    return found


def _axes(block: GridBlock, raw: Mapping[str, Any], path: str) -> dict[str, Any]:
    axes: dict[str, Any] = {}
    for key in GridBlock.model_fields:
        if key in raw:
            held, at = getattr(block, key), f"{path}{key}"
            held = held if isinstance(held, tuple) else (held,)
            is_block = isinstance(held[0], Block)
            axes[key] = _written(held, raw[key], at) if is_block else _places(held, raw[key], at)
    return axes


def _places(values: Iterable[Any], raw: Any, path: str) -> list[tuple[str, Any]]:
    return [(f"{path}[{i}]" if isinstance(raw, list) else path, value) for i, value in enumerate(values)]


def _written(blocks: Iterable[Block], raw: Any, path: str) -> list[Written]:
    told = raw if isinstance(raw, list) else [raw]
    found = []
    for (where, block), one in zip(_places(blocks, raw, path), told, strict=True):
        axes = {}
        for key in one:
            held, at = getattr(block, key), f"{where}.{key}"
            axes[key] = _places(held, one[key], at) if isinstance(held, tuple) else [(at, held)]
        found.append(Written(block, where, axes))
    return found


def _merged(shared: list[Any], own: list[Any], raw: Any, key: str) -> list[Any]:
    """A mapping of an override changes its keys in every block; anything else stands instead."""
    if not isinstance(raw, Mapping) or key == "averaging":
        return own
    return [replace(one, axes={**one.axes, **own[0].axes}) for one in shared]


def _bounded(found: Mapping[str, Grid], times: int) -> None:
    """Count the cells before any is made. Raises: SpecError."""
    cells = {workload: times * math.prod(grid.sizes().values()) for workload, grid in found.items()}
    if sum(cells.values()) <= MAX_CELLS:
        return
    largest = max(cells, key=lambda workload: cells[workload])
    axes = [counted(n, name) for name, n in found[largest].sizes().items() if n > 1]
    sizes = f"{' × '.join([f'{times:,} seeds and presets', *axes])} of {shown(largest)[1:-1]}"
    over = f" over {counted(len(found), 'workload')}" if len(found) > 1 else ""
    raise SpecError("", f"a grid of {sum(cells.values()):,} cells{over} ({sizes}); allowed: at most {MAX_CELLS:,}")
