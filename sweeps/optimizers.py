"""Optimizers by name: a dict of plain builders. One more optimizer = one function + one line.

NadamW and Shampoo are our own: the libraries that have them cannot resume exactly from plain tensors, or mean another
thing.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from types import MappingProxyType
from typing import Annotated, Any, NamedTuple, cast, get_type_hints

import torch
from torch import Tensor

from sweeps.blocks import Count, Flag, NonNegative, Positive, Step, UnitOpen, value_type

# --- the builders: a parameter is a key of `optimizer:`, its annotation what it is and may be ------------------------

Params = Iterable[Tensor]
Tensors = list[Tensor]
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


EVALUATES_OTHERS = ("schedule_free_adamw",)  # weights than those it trains


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


# --- our own ------------------------------------------------------------------------------------------------------


class _Moments(torch.optim.Optimizer):
    """What both share: decoupled weight decay, then the means m of gradients and v of their squares."""

    def __init__(self, params: Iterable[Tensor], **settings: float) -> None:
        super().__init__(params, settings)

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """One update from the gradients; parameters without a gradient stay as they are."""
        for group in self.param_groups:
            params = [p for p in group["params"] if p.grad is not None]
            if not params:
                continue
            for p in params:
                if not self.state[p]:
                    self.state[p] = self._fresh(p, group)
                self.state[p]["step"] += 1
            grads = [cast(Tensor, p.grad) for p in params]
            m, v = ([self.state[p][key] for p in params] for key in ("m", "v"))
            t = int(self.state[params[0]]["step"])
            beta1, beta2 = group["beta1"], group["beta2"]

            torch._foreach_mul_(params, 1 - group["lr"] * group["weight_decay"])
            torch._foreach_mul_(m, beta1)
            torch._foreach_add_(m, grads, alpha=1 - beta1)
            torch._foreach_mul_(v, beta2)
            torch._foreach_addcmul_(v, grads, grads, value=1 - beta2)
            denominator = torch._foreach_sqrt(v)
            torch._foreach_div_(denominator, math.sqrt(1 - beta2**t))
            torch._foreach_add_(denominator, group["eps"])
            self._move(group, t, params, grads, m, list(denominator))

    def _fresh(self, p: Tensor, group: dict[str, Any]) -> dict[str, Any]:
        return {"step": torch.zeros((), dtype=torch.int64), "m": torch.zeros_like(p), "v": torch.zeros_like(p)}

    def _move(
        self, group: dict[str, Any], t: int, params: Tensors, grads: Tensors, m: Tensors, denominator: Tensors
    ) -> None:
        """Step t, from 1, along the gradients' mean m; denominator: √v̂ + ε."""
        raise NotImplementedError


class NadamW(_Moments):
    """NadamW as AlgoPerf defines it, which is not `torch.optim.NAdam`.

    θ ← θ(1 − ηλ)
    m ← β₁m + (1 − β₁)g                    v ← β₂v + (1 − β₂)g²
    m̂ = (β₁m + (1 − β₁)g)/(1 − β₁ᵗ)        v̂ = v/(1 − β₂ᵗ)
    θ ← θ − η m̂/(√v̂ + ε)

    t counts from 1. State m, v in the parameter's dtype. Source: AlgoPerf, reference_algorithms/paper_baselines/nadamw.
    """

    def _move(
        self, group: dict[str, Any], t: int, params: Tensors, grads: Tensors, m: Tensors, denominator: Tensors
    ) -> None:
        beta1 = group["beta1"]
        m_hat = torch._foreach_mul(m, beta1 / (1 - beta1**t))
        torch._foreach_add_(m_hat, grads, alpha=(1 - beta1) / (1 - beta1**t))
        torch._foreach_addcdiv_(params, m_hat, denominator, value=-group["lr"])


