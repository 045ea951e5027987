"""A U-Net that completes MRI slices measured with a quarter of k-space, as AlgoPerf's fastMRI workload.

`mini` simulates the measurement on 64×64 slices of two brains; `full` reads the knees of the fastMRI data set.
docs/workloads/fastmri.md tells both.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import scipy.fft
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

from workloads import data
from workloads.algoperf import constants
from workloads.data import BadData
from workloads.loading import epoch_order, load_batches
from workloads.protocol import WHOLE, Batch, Part, Summary, Sums, Workload

ACCELERATION = 4  # one column of k-space in so many is measured
CENTER_PERCENT = 8  # of the columns: the low frequencies, always measured
CLIP = 6.0  # standard deviations
WINDOW = 7  # pixels a side of SSIM's window
KNEE_SIDE = 320
KNEE_TREE = "knee_singlecoil_train/*.h5 and knee_singlecoil_val/*.h5 of fastMRI's single-coil knees"
KNEE_FILE = (
    "an HDF5 file with kspace (slices, rows, columns) complex, reconstruction_esc (slices, 320, 320) float "
    "and the attribute max"
)
ALGOPERF = constants()["fastmri"]


class ConvBlock(nn.Sequential):
    """Twice: 3×3 convolution, instance norm, leaky ReLU, dropout of whole channels."""

    def __init__(self, num_in: int, num_out: int, dropout: float) -> None:
        layers: list[nn.Module] = []
        for channels in (num_in, num_out):
            layers += [
                nn.Conv2d(channels, num_out, kernel_size=3, padding=1, bias=False),
                nn.InstanceNorm2d(num_out),
                nn.LeakyReLU(0.2, inplace=True),
            ]
            layers += [nn.Dropout2d(dropout)] if dropout else []
        super().__init__(*layers)


class UNet(nn.Module):
    """Halve the image `num_pools` times, then double it again, each size seeing what it was on the way down.

    Channels double at each size: num_channels·2^i. Sources: Ronneberger et al. 2015; AlgoPerf
    fastmri_pytorch/models.py, its initialization init_utils.py.
    """

    def __init__(self, num_channels: int, num_pools: int, dropout: float = 0.0) -> None:
        super().__init__()
        widths = [num_channels * 2**i for i in range(num_pools + 1)]
        self.down = nn.ModuleList(
            ConvBlock(num_in, num_out, dropout) for num_in, num_out in zip([1, *widths[:-2]], widths[:-1], strict=True)
        )
        self.bottom = ConvBlock(widths[-2], widths[-1], dropout)
        self.grow = nn.ModuleList(
            nn.Sequential(
                nn.ConvTranspose2d(2 * width, width, kernel_size=2, stride=2, bias=False),
                nn.InstanceNorm2d(width),
                nn.LeakyReLU(0.2, inplace=True),
            )
            for width in widths[-2::-1]
        )
        self.up = nn.ModuleList(ConvBlock(2 * width, width, dropout) for width in widths[-2::-1])
        self.head = nn.Conv2d(num_channels, 1, kernel_size=1)
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
                std = module.weight[0].numel() ** -0.5 / 0.87962566103423978  # that of N(0, 1) cut at ±2
                nn.init.trunc_normal_(module.weight, std=std, a=-2 * std, b=2 * std)
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
class Reconstruction:
    """Mean absolute error of normalized images; metric: "ssim" in the images' own units, or "loss".

    A batch is an Example of tensors.
    """

    step_budget: int
    batch_size: int
    optimizer: Mapping[str, Any]
    schedule: Mapping[str, Any]
    step_seconds: float
    eval_seconds: float
    num_channels: int
    num_pools: int
    eval_batch_size: int
    metric: str = "ssim"
    dropout: float = 0.0
    higher_is_better: bool = field(init=False)

    def __post_init__(self) -> None:
        if self.metric not in ("loss", "ssim"):
            raise ValueError(f"metric is {self.metric!r}; it is loss or ssim")
        object.__setattr__(self, "higher_is_better", self.metric == "ssim")

    def model(self) -> nn.Module:
        return UNet(self.num_channels, self.num_pools, self.dropout)

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        inputs, targets, *_ = batch
        return F.l1_loss(model(inputs).float(), targets)

    def loss_weight(self, batch: Batch) -> float:
        return float(len(batch[0]))

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
        if self.metric == "ssim":
            return Summary(loss, ssim, int(sums["examples"]))
        return Summary(loss, loss, int(sums["examples"]), {"ssim": ssim})

    def places(self, part: Part) -> range:
        """Which places of every batch fall to one part of it."""
        if part.count > self.batch_size:
            raise ValueError(f"a batch of {self.batch_size} slices has no {part.count} parts")
        return range(self.batch_size)[part.index :: part.count]


@cache
def brain_slices(split: str) -> tuple[NDArray[np.float32], float]:
    """(n, 64, 64) and their maximum; the mosaic holds Colin27 ("train"), then ICBM152 ("validation")."""
    index = json.loads(data.path("fastmri.json").read_text(encoding="ascii"))
    side, columns = index["side"], index["columns"]
    sheet = np.asarray(Image.open(data.path("fastmri.webp")).convert("L"), dtype=np.float32)
    tiles = sheet.reshape(-1, side, columns, side).swapaxes(1, 2).reshape(-1, side, side)
    first = 0 if split == "train" else index["train"]
    slices = tiles[first : first + index[split]].copy()
    return slices, float(slices.max())


def simulated(image: NDArray[np.float32], volume_max: float, random: np.random.Generator) -> Example:
    """The example that an image gives, its k-space being its own Fourier transform."""
    kspace = scipy.fft.fftshift(scipy.fft.fft2(scipy.fft.ifftshift(image), norm="ortho"))
    return example(kspace, image, volume_max, random.random(int(image.shape[1]), np.float32))


@cache
def validation_batches(num_slices: int, batch_size: int) -> tuple[Example, ...]:
    """Slices evenly spaced over the validation brain, each with a mask of its own."""
    images, volume_max = brain_slices("validation")
    chosen = np.linspace(0, len(images) - 1, num_slices).round().astype(int)
    examples = [simulated(images[i], volume_max, np.random.default_rng([0, i])) for i in chosen.tolist()]
    with torch.inference_mode(False):  # cached: later callers may want gradients
        return tuple(stacked(examples[first : first + batch_size]) for first in range(0, num_slices, batch_size))


@dataclass(frozen=True, kw_only=True)
class Brains(Reconstruction):
    """Simulated measurements of one brain to learn from, of another to be judged by; masks are always fresh."""

    num_eval_slices: int = 48

    def batches(self, seed: int, first_step: int, part: Part = WHOLE) -> Iterator[Batch]:
        return iter(load_batches(partial(self._train_batch, seed, part), first_step))

    def _train_batch(self, seed: int, part: Part, step: int) -> Example:
        images, volume_max = brain_slices("train")
        randoms = [np.random.default_rng([seed, step, place]) for place in self.places(part)]
        return stacked(simulated(images[random.integers(len(images))], volume_max, random) for random in randoms)

    def eval_batches(self, split: str, part: Part = WHOLE) -> Iterable[Batch]:
        if split != "validation":
            raise ValueError(f"fastmri's mini has no split {split!r}; it has validation")
        return validation_batches(self.num_eval_slices, self.eval_batch_size)[part.index :: part.count]


def philox(counters: NDArray[np.uint64], key: tuple[int, int]) -> NDArray[np.uint64]:
    """The Philox-4×32-10 blocks of `counters`, (n, 4) of 32-bit words, under a key of two. Source: Salmon 2011."""
    words, (key_0, key_1) = counters, key
    for _ in range(10):
        left, right = words[:, 0] * np.uint64(0xD2511F53), words[:, 2] * np.uint64(0xCD9E8D57)
        high_left, high_right = left >> np.uint64(32), right >> np.uint64(32)
        low_left, low_right = left & np.uint64(0xFFFFFFFF), right & np.uint64(0xFFFFFFFF)
        mixed_0 = high_right ^ words[:, 1] ^ np.uint64(key_0)
        mixed_1 = high_left ^ words[:, 3] ^ np.uint64(key_1)
        words = np.stack([mixed_0, low_right, mixed_1, low_left], axis=1)
        key_0, key_1 = (key_0 + 0x9E3779B9) % 2**32, (key_1 + 0xBB67AE85) % 2**32
    return words


def evaluation_uniform(columns: int) -> NDArray[np.float32]:
    """The numbers AlgoPerf draws for the mask of every evaluated slice: (columns,) from [0, 1).

    They are TensorFlow's tf.random.stateless_uniform((columns,), seed=(0, 0)) on a CPU: Philox, whose key and
    first counter are made of the seed by one block under a fixed key; the low 23 bits are the fraction.
    """
    (first,) = philox(np.zeros((1, 4), np.uint64), (0x3EC8F720, 0x02461E29))
    counters = np.zeros((-(-columns // 4), 4), np.uint64)
    counters[:, 0], counters[:, 2], counters[:, 3] = np.arange(len(counters)), first[2], first[3]
    bits = philox(counters, (int(first[0]), int(first[1]))).ravel()[:columns]
    return ((bits & np.uint64(2**23 - 1)) / 2**23).astype(np.float32)


class Volume(NamedTuple):
    """One file of the fastMRI data set, which holds one knee."""

    path: Path
    num_slices: int


def opened(path: Path) -> Volume:
    """The volume in a file whose heading is as it should be. Raises: BadData."""
    import h5py

    try:
        with h5py.File(path, "r") as file:
            kspace, truth = file["kspace"], file["reconstruction_esc"]
            found = f"kspace {kspace.shape} {kspace.dtype}, reconstruction_esc {truth.shape} {truth.dtype}"
            sound = (
                kspace.ndim == truth.ndim == 3
                and kspace.dtype.kind == "c"
                and truth.dtype.kind == "f"
                and len(kspace) == len(truth) > 0
                and all(n >= m for n, m in zip(kspace.shape, truth.shape, strict=True))
                and truth.shape[1:] == (KNEE_SIDE, KNEE_SIDE)
                and file.attrs["max"] > 0
            )
    except (OSError, KeyError, AttributeError, TypeError) as error:
        raise BadData(f"{path}: {error}; it should be {KNEE_FILE}") from error
    if not sound:
        raise BadData(f"{path}: has {found}; it should be {KNEE_FILE}")
    return Volume(path, len(truth))


def volumes(folder: str) -> list[Volume]:
    """The volumes of ``$WA_DATA_DIR/fastmri/<folder>``, in the order of their names. Raises: BadData."""
    root = data.dataset("fastmri", holds=KNEE_TREE)
    paths = sorted((root / folder).glob("*.h5"))
    if not paths:
        raise BadData(f"{root / folder}: no *.h5 in there; {root} should hold {KNEE_TREE}")
    return [opened(path) for path in paths]


def measured(volume: Volume, index: int) -> tuple[NDArray[np.complex64], NDArray[np.float32], float]:
    """k-space, truth and the volume's maximum of one slice. Raises: BadData."""
    import h5py

    try:
        with h5py.File(volume.path, "r") as file:
            return file["kspace"][index], file["reconstruction_esc"][index], float(file.attrs["max"])
    except (OSError, KeyError) as error:
        raise BadData(f"{volume.path}, slice {index}: {error}; it should be {KNEE_FILE}") from error


