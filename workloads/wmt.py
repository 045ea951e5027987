"""German to English with an encoder-decoder transformer; `mini` translates software catalogues (docs/workloads/wmt.md).

Model, search and text files: translation_model.py, translation_search.py, translation_text.py.
"""

from __future__ import annotations

import json
import lzma
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from workloads import data
from workloads.algoperf import constants
from workloads.loading import load_batches
from workloads.protocol import WHOLE, Batch, Part, Summary, Sums, Workload
from workloads.translation_model import EOS, PAD, TranslationModel
from workloads.translation_search import beam_search, greedy
from workloads.translation_text import Pair, order, pack, padded, pairs, parallel, tokenizer

NGRAM_ORDERS = range(1, 5)
BLEU_SUMS = (
    *(f"matching_{n}_grams" for n in NGRAM_ORDERS),
    *(f"translated_{n}_grams" for n in NGRAM_ORDERS),
    "translated_words",
    "reference_words",
)


def bleu_statistics(translations: Sequence[str], references: Sequence[str]) -> list[int]:
    """What BLEU is computed from, in the order of BLEU_SUMS; it adds up over sentences. Rules: sacrebleu, 13a."""
    if not translations:
        return [0] * len(BLEU_SUMS)
    from sacrebleu.metrics.bleu import BLEU

    score = BLEU(tokenize="13a", force=True).corpus_score(translations, [references])
    return [*score.counts, *score.totals, score.sys_len, score.ref_len]


def bleu(sums: Mapping[str, float]) -> float:
    """BLEU, 0 … 100, from summed statistics, as sacrebleu.corpus_bleu has it. Source: Papineni et al. 2002.

    The m-th order in a row of which no n-gram matches counts as 1/2ᵐ of a match (``smooth_method="exp"``).
    """
    from sacrebleu.metrics.bleu import BLEU

    numbers = [round(sums[name]) for name in BLEU_SUMS]
    score = BLEU.compute_bleu(
        numbers[:4],
        numbers[4:8],
        sys_len=numbers[8],
        ref_len=numbers[9],
        smooth_method="exp",  # corpus_bleu's default; this function's own is none
    )
    return float(score.score)


def trimmed(tokens: Tensor) -> Tensor:
    """Without the columns that are padding in every row."""
    return tokens[:, : int((tokens != PAD).sum(1).max())]


def model_inputs(batch: Batch) -> list[Tensor]:
    """Sources and targets, with the segments of packed rows, else without needless padding."""
    sources, targets, *rest = batch
    return [sources, targets, *rest] if len(rest) == 2 else [trimmed(sources), trimmed(targets)]


@dataclass(frozen=True)
class Translation:
    """What both presets share; metric: "loss" (cross-entropy, nats a target token) or "bleu".

    A training batch is (sources, targets), a sentence a row, or (sources, targets, source segments, target
    segments), several packed in a row. An evaluation batch is (sources, targets, translated), the last one bool:
    which rows count for BLEU. Tokens and segments are int64, (rows, length).
    """

    step_budget: int
    batch_size: int
    optimizer: Mapping[str, Any]
    schedule: Mapping[str, Any]
    step_seconds: float
    eval_seconds: float
    metric: str
    vocabulary: int
    width: int
    num_heads: int
    hidden: int
    depth: int
    max_length: int
    dropout: float
    attention_dropout: float
    label_smoothing: float
    num_beams: int  # 1: greedy
    eval_batch_size: int
    length_penalty: float = 0.6
    higher_is_better: bool = field(init=False)

    def __post_init__(self) -> None:
        if self.metric not in ("loss", "bleu"):
            raise ValueError(f"metric is {self.metric!r}; it is loss or bleu")
        object.__setattr__(self, "higher_is_better", self.metric == "bleu")

    def detokenize(self, tokens: list[int]) -> str:
        """The sentence that the tokens spell; without padding and end mark."""
        raise NotImplementedError

    def model(self) -> nn.Module:
        return TranslationModel(
            self.vocabulary,
            self.width,
            self.num_heads,
            self.hidden,
            self.depth,
            self.dropout,
            self.attention_dropout,
            self.max_length,
        )

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        inputs = model_inputs(batch)
        logits = model(*inputs)
        return F.cross_entropy(
            logits.flatten(0, 1), inputs[1].flatten(), ignore_index=PAD, label_smoothing=self.label_smoothing
        )

    def loss_weight(self, batch: Batch) -> Tensor:
        """The number of target tokens."""
        targets: Tensor = batch[1]
        return (targets != PAD).sum()

    def translate(self, model: nn.Module, sources: Tensor) -> Tensor:
        """(sentences, length) -> (sentences, at most max_length) tokens."""
        assert isinstance(model, TranslationModel)
        if self.num_beams == 1:
            return greedy(model, sources, self.max_length)
        return beam_search(model, sources, self.max_length, self.num_beams, self.length_penalty)

    def sentences(self, tokens: Tensor) -> list[str]:
        """Text of each row, up to its end mark."""
        rows = tokens.tolist()
        return [self.detokenize(row[: row.index(EOS)] if EOS in row else row) for row in rows]

    def eval_step(self, model: nn.Module, batch: Batch) -> Sums:
        inputs = model_inputs(batch)
        targets = inputs[1]
        losses = F.cross_entropy(
            model(*inputs).flatten(0, 1).float(), targets.flatten(), ignore_index=PAD, reduction="none"
        )
        statistics = [0] * len(BLEU_SUMS)
        if len(batch) == 3 and bool(batch[2].any()):
            sources, references = (side[batch[2]] for side in inputs)
            translations = self.translate(model, trimmed(sources))
            statistics = bleu_statistics(self.sentences(translations), self.sentences(references))
        return {
            "loss": losses.double().sum(),
            "tokens": (targets != PAD).sum(),
            "examples": torch.tensor(len(targets), device=targets.device),
            **dict(zip(BLEU_SUMS, torch.tensor(statistics, device=targets.device), strict=True)),
        }

    def summarize(self, sums: Mapping[str, float]) -> Summary:
        loss, score = float(sums["loss"] / sums["tokens"]), bleu(sums)
        metric = score if self.metric == "bleu" else loss
        return Summary(loss, metric, int(sums["examples"]), {"bleu": score})


