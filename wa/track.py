"""The snapshots of one grid, as one that joined at some step sees them."""

from __future__ import annotations

from typing import NamedTuple

from .schemes import Scheme


class Track(NamedTuple):
    """Snapshots at burn_in + every, burn_in + 2·every, …, of those the ones after `joined`; all in steps."""

    every: int
    burn_in: int
    joined: int

    @classmethod
    def of(cls, scheme: Scheme, joined: int) -> Track:
        """That of a scheme which takes part from step `joined` on."""
        return cls(*scheme.grid, joined)

    def _all(self, step: int) -> int:
        return max(0, step - self.burn_in) // self.every

    def taken(self, step: int) -> int:
        """How many snapshots have been taken once `step` steps are completed."""
        return self._all(step) - self._all(self.joined)

    def unseen_steps(self) -> int:
        """How much later everything happens than to a scheme which missed nothing: whole intervals."""
        return self._all(self.joined) * self.every

    def next_after(self, step: int) -> int:
        """The first snapshot step after `step` ≥ joined."""
        return self.burn_in + (self._all(step) + 1) * self.every
