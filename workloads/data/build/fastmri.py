"""Build fastmri.webp and fastmri.json from two brain volumes: nilearn 0.14.1 and Debian's mricron-data.

Run by hand from the repository root, on a Debian or Ubuntu that offers the package (apt-get, dpkg-deb):
    python workloads/data/build/fastmri.py
Training slices are of Colin27, one person; validation slices of ICBM152, the mean of 152 others. Same sources,
same bytes again.
"""

from __future__ import annotations

import gzip

import numpy as np
from numpy.typing import NDArray

from workloads.data.build.sources import debian, pip_download, save_mosaic

WHEEL, WHEEL_VERSION = "nilearn", "0.14.1"
WHEEL_SHA256 = "725206484e9fb3f6691f9c2d20204a068759d5072f12055324702ee0cb2bbe8a"
ICBM152 = "nilearn/datasets/data/mni_icbm152_t1_tal_nlin_sym_09a_converted.nii.gz"
PACKAGE, PACKAGE_VERSION = "mricron-data", "1.2.20211006+dfsg-4"
PACKAGE_SHA256 = "d40aa0ed66cf89bf6cafa049ad3884703c9d975c2ee2737525b7196528df9d6f"
COLIN27 = "usr/share/mricron/templates/ch2bet.nii.gz"
FIELD = 192  # mm a side: both brains fit, at 1 mm a voxel
SHRINK = 3  # voxels averaged a side of a pixel, in the plane of the slice
SIDE = FIELD // SHRINK
THINNEST = 0.12  # share of a slice that must be brain
COLUMNS = 32  # slices a row of the mosaic

Volume = NDArray[np.uint8]


def nifti(packed: bytes) -> Volume:
    """The voxels of a gzipped single-file NIfTI-1 of unsigned bytes, Fortran order."""
    content = gzip.decompress(packed)
    dimensions = np.frombuffer(content, "<i2", 3, offset=42)
    (datatype,) = np.frombuffer(content, "<i2", 1, offset=70)
    (start,) = np.frombuffer(content, "<f4", 1, offset=108)
    if datatype != 2:
        raise ValueError(f"NIfTI datatype is {datatype}, expected 2: unsigned bytes")
    count = int(np.prod(dimensions, dtype=np.int64))
    return np.frombuffer(content, np.uint8, count, offset=int(start)).reshape(dimensions, order="F")


def centred(volume: Volume) -> Volume:
    """A cube of FIELD voxels a side with the brain's bounding box in its middle."""
    inside = np.nonzero(volume)
    cube = np.zeros((FIELD, FIELD, FIELD), np.uint8)
    brain = volume[tuple(slice(index.min(), index.max() + 1) for index in inside)]
    corner = [(FIELD - length) // 2 for length in brain.shape]
    cube[tuple(slice(c, c + length) for c, length in zip(corner, brain.shape, strict=True))] = brain
    return cube


def slices(volume: Volume, spacing: int) -> Volume:
    """(n, SIDE, SIDE): every `spacing`-th slice along each axis in turn, blocks of pixels averaged.

    Sagittal slices show front to back along rows, the other ones left to right; the head is up.
    """
    cube = centred(volume).astype(np.int64)
    found = []
    for axis in range(3):
        stack = np.moveaxis(cube, axis, 0)[::spacing].swapaxes(1, 2)[:, ::-1]
        blocks = stack.reshape(-1, SIDE, SHRINK, SIDE, SHRINK).sum((2, 4))
        small = (blocks + SHRINK**2 // 2) // SHRINK**2
        found.append(small[(small > 0).mean((1, 2)) >= THINNEST])
    return np.concatenate(found).astype(np.uint8)


def main() -> None:
    train = nifti(debian(PACKAGE, PACKAGE_VERSION, PACKAGE_SHA256)[COLIN27])
    validation = nifti(pip_download(WHEEL, WHEEL_VERSION, "*.whl", WHEEL_SHA256)[ICBM152])
    # every mm a slice of the one, every other of the other
    parts = {"train": slices(train, 1), "validation": slices(validation, 2)}
    about = {split: len(tiles) for split, tiles in parts.items()}
    save_mosaic("fastmri", np.concatenate(list(parts.values())), COLUMNS, 0, about)


if __name__ == "__main__":
    main()
