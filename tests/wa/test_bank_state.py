"""States across wrappers, schemes that come and go, joining late, and updates that fail midway."""

import copy

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import wa.lane
from wa import EMA, LAWA, WSM, Bank, IncompatibleSchemes, Tail


def walk(model, step):
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(float(step * step))


def run(bank, first, last):
    for step in range(first, last + 1):
        walk(bank._model, step)
        bank.update(step)
    return bank


def value(bank, scheme):
    """The one number that all of an average's weights are."""
    tensors = list(bank.tensors(scheme).values())
    assert all((tensor == tensors[0].flatten()[0]).all() for tensor in tensors)
    return tensors[0].flatten()[0].item()


def closed_form(coefficients):
    return pytest.approx(sum(c * step * step for step, c in coefficients.items()), rel=1e-6)


# Joining late


@pytest.mark.parametrize("start", [100, 103, 104])
def test_a_bank_that_joins_late_is_one_whose_burn_in_ends_there(start):
    """By hand: snapshots stay on the grid 4, 8, …, so the first is at 104, or at 108 when that is past."""
    skipped = start // 4 * 4
    late = [
        (LAWA(3, 4), LAWA(3, 4, burn_in=skipped)),
        (LAWA(3, 4, until_full="partial"), LAWA(3, 4, burn_in=skipped, until_full="partial")),
        (EMA(0.7, 4), EMA(0.7, 4, burn_in=skipped)),
        (EMA(0.7, 4, init="zero"), EMA(0.7, 4, burn_in=skipped, init="zero")),
        (Tail(0, 4), Tail(skipped, 4)),
        (Tail(40, 4), Tail(skipped, 4)),
        (WSM(3, 4, "cosine"), WSM(3, 4, "cosine", burn_in=skipped)),
        (EMA(0.7, 4, burn_in=112), EMA(0.7, 4, burn_in=112)),  # begins later still
    ]
    joined = Bank(nn.Linear(2, 2), [scheme for scheme, _ in late], start=start)
    whole = Bank(nn.Linear(2, 2), list(dict.fromkeys(same for _, same in late)))
    assert joined.step == start
    assert len(joined) == 0
    run(whole, 1, start)
    for step in range(start + 1, start + 40):
        run(joined, step, step)
        run(whole, step, step)
        for scheme, same in late:
            assert (scheme in joined) == (same in whole)
            assert joined.coefficients(scheme) == same.coefficients(step)
            if scheme in joined:
                assert value(joined, scheme) == value(whole, same) == closed_form(joined.coefficients(scheme))
    resumed = Bank(nn.Linear(2, 2), joined.schemes)
    resumed.load_state_dict(joined.state_dict())
    for bank in (resumed, copy.deepcopy(joined)):  # they know when it joined
        run(bank, joined.step + 1, joined.step + 9)
        for scheme in bank:
            assert min(bank.coefficients(scheme)) > start
            assert value(bank, scheme) == closed_form(bank.coefficients(scheme))


def test_the_first_steps_of_a_late_bank():
    bank = Bank(nn.Linear(2, 2), [EMA(0.9, 64)], start=1000)
    with pytest.raises(ValueError, match="increase: 1000 after 1000"):
        bank.update(1000)
    bank.update(1001)
    with pytest.raises(ValueError, match="due at step 1024 was left out"):
        bank.update(1025)
    bank.update(1024)
    assert bank.coefficients(EMA(0.9, 64)) == {1024: 1.0}
    with pytest.raises(ValueError, match=r"due at step 4 was left out.* start=steps so far"):
        Bank(nn.Linear(2, 2), [EMA(0.9, 4)]).update(101)
    for bad in (-1, 1.0, True, "7"):
        with pytest.raises(ValueError, match="start"):
            Bank(nn.Linear(2, 2), [EMA(0.9)], start=bad)
    with pytest.raises(KeyError, match="not in this bank"):
        bank.coefficients(EMA(0.8, 64))


# Part of a state


