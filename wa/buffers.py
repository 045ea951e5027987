"""Buffers under an average: batch-norm statistics belong to the weights they were computed with.

Three policies, an option of every scheme:

- ``"live"``: evaluate the averaged weights with the model's own buffers.
- ``"average"``: floating-point buffers are averaged like parameters; integer buffers, and buffers that were
  not finite when the bank was made (masks of −inf), stay the live ones.
- ``"recompute"``: running statistics are recomputed under the averaged weights (`recompute_statistics`).

Buffers are read by name each time: some models rebind `self.running_mean` at every step, so that a kept
reference goes stale.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, Literal

import torch
from torch import Tensor, nn

Policy = Literal["live", "average", "recompute"]
Forwards = Callable[[nn.Module], Iterable[object]]
STATISTICS = ("running_mean", "running_var")


def averaged_buffers(model: nn.Module) -> dict[str, Tensor]:
    """The buffers that policy ``"average"`` averages: floating-point and finite, each object once."""
    return {
        name: buffer
        for name, buffer in model.named_buffers()
        if buffer.is_floating_point() and bool(torch.isfinite(buffer).all())
    }


def statistics_modules(model: nn.Module) -> dict[str, nn.Module]:
    """The modules that keep running statistics, by name: those with buffers running_mean and running_var."""
    return {
        name: module
        for name, module in model.named_modules()
        if all(module._buffers.get(buffer) is not None for buffer in STATISTICS)
    }


def recompute_statistics(model: nn.Module, forwards: Iterable[object]) -> int:
    """Replace running statistics by their exact mean over fresh forward passes of `model` as it is now.

    μ ← (1/n) Σᵢ μᵢ,  σ² ← (1/n) Σᵢ σ²ᵢ over the n calls of each module, summed in float64.

    forwards: an iterable that runs one forward pass each time an item is asked for, for example
    ``(model(batch) for batch in batches)``; the items are ignored. Passes run in train mode, without
    gradients, and leave torch's random state, the modules' modes and their momentum as they were. Returns
    the number of passes. A module that no pass calls keeps its statistics.

    Any module counts that has running_mean, running_var and a `momentum` (a number, None or a tensor), be it
    the weight of the new statistic or of the old: meanwhile it is 1/2, which reads the same either way.

    Raises: ValueError when a module has running statistics but no `momentum`, or there was no forward pass.
    Source: the cumulative average of torch.optim.swa_utils.update_bn, without its isinstance test.
    """
    modules = statistics_modules(model)
    for name, module in modules.items():
        if not hasattr(module, "momentum"):
            raise ValueError(f"cannot recompute the statistics of {name!r}: it has no attribute 'momentum'")
    passes = 0
    collectors = [_Collector(module) for module in modules.values()]
    with ExitStack() as stack:
        devices = {tensor.device for tensor in model.parameters() if tensor.device.type == "cuda"}
        stack.enter_context(torch.random.fork_rng(devices=devices))  # dropout draws must not reach training
        stack.enter_context(_train_mode(model))
        stack.enter_context(torch.no_grad())
        for collector in collectors:
            stack.enter_context(collector.listening())
        for _ in forwards:
            passes += 1
    if collectors and not passes:
        raise ValueError("cannot recompute statistics: there was no forward pass")
    for collector in collectors:
        collector.write_means()
    return passes


@contextmanager
def _train_mode(model: nn.Module) -> Iterator[None]:
    modes = [(module, module.training) for module in model.modules()]
    model.train()
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode


class _Collector:
    """Sums one module's statistics over its calls.

    With momentum 1/2 and the buffers at 0 before a call, they hold half the statistic of that call after it.
    """

    def __init__(self, module: nn.Module) -> None:
        self._module: Any = module
        self._calls = 0
        self._sums = {name: torch.zeros_like(self._buffer(name), dtype=torch.float64) for name in STATISTICS}

    def _buffer(self, name: str) -> Tensor:
        buffer: Tensor = self._module._buffers[name]
        return buffer

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Sum up while inside; afterwards buffers and momentum are what they were."""
        momentum = self._module.momentum
        kept = {name: self._buffer(name) for name in STATISTICS}
        values = {name: buffer.clone() for name, buffer in kept.items()}
        self._clear()
        self._module.momentum = torch.full_like(momentum, 0.5) if isinstance(momentum, Tensor) else 0.5
        hook = self._module.register_forward_hook(self._after_call)
        try:
            yield
        finally:
            hook.remove()
            self._module.momentum = momentum
            for name, buffer in kept.items():
                self._module._buffers[name] = buffer.copy_(values[name])

    @torch.no_grad()
    def _clear(self) -> None:
        for name in STATISTICS:
            self._buffer(name).zero_()

    @torch.no_grad()
    def _after_call(self, *_: object) -> None:
        if not self._module.training:  # the caller's own choice: nothing was gathered
            return
        self._calls += 1
        for name in STATISTICS:
            self._sums[name] += 2 * self._buffer(name).double()
        self._clear()

    @torch.no_grad()
    def write_means(self) -> None:
        """Put the means into the module's buffers, unless it was never called."""
        for name, total in self._sums.items() if self._calls else ():
            self._buffer(name).copy_(total / self._calls)


class Saved:
    """A model's parameters and buffers as they are now, to be put back bit for bit, object for object."""

    def __init__(self, model: nn.Module) -> None:
        self._places: list[tuple[dict[str, Any], str, Any]] = []
        tensors: dict[int, Tensor] = {}
        for module in model.modules():
            held: dict[str, Any]
            for held in (module._parameters, module._buffers):
                for name, tensor in held.items():
                    self._places.append((held, name, tensor))
                    if tensor is not None:
                        tensors[id(tensor)] = tensor
        self._tensors = list(tensors.values())
        self._values = [tensor.detach().clone() for tensor in self._tensors]

    def restore(self) -> None:
        """Put every object back in its place, with the values it had."""
        for held, name, tensor in self._places:
            held[name] = tensor
        with torch.no_grad():
            for tensor, value in zip(self._tensors, self._values, strict=True):
                tensor.copy_(value)
