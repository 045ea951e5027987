"""The bank: many averages of one training run, riding along. The only thing here with state."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from itertools import zip_longest
from time import perf_counter
from typing import Any

import torch
from torch import Tensor, nn

from .buffers import Forwards, Saved, averaged_buffers, recompute_statistics
from .flat import Block, Reader, live_parameters, make_blocks
from .lane import Lane
from .schemes import Scheme

Grid = tuple[int, int]


class AbsentAverage(KeyError):
    """No such average now: the scheme is not in the bank, or has not taken enough snapshots."""

    def __str__(self) -> str:
        return str(self.args[0])


class Bank:
    """Averages of a model's weights under many schemes at once, updated after every optimizer step.

    bank = Bank(model, [LAWA(k=10, every=64), EMA(decay=0.99, every=16)])
    bank.update(step)                 # step = optimizer steps completed, 1, 2, 3, …
    for scheme in bank: …             # the schemes whose average exists now; len(bank) of them
    with bank.swapped(scheme): …      # the model holds that average

    Floating-point parameters are averaged, frozen ones too, tied ones once (under their first name); buffers
    follow the scheme's policy (`wa.buffers`). Rings hold snapshots in the parameters' dtype; sums and
    accumulators are float32 or wider. Nothing in a bank, and nothing it returns, aliases live weights. An
    average has the same bits whether its scheme is alone in the bank or among others.

    Attributes: schemes, in the order given. step: the last step updated, 0 before the first.

    Raises: ValueError on duplicate schemes, things that are no scheme, complex or DTensor parameters.
    """

    def __init__(self, model: nn.Module, schemes: Iterable[Scheme]) -> None:
        self.schemes = tuple(schemes)
        for scheme in self.schemes:
            if not isinstance(scheme, Scheme):
                raise ValueError(f"{scheme!r} is not a scheme: give LAWA(…), EMA(…), Tail(…) or WSM(…)")
        if len(set(self.schemes)) < len(self.schemes):
            twice = next(scheme for scheme in self.schemes if self.schemes.count(scheme) > 1)
            raise ValueError(f"{twice!r} is in the bank twice")
        self.step = 0
        self._model = model
        self._swapped = False
        self._seconds = dict.fromkeys(self.schemes, 0.0)
        self._grids: dict[Grid, list[Scheme]] = {}
        for scheme in self.schemes:
            self._grids.setdefault(scheme.grid, []).append(scheme)
        self._blocks = self._find_blocks()
        self._readers = {block: Reader(block) for block in self._blocks}
        self._lanes = {
            (grid, block): Lane(block, members)
            for grid, schemes_of_grid in self._grids.items()
            for block in self._blocks
            if (members := [scheme for scheme in schemes_of_grid if _covers(scheme, block)])
        }
        self._due = {grid: sum(grid) for grid in self._grids}
        self._next = min(self._due.values(), default=None)

    def _find_blocks(self) -> list[Block]:
        if not self.schemes:
            return []
        blocks = make_blocks("parameters", live_parameters(self._model))
        if any(scheme.buffers == "average" for scheme in self.schemes):
            blocks += make_blocks("buffers", averaged_buffers(self._model))
        return blocks

    def update(self, step: int) -> None:
        """Take the snapshots due at `step`: call it after every optimizer step (not micro-batch).

        Steps at which no scheme takes a snapshot may be left out.

        Raises: ValueError when `step` is not larger than the last one, or a snapshot step was left out;
        RuntimeError while an average is swapped in, or when the model's parameters are no longer the same.
        """
        self._refuse_while_swapped("update")
        if not isinstance(step, int):
            raise ValueError(f"update needs the step as an int, not {step!r}")
        if step <= self.step:
            raise ValueError(f"update needs steps that increase: {step!r} after {self.step}")
        if self._next is not None and step >= self._next:
            if step > self._next:
                raise ValueError(
                    f"update({step}): the snapshot due at step {self._next} was left out; call update after "
                    "every optimizer step, or give the schemes a burn_in"
                )
            self._take(step, [grid for grid, due in self._due.items() if due == step])
        self.step = step

    @torch.no_grad()
    def _take(self, step: int, due: list[Grid]) -> None:
        start = perf_counter()
        tensors = self._live_tensors()
        taken = {grid: (step - grid[1]) // grid[0] for grid in due}
        finding = perf_counter() - start
        for grid in due:
            for scheme in self._grids[grid]:
                self._seconds[scheme] += finding
        for block in self._blocks:
            lanes = [(self._lanes[grid, block], taken[grid]) for grid in due if (grid, block) in self._lanes]
            if not lanes:
                continue
            for piece, reading in self._readers[block].read(tensors):
                for lane, n in lanes:
                    for scheme, seconds in lane.push(piece, reading, n):
                        self._seconds[scheme] += seconds
        for grid in due:
            self._due[grid] = step + grid[0]
        self._next = min(self._due.values())

    def _live_tensors(self) -> dict[str, Tensor]:
        """The tensors that the blocks name, as they are now: a model may have rebound them."""
        parameters = live_parameters(self._model)
        averaged = {name for block in self._blocks if block.kind == "parameters" for name in block.shapes}
        if added := parameters.keys() - averaged:
            raise RuntimeError(
                f"the model has parameters the bank does not average: {', '.join(sorted(added))}"
            )
        tensors = parameters
        if any(block.kind == "buffers" for block in self._blocks):
            tensors = {**dict(self._model.named_buffers()), **parameters}
        for block in self._blocks:
            block.check(tensors)
        return tensors

    def __iter__(self) -> Iterator[Scheme]:
        return iter([scheme for scheme in self.schemes if scheme.exists(self.step)])

    def __len__(self) -> int:
        return sum(scheme.exists(self.step) for scheme in self.schemes)

    def __bool__(self) -> bool:
        # Always true: `if bank: bank.update(step)` must not skip the updates that would fill it.
        return True

    def __contains__(self, scheme: object) -> bool:
        return any(scheme == existing for existing in self)

    @torch.no_grad()
    def tensors(self, scheme: Scheme) -> dict[str, Tensor]:
        """The average as new tensors, name -> tensor, cast to the dtype of the model's parameter.

        Tied weights come once, under their first name, as in `model.named_parameters()`. Under policy
        ``"average"`` all buffers follow: averaged ones, and copies of the live rest.

        Raises: AbsentAverage (a KeyError) when there is no such average now.
        """
        self._find(scheme)
        tensors = {
            name: torch.empty(shape, dtype=block.dtype, device=block.device)
            for block in self._blocks
            if _covers(scheme, block)
            for name, shape in block.shapes.items()
        }
        self._write(scheme, tensors)
        if scheme.buffers == "average":
            for name, buffer in self._model.named_buffers():
                tensors.setdefault(name, buffer.detach().clone())
        return tensors

    def _write(self, scheme: Scheme, tensors: Mapping[str, Tensor]) -> None:
        n = scheme.snapshots(self.step)
        for block in self._blocks:
            if _covers(scheme, block):
                for piece in block.pieces:
                    block.write(piece, self._lanes[scheme.grid, block].mean(scheme, piece, n), tensors)

    @contextmanager
    def swapped(self, scheme: Scheme, recompute: Forwards | None = None) -> Iterator[nn.Module]:
        """The model holds the average inside the `with` (and is what it gives: `as model`).

        On exit, whatever happened, every parameter and buffer is what it was, bit for bit and object for
        object; gradients are not touched. The weights are copied in place, so references to them stay good.

        recompute: a function of the model that returns an iterable, one forward pass an item (see
        `recompute_statistics`): the running statistics are recomputed under the averaged weights. Needed when
        the scheme says ``buffers="recompute"``; given for another policy, it acts on top of that.

        Raises: AbsentAverage (a KeyError); ValueError when `recompute` is needed and missing; RuntimeError
        when an average is swapped in already. Meanwhile update, state_dict, load_state_dict raise too.
        """
        self._refuse_while_swapped("swapped")
        self._find(scheme)
        if scheme.buffers == "recompute" and recompute is None:
            raise ValueError(f"{scheme!r} recomputes statistics: swapped needs recompute=")
        tensors = self._live_tensors()
        saved = Saved(self._model)
        self._swapped = True
        try:
            with torch.no_grad():
                self._write(scheme, tensors)
            if recompute is not None:
                recompute_statistics(self._model, recompute(self._model))
            yield self._model
        finally:
            saved.restore()
            self._swapped = False

    @property
    def seconds(self) -> dict[Scheme, float]:
        """Wall seconds of averaging that each scheme alone would have cost so far.

        Its own sums, and in full the reading of the weights and the ring it shares with others. On an
        accelerator that runs asynchronously this is the time to launch the work.
        """
        return dict(self._seconds)

    @property
    def nbytes(self) -> int:
        """Bytes of all rings, running sums and accumulators; `memory_bytes` says it beforehand."""
        return sum(lane.nbytes for lane in self._lanes.values())

    def state_dict(self) -> dict[str, Any]:
        """Everything, as plain dicts, lists, numbers, strings and copied tensors (torch.load weights_only).

        Raises: RuntimeError while an average is swapped in: model and bank would not match.
        """
        self._refuse_while_swapped("state_dict")
        return {
            "format": 1,
            "step": self.step,
            "schemes": [repr(scheme) for scheme in self.schemes],
            "blocks": [block.describe() for block in self._blocks],
            "seconds": [self._seconds[scheme] for scheme in self.schemes],
            "lanes": [lane.state_dict() for lane in self._lanes.values()],
        }

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from `state_dict()` of a bank of the same schemes, in the same order, and the same model.

        Raises: ValueError when they differ, before anything is changed; RuntimeError while swapped.
        """
        self._refuse_while_swapped("load_state_dict")
        if state.get("format") != 1:
            raise ValueError(f"not a bank's state of format 1: {state.get('format')!r}")
        mine = [repr(scheme) for scheme in self.schemes]
        if state["schemes"] != mine:
            here, there = next(pair for pair in zip_longest(mine, state["schemes"]) if pair[0] != pair[1])
            raise ValueError(f"the state is of other schemes: it has {there} where this bank has {here}")
        if state["blocks"] != [block.describe() for block in self._blocks]:
            raise ValueError("the state is of another model: names, shapes or dtypes of its tensors differ")
        self.step = state["step"]
        self._seconds = dict(zip(self.schemes, state["seconds"], strict=True))
        for lane, lane_state in zip(self._lanes.values(), state["lanes"], strict=True):
            lane.load_state_dict(lane_state)
        for every, burn_in in self._grids:
            taken = max(0, self.step - burn_in) // every
            self._due[every, burn_in] = burn_in + (taken + 1) * every
        self._next = min(self._due.values(), default=None)

    def _find(self, scheme: Scheme) -> None:
        if scheme not in self._seconds:
            raise AbsentAverage(f"{scheme!r} is not in this bank")
        if not scheme.exists(self.step):
            raise AbsentAverage(
                f"{scheme!r} is absent at step {self.step}: it has not taken enough snapshots"
            )

    def _refuse_while_swapped(self, what: str) -> None:
        if self._swapped:
            raise RuntimeError(
                f"{what} while an average is swapped in: leave the `with bank.swapped(…)` first"
            )


def _covers(scheme: Scheme, block: Block) -> bool:
    """Whether a scheme averages this block."""
    return block.kind == "parameters" or scheme.buffers == "average"
