"""paired: an average by a part of the examples, at a stated error, and in full where that does not decide."""

from __future__ import annotations

import textwrap
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from trained import Stop, assert_same, run, stop_at, tiny

from analysis.statistics.steps_to_target import curves, first_crossing
from sweeps import evaluate, paired
from sweeps.plan import Trajectory, from_dict, to_dict, trajectories
from workloads.protocol import Summary

MANY = textwrap.dedent('''
    import numpy as np
    import torch
    from tinywork import Tiny, draw

    class Many(Tiny):
        """The loss on many batches of unequal size."""
        metric, higher_is_better = "loss", False

        def eval_batches(self, split):
            rng = np.random.default_rng(7)
            return [draw(rng, 20 + number % 3) for number in range(40)]

        def summarize(self, sums):
            loss, accuracy, examples = super().summarize(sums)
            return loss, loss, examples, {"accuracy": accuracy}

    class Perplexity(Many):
        def summarize(self, sums):
            loss, _, examples, beside = super().summarize(sums)
            return loss, float(np.exp(loss)), examples, beside

    class Drawing(Many):
        def eval_step(self, model, batch):
            return {name: value + torch.rand(()) for name, value in super().eval_step(model, batch).items()}
''')
AVERAGES = [{"scheme": "none"}, {"scheme": "ema", "decay": 0.9}, {"scheme": "lawa", "k": 10}]


@pytest.fixture(autouse=True)
def _many(outside: Path) -> None:
    (outside / "manywork.py").write_text(MANY)


def asked(how: str, target: float | None = None, averaging: Any = tuple(AVERAGES), kind: str = "Many") -> Trajectory:
    told = {"workload": f"manywork:{kind}", "evaluate": {"every": 2, "averages": how}}
    (one,) = trajectories(tiny(list(averaging), **told), fuse=True)
    return from_dict(to_dict(replace(one, target=target)))


def test_records_are_those_of_all_or_estimates_of_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    full = run(asked("all"), tmp_path / "all")
    target = float(full["metric"].quantile(0.3))
    one = asked("paired", target)
    some = run(one, tmp_path / "paired")
    guessed = some["standard_error"].notna()
    assert 0.2 < guessed.mean() < 0.75
    assert_same(some[~guessed], full[~guessed])
    off = (some["metric"] - full["metric"])[guessed].abs() / some["standard_error"][guessed]
    assert 0.2 < off.median() < 1.2  # .67 of a normal distribution
    assert off.max() < 5
    assert (some["examples"][guessed] < full["examples"][guessed]).all()
    assert not guessed[some["step"] == 60].any()
    for cell_id, (steps, metric) in curves(full).items():
        here = first_crossing(*curves(some)[cell_id], target, False)
        assert np.array_equal(here, first_crossing(steps, metric, target, False), equal_nan=True)

    alone = run(asked("paired", target, [AVERAGES[0], {"scheme": "ema", "decay": 0.9}]), tmp_path / "alone")
    assert_same(alone, some[some["cell_id"].isin(alone["cell_id"])].reset_index(drop=True))
    with pytest.raises(Stop):
        run(one, tmp_path / "killed", checkpoint_seconds=0.0, report=stop_at(26))
    assert_same(run(one, tmp_path / "killed"), some)
    monkeypatch.setattr(evaluate, "HELD_BYTES", 1)  # a split of several shares is gone through once, and in full
    assert_same(run(one, tmp_path / "shares"), full)


def test_what_is_no_mean_over_examples_is_evaluated_in_full(tmp_path: Path) -> None:
    full = run(asked("all", kind="Perplexity"), tmp_path / "all")
    assert_same(run(asked("paired", kind="Perplexity"), tmp_path / "paired"), full)


def test_what_draws_at_random_is_evaluated_in_full(outside: Path, tmp_path: Path) -> None:
    full = run(asked("all", kind="Drawing"), tmp_path / "all")
    assert_same(run(asked("paired", kind="Drawing"), tmp_path / "paired"), full)


def test_the_last_lines_of_a_torn_file_are_written_again_as_they_were(tmp_path: Path) -> None:
    one = asked("paired")
    with pytest.raises(Stop):
        run(one, tmp_path / "torn", checkpoint_seconds=0.0, report=stop_at(20))
    path = tmp_path / "torn" / "records.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines[:-2]))  # an average's records of step 20, and not the live weights'
    (tmp_path / "torn" / "checkpoint.json").unlink()
    assert_same(run(one, tmp_path / "torn"), run(one, tmp_path / "whole"))


def split(rng: np.random.Generator, num: int = 60) -> tuple[list[Summary], list[Summary], list[int]]:
    """A live model and an average that is better by about .01, on batches that differ by .15."""
    sizes = rng.integers(5, 12, num).tolist()
    level = 1 + 0.15 * rng.normal(size=num)
    gain = 0.01 + 0.004 * rng.normal(size=num)
    return *([Summary(v, v, n) for v, n in zip(of, sizes, strict=True)] for of in (level, level - gain)), sizes


def whole_of(batches: list[Summary]) -> Summary:
    sizes = np.array([one.examples for one in batches])
    value = float(np.average([one.metric for one in batches], weights=sizes))
    return Summary(value, value, int(sizes.sum()))


def test_the_error_that_is_stated_is_the_error() -> None:
    off = []
    for seed in range(300):
        live, average, _ = split(np.random.default_rng(seed))
        assert paired.are_means(live, whole_of(live))
        found = paired.estimate(live, whole_of(live), average[:24], 0.01, None)
        if found is not None:
            off.append((found.summary.metric - whole_of(average).metric) / found.standard_error)
            assert found.summary.examples == sum(one.examples for one in average[:24])
    assert len(off) > 200
    assert abs(np.mean(off)) < 0.15
    assert 0.85 < np.std(off) < 1.2


def test_near_the_target_and_on_a_flat_curve_all_are_asked_for() -> None:
    live, average, _ = split(np.random.default_rng(0))
    whole, truth = whole_of(live), whole_of(average).metric
    assert paired.estimate(live, whole, average[:24], 0.005, truth + 0.03) is not None
    assert paired.estimate(live, whole, average[:24], 0.005, truth - 0.03) is not None
    assert paired.estimate(live, whole, average[:24], 0.005, truth + 0.01) is None
    assert paired.estimate(live, whole, average[:24], 0.0005, None) is None  # a curve as flat as that
    assert paired.estimate(live, whole, average[:24], 0.0, None) is None


def test_batches_are_taken_in_an_order_of_the_seed_alone() -> None:
    assert paired.order(50, 3) == paired.order(50, 3) != paired.order(50, 4)
    assert sorted(paired.order(50, 3)) == list(range(50))
    assert paired.sizes(50)[0] == paired.FEWEST
    assert paired.sizes(50)[-1] < 50
    assert paired.sizes(8) == []


def test_a_value_that_is_not_the_mean_of_the_batches_is_noticed() -> None:
    live, _, _ = split(np.random.default_rng(1))
    whole = whole_of(live)
    assert not paired.are_means(live, whole._replace(metric=whole.metric * (1 + 1e-8)))
    assert not paired.are_means(live, whole._replace(examples=whole.examples + 1))
    assert not paired.are_means(live, whole._replace(metric=float("nan")))
    assert not paired.are_means(live, whole._replace(metrics={"accuracy": 0.5}))
