"""What has left a window has no influence on its mean, to the bit; and the mean is right to a few roundings."""

import math
import warnings

import pytest
import reference
import torch
from torch import nn

from wa import EMA, LAWA, WSM, Bank, Tail
from wa.flat import FiniteWatch, Reading, make_blocks
from wa.ring import Ring

NAN, INF = math.nan, math.inf
WINDOWS = [
    *(LAWA(k) for k in (1, 2, 7, 8, 9, 20, 63, 64, 65, 130)),
    LAWA(40, until_full="partial"),
    *(WSM(k, curve=curve) for k in (5, 64) for curve in ("linear", "cosine", "sqrt")),
]


def filled(snapshots, schemes):
    """A bank after these snapshots of three weights, and nothing said of what is not finite."""
    model = nn.ParameterDict({"w": nn.Parameter(torch.zeros_like(snapshots[0]))})
    bank = Bank(model, schemes)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        for step, snapshot in enumerate(snapshots, 1):
            model["w"].data.copy_(snapshot)
            bank.update(step)
            yield bank


@pytest.mark.parametrize(("bad", "at"), [(NAN, 5), (INF, 64), (-3e38, 71), (1e8, 8)])
def test_a_snapshot_that_left_a_window_left_no_bit_behind(bad, at):
    good = torch.randn(230, 3, generator=torch.Generator().manual_seed(at))
    spoilt = good.clone()
    spoilt[at - 1, 1] = bad
    for clean, dirty in zip(filled(good, WINDOWS), filled(spoilt, WINDOWS), strict=True):
        step = clean.step
        for scheme in clean if step % 9 in (0, 1) or step < at + 10 else ():
            if at not in scheme.coefficients(step):
                assert torch.equal(dirty.tensors(scheme)["w"], clean.tensors(scheme)["w"]), (scheme, step)


def ring_of(snapshots, capacity, n=0):
    (block,) = make_blocks("parameters", {"w": snapshots[0]})
    ring = Ring(block, capacity)
    for i, snapshot in enumerate(snapshots[:n], 1):
        ring.push(block.pieces[0], Reading(snapshot, 0.0), i)
    return ring, block.pieces[0]


@pytest.mark.parametrize("capacity", [1, 7, 8, 9, 16, 63, 64, 71, 100])
def test_every_window_of_every_ring_keeps_to_the_stated_bound(capacity):
    """Against an exact sum, weights of wildly different size in one window; and no bit depends on the ring."""
    scale = 10.0 ** torch.randint(-6, 7, (210, 1), generator=torch.Generator().manual_seed(1))
    path = (scale * torch.randn(210, 2, generator=torch.Generator().manual_seed(2))).float()
    ring, piece = ring_of(path, capacity)
    large, _ = ring_of(path, 200)
    sizes = sorted({*range(1, min(capacity, 12)), capacity // 2 or 1, max(1, capacity - 1), capacity})
    for n in range(1, len(path) + 1):
        for each in (ring, large):
            each.push(piece, Reading(path[n - 1], 0.0), n)
        for k in sizes if n % 3 == 0 else sizes[-1:]:
            window = path[max(0, n - k) : n].double()
            mean = ring.mean(k, piece, n)
            levels = sum(8**level <= len(window) for level in (1, 2, 3))
            for i in range(2):
                exact = math.fsum(window[:, i].tolist()) / len(window)
                bound = (9 + 15 * levels + 1) * 2.0**-53 * window[:, i].abs().max().item()
                assert abs(mean[i].item() - exact) <= bound, (k, n)
            assert torch.equal(mean, large.mean(k, piece, n)), (k, n)


@pytest.mark.parametrize("n", [1, 6, 8, 9, 63, 64, 65, 77, 128, 150])
def test_a_ring_from_a_state_goes_on_as_the_one_it_was(n):
    path = torch.randn(300, 2, generator=torch.Generator().manual_seed(3))
    ring, piece = ring_of(path, 70, n)
    loaded, _ = ring_of(path, 70)
    loaded.load_state_dict(ring.state_dict(), n)
    for i in range(n, 300):
        for k in (3, 8, 20, 64, 70):
            assert torch.equal(ring.mean(k, piece, i), loaded.mean(k, piece, i)), (k, i)
        for each in (ring, loaded):
            each.push(piece, Reading(path[i], 0.0), i + 1)


def test_overlong_rings_hold_what_the_window_of_a_reference_holds():
    path = torch.randn(90, 3, dtype=torch.float64)
    for bank in filled(path, WINDOWS):
        if bank.step % 13 == 0:
            for scheme in bank:
                expected = reference.average(scheme, list(path[: bank.step]))
                torch.testing.assert_close(bank.tensors(scheme)["w"], expected, rtol=1e-12, atol=1e-12)


# --- the word about it ----------------------------------------------------------------------------------------


def two_layers():
    return nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))


@pytest.mark.parametrize("bad", [NAN, INF, -INF])
def test_one_warning_a_bank_names_step_and_parameter(bad):
    model = two_layers()
    bank = Bank(model, [EMA(0.5), LAWA(2), Tail(0)])
    bank.update(1)
    with torch.no_grad():
        model[1].weight[0, 1] = bad
        model[1].bias[0] = bad
    with pytest.warns(RuntimeWarning, match=r"not finite: '1\.weight' at step 2\..*LAWA and WSM.*EMA") as said:
        bank.update(2)
    assert len(said) == 1
    bank.update(3)  # warnings are errors in this suite: nothing more is said
    with bank.swapped(LAWA(2)):
        pass
    bank.tensors(EMA(0.5))
    bank.state_dict()


def test_a_warning_that_raises_comes_after_the_update():
    model = two_layers()
    bank = Bank(model, [LAWA(2)])
    with torch.no_grad():
        model[0].bias.fill_(NAN)
    with pytest.raises(RuntimeWarning, match=r"'0\.bias' at step 1"):  # warnings are errors in this suite
        bank.update(1)
    assert bank.step == 1
    with torch.no_grad():
        model[0].bias.fill_(1)
    bank.update(2)
    bank.update(3)
    assert torch.equal(bank.tensors(LAWA(2))["0.bias"], torch.ones(2))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_large_finite_weights_are_no_cause_for_a_warning(dtype):
    model = nn.ParameterDict({"w": nn.Parameter(torch.full((9,), torch.finfo(dtype).max, dtype=dtype))})
    bank = Bank(model, [LAWA(1)])
    bank.update(1)
    assert torch.equal(bank.tensors(LAWA(1))["w"], model["w"])


def test_an_accelerator_is_asked_only_when_somebody_waits_anyway():
    watch = FiniteWatch()
    parts = [torch.ones(3), torch.empty(0), torch.tensor([1.0, NAN])]
    watch._note(["a", "b", "c"], [torch.ones(3), torch.empty(0), torch.ones(2)], 4)
    watch._note(["a", "b", "c"], parts, 5)
    watch._note(["a", "b", "c"], [torch.full((3,), INF), *parts[1:]], 6)
    watch.tell(wait=False)  # says nothing, waits for nothing
    with pytest.warns(RuntimeWarning, match="'c' at step 5"):
        watch.tell(wait=True)
    watch.tell(wait=True)
