"""What every scheme must do in a bank. A new scheme joins with one line in SCHEMES (and one in reference.py)."""

import io

import pytest
import reference
import torch
from torch import nn

from wa import EMA, LAWA, WSM, Bank, Tail

SCHEMES = [
    LAWA(1, 3),
    LAWA(7),
    LAWA(5, 4, burn_in=6),
    LAWA(8, 2, until_full="partial"),
    LAWA(21, 2, buffers="average"),
    EMA(0.0, 3),
    EMA(0.9, 2),
    EMA(0.95, 4, burn_in=6),
    EMA(0.99, init="zero"),
    EMA(0.8, 2, buffers="average"),
    Tail(0),
    Tail(6, 4),
    Tail(10, 3, buffers="average"),
    *(WSM(7, 2, curve) for curve in ("linear", "cosine", "sqrt")),
    WSM(5, 4, "cosine", burn_in=6),
    WSM(9, 3, "sqrt", buffers="average"),
]
each = pytest.mark.parametrize("scheme", SCHEMES, ids=repr)
LAST = 60


class Net(nn.Module):
    """Small tensors that get packed, one large enough to be read in place, and a float buffer."""

    def __init__(self, dtype=torch.float32):
        super().__init__()
        self.first = nn.Linear(5, 7, dtype=dtype)
        self.large = nn.Parameter(torch.zeros(257, 256, dtype=dtype))
        self.last = nn.Parameter(torch.zeros(3, dtype=dtype))
        self.register_buffer("statistic", torch.zeros(4, dtype=dtype))
        self.register_buffer("count", torch.zeros((), dtype=torch.int64))


@torch.no_grad()
def walk(model, step):
    """Weights at `step`: a function of the step alone."""
    phase = torch.arange(model.large.numel(), dtype=torch.float64) % 1013 / 7
    wave = (phase + step).sin_().add_(0.1 * step)
    for tensor in (*model.parameters(), model.statistic):
        tensor.copy_(wave[: tensor.numel()].view(tensor.shape))
    model.count.fill_(step)


def run(schemes, last, dtype=torch.float32, bank=None, first=1):
    bank = bank or Bank(Net(dtype), schemes)
    model = bank._model
    for step in range(first, last + 1):
        walk(model, step)
        bank.update(step)
    return model, bank


def bits(tensors):
    return {name: tensor.reshape(-1).view(torch.uint8).tolist() for name, tensor in tensors.items()}


def assert_same(got, expected):
    assert got.keys() == expected.keys()
    for name in got:
        assert torch.equal(got[name], expected[name]), name


@each
@pytest.mark.parametrize("power", [1, 2])
def test_weight_profile(scheme, power):
    """A weight that is the step number (or its square) reads out the profile: Σ c s, Σ c s²."""
    model = nn.ParameterDict({"w": nn.Parameter(torch.zeros((), dtype=torch.float64))})
    bank = Bank(model, [scheme])
    for step in range(1, LAST + 1):
        with torch.no_grad():
            model["w"].fill_(step**power)
        bank.update(step)
        coefficients = scheme.coefficients(step)
        assert (scheme in bank) == (len(bank) == 1) == bool(coefficients)
        if coefficients:
            expected = sum(weight * snapshot**power for snapshot, weight in coefficients.items())
            assert bank.tensors(scheme)["w"].item() == pytest.approx(expected, rel=1e-12)


@each
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_equals_the_naive_average_of_stored_snapshots(scheme, dtype):
    model, snapshots = Net(dtype), []
    bank = Bank(model, [scheme])
    for step in range(1, LAST + 1):
        walk(model, step)
        bank.update(step)
        if scheme.takes_snapshot(step):
            snapshots.append({name: tensor.detach().clone() for name, tensor in model.state_dict().items()})
    got = bank.tensors(scheme)
    assert all(tensor.dtype == dtype for name, tensor in got.items() if name != "count")
    for name in got.keys() - {"count"}:
        expected = reference.average(scheme, [snapshot[name] for snapshot in snapshots])
        # one rounding to the weights' dtype; float32 accumulators of an EMA add a few roundings of their own
        close = {torch.float64: 1e-13, torch.float32: 1e-6, torch.bfloat16: 0.005, torch.float16: 6e-4}[dtype]
        torch.testing.assert_close(got[name].double(), expected, rtol=close, atol=close)


@each
@pytest.mark.parametrize("last", [22, 41, LAST])
def test_same_bits_alone_and_in_company(scheme, last):
    alone = run([scheme], last)[1]
    others = [s for s in SCHEMES if s != scheme]
    company = [LAWA(40, scheme.every, burn_in=scheme.burn_in), *others, scheme, EMA(0.5, scheme.every)]
    among = run(company, last)[1]
    assert len(company) >= 15
    if scheme in alone:
        assert_same(among.tensors(scheme), alone.tensors(scheme))


@each
@pytest.mark.parametrize("stop", [0, 5, 16, 23, 50])
def test_state_survives_a_file_at_any_step(scheme, stop):
    expected_bank = run([scheme], LAST)[1]
    stopped = run([scheme], stop)[1]
    file = io.BytesIO()
    torch.save(stopped.state_dict(), file)
    file.seek(0)
    model = Net()
    walk(model, stop)  # the model is restored by its own checkpoint
    resumed = Bank(model, [scheme])
    resumed.load_state_dict(torch.load(file, weights_only=True))
    assert resumed.step == stop
    assert resumed.seconds == stopped.seconds
    if scheme in stopped:
        assert_same(resumed.tensors(scheme), stopped.tensors(scheme))
    run([scheme], LAST, bank=resumed, first=stop + 1)
    assert_same(resumed.tensors(scheme), expected_bank.tensors(scheme))


@each
def test_swapped_holds_the_average_and_restores_bit_for_bit(scheme):
    model, bank = run([scheme], LAST)
    before = bits(model.state_dict())
    objects = [id(tensor) for tensor in model.state_dict(keep_vars=True).values()]
    average = bank.tensors(scheme)
    with bank.swapped(scheme) as same:
        assert same is model
        held = model.state_dict()
        for name, tensor in average.items():
            assert torch.equal(held[name], tensor), name
        if scheme.buffers == "live":
            assert bits({"s": model.statistic}) == {"s": before["statistic"]}
        else:
            assert ("statistic" in average) == (scheme.buffers == "average")
        assert model.count == LAST
    assert bits(model.state_dict()) == before
    assert [id(tensor) for tensor in model.state_dict(keep_vars=True).values()] == objects


@each
def test_nothing_returned_aliases_anything(scheme):
    model, bank = run([scheme], LAST)
    expected = {name: tensor.clone() for name, tensor in bank.tensors(scheme).items()}
    state = bank.state_dict()
    live = bits(model.state_dict())

    def wreck(value):
        if isinstance(value, torch.Tensor):
            value.fill_(77)
        for item in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
            wreck(item)

    wreck(state)
    wreck(bank.tensors(scheme))
    assert bits(model.state_dict()) == live
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    got = bank.tensors(scheme)
    assert_same(got, expected)


@each
def test_absent_before_it_exists(scheme):
    model = Net()
    bank = Bank(model, [scheme])
    walk(model, 1)
    assert len(bank) == 0
    assert list(bank) == []
    for attempt in (bank.tensors, lambda s: bank.swapped(s).__enter__()):
        with pytest.raises(KeyError, match="absent at step 0") as caught:
            attempt(scheme)
        assert str(caught.value).startswith(repr(scheme)[:4])