def test_schemes_come_and_go():
    """What both have goes on, what is new joins at the state's step, what is gone is named."""
    old = run(Bank(nn.Linear(2, 2), [LAWA(6, 2), EMA(0.5, 2), LAWA(2, 2), Tail(3)]), 1, 20)
    schemes = [Tail(3), LAWA(8, 2), LAWA(2, 2), EMA(0.8, 2), EMA(0.5, 4)]
    bank = Bank(nn.Linear(2, 2), schemes)
    with pytest.raises(ValueError, match=r"no LAWA\(k=8, .*, EMA\(decay=0\.8, .*strict=False"):
        bank.load_state_dict(old.state_dict())
    assert bank.step == 0
    answer = bank.load_state_dict(old.state_dict(), strict=False)
    assert answer == ([repr(s) for s in (LAWA(8, 2), EMA(0.8, 2), EMA(0.5, 4))], [repr(LAWA(6, 2)), repr(EMA(0.5, 2))])
    assert isinstance(answer, IncompatibleSchemes)
    assert (answer.missing_keys, answer.unexpected_keys) == tuple(answer)
    assert set(bank) == {Tail(3), LAWA(2, 2)}
    assert value(bank, Tail(3)) == value(old, Tail(3))
    run(bank, 21, 60)
    run(old, 21, 60)
    for scheme in (Tail(3), LAWA(2, 2)):
        assert value(bank, scheme) == value(old, scheme)
        assert bank.coefficients(scheme) == scheme.coefficients(60)
    for scheme in schemes:
        assert value(bank, scheme) == closed_form(bank.coefficients(scheme))
    assert min(bank.coefficients(EMA(0.8, 2))) == 22
    again = Bank(nn.Linear(2, 2), schemes)
    assert again.load_state_dict(bank.state_dict()) == ([], [])  # with joins at two steps
    for scheme in again:
        assert value(again, scheme) == value(bank, scheme)


POOL = [
    *(LAWA(k, every, until_full="partial") for k in (1, 3, 9) for every in (1, 3)),
    *(EMA(decay, every) for decay in (0.3, 0.9) for every in (1, 3)),
    WSM(4, 3, "sqrt"),
    Tail(5, 2),
    LAWA(4, 3, buffers="average"),
]
some = st.lists(st.sampled_from(POOL), unique=True, max_size=6)


@given(first=some, second=some, stop=st.integers(0, 25), more=st.integers(1, 25))
def test_any_two_sets_of_schemes(first, second, stop, more):
    state = run(Bank(nn.Linear(1, 2), first), 1, stop).state_dict()
    bank = Bank(nn.Linear(1, 2), second)
    missing, unexpected = bank.load_state_dict(state, strict=False)
    assert missing == [repr(scheme) for scheme in second if scheme not in first]
    assert unexpected == [repr(scheme) for scheme in first if scheme not in second]
    run(bank, stop + 1, stop + more)
    for scheme in second:
        if scheme in first:
            assert bank.coefficients(scheme) == scheme.coefficients(stop + more)
        else:
            assert all(step > stop for step in bank.coefficients(scheme))
        if scheme in bank:
            assert value(bank, scheme) == closed_form(bank.coefficients(scheme))


def test_the_order_of_schemes_does_not_matter():
    bank = run(Bank(nn.Linear(2, 2), [EMA(0.5), LAWA(2), LAWA(3)]), 1, 9)
    other = Bank(nn.Linear(2, 2), [LAWA(3), EMA(0.5), LAWA(2)])
    other.load_state_dict(bank.state_dict())
    assert all(value(other, scheme) == value(bank, scheme) for scheme in bank)


def test_a_loaded_bank_takes_no_more_memory():
    bank = run(Bank(nn.Linear(2, 2), [EMA(0.5), LAWA(5)]), 1, 9)
    other = Bank(nn.Linear(2, 2), [EMA(0.5), LAWA(5)])
    lanes = list(other._averages.lanes.values())
    other.load_state_dict(bank.state_dict())
    assert list(other._averages.lanes.values()) == lanes  # filled where they are
    assert other.nbytes == bank.nbytes


