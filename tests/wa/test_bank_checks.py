"""What a bank does not take: each is one line that says what to do instead. And what it takes as a step."""

import copy
import pickle
import warnings

import numpy as np
import pytest
import torch
from torch import nn

from wa import EMA, LAWA, Bank, Scheme, recompute_statistics


def with_parameter(tensor):
    model = nn.Module()
    model.inner = nn.Module()
    model.inner.w = nn.Parameter(tensor, requires_grad=False)
    return model


def lazy_buffers():
    return nn.Sequential(nn.Linear(2, 2), nn.LazyBatchNorm1d(affine=False))


def quantised():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.ao.quantization.quantize_dynamic(nn.Sequential(nn.Linear(4, 4), nn.ReLU()))


def made_in_inference_mode():
    with torch.inference_mode():
        return nn.Linear(2, 2)


class Flattened(torch.Tensor):
    """As the tensors of quantisation libraries are."""

    @staticmethod
    def __new__(cls, inner):
        return torch.Tensor._make_wrapper_subclass(cls, inner.shape, dtype=inner.dtype)

    def __init__(self, inner):
        self.inner = inner

    def __tensor_flatten__(self):
        return ["inner"], None

    @classmethod
    def __torch_dispatch__(cls, function, types, args=(), kwargs=None):
        if function is torch.ops.aten.detach.default:
            return Flattened(args[0].inner)
        raise NotImplementedError(function)


MODELS = {
    "parameters": (lambda: nn.Linear(2, 2).parameters(), r"needs the model itself, Bank\(model, schemes\), not <gen"),
    "state dict": (lambda: nn.Linear(2, 2).state_dict(), "needs the model itself"),
    "none": (lambda: None, "needs the model itself.*not None"),
    "lazy": (lambda: nn.LazyLinear(2), r"'weight': it is lazy .*run one batch through the model"),
    "lazy buffers": (lazy_buffers, r"buffer '1\.running_mean': it is lazy"),
    "sparse": (lambda: with_parameter(torch.eye(3).to_sparse()), r"'inner\.w': its layout is sparse_coo; .*to_dense"),
    "float8": (
        lambda: with_parameter(torch.eye(3).to(torch.float8_e4m3fn)),
        r"'inner\.w': float8_e4m3fn is none of float32, bfloat16, float16, float64; average the weights it was",
    ),
    "complex": (lambda: with_parameter(torch.zeros(2, dtype=torch.complex64)), "complex .*view_as_real"),
    "meta": (lambda: nn.Linear(2, 2, device="meta"), "'weight': it is on the meta device .*load the weights before"),
    "quantised": (quantised, r"module '0', a quantised Linear: .*average the float model"),
    "quantised tensor": (
        lambda: with_parameter(torch.quantize_per_tensor(torch.eye(3), 0.1, 0, torch.qint8)),
        r"'inner\.w': it is quantised; average the float model",
    ),
    "subclass": (lambda: with_parameter(Flattened(torch.eye(2))), "a Flattened is not a plain tensor"),
    "inference mode": (made_in_inference_mode, "'weight': it was made under torch.inference_mode"),
    "nothing": (nn.ReLU, "no floating-point parameters to average"),
}


@pytest.mark.parametrize("what", MODELS)
@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_models(what):
    build, message = MODELS[what]
    model = build()
    with pytest.raises(ValueError, match=message) as caught:
        Bank(model, [EMA(0.9, buffers="average")])
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 240


def test_a_dtensor_is_refused(tmp_path):
    import torch.distributed as dist
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import distribute_tensor

    dist.init_process_group("gloo", init_method=f"file://{tmp_path / 'rendezvous'}", rank=0, world_size=1)
    try:
        mesh = init_device_mesh("cpu", (1,))
        with pytest.raises(ValueError, match=r"'inner\.w': DTensor weights are not supported; .*full_tensor"):
            Bank(with_parameter(distribute_tensor(torch.eye(2), mesh)), [EMA(0.9)])
    finally:
        dist.destroy_process_group()


