"""fastMRI's single-coil knees, read from their HDF5 files, and the masks that AlgoPerf evaluates them with."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from workloads import data
from workloads.data import BadData

KNEE_SIDE = 320
KNEE_TREE = "knee_singlecoil_train/*.h5 and knee_singlecoil_val/*.h5 of fastMRI's single-coil knees"
KNEE_FILE = (
    "an HDF5 file with kspace (slices, rows, columns) complex, reconstruction_esc (slices, 320, 320) float "
    "and the attribute max"
)


def philox(counters: NDArray[np.uint64], key: tuple[int, int]) -> NDArray[np.uint64]:
    """The Philox-4×32-10 blocks of `counters`, (n, 4) of 32-bit words, under a key of two. Source: Salmon 2011."""
    words, (key_0, key_1) = counters, key
    for _ in range(10):
        left, right = words[:, 0] * np.uint64(0xD2511F53), words[:, 2] * np.uint64(0xCD9E8D57)
        mixed_0 = (right >> np.uint64(32)) ^ words[:, 1] ^ np.uint64(key_0)
        mixed_1 = (left >> np.uint64(32)) ^ words[:, 3] ^ np.uint64(key_1)
        words = np.stack([mixed_0, right, mixed_1, left], axis=1) & np.uint64(0xFFFFFFFF)
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
