"""Spec -> cells: every point of the grid, resolved to steps by the constants of its workload."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, cast

from sweeps.axes import Grid, Placed, expand, known
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
)
from sweeps.identity import Cell, Scheme, Training, scheme_to_dict
from sweeps.optimizers import settings
from sweeps.schedules import Schedule, Shape
from sweeps.spec import Spec
from sweeps.wording import counted
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
            processes = spec.resources.num_processes
            yield from _cells_of(_home(workload, name, preset), spec.grids[name], spec.seeds, processes)


@dataclass(frozen=True)
class _Home:
    """A workload and what it says itself of optimizer, schedule and training, checked."""

    workload: Workload
    name: str
    preset: str
    optimizer: OptimizerBlock
    schedule: ScheduleBlock
    training: TrainingBlock


def _home(workload: Workload, name: str, preset: str) -> _Home:
    """Raises: SpecError where a workload's own block holds what a study may not say."""
    own: dict[str, Any] = {}
    for key, kind in (
        ("optimizer", OptimizerBlock),
        ("schedule", ScheduleBlock),
        ("training", TrainingBlock),
    ):
        at = f"{name}: its own {key}"
        own[key] = expand(kind, getattr(workload, key, {}), at, axes=False)[0].block
    home = _Home(workload, name, preset, **own)
    if home.training.batch_size is not None:
        at = f"{name}: its own training.batch_size"
        raise SpecError(at, "its attribute `batch_size` says it; allowed: precision, compile, accumulate")
    if home.schedule.shape == "constant" and (home.schedule.lr_decay or home.schedule.final_lr not in (None, 1)):
        raise SpecError(f"{name}: its own schedule", "a constant one does not decay; allowed: shape linear or cosine")
    if home.optimizer.name is not None:
        takes = ("name", *settings(home.optimizer.name), "grad_clip")
        known(home.optimizer.model_dump(exclude_none=True), takes, f"{name}: its own optimizer")
    return home


def _cells_of(home: _Home, grid: Grid, seeds: tuple[int, ...], processes: int) -> Iterator[Cell]:
    workload, name, preset = home.workload, home.name, home.preset
    budgets = [_budget(placed, grid.evaluate, home) for placed in grid.step_budgets]
    optimizers = [_optimizer(placed, home) for placed in grid.optimizers]
    trainings = [_training(placed, home, processes) for placed in grid.trainings]
    named = list(dict.fromkeys(optimizer for optimizer, _, _ in optimizers))
    seen: set[Training] = set()
    for total, every in budgets:
        schedules = [{one: _schedule(placed, home, total, one) for one in named} for placed in grid.schedules]
        lengths = {schedule.length_steps for by_name in schedules for schedule in by_name.values()}
        schemes = {length: _schemes(grid.averagings, total, length, name) for length in sorted(lengths)}
        for by_name, (optimizer, values, clip) in itertools.product(schedules, optimizers):
            schedule = by_name[optimizer]
            averages = schemes[schedule.length_steps]
            for how, seed in itertools.product(trainings, seeds):
                training = Training(name, preset, seed, total, optimizer, values, clip, schedule, *how)
                if training in seen:
                    path = grid.averagings[0].path
                    raise _twin(averages[0], path, path, name)
                seen.add(training)
                metric, higher, test = workload.metric, workload.higher_is_better, grid.evaluate.block.test
                for scheme in averages:
                    yield Cell(training, scheme, every, metric, higher, test)


def _budget(placed: Placed, at: Placed, home: _Home) -> tuple[int, int]:
    """(steps of the budget, steps between evaluations)."""
    evaluate: EvaluateBlock = at.block
    whole: int | float = placed.block
    total = whole if isinstance(whole, int) else max(1, round(whole * home.workload.step_budget))
    every = to_steps(evaluate.every, total)
    if every > total:
        raise at.error("every", f"{_steps(every)}; allowed: at most the step budget, {_steps(total)}")
    if evaluate.test and "test" not in (there := splits(home.workload)):
        raise at.error("test", f"{home.name} ({home.preset}) has no test split; it has {', '.join(there)}")
    return total, every


def _steps(number: int) -> str:
    return counted(number, "step")


def to_steps(amount: int | float, whole: int, least: int = 1) -> int:
    """An int is steps; a float is a share of `whole`, rounded to at least `least` steps."""
    return amount if isinstance(amount, int) else max(least, round(amount * whole))


def _optimizer(placed: Placed, home: _Home) -> tuple[str, tuple[tuple[str, float], ...], float | None]:
    block: OptimizerBlock = placed.block
    name, own = home.name, home.optimizer
    optimizer = block.name or own.name
    if optimizer is None:
        raise SpecError(f"{name}: its own optimizer", "name is required, or `optimizer: {name: …}` in the study")
    takes = settings(optimizer)
    values: dict[str, float] = {}
    for key in type(block).model_fields:
        value = getattr(block, key)
        if value is None or key in ("name", "grad_clip"):
            continue
        if key not in takes:
            raise placed.error(key, f"{optimizer} has no such setting; allowed: {', '.join(takes)}, grad_clip")
        values[key] = float(value)
    for key, default in takes.items():
        if key not in values:
            value = _left_out(key, optimizer, own, default)
            if value is None:
                if own.name == optimizer:
                    raise SpecError(f"{name}: its own optimizer.{key}", f"is required by {optimizer}")
                raise placed.error(key, f"is required: {name}'s own is for {own.name}, not for {optimizer}")
            values[key] = float(value)
    if optimizer == "schedule_free_adamw" and values["beta1"] == 0:
        raise placed.error("beta1", "got 0: schedule-free averages with it; allowed: a number in (0, 1)")
    if values.get("nesterov") and not values["momentum"]:
        raise placed.error("nesterov", "looks ahead by the momentum, which is 0; allowed: with a momentum > 0")
    clip = block.grad_clip if block.grad_clip is not None else own.grad_clip
    return optimizer, tuple(sorted(values.items())), None if clip is None else float(clip)


