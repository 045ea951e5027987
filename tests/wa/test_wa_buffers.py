"""Batch-norm statistics under an average: live, average, recompute."""

import copy

import pytest
import torch
from torch import nn
from torch.optim.swa_utils import update_bn

from wa import EMA, LAWA, Bank, recompute_statistics


class OwnNorm(nn.Module):
    """Not a torch batch norm, and it rebinds its buffers; momentum weighs the old or the new statistic."""

    def __init__(self, width, momentum, weighs_old):
        super().__init__()
        self.register_buffer("running_mean", torch.zeros(width))
        self.register_buffer("running_var", torch.ones(width))
        if isinstance(momentum, torch.Tensor):
            self.register_buffer("momentum", momentum)
        else:
            self.momentum = momentum
        self.weighs_old = weighs_old

    def forward(self, x):
        mean, var = self.running_mean, self.running_var
        if self.training:
            mean, var = x.mean(0), x.var(0)
            old = self.momentum if self.weighs_old else 1 - self.momentum
            self.running_mean = old * self.running_mean + (1 - old) * mean.detach()
            self.running_var = old * self.running_var + (1 - old) * var.detach()
        return (x - mean) / torch.sqrt(var + 1e-5)


def torch_net(momentum=0.1):
    return nn.Sequential(
        nn.Linear(6, 5), nn.BatchNorm1d(5, momentum=momentum), nn.ReLU(), nn.Linear(5, 4), nn.BatchNorm1d(4)
    )


def own_net(momentum=0.9, weighs_old=True):
    return nn.Sequential(nn.Linear(6, 5), OwnNorm(5, momentum, weighs_old), nn.Dropout(0.5), nn.Linear(5, 4))


def batches(count=7, seed=3):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(16, 6, generator=generator) * (1 + i) + i for i in range(count)]


def train(model, bank, steps):
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    for step in range(1, steps + 1):
        optimizer.zero_grad()
        model(batches(1, seed=step)[0]).square().mean().backward()
        optimizer.step()
        bank.update(step)


def forwards(model):
    return (model(batch) for batch in batches())


def bits(model):
    return {name: tensor.clone().reshape(-1).view(torch.uint8) for name, tensor in model.state_dict().items()}


def same(left, right):
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


@pytest.mark.parametrize("momentum", [0.1, 0.7, None])
def test_recomputed_statistics_equal_update_bn(momentum):
    torch.manual_seed(0)
    ours = torch_net(momentum)
    theirs = copy.deepcopy(ours)
    assert recompute_statistics(ours, forwards(ours)) == 7
    update_bn(batches(), theirs)
    for index in (1, 4):
        for name in ("running_mean", "running_var", "num_batches_tracked"):
            torch.testing.assert_close(getattr(ours[index], name), getattr(theirs[index], name))
    assert ours[1].momentum == momentum


@pytest.mark.parametrize(("momentum", "weighs_old"), [(0.99, True), (0.01, False), (torch.tensor([0.999]), True)])
def test_home_made_norm_gets_the_exact_mean(momentum, weighs_old):
    torch.manual_seed(0)
    model = own_net(momentum, weighs_old)
    before = model[1].running_mean.clone()
    update_bn(batches(), model)  # does not find it, silently; but trains it as a side effect of nothing
    assert torch.equal(model[1].running_mean, before)
    model.eval()
    model[2].train()
    recompute_statistics(model, forwards(model))
    inputs = [model[0](batch).detach() for batch in batches()]
    torch.testing.assert_close(model[1].running_mean, torch.stack([x.mean(0) for x in inputs]).mean(0))
    torch.testing.assert_close(model[1].running_var, torch.stack([x.var(0) for x in inputs]).mean(0))
    assert model[1].momentum is momentum
    assert [module.training for module in model] == [False, False, True, False]


def test_a_norm_called_twice_in_a_pass_counts_both_calls():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm, self.unused = nn.BatchNorm1d(6), nn.BatchNorm1d(6)

        def forward(self, x):
            return self.norm(x) + self.norm(x + 10)

    model = Twice()
    recompute_statistics(model, forwards(model))
    expected = torch.stack([batch.mean(0) + 5 for batch in batches()]).mean(0)
    torch.testing.assert_close(model.norm.running_mean, expected)
    assert torch.equal(model.unused.running_mean, torch.zeros(6))  # never called: left as it was
    assert torch.equal(model.unused.running_var, torch.ones(6))


def test_dropout_in_the_passes_does_not_reach_the_training_stream():
    model = own_net()
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    recompute_statistics(model, forwards(model))
    assert torch.equal(torch.rand(3), expected)


def test_refusals():
    model = torch_net()
    with pytest.raises(ValueError, match="no forward pass"):
        recompute_statistics(model, [])
    assert recompute_statistics(nn.Linear(6, 2), []) == 0  # nothing to recompute
    with pytest.raises(ValueError, match="an item ran no forward pass"):
        recompute_statistics(model, lambda model: model(batches()[0]))  # one pass, iterated over its rows
    own = own_net()
    del own[1].momentum
    with pytest.raises(ValueError, match=r"'1'.*momentum"):
        recompute_statistics(own, forwards(own))


def test_a_failing_pass_leaves_the_model_as_it_was():
    model = torch_net().eval()
    before = bits(model)

    def failing():
        yield model(batches()[0])
        raise RuntimeError("out of data")

    with pytest.raises(RuntimeError, match="out of data"):
        recompute_statistics(model, failing())
    assert same(bits(model), before)
    assert not model.training
    assert model[1].momentum == 0.1
    assert not model[1]._forward_hooks


@pytest.mark.parametrize("build", [torch_net, own_net])
def test_the_three_policies(build):
    """Each policy changes the statistics in its own way; all are undone."""
    torch.manual_seed(0)
    model = build()
    live, average, recompute = (LAWA(4, buffers=policy) for policy in ("live", "average", "recompute"))
    bank = Bank(model, [live, average, recompute, EMA(0.9)])
    history = []
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    for step in range(1, 10):
        optimizer.zero_grad()
        model(batches(1, seed=step)[0]).square().mean().backward()
        optimizer.step()
        bank.update(step)
        history.append(model[1].running_mean.clone())
    before, kept = bits(model), model[1].running_mean
    with bank.swapped(live):
        assert torch.equal(model[1].running_mean, history[-1])
        weight = model[0].weight.clone()
    with bank.swapped(average):
        torch.testing.assert_close(model[1].running_mean, torch.stack(history[-4:]).mean(0))
        assert torch.equal(model[0].weight, weight)
    with bank.swapped(recompute, recompute=forwards):
        with torch.no_grad():
            expected = torch.stack([model[0](batch).mean(0) for batch in batches()]).mean(0)
        torch.testing.assert_close(model[1].running_mean, expected)
        assert not torch.allclose(expected, history[-1])
        assert torch.equal(model[0].weight, weight)
    assert same(bits(model), before)
    assert model[1].running_mean is kept
    with pytest.raises(ValueError, match="swapped needs recompute="), bank.swapped(recompute):
        pass
    with bank.swapped(EMA(0.9), recompute=forwards):  # asked for by the call: any policy
        assert not torch.allclose(model[1].running_mean, history[-1])
    assert same(bits(model), before)


def test_a_failing_recomputation_restores_everything():
    model = own_net()
    bank = Bank(model, [LAWA(1, buffers="recompute")])
    train(model, bank, 3)
    before = bits(model)
    with pytest.raises(ZeroDivisionError), bank.swapped(LAWA(1, buffers="recompute"), lambda m: [1 / 0]):
        pass
    assert same(bits(model), before)
    bank.update(4)
