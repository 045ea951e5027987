"""Whether a workload keeps the protocol's promises (workloads/protocol.py), each tried on the real thing.

What rests on a broken promise is not asked: a check is left out where one that it needs has failed, and those by
the loop need all the others.
"""

from __future__ import annotations

import contextlib
import copy
import functools
import inspect
import io
import itertools
import math
import random
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from analysis.records import KEY, read_live, rows_to_table
from sweeps import trajectory
from sweeps.blocks import SpecError
from sweeps.cells import cells
from sweeps.evaluate import evaluate
from sweeps.identity import Cell
from sweeps.optimizers import OPTIMIZERS
from sweeps.plan import Trajectory, trajectories
from sweeps.spec import parse_spec
from wa.buffers import statistics_modules
from workloads.protocol import Batch, Part, Workload, load

EVAL_BATCHES = 2  # of the validation split, so that heavy workloads can be checked too
SEED = 5
CELLS: list[dict[str, Any]] = [
    {"scheme": "none"},
    {"scheme": "lawa", "k": 3, "every": 2},
    {"scheme": "ema", "decay": 0.8, "every": 3, "buffers": "average"},
]
RECOMPUTED = {"scheme": "tail", "start": 0.8, "every": 1, "buffers": "recompute"}


@dataclass(frozen=True)
class Check:
    """One promise; detail: what was tried, or what is broken and the remedy, in one line."""

    name: str
    ok: bool
    detail: str


class Broken(Exception):
    """A promise is not kept; the message names the remedy."""


def check(name: str, preset: str = "mini", steps: int = 24, folder: Path | None = None) -> Iterator[Check]:
    """Try every promise of workload `name`, a family or a user's ``"pkg.mod:Name"``.

    steps: how long the loop trains each time, at least 4. folder: where its temporary records lie.
    Raises: UnknownWorkload.
    """
    workload = _Shortened(load(name, preset))
    first = _tried("constants", lambda: _constants(workload, name, preset))
    yield first
    failed = set() if first.ok else {"constants", *CHECKS}
    for title, (examine, needs) in CHECKS.items():
        if failed.isdisjoint((title, *needs)):
            found = _tried(title, functools.partial(examine, workload))
            failed |= set() if found.ok else {title}
            yield found
        else:
            failed.add(title)
    if not failed:
        with tempfile.TemporaryDirectory(dir=folder) as temporary:
            yield from _by_the_loop(name, preset, steps, Path(temporary))


def _tried(name: str, examine: Callable[[], str]) -> Check:
    try:
        return Check(name, True, examine())
    except Broken as broken:
        return Check(name, False, str(broken))
    except Exception as error:  # the workload's own
        return Check(name, False, f"{type(error).__name__}: {' '.join(str(error).split())[:300]}")


def _hold(kept: bool, remedy: str) -> None:
    if not kept:
        raise Broken(remedy)


class _Shortened:
    """A workload with the first EVAL_BATCHES validation batches."""

    def __init__(self, workload: Workload) -> None:
        self._workload = workload

        @functools.wraps(workload.eval_batches)
        def first(*args: Any, **kwargs: Any) -> list[Batch]:
            return list(itertools.islice(workload.eval_batches(*args, **kwargs), EVAL_BATCHES))

        self.eval_batches = first

    def __getattr__(self, name: str) -> Any:
        return getattr(self._workload, name)


def shortened(preset: str) -> _Shortened:
    """What the loop loads for preset ``"NAME@PRESET"`` of workload ``"sweeps.conformance:shortened"``."""
    name, _, own = preset.rpartition("@")
    return _Shortened(load(name, own))


# --- batches, random states ----------------------------------------------------------------------------------------


def _tensors(batch: Batch) -> list[Tensor]:
    if isinstance(batch, Tensor):
        return [batch]
    if isinstance(batch, Mapping):
        batch = batch.values()
    return [t for part in batch for t in _tensors(part)] if _is_nested(batch) else []


def _is_nested(value: object) -> bool:
    return isinstance(value, Iterable) and not isinstance(value, (str, bytes))


def _equal(one: list[Tensor], other: list[Tensor]) -> bool:
    return len(one) == len(other) and all(
        a.dtype == b.dtype and torch.equal(a.nan_to_num(), b.nan_to_num())
        for a, b in zip(one, other, strict=True)
    )


def _copied(batch: Batch) -> list[Tensor]:
    return [tensor.clone() for tensor in _tensors(batch)]


def _addresses(batch: Batch) -> set[int]:
    return {tensor.untyped_storage().data_ptr() for tensor in _tensors(batch) if tensor.numel()}


