"""Averaging schemes as frozen values: what to average, in closed form, without a tensor in sight.

Every scheme takes snapshots of the weights on a grid, at steps burn_in + every, burn_in + 2·every, …, and
its average at a step is Σᵢ cᵢ θ(sᵢ) over the snapshots so far: `coefficients(step)` is {sᵢ: cᵢ}. Docs, tests
and plots read the closed forms here; the bank computes the same averages by running updates.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import KW_ONLY, dataclass
from itertools import pairwise
from typing import Annotated, Any, Literal, Self

import torch

from .options import Buffers, BurnIn, Every, Horizon, Option, Policy, Window, check_options, check_reach, snapshots_in


class Scheme(ABC):
    """What all schemes share: snapshots on the grid (every, burn_in), weights in closed form.

    A scheme is a value: equal to another of its class with equal attributes, and shown as what makes one
    again. A class of one's own may be a dataclass, or not. `buffers` is ``"live"``, ``"average"`` or ``"recompute"``,
    see `wa.buffers`.
    """

    every: int
    buffers: Policy

    def __new__(cls, *_: Any, **__: Any) -> Self:
        if cls.__hash__ is None:  # Python takes it from a class that has an __eq__ alone, as @dataclass gives it
            cls.__hash__ = Scheme.__hash__  # type: ignore[unreachable]
        return super().__new__(cls)

    def __repr__(self) -> str:
        settings = ", ".join(f"{name}={value!r}" for name, value in self._settings().items())
        return f"{type(self).__qualname__}({settings})"

    def __eq__(self, other: object) -> bool:
        if type(self) is not type(other):
            return NotImplemented
        return self is other or self._settings() == other._settings()

    def __hash__(self) -> int:
        return hash(type(self))  # of nothing that can change: an object in a dict must stay findable

    def _settings(self) -> dict[str, Any]:
        slots = [name for kind in type(self).__mro__ for name in getattr(kind, "__slots__", ())]
        names = [name for name in (*slots, *vars(self)) if name[:2] != "__" and hasattr(self, name)]
        return {name: getattr(self, name) for name in names}

    @property
    @abstractmethod
    def burn_in(self) -> int:
        """Steps before the first snapshot interval begins."""

    @property
    def grid(self) -> tuple[int, int]:
        """(every, burn_in), both in steps: snapshots at burn_in + every, burn_in + 2·every, …"""
        return self.every, self.burn_in

    @property
    @abstractmethod
    def horizon(self) -> float:
        """The averaging horizon, in steps: twice the centre-of-mass lag, plus one snapshot interval."""

    @abstractmethod
    def weights(self, snapshots: int) -> list[float]:
        """The weights of the latest snapshots, oldest first, after `snapshots` ≥ 1 of them; they sum to 1."""

    @abstractmethod
    def lag(self, snapshots: int) -> float:
        """How many snapshots the centre of mass lies behind the latest one, in closed form."""

    def snapshots(self, step: int) -> int:
        """How many snapshots have been taken once `step` steps are completed."""
        return len(self.snapshot_steps(step))

    def snapshot_steps(self, step: int) -> range:
        """The steps at which snapshots were taken, up to and including `step`."""
        every, burn_in = self.grid
        return range(burn_in + every, step + 1, every)

    def takes_snapshot(self, step: int) -> bool:
        """Whether `step` is one of the snapshot steps."""
        return step in self.snapshot_steps(step)

    def exists(self, step: int) -> bool:
        """Whether there is an average at `step`; before the first snapshot it is absent."""
        return self.snapshots(step) >= 1

    def coefficients(self, step: int) -> dict[int, float]:
        """{snapshot step: weight} of the average at `step`, oldest first; empty while it is absent.

        The weights sum to 1 (to rounding); snapshots that have left a window are not listed.
        """
        if not self.exists(step):
            return {}
        weights = self.weights(self.snapshots(step))
        return dict(zip(self.snapshot_steps(step)[-len(weights) :], weights, strict=True))

    def horizon_at(self, step: int) -> float:
        """The averaging horizon at `step`, in steps: 2 · (centre-of-mass lag) + every; 0.0 while absent.

        The lag is counted from the latest snapshot, so a full window says `horizon` at every step:
        2 Σᵢ cᵢ (s_latest − sᵢ) + every with the coefficients cᵢ, in closed form.
        """
        if not self.exists(step):
            return 0.0
        return self.every * (2 * self.lag(self.snapshots(step)) + 1)


class Windowed(Scheme):
    """A scheme over the latest k snapshots: `weights` says how much each counts."""

    k: int


class Recursive(Scheme):
    """A scheme that needs one accumulator: m ← m + gain(n) (θ − m) at its n-th snapshot, gain(1) = 1.

    An update in a dtype of unit roundoff u rounds by at most (6 gain(n) + 1) u max|θ|, which later updates shrink
    as they do the snapshot itself, so that for gains ≥ g

        |m − exact m| ≤ (6 + min(1/g, n)) u max|θ|

    where max|θ| is over all snapshots. Where 1/g is large an accumulator of few bits stalls: gain · (θ − m) rounds
    to nothing. In float64, u = 2⁻⁵³, the bound is 1e−10 max|θ| for any gains over a million snapshots.
    """

    @abstractmethod
    def gain(self, n: int) -> float:
        """The weight of the n-th snapshot (n ≥ 1) when it enters the average."""

    def accumulator_dtype(self, dtype: torch.dtype) -> torch.dtype:
        """The dtype of the accumulator of weights in `dtype`: float32 or float64."""
        return torch.float64


@dataclass(frozen=True)
class LAWA(Windowed):
    """Mean of the latest k snapshots, one every `every` steps (latest weight averaging).

    θ̄ = (1/k) Σ_{j<k} θ(s − j·every)      horizon = k · every steps

    until_full: before k snapshots there are, the average is ``"absent"`` or the mean of those so far, ``"partial"``.

    Raises: ValueError. Source: Ajroldi et al. 2025, section 3 (queue of k copies, every ν steps).
    """

    k: Window
    every: Every = 1
    _: KW_ONLY
    burn_in: BurnIn = 0
    until_full: Annotated[
        Literal["absent", "partial"], Option("before k snapshots: absent (no record) or partial (their mean)")
    ] = "absent"
    buffers: Buffers = "live"

    def __post_init__(self) -> None:
        check_options(self)

    @classmethod
    def from_horizon(cls, horizon: Horizon, every: int = 1, **options: Any) -> Self:
        """The LAWA whose horizon k · every is nearest to `horizon` steps (halves up), k ≥ 1.

        Raises: ValueError when `horizon` < `every` or not finite.
        """
        return cls(snapshots_in(horizon, every, "LAWA"), every, **options)

    @property
    def horizon(self) -> int:
        return self.k * self.every

    def exists(self, step: int) -> bool:
        return self.snapshots(step) >= (self.k if self.until_full == "absent" else 1)

    def weights(self, snapshots: int) -> list[float]:
        size = min(snapshots, self.k)
        return [1 / size] * size

    def lag(self, snapshots: int) -> float:
        return (min(snapshots, self.k) - 1) / 2


Curve = Literal["linear", "cosine", "sqrt"]
CURVES: dict[Curve, Callable[[float], float]] = {  # LR, as a share of its peak, after a share x of the decay
    "linear": lambda x: 1 - x,
    "cosine": lambda x: (1 + math.cos(math.pi * x)) / 2,
    "sqrt": lambda x: 1 - math.sqrt(x),
}


@dataclass(frozen=True)
class WSM(Windowed):
    """Merge of the latest k snapshots, weighted as if the LR had decayed over the last k intervals.

    θ̄ = θ(s − k·every) + Σ_{0≤j<k} w_j Δ_j = Σ_{0≤j<k} (w_j − w_{j+1}) θ_j,    w_j = curve(j/k), w_k = 0

    Δ_j is what the j-th of these intervals changed (j = 0 the oldest) and θ_j the snapshot at its end. As in a
    real decay the first interval still has the full LR, w_0 = 1, so that θ(s − k·every) cancels: k snapshots take
    part, not k + 1, and the decay lasts k · every steps. horizon = every · (2k − 1 − 2 Σ_{0<j<k} w_j) steps.

    curve: ``"linear"``, 1 − x, all weights equal: LAWA(k, every); ``"cosine"``, (1 + cos πx)/2; ``"sqrt"``, 1 − √x.
    Before k snapshots there is no average.

    Raises: ValueError. Source: warm-up, stable and merge (arXiv 2507.17634): merge weights ⇄ LR decay.
    """

    k: Annotated[int, Option("snapshots merged; or give lr_decay", low=1)]
    every: Every = 1
    curve: Annotated[Curve, Option("of the emulated decay: linear, cosine or sqrt")] = "linear"
    _: KW_ONLY
    burn_in: BurnIn = 0
    buffers: Buffers = "live"

    def __post_init__(self) -> None:
        check_options(self)

    @classmethod
    def from_lr_decay(
        cls,
        lr_decay: Annotated[float, Option("steps, or share of the step budget, of the emulated decay", steps=True)],
        every: int = 1,
        **options: Any,
    ) -> Self:
        """The merge whose emulated decay of k · every steps is nearest to `lr_decay` (halves up), k ≥ 1.

        Raises: ValueError when `lr_decay` < `every` or not finite.
        """
        return cls(snapshots_in(lr_decay, every, "WSM", "lr_decay"), every, **options)

    @property
    def horizon(self) -> float:
        return self.every * (2 * self.lag(self.k) + 1)

    def exists(self, step: int) -> bool:
        return self.snapshots(step) >= self.k

    def weights(self, snapshots: int) -> list[float]:
        return [high - low for high, low in pairwise([*self._kept(), 0.0])]

    def lag(self, snapshots: int) -> float:
        return math.fsum(1 - share for share in self._kept())

    def _kept(self) -> list[float]:
        """w_0 … w_{k−1}: the share of each interval's change that is kept, oldest first."""
        return [CURVES[self.curve](j / self.k) for j in range(self.k)]


