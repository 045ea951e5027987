"""The Conformer (Gulati et al. 2020) as in AlgoPerf: absolute positions, batch norm of its own; CTC outputs."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from workloads.algoperf import constants
from workloads.layers import sinusoids
from workloads.librispeech import LibriSpeech, Prompts
from workloads.protocol import Workload
from workloads.speech_layers import BatchNorm, ConvSubsampling, LayerNorm, initialize, valid_frames
from workloads.task import mini

LN2 = 0.6931471805599453  # softplus(0)


class FeedForward(nn.Module):
    """W₂ silu(W₁ norm(x)), half of which a block adds."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.norm = LayerNorm(width)
        self.hidden = nn.Linear(width, hidden)
        self.out = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        """(…, width) -> (…, width)."""
        y: Tensor = self.out(F.silu(self.hidden(self.norm(x))))
        return y


class Attention(nn.Module):
    """Self-attention over valid frames; queries scaled channel by channel by softplus(s) / ln 2, 1 at first."""

    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.norm = LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.query_scale = nn.Parameter(torch.zeros(width // num_heads))
        self.out = nn.Linear(width, width)

    def forward(self, x: Tensor, valid: Tensor) -> Tensor:
        """(batch, time, width), valid (batch, time) -> (batch, time, width)."""
        batch, time, width = x.shape
        qkv = self.qkv(self.norm(x)).view(batch, time, 3, self.num_heads, -1)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)  # each (batch, heads, time, width / heads)
        q = (q * (F.softplus(self.query_scale) / LN2)).to(k.dtype)
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=valid[:, None, None])
        y: Tensor = self.out(mixed.transpose(1, 2).reshape(batch, time, width))
        return y


class Convolution(nn.Module):
    """Gated linear unit, depthwise convolution over time, batch norm, silu, linear."""

    def __init__(self, width: int, kernel: int, momentum: float) -> None:
        super().__init__()
        self.norm = LayerNorm(width)
        self.value, self.gate = nn.Linear(width, width), nn.Linear(width, width)
        self.depthwise = nn.Conv1d(width, width, kernel, padding=kernel // 2, groups=width, bias=False)
        self.batch_norm = BatchNorm(width, momentum)
        self.out = nn.Linear(width, width)

    def forward(self, x: Tensor, valid: Tensor) -> Tensor:
        """(batch, time, width), valid (batch, time) -> (batch, time, width)."""
        x = self.norm(x)
        x = self.value(x) * torch.sigmoid(self.gate(x)) * valid[:, :, None]
        x = self.depthwise(x.transpose(1, 2)).transpose(1, 2)
        y: Tensor = self.out(F.silu(self.batch_norm(x, valid)))
        return y


class Block(nn.Module):
    """Feed-forward / 2, attention, convolution, feed-forward / 2, each added to its input; then a layer norm."""

    def __init__(self, shape: Conformer) -> None:
        super().__init__()
        self.before, self.after = (FeedForward(shape.width, shape.hidden) for _ in range(2))
        self.attention = Attention(shape.width, shape.num_heads)
        self.convolution = Convolution(shape.width, shape.kernel, shape.momentum)
        self.norm = LayerNorm(shape.width)
        self.dropout = nn.Dropout(shape.dropout)

    def forward(self, x: Tensor, valid: Tensor) -> Tensor:
        """(batch, time, width), valid (batch, time) -> (batch, time, width)."""
        x = x + 0.5 * self.dropout(self.before(x))
        x = x + self.dropout(self.attention(x, valid))
        x = x + self.dropout(self.convolution(x, valid))
        y: Tensor = self.norm(x + 0.5 * self.dropout(self.after(x)))
        return y


class Encoder(nn.Module):
    """Convolutional subsampling, positions, blocks, layer norm, a linear layer to the outputs."""

    def __init__(self, shape: Conformer, bins: int, num_outputs: int) -> None:
        super().__init__()
        width = shape.width
        self.subsampling = ConvSubsampling(bins, shape.channels, width)
        self.dropout = nn.Dropout(shape.dropout)
        self.blocks = nn.ModuleList(Block(shape) for _ in range(shape.depth))
        self.norm = LayerNorm(width)
        self.head = nn.Linear(width, num_outputs)
        initialize(self)

    def forward(self, features: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """(batch, frames, bins), lengths -> logits (batch, ⌈frames / 4⌉, outputs), ⌈lengths / 4⌉."""
        x, lengths = self.subsampling(features, lengths)
        x = self.dropout(x + sinusoids(x.shape[1], x.shape[2], x.device))
        valid = valid_frames(lengths, x.shape[1])
        for block in self.blocks:
            x = block(x, valid)
        return self.head(self.norm(x)), lengths


@dataclass(frozen=True)
class Conformer:
    """The size of a Conformer. momentum: the weight of a new batch's statistics."""

    channels: int = 16
    width: int = 64
    depth: int = 1
    num_heads: int = 4
    hidden: int = 256
    kernel: int = 5
    momentum: float = 0.03
    dropout: float = 0.0

    def __call__(self, bins: int, num_outputs: int) -> nn.Module:
        return Encoder(self, bins, num_outputs)


ALGOPERF = constants()["librispeech_conformer"]

PRESETS: dict[str, Workload] = {
    "mini": Prompts(
        **mini(lr=0.01, step_budget=3000, batch_size=4, step_seconds=0.018, eval_seconds=0.065), network=Conformer()
    ),
    "full": LibriSpeech(
        **ALGOPERF.preset(5567),
        network=Conformer(512, 512, depth=4, num_heads=8, hidden=2048, momentum=0.001, dropout=ALGOPERF.nadamw.dropout),
    ),
}
