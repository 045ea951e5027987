"""Spec -> cells: every point of the grid, resolved to steps by the constants of its workload."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, cast, get_args

from sweeps.axes import Grid, Placed, own_block, points
from sweeps.blocks import Block, EvaluateBlock, OwnTrainingBlock, ScheduleBlock, SpecError
from sweeps.identity import Cell, Training, scheme_to_dict
from sweeps.optimizers import settings
from sweeps.resources import ResourcesBlock
from sweeps.schedules import POWER, Schedule, Shape
from sweeps.spec import Spec
from sweeps.study_model import AveragingBlock, optimizer_block
from sweeps.wording import among, counted
from wa import Scheme, Windowed
from wa.options import instead, options
from workloads.protocol import UnknownWorkload, Workload, families, load, splits, takes_part, with_batch_size
from workloads.user_errors import one_line

DECAYING = ", ".join(shape for shape in get_args(Shape) if shape != "constant")
IMPORTED: Mapping[str, Any] = {"name": "imported"}  # in place of a workload's own optimizer


def cells(spec: Spec) -> list[Cell]:
    """Every cell of the study, in the order of the file.

    Raises: SpecError for what only the workload's constants reveal: an unknown workload or preset, a horizon or
    burn-in beyond the budget, an average that would never exist, two blocks that mean the same cell.
    """
    try:
        return list(_cells(spec))
    except SpecError as error:
        raise error.at(spec.source) from None


def _cells(spec: Spec) -> Iterator[Cell]:
    for i, name in enumerate(spec.workloads):
        for preset in spec.presets:
            try:
                workload = load(name, preset)
            except UnknownWorkload as error:
                where = "preset" if name in families() else f"workloads[{i}]"
                raise SpecError(where, str(error)) from None
            weights = spec.weights or (None,) * len(spec.seeds)
            home, grid = _home(workload, name, preset), spec.grids[name]
            if spec.weights:
                _refuse_training(grid)
                home = replace(home, optimizer=IMPORTED, schedule={"shape": "constant"})
            yield from _cells_of(home, grid, list(zip(spec.seeds, weights, strict=True)), spec.trial(name), spec.fuse)


@dataclass(frozen=True)
class _Home:
    """A workload and what it says itself of optimizer, schedule and training, checked."""

    workload: Workload
    name: str
    preset: str
    optimizer: Mapping[str, Any]
    schedule: Mapping[str, Any]
    training: Mapping[str, Any]


def _home(workload: Workload, name: str, preset: str) -> _Home:
    """Raises: SpecError where a workload's own block holds what a study may not say."""

    def own(key: str, kind: type[Block]) -> Mapping[str, Any]:
        return own_block(kind, getattr(workload, key, {}), f"{name}: its own {key}").values

    blocks = own("optimizer", optimizer_block()), own("schedule", ScheduleBlock), own("training", OwnTrainingBlock)
    home = _Home(workload, name, preset, *blocks)
    schedule = home.schedule
    if schedule.get("shape") == "constant" and (schedule.get("lr_decay") or schedule.get("final_lr") not in (None, 1)):
        raise SpecError(f"{name}: its own schedule", f"a constant one does not decay; allowed: shape {DECAYING}")
    if "name" in home.optimizer:
        takes = ("name", *settings(home.optimizer["name"]), "grad_clip")
        for key in home.optimizer:
            if key not in takes:
                raise SpecError(f"{name}: its own optimizer.{key}", f"unknown key{among(key, takes)}")
    return home


def _refuse_training(grid: Grid) -> None:
    """Raises: SpecError where a study of imported weights says how they were, or are to be, trained."""
    for key, most in (("optimizer", set()), ("schedule", {"length"}), ("keep", set())):
        for written in getattr(grid, key):
            for told in written.axes:
                if told not in most:
                    said = "the weights are imported, and how they were trained is not known; leave it out"
                    raise SpecError(f"{written.path}.{told}", said)


Seeds = Sequence[tuple[int, str | None]]  # seeds, each with the imported weights of its training


