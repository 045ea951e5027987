"""The random streams of a process: torch's on the CPU and the GPU, numpy's and Python's global ones."""

from __future__ import annotations

import random
import struct
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor

Streams = dict[str, Tensor]  # "torch", "numpy", "python" and, on a GPU, "cuda": one shape and dtype each


def seed_all(seed: int, rank: int = 0) -> None:
    """Begin every stream anew; each rank has its own."""
    # Of a seed torch's CPU generator takes the lower 32 bits, so a rank cannot stand in the upper ones.
    own = int(np.random.SeedSequence([seed, rank]).generate_state(1)[0]) if rank else seed
    torch.manual_seed(own)
    numpy: Any = np.random
    if numpy.get_state(legacy=False)["bit_generator"] != "MT19937":
        numpy.set_bit_generator(numpy.MT19937())
    np.random.seed(own & 0xFFFFFFFF)  # noqa: NPY002  (users draw from it)
    random.seed(own)


def read(cuda: bool) -> Streams:
    """Where each stream is, as tensors that a checkpoint can hold without pickling objects.

    Raises: TypeError where numpy's global generator is not its default, the Mersenne Twister.
    """
    state: Any = np.random.get_state(legacy=False)  # noqa: NPY002
    if state["bit_generator"] != "MT19937":
        kind = state["bit_generator"]
        raise TypeError(f"numpy's global generator is {kind}; leave it MT19937, which a checkpoint can hold")
    (_, words, second), words_of = random.getstate(), state["state"]
    streams = {
        "torch": torch.get_rng_state(),
        "numpy": torch.tensor([*words_of["key"].tolist(), words_of["pos"], state["has_gauss"], _bits(state["gauss"])]),
        "python": torch.tensor([*words, second is not None, _bits(second or 0.0)]),
    }
    return streams | {"cuda": torch.cuda.get_rng_state()} if cuda else streams


def put(streams: Mapping[str, Tensor]) -> None:
    """Put back the streams that `read` gave."""
    torch.set_rng_state(streams["torch"])
    if "cuda" in streams and torch.cuda.is_available():  # a replay may be elsewhere than its training
        torch.cuda.set_rng_state(streams["cuda"])
    *keys, position, has_gauss, gauss = streams["numpy"].tolist()
    state = ("MT19937", np.array(keys, dtype=np.uint32), position, has_gauss, _number(gauss))
    np.random.set_state(state)  # noqa: NPY002
    *words, has_second, second = streams["python"].tolist()
    random.setstate((3, tuple(words), _number(second) if has_second else None))


def here() -> Callable[[], None]:
    """A function that puts every stream back to where it is now, in this process; cheaper than `read` and `put`."""
    numpy: Any = np.random
    generator, numpy_state = numpy.get_bit_generator(), numpy.get_state(legacy=False)
    python_state, torch_state = random.getstate(), torch.get_rng_state()
    cuda_state = torch.cuda.get_rng_state() if torch.cuda.is_available() else None

    def back() -> None:
        numpy.set_bit_generator(generator)
        numpy.set_state(numpy_state)
        random.setstate(python_state)
        torch.set_rng_state(torch_state)
        if cuda_state is not None:
            torch.cuda.set_rng_state(cuda_state)

    return back


@contextmanager
def kept() -> Iterator[None]:
    """Put every stream back on the way out."""
    back = here()
    try:
        yield
    finally:
        back()


def _bits(value: float) -> int:
    return int(struct.unpack("<q", struct.pack("<d", value))[0])


def _number(bits: int) -> float:
    return float(struct.unpack("<d", struct.pack("<q", bits))[0])
