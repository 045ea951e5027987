"""Find a translation: greedily, or by beam search with the length penalty of Wu et al. 2016, eq. 14."""

from __future__ import annotations

import torch
from torch import Tensor

from workloads.translation_model import EOS, PAD, TranslationModel

NEVER = -1e7  # the log-probability of what is ruled out; finite, so that differences stay numbers


def length_penalty(num_tokens: int, alpha: float) -> float:
    """((5 + n) / 6)^α of a translation of n tokens, its end mark among them."""
    return float(((5 + num_tokens) / 6) ** alpha)


def greedy(model: TranslationModel, sources: Tensor, max_tokens: int) -> Tensor:
    """The likeliest token at each step: (batch, source length) -> (batch, at most max_tokens); PAD after EOS."""
    memory = model.begin(sources)
    token = sources.new_full((len(sources), 1), PAD)
    ended = torch.zeros_like(token, dtype=torch.bool)
    found = []
    for _ in range(max_tokens):
        logits, memory = model.step(token, memory)
        token = logits.argmax(-1).masked_fill(ended, PAD)
        found.append(token)
        ended = ended | (token == EOS)
        if bool(ended.all()):
            break
    return torch.cat(found, 1)


def beam_search(model: TranslationModel, sources: Tensor, max_tokens: int, num_beams: int, alpha: float) -> Tensor:
    """The best translation found, argmax Σ log p / ((5 + n) / 6)^α: (batch, source length) -> (batch, max_tokens).

    Each step extends `num_beams` open translations and keeps the best `num_beams` that have ended; it stops when
    no open one can still beat those. PAD after EOS; a sentence of which none has ended gives its likeliest open
    one. Source: mlcommons/algorithmic-efficiency v0.5, workloads/wmt/wmt_pytorch/decode.py (same rule).
    """
    batch, device = len(sources), sources.device
    memory = model.begin(sources)
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
        bound = open_scores[:, 0] / length_penalty(max_tokens, alpha)
        if bool((ended_scores[:, -1] > bound).all()):
            break
    none_ended = ended_scores[:, 0] <= NEVER / 2
    return torch.where(none_ended[:, None], open_tokens[:, 0], ended_tokens[:, 0])


def _pick(sequences: Tensor, beams: Tensor) -> Tensor:
    """(batch, old, length), (batch, new) -> (batch, new, length)."""
    return sequences.gather(1, beams[:, :, None].expand(-1, -1, sequences.shape[2]))