# Names


class Compiled(nn.Module):
    """As torch.compile wraps."""

    def __init__(self, model):
        super().__init__()
        self._orig_mod = model


class Wrapped(nn.Module):
    """As DistributedDataParallel and many a home-made wrapper do."""

    def __init__(self, model):
        super().__init__()
        self.module = model


class Inner(nn.Module):
    """Its own part is called module: no wrapper."""

    def __init__(self):
        super().__init__()
        self.module = nn.Linear(2, 2)
        self.other = nn.BatchNorm1d(2)


def compiled_inside(model):
    model.other = Compiled(model.other)
    return model


def parallel_inside(model):
    model.other = nn.DataParallel(model.other)
    return model


WRAPPERS = {
    "none": lambda model: model,
    "torch.compile": lambda model: torch.compile(model, backend="eager"),
    "DataParallel": nn.DataParallel,
    "wrapped": Wrapped,
    "compiled, then wrapped": lambda model: Wrapped(Compiled(model)),
    "wrapped, then compiled": lambda model: Compiled(Wrapped(model)),
    "a part compiled": compiled_inside,
    "a part parallel": parallel_inside,
}


@pytest.mark.parametrize("there", WRAPPERS)
@pytest.mark.parametrize("here", WRAPPERS)
def test_a_wrapped_model_and_the_plain_one_read_each_other_s_banks(here, there):
    schemes = [EMA(0.5), LAWA(2, buffers="average")]
    bank = run(Bank(WRAPPERS[there](Inner()), schemes), 1, 5)
    other = Bank(WRAPPERS[here](Inner()), schemes)
    other.load_state_dict(bank.state_dict())
    names = dict(other._model.named_parameters())
    for scheme in schemes:
        mine, theirs = other.tensors(scheme), bank.tensors(scheme)
        assert names.keys() <= mine.keys()  # those of its own model
        assert all(torch.equal(x, y) for x, y in zip(mine.values(), theirs.values(), strict=True))


def test_another_model_s_state_names_the_tensors_that_differ():
    bank = Bank(Inner(), [EMA(0.5)])
    for model, message in [
        (nn.Linear(2, 2), r"it has no 'module\.weight', 'module\.bias', 'other\.weight' \(and 1 more\), and this"),
        (nn.ModuleDict({"module": nn.Linear(2, 2)}), "it has no 'module"),
        (nn.Sequential(nn.Linear(2, 2)), r"this model has no '0\.weight', '0\.bias'"),
    ]:
        with pytest.raises(ValueError, match=message):
            bank.load_state_dict(Bank(model, [EMA(0.5)]).state_dict())
    wider = Inner()
    wider.module = nn.Linear(3, 2)
    with pytest.raises(ValueError, match=r"'module\.weight' is parameters float32\[2, 3\] in it, and .*\[2, 2\]"):
        bank.load_state_dict(Bank(wider, [EMA(0.5)]).state_dict())


def damaged(state):
    """Copies of a state with one thing wrong each."""
    for path in [("step",), ("schemes",), ("blocks",), ("lanes",), ("lanes", 0, "track"), ("schemes", 1, "joined")]:
        for wrong in ("gone", None, "x", []):
            other = copy.deepcopy(state)
            holder = other
            for key in path[:-1]:
                holder = holder[key]
            if wrong == "gone":
                del holder[path[-1]]
            else:
                holder[path[-1]] = wrong
            yield other
    for lane, wrong in [(0, torch.zeros(1)), (0, None), (1, torch.zeros(6, dtype=torch.float16))]:
        other = copy.deepcopy(state)
        lanes = other["lanes"][lane]
        parts = next(iter(lanes["accumulators"].values())) if lanes["accumulators"] else lanes["ring"]["slots"]
        parts[0] = wrong
        yield other
    late = copy.deepcopy(state)
    late["schemes"][0]["joined"] = 10
    yield from (late, {}, [], None, {"format": 1}, {**state, "format": 99})


