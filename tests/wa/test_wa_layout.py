"""Weights in another memory order: right values, the strides they had, nothing copied, states that fit either."""

import pytest
import torch
from torch import nn

from wa import EMA, LAWA, Bank, Tail
from wa.flat import PIECE_ON_CPU, FiniteWatch, Reader, make_blocks
from wa.layout import Layout, has_overlap

SCHEMES = [LAWA(3), LAWA(9, until_full="partial"), EMA(0.5), EMA(0.99, buffers="average"), Tail(0)]


class Odd(nn.Module):
    """Every kind of order: packed and large, channels_last in 4 and 5 dimensions, transposed, with gaps, scalar."""

    def __init__(self, plain=False):
        super().__init__()
        generator = torch.Generator().manual_seed(0)

        def parameter(shape, arrange):
            tensor = torch.randn(shape, generator=generator)
            return nn.Parameter(tensor if plain else arrange(tensor))

        def last(t):
            return t.to(memory_format=torch.channels_last)

        def swap(t):
            return t.transpose(0, -1).contiguous().transpose(0, -1)

        def gaps(t):
            return torch.nn.functional.pad(t, (0, 3))[..., :-3]

        self.small = parameter((8, 4, 3, 3), last)
        self.pointwise = parameter((6, 5, 1, 1), last)
        self.depthwise = parameter((7, 1, 3, 3), last)
        self.volume = parameter((3, 2, 2, 3, 4), lambda t: t.to(memory_format=torch.channels_last_3d))
        self.large = parameter((130, 64, 3, 3), last)
        self.tall = parameter((700, 201), swap)
        self.one_row = parameter((1, 70_000), lambda t: t)
        self.gaps = parameter((300, 300), gaps)
        self.small_gaps = parameter((4, 5), gaps)
        self.scalar = parameter((), lambda t: t)
        self.nothing = parameter((0, 3), lambda t: t)
        self.register_buffer("seen", parameter((5, 4, 2, 2), last).data)


@torch.no_grad()
def walk(model, step):
    for i, tensor in enumerate((*model.parameters(), *model.buffers())):
        ramp = torch.arange(tensor.numel()).view(tensor.shape)
        tensor.copy_(torch.sin(ramp * 0.37 + step + i))


def run(model, steps, bank=None, first=1):
    bank = bank or Bank(model, SCHEMES)
    for step in range(first, steps + 1):
        walk(model, step)
        bank.update(step)
    return bank


@pytest.fixture(scope="module")
def ran():
    """(odd model, plain model) and their banks after 20 steps."""
    odd, plain = Odd(), Odd(plain=True)
    return odd, plain, run(odd, 20), run(plain, 20)


def assert_same(got, expected):
    assert got.keys() == expected.keys()
    for name, tensor in got.items():
        assert torch.equal(tensor, expected[name]), name


def test_the_odd_model_is_odd():
    odd = dict(Odd().named_parameters())
    contiguous = {name for name, parameter in odd.items() if parameter.is_contiguous()}
    assert contiguous == {"pointwise", "depthwise", "one_row", "scalar", "nothing"}  # the strides of the first differ
    assert not has_overlap(odd["gaps"])
    assert odd["large"].numel() > PIECE_ON_CPU


@pytest.mark.parametrize("scheme", SCHEMES, ids=repr)
def test_values_are_those_of_a_contiguous_model(ran, scheme):
    odd, plain, ours, theirs = ran
    assert_same(ours.tensors(scheme), theirs.tensors(scheme))
    before = {name: tensor.clone() for name, tensor in odd.state_dict().items()}
    with ours.swapped(scheme), theirs.swapped(scheme):
        assert_same(dict(odd.state_dict()), dict(plain.state_dict()))
    assert_same(dict(odd.state_dict()), before)


def test_tensors_have_the_strides_of_the_model(ran):
    odd, _, ours, _ = ran
    for name, tensor in ours.tensors(EMA(0.99, buffers="average")).items():
        live = odd.get_buffer(name) if name == "seen" else odd.get_parameter(name)
        if "gaps" not in name:
            assert tensor.stride() == live.stride(), name
        assert not has_overlap(tensor)


