"""The rounds of a bracket: when training is done its trace is replayed, until no evaluation is wanted any more."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from torch import Tensor

from sweeps import bracket
from sweeps.evaluate import Evaluator
from sweeps.imported import AnyTrace
from sweeps.replay import Replayer, write
from sweeps.training_state import State
from wa import Bank


def close(
    evaluator: Evaluator,
    trace: AnyTrace,
    fresh: Mapping[str, Tensor],
    pause: Callable[[], None],
    report: Callable[[int], None],
) -> None:
    """Record what the brackets want, in rounds of one replay each; the model is left with other weights.

    A round depends on the records alone, so that one that was killed is gone on with. Args: trace: of this training.
    fresh: `trace.buffers_of` a fresh model. pause: called after each step. report: told the last step after a round.
    """
    trajectory, reporter = evaluator.trajectory, evaluator.reporter
    assert reporter is not None
    last = reporter.last_step
    seconds = evaluator.state.eval_seconds
    for row in reporter.written.values():
        if row["split"] == "validation":
            seconds[row["cell_id"]] = max(row["eval_seconds"], seconds.get(row["cell_id"], 0.0))
    while asked := bracket.part(trajectory.cells, reporter.written.values(), trajectory.target).missing:
        schemes = list(dict.fromkeys(cell.scheme for cells in asked.values() for cell in cells if cell.scheme))
        model = evaluator.state.model
        write(model, fresh, evaluator.device)  # a bank averages the buffers that are finite when it is made
        bank = Bank(model, schemes, read_at=sorted(asked))
        evaluator.state = State(model, evaluator.state.optimizer, bank, eval_seconds=seconds)
        replayer = Replayer(evaluator.passes, evaluator.state, trace, fresh)
        for step in sorted(asked):
            replayer.train(until=step)
            evaluator.fill(asked[step])
            pause()
        report(last)
