"""Weight averaging for PyTorch: many averages of one training run, none of which disturbs it.

    from wa import Bank, EMA, LAWA, Tail

    bank = Bank(model, [LAWA(k=10, every=64), EMA(decay=0.99, every=16), Tail(start=1000, every=10)])
    for step, batch in enumerate(batches, start=1):
        train(model, batch)
        bank.update(step)               # after every optimizer step
    for scheme in bank:                 # the schemes whose average exists now
        with bank.swapped(scheme):      # the model holds it; restored bit for bit
            evaluate(model)

`scheme.coefficients(step)` says in closed form what an average is made of, `scheme.horizon` how far back it
reaches, in steps: the common axis of all schemes (`EMA.from_horizon(500, every=8)`). `bank.module_state(scheme)`
is the average as a `model.state_dict()`; `Bank(model, schemes, start=1000)` joins a run that is under way.
"""

from .bank import AbsentAverage, Bank
from .buffers import recompute_statistics
from .lane import memory_bytes
from .schemes import EMA, LAWA, WSM, Recursive, Scheme, Tail, Windowed
from .state import IncompatibleSchemes

__all__ = [
    "EMA",
    "LAWA",
    "WSM",
    "AbsentAverage",
    "Bank",
    "IncompatibleSchemes",
    "Recursive",
    "Scheme",
    "Tail",
    "Windowed",
    "memory_bytes",
    "recompute_statistics",
]
