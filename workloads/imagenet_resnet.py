"""A residual network with batch norm: `mini` on 32×32 clip art, `full` is AlgoPerf's ResNet-50 on ImageNet.

Data, splits and numbers: docs/workloads/imagenet_resnet.md.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from workloads.algoperf import constants
from workloads.imagenet import ClipArt, ImageNet, ink, normalized
from workloads.layers import lecun_normal_
from workloads.protocol import Workload
from workloads.task import mini


def convolution(num_in: int, num_out: int, kernel: int, stride: int, gain: float = 1.0) -> nn.Sequential:
    """A convolution without bias, then batch norm: (n, num_in, h, w) -> (n, num_out, ⌈h/stride⌉, ⌈w/stride⌉).

    gain: of the batch norm, at first.
    """
    conv = nn.Conv2d(num_in, num_out, kernel, stride, padding=kernel // 2, bias=False)
    norm = nn.BatchNorm2d(num_out)
    lecun_normal_(conv.weight)
    nn.init.constant_(norm.weight, gain)
    return nn.Sequential(conv, norm)


PARTS = 8  # of AlgoPerf's devices, each with the batch norm of its own 128 pictures


class Residual(nn.Module):
    """relu(s(x) + f(x)): f is convolutions with relu between, s is x or a 1×1 convolution to f's shape.

    layers: (channels, kernel, stride) of each convolution of f. Its last gain starts at 0, so f does too.
    Sources: He et al. 2016; Goyal et al. 2017, section 5.1 (the gain).
    """

    def __init__(self, num_in: int, layers: Sequence[tuple[int, int, int]]) -> None:
        super().__init__()
        f: list[nn.Module] = []
        channels, total_stride = num_in, 1
        for i, (num_out, kernel, stride) in enumerate(layers, start=1):
            gain = 0.0 if i == len(layers) else 1.0
            f += [convolution(channels, num_out, kernel, stride, gain), nn.ReLU()]
            channels, total_stride = num_out, total_stride * stride
        self.f = nn.Sequential(*f[:-1])
        unchanged = channels == num_in and total_stride == 1
        self.shortcut = nn.Identity() if unchanged else convolution(num_in, channels, 1, total_stride)

    def forward(self, x: Tensor) -> Tensor:
        """(n, num_in, h, w) -> (n, channels, ⌈h/stride⌉, ⌈w/stride⌉), of the last layer and of all strides."""
        return F.relu(self.shortcut(x) + self.f(x))


class ResNet(nn.Module):
    """A stem, residual blocks, the mean over places, a linear head; prepare: what the stem sees of pictures.

    sizes: numbers of features and of classes.
    """

    def __init__(
        self, prepare: Callable[[Tensor], Tensor], stem: nn.Module, blocks: Sequence[Residual], sizes: tuple[int, int]
    ) -> None:
        super().__init__()
        self.prepare, self.stem, self.blocks = prepare, stem, nn.Sequential(*blocks)
        self.head = nn.Linear(*sizes)
        nn.init.normal_(self.head.weight, std=0.01)
        nn.init.zeros_(self.head.bias)

    def forward(self, pictures: Tensor) -> Tensor:
        """(n, side, side, 3), values of 0 … 255 -> (n, num_classes) logits."""
        x = self.prepare(pictures).permute(0, 3, 1, 2)
        logits: Tensor = self.head(self.blocks(self.stem(x)).mean((2, 3)))
        return logits


@dataclass(frozen=True, kw_only=True)
class SmallResNet(ClipArt):
    """Basic blocks of two 3×3 convolutions, each halving the side and widening."""

    widths: tuple[int, ...] = (16, 32, 64)  # of the stem, then of a block each

    def model(self) -> nn.Module:
        stem = nn.Sequential(convolution(3, self.widths[0], 3, 2), nn.ReLU())
        blocks = [Residual(num_in, [(width, 3, 2), (width, 3, 1)]) for num_in, width in pairwise(self.widths)]
        return ResNet(ink, stem, blocks, (self.widths[-1], self.num_classes))


@dataclass(frozen=True, kw_only=True)
class ResNet50(ImageNet):
    """Bottleneck blocks that stride in their 3×3 convolution; depths: blocks of each of the four stages.

    Source: AlgoPerf, workloads/imagenet_resnet/imagenet_pytorch/models.py (25,557,032 parameters).
    """

    depths: tuple[int, ...] = (3, 4, 6, 3)
    batch_norm_parts = PARTS
    training: Mapping[str, Any] = field(default_factory=lambda: {"accumulate": PARTS})
    num_workers: int = 4  # for each of the parts

    def model(self) -> nn.Module:
        stem = nn.Sequential(convolution(3, 64, 7, 2), nn.ReLU(), nn.MaxPool2d(3, stride=2, padding=1))
        blocks: list[Residual] = []
        num_in = 64
        for stage, depth in enumerate(self.depths):
            width = 64 * 2**stage
            for block in range(depth):
                stride = 2 if stage > 0 and block == 0 else 1
                blocks.append(Residual(num_in, [(width, 1, 1), (width, 3, stride), (4 * width, 1, 1)]))
                num_in = 4 * width
        return ResNet(normalized, stem, blocks, (num_in, self.num_classes))


PRESETS: dict[str, Workload] = {
    "mini": SmallResNet(**mini(lr=0.0025, step_budget=6000, batch_size=8, step_seconds=0.0045, eval_seconds=0.09)),
    "full": ResNet50(**constants()["imagenet_resnet"].preset(50_000, "label_smoothing")),
}
