"""`python -m sweeps.follower`: a rank above 0 of a data-parallel trial. The same loop; it records nothing."""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import traceback
from pathlib import Path

from sweeps import import_order


def main() -> None:
    """Read the task, one line of JSON, from standard input; end when that closes, since rank 0 is gone then."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # which a batch system sends to all: rank 0 ends us
    task = json.loads(sys.stdin.readline())
    threading.Thread(target=_end_with_the_leader, daemon=True).start()
    import_order.search_too(task["sys_path"])
    from cluster.secrets import redacted
    from sweeps import data_parallel, plan, retries, trajectory
    from workloads.user_errors import one_line

    rank, size, device = task["rank"], task["size"], task["device"]
    data_parallel.ready_file(Path(task["rendezvous"]), rank).touch()
    with data_parallel.joined(rank, size, device, Path(task["rendezvous"])):
        try:
            trajectory.train(
                plan.from_dict(task["trajectory"]),
                trajectory.Given(**task["given"]),
                data_parallel.Team(rank, size),
                device=device,
                num_devices=task["num_devices"],
            )
        except (Exception, SystemExit) as error:
            told = redacted(traceback.format_exc())
            print(f"{told}{one_line(error)}", file=sys.stderr, flush=True)
            os._exit(retries.LASTING_EXIT if retries.is_lasting(error) else 1)  # at once: rank 0 waits for us


def _end_with_the_leader() -> None:
    sys.stdin.read()
    os._exit(1)


if __name__ == "__main__":
    main()