def _taken(workload: Workload, seed: int, first_step: int, count: int) -> list[list[Tensor]]:
    return [_copied(batch) for batch in itertools.islice(workload.batches(seed, first_step), count)]


def _random_states() -> list[Any]:
    return [
        torch.get_rng_state().tolist(),
        np.random.get_state()[1].tolist(),  # type: ignore[index]  # noqa: NPY002
        random.getstate(),
    ]


def _seed_all(seed: int) -> None:
    torch.manual_seed(seed)
    _seed_others(seed)


def _seed_others(seed: int) -> None:
    np.random.seed(seed)  # noqa: NPY002
    random.seed(seed)


def _model(workload: Workload, seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return workload.model()


def _same_state(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    return list(one) == list(other) and all(
        _equal(_tensors(a), _tensors(b)) for a, b in zip(one.values(), other.values(), strict=True)
    )


# --- each promise --------------------------------------------------------------------------------------------------


def _constants(workload: Workload, name: str, preset: str) -> str:
    for key in ("step_budget", "batch_size"):
        value = getattr(workload, key)
        _hold(type(value) is int and value >= 1, f"{key} is {value!r}; make it an int ≥ 1")
    _hold(
        isinstance(workload.metric, str) and bool(workload.metric),
        "metric must name the target metric: a str",
    )
    _hold(isinstance(workload.higher_is_better, bool), "higher_is_better must be True or False")
    for key in ("step_seconds", "eval_seconds"):
        value = getattr(workload, key, 1.0)
        _hold(
            isinstance(value, (int, float)) and 0 < value < math.inf,
            f"{key} is {value!r}; make it seconds > 0, or leave it out",
        )
    if hasattr(workload, "check_data"):
        workload.check_data()
    own = {key: value for key, value in workload.schedule.items() if key != "length"}
    for block in ({"optimizer": dict(workload.optimizer), "schedule": own}, {}):
        try:
            _cells(name, preset, 1.0, CELLS[:1], **block)
        except SpecError as error:
            raise Broken(f"its own optimizer and schedule blocks do not hold: {error}") from None
    return f"{workload.step_budget} steps of {workload.batch_size}, metric {workload.metric}"


def _model_is_seeded(workload: Workload) -> str:
    states = []
    for seed, others in ((0, 0), (0, 1), (1, 0)):
        _seed_others(others)
        model = _model(workload, seed)
        states.append(copy.deepcopy(model.state_dict()))
        on = {tensor.device.type for tensor in (*model.parameters(), *model.buffers())}
        _hold(on <= {"cpu"}, f"model() builds on {on}; build it on the CPU, the trainer moves it")
    _hold(
        _same_state(states[0], states[1]),
        "model() twice under one torch.manual_seed differs; draw its weights from torch's global generator only",
    )
    _hold(
        not _same_state(states[0], states[2]),
        "model() is the same under every torch.manual_seed; do not seed inside it",
    )
    parameters = sum(p.numel() for p in model.parameters())
    _hold(parameters > 0, "model() has no parameters; there is nothing to train")
    return f"{parameters:,} parameters, a function of torch's seed"


def _batches_resume(workload: Workload) -> str:
    _seed_all(0)
    whole = _taken(workload, SEED, 1, 7)
    _seed_all(1)
    before = _random_states()
    again = _taken(workload, SEED, 1, 7)
    drew = before != _random_states()
    late = _taken(workload, SEED, 4, 4)
    _hold(
        all(map(_equal, whole, again)),
        "batches(seed, 1) twice differs; draw batch s from numpy.random.default_rng([seed, s]), not global state",
    )
    _hold(
        not drew,
        "batches() draws from a global generator; use numpy.random.default_rng([seed, s]) of its own",
    )
    _hold(
        all(map(_equal, whole[3:], late)),
        "batches(seed, 4) is not batches(seed, 1) without its first 3; make batch s a function of (seed, s)",
    )
    return "batch s is a function of (seed, s)"


def _batches_differ(workload: Workload) -> str:
    found = [_taken(workload, seed, step, 1)[0] for seed, step in ((0, 1), (0, 2), (1, 1), (1, 2), (2, 1))]
    _hold(
        not any(_equal(one, other) for one, other in itertools.combinations(found, 2)),
        "two seeds or two steps give one batch; let both count: numpy.random.default_rng([seed, s])",
    )
    return "other seeds and steps give other batches"


def _batches_are_fresh(workload: Workload) -> str:
    stream = workload.batches(SEED, 1)
    one = next(stream)
    kept = _copied(one)
    later, same = next(stream), next(workload.batches(SEED, 1))
    _hold(_equal(kept, _tensors(one)), "batches() writes into a batch it has given away; give a new one each")
    shared = _addresses(one) & (_addresses(later) | _addresses(same))
    _hold(not shared, "a batch shares memory with a cache or another batch; give a copy (index, or .clone())")
    return "every batch has its own memory"


def _eval_batches_repeat(workload: Workload) -> str:
    one = [_copied(batch) for batch in workload.eval_batches("validation")]
    _seed_all(3)
    other = [_copied(batch) for batch in workload.eval_batches("validation")]
    _hold(len(one) > 0, 'eval_batches("validation") is empty; give at least one batch')
    _hold(
        len(one) == len(other) and all(map(_equal, one, other)),
        'eval_batches("validation") twice differs; give the same batches in the same order at every call',
    )
    return f"the first {len(one)} validation batches, twice the same"


def _eval_step_leaves_no_trace(workload: Workload) -> str:
    model = _model(workload).eval()
    state = copy.deepcopy(model.state_dict())
    modes = [module.training for module in model.modules()]
    batch = next(iter(workload.eval_batches("validation")))
    kept, found = _copied(batch), []
    with torch.no_grad():
        for seed in (0, 1):
            _seed_all(seed)
            before = _random_states()
            found.append(workload.eval_step(model, batch))
            _hold(
                before == _random_states(), "eval_step draws random numbers; evaluate without (dropout off)"
            )
            _hold(
                [module.training for module in model.modules()] == modes,
                "eval_step changes the model's mode; leave train() and eval() to the trainer",
            )
    _hold(
        _same_state(state, model.state_dict()),
        "eval_step changes weights or buffers; only compute with the model, in the mode it has",
    )
    _hold(_equal(kept, _tensors(batch)), "eval_step writes into its batch; work on a copy")
    for key, value in found[0].items():
        _hold(isinstance(value, Tensor), f"eval_step's {key!r} is a {type(value).__name__}; make it a tensor")
        _hold(not value.requires_grad, f"eval_step's {key!r} needs gradients; leave torch.no_grad alone")
    _hold(
        set(found[0]) == set(found[1]) and all(_equal([v], [found[1][k]]) for k, v in found[0].items()),
        "eval_step twice differs; let it depend on the model and the batch alone",
    )
    return f"sums {', '.join(sorted(found[0]))}; weights, modes, random state and batch as before"


def _summary_is_finite(workload: Workload) -> str:
    summary = evaluate(workload, _model(workload), workload.eval_batches("validation"))
    values = {"loss": summary.loss, "metric": summary.metric, **summary.metrics}
    for key, value in values.items():
        _hold(
            math.isfinite(float(value)),
            f"summarize's {key} is {value} on the first {EVAL_BATCHES} validation batches; make it finite",
        )
    _hold(
        int(summary.examples) == summary.examples >= 1,
        f"summarize's examples is {summary.examples}; give how many were evaluated",
    )
    shown = ", ".join(f"{key} {float(value):.4g}" for key, value in values.items())
    return f"{shown} over {int(summary.examples)} examples of {EVAL_BATCHES} validation batches"


def _loss_is_a_loss(workload: Workload) -> str:
    batch, losses = next(workload.batches(SEED, 1)), []
    for seed in (0, 1):
        model = _model(workload).train()
        torch.manual_seed(7)
        _seed_others(seed)
        losses.append(workload.loss(model, batch))
    loss = losses[0]
    _hold(
        isinstance(loss, Tensor) and loss.ndim == 0, "loss must return a tensor without axes; take its mean"
    )
    _hold(bool(torch.isfinite(loss)), f"loss is {float(loss.detach())} at the start; make it finite")
    _hold(loss.requires_grad, "loss has no gradient; compute it from the model without detach() or no_grad")
    _hold(
        torch.equal(loss, losses[1]),
        "loss under one torch.manual_seed differs; let all it draws (dropout) come from torch's generator",
    )
    losses[1].backward()  # type: ignore[no-untyped-call]
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    _hold(bool(gradients), "loss reaches no parameter; compute it from the model")
    _hold(all(bool(g.isfinite().all()) for g in gradients), "loss has gradients that are not finite")
    return f"{float(loss.detach()):.4g} at the start, {len(gradients)} of {_count(model)} parameters get a gradient"


def _count(model: nn.Module) -> int:
    return len(list(model.parameters()))


def _training_lowers_the_loss(workload: Workload) -> str:
    model, num_steps = _model(workload).train(), 40
    seen = list(itertools.islice(workload.batches(SEED, 1), 8))
    before = _mean_loss(workload, model, seen)
    _trained(workload, model, num_steps)
    after = _mean_loss(workload, model, seen)
    _hold(
        after < before,
        f"{num_steps} steps of its own optimizer take the loss of the first {len(seen)} batches from {before:.4g} "
        f"to {after:.4g}; mend the loss, or lower the optimizer's lr",
    )
    return f"{before:.4g} → {after:.4g} on {len(seen)} batches after {num_steps} steps of its own optimizer"


def _mean_loss(workload: Workload, model: nn.Module, batches: list[Batch]) -> float:
    model = copy.deepcopy(model)
    torch.manual_seed(0)
    with torch.no_grad():
        return float(np.mean([float(workload.loss(model, batch)) for batch in batches]))


def _trained(workload: Workload, model: nn.Module, num_steps: int) -> None:
    own = dict(workload.optimizer)
    build, clip = OPTIMIZERS[own.pop("name")], own.pop("grad_clip", None)
    optimizer = build(model.parameters(), **own)
    for step, batch in enumerate(itertools.islice(workload.batches(SEED, 1), num_steps), start=1):
        for group in optimizer.param_groups:
            group["lr"] = own["lr"] * min(1.0, 4 * step / num_steps)
        optimizer.zero_grad()
        workload.loss(model, batch).backward()  # type: ignore[no-untyped-call]
        if clip is not None:
            nn.utils.clip_grad_norm_(model.parameters(), clip)
        optimizer.step()


def _state_dict_is_all(workload: Workload) -> str:
    model = _model(workload).train()
    _trained(workload, model, 5)
    buffer = io.BytesIO()
    torch.save(model.state_dict(), buffer)
    buffer.seek(0)
    fresh = _model(workload, seed=1).train()
    fresh.load_state_dict(torch.load(buffer, weights_only=True))
    unseen = next(workload.batches(SEED + 1, 6))
    for mode in (False, True):
        losses = []
        for one in (model, fresh):
            torch.manual_seed(2)
            with torch.no_grad():
                losses.append(workload.loss(one.train(mode), unseen))
        _hold(
            torch.equal(*losses),
            "a fresh model with the trained one's state dict has another loss; keep all that changes "
            "in parameters and buffers (register_buffer)",
        )
    return "a fresh model with the trained one's state dict has the same loss, bit for bit"


def _parts_make_up_the_whole(workload: Workload) -> str:
    if "part" not in inspect.signature(workload.batches).parameters:
        return "batches() takes no part: it trains in one process and one piece"
    if workload.batch_size < 2:
        return "a batch of one example has no parts"
    model = _model(workload).eval()
    weigh = getattr(workload, "loss_weight", lambda _: 1.0)

    def loss_and_weight(part: Part) -> tuple[float, float]:
        batch = next(workload.batches(SEED, 3, part))
        return float(workload.loss(model, batch)), float(weigh(batch))

    with torch.no_grad():
        whole, _ = loss_and_weight(Part(0, 1))
        parts = [loss_and_weight(Part(i, 2)) for i in range(2)]
    joined = sum(loss * weight for loss, weight in parts) / sum(weight for _, weight in parts)
    _hold(
        math.isclose(joined, whole, rel_tol=1e-5, abs_tol=1e-7),
        f"two parts of a batch say loss {joined:.7g}, the whole {whole:.7g}; let the parts hold each example once, "
        "and loss_weight(batch) be what the loss is a mean over",
    )
    every = [_copied(batch) for batch in workload.eval_batches("validation")]
    for i in range(2):
        share = [_copied(batch) for batch in workload.eval_batches("validation", Part(i, 2))]
        _hold(
            len(every[i::2]) <= len(share) and all(map(_equal, every[i::2], share)),
            "eval_batches(part) is not every count-th batch from batch index on; give itertools.islice of the whole",
        )
    return f"two parts weigh up to the whole's loss {whole:.6g} within 1e-5; validation batches interleave"


# name -> what tries it, and the checks it needs
CHECKS: dict[str, tuple[Callable[[Workload], str], tuple[str, ...]]] = {
    "model": (_model_is_seeded, ()),
    "batches resume": (_batches_resume, ()),
    "batches differ": (_batches_differ, ("batches resume",)),
    "batches are fresh": (_batches_are_fresh, ("batches resume",)),
    "eval batches repeat": (_eval_batches_repeat, ()),
    "eval step": (_eval_step_leaves_no_trace, ("eval batches repeat",)),
    "summary": (_summary_is_finite, ("eval step",)),
    "loss": (_loss_is_a_loss, ("model", "batches resume")),
    "learns": (_training_lowers_the_loss, ("loss", "batches are fresh")),
    "state dict": (_state_dict_is_all, ("loss",)),
    "parts": (_parts_make_up_the_whole, ("loss", "eval batches repeat")),
}


# --- by the loop ---------------------------------------------------------------------------------------------------


class _Stop(Exception):
    """Ends a trajectory as a kill would, in process."""


def _by_the_loop(name: str, preset: str, steps: int, folder: Path) -> Iterator[Check]:
    schemes = [*CELLS, RECOMPUTED] if statistics_modules(_model(load(name, preset))) else CELLS
    found = _cells("sweeps.conformance:shortened", f"{name}@{preset}", steps, schemes)
    (fused,) = trajectories(found, fuse=True)
    alone = {one.cells[0].cell_id: one for one in trajectories(found, fuse=False)}
    by_cell: dict[str, pd.DataFrame] = {}
    together = pd.DataFrame()

    def again() -> str:
        live = alone[found[0].cell_id]
        once, twice = (_records(live, folder / place) for place in ("once", "twice"))
        _hold(
            once.equals(twice),
            f"two runs of {steps} steps in one process differ{_where(once, twice)}; keep no state between "
            "calls, and draw from torch's generator only",
        )
        by_cell[found[0].cell_id] = once
        return f"two runs of {steps} steps in one process, the same records bit for bit"

    def separately() -> str:
        nonlocal together
        together = _records(fused, folder / "fused")
        for cell in found[1:]:
            by_cell[cell.cell_id] = _records(alone[cell.cell_id], folder / cell.cell_id)
        rows = pd.concat(by_cell.values()).sort_values(KEY).reset_index(drop=True)
        _hold(
            together.equals(rows),
            f"{len(found)} cells in one run and in a run each differ{_where(together, rows)}; evaluating must "
            "leave no trace in the model or the workload",
        )
        return f"{len(found)} cells in one run and in a run each, the same records bit for bit"

    def interrupted() -> str:
        every = fused.cells[0].evaluate_every_steps
        stops = [every, 2 * every, 3 * every]
        for stop in stops:
            _run_until(fused, folder / "interrupted", stop)
        rows = _records(fused, folder / "interrupted")
        _hold(
            together.equals(rows),
            f"a run interrupted at steps {stops} and one undisturbed differ{_where(together, rows)}; keep all "
            "that changes in the model's parameters and buffers, and make batch s a function of (seed, s)",
        )
        return f"interrupted at steps {', '.join(map(str, stops))} and gone on, the same records bit for bit"

    for title, examine in (("reproducible", again), ("fused", separately), ("resumed", interrupted)):
        result = _tried(title, examine)
        yield result
        if not result.ok:
            return


def _cells(
    name: str, preset: str, step_budget: int | float, averaging: list[dict[str, Any]], **blocks: Any
) -> list[Cell]:
    every = max(1, int(step_budget) // 4) if isinstance(step_budget, int) else 0.25
    study = {"study": "conformance", "workloads": [name], "preset": preset, "seeds": [SEED]}
    spec = parse_spec(
        study | {"step_budget": step_budget, "averaging": averaging, "evaluate": {"every": every}} | blocks
    )
    return cells(spec)


def _records(one: Trajectory, folder: Path) -> pd.DataFrame:
    """What a run records, the measured seconds apart."""
    trajectory.run(one, folder, checkpoint_seconds=0)
    table = rows_to_table(list(read_live(folder / "records.jsonl"))).to_pandas()
    measured = [column for column in table if column.endswith("_seconds")]
    kept: pd.DataFrame = table.drop(columns=measured).sort_values(KEY).reset_index(drop=True)
    return kept


def _run_until(one: Trajectory, folder: Path, step: int) -> None:
    def report(progress: trajectory.Progress) -> None:
        if progress.step >= step:
            raise _Stop

    with contextlib.suppress(_Stop):
        trajectory.run(one, folder, checkpoint_seconds=0, report=report)


def _where(one: pd.DataFrame, other: pd.DataFrame) -> str:
    both = one.merge(other, on=KEY, how="outer", suffixes=("", "_other"))
    steps = both.loc[
        ~((both["loss"] == both["loss_other"]) & (both["metric"] == both["metric_other"])), "step"
    ]
    return f" from step {steps.min()} on" if len(steps) else ""
