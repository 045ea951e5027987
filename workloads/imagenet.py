"""Image classification, as the ImageNet families share it: clip art in the minis, ImageNet in folders in full.

Pictures stay uint8, channels last, until the model turns them into `ink` (clip art) or `normalized` (ImageNet).
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageEnhance, ImageOps, UnidentifiedImageError
from torch import Tensor, nn

from workloads import data
from workloads.data.reading import in_batches, index, tiles
from workloads.layers import cached_tensors, constant
from workloads.protocol import Batch, Part, Summary, Sums
from workloads.task import FileTask, Task, epoch_batch

WHITE = 255  # the background of clip art, so what a shifted crop is filled with
GREY = (128, 128, 128)  # what RandAugment fills with
MEAN, STD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)  # of ImageNet's red, green, blue; of 255


@dataclass(frozen=True, kw_only=True)
class Classification(Task):
    """Cross-entropy in nats with label smoothing; accuracy is recorded whatever the metric.

    A batch is (pictures, labels): (n, side, side, 3) uint8 and (n,) int64. Evaluation does not smooth.
    """

    METRICS: ClassVar[Mapping[str, bool]] = {"loss": False, "accuracy": True}

    label_smoothing: float = 0.0

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        pictures, labels = batch
        return F.cross_entropy(model(pictures), labels, label_smoothing=self.label_smoothing)

    def loss_weight(self, batch: Batch) -> float:
        return float(len(batch[1]))

    def eval_step(self, model: nn.Module, batch: Batch) -> Sums:
        pictures, labels = batch
        logits = model(pictures)
        return {
            "loss": F.cross_entropy(logits, labels, reduction="none").double().sum(),
            "correct": (logits.argmax(-1) == labels).sum(),
            "examples": torch.tensor(len(labels)),
        }

    def summarize(self, sums: Mapping[str, float]) -> Summary:
        loss, accuracy = (float(sums[name] / sums["examples"]) for name in ("loss", "correct"))
        return self.summary(loss, sums["examples"], accuracy=accuracy)


# --- clip art --------------------------------------------------------------------------------------------------


def ink(pictures: Tensor) -> Tensor:
    """(…) of 0 … 255 -> float32, (255 − x)/64: white is 0, so padding is silent."""
    return (WHITE - pictures.float()) / 64


@cache
def clip_art(split: str) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Pictures (n, 32, 32, 3) and labels (n,) of one split."""
    return tiles("imagenet", split, "RGB"), np.array(index("imagenet.json")[split], dtype=np.int64)


@cache
def training_clip_art(margin: int) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """The training pictures with `margin` white pixels on every side, and their labels."""
    pictures, labels = clip_art("train")
    edge = (margin, margin)
    return np.pad(pictures, ((0, 0), edge, edge, (0, 0)), constant_values=WHITE), labels


@cached_tensors
def validation_batches(batch_size: int) -> tuple[tuple[Tensor, ...], ...]:
    """All validation pictures and labels, in the file's order."""
    return tuple(in_batches(clip_art("validation"), batch_size))


@dataclass(frozen=True, kw_only=True)
class ClipArt(Classification):
    """Small clip art with random shifts, filled with white, and flips."""

    side: int = 32
    max_shift: int = 2
    flip: bool = True
    eval_batch_size: int = 64

    @property
    def num_classes(self) -> int:
        return len(index("imagenet.json")["classes"])

    def source(self, split: str) -> Any:
        if split == "train":
            return training_clip_art(self.max_shift)
        return validation_batches(self.eval_batch_size)

    def train_batch(self, source: Any, seed: int, part: Part, step: int) -> Batch:
        pictures, labels = source
        random = np.random.default_rng([seed, step])
        chosen = random.integers(len(labels), size=self.batch_size)[part.every]
        corners = random.integers(2 * self.max_shift + 1, size=(self.batch_size, 2))[part.every].tolist()
        mirrored = (random.random(self.batch_size) < 0.5 * self.flip)[part.every].tolist()
        crops = [
            pictures[i, y : y + self.side, x : x + self.side][:, :: -1 if mirror else 1]
            for i, (y, x), mirror in zip(chosen.tolist(), corners, mirrored, strict=True)
        ]
        return torch.from_numpy(np.stack(crops)), torch.from_numpy(labels[chosen])


# --- ImageNet, from its folders --------------------------------------------------------------------------------

HOLDS = "train/<class>/*.JPEG and val/<class>/*.JPEG of ILSVRC 2012"
FOLDERS = {"train": "train", "validation": "val", "test": "imagenet_v2"}
ENDINGS = (".jpeg", ".jpg")


def normalized(pictures: Tensor) -> Tensor:
    """(…, 3) of 0 … 255 -> float32, (x − mean)/std of each colour."""
    mean, std = (constant(values, pictures.device) for values in (MEAN, STD))
    return (pictures - mean) / std


