"""What averaging costs: EMAs against other code, LAWAs by k, a bank of 16 against a training step, the import.

    python -m benchmarks.bank [--short]

Everything is a ratio of things measured in turns in one run, on one thread; medians, and of single updates the least.
"""

from __future__ import annotations

import math
import subprocess
import sys
from collections.abc import Callable, Mapping
from contextlib import suppress
from statistics import median
from time import perf_counter

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from wa import EMA, LAWA, Bank, Scheme

KS = (2, 5, 10, 15, 20, 25, 30, 40)
DECAYS = (0.5, 0.8, 0.9, 0.95, 0.98, 0.99, 0.995, 0.999)


class SmallTransformer(nn.Module):
    """Three layers, 96 wide, on 64 byte values: 0.3 M parameters in 39 tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(64, 96)
        layer = nn.TransformerEncoderLayer(96, 4, 288, dropout=0.0, batch_first=True, norm_first=True)
        self.layers = nn.TransformerEncoder(layer, 3, enable_nested_tensor=False)
        self.head = nn.Linear(96, 64)

    def forward(self, tokens: Tensor) -> Tensor:
        logits: Tensor = self.head(self.layers(self.embed(tokens)))
        return logits


def seconds(work: Callable[[], object]) -> float:
    """Wall seconds of one call."""
    start = perf_counter()
    work()
    return perf_counter() - start


def model_of(millions: int) -> nn.ParameterList:
    """So many million float32 parameters, in a tensor of 1,000 × 500 and one of 500 for each half million."""
    return nn.ParameterList(
        nn.Parameter(torch.randn(*shape)) for _ in range(2 * millions) for shape in ((1000, 500), (500,))
    )


def rivals(model: nn.ParameterList, decay: float) -> dict[str, Callable[[], object]]:
    """One update of an EMA by other code; timm's and ema-pytorch's where they are installed."""
    live = list(model)
    means = [parameter.detach().clone() for parameter in live]
    theirs = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(decay))  # type: ignore[no-untyped-call]
    theirs.update_parameters(model)
    found: dict[str, Callable[[], object]] = {
        "torch._foreach_lerp_": torch.no_grad()(lambda: torch._foreach_lerp_(means, live, 1 - decay)),
        "swa_utils": lambda: theirs.update_parameters(model),
    }
    with suppress(ImportError):
        from timm.utils.model_ema import ModelEmaV3  # type: ignore[import-not-found]

        timms = ModelEmaV3(model, decay=decay)
        found["timm's ModelEmaV3"] = lambda: timms.update(model)
    with suppress(ImportError):
        from ema_pytorch import EMA as Lucid  # type: ignore[import-not-found]

        lucid = Lucid(model, beta=decay, update_after_step=0, update_every=1, inv_gamma=1e9, min_value=decay)
        lucid.update()
        found["ema-pytorch"] = lucid.update
    return found


def emas(millions: int, rounds: int) -> dict[str, float]:
    """Seconds of an update of one EMA by each of them, of 8 EMAs in one bank, and of 8 calls of torch's.

    Decay .9: all accumulate in float32. The shortest of `rounds`, taken in turns.
    """
    model = model_of(millions)
    works = rivals(model, 0.9)
    eight = [EMA(0.2 + 0.1 * i) for i in range(8)]
    for name, schemes in (("bank of 1", [EMA(0.9)]), ("bank of 8", eight)):
        works[name] = bank_update(Bank(model, schemes))
    copies = [[parameter.detach().clone() for parameter in model] for _ in eight]

    @torch.no_grad()
    def calls() -> None:
        for means, scheme in zip(copies, eight, strict=True):
            torch._foreach_lerp_(means, list(model), 1 - scheme.decay)

    return shortest({**works, "8 × torch._foreach_lerp_": calls}, rounds)


def lawas(millions: int, rounds: int) -> dict[str, float]:
    """Seconds of an update of a LAWA by its k, without read_at and read every 20 steps, and of a plain copy."""
    model = model_of(millions)
    kept = [torch.empty_like(parameter) for parameter in model]
    works: dict[str, Callable[[], object]] = {"copy": torch.no_grad()(lambda: torch._foreach_copy_(kept, list(model)))}
    for k in (5, 50, 200):
        works[f"LAWA({k})"] = bank_update(Bank(model, [LAWA(k)]))
        works[f"LAWA({k}), read every 20"] = bank_update(Bank(model, [LAWA(k)], read_at=range(20, 100_001, 20)))
    return shortest(works, rounds, calls=16)


def bank_update(bank: Bank) -> Callable[[], object]:
    """One update of a bank."""
    return lambda: bank.update(bank.step + 1)


def shortest(works: Mapping[str, Callable[[], object]], rounds: int, calls: int = 1) -> dict[str, float]:
    """The least seconds of a call of each, over rounds in which all take turns, each `calls` calls."""
    found = dict.fromkeys(works, math.inf)
    for _ in range(rounds + 1):
        for name, work in works.items():
            found[name] = min(found[name], sum(seconds(work) for _ in range(calls)) / calls)
    return found


def bank_share(schemes: list[Scheme], pairs: int, steps: int = 16) -> tuple[float, float]:
    """(what a bank adds, as a share of bare training; a bare step in seconds).

    Blocks of `steps` training steps without and with updates, in turns, first one and then the other first;
    the difference includes what the bank's memory traffic does to the steps after it.
    """
    torch.manual_seed(0)
    model = SmallTransformer()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, foreach=True)
    tokens = torch.randint(64, (4, 65))
    bank = Bank(model, schemes)

    def step() -> None:
        optimizer.zero_grad()
        logits = model(tokens[:, :-1])
        loss = nn.functional.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())
        torch.autograd.backward(loss)
        optimizer.step()

    def bare() -> None:
        for _ in range(steps):
            step()

    def averaged() -> None:
        for _ in range(steps):
            step()
            bank.update(bank.step + 1)

    bare()
    averaged()
    shares, plain = [], []
    for pair in range(pairs):
        if pair % 2:
            with_bank, without = seconds(averaged), seconds(bare)
        else:
            without, with_bank = seconds(bare), seconds(averaged)
        shares.append(with_bank / without - 1)
        plain.append(without / steps)
    return median(shares), median(plain)


def ema_ratios(millions: int, rounds: int) -> dict[str, float]:
    """What a bank takes / the best of the others, and 8 EMAs in a bank / 8 calls."""
    found = emas(millions, rounds)
    one, eight, calls = (found.pop(name) for name in ("bank of 1", "bank of 8", "8 × torch._foreach_lerp_"))
    size = f"{millions} M parameters"
    return {f"{size}: one EMA / {name}": one / took for name, took in found.items()} | {
        f"{size}: 8 EMAs / 8 calls of torch._foreach_lerp_": eight / calls
    }


def lawa_ratios(millions: int, rounds: int) -> dict[str, float]:
    """What an update of a LAWA takes / a plain copy of the weights."""
    found = lawas(millions, rounds)
    copy = found.pop("copy")
    return {f"{millions} M parameters: {name} / a copy": took / copy for name, took in found.items()}


def import_seconds(runs: int) -> float:
    """Seconds `import wa` takes in a process that has torch already."""
    code = "import torch, time; start = time.perf_counter(); import wa; print(time.perf_counter() - start)"
    command = [sys.executable, "-c", code]
    return median(
        float(subprocess.run(command, capture_output=True, check=True, text=True).stdout) for _ in range(runs)
    )


def main(short: bool = False) -> dict[str, float]:
    """Measure, print and return the ratios by name. short: a smoke test, seconds instead of a minute."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        pairs = 2 if short else 60
        every_8: list[Scheme] = [*(LAWA(k, 8) for k in KS), *(EMA(decay, 8) for decay in DECAYS)]
        grids = (8, 16, 32, 64)
        mixed: list[Scheme] = [
            *(LAWA(k, grids[i % 4]) for i, k in enumerate(KS)),
            *(EMA(decay, grids[i % 4]) for i, decay in enumerate(DECAYS)),
        ]
        share_8, step_seconds = bank_share(every_8, pairs)
        share_mixed, _ = bank_share(mixed, pairs)
        results = {
            **ema_ratios(1 if short else 10, 3 if short else 41),
            **({} if short else ema_ratios(100, 9)),
            **lawa_ratios(1 if short else 10, 2 if short else 7),
            "bank of 16, every = 8 / training step": share_8,
            "bank of 16, every = 8 … 64 / training step": share_mixed,
            "training step, seconds": step_seconds,
            "import wa beyond torch, seconds": import_seconds(1 if short else 3),
        }
    finally:
        torch.set_num_threads(threads)
    for name, value in results.items():
        print(f"{value:10.4f}  {name}")
    return results


if __name__ == "__main__":
    main(short="--short" in sys.argv[1:])
