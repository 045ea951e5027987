"""What averaging costs: one EMA against torch's, a bank of 16 against a training step, the import.

    python -m benchmarks.bank [--short]

Everything is a ratio of two things measured alternately in one run, on one thread; medians.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
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


def one_ema(rounds: int, decay: float) -> float:
    """One EMA update / torch's AveragedModel update: 10.5 M float32 parameters in 20 tensors.

    At a small decay both accumulate in float32; at a large one ours does in float64, where torch's stalls.
    """
    model = nn.ParameterList(nn.Parameter(torch.randn(725, 725)) for _ in range(20))
    theirs = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(decay))  # type: ignore[no-untyped-call]
    bank = Bank(model, [EMA(decay)])
    theirs.update_parameters(model)
    bank.update(1)
    ratios = []
    for _ in range(rounds):
        ours = seconds(lambda: bank.update(bank.step + 1))
        ratios.append(ours / seconds(lambda: theirs.update_parameters(model)))
    return median(ratios)


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
            "one EMA update, decay .9 / swa_utils": one_ema(3 if short else 41, 0.9),
            "one EMA update, decay .99 / swa_utils": one_ema(3 if short else 41, 0.99),
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
