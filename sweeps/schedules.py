"""Learning-rate schedules as pure functions of the step: warm-up, hold, decay.

A schedule is a value, so two trajectories whose factors agree up to a step share that prefix (`shared_steps`).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

Shape = Literal["cosine", "linear", "1-sqrt", "power", "inverse_sqrt", "constant"]
POWER = 2.0


@dataclass(frozen=True)
class Schedule:
    """Warm up linearly over `warmup_steps`, hold, then decay over the last `lr_decay_steps` to `final_lr`.

    length_steps: training ends there. final_lr: share of the peak learning rate at the end, ≥ 0.
    `warmup_steps + lr_decay_steps ≤ length_steps`; ``constant`` never decays; ``inverse_sqrt`` falls in place of
    holding, and has a warm-up. power: p of the shape ``power``, > 0.
    """

    shape: Shape
    length_steps: int
    warmup_steps: int
    lr_decay_steps: int
    final_lr: float
    power: float = POWER

    @property
    def decay_start(self) -> int:
        """The last step before the decay begins; up to there the length does not count."""
        return self.length_steps - self.lr_decay_steps

    def lr_factor(self, step: int) -> float:
        """The factor on the peak learning rate of update number `step` (0 for the first, as AlgoPerf counts).

        warm-up, t < w:    t / w
        hold:              h = 1; of inverse_sqrt h(t) = √(w / t)
        decay, u = share of the decay done in [0, 1], h of its start:
          cosine           f + (h − f)·(1 + cos πu)/2
          linear           f + (h − f)·(1 − u), and so does inverse_sqrt
          1-sqrt           f + (h − f)·(1 − √u)
          power            f + (h − f)·(1 − u)^p

        Sources: AlgoPerf's prize-qualification baseline (linear warm-up, then cosine), paper Fig. 7 (linear);
        Hägele et al. 2024, "Scaling laws and compute-optimal training beyond fixed training durations" (1-sqrt);
        Zhai et al. 2022, "Scaling vision transformers" (inverse_sqrt with a linear cooldown, their timescale being
        the warm-up); Chen et al. 2017, "DeepLab" (power, there called poly).
        """
        if step < self.warmup_steps:
            return step / self.warmup_steps
        into_decay = step - self.decay_start
        held = math.sqrt(self.warmup_steps / min(step, self.decay_start)) if self.shape == "inverse_sqrt" else 1.0
        if self.shape == "constant" or into_decay <= 0 or self.lr_decay_steps == 0:
            return held
        left = self._left(min(into_decay / self.lr_decay_steps, 1.0))
        return self.final_lr + (held - self.final_lr) * left

    def _left(self, u: float) -> float:
        match self.shape:
            case "cosine":
                return (1 + math.cos(math.pi * u)) / 2
            case "1-sqrt":
                return 1 - math.sqrt(u)
            case "power":
                return math.pow(1 - u, self.power)
            case _:
                return 1 - u


def shared_steps(one: Schedule, other: Schedule) -> int:
    """How many first steps have bit for bit the same learning rate, up to where the shorter schedule ends."""
    most = min(one.length_steps, other.length_steps)
    if one == other:
        return most
    # Up to a decay the factor is a function of the warm-up alone; from there on it is compared.
    falls = [each.shape == "inverse_sqrt" for each in (one, other)]
    alike = one.warmup_steps == other.warmup_steps and falls[0] == falls[1]
    known = min(one.decay_start, other.decay_start, most) if alike else 0
    return next((step for step in range(known, most) if one.lr_factor(step) != other.lr_factor(step)), most)
