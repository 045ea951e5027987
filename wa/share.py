"""Processes that train one model keep a share of its averages each, and give it to the others when one is read."""

from __future__ import annotations

from dataclasses import dataclass

import torch.distributed as dist
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Share:
    """This process's place among those of a process group; alone without one."""

    group: dist.ProcessGroup | None = None

    @property
    def rank(self) -> int:
        return dist.get_rank(self.group) if self.group is not None else 0

    @property
    def size(self) -> int:
        return dist.get_world_size(self.group) if self.group is not None else 1

    def owner(self, first: int, numel: int, total: int) -> int:
        """The rank that keeps the elements first … first + numel − 1 of `total`: a function of sizes alone."""
        return (2 * first + numel) * self.size // (2 * total) if numel else 0

    def fill(self, tensor: Tensor, owner: int) -> Tensor:
        """The tensor, contiguous, on every rank with the owner's elements; all ranks call this, in the same order."""
        if self.size > 1:
            dist.broadcast(tensor, group_src=owner, group=self.group)
        return tensor


ALONE = Share()
