import numpy as np
import pandas as pd
import pytest

from analysis import study, tables
from analysis.families import COLUMNS, families, sentence
from analysis.findings import conclusions


def ratios(*rows):
    """(low, high, bound, at_least, at_most, both_missed, pending) a family, of 3 pairs."""
    names = [
        "geometric_mean_low",
        "geometric_mean_high",
        "bound",
        "num_at_least",
        "num_at_most",
        "num_both_missed",
    ]
    table = pd.DataFrame(rows, columns=[*names, "num_pending"])
    return table.assign(setting=range(len(rows)), versus="same schedule", num_pairs=3)


def counted(*rows, near=True):
    chosen = pd.DataFrame({"setting": range(len(rows)), "scheme": "ema", "near": near})
    return families(ratios(*rows), chosen)


def test_families_are_counted_by_where_their_interval_lies():
    row = counted(
        (0.8, 0.9, "exact", 0, 0, 0, 0),
        (0.8, 0.9, "at most", 0, 1, 0, 0),  # some baseline missed: it saves that much or more
        (0.8, 0.9, "at least", 1, 0, 0, 0),  # some average missed: it may save less
        (0.8, 1.1, "exact", 0, 0, 1, 0),
        (1.1, 1.2, "at least", 2, 0, 0, 0),
        (1.1, 1.2, "at most", 0, 1, 0, 0),  # may lie lower
        (np.nan, np.nan, "exact", 0, 0, 0, 0),  # one seed
        (np.nan, np.nan, "none", 0, 0, 3, 0),  # nobody meets the target
        (np.nan, np.nan, "none", 0, 0, 0, 3),  # all wait: not a family yet
    ).iloc[0]
    assert row.drop(["versus", "scheme"]).to_dict() == {
        "num_families": 8,
        "num_fewer": 2,
        "num_no_effect": 1,
        "num_more": 1,
        "num_undecided": 4,
        "num_with_missed": 6,
    }


def test_only_what_was_fixed_beforehand_counts():
    assert counted((0.8, 0.9, "exact", 0, 0, 0, 0), near=False).empty
    assert list(counted(near=True).columns) == COLUMNS


@pytest.mark.parametrize(
    ("numbers", "text"),
    [
        ((9, 5, 3, 1, 0, 0), "Of 9 families, 5 need fewer steps, 3 show no effect and 1 needs more steps."),
        (
            (9, 1, 8, 0, 0, 2),
            "Of 9 families, 1 needs fewer steps and 8 show no effect; on 2 some seed misses the target.",
        ),
        (
            (9, 0, 8, 0, 1, 9),
            "Of 9 families, none needs fewer steps, 8 show no effect and 1 is undecided; on each some "
            "seed "
            "misses the target.",
        ),
        ((9, 9, 0, 0, 0, 0), "All 9 families need fewer steps."),
        ((9, 0, 9, 0, 0, 1), "All 9 families show no effect; on 1 some seed misses the target."),
        ((2, 0, 0, 2, 0, 0), "Both families need more steps."),
        ((2, 1, 0, 1, 0, 0), "Of 2 families, 1 needs fewer steps and 1 needs more steps."),
        ((1, 0, 1, 0, 0, 1), "The one family shows no effect; some seed misses the target."),
        ((3, 0, 0, 0, 3, 0), "All 3 families are undecided."),
    ],
)
def test_the_sentence_is_grammatical_in_every_case(numbers, text):
    assert sentence(dict(zip(COLUMNS[2:], numbers, strict=True))) == text


def test_the_claim_follows_the_answer_and_every_other_scheme(make_run, average):
    averages = [average("ema", 0.01, 1.0), average("lawa", 0.01, 0.8)]
    read = study.read(make_run(lengths=[1.0], averages=averages, spread=0.02))
    found = tables.compute(read)
    assert conclusions.answer(read, found).endswith(". Both families show no effect.")
    assert conclusions.ratio_findings(read, found)[0].endswith(". Both families need fewer steps.")
    assert set(found.families["scheme"]) == {"ema", "lawa"}
