"""A bank that knows when it is read: the bits of one that keeps every snapshot, in less memory."""

import copy
import gc
import math
import pickle
import warnings

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from wa import EMA, LAWA, WSM, Bank, Tail, memory_bytes

READ_AT = [30, 60, 61, 90, 150, 200]
SCHEMES = [LAWA(9), LAWA(70), LAWA(25, 2), LAWA(40, until_full="partial"), WSM(12, curve="cosine"), EMA(0.9), Tail(3)]


def path(steps, seed=1):
    return torch.randn(steps, 6, generator=torch.Generator().manual_seed(seed))


def model_at(weights):
    return nn.ParameterDict({"w": nn.Parameter(weights.clone())})


def walk(bank, snapshots, first=1):
    """Updates from step `first` on; yields each step."""
    for step, snapshot in enumerate(snapshots[first - 1 :], start=first):
        bank._model["w"].data.copy_(snapshot)
        bank.update(step)
        yield step


def assert_same(bank, other):
    assert list(bank) == list(other)
    for scheme in bank:
        assert torch.equal(bank.tensors(scheme)["w"], other.tensors(scheme)["w"]), (scheme, bank.step)


windows = st.one_of(
    st.builds(LAWA, st.integers(1, 150), st.integers(1, 3), until_full=st.sampled_from(["absent", "partial"])),
    st.builds(WSM, st.integers(1, 30), st.integers(1, 2), curve=st.sampled_from(["linear", "sqrt"])),
    st.builds(LAWA, st.integers(1, 20), burn_in=st.integers(0, 9)),
)


@settings(deadline=None, max_examples=25)
@given(
    schemes=st.lists(windows, min_size=1, max_size=4, unique=True),
    read_at=st.sets(st.integers(1, 200), min_size=1, max_size=12),
    resumed_at=st.integers(1, 200),
    resumed_from=st.sampled_from([0, 1]),
)
def test_the_bits_of_a_bank_that_keeps_every_snapshot(schemes, read_at, resumed_at, resumed_from):
    """Resumed too, from a state of either; one that was in company has the bits of one alone."""
    snapshots = path(max(read_at))
    plain, told = (Bank(model_at(snapshots[0]), schemes, read_at=at) for at in (None, read_at))
    alone = Bank(model_at(snapshots[0]), schemes[:1], read_at=read_at)
    size = memory_bytes(schemes, 6, read_at=read_at)
    assert told.nbytes == size <= plain.nbytes
    for step, _, _ in zip(walk(plain, snapshots), walk(told, snapshots), walk(alone, snapshots), strict=True):
        if step == resumed_at:
            state = (plain, told)[resumed_from].state_dict()
            told.load_state_dict(state)
        if step in read_at:
            assert_same(told, plain)
            for scheme in alone:
                assert torch.equal(alone.tensors(scheme)["w"], plain.tensors(scheme)["w"])
    assert told.nbytes == size


def allocated():
    """Bytes of every storage that a tensor in this process has."""
    gc.collect()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # objects of other libraries that are looked at
        # Not what stands for a tensor, as another test's compilation leaves it.
        tensors = [thing for thing in gc.get_objects() if type(thing) in (torch.Tensor, nn.Parameter)]
    return sum({t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}.values())


@pytest.mark.parametrize("read_at", [None, READ_AT])
def test_nbytes_is_what_is_allocated(read_at):
    """Before, while and after windows come and go; of one parameter, which is read where it is, there is no scratch."""
    snapshots = torch.randn(200, 31, 40)
    model = nn.Linear(40, 31, bias=False)
    before = allocated()
    bank = Bank(model, SCHEMES, read_at=read_at)
    assert allocated() - before == bank.nbytes == memory_bytes(SCHEMES, 31 * 40, read_at=read_at)
    for step in range(1, 201):
        with torch.no_grad():
            model.weight.copy_(snapshots[step - 1])
        bank.update(step)
        if step in (31, 62, 140, 200):
            assert allocated() - before == bank.nbytes


def test_what_it_keeps_is_a_sum_for_each_reading_ahead():
    reads = range(40, 2001, 40)
    assert memory_bytes([LAWA(100)], 1, read_at=reads) == 8 * (3 + 2)  # windows open at once, and ⌊log₈ 100⌋ levels
    assert memory_bytes([LAWA(100), LAWA(20)], 1, read_at=reads) == 8 * (4 + 2)
    assert memory_bytes([LAWA(160), LAWA(120), LAWA(80)], 1, read_at=reads) == 8 * (4 + 2)  # they begin together
    assert memory_bytes([LAWA(100)], 1, read_at=range(1, 2001)) == memory_bytes([LAWA(100)], 1)  # a ring is less
    assert memory_bytes([LAWA(7), EMA(0.99)], 1, read_at=[]) == 8


