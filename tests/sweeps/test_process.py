"""A trial leaves its process as it was, and the next trial is the same whoever came before."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

HOSTILE = textwrap.dedent('''
    """Sets whatever a process has, at import, when it is made, and while it trains."""
    import gc, logging, logging.config, locale, os, random, signal, socket, sys, warnings
    import numpy as np
    import torch
    from tinywork import Tiny

    os.environ["FROM_IMPORT"] = "1"  # holds in each of its own trials

    class Hostile(Tiny):
        def batches(self, seed, first_step):
            for step, (x, y) in enumerate(super().batches(seed, first_step), start=first_step):
                yield x * float(os.environ["FROM_IMPORT"]), y

        def loss(self, model, batch):
            return super().loss(model, batch) * (1 + 0.1 * np.random.rand() + 0.1 * random.random())

        def summarize(self, sums):
            self.evaluations = getattr(self, "evaluations", 0) + 1
            if self.evaluations == 6:  # of two cells at three steps: the last thing it does
                upset()
            return super().summarize(sums)

    def upset():
        os.chdir("/")
        os.umask(0o777)
        os.environ["LEFT"] = "behind"
        os.environ.pop("HOME", None)
        os.environ["PATH"] = "/nowhere"
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
        sys.path.insert(0, "/left/behind")
        sys.setrecursionlimit(5000)
        sys.stdout = open(os.devnull, "w")
        gc.disable()
        locale.setlocale(locale.LC_ALL, "C")
        socket.setdefaulttimeout(3)
        logging.disable(logging.CRITICAL)
        logging.config.dictConfig({"version": 1, "disable_existing_loggers": True})
        logging.getLogger().addHandler(logging.NullHandler())
        logging.getLogger().setLevel(1)
        logging.getLogger("left.behind").setLevel(5)
        warnings.filterwarnings("error", message="left behind")
        warnings.showwarning = print
        np.seterr(all="raise")
        np.random.set_bit_generator(np.random.PCG64(3))
        torch.set_num_threads(2)
        torch.set_default_dtype(torch.float64)
        torch.set_default_device("meta")
        torch.set_float32_matmul_precision("medium")
        torch.backends.cudnn.benchmark = True
        torch.backends.cudnn.enabled = False
        torch.backends.mkldnn.enabled = False
        torch.backends.cuda.enable_math_sdp(False)
        torch.backends.cuda.enable_flash_sdp(False)
        torch.autograd.set_detect_anomaly(True)
        torch.set_autocast_enabled("cpu", True)
        torch.set_flush_denormal(True)
        torch.use_deterministic_algorithms(False)
        torch.nn.modules.module.register_module_forward_hook(lambda module, args, out: out * 1.5)
        sys.modules["torch.optim.optimizer"].register_optimizer_step_pre_hook(lambda *_: None)
        signal.signal(signal.SIGUSR1, signal.SIG_IGN)
''')
PLAN = textwrap.dedent("""
    import json
    from pathlib import Path
    from sweeps.cells import cells
    from sweeps.plan import to_dict, trajectories
    from sweeps.spec import parse_spec

    averaging = [{"scheme": "none"}, {"scheme": "ema", "decay": 0.9, "buffers": "recompute"}]
    for name in ("tinywork:Tiny", "hostilework:Hostile"):
        spec = {"study": "t", "workloads": name, "averaging": averaging, "evaluate": {"every": 20}}
        (one,) = trajectories(cells(parse_spec(spec)), fuse=True)
        Path(name.partition(":")[0] + ".json").write_text(json.dumps(to_dict(one)))
""")
TRIALS = textwrap.dedent("""
    import json, sys
    from pathlib import Path
    from sweeps import process, trajectory
    from sweeps.plan import from_dict

    found = []
    for i, name in enumerate(sys.argv[1:]):
        one, folder = from_dict(json.loads(Path(name + ".json").read_text())), Path("-".join(sys.argv[1:]), str(i))
        before = process._values()
        trajectory.run(one, folder.resolve())
        changed = process._changed(process._values(), before)
        assert not changed, changed
        rows = [json.loads(line) for line in (folder / "records.jsonl").read_text().splitlines()]
        found.append([[row["cell_id"], row["step"], row["loss"], row["metric"]] for row in rows])
    print(json.dumps(found))
""")


def run_python(folder: Path, code: str, *arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code, *arguments],
        cwd=folder,
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_whoever_came_before_a_trial_is_the_same_and_leaves_nothing(outside: Path) -> None:
    (outside / "hostilework.py").write_text(HOSTILE)
    run_python(outside, PLAN)
    trials = ["tinywork", "hostilework", "tinywork", "hostilework"]
    tiny, hostile, tiny_after, hostile_after = json.loads(run_python(outside, TRIALS, *trials))
    assert tiny_after == tiny, "the hostile trial reached the next one"
    assert hostile_after == hostile, "its import's settings hold in its later trials, what it did later in none"
    (first,) = json.loads(run_python(outside, TRIALS, "hostilework"))
    assert first == hostile, "a trial that is the first of its process is as one that is the tenth"
    assert tiny[0][2] != hostile[0][2]


def test_what_an_import_sets_holds_in_each_trial_of_its_module(monkeypatch: pytest.MonkeyPatch) -> None:
    from sweeps import process

    monkeypatch.delenv("SET_BY_IMPORT", raising=False)
    monkeypatch.setattr(process, "_set_by_import", {})
    monkeypatch.setitem(sys.modules, "some_module", sys)
    seen = []
    for number in range(2):
        with process.kept():

            def make(number: int = number) -> int:
                if number == 0:  # a module's body runs once
                    os.environ["SET_BY_IMPORT"] = "yes"
                    sys.path.append("/set/by/import")
                return number

            assert process.imported("some_module", make) == number
            seen.append((os.environ.get("SET_BY_IMPORT"), sys.path.count("/set/by/import")))
        assert "SET_BY_IMPORT" not in os.environ
        assert "/set/by/import" not in sys.path
    assert seen == [("yes", 1), ("yes", 1)]
    assert process.imported("another_module", lambda: os.environ.get("SET_BY_IMPORT")) is None
