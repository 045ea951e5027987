"""DeepSpeech as in AlgoPerf: convolutions, residual two-way LSTM layers with batch norm, CTC outputs."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from workloads.algoperf import constants
from workloads.librispeech import LibriSpeech, Prompts
from workloads.protocol import Workload
from workloads.speech_layers import BatchNorm, ConvSubsampling, LayerNorm, initialize, valid_frames
from workloads.task import mini


class Recurrent(nn.Module):
    """Batch norm, then an LSTM in both directions over the valid frames.

    The backward direction reads each utterance turned round, its padding left behind it: as packed sequences have
    it, but with whole tensors, for which there are fast kernels (8 times faster here on one core).
    """

    def __init__(self, width: int, momentum: float) -> None:
        super().__init__()
        self.batch_norm = BatchNorm(width, momentum)
        self.forwards = nn.LSTM(width, width // 2, batch_first=True)
        self.backwards = nn.LSTM(width, width // 2, batch_first=True)

    def forward(self, x: Tensor, turned: Tensor, valid: Tensor) -> Tensor:
        """(batch, time, width), the place each frame has when turned round, valid -> (batch, time, width)."""
        x = self.batch_norm(x, valid)
        ahead = self.forwards(x)[0]
        back = self.backwards(x.gather(1, turned[:, :, None].expand_as(x)))[0]
        back = back.gather(1, turned[:, :, None].expand_as(back))
        return torch.cat([ahead, back], -1) * valid[:, :, None]


class FeedForward(nn.Module):
    """Batch norm, linear, ReLU; 0 outside the valid frames."""

    def __init__(self, width: int, momentum: float) -> None:
        super().__init__()
        self.batch_norm = BatchNorm(width, momentum)
        self.linear = nn.Linear(width, width)

    def forward(self, x: Tensor, valid: Tensor) -> Tensor:
        """(batch, time, width), valid (batch, time) -> (batch, time, width)."""
        return F.relu(self.linear(self.batch_norm(x, valid))) * valid[:, :, None]


class Encoder(nn.Module):
    """Convolutional subsampling, recurrent and feed-forward layers with residuals, layer norm, a linear layer."""

    def __init__(self, shape: DeepSpeech, bins: int, num_outputs: int) -> None:
        super().__init__()
        width = shape.width
        self.subsampling = ConvSubsampling(bins, shape.channels, width)
        self.dropout = nn.Dropout(shape.dropout)
        self.recurrent = nn.ModuleList(Recurrent(width, shape.momentum) for _ in range(shape.num_recurrent))
        self.feed_forward = nn.ModuleList(FeedForward(width, shape.momentum) for _ in range(shape.num_feed_forward))
        self.norm = LayerNorm(width)
        self.head = nn.Linear(width, num_outputs)
        initialize(self)

    def forward(self, features: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """(batch, frames, bins), lengths -> logits (batch, ⌈frames / 4⌉, outputs), ⌈lengths / 4⌉."""
        x, lengths = self.subsampling(features, lengths)
        x = self.dropout(x)
        valid, place = valid_frames(lengths, x.shape[1]), torch.arange(x.shape[1], device=x.device)
        turned = torch.where(valid, lengths[:, None] - 1 - place, place)
        for layer in self.recurrent:
            x = x + layer(x, turned, valid)
        for layer in self.feed_forward:
            x = x + self.dropout(layer(x, valid))
        return self.head(self.norm(x)), lengths


@dataclass(frozen=True)
class DeepSpeech:
    """The size of a DeepSpeech. width: both LSTM directions together; momentum: the weight of a new batch."""

    channels: int = 16
    width: int = 96
    num_recurrent: int = 1
    num_feed_forward: int = 1
    momentum: float = 0.03
    dropout: float = 0.0

    def __call__(self, bins: int, num_outputs: int) -> nn.Module:
        return Encoder(self, bins, num_outputs)


ALGOPERF = constants()["librispeech_deepspeech"]

PRESETS: dict[str, Workload] = {
    "mini": Prompts(
        **mini(lr=0.02, step_budget=4000, batch_size=4, step_seconds=0.0135, eval_seconds=0.05), network=DeepSpeech()
    ),
    "full": LibriSpeech(
        **ALGOPERF.preset(5567), network=DeepSpeech(512, 512, 6, 3, momentum=0.001, dropout=ALGOPERF.nadamw.dropout)
    ),
}
