"""A swap against what remembers weights: torch's caches, compiled code, hooks; and what it must put back."""

import contextlib
import copy
import warnings

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, parametrize, prune

import wa.swap
from wa import EMA, LAWA, Bank

SCHEMES = [EMA(0.5), EMA(0.9), LAWA(2)]


@torch.no_grad()
def trained(model, steps=5, schemes=SCHEMES):
    """A bank of a model whose weights moved at each step, by a different amount each."""
    generator = torch.Generator().manual_seed(1)
    bank = Bank(model, schemes)
    for step in range(1, steps + 1):
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.5)
        bank.update(step)
    return bank


def by_a_fresh_model(build, bank, scheme):
    """What a swap should be like, without one: the average loaded into a model that has never run."""
    fresh = build()
    fresh.load_state_dict(bank.module_state(scheme))
    return fresh.train(bank._model.training)


def lstm():
    class Last(nn.Module):
        def __init__(self):
            super().__init__()
            self.lstm = nn.LSTM(6, 5, num_layers=2, batch_first=True)

        def forward(self, x):
            return self.lstm(x.view(len(x), 1, 6))[0]

    return Last()


def transformer():
    layer = nn.TransformerEncoderLayer(6, 2, 8, dropout=0.0, batch_first=True)
    encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
    return nn.Sequential(nn.Unflatten(1, (1, 6)), encoder)


def attention():
    class Self(nn.Module):
        def __init__(self):
            super().__init__()
            self.attention = nn.MultiheadAttention(6, 2, batch_first=True)

        def forward(self, x):
            x = x.view(len(x), 1, 6)
            return self.attention(x, x, x, need_weights=False)[0]

    return Self()


def older(register):
    def build():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            return nn.Sequential(register(nn.Linear(6, 5)), nn.Linear(5, 2))

    return build


def pruned():
    torch.manual_seed(4)
    model = nn.Sequential(nn.Linear(6, 5), nn.Linear(5, 2))
    prune.random_unstructured(model[0], "weight", amount=0.4)
    return model


BUILDS = {
    "linear": lambda: nn.Linear(6, 3),
    "lstm": lstm,
    "transformer, fast path": transformer,
    "attention, fast path": attention,
    "weight_norm": lambda: parametrizations.weight_norm(nn.Linear(6, 3)),
    "spectral_norm": lambda: parametrizations.spectral_norm(nn.Linear(6, 3)),
    "orthogonal": lambda: parametrizations.orthogonal(nn.Linear(6, 3)),
    "older weight_norm": older(nn.utils.weight_norm),
    "older spectral_norm": older(nn.utils.spectral_norm),
    "pruned": pruned,
}
each = pytest.mark.parametrize("build", BUILDS.values(), ids=BUILDS)


@each
@pytest.mark.parametrize(
    "around",
    [
        torch.no_grad,
        torch.inference_mode,
        lambda: torch.autocast("cpu", torch.bfloat16),
        parametrize.cached,
        contextlib.nullcontext,
    ],
    ids=["no_grad", "inference_mode", "autocast", "parametrize.cached", "grad"],
)
def test_every_average_evaluates_as_itself_inside_one_enclosing_context(build, around):
    torch.manual_seed(0)
    model = build().eval()
    bank = trained(model)
    x = torch.randn(4, 6)
    with around():
        expected = []
        for scheme in bank:
            fresh = by_a_fresh_model(build, bank, scheme)
            torch.clear_autocast_cache()
            expected.append(fresh(x).detach().clone())
    with around():
        before = model(x).detach().clone()
        got = []
        for scheme in bank:
            with bank.swapped(scheme):
                got.append(model(x).detach().clone())
            assert torch.equal(model(x), before)
    assert not torch.equal(expected[0], expected[1])
    for mine, other in zip(got, expected, strict=True):
        torch.testing.assert_close(mine, other, rtol=0, atol=0)


@pytest.mark.parametrize("fails", [False, True])
def test_training_goes_on_with_its_own_weights_after_a_swap_inside_autocast(fails):
    """The weights that autocast keeps are those of the average, unless they are dropped on the way out as well."""
    model = nn.Linear(6, 3)
    bank = trained(model)
    x = torch.randn(4, 6)
    with torch.autocast("cpu", torch.bfloat16):
        before = model(x)
        with contextlib.suppress(ZeroDivisionError), bank.swapped(EMA(0.9)):
            model(x)
            if fails:
                raise ZeroDivisionError
        after = model(x)
    assert torch.equal(before, after)
    after.sum().backward()
    assert model.weight.grad.abs().sum() > 0


@each
def test_everything_is_put_back_computed_weights_too(build):
    torch.manual_seed(0)
    model = build().eval()
    bank = trained(model)
    model(torch.randn(4, 6))

    def plain(module):
        return {name: value for name, value in vars(module).items() if isinstance(value, torch.Tensor)}

    objects = [(m, n, v, v.detach().clone()) for m in model.modules() for n, v in plain(m).items()]
    state = copy.deepcopy(model.state_dict())
    for scheme in bank:
        with bank.swapped(scheme):
            if objects:  # what code would read that does not call the module
                module, name, value, _ = objects[0]
                assert not torch.equal(getattr(module, name), value)
            model(torch.randn(4, 6))
        assert all(getattr(m, n) is v and torch.equal(v, was) for m, n, v, was in objects)
        assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())


def test_an_lstm_whose_parameter_was_replaced_inside_computes_with_its_own_again():
    model = lstm().eval()
    bank = trained(model)
    x = torch.randn(4, 6)
    before = model(x)
    with bank.swapped(EMA(0.5)):
        model.lstm.weight_ih_l0 = nn.Parameter(torch.zeros_like(model.lstm.weight_ih_l0))
    assert torch.equal(model(x), before)


