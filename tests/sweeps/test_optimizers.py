"""Each optimizer against its formula written out in float64 NumPy, or against torch itself; all of them resumed."""

import itertools
from pathlib import Path

import numpy as np
import pytest
import torch
from schedulefree import AdamWScheduleFree

from sweeps import checkpoint
from sweeps.evaluate import evaluate
from sweeps.optimizers import OPTIMIZERS, evaluation_weights, settings
from workloads.protocol import load


def nadamw_reference(
    theta: np.ndarray, gradients: list[np.ndarray], lr: float, b1: float, b2: float, eps: float, wd: float
) -> np.ndarray:
    """θ ← θ(1−ηλ); m ← β₁m+(1−β₁)g; v ← β₂v+(1−β₂)g²; m̂ = (β₁m+(1−β₁)g)/(1−β₁ᵗ); θ ← θ−ηm̂/(√(v/(1−β₂ᵗ))+ε)."""
    m, v = np.zeros_like(theta), np.zeros_like(theta)
    for t, g in enumerate(gradients, start=1):
        theta = theta * (1 - lr * wd)
        m = b1 * m + (1 - b1) * g
        v = b2 * v + (1 - b2) * g**2
        m_hat = (b1 * m + (1 - b1) * g) / (1 - b1**t)
        v_hat = v / (1 - b2**t)
        theta = theta - lr * m_hat / (np.sqrt(v_hat) + eps)
    return theta


@pytest.mark.parametrize(("b1", "b2", "wd"), [(0.9, 0.99, 0.1), (0.97313, 0.998123, 0.16375), (0.0, 0.629185, 0.0)])
def test_nadamw_is_algoperfs_formula_in_float64(b1: float, b2: float, wd: float) -> None:
    rng = np.random.default_rng(0)
    start = [rng.normal(size=(3, 4)), rng.normal(size=5)]
    gradients = [[rng.normal(size=s.shape) for s in start] for _ in range(50)]
    parameters = [torch.nn.Parameter(torch.tensor(s)) for s in start]
    optimizer = OPTIMIZERS["nadamw"](parameters, lr=0.0123, beta1=b1, beta2=b2, eps=1e-8, weight_decay=wd)
    for step in gradients:
        for parameter, gradient in zip(parameters, step, strict=True):
            parameter.grad = torch.tensor(gradient)
        optimizer.step()
    for i, parameter in enumerate(parameters):
        expected = nadamw_reference(start[i], [g[i] for g in gradients], 0.0123, b1, b2, 1e-8, wd)
        np.testing.assert_allclose(parameter.detach().numpy(), expected, rtol=1e-12, atol=1e-14)


def test_nadamw_is_not_torchs_nadam() -> None:
    ends = []
    for build in (OPTIMIZERS["nadamw"], torch.optim.NAdam):
        weight = torch.nn.Parameter(torch.ones(3, dtype=torch.float64))
        kwargs = {"beta1": 0.9, "beta2": 0.99} if build is not torch.optim.NAdam else {"betas": (0.9, 0.99)}
        optimizer = build([weight], lr=0.01, **kwargs)
        for g in (1.0, -2.0, 0.5):
            weight.grad = torch.full((3,), g, dtype=torch.float64)
            optimizer.step()
        ends.append(weight.detach().clone())
    assert not torch.allclose(*ends, rtol=1e-4)


def inverse_fourth_root(matrix: np.ndarray, matrix_eps: float) -> np.ndarray:
    values, vectors = np.linalg.eigh(matrix + matrix_eps * np.linalg.eigvalsh(matrix)[-1] * np.eye(len(matrix)))
    return vectors @ np.diag(values**-0.25) @ vectors.T


