"""The errors that EMA, Tail and a user's recursive scheme state, against 50 decimal digits, in every dtype."""

from dataclasses import dataclass
from decimal import Decimal, localcontext

import pytest
import torch
from torch import nn

from wa import EMA, LAWA, Bank, Recursive, Tail

STEPS = 3_000
DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]
DECAYS = [0.0, 0.5, 0.9, 0.907, 0.91, 0.99, 0.999, 0.9999, 0.99999, 0.9999999, 1 - 2.0**-40]
each_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=str)


@dataclass(frozen=True)
class Slow(Recursive):
    """Gains that shrink as 1/√n, as of a user who says nothing of a dtype."""

    every: int = 1
    burn_in: int = 0
    buffers: str = "live"

    horizon = 1.0

    def gain(self, n):
        return n**-0.5

    def weights(self, snapshots):
        raise NotImplementedError

    lag = weights


SCHEMES = [*(EMA(decay, init=init) for decay in DECAYS for init in ("first", "zero")), Tail(0), Slow()]


def path(dtype):
    """(STEPS, 5): noise, a drift, a late small move at 1, a sign that alternates, noise in something large."""
    step = torch.arange(STEPS, dtype=torch.float64)
    noise = torch.randn(STEPS, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    columns = [noise[:, 0], 1 + step * 1e-6, 1 + 5e-5 * (step > 50), (-1) ** step, 1e4 + noise[:, 1]]
    return torch.stack(columns, 1).to(dtype)


@pytest.fixture(scope="module")
def exact():
    """(scheme, dtype) -> the average in 50 digits."""
    known = {}

    def average(scheme, dtype):
        if (scheme, dtype) not in known:
            with localcontext() as context:
                context.prec = 50
                gains = [Decimal(gain) for gain in map(exact_gain(scheme), range(1, STEPS + 1))]
                means = []
                for column in path(dtype).double().t().tolist():
                    mean = Decimal(0)
                    for gain, value in zip(gains, column, strict=True):
                        mean += gain * (Decimal(value) - mean)
                    means.append(mean)
            known[scheme, dtype] = means
        return known[scheme, dtype]

    return average


def exact_gain(scheme):
    """The gain of the n-th snapshot from the scheme's definition, in digits."""
    if isinstance(scheme, Tail):
        return lambda n: Decimal(1) / n
    if isinstance(scheme, Slow):
        return lambda n: Decimal(scheme.gain(n))
    decay = Decimal(scheme.decay)
    if scheme.init == "first":
        return lambda n: Decimal(1) if n == 1 else 1 - decay
    return lambda n: (1 - decay) / (1 - decay**n)


def least_gain(scheme):
    return 1 - scheme.decay if isinstance(scheme, EMA) else 1 / STEPS


@each_dtype
def test_errors_stay_below_what_is_stated(dtype, exact):
    values = path(dtype)
    model = nn.ParameterDict({"w": nn.Parameter(values[0].clone())})
    bank = Bank(model, SCHEMES)
    weight = model["w"].data
    for step in range(1, STEPS + 1):
        weight.copy_(values[step - 1])
        bank.update(step)
    (block,) = bank._averages.blocks
    rounding = torch.finfo(dtype).eps / 2
    largest = values.double().abs().max(0).values
    for scheme in SCHEMES:
        lane, piece = bank._averages.lanes[(1, 0, 0), block], block.pieces[0]
        accumulator = lane.mean(scheme, piece, STEPS)
        unit = torch.finfo(accumulator.dtype).eps / 2
        stated = (6 + min(1 / least_gain(scheme), STEPS)) * unit
        assert stated <= max(1e-6, rounding / 32)
        got = bank.tensors(scheme)["w"]
        assert got.dtype == dtype
        for i, mean in enumerate(exact(scheme, dtype)):
            scale = largest[i].item()
            assert abs(Decimal(accumulator[i].item()) - mean) <= Decimal(stated * scale), (scheme, i)
            error = abs(Decimal(got[i].item()) - mean)
            assert error <= Decimal((stated + rounding) * scale), (scheme, i)


def test_a_small_move_arrives_whole():
    """A gain of a norm layer moves a little and stays: the average must follow, however slowly."""
    moves = {0.999: 5e-5, 0.9999: 5e-4, 0.99999: 5e-3, 0.999999: 5e-3}
    schemes = [EMA(decay, init=init) for decay in moves for init in ("first", "zero")]
    model = nn.ParameterDict({"w": nn.Parameter(torch.ones(1))})
    bank = Bank(model, [*schemes, Tail(0)])
    with torch.no_grad():
        bank.update(1)
        model["w"].fill_(1.005)
        for step in range(2, 4_001):
            bank.update(step)
    moved = float(model["w"].detach().double() - 1)
    for scheme in schemes:
        first = scheme.weights(4_000)[0]  # what the snapshot from before the move still weighs
        expected = 1 + moved * (1 - first)
        assert bank.tensors(scheme)["w"].item() == pytest.approx(expected, abs=1.3e-7), scheme


@each_dtype
@pytest.mark.parametrize("value", [0.1, -3.7, 1e-3])
def test_a_weight_that_never_moves_is_its_own_average(dtype, value):
    model = nn.ParameterDict({"w": nn.Parameter(torch.full((3,), value, dtype=dtype))})
    schemes = [EMA(decay, init=init) for decay in DECAYS for init in ("first", "zero")]
    bank = Bank(model, [*schemes, Tail(0), Slow(), LAWA(1), LAWA(8)])
    for step in range(1, 51):
        bank.update(step)
    for scheme in bank:
        assert torch.equal(bank.tensors(scheme)["w"], model["w"]), scheme


@each_dtype
def test_only_short_averages_get_the_narrow_accumulator(dtype):
    narrow = {torch.float16: 0.995, torch.bfloat16: 0.9994, torch.float32: 0.907, torch.float64: -1.0}[dtype]
    for decay in DECAYS:
        expected = torch.float32 if decay <= narrow else torch.float64
        assert EMA(decay).accumulator_dtype(dtype) == expected
    assert Tail(0).accumulator_dtype(dtype) == Slow().accumulator_dtype(dtype) == torch.float64