def _cells_of(home: _Home, grid: Grid, seeds: Seeds, resources: ResourcesBlock, fuse: bool) -> Iterator[Cell]:
    workload, name, preset = home.workload, home.name, home.preset
    processes = resources.num_processes
    (at,) = points(grid.evaluate)
    evaluate = EvaluateBlock(**at.values)
    (keep,) = points(grid.keep)
    dtype = keep.values.get("dtype")
    budgets = [_budget(whole, evaluate, at, keep, home) for _, whole in grid.step_budget]
    optimizers = [_optimizer(placed, home) for placed in points(grid.optimizer)]
    trainings = [_training(placed, home, resources) for placed in points(grid.training)]
    averagings = points(grid.averaging)
    named = list(dict.fromkeys(optimizer for optimizer, _, _ in optimizers))
    seen: set[Training] = set()
    for total, every, kept in budgets:
        schedules = [{one: _schedule(placed, home, total, one) for one in named} for placed in points(grid.schedule)]
        lengths = {schedule.length_steps for by_name in schedules for schedule in by_name.values()}
        schemes = {length: _schemes(averagings, total, length, name) for length in sorted(lengths)}
        for by_name, (optimizer, values, clip) in itertools.product(schedules, optimizers):
            schedule = by_name[optimizer]
            averages = schemes[schedule.length_steps]
            for how, (seed, weights) in itertools.product(trainings, seeds):
                training = Training(name, preset, seed, total, optimizer, values, clip, schedule, *how, weights)
                if training in seen:
                    path = averagings[0].path
                    raise _twin(averages[0], path, path, name)
                seen.add(training)
                metric, higher = workload.metric, workload.higher_is_better
                can_be = None in averages and fuse and processes == 1  # a bracket needs the live curve beside it
                for scheme in averages:
                    asked = evaluate.averages if scheme is not None and can_be else "all"
                    yield Cell(training, scheme, every, metric, higher, evaluate.test, kept, dtype, asked)


def _budget(
    whole: int | float, evaluate: EvaluateBlock, at: Placed, keep: Placed, home: _Home
) -> tuple[int, int, int | None]:
    """(steps of the budget, steps between evaluations, steps between snapshots of a trace)."""
    total = to_steps(whole, home.workload.step_budget)
    every = to_steps(evaluate.every, total)
    if every > total:
        raise at.error("every", f"{_steps(every)}; allowed: at most the step budget, {_steps(total)}")
    if evaluate.test and "test" not in (there := splits(home.workload)):
        raise at.error("test", f"{home.name} ({home.preset}) has no test split; it has {', '.join(there)}")
    if keep.values.get("every") is None:
        if "dtype" in keep.values:
            raise keep.error("dtype", "nothing is kept without `every`; allowed: both")
        return total, every, None
    kept = to_steps(keep.values["every"], total)
    if kept > total:
        raise keep.error("every", f"{_steps(kept)}; allowed: at most the step budget, {_steps(total)}")
    return total, every, kept


def _steps(number: int) -> str:
    return counted(number, "step")


def to_steps(amount: int | float, whole: int, least: int = 1) -> int:
    """An int is steps; a float is a share of `whole`, rounded to at least `least` steps."""
    return amount if isinstance(amount, int) else max(least, round(amount * whole))


def _optimizer(placed: Placed, home: _Home) -> tuple[str, tuple[tuple[str, float], ...], float | None]:
    told, own = placed.values, home.optimizer
    if own == IMPORTED:
        return "imported", (), None
    optimizer = told.get("name", own.get("name"))
    if optimizer is None:
        raise SpecError(f"{home.name}: its own optimizer", "name is required, or `optimizer: {name: …}` in the study")
    takes = settings(optimizer)
    for key in told:
        if key not in (*takes, "name", "grad_clip"):
            raise placed.error(key, f"{optimizer} has no such setting; allowed: {', '.join(takes)}, grad_clip")
    # Left out: the workload's own value where its optimizer takes the same settings (adamw has those of nadamw).
    related = "name" in own and settings(own["name"]).keys() == takes.keys()
    values: dict[str, float] = {}
    for key, default in takes.items():
        value = told.get(key, own.get(key, default) if related else default)
        if value is None and own.get("name") == optimizer:
            raise SpecError(f"{home.name}: its own optimizer.{key}", f"is required by {optimizer}")
        if value is None:
            raise placed.error(key, f"is required: {home.name}'s own is for {own.get('name')}, not for {optimizer}")
        values[key] = float(value)
    if optimizer == "schedule_free_adamw" and values["beta1"] == 0:
        raise placed.error("beta1", "got 0: schedule-free averages with it; allowed: a number in (0, 1)")
    if values.get("nesterov") and not values["momentum"]:
        raise placed.error("nesterov", "looks ahead by the momentum, which is 0; allowed: with a momentum > 0")
    clip = told.get("grad_clip", own.get("grad_clip"))
    return optimizer, tuple(sorted(values.items())), None if clip is None else float(clip)