def shampoo_reference(
    theta: np.ndarray, gradients: list[np.ndarray], every: int, start: int, rows: list[slice], cols: list[slice]
) -> np.ndarray:
    """Distributed Shampoo of one matrix cut into rows × cols, one block at a time, with AdamW's norm."""
    lr, b1, b2, eps, wd, matrix_eps = 0.0123, 0.8, 0.95, 1e-3, 0.1, 0.01
    for row, col in itertools.product(rows, cols):
        block = theta[row, col]
        m, v, left, right, roots = np.zeros_like(block), np.zeros_like(block), 0.0, 0.0, None
        for t, gradient in enumerate(gradients, start=1):
            g = gradient[row, col]
            m, v = b1 * m + (1 - b1) * g, b2 * v + (1 - b2) * g**2
            left, right = b2 * left + (1 - b2) * g @ g.T, b2 * right + (1 - b2) * g.T @ g
            m_hat = m / (1 - b1**t)
            step = m_hat / (np.sqrt(v / (1 - b2**t)) + eps)
            if t >= start and t % every == 0:
                roots = [inverse_fourth_root(x / (1 - b2**t), matrix_eps) for x in (left, right)]
            if roots:
                direction = roots[0] @ m_hat @ roots[1]
                step = direction * np.linalg.norm(step) / np.linalg.norm(direction)
            block = block - lr * (step + wd * block)
        theta[row, col] = block
    return theta


@pytest.mark.parametrize(
    ("shape", "block_size", "every", "start"),
    [((6, 5), 8, 1, 0), ((6, 5), 4, 3, 7), ((6, 1, 5, 1), 4, 3, 0), ((6, 5, 1), 1, 2, 0)],
)
def test_shampoo_is_its_formula_block_by_block_in_float64(
    shape: tuple[int, ...], block_size: int, every: int, start: int
) -> None:
    rng = np.random.default_rng(0)
    theta, gradients = rng.normal(size=(6, 5)), [rng.normal(size=(6, 5)) for _ in range(25)]
    parameter = torch.nn.Parameter(torch.tensor(theta).reshape(shape))
    optimizer = OPTIMIZERS["shampoo"](
        [parameter], lr=0.0123, beta1=0.8, beta2=0.95, eps=1e-3, weight_decay=0.1, matrix_eps=0.01,
        precondition_every=float(every), precondition_start=float(start), block_size=float(block_size),
    )  # fmt: skip
    for gradient in gradients:
        parameter.grad = torch.tensor(gradient).reshape(shape)
        optimizer.step()
    rows, cols = ([slice(i, i + block_size) for i in range(0, n, block_size)] for n in (6, 5))
    expected = shampoo_reference(theta, gradients, every, start, rows, cols)
    np.testing.assert_allclose(parameter.detach().numpy().reshape(6, 5), expected, rtol=1e-9, atol=1e-12)


def test_shampoo_takes_a_kernel_as_a_matrix_and_a_vector_as_adamw() -> None:
    rng = np.random.default_rng(0)
    shapes = {"kernel": (4, 3, 2, 2), "matrix": (4, 12), "vector": (5,), "scalar": ()}
    parameters = {name: torch.nn.Parameter(torch.ones(shape)) for name, shape in shapes.items()}
    others = [torch.nn.Parameter(torch.ones(5)), torch.nn.Parameter(torch.ones(()))]
    given = {"lr": 0.01, "beta1": 0.9, "beta2": 0.99, "weight_decay": 0.0}
    optimizer = OPTIMIZERS["shampoo"](parameters.values(), precondition_every=2, **given)
    adamw = OPTIMIZERS["adamw"](others, **given)
    for _ in range(10):
        drawn = {name: torch.tensor(rng.normal(size=shape)).float() for name, shape in shapes.items()}
        drawn["matrix"] = drawn["kernel"].reshape(4, 12)
        for name, parameter in parameters.items():
            parameter.grad = drawn[name]
        others[0].grad, others[1].grad = drawn["vector"], drawn["scalar"]
        optimizer.step()
        adamw.step()
    assert torch.equal(parameters["kernel"].reshape(4, 12), parameters["matrix"])
    assert torch.allclose(parameters["vector"], others[0], rtol=1e-5)
    assert torch.allclose(parameters["scalar"], others[1], rtol=1e-5)


