"""Buffers of a step that is computed in parts: each part's from the same old ones, the step's their mean.

Batch norm moves its running statistics once a forward pass. Parts in turn would each move them, so that their
horizon shrank with the number of parts on a device; as it is, one model comes out of however many devices share
the same parts, up to the order of summation: running mean the same as of one piece, running variance the mean over
the parts, `num_batches_tracked` the steps.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from sweeps.data_parallel import Team
from wa.layout import distinct


class StepBuffers:
    """All buffers of `model` over one step: `begin` and `add` around each part's forward pass, `finish` at the end.

    Floating-point ones, whatever they are for, become old + Σ (part's − old) / (number of parts of all ranks), in
    float64; one that no part changes keeps its bits. Others, and caches that a part gave another shape or dropped,
    are what the last part made of them.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._old = {name: buffer.detach().clone() for name, buffer in model.named_buffers()}
        self._names = [name for name, buffer in self._old.items() if buffer.is_floating_point()]
        self._change: Tensor | None = None
        self._parts = 0

    def _now(self) -> dict[str, Tensor]:
        # By name each time: some models bind new tensors instead of writing into the old ones.
        return {
            name: buffer
            for name, buffer in self._model.named_buffers()
            if name in self._old and buffer.shape == self._old[name].shape
        }

    @torch.no_grad()
    def begin(self) -> None:
        """Have the old buffers back, for a part's forward pass."""
        if self._parts:
            for name, buffer in self._now().items():
                _write(buffer, self._old[name])

    @torch.no_grad()
    def add(self) -> None:
        """Count what the part made of them."""
        self._parts += 1
        if self._names:
            # The old one in place of a cache that grew: ranks must add up equally many elements.
            old, new = self._flat(self._old), self._flat(self._old | self._now())
            change = torch.where(new == old, 0.0, new - old)  # an infinite mask has not changed by NaN
            self._change = change if self._change is None else self._change + change

    @torch.no_grad()
    def finish(self, team: Team) -> None:
        """Leave the mean over the parts of all ranks, which have equally many."""
        if self._change is None:
            return
        change = team.sum(self._change) / (self._parts * team.size)
        old, now = self._flat(self._old), self._now()
        sizes = [self._old[name].numel() for name in self._names]
        for name, mean in zip(self._names, torch.split(old + change, sizes), strict=True):
            if name in now:
                _write(now[name], mean.view(self._old[name].shape))

    def _flat(self, buffers: dict[str, Tensor]) -> Tensor:
        return torch.cat([buffers[name].detach().double().reshape(-1) for name in self._names])


def _write(buffer: Tensor, value: Tensor) -> None:
    where = distinct(buffer)
    where.copy_(value[tuple(slice(size) for size in where.shape)])
