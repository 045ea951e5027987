"""A vision transformer on small colour images; `mini` sorts 32×32 clip art into 13 classes (docs/data.md)."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

from workloads import data
from workloads.layers import Block, RMSNorm, linear
from workloads.protocol import Batch, Summary, Sums, Workload

WHITE = 255  # the background, so what a shifted crop is filled with


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
        self.blocks = nn.Sequential(
            *(Block(width, num_heads, hidden, depth, causal=False) for _ in range(depth))
        )
        self.norm = RMSNorm(width)
        self.head = linear(width, num_classes, bias=True)

    def forward(self, images: Tensor) -> Tensor:
        """(batch, side, side, 3) uint8 -> (batch, num_classes) logits."""
        ink = (WHITE - images.to(self.positions.dtype)) / 64  # white is 0, so padding is silent
        x = self.embedding(patchify(ink, self.patch)) + self.positions
        logits: Tensor = self.head(self.norm(self.blocks(x)).mean(1))
        return logits


@cache
def images(split: str) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Pictures (n, 32, 32, 3) and labels (n,) of one split; the mosaic holds train, then validation."""
    index = json.loads(data.path("imagenet.json").read_text(encoding="ascii"))
    side, columns = index["side"], index["columns"]
    sheet = np.asarray(Image.open(data.path("imagenet.webp")).convert("RGB"))
    tiles = sheet.reshape(-1, side, columns, side, 3).swapaxes(1, 2).reshape(-1, side, side, 3)
    first = 0 if split == "train" else len(index["train"])
    labels = np.array(index[split], dtype=np.int64)
    return np.ascontiguousarray(tiles[first : first + len(labels)]), labels


@cache
def padded_train(margin: int) -> NDArray[np.uint8]:
    """The training pictures with `margin` white pixels on every side."""
    edge = (margin, margin)
    return np.pad(images("train")[0], ((0, 0), edge, edge, (0, 0)), constant_values=WHITE)


@cache
def validation_batches(batch_size: int) -> tuple[tuple[Tensor, Tensor], ...]:
    """All validation pictures and labels, in the file's order."""
    with torch.inference_mode(False):  # cached: later callers may want gradients
        pictures, labels = (
            torch.split(torch.from_numpy(array), batch_size) for array in images("validation")
        )
    return tuple(zip(pictures, labels, strict=True))


@cache
def num_classes() -> int:
    """How many classes the mosaic has."""
    return len(json.loads(data.path("imagenet.json").read_text(encoding="ascii"))["classes"])


@dataclass(frozen=True)
class ImagenetViT:
    """Classification with random shifts and flips; metric: "loss" (cross-entropy, nats) or "accuracy".

    A batch is (images, labels): (batch_size, 32, 32, 3) uint8 and (batch_size,) int64.
    """

    step_budget: int
    batch_size: int
    optimizer: Mapping[str, Any]
    schedule: Mapping[str, Any]
    step_seconds: float
    eval_seconds: float
    metric: str = "loss"
    side: int = 32
    patch: int = 8
    width: int = 64
    depth: int = 3
    num_heads: int = 2
    hidden: int = 128
    max_shift: int = 2
    flip: bool = True
    eval_batch_size: int = 64
    higher_is_better: bool = field(init=False)

    def __post_init__(self) -> None:
        if self.metric not in ("loss", "accuracy"):
            raise ValueError(f"metric is {self.metric!r}; it is loss or accuracy")
        object.__setattr__(self, "higher_is_better", self.metric == "accuracy")

    def model(self) -> nn.Module:
        return VisionTransformer(
            self.side, self.patch, num_classes(), self.width, self.depth, self.num_heads, self.hidden
        )

    def batches(self, seed: int, first_step: int) -> Iterator[Batch]:
        pictures, labels = padded_train(self.max_shift), images("train")[1]
        step = first_step
        while True:
            random = np.random.default_rng([seed, step])
            chosen = random.integers(len(labels), size=self.batch_size)
            corners = random.integers(2 * self.max_shift + 1, size=(self.batch_size, 2)).tolist()
            mirrored = (random.random(self.batch_size) < 0.5 * self.flip).tolist()
            crops = [
                pictures[i, y : y + self.side, x : x + self.side][:, :: -1 if mirror else 1]
                for i, (y, x), mirror in zip(chosen.tolist(), corners, mirrored, strict=True)
            ]
            yield torch.from_numpy(np.stack(crops)), torch.from_numpy(labels[chosen])
            step += 1

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        pictures, labels = batch
        return F.cross_entropy(model(pictures), labels)

    def eval_batches(self, split: str) -> Iterable[Batch]:
        if split != "validation":
            raise ValueError(f"imagenet_vit has no split {split!r}; it has validation")
        return validation_batches(self.eval_batch_size)

    def eval_step(self, model: nn.Module, batch: Batch) -> Sums:
        pictures, labels = batch
        logits = model(pictures)
        return {
            "loss": F.cross_entropy(logits, labels, reduction="none").double().sum(),
            "correct": (logits.argmax(-1) == labels).sum(),
            "examples": torch.tensor(len(labels)),
        }

    def summarize(self, sums: Mapping[str, float]) -> Summary:
        loss, accuracy = (float(sums[name] / sums["examples"]) for name in ("loss", "correct"))
        return Summary(loss, accuracy if self.metric == "accuracy" else loss, int(sums["examples"]))


PRESETS: dict[str, Workload] = {
    "mini": ImagenetViT(
        step_budget=6000,
        batch_size=8,
        optimizer={
            "name": "nadamw",
            "lr": 0.005,
            "beta1": 0.9,
            "beta2": 0.99,
            "eps": 1e-8,
            "weight_decay": 0.1,
        },
        schedule={"shape": "cosine", "length": 1.0, "warmup": 0.05, "final_lr": 0.0},
        step_seconds=0.005,
        eval_seconds=0.11,
    ),
}