@dataclass(frozen=True)
class EMA(Recursive):
    """Exponential moving average, one update every `every` steps.

    m ← γ m + (1 − γ) θ,  γ = decay       horizon = every · (1 + γ)/(1 − γ) steps

    init: how it begins. ``"first"``: m is the first snapshot. ``"zero"``: m starts at 0 and is divided by
    1 − γⁿ after n snapshots; coded as the equal recursion m ← m + (1 − γ)/(1 − γⁿ) (θ − m).

    The accumulator is float32 where its error, at most (6 + 1/(1 − γ)) 2⁻²⁴ max|θ|, is below 1e−6 max|θ| or a 32nd of
    how the weights' own dtype rounds: up to γ = .907 for float32 weights, .995 for float16, .9994 for bfloat16.
    Above it is float64, with an error of at most (6 + 1/(1 − γ)) 2⁻⁵³ max|θ|.

    Raises: ValueError. Source: Ajroldi et al. 2025, section 3; debiasing as Adam's (Kingma & Ba 2015).
    """

    decay: Annotated[float, Option("γ of m ← γm + (1 − γ)θ at each snapshot; or give the horizon", low=0, below=1)]
    every: Every = 1
    _: KW_ONLY
    burn_in: BurnIn = 0
    init: Annotated[
        Literal["first", "zero"], Option("how it begins: first (at the first snapshot) or zero (debiased)")
    ] = "first"
    buffers: Buffers = "live"

    def __post_init__(self) -> None:
        check_options(self)

    @classmethod
    def from_horizon(cls, horizon: Horizon, every: int = 1, **options: Any) -> Self:
        """The EMA with this horizon: γ = (horizon − every)/(horizon + every); decay 0 when they are equal.

        Raises: ValueError when `horizon` < `every` or not finite.
        """
        check_reach(horizon, every, "EMA")
        return cls((horizon - every) / (horizon + every), every, **options)

    @property
    def horizon(self) -> float:
        return self.every * (1 + self.decay) / (1 - self.decay)

    def gain(self, n: int) -> float:
        if n == 1:
            return 1.0
        return (1 - self.decay) / (self._started(n) if self.init == "zero" else 1)

    def accumulator_dtype(self, dtype: torch.dtype) -> torch.dtype:
        error = (6 + 1 / (1 - self.decay)) * torch.finfo(torch.float32).eps / 2
        narrow = error <= max(1e-6, torch.finfo(dtype).eps / 2 / 32)
        return torch.promote_types(dtype, torch.float32) if narrow else torch.float64

    def weights(self, snapshots: int) -> list[float]:
        powers = [self.decay**age for age in reversed(range(snapshots))]
        if self.init == "zero":
            return [(1 - self.decay) / self._started(snapshots) * power for power in powers]
        return [powers[0], *((1 - self.decay) * power for power in powers[1:])]

    def lag(self, snapshots: int) -> float:
        if self.decay == 0:
            return 0.0
        if self.init == "zero":
            gone = snapshots * self.decay**snapshots / self._started(snapshots)
            return self.decay / (1 - self.decay) - gone
        return self.decay * self._started(snapshots - 1) / (1 - self.decay)

    def _started(self, n: int) -> float:
        """1 − γⁿ without cancellation when γ is close to 1."""
        return -math.expm1(n * math.log(self.decay)) if self.decay > 0 else float(n > 0)


