"""A decoder-only language model: RMSNorm, rotary positions, SwiGLU, as in the paper's plainLM.

`mini` reads the bytes of the World English Bible, split by whole books; `full` is the paper's own run, 124 M
parameters on the tokens of FineWeb-Edu (docs/workloads/lm.md).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from workloads import data
from workloads.data.reading import unpacked
from workloads.layers import Block, RMSNorm, cached_tensors, linear
from workloads.protocol import Batch, Part, Summary, Sums, Workload
from workloads.task import Task, cosine, epoch_batch, mini


class Decoder(nn.Module):
    """Tokens in, logits of the next token out; position i sees tokens 0 … i.

    tied: input and output embedding are one matrix. init_std: every matrix is drawn from N(0, init_std²), the
    outputs of residual branches from N(0, init_std² / (2·depth)), as plainLM does; None: as their layers do.
    """

    def __init__(self, of: LanguageModel) -> None:
        super().__init__()
        self.embedding = nn.Embedding(of.vocabulary, of.width)
        sizes = (of.width, of.num_heads, of.hidden, of.depth)
        self.blocks = nn.Sequential(*(Block(*sizes, True, of.rotary_base) for _ in range(of.depth)))
        self.norm = RMSNorm(of.width)
        self.head = linear(of.width, of.vocabulary)
        if of.tied:
            self.head.weight = self.embedding.weight
        if of.init_std is not None:
            for name, parameter in self.named_parameters():
                if parameter.ndim == 2:
                    scale = (2 * of.depth) ** -0.5 if name.endswith(".out.weight") else 1.0
                    nn.init.normal_(parameter, std=of.init_std * scale)

    def forward(self, tokens: Tensor) -> Tensor:
        """(batch, length) int64 -> (batch, length, vocabulary) logits."""
        logits: Tensor = self.head(self.norm(self.blocks(self.embedding(tokens))))
        return logits


@cache
def text(split: str) -> NDArray[np.uint8]:
    """The bytes of one split."""
    return np.frombuffer(unpacked(f"lm_{split}.txt.xz"), dtype=np.uint8)


@cached_tensors
def validation_batches(context: int, num_windows: int, batch_size: int) -> tuple[Tensor, ...]:
    """`num_windows` windows of context + 1 bytes, evenly spaced over the validation text."""
    held_out = text("validation")
    starts = np.arange(num_windows) * (len(held_out) - context - 1) // (num_windows - 1)
    windows = held_out[starts[:, None] + np.arange(context + 1)].astype(np.int64)
    return torch.split(torch.from_numpy(windows), batch_size)


@dataclass(frozen=True, kw_only=True)
class LanguageModel(Task):
    """Next-byte prediction on windows of `context` bytes; metric: mean cross-entropy, nats a byte.

    A batch is (batch_size, context + 1) int64: inputs are all but the last byte, targets all but the first.
    vocabulary: the text is ASCII.
    """

    context: int = 64
    width: int = 64
    depth: int = 2
    num_heads: int = 2
    hidden: int = 176
    vocabulary: int = 128
    rotary_base: float = 10000.0
    tied: bool = False
    init_std: float | None = None
    num_eval_windows: int = 256
    eval_batch_size: int = 64

    def model(self) -> nn.Module:
        return Decoder(self)

    def source(self, split: str) -> Any:
        if split == "train":
            return text("train")
        return validation_batches(self.context, self.num_eval_windows, self.eval_batch_size)

    def train_batch(self, source: Any, seed: int, part: Part, step: int) -> Batch:
        starts = np.random.default_rng([seed, step]).integers(len(source) - self.context, size=self.batch_size)
        windows = source[starts[part.every, None] + np.arange(self.context + 1)]
        return torch.from_numpy(windows.astype(np.int64))

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        return F.cross_entropy(model(batch[:, :-1]).flatten(0, 1), batch[:, 1:].flatten())

    def loss_weight(self, batch: Batch) -> float:
        return len(batch)

    def eval_step(self, model: nn.Module, batch: Batch) -> Sums:
        losses = F.cross_entropy(model(batch[:, :-1]).flatten(0, 1), batch[:, 1:].flatten(), reduction="none")
        return {"loss": losses.double().sum(), "examples": torch.tensor(len(batch))}

    def summarize(self, sums: Mapping[str, float]) -> Summary:
        return self.summary(float(sums["loss"] / (sums["examples"] * self.context)), sums["examples"])


# --- full: token shards ------------------------------------------------------------------------------------------

HOLDS = "token shards *train*.bin and *val*.bin, as llm.c's dev/data/fineweb.py writes them (edu_fineweb_…)"
HEADER_BYTES, MAGIC, VERSION = 1024, 20240520, 1  # 256 int32: magic, version, number of tokens, zeros


@cache
def shards(folder: Path, split: str) -> tuple[tuple[Path, int], ...]:
    """The shards of one split and their numbers of tokens, by name. Raises: BadData.

    A shard is a header, then one flat stream of uint16 tokens; documents are joined by end-of-text tokens.
    """
    pattern = "*train*.bin" if split == "train" else "*val*.bin"
    found = []
    for path in sorted(folder.glob(pattern)):
        size, header = path.stat().st_size, np.fromfile(path, "<i4", count=3).tolist()
        if header[:2] != [MAGIC, VERSION] or len(header) < 3:
            raise data.BadData(f"{path}: not a token shard: it should begin with int32 {MAGIC}, {VERSION}")
        if size != (expected := HEADER_BYTES + 2 * header[2]):
            raise data.BadData(f"{path}: {header[2]:,} tokens make {expected:,} bytes; it has {size:,}")
        found.append((path, header[2]))
    if not found:
        raise data.BadData(f"{folder}: no {pattern}; it should hold {HOLDS}")
    return tuple(found)


@cache
def tokens(path: Path) -> NDArray[np.uint16]:
    """The tokens of one shard, left on disk."""
    return np.memmap(path, "<u2", "r", offset=HEADER_BYTES)


@dataclass(frozen=True)
class Windows:
    """The windows of `length` tokens in some shards, by their number; each shard's rest is left out."""

    shards: tuple[tuple[Path, int], ...]  # and their numbers of tokens
    length: int
    vocabulary: int

    def __len__(self) -> int:
        return sum(num_tokens // self.length for _, num_tokens in self.shards)

    def __getitem__(self, number: int) -> NDArray[np.int64]:
        """(length,). Raises: BadData for a token beyond the vocabulary."""
        for path, num_tokens in self.shards:
            if number < num_tokens // self.length:
                found = tokens(path)[number * self.length :][: self.length].astype(np.int64)
                if found.max() >= self.vocabulary:
                    last = self.vocabulary - 1
                    raise data.BadData(f"{path}: it has token {found.max()}; the vocabulary ends at {last}")
                return found
            number -= num_tokens // self.length
        raise IndexError("there are fewer windows")


@dataclass(frozen=True, kw_only=True)
class TokenLanguageModel(LanguageModel):
    """Next-token prediction on shards of tokens; a batch is as in `LanguageModel`.

    Every epoch goes through all windows in a new order, as plainLM does; `num_eval_windows` evenly spaced ones of the
    validation shards are evaluated.
    """

    num_workers: int = 4

    def check_data(self) -> None:
        for split in ("train", "validation"):
            self.source(split)

    def source(self, split: str) -> Windows:
        folder, at_least = data.dataset("lm", holds=HOLDS), self.batch_size if split == "train" else 1
        found = Windows(shards(folder, split), self.context + 1, self.vocabulary)
        if len(found) < at_least:
            windows = f"{len(found)} windows of {found.length} tokens, fewer than {at_least}"
            raise data.BadData(f"{folder}: its {split} shards have {windows}")
        return found

    def train_batch(self, source: Windows, seed: int, part: Part, step: int) -> Tensor:
        _, _, chosen = epoch_batch((seed,), step, self.batch_size, len(source))
        return torch.from_numpy(np.stack([source[int(i)] for i in chosen[part.every]]))

    def num_eval_batches(self, source: Windows) -> int:
        return -(-min(self.num_eval_windows, len(source)) // self.eval_batch_size)

    def eval_batch(self, source: Windows, number: int) -> Tensor:
        size = min(self.num_eval_windows, len(source))
        numbers = range(size)[number * self.eval_batch_size :][: self.eval_batch_size]
        return torch.from_numpy(np.stack([source[i * len(source) // size] for i in numbers]))


# plainLM, branch wa, config/130M_10BT/save_fastest_to_target_02.yaml; target loss 3.28 (the paper, Fig. 9)
SCHEDULE = cosine(0.1, final_lr=0.1)
ADAMW = {"name": "adamw", "lr": 0.01, "beta1": 0.9, "beta2": 0.95, "eps": 1e-12, "weight_decay": 0.01, "grad_clip": 0.1}

PRESETS: dict[str, Workload] = {
    "mini": LanguageModel(
        **mini(lr=0.01, step_budget=4000, batch_size=8, step_seconds=0.0105, eval_seconds=0.095)
        | {"schedule": SCHEDULE}
    ),
    "full": TokenLanguageModel(
        step_budget=9400,
        batch_size=512,
        optimizer=ADAMW,
        schedule=SCHEDULE,
        step_seconds=3.1,  # of an A100: 6 · 124 M · 524,288 FLOP at 40 % of its bf16 peak
        eval_seconds=20.0,
        context=1024,
        width=768,
        depth=12,
        num_heads=12,
        hidden=2048,
        vocabulary=50257,
        rotary_base=500_000.0,
        tied=True,
        init_std=0.02,
        num_eval_windows=9756,  # 10 M tokens
        eval_batch_size=32,
        training={"precision": "bf16", "accumulate": 8},
    ),
}
