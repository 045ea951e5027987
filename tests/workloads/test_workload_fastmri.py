"""The U-Net on MRI: masks, transforms and SSIM against naive oracles; fastMRI's files read, divided, refused."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from batches import added_up
from full_data import small as small_preset
from full_data import write_volume
from torch import nn

from workloads.data import BadData
from workloads.fastmri import (
    PRESETS,
    Brains,
    Example,
    Knees,
    UNet,
    brain_slices,
    example,
    measured_columns,
    structural_similarity,
)
from workloads.fastmri_files import evaluation_uniform, philox
from workloads.protocol import Part

FAMILY = "fastmri"
MINI, FULL = PRESETS["mini"], PRESETS["full"]
TRIVIAL_LOSS, TRIVIAL_SSIM = 0.2384, 0.5451  # of the zero-filled images, as documented
assert isinstance(MINI, Brains)
assert isinstance(FULL, Knees)


def joined(parts: Iterable[Example]) -> Example:
    return Example(*map(torch.cat, zip(*parts, strict=True)))


# masks


@pytest.mark.parametrize(("columns", "center"), [(64, 5), (320, 25), (368, 29), (372, 29), (400, 32)])
def test_the_middle_is_always_measured_and_a_quarter_on_average(columns: int, center: int) -> None:
    nothing_else = measured_columns(np.full(columns, 0.999, np.float32))
    first = (columns - center + 1) // 2
    assert np.flatnonzero(nothing_else).tolist() == list(range(first, first + center))
    assert nothing_else[columns // 2], "the zero frequency"
    assert measured_columns(np.zeros(columns, np.float32)).all()
    draws = np.random.default_rng(0).random((2000, columns), np.float32)
    counts = np.array([measured_columns(draw).sum() for draw in draws])
    assert counts.mean() == pytest.approx(columns / 4, abs=5 * counts.std() / len(draws) ** 0.5)


def test_evaluation_masks_are_tensorflows() -> None:
    zeros = np.zeros((1, 4), np.uint64)
    ones = np.full((1, 4), 2**32 - 1, np.uint64)
    # the known answers of Random123 for philox4x32-10
    assert philox(zeros, (0, 0)).tolist() == [[0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]]
    assert philox(ones, (2**32 - 1, 2**32 - 1)).tolist() == [[0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD]]
    # printed by tf.random.stateless_uniform((400,), seed=(0, 0)), TensorFlow 2.21 on a CPU
    expected = [0.2110154628753662, 0.7060099840164185, 0.8000633716583252, 0.7707922458648682]
    expected += [0.38858866691589355, 0.8703594207763672, 0.8081874847412109, 0.19694089889526367]
    expected += [0.8492707014083862, 0.5401760339736938]
    assert evaluation_uniform(400)[:10].tolist() == expected
    assert np.array_equal(evaluation_uniform(373), evaluation_uniform(400)[:373])
    measured = {columns: int(measured_columns(evaluation_uniform(columns)).sum()) for columns in (320, 368, 400)}
    assert measured == {320: 80, 368: 97, 400: 108}


# examples


def naive_example(
    kspace: np.ndarray, target: np.ndarray, measured: np.ndarray
) -> tuple[np.ndarray, np.ndarray, float, float]:
    """By Fourier sums with centred indices, in double precision."""

    def inverse(n: int) -> np.ndarray:
        centred = np.arange(n) - n // 2
        waves: np.ndarray = np.exp(2j * np.pi * np.outer(centred, centred) / n) / np.sqrt(n)
        return waves

    rows, columns = kspace.shape
    image = inverse(rows) @ (kspace * measured) @ inverse(columns).T
    height, width = target.shape
    top, left = (rows - height) // 2, (columns - width) // 2
    magnitude = np.abs(image[top : top + height, left : left + width])
    mean, std = magnitude.mean(), magnitude.std()
    inputs, targets = (np.clip((x - mean) / std, -6, 6) for x in (magnitude, target))
    return inputs, targets, mean, std


def test_an_example_is_the_cropped_normalized_zero_filled_image() -> None:
    random = np.random.default_rng(0)
    kspace = (random.normal(size=(41, 31)) + 1j * random.normal(size=(41, 31))).astype(np.complex64)
    target = random.gamma(0.3, 4.0, (16, 20)).astype(np.float32)  # some of it beyond six deviations
    uniform = random.random(31, np.float32)
    found = example(kspace, target, 7.0, uniform)
    inputs, targets, mean, std = naive_example(kspace, target, measured_columns(uniform))
    assert np.allclose(found.inputs, inputs, atol=1e-5)
    assert np.allclose(found.targets, targets, atol=1e-4)
    assert found.targets.max() == 6
    assert (found.mean, found.std, found.volume_max) == pytest.approx((mean, std, 7.0), rel=1e-5)
    assert found.inputs.dtype == found.targets.dtype == np.float32


def test_fully_measured_the_simulation_gives_the_image_back() -> None:
    images, _ = brain_slices("train")
    shifted = np.fft.fftshift(np.fft.fft2(np.fft.ifftshift(images[200]), norm="ortho")).astype(np.complex64)
    found = example(shifted, images[200], 1.0, np.zeros(64, np.float32))
    assert np.allclose(found.inputs, found.targets, atol=1e-5)
    assert found.mean == pytest.approx(images[200].mean(), rel=1e-5)


# SSIM


def naive_ssim(x: np.ndarray, y: np.ndarray, data_range: float) -> float:
    """Window by window."""
    c1, c2 = (0.01 * data_range) ** 2, (0.03 * data_range) ** 2
    found = []
    for i, j in itertools.product(range(x.shape[0] - 6), range(x.shape[1] - 6)):
        a, b = x[i : i + 7, j : j + 7].ravel(), y[i : i + 7, j : j + 7].ravel()
        covariance = np.cov(a, b)  # divides by n − 1
        top = (2 * a.mean() * b.mean() + c1) * (2 * covariance[0, 1] + c2)
        found.append(top / ((a.mean() ** 2 + b.mean() ** 2 + c1) * (np.trace(covariance) + c2)))
    return float(np.mean(found))


def test_ssim_is_that_of_a_naive_oracle() -> None:
    random = np.random.default_rng(1)
    x = random.gamma(2.0, 1e-5, (3, 14, 19))  # the scale of fastMRI's images
    y = x + random.normal(0, 1e-5, x.shape) * np.array([0.1, 1.0, 3.0])[:, None, None]
    data_range = np.array([5e-5, 1e-4, 2e-4])
    found = structural_similarity(*(torch.from_numpy(array).float() for array in (x, y, data_range)))
    expected = [naive_ssim(*triple) for triple in zip(x, y, data_range, strict=True)]
    assert found.tolist() == pytest.approx(expected, abs=1e-4)
    assert expected[0] > expected[1] > expected[2]
    itself = structural_similarity(*(torch.from_numpy(array).float() for array in (x, x, data_range)))
    assert itself.tolist() == pytest.approx([1, 1, 1], abs=1e-6)


# the network


def test_initial_weights_are_lecun_normal_cut_at_two_deviations() -> None:
    torch.manual_seed(0)
    model = UNet(num_channels=16, num_pools=2)
    for module in model.modules():
        if isinstance(module, nn.Conv2d | nn.ConvTranspose2d) and module.weight.numel() > 2000:
            deviation = module.weight[0].numel() ** -0.5
            assert module.weight.std().item() == pytest.approx(deviation, rel=0.1)
            assert module.weight.abs().max() <= 2 * deviation / 0.8796
    assert not model.head.bias.any()


def test_every_size_and_both_ends_of_the_image_matter() -> None:
    torch.manual_seed(0)
    model = UNet(num_channels=4, num_pools=3).eval()
    images = torch.randn(2, 32, 48)
    with torch.inference_mode():
        whole = model(images)
        assert whole.shape == images.shape
        assert torch.allclose(whole[1:], model(images[1:]), atol=1e-5)  # instances, not batches, are normalized
        moved = images.clone()
        moved[:, 0, 0] += 1
        assert (model(moved) != whole)[:, -1, -1].all()
    model.zero_grad()
    model(images).square().mean().backward()
    assert all(bool(parameter.grad.any()) for parameter in model.parameters())


def test_each_size_is_seen_again_on_the_way_up() -> None:
    """Without what comes from below, the output hangs on the first size's own features alone."""
    torch.manual_seed(0)
    model = UNet(num_channels=4, num_pools=2).eval()
    images = torch.randn(1, 16, 16)
    with torch.inference_mode():
        whole = model(images)
        model.up[-1][0].weight[:, :4] = 0
        alone = model(images)
        assert not torch.allclose(alone, whole, atol=1e-3)
        for module in (model.down[1], model.bottom, model.grow, model.up[0]):
            for parameter in module.parameters():
                parameter.neg_()
        assert torch.equal(model(images), alone)
        model.down[0][0].weight.neg_()
        assert not torch.allclose(model(images), alone, atol=1e-3)


