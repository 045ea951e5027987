"""Every way to copy a bank, or to change its model under it: right averages, by the closed form, or one clear error."""

import copy
import io
import pickle
from dataclasses import dataclass
from multiprocessing.reduction import ForkingPickler

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, prune

from wa import EMA, LAWA, WSM, Bank, Recursive, Tail

SCHEMES = [EMA(0.5), EMA(0.9, init="zero"), LAWA(2), LAWA(5, 2, until_full="partial"), Tail(1), WSM(3, 1, "cosine")]


class Net(nn.Module):
    """A packed run of small tensors, one that is read in place, tied weights, and a buffer to average."""

    def __init__(self):
        super().__init__()
        self.small = nn.Linear(4, 3)
        self.tied = nn.Linear(4, 3)
        self.tied.weight = self.small.weight
        self.large = nn.Parameter(torch.zeros(257, 256))
        self.register_buffer("statistic", torch.zeros(2))


@torch.no_grad()
def step_to(model, step):
    for tensor in (*model.parameters(), model.statistic):
        tensor.fill_(float(step * step))


def run(model, bank, first, last):
    for step in range(first, last + 1):
        step_to(model, step)
        bank.update(step)


def assert_closed_form(bank, schemes=None):
    assert len(bank) > 0
    for scheme in schemes or bank:
        expected = sum(c * s * s for s, c in scheme.coefficients(bank.step).items())
        for name, tensor in bank.tensors(scheme).items():
            torch.testing.assert_close(tensor, torch.full_like(tensor, expected), rtol=1e-6, atol=0, msg=name)