@dataclass(frozen=True)
class Tail(Recursive):
    """Mean of every snapshot since a step: start + every, start + 2·every, …

    θ̄ₙ = θ̄ₙ₋₁ + (θ − θ̄ₙ₋₁)/n             horizon: n · every, it grows with the run

    The accumulator is float64, since 1/n of a difference soon rounds to nothing in less: after n snapshots its error
    is at most (6 + n/2) 2⁻⁵³ max|θ|.

    Raises: ValueError. Source: Polyak & Juditsky 1992; stochastic weight averaging (Izmailov et al. 2018).
    """

    start: Annotated[int, Option("the step it begins at: steps or a share of the step budget", steps=True, low=0)]
    every: Every = 1
    _: KW_ONLY
    buffers: Buffers = "live"

    def __post_init__(self) -> None:
        check_options(self)

    @property
    def burn_in(self) -> int:
        """`start`, by the name the other schemes have for it."""
        return self.start

    @property
    def horizon(self) -> float:
        return math.inf

    def gain(self, n: int) -> float:
        return 1 / n

    def weights(self, snapshots: int) -> list[float]:
        return [1 / snapshots] * snapshots

    def lag(self, snapshots: int) -> float:
        return (snapshots - 1) / 2


SCHEMES: dict[str, type[Scheme]] = {"lawa": LAWA, "ema": EMA, "tail": Tail, "wsm": WSM}  # as a study names them
