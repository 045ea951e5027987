"""A user's workloads with one promise of the protocol broken each, and a few that only look so."""

import textwrap

BROKEN = textwrap.dedent('''
    import functools
    import itertools
    import random
    import sys
    import time
    import numpy as np
    import torch
    from torch import nn
    from tinywork import Tiny, draw
    from workloads.protocol import WHOLE, Part

    class NoSteps(Tiny):
        step_budget = 0

    class UnknownOptimizer(Tiny):
        optimizer = {"name": "nadmw", "lr": 0.1}

    class UnknownSetting(Tiny):
        optimizer = {**Tiny.optimizer, "betas": 0.9}

    class UnknownShape(Tiny):
        schedule = {"shape": "cosinus"}

    class NoData(Tiny):
        def check_data(self):
            raise ValueError("no such folder")

    class SeedsItself(Tiny):
        def model(self):
            torch.manual_seed(1)
            return super().model()

    class ClockedWeights(Tiny):
        def model(self):
            model = super().model()
            with torch.no_grad():
                model[0].weight += time.time_ns() % 1000 / 1000
            return model

    class GlobalBatches(Tiny):
        def batches(self, seed, first_step):
            while True:
                x, y = draw(np.random.default_rng(seed), self.batch_size)
                yield x + torch.rand(()), y

    class DrawsInPassing(Tiny):
        def batches(self, seed, first_step):
            for batch in super().batches(seed, first_step):
                np.random.rand()
                yield batch

    class LateStartIgnored(Tiny):
        def batches(self, seed, first_step):
            return super().batches(seed, 1)

    class OneStream(Tiny):
        def batches(self, seed, first_step):
            rng = np.random.default_rng([seed, first_step])
            while True:
                yield draw(rng, self.batch_size)

    class SeedIgnored(Tiny):
        def batches(self, seed, first_step):
            return super().batches(0, first_step)

    class StepIgnored(Tiny):
        def batches(self, seed, first_step):
            while True:
                yield draw(np.random.default_rng(seed), self.batch_size)

    @functools.cache
    def kept(seed, step):
        return draw(np.random.default_rng([seed, step]), 8)

    class CachedBatches(Tiny):
        def batches(self, seed, first_step):
            return (kept(seed, step) for step in itertools.count(first_step))

    class OneBuffer(Tiny):
        def batches(self, seed, first_step):
            x = torch.empty(8, 8)
            for batch in super().batches(seed, first_step):
                x.copy_(batch[0])
                yield x, batch[1]

    class NoEvaluation(Tiny):
        def eval_batches(self, split):
            return []

    class NewEvaluation(Tiny):
        rng = np.random.default_rng(7)

        def eval_batches(self, split):
            return [draw(self.rng, 100)]

    class EvaluatesInTrainMode(Tiny):
        def eval_step(self, model, batch):
            model.train()
            sums = super().eval_step(model, batch)
            model.eval()
            return sums

    class DrawsInEvaluation(Tiny):
        def eval_step(self, model, batch):
            return super().eval_step(model, (batch[0] + 0.01 * torch.randn(100, 8), batch[1]))

    class RandomEvaluation(Tiny):
        def eval_batches(self, split):
            return [(x + 0.01 * torch.randn(100, 8), y) for x, y in super().eval_batches(split)]

    class LeavesTrainMode(Tiny):
        def eval_step(self, model, batch):
            sums = super().eval_step(model, batch)
            model.train()
            return sums

    class WritesIntoWeights(Tiny):
        def eval_step(self, model, batch):
            model[0].weight.mul_(1.001)
            return super().eval_step(model, batch)

    class WritesIntoTheBatch(Tiny):
        def eval_step(self, model, batch):
            batch[0].clamp_(-1, 1)
            return super().eval_step(model, batch)

    class PlainSums(Tiny):
        def eval_step(self, model, batch):
            return {name: float(value) for name, value in super().eval_step(model, batch).items()}

    class NoSuchSummary(Tiny):
        def summarize(self, sums):
            return float("nan"), 0.5, 200

    class NobodySeen(Tiny):
        def summarize(self, sums):
            return 0.5, 0.5, 0

    class NoGradient(Tiny):
        def loss(self, model, batch):
            return super().loss(model, batch).detach()

    class LossOfEach(Tiny):
        def loss(self, model, batch):
            return nn.functional.cross_entropy(model(batch[0]), batch[1], reduction="none")

    class InfiniteLoss(Tiny):
        def loss(self, model, batch):
            return super().loss(model, batch) / 0

    class Clock(Tiny):
        def loss(self, model, batch):
            return super().loss(model, batch) * (1 + time.time() % 1)

    class Counter(Tiny):
        calls = 0

        def loss(self, model, batch):
            self.calls += 1
            return super().loss(model, batch) * (1 + 0.01 * self.calls)

    class LateCounter(Tiny):
        """A curriculum of its own, from a step that no check reaches."""

        calls = 0

        def loss(self, model, batch):
            self.calls += 1
            return super().loss(model, batch) * (2 if self.calls > 10_000 else 1)

    class RunsOut(Tiny):
        """So does what it reads off a list."""

        calls = 0

        def loss(self, model, batch):
            self.calls += 1
            return super().loss(model, batch) * ([1] * 500)[self.calls]

    class FreezesInEvaluation(Tiny):
        def eval_step(self, model, batch):
            model.requires_grad_(False)
            return super().eval_step(model, batch)

    class SlowClock(Tiny):
        """A clock read in whole seconds."""

        def summarize(self, sums):
            loss, metric, examples = super().summarize(sums)
            return loss + int(time.time()), metric, examples

    class Exits(Tiny):
        def loss(self, model, batch):
            sys.exit(0)

    class Counts(Tiny):
        """For a log: nothing depends on it."""

        calls, seconds = 0, 0.0

        def loss(self, model, batch):
            self.calls += 1
            self.seconds += time.time() % 1
            return super().loss(model, batch)

    class Mixup(Tiny):
        """Draws from every global stream, as the mixups of several libraries do; all of them are kept."""

        def model(self):
            model = super().model()
            with torch.no_grad():
                model[0].weight += 0.1 * np.random.rand() + 0.1 * random.random()
            return model

        def loss(self, model, batch):
            (x, y), share = batch, np.random.beta(1, 1)
            return super().loss(model, (share * x + (1 - share) * x.flip(0), y)) * (0.5 + random.gauss(1, 0.1))

    class Unlearns(Tiny):
        def loss(self, model, batch):
            value = super().loss(model, batch)
            return 2 * value.detach() - value

    class Norm(nn.Module):
        mean = 0.0  # no buffer

        def forward(self, x):
            if self.training:
                self.mean = self.mean + 0.1 * (x.mean(0).detach() - self.mean)
            return x - self.mean

    class HiddenStatistics(Tiny):
        def model(self):
            return nn.Sequential(nn.Linear(8, 16), Norm(), nn.ReLU(), nn.Linear(16, 4))

    class Divisible(Tiny):
        def batches(self, seed, first_step, part=WHOLE):
            mine = slice(part.index, None, part.count)
            return (tuple(t[mine].clone() for t in batch) for batch in super().batches(seed, first_step))

        def eval_batches(self, split, part=WHOLE):
            return list(super().eval_batches(split))[part.index :: part.count]

    class OverlappingParts(Divisible):
        def batches(self, seed, first_step, part=WHOLE):
            return super().batches(seed, first_step, Part(0, part.count))

    class PartsUnweighed(Divisible):
        def loss(self, model, batch):
            return nn.functional.cross_entropy(model(batch[0]), batch[1], weight=torch.arange(1.0, 5.0))

    class EverythingEvaluatedTwice(Divisible):
        def eval_batches(self, split, part=WHOLE):
            return super().eval_batches(split)

    counter = itertools.count()

    class NeverTheSame(Tiny):
        def summarize(self, sums):
            loss, metric, examples = super().summarize(sums)
            return loss + next(counter), metric, examples

    class EvaluationCounts(Tiny):
        evaluations = 0

        def eval_step(self, model, batch):
            self.evaluations += 1
            return super().eval_step(model, batch)

        def loss(self, model, batch):
            return super().loss(model, batch) * (1 + self.evaluations)

    class RunCounts(Tiny):
        """Annealed by the batches drawn since this process began."""

        drawn = 0

        def model(self):
            return nn.Linear(8, 4)

        def batches(self, seed, first_step):
            for batch in super().batches(seed, first_step):
                self.drawn += 1
                yield batch

        def loss(self, model, batch):
            return super().loss(model, batch) / self.drawn
''')