def test_dropout_is_of_whole_channels_and_off_in_evaluation() -> None:
    torch.manual_seed(0)
    model = UNet(num_channels=4, num_pools=2, dropout=0.5)
    assert sum(isinstance(module, nn.Dropout2d) for module in model.modules()) == 10
    images = torch.randn(1, 16, 16)
    assert not torch.equal(model.train()(images), model(images))
    assert torch.equal(model.eval()(images), model(images))


# loss and evaluation, on the mini


class Repeating(nn.Module):
    """The trivial predictor: the zero-filled image."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return images


def test_evaluation_is_the_mean_over_slices() -> None:
    batches = list(MINI.eval_batches("validation"))
    sums = added_up(MINI, Repeating(), batches)
    slices = joined(batches)
    losses = [(a - b).abs().mean().item() for a, b in zip(slices.inputs, slices.targets, strict=True)]
    similarities = [
        naive_ssim((x * std + mean).numpy(), (y * std + mean).numpy(), volume_max.item())
        for x, y, mean, std, volume_max in itertools.islice(zip(*slices, strict=True), 0, None, 16)
    ]
    assert similarities[0] == pytest.approx(
        added_up(MINI, Repeating(), [Example(*(x[:1] for x in slices))])["ssim"], abs=1e-4
    )
    summary = MINI.summarize(sums)
    assert summary.examples == MINI.num_eval_slices == len(losses)
    assert summary.loss == summary.metric == pytest.approx(np.mean(losses), rel=1e-6)
    assert summary.loss == pytest.approx(TRIVIAL_LOSS, abs=5e-4)
    assert summary.metrics["ssim"] == pytest.approx(TRIVIAL_SSIM, abs=5e-4)


def test_a_batch_has_no_more_parts_than_slices() -> None:
    with pytest.raises(ValueError, match="no 6 parts"):
        next(dataclasses.replace(MINI, batch_size=5).batches(0, 1, Part(0, 6)))


def test_masks_are_fresh_and_slices_are_of_the_training_brain() -> None:
    workload = dataclasses.replace(MINI, batch_size=40)
    images, volume_max = brain_slices("train")
    known = {image.tobytes() for image in images}
    batch = next(workload.batches(0, 1))
    truths = (batch.targets * batch.std[:, None, None] + batch.mean[:, None, None]).round()
    clipped = (batch.targets.abs() == 6).flatten(1).any(1)
    assert clipped.sum() < 5
    for truth in truths[~clipped].numpy():
        assert np.abs(truth).tobytes() in known  # abs: no negative zeros
    assert set(batch.volume_max.tolist()) == {volume_max}
    errors = [float((x - y).abs().mean()) for x, y in zip(batch.inputs, batch.targets, strict=True)]
    assert len(set(errors)) == len(errors)


def test_the_two_brains_share_no_slice() -> None:
    (train, _), (validation, _) = brain_slices("train"), brain_slices("validation")
    assert (len(train), len(validation)) == (400, 206)
    flat = [images.reshape(len(images), -1) for images in (train, validation)]
    unit = [x / np.linalg.norm(x, axis=1, keepdims=True) for x in flat]
    assert (unit[0] @ unit[1].T).max() < 0.995
    assert (np.sort(unit[0] @ unit[0].T)[:, -2]).mean() > 0.97  # neighbours of one brain: so alike they leak


# the full preset


@pytest.fixture
def small(folder: Path) -> Knees:
    found = small_preset(FAMILY)
    assert isinstance(found, Knees)
    return found


def test_examples_are_those_of_the_files(small: Knees, folder: Path) -> None:
    path = folder / "knee_singlecoil_val" / "file1000000.h5"
    batch = next(iter(small.eval_batches("validation")))
    with h5py.File(path) as file:
        kspace, truth, volume_max = file["kspace"][1], file["reconstruction_esc"][1], file.attrs["max"]
    measured = measured_columns(evaluation_uniform(372))
    inputs, targets, mean, std = naive_example(kspace, truth, measured)
    assert np.allclose(batch.inputs[1], inputs, atol=1e-4)
    assert np.allclose(batch.targets[1], targets, atol=1e-4)
    assert (batch.mean[1].item(), batch.std[1].item()) == pytest.approx((mean, std), rel=1e-4)
    assert batch.volume_max[1].item() == pytest.approx(volume_max)
    sums = added_up(small, Repeating(), [Example(*(x[1:] for x in batch))])
    middle = np.s_[100:130, 100:130]  # the whole would take the oracle too long
    found = structural_similarity(
        *(torch.from_numpy(x[middle] * std + mean).float()[None] for x in (inputs, targets)), batch.volume_max[1:2]
    )
    assert found.item() == pytest.approx(
        naive_ssim(inputs[middle] * std + mean, targets[middle] * std + mean, volume_max), abs=1e-4
    )
    assert 0 < sums["ssim"] < 1


def test_an_epoch_has_each_slice_once_with_its_own_lasting_mask(small: Knees) -> None:
    """5 slices, 2 a batch: 5 batches are two epochs. A slice is known by its zero-filled mean and its maximum."""

    def slices(seed: int) -> list[tuple[float, ...]]:
        stream = joined(itertools.islice(small.batches(seed, 1), 5))
        return list(zip(stream.mean.tolist(), stream.std.tolist(), stream.volume_max.tolist(), strict=True))

    stream = slices(1)
    first, second = stream[:5], stream[5:]
    assert len(set(first)) == 5
    assert sorted(first) == sorted(second)
    assert first != second, "each epoch has its own order"
    volumes = [volume_max for _, _, volume_max in first]
    assert sorted(volumes.count(volume_max) for volume_max in volumes) == [2, 2, 3, 3, 3]
    assert not set(slices(2)) & set(stream), "another seed, other masks"


def test_splits_are_the_first_volumes_and_the_rest(small: Knees) -> None:
    validation, test = (joined(small.eval_batches(split)) for split in ("validation", "test"))
    assert (len(validation.inputs), len(test.inputs)) == (3, 2)
    assert len(set(validation.volume_max.tolist())) == 2
    assert not set(validation.volume_max.tolist()) & set(test.volume_max.tolist())
    with pytest.raises(ValueError, match="validation and test"):
        small.eval_batches("tset")
    with pytest.raises(BadData, match="3 files"):
        dataclasses.replace(small, num_validation_volumes=3).eval_batches("test")


def test_missing_and_malformed_files_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    workload = dataclasses.replace(FULL, batch_size=1, num_workers=0)
    monkeypatch.setenv("WA_DATA_DIR", str(tmp_path))
    for split in ("train", "val"):
        (tmp_path / "fastmri" / f"knee_singlecoil_{split}").mkdir(parents=True)
    with pytest.raises(BadData, match=r"knee_singlecoil_train: no \*\.h5"):
        workload.batches(0, 1)
    for split in ("train", "val"):
        write_volume(tmp_path / "fastmri" / f"knee_singlecoil_{split}" / "file1.h5", 320, 1, 0)
    workload.check_data()

    path = tmp_path / "fastmri" / "knee_singlecoil_val" / "file2.h5"
    path.write_bytes(b"not HDF5")
    refused(workload, path)

    def rewritten(**changes: Any) -> None:
        content = {
            "kspace": np.zeros((2, 640, 320), np.complex64),
            "reconstruction_esc": np.zeros((2, 320, 320), np.float32),
        }
        with h5py.File(path, "w") as file:
            for name, value in {**content, **changes}.items():
                if value is not None and name in content:
                    file[name] = value
            if "max" not in changes:
                file.attrs["max"] = 1.0

    for changes in (
        {"kspace": None},
        {"reconstruction_esc": None},
        {"max": None},
        {"kspace": np.zeros((2, 640, 320, 2), np.float32)},
        {"kspace": np.zeros((1, 640, 320), np.complex64)},
        {"kspace": np.zeros((2, 300, 320), np.complex64)},
        {"reconstruction_esc": np.zeros((2, 320, 300), np.float32)},
    ):
        rewritten(**changes)
        refused(workload, path)
    rewritten()
    workload.check_data()


def refused(workload: Knees, path: Path) -> None:
    with pytest.raises(BadData, match="it should be an HDF5 file") as caught:
        workload.check_data()
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)
    with pytest.raises(BadData):
        workload.eval_batches("validation")


def test_damaged_slices_are_named_by_workers_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The heading is sound, so that it shows only when the slice is read."""
    monkeypatch.setenv("WA_DATA_DIR", str(tmp_path))
    folder = tmp_path / "fastmri" / "knee_singlecoil_train"
    folder.mkdir(parents=True)
    with h5py.File(folder / "file1.h5", "w") as file:
        truth = np.random.default_rng(0).random((1, 320, 320), np.float32)
        file["reconstruction_esc"], file.attrs["max"] = truth, 1.0
        kspace = file.create_dataset("kspace", data=truth.astype(np.complex64), compression="gzip")
        place = kspace.id.get_chunk_info(0).byte_offset
    with (folder / "file1.h5").open("r+b") as raw:
        raw.seek(place)
        raw.write(bytes(1000))
    for num_workers in (0, 1):
        batches = dataclasses.replace(FULL, batch_size=1, num_workers=num_workers).batches(0, 1)
        with pytest.raises(BadData, match=r"file1\.h5, slice 0"):
            next(batches)