def test_a_damaged_state_is_refused_and_changes_nothing():
    schemes = [EMA(0.5), LAWA(2, 2)]
    state = run(Bank(nn.Linear(2, 2), schemes), 1, 9).state_dict()
    bank = run(Bank(nn.Linear(2, 2), schemes), 1, 5)
    before = [value(bank, scheme) for scheme in schemes]
    cases = list(damaged(state))
    assert len(cases) > 25
    for other in cases:
        with pytest.raises(ValueError, match="state") as caught:
            bank.load_state_dict(other)
        assert "\n" not in str(caught.value)
        assert bank.step == 5
        assert [value(bank, scheme) for scheme in schemes] == before
    run(bank, 6, 9)
    assert value(bank, EMA(0.5)) == closed_form(EMA(0.5).coefficients(9))


# Half-done work


@pytest.mark.parametrize("error", [MemoryError, KeyboardInterrupt, RuntimeError])
@pytest.mark.parametrize("nth", [0, 1, 3])
def test_an_update_that_fails_midway_cannot_be_done_twice(monkeypatch, error, nth):
    """Two pieces and two grids are four pushes: whichever fails, what was pushed is not pushed again."""
    schemes = [EMA(0.5), LAWA(3, 2), Tail(0)]
    model = nn.Sequential(nn.Linear(300, 300), nn.Linear(2, 2))
    bank = run(Bank(model, schemes), 1, 3)
    state = bank.state_dict()
    walk(model, 4)
    push, calls = wa.lane.Lane.push, []

    def failing(self, *arguments):
        calls.append(1)
        if len(calls) == nth + 1:
            raise error
        return push(self, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(wa.lane.Lane, "push", failing)
        with pytest.raises(error):
            bank.update(4)
    for attempt in (
        lambda: bank.update(4),
        lambda: bank.update(5),
        bank.state_dict,
        lambda: list(bank),
        lambda: len(bank),
        lambda: EMA(0.5) in bank,
        lambda: bank.tensors(EMA(0.5)),
        lambda: bank.coefficients(EMA(0.5)),
        lambda: bank.module_state(EMA(0.5)),
        lambda: bank.swapped(EMA(0.5)).__enter__(),
        lambda: copy.deepcopy(bank),
    ):
        with pytest.raises(RuntimeError, match=r"update\(4\) failed midway.*load_state_dict"):
            attempt()
    assert "step 3" in repr(bank)
    bank.load_state_dict(state)
    run(bank, 4, 8)
    for scheme in schemes:
        assert value(bank, scheme) == closed_form(scheme.coefficients(8))


def test_an_update_that_was_refused_before_it_began_can_be_done_again():
    model = nn.Linear(2, 2)
    bank = run(Bank(model, [EMA(0.5), Tail(0)]), 1, 3)
    own, model.bias = model.bias, None
    with pytest.raises(RuntimeError, match="no longer has 'bias'"):
        bank.update(4)
    model.bias = own
    run(bank, 4, 6)
    assert value(bank, Tail(0)) == closed_form(Tail(0).coefficients(6))


def test_a_load_that_fails_midway_leaves_no_mixture(monkeypatch):
    schemes = [EMA(0.5), LAWA(3, 2), Tail(1)]
    state = run(Bank(nn.Linear(2, 2), schemes), 1, 9).state_dict()
    bank = run(Bank(nn.Linear(2, 2), schemes), 1, 5)
    load, calls = wa.lane.Lane.load_state_dict, []

    def failing(self, *arguments):
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return load(self, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(wa.lane.Lane, "load_state_dict", failing)
        with pytest.raises(KeyboardInterrupt):
            bank.load_state_dict(state)
    with pytest.raises(RuntimeError, match="load_state_dict failed midway"):
        bank.tensors(EMA(0.5))
    bank.load_state_dict(state)
    run(bank, 10, 12)
    for scheme in schemes:
        assert value(bank, scheme) == closed_form(scheme.coefficients(12))
