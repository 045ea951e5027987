"""A word, once, when a snapshot held NaN or infinity: what an average makes of it differs between schemes."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence

import torch
from torch import Tensor


class FiniteWatch:
    """Looks at every snapshot until the first that is not finite.

    On a CPU a sum says at once that all is well. An accelerator is not waited for: it notes the step beside the
    tensors' names, and the note is read when somebody asks for an average or a state anyway.
    """

    def __init__(self) -> None:
        self._first: tuple[int, str] | None = None
        self._told = False
        self._notes: dict[tuple[str, ...], Tensor] = {}  # the first bad step of each tensor, 0 = none so far

    def look(self, flat: Tensor, names: Sequence[str], parts: Sequence[Tensor], step: int) -> None:
        """Look at the tensors `parts`, called `names`, whose elements are `flat`."""
        if self._first is not None or flat.numel() == 0:
            return
        if flat.device.type != "cpu":
            self._note(names, parts, step)
        elif not math.isfinite(flat.sum().item()):  # or finite numbers with too large a sum
            for name, part in zip(names, parts, strict=True):
                if not torch.isfinite(part).all():
                    self._first = step, name
                    return

    def _note(self, names: Sequence[str], parts: Sequence[Tensor], step: int) -> None:
        filled = {name: part for name, part in zip(names, parts, strict=True) if part.numel()}
        largest = torch.stack(torch._foreach_norm(list(filled.values()), math.inf))
        key = tuple(filled)
        if key not in self._notes:
            self._notes[key] = torch.zeros(len(key), dtype=torch.int64, device=largest.device)
        is_first = ~torch.isfinite(largest) & (self._notes[key] == 0)
        self._notes[key].masked_fill_(is_first, step)

    def tell(self, *, wait: bool) -> None:
        """Warn if a snapshot was not finite, once. wait: for an accelerator too."""
        if wait and self._first is None:
            steps = [
                (step, name)
                for names, note in self._notes.items()
                for name, step in zip(names, note.tolist(), strict=True)
                if step
            ]
            self._first = min(steps, key=lambda found: found[0], default=None)
        if self._first is None or self._told:
            return
        self._told = True
        step, name = self._first
        warnings.warn(
            f"a snapshot was not finite: {name!r} at step {step}. LAWA and WSM are right again once it has left "
            "their window; EMA and Tail stay NaN or infinite, by their definition. Said once a bank",
            RuntimeWarning,
            stacklevel=3,
        )
