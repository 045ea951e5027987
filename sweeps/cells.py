"""Spec -> cells: every point of the grid, resolved to steps, with an id that is a function of what it is."""

from __future__ import annotations

import hashlib
import itertools
import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import MISSING, asdict, dataclass, fields
from functools import cache, cached_property
from typing import Any, cast

from sweeps.blocks import (
    EmaBlock,
    EvaluateBlock,
    LawaBlock,
    NoneBlock,
    OptimizerBlock,
    ScheduleBlock,
    SpecError,
    TailBlock,
    TrainingBlock,
    WsmBlock,
    nearest,
)
from sweeps.optimizers import settings
from sweeps.schedules import Schedule, Shape
from sweeps.spec import Grid, Placed, Spec
from wa import EMA, LAWA, WSM, Tail
from workloads.protocol import (
    UnknownWorkload,
    Workload,
    families,
    load,
    splits,
    takes_part,
    with_batch_size,
)

Scheme = LAWA | EMA | Tail | WSM
SCHEMES: dict[str, type[Scheme]] = {"lawa": LAWA, "ema": EMA, "tail": Tail, "wsm": WSM}
SETTINGS = [name for name in OptimizerBlock.model_fields if name not in ("name", "grad_clip")]


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
    precision: str = "fp32"  # of the forward pass: fp32 | bf16, by autocast
    compile: str | None = None  # torch.compile's backend
    accumulate: int = 1  # micro-batches a step
    batch_size: int | None = None  # examples a step; None: the workload's own

    @cached_property
    def trajectory_id(self) -> str:
        """12 hex digits, a function of the fields alone; a field with a default counts where it differs."""
        same = {field.name: field.default for field in fields(self) if field.default is not MISSING}
        return _digest({k: v for k, v in asdict(self).items() if k not in same or v != same[k]})


@dataclass(frozen=True)
class Cell:
    """One point of the grid."""

    training: Training
    scheme: Scheme | None  # None: the live weights
    evaluate_every_steps: int
    metric_name: str
    higher_is_better: bool
    evaluate_test: bool = False  # on the test split too, at the end of training

    @property
    def trajectory_id(self) -> str:
        return self.training.trajectory_id

    @cached_property
    def cell_id(self) -> str:
        """12 hex digits: training and averaging. The evaluation grid is no part of what a cell is."""
        return _digest([self.trajectory_id, scheme_to_dict(self.scheme)])


def _digest(value: Any) -> str:
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def scheme_to_dict(scheme: Scheme | None) -> dict[str, Any]:
    """A scheme as plain values, with its name under ``scheme``."""
    if scheme is None:
        return {"scheme": "none"}
    name = next(name for name, kind in SCHEMES.items() if isinstance(scheme, kind))
    return {"scheme": name, **asdict(scheme)}


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
    made = None if kind == "none" else SCHEMES[kind](**scheme)
    return Cell(**{**value, "training": Training(**training), "scheme": made})


# --- from the spec ---------------------------------------------------------------------------------------------


def cells(spec: Spec) -> list[Cell]:
    """Every cell of the study, in the order of the file.

    Raises: SpecError for what only the workload's constants reveal: an unknown workload or preset, a horizon or
    burn-in beyond the budget, an average that would never exist, two blocks that mean the same cell.
    """
    try:
        found = list(_cells(spec))
        _no_twins(found)
    except SpecError as error:
        raise error.at(spec.source) from None
    return [cell for cell, _ in found]


def _cells(spec: Spec) -> Iterator[tuple[Cell, str]]:
    for i, name in enumerate(spec.workloads):
        for preset in spec.presets:
            try:
                workload = load(name, preset)
            except UnknownWorkload as error:
                known = nearest(name, families()) if ":" not in name else ""
                raise SpecError(
                    "preset" if "preset" in str(error) else f"workloads[{i}]", f"{error}{known}"
                ) from None
            processes = spec.resources.num_processes
            yield from _cells_of(workload, name, preset, spec.grids[name], spec.seeds, processes)


