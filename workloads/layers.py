"""Initial weights and layers that families share, and what makes tensors once a process.

The transformer layers have few, large operations: on one core a small model's time goes into their number, so q, k, v
are one matrix and so are the two inputs of SwiGLU.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

T = TypeVar("T")


def cached_tensors(make: Callable[..., T]) -> functools._lru_cache_wrapper[T]:
    """`functools.cache`; the tensors can be trained with, though the first caller may be an evaluation."""

    @functools.cache
    @functools.wraps(make)
    def outside_inference(*args: Any) -> T:
        with torch.inference_mode(False):
            return make(*args)

    return outside_inference


@cached_tensors
def _sent(values: tuple[float, ...], device: torch.device) -> Tensor:
    return torch.tensor(values, device=device)


def constant(values: tuple[float, ...], device: torch.device) -> Tensor:
    """Numbers as a float32 vector on a device; sent there once, since sending waits for it."""
    # torch.compile warns of a cache and looks through it anyway
    made: Tensor = (_sent.__wrapped__ if torch.compiler.is_compiling() else _sent)(values, device)
    return made


# --- layers with the initial weights that families share -------------------------------------------------------


def linear(num_in: int, num_out: int, scale: float = 1.0, bias: bool = False) -> nn.Linear:
    """A linear layer with weights drawn from N(0, scale² / num_in) and a bias, if any, of zero."""
    layer = nn.Linear(num_in, num_out, bias=bias)
    nn.init.normal_(layer.weight, std=scale * num_in**-0.5)
    if bias:
        nn.init.zeros_(layer.bias)
    return layer


def glorot(num_in: int, num_out: int, bias: bool = True, bias_std: float = 0.0) -> nn.Linear:
    """A linear layer with weights uniform in ±√(6 / (in + out)) and a bias, if any, from N(0, bias_std²)."""
    layer = nn.Linear(num_in, num_out, bias=bias)
    nn.init.xavier_uniform_(layer.weight)
    if bias:
        nn.init.normal_(layer.bias, std=bias_std)
    return layer


def lecun(num_in: int, num_out: int) -> nn.Linear:
    """A linear layer with weights of `lecun_normal_` and a bias of zero: Flax's default."""
    layer = nn.Linear(num_in, num_out)
    lecun_normal_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer


def lecun_normal_(weight: Tensor) -> None:
    """Fill with N(0, 1/fan_in) cut off at two standard deviations, widened so that the variance is 1/fan_in."""
    std = weight[0].numel() ** -0.5 / 0.87962566103423978  # the deviation left after cutting
    nn.init.trunc_normal_(weight, std=std, a=-2 * std, b=2 * std)


def sinusoids(length: int, width: int, device: torch.device) -> Tensor:
    """(length, width): sines, then cosines of position · 10000^(−i / (width / 2 − 1)), i = 0 … width / 2 − 1."""
    half = width // 2
    frequency = 10000.0 ** (-torch.arange(half, device=device) / (half - 1))
    angle = torch.arange(length, device=device)[:, None] * frequency
    return torch.cat([angle.sin(), angle.cos()], -1)


# --- transformer layers ----------------------------------------------------------------------------------------


class RMSNorm(nn.Module):
    """y = g · x / √(mean(x²) + ε), last axis, g = 1 at first. Source: Zhang and Sennrich 2019, eq. 4."""

    def __init__(self, width: int, eps: float = 1e-6) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """(…, width) -> (…, width)."""
        return F.rms_norm(x, self.gain.shape, self.gain, self.eps)


class SwiGLU(nn.Module):
    """y = W_out (silu(W_gate x) ⊙ W_up x), no biases. Source: Shazeer 2020, eq. 6."""

    def __init__(self, width: int, hidden: int, out_scale: float = 1.0) -> None:
        super().__init__()
        self.gate_up = linear(width, 2 * hidden)  # W_gate above W_up
        self.out = linear(hidden, width, out_scale)

    def forward(self, x: Tensor) -> Tensor:
        """(…, width) -> (…, width)."""
        gate, up = self.gate_up(x).chunk(2, dim=-1)
        y: Tensor = self.out(F.silu(gate) * up)
        return y


@cached_tensors
def rotary_angles(length: int, width: int, device: torch.device, base: float = 10000.0) -> tuple[Tensor, Tensor]:
    """cos and sin of position × frequency, each (length, width); the sine carries the sign `rotate` needs.

    Frequency i of width/2: base^(−2i/width). Source: Su et al. 2021, section 3.2.2.
    """
    frequency = base ** (-torch.arange(0, width, 2, device=device) / width)
    angle = torch.arange(length, device=device)[:, None] * frequency
    cos, sin = angle.cos(), angle.sin()
    return torch.cat([cos, cos], -1), torch.cat([-sin, sin], -1)


def rotate(x: Tensor, base: float = 10000.0) -> Tensor:
    """Rotary position embedding: pair (xᵢ, x_{i+w/2}) at position p turns by p·frequencyᵢ.

    x: (…, length, width), width even -> the same shape. Dot products then depend on distances only.
    """
    # torch.compile warns of a cache and looks through it anyway
    angles = rotary_angles.__wrapped__ if torch.compiler.is_compiling() else rotary_angles
    cos, sin = angles(x.shape[-2], x.shape[-1], x.device, base)
    return torch.addcmul(x * cos, x.roll(x.shape[-1] // 2, -1), sin)


class Attention(nn.Module):
    """Multi-head self-attention, no biases; causal with rotary positions (a text), or neither (patches)."""

    def __init__(
        self, width: int, num_heads: int, causal: bool, out_scale: float = 1.0, rotary_base: float = 10000.0
    ) -> None:
        super().__init__()
        self.num_heads, self.causal, self.rotary_base = num_heads, causal, rotary_base
        self.qkv = linear(width, 3 * width)
        self.out = linear(width, width, out_scale)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, length, width) -> (batch, length, width)."""
        batch, length, width = x.shape
        heads = self.qkv(x).view(batch, length, 3 * self.num_heads, width // self.num_heads).transpose(1, 2)
        q, k, v = heads.chunk(3, dim=1)  # each (batch, heads, length, width / heads)
        if self.causal:
            q, k = rotate(heads[:, : 2 * self.num_heads], self.rotary_base).chunk(2, dim=1)
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=self.causal)
        y: Tensor = self.out(mixed.transpose(1, 2).reshape(batch, length, width))
        return y


class Block(nn.Module):
    """x + attention(norm(x)), then x + SwiGLU(norm(x)): a pre-norm transformer layer.

    depth: how many such layers the model has; residual outputs start smaller by √(2·depth).
    """

    def __init__(
        self, width: int, num_heads: int, hidden: int, depth: int, causal: bool, rotary_base: float = 10000.0
    ) -> None:
        super().__init__()
        out_scale = (2 * depth) ** -0.5
        self.attention_norm = RMSNorm(width)
        self.attention = Attention(width, num_heads, causal, out_scale, rotary_base)
        self.mlp_norm = RMSNorm(width)
        self.mlp = SwiGLU(width, hidden, out_scale)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, length, width) -> (batch, length, width)."""
        x = x + self.attention(self.attention_norm(x))
        y: Tensor = x + self.mlp(self.mlp_norm(x))
        return y
