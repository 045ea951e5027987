"""The averages of many schemes over blocks of tensors: which snapshots they take, and what each has taken in.

Of models nothing is known here; the bank finds the tensors.
"""

import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from multiprocessing.reduction import ForkingPickler
from typing import Any

import torch
from torch import Tensor

from .flat import Block, FiniteWatch, Reader
from .lane import Lane, Track
from .schemes import Scheme
from .state import FORMAT, IncompatibleSchemes, covers, describe, fit, imagined, scheme_keys


class Averages:
    """A lane for every (track, block), updated together.

    Attributes: step: the last one that was taken in. next: the step of the next snapshot, None without schemes.
    seconds: what each scheme alone would have cost. unfinished: what failed midway and left the averages of
    different steps, else None. watch: what it saw that is not finite.
    """

    def __init__(
        self,
        schemes: Sequence[Scheme],
        blocks: list[Block],
        plain: dict[str, str],
        step: int,
        read_at: frozenset[int] | None = None,
    ) -> None:
        """plain: the blocks' tensors by the names that go into a state. step: snapshots up to it are unseen.

        read_at: the steps at which windows are read; None for any.
        """
        self.blocks = blocks
        self.step = step
        self.seconds = dict.fromkeys(schemes, 0.0)
        self.unfinished: str | None = None
        self._keys = scheme_keys(schemes)
        self._plain = plain
        self._read_at = read_at
        self.watch = FiniteWatch()
        self._readers = {block: Reader(block, self.watch) for block in blocks}
        self._follow(dict.fromkeys(schemes, step), {})

    def _follow(self, joined: dict[Scheme, int], lanes: Mapping[tuple[Track, Block], Lane]) -> None:
        """Go on from `step` with schemes that joined at these steps; where no lane is given, in a new one."""
        self._tracks: dict[Track, list[Scheme]] = {}
        for scheme in self._keys:
            self._tracks.setdefault(Track(*scheme.grid, joined[scheme]), []).append(scheme)
        self.lanes = {
            (track, block): lanes.get((track, block)) or Lane(block, members, track.reads(members, self._read_at))
            for track, on_track in self._tracks.items()
            for block in self.blocks
            if (members := [scheme for scheme in on_track if covers(scheme, block)])
        }
        self._joined = joined
        self._due = {track: track.next_after(self.step) for track in self._tracks}
        self.next = min(self._due.values(), default=None)

    def track(self, scheme: Scheme) -> Track:
        """The snapshots that a scheme takes."""
        return Track(*scheme.grid, self._joined[scheme])

    @torch.no_grad()
    def take(self, step: int, tensors: Mapping[str, Tensor], finding: float) -> None:
        """Take the snapshots due at `step`; finding: the seconds that it took to find the tensors."""
        due = [track for track, at in self._due.items() if at == step]
        for track in due:
            for scheme in self._tracks[track]:
                self.seconds[scheme] += finding
        self.unfinished = f"update({step})"
        for block in self.blocks:
            lanes = [(self.lanes[track, block], track.taken(step)) for track in due if (track, block) in self.lanes]
            for lane, n in lanes:
                lane.advance(n)
            for piece, reading in self._readers[block].read(tensors, step) if lanes else ():
                for lane, n in lanes:
                    lane.push(piece, reading, n)
            for lane, _ in lanes:
                for scheme, seconds in lane.spent():
                    self.seconds[scheme] += seconds + self._readers[block].looking
        for track in due:
            self._due[track] = step + track.every
        self.next = min(self._due.values())
        self.step = step
        self.unfinished = None

    def check_read(self, scheme: Scheme) -> None:
        """Raises: ValueError when a window is read that was not told to be."""
        if self._read_at is None or self.step in self._read_at:
            return
        track = self.track(scheme)
        reads = track.reads([scheme], self._read_at) or {}
        if any(track.taken(self.step) not in told for told in reads.values()):
            raise ValueError(
                f"{scheme!r} is read at step {self.step}, which is not in the bank's read_at, and its window was not "
                "kept: add the step to Bank(model, schemes, read_at=…), or leave read_at out to read at any step"
            )

    def new(self, scheme: Scheme) -> dict[str, Tensor]:
        """The average of a scheme as new tensors."""
        tensors = {
            name: layout.empty(block.dtype, block.device)
            for block in self.blocks
            if covers(scheme, block)
            for name, layout in block.layouts.items()
        }
        self.write(scheme, tensors)
        return tensors

    def write(self, scheme: Scheme, tensors: Mapping[str, Tensor]) -> None:
        """Copy the average of a scheme into tensors of these names; each piece comes from the process that keeps it."""
        track = self.track(scheme)
        for block in (block for block in self.blocks if covers(scheme, block)):
            for piece, owner in zip(block.pieces, block.owners, strict=True):
                if owner == block.share.rank:
                    mean = self.lanes[track, block].mean(scheme, piece, track.taken(self.step)).to(block.dtype)
                else:
                    mean = torch.empty(piece.numel, dtype=block.dtype, device=block.device)
                block.write(piece, block.share.fill(mean, owner), tensors)

    @property
    def nbytes(self) -> int:
        """Bytes of all lanes."""
        return sum(lane.nbytes for lane in self.lanes.values())

    def state_dict(self, copy: bool = True) -> dict[str, Any]:
        """Everything, as plain dicts, lists, numbers, strings and tensors."""
        places = {block: i for i, block in enumerate(self.blocks)}
        return {
            "format": FORMAT,
            "step": self.step,
            "schemes": [
                {"scheme": key, "joined": self._joined[scheme], "seconds": self.seconds[scheme]}
                for scheme, key in self._keys.items()
            ],
            "blocks": [describe(block, self._plain) for block in self.blocks],
            "lanes": [
                {"track": list(track), "block": places[block], "capacity": lane.capacity}
                | lane.state_dict(self._keys, copy)
                for (track, block), lane in self.lanes.items()
            ],
        }

    def load_state_dict(self, state: Mapping[str, Any], strict: bool) -> IncompatibleSchemes:
        """The inverse of `state_dict`. Raises: ValueError, before anything is changed."""
        try:
            found = fit(state, self._keys, self.blocks, self._plain, self._read_at, strict)
        except (KeyError, TypeError, IndexError, AttributeError) as error:
            raise ValueError(f"the state is damaged: {type(error).__name__}: {error}") from error
        lanes = {}
        for at, (saved, members) in found.lanes.items():  # the lane there is, where it is the same, to save memory
            reads = at[0].reads(members, self._read_at)
            on_meta = Lane(imagined(at[1]), members, reads, saved)
            mine = self.lanes.get(at)
            lanes[at] = mine if mine and mine.suits(on_meta) else Lane(at[1], members, reads, saved)
        self.unfinished = "load_state_dict"
        for (track, block), lane in lanes.items():
            lane.load_state_dict(found.lanes[track, block][0], self._keys, track.taken(found.step))
        self.step, self.seconds = found.step, found.seconds
        self._follow(found.joined, lanes)
        self.unfinished = None
        return found.incompatible

    def __getstate__(self) -> dict[str, Any]:
        devices = [torch.empty(0, device=block.device) for block in self.blocks]  # torch.load may map them
        return {**{name: value for name, value in vars(self).items() if name != "_readers"}, "devices": devices}

    def __setstate__(self, kept: dict[str, Any]) -> None:
        # All anew: readers, and lanes as they please, hold tensors that share memory; copies of them would not.
        devices = kept.pop("devices")
        vars(self).update(kept)
        blocks = [replace(block, device=at.device) for block, at in zip(self.blocks, devices, strict=True)]
        self._restart(list(self._keys), blocks, self._plain, self._read_at, self.state_dict())

    @torch.inference_mode(False)
    def _restart(
        self,
        schemes: list[Scheme],
        blocks: list[Block],
        plain: dict[str, str],
        read_at: frozenset[int] | None,
        state: dict[str, Any],
    ) -> None:
        self.__init__(schemes, blocks, plain, state["step"], read_at)  # type: ignore[misc]
        self.load_state_dict(state, strict=True)


def _in_another_process(averages: Averages) -> tuple[Callable[..., Averages], tuple[Any, ...]]:
    """To another process by value: torch would share the memory, which goes on changing here."""
    file = io.BytesIO()
    torch.save(averages.state_dict(), file)
    made_of = list(averages.seconds), averages.blocks, averages._plain, averages._read_at
    return _from_bytes, (*made_of, file.getvalue())


def _from_bytes(
    schemes: list[Scheme], blocks: list[Block], plain: dict[str, str], read_at: frozenset[int] | None, state: bytes
) -> Averages:
    averages = object.__new__(Averages)
    averages._restart(schemes, blocks, plain, read_at, torch.load(io.BytesIO(state), weights_only=True))
    return averages


ForkingPickler.register(Averages, _in_another_process)
