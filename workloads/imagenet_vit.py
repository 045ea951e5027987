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


def patchify(images: Tensor, patch: int) -> Tensor:
    """(batch, side, side, 3) -> (batch, (side / patch)², patch·patch·3), row by row, pixels channel-last."""
    batch, side, _, channels = images.shape
    grid = images.view(batch, side // patch, patch, side // patch, patch, channels)
    return grid.transpose(2, 3).reshape(batch, (side // patch) ** 2, patch * patch * channels)


class VisionTransformer(nn.Module):
    """Patches, learned positions, pre-norm blocks, mean over patches, a linear head."""

    def __init__(
        self, side: int, patch: int, num_classes: int, width: int, depth: int, num_heads: int, hidden: int
    ) -> None:
        super().__init__()
        self.patch = patch
        self.embedding = linear(patch * patch * 3, width, bias=True)
        self.positions = nn.Parameter(torch.randn((side // patch) ** 2, width) * 0.02)
        self.blocks = nn.Sequential(*(Block(width, num_heads, hidden, depth, causal=False) for _ in range(depth)))
        self.norm = RMSNorm(width)
        self.head = linear(width, num_classes, bias=True)

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
    """Multi-head self-attention with biases; dropout of the attention weights."""

    def __init__(self, width: int, num_heads: int, dropout: float) -> None:
        super().__init__()
        self.num_heads, self.dropout = num_heads, dropout
        self.query, self.key, self.value, self.out = (glorot(width, width) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        """(batch, length, width) -> (batch, length, width)."""
        q, k, v = (
            layer(x).unflatten(-1, (self.num_heads, -1)).transpose(1, 2) for layer in (self.query, self.key, self.value)
        )
        dropout = self.dropout if self.training else 0.0
        mixed = F.scaled_dot_product_attention(q, k, v, dropout_p=dropout)
        y: Tensor = self.out(mixed.transpose(1, 2).flatten(2))
        return y


class EncoderBlock(nn.Module):
    """x + attention(norm(x)), then x + MLP(norm(x)), the MLP with tanh-GELU; dropout of each summand."""

    def __init__(self, width: int, num_heads: int, hidden: int, dropout: float) -> None:
        super().__init__()
        self.attention = nn.Sequential(
            nn.LayerNorm(width, eps=1e-6), SelfAttention(width, num_heads, dropout), nn.Dropout(dropout)
        )
        self.mlp = nn.Sequential(
            nn.LayerNorm(width, eps=1e-6),
            glorot(width, hidden, bias_std=1e-6),
            nn.GELU(approximate="tanh"),
            nn.Dropout(dropout),
            glorot(hidden, width, bias_std=1e-6),
            nn.Dropout(dropout),
        )

    def forward(self, x: Tensor) -> Tensor:
        """(batch, length, width) -> (batch, length, width)."""
        x = x + self.attention(x)
        y: Tensor = x + self.mlp(x)
        return y


class EncoderClassifier(nn.Module):
    """Patches, sincos positions, pre-norm blocks, mean over patches, a tanh layer, a head that starts at zero."""

    def __init__(
        self, patch: int, num_classes: int, width: int, depth: int, num_heads: int, hidden: int, dropout: float
    ) -> None:
        super().__init__()
        self.embedding = nn.Conv2d(3, width, patch, stride=patch)
        self.dropout = nn.Dropout(dropout)
        self.blocks = nn.Sequential(*(EncoderBlock(width, num_heads, hidden, dropout) for _ in range(depth)))
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.pre_logits = nn.Linear(width, width)
        self.head = nn.Linear(width, num_classes)
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
        return VisionTransformer(
            self.side, self.patch, self.num_classes, self.width, self.depth, self.num_heads, self.hidden
        )


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
        return EncoderClassifier(
            self.patch, self.num_classes, self.width, self.depth, self.num_heads, self.hidden, self.dropout
        )


ALGOPERF = constants()["imagenet_vit"]

PRESETS: dict[str, Workload] = {
    "mini": SmallViT(
        step_budget=6000,
        batch_size=8,
        optimizer={"name": "nadamw", "lr": 0.005, "beta1": 0.9, "beta2": 0.99, "eps": 1e-8, "weight_decay": 0.1},
        schedule={"shape": "cosine", "length": 1.0, "warmup": 0.05, "final_lr": 0.0},
        step_seconds=0.005,
        eval_seconds=0.11,
    ),
    "full": ViTS16(
        **ALGOPERF.preset(50_000),
        label_smoothing=ALGOPERF.nadamw.label_smoothing,
        dropout=ALGOPERF.nadamw.dropout,
        randaugment=2,
        mixup=0.2,
    ),
}