@dataclass(frozen=True)
class Pictures:
    """One split's pictures, class by class: paths below `folder` (n,) bytes, labels (n,) int64."""

    folder: Path
    paths: NDArray[np.bytes_]  # 1.3 million of them, sent to every worker process: an array, not a list
    labels: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.labels)

    def read(self, i: int) -> Image.Image:
        """Picture i in RGB. Raises: BadData."""
        path = self.folder / os.fsdecode(self.paths[i])
        try:
            with Image.open(path) as picture:
                return picture.convert("RGB")
        except FileNotFoundError as error:
            raise data.BadData(f"{path}: no such file any more; it should be a JPEG picture") from error
        except (UnidentifiedImageError, Image.DecompressionBombError, OSError) as error:
            reason = str(error).splitlines()[0]
            raise data.BadData(f"{path}: cannot be read ({reason}); it should be a JPEG picture") from error


def subfolders(folder: Path, holds: str) -> list[str]:
    """The names of the folders in `folder`, sorted. Raises: BadData where it is none itself."""
    if not folder.is_dir():
        raise data.BadData(f"{folder}: no such folder; it should hold {holds}")
    with os.scandir(folder) as entries:
        return sorted(entry.name for entry in entries if entry.is_dir())


@cache
def listing(root: Path, split: str, num_classes: int) -> Pictures:
    """What `root` has of a split. A label is the place of its class's folder among the sorted folders of train.

    The folders of "test", ImageNet-v2, are named by that place: 0 … 999. Raises: BadData.
    """
    holds = f"{num_classes} folders of pictures, one a class"
    classes = subfolders(root / "train", holds)
    if len(classes) != num_classes:
        raise data.BadData(f"{root / 'train'}: has {len(classes)} folders; it should have {num_classes}")
    names = [str(label) for label in range(num_classes)] if split == "test" else classes
    folder = root / FOLDERS[split]
    if odd := sorted({*names} ^ {*subfolders(folder, holds)}):
        lacking = "is missing" if odd[0] in names else f"is none of the {num_classes} classes"
        raise data.BadData(f"{folder / odd[0]}: {lacking}; {folder} should have one folder a class")
    paths, counts = [], []
    for name in names:
        files = sorted(file for file in os.listdir(folder / name) if file.lower().endswith(ENDINGS))
        if not files:
            raise data.BadData(f"{folder / name}: has no pictures; it should hold .JPEG files")
        paths += [os.fsencode(f"{name}/{file}") for file in files]
        counts.append(len(files))
    return Pictures(folder, np.array(paths), np.repeat(np.arange(num_classes), counts))