def test_integer_parameters_are_left_alone():
    model = with_parameter(torch.arange(3))
    model.w = nn.Parameter(torch.ones(2))
    bank = Bank(model, [EMA(0.9)])
    bank.update(1)
    assert list(bank.tensors(EMA(0.9))) == ["w"]


def test_float_functionals_and_observers_are_no_packed_weights():
    model = nn.Sequential(nn.Linear(2, 2))
    model.add = torch.ao.nn.quantized.FloatFunctional()
    Bank(model, [EMA(0.9)])


class NoBuffers(EMA):
    buffers = "none"


class Unfinished(Scheme):
    every, burn_in, horizon, buffers = 1, 0, 1.0, "live"
    weights = lag = None


def bare(cls, **settings):
    scheme = object.__new__(cls)
    for name, value in settings.items():
        object.__setattr__(scheme, name, value)
    return scheme


SCHEMES = {
    "one": (EMA(0.9), r"needs a list of schemes: Bank\(model, \[EMA\(decay=0\.9"),
    "none": (None, "needs a list of schemes.*not None"),
    "number": (0.9, "needs a list of schemes.*not 0.9"),
    "word": ("ema", "'e' is not a scheme"),
    "class": ([EMA], "is not a scheme: give LAWA"),
    "twice": ([EMA(0.9), LAWA(2), EMA(0.9)], r"EMA\(decay=0\.9.* is in the bank twice"),
    "neither kind": ([Unfinished()], "is not a Windowed or a Recursive scheme"),
    "policy": ([bare(NoBuffers, decay=0.9, every=1, burn_in=0, init="first", buffers="none")], "buffers must be one"),
    "every": ([bare(EMA, decay=0.9, every=0.5, burn_in=0, init="first", buffers="live")], "every must be an int >= 1"),
}


@pytest.mark.parametrize("what", SCHEMES)
def test_schemes(what):
    schemes, message = SCHEMES[what]
    with pytest.raises(ValueError, match=message) as caught:
        Bank(nn.Linear(2, 2), schemes)
    assert "\n" not in str(caught.value)


def test_a_generator_of_schemes_is_a_list_of_them():
    assert Bank(nn.Linear(2, 2), (EMA(decay) for decay in (0.5, 0.9))).schemes == (EMA(0.5), EMA(0.9))


def test_steps_are_ints_of_any_library():
    bank = Bank(nn.Linear(2, 2), [EMA(0.5)], start=np.int32(2))
    for step in (3, np.int64(4), torch.tensor(5), torch.tensor([6]), np.uint8(7)):
        bank.update(step)
        assert type(bank.step) is int
    assert bank.step == 7
    wrong = (True, np.True_, torch.tensor(True), 8.0, np.float64(8), torch.tensor(8.0), "8", None, torch.arange(2))
    for step in wrong:
        with pytest.raises(ValueError, match="update needs the step as an int, not") as caught:
            bank.update(step)
        assert "\n" not in str(caught.value)
    assert bank.step == 7
    pickle.dumps(bank.state_dict())  # nothing of numpy in it


def test_repr():
    model = nn.Linear(300, 4)
    bank = Bank(model, [EMA(0.5, 2), LAWA(3)])
    bank.update(1)
    size = f"parameters 1,204 in tensors 2, bytes {bank.nbytes:,}"
    assert repr(bank) == f"<Bank at step 1: {size}, schemes [{EMA(0.5, 2)!r}, {LAWA(3)!r}]>"
    assert repr(Bank(model, [])) == "<Bank at step 0: parameters 0 in tensors 0, bytes 0, schemes []>"


# recompute_statistics, called as one might


def norms():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))


LOADER = [torch.randn(8, 4, generator=torch.Generator().manual_seed(i)) for i in range(5)]


def endless():
    while True:
        yield LOADER[0]


