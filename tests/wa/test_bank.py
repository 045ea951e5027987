"""The bank's behaviour: order of steps, swapping, state, tied and frozen weights, memory."""

import copy
import itertools
import math
import subprocess
import sys
import time
from dataclasses import dataclass

import pytest
import torch
from torch import nn

import wa.bank
import wa.flat
import wa.lane
from wa import EMA, LAWA, WSM, Bank, Recursive, Tail, memory_bytes


class Tied(nn.Module):
    """An output layer that shares the embedding, a frozen part, and a second Parameter on one storage."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(11, 4)
        self.head = nn.Linear(4, 11, bias=False)
        self.head.weight = self.embed.weight
        self.alias = nn.Parameter(self.embed.weight.data)
        self.frozen = nn.Linear(4, 4).requires_grad_(False)
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))
        self.register_buffer("mask", torch.tensor([0.0, -torch.inf]))


def trained(schemes, steps, model=None):
    model = model or nn.Linear(3, 2)
    bank = Bank(model, schemes)
    for step in range(1, steps + 1):
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.fill_(step)
        bank.update(step)
    return model, bank


def test_steps_must_increase_and_snapshots_not_be_skipped():
    bank = Bank(nn.Linear(2, 2), [LAWA(2, 8), EMA(0.5, 4, burn_in=2)])
    for step in (1, 3, 6, 7, 8, 9):  # steps without a snapshot may be left out
        bank.update(step)
    for step in (9, 8, 0, -1):
        with pytest.raises(ValueError, match=f"increase: {step} after 9"):
            bank.update(step)
    with pytest.raises(ValueError, match=r"update\(11\): the snapshot due at step 10 was left out"):
        bank.update(11)
    assert bank.step == 9
    bank.update(10)
    with pytest.raises(ValueError, match="as an int"):
        bank.update(11.0)


def test_an_empty_bank_only_counts():
    bank = Bank(nn.Linear(2, 2), [])
    bank.update(5)
    assert (list(bank), len(bank), bank.nbytes, bank.seconds, bank.step) == ([], 0, 0, {}, 5)
    assert bank  # never falsy: `if bank: bank.update()` would never fill it
    resumed = Bank(nn.Linear(2, 2), [])
    resumed.load_state_dict(bank.state_dict())
    with pytest.raises(ValueError, match="increase"):
        resumed.update(5)


def test_iteration_gives_what_exists_now():
    lawa, partial, tail = LAWA(3, 2), LAWA(3, 2, until_full="partial"), Tail(4)
    _, bank = trained([lawa, partial, tail], 1)
    assert list(bank) == []
    _, bank = trained([lawa, partial, tail], 4)
    assert list(bank) == [partial]
    assert bank.tensors(partial)["bias"][0] == 3  # (2 + 4)/2, not (2 + 4)/3
    _, bank = trained([lawa, partial, tail], 6)
    assert list(bank) == [lawa, partial, tail]
    assert len(bank) == 3
    assert LAWA(4, 2) not in bank


def test_bad_banks():
    with pytest.raises(ValueError, match="twice"):
        Bank(nn.Linear(2, 2), [EMA(0.9), EMA(0.9)])
    with pytest.raises(ValueError, match="not a scheme"):
        Bank(nn.Linear(2, 2), ["ema"])
    with pytest.raises(ValueError, match="complex"):
        Bank(nn.Linear(2, 2, dtype=torch.complex64), [EMA(0.9)])


def test_swapped_restores_after_an_exception_and_what_was_done_inside():
    model, bank = trained([EMA(0.5)], 5)
    before = copy.deepcopy(model.state_dict())
    kept = dict(model.named_parameters())

    def fail_inside():
        with bank.swapped(EMA(0.5)):
            assert not torch.equal(model.bias, before["bias"])
            with torch.no_grad():
                model.bias.zero_()
            model.weight = nn.Parameter(torch.zeros(2, 3))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail_inside()
    assert dict(model.named_parameters()).keys() == kept.keys()
    assert all(model.get_parameter(name) is parameter for name, parameter in kept.items())
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    bank.update(6)  # usable again


def test_special_values_survive_a_swap_bit_for_bit():
    model, bank = trained([EMA(0.5)], 3)
    odd = torch.tensor([-0.0, float("nan")])
    odd.view(torch.int32)[1] |= 12345  # a NaN with a payload
    with torch.no_grad():
        model.bias.copy_(odd)
    before = model.bias.detach().clone().view(torch.int32)
    with bank.swapped(EMA(0.5)):
        pass
    assert torch.equal(model.bias.detach().view(torch.int32), before)


def test_nothing_changes_hands_while_swapped():
    _, bank = trained([EMA(0.5)], 3)
    state = bank.state_dict()
    with bank.swapped(EMA(0.5)):
        for name, attempt in {
            "update": lambda: bank.update(4),
            "state_dict": bank.state_dict,
            "load_state_dict": lambda: bank.load_state_dict(state),
            "swapped": lambda: bank.swapped(EMA(0.5)).__enter__(),
        }.items():
            with pytest.raises(RuntimeError, match=f"^{name} while an average is swapped in"):
                attempt()
        assert list(bank) == [EMA(0.5)]
    bank.update(4)


@dataclass(frozen=True)
class PowerEMA(Recursive):
    """β = (1 − 1/n)^(γ+1) (Karras et al. 2024): a scheme of one's own is one class."""

    power: float
    every: int = 1
    burn_in: int = 0
    buffers: str = "live"

    @property
    def horizon(self):
        return math.inf

    def gain(self, n):
        return 1 - (1 - 1 / n) ** (self.power + 1)

    def weights(self, snapshots):
        later = [1.0]
        for n in range(snapshots, 1, -1):
            later.insert(0, later[0] * (1 - self.gain(n)))
        return [self.gain(n) * rest for n, rest in enumerate(later, 1)]

    def lag(self, snapshots):
        return sum(weight * age for age, weight in enumerate(reversed(self.weights(snapshots))))


