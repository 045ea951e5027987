"""The encoder-decoder transformer of AlgoPerf's WMT workload: pre-norm, ReLU, sinusoidal positions, one embedding.

And to find a translation with it: greedily, or by beam search with the length penalty of Wu et al. 2016, eq. 14.
Source of sizes and initial weights: mlcommons/algorithmic-efficiency v0.5,
algorithmic_efficiency/workloads/wmt/wmt_pytorch/models.py.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
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
    return before if segments is None else before.masked_fill(positions(segments) == 0, PAD)


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """Of a translation model. max_length: tokens of a side; depth: layers of each half."""

    vocabulary: int = 1024
    width: int = 64
    num_heads: int = 2
    hidden: int = 128
    depth: int = 2
    max_length: int = 24
    dropout: float = 0.0
    attention_dropout: float = 0.0


class Attention(nn.Module):
    """Multi-head attention without biases; from a sequence to itself or to `memory`, with dropped-out weights."""

    def __init__(self, of: Sizes) -> None:
        super().__init__()
        self.num_heads, self.dropout = of.num_heads, of.attention_dropout
        self.out = glorot(of.width, of.width, bias=False)

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

    def __init__(self, of: Sizes) -> None:
        super().__init__(of)
        self.qkv = glorot(of.width, 3 * of.width, bias=False)

    def split(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(batch, length, width) -> q, k, v, each (batch, heads, length, width / heads)."""
        q, k, v = self.heads(self.qkv(x)).chunk(3, dim=1)
        return q, k, v

    def forward(self, x: Tensor, mask: Tensor | None, causal: bool = False) -> Tensor:
        return self.mix(*self.split(x), mask, causal)


class CrossAttention(Attention):
    """Queries from the target; keys and values from the encoded source, in one matrix."""

    def __init__(self, of: Sizes) -> None:
        super().__init__(of)
        self.q = glorot(of.width, of.width, bias=False)
        self.kv = glorot(of.width, 2 * of.width, bias=False)

    def read(self, memory: Tensor) -> tuple[Tensor, Tensor]:
        """(batch, length, width) -> k, v, each (batch, heads, length, width / heads)."""
        k, v = self.heads(self.kv(memory)).chunk(2, dim=1)
        return k, v

    def forward(self, x: Tensor, keys_values: tuple[Tensor, Tensor], mask: Tensor | None) -> Tensor:
        return self.mix(self.heads(self.q(x)), *keys_values, mask)


def feed_forward(of: Sizes) -> nn.Sequential:
    """W₂ dropout(relu(W₁ x + b₁)) + b₂."""
    first, second = (glorot(*sizes, bias_std=1e-6) for sizes in ((of.width, of.hidden), (of.hidden, of.width)))
    return nn.Sequential(first, nn.ReLU(), nn.Dropout(of.dropout), second)


class EncoderLayer(nn.Module):
    """x + attention(norm(x)), then x + feed-forward(norm(x))."""

    def __init__(self, of: Sizes) -> None:
        super().__init__()
        self.attention_norm, self.hidden_norm = (nn.LayerNorm(of.width, eps=1e-6) for _ in range(2))
        self.attention = SelfAttention(of)
        self.feed_forward = feed_forward(of)
        self.dropout = nn.Dropout(of.dropout)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        x = x + self.dropout(self.attention(self.attention_norm(x), mask))
        y: Tensor = x + self.dropout(self.feed_forward(self.hidden_norm(x)))
        return y


class DecoderLayer(nn.Module):
    """Self-attention, attention to the source, feed-forward; each as x + f(norm(x))."""

    def __init__(self, of: Sizes) -> None:
        super().__init__()
        self.self_norm, self.cross_norm, self.hidden_norm = (nn.LayerNorm(of.width, eps=1e-6) for _ in range(3))
        self.self_attention = SelfAttention(of)
        self.cross_attention = CrossAttention(of)
        self.feed_forward = feed_forward(of)
        self.dropout = nn.Dropout(of.dropout)

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

    def of(self, rows: Tensor) -> Memory:
        """That of some sentences of the batch."""

        def chosen(pairs: list[tuple[Tensor, Tensor]]) -> list[tuple[Tensor, Tensor]]:
            each = len(pairs[0][0]) // len(self.source_mask)  # beams
            at = (rows[:, None] * each + torch.arange(each, device=rows.device)).flatten()
            return [(k.index_select(0, at), v.index_select(0, at)) for k, v in pairs]

        return Memory(chosen(self.source), self.source_mask.index_select(0, rows), chosen(self.past))


class TranslationModel(nn.Module):
    """Source and target tokens in, logits of each target token out, given the source and the tokens before it."""

    def __init__(self, of: Sizes) -> None:
        super().__init__()
        self.width, self.max_length = of.width, of.max_length
        self.embedding = nn.Embedding(of.vocabulary, of.width)
        self.encoder = nn.ModuleList(EncoderLayer(of) for _ in range(of.depth))
        self.decoder = nn.ModuleList(DecoderLayer(of) for _ in range(of.depth))
        self.encoder_norm, self.decoder_norm = (nn.LayerNorm(of.width, eps=1e-6) for _ in range(2))
        self.dropout = nn.Dropout(of.dropout)

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

    def forward(self, sources: Tensor, targets: Tensor, *segments: Tensor) -> Tensor:
        """(batch, source length), (batch, target length) -> (batch, target length, vocabulary).

        segments: those of the sources and of the targets number the sentences packed in a row from 1, 0 is padding;
        without them a row is one sentence.
        """
        source_segments, target_segments = segments or (None, None)
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
        return [layer for layer in self.decoder if isinstance(layer, DecoderLayer)]

    def begin(self, sources: Tensor) -> Memory:
        """Read the sources (batch, length), one sentence a row, before any target token."""
        memory = self.encode(sources, None)
        read = [layer.cross_attention.read(memory) for layer in self.layers()]
        # what attention makes of a mask of yes and no at every token, made once
        mask = torch.zeros_like(sources, dtype=read[0][0].dtype).masked_fill(sources == PAD, -math.inf)
        return Memory(read, mask[:, None, None, :], [])

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


