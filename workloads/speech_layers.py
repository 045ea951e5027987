"""Layers of the speech networks: norms over valid frames, subsampling, initial weights as AlgoPerf has them."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class LayerNorm(nn.Module):
    """y = (1 + s) · (x − mean) / √(var + ε) + b over the last axis; weight decay draws the gain to 1."""

    def __init__(self, width: int, eps: float = 1e-6) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.zeros(width))
        self.bias = nn.Parameter(torch.zeros(width))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """(…, width) -> (…, width)."""
        return F.layer_norm(x, self.scale.shape, 1 + self.scale, self.bias, self.eps)


class BatchNorm(nn.Module):
    """y = (1 + s) · (x − μ) / √(σ² + ε) + b, with μ and σ² over the valid frames of the batch, 0 elsewhere.

    In training running ← (1 − momentum) · running + momentum · batch statistic (σ² biased); in evaluation the
    running statistics stand for μ and σ².
    """

    running_mean: Tensor
    running_var: Tensor

    def __init__(self, width: int, momentum: float, eps: float = 1e-3) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.zeros(width))
        self.bias = nn.Parameter(torch.zeros(width))
        self.register_buffer("running_mean", torch.zeros(width))
        self.register_buffer("running_var", torch.ones(width))
        self.momentum, self.eps = momentum, eps

    def forward(self, x: Tensor, valid: Tensor) -> Tensor:
        """(batch, time, width), valid (batch, time) bool -> (batch, time, width) float32."""
        x, mask = x.float(), valid[:, :, None]
        mean, var = self.running_mean, self.running_var
        if self.training:
            count = valid.sum()
            mean = (x * mask).sum((0, 1)) / count
            var = ((x - mean).square() * mask).sum((0, 1)) / count
            with torch.no_grad():
                self.running_mean.lerp_(mean, self.momentum)
                self.running_var.lerp_(var, self.momentum)
        gain = (1 + self.scale) * torch.rsqrt(var + self.eps)
        return ((x - mean) * gain + self.bias) * mask


class ConvSubsampling(nn.Module):
    """Two 3×3 convolutions of stride 2 with ReLU, then a linear layer over channels × bins: a quarter of the frames."""

    def __init__(self, bins: int, channels: int, width: int) -> None:
        super().__init__()
        self.convolutions = nn.ModuleList(
            nn.Conv2d(num_in, channels, 3, stride=2, padding=1) for num_in in (1, channels)
        )
        self.out = nn.Linear(channels * (bins // 4), width)

    def forward(self, features: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """(batch, frames, bins), lengths -> (batch, ⌈frames / 4⌉, width), ⌈lengths / 4⌉."""
        x = features[:, None]
        for convolution in self.convolutions:
            lengths = (lengths + 1) // 2
            x = F.relu(convolution(x))
            x = x * valid_frames(lengths, x.shape[2])[:, None, :, None]
        return self.out(x.transpose(1, 2).flatten(2)), lengths


def valid_frames(lengths: Tensor, num_frames: int) -> Tensor:
    """(batch,) -> (batch, num_frames) bool: frame t of an utterance is valid when t < length."""
    return torch.arange(num_frames, device=lengths.device) < lengths[:, None]


def initialize(module: nn.Module) -> None:
    """Glorot-uniform weights and zero biases for the linear and convolutional layers, as AlgoPerf has them."""
    for layer in module.modules():
        if isinstance(layer, nn.Linear | nn.Conv1d | nn.Conv2d):
            nn.init.xavier_uniform_(layer.weight)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
