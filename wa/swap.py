"""What a swap of weights must put back, and the copies of weights that it must not leave behind.

Weights are copied in place, so whatever reads the parameters at each call sees the average: compiled and
traced modules, CUDA graphs, an LSTM's flat weights, the fast path of a transformer's encoder. Copies that
torch makes are dealt with here. Copies that the caller makes are the caller's: of `torch.func` (a stacked
state, `functional_call` with a saved dict), of a module that keeps a function of its weights by itself.
"""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm

from .layout import distinct


class Saved:
    """A model's parameters, buffers and modes as they are now, to be put back bit for bit, object for object.

    So are submodules, and tensors that modules keep as plain attributes: the `weight` that hooks of the older
    `weight_norm`, `spectral_norm` and `prune` compute is one.
    """

    def __init__(self, model: nn.Module) -> None:
        self._restore_modes = _modes(model)
        self._places: list[tuple[Any, dict[str, Any]]] = []
        self._lists: list[tuple[list[Any], list[Any]]] = []
        tensors: dict[int, Tensor] = {}
        for module in model.modules():
            plain = {name: value for name, value in vars(module).items() if isinstance(value, Tensor)}
            held = [(part, dict(part.items())) for part in (module._parameters, module._buffers)]
            self._places += [*held, (module._modules, dict(module._modules.items())), (vars(module), plain)]
            tensors |= {id(t): t for _, part in held for t in part.values() if t is not None}
            if isinstance(flat := getattr(module, "_flat_weights", None), list):  # of an RNN: its parameters again
                self._lists.append((flat, list(flat)))
        # The second of each is the same memory: `model.half()` gives a parameter another.
        self._tensors = [(tensor, tensor.detach()) for tensor in tensors.values()]
        self._values = [distinct(memory).clone() for _, memory in self._tensors]

    def restore(self) -> None:
        """Put every object back in its place, with the values it had. May be called again, if interrupted."""
        try:
            self._restore_modes()
        finally:
            self._restore_tensors()

    def _restore_tensors(self) -> None:
        for held, saved in self._places:
            for name, value in saved.items():
                if name not in held or held[name] is not value:
                    held[name] = value
        for flat, objects in self._lists:
            flat[:] = objects
        with torch.no_grad():
            for (tensor, memory), value in zip(self._tensors, self._values, strict=True):
                if not _same_memory(tensor, memory):
                    tensor.data = memory
                distinct(memory).copy_(value)


def _modes(model: nn.Module) -> Callable[[], None]:
    """What puts back whether each module is in train mode. `model.train()` alone would thaw a frozen batch norm."""
    modes = [(module, module.training) for module in model.modules()]

    def restore() -> None:
        if all(module.training == mode for module, mode in modes):
            return
        model.train(modes[0][1])  # some models do more there: adapters merge and unmerge weights
        for module, mode in modes:
            module.training = mode

    return restore


@contextmanager
def modes_kept(model: nn.Module) -> Iterator[None]:
    """Put back each module's own train or eval mode on the way out."""
    restore = _modes(model)
    try:
        yield
    finally:
        restore()


def _same_memory(left: Tensor, right: Tensor) -> bool:
    if (left.dtype, left.shape, left.device, left.layout) != (right.dtype, right.shape, right.device, right.layout):
        return False
    return left.layout is not torch.strided or (left.data_ptr() == right.data_ptr() and left.stride() == right.stride())


def clear_weight_caches() -> None:
    """Forget weights cast under an enclosing `torch.autocast`, or computed under `parametrize.cached()`.

    To be called whenever all weights have changed at once: both caches go by the parameter, not its values.
    """
    torch.clear_autocast_cache()
    parametrize._cache.clear()


@torch.no_grad()
def renew_computed_weights(model: nn.Module) -> None:
    """Recompute the plain `weight` attributes that older hooks only renew when their module is called."""
    pruning = getattr(sys.modules.get("torch.nn.utils.prune"), "BasePruningMethod", ())
    for module in model.modules():
        for hook in module._forward_pre_hooks.values():
            if isinstance(hook, SpectralNorm):  # calling it would turn its power iteration on
                setattr(module, hook.name, hook.compute_weight(module, do_power_iteration=False))
            elif isinstance(hook, (WeightNorm, pruning)):
                hook(module, None)


def refuse_folded_weights() -> None:
    """Raises: RuntimeError when torch.compile makes weights constants of its code, where no swap reaches them."""
    if getattr(sys.modules.get("torch._inductor.config"), "freezing", False):
        raise RuntimeError(
            "torch._inductor.config.freezing makes weights part of compiled code, which would not see the average: "
            "set it to False, and compile anew"
        )
