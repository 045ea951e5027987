"""AlgoPerf's constants: whole, consistent, and what a full study uses."""

import pytest

from sweeps.targets import read_target
from workloads.algoperf import VERSION, constants, published_target
from workloads.protocol import families, load


def test_every_algoperf_family_has_its_row_and_uses_it() -> None:
    assert sorted([*constants(), "lm"]) == families()
    for name, of in constants().items():
        full = load(name, "full")
        assert full.step_budget == of.step_hint["v0.5"]
        assert full.batch_size == of.batch_size
        assert (full.metric, full.higher_is_better) == (of.metric, of.higher_is_better)
        own = {name: getattr(of.nadamw, name) for name in ("lr", "beta1", "beta2", "weight_decay")}
        assert full.optimizer == {"name": "nadamw", "eps": 1e-8, **own}
        assert full.schedule == {"shape": "cosine", "length": 1.0, "warmup": of.nadamw.warmup, "final_lr": 0.0}


def test_a_full_study_uses_version_0_5() -> None:
    """As the paper does: its shares of T are shares of v0.5's step hints, longer than v0.6's on five of eight."""
    assert VERSION == "v0.5"
    longer = [name for name, of in constants().items() if of.step_hint["v0.5"] > of.step_hint["v0.6"]]
    assert longer == ["fastmri", "imagenet_vit", "librispeech_conformer", "librispeech_deepspeech", "ogbg", "wmt"]


def test_seconds_a_step_agree_between_versions() -> None:
    """Runtimes and step hints were scaled together: seconds a step stay within 3 %."""
    for name, of in constants().items():
        old, new = (of.max_runtime_seconds[v] / of.step_hint[v] for v in ("v0.5", "v0.6"))
        assert new == pytest.approx(old, rel=0.03), name


def test_a_step_costs_the_seconds_of_all_eight_devices() -> None:
    """AlgoPerf's runtimes are wall seconds on 8 V100s: criteo1tb has 7,703 s for 10,666 steps."""
    for name, of in constants().items():
        budget = load(name, "full").step_seconds * of.step_hint["v0.5"]
        assert budget == pytest.approx(8 * of.max_runtime_seconds["v0.5"]), name
    assert load("criteo1tb", "full").step_seconds == pytest.approx(8 * 7703 / 10666)


def test_points_are_in_algoperfs_search_space_once_each() -> None:
    points = {of.nadamw for of in constants().values()}
    assert all(0.8 < p.beta1 < 1 and 0.6 < p.beta2 < 1 and 1e-4 < p.lr < 1e-2 for p in points)
    assert all(p.warmup in (0.02, 0.05, 0.1) for p in points)
    assert constants()["imagenet_vit"].nadamw.label_smoothing == 0.2


def test_a_full_presets_target_is_the_published_one() -> None:
    for name in families():
        target, published = read_target(name, "full"), published_target(name)
        assert target is not None
        assert published is not None
        assert (target.value, target.metric) == (published.value, published.metric)
        assert target.rule.startswith("published: ")
        assert target.seeds == []
    assert published_target("mymodule:Mine") is None
    assert read_target("lm", "full").value == 3.28  # type: ignore[union-attr]