MISTAKES = {
    "the loader": lambda m: recompute_statistics(m, LOADER),
    "an endless loader": lambda m: recompute_statistics(m, endless()),
    "as update_bn": lambda m: recompute_statistics(LOADER, m),
    "the model twice": lambda m: recompute_statistics(m, m),
    "none": lambda m: recompute_statistics(m, None),
    "nothing": lambda m: recompute_statistics(m, []),
    "a function that yields nothing": lambda m: recompute_statistics(
        m, lambda model: [model(x) for x in LOADER] and None
    ),
    "a function of the loader's": lambda m: recompute_statistics(m, lambda model: LOADER),
    "another model": lambda m: recompute_statistics(m, (other(x) for other in [norms()] for x in LOADER)),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_passes_that_are_none(mistake):
    model = norms()
    model[2].eval()
    before = copy.deepcopy(model.state_dict())
    right = r"call recompute_statistics\(model, \(model\(batch\) for batch in loader\)\)$"
    with pytest.raises(ValueError, match=right) as caught:
        MISTAKES[mistake](model)
    assert "\n" not in str(caught.value)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert [module.training for module in model.modules()] == [True, True, True, False]
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_passes_without_a_norm():
    model = norms()
    before = copy.deepcopy(model.state_dict())
    for passes in (
        lambda m: (m.eval()(x) for x in LOADER),  # an evaluation is not a pass of training
        lambda m: (m[0](x) for x in LOADER),
    ):
        with pytest.raises(ValueError, match=r"no pass of 5 ran '1' .* in train mode; run the whole model"):
            recompute_statistics(model, passes)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_a_model_without_norms_runs_no_pass():
    model = nn.Linear(4, 2)
    assert recompute_statistics(model, (1 / 0 for _ in LOADER)) == 0


def test_frozen_norms_keep_their_statistics():
    """Frozen: in eval mode in a model in train mode, as for fine-tuning. The others see what they normalise."""
    model = nn.Sequential(norms(), nn.BatchNorm1d(2))
    frozen = model[0][1].eval()
    with torch.no_grad():
        frozen.running_mean.fill_(3.0)
    before = copy.deepcopy(frozen.state_dict())
    inputs = [model[0](x).detach() for x in LOADER]
    bank = Bank(model, [EMA(0.9, buffers="recompute")])
    bank.update(1)
    with bank.swapped(EMA(0.9, buffers="recompute"), recompute=lambda m: (m(x) for x in LOADER)):
        assert all(torch.equal(tensor, before[name]) for name, tensor in frozen.state_dict().items())
        torch.testing.assert_close(model[1].running_mean, torch.stack([x.mean(0) for x in inputs]).mean(0))
        assert not frozen.training
        assert model[1].training
    model.eval()
    assert recompute_statistics(model, (model(x) for x in LOADER)) == 5  # all in eval: none is frozen
    assert not torch.equal(frozen.running_mean, before["running_mean"])
    model.train()
    for norm in (frozen, model[1]):
        norm.eval()
    assert recompute_statistics(model, (1 / 0 for _ in LOADER)) == 0  # nothing to do, and no pass
    wrapper = nn.Module()
    wrapper.model = model.eval()
    assert wrapper.training
    assert recompute_statistics(wrapper, (model(x) for x in LOADER)) == 5  # the model is in eval mode, not its norms
    assert not any(module.training for module in model.modules())


def test_a_compiled_model_is_recomputed_too():
    """Compiled code does not run hooks that came later: the passes run uncompiled."""
    torch._dynamo.reset()
    plain = norms()
    compiled = torch.compile(copy.deepcopy(plain), backend="eager")
    compiled(LOADER[0])
    plain(LOADER[0])
    for model in (plain, compiled):
        assert recompute_statistics(model, (model(x) for x in LOADER)) == 5
    inside = compiled._orig_mod[1]
    torch.testing.assert_close(inside.running_mean, plain[1].running_mean)
    torch.testing.assert_close(inside.running_var, plain[1].running_var)


@pytest.mark.parametrize("wrong", [LOADER, nn.Linear(2, 2), "batches"])
def test_swapped_wants_a_function_of_the_model(wrong):
    model = norms()
    bank = Bank(model, [EMA(0.9)])
    bank.update(1)
    with pytest.raises(ValueError, match=r"a function of the model: lambda model: \(model\(batch\) for batch in"):
        bank.swapped(EMA(0.9), recompute=wrong).__enter__()
    bank.update(2)