@dataclass(frozen=True, kw_only=True)
class ImageNet(Classification, FileTask):
    """ILSVRC 2012: random resized crops and flips, then RandAugment and mixup where asked for.

    randaugment: operations a picture. mixup: α of Beta(α, α), 0 for none. With mixup a training batch is
    (pictures, labels, weight): (n + 1, side, side, 3) uint8, the first one being the neighbour the second is mixed
    with; (n, 2) int64, its own and its neighbour's label; a float32 scalar.
    num_workers: processes that load, each a batch at a time.
    """

    num_classes: int = 1000
    side: int = 224
    resized: int = 256
    min_area: float = 0.08
    max_aspect: float = 4 / 3
    randaugment: int = 0
    mixup: float = 0.0
    eval_batch_size: int = 1024
    num_workers: int = 16
    splits = ("validation", "test")

    def source(self, split: str) -> Pictures:
        return listing(data.dataset("imagenet", HOLDS), split, self.num_classes)

    def check_data(self) -> None:
        """Folders and classes of both splits, and one picture of each. Raises: BadData."""
        train, validation = self.source("train"), self.source("validation")
        if len(train) < self.batch_size:
            raise data.BadData(f"{train.folder}: has {len(train)} pictures; a batch alone is {self.batch_size}")
        train.read(0)
        validation.read(0)

    def train_batch(self, source: Pictures, seed: int, part: Part, step: int) -> Batch:
        _, _, order = epoch_batch((0, seed), step, self.batch_size, len(source))
        first, stop = (i * self.batch_size // part.count for i in (part.index, part.index + 1))
        places = [i % self.batch_size for i in range(first - (self.mixup > 0), stop)]
        crops = [self._augmented(source.read(order[i]), np.random.default_rng([1, seed, step, i])) for i in places]
        stacked, labels = torch.from_numpy(np.stack(crops)), torch.from_numpy(source.labels[order])
        if not self.mixup:
            return stacked, labels[first:stop]
        weight = np.random.default_rng([2, seed, step]).beta(self.mixup, self.mixup)
        pairs = torch.stack([labels, labels.roll(1)], dim=1)
        return stacked, pairs[first:stop], torch.tensor(weight, dtype=torch.float32)

    def _augmented(self, picture: Image.Image, random: np.random.Generator) -> NDArray[np.uint8]:
        box = random_box(*picture.size, self.min_area, self.max_aspect, random)
        crop = picture.crop(box).resize((self.side, self.side), Image.Resampling.BILINEAR)
        if random.random() < 0.5:
            crop = crop.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        for _ in range(self.randaugment):
            operation = list(RANDAUGMENT.values())[random.integers(len(RANDAUGMENT))]
            crop = operation(crop, 1 if random.random() < 0.5 else -1, random)
        return np.asarray(crop)

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """With mixup of weight w, x̃ᵢ = w·xᵢ + (1 − w)·xᵢ₋₁ and its target likewise.

        Source: Zhang et al. 2018, as AlgoPerf does it: the neighbour is the one before in the batch.
        """
        if not self.mixup:
            return super().loss(model, batch)
        pictures, labels, weight = batch
        logits = model(torch.lerp(pictures[:-1].float(), pictures[1:].float(), weight))
        loss = partial(F.cross_entropy, logits, label_smoothing=self.label_smoothing)
        return torch.lerp(loss(labels[:, 1]), loss(labels[:, 0]), weight)

    def eval_batch(self, source: Pictures, number: int) -> Batch:
        numbers = self.numbers(source, number)
        pictures = np.stack([self._centred(source.read(i)) for i in numbers])
        return torch.from_numpy(pictures), torch.from_numpy(source.labels[numbers])

    def _centred(self, picture: Image.Image) -> NDArray[np.uint8]:
        """The middle of the picture, its shorter side resized first."""
        shorter = min(picture.size)
        width, height = (side * self.resized // shorter for side in picture.size)
        left, top = (round((side - self.side) / 2) for side in (width, height))
        small = picture.resize((width, height), Image.Resampling.BILINEAR)
        return np.asarray(small.crop((left, top, left + self.side, top + self.side)))


def random_box(
    width: int, height: int, min_area: float, max_aspect: float, random: np.random.Generator
) -> tuple[int, int, int, int]:
    """(left, top, right, bottom) of a crop: its share of the area uniform in [min_area, 1], the logarithm of its
    aspect ratio uniform in ±log max_aspect; after ten that do not fit, the largest central one of such a ratio.

    Source: Szegedy et al. 2015, as torchvision's RandomResizedCrop has it.
    """
    for _ in range(10):
        area = width * height * random.uniform(min_area, 1.0)
        aspect = math.exp(random.uniform(-math.log(max_aspect), math.log(max_aspect)))
        w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < w <= width and 0 < h <= height:
            left, top = int(random.integers(width - w + 1)), int(random.integers(height - h + 1))
            return left, top, left + w, top + h
    w, h = min(width, round(height * max_aspect)), min(height, round(width * max_aspect))
    left, top = (width - w) // 2, (height - h) // 2
    return left, top, left + w, top + h


# --- RandAugment at its largest magnitudes, as AlgoPerf has it: Cubuk et al. 2020 -------------------------------

Operation = Callable[[Image.Image, int, np.random.Generator], Image.Image]  # picture, sign, random


def affine(picture: Image.Image, *row_by_row: float) -> Image.Image:
    """The picture whose pixel (x, y) comes from (ax + by + c, dx + ey + f), grey where that lies outside."""
    nearest = Image.Resampling.NEAREST
    return picture.transform(picture.size, Image.Transform.AFFINE, row_by_row, nearest, fillcolor=GREY)


def cutout(picture: Image.Image, random: np.random.Generator) -> Image.Image:
    """Grey in a square of 80 pixels around a point anywhere in the picture, cut off at its edges."""
    x, y = (int(max(0.0, random.uniform(0, side) - 40)) for side in picture.size)
    holed = picture.copy()
    ImageDraw.Draw(holed).rectangle((x, y, x + 80, y + 80), GREY)
    return holed


BRIGHTER_DARK = [min(x + 110, 255) if x < 128 else x for x in range(256)] * 3
RANDAUGMENT: dict[str, Operation] = {
    "shear_x": lambda picture, sign, _: affine(picture, 1, sign * 0.3, 0, 0, 1, 0),
    "shear_y": lambda picture, sign, _: affine(picture, 1, 0, 0, sign * 0.3, 1, 0),
    "translate_x": lambda picture, sign, _: affine(picture, 1, 0, -sign * 100, 0, 1, 0),
    "translate_y": lambda picture, sign, _: affine(picture, 1, 0, 0, 0, 1, -sign * 100),
    "rotate": lambda picture, sign, _: picture.rotate(sign * 30, fillcolor=GREY),
    "brightness": lambda picture, _, __: ImageEnhance.Brightness(picture).enhance(1.9),
    "color": lambda picture, _, __: ImageEnhance.Color(picture).enhance(1.9),
    "contrast": lambda picture, _, __: ImageEnhance.Contrast(picture).enhance(1.9),
    "sharpness": lambda picture, _, __: ImageEnhance.Sharpness(picture).enhance(1.9),
    "posterize": lambda picture, _, __: ImageOps.posterize(picture, 4),
    "solarize": lambda picture, _, __: picture,  # its threshold there, 256, is above every pixel
    "solarize_add": lambda picture, _, __: picture.point(BRIGHTER_DARK),
    "autocontrast": lambda picture, _, __: ImageOps.autocontrast(picture),
    "equalize": lambda picture, _, __: ImageOps.equalize(picture),
    "invert": lambda picture, _, __: ImageOps.invert(picture),
    "cutout": lambda picture, _, random: cutout(picture, random),
}
