"""Buffers under an average: batch-norm statistics belong to the weights they were computed with.

Three policies, an option of every scheme:

- ``"live"``: evaluate the averaged weights with the model's own buffers.
- ``"average"``: floating-point buffers are averaged like parameters; integer buffers, and buffers that were
  not finite when the bank was made (masks of −inf), stay the live ones.
- ``"recompute"``: running statistics are recomputed under the averaged weights (`recompute_statistics`).

Buffers are read by name each time: some models rebind `self.running_mean` at every step, so that a kept
reference goes stale.
"""

import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from .checks import check_tensor
from .swap import modes_kept

Forwards = Callable[[nn.Module], Iterable[object]]
STATISTICS = ("running_mean", "running_var")
COUNTER = "num_batches_tracked"


def averaged_buffers(model: nn.Module) -> dict[str, Tensor]:
    """The buffers that policy ``"average"`` averages: floating-point and finite, each object once.

    Raises: ValueError on floating-point buffers that cannot be averaged, see `wa.checks`.
    """
    floating = {name: buffer for name, buffer in model.named_buffers() if is_lazy(buffer) or buffer.is_floating_point()}
    for name, buffer in floating.items():
        check_tensor("buffer", name, buffer)
    return {name: buffer for name, buffer in floating.items() if bool(torch.isfinite(buffer).all())}


def statistics_modules(model: nn.Module) -> dict[str, nn.Module]:
    """The modules that keep running statistics, by name: those with buffers running_mean and running_var."""
    return {
        name: module
        for name, module in model.named_modules()
        if all(module._buffers.get(buffer) is not None for buffer in STATISTICS)
    }


def statistics(model: nn.Module) -> dict[str, Tensor]:
    """Copies of all running statistics and their counters, by buffer name: what `write_statistics` puts back."""
    return {
        f"{place}.{name}" if place else name: buffer.detach().clone()
        for place, module in statistics_modules(model).items()
        for name in (*STATISTICS, COUNTER)
        if (buffer := module._buffers.get(name)) is not None
    }


@torch.no_grad()
def write_statistics(model: nn.Module, kept: Mapping[str, Tensor]) -> None:
    """Copy statistics into the model's buffers of these names."""
    for name, value in kept.items():
        model.get_buffer(name).copy_(value)


def recompute_statistics(model: nn.Module, forwards: Iterable[object] | Forwards) -> int:
    """Replace running statistics by their exact mean over fresh forward passes of `model` as it is now.

    μ ← (1/n) Σᵢ μᵢ,  σ² ← (1/n) Σᵢ σ²ᵢ over the n calls of each module, summed in float64.

        recompute_statistics(model, (model(batch) for batch in loader))

    forwards: an iterable that runs one forward pass each time an item is asked for, or a function of the model
    that returns one; the items are ignored. Passes run in train mode, without gradients and uncompiled; they
    leave torch's random state, the modules' modes and their momentum as they were. In a model that is in
    train mode, norms that are not (frozen ones) stay so and keep their statistics, as does a norm that no
    pass calls. Returns the number of passes: 0, without a pass, when no norm is there or all are frozen.

    Any module counts that has running_mean, running_var and a `momentum` (a number, None or a tensor), be it
    the weight of the new statistic or of the old: meanwhile it is 1/2, which reads the same either way. A
    num_batches_tracked is n afterwards.

    Raises: ValueError when a module has running statistics but no `momentum`, when there was no forward
    pass, or none that a norm took part in; the model is then as it was.
    Source: the cumulative average of torch.optim.swa_utils.update_bn, without its isinstance test.
    """
    if not isinstance(model, nn.Module) or isinstance(forwards, nn.Module):
        raise ValueError(f"cannot recompute statistics: {RIGHT_CALL}")
    norms = statistics_modules(model)
    training = _in_train_mode(model)
    modules = {name: norm for name, norm in norms.items() if norm.training or not training}
    for name, module in modules.items():
        if not hasattr(module, "momentum"):
            raise ValueError(f"cannot recompute the statistics of {name!r}: it has no attribute 'momentum'")
    if not modules:
        return 0
    passes = 0
    collectors = [_Collector(module) for module in modules.values()]
    with ExitStack() as stack:
        devices = {tensor.device for tensor in model.parameters() if tensor.device.type == "cuda"}
        stack.enter_context(torch.random.fork_rng(devices=devices))  # dropout draws must not reach training
        stack.enter_context(modes_kept(model))
        if not training:
            model.train()
        stack.enter_context(torch.no_grad())
        stack.enter_context(_uncompiled())
        for collector in collectors:
            stack.enter_context(collector.listening())
        called = stack.enter_context(_calls(model))
        items: object = forwards(model) if callable(forwards) else forwards
        if not isinstance(items, Iterable):
            said = f"{type(items).__name__} is no iterable of forward passes"
            raise ValueError(f"cannot recompute statistics: {said}; {RIGHT_CALL}")
        for _ in items:
            passes += 1
            if not called:  # said at once: the iterable may have no end
                raise ValueError(f"cannot recompute statistics: an item ran no forward pass; {RIGHT_CALL}")
            called.clear()
    if not passes:
        raise ValueError(f"cannot recompute statistics: there was no forward pass; {RIGHT_CALL}")
    if not any(collector.calls for collector in collectors):
        raise ValueError(
            f"cannot recompute statistics: no pass of {passes} ran {next(iter(modules))!r} or another norm in "
            "train mode; run the whole model, and no .eval() in the passes"
        )
    for collector in collectors:
        collector.write_means()
    return passes


