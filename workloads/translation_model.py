"""The encoder-decoder transformer of AlgoPerf's WMT workload: pre-norm, ReLU, sinusoidal positions, one embedding.

Source of sizes and initial weights: mlcommons/algorithmic-efficiency v0.5,
algorithmic_efficiency/workloads/wmt/wmt_pytorch/models.py.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from workloads.layers import cached_tensors, glorot

PAD = 0  # fills up rows; as a decoder input it also stands before the first token of a sentence
EOS = 2


@cached_tensors
def sinusoids(length: int, width: int, device: torch.device) -> Tensor:
    """(length, width): sin, then cos, of position · 10000^(−2i / (width − 2)), i = 0 … width / 2 − 1.

    As `layers.sinusoids`, but by exp and log, as AlgoPerf has it here: the last bits differ.
    """
    index = torch.arange(width // 2, device=device)
    frequency = torch.exp(index * (-math.log(10000.0) / (width // 2 - 1)))
    angle = torch.arange(length, device=device)[:, None] * frequency
    return torch.cat([angle.sin(), angle.cos()], -1)


def positions(segments: Tensor) -> Tensor:
    """(batch, length) segment numbers -> where in its segment each token stands, from 0."""
    index = torch.arange(segments.shape[1], device=segments.device)
    begins = F.pad(segments[:, 1:] != segments[:, :-1], (1, 0), value=True)
    return index - (index * begins).cummax(-1).values


def shifted(targets: Tensor, segments: Tensor | None) -> Tensor:
    """The decoder's inputs: the token before each one, PAD before the first of a segment."""
    before = F.pad(targets[:, :-1], (1, 0), value=PAD)
    if segments is None:
        return before
    return before.masked_fill(positions(segments) == 0, PAD)


