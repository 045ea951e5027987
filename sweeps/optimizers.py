"""Optimizers by name: a dict of plain builders. One more optimizer = one function + one line."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterable
from typing import cast

import torch
from torch import Tensor


class NadamW(torch.optim.Optimizer):
    """NadamW as AlgoPerf defines it, which is not `torch.optim.NAdam`.

    θ ← θ(1 − ηλ)
    m ← β₁m + (1 − β₁)g                    v ← β₂v + (1 − β₂)g²
    m̂ = (β₁m + (1 − β₁)g)/(1 − β₁ᵗ)        v̂ = v/(1 − β₂ᵗ)
    θ ← θ − η m̂/(√v̂ + ε)

    t counts from 1. State m, v in the parameter's dtype. Source: AlgoPerf,
    reference_algorithms/paper_baselines/nadamw.
    """

    def __init__(
        self, params: Iterable[Tensor], lr: float, beta1: float, beta2: float, eps: float, weight_decay: float
    ) -> None:
        defaults = {"lr": lr, "beta1": beta1, "beta2": beta2, "eps": eps, "weight_decay": weight_decay}
        super().__init__(params, defaults)

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """One update from the gradients; parameters without a gradient stay as they are."""
        value = None
        if closure is not None:
            with torch.enable_grad():
                value = closure()
        for group in self.param_groups:
            params = [p for p in group["params"] if p.grad is not None]
            if not params:
                continue
            for p in params:
                if not self.state[p]:
                    self.state[p] = {
                        "step": torch.zeros((), dtype=torch.int64),
                        "m": torch.zeros_like(p),
                        "v": torch.zeros_like(p),
                    }
                self.state[p]["step"] += 1
            grads = [cast(Tensor, p.grad) for p in params]
            m = [self.state[p]["m"] for p in params]
            v = [self.state[p]["v"] for p in params]
            t = int(self.state[params[0]]["step"])
            lr, beta1, beta2 = group["lr"], group["beta1"], group["beta2"]

            torch._foreach_mul_(params, 1 - lr * group["weight_decay"])
            torch._foreach_mul_(m, beta1)
            torch._foreach_add_(m, grads, alpha=1 - beta1)
            torch._foreach_mul_(v, beta2)
            torch._foreach_addcmul_(v, grads, grads, value=1 - beta2)
            m_hat = torch._foreach_mul(m, beta1 / (1 - beta1**t))
            torch._foreach_add_(m_hat, grads, alpha=(1 - beta1) / (1 - beta1**t))
            denominator = torch._foreach_sqrt(v)
            torch._foreach_div_(denominator, math.sqrt(1 - beta2**t))
            torch._foreach_add_(denominator, group["eps"])
            torch._foreach_addcdiv_(params, m_hat, denominator, value=-lr)
        return value


Params = Iterable[Tensor]


def nadamw(
    params: Params, *, lr: float, beta1: float, beta2: float, eps: float = 1e-8, weight_decay: float = 0.0
) -> torch.optim.Optimizer:
    """AlgoPerf's NadamW."""
    return NadamW(params, lr, beta1, beta2, eps, weight_decay)


def adamw(
    params: Params, *, lr: float, beta1: float, beta2: float, eps: float = 1e-8, weight_decay: float = 0.0
) -> torch.optim.Optimizer:
    """torch's AdamW."""
    betas = (beta1, beta2)
    return torch.optim.AdamW(params, lr, betas, eps, weight_decay, foreach=True)


def sgd(
    params: Params, *, lr: float, momentum: float = 0.9, weight_decay: float = 0.0
) -> torch.optim.Optimizer:
    """torch's SGD with Nesterov momentum; weight decay is L2, as the field's recipes have it."""
    return torch.optim.SGD(
        params, lr, momentum, weight_decay=weight_decay, nesterov=momentum > 0, foreach=True
    )


OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "nadamw": nadamw,
    "adamw": adamw,
    "sgd": sgd,
}


def settings(name: str) -> dict[str, float | None]:
    """The settings optimizer `name` takes -> their defaults, None where one must be given."""
    parameters = list(inspect.signature(OPTIMIZERS[name]).parameters.values())[1:]
    return {p.name: None if p.default is p.empty else p.default for p in parameters}
