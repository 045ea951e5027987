"""Schedules against torch's own schedulers (as AlgoPerf composes them) and closed forms."""

import math
import warnings
from collections.abc import Callable
from typing import get_args

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sweeps.schedules import Schedule, Shape, shared_steps


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
        Schedule("1-sqrt", 100, 10, 90, 0.0),
        Schedule("power", 100, 10, 90, 0.0),
        Schedule("power", 100, 10, 90, 0.0, 3.0),
        Schedule("inverse_sqrt", 100, 10, 90, 0.0),
    ]
    for other in others:
        assert any(not math.isclose(base.lr_factor(s), other.lr_factor(s)) for s in range(80))


@pytest.mark.parametrize(
    ("shape", "power", "left"),
    [
        ("1-sqrt", 2.0, lambda u: 1 - u**0.5),
        ("power", 2.0, lambda u: (1 - u) ** 2),
        ("power", 0.5, lambda u: (1 - u) ** 0.5),
        ("linear", 2.0, lambda u: 1 - u),
    ],
)
def test_a_cooldown_is_its_closed_form(shape: Shape, power: float, left: Callable[[float], float]) -> None:
    schedule = Schedule(shape, 100, 10, 40, 0.1, power)
    found = [schedule.lr_factor(step) for step in range(101)]
    assert found[:11] == [step / 10 for step in range(11)]
    assert found[10:61] == [1.0] * 51
    assert found[61:] == pytest.approx([0.1 + 0.9 * left((step - 60) / 40) for step in range(61, 101)])
    assert found[100] == pytest.approx(0.1)


def test_inverse_sqrt_falls_after_its_warm_up_and_cools_down_from_there() -> None:
    endless, cooled = Schedule("inverse_sqrt", 400, 16, 0, 1.0), Schedule("inverse_sqrt", 200, 16, 100, 0.0)
    for step in range(400):
        assert endless.lr_factor(step) == pytest.approx(min(step / 16, (16 / max(step, 1)) ** 0.5))
    assert [cooled.lr_factor(step) for step in range(101)] == [endless.lr_factor(step) for step in range(101)]
    assert [cooled.lr_factor(step) for step in (100, 150, 200)] == pytest.approx([0.4, 0.2, 0.0])


@st.composite
def schedules(draw: st.DrawFn) -> Schedule:
    length = draw(st.sampled_from([20, 30, 31]))
    warmup, decay = draw(st.sampled_from([1, 2, 5])), draw(st.sampled_from([0, 3, 6, 15]))
    power = draw(st.sampled_from([2.0, 3.0]))
    return Schedule(
        draw(st.sampled_from(get_args(Shape))), length, warmup, decay, draw(st.sampled_from([0, 0.5])), power
    )


@given(schedules(), schedules())
def test_shared_steps_are_those_before_the_first_that_differs(one: Schedule, other: Schedule) -> None:
    both = range(min(one.length_steps, other.length_steps))
    differing = [step for step in both if one.lr_factor(step) != other.lr_factor(step)]
    assert shared_steps(one, other) == shared_steps(other, one) == min(differing, default=len(both))


def test_a_cooldown_shares_all_of_its_hold_with_a_constant_run() -> None:
    constant, cooldown = Schedule("constant", 1_000_000, 5, 0, 1.0), Schedule("1-sqrt", 500_000, 5, 50_000, 0.0)
    assert shared_steps(constant, cooldown) == 450_001  # the decay's first step is still at the peak
