"""Verdicts: shown, excluded within a margin, undecided with the number of seeds that would decide."""

import math

import numpy as np
import pytest
from scipy.stats import binom, t

from analysis import words
from analysis.statistics import verdicts
from analysis.statistics.resampling import Interval
from analysis.statistics.verdicts import EXCLUDED, SHOWN, UNDECIDED, verdict


@pytest.mark.parametrize(
    ("interval", "word"),
    [
        ((0.9, 0.85, 0.95), SHOWN),
        ((1.1, 1.05, 1.2), SHOWN),
        ((1.0, 0.995, 1.005), EXCLUDED),
        ((0.99, 0.95, 1.02), UNDECIDED),
        ((1.0, 0.98, 1.001), UNDECIDED),  # not told from 1 is not the same as 1
        ((0.9, math.nan, math.nan), UNDECIDED),
        ((math.nan, math.nan, math.nan), UNDECIDED),
        ((math.inf, 0.9, math.inf), UNDECIDED),
        ((math.inf, 1.2, math.inf), SHOWN),
    ],
)
def test_three_verdicts(interval, word):
    assert verdict(Interval(*interval), 3).word == word


def test_differences_have_a_margin_in_their_own_units():
    inside = Interval(0.001, -0.01, 0.012)
    assert verdict(inside, 3, none=0.0, margin=0.02, logs=False).word == EXCLUDED
    assert verdict(inside, 3, none=0.0, margin=0.01, logs=False).word == UNDECIDED


def test_the_seeds_that_would_decide_do_decide():
    """A paired t-interval of normal log ratios, at the n that is named: it leaves out 1 about half of the time."""
    rng, mean, spread, n = np.random.default_rng(0), -0.03, 0.04, 3
    half = 4.3026527 * spread / math.sqrt(n)  # Student's t, 2 degrees of freedom
    found = verdict(Interval(math.exp(mean), math.exp(mean - half), math.exp(mean + half)), n)
    assert found.word == UNDECIDED
    more = found.needed
    assert more is not None
    draws = rng.normal(mean, spread, size=(4000, more))

    width = t.ppf(0.975, more - 1) * draws.std(axis=1, ddof=1) / math.sqrt(more)
    decided = (draws.mean(axis=1) + width < 0).mean()
    assert 0.4 < decided < 0.75
    fewer = rng.normal(mean, spread, size=(4000, n))
    width = t.ppf(0.975, n - 1) * fewer.std(axis=1, ddof=1) / math.sqrt(n)
    assert (fewer.mean(axis=1) + width < 0).mean() < 0.3


def test_more_seeds_than_anyone_runs_are_not_numbered():
    assert verdict(Interval(0.9999, 0.5, 2.0), 3).needed == verdicts.MOST + 1
    assert words.needed(verdicts.Verdict(UNDECIDED, verdicts.MOST + 1)) == "more than 1,000 seeds would decide"
    assert words.needed(verdicts.Verdict(UNDECIDED)) == "there is no interval"
    assert words.needed(verdicts.Verdict(UNDECIDED, 12), "workloads") == "about 12 workloads would decide"
    assert words.needed(verdicts.Verdict(SHOWN)) == ""


def test_n_of_m_by_luck_is_a_binomial_tail():
    assert verdicts.by_luck(2, 9) == pytest.approx(1 - binom.cdf(1, 9, 0.025))
    assert verdicts.by_luck(1, 1) == pytest.approx(0.025)
    assert verdicts.by_luck(0, 5) == 1.0
