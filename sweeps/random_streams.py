"""The random streams of a process: torch's on the CPU and the GPU, numpy's and Python's global ones."""

from __future__ import annotations

import random
import struct
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor

Streams = dict[str, Tensor]  # "torch", "numpy", "python" and, on a GPU, "cuda": one shape and dtype each


def seed_all(seed: int, rank: int = 0) -> None:
    """Begin every stream anew; each rank has its own."""
    # A mix where there is a rank: of a seed, torch's generator on the CPU takes the lower 32 bits alone, and
    # Python's begins alike from seed and from seed + ((seed − 1) << 32).
    mixed = int(np.random.SeedSequence([abs(seed), rank]).generate_state(1)[0]) if rank else seed
    torch.manual_seed(mixed)
    np.random.seed([seed & 0xFFFFFFFF, rank] if rank else seed & 0xFFFFFFFF)  # noqa: NPY002  (users draw from it)
    random.seed(mixed)


def read(cuda: bool) -> Streams:
    """Where each stream is, as tensors that a checkpoint can hold without pickling objects.

    Raises: TypeError where numpy's global generator is not its default, the Mersenne Twister.
    """
    state: Any = np.random.get_state()  # noqa: NPY002
    kind, keys, position, has_gauss, gauss = state
    if kind != "MT19937":
        raise TypeError(f"numpy's global generator is {kind}; leave it MT19937, which a checkpoint can hold")
    _, words, second = random.getstate()
    streams = {
        "torch": torch.get_rng_state(),
        "numpy": torch.tensor([*np.asarray(keys).tolist(), position, has_gauss, _bits(gauss)]),
        "python": torch.tensor([*words, second is not None, _bits(second or 0.0)]),
    }
    return streams | {"cuda": torch.cuda.get_rng_state()} if cuda else streams


def put(streams: Mapping[str, Tensor]) -> None:
    """Put back the streams that `read` gave."""
    torch.set_rng_state(streams["torch"])
    if "cuda" in streams:
        torch.cuda.set_rng_state(streams["cuda"])
    *keys, position, has_gauss, gauss = streams["numpy"].tolist()
    state = ("MT19937", np.array(keys, dtype=np.uint32), position, has_gauss, _number(gauss))
    np.random.set_state(state)  # noqa: NPY002
    *words, has_second, second = streams["python"].tolist()
    random.setstate((3, tuple(words), _number(second) if has_second else None))


@contextmanager
def kept() -> Iterator[None]:
    """Put every stream back on the way out."""
    cuda = torch.cuda.is_available()
    numpy: Any = np.random
    before, generator = read(cuda), numpy.get_bit_generator()
    try:
        yield
    finally:
        numpy.set_bit_generator(generator)
        put(before)


def _bits(value: float) -> int:
    return int(struct.unpack("<q", struct.pack("<d", value))[0])


def _number(bits: int) -> float:
    return float(struct.unpack("<d", struct.pack("<q", bits))[0])