class Slices:
    """The slices of volumes in a row, by their number."""

    def __init__(self, volumes: Sequence[Volume]) -> None:
        self.volumes = volumes
        self.ends = np.cumsum([volume.num_slices for volume in volumes])

    def __len__(self) -> int:
        return int(self.ends[-1])

    def __getitem__(self, number: int) -> tuple[NDArray[np.complex64], NDArray[np.float32], float]:
        place = int(np.searchsorted(self.ends, number, side="right"))
        volume = self.volumes[place]
        return measured(volume, number - int(self.ends[place]) + volume.num_slices)


@dataclass(frozen=True, kw_only=True)
class Knees(Reconstruction):
    """fastMRI's single-coil knees: ``$WA_DATA_DIR/fastmri/knee_singlecoil_{train,val}/*.h5``.

    The first `num_validation_volumes` files of the validation folder are "validation", the others "test". As in
    AlgoPerf a training slice keeps its mask through all epochs, and evaluated slices of one width share one.
    """

    num_validation_volumes: int = 100
    num_workers: int = 8
    splits = ("validation", "test")

    def batches(self, seed: int, first_step: int, part: Part = WHOLE) -> Iterator[Batch]:
        make = partial(self._train_batch, Slices(volumes("knee_singlecoil_train")), seed, part)
        return iter(load_batches(make, first_step, num_workers=self.num_workers))

    def _train_batch(self, slices: Slices, seed: int, part: Part, step: int) -> Example:
        examples = []
        for place in self.places(part):
            epoch, position = divmod((step - 1) * self.batch_size + place, len(slices))
            number = int(epoch_order((seed, 0, epoch), len(slices))[position])
            kspace, truth, volume_max = slices[number]
            mask = np.random.default_rng([seed, 1, number])
            examples.append(example(kspace, truth, volume_max, mask.random(int(kspace.shape[1]), np.float32)))
        return stacked(examples)

    def eval_batches(self, split: str, part: Part = WHOLE) -> Iterable[Batch]:
        if split not in self.splits:
            raise ValueError(f"fastmri has no split {split!r}; it has validation and test")
        found = volumes("knee_singlecoil_val")
        first = self.num_validation_volumes
        if split == "test" and len(found) <= first:
            raise BadData(
                f"{found[0].path.parent}: {len(found)} files; the test split is what comes after the first {first}"
            )
        slices = Slices(found[:first] if split == "validation" else found[first:])
        num_batches = -(-len(slices) // self.eval_batch_size)
        make = partial(self._eval_batch, slices)
        return load_batches(make, part.index, num_batches, part.count, self.num_workers)

    def _eval_batch(self, slices: Slices, batch: int) -> Example:
        first = batch * self.eval_batch_size
        found = (slices[i] for i in range(first, min(first + self.eval_batch_size, len(slices))))
        return stacked(
            example(kspace, truth, volume_max, evaluation_uniform(kspace.shape[1]))
            for kspace, truth, volume_max in found
        )

    def check_data(self) -> None:
        """Raises: BadData, unless every file of both folders has the heading it should have."""
        for folder in ("knee_singlecoil_train", "knee_singlecoil_val"):
            volumes(folder)


PRESETS: dict[str, Workload] = {
    "mini": Brains(
        step_budget=4000,
        batch_size=1,
        metric="loss",
        optimizer={"name": "nadamw", "lr": 0.02, "beta1": 0.9, "beta2": 0.99, "eps": 1e-8, "weight_decay": 0.01},
        schedule={"shape": "cosine", "length": 1.0, "warmup": 0.05, "final_lr": 0.0},
        step_seconds=0.009,
        eval_seconds=0.12,
        num_channels=8,
        num_pools=2,
        eval_batch_size=16,
    ),
    "full": Knees(
        step_budget=ALGOPERF.step_budget,
        batch_size=ALGOPERF.batch_size,
        metric=ALGOPERF.metric,
        optimizer=ALGOPERF.nadamw.optimizer,
        schedule=ALGOPERF.nadamw.schedule,
        step_seconds=ALGOPERF.step_seconds,
        eval_seconds=ALGOPERF.eval_seconds(3554),
        num_channels=32,
        num_pools=4,
        dropout=ALGOPERF.nadamw.dropout,
        eval_batch_size=32,
    ),
}
