"""The vision transformers: clip art, metric, options that change something; RandAugment, mixup, AlgoPerf's S/16."""

from __future__ import annotations

import dataclasses
import itertools
import math
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from full_data import small
from PIL import Image, ImageEnhance
from torch import Tensor, nn

from workloads.imagenet import RANDAUGMENT, clip_art
from workloads.imagenet_vit import PRESETS, SelfAttention, SmallViT, ViTS16, sincos_positions

FAMILY = "imagenet_vit"
tiny = partial(small, FAMILY)
MINI, FULL = PRESETS["mini"], PRESETS["full"]
assert isinstance(MINI, SmallViT)
assert isinstance(FULL, ViTS16)


def matches(crop: np.ndarray, label: int, margin: int) -> set[tuple[int, int, bool]]:
    """Every (row, column, flipped) at which `crop` is a window of a padded training picture of its class."""
    pictures, labels = clip_art("train")
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
    originals = {picture.tobytes() for picture in clip_art("train")[0]}
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
    picture = clip_art("train")[0][:1]
    moved = np.roll(picture, MINI.patch, axis=2)  # the same patches elsewhere
    with torch.inference_mode():
        here, there = model(torch.from_numpy(picture)), model(torch.from_numpy(moved))
        model.positions.zero_()
        blind_here, blind_there = model(torch.from_numpy(picture)), model(torch.from_numpy(moved))
    assert not torch.allclose(here, there, atol=1e-5)
    assert torch.allclose(blind_here, blind_there, atol=1e-5)


def test_accuracy_counts_the_largest_logit() -> None:
    class Fixed(torch.nn.Module):
        def forward(self, pictures: torch.Tensor) -> torch.Tensor:
            return torch.eye(13)[:3] * 5

    sums = MINI.eval_step(Fixed(), (torch.zeros(3, 32, 32, 3), torch.tensor([0, 1, 9])))
    assert sums["correct"] == 2
    assert sums["examples"] == 3


def test_validation_is_the_whole_split_unaugmented() -> None:
    batches = list(MINI.eval_batches("validation"))
    pictures, labels = clip_art("validation")
    assert np.array_equal(torch.cat([batch[0] for batch in batches]).numpy(), pictures)
    assert np.array_equal(torch.cat([batch[1] for batch in batches]).numpy(), labels)
    few = list(dataclasses.replace(MINI, eval_batch_size=100).eval_batches("validation"))
    assert {len(batch[1]) for batch in few[:-1]} == {100}


# --- AlgoPerf's ViT S/16 ---------------------------------------------------------------------------------------


def test_positions_are_sines_and_cosines_of_column_and_row() -> None:
    positions = sincos_positions(3, 16, torch.device("cpu"))
    for row, column in itertools.product(range(3), repeat=2):
        frequencies = [10000 ** (-i / 3) for i in range(4)]
        expected = [*(turn(place * f) for place in (column, row) for turn in (math.sin, math.cos) for f in frequencies)]
        torch.testing.assert_close(positions[3 * row + column], torch.tensor(expected))


def test_attention_is_that_of_torch() -> None:
    torch.manual_seed(0)
    own, other = SelfAttention(12, 3, 0.0), nn.MultiheadAttention(12, 3, batch_first=True)
    for layer in (own.query, own.key, own.value, own.out):
        nn.init.normal_(layer.bias)
    with torch.no_grad():
        other.in_proj_weight.copy_(torch.cat([own.query.weight, own.key.weight, own.value.weight]))
        other.in_proj_bias.copy_(torch.cat([own.query.bias, own.key.bias, own.value.bias]))
        other.out_proj.load_state_dict(own.out.state_dict())
    x = torch.randn(2, 5, 12)
    torch.testing.assert_close(own(x), other(x, x, x)[0], rtol=1e-5, atol=1e-5)


