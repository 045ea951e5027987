"""Schedules against torch's own schedulers (as AlgoPerf composes them) and closed forms."""

import math
import warnings

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sweeps.schedules import Schedule


def test_warmup_and_cosine_equal_algoperfs_composition() -> None:
    length, warmup = 200, 14
    schedule = Schedule("cosine", length, warmup, length - warmup, 0.0)
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        reference = torch.optim.lr_scheduler.SequentialLR(
            optimizer,
            [
                torch.optim.lr_scheduler.LinearLR(optimizer, 1e-10, 1.0, total_iters=warmup),
                torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=length - warmup),
            ],
            milestones=[warmup],
        )
        for step in range(length):
            expected = optimizer.param_groups[0]["lr"]
            assert schedule.lr_factor(step) == pytest.approx(expected, abs=1e-9)
            optimizer.step()
            reference.step()


@given(length=st.integers(10, 500), warmup=st.floats(0, 0.5), lr_decay=st.floats(0, 0.5), final=st.floats(0, 0.9))
def test_linear_is_trapezoidal(length: int, warmup: float, lr_decay: float, final: float) -> None:
    w, d = int(warmup * length), int(lr_decay * length)
    schedule = Schedule("linear", length, w, d, final)
    for step in range(length):
        up = min(step / w, 1.0) if w else 1.0
        left = (length - step) / d if d else 1.0
        down = final + (1 - final) * min(left, 1.0)
        assert schedule.lr_factor(step) == pytest.approx(min(up, down) if step < w else down)


def test_a_longer_hold_shares_its_prefix() -> None:
    short, long = (Schedule("linear", 100, 5, decay, 0.0) for decay in (20, 40))
    agree = [step for step in range(100) if short.lr_factor(step) == long.lr_factor(step)]
    assert agree == list(range(61))


def test_every_option_changes_the_factor() -> None:
    base = Schedule("cosine", 100, 10, 90, 0.0)
    others = [
        Schedule("linear", 100, 10, 90, 0.0),
        Schedule("constant", 100, 10, 0, 1.0),
        Schedule("cosine", 80, 10, 70, 0.0),
        Schedule("cosine", 100, 20, 80, 0.0),
        Schedule("cosine", 100, 10, 40, 0.0),
        Schedule("cosine", 100, 10, 90, 0.2),
    ]
    for other in others:
        assert any(not math.isclose(base.lr_factor(s), other.lr_factor(s)) for s in range(80))
