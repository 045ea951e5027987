"""The promises of a workload, each tried on the real thing: what is tried, or `Broken` with the remedy."""

from __future__ import annotations

import copy
import inspect
import io
import itertools
import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from sweeps import random_streams
from sweeps.blocks import SpecError
from sweeps.cells import cells
from sweeps.evaluate import evaluate
from sweeps.identity import Cell
from sweeps.optimizers import OPTIMIZERS
from sweeps.random_streams import seed_all
from sweeps.spec import parse_spec
from workloads.protocol import Batch, Part, Workload

EVAL_BATCHES = 2  # of the validation split, so that heavy workloads can be checked too
SEED = 5


class Broken(Exception):
    """A promise is not kept; the message names the remedy."""


def hold(kept: bool, remedy: str) -> None:
    if not kept:
        raise Broken(remedy)


def tensors(batch: Batch) -> list[Tensor]:
    """The tensors of a batch, however nested."""
    if isinstance(batch, Tensor):
        return [batch]
    parts = batch.values() if isinstance(batch, Mapping) else batch
    is_nested = isinstance(parts, Iterable) and not isinstance(parts, (str, bytes))
    return [t for part in parts for t in tensors(part)] if is_nested else []


def equal(one: list[Tensor], other: list[Tensor]) -> bool:
    return len(one) == len(other) and all(
        a.dtype == b.dtype and torch.equal(a.nan_to_num(), b.nan_to_num()) for a, b in zip(one, other, strict=True)
    )


def copied(batch: Batch) -> list[Tensor]:
    return [tensor.clone() for tensor in tensors(batch)]


def addresses(batch: Batch) -> set[int]:
    return {tensor.untyped_storage().data_ptr() for tensor in tensors(batch) if tensor.numel()}


