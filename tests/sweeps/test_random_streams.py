"""Every global random stream: in the checkpoint, and as training left it after an evaluation."""

from __future__ import annotations

import random
import sys
import textwrap
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from trained import Stop, assert_same, run, stop_at

from analysis.run_folder.records import KEY
from sweeps import checkpoint, random_streams, training_state
from sweeps.cells import cells
from sweeps.data_parallel import Team
from sweeps.plan import Trajectory, trajectories
from sweeps.spec import parse_spec
from sweeps.storage import Place
from workloads.protocol import load

DRAWING = textwrap.dedent('''
    import random
    import numpy as np
    import torch
    from tinywork import Tiny

    def drawn():
        """A number from each global stream; gauss and randn keep a second one back."""
        return np.random.randn() + random.gauss(0, 1) + random.random() + float(torch.randn(()))

    class Drawing(Tiny):
        def loss(self, model, batch):
            return super().loss(model, batch) * (1 + 0.05 * drawn())

    class DrawingInEvaluation(Drawing):
        def eval_step(self, model, batch):
            sums = super().eval_step(model, batch)
            return {**sums, "loss": sums["loss"] * (1 + 0.05 * drawn())}
''')
CELLS = [
    {"scheme": "none"},
    {"scheme": "ema", "decay": [0.5, 0.9]},
    {"scheme": "ema", "decay": 0.8, "buffers": "recompute"},
]


@pytest.fixture(autouse=True)
def _drawing(outside: Path) -> None:
    (outside / "drawingwork.py").write_text(DRAWING)
    sys.modules.pop("drawingwork", None)


def grid(workload: str, every: int = 7, fuse: bool = True) -> list[Trajectory]:
    spec = {"study": "t", "workloads": workload, "averaging": CELLS, "evaluate": {"every": every}}
    return trajectories(cells(parse_spec(spec)), fuse=fuse)


@pytest.mark.parametrize("step", [7, 28])
def test_a_resumed_run_draws_on(tmp_path: Path, step: int) -> None:
    (one,) = grid("drawingwork:Drawing")
    undisturbed = run(one, tmp_path / "undisturbed")
    with pytest.raises(Stop):
        run(one, tmp_path / "disturbed", checkpoint_seconds=0, report=stop_at(step))
    assert_same(run(one, tmp_path / "disturbed"), undisturbed)


def test_an_evaluation_that_draws_leaves_training_as_it_was(tmp_path: Path) -> None:
    """Evaluated at twice as many steps, it is at each common step what it is without the others."""
    (often,), (seldom,) = (
        grid("drawingwork:DrawingInEvaluation", 10),
        grid("drawingwork:DrawingInEvaluation", 20),
    )
    frame = run(often, tmp_path / "often").drop(columns="train_loss")  # a mean over half as many steps
    common = frame[frame["step"] % 20 == 0].reset_index(drop=True)
    assert_same(common, run(seldom, tmp_path / "seldom").drop(columns="train_loss"))


def test_an_evaluation_does_not_depend_on_its_company(tmp_path: Path) -> None:
    workload = "drawingwork:DrawingInEvaluation"
    (fused,) = grid(workload)
    alone = [run(one, tmp_path / one.name) for one in grid(workload, fuse=False)]
    assert_same(run(fused, tmp_path / "fused"), pd.concat(alone).sort_values(KEY).reset_index(drop=True))


def draw() -> list[float]:
    return [
        *(float(np.random.randn()) for _ in range(3)),  # noqa: NPY002
        *(random.gauss(0, 1) for _ in range(3)),
        random.random(),
        float(torch.rand(())),
    ]


@pytest.mark.parametrize("before", [0, 1, 700])  # 1: with the second of a pair kept back; 700: past a refill
def test_streams_go_on_from_a_checkpoint(tmp_path: Path, before: int) -> None:
    with random_streams.kept():
        random_streams.seed_all(3)
        for _ in range(before):
            np.random.randn()  # noqa: NPY002
            random.gauss(0, 1)
        checkpoint.save(Place.of(tmp_path / "checkpoint"), dict(random_streams.read(cuda=False)))
        expected = draw()
        random_streams.seed_all(4)
        assert draw() != expected
        saved = checkpoint.load(tmp_path / "checkpoint")
        assert saved is not None
        random_streams.put(saved)
        assert draw() == expected


def test_streams_are_kept_through_an_error_and_a_swapped_generator() -> None:
    random_streams.seed_all(5)
    expected = draw()
    random_streams.seed_all(5)

    def upset() -> None:
        with random_streams.kept():
            random_streams.seed_all(6)
            np.random.set_bit_generator(np.random.PCG64(1))
            raise Stop

    with pytest.raises(Stop):
        upset()
    assert draw() == expected


def test_ranks_begin_apart_and_a_seed_is_a_seed() -> None:
    found = []
    for seed, rank in ((0, 0), (0, 1), (1, 0), (0, 0)):
        random_streams.seed_all(seed, rank)
        found.append(draw())
    assert found[0] == found[3]
    for i in range(len(found[0])):
        assert len({one[i] for one in found[:3]}) == 3, "each stream, by rank and by seed"


def test_ranks_of_a_trial_draw_apart_and_begin_with_one_model() -> None:
    (one,) = grid("drawingwork:Drawing")
    found, weights = [], []
    with random_streams.kept():
        for rank in (0, 1, 2):
            random_streams.seed_all(one.cells[0].training.seed)
            workload = load("drawingwork:Drawing", "mini")
            state = training_state.fresh(one, workload, "cpu", Team(rank, 3))
            weights.append(torch.cat([value.flatten() for value in state.model.state_dict().values()]))
            found.append(draw())
    for i in range(len(found[0])):
        assert len({one[i] for one in found}) == 3, "each stream, by rank"
    assert torch.equal(weights[0], weights[1])
    assert torch.equal(weights[0], weights[2])


def test_another_generator_of_numpys_cannot_be_in_a_checkpoint() -> None:
    with random_streams.kept():
        np.random.set_bit_generator(np.random.PCG64(1))
        with pytest.raises(TypeError, match="MT19937"):
            random_streams.read(cuda=False)


def test_in_a_process_with_another_generator_a_trial_is_the_same(tmp_path: Path) -> None:
    (one,) = grid("drawingwork:Drawing", every=30)
    expected = run(one, tmp_path / "a")
    with random_streams.kept():
        mine = np.random.PCG64(1)
        np.random.set_bit_generator(mine)
        assert_same(run(one, tmp_path / "b"), expected)
        assert np.random.get_bit_generator() is mine
