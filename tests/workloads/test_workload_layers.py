"""The layers against their formulas in float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from workloads.imagenet_vit import patchify
from workloads.layers import Attention, Block, RMSNorm, SwiGLU, linear, rotary_angles, rotate


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def test_rms_norm_is_its_formula() -> None:
    norm = RMSNorm(8, eps=1e-3).double()
    torch.nn.init.normal_(norm.gain)
    x = torch.randn(3, 5, 8, dtype=torch.float64)
    gain, a = norm.gain.detach().numpy(), x.numpy()
    expected = gain * a / np.sqrt((a**2).mean(-1, keepdims=True) + 1e-3)
    np.testing.assert_allclose(norm(x).detach().numpy(), expected, rtol=1e-12)


def test_swiglu_is_its_formula() -> None:
    layer = SwiGLU(6, 10).double()
    x = torch.randn(4, 6, dtype=torch.float64)
    a = x.numpy()
    gate, up = np.split(layer.gate_up.weight.detach().numpy(), 2)
    z = a @ gate.T
    expected = (z / (1 + np.exp(-z)) * (a @ up.T)) @ layer.out.weight.detach().numpy().T
    np.testing.assert_allclose(layer(x).detach().numpy(), expected, rtol=1e-12)


def test_rotate_turns_each_pair_by_position_times_frequency() -> None:
    width, length = 8, 5
    x = torch.randn(2, length, width)
    turned = rotate(x).numpy()
    a = x.numpy().astype(np.float64)
    frequency = 10000.0 ** (-2 * np.arange(width // 2) / width)
    pairs = (a[..., : width // 2] + 1j * a[..., width // 2 :]) * np.exp(1j * np.arange(length)[:, None] * frequency)
    np.testing.assert_allclose(turned, np.concatenate([pairs.real, pairs.imag], -1), atol=1e-5)


def test_rotary_dot_products_depend_on_the_distance_only() -> None:
    q, k = torch.randn(2, 16)
    length = 40
    turned_q, turned_k = rotate(q.expand(length, 16)), rotate(k.expand(length, 16))
    products = turned_q @ turned_k.T
    for shift in (1, 7, 20):
        assert torch.allclose(products[:-shift, :-shift], products[shift:, shift:], atol=1e-4)
    assert not torch.allclose(products[0], products[0, 0].expand(length), atol=0.1)


def test_rotary_angles_are_cached_and_trainable_after_inference() -> None:
    rotary_angles.cache_clear()
    with torch.inference_mode():
        rotate(torch.randn(3, 4))
    x = torch.randn(3, 4, requires_grad=True)
    rotate(x).sum().backward()
    assert x.grad is not None
    assert rotary_angles.cache_info().misses == 1


@pytest.mark.parametrize("causal", [True, False])
def test_attention_is_softmax_of_scaled_products(causal: bool) -> None:
    layer, heads, length, width = Attention(12, 2, causal), 2, 7, 12
    x = torch.randn(3, length, width)
    w_q, w_k, w_v = layer.qkv.weight.detach().split(width)
    q, k, v = ((x @ w.T).view(3, length, heads, -1).transpose(1, 2) for w in (w_q, w_k, w_v))
    if causal:
        q, k = rotate(q), rotate(k)
    scores = q @ k.transpose(-1, -2) / (width / heads) ** 0.5
    if causal:
        scores = scores.masked_fill(torch.ones(length, length).triu(1).bool(), -torch.inf)
    mixed = (scores.softmax(-1) @ v).transpose(1, 2).reshape(3, length, width)
    assert torch.allclose(layer(x), mixed @ layer.out.weight.T, atol=1e-5)


def test_attention_without_positions_is_blind_to_order() -> None:
    layer = Attention(12, 2, causal=False)
    x, order = torch.randn(1, 9, 12), torch.randperm(9)
    assert torch.allclose(layer(x)[:, order], layer(x[:, order]), atol=1e-5)


def test_block_adds_to_its_input() -> None:
    block = Block(12, 2, 16, depth=3, causal=True)
    x = torch.randn(2, 5, 12)
    y = x + block.attention(block.attention_norm(x))
    assert torch.allclose(block(x), y + block.mlp(block.mlp_norm(y)))
    with torch.no_grad():
        block.attention.out.weight.zero_()
        block.mlp.out.weight.zero_()
    assert torch.equal(block(x), x)


def test_depth_and_scale_shrink_the_residual_outputs() -> None:
    layer = linear(400, 300, scale=0.5)
    assert layer.weight.std().item() == pytest.approx(0.5 / 20, rel=0.02)
    assert layer.bias is None
    shallow, deep = (Block(64, 2, 64, depth, causal=True) for depth in (1, 4))
    ratio = shallow.mlp.out.weight.std() / deep.mlp.out.weight.std()
    assert ratio.item() == pytest.approx(2.0, rel=0.1)


def test_patchify_puts_each_patch_in_a_row() -> None:
    image = torch.arange(2 * 8 * 8 * 3).view(2, 8, 8, 3)
    rows = patchify(image, 4)
    assert rows.shape == (2, 4, 48)
    for i, (y, x) in enumerate(((0, 0), (0, 4), (4, 0), (4, 4))):
        assert torch.equal(rows[1, i], image[1, y : y + 4, x : x + 4].flatten())