def test_shampoo_survives_gradients_of_zero() -> None:
    weight = torch.nn.Parameter(torch.ones(3, 4))
    optimizer = OPTIMIZERS["shampoo"]([weight], lr=0.1, precondition_every=1)
    for scale in (0.0, 0.0, 1.0, 0.0):
        weight.grad = torch.full((3, 4), scale)
        optimizer.step()
        assert weight.isfinite().all()
    assert not torch.equal(weight, torch.ones(3, 4))


def test_schedule_free_is_the_papers_recursion_and_is_evaluated_at_x() -> None:
    """y = (1−β)z + βx; z ← z − γ(g/(√v̂+ε) + λy); x ← (1−c)x + cz, c the share of γ_max² in its sum so far."""
    beta, beta2, eps, decay = 0.9, 0.95, 1e-3, 0.1
    rng = np.random.default_rng(0)
    x = z = rng.normal(size=(3, 4))
    v, total = np.zeros_like(z), 0.0
    parameter = torch.nn.Parameter(torch.tensor(z))
    given = {"lr": 1.0, "beta1": beta, "beta2": beta2, "eps": eps, "weight_decay": decay}
    optimizer = OPTIMIZERS["schedule_free_adamw"]([parameter], **given)
    rates = [0.0, 0.01, 0.02, 0.03, 0.03, 0.01, 0.02]  # the trainer's schedule, warm-up and all
    for t, rate in enumerate(rates, start=1):
        y = (1 - beta) * z + beta * x
        np.testing.assert_allclose(parameter.detach().numpy(), y, rtol=1e-12)
        g = rng.normal(size=(3, 4))
        v = beta2 * v + (1 - beta2) * g**2
        z = z - rate * (g / (np.sqrt(v / (1 - beta2**t)) + eps) + decay * y)
        weight = max(rates[:t]) ** 2
        total += weight
        x = x + (weight / total if total else 0.0) * (z - x)
        optimizer.param_groups[0]["lr"] = rate
        parameter.grad = torch.tensor(g)
        optimizer.step()
        with evaluation_weights(optimizer):
            np.testing.assert_allclose(parameter.detach().numpy(), x, rtol=1e-9)


def test_schedule_free_without_momentum_is_refused_in_one_line() -> None:
    with pytest.raises(ValueError, match="beta1 is 0; allowed"):
        OPTIMIZERS["schedule_free_adamw"]([torch.nn.Parameter(torch.ones(2))], lr=0.1, beta1=0.0, beta2=0.9)


SHAPES = ((), (7,), (5, 6), (4, 3, 2), (4, 3, 2, 2))


def built(name: str) -> tuple[list[torch.nn.Parameter], torch.optim.Optimizer]:
    rng = np.random.default_rng(1)
    parameters = [torch.nn.Parameter(torch.tensor(rng.normal(size=shape)).float()) for shape in SHAPES]
    values = {"lr": 0.05, "beta1": 0.9, "beta2": 0.99, "precondition_every": 3, "block_size": 4}
    taken = {key: value for key, value in values.items() if key in settings(name)}
    return parameters, OPTIMIZERS[name](parameters, **taken)


def stepped(parameters: list[torch.nn.Parameter], optimizer: torch.optim.Optimizer, n: int) -> None:
    for _ in range(n):
        optimizer.zero_grad()
        sum((p**2 + p.sin()).sum() for p in parameters).backward()  # type: ignore[union-attr]
        optimizer.step()