def test_a_scheme_of_ones_own():
    scheme = PowerEMA(2.0, 3, 2)
    _, bank = trained([scheme, LAWA(2, 3)], 40)
    expected = sum(weight * step for step, weight in scheme.coefficients(40).items())
    assert bank.tensors(scheme)["bias"][0].item() == pytest.approx(expected, rel=1e-6)
    assert scheme.horizon_at(40) > scheme.horizon_at(20) > 0
    resumed = Bank(nn.Linear(3, 2), [scheme, LAWA(2, 3)])
    resumed.load_state_dict(bank.state_dict())
    assert torch.equal(resumed.tensors(scheme)["bias"], bank.tensors(scheme)["bias"])


def test_unknown_scheme():
    _, bank = trained([EMA(0.5)], 3)
    with pytest.raises(KeyError, match="not in this bank"):
        bank.tensors(EMA(0.6))
    with pytest.raises(KeyError, match="not in this bank"), bank.swapped(EMA(0.6)):
        pass


def test_tied_frozen_and_integer_tensors():
    model = Tied()
    frozen = model.frozen.weight.clone()
    scheme = LAWA(3, buffers="average")
    bank = Bank(model, [scheme, EMA(0.7)])
    for step in range(1, 6):
        with torch.no_grad():
            model.embed.weight.fill_(step)
            model.steps.fill_(step)
        bank.update(step)
    tensors = bank.tensors(scheme)
    assert list(tensors) == ["alias", "frozen.weight", "frozen.bias", "steps", "mask"]  # tied once
    assert (tensors["alias"] == 4).all()
    assert torch.equal(tensors["frozen.weight"], frozen)  # averaged too: the mean of equal values
    assert torch.equal(bank.tensors(EMA(0.7))["frozen.weight"], frozen)
    assert tensors["steps"] == 5  # the live one
    assert tensors["steps"] is not model.steps
    assert torch.equal(tensors["mask"], model.mask)  # −inf: no NaN from inf − inf
    with bank.swapped(scheme):
        assert (model.head.weight == 4).all()
        assert (model.alias == 4).all()
        assert model.head.weight is model.embed.weight
    assert (model.alias == 5).all()
    assert bank.nbytes == memory_bytes([scheme, EMA(0.7)], 44 + 20, 4)


