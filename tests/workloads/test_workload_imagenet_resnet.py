"""The residual network and its batch norm under averages; ImageNet in folders; AlgoPerf's ResNet-50."""

from __future__ import annotations

import copy
import dataclasses
import itertools
import shutil
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from full_data import CLASSES, TEST_PICTURES, TRAIN_PICTURES, VALIDATION_PICTURES, small, write_picture
from PIL import Image
from torch import Tensor, nn

from wa import LAWA, Bank
from wa.buffers import recompute_statistics
from workloads.data import BadData
from workloads.imagenet import MEAN, STD, clip_art, listing, normalized, random_box
from workloads.imagenet_resnet import PRESETS, Residual, ResNet50, SmallResNet
from workloads.layers import lecun_normal_
from workloads.task import epoch_order

FAMILY = "imagenet_resnet"
tiny = partial(small, FAMILY)
MINI, FULL = PRESETS["mini"], PRESETS["full"]
assert isinstance(MINI, SmallResNet)
assert isinstance(FULL, ResNet50)


# --- the network -----------------------------------------------------------------------------------------------


def test_a_residual_block_is_its_equation() -> None:
    torch.manual_seed(0)
    block = Residual(4, [(6, 3, 2), (6, 3, 1)])
    for parameter in block.parameters():
        nn.init.normal_(parameter)
    x = torch.randn(5, 4, 9, 9)
    # names: of f, convolution 0 and 2 (1 is the relu); in each the convolution 0 and its norm 1
    weights = dict(block.named_parameters())

    def convolved(x: Tensor, name: str, stride: int) -> Tensor:
        kernel = weights[f"{name}.0.weight"]
        y = F.conv2d(x, kernel, stride=stride, padding=kernel.shape[-1] // 2)
        mean, var = y.mean((0, 2, 3), keepdim=True), y.var((0, 2, 3), unbiased=False, keepdim=True)
        gain, bias = (weights[f"{name}.1.{kind}"][:, None, None] for kind in ("weight", "bias"))
        return gain * (y - mean) / (var + 1e-5).sqrt() + bias

    f = convolved(convolved(x, "f.0", 2).clamp(min=0), "f.2", 1)
    expected = (f + convolved(x, "shortcut", 2)).clamp(min=0)
    torch.testing.assert_close(block.train()(x), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("preset", ["mini", "full"])
def test_residual_branches_start_silent(preset: str) -> None:
    torch.manual_seed(0)
    workload = tiny(depths=(2, 2)) if preset == "full" else MINI
    model = workload.model()
    blocks = [module for module in model.modules() if isinstance(module, Residual)]
    assert len(blocks) == {"mini": 2, "full": 4}[preset]
    for block in blocks:
        norms = [module for module in block.f.modules() if isinstance(module, nn.BatchNorm2d)]
        assert [norm.weight.abs().sum().item() == 0 for norm in norms] == [False] * (len(norms) - 1) + [True]
    block = blocks[-1].train()  # its shortcut is the identity in full
    x = torch.rand(2, 512 if preset == "full" else 32, 8, 8)
    assert torch.equal(block(x), F.relu(block.shortcut(x)))


def test_lecun_normal_has_the_variance_it_says() -> None:
    torch.manual_seed(0)
    weight = torch.empty(400, 50, 3, 3)
    lecun_normal_(weight)
    assert weight.var().item() * 450 == pytest.approx(1.0, rel=0.01)
    assert weight.abs().max().item() == pytest.approx(2 / (450**0.5 * 0.8796), rel=0.01)


@pytest.mark.parametrize(("option", "value"), [("widths", (8, 32, 64)), ("widths", (16, 32, 32, 64))])
def test_widths_make_the_network(option: str, value: tuple[int, ...]) -> None:
    model = dataclasses.replace(MINI, **{option: value}).model()
    pictures = torch.zeros(2, 32, 32, 3, dtype=torch.uint8)
    assert model(pictures).shape == (2, 13)
    assert sum(isinstance(module, Residual) for module in model.modules()) == len(value) - 1


# --- batch norm under averages ---------------------------------------------------------------------------------


def trained(workload: Any, schemes: list[Any], num_steps: int) -> tuple[nn.Module, Bank, list[dict[str, Tensor]]]:
    """A few large steps of plain gradient descent, and the model's state after each."""
    torch.manual_seed(0)
    model = workload.model().train()
    bank = Bank(model, schemes)
    states = []
    for step, batch in enumerate(itertools.islice(workload.batches(0, 1), num_steps), start=1):
        model.zero_grad()
        workload.loss(model, batch).backward()
        with torch.no_grad():
            for parameter in model.parameters():
                assert parameter.grad is not None
                parameter -= 0.1 * parameter.grad
        bank.update(step)
        states.append(copy.deepcopy(model.state_dict()))
    return model, bank, states


def updated_by_torch(model: nn.Module, workload: Any, num_batches: int) -> dict[str, Tensor]:
    """The buffers that torch's own update_bn gives, on a copy."""
    copied = copy.deepcopy(model)
    pictures = [batch[0] for batch in itertools.islice(workload.batches(7, 1), num_batches)]
    torch.optim.swa_utils.update_bn(pictures, copied)
    return {name: value for name, value in copied.named_buffers() if "running" in name}


def forwards(model: nn.Module, workload: Any, num_batches: int) -> Iterator[Tensor]:
    for batch in itertools.islice(workload.batches(7, 1), num_batches):
        yield workload.loss(model, batch)


def test_recomputed_statistics_are_those_of_torch() -> None:
    model, _, _ = trained(MINI, [], 5)
    expected = updated_by_torch(model, MINI, 20)
    stale = {name: value.clone() for name, value in model.named_buffers()}
    assert recompute_statistics(model, forwards(model, MINI, 20)) == 20
    found = dict(model.named_buffers())
    assert len(expected) == 2 * 7  # a mean and a variance of the stem, and of three convolutions a block
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-5, atol=1e-6)
        assert not torch.allclose(found[name], stale[name], rtol=1e-2)


@pytest.mark.parametrize("preset", ["mini", "full"])
def test_all_buffer_policies(preset: str, folder: Path) -> None:
    workload: Any = MINI if preset == "mini" else tiny(depths=(1, 1), side=32, batch_size=4)
    live, average, recompute = (LAWA(k=2, every=1, buffers=policy) for policy in ("live", "average", "recompute"))
    model, bank, states = trained(workload, [live, average, recompute], 6)
    names = [name for name, _ in model.named_buffers() if "running" in name]
    assert names
    found = {}
    for scheme in (live, average, recompute):
        again = lambda model: forwards(model, workload, 3)  # noqa: E731
        with bank.swapped(scheme, recompute=again if scheme is recompute else None):
            found[scheme] = copy.deepcopy(model)
    for name in names:
        buffers = {scheme: dict(other.named_buffers())[name] for scheme, other in found.items()}
        assert torch.equal(buffers[live], states[-1][name])
        torch.testing.assert_close(buffers[average], (states[-1][name] + states[-2][name]) / 2)
    expected = updated_by_torch(found[recompute], workload, 3)
    for name in names:
        actual = dict(found[recompute].named_buffers())[name]
        torch.testing.assert_close(actual, expected[name], rtol=1e-4, atol=1e-5)
    for name, value in model.state_dict().items():
        assert torch.equal(value, states[-1][name])
    batch = next(iter(workload.eval_batches("validation")))
    with torch.no_grad():
        losses = [workload.eval_step(other.eval(), batch)["loss"].item() for other in found.values()]
    assert len(set(losses)) == 3
    assert np.isfinite(losses).all()


# --- parts -----------------------------------------------------------------------------------------------------


# --- ResNet-50 -------------------------------------------------------------------------------------------------


def test_label_smoothing_is_in_training_alone() -> None:
    workload = tiny()

    class Fixed(nn.Module):
        def forward(self, pictures: Tensor) -> Tensor:
            return torch.tensor([[2.0, 0.0, -1.0], [0.5, 1.0, 0.0]])

    labels = torch.tensor([0, 2])
    log_p = np.log(np.exp([[2, 0, -1], [0.5, 1, 0]]) / np.exp([[2, 0, -1], [0.5, 1, 0]]).sum(1, keepdims=True))
    target = 0.9 * np.eye(3)[[0, 2]] + 0.1 / 3
    batch = (torch.zeros(2, 1, 1, 3), labels)
    assert workload.loss(Fixed(), batch).item() == pytest.approx(-(target * log_p).sum(1).mean(), rel=1e-6)
    sums = workload.eval_step(Fixed(), batch)
    assert sums["loss"].item() == pytest.approx(-log_p[[0, 1], [0, 2]].sum(), rel=1e-6)
    assert sums["correct"] == 1


# --- ImageNet in folders ---------------------------------------------------------------------------------------


def test_labels_are_places_of_sorted_folders(folder: Path) -> None:
    for split, each in (("train", TRAIN_PICTURES), ("validation", VALIDATION_PICTURES), ("test", TEST_PICTURES)):
        pictures = tiny().source(split)
        assert pictures.labels.tolist() == [label for label in range(3) for _ in range(each)]
        folders = [path.split(b"/")[0].decode() for path in pictures.paths]
        names = [str(i) for i in range(3)] if split == "test" else CLASSES
        assert folders == [names[label] for label in pictures.labels]
    (batch,) = tiny(eval_batch_size=100).eval_batches("test")
    assert batch[1].tolist() == [0, 1, 2]
    with pytest.raises(ValueError, match="validation and test"):
        tiny().eval_batches("train")


def test_an_epoch_meets_each_picture_once(folder: Path) -> None:
    workload = tiny(side=16, batch_size=3, min_area=1.0, max_aspect=1.0)
    labels = [batch[1].tolist() for batch in itertools.islice(workload.batches(0, 1), 6)]
    for epoch in (labels[:3], labels[3:]):
        assert sorted(itertools.chain(*epoch)) == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    assert labels[:3] != labels[3:]
    orders = [epoch_order((0, seed, epoch), 50).tolist() for seed, epoch in ((0, 0), (0, 1), (1, 0))]
    assert all(sorted(order) == list(range(50)) for order in orders)
    assert len({tuple(order) for order in orders}) == 3


def test_random_boxes_are_as_described() -> None:
    random = np.random.default_rng(0)
    boxes = np.array([random_box(400, 300, 0.08, 4 / 3, random) for _ in range(3000)])
    left, top, right, bottom = boxes.T
    assert left.min() >= 0
    assert top.min() >= 0
    assert right.max() <= 400
    assert bottom.max() <= 300
    width, height = right - left, bottom - top
    share, aspect = width * height / 120_000, width / height
    assert share.min() == pytest.approx(0.08, abs=0.004)
    assert 0.95 < share.max() <= 1.0
    assert share[share < 0.5].mean() == pytest.approx(0.29, abs=0.01)  # uniform where nearly every box fits
    small = np.log(aspect[share < 0.5])
    assert np.abs(small).max() == pytest.approx(np.log(4 / 3), abs=0.03)
    assert small.std() == pytest.approx(2 * np.log(4 / 3) / 12**0.5, rel=0.05)
    room = (400 - width)[share < 0.2]
    assert (left[share < 0.2] / room).mean() == pytest.approx(0.5, abs=0.03)


@pytest.mark.parametrize(("size", "box"), [((1000, 30), (480, 0, 520, 30)), ((30, 1000), (0, 480, 30, 520))])
def test_a_picture_too_long_is_cut_in_its_middle(size: tuple[int, int], box: tuple[int, ...]) -> None:
    assert random_box(*size, 0.5, 4 / 3, np.random.default_rng(0)) == box


def test_a_training_picture_is_a_crop_maybe_mirrored(own_folder: Path) -> None:
    """Pictures whose colours are places: red grows to the right, green downwards."""
    x, y = np.meshgrid(np.linspace(0, 255, 300), np.linspace(0, 255, 200))
    places = Image.fromarray(np.stack([x, y, 0 * x], -1).astype(np.uint8))
    for path in (own_folder / "train").rglob("*.JPEG"):
        places.save(path, "JPEG", quality=100, subsampling=0)
    workload = tiny(side=64, batch_size=9)
    pictures = torch.cat([batch[0] for batch in itertools.islice(workload.batches(0, 1), 5)]).double()
    across = pictures[:, :, -1, 0].mean(1) - pictures[:, :, 0, 0].mean(1)
    down = pictures[:, -1, :, 1].mean(1) - pictures[:, 0, :, 1].mean(1)
    assert down.min() > 0
    assert 0.25 < (across < 0).double().mean() < 0.75  # half are mirrored
    share = across.abs() / 255 * down / 255 * (64 / 63) ** 2  # first and last pixel are 63 apart
    assert 0.05 < share.min() < 0.2
    assert 0.6 < share.max() < 1.05
    aspect = across.abs() * 300 / (down * 200)
    assert 0.7 < aspect.min() < 0.9
    assert 1.1 < aspect.max() < 1.4


@pytest.mark.parametrize("index", [0, 1])
def test_evaluation_sees_the_resized_middle(index: int, folder: Path) -> None:
    pictures = tiny().source("validation")
    original = np.asarray(pictures.read(index))  # 231 × 341, 231 × 191
    height, width = original.shape[:2]
    scale = 256 / min(height, width)
    size = (int(height * scale + 1e-9), int(width * scale + 1e-9))
    stacked = torch.from_numpy(original.copy()).permute(2, 0, 1)[None].double()
    resized = F.interpolate(stacked, size=size, mode="bilinear", antialias=True)[0].permute(1, 2, 0)
    top, left = (size[0] - 224) // 2, (size[1] - 224) // 2
    expected = resized[top : top + 224, left : left + 224]
    found = next(iter(tiny().eval_batches("validation")))[0][index]
    assert found.shape == (224, 224, 3)
    assert (found.double() - expected).abs().max() < 1.5  # Pillow rounds between its two passes


def test_normalization_is_that_of_imagenet() -> None:
    pictures = torch.tensor([[[[0, 0, 0], [255, 128, 1]]]], dtype=torch.uint8)
    expected = (pictures.double() / 255 - torch.tensor([0.485, 0.456, 0.406])) / torch.tensor([0.229, 0.224, 0.225])
    torch.testing.assert_close(normalized(pictures).double(), expected, rtol=1e-5, atol=1e-5)
    assert normalized(pictures).dtype == torch.float32
    assert (MEAN[0], STD[2]) == (0.485 * 255, 0.225 * 255)


def test_grey_and_cmyk_files_are_read_as_rgb(own_folder: Path) -> None:
    path = own_folder / "val" / CLASSES[0] / "ILSVRC2012_val_00000000.JPEG"
    for mode in ("L", "CMYK"):
        Image.new(mode, (300, 280), 0 if mode == "L" else (0, 0, 0, 0)).save(path, "JPEG")
        pictures, _ = next(iter(tiny().eval_batches("validation")))
        assert pictures[0].float().mean() == pytest.approx(0 if mode == "L" else 255, abs=1)


# --- data that is not there, or not right ----------------------------------------------------------------------


def spoil(folder: Path, how: str) -> Path:
    """Spoil the data in one way; the path to blame."""
    train, val = folder / "train", folder / "val"
    if how == "no train":
        shutil.rmtree(train)
        return train
    if how == "too few classes":
        shutil.rmtree(train / CLASSES[1])
        return train
    if how == "class missing in val":
        shutil.rmtree(val / CLASSES[1])
        return val / CLASSES[1]
    if how == "val not sorted into classes":
        shutil.rmtree(val)
        write_picture(val / "ILSVRC2012_val_00000001.JPEG", 30, 30, 0)
        return val
    if how == "class of another data set":
        (val / CLASSES[1]).rename(val / "cats")
        return val / "cats"
    if how == "empty class":
        for path in (train / CLASSES[2]).iterdir():
            path.rename(path.with_suffix(".txt"))
        return train / CLASSES[2]
    path = train / CLASSES[0] / f"{CLASSES[0]}_0.JPEG"
    path.write_bytes({"no picture": b"not found\n" * 20, "cut off": path.read_bytes()[:700]}[how])
    return path


@pytest.mark.parametrize(
    "how",
    [
        *("no train", "too few classes", "class missing in val", "val not sorted into classes"),
        *("class of another data set", "empty class", "no picture", "cut off"),
    ],
)
def test_bad_data_is_named_in_one_line(how: str, own_folder: Path) -> None:
    blamed = spoil(own_folder, how)
    with pytest.raises(BadData) as caught:
        tiny().check_data()
    assert str(blamed) in str(caught.value)
    assert "should" in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1
    with pytest.raises(BadData, match=str(blamed)):
        read_everything(tiny(side=16, batch_size=3))


def read_everything(workload: ResNet50) -> None:
    assert len(list(workload.eval_batches("validation"))) == 2
    assert len(list(itertools.islice(workload.batches(0, 1), 3))) == 3


def test_a_picture_that_vanishes_is_named(own_folder: Path) -> None:
    batches = iter(tiny(eval_batch_size=1).eval_batches("validation"))
    next(batches)
    path = sorted((own_folder / "val" / CLASSES[0]).iterdir())[1]
    path.unlink()
    with pytest.raises(BadData, match=str(path)):
        next(batches)


def test_too_few_pictures_for_a_batch(folder: Path) -> None:
    with pytest.raises(BadData, match=rf"{folder / 'train'}: has 9 pictures; a batch alone is 10"):
        tiny(batch_size=10).check_data()


def test_the_test_set_may_be_missing_until_asked_for(own_folder: Path) -> None:
    shutil.rmtree(own_folder / "imagenet_v2")
    tiny().check_data()
    with pytest.raises(BadData, match=f"{own_folder / 'imagenet_v2'}: no such folder"):
        tiny().eval_batches("test")


def test_folders_are_listed_once(folder: Path) -> None:
    assert listing(folder, "train", 3) is listing(folder, "train", 3)


def test_clip_art_is_what_the_mini_sees() -> None:
    pictures, labels = clip_art("validation")
    batches = list(MINI.eval_batches("validation"))
    assert np.array_equal(torch.cat([batch[0] for batch in batches]).numpy(), pictures)
    assert np.array_equal(torch.cat([batch[1] for batch in batches]).numpy(), labels)