def cells_of(
    name: str, preset: str, step_budget: int | float, averaging: list[dict[str, Any]], **blocks: Any
) -> list[Cell]:
    every = max(1, step_budget // 4) if isinstance(step_budget, int) else 0.25
    study = {"study": "conformance", "workloads": [name], "preset": preset, "seeds": [SEED]}
    how = {"step_budget": step_budget, "averaging": averaging, "evaluate": {"every": every}}
    return cells(parse_spec(study | how | blocks))


def _taken(workload: Workload, seed: int, first_step: int, count: int) -> list[list[Tensor]]:
    return [copied(batch) for batch in itertools.islice(workload.batches(seed, first_step), count)]


def _streams_are(before: random_streams.Streams) -> bool:
    return all(torch.equal(now, before[name]) for name, now in random_streams.read(cuda=False).items())


def fresh_model(workload: Workload, seed: int = 0) -> nn.Module:
    seed_all(seed)
    return workload.model()


def _same_state(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    return list(one) == list(other) and all(
        equal(tensors(a), tensors(b)) for a, b in zip(one.values(), other.values(), strict=True)
    )


def constants(workload: Workload, name: str, preset: str) -> str:
    """What loading has not looked at (workloads/dotted.py)."""
    for key in ("step_seconds", "eval_seconds"):
        value = getattr(workload, key, 1.0)
        hold(
            isinstance(value, (int, float)) and 0 < value < math.inf,
            f"{key} is {value!r}; make it seconds > 0, or leave it out",
        )
    if hasattr(workload, "check_data"):
        workload.check_data()
    own = {key: value for key, value in workload.schedule.items() if key != "length"}
    for block in ({"optimizer": dict(workload.optimizer), "schedule": own}, {}):
        try:
            cells_of(name, preset, 1.0, [{"scheme": "none"}], **block)
        except SpecError as error:
            raise Broken(f"its own optimizer and schedule blocks do not hold: {error}") from None
    return f"{workload.step_budget} steps of {workload.batch_size}, metric {workload.metric}"


def _model_is_seeded(workload: Workload) -> str:
    states = []
    for seed in (0, 0, 1):
        model = fresh_model(workload, seed)
        states.append(copy.deepcopy(model.state_dict()))
        on = {tensor.device.type for tensor in (*model.parameters(), *model.buffers())}
        hold(on <= {"cpu"}, f"model() builds on {on}; build it on the CPU, the trainer moves it")
    hold(
        _same_state(states[0], states[1]),
        "model() twice under one seed differs; draw its weights from the global random streams alone (torch's, "
        "numpy's, Python's), which the trainer seeds",
    )
    hold(not _same_state(states[0], states[2]), "model() is the same under every seed; do not seed inside it")
    parameters = sum(p.numel() for p in model.parameters())
    hold(parameters > 0, "model() has no parameters; there is nothing to train")
    return f"{parameters:,} parameters, a function of the seed"


def _batches_resume(workload: Workload) -> str:
    seed_all(0)
    whole = _taken(workload, SEED, 1, 7)
    seed_all(1)
    before = random_streams.read(cuda=False)
    again = _taken(workload, SEED, 1, 7)
    drew = not _streams_are(before)
    late = _taken(workload, SEED, 4, 4)
    hold(
        all(map(equal, whole, again)),
        "batches(seed, 1) twice differs; draw batch s from numpy.random.default_rng([seed, s]), not global state",
    )
    hold(not drew, "batches() draws from a global generator; use numpy.random.default_rng([seed, s]) of its own")
    hold(
        all(map(equal, whole[3:], late)),
        "batches(seed, 4) is not batches(seed, 1) without its first 3; make batch s a function of (seed, s)",
    )
    return "batch s is a function of (seed, s)"


def _batches_differ(workload: Workload) -> str:
    found = [_taken(workload, seed, step, 1)[0] for seed, step in ((0, 1), (0, 2), (1, 1), (1, 2), (2, 1))]
    hold(
        not any(equal(one, other) for one, other in itertools.combinations(found, 2)),
        "two seeds or two steps give one batch; let both count: numpy.random.default_rng([seed, s])",
    )
    return "other seeds and steps give other batches"


def _batches_are_fresh(workload: Workload) -> str:
    stream = workload.batches(SEED, 1)
    one = next(stream)
    kept = copied(one)
    later, same = next(stream), next(workload.batches(SEED, 1))
    hold(equal(kept, tensors(one)), "batches() writes into a batch it has given away; give a new one each")
    shared = addresses(one) & (addresses(later) | addresses(same))
    hold(not shared, "a batch shares memory with a cache or another batch; give a copy (index, or .clone())")
    return "every batch has its own memory"


def _eval_batches_repeat(workload: Workload) -> str:
    one = [copied(batch) for batch in workload.eval_batches("validation")]
    seed_all(3)
    other = [copied(batch) for batch in workload.eval_batches("validation")]
    hold(len(one) > 0, 'eval_batches("validation") is empty; give at least one batch')
    hold(
        len(one) == len(other) and all(map(equal, one, other)),
        'eval_batches("validation") twice differs; give the same batches in the same order at every call, and draw '
        "nothing in it",
    )
    return f"the first {len(one)} validation batches, twice the same"


def _eval_step_leaves_no_trace(workload: Workload) -> str:
    model = fresh_model(workload).eval()
    state = copy.deepcopy(model.state_dict())
    modes = [module.training for module in model.modules()]
    frozen = [parameter.requires_grad for parameter in model.parameters()]
    batch = next(iter(workload.eval_batches("validation")))
    kept, found = copied(batch), []
    with torch.no_grad():
        for seed in (0, 1):
            seed_all(seed)
            before = random_streams.read(cuda=False)
            found.append(workload.eval_step(model, batch))
            hold(
                _same_state(state, model.state_dict()),
                "eval_step changes weights or buffers (model.train() in it trains batch norm); only compute with "
                "the model, in the mode it has",
            )
            hold(_streams_are(before), "eval_step draws random numbers; evaluate without (dropout off)")
            hold(
                [module.training for module in model.modules()] == modes,
                "eval_step changes the model's mode; leave train() and eval() to the trainer",
            )
            hold(
                [parameter.requires_grad for parameter in model.parameters()] == frozen,
                "eval_step changes which parameters are trained; leave requires_grad alone",
            )
    hold(equal(kept, tensors(batch)), "eval_step writes into its batch; work on a copy")
    for key, value in found[0].items():
        hold(isinstance(value, Tensor), f"eval_step's {key!r} is a {type(value).__name__}; make it a tensor")
        hold(not value.requires_grad, f"eval_step's {key!r} needs gradients; leave torch.no_grad alone")
    hold(
        set(found[0]) == set(found[1]) and all(equal([v], [found[1][k]]) for k, v in found[0].items()),
        "eval_step twice differs; let it depend on the model and the batch alone",
    )
    return f"sums {', '.join(sorted(found[0]))}; weights, modes, random state and batch as before"


def _summary_is_finite(workload: Workload) -> str:
    summary = evaluate(workload, fresh_model(workload), workload.eval_batches("validation"))
    values = {"loss": summary.loss, "metric": summary.metric, **summary.metrics}
    for key, value in values.items():
        hold(
            math.isfinite(float(value)),
            f"summarize's {key} is {value} on the first {EVAL_BATCHES} validation batches; make it finite",
        )
    hold(
        int(summary.examples) == summary.examples >= 1,
        f"summarize's examples is {summary.examples}; give how many were evaluated",
    )
    shown = ", ".join(f"{key} {float(value):.4g}" for key, value in values.items())
    return f"{shown} over {int(summary.examples)} examples of {EVAL_BATCHES} validation batches"


def _loss_is_a_loss(workload: Workload) -> str:
    batch, losses, before = next(workload.batches(SEED, 1)), [], _numbers(workload)
    for _ in range(2):
        model = fresh_model(workload).train()
        seed_all(7)
        losses.append(workload.loss(model, batch))
    loss = losses[0]
    hold(isinstance(loss, Tensor) and loss.ndim == 0, "loss must return a tensor without axes; take its mean")
    hold(bool(torch.isfinite(loss)), f"loss is {float(loss.detach())} at the start; make it finite")
    hold(loss.requires_grad, "loss has no gradient; compute it from the model without detach() or no_grad")
    hold(
        torch.equal(loss, losses[1]),
        "loss twice on one batch, model and seed differs; let it depend on these and the global random streams alone, "
        "not on a clock or on what the workload counts",
    )
    for key in (key for key, value in _numbers(workload).items() if value != before.get(key)):
        hold(
            _loss_with(workload, batch, key) == float(losses[1].detach()),
            f"loss depends on {key!r}, which the workload counts in itself and a resumed run begins anew; let it "
            "depend on the batch, the model and the global random streams alone",
        )
    losses[1].backward()  # type: ignore[no-untyped-call]
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    hold(bool(gradients), "loss reaches no parameter; compute it from the model")
    hold(all(bool(g.isfinite().all()) for g in gradients), "loss has gradients that are not finite")
    of = len(list(model.parameters()))
    return f"{float(loss.detach()):.4g} at the start, {len(gradients)} of {of} parameters get a gradient"


def _numbers(workload: Workload) -> dict[str, float]:
    """The plain numbers that a workload keeps in itself."""
    own = vars(getattr(workload, "_workload", workload))
    return {key: value for key, value in own.items() if type(value) in (int, float)}


def _loss_with(workload: Workload, batch: Batch, key: str) -> float:
    """The first loss, had the workload counted a million further: a counter may only matter late in a run."""
    own = getattr(workload, "_workload", workload)
    count = getattr(own, key)
    model = fresh_model(workload).train()
    seed_all(7)
    setattr(own, key, count + 1_000_000)
    try:
        return float(workload.loss(model, batch).detach())
    except Exception:  # such as an index out of range
        return math.nan
    finally:
        setattr(own, key, count)


def _training_lowers_the_loss(workload: Workload) -> str:
    model, num_steps = fresh_model(workload).train(), 40
    seen = list(itertools.islice(workload.batches(SEED, 1), 8))
    before = _mean_loss(workload, model, seen)
    _trained(workload, model, num_steps)
    after = _mean_loss(workload, model, seen)
    hold(
        after < before,
        f"{num_steps} steps of its own optimizer take the loss of the first {len(seen)} batches from {before:.4g} "
        f"to {after:.4g}; mend the loss, or lower the optimizer's lr",
    )
    return f"{before:.4g} → {after:.4g} on {len(seen)} batches after {num_steps} steps of its own optimizer"


def _mean_loss(workload: Workload, model: nn.Module, batches: list[Batch]) -> float:
    model = copy.deepcopy(model)
    seed_all(0)
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
    model = fresh_model(workload).train()
    _trained(workload, model, 5)
    buffer = io.BytesIO()
    torch.save(model.state_dict(), buffer)
    buffer.seek(0)
    fresh = fresh_model(workload, seed=1).train()
    fresh.load_state_dict(torch.load(buffer, weights_only=True))
    unseen = next(workload.batches(SEED + 1, 6))
    for mode in (False, True):
        losses = []
        for one in (model, fresh):
            seed_all(2)
            with torch.no_grad():
                losses.append(workload.loss(one.train(mode), unseen))
        hold(
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
    model = fresh_model(workload).eval()
    weigh = getattr(workload, "loss_weight", lambda _: 1.0)

    def loss_and_weight(part: Part) -> tuple[float, float]:
        batch = next(workload.batches(SEED, 3, part))
        return float(workload.loss(model, batch)), float(weigh(batch))

    with torch.no_grad():
        seed_all(0)
        whole, _ = loss_and_weight(Part(0, 1))
        seed_all(1)
        draws = loss_and_weight(Part(0, 1))[0] != whole
        parts = [loss_and_weight(Part(i, 2)) for i in range(2)]
    joined = sum(loss * weight for loss, weight in parts) / sum(weight for _, weight in parts)
    hold(
        draws or math.isclose(joined, whole, rel_tol=1e-5, abs_tol=1e-7),
        f"two parts of a batch say loss {joined:.7g}, the whole {whole:.7g}; let the parts hold each example once, "
        "and loss_weight(batch) be what the loss is a mean over",
    )
    every = [copied(batch) for batch in workload.eval_batches("validation")]
    for i in range(2):
        share = [copied(batch) for batch in workload.eval_batches("validation", Part(i, 2))]
        hold(
            len(every[i::2]) <= len(share) and all(map(equal, every[i::2], share)),
            "eval_batches(part) is not every count-th batch from batch index on; give itertools.islice of the whole",
        )
    if draws:
        return "validation batches interleave; its loss draws random numbers, so parts have no whole to weigh up to"
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
