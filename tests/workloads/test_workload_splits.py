"""What a workload says of its splits is what it can be asked for."""

from pathlib import Path

import pytest

from workloads.data import VARIABLE, BadData
from workloads.protocol import families, load, presets, splits


@pytest.mark.parametrize("family", families())
def test_each_preset_names_the_splits_it_has(family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, str(tmp_path))  # full presets find nothing there
    for workload in presets(family).values():
        for split in ("validation", "test", "train"):
            try:
                workload.eval_batches(split)
                there = True
            except BadData:
                there = True
            except ValueError:
                there = False
            assert there == (split in splits(workload)), split


def test_a_workload_that_does_not_say_has_validation_alone() -> None:
    assert splits(load("lm")) == ("validation",)
    assert splits(load("imagenet_vit", "full")) == ("validation", "test")