def _left_out(key: str, optimizer: str, own: OptimizerBlock, default: float | None) -> float | None:
    """What a setting is that the study leaves out; None where it must be given.

    The workload's own value where its optimizer takes the same settings (adamw has those of nadamw), else the
    optimizer's default.
    """
    related = own.name is not None and settings(own.name).keys() == settings(optimizer).keys()
    mine: float | None = getattr(own, key) if related else None
    return default if mine is None else mine


def _training(placed: Placed, home: _Home, processes: int) -> tuple[str, str | None, int, int | None]:
    block: TrainingBlock = placed.block
    workload, name, own = home.workload, home.name, home.training
    batch_size = _batch_size(placed, workload, name)
    precision = block.precision or own.precision or "fp32"
    compiled = block.compile if block.compile is not None else own.compile or False
    # As many parts of a batch as the workload says, processes among them.
    accumulate = block.accumulate or max(1, (own.accumulate or 1) // processes)
    parts = accumulate * processes
    normed = getattr(workload, "batch_norm_parts", None)
    if normed and not block.accumulate and parts != normed:
        raise placed.error(
            "accumulate",
            f"{name} computes batch norm over {normed} parts of a batch, which {processes} processes cannot share; "
            f"allowed: a number of processes that divides {normed}, or an accumulate of your own",
        )
    if parts > 1 and not takes_part(workload):
        raise placed.error(
            "accumulate",
            f"{name} cannot divide a batch: its batches() takes no `part` (workloads/protocol.py)",
        )
    whole = workload.batch_size if batch_size is None else batch_size
    if whole % parts:
        both = f"{counted(accumulate, 'micro-batch')} × {counted(processes, 'process')}"
        message = f"{both} do not divide a batch of {whole}"
        raise placed.error("accumulate", f"{message}; allowed: what divides it evenly")
    backend = ("inductor" if compiled else None) if isinstance(compiled, bool) else str(compiled)
    return precision, backend, accumulate, batch_size


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


def _schedule(placed: Placed, home: _Home, total: int, optimizer: str) -> Schedule:
    block: ScheduleBlock = placed.block
    own: dict[str, Any] = {"shape": "cosine", "length": 1.0, "warmup": 0.0, "lr_decay": None, "final_lr": 0.0}
    own |= home.schedule.model_dump(exclude_unset=True)
    if optimizer == "schedule_free_adamw" and block.lr_decay is None and block.final_lr is None:
        own["shape"] = "constant"  # what its name says, after the warm-up: its average stands in for a decay
    own |= block.model_dump(exclude_none=True)
    shape = cast(Shape, own["shape"])
    length = to_steps(own["length"], total)
    if length > total:
        raise placed.error("length", f"{_steps(length)}; allowed: at most the step budget, {_steps(total)}")
    if shape == "constant":
        for key in ("lr_decay", "final_lr"):
            if getattr(block, key) is not None:
                raise placed.error(key, "a constant schedule does not decay; allowed: shape linear or cosine with it")
    warmup, final_lr = _share_of_length(own["warmup"], length), float(own["final_lr"])
    if shape == "constant":
        decay = 0
    elif own["lr_decay"] is not None:
        decay = _share_of_length(own["lr_decay"], length)
    else:
        decay = max(0, length - warmup)
    if warmup + decay > length:
        key = "lr_decay" if block.lr_decay is not None else "warmup"
        message = f"warm-up {warmup} + LR decay {_steps(decay)}; allowed: together at most the length, {_steps(length)}"
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
            f"reaches {_steps(k * every)} back; allowed: at most the step budget, {_steps(total)}",
        )
    return k


def _reach(placed: Placed, key: str, every: int, total: int) -> float | None:
    """The steps under `key`, an int or a share of the step budget; None where it is left out."""
    amount: int | float | None = getattr(placed.block, key)
    if amount is None:
        return None
    steps = float(amount) if isinstance(amount, int) else amount * total
    if steps > total:
        raise placed.error(key, f"{steps:g} steps; allowed: at most the step budget, {_steps(total)}")
    if steps < every:
        raise placed.error(key, f"{steps:g} steps; allowed: at least `every`, {_steps(every)}")
    return steps


def _within(placed: Placed, scheme: Scheme, key: str, start: int, total: int, length: int) -> Scheme:
    if start >= total:
        raise placed.error(key, f"{_steps(start)}; allowed: less than the step budget, {_steps(total)}")
    if not scheme.exists(length):
        raise placed.error("scheme", f"{scheme} has no average yet when training ends at step {length}")
    return scheme


def _schemes(placed: tuple[Placed, ...], total: int, length: int, workload: str) -> list[Scheme | None]:
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