def _training(placed: Placed, home: _Home, resources: ResourcesBlock) -> tuple[str, str | None, int, int | None, bool]:
    workload, name, processes = home.workload, home.name, resources.num_processes
    precision = "tf32" if resources.gpu and home.preset == "full" and name in families() else "fp32"
    told: dict[str, Any] = {"precision": precision, "compile": False, "deterministic": True}
    told |= {**home.training, **placed.values}
    batch_size = _batch_size(placed, workload, name)
    # As many parts of a batch as the workload says, processes among them.
    accumulate = placed.values.get("accumulate", max(1, home.training.get("accumulate", 1) // processes))
    parts = accumulate * processes
    normed = getattr(workload, "batch_norm_parts", None)
    if normed and "accumulate" not in placed.values and parts != normed:
        raise placed.error(
            "accumulate",
            f"{name} computes batch norm over {normed} parts of a batch, which {processes} processes cannot share; "
            f"allowed: a number of processes that divides {normed}, or an accumulate of your own",
        )
    if parts > 1 and not takes_part(workload):
        said = f"{name} cannot divide a batch: its batches() takes no `part` (workloads/protocol.py)"
        raise placed.error("accumulate", said)
    whole = workload.batch_size if batch_size is None else batch_size
    if whole % parts:
        both = f"{counted(accumulate, 'micro-batch')} × {counted(processes, 'process')}"
        raise placed.error("accumulate", f"{both} do not divide a batch of {whole}; allowed: what divides it evenly")
    backend = {True: "inductor", False: None}.get(told["compile"], told["compile"])
    return told["precision"], backend, accumulate, batch_size, bool(told["deterministic"])


def _batch_size(placed: Placed, workload: Workload, name: str) -> int | None:
    """Examples a step; None where they are the workload's own: one training, one name."""
    own = workload.batch_size
    examples = to_steps(placed.values.get("batch_size", own), own)
    if examples == own:
        return None
    try:
        with_batch_size(workload, examples)
    except ValueError as error:
        raise placed.error("batch_size", f"{name} {error}; allowed: its own, {own}") from None
    return examples


def _schedule(placed: Placed, home: _Home, total: int, optimizer: str) -> Schedule:
    told = placed.values
    own = {key: field.default for key, field in ScheduleBlock.model_fields.items()} | dict(home.schedule)
    if optimizer == "schedule_free_adamw" and not {"lr_decay", "final_lr"} & told.keys():
        own["shape"] = "constant"  # what its name says, after the warm-up: its average stands in for a decay
    own |= told
    shape = cast(Shape, own["shape"])
    length = to_steps(own["length"], total)
    if length > total:
        raise placed.error("length", f"{_steps(length)}; allowed: at most the step budget, {_steps(total)}")
    if shape == "constant":
        for key in ("lr_decay", "final_lr"):
            if key in told:
                raise placed.error(key, f"a constant schedule does not decay; allowed: shape {DECAYING} with it")
    if shape != "power" and "power" in told:
        raise placed.error("power", f"is the exponent of shape power; got shape {shape}")
    warmup, final_lr = _share_of_length(own["warmup"], length), float(own["final_lr"])
    if shape == "inverse_sqrt" and warmup == 0:
        raise placed.error("shape", "inverse_sqrt falls as √(warmup / step); allowed: with a warmup of 1 step or more")
    if shape == "constant" or (shape == "inverse_sqrt" and own["lr_decay"] is None):
        decay = 0
    elif own["lr_decay"] is not None:
        decay = _share_of_length(own["lr_decay"], length)
    else:
        decay = max(0, length - warmup)
    if warmup + decay > length:
        key = "lr_decay" if "lr_decay" in told else "warmup"
        message = f"warm-up {warmup} + LR decay {_steps(decay)}; allowed: together at most the length, {_steps(length)}"
        raise placed.error(key, message)
    if decay == 0 or (final_lr == 1 and shape != "inverse_sqrt"):  # one training, one name
        shape, decay, final_lr = shape if shape == "inverse_sqrt" else "constant", 0, 1.0
    if shape == "inverse_sqrt" and decay and (left := math.sqrt(warmup / (length - decay))) < final_lr:
        raise placed.error("final_lr", f"got {final_lr:g}; allowed: at most {left:.3g}, where inverse_sqrt has come to")
    power = float(own["power"]) if shape == "power" else POWER
    if shape == "power" and power == 1:
        shape, power = "linear", POWER
    return Schedule(shape, length, warmup, decay, final_lr, power)


def _share_of_length(amount: int | float, length: int) -> int:
    return amount if isinstance(amount, int) else int(amount * length)  # int(): as AlgoPerf counts warm-up


def _scheme(placed: Placed, total: int, length: int) -> Scheme | None:
    """The average of a block, in steps."""
    block = cast(AveragingBlock, placed.block)
    if (kind := block.scheme_type) is None:
        return None
    values = {key: value for key, value in placed.values.items() if key != "scheme"}
    for key, (_, option) in options(kind).items():
        if option.steps and key in values:
            values[key] = to_steps(values[key], total, least=int(option.low != 0))
            if option.low == 0 and values[key] >= total:
                raise placed.error(key, f"{_steps(values[key])}; allowed: less than the step budget, {_steps(total)}")
    reach = next((key for key in instead(kind) if key in values), None)
    if reach is not None:
        values[reach] = _reach(placed, reach, values.get("every", 1), total)
    try:
        scheme: Scheme = (kind if reach is None else getattr(kind, f"from_{reach}"))(**values)
        exists = scheme.exists(length)
    except Exception as error:
        if ":" not in block.scheme:
            raise
        raise placed.error("scheme", f"{block.scheme} fails: {one_line(error)}") from None
    if isinstance(scheme, Windowed) and scheme.k * scheme.every > total:
        reaches = f"reaches {_steps(scheme.k * scheme.every)} back"
        raise placed.error(reach or "k", f"{reaches}; allowed: at most the step budget, {_steps(total)}")
    if not exists:
        raise placed.error("scheme", f"{scheme} has no average yet when training ends at step {length}")
    return scheme


def _reach(placed: Placed, key: str, every: int, total: int) -> float:
    """The steps under `key`, an int or a share of the step budget."""
    amount = placed.values[key]
    steps = float(amount) if isinstance(amount, int) else amount * total
    if steps > total:
        raise placed.error(key, f"{steps:g} steps; allowed: at most the step budget, {_steps(total)}")
    if steps < every:
        raise placed.error(key, f"{steps:g} steps; allowed: at least `every`, {_steps(every)}")
    return steps


def _schemes(placed: list[Placed], total: int, length: int, workload: str) -> list[Scheme | None]:
    """The averages of one training. Raises: SpecError also where two blocks mean the same."""
    seen: dict[Scheme | None, str] = {}
    for one in placed:
        scheme = _scheme(one, total, length)
        if scheme in seen:
            raise _twin(scheme, one.path, seen[scheme], workload)
        seen[scheme] = one.path
    return list(seen)


def _twin(scheme: Scheme | None, path: str, other: str, workload: str) -> SpecError:
    described = ", ".join(f"{key} {value}" for key, value in scheme_to_dict(scheme).items())
    return SpecError(path, f"duplicate cell: {described} on {workload} stands at {other} already")
