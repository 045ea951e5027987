"""Long runs and other people's code: drift, half precision, torch's own AveragedModel."""

import math

import pytest
import reference
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from wa import EMA, LAWA, Bank, Tail

STEPS = 20_000


def scalar_model(values):
    return nn.ParameterDict({"w": nn.Parameter(values.clone())})


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_means_do_not_drift_in_long_noisy_runs(dtype):
    """Against a direct float64 mean over stored snapshots, at the end and around ends of blocks."""
    generator = torch.Generator().manual_seed(0)
    width, ks = 24, [1, 2, 7, 8, 9, 100, 1000, 3000]
    scale = 10.0 ** torch.linspace(-6, 2, width, dtype=torch.float64)  # small weights beside large ones
    noise = torch.randn(STEPS, width, generator=generator, dtype=torch.float64)
    path = (scale * (5 + noise + noise.cumsum(0) / 300)).to(dtype)
    model = scalar_model(path[0])
    bank = Bank(model, [Tail(50), *(LAWA(k) for k in ks)])
    weight = model["w"].data
    for step in range(1, STEPS + 1):
        weight.copy_(path[step - 1])
        bank.update(step)
        if step == STEPS or (step > 18_000 and step % 1024 in (0, 1, 5)):
            for k in ks:
                ring = bank._averages.lanes[(1, 0, 0), bank._averages.blocks[0]]
                mean = ring.mean(LAWA(k), bank._averages.blocks[0].pieces[0], step)  # before rounding to the dtype
                window = path[step - k : step].double()
                largest = window.abs().max(0).values
                # What wa/ring.py states, and the rounding of the direct mean.
                bound = (9 + 15 * int(math.log(k, 8) + 1e-9) + k) * 2.0**-53 * largest
                assert ((mean - window.mean(0)).abs() <= bound).all(), (k, step)
                if dtype != torch.float64:  # rounded, it is the correctly rounded mean but for exact ties
                    exact = window.mean(0).to(dtype)
                    assert torch.equal(bank.tensors(LAWA(k))["w"], exact), (k, step)
    close = 1e-11 if dtype == torch.float64 else 0
    expected = path[50:].double().mean(0).to(dtype)
    torch.testing.assert_close(bank.tensors(Tail(50))["w"], expected, rtol=close, atol=0)


@pytest.mark.parametrize("init", ["first", "zero"])
def test_half_precision_ema_does_not_stall(init):
    """(1 − γ)Δ is far below bfloat16's resolution at γ = .9999; a bfloat16 accumulator never moves."""
    decay, steps = 0.9999, 20_000
    generator = torch.Generator().manual_seed(2)
    path = (1 + torch.arange(steps).div(steps)[:, None] + 0.1 * torch.randn(steps, 8, generator=generator)).to(
        torch.bfloat16
    )
    scheme = EMA(decay, init=init)
    model = scalar_model(path[0])
    bank = Bank(model, [scheme])
    stalled, weight = path[0].clone(), model["w"].data
    for step in range(1, steps + 1):
        weight.copy_(path[step - 1])
        bank.update(step)
        stalled.lerp_(path[step - 1], 1 - decay)
    expected = reference.exponential(list(path), decay, init)
    got = bank.tensors(scheme)["w"]
    assert got.dtype == torch.bfloat16
    accumulator = bank._averages.lanes[(1, 0, 0), bank._averages.blocks[0]].mean(
        scheme, bank._averages.blocks[0].pieces[0], steps
    )
    torch.testing.assert_close(accumulator, expected, rtol=1e-11, atol=0)
    assert torch.equal(got, accumulator.to(torch.bfloat16))
    assert ((stalled.double() - expected).abs() > 0.05 * expected).all()


@pytest.mark.parametrize("decay", [0.9, 0.999])
def test_ema_equals_torch(decay):
    """AveragedModel copies at its first call and then averages: init="first"."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(300, 300), nn.Linear(300, 3))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    theirs = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(decay))
    scheme = EMA(decay, 2, burn_in=3)
    bank = Bank(model, [scheme])
    for step in range(1, 200):
        optimizer.zero_grad()
        model(torch.randn(8, 300)).square().mean().backward()
        optimizer.step()
        bank.update(step)
        if scheme.takes_snapshot(step):
            theirs.update_parameters(model)
    for name, tensor in bank.tensors(scheme).items():
        torch.testing.assert_close(tensor, theirs.module.get_parameter(name), rtol=1e-6, atol=1e-7)


def test_tail_equals_torch_swa():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(300, 300), nn.Linear(300, 3))
    theirs = AveragedModel(model)
    scheme = Tail(20, 5)
    bank = Bank(model, [scheme])
    for step in range(1, 200):
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter))
        bank.update(step)
        if step > 20 and step % 5 == 0:
            theirs.update_parameters(model)
    for name, tensor in bank.tensors(scheme).items():
        torch.testing.assert_close(tensor, theirs.module.get_parameter(name), rtol=1e-4, atol=1e-4)
