"""Schemes as values: validation, closed forms against naive counting."""

import math
import pickle

import numpy as np
import pytest
import reference
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sweeps.schedules import Schedule
from wa import EMA, LAWA, WSM, Bank, Tail

grids = {"every": st.integers(1, 7), "burn_in": st.integers(0, 10)}
lawas = st.builds(LAWA, k=st.integers(1, 12), until_full=st.sampled_from(["absent", "partial"]), **grids)
emas = st.builds(EMA, decay=st.floats(0, 0.999), init=st.sampled_from(["first", "zero"]), **grids)
tails = st.builds(Tail, start=st.integers(0, 10), every=st.integers(1, 7))
wsms = st.builds(WSM, k=st.integers(1, 12), curve=st.sampled_from(["linear", "cosine", "sqrt"]), **grids)
schemes = st.one_of(lawas, emas, tails, wsms)


@settings(deadline=None)
@given(scheme=schemes, step=st.integers(0, 150))
def test_coefficients_are_what_the_naive_average_makes_of_one_hot_snapshots(scheme, step):
    steps = reference.snapshot_steps(step, scheme.every, scheme.burn_in)
    assert list(scheme.snapshot_steps(step)) == steps
    assert scheme.snapshots(step) == len(steps)
    assert scheme.takes_snapshot(step) == (step in steps)
    expected = reference.average(scheme, list(torch.eye(len(steps), dtype=torch.float64)))
    coefficients = scheme.coefficients(step)
    assert scheme.exists(step) == (expected is not None)
    if expected is None:
        assert coefficients == {}
        return
    got = [coefficients.get(snapshot, 0.0) for snapshot in steps]
    np.testing.assert_allclose(got, expected.numpy(), rtol=1e-9, atol=1e-12)
    assert math.fsum(coefficients.values()) == pytest.approx(1, abs=1e-12)
    assert list(coefficients) == sorted(coefficients)
    assert set(coefficients) <= set(steps)


@settings(deadline=None)
@given(scheme=schemes, step=st.integers(0, 150))
def test_horizon_at_is_twice_the_centre_of_mass_lag_plus_every(scheme, step):
    coefficients = scheme.coefficients(step)
    if not coefficients:
        assert scheme.horizon_at(step) == 0
        return
    latest = max(coefficients)
    lag = sum(weight * (latest - snapshot) for snapshot, weight in coefficients.items())
    assert scheme.horizon_at(step) == pytest.approx(2 * lag + scheme.every, rel=1e-8)


@pytest.mark.parametrize("init", ["first", "zero"])
def test_horizon_is_where_horizon_at_ends(init):
    ema = EMA(0.9, 8, init=init, burn_in=5)
    assert ema.horizon == pytest.approx(8 * 19)
    assert ema.horizon_at(10_000) == pytest.approx(ema.horizon)
    assert LAWA(5, 8).horizon == LAWA(5, 8).horizon_at(1000) == LAWA(5, 8).horizon_at(1003) == 40
    assert Tail(100, 10).horizon == math.inf
    assert Tail(100, 10).horizon_at(600) == 500


@pytest.mark.parametrize(
    ("curve", "weights"),
    [
        ("linear", [1 / 4, 1 / 4, 1 / 4, 1 / 4]),
        ("cosine", [0.5 - 0.125**0.5, 0.125**0.5, 0.125**0.5, 0.5 - 0.125**0.5]),  # cos²(π/8) = 1/2 + 1/√8
        ("sqrt", [0.5, 0.5**0.5 - 0.5, 0.75**0.5 - 0.5**0.5, 1 - 0.75**0.5]),
    ],
)
def test_merge_weights_by_hand(curve, weights):
    # w_0 … w_4: 1, ¾, ½, ¼, 0 · 1, cos²(π/8), ½, sin²(π/8), 0 · 1, 1 − √¼, 1 − √½, 1 − √¾, 0
    merge = WSM(4, 10, curve, burn_in=5)
    assert merge.coefficients(44) == {}
    assert merge.coefficients(67) == pytest.approx(dict(zip((35, 45, 55, 65), weights, strict=True)))
    lag = sum(weight * steps for weight, steps in zip(weights, (30, 20, 10, 0), strict=True))
    assert merge.horizon == merge.horizon_at(67) == pytest.approx(2 * lag + 10)


@pytest.mark.parametrize("k", [1, 2, 7, 40])
def test_a_linear_decay_is_the_plain_mean(k):
    merge, mean = WSM(k, 8, "linear"), LAWA(k, 8)
    assert merge.horizon == pytest.approx(mean.horizon)
    assert merge.coefficients(8 * k - 1) == mean.coefficients(8 * k - 1) == {}
    assert merge.coefficients(8 * k + 3) == pytest.approx(mean.coefficients(8 * k + 3))
    assert WSM(k, 8) == merge  # the default


