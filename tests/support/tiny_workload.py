"""A small workload of a user's own: batch norm, dropout and noisy batches, a second a run."""

import textwrap
from pathlib import Path

TINY = textwrap.dedent('''
    import numpy as np
    import torch
    from torch import nn

    CENTRES = np.random.default_rng(5).normal(size=(4, 8))

    def draw(rng, n):
        y = rng.integers(4, size=n)
        x = CENTRES[y] + 1.5 * rng.normal(size=(n, 8))
        return torch.tensor(x, dtype=torch.float32), torch.tensor(y)

    class Tiny:
        step_budget = 60
        batch_size = 8
        metric = "accuracy"
        higher_is_better = True
        optimizer = {"name": "nadamw", "lr": 0.03, "beta1": 0.9, "beta2": 0.99, "weight_decay": 0.01}
        schedule = {"shape": "cosine", "warmup": 0.1}
        step_seconds = 0.001
        eval_seconds = 0.001

        def model(self):
            return nn.Sequential(
                nn.Linear(8, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.2), nn.Linear(16, 4)
            )

        def batches(self, seed, first_step):
            step = first_step
            while True:
                yield draw(np.random.default_rng([seed, step]), self.batch_size)
                step += 1

        def loss(self, model, batch):
            x, y = batch
            return nn.functional.cross_entropy(model(x), y)

        def eval_batches(self, split):
            rng = np.random.default_rng(7)
            return [draw(rng, 100) for _ in range(2)]

        def eval_step(self, model, batch):
            x, y = batch
            logits = model(x)
            return {
                "loss": nn.functional.cross_entropy(logits, y, reduction="sum"),
                "right": (logits.argmax(1) == y).sum(),
                "n": torch.tensor(len(y)),
            }

        def summarize(self, sums):
            return sums["loss"] / sums["n"], sums["right"] / sums["n"], int(sums["n"])

    class Parted(Tiny):
        """The same, in parts: by micro-batches and processes."""

        def batches(self, seed, first_step, part=None):
            for x, y in super().batches(seed, first_step):
                chosen = slice(None) if part is None else slice(part.index, None, part.count)
                yield x[chosen], y[chosen]

        def eval_batches(self, split, part=None):
            batches = super().eval_batches(split) * 4
            return batches if part is None else batches[part.index :: part.count]

    class Slow(Tiny):
        """The same, with steps long enough to be killed in."""

        def loss(self, model, batch):
            import time
            time.sleep(0.02)
            return super().loss(model, batch)

    class Diverging(Tiny):
        def loss(self, model, batch):
            value = super().loss(model, batch)
            self.calls = getattr(self, "calls", 0) + 1
            return value * float("nan") if self.calls > 30 else value

    class Failing(Tiny):
        def loss(self, model, batch):
            raise RuntimeError("no such luck")
''')


def write_tiny(folder: Path) -> None:
    """Put the workload's module into `folder`."""
    (folder / "tinywork.py").write_text(TINY)
