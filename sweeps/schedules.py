"""Learning-rate schedules as pure functions of the step: warm-up, hold, decay.

A schedule is a value, so two trajectories whose factors agree up to a step share that prefix.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

Shape = Literal["cosine", "linear", "constant"]


@dataclass(frozen=True)
class Schedule:
    """Warm up linearly over `warmup_steps`, hold, then decay over the last `lr_decay_steps` to `final_lr`.

    length_steps: training ends there. final_lr: share of the peak learning rate at the end, ≥ 0.
    `warmup_steps + lr_decay_steps ≤ length_steps`; ``constant`` never decays.
    """

    shape: Shape
    length_steps: int
    warmup_steps: int
    lr_decay_steps: int
    final_lr: float

    def lr_factor(self, step: int) -> float:
        """The factor on the peak learning rate of update number `step` (0 for the first, as AlgoPerf counts).

        warm-up, t < w:    t / w
        decay, u = share of the decay done in [0, 1]:
          cosine           f + (1 − f)·(1 + cos πu)/2
          linear           f + (1 − f)·(1 − u)

        Source: AlgoPerf's prize-qualification baseline (linear warm-up, then cosine), paper Fig. 7 (linear).
        """
        if step < self.warmup_steps:
            return step / self.warmup_steps
        into_decay = step - (self.length_steps - self.lr_decay_steps)
        if self.shape == "constant" or into_decay <= 0 or self.lr_decay_steps == 0:
            return 1.0
        u = min(into_decay / self.lr_decay_steps, 1.0)
        left = (1 + math.cos(math.pi * u)) / 2 if self.shape == "cosine" else 1 - u
        return self.final_lr + (1 - self.final_lr) * left