class Shampoo(_Moments):
    """Distributed Shampoo with AdamW grafting, in blocks, on one device.

    θ ← θ(1 − ηλ);  m, v and the Adam direction A = m̂/(√v̂ + ε) as in AdamW, m̂ = m/(1 − β₁ᵗ)
    L ← β₂L + (1 − β₂)GGᵀ        R ← β₂R + (1 − β₂)GᵀG        for each block G of a matrix
    P = L̃^(−1/4) m̂ R̃^(−1/4)      L̃ = L/(1 − β₂ᵗ) + ε_M λ_max I
    θ ← θ − η P ‖A‖/‖P‖

    A tensor of three and more dimensions is a matrix, its first dimension by the rest; dimensions of size 1 do not
    count; vectors and scalars take A. Blocks are at most block_size on a side. The roots are renewed at the steps
    t ≥ precondition_start that precondition_every divides; until the first a block takes A. State in the
    parameter's dtype. Sources: Gupta et al. 2018; Anil et al. 2020 (blocks, ε_M λ_max); Shi et al. 2023 (the rest).
    """

    def _fresh(self, p: Tensor, group: dict[str, Any]) -> dict[str, Any]:
        matrix = _matrix(p)
        blocks = [] if matrix is None else _blocks(matrix, int(group["block_size"]))
        sides = [size for block in blocks for size in block.shape]  # L and R of each block in turn
        return super()._fresh(p, group) | {"statistics": [p.new_zeros(size, size) for size in sides], "roots": []}

    def _move(
        self, group: dict[str, Any], t: int, params: Tensors, grads: Tensors, m: Tensors, denominator: Tensors
    ) -> None:
        m_hat = torch._foreach_div(m, 1 - group["beta1"] ** t)
        directions = list(torch._foreach_div(m_hat, denominator))
        for i, (p, grad) in enumerate(zip(params, grads, strict=True)):
            if self.state[p]["statistics"]:
                directions[i] = _shampoo_direction(self.state[p], grad, m_hat[i], directions[i], t, group)
        torch._foreach_add_(params, directions, alpha=-group["lr"])


def _matrix(tensor: Tensor) -> Tensor | None:
    sizes = [size for size in tensor.shape if size > 1]
    return tensor.reshape(sizes[0], -1) if len(sizes) > 1 else None


def _blocks(matrix: Tensor, block_size: int) -> list[Tensor]:
    """Views, row by row."""
    return [block for rows in torch.split(matrix, block_size) for block in torch.split(rows, block_size, 1)]


def _shampoo_direction(
    state: dict[str, list[Tensor]], grad: Tensor, m_hat: Tensor, adam: Tensor, t: int, group: dict[str, float]
) -> Tensor:
    """The grafted direction of one matrix; brings its statistics, and when it is time its roots, up to date."""
    size, beta2 = int(group["block_size"]), group["beta2"]
    grads, means, adams = (_blocks(cast(Tensor, _matrix(x)), size) for x in (grad, m_hat, adam))
    statistics = state["statistics"]
    for i, block in enumerate(grads):
        statistics[2 * i].addmm_(block, block.T, beta=beta2, alpha=1 - beta2)
        statistics[2 * i + 1].addmm_(block.T, block, beta=beta2, alpha=1 - beta2)
    if t >= group["precondition_start"] and t % group["precondition_every"] == 0:
        state["roots"] = [_inverse_root(x / (1 - beta2**t), 4, group["matrix_eps"]) for x in statistics]
    if not state["roots"]:
        return adam
    direction = torch.empty_like(adam, memory_format=torch.contiguous_format)
    into = _blocks(cast(Tensor, _matrix(direction)), size)
    for i, (mean, graft) in enumerate(zip(means, adams, strict=True)):
        left, right = state["roots"][2 * i : 2 * i + 2]
        preconditioned = left @ mean @ right
        norm = preconditioned.norm().clamp_min(torch.finfo(graft.dtype).tiny)
        into[i].copy_(preconditioned * (graft.norm() / norm))
    return direction


def _inverse_root(matrix: Tensor, order: int, matrix_eps: float) -> Tensor:
    """(A + ε λ_max I)^(−1/order) of a symmetric positive semidefinite A; the identity for A = 0."""
    values, vectors = torch.linalg.eigh(matrix)
    powers = (values.clamp_min(0) + matrix_eps * values[-1]).pow(-1 / order)
    root, identity = (vectors * powers) @ vectors.T, torch.eye(len(matrix), dtype=matrix.dtype, device=matrix.device)
    return torch.where(values[-1] > 0, root, identity)  # on the device: asking would wait for it