class Attention(nn.Module):
    """Multi-head attention without biases; from a sequence to itself or to `memory`, with dropped-out weights."""

    def __init__(self, width: int, num_heads: int, dropout: float) -> None:
        super().__init__()
        self.num_heads, self.dropout = num_heads, dropout
        self.out = glorot(width, width, bias=False)

    def heads(self, x: Tensor) -> Tensor:
        """(batch, length, n · width) -> (batch, n · heads, length, width / heads)."""
        batch, length, _ = x.shape
        return x.view(batch, length, -1, self.out.in_features // self.num_heads).transpose(1, 2)

    def mix(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, causal: bool = False) -> Tensor:
        """softmax(q kᵀ / √d + mask) v, heads side by side, through the output matrix."""
        dropout = self.dropout if self.training else 0.0
        mixed = F.scaled_dot_product_attention(q, k, v, mask, dropout, is_causal=causal)
        y: Tensor = self.out(mixed.transpose(1, 2).flatten(2))
        return y


class SelfAttention(Attention):
    """Queries, keys and values from one matrix."""

    def __init__(self, width: int, num_heads: int, dropout: float) -> None:
        super().__init__(width, num_heads, dropout)
        self.qkv = glorot(width, 3 * width, bias=False)

    def split(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(batch, length, width) -> q, k, v, each (batch, heads, length, width / heads)."""
        q, k, v = self.heads(self.qkv(x)).chunk(3, dim=1)
        return q, k, v

    def forward(self, x: Tensor, mask: Tensor | None, causal: bool = False) -> Tensor:
        return self.mix(*self.split(x), mask, causal)


class CrossAttention(Attention):
    """Queries from the target; keys and values from the encoded source, in one matrix."""

    def __init__(self, width: int, num_heads: int, dropout: float) -> None:
        super().__init__(width, num_heads, dropout)
        self.q = glorot(width, width, bias=False)
        self.kv = glorot(width, 2 * width, bias=False)

    def read(self, memory: Tensor) -> tuple[Tensor, Tensor]:
        """(batch, length, width) -> k, v, each (batch, heads, length, width / heads)."""
        k, v = self.heads(self.kv(memory)).chunk(2, dim=1)
        return k, v

    def forward(self, x: Tensor, keys_values: tuple[Tensor, Tensor], mask: Tensor | None) -> Tensor:
        return self.mix(self.heads(self.q(x)), *keys_values, mask)


class FeedForward(nn.Sequential):
    """W₂ dropout(relu(W₁ x + b₁)) + b₂."""

    def __init__(self, width: int, hidden: int, dropout: float) -> None:
        super().__init__(
            glorot(width, hidden, bias_std=1e-6), nn.ReLU(), nn.Dropout(dropout), glorot(hidden, width, bias_std=1e-6)
        )


class EncoderLayer(nn.Module):
    """x + attention(norm(x)), then x + feed-forward(norm(x))."""

    def __init__(self, width: int, num_heads: int, hidden: int, dropout: float, attention_dropout: float) -> None:
        super().__init__()
        self.attention_norm, self.hidden_norm = (nn.LayerNorm(width, eps=1e-6) for _ in range(2))
        self.attention = SelfAttention(width, num_heads, attention_dropout)
        self.feed_forward = FeedForward(width, hidden, dropout)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        x = x + self.dropout(self.attention(self.attention_norm(x), mask))
        y: Tensor = x + self.dropout(self.feed_forward(self.hidden_norm(x)))
        return y


class DecoderLayer(nn.Module):
    """Self-attention, attention to the source, feed-forward; each as x + f(norm(x))."""

    def __init__(self, width: int, num_heads: int, hidden: int, dropout: float, attention_dropout: float) -> None:
        super().__init__()
        self.self_norm, self.cross_norm, self.hidden_norm = (nn.LayerNorm(width, eps=1e-6) for _ in range(3))
        self.self_attention = SelfAttention(width, num_heads, attention_dropout)
        self.cross_attention = CrossAttention(width, num_heads, attention_dropout)
        self.feed_forward = FeedForward(width, hidden, dropout)
        self.dropout = nn.Dropout(dropout)

    def rest(self, x: Tensor, keys_values: tuple[Tensor, Tensor], mask: Tensor | None) -> Tensor:
        """What follows self-attention."""
        x = x + self.dropout(self.cross_attention(self.cross_norm(x), keys_values, mask))
        y: Tensor = x + self.dropout(self.feed_forward(self.hidden_norm(x)))
        return y

    def forward(self, x: Tensor, memory: Tensor, mask: Tensor | None, cross_mask: Tensor) -> Tensor:
        x = x + self.dropout(self.self_attention(self.self_norm(x), mask, causal=mask is None))
        return self.rest(x, self.cross_attention.read(memory), cross_mask)


class Memory(NamedTuple):
    """What the decoder needs to go on: the source's keys and values, and those of the tokens so far, a layer each.

    Source: (batch, heads, source length, width / heads). Past: (batch · beams, heads, tokens, width / heads).
    """

    source: list[tuple[Tensor, Tensor]]
    source_mask: Tensor
    past: list[tuple[Tensor, Tensor]]


class TranslationModel(nn.Module):
    """Source and target tokens in, logits of each target token out, given the source and the tokens before it."""

    def __init__(
        self,
        vocabulary: int,
        width: int,
        num_heads: int,
        hidden: int,
        depth: int,
        dropout: float,
        attention_dropout: float,
        max_length: int,
    ) -> None:
        super().__init__()
        sizes = (width, num_heads, hidden, dropout, attention_dropout)
        self.width, self.max_length = width, max_length
        self.embedding = nn.Embedding(vocabulary, width)
        self.encoder = nn.ModuleList(EncoderLayer(*sizes) for _ in range(depth))
        self.decoder = nn.ModuleList(DecoderLayer(*sizes) for _ in range(depth))
        self.encoder_norm, self.decoder_norm = (nn.LayerNorm(width, eps=1e-6) for _ in range(2))
        self.dropout = nn.Dropout(dropout)

    def embed(self, tokens: Tensor, where: Tensor | int) -> Tensor:
        """Token and position vectors, added; where: positions, broadcast against the tokens."""
        table = sinusoids(self.max_length, self.width, tokens.device)
        x: Tensor = self.dropout(self.embedding(tokens) + table[where])
        return x

    def logits(self, x: Tensor) -> Tensor:
        """norm(x) Eᵀ / √width with the embedding E: (…, width) -> (…, vocabulary)."""
        return F.linear(self.decoder_norm(x) * self.width**-0.5, self.embedding.weight)

    def encode(self, sources: Tensor, segments: Tensor | None) -> Tensor:
        """(batch, length) tokens -> (batch, length, width); tokens see their own segment, padding itself."""
        real = sources != PAD
        if segments is None:
            mask = real[:, None, None, :]
            where = torch.arange(sources.shape[1], device=sources.device)
        else:
            mask = (segments[:, :, None] == segments[:, None, :])[:, None]
            where = positions(segments)
        x = self.embed(sources, where)
        for layer in self.encoder:
            x = layer(x, mask)
        memory: Tensor = self.encoder_norm(x)
        return memory

    def forward(
        self,
        sources: Tensor,
        targets: Tensor,
        source_segments: Tensor | None = None,
        target_segments: Tensor | None = None,
    ) -> Tensor:
        """(batch, source length), (batch, target length) -> (batch, target length, vocabulary).

        Segments number the sentences packed in a row from 1, 0 is padding; without them a row is one sentence.
        """
        memory = self.encode(sources, source_segments)
        mask: Tensor | None = None
        if source_segments is None or target_segments is None:
            cross_mask = (sources != PAD)[:, None, None, :]
            where = torch.arange(targets.shape[1], device=targets.device)
        else:
            rows, columns = target_segments[:, :, None], target_segments[:, None, :]
            mask = (rows == columns).tril()[:, None]
            # padding may look anywhere: a row of the mask with nothing in it has no softmax
            cross_mask = ((rows == source_segments[:, None, :]) | (rows == 0))[:, None]
            where = positions(target_segments)
        x = self.embed(shifted(targets, target_segments), where)
        for layer in self.decoder:
            x = layer(x, memory, mask, cross_mask)
        return self.logits(x)

    def layers(self) -> list[DecoderLayer]:
        """The decoder's."""
        return [layer for layer in self.decoder if isinstance(layer, DecoderLayer)]

    def begin(self, sources: Tensor) -> Memory:
        """Read the sources (batch, length), one sentence a row, before any target token."""
        memory = self.encode(sources, None)
        read = [layer.cross_attention.read(memory) for layer in self.layers()]
        return Memory(read, (sources != PAD)[:, None, None, :], [])

    def step(self, tokens: Tensor, memory: Memory, parents: Tensor | None = None) -> tuple[Tensor, Memory]:
        """One more token for each of several beams of each source.

        tokens: (batch, beams), the latest ones. parents: (batch, beams), the beam each beam goes on from; None:
        itself. Returns logits of the next token (batch, beams, vocabulary) and what to go on with.
        """
        batch, beams = tokens.shape
        past: list[tuple[Tensor, Tensor]] = memory.past
        if past and parents is not None:
            rows = (parents + torch.arange(batch, device=tokens.device)[:, None] * beams).flatten()
            past = [(k.index_select(0, rows), v.index_select(0, rows)) for k, v in past]
        length = past[0][0].shape[2] if past else 0
        x = self.embed(tokens, length)
        now: list[tuple[Tensor, Tensor]] = []
        for i, layer in enumerate(self.layers()):
            q, k, v = layer.self_attention.split(layer.self_norm(x).view(batch * beams, 1, -1))
            if past:
                k, v = torch.cat([past[i][0], k], 2), torch.cat([past[i][1], v], 2)
            now.append((k, v))
            x = x + layer.self_attention.mix(q, k, v, None).view(x.shape)
            x = layer.rest(x, memory.source[i], memory.source_mask)  # the beams are rows of queries
        return self.logits(x), memory._replace(past=now)