@pytest.mark.parametrize("curve", ["linear", "cosine"])
def test_a_merge_is_the_run_with_that_decay_where_gradients_do_not_depend_on_the_weights(curve):
    """Two runs on the same gradients: one decays over its last 20 steps, one is merged at its end."""
    length, decay, lr = 50, 20, 0.1
    schedule = Schedule(curve, length, 0, decay, 0.0)
    gradients = np.random.default_rng(0).normal(size=length)
    model = torch.nn.ParameterDict({"w": torch.nn.Parameter(torch.zeros((), dtype=torch.float64))})
    bank = Bank(model, [WSM(decay, 1, curve)])
    annealed = 0.0
    for step, gradient in enumerate(gradients):
        annealed -= lr * schedule.lr_factor(step) * gradient
        model["w"].data -= lr * gradient
        bank.update(step + 1)
    assert bank.tensors(WSM(decay, 1, curve))["w"].item() == pytest.approx(annealed, rel=1e-12)
    assert abs(model["w"].item() - annealed) > 0.1


def test_debiased_start_is_flatter_than_first():
    # after two snapshots: first keeps decay on the first one, zero weighs both nearly alike
    assert list(EMA(0.9).coefficients(2).values()) == pytest.approx([0.9, 0.1])
    assert list(EMA(0.9, init="zero").coefficients(2).values()) == pytest.approx([0.9 / 1.9, 1 / 1.9])


@settings(deadline=None)
@given(horizon=st.floats(1, 1e6), every=st.integers(1, 500))
def test_from_horizon(horizon, every):
    if horizon < every:
        for kind in (LAWA, EMA):
            with pytest.raises(ValueError, match="horizon"):
                kind.from_horizon(horizon, every)
        return
    assert EMA.from_horizon(horizon, every).horizon == pytest.approx(horizon)
    lawa = LAWA.from_horizon(horizon, every)
    assert abs(lawa.horizon - horizon) <= every / 2
    assert LAWA.from_horizon(lawa.horizon, every) == lawa


def test_from_horizon_edges_and_options():
    assert EMA.from_horizon(8, 8) == EMA(0.0, 8)
    assert LAWA.from_horizon(20, 8).k == 3  # 2.5, halves up
    assert LAWA.from_horizon(80, 8, burn_in=3, until_full="partial") == LAWA(10, 8, burn_in=3, until_full="partial")
    assert EMA.from_horizon(80, 8, init="zero", buffers="average").init == "zero"
    for bad in (math.nan, math.inf, True, "80", 7.9):
        with pytest.raises(ValueError, match="horizon"):
            EMA.from_horizon(bad, 8)
    with pytest.raises(ValueError, match="every"):
        LAWA.from_horizon(80, 8.0)


def test_horizons_of_matched_schemes_agree():
    # k = (1 + γ)/(1 − γ): equal centre of mass (paper.md)
    assert EMA(0.9, 64).horizon == pytest.approx(LAWA(19, 64).horizon)


@pytest.mark.parametrize(
    ("build", "name"),
    [
        *((lambda k=k: LAWA(k), "k") for k in (0, -1, 2.0, True, None, "3", math.nan)),
        *((lambda v=v: LAWA(3, v), "every") for v in (0, 1.5, True)),
        *((lambda v=v: EMA(0.9, v), "every") for v in (0, 1.5, False)),
        *((lambda v=v: Tail(5, v), "every") for v in (0, 1.5)),
        *((lambda v=v: LAWA(3, burn_in=v), "burn_in") for v in (-1, 0.5, True)),
        *((lambda v=v: EMA(0.9, burn_in=v), "burn_in") for v in (-1, 0.5)),
        *((lambda v=v: Tail(v), "start") for v in (-1, 0.5, True)),
        *((lambda v=v: EMA(v), "decay") for v in (1, 1.0, -0.1, math.nan, math.inf, True, "0.9", None)),
        (lambda: EMA(0.9, init="last"), "init"),
        (lambda: LAWA(3, until_full="raw"), "until_full"),
        *((lambda c=c, a=a: c(a, buffers="batch"), "buffers") for c, a in ((LAWA, 3), (EMA, 0.9), (Tail, 5))),
        (lambda: EMA(0.9, buffers=None), "buffers"),
        *((lambda v=v: WSM(v), "k") for v in (0, 2.0, True)),
        (lambda: WSM(3, 0), "every"),
        *((lambda v=v: WSM(3, 2, v), "curve") for v in ("exp", None, 1)),
        (lambda: WSM(3, burn_in=-1), "burn_in"),
        (lambda: WSM(3, buffers="batch"), "buffers"),
    ],
)
def test_a_bad_value_is_one_line_that_names_it(build, name):
    with pytest.raises(ValueError, match=name) as caught:
        build()
    assert "\n" not in str(caught.value)


def test_schemes_are_values():
    assert LAWA(5, 8) == LAWA(k=5, every=8)
    assert EMA(0, 8) == EMA(0.0, 8)
    assert len({LAWA(5, 8), LAWA(5, 8), EMA(0.9, 8), Tail(5, 8), LAWA(5, 8, until_full="partial")}) == 4
    assert type(LAWA(np.int64(5), np.int64(8)).k) is int
    assert type(EMA(np.float64(0.5)).decay) is float
    with pytest.raises(AttributeError):
        LAWA(5).k = 6
    with pytest.raises(TypeError):
        LAWA(5, 8, 3)  # burn_in by name only
    assert pickle.loads(pickle.dumps(EMA(0.9, 8))) == EMA(0.9, 8)  # crosses processes
