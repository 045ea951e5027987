"""BLEU from summed statistics, against sacrebleu's corpus score and its formula."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pytest

from workloads.protocol import load
from workloads.wmt import BLEU_SUMS, bleu, bleu_statistics, catalogue

MINI: Any = load("wmt")


def test_summed_statistics_give_sacrebleus_corpus_score() -> None:
    import sacrebleu

    references = [MINI.detokenize(pair[1][:-1]) for pair in catalogue("validation")[:60]]
    random = np.random.default_rng(0)
    cut = [sentence.split() for sentence in references]
    translations = [" ".join(words[: 1 + int(random.integers(len(words)))]) for words in cut]
    translations[7] = ""
    translations[9] = "something else altogether"
    expected = sacrebleu.corpus_bleu(translations, [references]).score
    sums = np.zeros(len(BLEU_SUMS))
    for start, stop in itertools.pairwise((0, 1, 8, 8, 60)):
        sums += bleu_statistics(translations[start:stop], references[start:stop])
    assert 5 < expected < 95
    assert bleu(dict(zip(BLEU_SUMS, sums.tolist(), strict=True))) == pytest.approx(expected, abs=1e-9)
    same = dict(zip(BLEU_SUMS, bleu_statistics(references, references), strict=True))
    assert bleu(same) == pytest.approx(100)
    assert bleu(dict.fromkeys(BLEU_SUMS, 0)) == 0


EARLY = {  # translations of "the quick brown fox jumps over it", as of a model that has just begun
    "no four words in a row": ["the quick brown cat jumps at it"],
    "no three": ["the quick cat jumps over a cat"],
    "no two": ["fox the a jumps a it a"],
    "none at all": ["a a a a a a a"],
    "shorter than four words": ["the quick"],
    "empty": [""],
    "one good, one not": ["the quick brown fox jumps over it", "b b b b"],
}


@pytest.mark.parametrize("translations", EARLY.values(), ids=EARLY.keys())
def test_early_scores_are_smoothed_as_sacrebleus(translations: list[str]) -> None:
    import sacrebleu

    references = ["the quick brown fox jumps over it", "another one of them"][: len(translations)]
    expected = sacrebleu.corpus_bleu(translations, [references]).score
    sums = dict(zip(BLEU_SUMS, bleu_statistics(translations, references), strict=True))
    assert bleu(sums) == pytest.approx(expected, rel=1e-12)


def test_smoothing_against_its_formula() -> None:
    # 5 of 7 words, 2 of 6 pairs, 0 of 5 triples and 0 of 4 quadruples: those count 1/2 and 1/4.
    sums = dict(zip(BLEU_SUMS, (5, 2, 0, 0, 7, 6, 5, 4, 7, 7), strict=True))
    precisions = [5 / 7, 2 / 6, 1 / 2 / 5, 1 / 4 / 4]
    assert bleu(sums) == pytest.approx(100 * math.prod(precisions) ** (1 / 4))
