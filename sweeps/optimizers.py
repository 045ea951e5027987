"""Optimizers by name: a dict of plain builders. One more optimizer = one function + one line."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from types import MappingProxyType
from typing import Annotated, Any, NamedTuple, get_type_hints

import torch
from torch import Tensor

from sweeps.adaptive import NadamW, Shampoo
from sweeps.blocks import Count, Flag, NonNegative, Positive, Step, UnitOpen, value_type

# --- the builders: a parameter is a key of `optimizer:`, its annotation what it is and may be ------------------------

Params = Iterable[Tensor]
LR = Annotated[Positive, "peak learning rate"]
Beta1 = Annotated[UnitOpen, "decay of the mean of gradients"]
Beta2 = Annotated[UnitOpen, "decay of the mean of squared gradients"]
Eps = Annotated[Positive, "added to the root of that mean"]
Decay = Annotated[NonNegative, "decoupled from the gradient; of sgd L2"]


def nadamw(
    params: Params, *, lr: LR, beta1: Beta1 = 0.9, beta2: Beta2 = 0.999, eps: Eps = 1e-8, weight_decay: Decay = 0.0
) -> torch.optim.Optimizer:
    """AlgoPerf's NadamW; defaults as torch's NAdam."""
    return NadamW(params, lr=lr, beta1=beta1, beta2=beta2, eps=eps, weight_decay=weight_decay)


def adamw(
    params: Params, *, lr: LR, beta1: Beta1 = 0.9, beta2: Beta2 = 0.999, eps: Eps = 1e-8, weight_decay: Decay = 0.01
) -> torch.optim.Optimizer:
    """torch's AdamW, with its defaults."""
    return torch.optim.AdamW(params, lr, (beta1, beta2), eps, weight_decay, foreach=True)


def sgd(
    params: Params,
    *,
    lr: LR,
    momentum: Annotated[UnitOpen, "decay of the sum of gradients"] = 0.0,
    nesterov: Annotated[Flag, "true or false: look one step of momentum ahead"] = False,
    weight_decay: Decay = 0.0,
) -> torch.optim.Optimizer:
    """torch's SGD, with its defaults; weight decay is L2, as the field's recipes have it."""
    return torch.optim.SGD(params, lr, momentum, weight_decay=weight_decay, nesterov=bool(nesterov), foreach=True)


def shampoo(
    params: Params,
    *,
    lr: LR,
    beta1: Beta1 = 0.9,
    beta2: Beta2 = 0.99,
    eps: Eps = 1e-8,
    weight_decay: Decay = 0.0,
    matrix_eps: Annotated[Positive, "ridge of Shampoo's matrices, a share of their largest eigenvalue"] = 1e-6,
    precondition_every: Annotated[Count, "steps between new roots of Shampoo's matrices"] = 100,
    precondition_start: Annotated[Step, "the first step that may use them"] = 0,
    block_size: Annotated[Count, "largest side of Shampoo's matrices"] = 1024,
) -> torch.optim.Optimizer:
    """Distributed Shampoo, grafted to AdamW."""
    every, start, size = int(precondition_every), int(precondition_start), int(block_size)
    steps = {"precondition_every": every, "precondition_start": start, "block_size": size}
    moments = {"beta1": beta1, "beta2": beta2, "eps": eps, "weight_decay": weight_decay}
    return Shampoo(params, lr=lr, **moments, matrix_eps=matrix_eps, **steps)


def schedule_free_adamw(
    params: Params, *, lr: LR, beta1: Beta1 = 0.9, beta2: Beta2 = 0.999, eps: Eps = 1e-8, weight_decay: Decay = 0.0
) -> torch.optim.Optimizer:
    """Schedule-Free AdamW (Defazio et al. 2024) in training mode, the parameters at y; its package's defaults.

    Warm-up is the trainer's schedule; evaluate within `evaluation_weights`, where the parameters are x.
    """
    from schedulefree import AdamWScheduleFree

    if beta1 == 0:
        raise ValueError("schedule_free_adamw: beta1 is 0; allowed: a number in (0, 1), x is found through it")
    optimizer: torch.optim.Optimizer = AdamWScheduleFree(params, lr, (beta1, beta2), eps, weight_decay)
    optimizer.train()  # type: ignore[attr-defined]
    return optimizer


OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "nadamw": nadamw,
    "adamw": adamw,
    "sgd": sgd,
    "shampoo": shampoo,
    "schedule_free_adamw": schedule_free_adamw,
}


class Parameter(NamedTuple):
    """A setting of an optimizer: how a study says it, its default (None: it must be given), what it is."""

    type: Any
    default: float | None
    about: str


@cache
def _parameters(build: Callable[..., torch.optim.Optimizer]) -> Mapping[str, Parameter]:
    hints = get_type_hints(build, include_extras=True)
    found = {}
    for one in list(inspect.signature(build).parameters.values())[1:]:
        hint = hints[one.name]
        about = [text for text in getattr(hint, "__metadata__", ()) if isinstance(text, str)]
        default = None if one.default is one.empty else one.default
        found[one.name] = Parameter(value_type(hint), default, "".join(about))
    return MappingProxyType(found)


def parameters(name: str) -> Mapping[str, Parameter]:
    """What optimizer `name` can be told."""
    return _parameters(OPTIMIZERS[name])


def settings(name: str) -> Mapping[str, float | None]:
    """The settings optimizer `name` takes -> their defaults, None where one must be given."""
    return {key: one.default for key, one in parameters(name).items()}


@contextmanager
def evaluation_weights(optimizer: torch.optim.Optimizer) -> Iterator[None]:
    """The parameters are what the optimizer says to evaluate; put back bit for bit on the way out.

    An ordinary optimizer evaluates the weights it trains: nothing happens. A Schedule-Free one trains at y and is
    evaluated at its average x; going there and back by its own formula would leave rounding in y.
    """
    if not hasattr(optimizer, "eval"):
        yield
        return
    params = [p for group in optimizer.param_groups for p in group["params"]]
    modes = [group["train_mode"] for group in optimizer.param_groups]
    kept = [p.detach().clone() for p in params]
    optimizer.eval()
    try:
        yield
    finally:
        with torch.no_grad():
            for p, value in zip(params, kept, strict=True):
                p.copy_(value)
        for group, mode in zip(optimizer.param_groups, modes, strict=True):
            group["train_mode"] = mode