def same(one: list[torch.nn.Parameter], other: list[torch.nn.Parameter]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


@pytest.mark.parametrize("name", list(OPTIMIZERS))
def test_evaluating_leaves_no_trace_even_when_it_fails(name: str) -> None:
    straight, one = built(name)
    evaluated, other = built(name)
    for step in range(6):  # the average of one step is that step
        stepped(straight, one, 1)
        stepped(evaluated, other, 1)
        with evaluation_weights(other):
            assert same(straight, evaluated) == (name != "schedule_free_adamw" or step == 0)
        with pytest.raises(RuntimeError, match="no such luck"), evaluation_weights(other):
            raise RuntimeError("no such luck")
        assert same(straight, evaluated)


@pytest.mark.parametrize("name", list(OPTIMIZERS))
@pytest.mark.parametrize("num_before", [0, 1, 5])
def test_a_checkpoint_goes_on_bit_for_bit(name: str, num_before: int, tmp_path: Path) -> None:
    straight, one = built(name)
    stepped(straight, one, num_before)
    checkpoint.save(tmp_path / "state", {"model": list(straight), "optimizer": one.state_dict()})
    saved = checkpoint.load(tmp_path / "state")
    assert saved is not None
    resumed, other = built(name)
    with torch.no_grad():
        for parameter, value in zip(resumed, saved["model"], strict=True):
            parameter.copy_(value)
    other.load_state_dict(saved["optimizer"])
    stepped(straight, one, 5)
    stepped(resumed, other, 5)
    assert same(straight, resumed)


@pytest.mark.parametrize("name", ["shampoo", "schedule_free_adamw"])
@pytest.mark.parametrize("family", ["lm", "imagenet_vit"])
def test_the_minis_learn_and_twice_the_same(name: str, family: str) -> None:
    workload, losses = load(family), []
    own = {key: value for key, value in workload.optimizer.items() if key in ("beta1", "beta2", "weight_decay")}
    quick = {"precondition_every": 5} if name == "shampoo" else {}
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    for _ in range(2):
        torch.manual_seed(0)
        model = workload.model().train()
        held_out = list(workload.eval_batches("validation"))[:1]
        losses.append(evaluate(workload, model, held_out).loss)
        optimizer = OPTIMIZERS[name](model.parameters(), lr=0.005, **own, **quick)
        for batch in itertools.islice(workload.batches(0, 1), 20):
            optimizer.zero_grad()
            workload.loss(model, batch).backward()
            optimizer.step()
        with evaluation_weights(optimizer):
            losses.append(evaluate(workload, model, held_out).loss)
    torch.set_num_threads(threads)
    assert losses[:2] == losses[2:]
    assert losses[1] < losses[0] - 0.1


def run(name: str, **given: float) -> torch.Tensor:
    values = {"lr": 0.05, **({"beta1": 0.9, "beta2": 0.99} if "beta1" in settings(name) else {}), **given}
    if name == "shampoo":
        values = {"precondition_every": 2, **values}
    if name == "sgd":
        values = {"momentum": 0.9, **values}
    weight = torch.nn.Parameter(torch.linspace(-1, 1, 12).reshape(3, 4))
    optimizer = OPTIMIZERS[name]([weight], **values)
    for _ in range(10):
        optimizer.zero_grad()
        (weight**2 + weight.sin()).sum().backward()
        optimizer.step()
    return weight.detach().clone()


@pytest.mark.parametrize("name", list(OPTIMIZERS))
def test_every_setting_changes_the_weights(name: str) -> None:
    base = run(name)
    changed = {"lr": 0.02, "beta1": 0.5, "beta2": 0.8, "eps": 0.1, "weight_decay": 0.3, "momentum": 0.3}
    changed |= {"matrix_eps": 0.1, "precondition_every": 3, "precondition_start": 5, "block_size": 2, "nesterov": 1}
    for setting in settings(name):
        assert not torch.equal(run(name, **{setting: changed[setting]}), base), setting


@pytest.mark.parametrize(
    ("name", "reference"),
    [
        ("adamw", torch.optim.AdamW),
        ("sgd", torch.optim.SGD),
        ("nadamw", torch.optim.NAdam),
        ("schedule_free_adamw", AdamWScheduleFree),
    ],
)
def test_what_is_left_out_is_the_references_default(name: str, reference: type[torch.optim.Optimizer]) -> None:
    weight = torch.nn.Parameter(torch.ones(2))
    ours = dict(OPTIMIZERS[name]([weight], lr=0.1).param_groups[0])
    theirs = reference([weight], lr=0.1).param_groups[0]
    if "beta1" in ours:
        ours["betas"] = (ours["beta1"], ours["beta2"])
    keys = {"lr", "betas", "eps", "weight_decay", "momentum", "nesterov"} & set(theirs)
    assert {key: ours[key] for key in keys} == {key: theirs[key] for key in keys}
    assert len(keys) >= 4
