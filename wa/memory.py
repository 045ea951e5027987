"""What a bank will weigh, before there is one."""

from __future__ import annotations

from collections.abc import Iterable

import torch

from .ring import ring_bytes
from .schemes import Recursive, Scheme, Windowed

FLOATS = {2: torch.bfloat16, 4: torch.float32, 8: torch.float64}


def memory_bytes(schemes: Iterable[Scheme], num_parameters: int, itemsize: int = 4, num_buffers: int = 0) -> int:
    """Bytes of the rings, their sums and the accumulators of `Bank(model, schemes)`: its `nbytes`.

    num_parameters: elements, tied ones once. itemsize: bytes of an element (2, 4 or 8). num_buffers: elements
    of floating-point buffers, kept only for schemes with ``buffers="average"``. Each snapshot grid costs one
    ring for its largest k (k · itemsize and, from k = 8 on, about 1.15 k bytes an element), each EMA and Tail one
    accumulator (4 bytes or 8: see `EMA`).
    Not counted: the scratch that small tensors are packed in, and the live copy during `swapped`.

    Raises: ValueError when itemsize is not 2, 4 or 8.
    """
    if itemsize not in FLOATS:
        raise ValueError(f"itemsize must be 2, 4 or 8, not {itemsize!r}")
    distinct = list(dict.fromkeys(schemes))
    averaging = [scheme for scheme in distinct if scheme.buffers == "average"]
    dtype = FLOATS[itemsize]
    return num_parameters * _element_bytes(distinct, dtype) + num_buffers * _element_bytes(averaging, dtype)


def _element_bytes(schemes: list[Scheme], dtype: torch.dtype) -> int:
    capacity: dict[tuple[int, int], int] = {}
    for scheme in schemes:
        if isinstance(scheme, Windowed):
            capacity[scheme.grid] = max(capacity.get(scheme.grid, 0), scheme.k)
    rings = sum(ring_bytes(k, dtype.itemsize) for k in capacity.values())
    accumulators = sum(scheme.accumulator_dtype(dtype).itemsize for scheme in schemes if isinstance(scheme, Recursive))
    return rings + accumulators