@pytest.mark.parametrize("change", [lambda m: m.half(), lambda m: m.double(), lambda m: m.to("meta")])
def test_a_model_converted_inside_is_what_it_was_in_its_old_memory(change):
    model = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3))
    bank = trained(model)
    before = copy.deepcopy(model.state_dict())
    memory = [tensor.data_ptr() for tensor in model.state_dict().values()]
    objects = list(model.parameters())
    with bank.swapped(EMA(0.5)):
        change(model)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert [tensor.data_ptr() for tensor in model.state_dict().values()] == memory
    assert all(here is there for here, there in zip(model.parameters(), objects, strict=True))


def test_a_submodule_replaced_inside_is_put_back():
    model = nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 3))
    bank = trained(model)
    own = model[0]
    with bank.swapped(EMA(0.5)):
        model[0] = nn.Identity()
        model[1].register_buffer("cache", torch.ones(2))  # made on first use: not ours to take away
    assert model[0] is own
    assert torch.equal(model[1].cache, torch.ones(2))


def test_modes_are_each_module_s_own_and_come_back():
    """A frozen batch norm stays frozen; a module that does more in `train` is asked to."""

    class Adapter(nn.Linear):
        merged = False

        def train(self, mode=True):
            if mode == self.merged:
                with torch.no_grad():
                    self.weight.add_(-1.0 if mode else 1.0)
                self.merged = not mode
            return super().train(mode)

    model = nn.Sequential(Adapter(4, 3), nn.BatchNorm1d(3), nn.Dropout())
    model[1].eval()
    bank = trained(model)
    before = copy.deepcopy(model.state_dict())
    with bank.swapped(EMA(0.5)):
        average = model[0].weight.clone()
        model.eval()
        assert torch.equal(model[0].weight, average + 1)
    assert [module.training for module in model.modules()] == [True, True, False, True]
    assert not model[0].merged
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_an_interrupt_while_restoring_leaves_no_average_behind(monkeypatch):
    model = nn.Linear(3, 2)
    bank = trained(model)
    before = copy.deepcopy(model.state_dict())
    calls = []
    restore = wa.swap.Saved._restore_tensors

    def interrupted(self):
        calls.append(1)
        if len(calls) == 1:
            raise KeyboardInterrupt
        restore(self)

    monkeypatch.setattr(wa.swap.Saved, "_restore_tensors", interrupted)
    with pytest.raises(KeyboardInterrupt), bank.swapped(EMA(0.5)):
        pass
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    bank.update(6)


def test_a_failure_on_the_way_in_leaves_no_average_behind(monkeypatch):
    model = nn.Sequential(nn.Linear(300, 300), nn.Linear(3, 2))  # two pieces
    bank = trained(model)
    before = copy.deepcopy(model.state_dict())
    write = torch._foreach_copy_
    calls = []

    def fail_second(*arguments):
        calls.append(1)
        if len(calls) == 2:
            raise MemoryError
        return write(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(torch, "_foreach_copy_", fail_second)
        with pytest.raises(MemoryError), bank.swapped(EMA(0.5)):
            pass
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    with bank.swapped(EMA(0.5)):
        assert not torch.equal(model[0].weight, before["0.weight"])


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_compiled_code_sees_the_average(backend):
    torch.manual_seed(0)
    torch._dynamo.reset()
    model = nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 2)).eval()
    compiled = torch.compile(model, backend=backend)
    bank = trained(compiled)
    x = torch.randn(4, 6)
    with torch.inference_mode():
        before = compiled(x).clone()
        for scheme in bank:
            with bank.swapped(scheme) as same:
                assert same is compiled
                assert torch.equal(compiled(x), model(x))
                assert not torch.equal(compiled(x), before)
            assert torch.equal(compiled(x), before)


def test_weights_folded_into_compiled_code_are_refused():
    import torch._inductor.config as config

    bank = trained(nn.Linear(6, 3))
    refused = pytest.raises(RuntimeError, match=r"freezing makes weights part of compiled code.*set it to False")
    with config.patch(freezing=True), refused, bank.swapped(EMA(0.5)):
        pass
    with bank.swapped(EMA(0.5)):
        pass


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_torchscript():
    torch.manual_seed(0)
    plain = nn.Sequential(nn.Linear(6, 5), nn.BatchNorm1d(5))
    x = torch.randn(4, 6)
    for model in (torch.jit.script(plain), torch.jit.trace(plain.eval(), x)):
        model.eval()
        bank = trained(model)
        before = model(x)
        with bank.swapped(LAWA(2)):
            fresh = copy.deepcopy(plain).eval()
            fresh.load_state_dict(model.state_dict())
            inside = model(x)
        torch.testing.assert_close(inside, fresh(x))
        assert not torch.equal(inside, before)
        assert torch.equal(model(x), before)
    with pytest.raises(ValueError, match="no floating-point parameters to average"):
        Bank(torch.jit.freeze(torch.jit.script(plain.eval())), SCHEMES)


def test_a_bank_made_and_loaded_under_inference_mode_works_outside():
    model = nn.Linear(4, 3)
    with torch.inference_mode():
        bank = Bank(model, SCHEMES)
        bank.update(1)
    bank.update(2)
    with torch.inference_mode():
        resumed = Bank(model, SCHEMES)
        resumed.load_state_dict(bank.state_dict())
        average = bank.tensors(LAWA(2))
    resumed.update(3)
    bank.update(3)
    assert all(torch.equal(resumed.tensors(s)["weight"], bank.tensors(s)["weight"]) for s in bank)
    assert not average["weight"].is_inference()
