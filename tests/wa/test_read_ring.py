"""Averages read at steps known beforehand: the bits of a ring that keeps every snapshot, and less memory."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from wa.flat import FiniteWatch, Reader, live_parameters, make_blocks
from wa.read_ring import ReadRing
from wa.ring import Ring


@pytest.fixture(autouse=True, scope="module")
def _no_grad():
    with torch.no_grad():
        yield


def walked(lengths, whole, reads, last, spoil=None):
    """(n, k, mean of a Ring, mean of a ReadRing) at each reading; and the most bytes that either had."""
    model = nn.Linear(5, 7)
    (block,) = make_blocks("parameters", live_parameters(model))
    ring, kept = Ring(block, max([*lengths, *whole])), ReadRing(block, lengths, whole, reads)
    reader, generator, most = Reader(block, FiniteWatch()), torch.Generator().manual_seed(1), 0
    found = []
    for n in range(1, last + 1):
        for parameter in model.parameters():
            parameter.normal_(generator=generator)
            if n == spoil:
                parameter.fill_(float("inf"))
        for piece, reading in reader.read(live_parameters(model), n):
            ring.push(piece, reading, n)
            kept.push(piece, reading, n)
        most = max(most, kept.nbytes)
        if n in reads:
            found += [(n, k, *(one.mean(k, block.pieces[0], n) for one in (ring, kept))) for k in lengths]
            for k in whole:
                weights = [1 / (i + 1) for i in range(min(n, k))]
                found.append((n, k, *(one.weighted(weights, block.pieces[0], n) for one in (ring, kept))))
    return found, ring.nbytes, most, kept.peak_bytes()


@given(
    lengths=st.lists(st.integers(1, 150), min_size=1, max_size=4, unique=True),
    whole=st.lists(st.integers(1, 20), max_size=2, unique=True),
    reads=st.sets(st.integers(1, 200), min_size=1, max_size=12),
)
def test_the_bits_of_a_ring_that_keeps_all(lengths, whole, reads):
    found, _, most, peak = walked(lengths, whole, sorted(reads), max(reads))
    assert found
    assert all(torch.equal(one, other) for _, _, one, other in found)
    assert most == peak


def test_it_is_smaller_when_readings_are_rare():
    _, ring, most, _ = walked([100, 50, 20], [], list(range(40, 401, 40)), 400)
    assert most < ring / 2.5


@pytest.mark.parametrize("spoil", [3, 64, 130])
def test_what_is_not_finite_spoils_the_windows_that_hold_it_alone(spoil):
    found, *_ = walked([10, 70], [], list(range(1, 301)), 300, spoil)
    for n, k, _, mean in found:
        assert bool(torch.isfinite(mean).all()) == (not n - k < spoil <= n)


def test_a_state_goes_on_with_the_same_bits():
    model, reads = nn.Linear(3, 3), [30, 60, 90, 100]
    (block,) = make_blocks("parameters", live_parameters(model))
    straight, first = (ReadRing(block, [9, 70], [4], reads) for _ in range(2))
    reader, generator = Reader(block, FiniteWatch()), torch.Generator().manual_seed(1)
    for n in range(1, 101):
        for parameter in model.parameters():
            parameter.normal_(generator=generator)
        for piece, reading in reader.read(live_parameters(model), n):
            straight.push(piece, reading, n)
            first.push(piece, reading, n)
        if n in (1, 37, 64, 89):
            second = ReadRing(block, [9, 70], [4], reads)
            second.load_state_dict(first.state_dict(copy=n % 2 == 0))
            first = second
        if n in reads:
            assert torch.equal(first.mean(70, block.pieces[0], n), straight.mean(70, block.pieces[0], n))
            assert torch.equal(
                first.weighted([1.0] * 4, block.pieces[0], n), straight.weighted([1.0] * 4, block.pieces[0], n)
            )