@cache
def catalogue(split: str) -> list[Pair]:
    """The tokens of all pairs of a split of the software catalogues."""
    stream = np.frombuffer(lzma.decompress(data.path(f"wmt_{split}.u16.xz").read_bytes()), dtype="<u2")
    sides = [side.tolist() for side in np.split(stream, np.flatnonzero(stream == EOS) + 1)[:-1]]
    return list(zip(sides[::2], sides[1::2], strict=True))


@cache
def catalogue_arrays(split: str, length: int) -> tuple[Any, Any]:
    """All sources and targets of a split, each (pairs, length) int64."""
    sources, targets = zip(*catalogue(split), strict=True)
    return padded(sources, length), padded(targets, length)


@cache
def catalogue_pieces() -> list[str]:
    """What each token spells; ▁ stands for a space."""
    pieces: list[str] = json.loads(data.path("wmt_pieces.json").read_text(encoding="utf-8"))
    return pieces


@cache
def validation_batches(length: int, num_pairs: int, num_translated: int, batch_size: int) -> tuple[Batch, ...]:
    """The first validation pairs: those to be translated, then the others by length, so that batches are narrow."""
    first = catalogue("validation")[:num_pairs]
    others = sorted(first[num_translated:], key=lambda pair: len(pair[0]) + len(pair[1]))
    sources, targets = (padded(side, length) for side in zip(*first[:num_translated], *others, strict=True))
    translated = np.arange(len(sources)) < num_translated
    with torch.inference_mode(False):  # cached: later callers may want gradients
        split = [torch.split(torch.from_numpy(column), batch_size) for column in (sources, targets, translated)]
    return tuple(zip(*split, strict=True))


@dataclass(frozen=True)
class Catalogues(Translation):
    """Sentences of German software translated to English, drawn at random."""

    num_eval_pairs: int = 288
    num_translated: int = 64

    def detokenize(self, tokens: list[int]) -> str:
        pieces = catalogue_pieces()
        return "".join(pieces[token] for token in tokens if token != PAD).replace("▁", " ").strip()

    def batches(self, seed: int, first_step: int, part: Part = WHOLE) -> Iterator[Batch]:
        sources, targets = catalogue_arrays("train", self.max_length)
        step = first_step
        while True:
            chosen = np.random.default_rng([seed, step]).integers(len(sources), size=self.batch_size)
            chosen = np.array_split(chosen, part.count)[part.index]
            yield torch.from_numpy(sources[chosen]), torch.from_numpy(targets[chosen])
            step += 1

    def eval_batches(self, split: str, part: Part = WHOLE) -> Iterable[Batch]:
        if split != "validation":
            raise ValueError(f"the mini of wmt has no split {split!r}; it has validation")
        batches = validation_batches(self.max_length, self.num_eval_pairs, self.num_translated, self.eval_batch_size)
        return batches[part.index :: part.count]


SPLITS = {"train": "train", "validation": "newstest2013", "test": "newstest2014"}  # as AlgoPerf
HOLDS = "wmt_sentencepiece_model and train, newstest2013, newstest2014, each as .de and .en"


@cache
def news_pairs(folder: Path, split: str, model_path: Path, vocabulary: int, longest: int) -> list[Pair]:
    """All pairs of a held-out split, by source length, so that rows of a batch are alike."""
    sides = parallel(folder, SPLITS[split])
    model = tokenizer(model_path, vocabulary)
    return sorted(pairs(sides, range(len(sides[0].starts) - 1), model, longest), key=lambda pair: len(pair[0]))


