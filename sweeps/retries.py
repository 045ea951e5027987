"""Whether another try at a trajectory could end otherwise."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import BrokenExecutor

import torch
import torch.distributed as dist

from sweeps.recorder import FolderBusy

# A machine, a device, a network or a peer may be well the next time.
_PASSING = (
    *(OSError, EOFError, MemoryError, BrokenExecutor, FolderBusy),
    *(torch.OutOfMemoryError, dist.DistError),
    *([torch.AcceleratorError] if hasattr(torch, "AcceleratorError") else []),
)
_LASTING = (FileNotFoundError, FileExistsError, IsADirectoryError, NotADirectoryError, PermissionError)
# Where torch says it in words alone.
_PASSING_WORDS = ("CUDA", "cuDNN", "CUBLAS", "NCCL", "gloo", "Connection closed", "DataLoader worker")


LASTING_EXIT = 3  # the exit code of a follower whose error is lasting; its log's last line is the error


class RankFailed(RuntimeError):
    """Another data-parallel process of the trial failed, in a way that it would fail again."""


def is_lasting(error: BaseException) -> bool:
    """Whether an error out of the loop comes again: a trajectory is a function of its spec and its code.

    What a machine may be the cause of is tried again (I/O, memory, devices, lost processes), also where the
    workload's code wrapped it. An interrupt is no failure.
    """
    if isinstance(error, (SystemExit, RankFailed)):
        return True
    return isinstance(error, Exception) and not any(map(_passes, _chain(error)))


def _passes(error: BaseException) -> bool:
    if isinstance(error, _LASTING):
        return False
    if isinstance(error, RuntimeError) and any(word in str(error) for word in _PASSING_WORDS):
        return True
    return isinstance(error, _PASSING)


def _chain(error: BaseException) -> Iterator[BaseException]:
    seen: set[int] = set()
    following: BaseException | None = error
    while following is not None and id(following) not in seen:
        seen.add(id(following))
        yield following
        following = following.__cause__ or (None if following.__suppress_context__ else following.__context__)
