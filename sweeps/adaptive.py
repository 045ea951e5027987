"""NadamW and Shampoo: the libraries that have them cannot resume exactly from plain tensors, or mean another thing."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any, cast

import torch
from torch import Tensor

Tensors = list[Tensor]


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

    t counts from 1. State m, v in the parameter's dtype. Source: AlgoPerf,
    reference_algorithms/paper_baselines/nadamw.
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
    if not values[-1] > 0:
        return torch.eye(len(matrix), dtype=matrix.dtype, device=matrix.device)
    powers = (values.clamp_min(0) + matrix_eps * values[-1]).pow(-1 / order)
    return cast(Tensor, (vectors * powers) @ vectors.T)
