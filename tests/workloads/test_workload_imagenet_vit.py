"""The vision transformer: augmentation, metric and options that change something."""

from __future__ import annotations

import dataclasses
import itertools

import numpy as np
import pytest
import torch

from workloads.imagenet_vit import PRESETS, ImagenetViT, images

MINI = PRESETS["mini"]
assert isinstance(MINI, ImagenetViT)


def matches(crop: np.ndarray, label: int, margin: int) -> set[tuple[int, int, bool]]:
    """Every (row, column, flipped) at which `crop` is a window of a padded training picture of its class."""
    pictures, labels = images("train")
    padded = np.pad(
        pictures[labels == label], ((0, 0), (margin, margin), (margin, margin), (0, 0)), constant_values=255
    )
    found = set()
    for flipped in (False, True):
        seen = crop[:, ::-1] if flipped else crop
        for row, column in itertools.product(range(2 * margin + 1), repeat=2):
            window = padded[:, row : row + 32, column : column + 32]
            if (window[:, 12:16, 8:24] == seen[12:16, 8:24]).all((1, 2, 3)).any() and (
                (window == seen).all((1, 2, 3)).any()
            ):
                found.add((row, column, flipped))
    return found


def test_augmentation_is_a_white_padded_shift_and_a_flip() -> None:
    workload = dataclasses.replace(MINI, max_shift=2)
    found = []
    for step in (1, 2):
        pictures, labels = next(workload.batches(0, step))
        assert pictures.shape == (MINI.batch_size, 32, 32, 3)
        assert pictures.dtype == torch.uint8
        for crop, label in zip(pictures.numpy()[:6], labels.tolist(), strict=False):
            places = matches(crop, label, 2)
            assert places, "no training picture gives this crop"
            found.append(places)
    unambiguous = [place for places in found if len(places) == 1 for place in places]
    assert {flipped for _, _, flipped in unambiguous} == {False, True}
    assert len({(row, column) for row, column, _ in unambiguous}) > 3


def test_without_shift_and_flip_the_pictures_are_the_files() -> None:
    workload = dataclasses.replace(MINI, max_shift=0, flip=False)
    originals = {picture.tobytes() for picture in images("train")[0]}
    pictures, _ = next(workload.batches(0, 1))
    assert all(picture.tobytes() in originals for picture in pictures.numpy())
    flipped, _ = next(dataclasses.replace(workload, flip=True).batches(0, 1))
    same = (pictures == flipped).flatten(1).all(1)
    mirrored = (pictures == flipped.flip(2)).flatten(1).all(1)
    assert (same | mirrored).all()
    assert not same.all()


def test_white_is_silent() -> None:
    """The background reaches the first layer as zero."""
    torch.manual_seed(0)
    model = MINI.model()
    white = torch.full((1, 32, 32, 3), 255, dtype=torch.uint8)
    seen: list[torch.Tensor] = []
    model.embedding.register_forward_hook(lambda _module, inputs, _output: seen.append(inputs[0]))
    model(white)
    assert not seen[0].any()


def test_the_model_tells_where_a_patch_is() -> None:
    torch.manual_seed(0)
    model = MINI.model().eval()
    picture = images("train")[0][:1]
    moved = np.roll(picture, MINI.patch, axis=2)  # the same patches elsewhere
    with torch.inference_mode():
        here, there = model(torch.from_numpy(picture)), model(torch.from_numpy(moved))
        model.positions.zero_()
        blind_here, blind_there = model(torch.from_numpy(picture)), model(torch.from_numpy(moved))
    assert not torch.allclose(here, there, atol=1e-5)
    assert torch.allclose(blind_here, blind_there, atol=1e-5)


def test_metric_is_loss_or_accuracy() -> None:
    sums = {"loss": 6.0, "correct": 3.0, "examples": 4.0}
    assert MINI.metric == "loss"
    assert not MINI.higher_is_better
    assert MINI.summarize(sums) == (1.5, 1.5, 4)
    by_accuracy = dataclasses.replace(MINI, metric="accuracy")
    assert by_accuracy.higher_is_better
    assert by_accuracy.summarize(sums) == (1.5, 0.75, 4)
    with pytest.raises(ValueError, match="loss or accuracy"):
        dataclasses.replace(MINI, metric="acuracy")


def test_accuracy_counts_the_largest_logit() -> None:
    class Fixed(torch.nn.Module):
        def forward(self, pictures: torch.Tensor) -> torch.Tensor:
            return torch.eye(13)[:3] * 5

    sums = MINI.eval_step(Fixed(), (torch.zeros(3, 32, 32, 3), torch.tensor([0, 1, 9])))
    assert sums["correct"] == 2
    assert sums["examples"] == 3


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("patch", 16),
        ("width", 32),
        ("depth", 1),
        ("hidden", 32),
        ("num_heads", 1),
        ("max_shift", 1),
        ("batch_size", 3),
    ],
)
def test_each_option_changes_the_loss(option: str, value: int) -> None:
    assert getattr(MINI, option) != value
    losses = []
    for workload in (MINI, dataclasses.replace(MINI, **{option: value})):
        torch.manual_seed(0)
        losses.append(workload.loss(workload.model(), next(workload.batches(0, 1))).item())
    assert losses[0] != losses[1]


def test_validation_is_the_whole_split_unaugmented() -> None:
    batches = list(MINI.eval_batches("validation"))
    pictures, labels = images("validation")
    assert np.array_equal(torch.cat([batch[0] for batch in batches]).numpy(), pictures)
    assert np.array_equal(torch.cat([batch[1] for batch in batches]).numpy(), labels)
    few = list(dataclasses.replace(MINI, eval_batch_size=100).eval_batches("validation"))
    assert {len(batch[1]) for batch in few[:-1]} == {100}
