"""German to English with an encoder-decoder transformer; `mini` translates software catalogues (docs/workloads/wmt.md).

Model and search: translation_model.py.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from workloads import data
from workloads.algoperf import constants
from workloads.data.reading import in_batches, index, padded, unpacked
from workloads.data.reading import tokenizer as sentencepieces
from workloads.layers import cached_tensors
from workloads.protocol import Batch, Part, Summary, Sums, Workload
from workloads.task import FileTask, Task, epoch_order, mini
from workloads.translation_model import EOS, PAD, Sizes, TranslationModel, beam_search, greedy

Pair = tuple[list[int], list[int]]  # tokens of a sentence and of its translation, each with its end mark
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
    # exp is corpus_bleu's default; this function's own is none
    return float(BLEU.compute_bleu(numbers[:4], numbers[4:8], *numbers[8:], smooth_method="exp").score)


def trimmed(tokens: Tensor) -> Tensor:
    """Without the columns that are padding in every row; done on the host, since it reads them."""
    return tokens[:, : int((tokens != PAD).sum(1).max())]


@dataclass(frozen=True, kw_only=True)
class Translation(Task, Sizes):
    """What both presets share; metric: "loss" (cross-entropy, nats a target token) or "bleu".

    A training batch is (sources, targets), a sentence a row, or (sources, targets, source segments, target
    segments), several packed in a row. An evaluation batch is (sources, targets, translated), the last one bool:
    which rows count for BLEU. Tokens and segments are int64, (rows, length).
    """

    METRICS: ClassVar[Mapping[str, bool]] = {"loss": False, "bleu": True}

    label_smoothing: float = 0.0
    num_beams: int = 1  # 1: greedy
    length_penalty: float = 0.6
    eval_batch_size: int = 64

    def detokenize(self, tokens: list[int]) -> str:
        """The sentence that the tokens spell; without padding and end mark."""
        raise NotImplementedError

    def model(self) -> nn.Module:
        return TranslationModel(self)

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        logits, targets = model(*batch).flatten(0, 1), batch[1].flatten()
        return F.cross_entropy(logits, targets, ignore_index=PAD, label_smoothing=self.label_smoothing)

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
        sources, targets, translated = batch
        logits = model(sources, targets).flatten(0, 1).float()
        losses = F.cross_entropy(logits, targets.flatten(), ignore_index=PAD, reduction="none")
        statistics = [0] * len(BLEU_SUMS)
        if bool(translated.any()):
            sources, references = sources[translated], targets[translated]
            translations = self.translate(model, trimmed(sources))
            statistics = bleu_statistics(self.sentences(translations), self.sentences(references))
        return {
            "loss": losses.double().sum(),
            "tokens": (targets != PAD).sum(),
            "examples": torch.tensor(len(targets)),
            **dict(zip(BLEU_SUMS, torch.tensor(statistics), strict=True)),
        }

    def summarize(self, sums: Mapping[str, float]) -> Summary:
        return self.summary(float(sums["loss"] / sums["tokens"]), sums["examples"], bleu=bleu(sums))


# --- mini: software catalogues -----------------------------------------------------------------------------------


@cache
def catalogue(split: str) -> list[Pair]:
    """The tokens of all pairs of a split of the software catalogues."""
    stream = np.frombuffer(unpacked(f"wmt_{split}.u16.xz"), dtype="<u2")
    sides = [side.tolist() for side in np.split(stream, np.flatnonzero(stream == EOS) + 1)[:-1]]
    return list(zip(sides[::2], sides[1::2], strict=True))


@cache
def training_arrays(length: int) -> tuple[NDArray[np.int64], ...]:
    """All training sources and targets, each (pairs, length) int64."""
    return tuple(padded(side, length) for side in zip(*catalogue("train"), strict=True))


@cached_tensors
def validation_batches(length: int, num_pairs: int, num_translated: int, batch_size: int) -> tuple[Batch, ...]:
    """The first validation pairs: those to be translated, then the others by length, so that batches are narrow."""
    first = catalogue("validation")[:num_pairs]
    others = sorted(first[num_translated:], key=lambda pair: len(pair[0]) + len(pair[1]))
    sides = [padded(side, length) for side in zip(*first[:num_translated], *others, strict=True)]
    batches = in_batches([*sides, np.arange(len(sides[0])) < num_translated], batch_size)
    return tuple((trimmed(sources), trimmed(targets), translated) for sources, targets, translated in batches)


@dataclass(frozen=True, kw_only=True)
class Catalogues(Translation):
    """Sentences of German software translated to English, drawn at random."""

    num_eval_pairs: int = 288
    num_translated: int = 64

    def detokenize(self, tokens: list[int]) -> str:
        pieces = index("wmt_pieces.json")  # ▁ stands for a space
        return "".join(pieces[token] for token in tokens if token != PAD).replace("▁", " ").strip()

    def source(self, split: str) -> Any:
        if split == "train":
            return training_arrays(self.max_length)
        return validation_batches(self.max_length, self.num_eval_pairs, self.num_translated, self.eval_batch_size)

    def train_batch(self, source: Any, seed: int, part: Part, step: int) -> Batch:
        chosen = np.random.default_rng([seed, step]).integers(len(source[0]), size=self.batch_size)
        chosen = np.array_split(chosen, part.count)[part.index]
        return tuple(trimmed(torch.from_numpy(side[chosen])) for side in source)


# --- full: WMT17's news ------------------------------------------------------------------------------------------

CHUNK = 1 << 26  # bytes looked through at a time


class Text(NamedTuple):
    """A text file by line: line i is content[starts[i] : starts[i + 1] - 1]."""

    path: Path
    content: NDArray[np.uint8]
    starts: NDArray[np.int64]

    def line(self, number: int) -> str:
        """Line `number`, from 0, without its end. Raises: BadData where it is no UTF-8."""
        line = self.content[self.starts[number] : self.starts[number + 1] - 1].tobytes()
        try:
            return line.decode("utf-8").strip()
        except UnicodeDecodeError as error:
            raise data.BadData(f"{self.path}: line {number + 1} is not UTF-8: {error}") from error


@cache
def text(path: Path) -> Text:
    """The file, mapped into memory, and where its lines start. Raises: BadData."""
    if not path.is_file() or not path.stat().st_size:
        raise data.BadData(f"{path}: missing or empty; it should hold one sentence a line, in UTF-8")
    content: NDArray[np.uint8] = np.memmap(path, dtype=np.uint8, mode="r")
    newline, firsts = ord("\n"), range(0, len(content), CHUNK)
    starts = [np.flatnonzero(content[first : first + CHUNK] == newline) + first + 1 for first in firsts]
    if content[-1] != newline:
        starts.append(np.array([len(content) + 1]))
    return Text(path, content, np.concatenate([[0], *starts]).astype(np.int64))


def parallel(folder: Path, name: str) -> tuple[Text, Text]:
    """The German and the English file of a split. Raises: BadData, also where they differ in length."""
    german, english = (text(folder / f"{name}.{language}") for language in ("de", "en"))
    counts = [len(side.starts) - 1 for side in (german, english)]
    if counts[0] != counts[1]:
        differ = f"it has {counts[1]:,} lines where {german.path.name} has {counts[0]:,}"
        raise data.BadData(f"{english.path}: {differ}; line i of one should translate line i of the other")
    return german, english


def tokenizer(path: Path, vocabulary: int) -> Any:
    """The sentencepiece model. Raises: BadData."""
    model = sentencepieces(path, vocabulary)
    if model.eos_id() != EOS:
        raise data.BadData(f"{path}: </s> is piece {model.eos_id()}; it should be piece {EOS}")
    return model


def pairs(sides: tuple[Text, Text], numbers: Iterable[int], model: Any, longest: int) -> Iterable[Pair]:
    """The sentences of those numbers as tokens; unknown pieces, empty and too long sentences are left out."""
    for number in numbers:
        lines = (model.encode(side.line(int(number))) for side in sides)
        german, english = ([token for token in line if token != PAD] + [EOS] for line in lines)
        if min(len(german), len(english)) > 1 and max(len(german), len(english)) <= longest:
            yield german, english


def pack(sentences: Iterable[Pair], num_rows: int, length: int) -> list[NDArray[np.int64]]:
    """Source tokens, target tokens, source segments, target segments: each (num_rows, length) int64.

    Sentences follow each other in a row while both sides fit, in the given order; the first that does not begins
    the next row. Segments number the sentences of a row from 1; the rest is 0. Those after the last row are not
    asked for.
    """
    packed = np.zeros((4, num_rows, length), np.int64)
    row, segment, ends = 0, 0, [0, 0]
    for pair in sentences:
        if any(end + len(side) > length for end, side in zip(ends, pair, strict=True)):
            row, segment, ends = row + 1, 0, [0, 0]
            if row == num_rows:
                break
        segment += 1
        for i, side in enumerate(pair):
            place = slice(ends[i], ends[i] + len(side))
            packed[i, row, place], packed[2 + i, row, place] = side, segment
            ends[i] = place.stop
    return list(packed)


SPLITS = {"train": "train", "validation": "newstest2013", "test": "newstest2014"}  # as AlgoPerf
MODEL = "wmt_sentencepiece_model"
HOLDS = "wmt_sentencepiece_model and train, newstest2013, newstest2014, each as .de and .en"


@cache
def news_pairs(folder: Path, split: str, vocabulary: int, longest: int) -> list[Pair]:
    """All pairs of a held-out split, by source length, so that rows of a batch are alike."""
    sides, model = parallel(folder, SPLITS[split]), tokenizer(folder / MODEL, vocabulary)
    return sorted(pairs(sides, range(len(sides[0].starts) - 1), model, longest), key=lambda pair: len(pair[0]))


@dataclass(frozen=True, kw_only=True)
class News(Translation, FileTask):
    """AlgoPerf's WMT17 German to English, `batch_size` rows of packed sentences a step."""

    rows_together: int = 8  # they are packed from one run of sentences
    sentences_together: int = 80  # at least what such rows hold; the rest of the run waits for another epoch
    num_workers: int = 4
    splits = ("validation", "test")
    evaluates_here = True

    def folder(self) -> Path:
        return data.dataset("wmt", holds=HOLDS)

    def tokenizer(self) -> Any:
        return tokenizer(self.folder() / MODEL, self.vocabulary)

    def check_data(self) -> None:
        """Raises: BadData. Reads the text files once, to count their lines."""
        self.tokenizer()
        for name in SPLITS.values():
            parallel(self.folder(), name)

    def detokenize(self, tokens: list[int]) -> str:
        return str(self.tokenizer().decode([token for token in tokens if token != PAD]))

    def source(self, split: str) -> Any:
        """Pairs of a held-out split; the training text is mapped into memory by each worker."""
        return None if split == "train" else news_pairs(self.folder(), split, self.vocabulary, self.max_length)

    def rows(self, seed: int, number: int) -> list[Any]:
        """Packing `number`: rows_together rows of one run of an epoch's sentences."""
        sides = parallel(self.folder(), SPLITS["train"])
        count = len(sides[0].starts) - 1
        epoch, run = divmod(number, max(1, count // self.sentences_together))
        numbers = epoch_order((seed, epoch), count)[run * self.sentences_together :][: self.sentences_together]
        sentences = pairs(sides, numbers.tolist(), self.tokenizer(), self.max_length)
        return pack(sentences, self.rows_together, self.max_length)

    def train_batch(self, source: Any, seed: int, part: Part, step: int) -> Batch:
        """Its rows in a run, so that parts share few packings."""
        mine = np.array_split(np.arange(self.batch_size), part.count)[part.index]
        packings = -(-self.batch_size // self.rows_together)  # of a batch
        needed = range(int(mine[0]) // self.rows_together, int(mine[-1]) // self.rows_together + 1)
        columns = zip(*(self.rows(seed, (step - 1) * packings + i) for i in needed), strict=True)
        first = int(mine[0]) - needed[0] * self.rows_together
        return tuple(torch.from_numpy(np.concatenate(column)[first : first + len(mine)].copy()) for column in columns)

    def eval_batch(self, source: Any, number: int) -> Batch:
        sides = zip(*(source[i] for i in self.numbers(source, number)), strict=True)
        sources, targets = (torch.from_numpy(padded(side)) for side in sides)
        return sources, targets, torch.ones(len(sources), dtype=torch.bool)


PRESETS: dict[str, Workload] = {
    "mini": Catalogues(**mini(lr=0.005, step_budget=5000, batch_size=8, step_seconds=0.0097, eval_seconds=0.1)),
    "full": News(
        **constants()["wmt"].preset(3000, "dropout", "label_smoothing")
        | {"eval_seconds": 480.0},  # a guess: beam search, a minute on 8 GPUs
        vocabulary=32_000,
        width=1024,
        num_heads=16,
        hidden=1024,
        depth=6,
        max_length=256,
        attention_dropout=0.1,  # AlgoPerf's own value where a search space names none
        num_beams=4,
        eval_batch_size=128,
    ),
}
