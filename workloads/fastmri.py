"""A U-Net that completes MRI slices measured with a quarter of k-space, as AlgoPerf's fastMRI workload.

`mini` simulates the measurement on 64×64 slices of two brains; `full` reads the knees of the fastMRI data set.
docs/workloads/fastmri.md tells both.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from typing import Any, ClassVar, NamedTuple

import numpy as np
import scipy.fft
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from workloads.algoperf import constants
from workloads.data import BadData
from workloads.data.reading import tiles
from workloads.fastmri_files import Slices, evaluation_uniform, volumes
from workloads.layers import cached_tensors, lecun_normal_
from workloads.protocol import Batch, Part, Summary, Sums, Workload
from workloads.task import FileTask, Task, end_to_end, mini

ACCELERATION = 4  # one column of k-space in so many is measured
CENTER_PERCENT = 8  # of the columns: the low frequencies, always measured
CLIP = 6.0  # standard deviations
WINDOW = 7  # pixels a side of SSIM's window


class ConvBlock(nn.Sequential):
    """Twice: 3×3 convolution, instance norm, leaky ReLU, dropout of whole channels."""

    def __init__(self, num_in: int, num_out: int, dropout: float) -> None:
        layers: list[nn.Module] = []
        for channels in (num_in, num_out):
            layers += normed(nn.Conv2d(channels, num_out, kernel_size=3, padding=1, bias=False))
            layers += [nn.Dropout2d(dropout)] if dropout else []
        super().__init__(*layers)


def normed(convolution: nn.Conv2d | nn.ConvTranspose2d) -> list[nn.Module]:
    """A convolution, instance norm, leaky ReLU."""
    return [convolution, nn.InstanceNorm2d(convolution.out_channels), nn.LeakyReLU(0.2, inplace=True)]


class UNet(nn.Module):
    """Halve the image `num_pools` times, then double it again, each size seeing what it was on the way down.

    Channels double at each size: num_channels·2^i. Sources: Ronneberger et al. 2015; AlgoPerf
    fastmri_pytorch/models.py, its initialization init_utils.py.
    """

    def __init__(self, num_channels: int, num_pools: int, dropout: float = 0.0) -> None:
        super().__init__()
        widths = [num_channels * 2**i for i in range(num_pools + 1)]
        self.down = nn.ModuleList(ConvBlock(*sizes, dropout) for sizes in pairwise([1, *widths[:-1]]))
        self.bottom = ConvBlock(widths[-2], widths[-1], dropout)
        self.grow = nn.ModuleList(
            nn.Sequential(*normed(nn.ConvTranspose2d(2 * width, width, kernel_size=2, stride=2, bias=False)))
            for width in widths[-2::-1]
        )
        self.up = nn.ModuleList(ConvBlock(2 * width, width, dropout) for width in widths[-2::-1])
        self.head = nn.Conv2d(num_channels, 1, kernel_size=1)
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
                lecun_normal_(module.weight)
        nn.init.zeros_(self.head.bias)  # type: ignore[arg-type]

    def forward(self, images: Tensor) -> Tensor:
        """(batch, height, width) -> the same; height and width are multiples of 2^num_pools."""
        x = images.unsqueeze(1)
        skipped = []
        for block in self.down:
            x = block(x)
            skipped.append(x)
            x = F.avg_pool2d(x, 2)
        x = self.bottom(x)
        for grow, block in zip(self.grow, self.up, strict=True):
            x = block(torch.cat([grow(x), skipped.pop()], dim=1))
        y: Tensor = self.head(x)
        return y.squeeze(1)


def structural_similarity(x: Tensor, y: Tensor, data_range: Tensor) -> Tensor:
    """SSIM of each pair of images, the mean over all 7×7 windows that fit, in [−1, 1].

    (2 x̄ȳ + c₁)(2 cov + c₂) / ((x̄² + ȳ² + c₁)(var x + var y + c₂)), c₁ = (.01 L)², c₂ = (.03 L)²; variances are
    those of a sample (n − 1). x, y: (batch, height, width) floats; data_range: L, (batch,) -> (batch,) float32.
    Sources: Wang et al. 2004, eq. 13; AlgoPerf fastmri_pytorch/ssim.py.
    """
    x, y = (image.float() / data_range[:, None, None] for image in (x, y))  # L = 1 from here on
    moments = F.avg_pool2d(torch.stack([x, y, x * x, y * y, x * y], dim=1), WINDOW, stride=1)
    mean_x, mean_y, mean_xx, mean_yy, mean_xy = moments.unbind(1)
    sample = WINDOW**2 / (WINDOW**2 - 1)
    variances = sample * (mean_xx - mean_x**2 + mean_yy - mean_y**2)
    covariance = sample * (mean_xy - mean_x * mean_y)
    c1, c2 = 0.01**2, 0.03**2
    numerator = (2 * mean_x * mean_y + c1) * (2 * covariance + c2)
    ssim = numerator / ((mean_x**2 + mean_y**2 + c1) * (variances + c2))
    return ssim.mean((1, 2)).clamp(-1, 1)


class Example(NamedTuple):
    """One slice, or a batch of them with one more axis.

    inputs, targets: (height, width) float32, (zero-filled reconstruction, truth) less mean, by std, clipped.
    mean, std: of the zero-filled reconstruction. volume_max: the truth's largest value in the whole volume.
    """

    inputs: Any
    targets: Any
    mean: Any
    std: Any
    volume_max: Any


def measured_columns(uniform: NDArray[np.float32]) -> NDArray[np.bool_]:
    """Which of k-space's n columns are measured, n/4 of them on average.

    c = ⌊.08 n⌋ in the middle always, each other one where its number lies below (n/4 − c) / (n − c).
    uniform: (n,) from [0, 1). Source: AlgoPerf fastmri/input_pipeline.py.
    """
    columns = len(uniform)
    center = columns * CENTER_PERCENT // 100
    first = (columns - center + 1) // 2
    measured = uniform < np.float32((columns / ACCELERATION - center) / (columns - center))
    measured[first : first + center] = True
    return measured


def example(
    kspace: NDArray[np.complex64], target: NDArray[np.float32], volume_max: float, uniform: NDArray[np.float32]
) -> Example:
    """What a network is given and asked for when only the columns that `uniform` picks are measured.

    kspace: (rows, columns), zero frequency in the middle; target: (height, width), the middle of its image.
    Source: AlgoPerf fastmri/input_pipeline.py.
    """
    image = scipy.fft.ifft2(scipy.fft.ifftshift(kspace * measured_columns(uniform)), norm="ortho")
    top, left = ((n - m) // 2 for n, m in zip(kspace.shape, target.shape, strict=True))
    cropped = scipy.fft.fftshift(image)[top : top + target.shape[0], left : left + target.shape[1]]
    zero_filled = np.abs(cropped).astype(np.float32)
    mean, std = zero_filled.mean(), zero_filled.std()
    inputs, targets = (((image - mean) / std).clip(-CLIP, CLIP) for image in (zero_filled, target))
    return Example(inputs, targets, mean, std, np.float32(volume_max))


def stacked(examples: Iterable[Example]) -> Example:
    """A batch of tensors."""
    columns = zip(*examples, strict=True)
    return Example(*(torch.from_numpy(np.stack(column).astype(np.float32)) for column in columns))


@dataclass(frozen=True, kw_only=True)
class Reconstruction(Task):
    """Mean absolute error of normalized images; metric: "ssim" in the images' own units, or "loss".

    A batch is an Example of tensors.
    """

    METRICS: ClassVar[Mapping[str, bool]] = {"loss": False, "ssim": True}

    num_channels: int = 8
    num_pools: int = 2
    dropout: float = 0.0
    eval_batch_size: int = 16

    def model(self) -> nn.Module:
        return UNet(self.num_channels, self.num_pools, self.dropout)

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        inputs, targets, *_ = batch
        return F.l1_loss(model(inputs).float(), targets)

    def eval_step(self, model: nn.Module, batch: Batch) -> Sums:
        inputs, targets, mean, std, volume_max = batch
        outputs = model(inputs).float()
        found, truth = (torch.addcmul(mean[:, None, None], x, std[:, None, None]) for x in (outputs, targets))
        return {
            "loss": (outputs - targets).abs().mean((1, 2)).double().sum(),
            "ssim": structural_similarity(found, truth, volume_max).double().sum(),
            "examples": torch.tensor(len(inputs)),
        }

    def summarize(self, sums: Mapping[str, Any]) -> Summary:
        loss, ssim = (float(sums[name] / sums["examples"]) for name in ("loss", "ssim"))
        found = self.summary(loss, sums["examples"], ssim=ssim)
        return found if self.metric == "loss" else found._replace(metrics={})

    def places(self, part: Part) -> range:
        """Which places of every batch fall to one part of it."""
        if part.count > self.batch_size:
            raise ValueError(f"a batch of {self.batch_size} slices has no {part.count} parts")
        return range(self.batch_size)[part.every]


@cache
def brain_slices(split: str) -> tuple[NDArray[np.float32], float]:
    """(n, 64, 64) and their maximum: of Colin27 ("train"), of ICBM152 ("validation")."""
    slices = tiles("fastmri", split, "L").astype(np.float32)
    return slices, float(slices.max())


def simulated(image: NDArray[np.float32], volume_max: float, random: np.random.Generator) -> Example:
    """The example that an image gives, its k-space being its own Fourier transform."""
    kspace = scipy.fft.fftshift(scipy.fft.fft2(scipy.fft.ifftshift(image), norm="ortho"))
    return example(kspace, image, volume_max, random.random(int(image.shape[1]), np.float32))


@cached_tensors
def validation_batches(num_slices: int, batch_size: int) -> tuple[Example, ...]:
    """Slices evenly spaced over the validation brain, each with a mask of its own."""
    images, volume_max = brain_slices("validation")
    chosen = np.linspace(0, len(images) - 1, num_slices).round().astype(int)
    examples = [simulated(images[i], volume_max, np.random.default_rng([0, i])) for i in chosen.tolist()]
    return tuple(stacked(examples[first : first + batch_size]) for first in range(0, num_slices, batch_size))


@dataclass(frozen=True, kw_only=True)
class Brains(Reconstruction):
    """Simulated measurements of one brain to learn from, of another to be judged by; masks are always fresh."""

    num_eval_slices: int = 48

    def source(self, split: str) -> Any:
        if split == "train":
            return brain_slices("train")
        return validation_batches(self.num_eval_slices, self.eval_batch_size)

    def train_batch(self, source: Any, seed: int, part: Part, step: int) -> Example:
        images, volume_max = source
        randoms = [np.random.default_rng([seed, step, place]) for place in self.places(part)]
        return stacked(simulated(images[random.integers(len(images))], volume_max, random) for random in randoms)


# --- full: fastMRI's knees ---------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Knees(Reconstruction, FileTask):
    """fastMRI's single-coil knees: ``$WA_DATA_DIR/fastmri/knee_singlecoil_{train,val}/*.h5``.

    The first `num_validation_volumes` files of the validation folder are "validation", the others "test". As in
    AlgoPerf a training slice keeps its mask through all epochs, and evaluated slices of one width share one.
    """

    num_validation_volumes: int = 100
    num_workers: int = 8
    splits = ("validation", "test")

    def source(self, split: str) -> Slices:
        if split == "train":
            return Slices(volumes("knee_singlecoil_train"))
        found, first = volumes("knee_singlecoil_val"), self.num_validation_volumes
        if split == "test" and len(found) <= first:
            test = f"the test split is what comes after the first {first}"
            raise BadData(f"{found[0].path.parent}: {len(found)} files; {test}")
        return Slices(found[:first] if split == "validation" else found[first:])

    def train_batch(self, source: Slices, seed: int, part: Part, step: int) -> Example:
        places = (step - 1) * self.batch_size + np.array(self.places(part))
        examples = []
        for number in end_to_end((seed, 0), places, len(source)).tolist():
            kspace, truth, volume_max = source[number]
            uniform = np.random.default_rng([seed, 1, number]).random(int(kspace.shape[1]), np.float32)
            examples.append(example(kspace, truth, volume_max, uniform))
        return stacked(examples)

    def eval_batch(self, source: Slices, number: int) -> Example:
        found = (source[i] for i in self.numbers(source, number))
        return stacked(example(*one, evaluation_uniform(one[0].shape[1])) for one in found)

    def check_data(self) -> None:
        """Raises: BadData, unless every file of both folders has the heading it should have."""
        for folder in ("knee_singlecoil_train", "knee_singlecoil_val"):
            volumes(folder)


PRESETS: dict[str, Workload] = {
    "mini": Brains(
        **mini(lr=0.02, weight_decay=0.01, step_budget=4000, batch_size=1, step_seconds=0.009, eval_seconds=0.12)
    ),
    "full": Knees(**constants()["fastmri"].preset(3554, "dropout"), num_channels=32, num_pools=4, eval_batch_size=32),
}