@pytest.mark.usefixtures("folder")
def test_a_real_step_and_a_real_evaluation() -> None:
    workload = tiny(batch_size=2)
    workload.check_data()
    torch.manual_seed(0)
    model = workload.model().train()
    batch = next(workload.batches(0, 1))
    assert [tuple(leaf.shape) for leaf in batch] == [(3, 224, 224, 3), (2, 2), ()]
    assert [leaf.dtype for leaf in batch] == [torch.uint8, torch.int64, torch.float32]
    with torch.autocast("cpu", torch.bfloat16):
        loss = workload.loss(model, batch)
    assert loss.item() == pytest.approx(math.log(3), rel=1e-5)  # the head starts at zero
    loss.backward()
    grads = [parameter.grad for parameter in model.parameters()]
    assert all(grad is not None and torch.isfinite(grad).all() for grad in grads)
    held_out = next(iter(workload.eval_batches("validation")))
    assert [tuple(leaf.shape) for leaf in held_out] == [(4, 224, 224, 3), (4,)]
    with torch.no_grad():
        sums = workload.eval_step(model.eval(), held_out)
    summary = workload.summarize({name: float(value) for name, value in sums.items()})
    assert summary.loss == pytest.approx(math.log(3), rel=1e-5)
    assert summary.metric == summary.metrics["accuracy"] == 0.5  # the head says class 0 of two pictures of 0, two of 1


def test_dropout_is_in_training_alone() -> None:
    torch.manual_seed(0)
    model = tiny(width=32, depth=1, num_heads=2, hidden=16, dropout=0.5).model()
    nn.init.normal_(model.head.weight)
    pictures = torch.randint(256, (2, 32, 32, 3), dtype=torch.uint8)
    assert not torch.equal(model(pictures), model(pictures))
    assert torch.equal(model.eval()(pictures), model(pictures))


# --- mixup -----------------------------------------------------------------------------------------------------


class Seen(nn.Module):
    """A linear model of pictures that keeps what it saw."""

    def __init__(self, num_pixels: int) -> None:
        super().__init__()
        self.head = nn.Linear(num_pixels, 3)

    def forward(self, pictures: Tensor) -> Tensor:
        self.seen = pictures
        logits: Tensor = self.head(pictures.flatten(1) / 255)
        return logits


@pytest.mark.usefixtures("folder")
def test_mixup_mixes_each_picture_and_label_with_the_one_before() -> None:
    torch.manual_seed(0)
    mixing, plain = tiny(side=16), tiny(side=16, mixup=0.0)
    step, batch = next(
        (step, batch)
        for step, batch in enumerate(mixing.batches(2, 1), start=1)
        if 0.3 < batch[2] < 0.7  # most are near 0 or 1, where a wrong mixture would pass
    )
    pictures, labels = next(plain.batches(2, step))
    weight = batch[2].item()
    model = Seen(16 * 16 * 3)
    loss = mixing.loss(model, batch)
    raw = pictures.float()
    expected = weight * raw + (1 - weight) * raw.roll(1, 0)
    torch.testing.assert_close(model.seen, expected, rtol=1e-5, atol=1e-3)
    one_hot = F.one_hot(labels, 3).float()
    target = weight * one_hot + (1 - weight) * one_hot.roll(1, 0)
    smoothed = 0.8 * target + 0.2 / 3
    by_hand = -(smoothed * model(expected).log_softmax(1)).sum(1).mean()
    assert loss.item() == pytest.approx(by_hand.item(), rel=1e-4)


@pytest.mark.usefixtures("folder")
def test_mixup_draws_its_weight_from_a_beta_distribution() -> None:
    workload = tiny(side=8, batch_size=1, randaugment=0)
    weights = np.array([batch[2].item() for batch in itertools.islice(workload.batches(0, 1), 300)])
    assert weights.mean() == pytest.approx(0.5, abs=0.08)
    assert weights.var() == pytest.approx(1 / (4 * (2 * 0.2 + 1)), abs=0.02)  # of Beta(.2, .2)


# --- RandAugment -----------------------------------------------------------------------------------------------

NOISE = np.random.default_rng(1).integers(256, size=(224, 224, 3), dtype=np.uint8)


def augmented(name: str, sign: int = 1, pixels: np.ndarray = NOISE) -> np.ndarray:
    return np.asarray(RANDAUGMENT[name](Image.fromarray(pixels), sign, np.random.default_rng(0))).astype(int)


def moved(source: Any) -> np.ndarray:
    """The pixels from which (row, column) -> (row, column) says; grey outside."""
    out = np.full_like(NOISE, 128).astype(int)
    for row, column in itertools.product(range(224), repeat=2):
        y, x = (math.floor(place) for place in source(row + 0.5, column + 0.5))
        if 0 <= y < 224 and 0 <= x < 224:
            out[row, column] = NOISE[y, x]
    return out