def _cells_of(
    workload: Workload, name: str, preset: str, grid: Grid, seeds: tuple[int, ...], processes: int
) -> Iterator[tuple[Cell, str]]:
    optimizers = [_optimizer(placed, workload, name) for placed in grid.optimizers]
    trainings = [_training(placed, workload, name, processes) for placed in grid.trainings]
    for budget in grid.step_budgets:
        total = (
            budget.block
            if isinstance(budget.block, int)
            else max(1, round(budget.block * workload.step_budget))
        )
        evaluate: EvaluateBlock = grid.evaluate.block
        every = to_steps(evaluate.every, total)
        if every > total:
            raise grid.evaluate.error(
                "every", f"{every} steps; allowed: at most the step budget, {total} steps"
            )
        if evaluate.test and "test" not in (there := splits(workload)):
            raise grid.evaluate.error(
                "test", f"{name} ({preset}) has no test split; it has {', '.join(there)}"
            )
        for schedule_at, (optimizer, values, clip) in itertools.product(grid.schedules, optimizers):
            schedule = _schedule(schedule_at, workload, total, optimizer)
            schemes = [
                (_scheme(placed, total, schedule.length_steps), placed.path) for placed in grid.averagings
            ]
            for how, seed in itertools.product(trainings, seeds):
                training = Training(name, preset, seed, total, optimizer, values, clip, schedule, *how)
                for scheme, path in schemes:
                    metric, higher = workload.metric, workload.higher_is_better
                    yield Cell(training, scheme, every, metric, higher, evaluate.test), path


def to_steps(amount: int | float, whole: int, least: int = 1) -> int:
    """An int is steps; a float is a share of `whole`, rounded to at least `least` steps."""
    return amount if isinstance(amount, int) else max(least, round(amount * whole))


def _optimizer(
    placed: Placed, workload: Workload, name: str
) -> tuple[str, tuple[tuple[str, float], ...], float | None]:
    block: OptimizerBlock = placed.block
    own = dict(workload.optimizer)
    optimizer = block.name or str(own["name"])
    takes = settings(optimizer)
    given = {k: v for k, v in block.model_dump().items() if v is not None and k not in ("name", "grad_clip")}
    for key in given:
        if key not in takes:
            raise placed.error(
                key, f"{optimizer} has no such setting; allowed: {', '.join(takes)}, grad_clip"
            )
    if optimizer == "schedule_free_adamw" and given.get("beta1") == 0:
        raise placed.error("beta1", "got 0: schedule-free averages with it; allowed: a number in (0, 1)")
    # The workload's own values carry over to an optimizer that takes the same settings (adamw from nadamw).
    inherits = list(takes) == list(settings(str(own["name"])))
    values = {}
    for key, default in takes.items():
        value = given.get(key, own.get(key, default) if inherits else default)
        if value is None:
            raise placed.error(
                key, f"is required: {name}'s own values are for {own['name']}, not {optimizer}"
            )
        values[key] = float(value)
    clip = block.grad_clip if block.grad_clip is not None else own.get("grad_clip")
    return optimizer, tuple(sorted(values.items())), None if clip is None else float(clip)


