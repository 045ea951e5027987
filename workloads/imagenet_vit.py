"""A vision transformer: `mini` on 32×32 clip art, `full` is AlgoPerf's ViT S/16 on ImageNet.

Data, splits and numbers: docs/workloads/imagenet_vit.md.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from workloads.algoperf import constants
from workloads.imagenet import ClipArt, ImageNet, ink, normalized
from workloads.layers import Block, RMSNorm, glorot, lecun_normal_, linear, sinusoids
from workloads.protocol import Workload
from workloads.task import mini


def patchify(images: Tensor, patch: int) -> Tensor:
    """(batch, side, side, 3) -> (batch, (side / patch)², patch·patch·3), row by row, pixels channel-last."""
    batch, side, _, channels = images.shape
    grid = images.view(batch, side // patch, patch, side // patch, patch, channels)
    return grid.transpose(2, 3).reshape(batch, (side // patch) ** 2, patch * patch * channels)


class VisionTransformer(nn.Module):
    """Patches, learned positions, pre-norm blocks, mean over patches, a linear head."""

    def __init__(self, of: SmallViT) -> None:
        super().__init__()
        self.patch = of.patch
        self.embedding = linear(of.patch**2 * 3, of.width, bias=True)
        self.positions = nn.Parameter(torch.randn((of.side // of.patch) ** 2, of.width) * 0.02)
        sizes = (of.width, of.num_heads, of.hidden, of.depth)
        self.blocks = nn.Sequential(*(Block(*sizes, causal=False) for _ in range(of.depth)))
        self.norm = RMSNorm(of.width)
        self.head = linear(of.width, of.num_classes, bias=True)

    def forward(self, images: Tensor) -> Tensor:
        """(batch, side, side, 3) uint8 -> (batch, num_classes) logits."""
        x = self.embedding(patchify(ink(images), self.patch)) + self.positions
        logits: Tensor = self.head(self.norm(self.blocks(x)).mean(1))
        return logits


# --- AlgoPerf's ViT S/16 ---------------------------------------------------------------------------------------


def sincos_positions(grid: int, width: int, device: torch.device) -> Tensor:
    """(grid², width): sin and cos of column × frequency, then of row × frequency, row by row.

    Frequency i of width/4: 10000^(−i/(width/4 − 1)). Source: Chen et al. 2021 (MoCo v3), as AlgoPerf has it.
    """
    table = sinusoids(grid, width // 2, device)
    return torch.cat([table.repeat(grid, 1), table.repeat_interleave(grid, 0)], dim=1)


class SelfAttention(nn.Module):
    """Multi-head self-attention with biases and dropped-out weights: (batch, length, width) -> the same."""

    def __init__(self, width: int, num_heads: int, dropout: float) -> None:
        super().__init__()
        self.num_heads, self.dropout = num_heads, dropout
        self.query, self.key, self.value, self.out = (glorot(width, width) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        heads = (layer(x).unflatten(-1, (self.num_heads, -1)) for layer in (self.query, self.key, self.value))
        q, k, v = (x.transpose(1, 2) for x in heads)
        dropout = self.dropout if self.training else 0.0
        mixed = F.scaled_dot_product_attention(q, k, v, dropout_p=dropout)
        y: Tensor = self.out(mixed.transpose(1, 2).flatten(2))
        return y


class EncoderBlock(nn.Module):
    """x + attention(norm(x)), then x + MLP(norm(x)), the MLP with tanh-GELU; dropout of each summand."""

    def __init__(self, width: int, num_heads: int, hidden: int, dropout: float) -> None:
        super().__init__()
        attention = SelfAttention(width, num_heads, dropout)
        self.attention = nn.Sequential(nn.LayerNorm(width, eps=1e-6), attention, nn.Dropout(dropout))
        self.mlp = nn.Sequential(
            nn.LayerNorm(width, eps=1e-6),
            glorot(width, hidden, bias_std=1e-6),
            nn.GELU(approximate="tanh"),
            nn.Dropout(dropout),
            glorot(hidden, width, bias_std=1e-6),
            nn.Dropout(dropout),
        )

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(x)
        y: Tensor = x + self.mlp(x)
        return y


class EncoderClassifier(nn.Module):
    """Patches, sincos positions, pre-norm blocks, mean over patches, a tanh layer, a head that starts at zero."""

    def __init__(self, of: ViTS16) -> None:
        super().__init__()
        self.embedding = nn.Conv2d(3, of.width, of.patch, stride=of.patch)
        self.dropout = nn.Dropout(of.dropout)
        sizes = (of.width, of.num_heads, of.hidden, of.dropout)
        self.blocks = nn.Sequential(*(EncoderBlock(*sizes) for _ in range(of.depth)))
        self.norm = nn.LayerNorm(of.width, eps=1e-6)
        self.pre_logits = nn.Linear(of.width, of.width)
        self.head = nn.Linear(of.width, of.num_classes)
        for layer in (self.embedding, self.pre_logits):
            lecun_normal_(layer.weight)
        nn.init.zeros_(self.head.weight)
        for layer in (self.embedding, self.pre_logits, self.head):
            assert layer.bias is not None
            nn.init.zeros_(layer.bias)

    def forward(self, pictures: Tensor) -> Tensor:
        """(batch, side, side, 3), values of 0 … 255 -> (batch, num_classes) logits."""
        patches = self.embedding(normalized(pictures).permute(0, 3, 1, 2))
        x = patches.flatten(2).transpose(1, 2)
        x = self.dropout(x + sincos_positions(patches.shape[-1], x.shape[-1], x.device))
        pooled = self.norm(self.blocks(x)).mean(1)
        logits: Tensor = self.head(torch.tanh(self.pre_logits(pooled)))
        return logits


# --- the presets -----------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class SmallViT(ClipArt):
    """RMSNorm, SwiGLU and learned positions."""

    patch: int = 8
    width: int = 64
    depth: int = 3
    num_heads: int = 2
    hidden: int = 128

    def model(self) -> nn.Module:
        return VisionTransformer(self)


@dataclass(frozen=True, kw_only=True)
class ViTS16(ImageNet):
    """LayerNorm, GELU and fixed positions.

    Source: AlgoPerf, workloads/imagenet_vit/imagenet_pytorch/models.py (22,122,472 parameters).
    """

    patch: int = 16
    width: int = 384
    depth: int = 12
    num_heads: int = 6
    hidden: int = 1536
    dropout: float = 0.0

    def model(self) -> nn.Module:
        return EncoderClassifier(self)


PRESETS: dict[str, Workload] = {
    "mini": SmallViT(**mini(lr=0.005, step_budget=6000, batch_size=8, step_seconds=0.005, eval_seconds=0.11)),
    "full": ViTS16(
        **constants()["imagenet_vit"].preset(50_000, "dropout", "label_smoothing"), randaugment=2, mixup=0.2
    ),
}
