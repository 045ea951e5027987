"""Translation: masks, packing, search, BLEU, and the full preset on a tiny corpus in its real format."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from full_data import small
from torch import Tensor

from workloads import translation_model
from workloads.data import BadData
from workloads.data.reading import tokenizer
from workloads.protocol import Part
from workloads.translation_model import EOS, PAD, Sizes, TranslationModel, beam_search, greedy, length_penalty
from workloads.wmt import MODEL, PRESETS, Catalogues, News, Pair, bleu_statistics, catalogue, pack, text

FAMILY = "wmt"
MINI, FULL = PRESETS["mini"], PRESETS["full"]
assert isinstance(MINI, Catalogues)
assert isinstance(FULL, News)


def small_model(vocabulary: int = 12, seed: int = 0, spread: float = 3.0) -> TranslationModel:
    """Untrained, its logits scaled so that choices differ clearly; max_length 16."""
    torch.manual_seed(seed)
    model = TranslationModel(Sizes(vocabulary=vocabulary, width=16, hidden=24, max_length=16)).eval()
    with torch.no_grad():
        model.decoder_norm.weight.mul_(spread)
    return model


@pytest.fixture(scope="module")
def copier() -> TranslationModel:
    """A model half taught to repeat its source, so that its translations are of many lengths."""
    torch.set_num_threads(1)
    model = small_model(spread=1.0).train()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    random = np.random.default_rng(0)
    for _ in range(90):  # at 150 it is so sure of itself, on some processors, that beams find nothing else
        tokens = rows(*([*random.integers(3, 12, random.integers(1, 7)).tolist(), EOS] for _ in range(16)))
        optimizer.zero_grad()
        logits = model(tokens, tokens).flatten(0, 1)
        torch.nn.functional.cross_entropy(logits, tokens.flatten(), ignore_index=PAD).backward()
        optimizer.step()
    return model.eval().requires_grad_(False)


def rows(*sentences: list[int]) -> Tensor:
    width = max(map(len, sentences))
    return torch.tensor([sentence + [PAD] * (width - len(sentence)) for sentence in sentences])


# --- the model ---


def test_positions_are_the_closed_form() -> None:
    table = translation_model.sinusoids(20, 8, torch.device("cpu"))
    for place, i in itertools.product(range(20), range(4)):
        angle = place * 10000 ** (-i / 3)  # 2i / (8 − 2)
        assert table[place, i].item() == pytest.approx(math.sin(angle), abs=1e-5)
        assert table[place, 4 + i].item() == pytest.approx(math.cos(angle), abs=1e-5)


def test_a_later_target_changes_no_earlier_logit_and_the_source_changes_all() -> None:
    model = small_model()
    sources, targets = rows([3, 4, 5, EOS]), rows([6, 7, 8, 9, EOS])
    changed = targets.clone()
    changed[0, 2] = 3
    with torch.inference_mode():
        before, after = model(sources, targets), model(sources, changed)
        elsewhere = model(rows([3, 4, 9, EOS]), targets)
    assert torch.equal(before[:, :3], after[:, :3])
    assert (before[:, 3:] - after[:, 3:]).abs().amax(-1).min() > 1e-3
    assert (before - elsewhere).abs().amax(-1).min() > 1e-4


def test_padding_changes_nothing() -> None:
    model = small_model()
    short, long = ([3, 4, EOS], [5, 6, EOS]), ([3, 9, 8, 7, 4, EOS], [4, 4, 5, 6, 7, 7, EOS])
    with torch.inference_mode():
        both = model(rows(short[0], long[0]), rows(short[1], long[1]))
        alone = model(rows(short[0]), rows(short[1]))
    torch.testing.assert_close(both[:1, :3], alone, atol=1e-5, rtol=1e-5)


def test_packing_keeps_sentences_apart() -> None:
    """A packed sentence has the logits and the gradient that it has alone."""
    model = small_model()
    pairs: list[Pair] = [([3, 4, EOS], [5, 6, 7, EOS]), ([8, EOS], [9, EOS]), ([5, 5, 5, 3, EOS], [4, EOS])]
    sources, targets, *segments = (torch.from_numpy(array) for array in pack(pairs, 1, 16))
    packed = model(sources, targets, *segments)
    start = 0
    for source, target in pairs:
        alone = model(rows(source), rows(target))
        torch.testing.assert_close(packed[:, start : start + len(target)], alone, atol=1e-5, rtol=1e-5)
        start += len(target)
    assert torch.isfinite(packed).all()  # padding too
    packed.sum().backward()
    assert all(torch.isfinite(parameter.grad).all() for parameter in model.parameters())  # type: ignore[arg-type]


def test_step_by_step_is_the_same_as_all_at_once() -> None:
    model = small_model()
    sources = rows([3, 4, 5, EOS], [6, EOS])
    targets = torch.tensor([[5, 6, 7, 8], [9, 10, 11, 3]])
    with torch.inference_mode():
        at_once, memory = model(sources, targets), model.begin(sources)
        for i, token in enumerate(torch.nn.functional.pad(targets, (1, 0))[:, :-1].unbind(1)):
            logits, memory = model.step(token[:, None], memory)
            torch.testing.assert_close(logits[:, 0], at_once[:, i], atol=1e-5, rtol=1e-5)


# --- search ---


def log_probability(model: TranslationModel, source: list[int], target: list[int]) -> float:
    logits = model(rows(source), torch.tensor([target]))[0].log_softmax(-1)
    return float(logits[torch.arange(len(target)), torch.tensor(target)].sum())


def best_of_all(model: TranslationModel, source: list[int], vocabulary: int, longest: int, alpha: float) -> list[int]:
    """Every sentence of at most `longest` tokens, scored whole."""
    others = [token for token in range(vocabulary) if token != EOS]
    sentences = [[*tokens, EOS] for n in range(longest) for tokens in itertools.product(others, repeat=n)]
    return max(sentences, key=lambda s: log_probability(model, source, s) / ((5 + len(s)) / 6) ** alpha)


def naive_beam_search(
    model: TranslationModel, source: list[int], longest: int, num_beams: int, alpha: float
) -> list[int]:
    """No cache, no batch, no early stop."""
    open_ones: list[tuple[float, list[int]]] = [(0.0, [])]
    ended: list[tuple[float, list[int]]] = []
    for length in range(1, longest + 1):
        candidates = []
        for score, tokens in open_ones:
            logits = model(rows(source), torch.tensor([[*tokens, PAD]]))[0, -1].log_softmax(-1)
            candidates += [(score + float(value), [*tokens, i]) for i, value in enumerate(logits)]
        candidates = sorted(candidates, reverse=True)[: 2 * num_beams]
        open_ones = [one for one in candidates if one[1][-1] != EOS][:num_beams]
        ended += [(score / ((5 + length) / 6) ** alpha, one) for score, one in candidates if one[-1] == EOS]
    return max(ended)[1] if ended else open_ones[0][1]


def up_to_end(tokens: Tensor) -> list[int]:
    row = tokens.tolist()
    return row[: row.index(EOS) + 1] if EOS in row else row


@pytest.mark.parametrize("alpha", [0.0, 0.6, 3.0])
def test_a_wide_beam_search_finds_the_best_of_all(alpha: float) -> None:
    sources = [[3, EOS], [1, 1, 3, 3, EOS], [3, 1, EOS]]
    model = small_model(vocabulary=4)
    with torch.inference_mode():
        found = beam_search(model, rows(*sources), 4, num_beams=27, alpha=alpha)
        for row, source in zip(found, sources, strict=True):
            assert up_to_end(row) == best_of_all(model, source, 4, 4, alpha)


SOURCES = [[3, 4, EOS], [5, 6, 7, 8, 9, EOS], [10, EOS], [4, 4, 4, EOS], [11, 3, 8, 5, EOS]]
SOURCES += [[3, 5, 7, 9, 11, 4, EOS], [6, 6, EOS], [9, 10, 3, EOS], [7, 8, 7, 8, 7, EOS], [5, 3, 3, 9, EOS]]


@pytest.mark.parametrize(("num_beams", "alpha"), [(2, 0.6), (4, 0.0), (4, 3.0)])
def test_beam_search_against_a_naive_one(copier: TranslationModel, num_beams: int, alpha: float) -> None:
    found = [up_to_end(row) for row in beam_search(copier, rows(*SOURCES), 8, num_beams, alpha)]
    assert found == [naive_beam_search(copier, source, 8, num_beams, alpha) for source in SOURCES]
    assert len(set(map(len, found))) > 2
    assert found != [up_to_end(row) for row in greedy(copier, rows(*SOURCES), 8)]


@pytest.mark.parametrize("search", [greedy, partial(beam_search, num_beams=3, alpha=0.6)])
def test_sentences_that_have_ended_leave_the_batch_and_change_nothing(
    copier: TranslationModel, monkeypatch: pytest.MonkeyPatch, search: Callable[..., Tensor]
) -> None:
    sizes, step = [], TranslationModel.step

    def spied(model: TranslationModel, tokens: Tensor, *rest: Any) -> Any:
        sizes.append(len(tokens))
        return step(model, tokens, *rest)

    monkeypatch.setattr(TranslationModel, "step", spied)
    monkeypatch.setattr(translation_model, "CHECKED_EVERY", 1)
    found = search(copier, rows(*SOURCES), 12)
    assert sizes[0] == len(SOURCES) > sizes[-1]
    monkeypatch.setattr(translation_model, "CHECKED_EVERY", 100)
    assert torch.equal(found, search(copier, rows(*SOURCES), 12))
    assert sizes[-12:] == [len(SOURCES)] * 12


def test_length_penalty_is_that_of_wu_et_al() -> None:
    assert length_penalty(1, 0.6) == 1
    assert length_penalty(7, 0.6) == pytest.approx(2**0.6)
    assert length_penalty(7, 0.0) == 1


def test_without_any_ended_sentence_the_likeliest_open_one_is_given() -> None:
    model = small_model()
    with torch.no_grad():
        model.embedding.weight[EOS] = 0.0
        model.decoder_norm.bias.fill_(4.0)
        model.embedding.weight[5:].abs_()  # everything is likelier than the end
    with torch.inference_mode():
        found = beam_search(model, rows([3, 4, EOS]), 5, 2, 0.6)
        assert found[0].tolist() == naive_beam_search(model, [3, 4, EOS], 5, 2, 0.6)
    assert EOS not in found


def test_greedy_takes_the_likeliest_token_each_time(copier: TranslationModel) -> None:
    for row, source in zip(greedy(copier, rows(*SOURCES), 5), SOURCES, strict=True):
        tokens: list[int] = []
        while EOS not in tokens and len(tokens) < 5:
            logits = copier(rows(source), torch.tensor([[*tokens, PAD]]))
            tokens.append(int(logits[0, -1].argmax()))
        assert row.tolist()[: len(tokens)] == tokens
        assert not any(row.tolist()[len(tokens) :])


# --- mini ---


def test_held_out_sentences_are_not_in_training() -> None:
    train, held_out = catalogue("train"), catalogue("validation")
    assert len(train) > 10_000
    assert len(held_out) >= MINI.num_eval_pairs
    for side in (0, 1):
        seen = {tuple(pair[side]) for pair in train}
        assert not any(tuple(pair[side]) in seen for pair in held_out)
    for tokens in itertools.chain.from_iterable(train + held_out):
        assert tokens[-1] == EOS
        assert not {PAD, EOS} & set(tokens[:-1])
        assert len(tokens) <= MINI.max_length
        assert max(tokens) < MINI.vocabulary


def test_tokens_spell_sentences() -> None:
    german, english = ([MINI.detokenize(pair[side][:-1]) for pair in catalogue("validation")] for side in (0, 1))
    assert all(sentence.split() and sentence == " ".join(sentence.split()) for sentence in german + english)
    assert sum("ü" in sentence for sentence in german) > 100
    assert not any("ü" in sentence for sentence in english)
    assert sum(" the " in f" {sentence.lower()} " for sentence in english) > 200


def test_a_batch_is_training_pairs_and_its_parts_make_it_up() -> None:
    train = {tuple(map(tuple, pair)) for pair in catalogue("train")}
    sources, targets = next(MINI.batches(0, 1))
    for source, target in zip(sources.tolist(), targets.tolist(), strict=True):
        assert (tuple(filter(None, source)), tuple(filter(None, target))) in train
    parts = [next(MINI.batches(0, 1, Part(index, 3))) for index in range(3)]
    for column, pieces in zip((sources, targets), zip(*parts, strict=True), strict=True):
        assert [list(filter(None, row)) for piece in pieces for row in piece.tolist()] == [
            list(filter(None, row)) for row in column.tolist()
        ]


def test_loss_is_the_mean_over_real_target_tokens_and_parts_add_up_by_them() -> None:
    torch.manual_seed(0)
    model = MINI.model().eval()
    batch = next(MINI.batches(0, 1))
    with torch.no_grad():
        whole = MINI.loss(model, batch)
        expected = [
            -log_probability(model, source, target)  # type: ignore[arg-type]
            for source, target in zip(
                *([list(filter(None, row)) for row in side.tolist()] for side in batch), strict=True
            )
        ]
        parts = [next(MINI.batches(0, 1, Part(index, 2))) for index in range(2)]
        weights = torch.stack([MINI.loss_weight(part) for part in parts]).double()
        losses = torch.stack([MINI.loss(model, part) for part in parts])
    assert weights[0] != weights[1]
    assert whole.item() == pytest.approx(sum(expected) / weights.sum().item(), rel=1e-5)
    assert (weights * losses).sum().item() / weights.sum().item() == pytest.approx(whole.item(), rel=1e-5)


def test_evaluation_translates_the_chosen_pairs_only() -> None:
    torch.manual_seed(0)
    model = MINI.model().eval()
    seen = []
    for number in (5, 20):
        workload = dataclasses.replace(MINI, num_eval_pairs=60, num_translated=number, eval_batch_size=16)
        batches = list(workload.eval_batches("validation"))
        with torch.no_grad():
            steps = [workload.eval_step(model, batch) for batch in batches]
        totals = {name: sum(float(step[name]) for step in steps) for name in steps[0]}
        references = [MINI.detokenize(pair[1][:-1]) for pair in catalogue("validation")[:number]]
        assert totals["reference_words"] == bleu_statistics(references, references)[-1]
        seen.append(workload.summarize(totals))
        assert [text for batch in batches for text in MINI.sentences(batch[1][batch[2]])] == references
        parts = [list(workload.eval_batches("validation", Part(index, 2))) for index in range(2)]
        assert [len(part) for part in parts] == [2, 2]
    assert seen[0].loss == pytest.approx(seen[1].loss, rel=1e-5)
    assert seen[0].examples == seen[1].examples == 60


# --- full ---


def test_sentences_are_packed_in_order_while_both_sides_fit() -> None:
    pairs: list[Pair] = [([8, 7, 2], [4, 2]), ([3, 4, 5, 2], [5, 6, 2]), ([9, 2], [7, 8, 9, 2]), ([6, 2], [6, 2])]
    sources, targets, source_segments, target_segments = pack(iter(pairs), 2, 8)
    assert sources.tolist() == [[8, 7, 2, 3, 4, 5, 2, 0], [9, 2, 6, 2, 0, 0, 0, 0]]
    assert targets.tolist() == [[4, 2, 5, 6, 2, 0, 0, 0], [7, 8, 9, 2, 6, 2, 0, 0]]
    assert source_segments.tolist() == [[1, 1, 1, 2, 2, 2, 2, 0], [1, 1, 2, 2, 0, 0, 0, 0]]
    assert target_segments.tolist() == [[1, 1, 2, 2, 2, 0, 0, 0], [1, 1, 1, 1, 2, 2, 0, 0]]
    places = translation_model.positions(torch.from_numpy(source_segments))
    assert places.tolist() == [[0, 1, 2, 0, 1, 2, 3, 0], [0, 1, 0, 1, 0, 1, 2, 3]]
    asked = iter(pairs * 5)
    pack(asked, 1, 8)
    assert next(asked) == pairs[3]  # it stops at the first that does not fit


TRAIN = "train.de"


@pytest.fixture
def news(folder: Path) -> News:
    found = small(FAMILY)
    assert isinstance(found, News)
    return found


def test_an_epoch_has_no_sentence_twice(news: News) -> None:
    """Rows are made of training sentences, none of which comes again before the epoch ends."""
    model = news.tokenizer()
    lines = (news.folder() / TRAIN).read_text(encoding="utf-8").splitlines()
    known = {(*model.encode(line), EOS) for line in lines}
    assert len(known) > 380
    found: list[tuple[int, ...]] = []
    for number in range(len(lines) // news.sentences_together):  # one epoch
        sources, _, segments, _ = news.rows(0, number)
        for tokens, row in zip(sources, segments, strict=True):
            found += [tuple(tokens[row == segment].tolist()) for segment in range(1, int(row.max()) + 1)]
    assert len(found) > 20
    assert set(found) <= known
    assert len(set(found)) >= len(found) - (len(lines) - len(known))
    assert not np.array_equal(news.rows(0, 0)[0], news.rows(0, len(lines) // news.sentences_together)[0])


def test_evaluation_covers_each_held_out_sentence_once(news: News) -> None:
    for split, name in (("validation", "newstest2013"), ("test", "newstest2014")):
        lines = (news.folder() / f"{name}.en").read_text(encoding="utf-8").splitlines()
        batches = list(news.eval_batches(split))
        assert [len(batch[0]) for batch in batches] == ([4, 1] if split == "validation" else [3])
        assert all(batch[2].all() for batch in batches)
        assert sorted(itertools.chain.from_iterable(news.sentences(b[1]) for b in batches)) == sorted(lines)
    with pytest.raises(ValueError, match="validation"):
        news.eval_batches("tset")


@pytest.mark.parametrize(
    ("name", "change", "says"),
    [
        (TRAIN, None, "missing or empty"),
        ("newstest2014.en", lambda _: b"", "missing or empty"),
        ("train.en", lambda content: content + b"one more\n", "401 lines where train.de has 400"),
        (MODEL, None, "sentencepiece model of 200 pieces"),
        (MODEL, lambda _: b"no model", "sentencepiece cannot read it"),
    ],
)
def test_bad_files_are_named_before_training(
    own_folder: Path, news: News, name: str, change: Callable[[bytes], bytes] | None, says: str
) -> None:
    news.check_data()
    text.cache_clear()
    tokenizer.cache_clear()
    path = own_folder / name
    path.write_bytes(change(path.read_bytes())) if change else path.unlink()
    with pytest.raises(BadData, match=says) as error:
        news.check_data()
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)


def test_other_bad_data_is_named_too(own_folder: Path, news: News) -> None:
    with pytest.raises(BadData, match="it has 200 pieces"):
        dataclasses.replace(news, vocabulary=32_000).check_data()
    spoiled = own_folder / TRAIN
    spoiled.write_bytes(spoiled.read_bytes().replace("ü".encode(), b"\xff"))
    with pytest.raises(BadData, match=r"train\.de: line \d+ is not UTF-8"):
        list(itertools.islice(news.batches(0, 1), 20))