def _training(
    placed: Placed, workload: Workload, name: str, processes: int
) -> tuple[str, str | None, int, int | None]:
    block: TrainingBlock = placed.block
    batch_size = _batch_size(placed, workload, name)
    own = {"precision": "fp32", "compile": False, "accumulate": 1, **getattr(workload, "training", {})}
    # As many parts of a batch as the workload says, processes among them.
    own["accumulate"] = max(1, own["accumulate"] // processes)
    given = {key: value for key, value in block.model_dump(include=set(own)).items() if value is not None}
    precision, compiled, accumulate = {**own, **given}.values()
    parts = accumulate * processes
    if parts > 1 and not takes_part(workload):
        raise placed.error(
            "accumulate",
            f"{name} cannot divide a batch: its batches() takes no `part` (workloads/protocol.py)",
        )
    whole = workload.batch_size if batch_size is None else batch_size
    if whole % parts:
        message = f"{accumulate} micro-batches × {processes} processes do not divide a batch of {whole}"
        raise placed.error("accumulate", f"{message}; allowed: what divides it evenly")
    backend = ("inductor" if compiled else None) if isinstance(compiled, bool) else str(compiled)
    return str(precision), backend, int(accumulate), batch_size


def _batch_size(placed: Placed, workload: Workload, name: str) -> int | None:
    """Examples a step; None where they are the workload's own: one training, one name."""
    asked, own = placed.block.batch_size, workload.batch_size
    if asked is None:
        return None
    examples = asked if isinstance(asked, int) else max(1, round(asked * own))
    if examples == own:
        return None
    try:
        with_batch_size(workload, examples)
    except ValueError as error:
        raise placed.error("batch_size", f"{name} {error}; allowed: its own, {own}") from None
    return examples


def _schedule(placed: Placed, workload: Workload, total: int, optimizer: str) -> Schedule:
    block: ScheduleBlock = placed.block
    own = {"shape": "cosine", "length": 1.0, "warmup": 0.0, "final_lr": 0.0, **workload.schedule}
    if optimizer == "schedule_free_adamw" and block.lr_decay is None and block.final_lr is None:
        own["shape"] = "constant"  # what its name says, after the warm-up: its average stands in for a decay
    shape = cast(Shape, block.shape or own["shape"])
    length = to_steps(block.length if block.length is not None else own["length"], total)
    if length > total:
        raise placed.error("length", f"{length} steps; allowed: at most the step budget, {total} steps")
    if shape == "constant":
        for key in ("lr_decay", "final_lr"):
            if getattr(block, key) is not None:
                raise placed.error(
                    key, "a constant schedule does not decay; allowed: shape linear or cosine with it"
                )
    warmup = _share_of_length(block.warmup if block.warmup is not None else own["warmup"], length)
    final_lr = float(block.final_lr if block.final_lr is not None else own["final_lr"])
    if shape == "constant":
        decay = 0
    elif block.lr_decay is not None:
        decay = _share_of_length(block.lr_decay, length)
    else:
        decay = max(0, length - warmup)
    if warmup + decay > length:
        key = "lr_decay" if block.lr_decay is not None else "warmup"
        message = (
            f"warm-up {warmup} + LR decay {decay} steps; allowed: together at most the length, {length} steps"
        )
        raise placed.error(key, message)
    if decay == 0 or final_lr == 1:  # one training, one name
        shape, decay, final_lr = "constant", 0, 1.0
    return Schedule(shape, length, warmup, decay, final_lr)


def _share_of_length(amount: int | float, length: int) -> int:
    return amount if isinstance(amount, int) else int(amount * length)  # int(): as AlgoPerf counts warm-up


def _scheme(placed: Placed, total: int, length: int) -> Scheme | None:
    block = placed.block
    if isinstance(block, NoneBlock):
        return None
    every = to_steps(block.every, total)
    if isinstance(block, TailBlock):
        start = to_steps(block.start, total, least=0)
        tail = Tail(start=start, every=every, buffers=block.buffers)
        return _within(placed, tail, "start", start, total, length)
    burn_in = to_steps(block.burn_in, total, least=0)
    if isinstance(block, LawaBlock):
        k = _window(placed, "horizon", every, total)
        lawa = LAWA(k=k, every=every, burn_in=burn_in, until_full=block.until_full, buffers=block.buffers)
        return _within(placed, lawa, "burn_in", burn_in, total, length)
    if isinstance(block, WsmBlock):
        k = _window(placed, "lr_decay", every, total)
        wsm = WSM(k=k, every=every, curve=block.curve, burn_in=burn_in, buffers=block.buffers)
        return _within(placed, wsm, "burn_in", burn_in, total, length)
    assert isinstance(block, EmaBlock)
    horizon = _reach(placed, "horizon", every, total)
    decay = block.decay if horizon is None else (horizon - every) / (horizon + every)
    assert decay is not None
    ema = EMA(decay=float(decay), every=every, burn_in=burn_in, init=block.init, buffers=block.buffers)
    return _within(placed, ema, "burn_in", burn_in, total, length)


def _window(placed: Placed, key: str, every: int, total: int) -> int:
    """How many snapshots a window holds: k, or those of the reach told under `key`."""
    reach = _reach(placed, key, every, total)
    k: int = placed.block.k if reach is None else max(1, round(reach / every))
    if k * every > total:
        raise placed.error(
            "k" if reach is None else key,
            f"reaches {k * every} steps back; allowed: at most the step budget, {total} steps",
        )
    return k


def _reach(placed: Placed, key: str, every: int, total: int) -> float | None:
    """The steps under `key`, an int or a share of the step budget; None where it is left out."""
    amount: int | float | None = getattr(placed.block, key)
    if amount is None:
        return None
    steps = float(amount) if isinstance(amount, int) else amount * total
    if steps > total:
        raise placed.error(key, f"{steps:g} steps; allowed: at most the step budget, {total} steps")
    if steps < every:
        raise placed.error(key, f"{steps:g} steps; allowed: at least `every`, {every} steps")
    return steps


def _within(placed: Placed, scheme: Scheme, key: str, start: int, total: int, length: int) -> Scheme:
    if start >= total:
        raise placed.error(key, f"{start} steps; allowed: less than the step budget, {total} steps")
    if not scheme.exists(length):
        raise placed.error("scheme", f"{scheme} has no average yet when training ends at step {length}")
    return scheme


def _no_twins(found: list[tuple[Cell, str]]) -> None:
    seen: dict[str, str] = {}
    for cell, path in found:
        if cell.cell_id in seen:
            other = seen[cell.cell_id]
            what = scheme_to_dict(cell.scheme)
            described = ", ".join(f"{key} {value}" for key, value in what.items())
            raise SpecError(
                path, f"duplicate cell: {described} on {cell.training.workload} stands at {other} already"
            )
        seen[cell.cell_id] = path


# --- as a table row ----------------------------------------------------------------------------------------------


def cell_to_row(
    cell: Cell, study: str, target: float | None, num_devices: float, device: str, processes: int
) -> dict[str, Any]:
    """The cell as a row of `analysis.records.CELLS`."""
    training, schedule, scheme = cell.training, cell.training.schedule, cell.scheme
    total = training.step_budget
    horizon = None if scheme is None else _significant(_horizon_steps(scheme, schedule.length_steps))
    options = scheme_to_dict(scheme)
    values = dict(training.settings)
    return {
        "cell_id": cell.cell_id,
        "trajectory_id": cell.trajectory_id,
        "study": study,
        "studies": [study],
        "workload": training.workload,
        "preset": training.preset,
        "seed": training.seed,
        "step_budget": total,
        "optimizer": training.optimizer,
        **{name: values.get(name) for name in SETTINGS},
        "grad_clip": training.grad_clip,
        "precision": training.precision,
        "compile": training.compile,
        "accumulate": training.accumulate,
        "batch_size": training.batch_size,
        "own_batch_size": _own_batch_size(training.workload, training.preset),
        "schedule": schedule.shape,
        "length_steps": schedule.length_steps,
        "length_fraction": _significant(schedule.length_steps / total),
        "warmup_steps": schedule.warmup_steps,
        "lr_decay_steps": schedule.lr_decay_steps,
        "lr_decay": _significant(schedule.lr_decay_steps / schedule.length_steps),
        "final_lr": schedule.final_lr,
        "scheme": options["scheme"],
        "k": options.get("k"),
        "curve": options.get("curve"),
        "every_steps": options.get("every"),
        "ema_decay": options.get("decay"),
        "horizon_steps": horizon,
        "horizon_fraction": None if horizon is None else _significant(horizon / total),
        "burn_in_steps": options.get("burn_in", options.get("start")),
        "init": options.get("init"),
        "until_full": options.get("until_full"),
        "buffers": options.get("buffers", "live"),
        "evaluate_every_steps": cell.evaluate_every_steps,
        "evaluate_test": cell.evaluate_test,
        "metric": cell.metric_name,
        "higher_is_better": cell.higher_is_better,
        "target": target,
        "num_devices": num_devices,
        "device": device,
        "processes": processes,
    }


@cache
def _own_batch_size(workload: str, preset: str) -> int:
    return load(workload, preset).batch_size


def _horizon_steps(scheme: Scheme, length: int) -> float:
    return (
        scheme.horizon if math.isfinite(scheme.horizon) else scheme.horizon_at(length)
    )  # a tail grows to its end


def _significant(value: float, digits: int = 6) -> float:
    # .0100000001 and .01 are one point of a horizon axis.
    if value == 0 or not math.isfinite(value):
        return value
    return round(value, digits - 1 - math.floor(math.log10(abs(value))))