def test_parameters_replaced_after_construction():
    model, bank = trained([LAWA(2)], 2)
    model.bias = nn.Parameter(torch.full((2,), 9.0))
    bank.update(3)
    assert bank.tensors(LAWA(2))["bias"][0] == 5.5  # read by name: (2 + 9)/2
    model.bias = nn.Parameter(torch.zeros(3))
    with pytest.raises(RuntimeError, match=r"'bias' is float32\[3\]"):
        bank.update(4)
    model.bias = None
    with pytest.raises(RuntimeError, match="no longer has 'bias'"):
        bank.update(4)
    model.bias = nn.Parameter(torch.zeros(2))
    model.more = nn.Parameter(torch.zeros(2))
    with pytest.raises(RuntimeError, match="does not average: more"):
        bank.update(4)


def test_non_contiguous_and_mixed_dtypes():
    model = nn.Module()
    model.wide = nn.Parameter(torch.randn(300, 300).t())
    model.small = nn.Parameter(torch.randn(4, 3).t())
    model.brief = nn.Parameter(torch.randn(5).bfloat16())
    expected = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    bank = Bank(model, [LAWA(1), EMA(0.0)])
    bank.update(1)
    for scheme in bank:
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(1)
        assert all(torch.equal(tensor, expected[name]) for name, tensor in bank.tensors(scheme).items())
        with bank.swapped(scheme):
            assert all(torch.equal(p, expected[name]) for name, p in model.named_parameters())


def test_a_state_of_something_else_is_refused_and_changes_nothing():
    _, bank = trained([EMA(0.5), LAWA(2)], 4)
    before = bank.tensors(LAWA(2))["weight"]
    for schemes, model, message in [
        ([EMA(0.5)], nn.Linear(3, 2), r"other schemes: it has no LAWA\(k=2"),
        ([EMA(0.5), LAWA(3)], nn.Linear(3, 2), r"it has no LAWA\(k=2.*this bank has no LAWA\(k=3"),
        ([EMA(0.5), LAWA(2)], nn.Linear(3, 3), "another model"),
        ([EMA(0.5), LAWA(2)], nn.Linear(3, 2).bfloat16(), "another model"),
    ]:
        with pytest.raises(ValueError, match=message):
            bank.load_state_dict(Bank(model, schemes).state_dict())
    with pytest.raises(ValueError, match="format"):
        bank.load_state_dict({"step": 3})
    assert bank.step == 4
    assert torch.equal(bank.tensors(LAWA(2))["weight"], before)


def test_seconds_charge_each_scheme_as_if_alone(monkeypatch):
    """On a clock that ticks once a look, a scheme's bill in company is the one it gets alone, to the tick."""
    for module in (wa.bank, wa.lane, wa.flat):
        monkeypatch.setattr(module, "perf_counter", itertools.count().__next__)
    schemes = [LAWA(4, 8), LAWA(40, 8), EMA(0.9, 8), EMA(0.8, 8), Tail(0, 16), EMA(0.9, 1000)]
    for dtype in (torch.float32, torch.bfloat16):
        _, bank = trained(schemes, 160, nn.Linear(400, 200, dtype=dtype))  # three pieces
        for scheme in schemes:
            alone = trained([scheme], 160, nn.Linear(400, 200, dtype=dtype))[1].seconds[scheme]
            assert bank.seconds[scheme] == alone
        assert bank.seconds[LAWA(4, 8)] == 20 * (1 + 3 * 3)  # find, read, push, look
        assert bank.seconds[LAWA(40, 8)] == 20 * (1 + 3 * 4)  # and cast, for its sums
        cast = 0 if dtype == torch.float32 else 1
        assert bank.seconds[EMA(0.9, 8)] == 20 * (1 + 3 * (3 + cast))
        assert bank.seconds[EMA(0.9, 1000)] == 0
    resumed = Bank(nn.Linear(400, 200, dtype=dtype), schemes)
    resumed.load_state_dict(bank.state_dict())
    assert resumed.seconds == bank.seconds


