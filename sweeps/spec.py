"""YAML -> Spec: the border. Whatever is wrong with a file is said here, in one line, before anything runs."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from sweeps.blocks import (
    AVERAGING,
    Asks,
    Block,
    Budget,
    EvaluateBlock,
    Flag,
    Name,
    OptimizerBlock,
    ResourcesBlock,
    ScheduleBlock,
    Seed,
    SpecError,
    Text,
    TrackingBlock,
    TrainingBlock,
    nearest,
    shown,
)
from sweeps.overrides import set_path
from sweeps.yaml_file import BadYaml, read_yaml

MAX_CELLS = 1_000_000

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
        axes = (self.step_budgets, self.optimizers, self.schedules, self.trainings, self.averagings)
        return math.prod(len(axis) for axis in axes)


@dataclass(frozen=True)
class Spec:
    """A study, checked."""

    study: str
    question: str | None
    asks: str | None  # steps | final_metric | horizon | predictions; None: what the trainings vary
    workloads: tuple[str, ...]
    presets: tuple[str, ...]
    seeds: tuple[int, ...]
    grids: Mapping[str, Grid]  # workload -> its axes
    data_dir: str | None  # of full presets; None: what WA_DATA_DIR says
    resources: ResourcesBlock
    tracking: TrackingBlock
    fuse: bool
    source: str
    raw: Mapping[str, Any]  # as read, with --set applied and defaults filled in: what spec.yaml holds


KEYS = (
    *(
        "study",
        "question",
        "asks",
        "workloads",
        "preset",
        "seeds",
        "step_budget",
        "optimizer",
        "schedule",
        "training",
        "averaging",
    ),
    *("evaluate", "overrides", "data_dir", "resources", "tracking", "fuse"),
)
REQUIRED = ("study", "workloads", "averaging")
OVERRIDABLE = ("step_budget", "optimizer", "schedule", "training", "averaging", "evaluate")
DEFAULTS: Mapping[str, Any] = {
    "preset": "mini",
    "seeds": [0],
    "step_budget": 1.0,
    "optimizer": {},
    "schedule": {},
    "training": {},
    "evaluate": {},
    "overrides": {},
    "resources": {},
    "tracking": {},
    "fuse": True,
}


def load_spec(path: str | Path, overrides: Sequence[str] = ()) -> Spec:
    """Read, override (``path=value``) and check a study.

    Raises: SpecError, one line with file, key path and what is allowed.
    """
    source = str(path)
    try:
        raw = read_yaml(Path(path))
    except BadYaml as error:
        raise SpecError("", str(error), source) from None
    try:
        if not isinstance(raw, dict):
            raise SpecError("", f"got {shown(raw)}; allowed: a mapping of {', '.join(KEYS)}")
        for assignment in overrides:
            set_path(raw, assignment)
        return parse_spec(raw, source)
    except SpecError as error:
        raise error.at(source) from None


def parse_spec(raw: Mapping[str, Any], source: str = "spec") -> Spec:
    """Check a study given as a mapping. Raises: SpecError."""
    _known(raw, KEYS, "")
    for key in REQUIRED:
        if key not in raw:
            raise SpecError(key, "is required")
    full = {key: raw.get(key, DEFAULTS.get(key)) for key in KEYS if key in raw or key in DEFAULTS}
    workloads = _names(full["workloads"], "workloads")
    grids = _grids(full, workloads)
    seeds = _axis(full["seeds"], "seeds")
    presets = _names(full["preset"], "preset")
    spec = Spec(
        study=_scalar(_Study, "study", full["study"]),
        question=None if full.get("question") is None else _scalar(_Question, "question", full["question"]),
        asks=None if full.get("asks") is None else _scalar(_Asks, "asks", full["asks"]),
        workloads=workloads,
        presets=presets,
        seeds=tuple(_scalar(_Seeds, "seeds", seed, path) for path, seed in seeds),
        grids=grids,
        data_dir=None if full.get("data_dir") is None else _scalar(_DataDir, "data_dir", full["data_dir"]),
        resources=_block(ResourcesBlock, full["resources"], "resources", axes=False)[0].block,
        tracking=_block(TrackingBlock, full["tracking"], "tracking", axes=False)[0].block,
        fuse=_scalar(_Fuse, "fuse", full["fuse"]),
        source=source,
        raw=full,
    )
    num_cells = len(seeds) * len(presets) * sum(grid.num_cells() for grid in grids.values())
    if num_cells > MAX_CELLS:
        raise SpecError("", f"a grid of {num_cells:,} cells; allowed: at most {MAX_CELLS:,}")
    return spec


# --- from raw YAML to checked blocks -------------------------------------------------------------------------------


class _Study(Block):
    study: Name


class _Question(Block):
    question: Text


class _Asks(Block):
    asks: Asks


class _DataDir(Block):
    data_dir: Text


class _Seeds(Block):
    seeds: Seed


class _Fuse(Block):
    fuse: Flag


class _Budget(Block):
    step_budget: Budget


def _scalar(model: type[Block], key: str, value: Any, path: str | None = None) -> Any:
    return getattr(_validate(model, {key: value}, "", {key: path or key}), key)


def _known(
    raw: Mapping[Any, Any], allowed: Sequence[str], path: str, paths: Mapping[str, str] | None = None
) -> None:
    for key in raw:
        if key not in allowed:
            where = (paths or {}).get(key, f"{path}.{key}" if path else str(key))
            raise SpecError(
                " ".join(where.split())[:80],
                f"unknown key; allowed: {', '.join(allowed)}{nearest(key, allowed)}",
            )


def _axis(value: Any, path: str) -> list[tuple[str, Any]]:
    """A scalar is one point, a list is an axis: (path, scalar) pairs."""
    if not isinstance(value, list):
        return [(path, value)]
    if not value:
        raise SpecError(path, "empty list: the grid has no cells; allowed: one value or more")
    return [(f"{path}[{i}]", item) for i, item in enumerate(value)]


def _names(value: Any, path: str) -> tuple[str, ...]:
    names = []
    for where, name in _axis(value, path):
        if not isinstance(name, str) or not name:
            raise SpecError(where, f"got {shown(name)}; allowed: a name")
        if name in names:
            raise SpecError(where, f"{name!r} stands twice")
        names.append(name)
    return tuple(names)


def _grids(full: Mapping[str, Any], workloads: tuple[str, ...]) -> dict[str, Grid]:
    overrides = full["overrides"]
    if not isinstance(overrides, Mapping):
        raise SpecError("overrides", f"got {shown(overrides)}; allowed: workload -> {', '.join(OVERRIDABLE)}")
    from workloads.protocol import families  # here, so that reading a spec does not import torch

    # An override for a shipped workload that this study leaves out (--set workloads=…) waits for its turn.
    unused = [name for name in families() if name not in workloads]
    _known({name: None for name in overrides if name not in unused}, workloads, "overrides")
    shared = _grid(full, {}, "")
    grids = {}
    for workload in workloads:
        own = overrides.get(workload)
        if own is None:
            grids[workload] = shared
            continue
        path = f"overrides.{workload}"
        if not isinstance(own, Mapping):
            raise SpecError(path, f"got {shown(own)}; allowed: a mapping of {', '.join(OVERRIDABLE)}")
        _known(own, OVERRIDABLE, path)
        grids[workload] = _grid(full, own, path)
    return grids


def _grid(full: Mapping[str, Any], own: Mapping[str, Any], own_path: str) -> Grid:
    def blocks(key: str, model: type[Block] | None = None, axes: bool = True) -> tuple[Placed, ...]:
        value, path, origins = full[key], key, {}
        if key in own:
            mine, mine_path = own[key], f"{own_path}.{key}"
            if isinstance(mine, Mapping) and key in ("optimizer", "schedule", "training", "evaluate"):
                value = _merged(value, mine, mine_path)  # a mapping changes those keys in every block
                origins = {name: f"{mine_path}.{name}" for name in mine}
            else:
                value, path = mine, mine_path  # anything else stands instead
        return _block(model, value, path, axes, origins)

    budget, budget_path = full["step_budget"], "step_budget"
    if "step_budget" in own:
        budget, budget_path = own["step_budget"], f"{own_path}.step_budget"
    return Grid(
        step_budgets=tuple(
            Placed(_scalar(_Budget, "step_budget", value, path), path)
            for path, value in _axis(budget, budget_path)
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
        raise SpecError(path, f"nothing to override: the study has {shown(value)} there")
    return {**value, **mine}


def _block(
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
    for where, raw in _axis(value, path) if axes else [(path, value)]:
        if not isinstance(raw, Mapping):
            raise SpecError(where, f"got {shown(raw)}; allowed: a mapping such as {{{_example(path)}}}")
        kind = model or _averaging_model(raw, where)
        paths = {key: (origins or {}).get(key, f"{where}.{key}") for key in raw}
        _known(raw, tuple(kind.model_fields), where, paths)
        points = math.prod(len(v) for v in raw.values() if isinstance(v, list) and v)
        if points > MAX_CELLS:
            raise SpecError(where, f"a grid of {points:,} cells; allowed: at most {MAX_CELLS:,}")
        for point, at in _points(raw, paths, axes):
            placed.append(Placed(_validate(kind, point, where, at), where, at))
    return tuple(placed)


def _points(
    raw: Mapping[str, Any], paths: Mapping[str, str], axes: bool
) -> Iterator[tuple[dict[str, Any], dict[str, str]]]:
    sides = []
    for key, value in raw.items():
        points = _axis(value, paths[key]) if axes else [(paths[key], value)]
        sides.append([(key, path, scalar) for path, scalar in points])
    for side in itertools.product(*sides):
        yield {key: scalar for key, _, scalar in side}, {key: path for key, path, _ in side}


def _averaging_model(raw: Mapping[str, Any], where: str) -> type[Block]:
    if "scheme" not in raw:
        raise SpecError(f"{where}.scheme", f"is required; allowed: {', '.join(AVERAGING)}")
    scheme = raw["scheme"]
    if not isinstance(scheme, str) or scheme not in AVERAGING:
        raise SpecError(
            f"{where}.scheme",
            f"got {shown(scheme)}; allowed: {', '.join(AVERAGING)}{nearest(scheme, AVERAGING)}",
        )
    return AVERAGING[scheme]


def _example(path: str) -> str:
    key = path.rpartition(".")[2]
    examples = {
        "optimizer": "name: nadamw, lr: 0.003",
        "schedule": "shape: cosine, length: 1.0",
        "training": "batch_size: 2.0, precision: bf16",
        "averaging": "scheme: ema, decay: 0.99, every: 8",
        "evaluate": "every: 0.01",
        "resources": "cpu: 1, gpu: 0",
        "tracking": "wandb: offline, project: averaging",
    }
    return examples[key]


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
