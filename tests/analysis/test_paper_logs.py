"""What AlgoPerf's logs say: ratios of medians with misses, and how they are told."""

import numpy as np
import pandas as pd
import pytest

from analysis.paper.logs import AVERAGING, BASELINE, built_in_average, ratios_of_medians
from analysis.statistics.resampling import small_sample_factor


def test_a_ratio_of_medians_against_every_resample():
    top, bottom = np.array([1.0, 2.0, 4.0]), np.array([3.0, 5.0, np.inf])
    medians = [[np.median(side[list(rows)]) for rows in np.ndindex(3, 3, 3)] for side in (top, bottom)]
    every = sorted(0.0 if np.isinf(b) else a / b for a in medians[0] for b in medians[1])
    low, high = np.quantile(every, [0.025, 0.975], method="nearest")
    found = ratios_of_medians(top, bottom)
    factor = small_sample_factor(3, 4)
    assert found.value == pytest.approx(2 / 5)
    assert found.low == pytest.approx(0.4 * (low / 0.4) ** factor)  # 0: in some resamples the baseline never meets
    assert found.high == pytest.approx(0.4 * (high / 0.4) ** factor)


def test_a_ratio_of_two_medians_that_never_meet_is_none():
    found = ratios_of_medians(np.array([np.inf] * 3), np.array([np.inf] * 3))
    assert np.isnan(found.value)
    assert (found.low, found.high) == (0.0, np.inf)  # anything may be


MISS = np.inf


@pytest.mark.parametrize(
    ("top", "bottom", "expected"),
    [
        ([MISS] * 5, [100, 101, 102, 103, 104], (np.inf, np.inf, np.inf)),
        ([100, 101, 102, 103, 104], [MISS] * 5, (0.0, 0.0, 0.0)),
        ([1, 1.1, 0.9, MISS, 1], [1, 1, 1.1, MISS, 0.9], (1.0, 0.0, np.inf)),  # one miss a side
        ([MISS, MISS, MISS, 4, 5], [1, 1, 1, 1, 1], (np.inf, 4.0, np.inf)),
    ],
)
def test_an_infinite_bound_is_a_bound(top, bottom, expected):
    found = ratios_of_medians(np.array(top, dtype=float), np.array(bottom, dtype=float))
    assert tuple(found) == pytest.approx(expected)


def test_an_interval_with_misses_covers_every_open_resample():
    top, bottom = np.array([1.0, 2.0, MISS]), np.array([3.0, MISS, 5.0])
    medians = [[np.median(side[list(rows)]) for rows in np.ndindex(3, 3, 3)] for side in (top, bottom)]
    ends = []
    for both_missed in (0.0, np.inf):
        every = sorted(
            both_missed if np.isinf(a) and np.isinf(b) else 0.0 if np.isinf(b) else a / b
            for a in medians[0]
            for b in medians[1]
        )
        ends.append(np.quantile(every, [0.025, 0.975], method="nearest"))
    found = ratios_of_medians(top, bottom)
    factor = small_sample_factor(3, 4)
    value = 2 / 5
    assert found.low == pytest.approx(value * (ends[0][0] / value) ** factor)
    assert found.high == ends[1][1] == np.inf


def studies_of(**seconds):
    rows = [
        (submission, workload, study, value)
        for workload, sides in seconds.items()
        for submission, values in zip((AVERAGING, BASELINE), sides, strict=True)
        for study, value in enumerate(values)
    ]
    return pd.DataFrame(rows, columns=["submission", "workload", "study", "seconds"])


def test_a_side_that_always_misses_is_said_and_not_called_no_difference():
    met = [100.0, 101, 102, 103, 104]
    (text,) = built_in_average(
        studies_of(
            wmt=([MISS] * 5, met),
            ogbg=(met, [MISS] * 5),
            fastmri=([MISS] * 5, [100.0, *[MISS] * 4]),
            criteo1tb=(met, met),
            imagenet_vit=([MISS] * 5, [MISS] * 5),
        )
    )
    assert "less time to the target than NadamW on 1 of 4 workloads (by luck alone 9.6 %), more on 1" in text
    assert "undecided on 2." in text  # equal, and only one of the two ever meets it, in too few studies
    assert "wmt ∞ [∞, ∞]" in text
    assert "ogbg 0.00 [0.00, 0.00]" in text
    assert "Schedule-Free misses the target of wmt in all 5 studies, NadamW in 0 of 5." in text
    assert "NadamW misses the target of ogbg in all 5 studies, Schedule-Free in 0 of 5." in text
    assert "Schedule-Free misses the target of fastmri in all 5 studies, NadamW in 4 of 5." in text
    assert "imagenet_vit neither" in text
    (text,) = built_in_average(studies_of(wmt=([100.0], [200.0])))
    assert "on 0 of 1 workloads (by luck alone 100 %), more on 0, undecided on 1." in text  # one study: no interval