def by_torch_file(pair):
    file = io.BytesIO()
    torch.save(pair, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


def by_cloudpickle(pair):
    return pickle.loads(pytest.importorskip("ray.cloudpickle").dumps(pair))


def by_shallow_copy(pair):
    return pair[0], copy.copy(pair[1])


WAYS = {
    "pickle": lambda pair: pickle.loads(pickle.dumps(pair)),
    "pickle, oldest protocol": lambda pair: pickle.loads(pickle.dumps(pair, protocol=2)),
    "cloudpickle": by_cloudpickle,
    "deepcopy": copy.deepcopy,
    "torch.save": by_torch_file,
    "copy": by_shallow_copy,
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("at", [0, 1, 7])
def test_a_copy_goes_on_by_itself_and_so_does_the_original(way, at):
    model = Net()
    bank = Bank(model, [*SCHEMES, LAWA(3, buffers="average")])
    run(model, bank, 1, at)
    its_model, its_bank = WAYS[way]((model, bank))
    assert its_bank._model is its_model
    assert its_bank.schemes == bank.schemes
    assert its_bank.seconds == bank.seconds
    run(its_model, its_bank, at + 1, 20)
    assert_closed_form(its_bank)
    assert bank.step == at
    run(model, bank, at + 1, 12)  # not touched by what the copy did
    assert_closed_form(bank)
    with its_bank.swapped(LAWA(2)):
        assert its_model.tied.weight[0, 0] == (19**2 + 20**2) / 2


def test_a_bank_copied_alone_brings_its_model():
    model = Net()
    bank = Bank(model, SCHEMES)
    run(model, bank, 1, 3)
    other = pickle.loads(pickle.dumps(bank))
    assert other._model is not model
    run(other._model, other, 4, 9)
    assert_closed_form(other)


def test_a_model_may_hold_its_bank():
    """Copied together, each names the other: when the bank is built, the model is not complete yet."""
    model = Net()
    model.bank = Bank(model, SCHEMES)
    run(model, model.bank, 1, 3)
    for other in (pickle.loads(pickle.dumps(model)), copy.deepcopy(model)):
        assert other.bank._model is other
        run(other, other.bank, 4, 9)
        assert_closed_form(other.bank)


def test_a_copied_model_is_not_followed():
    model = Net()
    bank = Bank(model, [EMA(0.5)])
    run(model, bank, 1, 3)
    other = copy.deepcopy(model)
    for step in (4, 5):
        step_to(other, 100)
        step_to(model, step)
        bank.update(step)
    assert_closed_form(bank)


def _in_a_process(pair, answer):
    model, bank = pair
    run(model, bank, 4, 9)
    assert_closed_form(bank)
    answer.put({repr(scheme): bank.tensors(scheme)["large"][0, 0].item() for scheme in bank})


def test_a_spawned_process_has_a_bank_of_its_own():
    context = torch.multiprocessing.get_context("spawn")
    model = Net()
    bank = Bank(model, SCHEMES)
    run(model, bank, 1, 3)
    answer = context.Queue()
    process = context.Process(target=_in_a_process, args=((model, bank), answer))
    process.start()
    theirs = answer.get(timeout=120)
    process.join(120)
    assert process.exitcode == 0
    assert bank.step == 3
    run(model, bank, 4, 9)  # torch shares the weights' memory, the averages are apart
    assert theirs == {repr(scheme): bank.tensors(scheme)["large"][0, 0].item() for scheme in bank}


def test_what_goes_to_a_process_is_the_bank_as_it_was():
    """torch would send the memory itself, and what is updated here before it is read there would be in it."""
    bank = Bank(Net(), SCHEMES)
    run(bank._model, bank, 1, 3)
    expected = {scheme: bank.tensors(scheme) for scheme in bank}
    sent = ForkingPickler.dumps(bank)
    run(bank._model, bank, 4, 9)
    received = pickle.loads(sent)
    assert received.step == 3
    assert set(received) == set(expected)
    for scheme in received:
        got = received.tensors(scheme)
        assert all(torch.equal(got[name], tensor) for name, tensor in expected[scheme].items())


def test_torch_load_moves_a_bank_with_its_model():
    """A device that is not there on loading: only what tensors say counts. Seen through the meta device."""
    bank = Bank(Net(), SCHEMES)
    file = io.BytesIO()
    torch.save(bank, file)
    file.seek(0)
    moved = torch.load(file, map_location="meta", weights_only=False)
    assert {block.device.type for block in moved._averages.blocks} == {"meta"}
    assert {p.device.type for p in moved._model.parameters()} == {"meta"}


@pytest.mark.parametrize("way", ["pickle", "deepcopy", "copy"])
def test_no_copy_while_an_average_is_swapped_in(way):
    model = Net()
    bank = Bank(model, [EMA(0.5)])
    run(model, bank, 1, 3)
    with bank.swapped(EMA(0.5)):
        with pytest.raises(RuntimeError, match=r"^a copy of the bank while an average is swapped in"):
            WAYS[way]((model, bank))
        copy.deepcopy(model)  # the average as a model: why not


CHANGES = {
    "another dtype": (lambda model: model.half(), r"is float16\[257, 256\] on cpu now"),
    "double": (lambda model: model.double(), r"is float64\[257, 256\] on cpu now"),
    "another device": (lambda model: model.to("meta"), "meta device"),
    "another shape": (lambda model: setattr(model, "large", nn.Parameter(torch.zeros(2))), r"'large' is float32\[2\]"),
    "untied": (lambda model: setattr(model.tied, "weight", nn.Parameter(torch.ones(3, 4))), r"not average: tied\.w"),
    "tied": (lambda model: setattr(model.tied, "bias", model.small.bias), r"no longer has 'tied\.bias'"),
    "gone": (lambda model: delattr(model, "large"), "no longer has 'large'"),
    "added": (lambda model: setattr(model, "more", nn.Parameter(torch.ones(2))), "does not average: more"),
    "sparse": (
        lambda model: setattr(model, "large", nn.Parameter(torch.zeros(257, 256).to_sparse())),
        r"'large': its layout is sparse_coo; make it dense",
    ),
    "parametrized": (lambda model: parametrizations.weight_norm(model.tied), r"not average: tied\.param"),
    "pruned": (lambda model: prune.identity(model.tied, "bias"), r"no longer has 'tied\.bias'"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_model_changed_under_its_bank_is_named_and_nothing_is_done(change):
    model = Net()
    bank = Bank(model, [EMA(0.5), LAWA(2)])
    run(model, bank, 1, 3)
    before = bank.state_dict()
    do, message = CHANGES[change]
    do(model)
    for attempt in (lambda: bank.update(4), lambda: bank.swapped(EMA(0.5)).__enter__()):
        with pytest.raises(RuntimeError, match=message) as caught:
            attempt()
        assert "\n" not in str(caught.value)
    assert bank.step == 3
    assert_closed_form(bank)  # what was averaged is there still
    after = bank.state_dict()
    assert after["schemes"] == before["schemes"]


def test_what_may_change_under_a_bank():
    """A parameter replaced by one like it is followed by name; one frozen or thawed is averaged all the same."""
    model = Net()
    bank = Bank(model, SCHEMES)
    run(model, bank, 1, 3)
    model.large = nn.Parameter(torch.zeros(257, 256))
    model.small.bias = nn.Parameter(torch.zeros(3))
    model.tied.requires_grad_(False)
    model.to("cpu", torch.float32)
    run(model, bank, 4, 9)
    assert_closed_form(bank)


@pytest.mark.parametrize("register", [parametrizations.weight_norm, parametrizations.spectral_norm, None])
def test_parametrized_and_pruned_from_the_start(register):
    """The parameters behind a computed weight are averaged, and the weight follows from their average."""
    torch.manual_seed(0)

    def build():
        torch.manual_seed(0)
        model = nn.Linear(4, 3)
        if register is None:
            prune.random_unstructured(model, "weight", amount=0.5)
        else:
            register(model)
        return model.eval()

    model, mean, x = build(), build(), torch.randn(2, 4)
    bank = Bank(model, [LAWA(2)])
    history = []
    for step in (1, 2, 3):
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter))
        history.append([parameter.detach().clone() for parameter in model.parameters()])
        bank.update(step)
    last = model(x)
    with torch.no_grad():
        for parameter, *values in zip(mean.parameters(), *history[-2:], strict=True):
            parameter.copy_(sum(values) / 2)
    with bank.swapped(LAWA(2)):
        torch.testing.assert_close(model(x), mean(x))
    assert torch.equal(model(x), last)


class Halving(Recursive):
    """No dataclass, no repr, no equality of its own."""

    buffers = "live"

    def __init__(self, every, power=1):
        self.every, self.power = every, power

    burn_in = 0
    horizon = float("inf")

    def gain(self, n):
        return 1.0 if n == 1 else 0.5**self.power

    def weights(self, snapshots):
        g = 0.5**self.power
        return [(1 - g) ** (snapshots - 1), *(g * (1 - g) ** age for age in reversed(range(snapshots - 1)))]

    def lag(self, snapshots):
        return sum(w * age for age, w in enumerate(reversed(self.weights(snapshots))))


class WithEquality(Halving):
    """Python takes the hash from a class with an equality alone."""

    def __eq__(self, other):
        return isinstance(other, WithEquality) and (self.every, self.power) == (other.every, other.power)


@dataclass
class Thawed(Halving):
    """A dataclass that is not frozen has no hash either."""

    every: int
    power: int = 1


@pytest.mark.parametrize("kind", [Halving, WithEquality, Thawed])
def test_a_class_of_one_s_own_is_a_scheme_whatever_it_leaves_out(kind):
    assert kind(2) == kind(2) != kind(3)
    assert repr(kind(2)) == f"{kind.__name__}(every=2, power=1)"
    model = Net()
    bank = Bank(model, [kind(1), kind(2), kind(1, 2)])
    run(model, bank, 1, 3)
    resumed = Bank(model, [kind(1), kind(2), kind(1, 2)])
    resumed.load_state_dict(bank.state_dict())
    for one in (resumed, pickle.loads(pickle.dumps(bank))):
        run(one._model, one, 4, 9)
        assert_closed_form(one)
        assert one.tensors(kind(2)).keys() == bank.tensors(kind(2)).keys()  # found by an equal one


def test_schemes_whose_repr_says_little_are_told_apart_by_their_order():
    class Terse(Halving):
        def __repr__(self):
            return "<Terse>" if self.every < 3 else object.__repr__(self)

    model = Net()
    schemes = [Terse(1), Terse(2), Terse(4), Terse(5)]
    bank = Bank(model, schemes)
    run(model, bank, 1, 11)
    resumed = Bank(model, [Terse(1), Terse(2), Terse(4), Terse(5)])
    resumed.load_state_dict(bank.state_dict())
    run(model, resumed, 12, 16)
    assert_closed_form(resumed)
    assert [row["scheme"] for row in bank.state_dict()["schemes"]][:2] == ["<Terse>", "<Terse> #2"]


@pytest.mark.parametrize("channels_last", [False, True])
def test_a_state_that_is_not_copied_is_the_same_and_is_the_banks_own(channels_last):
    """Where the order in memory is the logical one nothing is copied; else the tensors that a state holds are new."""
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Linear(300, 400), nn.Linear(400, 200))
    if channels_last:
        model = model.to(memory_format=torch.channels_last)
    bank = Bank(model, [LAWA(3, 1), LAWA(9, 2), EMA(0.5)])
    for step in range(1, 25):
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.normal_(generator=torch.Generator().manual_seed(step))
        bank.update(step)
    copied, own = bank.state_dict(), bank.state_dict(copy=False)
    again = Bank(copy.deepcopy(model), bank.schemes)
    again.load_state_dict(own)
    for scheme in bank:
        for name, tensor in bank.tensors(scheme).items():
            assert torch.equal(tensor, again.tensors(scheme)[name])
    slots = own["lanes"][0]["ring"]["slots"]
    assert torch.equal(torch.cat(slots, dim=-1), copied["lanes"][0]["ring"]["slots"][0])
    before = torch.cat(slots, dim=-1)
    bank.update(25)
    assert torch.equal(torch.cat(slots, dim=-1), before) == channels_last
