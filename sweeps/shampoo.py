"""Shampoo with AdamW grafting; the libraries that have it cannot resume exactly from plain tensors."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import cast

import torch
from torch import Tensor


class Shampoo(torch.optim.Optimizer):
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

    def __init__(
        self,
        params: Iterable[Tensor],
        lr: float,
        beta1: float,
        beta2: float,
        eps: float,
        weight_decay: float,
        matrix_eps: float,
        precondition_every: int,
        precondition_start: int,
        block_size: int,
    ) -> None:
        defaults = {"lr": lr, "beta1": beta1, "beta2": beta2, "eps": eps, "weight_decay": weight_decay}
        defaults |= {"matrix_eps": matrix_eps, "precondition_every": precondition_every}
        super().__init__(params, defaults | {"precondition_start": precondition_start, "block_size": block_size})

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
                    self.state[p] = _shampoo_state(p, group["block_size"])
                self.state[p]["step"] += 1
            states = [self.state[p] for p in params]
            grads = [cast(Tensor, p.grad) for p in params]
            m, v = [state["m"] for state in states], [state["v"] for state in states]
            t = int(states[0]["step"])
            lr, beta1, beta2 = group["lr"], group["beta1"], group["beta2"]

            torch._foreach_mul_(params, 1 - lr * group["weight_decay"])
            torch._foreach_mul_(m, beta1)
            torch._foreach_add_(m, grads, alpha=1 - beta1)
            torch._foreach_mul_(v, beta2)
            torch._foreach_addcmul_(v, grads, grads, value=1 - beta2)
            m_hat = torch._foreach_div(m, 1 - beta1**t)
            denominator = torch._foreach_sqrt(v)
            torch._foreach_div_(denominator, math.sqrt(1 - beta2**t))
            torch._foreach_add_(denominator, group["eps"])
            directions = list(torch._foreach_div(m_hat, denominator))
            for i, (state, grad) in enumerate(zip(states, grads, strict=True)):
                if state["statistics"]:
                    directions[i] = _shampoo_direction(state, grad, m_hat[i], directions[i], t, group)
            torch._foreach_add_(params, directions, alpha=-lr)
        return value


def _matrix(tensor: Tensor) -> Tensor | None:
    sizes = [size for size in tensor.shape if size > 1]
    return tensor.reshape(sizes[0], -1) if len(sizes) > 1 else None


def _blocks(matrix: Tensor, block_size: int) -> list[Tensor]:
    """Views, row by row."""
    return [block for rows in torch.split(matrix, block_size) for block in torch.split(rows, block_size, 1)]


def _shampoo_state(p: Tensor, block_size: int) -> dict[str, object]:
    matrix = _matrix(p)
    blocks = [] if matrix is None else _blocks(matrix, block_size)
    sides = [size for block in blocks for size in block.shape]  # L and R of each block in turn
    return {
        "step": torch.zeros((), dtype=torch.int64),
        "m": torch.zeros_like(p),
        "v": torch.zeros_like(p),
        "statistics": [p.new_zeros(size, size) for size in sides],
        "roots": [],
    }


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
    if not values[-1] > 0:
        return torch.eye(len(matrix), dtype=matrix.dtype, device=matrix.device)
    powers = (values.clamp_min(0) + matrix_eps * values[-1]).pow(-1 / order)
    return cast(Tensor, (vectors * powers) @ vectors.T)