@pytest.mark.parametrize(("bad", "at"), [(math.nan, 25), (math.inf, 64), (-3e38, 131), (1e8, 8)])
def test_a_bad_snapshot_spoils_the_windows_that_hold_it_alone(bad, at):
    good = path(200)
    spoilt = good.clone()
    spoilt[at - 1, 1] = bad
    clean, dirty = (Bank(model_at(good[0]), SCHEMES[:5], read_at=READ_AT) for _ in range(2))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        for step, _ in zip(walk(clean, good), walk(dirty, spoilt), strict=True):
            for scheme in clean if step in READ_AT else ():
                same = torch.equal(clean.tensors(scheme)["w"], dirty.tensors(scheme)["w"])
                assert same == (at not in scheme.coefficients(step)), (scheme, step)


def test_a_window_at_a_step_that_was_not_told_is_one_error():
    bank = Bank(model_at(path(1)[0]), [LAWA(3), LAWA(2, 5), EMA(0.5)], read_at=[7, 12])
    for step in walk(bank, path(12)):
        if step in (7, 12):
            bank.tensors(LAWA(3))
        elif step > 3:
            with pytest.raises(ValueError, match=rf"LAWA\(k=3.*read at step {step}, which is not in.*read_at=…"):
                bank.tensors(LAWA(3))
            with pytest.raises(ValueError, match="add the step to"), bank.swapped(LAWA(3)):
                pass
        if step == 11:
            bank.tensors(LAWA(2, 5))  # its snapshots are still those of step 12
        bank.tensors(EMA(0.5))
    for wrong in (7, "12", [3.5]):
        with pytest.raises(ValueError, match="read_at"):
            Bank(model_at(path(1)[0]), [LAWA(3)], read_at=wrong)


def test_states_of_banks_with_other_readings():
    snapshots = path(200)
    plain, told = (Bank(model_at(snapshots[0]), SCHEMES, read_at=at) for at in (None, READ_AT))
    for step, _ in zip(walk(plain, snapshots), walk(told, snapshots), strict=True):
        if step == 140:
            break
    state = told.state_dict()
    with pytest.raises(ValueError, match=r"bank with read_at, which kept no snapshots: .*the same steps"):
        plain.load_state_dict(state)
    other = Bank(model_at(snapshots[0]), SCHEMES, read_at=[*READ_AT, 149])
    with pytest.raises(ValueError, match="other steps in read_at: it has no window of the snapshots after"):
        other.load_state_dict(state)
    key = next(iter(state["lanes"][0]["ring"]["windows"]))
    damaged = copy.deepcopy(state)
    damaged["lanes"][0]["ring"]["windows"][key][0] = torch.zeros(5)
    fewer = Bank(model_at(snapshots[139]), SCHEMES[1:], read_at=[150, 200])
    with pytest.raises(ValueError, match="damaged"):
        told.load_state_dict(damaged)
    assert plain.step == told.step == 140
    assert other.step == 0
    fewer.load_state_dict(state, strict=False)
    all_three = (walk(bank, snapshots, 141) for bank in (plain, told, fewer))
    for step, _, _ in zip(*all_three, strict=True):
        if step in (150, 200):
            assert_same(told, plain)
            for scheme in fewer:
                assert torch.equal(fewer.tensors(scheme)["w"], plain.tensors(scheme)["w"])


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda bank: pickle.loads(pickle.dumps(bank))])
def test_a_copy_knows_when_it_is_read(copied):
    snapshots = path(200)
    bank = Bank(model_at(snapshots[0]), SCHEMES, read_at=READ_AT)
    for step in walk(bank, snapshots):
        if step == 140:
            break
    other = copied(bank)
    assert other.nbytes == bank.nbytes
    for step, _ in zip(walk(bank, snapshots, 141), walk(other, snapshots, 141), strict=True):
        if step in READ_AT:
            assert_same(other, bank)


def test_a_bank_that_joins_late():
    snapshots = path(200)
    plain, told = (Bank(model_at(snapshots[0]), SCHEMES, 35, read_at=at) for at in (None, READ_AT))
    for step, _ in zip(walk(plain, snapshots, 36), walk(told, snapshots, 36), strict=True):
        if step in READ_AT:
            assert_same(told, plain)
