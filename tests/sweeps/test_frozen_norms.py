"""The modes that a workload gives its modules are its own: a frozen batch norm stays frozen for a whole trial."""

from __future__ import annotations

import textwrap
from pathlib import Path

from sweeps import trajectory
from sweeps.cells import cells
from sweeps.plan import trajectories
from sweeps.spec import parse_spec

FROZEN = textwrap.dedent('''
    from torch import nn
    from tinywork import Tiny

    class Frozen(Tiny):
        """As for fine-tuning: the first norm keeps its statistics, the second has those of its batches."""

        def model(self):
            model = super().model()
            model.append(nn.BatchNorm1d(4))
            model[1].eval()
            return model

        def loss(self, model, batch):
            assert [model[1].training, model[3].training, model[5].training] == [False, True, True]
            assert (model[1].running_mean == 0).all() and model[1].num_batches_tracked == 0
            return super().loss(model, batch)

        def eval_step(self, model, batch):
            assert not any(module.training for module in model.modules())
            return super().eval_step(model, batch)
''')


def test_a_frozen_norm_stays_frozen_through_training_and_evaluations(outside: Path, tmp_path: Path) -> None:
    (outside / "frozenwork.py").write_text(FROZEN)
    averaging = [
        {"scheme": "none"},
        {"scheme": "ema", "decay": 0.9, "buffers": ["live", "average", "recompute"]},
    ]
    spec = {"study": "t", "workloads": "frozenwork:Frozen", "averaging": averaging, "evaluate": {"every": 5}}
    (one,) = trajectories(cells(parse_spec({**spec, "step_budget": 12})), fuse=True)
    trajectory.run(one, tmp_path / "a")
    assert (tmp_path / "a" / "done").exists()