# --- search ------------------------------------------------------------------------------------------------------

NEVER = -1e7  # the log-probability of what is ruled out; finite, so that differences stay numbers


def length_penalty(num_tokens: int, alpha: float) -> float:
    """((5 + n) / 6)^α of a translation of n tokens, its end mark among them."""
    return float(((5 + num_tokens) / 6) ** alpha)


CHECKED_EVERY = 4  # tokens: asking which sentences have ended waits for the device


def greedy(model: TranslationModel, sources: Tensor, max_tokens: int) -> Tensor:
    """The likeliest token at each step: (batch, source length) -> (batch, max_tokens); PAD after EOS.

    Sentences that have ended leave the batch now and then, so the rest take less time.
    """
    memory = model.begin(sources)
    found = sources.new_full((len(sources), max_tokens), PAD)
    rows = torch.arange(len(sources), device=sources.device)  # of `found` that are still open
    token = sources.new_full((len(sources), 1), PAD)
    ended = torch.zeros_like(token, dtype=torch.bool)
    for length in range(max_tokens):
        logits, memory = model.step(token, memory)
        token = logits.argmax(-1).masked_fill(ended, PAD)
        found[rows, length] = token[:, 0]
        ended = ended | (token == EOS)
        if (length + 1) % CHECKED_EVERY == 0:
            going_on = (~ended[:, 0]).nonzero()[:, 0]
            if not len(going_on):
                break
            if len(going_on) < len(rows):
                rows, token, ended = rows[going_on], token[going_on], ended[going_on]
                memory = memory.of(going_on)
    return found


def beam_search(model: TranslationModel, sources: Tensor, max_tokens: int, num_beams: int, alpha: float) -> Tensor:
    """The best translation found, argmax Σ log p / ((5 + n) / 6)^α: (batch, source length) -> (batch, max_tokens).

    Each step extends `num_beams` open translations and keeps the best `num_beams` that have ended; a sentence is done
    when no open one can still beat those, and leaves the batch now and then. PAD after EOS; a sentence of which none
    has ended gives its likeliest open one. Source: mlcommons/algorithmic-efficiency v0.5,
    workloads/wmt/wmt_pytorch/decode.py (same rule).
    """
    batch, device = len(sources), sources.device
    memory = model.begin(sources)
    found = sources.new_full((batch, max_tokens), PAD)
    rows = torch.arange(batch, device=device)  # of `found` that are still open
    token = sources.new_full((batch, num_beams), PAD)
    parents: Tensor | None = None
    open_tokens = sources.new_full((batch, num_beams, max_tokens), PAD)
    ended_tokens = open_tokens.clone()
    open_scores = torch.full((batch, num_beams), NEVER, device=device)
    open_scores[:, 0] = 0.0  # all beams are the same at first: only one may go on
    ended_scores = torch.full((batch, num_beams), NEVER, device=device)
    for length in range(1, max_tokens + 1):
        logits, memory = model.step(token, memory, parents)
        scores = open_scores[:, :, None] + logits.float().log_softmax(-1)
        # of 2·beams at most beams end, so beams of them stay open
        best, chosen = scores.flatten(1).topk(2 * num_beams)
        origin = chosen.div(logits.shape[-1], rounding_mode="floor")
        last = chosen % logits.shape[-1]
        longer = _pick(open_tokens, origin)
        longer[:, :, length - 1] = last
        ends = last == EOS
        open_scores, kept = best.masked_fill(ends, NEVER).topk(num_beams)
        open_tokens = _pick(longer, kept)
        token, parents = last.gather(1, kept), origin.gather(1, kept)
        is_new = ends & (best > NEVER / 2)
        candidates = (best / length_penalty(length, alpha)).masked_fill(~is_new, NEVER)
        ended_scores, kept = torch.cat([ended_scores, candidates], 1).topk(num_beams)
        ended_tokens = _pick(torch.cat([ended_tokens, longer], 1), kept)
        if length % CHECKED_EVERY == 0 or length == max_tokens:
            none_ended = ended_scores[:, 0] <= NEVER / 2
            found[rows] = torch.where(none_ended[:, None], open_tokens[:, 0], ended_tokens[:, 0])
            bound = open_scores[:, 0] / length_penalty(max_tokens, alpha)
            going_on = (~(ended_scores[:, -1] > bound)).nonzero()[:, 0]
            if not len(going_on):
                break
            if len(going_on) < len(rows):
                state = (rows, token, parents, open_tokens, ended_tokens, open_scores, ended_scores)
                rows, token, parents, open_tokens, ended_tokens, open_scores, ended_scores = (
                    each[going_on] for each in state
                )
                memory = memory.of(going_on)
    return found


def _pick(sequences: Tensor, beams: Tensor) -> Tensor:
    """(batch, old, length), (batch, new) -> (batch, new, length)."""
    return sequences.gather(1, beams[:, :, None].expand(-1, -1, sequences.shape[2]))