@dataclass(frozen=True)
class News(Translation):
    """AlgoPerf's WMT17 German to English, `batch_size` rows of packed sentences a step."""

    rows_together: int = 8  # they are packed from one run of sentences
    sentences_together: int = 80  # at least what such rows hold; the rest of the run waits for another epoch
    num_workers: int = 4
    splits = ("validation", "test")

    def folder(self) -> Path:
        return data.dataset("wmt", holds=HOLDS)

    def tokenizer(self) -> Any:
        return tokenizer(self.folder() / "wmt_sentencepiece_model", self.vocabulary)

    def check_data(self) -> None:
        """Raises: workloads.data.BadData. Reads the text files once, to count their lines."""
        self.tokenizer()
        for name in SPLITS.values():
            parallel(self.folder(), name)

    def detokenize(self, tokens: list[int]) -> str:
        return str(self.tokenizer().decode([token for token in tokens if token != PAD]))

    def rows(self, seed: int, number: int) -> list[Any]:
        """Packing `number`: rows_together rows of one run of an epoch's sentences."""
        sides = parallel(self.folder(), SPLITS["train"])
        count = len(sides[0].starts) - 1
        runs = max(1, count // self.sentences_together)
        epoch, run = divmod(number, runs)
        numbers = order(count, seed, epoch)[run * self.sentences_together :][: self.sentences_together]
        return pack(
            pairs(sides, numbers.tolist(), self.tokenizer(), self.max_length), self.rows_together, self.max_length
        )

    def batch(self, step: int, seed: int, part: Part) -> Batch:
        """This part of batch `step`, rows in a run, so that parts share few packings."""
        mine = np.array_split(np.arange(self.batch_size), part.count)[part.index]
        packings = -(-self.batch_size // self.rows_together)  # of a batch
        needed = range(int(mine[0]) // self.rows_together, int(mine[-1]) // self.rows_together + 1)
        columns = zip(*(self.rows(seed, (step - 1) * packings + i) for i in needed), strict=True)
        first = int(mine[0]) - needed[0] * self.rows_together
        return tuple(torch.from_numpy(np.concatenate(column)[first : first + len(mine)].copy()) for column in columns)

    def batches(self, seed: int, first_step: int, part: Part = WHOLE) -> Iterator[Batch]:
        make = partial(self.batch, seed=seed, part=part)
        return iter(load_batches(make, first_step, num_workers=self.num_workers))

    def eval_batches(self, split: str, part: Part = WHOLE) -> Iterable[Batch]:
        if split not in self.splits:
            raise ValueError(f"wmt has no evaluation split {split!r}; it has validation and test")
        return self._eval_batches(split, part)

    def _eval_batches(self, split: str, part: Part) -> Iterator[Batch]:
        model_path = self.folder() / "wmt_sentencepiece_model"
        held_out = news_pairs(self.folder(), split, model_path, self.vocabulary, self.max_length)
        starts = range(0, len(held_out), self.eval_batch_size)
        for start in starts[part.index :: part.count]:
            sides = zip(*held_out[start : start + self.eval_batch_size], strict=True)
            sources, targets = (torch.from_numpy(padded(side, max(map(len, side)))) for side in sides)
            yield sources, targets, torch.ones(len(sources), dtype=torch.bool)


_FULL = constants()["wmt"]

PRESETS: dict[str, Workload] = {
    "mini": Catalogues(
        step_budget=5000,
        batch_size=8,
        optimizer={"name": "nadamw", "lr": 0.005, "beta1": 0.9, "beta2": 0.99, "eps": 1e-8, "weight_decay": 0.1},
        schedule={"shape": "cosine", "length": 1.0, "warmup": 0.05, "final_lr": 0.0},
        step_seconds=0.0097,
        eval_seconds=0.1,
        metric="loss",
        vocabulary=1024,
        width=64,
        num_heads=2,
        hidden=128,
        depth=2,
        max_length=24,
        dropout=0.0,
        attention_dropout=0.0,
        label_smoothing=0.0,
        num_beams=1,
        eval_batch_size=64,
    ),
    "full": News(
        step_budget=_FULL.step_budget,
        batch_size=_FULL.batch_size,
        optimizer=_FULL.nadamw.optimizer,
        schedule=_FULL.nadamw.schedule,
        step_seconds=_FULL.step_seconds,
        eval_seconds=480.0,  # a guess: beam search over 3,000 sentences, a minute on 8 GPUs
        metric=_FULL.metric,
        vocabulary=32_000,
        width=1024,
        num_heads=16,
        hidden=1024,
        depth=6,
        max_length=256,
        dropout=_FULL.nadamw.dropout,
        attention_dropout=0.1,  # AlgoPerf's own value where a search space names none
        label_smoothing=_FULL.nadamw.label_smoothing,
        num_beams=4,
        eval_batch_size=128,
    ),
}
