"""Naive oracles: slow, obvious, in float64, sharing no code with what they check."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


def snapshot_steps(last: int, every: int, burn_in: int) -> list[int]:
    """burn_in + every, burn_in + 2·every, … up to `last`, by counting."""
    steps = []
    step = burn_in + every
    while step <= last:
        steps.append(step)
        step += every
    return steps


def plain_mean(snapshots: Sequence[Tensor]) -> Tensor:
    """The mean of all snapshots."""
    total = torch.zeros_like(snapshots[0], dtype=torch.float64)
    for snapshot in snapshots:
        total = total + snapshot.double()
    return total / len(snapshots)


def exponential(snapshots: Sequence[Tensor], decay: float, init: str) -> Tensor:
    """m ← decay·m + (1 − decay)·θ from the first snapshot, or from 0 and divided by 1 − decayⁿ."""
    zero = init == "zero"
    mean = torch.zeros_like(snapshots[0], dtype=torch.float64) if zero else snapshots[0].double()
    for snapshot in snapshots if zero else snapshots[1:]:
        mean = decay * mean + (1 - decay) * snapshot.double()
    return mean / (1 - decay ** len(snapshots)) if zero else mean


def decayed(snapshots: Sequence[Tensor], k: int, curve: str) -> Tensor:
    """The oldest of the latest k, then each later change times the LR that it would have had in a decay."""
    window = [snapshot.double() for snapshot in snapshots[-k:]]
    merged = window[0]
    for j in range(1, k):
        lr = {
            "linear": (k - j) / k,
            "cosine": math.cos(math.pi * j / k / 2) ** 2,
            "sqrt": 1 - (j / k) ** 0.5,
        }[curve]
        merged = merged + lr * (window[j] - window[j - 1])
    return merged


def average(scheme: Any, snapshots: Sequence[Tensor]) -> Tensor | None:
    """What `scheme` makes of all its snapshots so far (oldest first); None while it is absent."""
    kind = type(scheme).__name__
    if not snapshots:
        return None
    if kind == "EMA":
        return exponential(snapshots, scheme.decay, scheme.init)
    if kind == "Tail":
        return plain_mean(snapshots)
    if kind == "WSM":
        return decayed(snapshots, scheme.k, scheme.curve) if len(snapshots) >= scheme.k else None
    assert kind == "LAWA"
    if len(snapshots) < scheme.k and scheme.until_full == "absent":
        return None
    return plain_mean(snapshots[-scheme.k :])
