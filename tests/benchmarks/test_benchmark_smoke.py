"""The short form of the benchmarks: they run, and nothing is far from what the README quotes."""

import pytest

from benchmarks import asking, launching, sharing, trajectory

pytestmark = pytest.mark.slow


def test_the_loop_is_nearly_as_fast_as_a_bare_one() -> None:
    # 0.95 is what `make bench` shows on a quiet machine; a shared one gets room for noise.
    for name, value in trajectory.main(short=True).items():
        assert value > 0.8, name


def test_slots_are_full_and_planning_is_quick() -> None:
    found = launching.main(short=True)
    assert found["seconds to plan 10,000 cells"] < 2
    assert found["occupancy of 2 slots over 6 equal trials of 3 s"] > 0.85


def test_what_is_asked_less_often_says_the_same() -> None:
    found = asking.main(short=True)
    for mode in ("bracket", "paired"):
        assert found[f"{mode}: the same steps-to-target"] >= 0.95
        assert found[f"{mode}: the same, sustained"] >= 0.95
        assert found[f"{mode}: share of the examples"] <= 1
    assert found["bracket: share of the examples"] < 0.8


def test_what_shares_a_training_is_cheaper_and_a_replay_too() -> None:
    found = sharing.main(short=True)
    assert all(value < 0.8 for name, value in found.items() if name.endswith("fused / one trial a cell"))
    assert found["lm: 5 new averages, all: replay / training"] < 1