@pytest.mark.parametrize("sign", [-1, 1])
@pytest.mark.parametrize("name", ["shear_x", "shear_y", "translate_x", "translate_y", "rotate"])
def test_geometric_operations(name: str, sign: int) -> None:
    turn = math.radians(sign * 30)
    sources: dict[str, Any] = {
        "shear_x": lambda y, x: (y, x + sign * 0.3 * y),
        "shear_y": lambda y, x: (y + sign * 0.3 * x, x),
        "translate_x": lambda y, x: (y, x - sign * 100),
        "translate_y": lambda y, x: (y - sign * 100, x),
        "rotate": lambda y, x: (  # counter-clockwise around the middle, the row axis pointing down
            112 + (x - 112) * math.sin(turn) + (y - 112) * math.cos(turn),
            112 + (x - 112) * math.cos(turn) - (y - 112) * math.sin(turn),
        ),
    }
    same = (augmented(name, sign) == moved(sources[name])).all(-1).mean()
    assert same > 0.995  # points between two pixels may go to either


def test_colour_operations() -> None:
    x = NOISE.astype(int)
    assert np.array_equal(augmented("invert"), 255 - x)
    assert np.array_equal(augmented("posterize"), x & 0b11110000)
    assert np.array_equal(augmented("solarize"), x)
    assert np.array_equal(augmented("solarize_add"), np.where(x < 128, np.minimum(x + 110, 255), x))
    assert np.abs(augmented("brightness") - np.minimum(1.9 * x, 255)).max() <= 1
    grey = x @ [0.299, 0.587, 0.114]
    assert np.abs(augmented("color") - np.clip(grey[..., None] + 1.9 * (x - grey[..., None]), 0, 255)).max() <= 2
    assert np.abs(augmented("contrast") - np.clip(grey.mean() + 1.9 * (x - grey.mean()), 0, 255)).max() <= 2
    smooth = np.asarray(ImageEnhance.Sharpness(Image.fromarray(NOISE)).enhance(0.0)).astype(int)
    assert np.abs(augmented("sharpness") - np.clip(smooth + 1.9 * (x - smooth), 0, 255)).max() <= 1
    dull = (NOISE // 4 + 60).astype(np.uint8)  # 60 … 123
    stretched = augmented("autocontrast", pixels=dull)
    assert (stretched.min(), stretched.max()) == (0, 255)
    assert np.abs(stretched - (dull.astype(int) - 60) * 255 / 63).max() <= 1
    counts = np.bincount(augmented("equalize", pixels=(NOISE.astype(int) ** 2 // 255).astype(np.uint8))[..., 0].ravel())
    assert np.abs(np.cumsum(counts) / counts.sum() - np.arange(len(counts)) / 255).max() < 0.1


def test_cutout_is_a_grey_square() -> None:
    sizes, centres = [], []
    random = np.random.default_rng(0)
    for _ in range(200):
        holed = np.asarray(RANDAUGMENT["cutout"](Image.fromarray(NOISE), 1, random))
        rows, columns = np.where((holed == 128).all(-1) & ~(NOISE == 128).all(-1))
        sizes.append((np.ptp(rows) + 1, np.ptp(columns) + 1))
        centres.append((rows.mean(), columns.mean()))
        assert len(rows) == pytest.approx(np.prod(sizes[-1]), rel=0.01)
        hole = (slice(rows.min(), rows.max() + 1), slice(columns.min(), columns.max() + 1))
        outside = np.ones((224, 224), bool)
        outside[hole] = False
        assert np.array_equal(holed[outside], NOISE[outside])
    assert np.max(sizes) == 81  # Pillow's rectangle has both its ends
    assert 41 <= np.min(sizes) < 60  # cut off at the right and lower edge
    assert np.mean(centres, 0) == pytest.approx([112, 112], abs=15)


@pytest.mark.usefixtures("folder")
def test_two_operations_a_picture_in_training_alone() -> None:
    names: list[str] = []
    kept = dict(RANDAUGMENT)
    try:
        for name, operation in kept.items():
            RANDAUGMENT[name] = lambda p, s, r, name=name, operation=operation: names.append(name) or operation(p, s, r)
        batches = tiny(side=8, mixup=0.0).batches(0, 1)
        for _ in range(60):
            next(batches)
        assert len(names) == 60 * 4 * 2
        counts = np.array([names.count(name) for name in kept])
        assert (np.abs(counts - 30) < 25).all()
        next(iter(tiny().eval_batches("validation")))
        assert len(names) == 480
    finally:
        RANDAUGMENT.update(kept)
    assert len(kept) == 16