@pytest.mark.parametrize("into_plain", [True, False])
def test_a_state_fits_a_model_of_another_memory_format(ran, into_plain):
    _, _, ours, theirs = ran
    state = (ours if into_plain else theirs).state_dict()
    model = Odd(plain=into_plain)
    loaded = Bank(model, SCHEMES)
    loaded.load_state_dict(state)
    for scheme in SCHEMES:
        assert_same(loaded.tensors(scheme), theirs.tensors(scheme))
    run(model, 25, loaded, first=21)
    fresh = run(Odd(plain=True), 25)
    for scheme in SCHEMES:
        assert_same(loaded.tensors(scheme), fresh.tensors(scheme))


def test_a_model_that_changes_its_format_later_is_read_right(ran):
    model = nn.Sequential(nn.Conv2d(64, 130, 3), nn.Conv2d(4, 5, 3))
    bank = run(model, 4)
    before = bank.tensors(Tail(0))
    model.to(memory_format=torch.channels_last)
    with bank.swapped(Tail(0)):
        assert_same({name: p.detach() for name, p in model.named_parameters()}, before)
    run(model, 8, bank, first=5)
    expected = run(nn.Sequential(nn.Conv2d(64, 130, 3), nn.Conv2d(4, 5, 3)), 8)
    for scheme in SCHEMES:
        assert_same(bank.tensors(scheme), expected.tensors(scheme))


def test_large_tensors_are_read_where_they_are():
    """What made channels_last dear was a copy in another order at every update."""
    odd = {"large": Odd().large.data, "tall": Odd().tall.data, "one_row": Odd().one_row.data}
    (block,) = make_blocks("parameters", odd)
    within = {name: range(t.data_ptr(), t.data_ptr() + t.nbytes) for name, t in odd.items()}
    read = dict.fromkeys(odd, 0)
    for piece, reading in Reader(block, FiniteWatch()).read(odd, 1):
        assert piece.numel <= PIECE_ON_CPU
        (name,) = piece.names
        assert reading.live.data_ptr() in within[name]
        read[name] += reading.live.numel()
    assert read == {name: tensor.numel() for name, tensor in odd.items()}


def test_elements_that_share_memory_are_refused():
    for overlapping in (torch.ones(1).expand(4), torch.ones(3, 1).expand(3, 2), torch.arange(9.0).unfold(0, 3, 1)):
        assert has_overlap(overlapping)
        model = nn.Linear(2, 2)
        model.scale = nn.Parameter(overlapping, requires_grad=False)
        with pytest.raises(ValueError, match=r"'scale'.*share memory.*clone\(\)"):
            Bank(model, [EMA(0.5)])
    for fine in (torch.ones(3, 1).expand(3, 1), torch.ones(2, 3).t(), torch.ones(4, 4)[::2, 1:3], torch.ones(0)):
        assert not has_overlap(fine)


@pytest.mark.parametrize("shape", [(), (0,), (1, 1), (3, 1, 2), (2, 3, 4, 5)])
def test_layout_of_any_permutation(shape):
    for dims in {tuple(range(len(shape))), tuple(reversed(range(len(shape))))}:
        tensor = torch.randn(shape).permute(dims)
        layout = Layout.of(tensor)
        assert layout.in_memory_order(tensor).is_contiguous()
        assert layout.in_memory_order(tensor).shape == layout.sizes
        assert layout.empty(tensor.dtype, tensor.device).stride() == tensor.stride()


def test_an_expanded_buffer_survives_a_swap():
    """It is written where its one element lies: `copy_` refuses the whole of it."""
    model = nn.Linear(2, 2)
    model.register_buffer("mask", torch.full((1,), 3.0).expand(4))
    bank = Bank(model, [EMA(0.5)])
    bank.update(1)
    with bank.swapped(EMA(0.5)):
        model.mask[:1].fill_(7)
    assert model.mask.tolist() == [3.0] * 4