def test_seconds_are_wall_seconds():
    start = time.perf_counter()
    _, bank = trained([LAWA(4, 2)], 100, nn.Linear(400, 200))
    assert 0 < bank.seconds[LAWA(4, 2)] < time.perf_counter() - start


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_memory_is_predicted(dtype):
    schemes = [
        *(LAWA(k, every) for k in (1, 5, 20) for every in (8, 16)),
        LAWA(5, 8, until_full="partial"),
        LAWA(7, 8, burn_in=4),
        *(EMA(decay, 8) for decay in (0.9, 0.99)),
        EMA(0.9, 8, buffers="average"),
        LAWA(9, 8, buffers="average"),
        WSM(30, 8, "cosine"),
        Tail(4, 8),
    ]
    model = nn.Sequential(nn.Linear(30, 20), nn.BatchNorm1d(20)).to(dtype)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    bank = Bank(model, schemes)
    assert bank.nbytes == memory_bytes(schemes, parameters, dtype.itemsize, num_buffers=40)
    held = {tensor.data_ptr(): tensor for tensor in tensors_within(list(bank._averages.lanes.values()))}
    assert bank.nbytes == sum(tensor.untyped_storage().nbytes() for tensor in held.values())


def tensors_within(thing):
    """All tensors that our objects in `thing` hold, however deep."""
    if isinstance(thing, torch.Tensor):
        yield thing
    elif isinstance(thing, list | tuple | dict):
        for item in thing.values() if isinstance(thing, dict) else thing:
            yield from tensors_within(item)
    elif type(thing).__module__.startswith("wa."):
        yield from tensors_within(getattr(thing, "__dict__", {}))


def test_memory_of_one_ring_is_shared():
    one = memory_bytes([LAWA(20, 8)], 1000)
    assert memory_bytes([LAWA(k, 8) for k in (2, 5, 10, 20)], 1000) == one
    merges = [WSM(k, 8, curve) for k in (5, 20) for curve in ("cosine", "sqrt")]
    assert memory_bytes([LAWA(10, 8), *merges], 1000) == one  # in the same ring
    assert memory_bytes([LAWA(20, 8), LAWA(20, 16)], 1000) == 2 * one
    assert memory_bytes([EMA(0.9)], 1000) == memory_bytes([EMA(0.9)], 1000, 2) == 4000
    assert memory_bytes([EMA(0.9)], 1000, 8) == memory_bytes([Tail(0)], 1000) == 8000
    assert memory_bytes([EMA(0.99)], 1000) == memory_bytes([EMA(0.9999)], 1000, 2) == 8000
    assert memory_bytes([EMA(0.99)], 1000, 2) == 4000
    with pytest.raises(ValueError, match="itemsize"):
        memory_bytes([EMA(0.9)], 1000, 3)


def test_averages_need_no_gradient_and_leave_gradients_alone():
    model = nn.Linear(3, 2)
    bank = Bank(model, [EMA(0.5)])
    model(torch.ones(1, 3)).sum().backward()
    gradient = model.weight.grad.clone()
    bank.update(1)
    with bank.swapped(EMA(0.5)):
        assert torch.is_grad_enabled()
    assert torch.equal(model.weight.grad, gradient)
    assert not any(tensor.requires_grad for tensor in bank.tensors(EMA(0.5)).values())
    assert model.weight.requires_grad


def test_import_costs_little_beyond_torch():
    clock = "time.process_time()"  # CPU seconds: a busy machine does not count
    code = f"import torch, time; start = {clock}; import wa; print({clock} - start)"
    runs = [
        float(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout)
        for _ in range(4)
    ]
    assert min(runs) < 0.05
