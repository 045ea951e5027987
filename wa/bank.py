"""The bank: many averages of one training run, riding along. The only thing here with state."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from copy import deepcopy
from time import perf_counter
from typing import TYPE_CHECKING, Any, Self

import torch
from torch import Tensor, nn

from .averages import Averages
from .buffers import Forwards, averaged_buffers, recompute_statistics, write_statistics
from .checks import check_model, check_read_at, check_schemes, check_step
from .flat import Block, live_parameters, make_blocks
from .schemes import Scheme
from .share import Share
from .state import IncompatibleSchemes, plain_names
from .swap import Saved, clear_weight_caches, refuse_folded_weights, renew_computed_weights

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup


class AbsentAverage(KeyError):
    """No such average now: the scheme is not in the bank, or has not taken enough snapshots."""

    def __str__(self) -> str:
        return str(self.args[0])


class Bank:
    """Averages of a model's weights under many schemes at once, updated after every optimizer step.

    Floating-point parameters are averaged, frozen ones too, tied ones once (under their first name); buffers
    follow the scheme's policy (`wa.buffers`). Rings hold snapshots in the parameters' dtype; sums and
    accumulators are float32 or wider. Nothing in a bank, and nothing it returns, aliases live weights. An
    average has the same bits whether its scheme is alone in the bank or among others.

    Parameters are found by name each time, in this model object: one that was replaced by another of the same
    shape, dtype and device is followed; a copy of the model is not. A copy of a bank (pickle, copy.deepcopy,
    torch.save, another process) brings its own copy of the model, the same that is copied beside it.

    start: steps completed before there was a bank. Snapshots stay on their grid, the first is the first after
    `start`; of those before it no average knows, and each goes on as at its own beginning: an EMA from its first
    snapshot, a Tail from there on, a LAWA when k were seen. `coefficients` says what an average is made of.

    read_at: the steps at which averages will be read, where they are known: a window then keeps a sum for each such
    reading ahead that it has begun, not its k snapshots, with the same bits (`wa.window_sums`). At other steps a LAWA
    or WSM cannot be read; an EMA or Tail can.

    group: of processes that train the same model (`torch.distributed.group.WORLD`): each keeps the averages of its
    share of the weights, with the bits of one that keeps all. Whatever gives an average or a state is then called by
    all of them, in the same order: swapped, tensors, module_state, state_dict.

    Attributes: schemes, in the order given.

    Raises: ValueError on duplicate schemes, things that are no scheme, parameters that cannot be averaged.
    """

    @torch.inference_mode(False)  # what is made under it could not be updated outside
    def __init__(
        self,
        model: nn.Module,
        schemes: Iterable[Scheme],
        start: int = 0,
        *,
        read_at: Iterable[int] | None = None,
        group: ProcessGroup | None = None,
    ) -> None:
        check_model(model)
        self.schemes = check_schemes(schemes)
        step = check_step(start, "Bank(…, start)")
        if step < 0:
            raise ValueError(f"Bank(…, start) needs steps completed, 0 or more, not {start!r}")
        self._model = model
        self._swapped = False
        self._share = Share(group)
        blocks = self._find_blocks()
        plain = plain_names(model, [name for block in blocks for name in block.shapes])
        told = None if read_at is None else check_read_at(read_at)
        self._averages = Averages(self.schemes, blocks, plain, step, told)

    @property
    def step(self) -> int:
        """The last step updated; `start` before the first."""
        return self._averages.step

    @property
    def due(self) -> int | None:
        """The step of the next snapshot that some scheme takes; None without schemes."""
        return self._averages.next

    def _find_blocks(self) -> list[Block]:
        if not self.schemes:
            return []
        parameters = live_parameters(self._model)
        if not parameters:
            raise ValueError(
                "the model has no floating-point parameters to average (frozen TorchScript keeps none either)"
            )
        blocks = make_blocks("parameters", parameters, self._share)
        if any(scheme.buffers == "average" for scheme in self.schemes):
            blocks += make_blocks("buffers", averaged_buffers(self._model), self._share)
        return blocks

    def update(self, step: int) -> None:
        """Take the snapshots due at `step`: call it after every optimizer step (not micro-batch).

        Steps at which no scheme takes a snapshot may be left out.

        Raises: ValueError when `step` is not larger than the last one, or a snapshot step was left out;
        RuntimeError while an average is swapped in, or when the model's parameters are no longer the same: then
        nothing was done. When it fails in the middle of a snapshot, the bank refuses everything but
        `load_state_dict` from then on, since doing it again would count a part of the weights twice.
        """
        self._refuse("update")
        step = check_step(step, "update")
        if step <= self.step:
            raise ValueError(f"update needs steps that increase: {step!r} after {self.step}")
        due = self._averages.next
        if due is not None and step > due:
            raise ValueError(
                f"update({step}): the snapshot due at step {due} was left out; call update after every optimizer "
                "step, give the schemes a burn_in, or join a run as Bank(model, schemes, start=steps so far)"
            )
        if step == due:
            start = perf_counter()
            tensors = self._live_tensors()
            self._averages.take(step, tensors, perf_counter() - start)
        self._averages.step = step
        self._averages.watch.tell(wait=False)

    def _live_tensors(self) -> dict[str, Tensor]:
        """The tensors that the blocks name, as they are now: a model may have rebound them.

        Raises: RuntimeError when they are not those that the bank was made for.
        """
        try:
            parameters = live_parameters(self._model)
        except ValueError as error:
            raise RuntimeError(f"the model has changed since the bank was made: {error}") from None
        tensors = parameters
        if any(block.kind == "buffers" for block in self._averages.blocks):
            tensors = {**dict(self._model.named_buffers()), **parameters}
        averaged = {name for block in self._averages.blocks if block.kind == "parameters" for name in block.shapes}
        try:
            for block in self._averages.blocks:
                block.check(tensors)
            if added := parameters.keys() - averaged:
                raise RuntimeError(f"the model has parameters the bank does not average: {', '.join(sorted(added))}")
        except RuntimeError as error:
            raise RuntimeError(
                f"{error}; undo that, or make a bank of the model as it is: Bank(model, schemes, start={self.step})"
            ) from None
        return tensors

    def __iter__(self) -> Iterator[Scheme]:
        self._refuse("a look at the averages", swapped=False)
        return iter([scheme for scheme in self.schemes if self._exists(scheme)])

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def __bool__(self) -> bool:
        # Always true: `if bank: bank.update(step)` must not skip the updates that would fill it.
        return True

    def __repr__(self) -> str:
        shapes = [
            shape for block in self._averages.blocks if block.kind == "parameters" for shape in block.shapes.values()
        ]
        size = f"parameters {sum(shape.numel() for shape in shapes):,} in tensors {len(shapes)}, bytes {self.nbytes:,}"
        return f"<Bank at step {self.step}: {size}, schemes {list(self.schemes)!r}>"

    def coefficients(self, scheme: Scheme) -> dict[int, float]:
        """{snapshot step: weight} of the average as it is now, oldest first; empty while it is absent.

        `scheme.coefficients(step)`, without the snapshots from before the scheme was in the bank.

        Raises: AbsentAverage (a KeyError) when the scheme is not in the bank.
        """
        self._refuse("coefficients", swapped=False)
        self._refuse_unknown(scheme)
        unseen = self._averages.track(scheme).unseen_steps()
        return {step + unseen: c for step, c in scheme.coefficients(self.step - unseen).items()}

    def _exists(self, scheme: Scheme) -> bool:
        return scheme.exists(self.step - self._averages.track(scheme).unseen_steps())

    @torch.inference_mode(False)
    @torch.no_grad()
    def tensors(self, scheme: Scheme) -> dict[str, Tensor]:
        """The average as new tensors, name -> tensor, cast to the dtype of the model's parameter.

        Tied weights come once, under their first name, as in `model.named_parameters()`. Under policy
        ``"average"`` all buffers follow: averaged ones, and copies of the live rest.

        Raises: AbsentAverage (a KeyError) when there is no such average now; ValueError for a window at a step that
        is not in `read_at`.
        """
        self._refuse("tensors", swapped=False)
        self._find(scheme)
        tensors = self._averages.new(scheme)
        if scheme.buffers == "average":
            for name, buffer in self._model.named_buffers():
                tensors.setdefault(name, buffer.detach().clone())
        return tensors

    def module_state(self, scheme: Scheme, recompute: Forwards | None = None) -> dict[str, Any]:
        """`model.state_dict()` as it is under the average: the same keys, new tensors; ties stay ties.

        For `load_state_dict` of another model of the class. recompute, Raises: as for `swapped`.
        """
        with self.swapped(scheme, recompute) as model, torch.inference_mode(False), torch.no_grad():
            return deepcopy(model.state_dict())

    @contextmanager
    def swapped(self, scheme: Scheme, recompute: Forwards | Mapping[str, Tensor] | None = None) -> Iterator[nn.Module]:
        """The model holds the average inside the `with` (and is what it gives: `as model`).

        On exit, whatever happened, every parameter and buffer is what it was, bit for bit and object for
        object, and every module in the mode it was in; gradients are not touched. The weights are copied in
        place, so references to them stay good; torch's caches of weights are cleared (`wa.swap`).

        recompute: a function of the model that returns an iterable, one forward pass an item (see
        `recompute_statistics`): the running statistics are recomputed under the averaged weights. Needed when
        the scheme says ``buffers="recompute"``; given for another policy, it acts on top of that. Or what
        `wa.buffers.statistics` read at an earlier swap at this step: it is put back, with no pass.

        Raises: AbsentAverage (a KeyError); ValueError when `recompute` is needed and missing, and for a window at a
        step that is not in `read_at`; RuntimeError when an average is swapped in already. Meanwhile update,
        state_dict, load_state_dict raise too.
        """
        self._refuse("swapped")
        self._find(scheme)
        if scheme.buffers == "recompute" and recompute is None:
            raise ValueError(f"{scheme!r} recomputes statistics: swapped needs recompute=")
        fits = recompute is None or isinstance(recompute, Mapping) or callable(recompute)
        if not fits or isinstance(recompute, nn.Module):
            raise ValueError(
                "swapped needs recompute as a function of the model: lambda model: (model(batch) for batch in loader)"
            )
        refuse_folded_weights()
        tensors = self._live_tensors()
        saved = Saved(self._model)
        self._swapped = True
        try:
            with torch.no_grad():
                self._averages.write(scheme, tensors)
            clear_weight_caches()
            renew_computed_weights(self._model)
            if isinstance(recompute, Mapping):
                write_statistics(self._model, recompute)
            elif recompute is not None:
                recompute_statistics(self._model, recompute)
                clear_weight_caches()
            yield self._model
        finally:
            try:
                saved.restore()
            except BaseException:  # an interrupt: the weights first
                saved.restore()
                raise
            finally:
                clear_weight_caches()
                self._swapped = False

    @property
    def seconds(self) -> dict[Scheme, float]:
        """Wall seconds of averaging that each scheme alone would have cost so far.

        Its own sums, and in full the reading of the weights and the ring it shares with others. On an
        accelerator that runs asynchronously this is the time to launch the work.
        """
        return dict(self._averages.seconds)

    @property
    def nbytes(self) -> int:
        """Bytes of all rings, sums and accumulators that this process keeps; `memory_bytes` says those of all before.

        More when schemes joined at different steps, or a state was taken over whose windows were longer.
        """
        return self._averages.nbytes

    def state_dict(self, *, copy: bool = True) -> dict[str, Any]:
        """Everything, as plain dicts, lists, numbers, strings and copied tensors (torch.load weights_only).

        copy: False gives the bank's own tensors where it can, to write them to a file without a copy in memory; they
        change at the next update, and whoever writes into them changes the averages.

        Names are those of the model without torch's wrappers (torch.compile, DistributedDataParallel). Of a bank that
        is shared by a process group, rank 0 gets everything, what others keep in copies on the CPU, and the others {}.

        Raises: RuntimeError while an average is swapped in: model and bank would not match.
        """
        self._refuse("state_dict")
        self._averages.watch.tell(wait=True)
        state = self._averages.state_dict(copy)
        return state if self._share.rank == 0 else {}

    @torch.inference_mode(False)
    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Any], strict: bool = True) -> IncompatibleSchemes:
        """Continue from `state_dict()` of a bank of the same model.

        strict: the schemes must be the same, in any order. Otherwise what both have goes on, what only the
        state has is left out, and what only this bank has begins at the state's step, as after `Bank(…, start)`.
        Returns both lists, (missing_keys, unexpected_keys).

        Raises: ValueError when model or schemes differ, a window to be read is not in it (it was written with other
        steps in `read_at`), or the state is damaged, before anything is changed; RuntimeError while swapped.
        """
        self._refuse("load_state_dict", unfinished=False)
        return self._averages.load_state_dict(state, strict)

    def __getstate__(self) -> dict[str, Any]:
        self._refuse("a copy of the bank")
        if self._share.size > 1:
            raise RuntimeError("a bank that processes share cannot be copied: take its state_dict(), on all of them")
        return vars(self)

    def __copy__(self) -> Self:
        """A bank of the same model with averages of its own."""
        other = object.__new__(type(self))
        vars(other).update({**self.__getstate__(), "_averages": deepcopy(self._averages)})
        return other

    def _find(self, scheme: Scheme) -> None:
        self._refuse_unknown(scheme)
        if not self._exists(scheme):
            raise AbsentAverage(f"{scheme!r} is absent at step {self.step}: it has not taken enough snapshots")
        self._averages.check_read(scheme)
        self._averages.watch.tell(wait=True)

    def _refuse_unknown(self, scheme: Scheme) -> None:
        if scheme not in self._averages.seconds:
            raise AbsentAverage(f"{scheme!r} is not in this bank")

    def _refuse(self, what: str, *, swapped: bool = True, unfinished: bool = True) -> None:
        """Raises: RuntimeError while an average is swapped in, and when the averages are unfinished."""
        if swapped and self._swapped:
            raise RuntimeError(f"{what} while an average is swapped in: leave the `with bank.swapped(…)` first")
        if unfinished and self._averages.unfinished is not None:
            raise RuntimeError(
                f"{what} after {self._averages.unfinished} failed midway: parts of the averages are of another step; "
                "load the model's checkpoint and, with bank.load_state_dict(…), the bank's of the same step"
            )