def _in_train_mode(model: nn.Module) -> bool:
    """Whether a norm in eval mode is one that was frozen, and not a part of a model in eval mode.

    A wrapper of one's own may be left in train mode when what it wraps is not: so the parts are asked as well.
    """
    norms = set(statistics_modules(model).values())
    parts = [module for module in model.modules() if next(module.children(), None) is None and module not in norms]
    return model.training and (not parts or any(part.training for part in parts))


RIGHT_CALL = "call recompute_statistics(model, (model(batch) for batch in loader))"


@contextmanager
def _calls(model: nn.Module) -> Iterator[list[nn.Module]]:
    """A list that gets the first module of the model that runs after it was empty."""
    called: list[nn.Module] = []

    def note(module: nn.Module, *_: object) -> None:
        if not called:
            called.append(module)

    hooks = [module.register_forward_pre_hook(note) for module in model.modules()]
    try:
        yield called
    finally:
        for hook in hooks:
            hook.remove()


def _uncompiled() -> AbstractContextManager[object]:
    """Compiled code does not see hooks that were added after it was compiled; nothing to do without any."""
    if "torch._dynamo" not in sys.modules:
        return nullcontext()
    stance: AbstractContextManager[object] = torch.compiler.set_stance("force_eager")
    return stance


class _Collector:
    """Sums one module's statistics over its calls.

    With momentum 1/2 and the buffers at 0 before a call, they hold half the statistic of that call after it.
    """

    def __init__(self, module: nn.Module) -> None:
        self._module: Any = module
        self.calls = 0
        self._sums = {name: torch.zeros_like(self._buffer(name), dtype=torch.float64) for name in STATISTICS}

    def _buffer(self, name: str) -> Tensor:
        buffer: Tensor = self._module._buffers[name]
        return buffer

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Sum up while inside; afterwards buffers and momentum are what they were."""
        momentum = self._module.momentum
        names = [name for name in (*STATISTICS, COUNTER) if self._module._buffers.get(name) is not None]
        kept = {name: self._buffer(name) for name in names}
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
        self.calls += 1
        for name in STATISTICS:
            self._sums[name] += 2 * self._buffer(name).double()
        self._clear()

    @torch.no_grad()
    def write_means(self) -> None:
        """Put the means, and how many, into the module's buffers, unless it was never called."""
        for name, total in self._sums.items() if self.calls else ():
            self._buffer(name).copy_(total / self.calls)
        if self.calls and self._module._buffers.get(COUNTER) is not None:
            self._buffer(COUNTER).fill_(self.calls)
