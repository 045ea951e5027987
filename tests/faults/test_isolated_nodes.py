"""A sweep over nodes that share nothing but Ray: one is cut off for a while, one is lost, one joins on the way."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pandas as pd
import pytest
from isolated_nodes import isolated_nodes, why_not
from isolated_sweep import S3, ObjectStore, Sweep, judged
from s3_server import moto_server

from analysis.run_folder.records import load_trials

pytestmark = pytest.mark.cluster


def test_nodes_that_share_nothing_are_cut_off_lost_and_join(tmp_path: Path, undisturbed: pd.DataFrame) -> None:
    if (why := why_not()) is not None:
        pytest.skip(why)
    program = moto_server()
    shared = [] if program else ["storage"]
    with isolated_nodes(tmp_path, S3, shared) as cluster:
        store = ObjectStore(cluster, program) if program else None
        cluster.start(a=1, b=1)
        sweep = Sweep(cluster, "s3://bucket/runs" if store else "/tmp/storage")
        sweep.start()
        held = sweep.wait_workers("a", "b")
        sweep.wait_rows(12)
        assert not (cluster.nodes["a"].folder / "run").exists()
        cluster.nodes["a"].pull()
        os.kill(held["b"], signal.SIGSTOP)
        if store:  # and all that it held is gone
            store.kill()
        time.sleep(4)
        if store:
            store.start()
        os.kill(held["b"], signal.SIGCONT)
        cluster.nodes["a"].plug()
        sweep.wait_rows(20)
        cluster.lose("b")
        cluster.add("c").start_ray()
        sweep.finish()
        left = store.states() if store else [path.name for path in (tmp_path / "storage").rglob("checkpoint-*")]
        verdict = judged(sweep, undisturbed, left)
        assert verdict.is_good, (verdict, sweep.log)
        assert {"a", "b"} <= set(load_trials(sweep.run)["host"])
