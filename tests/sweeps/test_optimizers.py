"""NadamW against AlgoPerf's formula written out in float64 NumPy; the others against torch itself."""

import copy

import numpy as np
import pytest
import torch

from sweeps.optimizers import OPTIMIZERS, NadamW, settings


def nadamw_reference(
    theta: np.ndarray, gradients: list[np.ndarray], lr: float, b1: float, b2: float, eps: float, wd: float
) -> np.ndarray:
    """θ ← θ(1−ηλ); m ← β₁m+(1−β₁)g; v ← β₂v+(1−β₂)g²; m̂ = (β₁m+(1−β₁)g)/(1−β₁ᵗ); θ ← θ−ηm̂/(√(v/(1−β₂ᵗ))+ε)."""
    m, v = np.zeros_like(theta), np.zeros_like(theta)
    for t, g in enumerate(gradients, start=1):
        theta = theta * (1 - lr * wd)
        m = b1 * m + (1 - b1) * g
        v = b2 * v + (1 - b2) * g**2
        m_hat = (b1 * m + (1 - b1) * g) / (1 - b1**t)
        v_hat = v / (1 - b2**t)
        theta = theta - lr * m_hat / (np.sqrt(v_hat) + eps)
    return theta


@pytest.mark.parametrize(
    ("b1", "b2", "wd"), [(0.9, 0.99, 0.1), (0.97313, 0.998123, 0.16375), (0.0, 0.629185, 0.0)]
)
def test_nadamw_is_algoperfs_formula_in_float64(b1: float, b2: float, wd: float) -> None:
    rng = np.random.default_rng(0)
    start = [rng.normal(size=(3, 4)), rng.normal(size=5)]
    gradients = [[rng.normal(size=s.shape) for s in start] for _ in range(50)]
    parameters = [torch.nn.Parameter(torch.tensor(s)) for s in start]
    optimizer = NadamW(parameters, 0.0123, b1, b2, 1e-8, wd)
    for step in gradients:
        for parameter, gradient in zip(parameters, step, strict=True):
            parameter.grad = torch.tensor(gradient)
        optimizer.step()
    for i, parameter in enumerate(parameters):
        expected = nadamw_reference(start[i], [g[i] for g in gradients], 0.0123, b1, b2, 1e-8, wd)
        np.testing.assert_allclose(parameter.detach().numpy(), expected, rtol=1e-12, atol=1e-14)


def test_nadamw_is_not_torchs_nadam() -> None:
    ends = []
    for build in (OPTIMIZERS["nadamw"], torch.optim.NAdam):
        weight = torch.nn.Parameter(torch.ones(3, dtype=torch.float64))
        kwargs = {"beta1": 0.9, "beta2": 0.99} if build is not torch.optim.NAdam else {"betas": (0.9, 0.99)}
        optimizer = build([weight], lr=0.01, **kwargs)
        for g in (1.0, -2.0, 0.5):
            weight.grad = torch.full((3,), g, dtype=torch.float64)
            optimizer.step()
        ends.append(weight.detach().clone())
    assert not torch.allclose(*ends, rtol=1e-4)


def run(name: str, **given: float) -> torch.Tensor:
    values = {"lr": 0.05, **({"beta1": 0.9, "beta2": 0.99} if "beta1" in settings(name) else {}), **given}
    weight = torch.nn.Parameter(torch.linspace(-1, 1, 7))
    optimizer = OPTIMIZERS[name]([weight], **values)
    for _ in range(10):
        optimizer.zero_grad()
        (weight**2 + weight.sin()).sum().backward()
        optimizer.step()
    return weight.detach().clone()


@pytest.mark.parametrize("name", list(OPTIMIZERS))
def test_every_setting_changes_the_weights(name: str) -> None:
    base = run(name)
    changed = {"lr": 0.02, "beta1": 0.5, "beta2": 0.8, "eps": 0.1, "weight_decay": 0.3, "momentum": 0.3}
    for setting in settings(name):
        assert not torch.equal(run(name, **{setting: changed[setting]}), base), setting


@pytest.mark.parametrize("name", list(OPTIMIZERS))
def test_state_round_trip_goes_on_bit_for_bit(name: str) -> None:
    values = {"lr": 0.05, **({"beta1": 0.9, "beta2": 0.99} if "beta1" in settings(name) else {})}

    def steps(weight: torch.nn.Parameter, optimizer: torch.optim.Optimizer, n: int) -> None:
        for _ in range(n):
            optimizer.zero_grad()
            (weight**2).sum().backward()
            optimizer.step()

    straight = torch.nn.Parameter(torch.linspace(-1, 1, 7))
    one = OPTIMIZERS[name]([straight], **values)
    steps(straight, one, 5)
    resumed = torch.nn.Parameter(straight.detach().clone())
    other = OPTIMIZERS[name]([resumed], **values)
    other.load_state_dict(copy.deepcopy(one.state_dict()))
    steps(straight, one, 5)
    steps(resumed, other, 5)
    assert torch.equal(straight, resumed)
