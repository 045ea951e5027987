"""A decoder-only language model on bytes: RMSNorm, rotary positions, SwiGLU, as in the paper's plainLM.

`mini` reads the World English Bible, split by whole books (docs/data.md).
"""

from __future__ import annotations

import lzma
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from workloads import data
from workloads.layers import Block, RMSNorm, linear
from workloads.protocol import Batch, Summary, Sums, Workload

VOCABULARY = 128  # the text is ASCII


class Decoder(nn.Module):
    """Bytes in, logits of the next byte out; position i sees bytes 0 … i."""

    def __init__(self, width: int, depth: int, num_heads: int, hidden: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(VOCABULARY, width)
        self.blocks = nn.Sequential(
            *(Block(width, num_heads, hidden, depth, causal=True) for _ in range(depth))
        )
        self.norm = RMSNorm(width)
        self.head = linear(width, VOCABULARY)

    def forward(self, tokens: Tensor) -> Tensor:
        """(batch, length) int64 -> (batch, length, VOCABULARY) logits."""
        logits: Tensor = self.head(self.norm(self.blocks(self.embedding(tokens))))
        return logits


@cache
def text(split: str) -> NDArray[np.uint8]:
    """The bytes of one split."""
    packed = data.path(f"lm_{split}.txt.xz").read_bytes()
    return np.frombuffer(lzma.decompress(packed), dtype=np.uint8)


@cache
def validation_batches(context: int, num_windows: int, batch_size: int) -> tuple[Tensor, ...]:
    """`num_windows` windows of context + 1 bytes, evenly spaced over the validation text."""
    held_out = text("validation")
    starts = np.arange(num_windows) * (len(held_out) - context - 1) // (num_windows - 1)
    windows = held_out[starts[:, None] + np.arange(context + 1)].astype(np.int64)
    with torch.inference_mode(False):  # cached: later callers may want gradients
        return torch.split(torch.from_numpy(windows), batch_size)


@dataclass(frozen=True)
class LanguageModel:
    """Next-byte prediction on windows of `context` bytes; metric: mean cross-entropy, nats a byte.

    A batch is (batch_size, context + 1) int64: inputs are all but the last byte, targets all but the first.
    """

    step_budget: int
    batch_size: int
    optimizer: Mapping[str, Any]
    schedule: Mapping[str, Any]
    step_seconds: float
    eval_seconds: float
    context: int = 64
    width: int = 64
    depth: int = 2
    num_heads: int = 2
    hidden: int = 176
    num_eval_windows: int = 256
    eval_batch_size: int = 64
    metric: str = field(default="loss", init=False)
    higher_is_better: bool = field(default=False, init=False)

    def model(self) -> nn.Module:
        return Decoder(self.width, self.depth, self.num_heads, self.hidden)

    def batches(self, seed: int, first_step: int) -> Iterator[Batch]:
        train, offsets = text("train"), np.arange(self.context + 1)
        step = first_step
        while True:
            starts = np.random.default_rng([seed, step]).integers(
                len(train) - self.context, size=self.batch_size
            )
            yield torch.from_numpy(train[starts[:, None] + offsets].astype(np.int64))
            step += 1

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        return F.cross_entropy(model(batch[:, :-1]).flatten(0, 1), batch[:, 1:].flatten())

    def eval_batches(self, split: str) -> Iterable[Batch]:
        if split != "validation":
            raise ValueError(f"lm has no split {split!r}; it has validation")
        return validation_batches(self.context, self.num_eval_windows, self.eval_batch_size)

    def eval_step(self, model: nn.Module, batch: Batch) -> Sums:
        losses = F.cross_entropy(model(batch[:, :-1]).flatten(0, 1), batch[:, 1:].flatten(), reduction="none")
        return {"loss": losses.double().sum(), "examples": torch.tensor(len(batch))}

    def summarize(self, sums: Mapping[str, float]) -> Summary:
        loss = float(sums["loss"] / (sums["examples"] * self.context))
        return Summary(loss=loss, metric=loss, examples=int(sums["examples"]))


PRESETS: dict[str, Workload] = {
    "mini": LanguageModel(
        step_budget=4000,
        batch_size=8,
        optimizer={
            "name": "nadamw",
            "lr": 0.01,
            "beta1": 0.9,
            "beta2": 0.99,
            "eps": 1e-8,
            "weight_decay": 0.1,
        },
        schedule={"shape": "cosine", "length": 1.0, "warmup": 0.1, "final_lr": 0.1},  # as plainLM
        step_seconds=0.0105,
        eval_seconds=0.095,
    ),
}
